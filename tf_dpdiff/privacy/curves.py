"""Epsilon over steps: what the releases of a run have cost on the way."""

from typing import Callable, List, NamedTuple

import dp_accounting

from tf_dpdiff.privacy import accounting

NUM_POINTS = 8


class CurvePoint(NamedTuple):
    """What the releases have cost after so many steps.

    Attributes:
      num_steps: Steps.
      pld: Epsilon by privacy loss distribution.
      rdp: Epsilon by Renyi differential privacy.
    """
    num_steps: int
    pld: float
    rdp: float


def epsilon_over_steps(event_after: Callable[[int], dp_accounting.DpEvent],
                       num_steps: int,
                       delta: float,
                       *,
                       num_points: int = NUM_POINTS) -> List[CurvePoint]:
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
            CurvePoint(count, accounting.epsilon(event, delta, discretization_interval=interval),
                       accounting.epsilon(event, delta, accountant='rdp')))
    return points
