"""The claim in words and as JSON, made from what was really run."""

import dataclasses
from importlib import metadata
import json
import math
import sys
import textwrap

import numpy as np
import tensorflow as tf

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import best_of_runs
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import meaning
from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import sampling

_WIDTH = 95
_TUNING = 'choices of settings made by looking at the private data (tuning)'
_OTHER_TUNING = 'choices made by looking at the private data, other than that among the candidates (tuning)'
_NOT_COVERED = (
    'evaluation against private images, and whatever is filed under non_private/',
    'other releases from the same data, which add to this epsilon',
    'the rounding of floating-point numbers: the proof is for real numbers',
    'an attacker who reads the checkpoints of the run: they hold the secret seed and must stay private',
)

_ALSO_PUBLIC = (
    'private images that are among those public ones too, of which a run refuses more than 1 in 100: they count '
    'as private where the private stages use them, and what the public stages show of them is not protected'
)

_GENERATORS = {
    'philox': 'Philox, a statistical generator with a secret seed',
    'shake256': 'SHAKE-256, a cryptographic generator with a secret key',
}
_CLIPPINGS = {
    'flat': 'flat',
    'per_layer': 'per layer',
    'normalized': 'normalized: a shorter one is lengthened to nearly as much',
}


@dataclasses.dataclass(frozen=True)
class PrivacyStatement:
    """What is promised about a released model, and what is not.

    Guarantee: everything computed from the released weights alone (samples without limit, the exported model) is
      (epsilon, delta)-differentially private with the numbers given; where epsilon is infinite nothing is promised.

    Attributes:
      unit: What is protected, e.g. 'one image'.
      dataset: Name of the private data set.
      plan: The plan of the run.
      ledger: What was released; the epsilons are computed from it.
      augmentation_multiplicity: K, views of a unit averaged before clipping; changes no privacy number.
      run_id: The run's public name, drawn at random; by it a budget file knows a run that it has charged.
      public_data: The images that count as public and that the weights have seen too, one phrase a source.
      has_owners: Whether a unit is an owner with all of its images; else each image is a unit, whatever it is called.
      preparation: What was done to each private image when it was read, by settings alone, such as 'resized to 32x32
        (cropped)'; told only where there is something to tell.
      candidate: Which of the candidates the run took, where it was chosen among several runs; else None.

    Raises:
      ValueError: if the candidate is none of those of the plan.
    """

    unit: str
    dataset: str
    plan: plan_lib.DpSgdPlan
    ledger: ledger_lib.Ledger
    augmentation_multiplicity: int
    run_id: str | None = None
    public_data: tuple[str, ...] = ()
    has_owners: bool = False
    preparation: str = ''
    candidate: int | None = None

    def __post_init__(self):
        tuning = self.plan.tuning
        if (tuning is None) != (self.candidate is None):
            raise ValueError(f'a run has a candidate where it was chosen among several, got {self.candidate}.')
        if tuning and self.candidate is not None and not 0 <= self.candidate < len(tuning.candidates):
            raise ValueError(f'candidate must be in [0, {len(tuning.candidates)}), got {self.candidate}.')

    def to_dict(self) -> dict:
        """Returns the statement as plain JSON values; an epsilon of None means that none is claimed."""
        config = self.plan.config
        event = self.ledger.dp_event()
        epsilons = {name: _finite(self.plan.epsilon(self.ledger, accountant=name)) for name in accounting.ACCOUNTANTS}
        return {
            'epsilon': epsilons['pld'],
            'delta': config.target_delta,
            'epsilon_by_accountant': epsilons,
            'guarantee_claimed': epsilons['pld'] is not None,
            'cautions': self.plan.cautions(self.ledger),
            'run_id': self.run_id,
            'unit': self.unit,
            'unit_is': 'an owner with all of its images' if self.has_owners else 'each single image',
            'neighboring_relation': config.neighboring_relation,
            'dataset': self.dataset,
            **({'image_preparation': self.preparation} if self.preparation else {}),
            'num_units_treated_as_public': self.plan.num_units,
            'sampling': config.sampling,
            'sampling_probability': self.plan.sampling_probability,
            'expected_batch_size': config.expected_batch_size,
            **({'truncated_batch_size': config.truncated_batch_size} if self.plan.truncation else {}),
            'noise_multiplier': config.noise_multiplier,
            'noise_generator': config.noise_generator,
            'sampling_generator': sampling.GENERATOR,
            'noise_tail_adds_to_delta_at_most': self._tail_delta(),
            'l2_norm_clip': config.l2_norm_clip,
            'clipping': config.clipping,
            'steps_run': self.ledger.count(ledger_lib.DP_SGD_STEP),
            **({'best_of_runs': self._of_tuning(self.plan.tuning)} if self.plan.tuning else {}),
            'augmentation_multiplicity': self.augmentation_multiplicity,
            'releases': json.loads(self.ledger.to_json()),
            'dp_event': repr(event),
            'public_data': list(self.public_data),
            'not_covered': self._not_covered(),
            'versions': _versions(),
        }

    def _of_tuning(self, tuning: best_of_runs.Tuning) -> dict:
        """Returns what is public of a choice among runs: not how many there were, nor anything of the others."""
        assert self.candidate is not None
        return {
            'distribution_of_number_of_runs': 'truncated negative binomial',
            'mean': tuning.num_runs.mean,
            'eta': tuning.num_runs.eta,
            'gamma': tuning.num_runs.gamma,
            'score': tuning.score,
            'score_noise_multiplier': tuning.score_noise_multiplier,
            'candidates': list(tuning.candidates),
            'released_candidate': tuning.candidates[self.candidate],
            'accounting': 'Papernot and Steinke 2022, arXiv:2110.03620, theorem 2',
        }

    def _tail_delta(self) -> float:
        """Returns a bound on what the cut tail of the noise adds to delta; 0 where no noise was drawn."""
        if self.plan.tuning:
            tail = meaning.tail_delta(self.ledger, 1, generator=self.plan.config.noise_generator)
            epsilon = self.plan.epsilon(self.ledger)
            return min(1.0, tail * (1.0 + math.exp(epsilon))) if epsilon < 700.0 else 1.0
        generator = self.plan.config.noise_generator
        tails = (
            noise.tail_delta(
                release.noise_multiplier,
                num_draws=release.count,
                num_numbers=noise.MOST_PARAMETERS,
                generator=generator,
            )
            for release in self.ledger.of_single_runs
            # What is released once has NumPy's noise with 'philox', of which no tail is cut (`noise.standard_normal`).
            if release.noise_multiplier and (release.mechanism == ledger_lib.DP_SGD_STEP or generator != 'philox')
        )
        return min(1.0, sum(tails, 0.0))

    def _why_nothing_is_claimed(self) -> str:
        """Returns the reasons why no epsilon is known."""
        reasons, of_runs = [], self.ledger.of_single_runs
        if any(release.noise_multiplier < epsilon_bounds.SMALLEST_NOISE_MULTIPLIER for release in of_runs):
            reasons.append('it was trained without noise, or with next to none')
        if any(release.sampling_probability is None for release in of_runs):
            reasons.append('its batches were not Poisson-sampled')
        return ', and '.join(reasons)

    def _not_covered(self) -> list[str]:
        public = [f'the public images it was trained on before: {phrase}' for phrase in self.public_data]
        tuning = _OTHER_TUNING if self.plan.tuning else _TUNING
        return public + [_ALSO_PUBLIC] * bool(public) + [tuning, *_NOT_COVERED]

    def epsilon_over_steps(self) -> list[curves.CurvePoint]:
        """Returns the cost over the steps that were run, the claim last; empty where nothing is claimed.

        Empty also of a run that was chosen among several: no step of one tells what all of them have cost.
        """
        num_steps = self.ledger.count(ledger_lib.DP_SGD_STEP)
        if self.plan.tuning or not num_steps or _finite(self.plan.epsilon(self.ledger)) is None:
            return []
        return curves.epsilon_over_steps(
            lambda count: self.ledger.first(ledger_lib.DP_SGD_STEP, count).dp_event(),
            num_steps,
            self.plan.config.target_delta,
        )

    def _describe_tuning(self, tuning: best_of_runs.Tuning) -> list[str]:
        """Returns lines on a choice among runs."""
        assert self.candidate is not None
        num_runs = tuning.num_runs
        paid = (
            f'; that score had Gaussian noise of noise multiplier {tuning.score_noise_multiplier:.6g}'
            if tuning.score_noise_multiplier is not None
            else ', which reads no private image'
        )
        said = (
            'Epsilon covers a choice: several runs were made, and this is the best of them. Their number was drawn at '
            'random, and stays secret, from a truncated negative binomial distribution with mean '
            f'{num_runs.mean:g}, eta {num_runs.eta:g} and gamma {num_runs.gamma:.6g}. Each run took one of the '
            f'candidates below, all equally likely. The best is that with the largest {tuning.score}{paid}. Of the '
            'other runs nothing is released. Accounted by Papernot and Steinke 2022 (arXiv:2110.03620), theorem 2.'
        )
        listed = [
            f'{phrase}{" (this one)" if number == self.candidate else ""}'
            for number, phrase in enumerate(tuning.candidates)
        ]
        return ['', *textwrap.wrap(said, _WIDTH), 'Candidates:', *(f'  - {phrase}' for phrase in listed)]

    def to_json(self) -> str:
        """Returns the statement as indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + '\n'

    def to_text(self) -> str:
        """Returns the statement as a page of English."""
        fields = self.to_dict()
        relation = relations.describe(fields['neighboring_relation'], is_truncated=bool(self.plan.truncation))
        lines = ['PRIVACY STATEMENT', '']
        if fields['guarantee_claimed']:
            lines += [
                f'The model trained on {self.dataset!r} and everything sampled from it is',
                '(epsilon, delta)-differentially private with',
                '',
                f'    epsilon = {rounding.round_up(fields["epsilon"])}   at   '
                f'delta = {rounding.exact(fields["delta"])}',
                '',
                *(textwrap.fill(f'CAUTION: {caution}', _WIDTH) + '\n' for caution in fields['cautions']),
                f'Protected unit: {self.unit} ({fields["unit_is"]}).',
                *textwrap.wrap(f'Neighbouring data sets: {relation}.', _WIDTH),
                *_describe_accountants(**fields['epsilon_by_accountant'], is_choice=bool(self.plan.tuning)),
            ]
        else:
            lines += [
                f'NO PRIVACY GUARANTEE IS CLAIMED for this model: {self._why_nothing_is_claimed()}.',
                '',
                f'Unit: {self.unit} ({fields["unit_is"]}). Data set: {self.dataset!r}.',
            ]
        if self.plan.tuning:
            lines += self._describe_tuning(self.plan.tuning)
            lines += ['', 'What each of the runs made of the private data:']
        else:
            lines += ['', 'What was released from the private data:']
        lines += [f'  - {_describe(release)}' for release in self.ledger.of_single_runs] or ['  - nothing']
        lines += [
            '',
            f'Each step clips the gradient of a unit to an L2 norm of {fields["l2_norm_clip"]:g} '
            f'({_CLIPPINGS[fields["clipping"]]}) after averaging its',
            f'{self.augmentation_multiplicity} view(s), adds up, adds noise once, and divides by the expected batch',
            f'size of {fields["expected_batch_size"]}.',
            f'The noise comes from {_GENERATORS[fields["noise_generator"]]}; its tail is cut, which adds at',
            f'most {rounding.one_digit_up(fields["noise_tail_adds_to_delta_at_most"])} to delta. Which units take part '
            'in a step, and how their images are looked at, is drawn by',
            f'{_GENERATORS[sampling.GENERATOR]}.',
            f'The size of the data set ({self.plan.num_units} units) and its classes count as public.',
            *textwrap.wrap(f'Each of its images was {self.preparation}.' if self.preparation else '', _WIDTH),
            '',
            'Not covered by this statement:',
        ]
        lines += [f'  - {item}' for item in fields['not_covered']]
        versions = ', '.join(f'{name} {version}' for name, version in fields['versions'].items())
        return '\n'.join(lines + ['', f'Computed with {versions}.', ''])


@dataclasses.dataclass(frozen=True)
class PublicStatement:
    """The statement about a model that was trained on public images alone: nothing is claimed, and nothing is owed.

    Attributes:
      public_data: The images, one phrase a source.
      num_steps: Steps of training.
      run_id: The run's public name, drawn at random.
    """

    public_data: tuple[str, ...]
    num_steps: int
    run_id: str | None = None

    def to_dict(self) -> dict:
        """Returns the statement as plain JSON values."""
        return {
            'guarantee_claimed': False,
            'epsilon': None,
            'private_data': None,
            'run_id': self.run_id,
            'public_data': list(self.public_data),
            'steps_run': self.num_steps,
            'versions': _versions(),
        }

    def epsilon_over_steps(self) -> list[curves.CurvePoint]:
        """Returns nothing: no budget is spent."""
        return []

    def to_json(self) -> str:
        """Returns the statement as indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + '\n'

    def to_text(self) -> str:
        """Returns the statement as a page of English."""
        lines = ['PRIVACY STATEMENT', '', f'This model was trained on public images alone, {self.num_steps} steps on:']
        lines += [f'  - {phrase}' for phrase in self.public_data]
        lines += [
            '',
            'No private image was read, so a private run that starts from it pays nothing for that. NO GUARANTEE IS',
            'CLAIMED for the images above: samples may resemble them. Do not give this stage images that are not',
            'public.',
            '',
        ]
        return '\n'.join(lines)


