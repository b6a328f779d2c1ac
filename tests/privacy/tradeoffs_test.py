"""Tests of bounds by trade-off curves: curves against closed forms, the test against a linear program, and coverage."""

import bisect
import functools

import dp_accounting
import numpy as np
import pytest
from scipy import optimize
from scipy import special
from scipy import stats

from tf_dpdiff.privacy import auditing
from tf_dpdiff.privacy import ledger
from tf_dpdiff.privacy import tradeoffs

NUM_AUDITS = 400


@pytest.mark.parametrize('mu', [0.2, 1.0, 3.0])
def test_gaussian_curve_is_the_closed_form_from_the_safe_side(mu):
    curve = tradeoffs.gaussian_curve(mu)
    for wrong in (1e-6, 1e-3, 0.1, 0.3, 0.5, 0.9):
        exact = special.ndtr(special.ndtri(wrong) + mu)
        assert exact - 1e-12 <= curve.most_right(wrong) <= exact + 2e-3
        assert wrong - 2e-3 <= curve.least_wrong(exact) <= wrong + 1e-12
    assert curve.best_accuracy == pytest.approx(special.ndtr(mu / 2.0), abs=1e-12)


def test_most_right_and_least_wrong_are_inverse_to_each_other():
    curve = tradeoffs.curve_of(ledger.dp_event(1.0, 0.3, 5))
    for wrong in np.linspace(0.001, 0.6, 40):
        right = curve.most_right(wrong)
        assert curve.least_wrong(right) == pytest.approx(wrong, abs=1e-9)
    assert curve.least_wrong(0.0) == 0.0 and curve.most_right(1.0) == 1.0


@pytest.mark.parametrize('mu', [0.3, 1.5])
def test_curve_of_a_gaussian_release_is_the_gaussian_curve(mu):
    of_event, closed = tradeoffs.curve_of(dp_accounting.GaussianDpEvent(1.0 / mu)), tradeoffs.gaussian_curve(mu)
    assert np.all(of_event.deltas >= closed.deltas - 1e-12)
    np.testing.assert_allclose(of_event.deltas, closed.deltas, atol=2e-4)


def test_curve_of_a_sampled_step_is_the_integral_of_its_densities():
    sigma, q = 0.8, 0.3
    curve = tradeoffs.curve_of(ledger.dp_event(sigma, q, 1))
    x = np.linspace(-12.0, 13.0, 2_000_001)
    out = stats.norm.pdf(x, scale=sigma)
    into = (1.0 - q) * out + q * stats.norm.pdf(x, loc=1.0, scale=sigma)
    for index in (0, 20, 50, 100):
        factor = np.exp(curve.epsilons[index])
        exact = max(np.trapezoid(np.maximum(p - factor * r, 0.0), x) for p, r in ((into, out), (out, into)))
        assert exact - 1e-6 <= curve.deltas[index] <= exact + 1e-3


def test_curve_of_nothing_and_of_no_noise():
    nothing = tradeoffs.curve_of(ledger.dp_event(1.0, 0.5, 0))
    assert nothing.best_accuracy == 0.5 and nothing.most_right(0.2) == pytest.approx(0.2)
    assert tradeoffs.curve_of(ledger.dp_event(0.0, 0.5, 3)) is None


def most_probable(curve, m, r, v):
    """The oracle: a linear program for the largest probability of at least v correct guesses that a curve allows."""
    c = np.arange(r + 1)
    rows, limits = [], []
    for i in range(r):
        right, wrong = np.where(c >= i + 1, c, 0) / m, np.where(c >= i, r - c, 0) / m
        for epsilon, delta in zip(curve.epsilons, curve.deltas):
            rows += [right - np.exp(epsilon) * wrong, np.exp(-epsilon) * right - wrong]
            limits += [delta, np.exp(-epsilon) * delta]
            # Of the complements: 1 - wrong <= e^epsilon (1 - right) + delta.
            rows.append(np.exp(epsilon) * right - wrong)
            limits.append(np.exp(epsilon) + delta - 1.0)
    found = optimize.linprog(
        -(c >= v).astype(float), np.array(rows), limits, np.ones([1, r + 1]), [1.0], bounds=[(0.0, 1.0)]
    )
    return -found.fun


@pytest.mark.parametrize('m, r', [(1, 1), (6, 4), (10, 10), (12, 8)])
def test_one_run_test_is_the_linear_program_of_the_theorem(m, r):
    epsilons = np.linspace(0.0, 4.0, 9)
    deltas = np.interp(epsilons, *(getattr(tradeoffs.gaussian_curve(1.0), name) for name in ('epsilons', 'deltas')))
    curve = tradeoffs.TradeoffCurve(epsilons, deltas)
    for v in range(1, r + 1):
        allowed = most_probable(curve, m, r, v)
        for share, rejected in ((1.001, True), (0.999, False)):
            if allowed * share < 1.0:
                confidence = 1.0 - allowed * share
                counts = {'num_guesses': r, 'num_correct': v, 'confidence': confidence}
                assert tradeoffs.rejects_in_one_run(curve, m, **counts) == rejected, (v, allowed, share)


def guess(mu, m, num_guesses, generator):
    """Returns how many guesses are right of a Gaussian mechanism: about all canaries, and about the surest."""
    included = generator.integers(0, 2, m) == 1
    scores = included * mu + generator.standard_normal(m) - mu / 2.0
    guesses = auditing.guess_membership(scores, num_guesses)
    return np.sum((scores > 0.0) == included), np.sum(guesses == np.where(included, auditing.IN, auditing.OUT))


