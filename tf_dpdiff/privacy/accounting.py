"""What the releases of a run cost together: epsilon at delta, and the noise that meets a target.

A thin layer over dp_accounting. The privacy loss distribution (PLD) is the accountant that the claim is made with;
Renyi differential privacy (RDP) bounds the same from above by independent code and is printed beside it.

Example:
    >>> event = poisson_dp_sgd_event(noise_multiplier=1.5, sampling_probability=4096 / 50000, num_steps=1000)
    >>> round(epsilon(event, 1e-5), 3), round(epsilon(event, 1e-5, accountant='rdp'), 3)
    (9.881, 10.687)
"""

import math
from typing import Callable
import warnings

import dp_accounting
from dp_accounting import pld
from dp_accounting import rdp

ACCOUNTANTS = ('pld', 'rdp')

# Of the privacy loss. Any interval gives an upper bound, a coarser one a looser bound; this one is fine enough for four
# digits of epsilon at the recipes' settings.
_REPORTING_INTERVAL = 1e-4
# Below 1 the orders of dp_accounting's default start too coarse for large epsilon, above 256 too early for small
# epsilon.
_RDP_ORDERS = ([1.0 + x / 10.0 for x in range(1, 100)] + list(range(11, 64)) +
               [80, 96, 128, 192, 256, 384, 512, 768, 1024])
_MAX_NOISE_MULTIPLIER = 1e4
_MIN_NOISE_MULTIPLIER = 0.05


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
            discretization_interval: float = _REPORTING_INTERVAL) -> float:
    """Returns an upper bound of epsilon at delta, for the add-or-remove-one relation.

    Args:
      event: What is released.
      delta: In (0, 1).
      accountant: 'pld' or 'rdp'.
      discretization_interval: Of the privacy loss, PLD only. Smaller is tighter and slower, never unsafe.

    Raises:
      ValueError: for a delta outside (0, 1) or an unknown accountant.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f'delta must be in (0, 1), got {delta}.')
    if isinstance(event, dp_accounting.NoOpDpEvent):
        return 0.0
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    if accountant == 'pld':
        return pld.PLDAccountant(relation, discretization_interval).compose(event).get_epsilon(delta)
    if accountant == 'rdp':
        with warnings.catch_warnings():
            # It warns where the best order is the largest or smallest: the bound holds all the same.
            warnings.simplefilter('ignore')
            return rdp.RdpAccountant(_RDP_ORDERS, relation).compose(event).get_epsilon(delta)
    raise ValueError(f'accountant must be one of {ACCOUNTANTS}, got {accountant!r}.')


def calibrate_noise_multiplier(make_event: Callable[[float], dp_accounting.DpEvent], target_epsilon: float,
                               target_delta: float) -> float:
    """Returns the smallest noise multiplier (to 1e-4) whose event meets the target.

    Guarantee: `epsilon(make_event(result), target_delta) <= target_epsilon`, recomputed here, without tolerance.

    Args:
      make_event: Maps a noise multiplier to everything that the run releases, other releases included.
      target_epsilon: > 0.
      target_delta: In (0, 1).

    Raises:
      BudgetError: if no noise multiplier up to 10^4 meets the target.
    """
    if not 0.0 < target_epsilon < math.inf:
        raise ValueError(f'target_epsilon must be finite and > 0, got {target_epsilon}.')

    # The search may be coarser where epsilon is large: what is lost is a share of epsilon.
    coarse = _REPORTING_INTERVAL * min(10.0, max(1.0, target_epsilon))

    def spent(noise_multiplier: float, interval: float = coarse) -> float:
        return epsilon(make_event(noise_multiplier), target_delta, discretization_interval=interval)

    floor = spent(_MAX_NOISE_MULTIPLIER)
    if floor > target_epsilon:
        raise BudgetError(
            f'target_epsilon={target_epsilon:g} at target_delta={target_delta:g} cannot be met: even with a noise '
            f'multiplier of {_MAX_NOISE_MULTIPLIER:g} the run would cost epsilon={floor:.3g}. Take fewer steps, a '
            'smaller batch, more noise on the other releases, or a larger target_epsilon.')
    # A bracket around the answer, from the middle outwards: very small noise multipliers are slow to account for.
    upper = 1.0
    while spent(upper) > target_epsilon:
        upper *= 2.0
    lower = upper / 2.0
    while spent(lower) <= target_epsilon:
        lower, upper = lower / 2.0, lower
        if upper < _MIN_NOISE_MULTIPLIER:
            return upper  # The target is so lax that hardly any noise meets it; more than enough is given.
    noise_multiplier = dp_accounting.calibrate_dp_mechanism(
        lambda: pld.PLDAccountant(value_discretization_interval=coarse),
        make_event,
        target_epsilon,
        target_delta,
        dp_accounting.ExplicitBracketInterval(lower, upper),
        tol=1e-4)
    if spent(noise_multiplier, _REPORTING_INTERVAL) > target_epsilon:
        raise BudgetError(
            f'calibration failed: a noise multiplier of {noise_multiplier} costs more than epsilon={target_epsilon}.')
    return noise_multiplier
