"""What the releases of a run cost together: epsilon at delta, and the noise that meets a target.

A thin layer over dp_accounting. The privacy loss distribution (PLD) is the accountant that the claim is made with;
Renyi differential privacy (RDP) bounds the same from above by independent code and is printed beside it.

Example:
    >>> from tf_dpdiff.privacy import ledger
    >>> event = ledger.dp_event(noise_multiplier=1.5, sampling_probability=4096 / 50000, count=1000)
    >>> round(epsilon(event, 1e-5), 3), round(epsilon(event, 1e-5, accountant='rdp'), 3)
    (9.881, 10.687)
"""

from collections.abc import Callable
import math

import dp_accounting

from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import rounding

ACCOUNTANTS = ('pld', 'rdp')

_MAX_NOISE_MULTIPLIER = 1e6
_MIN_NOISE_MULTIPLIER = 0.1
_MIN_SAMPLING_PROBABILITY = 1e-9
_MAX_NUM_STEPS = 10**6
_MAX_STRIDES = 12
_NEARLY_ALL = 0.999
# Points of the privacy losses' grids in all, of which 100,000 take about a second: a search whose tries have taken
# so many ends with the best that fits. Ordinary settings take a tenth of that.
_MAX_POINTS_OF_COARSE_TRIES, _MAX_POINTS_OF_EXACT_TRIES = 200_000, 800_000


class BudgetError(ValueError):
    """The privacy budget cannot be met, or would be passed."""


def epsilon(
    event: dp_accounting.DpEvent, delta: float, *, accountant: str = 'pld', discretization_interval: float | None = None
) -> float:
    """Returns an upper bound of epsilon at delta, for a unit that is replaced with a null record, or added or removed.

    Where batches are truncated it is for the former alone; see `truncation`.

    The last results are kept: a statement that is shown three times is computed once.

    Guarantee: never below the truth, the rounding of floating-point numbers included, and finite for every delta and
      number of steps unless a release has no noise (a noise multiplier below 0.001 counts as none) or is not
      Poisson-sampled. By 'pld' it is the bound of 'rdp' where numbers of 64 bits do not resolve delta; see
      `epsilon_bounds.by_pld`.

    Args:
      event: What is released.
      delta: In (0, 1).
      accountant: 'pld' or 'rdp'.
      discretization_interval: Of the privacy loss, PLD only. Smaller is tighter and slower, never unsafe; larger than
        asked for where the work would take long. Where None, 10^-4 for an epsilon below 30 and coarser above, where
        fewer decimals are of use.

    Raises:
      ValueError: for a delta outside (0, 1), an unknown accountant, a release that is not Gaussian, or truncated
        batches that no accountant is for.
    """
    if accountant not in ACCOUNTANTS:
        raise ValueError(f'accountant must be one of {ACCOUNTANTS}, got {accountant!r}.')
    if accountant == 'rdp':
        return _bound(event, delta, epsilon_bounds.by_rdp)
    return _bound(event, delta, epsilon_bounds.by_pld, interval=discretization_interval)


def calibrate_noise_multiplier(
    make_event: Callable[[float], dp_accounting.DpEvent], target_epsilon: float, target_delta: float
) -> float:
    """Returns the smallest noise multiplier whose event meets the target (to 1e-4, or to 0.1% of epsilon).

    Where one try takes about a second, as with very little noise, it is the smallest that a few tries find.

    Guarantee: `epsilon(make_event(result), target_delta) <= target_epsilon`, recomputed here, without tolerance.

    Args:
      make_event: Maps a noise multiplier to everything that the run releases, other releases included.
      target_epsilon: > 0.
      target_delta: In (0, 1).

    Returns:
      At least 0.1: a target so lax that less would do gets more than it needs.

    Raises:
      BudgetError: if no noise multiplier up to 10^6 meets the target.
    """
    _check_target(target_epsilon)
    tries = _Tries(make_event, target_epsilon, target_delta)
    least = tries.coarse(_MAX_NOISE_MULTIPLIER)
    if least > 0.0:
        raise BudgetError(
            f'target_epsilon={rounding.exact(target_epsilon)} at target_delta={rounding.exact(target_delta)} cannot be '
            f'met: even with a noise multiplier of {_MAX_NOISE_MULTIPLIER:g} the run would cost '
            f'epsilon={rounding.round_up(target_epsilon + least)}. Take fewer steps, a smaller batch, more noise on '
            'the other releases, or a larger target_epsilon.'
        )
    # A bracket around the answer, from the middle outwards: very small noise multipliers are slow to account for.
    upper = 1.0
    while tries.coarse(upper) > 0.0:
        upper *= 2.0
    lower = upper / 2.0
    while tries.coarse(lower) <= 0.0 and lower > _MIN_NOISE_MULTIPLIER:
        lower, upper = max(lower / 2.0, _MIN_NOISE_MULTIPLIER), lower
    found = lower  # Where the target is so lax that hardly any noise meets it.
    if tries.coarse(lower) > 0.0:
        found = _between(tries, upper, lower, -1e-4)
        found = _use_up(tries, found, -1e-4, limit=_MIN_NOISE_MULTIPLIER)
    return _nearest_that_fits(tries, found, 1e-4)


