"""What it costs to make several runs and to release the best of them: how many are made, and the theorem.

Releasing the best of a number of runs that is known tells of the others: that none of them did better. Papernot and
Steinke's answer is to draw the number of runs at random from a distribution with a heavy tail, and never to tell it.
"""

import dataclasses
import decimal
import math

import numpy as np

from tf_dpdiff.privacy import seeds

_NUM_RUNS, _CANDIDATE = 'number of runs', 'candidate of run'  # Purposes of the secret of a choice.
LARGEST_MEAN, LARGEST_ETA, SMALLEST_ETA = 1000.0, 100.0, 1e-3
# Decimals with which the number of runs is drawn by 256 random bits, which are worth 77.
_DECIMALS = 120
# More than what rounding in float64 makes of the few operations here.
_ROUNDING = 1e-11


@dataclasses.dataclass(frozen=True)
class NumRuns:
    """The distribution of the number of runs: truncated negative binomial, 1 or more.

    P[K = k] is proportional to (1 - gamma)^k times the product of (l + eta) / (l + 1) over l from 0 to k - 1, for k
    from 1 on; for eta = 0 to (1 - gamma)^k / k. It has no largest number: it is never cut, since the theorem is for the
    whole of it.

    Attributes:
      mean: The expected number of runs, in (1, 1000]; gamma follows from it.
      eta: The shape: 0 (logarithmic) or in [0.001, 100]; 1 is geometric. Smaller ones cost less, and draw few runs more
        often.

    Example: the geometric distribution of mean 4.
        >>> round(NumRuns(mean=4.0).gamma, 9)
        0.25

    References: Papernot and Steinke 2022, arXiv:2110.03620, definition 1.
    """

    mean: float
    eta: float = 1.0

    def __post_init__(self):
        if not 1.0 < self.mean <= LARGEST_MEAN:
            raise ValueError(f'mean of the number of runs must be in (1, {LARGEST_MEAN:g}], got {self.mean}.')
        if not (self.eta == 0.0 or SMALLEST_ETA <= self.eta <= LARGEST_ETA):
            raise ValueError(
                f'eta of the number of runs must be 0 or in [{SMALLEST_ETA:g}, {LARGEST_ETA:g}], got {self.eta}.'
            )
        if not 0.0 < self.gamma < 1.0:
            raise ValueError(f'mean of the number of runs is too near to 1, got {self.mean}.')

    @property
    def gamma(self) -> float:
        """The other parameter, in (0, 1): the largest float64 of which the mean is not below the one given."""
        low, high = 0.0, 1.0  # The mean falls with gamma, from infinity to 1.
        while True:
            middle = (low + high) / 2.0
            if middle in (low, high):
                return low
            if _mean(middle, self.eta) < self.mean:
                high = middle
            else:
                low = middle

    def draw(self, seed: seeds.PrivateSeed) -> int:
        """Returns the number of runs: SECRET. The same seed gives the same number.

        Guarantee: it has the distribution with `gamma` and `eta` for which `renyi_of_best` accounts, but for a total
          variation below 2^-250: 256 secret bits are compared with sums of probabilities of 120 decimals.

        Args:
          seed: The secret of the choice.
        """
        uniform_bits = int.from_bytes(seed.derive_key(_NUM_RUNS), 'little')
        with decimal.localcontext(decimal.Context(prec=_DECIMALS)):
            uniform = (decimal.Decimal(uniform_bits) + decimal.Decimal('0.5')) / 2**256
            num_runs, probability = 1, _probability_of_one(self.gamma, self.eta)
            up_to, rest, eta = probability, 1 - decimal.Decimal(self.gamma), decimal.Decimal(self.eta)
            while up_to < uniform:
                probability *= rest * (num_runs + eta) / (num_runs + 1)
                num_runs, up_to = num_runs + 1, up_to + probability
        return num_runs

    def quantile(self, share: float) -> int:
        """Returns the smallest number that at least a share of draws does not exceed; for a person who plans."""
        if not 0.0 < share < 1.0:
            raise ValueError(f'share must be in (0, 1), got {share}.')
        gamma = self.gamma
        num_runs, probability = 1, float(_probability_of_one(gamma, self.eta))
        up_to = probability
        while up_to < share:
            probability *= (1.0 - gamma) * (num_runs + self.eta) / (num_runs + 1)
            num_runs, up_to = num_runs + 1, up_to + probability
        return num_runs

    def renyi_of_best(self, orders: np.ndarray, of_a_run: np.ndarray) -> np.ndarray:
        """Returns Renyi divergences of the best of a random number of runs, from those of a run.

        Guarantee: if a run with its score satisfies (order, of_a_run)-RDP for each order, and K runs are made, each
          with draws of its own, where K is drawn from this distribution whatever the data are, then what the best of
          them gives out, by a total order of what runs give out that is fixed beforehand, satisfies (order, result)-RDP
          where nothing else is given out. With lambda and lambda-hat among the orders,

              result(lambda) = of_a_run(lambda) + (1 + eta) (1 - 1 / lambda-hat) of_a_run(lambda-hat)
                               + (1 + eta) log(1 / gamma) / lambda-hat + log E[K] / (lambda - 1)

          for the best lambda-hat; and a divergence is at most that of a larger order. Rounding goes upwards.

        Args:
          orders: float64 [orders], rising, each above 1.
          of_a_run: float64 [orders], at least 0; infinity bounds nothing.

        Returns:
          float64 [orders].

        Raises:
          ValueError: if the theorem is not about these numbers.

        References: Papernot and Steinke 2022, arXiv:2110.03620, theorem 2 (lambda > 1, lambda-hat >= 1, eta > -1, gamma
          in (0, 1)).
        """
        orders, of_a_run = np.asarray(orders, np.float64), np.asarray(of_a_run, np.float64)
        if orders.ndim != 1 or orders.shape != of_a_run.shape or not orders.size:
            raise ValueError(f'a divergence for each order is needed, got {of_a_run.shape} for {orders.shape}.')
        if not (np.all(orders > 1.0) and np.all(np.isfinite(orders)) and np.all(np.diff(orders) > 0.0)):
            raise ValueError('orders must rise, and each be finite and above 1.')
        if not np.all(of_a_run >= 0.0):  # False of what is no number.
            raise ValueError('divergences of a run must be at least 0.')
        gamma = self.gamma
        # Of the distribution that is drawn from, whose mean may be above the one given by a rounding.
        log_mean = math.log(max(self.mean, _mean(gamma, self.eta)))
        of_hat = (1.0 + self.eta) * np.min((1.0 - 1.0 / orders) * of_a_run - math.log(gamma) / orders)
        found = of_a_run + of_hat + log_mean / (orders - 1.0)
        found = np.minimum.accumulate(found[::-1])[::-1]
        return found * (1.0 + _ROUNDING) + _ROUNDING


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A private choice among candidates: what is public of it.

    Each run takes one of the candidates, all of which are equally likely, and gives itself a score; the run with the
    largest score is released.

    Guarantee: what holds for `NumRuns.renyi_of_best`, if all candidates cost the same: then a run that draws its
      candidate, and tells which, costs what each of them costs.

    Attributes:
      num_runs: How many runs are made.
      candidates: At least one phrase each, all different: what is told of them.
      score: How runs are compared, in words.
      score_noise_multiplier: Of the Gaussian release that the score is; None: it is made of what the run releases.
    """

    num_runs: NumRuns
    candidates: tuple[str, ...]
    score: str
    score_noise_multiplier: float | None

    def __post_init__(self):
        if not self.candidates or len(set(self.candidates)) < len(self.candidates):
            raise ValueError(f'candidates must be different from one another, got {self.candidates}.')
        if self.score_noise_multiplier is not None and not 0.0 < self.score_noise_multiplier < math.inf:
            raise ValueError(
                f'noise multiplier of the score must be finite and > 0, got {self.score_noise_multiplier}.'
            )

    def draw_candidate(self, seed: seeds.PrivateSeed, run: int) -> int:
        """Returns which candidate a run takes, in [0, candidates): SECRET, but for that of the released run.

        Guarantee: each is equally likely but for 2^-240, and independent of those of other runs and of their number.

        Args:
          seed: The secret of the choice.
          run: Counted from 0.
        """
        return int.from_bytes(seed.derive_key(f'{_CANDIDATE} {run}'), 'little') % len(self.candidates)


def _mean(gamma: float, eta: float) -> float:
    """Returns the mean of the distribution, for gamma in (0, 1)."""
    log_gamma = math.log(gamma)
    return (1.0 - gamma) / gamma * (eta / -math.expm1(eta * log_gamma) if eta else 1.0 / -log_gamma)


def _probability_of_one(gamma: float, eta: float) -> decimal.Decimal:
    """Returns P[K = 1], in the current precision."""
    exact_gamma, exact_eta = decimal.Decimal(gamma), decimal.Decimal(eta)
    if not eta:
        return (1 - exact_gamma) / -exact_gamma.ln()
    return exact_eta * (1 - exact_gamma) / ((-exact_eta * exact_gamma.ln()).exp() - 1)
