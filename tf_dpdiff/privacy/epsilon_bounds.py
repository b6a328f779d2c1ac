"""Upper bounds of epsilon by two accountants, with the rounding of floating-point numbers on the safe side.

dp_accounting does the mathematics. Decided here are how fine a grid it works on, so that no question takes minutes, and
how far its numbers can be trusted, so that no answer is below the truth.
"""

from collections.abc import Iterator
import functools
import math
from typing import NamedTuple

import dp_accounting
from dp_accounting import dp_event
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution
import numpy as np

from tf_dpdiff.privacy import best_of_runs
from tf_dpdiff.privacy import renyi
from tf_dpdiff.privacy import truncation as truncation_lib

# Less noise hides nothing: one step on the whole data set costs an epsilon of 500,000. It counts as no noise.
SMALLEST_NOISE_MULTIPLIER = 1e-3

# Below 1 the orders of dp_accounting's default start too coarse for large epsilon, above 256 too early for small
# epsilon.
_RDP_ORDERS = (
    1.02,
    1.05,
    *(1.0 + x / 10.0 for x in range(1, 100)),
    *range(11, 64),
    80,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
)
# Tell within a few percent how large epsilon is, in milliseconds.
_ROUGH_RDP_ORDERS = (2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 1024)
# Against quadrature in extended precision, log E[(p / q)^order] of a step was too small by at most 2e-13 of itself or
# of 1, at noise multipliers from 0.05 to 10^6 and sampling probabilities from 10^-9 to 1; more of both is added to it.
_RDP_ROUNDING = 1e-12

# Of the privacy loss. Any interval gives an upper bound, a coarser one a looser bound; the finest is fine enough for
# four digits of epsilon at the recipes' settings (epsilon from which on, interval).
_FINEST_INTERVAL = 1e-4
_COARSER_INTERVALS = ((300.0, 1e-2), (30.0, 1e-3))
_COARSEST_INTERVAL = 100.0
# An interval d adds about d^2 / 12 a step: so much of epsilon may be lost in all.
_LOST_SHARE, _SMALLEST_ROUGH_EPSILON = 1e-4, 1e-3
# Points of the grid that all different steps have: what takes a second, and what a search may take many times. Their
# composition may have five times as many, which is as quick.
MAX_POINTS, _MAX_POINTS_OF_A_SEARCH = 200_000, 20_000
# The privacy loss of a step is cut where the noise is beyond this many standard deviations, with probability e^-50.
_TAIL = 10.1
# The composition is cut where a Chernoff bound says that less than 1e-15 is left: this many standard deviations.
_COMPOSED_TAIL = 17.0
# dp_accounting raises the number of a small grid's points (up to 1000) to the power of the number of steps, only to see
# that it is large: such steps are composed in blocks.
_SMALL_GRID, _STEPS_PER_BLOCK = 2000, 10_000
# Fourier transforms round. Against exact arithmetic they changed the delta of a composition by at most half of the
# precision of float64 a step: four times as much is taken off delta, and where that is not well below delta RDP takes
# over. Besides, dp_accounting counts 1e-15 of delta as lost in each composition.
_PLD_ROUNDING, _SMALLEST_PLD_DELTA_PER_STEP, _SMALLEST_PLD_DELTA = 2.0**-51, 2.0**-44, 1e-12
# The probabilities of a truncated step round too. Where each is off by a share r, so are the densities of a step by at
# most 4 r, since the bound is met in less than two thirds of the steps: a factor of e^(4 r) a step on delta, and 8 r on
# epsilon, make up for it.
_TRUNCATION_ROUNDING = 10.0 * truncation_lib.ROUNDING
# A bound that is met less often than this is taken for one that is always left behind: infinite loss, which is taken
# off delta. dp_accounting divides by the probability.
_NEVER = 1e-30
_DELTA_OF_A_CURVE = 1e-6  # For which the grid is chosen where many deltas are asked for.

# Privacy losses from which on e^-loss is no normal number of 64 bits, and from which on it is 0.
_FEW_DIGITS, _NO_DIGITS = 708.0, 746.0


class Steps(NamedTuple):
    """Poisson-sampled Gaussian steps, or Gaussian releases from all units.

    Attributes:
      noise_multiplier: Of each, at least SMALLEST_NOISE_MULTIPLIER.
      sampling_probability: Of each unit, in (0, 1].
      times: How many, at least 1.
    """

    noise_multiplier: float
    sampling_probability: float
    times: int


