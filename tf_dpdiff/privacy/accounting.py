"""What the releases of a run cost together: epsilon at delta, and the noise that meets a target.

A thin layer over dp_accounting. The privacy loss distribution (PLD) is the accountant that the claim is made with;
Renyi differential privacy (RDP) bounds the same from above by independent code and is printed beside it.

Example:
    >>> event = poisson_dp_sgd_event(noise_multiplier=1.5, sampling_probability=4096 / 50000, num_steps=1000)
    >>> round(epsilon(event, 1e-5), 3), round(epsilon(event, 1e-5, accountant='rdp'), 3)
    (9.881, 10.687)
"""

import functools
import math
from typing import Callable, Optional, Tuple
import warnings

import dp_accounting
from dp_accounting import pld
from dp_accounting import rdp

from tf_dpdiff.privacy import rounding

ACCOUNTANTS = ('pld', 'rdp')
round_up = rounding.round_up

# Of the privacy loss. Any interval gives an upper bound, a coarser one a looser bound; the finest is fine enough for
# four digits of epsilon at the recipes' settings. Hardly any noise spreads the privacy loss so widely that it would
# take minutes: the larger epsilon, the coarser (epsilon from which on, interval).
_FINEST_INTERVAL = 1e-4
_COARSER_INTERVALS = ((300.0, 1e-2), (30.0, 1e-3))
# Below 1 the orders of dp_accounting's default start too coarse for large epsilon, above 256 too early for small
# epsilon.
_RDP_ORDERS = (*(1.0 + x / 10.0 for x in range(1, 100)), *range(11, 64), 80, 96, 128, 192, 256, 384, 512, 768, 1024)
# Tell within a few percent how large epsilon is, in milliseconds.
_ROUGH_RDP_ORDERS = (2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)
_MAX_NOISE_MULTIPLIER = 1e4
_MIN_NOISE_MULTIPLIER = 0.1
_MIN_SAMPLING_PROBABILITY = 1e-9
_MAX_NUM_STEPS = 10**6


class BudgetError(ValueError):
    """The privacy budget cannot be met, or would be passed."""


def poisson_dp_sgd_event(noise_multiplier: float, sampling_probability: float, num_steps: int) -> dp_accounting.DpEvent:
    """Returns the event of num_steps Poisson-sampled Gaussian steps.

    Args:
      noise_multiplier: Ratio of the noise's standard deviation to the clipped sum's sensitivity, at least 0.
      sampling_probability: In (0, 1].
      num_steps: Steps that are released, at least 0.
    """
    if num_steps == 0:
        return dp_accounting.NoOpDpEvent()
    if noise_multiplier == 0:
        return dp_accounting.NonPrivateDpEvent()
    step = dp_accounting.PoissonSampledDpEvent(sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier))
    return dp_accounting.SelfComposedDpEvent(step, num_steps)


