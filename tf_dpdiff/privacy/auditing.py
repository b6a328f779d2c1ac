"""An empirical lower bound on epsilon from one training run, to hold against the epsilon that was proven.

Many canaries are put into the training set, each with probability 1/2 and independently of the others. After ONE run
someone who sees the model guesses which of them were in, and may abstain. An (epsilon, delta)-DP mechanism allows only
so many correct guesses: more of them reject that epsilon. The largest epsilon that is rejected is a lower bound of the
true one. A bound above the proven epsilon means that the proof, or the program that it speaks of, is wrong; a bound
below it proves nothing more than that this attack found no fault.

Example: 500 canaries, and all of 400 guesses correct.
    >>> round(epsilon_lower_bound(500, 400, num_correct=400, delta=0.0, confidence=0.95), 2)
    4.89
    >>> round(epsilon_lower_bound(500, 400, num_correct=210, delta=0.0, confidence=0.95), 2)
    0.0

References: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, theorem 5.2 and algorithm 1.
"""

import dataclasses
import functools
import math

import numpy as np
from scipy import stats

from tf_dpdiff.privacy import rounding

IN, OUT, ABSTAINED = 1, -1, 0
_BISECTIONS = 60


def p_value(epsilon: float, num_canaries: int, *, num_guesses: int, num_correct: int, delta: float) -> float:
    """Returns the largest probability with which an (epsilon, delta)-DP mechanism allows that many correct guesses.

    With W ~ Binomial(num_guesses, e^epsilon / (1 + e^epsilon)) the theorem's bound is
    P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i.

    Guarantee: never below the theorem's value, and equal to it while 2 m delta <= 1. Beyond, the part that falls as
      epsilon grows is left out, so that the result rises with epsilon for any delta: the epsilons that it rejects are
      an interval from 0, and its end is a valid bound without a correction for many tests.

    Args:
      epsilon: At least 0.
      num_canaries: m, each included with probability 1/2.
      num_guesses: r, of them not abstained from.
      num_correct: v, of the guesses that were right.
      delta: In [0, 1).
    """
    _check_counts(num_canaries, num_guesses, num_correct)
    if num_correct == 0:
        return 1.0
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    tail = stats.binom.sf(num_correct - 1, num_guesses, accuracy)
    reach = np.arange(1, num_correct + 1)
    weights = 2.0 * num_canaries * delta / reach
    # P[v > W >= v - i] is the difference of two tails.
    longer_tails = stats.binom.sf(num_correct - 1 - reach, num_guesses, accuracy)
    return float(min(1.0, np.max(np.maximum(0.0, 1.0 - weights) * tail + weights * longer_tails)))


def epsilon_lower_bound(
    num_canaries: int, num_guesses: int, *, num_correct: int, delta: float, confidence: float
) -> float:
    """Returns the largest epsilon that the guesses reject, or 0 where they reject none.

    Guarantee: where the mechanism is (epsilon, delta)-DP, the result exceeds epsilon with probability at most
      1 - confidence, over the inclusions of the canaries and the mechanism's own randomness.

    Args:
      num_canaries: m, each included with probability 1/2, independently.
      num_guesses: r, of them not abstained from.
      num_correct: v, of the guesses that were right.
      delta: In [0, 1).
      confidence: In (0, 1), e.g. 0.95.

    Raises:
      ValueError: unless 0 <= v <= r <= m, m >= 1, and delta and confidence are as said.
    """
    _check_counts(num_canaries, num_guesses, num_correct)
    if not 0.0 <= delta < 1.0:
        raise ValueError(f'delta must be in [0, 1), got {delta}.')
    if not 0.0 < confidence < 1.0:
        raise ValueError(f'confidence must be in (0, 1), got {confidence}.')

    def is_rejected(epsilon: float) -> bool:
        p = p_value(epsilon, num_canaries, num_guesses=num_guesses, num_correct=num_correct, delta=delta)
        return p < 1.0 - confidence

    if not is_rejected(0.0):
        return 0.0
    lower, upper = 0.0, 1.0
    while is_rejected(upper):
        lower, upper = upper, 2.0 * upper
    for _ in range(_BISECTIONS):
        middle = (lower + upper) / 2.0
        lower, upper = (middle, upper) if is_rejected(middle) else (lower, middle)
    return lower