def shares_of_rejections(mu, claimed_mu, confidence=0.9):
    """Returns the shares of audits in which each of the two tests rejects a claim."""
    generator, curve = np.random.default_rng(0), tradeoffs.gaussian_curve(claimed_mu)
    m, num_guesses, counts = 300, 60, np.zeros(2)
    for _ in range(NUM_AUDITS):
        of_all, of_surest = (int(count) for count in guess(mu, m, num_guesses, generator))
        counts += [
            tradeoffs.rejects_independent(curve, m, num_correct=of_all, confidence=confidence),
            tradeoffs.rejects_in_one_run(
                curve, m, num_guesses=num_guesses, num_correct=of_surest, confidence=confidence
            ),
        ]
    return counts / NUM_AUDITS


@pytest.mark.parametrize('mu', [0.3, 1.0, 2.5])
def test_true_claim_is_rejected_no_more_often_than_the_confidence_allows(mu):
    allowed = 0.1 + 3.0 * np.sqrt(0.1 * 0.9 / NUM_AUDITS)
    assert np.all(shares_of_rejections(mu, mu) <= allowed)


def test_control_less_noise_is_rejected_and_the_test_of_independent_canaries_is_tight():
    assert shares_of_rejections(3.0, 1.5)[0] > 0.99 and shares_of_rejections(3.0, 0.6)[1] > 0.9
    assert shares_of_rejections(1.0, 1.0)[0] > 0.03  # A test that never rejects would pass the one above.


def test_whole_leaks_now_and_then_are_no_fault_in_one_run_and_one_if_canaries_are_said_to_be_independent():
    # With probability 0.2 all inclusions are told: (0, 0.2)-differential privacy, and canaries that hang together.
    curve = tradeoffs.TradeoffCurve(np.array([0.0]), np.array([0.2]))
    assert tradeoffs.rejects_independent(curve, 100, num_correct=100, confidence=0.9)
    assert not tradeoffs.rejects_in_one_run(curve, 100, num_guesses=100, num_correct=100, confidence=0.9)
    # Control: what should happen in a fifth of all runs is rejected where it may happen in a hundredth.
    strict = tradeoffs.TradeoffCurve(np.array([0.0]), np.array([0.01]))
    assert tradeoffs.rejects_in_one_run(strict, 100, num_guesses=100, num_correct=100, confidence=0.9)


def make_family(noise_multiplier=1.0):
    return tradeoffs.Family(dp_accounting.GaussianDpEvent, 1e-4, noise_multiplier=noise_multiplier)


@pytest.mark.parametrize('begun_at', [0.3, 1.0, 20.0])
def test_bound_is_the_epsilon_of_the_least_noise_that_is_rejected_wherever_the_search_begins(begun_at):
    family = make_family(begun_at)
    found = family.epsilon_lower_bound(lambda curve: curve.best_accuracy < special.ndtr(0.5 / 1.7))
    assert family.epsilon(1.7 * 1.004) <= found <= family.epsilon(1.7 / 1.001)


def test_bound_is_zero_where_nothing_is_rejected_and_stops_where_no_curve_is_known():
    assert make_family().epsilon_lower_bound(lambda curve: False) == 0.0
    assert make_family().epsilon_lower_bound(lambda curve: True) > 100.0
    no_noise = tradeoffs.Family(lambda sigma: ledger.dp_event(0.0, 0.5, 1), 1e-4, noise_multiplier=1.0)
    assert no_noise.epsilon_lower_bound(lambda curve: True) == 0.0


def test_bounds_exceed_the_truth_no_more_often_than_allowed_and_come_near_to_it():
    generator, family = np.random.default_rng(1), make_family()

    @functools.lru_cache
    def bound(right):
        return family.epsilon_lower_bound(
            lambda curve: tradeoffs.rejects_independent(curve, 500, num_correct=right, confidence=0.95)
        )

    def counts(mu):
        return np.sort([int(guess(mu, 500, 100, generator)[0]) for _ in range(200)])

    truth, audits, louder = family.epsilon(1.0), counts(1.0), counts(2.0)
    # The more guesses are right, the larger is the bound: it is computed of a few audits, which tell it of all.
    grown = [bound(int(count)) for count in [*audits[::40], *louder[::40]]]
    assert grown == sorted(grown) and grown[0] < truth < grown[-1]
    num_below = bisect.bisect_right(audits, truth, key=lambda count: bound(int(count)))
    assert 200 - num_below <= 200 * (0.05 + 3.0 * np.sqrt(0.05 * 0.95 / 200))
    assert bound(int(audits[100])) > 0.7 * truth
    # Control: with half of the noise all of them are above.
    assert bound(int(louder[0])) > truth


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: tradeoffs.TradeoffCurve(np.array([0.1]), np.array([0.0])), 'the first of which is 0'),
        (lambda: tradeoffs.TradeoffCurve(np.array([0.0, 0.0]), np.zeros(2)), 'ascending epsilons'),
        (lambda: tradeoffs.TradeoffCurve(np.array([0.0]), np.array([1.5])), 'deltas in .0, 1.'),
        (lambda: make_family(0.0), 'noise_multiplier must be finite and > 0, got 0.0'),
        (
            lambda: tradeoffs.rejects_independent(tradeoffs.gaussian_curve(1.0), 5, num_correct=6, confidence=0.9),
            'got 6, 5 and 5',
        ),
        (
            lambda: tradeoffs.rejects_in_one_run(
                tradeoffs.gaussian_curve(1.0), 5, num_guesses=5, num_correct=1, confidence=1.0
            ),
            'confidence must be in .0, 1., got 1.0',
        ),
    ],
)
def test_wrong_arguments_are_refused_naming_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
