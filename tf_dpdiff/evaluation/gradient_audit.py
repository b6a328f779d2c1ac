"""What gradient canaries tell of epsilon: three lower bounds, each of which takes less for granted, and checks."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import numpy as np

from tf_dpdiff.evaluation import gradient_canaries
from tf_dpdiff.privacy import auditing
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import sum_checks
from tf_dpdiff.privacy import tradeoffs

# A check that a correct program fails once in a million audits.
SMALLEST_P_VALUE = 1e-6
# Shares of the canaries that are guessed about where nothing is taken for granted; the best for the claim is taken.
_GUESS_FRACTIONS, _GUESS_FRACTION_OF_NO_CLAIM = (0.02, 0.05, 0.1, 0.2, 0.4), 0.8
_SEED_OF_EXPECTATIONS = 0


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Lower bounds on epsilon from one set of guesses.

    Attributes:
      num_correct: Of guesses about all canaries, each by its own score.
      independent: From these, for canaries that are independent of one another.
      num_guesses: About the canaries of the highest and lowest scores, a number that is fixed beforehand.
      num_guesses_correct: Of these.
      one_run: From these, for a program that keeps to the curve of the claimed mechanism with some noise, whatever it
        does.
      any_program: From these, for any program.
    """

    num_correct: int
    independent: float
    num_guesses: int
    num_guesses_correct: int
    one_run: float
    any_program: float


