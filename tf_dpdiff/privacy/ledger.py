"""Which releases really happened, and what each of them is charged as.

The statement is made from this, not from the configuration. No other module turns a release into what the accountant
composes: plans, budgets and statements all ask a ledger.
"""

import dataclasses
import json
import math

import dp_accounting
from dp_accounting import dp_event as dp_event_lib

from tf_dpdiff.privacy import best_of_runs
from tf_dpdiff.privacy import truncation as truncation_lib

DP_SGD_STEP = 'dp_sgd_step'  # The mechanism of a private step.
BEST_OF_RUNS = 'best_of_runs'  # Stands for a choice among several runs.


def dp_event(
    noise_multiplier: float,
    sampling_probability: float | None,
    count: int,
    truncation: truncation_lib.Truncation | None = None,
) -> dp_accounting.DpEvent:
    """Returns the event that a Gaussian mechanism, applied `count` times, is charged as.

    Guarantee: a mechanism that adds Gaussian noise of standard deviation noise_multiplier times its sensitivity, each
      time to a sum over units that take part independently with the given probability, is the event returned. Without
      noise, or without Poisson sampling, it is the event for which no epsilon holds. Where a random subset of those
      drawn is kept, it is so for units that are replaced with a null record, at the number of units of the truncation.

    Args:
      noise_multiplier: Ratio of the noise's standard deviation to the sensitivity, at least 0.
      sampling_probability: Of each unit in each application, in (0, 1]; 1 where all units take part; None where units
        are not Poisson-sampled.
      count: How often it was applied, at least 0.
      truncation: What is kept where more units are drawn; None: all that are drawn.
    """
    if count == 0:
        return dp_accounting.NoOpDpEvent()
    if sampling_probability is None or noise_multiplier == 0:
        return dp_accounting.NonPrivateDpEvent()
    if truncation is not None:
        once = dp_event_lib.TruncatedSubsampledGaussianDpEvent(
            truncation.num_units, sampling_probability, truncation.truncated_batch_size, noise_multiplier
        )
        return dp_accounting.SelfComposedDpEvent(once, count)
    once = dp_accounting.GaussianDpEvent(noise_multiplier)
    if sampling_probability != 1.0:
        once = dp_accounting.PoissonSampledDpEvent(sampling_probability, once)
    return dp_accounting.SelfComposedDpEvent(once, count)


@dataclasses.dataclass(frozen=True)
class Release:
    """A mechanism that was applied `count` times to the private data.

    Attributes:
      mechanism: 'dp_sgd_step' (Poisson-sampled Gaussian, or without a guarantee where sampling_probability is None) or
        the name of another Gaussian release.
      noise_multiplier: Ratio of the noise's standard deviation to the sensitivity.
      sampling_probability: Of each unit in each application; 1.0 where all units take part; None where units are not
        Poisson-sampled, for which no guarantee is claimed.
      count: How often it was applied, at least 1.
      truncation: How many of the units that were drawn were kept at most, of how many units in all; None: all were.
    """

    mechanism: str
    noise_multiplier: float
    sampling_probability: float | None
    count: int
    truncation: truncation_lib.Truncation | None = None

    def __post_init__(self):
        if not isinstance(self.mechanism, str) or not self.mechanism or self.mechanism == BEST_OF_RUNS:
            raise ValueError(f'mechanism must be a name, got {self.mechanism!r}.')
        if not 0.0 <= self.noise_multiplier < math.inf:
            raise ValueError(f'noise_multiplier must be finite and at least 0, got {self.noise_multiplier}.')
        if self.sampling_probability is not None and not 0.0 < self.sampling_probability <= 1.0:
            raise ValueError(f'sampling_probability must be in (0, 1] or None, got {self.sampling_probability}.')
        if int(self.count) != self.count or self.count < 1:
            raise ValueError(f'count must be a whole number of at least 1, got {self.count}.')
        if self.truncation is not None:
            if self.sampling_probability is None:
                raise ValueError(f'batches that are not Poisson-sampled are not truncated, got {self.truncation}.')
            self.truncation.check(self.sampling_probability)

    def dp_event(self) -> dp_accounting.DpEvent:
        """Returns the event of all applications."""
        return dp_event(self.noise_multiplier, self.sampling_probability, self.count, self.truncation)

    def to_fields(self) -> dict:
        """Returns the release as plain JSON values."""
        fields = dataclasses.asdict(self)
        if self.truncation is None:
            del fields['truncation']  # Files that were written before there was such a choice stay as they are.
        return fields

    @classmethod
    def from_fields(cls, fields: dict) -> 'Release':
        """Inverse of `to_fields`."""
        truncation = fields.get('truncation')
        return cls(**{**fields, 'truncation': truncation and truncation_lib.Truncation(**truncation)})


