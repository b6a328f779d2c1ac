"""Lower bounds on epsilon from guesses about many canaries, by the trade-off curve of the mechanism that is claimed.

Of two data sets that differ in one unit, a trade-off curve says how often a test may tell the one for what it is,
given how often it takes the other one for it. It says more than epsilon at one delta, so more of it can be refuted.
What is tested is a claim: that a program is at least as private as some mechanism. `rejects_in_one_run` tests it
whatever the program does; `rejects_independent` where what is seen of one canary hangs on no other one, which makes it
far sharper.

Of a family of mechanisms, the claimed one with other noise, those with much noise are rejected and those with little
are not. The epsilon of the least noise that is rejected is a lower bound (`Family.epsilon_lower_bound`): a program that
is as private as some member of the family is given more than its own epsilon with a probability of at most
1 - confidence, since it is so only where that very member is rejected.

References: Dong, Roth and Su 2019, arXiv:1905.02383 (trade-off functions); Mahloujifar, Melis and Chaudhuri 2024,
  arXiv:2410.22235 (one run); Nasr et al. 2023, arXiv:2302.07956 (bounds by trade-off functions); Andrew et al. 2023,
  arXiv:2302.03098 (orthogonal canaries of one run, taken as independent).
"""

from collections.abc import Callable
import dataclasses
import math

import dp_accounting
import numpy as np
from scipy import special
from scipy import stats

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import epsilon_bounds

# Where curves are looked at. Between the points less is known of a curve, so less is rejected.
_EPSILONS = np.concatenate([np.arange(0.0, 3.0, 0.01), np.arange(3.0, 30.0, 0.1), np.arange(30.0, 101.0, 1.0)])
# Of the privacy loss, where it is not to be finer: many curves are looked at, each in a tenth of a second.
_INTERVAL = 1e-2
# Sums over thousands of guesses are rounded.
_ROUNDING = 1e-9
# Of the noise multiplier that a search ends with, as a ratio; and how far from the claim it looks.
_PRECISION, _MOST_DOUBLINGS = 1.003, 12


@dataclasses.dataclass(frozen=True, eq=False)
class TradeoffCurve:
    """The trade-off curve of a mechanism, from below: by its delta at many epsilons.

    Guarantee: the mechanism it was made of keeps to it: of any two data sets that differ in one unit and any set S of
      outputs, P(S) <= e^epsilon Q(S) + delta and Q(S) <= e^epsilon P(S) + delta for each pair.

    Attributes:
      epsilons: float64 [points], at least 0, ascending; the first one is 0.
      deltas: float64 [points], each in [0, 1].

    Example:
        >>> curve = gaussian_curve(1.0)
        >>> round(curve.most_right(0.1), 3), round(curve.least_wrong(curve.most_right(0.1)), 3)
        (0.389, 0.1)
        >>> round(curve.best_accuracy, 3)
        0.691
    """

    epsilons: np.ndarray
    deltas: np.ndarray

    def __post_init__(self):
        if self.epsilons.shape != self.deltas.shape or not len(self.epsilons) or self.epsilons[0] != 0.0:
            raise ValueError('a trade-off curve needs a delta for each of its epsilons, the first of which is 0.')
        if np.any(np.diff(self.epsilons) <= 0.0) or not np.all((0.0 <= self.deltas) & (self.deltas <= 1.0)):
            raise ValueError('a trade-off curve needs ascending epsilons, and deltas in [0, 1].')

    def most_right(self, wrong: float) -> float:
        """Returns the most that P(S) can be where Q(S) is `wrong`: 1 - f(wrong), concave."""
        # From P(S) <= e^epsilon Q(S) + delta, and from the same of the complement with P and Q exchanged.
        by_set = np.exp(self.epsilons) * wrong + self.deltas
        by_complement = 1.0 - np.exp(-self.epsilons) * (1.0 - wrong - self.deltas)
        return float(min(1.0, by_set.min(), by_complement.min()))

    def least_wrong(self, right: float) -> float:
        """Returns the least that Q(S) can be where P(S) is `right`: the inverse of `most_right`, convex."""
        by_set = np.exp(-self.epsilons) * (right - self.deltas)
        by_complement = 1.0 - self.deltas - np.exp(self.epsilons) * (1.0 - right)
        return float(max(0.0, by_set.max(), by_complement.max()))

    @property
    def best_accuracy(self) -> float:
        """The largest probability of a right guess on whether a unit is in, where it is so with probability 1/2."""
        return 0.5 * (1.0 + float(self.deltas[0]))


