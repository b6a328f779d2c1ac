"""What is known of a release, in sentences: from its statement, and from its curator. Its papers are made of it."""

from collections.abc import Iterator
import dataclasses
import functools
import json
import math
from typing import Any

from tf_dpdiff import version
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import meaning
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import curator
from tf_dpdiff.runs import folder

FALSE_POSITIVE_RATES = ((0.001, '1 in 1,000'), (0.01, '1 in 100'))
_GROUPS = (2, 3, 5, 10)
# At odds of e^20, half a billion to one, nothing is left to be said.
LARGEST_EPSILON_OF_GROUPS = 20.0
_EPSILONS_OF_GROUPS = (2.0, 5.0, 10.0, LARGEST_EPSILON_OF_GROUPS)
NO_GUARANTEE = 'NO PRIVACY GUARANTEE'
_PER_IMAGE = 'each single image'


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a release.

    Attributes:
      statement: The fields of its privacy statement.
      description: Its model.
      answers: Of the curator.
      num_samples: How many samples go with it.
      accuracy: Accuracies on private images that were released with noise (released_accuracy.json), or None.
      budget: What all runs on the same data cost together, in a sentence; None where no budget file was given.
      statement_sha256: Of privacy_statement.json.
      date: When it is published, YYYY-MM-DD.
    """

    statement: dict[str, Any]
    description: folder.ModelDescription
    answers: curator.Answers
    num_samples: int
    accuracy: dict[str, Any] | None
    budget: str | None
    statement_sha256: str
    date: str

    @property
    def is_private(self) -> bool:
        """Whether private images were read."""
        return self.statement.get('dataset') is not None

    @property
    def has_guarantee(self) -> bool:
        """Whether an epsilon is claimed."""
        return self.statement['guarantee_claimed']

    @property
    def name(self) -> str:
        """The name of the data product."""
        of = repr(self.statement['dataset']) if self.is_private else 'public images'
        return self.answers.given.get('name', f'Synthetic images after {of}')

    @property
    def source(self) -> str:
        """The images that the model was trained on, in words."""
        return f'the private data set {self.statement["dataset"]!r}' if self.is_private else 'public images alone'

    @property
    def parameters(self) -> str:
        """Epsilon and delta."""
        return rounding.claim(self.statement['epsilon'], self.statement['delta'])

    @property
    def claim(self) -> str:
        """The guarantee in a sentence or two."""
        if not self.is_private:
            return (
                'The model was trained on public images alone. No private image was read, and nothing is claimed for '
                'the public ones: samples may resemble them.'
            )
        if not self.has_guarantee:
            return (
                f'{NO_GUARANTEE} is claimed. What is released may tell of, or even show, private images of '
                f'{self.statement["dataset"]!r}: treat it as you would treat those.'
            )
        beside = ', the classifier beside it' if self.description.has_teacher else ''
        return (
            f'The generator{beside}, and everything drawn from it, is (epsilon, delta)-differentially private towards '
            f'{self.statement["unit"]} of {self.statement["dataset"]!r}: {self.parameters}.'
        )

    @functools.cached_property
    def _ledger(self) -> ledger_lib.Ledger:
        return ledger_lib.Ledger.from_json(json.dumps(self.statement.get('releases', [])))

    @functools.cached_property
    def _all_released(self) -> ledger_lib.Ledger:
        """All that an attacker sees the noise of: released accuracies too, as if they were of the same units."""
        accuracies = ledger_lib.Ledger.from_json(json.dumps(self.accuracy['releases'] if self.accuracy else []))
        return ledger_lib.Ledger(self._ledger.releases + accuracies.releases)

    def _tail(self, num_units: int) -> float:
        return meaning.tail_delta(self._all_released, num_units, generator=self.statement['noise_generator'])

    def _group_epsilon(self, count: int) -> float:
        """Returns epsilon of several units; more than LARGEST_EPSILON_OF_GROUPS where no useful bound is proven."""
        event, delta = self._all_released.dp_event(), self.statement['delta']
        if self._all_released.is_plain:
            return meaning.group_epsilon(event, count, delta, added_delta=self._tail)
        # Where runs were chosen among, the tail adds 1 + e^epsilon times as much: by an epsilon that is not passed.
        for most in _EPSILONS_OF_GROUPS:

            def added_delta(num_units: int, factor: float = 1.0 + math.exp(most)) -> float:
                return min(1.0, factor * self._tail(num_units))

            found = meaning.group_epsilon(event, count, delta, added_delta=added_delta)
            if found <= most:
                return found
        return math.inf

    @functools.cached_property
    def right_guesses(self) -> list[tuple[str, str]]:
        """How often an attacker may be wrong, and how often they can be right at most: in words, and in percent."""
        event, tail = self._all_released.dp_event(), self._tail(1)
        return [
            (words, rounding.percent_up(meaning.true_positive_rate(event, rate, added_delta=tail)))
            for rate, words in FALSE_POSITIVE_RATES
        ]

    @functools.cached_property
    def groups(self) -> list[tuple[str, str]]:
        """Numbers of images of one person, and what they cost; empty where a unit is an owner with all images.

        The last one may be of 'so many or more', of which no useful bound is known.
        """
        if self.statement['unit_is'] != _PER_IMAGE:
            return []
        most = self.answers.given.get('max_images_per_unit')
        costs: list[tuple[str, str]] = []
        for count in sorted({*_GROUPS, *([most] if most and most > 1 else [])}):
            epsilon = self._group_epsilon(count)
            if epsilon > LARGEST_EPSILON_OF_GROUPS:
                return [*costs, (f'{count} or more', 'no useful bound is proven')]
            costs.append((str(count), rounding.round_up(epsilon)))
        return costs

    @functools.cached_property
    def mu(self) -> str:
        """The mu of Gaussian differential privacy, and whether it is proven."""
        found = meaning.gaussian_mu(self._all_released.dp_event())
        if found is None:
            return curator.NOT_STATED
        if found.is_proven:
            return f'{rounding.round_up(found.value)}, proven for real numbers and noise whose tail is not cut'
        return (
            f'about {rounding.round_up(found.value)}, an approximation (steps that sample units satisfy the definition '
            'for no useful mu): the bounds above lie below the curve of such a Gaussian at false positive rates from '
            '1 in 10,000 to 1 in 2'
        )

    @property
    def adjacency(self) -> str:
        """Which pairs of data sets are compared."""
        relation = relations.describe(
            self.statement['neighboring_relation'], is_truncated='truncated_batch_size' in self.statement
        )
        whole = (
            'A unit is one image: several images of one person are several units.'
            if self.statement['unit_is'] == _PER_IMAGE
            else 'A unit is an owner with all of their images, however many.'
        )
        return (
            f'Two data sets are neighbours if they differ in one unit, {self.statement["unit"]}: {relation}. {whole} '
            'The guarantee compares any two neighbours, in both directions, and not the given data set alone.'
        )

    @property
    def mechanisms(self) -> str:
        """What was released by which mechanism."""
        listed, choice = '; '.join(self._describe_releases()), ''
        if not self._ledger.is_plain:
            best = self.statement['best_of_runs']
            choice = (
                f'The best of several runs, by {best["score"]}; their number was drawn at random, with mean '
                f'{best["mean"]:g}, and stays secret. Each of them: '
            )
        return (
            f'{choice}Gaussian mechanism: {listed}. Each step of DP-SGD clips the gradient of a unit to an L2 norm of '
            f'{self.statement["l2_norm_clip"]:g}, adds up, and adds noise once.'
        )

    def _describe_releases(self) -> Iterator[str]:
        for release in self._ledger.of_single_runs:
            times = 'once' if release.count == 1 else f'{release.count:,} times'
            probability = release.sampling_probability
            units = (
                'units that are not Poisson-sampled'
                if probability is None
                else 'all units'
                if probability == 1.0
                else f'each unit with probability {probability:.6g}'
            )
            if release.truncation:
                units += f', at most {release.truncation.truncated_batch_size} kept at random'
            name = release.mechanism.replace('_', ' ').replace('dp sgd', 'DP-SGD')
            yield f'{name}, {times}, on {units}, noise multiplier {release.noise_multiplier:.6g}'

    @property
    def composition(self) -> str:
        """How the releases are added up."""
        by = self.statement['epsilon_by_accountant']
        if not self._ledger.is_plain:
            return (
                'All releases of a run, its score among them, are composed by Renyi accounting, and the choice among '
                f'runs by theorem 2 of Papernot and Steinke (2022): {rounding.round_up(by["rdp"])}, an upper bound. Of '
                f'such a choice no privacy loss distribution is known. {self.of_other_releases}'
            )
        return (
            'All releases of the run are composed in one accountant, by privacy loss distributions '
            f'({rounding.round_up(by["pld"])}); an independent upper bound by Renyi accounting is '
            f'{rounding.round_up(by["rdp"])}. {self.of_other_releases}'
        )

    @property
    def of_other_releases(self) -> str:
        """What is known of other releases from the same data."""
        if self.budget:
            return f'By the budget file of the data, {self.budget}.'
        return 'No budget file was given: what else was released from the same data, and adds to this, is not stated.'

    @property
    def unprotected(self) -> str:
        """What counts as public."""
        public = ', '.join(self.statement['public_data'])
        return (
            f'The number of units ({self.statement["num_units_treated_as_public"]:,}), the classes, the size of images '
            'and all settings count as public.'
            + (f' Public images that it was trained on before: {public}.' if public else '')
        )

    @property
    def contribution(self) -> str:
        """What bounds how much a unit can contribute."""
        most = self.answers.given.get('max_images_per_unit')
        stated = f'{most} (public, by the curator)' if most else curator.NOT_STATED
        bound = 'the gradient of a unit, averaged over its images and views, is clipped, so its number of images is not'
        if self.statement['unit_is'] == _PER_IMAGE:
            return f'One image per unit, its gradient clipped. Largest number of images of one person: {stated}.'
        return f'No limit is needed: {bound} part of the bound. Largest number of images per unit: {stated}.'

    @property
    def post_processing(self) -> str:
        """What is done to the released weights."""
        sampler = self.description.sampler
        chosen = (
            f', the best of {sampler.num_candidates} drawn, by what was released then'
            if sampler.num_candidates > 1
            else ''
        )
        labelled = (
            ' The samples are labelled by a classifier that was released too.'
            if self.description.label_bias is not None
            else ''
        )
        return (
            'A moving average of the weights is exported; samples are drawn from it by '
            f'{sampler.name} in {sampler.num_steps} steps{chosen}, and rounded to 8 bits.{labelled} None of this '
            'reads a private image, so it costs nothing, however many samples are drawn.'
        )

    @property
    def model(self) -> str:
        """What the model is."""
        height, width, channels = self.description.image_shape
        classes = describe_classes(len(self.description.class_names)) if self.description.labelled else 'no classes'
        kind = type(self.description.network).__name__.removesuffix('Config')
        return f'A diffusion model ({kind}) of images of {height}x{width}x{channels}, {classes}.'

    @property
    def software(self) -> str:
        """The version of the program that writes this."""
        return version.__version__

    @property
    def cautions(self) -> list[str]:
        """What a person must be told before they rely on the claim."""
        cautions, most = list(self.statement.get('cautions', [])), self.answers.given.get('max_images_per_unit')
        groups = self.groups if self.has_guarantee and most and most > 1 else []
        unbounded = groups[-1][0].removesuffix(' or more') if groups else ''
        if most and groups and unbounded != groups[-1][0] and int(unbounded) <= most:
            cautions.append(
                f'One person can have {most} images here, and of people with {unbounded} or more nothing useful is '
                'proven: the guarantee is for single images, and not for people.'
            )
        return cautions

    def to_judge_by(self) -> list[tuple[str, str]]:
        """Returns what is needed to judge a guarantee, each with what is known of it.

        References: NIST SP 800-226 (2025), Guidelines for Evaluating Differential Privacy Guarantees: the parts of its
          pyramid, from the top down.
        """
        say, fields = self.answers.say, self.statement
        generator = {'philox': 'Philox, a statistical generator', 'shake256': 'SHAKE-256, a cryptographic generator'}
        released = f'; {self.accuracy["text"]}' if self.accuracy else ''
        preparation = fields.get('image_preparation')
        prepared = f'When it was read, each was {preparation}. Before that: ' if preparation else ''
        by_image = self.statement['unit_is'] == _PER_IMAGE
        groups = '; '.join(f'{count} images: {cost}' for count, cost in self.groups)
        return [
            ('Epsilon', rounding.round_up(fields['epsilon'])),
            ('Delta', rounding.exact(fields['delta'])),
            ('Why this epsilon and delta', say('why_epsilon')),
            ('Unit of privacy', f'{fields["unit"]} ({fields["unit_is"]})'),
            ('Neighbouring data sets', self.adjacency),
            ('Variant', 'approximate differential privacy, (epsilon, delta)'),
            ('Mu of Gaussian differential privacy', self.mu),
            (
                'Several images of one person',
                f'Epsilon at the same delta. {groups}' if by_image else 'covered as one unit',
            ),
            ('Bounds on contribution', self.contribution),
            ('Mechanisms', self.mechanisms),
            ('Composition, privacy budget', self.composition),
            ('Unprotected quantities', self.unprotected),
            ('Preprocessing of the private images', f'{prepared}{say("preprocessing")}'),
            ('Tuning of settings', say('tuning')),
            ('Post-processing', self.post_processing),
            ('Utility', f'{say("utility")}{released}'),
            ('Bias', say('biases')),
            ('Trust model', f'central: a curator holds the private images. Who sees them: {say("trust_model")}'),
            (
                'Threat model',
                'Anyone who has all of the release, whatever else they know and compute, also of all other units. Not '
                'an attacker who reads the checkpoints or watches the training. By the curator: '
                f'{say("threat_model")}',
            ),
            (
                'Floating-point numbers',
                'Not covered: the proof is for real numbers; sums and noise are float32, and clipping leaves a margin '
                'for rounding. The cut tail of the noise adds at most '
                f'{rounding.one_digit_up(fields["noise_tail_adds_to_delta_at_most"])} to delta.',
            ),
            (
                'Randomness',
                f'Noise by {generator[fields["noise_generator"]]}, seeded by 256 secret bits of the operating system.',
            ),
            (
                'Timing and other side channels',
                'Not covered: how long the training took, or what else a machine shows of it. No such number is '
                'released; drawing samples from the released model tells nothing more.',
            ),
            ('Access to the release', say('access')),
            ('Access to private images, retention', say('retention')),
            ('Collection of the private images', say('collection')),
            ('Future releases', say('future_releases')),
        ]


def describe_classes(number: int) -> str:
    """Returns how many classes there are, in words; number: >= 1."""
    return '1 class' if number == 1 else f'{number} classes'