@dataclasses.dataclass(frozen=True)
class BestOfRuns:
    """The best of several runs was released, and nothing of the others.

    Attributes:
      num_runs: The distribution of the number of runs that were made, which is secret.
      releases: Of each of them, its score among them: at most, since a run may have ended early.
      count: How many such choices, at least 1.
    """

    num_runs: best_of_runs.NumRuns
    releases: tuple[Release, ...]
    count: int = 1

    mechanism = BEST_OF_RUNS

    def __post_init__(self):
        if not self.releases or not all(isinstance(release, Release) for release in self.releases):
            raise ValueError(f'runs of a choice release something each, and hold no other choice: {self.releases!r}.')
        if int(self.count) != self.count or self.count < 1:
            raise ValueError(f'count must be a whole number of at least 1, got {self.count}.')

    def dp_event(self) -> dp_accounting.DpEvent:
        """Returns the event of all choices."""
        of_a_run = dp_accounting.ComposedDpEvent([release.dp_event() for release in self.releases])
        chosen = dp_event_lib.RepeatAndSelectDpEvent(of_a_run, self.num_runs.mean, self.num_runs.eta)
        return dp_accounting.SelfComposedDpEvent(chosen, self.count)

    def to_fields(self) -> dict:
        """Returns the choice as plain JSON values."""
        return {**dataclasses.asdict(self), 'releases': [release.to_fields() for release in self.releases]}


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The releases of a run, in order. Immutable: `record` returns a new ledger.

    It is saved in the same checkpoint as the weights, so that the two cannot disagree: a step that was lost in a crash
    is in neither, and is repeated with the same draws.

    Example:
        >>> ledger = Ledger().record('noisy_class_means', 3.0, 1.0).record('dp_sgd_step', 4.5, 0.5)
        >>> ledger = ledger.record('dp_sgd_step', 4.5, 0.5)
        >>> [(r.mechanism, r.count) for r in ledger.releases]
        [('noisy_class_means', 1), ('dp_sgd_step', 2)]
        >>> Ledger.from_json(ledger.to_json()) == ledger
        True
    """

    releases: tuple[Release | BestOfRuns, ...] = ()

    @property
    def of_single_runs(self) -> tuple[Release, ...]:
        """The releases, and in place of a choice among runs those of each run: not to be added up."""
        return tuple(
            part
            for release in self.releases
            for part in (release.releases if isinstance(release, BestOfRuns) else (release,))
        )

    def of_each_run(self, num_runs: best_of_runs.NumRuns) -> 'Ledger':
        """Returns the ledger of a single run where this one is of a choice among runs; empty where it is empty.

        Raises:
          ValueError: if it holds something else.
        """
        if not self.releases:
            return self
        only = self.releases[0]
        if len(self.releases) > 1 or not isinstance(only, BestOfRuns) or (only.num_runs, only.count) != (num_runs, 1):
            raise ValueError('the ledger is not that of a run of this choice among runs.')
        return Ledger(only.releases)

    def best_of(self, num_runs: best_of_runs.NumRuns) -> 'Ledger':
        """Returns the ledger of the best of several runs, of each of which this is the ledger.

        Raises:
          ValueError: if it is empty, or of such a choice itself.
        """
        return Ledger((BestOfRuns(num_runs, self.of_single_runs if self.is_plain else ()),))

    @property
    def is_plain(self) -> bool:
        """Whether it holds no choice among runs."""
        return all(isinstance(release, Release) for release in self.releases)

    def record(
        self,
        mechanism: str,
        noise_multiplier: float,
        sampling_probability: float | None,
        count: int = 1,
        truncation: truncation_lib.Truncation | None = None,
    ) -> 'Ledger':
        """Returns the ledger with more applications of a mechanism, `count` of them; 0 adds nothing."""
        if count == 0:
            return self
        release = Release(mechanism, noise_multiplier, sampling_probability, count, truncation)
        if self.releases:
            last = self.releases[-1]
            if isinstance(last, Release) and dataclasses.replace(last, count=count) == release:
                return Ledger(self.releases[:-1] + (dataclasses.replace(last, count=last.count + count),))
        return Ledger(self.releases + (release,))

    def count(self, mechanism: str) -> int:
        """Returns the number of applications of a mechanism; where runs were chosen among, in each of them."""
        return sum(r.count for r in self.of_single_runs if r.mechanism == mechanism)

    def first(self, mechanism: str, count: int) -> 'Ledger':
        """Returns the ledger with only the first applications of a mechanism; others, and choices among runs, stay."""
        kept: list[Release | BestOfRuns] = []
        for release in self.releases:
            part: Release | BestOfRuns | None = release
            if isinstance(release, Release) and release.mechanism == mechanism:
                part = dataclasses.replace(release, count=min(release.count, count)) if count else None
                count -= part.count if part else 0
            kept += [part] if part else []
        return Ledger(tuple(kept))

    def contains(self, other: 'Ledger') -> bool:
        """Returns True where this ledger holds all releases of another one, in whatever order."""
        mine, others = _counts(self), _counts(other)
        return all(mine.get(release, 0) >= count for release, count in others.items())

    def union(self, other: 'Ledger') -> 'Ledger':
        """Returns the ledger of all releases in either of two ledgers of one run.

        What both hold was released once: a run repeats a step that was lost with the same draws.
        """
        if self.contains(other):
            return self
        if other.contains(self):
            return other
        mine, others = _counts(self), _counts(other)
        return Ledger(
            tuple(
                dataclasses.replace(release, count=max(mine.get(release, 0), others.get(release, 0)))
                for release in {**mine, **others}
            )
        )

    def dp_event(self) -> dp_accounting.DpEvent:
        """Returns the composition of all releases."""
        events = [r.dp_event() for r in self.releases]
        return dp_accounting.ComposedDpEvent(events) if events else dp_accounting.NoOpDpEvent()

    def to_json(self) -> str:
        """Returns the ledger as JSON; holds nothing that depends on pixels or on the private seed."""
        return json.dumps(
            [
                {'mechanism': BEST_OF_RUNS, **release.to_fields()}
                if isinstance(release, BestOfRuns)
                else release.to_fields()
                for release in self.releases
            ]
        )

    @classmethod
    def from_json(cls, text: str) -> 'Ledger':
        """Inverse of `to_json`."""
        return cls(tuple(map(_release_from, json.loads(text))))


def _release_from(fields: dict) -> Release | BestOfRuns:
    if fields['mechanism'] != BEST_OF_RUNS:
        return Release.from_fields(fields)
    fields = {name: value for name, value in fields.items() if name != 'mechanism'}
    of_each_run = tuple(map(Release.from_fields, fields.pop('releases')))
    return BestOfRuns(num_runs=best_of_runs.NumRuns(**fields.pop('num_runs')), releases=of_each_run, **fields)


def _counts(ledger: Ledger) -> dict[Release | BestOfRuns, int]:
    """Returns the number of applications of each release, whatever came between."""
    counts: dict[Release | BestOfRuns, int] = {}
    for release in ledger.releases:
        one = dataclasses.replace(release, count=1)
        counts[one] = counts.get(one, 0) + release.count
    return counts
