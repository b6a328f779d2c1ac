"""Poisson sampling with a bound on the batch: how often the bound is met, and what a step then costs.

Each unit is drawn with probability q, and where more than B of the N units are drawn, B of them are kept, all subsets
of that size being equally likely. One unit can then push another one out of the batch, so two units change.

The claim is for 'replace_with_zero' (see `relations`): D and D' have the same N units, of which one is a null record in
D'. It keeps its place in the draw too: it is drawn, and kept, as any unit is, and adds zero. Under 'add_or_remove_one'
two data sets have N and N + 1 units, for which both numbers below differ; no plan is made for it.

A step. Fix what was released before it. Let k be how many of the other N - 1 units are drawn: it has the same law on
both sides, so a mixture over it costs at most the mixture of what it costs for each k (joint convexity).

    k < B:   nobody is pushed out. It is the Poisson-sampled step of `relations`, at q.
    k >= B:  let U be a uniformly random subset of B of the others, s the sum of their gradients and u the gradient of
             one of them, chosen at random: their law does not depend on k. With probability q B / (k + 1) the unit is
             drawn and kept, in the place of that one. Let v be its gradient. With the noise N(m) around m, the sum is
                 on D:   (1 - p) N(s) + p N(s - u + v)
                 on D':  (1 - p) N(s) + p N(s - u)

The first has probability 1 - t with t = P(Bin(N - 1, q) >= B), and p = E[q B / (k + 1) | k >= B], which is
P(Bin(N, q) > B) B / (N t). All gradients have norm at most C.

By privacy loss distribution. dp_accounting's TruncatedSubsampledGaussianDpEvent takes for k >= B the pair of
(1 - p) N(0) + p N(2 C) and (1 - p) N(0) + p N(-2 C) in one dimension. It dominates: for c >= 1 the divergence is that
of p N(-u + v) from the measure c p N(-u) + (1 - p) (c - 1) N(0), which depends on how far the last two centres are from
the first; by corollary 4.7 of Choquette-Choo et al. it is largest on a line, at the largest distances. Here they are C
and 2 C, there they are 4 C and 2 C. For c < 1 exchange the two. (So it would for a unit that is removed, which leaves
N(s) alone on D'.) Where the bound is rarely met it is the sharper one of the two, and dp_accounting alone vouches for
how it is composed.

By Renyi divergence. dp_accounting has none, so it is this project's own, and coarser: E[(P / Q)^a] is jointly convex in
the pair, and v is all that differs with probability p, hence for both directions

    E[(P / Q)^a]  <=  (1 - t) M(a) + t (1 - p + p exp(a (a - 1) / (2 sigma^2)))

with M the moment of the Poisson-sampled step (`renyi`). No number of plain Poisson sampling stands in for it. It takes
over alone where float64 does not resolve delta, as for other steps; tests hold both bounds against integrals over
all subsets of small data sets.

References: arXiv:2508.15089 (truncated Poisson sampling, whose accounting dp_accounting implements); Choquette-Choo,
  Ganesh, Steinke and Thakurta 2023, arXiv:2310.15526, corollary 4.7; Zhu, Dong and Wang 2022, arXiv:2106.08567, theorem
  10 (adaptive composition of dominating pairs).
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy import stats

from tf_dpdiff.privacy import renyi

# Ten times what the binomial probabilities of SciPy, and so those of dp_accounting, were seen to be off against sums in
# extended precision, as a share, for up to so many units.
ROUNDING, MOST_UNITS = 1e-10, 10**8


@dataclasses.dataclass(frozen=True)
class Truncation:
    """The bound on the batch of a step, and the number of units that it depends on.

    Attributes:
      num_units: N, units of the data set, treated as public, at least 1 and at most 10^8.
      truncated_batch_size: B, the most units of a step, at least 1.

    Example: of 100 units, each drawn with probability 0.1, 20 or more of the others are drawn in 2 of 1,000 steps.
        >>> round(Truncation(100, 20).probabilities(0.1)[0], 3)
        0.002
    """

    num_units: int
    truncated_batch_size: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if int(value) != value or value < 1:
                raise ValueError(f'{name} must be a whole number of at least 1, got {value}.')
        if self.num_units > MOST_UNITS:
            raise ValueError(
                f'truncated batches are accounted for up to num_units={MOST_UNITS:,}, got {self.num_units:,}.'
            )

    @property
    def can_be_met(self) -> bool:
        """Whether more units than the bound can be drawn."""
        return self.truncated_batch_size < self.num_units

    def check(self, q: float) -> None:
        """Refuses a bound below the expected batch size, which would be met in most steps.

        Raises:
          ValueError: names both.
        """
        expected = q * self.num_units
        if self.truncated_batch_size < expected * (1.0 - 1e-9):
            raise ValueError(
                f'truncated_batch_size must be at least the expected batch size, {expected:g}, got '
                f'{self.truncated_batch_size}.'
            )

    def probabilities(self, q: float) -> tuple[float, float]:
        """Returns t and t p of the module: both 0 where the bound is never met, nor nearly ever.

        Args:
          q: The probability with which each unit is drawn, in (0, 1].

        Returns:
          The probability that at least B of the others are drawn, and the probability that they are and a unit is drawn
          and kept. Each is within a share of ROUNDING of the truth.

        Raises:
          ValueError: if the bound is below the expected batch size.
        """
        self.check(q)
        bound, num_units = self.truncated_batch_size, self.num_units
        is_met = float(stats.binom.sf(bound - 1, num_units - 1, q))
        is_kept = float(stats.binom.sf(bound, num_units, q)) * bound / num_units
        return (is_met, is_kept) if is_kept > 0.0 else (0.0, 0.0)


def log_moments(
    noise_multiplier: float, q: float, truncation: Truncation, orders: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Returns log E[(P / Q)^order] of a truncated step for each order, an upper bound; see the module.

    Guarantee: as that of `renyi.log_moments`, for 'replace_with_zero' and gradients of norm at most 1.

    Args:
      noise_multiplier: Of the step, above 0.
      q: The probability with which each unit is drawn, in (0, 1].
      truncation: What is kept of those drawn.
      orders: Rising, above 1.
    """
    plain = renyi.log_moments(noise_multiplier, q, orders)
    is_met, is_kept = truncation.probabilities(q)
    if is_met == 0.0:
        return plain
    gaussian = renyi.log_moments(noise_multiplier, 1.0, orders)
    # Both weights are rounded upwards.
    with np.errstate(divide='ignore'):  # A moment of 1, and a weight of 0, add nothing.
        excess = np.logaddexp(
            np.log(1.0 - is_met * (1.0 - ROUNDING)) + _log_expm1(plain),
            np.log(is_kept * (1.0 + ROUNDING)) + _log_expm1(gaussian),
        )
    return np.logaddexp(0.0, excess)


def _log_expm1(x: np.ndarray) -> np.ndarray:
    return x + np.log(-np.expm1(-x))
