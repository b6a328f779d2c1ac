"""Epsilon over steps: what the releases of a run have cost on the way."""

from collections.abc import Callable
import math
from typing import NamedTuple

import dp_accounting

from tf_dpdiff.privacy import accounting

NUM_POINTS = 8
# How often epsilon is computed for who asks after each step, and how finely: a twentieth of a second each time.
_NUM_BOUNDS = 100
_COARSE_INTERVAL, _COARSE_BELOW = 1e-3, 30.0


class CurvePoint(NamedTuple):
    """The cost of the releases after some number of steps.

    Attributes:
      num_steps: Steps.
      pld: Epsilon by privacy loss distribution.
      rdp: Epsilon by Renyi differential privacy.
    """

    num_steps: int
    pld: float
    rdp: float


def epsilon_over_steps(
    event_after: Callable[[int], dp_accounting.DpEvent], num_steps: int, delta: float, *, num_points: int = NUM_POINTS
) -> list[CurvePoint]:
    """Returns the cost over steps, evenly spaced, the whole run last.

    Guarantee: each point is an upper bound of what the releases up to it cost; the last one is computed as finely as a
      statement, the ones before it may be coarser.

    Args:
      event_after: The event of all releases after so many steps.
      num_steps: Of the whole run, at least 1.
      delta: At which epsilon is meant.
      num_points: Intervals; fewer where there are fewer steps. A point at 1 step is added, and one at 0 where something
        was released before the first step.
    """
    counts = sorted({round(num_steps * i / num_points) for i in range(num_points + 1)} | {1})
    if accounting.epsilon(event_after(0), delta, accountant='rdp') == 0.0:
        counts = counts[1:]
    total = accounting.epsilon(event_after(num_steps), delta)
    points = []
    for count in counts:
        event = event_after(count)
        # Rows before the last may be coarser: an upper bound all the same, and there are many.
        interval = None if count == num_steps else 1e-4 * min(10.0, max(1.0, total))
        points.append(
            CurvePoint(
                count,
                accounting.epsilon(event, delta, discretization_interval=interval),
                accounting.epsilon(event, delta, accountant='rdp'),
            )
        )
    return points


def epsilon_bound(
    event_after: Callable[[int], dp_accounting.DpEvent], num_steps: int, delta: float, steps_run: int
) -> float:
    """Returns a bound of what has been spent in the course of a run, quick enough to be asked for after each step.

    It is computed for each hundredth of the steps: between two of them it is the cost of the next one.

    Guarantee: never below the cost of the releases after steps_run steps, never above that of the whole run, and equal
      to what a statement says of the whole run after the last step.

    Args:
      event_after: The event of all releases after so many steps.
      num_steps: Of the whole run, at least 1.
      delta: At which epsilon is meant.
      steps_run: In [0, num_steps].
    """
    total = accounting.epsilon(event_after(num_steps), delta)
    stride = -(-num_steps // _NUM_BOUNDS)
    through = min(-(-steps_run // stride) * stride, num_steps)
    if through == num_steps or math.isinf(total):
        return total
    # Of a large epsilon even the finest interval is coarse.
    interval = _COARSE_INTERVAL if total < _COARSE_BELOW else None
    return min(accounting.epsilon(event_after(through), delta, discretization_interval=interval), total)