class TruncatedSteps(NamedTuple):
    """Gaussian steps of Poisson-sampled units of which at most a given number are kept; see `truncation`.

    Attributes:
      noise_multiplier: Of each, at least SMALLEST_NOISE_MULTIPLIER.
      sampling_probability: With which each unit is drawn, in (0, 1].
      truncation: What is kept of those drawn; its bound can be met.
      times: How many, at least 1.
    """

    noise_multiplier: float
    sampling_probability: float
    truncation: truncation_lib.Truncation
    times: int

    @property
    def probabilities(self) -> tuple[float, float]:
        """How often the bound is met, and how often a unit is drawn and kept then: both 0 where nearly never."""
        is_met, is_kept = self.truncation.probabilities(self.sampling_probability)
        return (is_met, is_kept) if is_met >= _NEVER else (0.0, 0.0)


class BestOf(NamedTuple):
    """The best of a random number of runs. No privacy loss distribution of it is known: it has a Renyi bound alone.

    Attributes:
      of_a_run: What each run releases, its score too.
      num_runs: The distribution of their number.
      times: How many such choices, at least 1.
    """

    of_a_run: tuple[Steps, ...]
    num_runs: best_of_runs.NumRuns
    times: int


SingleSteps = Steps | TruncatedSteps  # Of which privacy loss distributions are known.
Part = SingleSteps | BestOf


def steps_of(event: dp_accounting.DpEvent) -> tuple[Part, ...] | None:
    """Returns the parts of an event, equal steps counted together; None where no epsilon is known for a part.

    Raises:
      ValueError: if it holds something else than (Poisson-sampled, and perhaps truncated) Gaussian releases, and
        choices among runs of releases that are not truncated.
    """
    counts: dict[Part, int] = {}
    for key, count in _parts(event, 1):
        if key is None:
            return None
        counts[key] = counts.get(key, 0) + count
    return tuple(key._replace(times=count) for key, count in counts.items())


def _parts(event: dp_accounting.DpEvent, count: int) -> Iterator[tuple[Part | None, int]]:
    """Yields parts, each once, and how often they are released; None in place of one for which no epsilon is known."""
    if isinstance(event, dp_accounting.NonPrivateDpEvent):
        yield None, count
    elif isinstance(event, dp_accounting.SelfComposedDpEvent):
        yield from _parts(event.event, count * event.count)
    elif isinstance(event, dp_accounting.ComposedDpEvent):
        for part in event.events:
            yield from _parts(part, count)
    elif isinstance(event, dp_accounting.GaussianDpEvent):
        yield _gaussian(event.noise_multiplier, 1.0), count
    elif isinstance(event, dp_accounting.PoissonSampledDpEvent) and isinstance(
        event.event, dp_accounting.GaussianDpEvent
    ):
        yield _gaussian(event.event.noise_multiplier, event.sampling_probability), count
    elif isinstance(event, dp_event.TruncatedSubsampledGaussianDpEvent):
        yield _truncated(event), count
    elif isinstance(event, dp_event.RepeatAndSelectDpEvent):
        yield _best_of(event), count
    elif not isinstance(event, dp_accounting.NoOpDpEvent):
        raise ValueError(f'only Gaussian releases and Poisson-sampled ones can be accounted for, got {event!r}.')


def _gaussian(noise_multiplier: float, sampling_probability: float) -> Steps | None:
    if not noise_multiplier >= SMALLEST_NOISE_MULTIPLIER:
        return None
    return Steps(float(noise_multiplier), float(sampling_probability), 1)


def _truncated(event: dp_event.TruncatedSubsampledGaussianDpEvent) -> SingleSteps | None:
    plain = _gaussian(event.noise_multiplier, event.sampling_probability)
    truncation = truncation_lib.Truncation(event.dataset_size, event.truncated_batch_size)
    if plain is None or not truncation.can_be_met:
        return plain
    return TruncatedSteps(plain.noise_multiplier, plain.sampling_probability, truncation, 1)


