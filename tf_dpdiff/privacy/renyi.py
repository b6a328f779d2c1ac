"""Renyi divergence of a Poisson-sampled Gaussian step, at whole and at fractional orders.

dp_accounting computes whole orders, by finite sums. Its fractional orders are of no use here: it adds up the absolute
values of an alternating series, which is far too much where the noise is large (at order 1.02, q = 0.3 and a noise
multiplier of 100 5000 times the truth), and where about half of the units are sampled it gives the series up after 1000
terms, says so to whoever reads the log, and counts the order as infinite. So they are summed up here with their signs.
"""

from collections.abc import Sequence

import dp_accounting
from dp_accounting import rdp
import numpy as np
from scipy import special

_NUM_TERMS = 1000


def log_moments(noise_multiplier: float, q: float, orders: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns log E[(p / q)^order] of a step for each order, an upper bound but for the rounding of numbers.

    It is convex in the order, and 0 at order 1. So what the series of a fractional order leaves open is taken off where
    a chord between other orders is below it.

    Guarantee: finite; a Renyi divergence is this by order - 1.

    Args:
      noise_multiplier: Of the step, above 0.
      q: The sampling probability, in (0, 1].
      orders: Rising, above 1.
    """
    orders = np.array(orders, np.float64)
    if q == 1.0:
        return orders * (orders - 1.0) / (2.0 * noise_multiplier**2)
    is_whole = orders == np.floor(orders)
    found = np.empty_like(orders)
    found[is_whole] = _of_whole_orders(noise_multiplier, q, orders[is_whole])
    found[~is_whole] = [_of_a_fractional_order(noise_multiplier, q, order) for order in orders[~is_whole]]
    found = np.maximum(found, 0.0)  # Where it is nearly zero, rounding may make it negative.
    return np.interp(orders, *_lower_convex_envelope([1.0, *orders], [0.0, *found]))


def _of_whole_orders(noise_multiplier: float, q: float, orders: np.ndarray) -> np.ndarray:
    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise_multiplier))
    accountant = rdp.RdpAccountant(orders, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    return accountant.compose(event).rdp * (orders - 1.0)


def _of_a_fractional_order(noise_multiplier: float, q: float, order: float) -> float:
    """Returns an upper bound by a series of Mironov, Talwar and Zhang (2019, arXiv:1908.10530, section 3.3).

    The moment is split at the point where both parts of the mixture are as likely, and (a + b)^order is expanded with
    the smaller of a and b as the one that is raised to i. From i = order + 1 on the terms alternate and fall in size:
    what is cut off behind a positive term is negative.
    """
    variance, i = noise_multiplier**2, np.arange(_NUM_TERMS + 1.0)
    j = order - i
    log_q, log_rest = np.log(q), np.log1p(-q)
    middle = variance * (log_rest - log_q) + 0.5
    log_binomial = np.concatenate([[0.0], np.cumsum(np.log(np.abs(j[:-1]) / i[1:]))])
    below = i * log_q + j * log_rest + (i * i - i) / (2.0 * variance)
    above = j * log_q + i * log_rest + (j * j - j) / (2.0 * variance)
    sizes = np.stack(
        [
            log_binomial + below + special.log_ndtr((middle - i) / noise_multiplier),
            log_binomial + above + special.log_ndtr((j - middle) / noise_multiplier),
        ]
    )
    signs = np.where(np.maximum(i - 1.0 - np.floor(order), 0.0) % 2.0, -1.0, 1.0)
    if signs[-1] < 0.0:
        sizes, signs = sizes[:, :-1], signs[:-1]
    largest = sizes.max()
    return largest + np.log((signs * np.exp(sizes - largest)).sum())


def _lower_convex_envelope(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Returns the corners of the largest convex function that is nowhere above the points; the xs rise."""
    corners: list[tuple[float, float]] = []
    for x, y in zip(xs, ys):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (y1 - y0) * (x - x1) < (y - y1) * (x1 - x0):
                break
            corners.pop()  # It lies on or above the line from the one before it to this point.
        corners.append((x, y))
    return [x for x, _ in corners], [y for _, y in corners]
