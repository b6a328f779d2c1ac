"""Tests of auditing: the theorem against brute force, coverage by simulation, and mechanisms that must be caught."""

import functools
import json
import math

import numpy as np
import pytest

from tf_dpdiff.privacy import auditing

bound = functools.lru_cache(maxsize=None)(auditing.epsilon_lower_bound)


def p_value_by_summation(epsilon, m, r, v, delta):
    """The theorem's bound, term by term."""
    q = math.exp(epsilon) / (1.0 + math.exp(epsilon))
    pmf = [math.comb(r, k) * q**k * (1.0 - q) ** (r - k) for k in range(r + 1)]
    tail = sum(pmf[v:])
    slope = max(sum(pmf[max(0, v - i) : v]) / i for i in range(1, m + 1))
    return min(1.0, tail + 2.0 * m * delta * slope)


@pytest.mark.parametrize('delta', [0.0, 1e-4, 0.02])
@pytest.mark.parametrize('m, r', [(1, 1), (6, 4), (12, 12), (20, 15)])
def test_p_value_is_the_sum_of_the_theorem(m, r, delta):
    for v in range(r + 1):
        for epsilon in (0.0, 0.3, 1.0, 4.0):
            p = auditing.p_value(epsilon, m, num_guesses=r, num_correct=v, delta=delta)
            assert p == pytest.approx(p_value_by_summation(epsilon, m, r, v, delta), abs=1e-12)


@pytest.mark.parametrize('m, delta', [(20, 0.2), (50, 0.05), (12, 0.5)])
def test_where_2_m_delta_is_large_the_p_value_is_an_upper_bound_that_rises_with_epsilon(m, delta):
    for v in (0, m // 2, m - 1, m):
        values = [
            auditing.p_value(epsilon, m, num_guesses=m, num_correct=v, delta=delta)
            for epsilon in np.linspace(0.0, 8.0, 200)
        ]
        assert np.all(np.diff(values) >= -1e-12)
        oracle = [p_value_by_summation(epsilon, m, m, v, delta) for epsilon in np.linspace(0.0, 8.0, 200)]
        assert np.all(np.array(values) >= np.array(oracle) - 1e-12)


@pytest.mark.parametrize('m', [10, 100, 1000])
def test_all_correct_without_delta_has_a_closed_form(m):
    q = 0.05 ** (1.0 / m)
    found = bound(m, m, num_correct=m, delta=0.0, confidence=0.95)
    assert found == pytest.approx(math.log(q / (1.0 - q)), abs=1e-9)
    assert found == pytest.approx(math.log(m / 3.0), abs=0.2)


def test_bound_is_the_edge_of_what_is_rejected():
    counts = {'num_guesses': 80, 'num_correct': 70, 'delta': 1e-3}
    found = auditing.epsilon_lower_bound(100, confidence=0.9, **counts)
    assert auditing.p_value(found - 1e-6, 100, **counts) < 0.1 <= auditing.p_value(found + 1e-6, 100, **counts)


def test_bound_rises_with_correct_guesses_and_falls_with_delta_and_confidence():
    bounds = [bound(100, 80, num_correct=v, delta=1e-4, confidence=0.95) for v in range(81)]
    assert np.all(np.diff(bounds) >= 0.0) and bounds[0] == bounds[40] == 0.0 < bounds[60] < bounds[80]
    by_delta = [bound(100, 80, num_correct=78, delta=delta, confidence=0.95) for delta in (0.0, 1e-4, 1e-3, 1e-2)]
    assert np.all(np.diff(by_delta) < 0.0)
    by_confidence = [bound(100, 80, num_correct=78, delta=0.0, confidence=c) for c in (0.5, 0.9, 0.99)]
    assert np.all(np.diff(by_confidence) < 0.0)


def audits_of_randomized_response(epsilon, *, num_audits=2000, m=100, delta=0.0, seed=0):
    """Audits (epsilon, delta)-DP randomized response on m bits, each bit guessed as it is reported.

    With probability delta, bit by bit, the truth is reported: that is what delta permits.
    """
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, [num_audits, m])
    keeps = generator.uniform(size=truth.shape) < math.exp(epsilon) / (1.0 + math.exp(epsilon))
    keeps |= generator.uniform(size=truth.shape) < delta
    return np.array([bound(m, m, num_correct=int(v), delta=delta, confidence=0.95) for v in keeps.sum(axis=1)])