def epsilon(event: dp_accounting.DpEvent,
            delta: float,
            *,
            accountant: str = 'pld',
            discretization_interval: Optional[float] = None) -> float:
    """Returns an upper bound of epsilon at delta, for the add-or-remove-one relation.

    The last results are kept: a statement that is shown three times is computed once.

    Args:
      event: What is released.
      delta: In (0, 1).
      accountant: 'pld' or 'rdp'.
      discretization_interval: Of the privacy loss, PLD only. Smaller is tighter and slower, never unsafe. Where None,
        10^-4 for an epsilon below 30 and coarser above, where fewer decimals are of use.

    Raises:
      ValueError: for a delta outside (0, 1) or an unknown accountant.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f'delta must be in (0, 1), got {delta}.')
    if accountant not in ACCOUNTANTS:
        raise ValueError(f'accountant must be one of {ACCOUNTANTS}, got {accountant!r}.')
    if isinstance(event, dp_accounting.NoOpDpEvent):
        return 0.0
    event = _hashable(event)
    if accountant == 'rdp':
        return _rdp_epsilon(event, delta, _RDP_ORDERS)
    if discretization_interval is None:
        discretization_interval = _interval_for(_rdp_epsilon(event, delta, _ROUGH_RDP_ORDERS))
    return _pld_epsilon(event, delta, discretization_interval)


def calibrate_noise_multiplier(make_event: Callable[[float], dp_accounting.DpEvent], target_epsilon: float,
                               target_delta: float) -> float:
    """Returns the smallest noise multiplier (to 1e-4) whose event meets the target.

    Guarantee: `epsilon(make_event(result), target_delta) <= target_epsilon`, recomputed here, without tolerance.

    Args:
      make_event: Maps a noise multiplier to everything that the run releases, other releases included.
      target_epsilon: > 0.
      target_delta: In (0, 1).

    Returns:
      At least 0.1: a target so lax that less would do gets more than it needs.

    Raises:
      BudgetError: if no noise multiplier up to 10^4 meets the target.
    """
    _check_target(target_epsilon)
    coarse = _search_interval(target_epsilon)

    def spent(noise_multiplier: float, interval: Optional[float] = coarse) -> float:
        return epsilon(make_event(noise_multiplier), target_delta, discretization_interval=interval)

    floor = spent(_MAX_NOISE_MULTIPLIER)
    if floor > target_epsilon:
        raise BudgetError(
            f'target_epsilon={rounding.exact(target_epsilon)} at target_delta={rounding.exact(target_delta)} cannot be '
            f'met: even with a noise multiplier of {_MAX_NOISE_MULTIPLIER:g} the run would cost '
            f'epsilon={round_up(floor)}. Take fewer steps, a smaller batch, more noise on the other releases, or a '
            'larger target_epsilon.')
    # A bracket around the answer, from the middle outwards: very small noise multipliers are slow to account for.
    upper = 1.0
    while spent(upper) > target_epsilon:
        upper *= 2.0
    lower = upper / 2.0
    while spent(lower) <= target_epsilon:
        if lower <= _MIN_NOISE_MULTIPLIER:
            return lower  # The target is so lax that hardly any noise meets it.
        lower, upper = max(lower / 2.0, _MIN_NOISE_MULTIPLIER), lower
    noise_multiplier = _calibrate(make_event, target_epsilon, target_delta, lower, upper, tolerance=1e-4)
    if spent(noise_multiplier, None) > target_epsilon:
        raise BudgetError(
            f'calibration failed: a noise multiplier of {noise_multiplier} costs more than epsilon={target_epsilon}.')
    return noise_multiplier


def solve_num_steps(make_event: Callable[[int], dp_accounting.DpEvent], target_epsilon: float,
                    target_delta: float) -> int:
    """Returns the largest number of steps whose event meets the target.

    Guarantee: `epsilon(make_event(result), target_delta) <= target_epsilon < epsilon(make_event(result + 1), ...)`,
      both computed here, without tolerance.

    Args:
      make_event: Maps a number of steps to everything that the run releases, other releases included.
      target_epsilon: > 0.
      target_delta: In (0, 1).

    Raises:
      BudgetError: if not even one step meets the target, or 10^6 steps do.
    """
    num_steps = _largest_whole_number(make_event, target_epsilon, target_delta, _MAX_NUM_STEPS)
    if num_steps == 0:
        raise _nothing_fits('one step', epsilon(make_event(1), target_delta), target_epsilon, target_delta)
    if num_steps == _MAX_NUM_STEPS:
        raise BudgetError(
            f'{_MAX_NUM_STEPS:,} steps and more meet epsilon={rounding.exact(target_epsilon)} at '
            f'delta={rounding.exact(target_delta)}: take less noise, a larger batch or a smaller epsilon.')
    return num_steps


def solve_batch_size(make_event: Callable[[int], dp_accounting.DpEvent], target_epsilon: float, target_delta: float,
                     num_units: int) -> int:
    """Returns the largest expected batch size whose event meets the target, at most the whole data set.

    Guarantee: `epsilon(make_event(result), target_delta) <= target_epsilon < epsilon(make_event(result + 1), ...)`,
      both computed here, without tolerance; only the first where the result is num_units.

    Args:
      make_event: Maps an expected batch size in [1, num_units] to everything that the run releases.
      target_epsilon: > 0.
      target_delta: In (0, 1).
      num_units: Units of the data set, at least 1.

    Raises:
      BudgetError: if not even a batch of one unit meets the target.
    """
    batch_size = _largest_whole_number(make_event, target_epsilon, target_delta, num_units)
    if batch_size == 0:
        raise _nothing_fits('an expected batch of one unit', epsilon(make_event(1), target_delta), target_epsilon,
                            target_delta)
    return batch_size


def solve_sampling_probability(make_event: Callable[[float], dp_accounting.DpEvent], target_epsilon: float,
                               target_delta: float) -> float:
    """Returns the largest sampling probability (to a ten-thousandth of itself) whose event meets the target.

    Guarantee: `epsilon(make_event(result), target_delta) <= target_epsilon`, recomputed here, without tolerance.

    Args:
      make_event: Maps a sampling probability in (0, 1] to everything that the run releases.
      target_epsilon: > 0.
      target_delta: In (0, 1).

    Raises:
      BudgetError: if not even a sampling probability of 10^-9 meets the target.
    """
    _check_target(target_epsilon)
    coarse = _search_interval(target_epsilon)

    def spent(probability: float, interval: Optional[float] = coarse) -> float:
        return epsilon(make_event(probability), target_delta, discretization_interval=interval)

    # A bracket around the answer, from small probabilities upwards: far above the target accounting is slow.
    lower = upper = 1e-3
    while spent(lower) > target_epsilon:
        lower, upper = lower / 4.0, lower
        if lower < _MIN_SAMPLING_PROBABILITY:
            raise _nothing_fits(f'a sampling probability of {lower:.1g}', spent(lower), target_epsilon, target_delta)
    while spent(upper) <= target_epsilon:
        if upper == 1.0:
            return 1.0
        lower, upper = upper, min(2.0 * upper, 1.0)
    probability = _calibrate(make_event, target_epsilon, target_delta, lower, upper, tolerance=1e-4 * lower)
    if spent(probability, None) > target_epsilon:
        raise BudgetError(
            f'calibration failed: a sampling probability of {probability} costs more than epsilon={target_epsilon}.')
    return probability


class _SearchAccountant:
    """What `calibrate_dp_mechanism` asks of an accountant, by `epsilon` and its memory."""

    ledger = dp_accounting.NoOpDpEvent()

    def __init__(self, discretization_interval: float):
        self._interval = discretization_interval
        self._event = self.ledger

    def compose(self, event: dp_accounting.DpEvent) -> '_SearchAccountant':
        self._event = event
        return self

    def get_epsilon(self, delta: float) -> float:
        return epsilon(self._event, delta, discretization_interval=self._interval)


def _calibrate(make_event, target_epsilon, target_delta, lower, upper, *, tolerance) -> float:
    interval = _search_interval(target_epsilon)
    return dp_accounting.calibrate_dp_mechanism(lambda: _SearchAccountant(interval),
                                                make_event,
                                                target_epsilon,
                                                target_delta,
                                                dp_accounting.ExplicitBracketInterval(lower, upper),
                                                tol=tolerance)


def _largest_whole_number(make_event, target_epsilon, target_delta, maximum) -> int:
    """Returns the largest n in [1, maximum] that meets the target, 0 where none does."""
    _check_target(target_epsilon)

    def rough(n: int) -> float:
        return _rdp_epsilon(_hashable(make_event(n)), target_delta, _ROUGH_RDP_ORDERS)

    def coarse(n: int) -> float:
        return epsilon(make_event(n), target_delta, discretization_interval=_search_interval(target_epsilon))

    def exact(n: int) -> float:
        return epsilon(make_event(n), target_delta)

    def search(spent: Callable[[int], float], start: int, stride: int, precision: float) -> int:

        def excess(n: int) -> float:
            return spent(n) - target_epsilon

        low, high = start, min(start + stride, maximum)
        while low > 0 and excess(low) > 0.0:  # Where it fitted, epsilon was computed in another way.
            low, high, stride = max(low - stride, 0), low, 2 * stride
        while excess(high) <= 0.0:
            if high == maximum:
                return maximum
            low, high, stride = high, min(high + stride, maximum), 2 * stride
        return _last_not_above_zero(excess, low, high, precision)

    # Each search begins where a quicker one has ended.
    found = search(rough, 0, 1, 2e-2)
    found = search(coarse, found, max(found // 10, 1), 2e-3)
    return search(exact, found, max(found // 500, 1), 0.0)


def _last_not_above_zero(excess: Callable[[int], float], low: int, high: int, precision: float) -> int:
    """Returns the last n with excess(n) <= 0, or with a precision one that is below it by that share at most.

    It rises, excess(low) <= 0 or low is 0, and excess(high) > 0.
    """
    turn = 0
    while high - low > max(1, precision * low):
        below = excess(low) if low else None
        if turn % 3 == 0 and below is not None and math.isfinite(excess(high)):
            guess = low + int((high - low) * -below / (excess(high) - below))  # Where a straight line would cross.
        elif turn % 3 == 1:
            guess = low + 1 if low == guess else high - 1  # The neighbour of a guess that is nearly right.
        else:
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        low, high = (low, guess) if excess(guess) > 0.0 else (guess, high)
        turn += 1
    return low


def _nothing_fits(what: str, cost: float, target_epsilon: float, target_delta: float) -> BudgetError:
    return BudgetError(f'epsilon={rounding.exact(target_epsilon)} at delta={rounding.exact(target_delta)} cannot be '
                       f'met: {what} already costs epsilon={round_up(cost)}. Take more noise, also on the other '
                       'releases, or a larger epsilon.')


def _check_target(target_epsilon: float) -> None:
    if not 0.0 < target_epsilon < math.inf:
        raise ValueError(f'target_epsilon must be finite and > 0, got {target_epsilon}.')


def _interval_for(rough_epsilon: float) -> float:
    return next((interval for least, interval in _COARSER_INTERVALS if rough_epsilon >= least), _FINEST_INTERVAL)


def _search_interval(target_epsilon: float) -> float:
    """A search may be coarser where epsilon is large: what is lost is a share of epsilon."""
    return min(_interval_for(target_epsilon) * min(10.0, max(1.0, target_epsilon)), _COARSER_INTERVALS[0][1])


def _hashable(event: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns the event with tuples in place of lists."""
    if isinstance(event, dp_accounting.ComposedDpEvent):
        return dp_accounting.ComposedDpEvent(tuple(_hashable(part) for part in event.events))
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        return dp_accounting.SelfComposedDpEvent(_hashable(event.event), event.count)
    return event


@functools.lru_cache(maxsize=256)
def _pld_epsilon(event: dp_accounting.DpEvent, delta: float, discretization_interval: float) -> float:
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    return pld.PLDAccountant(relation, discretization_interval).compose(event).get_epsilon(delta)


@functools.lru_cache(maxsize=256)
def _rdp_epsilon(event: dp_accounting.DpEvent, delta: float, orders: Tuple[float, ...]) -> float:
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    with warnings.catch_warnings():
        # It warns where the best order is the largest or smallest: the bound holds all the same.
        warnings.simplefilter('ignore')
        return rdp.RdpAccountant(orders, relation).compose(event).get_epsilon(delta)