def _best_of(event: dp_event.RepeatAndSelectDpEvent) -> BestOf | None:
    of_a_run = steps_of(event.event)
    if of_a_run is None:
        return None
    steps = tuple(part for part in of_a_run if isinstance(part, Steps))
    if not steps or len(steps) < len(of_a_run):
        raise ValueError(
            'the runs of a choice make Gaussian releases that are not truncated, and no choices of their own, got '
            f'{event!r}.'
        )
    return BestOf(steps, best_of_runs.NumRuns(float(event.mean), float(event.shape)), 1)


def _all_steps(parts: tuple[Part, ...]) -> tuple[SingleSteps, ...] | None:
    """Returns the same parts; None where a choice among runs is one of them."""
    steps = tuple(part for part in parts if isinstance(part, SingleSteps))
    return steps if len(steps) == len(parts) else None


def by_rdp(steps: tuple[Part, ...], delta: float, *, rough: bool = False) -> float:
    """Returns an upper bound of epsilon by Renyi differential privacy.

    Guarantee: never below the true epsilon: what rounding may take off the moments is added to them.

    Args:
      steps: What is released.
      delta: In (0, 1), however small.
      rough: Within a few percent, in milliseconds.
    """
    return _rdp_epsilon(steps, delta, _ROUGH_RDP_ORDERS if rough else _RDP_ORDERS)


def by_pld(
    steps: tuple[Part, ...], delta: float, *, interval: float | None = None, for_a_search: bool = False
) -> float:
    """Returns an upper bound of epsilon by privacy loss distribution, or by Renyi differential privacy in its place.

    The latter where float64 numbers do not resolve delta (below 10^-12, or with very many steps), where no grid that
    takes a second is fine enough to tell more, or where the best of several runs was released.

    Guarantee: never below the true epsilon, unless it is for a search: what rounding may hide is taken off delta.

    Args:
      steps: What is released.
      delta: In (0, 1).
      interval: Of the privacy loss; finer where very many steps would add up what each loses by it, and coarser where
        the grid would be too large. Where None, 10^-4 for an epsilon below 30 and coarser above, where fewer decimals
        are of use.
      for_a_search: Whether it may be coarser, and rounding may make it smaller: what is found so is to be checked.
    """
    by_other = by_rdp(steps, delta, rough=for_a_search)
    plain = _all_steps(steps)
    grid = None if plain is None else _grid(plain, delta, interval, for_a_search)
    if plain is None or grid is None:
        return by_other
    rounding = 0.0 if for_a_search else _PLD_ROUNDING * _num_composed(plain)
    shift = _truncation_rounding(plain)
    left = delta * math.exp(-shift) - rounding - _never_met(plain)
    return min(_pld_epsilon(plain, left, grid) + shift, by_other)


def deltas_by_pld(steps: tuple[Part, ...], epsilons: np.ndarray, *, interval: float | None = None) -> np.ndarray | None:
    """Returns upper bounds of delta at many epsilons, by privacy loss distribution.

    Guarantee: never below the true deltas: what rounding may hide, in Fourier transforms and in sums over the points of
      the grid, is added to them.

    Args:
      steps: What is released, not empty.
      epsilons: float64 [epsilons], at least 0 and at most 700, in ascending order.
      interval: As for `by_pld`.

    Returns:
      float64 [epsilons]; None where no grid that takes a second is fine enough to tell, or where the best of several
      runs was released.
    """
    plain = _all_steps(steps)
    grid = None if plain is None else _grid(plain, _DELTA_OF_A_CURVE, interval, False)
    if plain is None or grid is None:
        return None
    # dp_accounting adds up probabilities and takes one sum from the other: each addition rounds.
    rounding = _PLD_ROUNDING * (_num_composed(plain) + 5.0 * _spans(plain) / grid)
    shift = _truncation_rounding(plain)
    found = np.maximum(_compose(plain, grid).get_delta_for_epsilon(np.maximum(epsilons - shift, 0.0)), 0.0)
    found = found * math.exp(shift) + np.maximum(shift - epsilons, 0.0) + _never_met(plain)
    return np.minimum(found + rounding, 1.0)


def num_points(
    steps: tuple[Part, ...], delta: float, *, interval: float | None = None, for_a_search: bool = False
) -> int:
    """Returns the number of grid points that `by_pld` looks at, a measure of its work; 0 where it needs none.

    The points of a composition count as a fifth.
    """
    plain = _all_steps(steps)
    grid = None if plain is None else _grid(plain, delta, interval, for_a_search)
    return 0 if plain is None or grid is None else math.ceil(_spans(plain) / grid)


