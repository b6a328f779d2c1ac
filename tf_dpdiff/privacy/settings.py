"""The settings of a run that decide what it costs, and the one among them that is missing, from the others."""

from collections.abc import Callable, Iterable
import dataclasses
import itertools
import math

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import cautions
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import truncation as truncation_lib


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The settings that decide the cost of a run: those of a `plan.DpSgdConfig` but for the clip norm and the like.

    Use it to look for settings. What trains is made from a plan, which `plan.make_plan` checks anew.

    Guarantee: `epsilon` is an upper bound of what a run with these settings costs at delta, with units Poisson-sampled.

    Attributes:
      delta: At which epsilon is meant, in (0, 1).
      noise_multiplier: Of each step, > 0.
      num_steps: Steps, at least 1.
      sampling_probability: Of each unit in each step, in (0, 1].
      target_epsilon: What was asked for, or None.
      num_units: Size of the data set, or None where only the probability is known.
      warm_start_noise_multiplier: Of each round of the other release, > 0, or None.
      warm_start_num_rounds: Its rounds, at least 1.
      truncated_batch_size: The most units of a step, at least as many as are expected, or None; needs num_units, and
        epsilon is then for units that are replaced with a null record.
    """

    delta: float
    noise_multiplier: float | None
    num_steps: int | None
    sampling_probability: float | None
    target_epsilon: float | None
    num_units: int | None = None
    warm_start_noise_multiplier: float | None = None
    warm_start_num_rounds: int = 1
    truncated_batch_size: int | None = None

    @property
    def expected_batch_size(self) -> float | None:
        """Expected units per step, where the data set's size is known."""
        if not self.num_units:
            return self.num_units
        assert self.sampling_probability is not None
        return self.sampling_probability * self.num_units

    def ledger(self, num_steps: int | None = None) -> ledger_lib.Ledger:
        """Returns the ledger that a run with these settings ends with, or has after its first num_steps steps."""
        ledger = ledger_lib.Ledger()
        if self.warm_start_noise_multiplier is not None:
            rounds = self.warm_start_num_rounds
            ledger = ledger.record('warm_start_release', self.warm_start_noise_multiplier, 1.0, count=rounds)
        count = self.num_steps if num_steps is None else num_steps
        assert self.noise_multiplier is not None and count is not None
        truncation = None
        if self.truncated_batch_size is not None:
            assert self.num_units is not None
            truncation = truncation_lib.Truncation(self.num_units, self.truncated_batch_size)
        return ledger.record(
            ledger_lib.DP_SGD_STEP, self.noise_multiplier, self.sampling_probability, count, truncation
        )

    def epsilon(self, accountant: str = 'pld') -> float:
        """Returns the epsilon of the whole run."""
        return accounting.epsilon(self.ledger().dp_event(), self.delta, accountant=accountant)

    def cautions(self) -> list[str]:
        """Returns the cautions that the claim needs, for a lay person; one sentence or two each."""
        if self.num_units:
            return cautions.of_claim(self.epsilon(), self.delta, self.num_units)
        assert self.sampling_probability is not None
        about_delta = cautions.of_delta_without_num_units(self.delta, self.sampling_probability)
        return [caution for caution in (cautions.of_epsilon(self.epsilon()), about_delta) if caution]

    def curve(self, num_points: int = curves.NUM_POINTS) -> list[curves.CurvePoint]:
        """Returns the cost over steps, evenly spaced, the whole run last; begins at 0 where there is a warm start."""
        assert self.num_steps is not None
        return curves.epsilon_over_steps(
            lambda count: self.ledger(count).dp_event(), self.num_steps, self.delta, num_points=num_points
        )


def complete(known: RunSettings) -> RunSettings:
    """Returns settings with the one of noise, steps and sampling probability that is None.

    It is the one that meets the target: the least noise, or the most steps or units. It has as many digits as it is
    shown with, so that a person who copies it meets the target too.

    Guarantee: `epsilon()` of the result is at most the target where a few digits more or less find such a value. Who
      relies on it compares the two, as bin/account does.

    Args:
      known: Exactly one of the three is None, and the target is given.

    Raises:
      accounting.BudgetError: if the target cannot be met.
    """
    assert known.target_epsilon is not None
    target = known.target_epsilon, known.delta

    def event_with(name: str) -> Callable:
        return lambda value: dataclasses.replace(known, **{name: value}).ledger().dp_event()

    if known.noise_multiplier is None:
        name, make_event = 'noise_multiplier', event_with('noise_multiplier')
        exact = accounting.calibrate_noise_multiplier(make_event, *target)
        shown = (ticks / 1e4 for ticks in itertools.count(math.ceil(exact * 1e4)))
        value = _first_that_fits(shown, make_event, *target)
    elif known.num_steps is None:
        name, value = 'num_steps', accounting.solve_num_steps(event_with('num_steps'), *target)
    elif known.num_units:
        name, make_event, num_units = 'sampling_probability', event_with('sampling_probability'), known.num_units
        most = min(num_units, known.truncated_batch_size or num_units)
        value = accounting.solve_batch_size(lambda size: make_event(size / num_units), *target, most) / num_units
    else:
        name, make_event = 'sampling_probability', event_with('sampling_probability')
        exact = accounting.solve_sampling_probability(make_event, *target)
        shown = (_round_down(exact * (1.0 - i * 1e-5), 6) for i in itertools.count())
        value = _first_that_fits(shown, make_event, *target)
    return dataclasses.replace(known, **{name: value})


def _first_that_fits(values: Iterable[float], make_event: Callable, target_epsilon: float, target_delta: float):
    """Returns the first of a few values that meets the target, the last of them where none does."""
    values = list(itertools.islice(values, 10))
    return next(
        (value for value in values if accounting.epsilon(make_event(value), target_delta) <= target_epsilon), values[-1]
    )


def _round_down(value: float, digits: int) -> float:
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    return min(math.floor(value * scale) / scale, 1.0)