@pytest.mark.parametrize('epsilon, delta', [(0.0, 0.0), (1.0, 0.0), (3.0, 0.0), (1.0, 0.01), (0.0, 0.05)])
def test_bound_exceeds_the_true_epsilon_in_at_most_one_audit_of_twenty(epsilon, delta):
    exceeds = np.mean(audits_of_randomized_response(epsilon, delta=delta) > epsilon)
    assert exceeds <= 0.05 + 3.0 * math.sqrt(0.05 * 0.95 / 2000)


def test_bound_is_tight_for_randomized_response():
    # The control of the test above: a bound that never exceeds would pass it too.
    bounds = audits_of_randomized_response(1.0)
    assert np.mean(bounds > 1.0) > 0.01 and np.median(bounds) > 0.5


def test_control_mechanism_that_leaks_more_than_it_claims_is_caught():
    assert np.mean(audits_of_randomized_response(2.0) > 1.0) > 0.9


def test_leak_that_delta_permits_is_no_violation_and_without_delta_it_is():
    assert np.all(audits_of_randomized_response(0.0, delta=0.2) == 0.0)
    assert bound(100, 100, num_correct=60, delta=0.0, confidence=0.95) > 0.0  # So many are right on average.


def test_guesses_are_the_extremes():
    guesses = auditing.guess_membership(np.array([0.3, 9.0, -1.0, 0.2, 5.0, 0.0, 0.1, 0.25, 0.26, 0.27]), 5)
    np.testing.assert_array_equal(guesses, [0, 1, -1, 0, 1, -1, -1, 0, 0, 0])
    assert np.sum(auditing.guess_membership(np.arange(500.0)) != auditing.ABSTAINED) == 400


def test_perfect_scores_give_no_error_at_the_default_and_errors_when_all_must_be_guessed():
    generator = np.random.default_rng(0)
    wrong_default, wrong_forced = 0, 0
    for _ in range(200):
        included = generator.integers(0, 2, 500).astype(bool)
        truth = np.where(included, auditing.IN, auditing.OUT)
        scores = included + 0.1 * generator.uniform(size=500)
        wrong_default += np.sum(auditing.guess_membership(scores) == -truth)
        wrong_forced += np.sum(auditing.guess_membership(scores, 500) == -truth)
    assert wrong_default == 0 and wrong_forced > 200


def test_ties_are_broken_without_looking_at_the_truth():
    np.testing.assert_array_equal(auditing.guess_membership(np.zeros(6), 4), [-1, -1, 0, 0, 1, 1])


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: auditing.guess_membership(np.array([1.0, np.nan])), '1 scores of 2 canaries are not finite'),
        (lambda: auditing.guess_membership(np.zeros(3), 4), 'num_guesses must be in .0, 3., got 4'),
        (lambda: bound(5, 6, num_correct=1, delta=0.0, confidence=0.9), 'got 1, 6 and 5'),
        (lambda: bound(0, 0, num_correct=0, delta=0.0, confidence=0.9), 'and a canary'),
        (lambda: bound(5, 5, num_correct=1, delta=1.0, confidence=0.9), 'delta must be in .0, 1., got 1.0'),
        (lambda: bound(5, 5, num_correct=1, delta=0.0, confidence=1.0), 'confidence must be in .0, 1., got 1.0'),
    ],
)
def test_wrong_arguments_are_refused_naming_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_audit_of_a_leak_is_a_violation_and_says_so():
    included = np.random.default_rng(0).integers(0, 2, 300).astype(bool)
    found = auditing.audit(included.astype(float), included, proven_epsilon=1.0, delta=1e-5)
    assert found.num_correct == found.num_guesses == 240 and found.num_canaries == 300
    assert found.epsilon_lower_bound == found.most_that_can_be_shown > 4.0 and found.is_violation
    assert 'ABOVE THE CLAIM' in found.to_text() and json.loads(json.dumps(found.to_dict()))['is_violation']


def test_audit_of_scores_that_know_nothing_finds_nothing():
    generator = np.random.default_rng(1)
    included = generator.integers(0, 2, 300).astype(bool)
    found = auditing.audit(generator.uniform(size=300), included, proven_epsilon=1.0, delta=1e-5)
    assert found.epsilon_lower_bound < 0.5 and not found.is_violation and 'no fault was found' in found.to_text()


def test_run_without_a_claim_cannot_be_refuted():
    included = np.array([True, False] * 50)
    found = auditing.audit(included.astype(float), included, proven_epsilon=math.inf, delta=1e-5)
    assert not found.is_violation and 'no epsilon' in found.to_text() and found.to_dict()['proven_epsilon'] is None
