"""Which releases really happened, and what each of them is charged as.

The statement is made from this, not from the configuration. No other module turns a release into what the accountant
composes: plans, budgets and statements all ask a ledger.
"""

import dataclasses
import json
import math

import dp_accounting

DP_SGD_STEP = 'dp_sgd_step'  # The mechanism of a private step.


def dp_event(noise_multiplier: float, sampling_probability: float | None, count: int) -> dp_accounting.DpEvent:
    """Returns the event that a Gaussian mechanism, applied `count` times, is charged as.

    Guarantee: a mechanism that adds Gaussian noise of standard deviation noise_multiplier times its sensitivity, each
      time to a sum over units that take part independently with the given probability, is the event returned. Without
      noise, or without Poisson sampling, it is the event for which no epsilon holds.

    Args:
      noise_multiplier: Ratio of the noise's standard deviation to the sensitivity, at least 0.
      sampling_probability: Of each unit in each application, in (0, 1]; 1 where all units take part; None where units
        are not Poisson-sampled.
      count: How often it was applied, at least 0.
    """
    if count == 0:
        return dp_accounting.NoOpDpEvent()
    if sampling_probability is None or noise_multiplier == 0:
        return dp_accounting.NonPrivateDpEvent()
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
    """

    mechanism: str
    noise_multiplier: float
    sampling_probability: float | None
    count: int

    def __post_init__(self):
        if not isinstance(self.mechanism, str) or not self.mechanism:
            raise ValueError(f'mechanism must be a name, got {self.mechanism!r}.')
        if not 0.0 <= self.noise_multiplier < math.inf:
            raise ValueError(f'noise_multiplier must be finite and at least 0, got {self.noise_multiplier}.')
        if self.sampling_probability is not None and not 0.0 < self.sampling_probability <= 1.0:
            raise ValueError(f'sampling_probability must be in (0, 1] or None, got {self.sampling_probability}.')
        if int(self.count) != self.count or self.count < 1:
            raise ValueError(f'count must be a whole number of at least 1, got {self.count}.')

    def dp_event(self) -> dp_accounting.DpEvent:
        """Returns the event of all applications."""
        return dp_event(self.noise_multiplier, self.sampling_probability, self.count)


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

    releases: tuple[Release, ...] = ()

    def record(
        self, mechanism: str, noise_multiplier: float, sampling_probability: float | None, count: int = 1
    ) -> 'Ledger':
        """Returns the ledger with more applications of a mechanism, `count` of them; 0 adds nothing."""
        if count == 0:
            return self
        release = Release(mechanism, noise_multiplier, sampling_probability, count)
        if self.releases:
            last = self.releases[-1]
            if dataclasses.replace(last, count=count) == release:
                return Ledger(self.releases[:-1] + (dataclasses.replace(last, count=last.count + count),))
        return Ledger(self.releases + (release,))

    def count(self, mechanism: str) -> int:
        """Returns the number of applications of a mechanism."""
        return sum(r.count for r in self.releases if r.mechanism == mechanism)

    def first(self, mechanism: str, count: int) -> 'Ledger':
        """Returns the ledger with only the first applications of a mechanism; other releases stay."""
        kept: list[Release] = []
        for release in self.releases:
            part: Release | None = release
            if release.mechanism == mechanism:
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
        return json.dumps([dataclasses.asdict(r) for r in self.releases])

    @classmethod
    def from_json(cls, text: str) -> 'Ledger':
        """Inverse of `to_json`."""
        return cls(tuple(Release(**fields) for fields in json.loads(text)))


def _counts(ledger: Ledger) -> dict[Release, int]:
    """Returns the number of applications of each release, whatever came between."""
    counts: dict[Release, int] = {}
    for release in ledger.releases:
        one = dataclasses.replace(release, count=1)
        counts[one] = counts.get(one, 0) + release.count
    return counts