def solve_num_steps(
    make_event: Callable[[int], dp_accounting.DpEvent], target_epsilon: float, target_delta: float
) -> int:
    """Returns the largest number of steps whose event meets the target.

    Guarantee: `epsilon(make_event(result), target_delta) <= target_epsilon < epsilon(make_event(result + 1), ...)`,
      both computed here, without tolerance; only the first where each try takes about a second, and few can be made.

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
            f'delta={rounding.exact(target_delta)}: take less noise, a larger batch or a smaller epsilon.'
        )
    return num_steps


def solve_batch_size(
    make_event: Callable[[int], dp_accounting.DpEvent], target_epsilon: float, target_delta: float, num_units: int
) -> int:
    """Returns the largest expected batch size whose event meets the target, at most the whole data set.

    Guarantee: `epsilon(make_event(result), target_delta) <= target_epsilon < epsilon(make_event(result + 1), ...)`,
      both computed here, without tolerance; only the first where the result is num_units, or where each try takes
      about a second, and few can be made.

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
        raise _nothing_fits(
            'an expected batch of one unit', epsilon(make_event(1), target_delta), target_epsilon, target_delta
        )
    return batch_size


def solve_sampling_probability(
    make_event: Callable[[float], dp_accounting.DpEvent], target_epsilon: float, target_delta: float
) -> float:
    """Returns the largest sampling probability whose event meets the target (to 0.01% of itself, or 0.1% of epsilon).

    Where each try takes about a second it is the largest of what a few tries find.

    Guarantee: `epsilon(make_event(result), target_delta) <= target_epsilon`, recomputed here, without tolerance.

    Args:
      make_event: Maps a sampling probability in (0, 1] to everything that the run releases.
      target_epsilon: > 0.
      target_delta: In (0, 1).

    Raises:
      BudgetError: if not even a sampling probability of 10^-9 meets the target.
    """
    _check_target(target_epsilon)
    tries = _Tries(make_event, target_epsilon, target_delta)
    # A bracket around the answer, from small probabilities upwards: far above the target accounting is slow.
    lower = upper = 1e-3
    while tries.coarse(lower) > 0.0:
        lower, upper = lower / 4.0, lower
        if lower < _MIN_SAMPLING_PROBABILITY:
            raise _nothing_fits(
                f'a sampling probability of {lower:.1g}',
                target_epsilon + tries.coarse(lower),
                target_epsilon,
                target_delta,
            )
    while tries.coarse(upper) <= 0.0:
        if upper == 1.0:
            return _nearest_that_fits(tries, 1.0, -1e-4)
        lower, upper = upper, min(2.0 * upper, 1.0)
    found = _between(tries, lower, upper, 1e-4 * lower)
    found = _use_up(tries, found, 1e-4 * lower, limit=1.0)
    return _nearest_that_fits(tries, found, -1e-4 * lower)


def _bound(event: dp_accounting.DpEvent, delta: float, bound: Callable[..., float], **options) -> float:
    if not 0.0 < delta < 1.0:
        raise ValueError(f'delta must be in (0, 1), got {delta}.')
    steps = epsilon_bounds.steps_of(event)
    if not steps:
        return math.inf if steps is None else 0.0
    return bound(steps, delta, **options)


class _Tries:
    """The excess of epsilon over the target for each setting that a search tries, computed once.

    Attributes:
      target_epsilon: > 0.
      target_delta: In (0, 1).
    """

    def __init__(self, make_event: Callable[..., dp_accounting.DpEvent], target_epsilon: float, target_delta: float):
        self.target_epsilon, self.target_delta = target_epsilon, target_delta
        self._make_event = make_event
        self._interval = epsilon_bounds.search_interval(target_epsilon)
        self._coarse: dict[float, float] = {}
        self._exact: dict[float, float] = {}
        self._coarse_points: list[float] = []
        self._exact_points: list[float] = []
        self._last_key: tuple[list[tuple], list[str]] | None = None

    def rough(self, value: float) -> float:
        """Returns the excess within a few percent, in milliseconds."""
        return (
            _bound(self._make_event(value), self.target_delta, epsilon_bounds.by_rdp, rough=True) - self.target_epsilon
        )

    def coarse(self, value: float) -> float:
        """Returns the excess as finely as a search needs; rounding may make it too small, so check the result."""
        if value not in self._coarse:
            options = {'interval': self._interval, 'for_a_search': True}
            event = self._make_event(value)
            self._coarse_points.append(self._num_points(event, **options))
            found = _bound(event, self.target_delta, epsilon_bounds.by_pld, **options)
            self._coarse[value] = found - self.target_epsilon
        return self._coarse[value]

    def exact(self, value: float) -> float:
        """Returns the excess as `epsilon` computes it."""
        if value not in self._exact:
            event = self._make_event(value)
            self._exact_points.append(self._num_points(event))
            self._exact[value] = epsilon(event, self.target_delta) - self.target_epsilon
        return self._exact[value]

    def enough_coarse(self) -> bool:
        """Returns True once coarse tries have taken long enough."""
        return sum(self._coarse_points) > _MAX_POINTS_OF_COARSE_TRIES

    def enough_exact(self) -> bool:
        """Returns True once exact tries have taken long enough."""
        return sum(self._exact_points) > _MAX_POINTS_OF_EXACT_TRIES

    def _num_points(self, event: dp_accounting.DpEvent, **options) -> float:
        """Returns the work of a try, in points; a third where only the number of steps is new: the grid is at hand."""
        points = _bound(event, self.target_delta, epsilon_bounds.num_points, **options)
        key = [step[:-1] for step in epsilon_bounds.steps_of(event) or ()], sorted(options)
        is_known, self._last_key = key == self._last_key, key
        return points / 3.0 if is_known else points