def curve_of(event: dp_accounting.DpEvent) -> TradeoffCurve | None:
    """Returns the trade-off curve of releases; None where none is known or where it would take too long.

    Args:
      event: (Poisson-sampled) Gaussian releases, as a ledger has them.
    """
    steps = epsilon_bounds.steps_of(event)
    if steps is None:
        return None
    if not steps:
        return TradeoffCurve(_EPSILONS, np.zeros_like(_EPSILONS))
    deltas = epsilon_bounds.deltas_by_pld(steps, _EPSILONS, interval=_INTERVAL)
    return None if deltas is None else TradeoffCurve(_EPSILONS, deltas)


def gaussian_curve(mu: float) -> TradeoffCurve:
    """Returns the trade-off curve of Gaussian differential privacy.

    Args:
      mu: > 0, sensitivity over standard deviation of the noise.

    References: Dong, Roth and Su 2019, arXiv:1905.02383, corollary 2.13.
    """
    below, above = (special.log_ndtr(-_EPSILONS / mu + sign * mu / 2.0) for sign in (1.0, -1.0))
    return TradeoffCurve(_EPSILONS, np.clip(np.exp(below) - np.exp(_EPSILONS + above), 0.0, 1.0))


def rejects_in_one_run(
    curve: TradeoffCurve, num_canaries: int, *, num_guesses: int, num_correct: int, confidence: float
) -> bool:
    """Returns whether so many correct guesses refute that a program keeps to a trade-off curve, whatever it does.

    Why. Let t_i be the probability of at least i correct guesses among exactly r, on m canaries, R_i the probability
    that canary j, drawn at random, is guessed correctly and at least i guesses are correct, and H_i that it is guessed
    wrongly and at least i are correct. Then m R_i = i t_i + s_i and m H_i = (r - i) t_i - s_i with s_i the sum of t_k
    over k > i. To be guessed correctly while i of the others are, and to be guessed wrongly while i of the others are,
    are the same set of outputs, seen with the canary as it is and as it is not: so R_{i+1} <= curve.most_right(H_i),
    for each canary given the inclusions of the others, and on average since the curve is concave. Hence
    (r - i) t_i >= m curve.least_wrong(R_{i+1}) + s_i. The right side rises with all t_k, k > i, so that where t_v is
    at least 1 - confidence, each t_i with i < v is at least what follows from t_v = 1 - confidence and t_k = 0 for
    k > v. If that is more than 1 for one of them, t_v is less than 1 - confidence.

    Guarantee: of a program that keeps to the curve, True is returned with probability below 1 - confidence, over the
      inclusions of the canaries and the program's own randomness.

    Args:
      curve: What is claimed.
      num_canaries: m, each included with probability 1/2, independently.
      num_guesses: r, of them not abstained from: a number that is fixed beforehand.
      num_correct: v, of the guesses that were right.
      confidence: In (0, 1).

    Raises:
      ValueError: unless 0 <= v <= r <= m, m >= 1, and the confidence is as said.

    References: Mahloujifar, Melis and Chaudhuri 2024, arXiv:2410.22235, theorem 9 and algorithm 3, of which this is
      another derivation, with abstentions.
    """
    _check(num_canaries, num_guesses, num_correct, confidence)
    at_least, beyond = 1.0 - confidence, 0.0  # t_{i+1} and s_{i+1}.
    for i in range(num_correct - 1, -1, -1):
        right = ((i + 1) * at_least + beyond) / num_canaries
        beyond += at_least
        implied = (num_canaries * curve.least_wrong(right) + beyond) / (num_guesses - i)
        at_least = max(at_least, implied)
        if at_least > 1.0 + _ROUNDING:
            return True
    return False