def _num_composed(steps: tuple[SingleSteps, ...]) -> int:
    return sum(1 if _is_one_release(step) else step.times for step in steps)


def _is_one_release(step: SingleSteps) -> bool:
    """Whether all of the steps together are as one Gaussian release."""
    return isinstance(step, Steps) and step.sampling_probability == 1.0


def _truncation_rounding(steps: tuple[SingleSteps, ...]) -> float:
    return _TRUNCATION_ROUNDING * sum(step.times for step in steps if isinstance(step, TruncatedSteps))


def _never_met(steps: tuple[SingleSteps, ...]) -> float:
    """Returns what delta is to make up for: bounds on the batch that are met so rarely that they are left out."""
    left_out = (step for step in steps if isinstance(step, TruncatedSteps) and step.probabilities[0] == 0.0)
    return _NEVER * sum(step.times for step in left_out)


def _grid(steps: tuple[SingleSteps, ...], delta: float, interval: float | None, for_a_search: bool) -> float | None:
    """Returns the interval of the privacy loss that is looked at, None where Renyi differential privacy takes over."""
    num_composed = _num_composed(steps)
    if delta < max(_SMALLEST_PLD_DELTA, _SMALLEST_PLD_DELTA_PER_STEP * num_composed):
        return None
    rough = by_rdp(steps, delta, rough=True)
    lossless = math.sqrt(12.0 * _LOST_SHARE * max(rough, _SMALLEST_ROUGH_EPSILON) / num_composed)
    wanted = min(interval_for(rough) if interval is None else interval, 10.0 ** math.floor(math.log10(lossless)))
    return _affordable_interval(steps, wanted, _MAX_POINTS_OF_A_SEARCH if for_a_search else MAX_POINTS)


def interval_for(rough_epsilon: float) -> float:
    """Returns the interval of the privacy loss for an epsilon of about this size."""
    return next((interval for least, interval in _COARSER_INTERVALS if rough_epsilon >= least), _FINEST_INTERVAL)


def search_interval(target_epsilon: float) -> float:
    """Returns the interval of a search for a target: what is lost by it is a share of epsilon."""
    return min(interval_for(target_epsilon) * min(10.0, max(1.0, target_epsilon)), _COARSER_INTERVALS[0][1])


def _affordable_interval(steps: tuple[SingleSteps, ...], wanted: float, max_points: int) -> float | None:
    """Returns the interval that is wanted, or one coarser by powers of ten whose grid is not too large; None: none."""
    spans, interval = _spans(steps), wanted
    while spans > max_points * interval:
        interval *= 10.0
    return interval if interval <= max(wanted, _COARSEST_INTERVAL) else None


def _spans(steps: tuple[SingleSteps, ...]) -> float:
    """Returns the range of privacy losses on the grids: of all different steps, or a fifth of the composition's."""
    span = sum(_span(step) for step in steps)
    composed_span = 4.0 * span + _COMPOSED_TAIL * math.sqrt(sum(step.times * _variance(step) for step in steps))
    return max(span, composed_span / 5.0)


def _span(step: SingleSteps) -> float:
    """Returns the distance between the largest and the smallest privacy loss on a step's grid."""
    noise_multiplier, q = step.noise_multiplier, step.sampling_probability
    if isinstance(step, TruncatedSteps):
        is_met, is_kept = step.probabilities
        sides = 2.0 * _sampled_span(0.5 * noise_multiplier, is_kept / is_met) if is_met else 0.0
        return _sampled_span(noise_multiplier, q) + sides
    if q == 1.0:
        noise_multiplier /= math.sqrt(step.times)
    return _sampled_span(noise_multiplier, q)


def _sampled_span(noise_multiplier: float, q: float) -> float:
    most = (_TAIL * noise_multiplier + 0.5) / noise_multiplier**2
    if q == 1.0:
        return 2.0 * most
    above = math.log1p(q * math.expm1(most)) if most < 700.0 else most + math.log(q)
    return max(above, 0.0) + min(most, -math.log1p(-q))


def _variance(step: SingleSteps) -> float:
    """Returns the variance of the privacy loss of a step, rather too large; 0 for what is composed exactly."""
    if _is_one_release(step):
        return 0.0
    found = _sampled_variance(step.noise_multiplier, step.sampling_probability)
    if isinstance(step, TruncatedSteps):
        is_met, is_kept = step.probabilities
        # Of two sums that lie on both sides, with half of the noise.
        found += 4.0 * is_met * _sampled_variance(0.5 * step.noise_multiplier, is_kept / is_met) if is_met else 0.0
    return found