def guess_membership(scores: np.ndarray, num_guesses: int | None = None) -> np.ndarray:
    """Guesses that the canaries of the highest scores were in and those of the lowest were out.

    Args:
      scores: float [canaries], finite; higher speaks for "in". Made without knowledge of the inclusions.
      num_guesses: How many to guess, half of them "in" (rounded down); the middle is abstained from. None: 80%.

    Returns:
      int8 [canaries]: IN, OUT or ABSTAINED.

    Raises:
      ValueError: for scores that are not finite, or another number of guesses than there can be.
    """
    scores = np.asarray(scores)
    # How many canaries are in is binomial: with guesses for all of them, half and half, even perfect scores would give
    # wrong ones, about 0.4 sqrt(canaries) on either side. Abstaining from the middle fifth leaves room for that.
    num_guesses = int(0.8 * len(scores)) if num_guesses is None else num_guesses
    if not 0 <= num_guesses <= len(scores):
        raise ValueError(f'num_guesses must be in [0, {len(scores)}], got {num_guesses}.')
    if not np.all(np.isfinite(scores)):
        raise ValueError(f'{np.sum(~np.isfinite(scores))} scores of {len(scores)} canaries are not finite.')
    # Ties go by the canary's place, which tells nothing of its inclusion.
    order = np.argsort(scores, kind='stable')
    num_in = num_guesses // 2
    guesses = np.full(len(scores), ABSTAINED, np.int8)
    guesses[order[: num_guesses - num_in]] = OUT
    guesses[order[len(scores) - num_in :]] = IN
    return guesses


@dataclasses.dataclass(frozen=True)
class AuditResult:
    """The findings of an audit.

    Attributes:
      proven_epsilon: What the accountant claims of the audited run; infinity where it claims nothing.
      delta: Of both.
      epsilon_lower_bound: What the guesses reject at the confidence.
      confidence: Of the lower bound.
      num_canaries: m.
      num_guesses: r.
      num_correct: v.
      most_that_can_be_shown: The lower bound if all guesses were right: no audit with as many guesses finds more.
    """

    proven_epsilon: float
    delta: float
    epsilon_lower_bound: float
    confidence: float
    num_canaries: int
    num_guesses: int
    num_correct: int
    most_that_can_be_shown: float

    @property
    def is_violation(self) -> bool:
        """Whether the proven epsilon is refuted."""
        return self.epsilon_lower_bound > self.proven_epsilon

    def to_dict(self) -> dict:
        """Returns plain JSON values; an epsilon that is not claimed is None."""
        fields = dataclasses.asdict(self)
        fields['proven_epsilon'] = self.proven_epsilon if math.isfinite(self.proven_epsilon) else None
        fields['is_violation'] = self.is_violation
        return fields

    def to_text(self) -> str:
        """Returns the result in one sentence or two."""
        proven = (
            f'epsilon = {rounding.round_up(self.proven_epsilon)}'
            if math.isfinite(self.proven_epsilon)
            else 'no epsilon'
        )
        verdict = 'Below the claim: no fault was found.'
        if self.is_violation:
            verdict = 'ABOVE THE CLAIM: the implementation or the accounting is wrong.'
        elif not math.isfinite(self.proven_epsilon):
            verdict = 'There is no claim to compare it with.'
        guesses = f'{self.num_correct} of {self.num_guesses} guesses about {self.num_canaries} canaries'
        found = (
            f'epsilon >= {rounding.round_down(self.epsilon_lower_bound)} at {rounding.percent(self.confidence)} '
            'confidence'
        )
        most = rounding.round_down(self.most_that_can_be_shown)
        return (
            f'Claimed: {proven} at delta = {rounding.exact(self.delta)}. With {guesses} correct, {found} (at most '
            f'{most} can be shown). {verdict}'
        )


def audit(
    scores: np.ndarray,
    included: np.ndarray,
    *,
    proven_epsilon: float,
    delta: float,
    num_guesses: int | None = None,
    confidence: float = 0.95,
) -> AuditResult:
    """Guesses from the scores, counts what was right, and bounds epsilon from below.

    Args:
      scores: float [canaries]; higher speaks for "in". Made without knowledge of the inclusions.
      included: bool [canaries], the truth: independent draws of probability 1/2.
      proven_epsilon: What is claimed of the run at delta; infinity for nothing.
      delta: In [0, 1).
      num_guesses: As for `guess_membership`.
      confidence: Of the lower bound.
    """
    guesses = guess_membership(scores, num_guesses)
    truth = np.where(included, IN, OUT)
    counts = len(guesses), int(np.sum(guesses != ABSTAINED))
    num_correct = int(np.sum(guesses == truth))
    lower_bound = functools.partial(epsilon_lower_bound, *counts, delta=delta, confidence=confidence)
    return AuditResult(
        proven_epsilon=proven_epsilon,
        delta=delta,
        epsilon_lower_bound=lower_bound(num_correct=num_correct),
        confidence=confidence,
        num_canaries=counts[0],
        num_guesses=counts[1],
        num_correct=num_correct,
        most_that_can_be_shown=lower_bound(num_correct=counts[1]),
    )


def _check_counts(num_canaries: int, num_guesses: int, num_correct: int) -> None:
    if not 0 <= num_correct <= num_guesses <= num_canaries or num_canaries < 1:
        raise ValueError(
            'an audit needs 0 <= num_correct <= num_guesses <= num_canaries and a canary, got '
            f'{num_correct}, {num_guesses} and {num_canaries}.'
        )