def rejects_independent(curve: TradeoffCurve, num_canaries: int, *, num_correct: int, confidence: float) -> bool:
    """Returns whether so many correct guesses on ALL canaries refute that a program keeps to a trade-off curve.

    For guesses each of which is made by what is seen of its own canary alone, where what is seen of a canary does not
    hang on the other ones nor on what is seen of them: as of canaries whose gradients have directions of their own, in
    a sum that independent noise is added to. Where a program breaks that, this test means nothing, and
    `rejects_in_one_run` still does.

    Guarantee: of a program that keeps to the curve, and independent guesses, True is returned with probability below
      1 - confidence: each guess is right with a probability of at most curve.best_accuracy, so their number is at most
      binomial.

    Args:
      curve: What is claimed.
      num_canaries: m, each included with probability 1/2, independently, and each guessed about.
      num_correct: v, of the guesses that were right.
      confidence: In (0, 1).

    Raises:
      ValueError: as for `rejects_in_one_run`.
    """
    _check(num_canaries, num_canaries, num_correct, confidence)
    return bool(stats.binom.sf(num_correct - 1, num_canaries, curve.best_accuracy) < 1.0 - confidence)


class Family:
    """A mechanism with any noise: what a claim is compared with.

    Args:
      make_event: Maps a noise multiplier to what is released with it.
      delta: At which epsilon is meant, in (0, 1).
      noise_multiplier: Of the claim, or another one > 0 where nothing is claimed: where a search begins.

    Example:
        >>> family = Family(lambda sigma: dp_accounting.GaussianDpEvent(sigma), 1e-5, noise_multiplier=1.0)
        >>> def rejects(curve):
        ...     return rejects_independent(curve, 1000, num_correct=800, confidence=0.95)
        >>> 6.0 < family.epsilon_lower_bound(rejects) < family.epsilon(0.5)
        True
    """

    def __init__(self, make_event: Callable[[float], dp_accounting.DpEvent], delta: float, *, noise_multiplier: float):
        if not 0.0 < noise_multiplier < math.inf:
            raise ValueError(f'noise_multiplier must be finite and > 0, got {noise_multiplier}.')
        self.noise_multiplier = noise_multiplier
        self._make_event, self._delta = make_event, delta
        self._curves: dict[float, TradeoffCurve | None] = {}

    def curve(self, noise_multiplier: float) -> TradeoffCurve | None:
        """Returns the trade-off curve of a member; see `curve_of`."""
        if noise_multiplier not in self._curves:
            self._curves[noise_multiplier] = curve_of(self._make_event(noise_multiplier))
        return self._curves[noise_multiplier]

    def epsilon(self, noise_multiplier: float) -> float:
        """Returns epsilon of a member, as the accountant claims it."""
        return accounting.epsilon(self._make_event(noise_multiplier), self._delta)

    def epsilon_lower_bound(self, rejects: Callable[[TradeoffCurve], bool]) -> float:
        """Returns epsilon of the least noise that is rejected (to 0.3% of the noise), or 0 where none is.

        Guarantee: where the program keeps to the curve of a member, the result exceeds what the accountant claims of
          that member only where `rejects` is True of that member's curve. A curve that is not known is not rejected.

        Args:
          rejects: True of all noise multipliers above some value: a test of the claim that a program keeps to a curve.
        """

        def is_rejected(noise_multiplier: float) -> bool:
            curve = self.curve(noise_multiplier)
            return curve is not None and rejects(curve)

        # Downwards from noise that is rejected, upwards from noise that is not.
        goes_down = is_rejected(self.noise_multiplier)
        factor, last = 0.5 if goes_down else 2.0, self.noise_multiplier
        for _ in range(_MOST_DOUBLINGS):
            if is_rejected(factor * last) != goes_down:
                break
            last *= factor
        else:
            return self.epsilon(last) if goes_down else 0.0
        kept, rejected = sorted([last, factor * last])
        while rejected > _PRECISION * kept:
            middle = math.sqrt(kept * rejected)
            kept, rejected = (kept, middle) if is_rejected(middle) else (middle, rejected)
        return self.epsilon(rejected)


def _check(num_canaries: int, num_guesses: int, num_correct: int, confidence: float) -> None:
    if not 0 <= num_correct <= num_guesses <= num_canaries or num_canaries < 1:
        raise ValueError(
            'an audit needs 0 <= num_correct <= num_guesses <= num_canaries and a canary, got '
            f'{num_correct}, {num_guesses} and {num_canaries}.'
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(f'confidence must be in (0, 1), got {confidence}.')