def _sampled_variance(noise_multiplier: float, q: float) -> float:
    inverse = noise_multiplier**-2
    small = math.log1p(q**2 * math.expm1(min(inverse, 600.0)))
    return small + q * max(0.5 * inverse + math.log(q), 0.0) ** 2  # The second: in a share of q, the loss is so large.


@functools.lru_cache(maxsize=256)
def _rdp_epsilon(steps: tuple[Part, ...], delta: float, orders: tuple[float, ...]) -> float:
    return float(rdp.compute_epsilon(orders, _renyi(steps, orders), delta)[0])


def _renyi(steps: tuple[Part, ...], orders: tuple[float, ...]) -> np.ndarray:
    """Returns the Renyi divergences of all parts together, an upper bound at each order."""
    total = np.zeros(len(orders))
    for step in steps:
        if isinstance(step, BestOf):
            total += step.times * step.num_runs.renyi_of_best(np.array(orders), _renyi(step.of_a_run, orders))
        else:
            if isinstance(step, TruncatedSteps):
                of_a_step = _truncated_log_moments(*step[:-1], orders)
            else:
                of_a_step = _step_log_moments(step.noise_multiplier, step.sampling_probability, orders)
            of_a_step = (of_a_step + _RDP_ROUNDING * np.maximum(of_a_step, 1.0)) / (np.array(orders) - 1.0)
            total += step.times * of_a_step
    return total


_step_log_moments = functools.lru_cache(maxsize=64)(renyi.log_moments)  # Of a curve over steps all points share it.
_truncated_log_moments = functools.lru_cache(maxsize=64)(truncation_lib.log_moments)


@functools.lru_cache(maxsize=256)
def _pld_epsilon(steps: tuple[SingleSteps, ...], delta: float, interval: float) -> float:
    composed = _compose(steps, interval)
    with np.errstate(over='ignore'):  # Of a loss of 710 or so it makes infinity, and RDP takes over.
        found = float(composed.get_epsilon_for_delta(delta))
    # Between them e^-loss has few digits or one: the larger is above what they are good for.
    return _NO_DIGITS if _FEW_DIGITS < found < _NO_DIGITS else found


@functools.lru_cache(maxsize=2)  # Who asks for epsilon at many deltas asks for the same composition each time.
def _compose(steps: tuple[SingleSteps, ...], interval: float) -> privacy_loss_distribution.PrivacyLossDistribution:
    composed = privacy_loss_distribution.identity(interval)
    for step in steps:
        composed = composed.compose(_compose_steps(step, interval))
    return composed


def _compose_steps(step: SingleSteps, interval: float) -> privacy_loss_distribution.PrivacyLossDistribution:
    noise_multiplier, sampling_probability, count = step.noise_multiplier, step.sampling_probability, step.times
    if _is_one_release(step):
        return _step_pld(noise_multiplier / math.sqrt(count), 1.0, interval)
    if isinstance(step, TruncatedSteps) and step.probabilities[0]:
        one = _truncated_pld(noise_multiplier, sampling_probability, step.truncation, interval)
    else:
        one = _step_pld(noise_multiplier, sampling_probability, interval)
    if count <= _STEPS_PER_BLOCK or _span(step) > _SMALL_GRID * interval:
        return one.self_compose(count)
    blocks, rest = divmod(count, _STEPS_PER_BLOCK)
    composed = one.self_compose(_STEPS_PER_BLOCK).self_compose(blocks)
    return composed.compose(one.self_compose(rest)) if rest else composed


@functools.lru_cache(maxsize=8)  # Of a curve over steps all points share it.
def _step_pld(
    noise_multiplier: float, sampling_probability: float, interval: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=sampling_probability
    )


@functools.lru_cache(maxsize=8)  # As above.
def _truncated_pld(
    noise_multiplier: float, sampling_probability: float, truncation: truncation_lib.Truncation, interval: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
    return privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
        truncation.num_units,
        sampling_probability,
        truncation.truncated_batch_size,
        noise_multiplier,
        value_discretization_interval=interval,
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL,
    )