def _between(tries: _Tries, safe: float, other: float, stride: float) -> float:
    """Returns about the last value that meets the target on the way from one that does to one that does not."""
    num_strides = math.ceil((other - safe) / stride)
    found = _last_not_above_zero(
        lambda n: tries.coarse(safe + n * stride),
        0,
        num_strides,
        little=0.1 * (1.0 - _NEARLY_ALL) * tries.target_epsilon,
        enough=tries.enough_coarse,
    )
    return safe + found * stride


def _use_up(tries: _Tries, found: float, stride: float, *, limit: float) -> float:
    """Returns the result of a search, or one that uses up the target where the search could not look closely enough.

    Args:
      tries: The tries of the search.
      found: Its result.
      stride: The signed distance from one value that is tried to the next.
      limit: The last value.
    """
    little = (1.0 - _NEARLY_ALL) * tries.target_epsilon
    if tries.exact(found) >= -little:
        return found

    def excess(n: int) -> float:
        return tries.exact(found + (n - 1) * stride)

    first, last = math.ceil(0.01 * abs(found / stride)), 1 + int((limit - found) / stride)
    best = _search(excess, 1, first, last, little=little, enough=tries.enough_exact)
    return found + (best - 1) * stride


def _nearest_that_fits(tries: _Tries, found: float, stride: float) -> float:
    """Returns the result of a search, or the nearest value on its safe side: the search looks less closely.

    Raises:
      BudgetError: if nothing near by fits.
    """
    for _ in range(_MAX_STRIDES):
        if tries.exact(found) <= 0.0:
            return found
        found, stride = found + stride, 2.0 * stride
    raise BudgetError(
        f'no setting was found that meets epsilon={rounding.exact(tries.target_epsilon)} at '
        f'delta={rounding.exact(tries.target_delta)}: give all settings to learn what they cost.'
    )


def _largest_whole_number(make_event, target_epsilon, target_delta, maximum) -> int:
    """Returns the largest n in [1, maximum] that meets the target, 0 where none does."""
    _check_target(target_epsilon)
    tries = _Tries(make_event, target_epsilon, target_delta)
    # Each search begins where a quicker one has ended.
    found = _search(tries.rough, 0, 1, maximum, precision=2e-2)
    found = _search(tries.coarse, found, max(found // 10, 1), maximum, precision=2e-3, enough=tries.enough_coarse)
    return _search(tries.exact, found, max(found // 500, 1), maximum, enough=tries.enough_exact)


def _search(
    excess: Callable[[int], float],
    start: int,
    stride: int,
    maximum: int,
    *,
    enough: Callable[[], bool] = lambda: False,
    **options,
) -> int:
    """Returns the last n up to a maximum with excess(n) <= 0, searched for from a start in strides that grow.

    Of 0 it is taken for granted. The options are those of `_last_not_above_zero`.
    """
    low, high = start, min(start + stride, maximum)
    while low > 0 and excess(low) > 0.0:  # Where it fitted, epsilon was computed in another way.
        low, high, stride = max(low - stride, 0), low, 4 * stride
    while excess(high) <= 0.0:
        if high == maximum or enough():
            return high
        low, high, stride = high, min(high + stride, maximum), 4 * stride
    return _last_not_above_zero(excess, low, high, enough=enough, **options)


def _last_not_above_zero(
    excess: Callable[[int], float],
    low: int,
    high: int,
    *,
    precision: float = 0.0,
    little: float = 0.0,
    enough: Callable[[], bool] = lambda: False,
) -> int:
    """Returns the last n with excess(n) <= 0, or one that is below it by a share of `precision` or has little to spare.

    It rises, excess(low) <= 0 or low is 0, and excess(high) > 0. Once there was enough of it, one above 0 will do.
    """
    turn = 0
    while high - low > max(1, precision * low) and not (low and enough()):
        below = excess(low) if low else None
        if below is not None and below > -little:
            break
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
    return BudgetError(
        f'epsilon={rounding.exact(target_epsilon)} at delta={rounding.exact(target_delta)} cannot be '
        f'met: {what} already costs epsilon={rounding.round_up(cost)}. Take more noise, also on the other '
        'releases, or a larger epsilon.'
    )


def _check_target(target_epsilon: float) -> None:
    if not 0.0 < target_epsilon < math.inf:
        raise ValueError(f'target_epsilon must be finite and > 0, got {target_epsilon}.')