@dataclasses.dataclass(frozen=True)
class GradientAuditResult:
    """The findings of an audit by gradient canaries. No private image was read for it.

    Attributes:
      proven_epsilon: What the ledger's releases cost as the accountant claims; infinity where it claims nothing.
      delta: Of all epsilons.
      confidence: Of each bound.
      num_canaries: m.
      num_steps: Steps that were run.
      sampling_probability: Of each unit in each step.
      noise_multiplier: Of each step.
      found: What the guesses tell.
      most_that_can_be_shown: The bound of independent canaries if all guesses were right.
      expected: That bound of a program that does what it claims, by one simulation; None where nothing is claimed.
      p_values: Of the exact checks of what the steps released; empty where there is no noise.
      faults: In words, what is refuted; empty where nothing is.
    """

    proven_epsilon: float
    delta: float
    confidence: float
    num_canaries: int
    num_steps: int
    sampling_probability: float
    noise_multiplier: float
    found: Bounds
    most_that_can_be_shown: float
    expected: float | None
    p_values: dict[str, float]
    faults: tuple[str, ...]

    @property
    def epsilon_lower_bound(self) -> float:
        """The sharpest of the bounds that were found."""
        return max(self.found.independent, self.found.one_run, self.found.any_program)

    @property
    def is_violation(self) -> bool:
        """Whether the claim or the mechanism is refuted."""
        return bool(self.faults)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; an epsilon that is not claimed is None."""
        fields = dataclasses.asdict(self)
        fields['proven_epsilon'] = self.proven_epsilon if math.isfinite(self.proven_epsilon) else None
        return {
            **fields,
            'faults': list(self.faults),
            'epsilon_lower_bound': self.epsilon_lower_bound,
            'is_violation': self.is_violation,
        }

    def to_text(self) -> str:
        """Returns the result in a few sentences."""
        claimed = 'No epsilon is claimed'
        if math.isfinite(self.proven_epsilon):
            claimed = f'Claimed: {rounding.claim(self.proven_epsilon, self.delta)}'
        bounds, most = self.found, self.most_that_can_be_shown
        verdict = 'There is no claim to compare it with.'
        if self.faults:
            verdict = f'FAULTS WERE FOUND: {"; ".join(self.faults)}.'
        elif math.isfinite(self.proven_epsilon):
            verdict = 'Below the claim: no fault was found.'
        return (
            f'{claimed}, of {self.num_steps:,} steps. With {bounds.num_correct:,} of {self.num_canaries:,} guesses '
            f'about gradient canaries correct, epsilon >= {rounding.round_down(bounds.independent)} at '
            f'{rounding.percent(self.confidence)} confidence (at most {rounding.round_down(most)} can be '
            f'shown), canaries being independent of one another; epsilon >= {rounding.round_down(bounds.one_run)} '
            'without that, for the trade-off curve of the mechanism with other noise; epsilon >= '
            f'{rounding.round_down(bounds.any_program)} for any program. {verdict}'
        )


class Judge:
    """Bounds epsilon from scores of canaries, for a plan.

    Args:
      canaries: Of the audit.
      plan: Of the run that is audited.
      confidence: Of each bound, in (0, 1).

    Attributes:
      num_guesses: About how many canaries is guessed where they are not taken as independent: found beforehand, as what
        is best for a program that does what it claims.

    Raises:
      ValueError: if there is a claim whose trade-off curve is not known, so that it could not be refuted.
    """

    def __init__(self, canaries: gradient_canaries.GradientCanaries, plan: plan_lib.DpSgdPlan, confidence: float):
        probability = plan.sampling_probability
        assert probability is not None  # The canaries have seen to it.
        self._canaries, self._plan, self._confidence = canaries, plan, confidence
        self._family = tradeoffs.Family(
            lambda noise_multiplier: ledger_lib.dp_event(noise_multiplier, probability, plan.config.num_steps),
            plan.config.target_delta,
            noise_multiplier=plan.noise_multiplier or 1.0,
        )
        self._imagined = None
        self.num_guesses = int(_GUESS_FRACTION_OF_NO_CLAIM * len(canaries))
        if plan.noise_multiplier:
            if self._family.curve(plan.noise_multiplier) is None:
                raise ValueError('the trade-off curve of the claim would take too long to compute: audit fewer steps.')
            self._imagined = canaries.imagine(np.random.default_rng(_SEED_OF_EXPECTATIONS))
            self.num_guesses = max(
                (max(1, int(fraction * len(canaries))) for fraction in _GUESS_FRACTIONS), key=self._largest_mu
            )

    def expected(self) -> float | None:
        """Returns the bound of independent canaries for a program that does what it claims, by one simulation.

        None where nothing is claimed.
        """
        return self._independent(_count_signs(*self._imagined)) if self._imagined else None

    def most(self) -> float:
        """Returns the bound of independent canaries if all guesses are right."""
        return self._independent(len(self._canaries))

    def bounds(self, scores: np.ndarray, included: np.ndarray) -> Bounds:
        """Returns what scores tell.

        Args:
          scores: float64 [canaries], above 0 for "in", each made of what is seen of its own canary.
          included: bool [canaries], the truth: independent draws of probability 1/2.
        """
        num_correct, num_guesses_correct = _count_signs(scores, included), self._count_right(scores, included)
        any_program = auditing.epsilon_lower_bound(
            len(self._canaries),
            self.num_guesses,
            num_correct=num_guesses_correct,
            delta=self._plan.config.target_delta,
            confidence=self._confidence,
        )
        return Bounds(
            num_correct=num_correct,
            independent=self._independent(num_correct),
            num_guesses=self.num_guesses,
            num_guesses_correct=num_guesses_correct,
            one_run=self._family.epsilon_lower_bound(self._rejects_in_one_run(num_guesses_correct)),
            any_program=any_program,
        )

    def _count_right(self, scores: np.ndarray, included: np.ndarray, num_guesses: int | None = None) -> int:
        guesses = auditing.guess_membership(scores, num_guesses or self.num_guesses)
        return int(np.sum(guesses == np.where(included, auditing.IN, auditing.OUT)))

    def _independent(self, num_correct: int) -> float:
        return self._family.epsilon_lower_bound(self._rejects_independent(num_correct))

    def _rejects_independent(self, num_correct: int) -> Callable[[tradeoffs.TradeoffCurve], bool]:
        return lambda curve: tradeoffs.rejects_independent(
            curve, len(self._canaries), num_correct=num_correct, confidence=self._confidence
        )

    def _rejects_in_one_run(
        self, num_correct: int, num_guesses: int | None = None
    ) -> Callable[[tradeoffs.TradeoffCurve], bool]:
        return lambda curve: tradeoffs.rejects_in_one_run(
            curve,
            len(self._canaries),
            num_guesses=num_guesses or self.num_guesses,
            num_correct=num_correct,
            confidence=self._confidence,
        )

    def _largest_mu(self, num_guesses: int) -> float:
        """Returns about the largest mu of a Gaussian mechanism that is refuted where the program is as claimed."""
        assert self._imagined is not None
        rejects = self._rejects_in_one_run(self._count_right(*self._imagined, num_guesses), num_guesses)
        mu, factor = 0.02, 1.15
        while mu < 20.0 and rejects(tradeoffs.gaussian_curve(mu)):
            mu *= factor
        return mu

    def judge(
        self, heard: gradient_canaries.Heard, included: np.ndarray, ledger: ledger_lib.Ledger
    ) -> GradientAuditResult:
        """Returns the findings.

        Args:
          heard: What the steps released.
          included: bool [canaries], which of them were in.
          ledger: Of the run.
        """
        plan = self._plan
        probability = plan.sampling_probability
        assert probability is not None  # As was seen to.
        bounds = self.bounds(heard.scores, included)
        proven = plan.epsilon(ledger)
        claimed = tradeoffs.curve_of(ledger.dp_event())
        if claimed is None and math.isfinite(proven):
            raise ValueError(
                'the trade-off curve of what was released would take too long to compute: audit fewer steps.'
            )
        faults, p_values = [], {}
        if claimed is not None and self._rejects_independent(bounds.num_correct)(claimed):
            faults.append(f'epsilon is at least {rounding.round_down(bounds.independent)}, above the claim')
        if claimed is not None and self._rejects_in_one_run(bounds.num_guesses_correct)(claimed):
            faults.append(
                f'epsilon is at least {rounding.round_down(bounds.one_run)}, above the claim, also if canaries are not '
                'independent'
            )
        if bounds.any_program > proven:
            faults.append(
                f'epsilon is at least {rounding.round_down(bounds.any_program)}, above the claim, for any program'
            )
        if plan.noise_multiplier:
            p_values = {
                'noise is as large as claimed': sum_checks.too_little_noise(
                    heard.noise, plan.noise_multiplier, heard.variables
                ),
                'no noise is used twice': sum_checks.repeated_noise(heard.noise, *heard.firsts.values()),
                'no unit is longer than the clipping norm': sum_checks.too_long_unit(
                    heard.totals,
                    stddev=plan.noise_multiplier,
                    num_steps=heard.num_steps,
                    sampling_probability=probability,
                ),
            }
        faults += [f'refuted: {claim}' for claim, p_value in p_values.items() if p_value < SMALLEST_P_VALUE]
        return GradientAuditResult(
            proven_epsilon=proven,
            delta=plan.config.target_delta,
            confidence=self._confidence,
            num_canaries=len(self._canaries),
            num_steps=heard.num_steps,
            sampling_probability=probability,
            noise_multiplier=plan.noise_multiplier,
            found=bounds,
            most_that_can_be_shown=self.most(),
            expected=self.expected(),
            p_values=p_values,
            faults=tuple(faults),
        )


def _count_signs(scores: np.ndarray, included: np.ndarray) -> int:
    """Returns how many scores are right by their sign."""
    return int(np.sum((scores > 0.0) == included))