def _versions() -> dict:
    return {
        'python': sys.version.split()[0],
        'tensorflow': tf.__version__,
        'tf_keras': metadata.version('tf-keras'),
        'dp_accounting': metadata.version('dp-accounting'),
        'numpy': np.__version__,
    }


def _describe(release: ledger_lib.Release) -> str:
    times = 'once' if release.count == 1 else f'{release.count} times'
    if release.mechanism == ledger_lib.DP_SGD_STEP:
        drawn = (
            'without Poisson sampling'
            if release.sampling_probability is None
            else f'each unit drawn with probability {release.sampling_probability:.6g}'
        )
        if release.truncation:
            drawn += f', at most {release.truncation.truncated_batch_size} kept at random'
        return f'DP-SGD step, {times}: {drawn}, noise multiplier {release.noise_multiplier:.6g}'
    return f'{release.mechanism.replace("_", " ")}, {times}: all units, noise multiplier {release.noise_multiplier:.6g}'


def _describe_accountants(pld: float, rdp: float, *, is_choice: bool) -> list[str]:
    by_pld, by_rdp = rounding.round_up(pld), rounding.round_up(rdp)
    if is_choice:
        return [
            f'Accountant: Renyi (RDP), an upper bound, {by_rdp}; of a choice among runs no privacy loss',
            'distribution (PLD) is known, which would bound it once more.',
        ]
    if 0.0 < pld == rdp:
        return [
            f'Accountant: Renyi (RDP), an upper bound, {by_rdp}; a privacy loss distribution (PLD) is beyond',
            'numbers of 64 bits here.',
        ]
    return [
        f'Accountants: privacy loss distribution (PLD) {by_pld}; Renyi (RDP), an',
        f'independent upper bound, {by_rdp}.',
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
