"""Tests of truncated Poisson sampling: what a step costs, against sums and integrals over all that may be drawn."""

import dataclasses
import itertools
import math

import dp_accounting
from dp_accounting import dp_event as dp_event_lib
from dp_accounting import pld
import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import best_of_runs
from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import truncation as truncation_lib

COARSE = {'discretization_interval': 1e-3}


def event_of(noise_multiplier, q, num_steps, num_units, bound):
    return ledger_lib.dp_event(noise_multiplier, q, num_steps, truncation_lib.Truncation(num_units, bound))


@pytest.mark.parametrize('num_units, q, bound', [(2, 0.5, 1), (5, 0.4, 2), (9, 0.5, 7), (60, 0.1, 9), (200, 0.02, 30)])
def test_probabilities_are_those_of_all_numbers_of_units_that_may_be_drawn(num_units, q, bound):
    is_met = is_kept = 0.0
    for k in range(bound, num_units):  # Of the others.
        of_k = math.comb(num_units - 1, k) * q**k * (1.0 - q) ** (num_units - 1 - k)
        is_met += of_k
        is_kept += of_k * q * bound / (k + 1)
    found = truncation_lib.Truncation(num_units, bound).probabilities(q)
    np.testing.assert_allclose(found, [is_met, is_kept], rtol=1e-11)


def batches(num_units, q, bound):
    """Yields each batch that a step may have, with its probability, by the words of the definition."""
    for size in range(num_units + 1):
        for drawn in itertools.combinations(range(num_units), size):
            probability = q**size * (1.0 - q) ** (num_units - size)
            kept = list(itertools.combinations(drawn, min(size, bound)))
            for batch in kept:
                yield batch, probability / len(kept)


LINE = np.arange(-10.0, 10.0, 0.08)
PLANE = LINE[:, None] + 1j * LINE  # Gradients have two dimensions, written as complex numbers.


def density(gradients, sigma, q, bound, points=PLANE):
    """Returns the density of the noisy sum of a step at some points."""
    weights = {}
    for batch, probability in batches(len(gradients), q, bound):
        mean = sum((gradients[unit] for unit in batch), 0j)
        weights[mean] = weights.get(mean, 0.0) + probability
    return sum(
        weight * np.exp(-0.5 * np.abs(points - mean) ** 2 / sigma**2) / (2.0 * np.pi * sigma**2)
        for mean, weight in weights.items()
    )


SMALL = [(4, 0.5, 2, 0.8), (5, 0.4, 3, 1.2), (3, 0.3, 1, 1.0)]  # Units, q, bound, noise multiplier.


def neighbours(num_units, q, bound, sigma):
    """Yields the densities of a step for data sets of which a unit is a null record in the second."""
    for others in itertools.combinations_with_replacement([-1.0, 1j, 0.8j - 0.6, 1.0], num_units - 1):
        yield tuple(density([gradient, *others], sigma, q, bound) for gradient in (1.0, 0.0))


def hockey_stick(first, second, epsilons, cell=0.08**2):
    return np.array([np.sum(np.maximum(first - np.exp(epsilon) * second, 0.0)) * cell for epsilon in epsilons])


@pytest.mark.parametrize('num_units, q, bound, sigma', SMALL)
def test_both_bounds_of_a_step_hold_for_the_integral_over_all_batches(num_units, q, bound, sigma):
    epsilons, orders = np.linspace(0.0, 4.0, 9), np.array([1.5, 2.0, 4.0, 8.0])

    def bounds(noise_multiplier):
        steps = epsilon_bounds.steps_of(event_of(noise_multiplier, q, 1, num_units, bound))
        truncation = truncation_lib.Truncation(num_units, bound)
        by_rdp = truncation_lib.log_moments(noise_multiplier, q, truncation, orders)
        return epsilon_bounds.deltas_by_pld(steps, epsilons, interval=1e-3), by_rdp

    largest, largest_moments = np.zeros_like(epsilons), np.zeros_like(orders)
    for pair in neighbours(num_units, q, bound, sigma):
        for first, second in (pair, pair[::-1]):
            largest = np.maximum(largest, hockey_stick(first, second, epsilons))
            # Beyond the plane next to nothing is missing, and an integral from which it is missing is too small.
            log_first, log_second = np.log(first), np.log(second)
            moments = [np.log(0.08**2 * np.sum(np.exp(a * log_first + (1.0 - a) * log_second))) for a in orders]
            largest_moments = np.maximum(largest_moments, moments)
    assert np.all(largest <= bounds(sigma)[0] + 1e-9) and np.all(largest_moments <= bounds(sigma)[1] + 1e-9)
    # The control: with more noise than there is they do not.
    by_pld, by_rdp = bounds(1.6 * sigma)
    assert np.any(largest > by_pld) and np.any(largest_moments > by_rdp)


def test_bound_of_two_steps_holds_for_the_integral_over_all_batches_of_both():
    num_units, q, bound, sigma = SMALL[0]
    (steps,) = epsilon_bounds.steps_of(event_of(sigma, q, 2, num_units, bound))
    epsilons, line = np.array([0.5, 2.0, 4.0]), LINE[:, None]
    once, twice = (
        epsilon_bounds.deltas_by_pld((steps._replace(times=count),), epsilons, interval=1e-3) for count in (1, 2)
    )
    largest = np.zeros_like(epsilons)
    for others in ([-1.0, -1.0, -1.0], [-1.0, 1.0, 1.0], [-1.0, -1.0, 0.0]):
        # On a line, so that the outputs of both steps are a plane.
        pair = [density([one, *others], sigma, q, bound, line) * np.sqrt(2.0 * np.pi) * sigma for one in (1.0, 0.0)]
        for first, second in (pair, pair[::-1]):
            largest = np.maximum(largest, hockey_stick(first * first.T, second * second.T, epsilons))
    assert np.all(largest <= twice + 1e-9)


def delta_of_the_pair(epsilon, sigma, q, num_units, bound):
    """Returns delta of the pair that dp_accounting's event stands for, by integrals: the larger of both directions."""
    is_met = stats.binom.sf(bound - 1, num_units - 1, q)
    p = sum(stats.binom.pmf(k, num_units - 1, q) * q * bound / (k + 1) for k in range(bound, num_units)) / is_met
    y = np.linspace(-40.0, 40.0, 400_001)
    null, one = (stats.norm.pdf(y, mean, sigma) for mean in (0.0, 1.0))
    right, left = ((1.0 - p) * null + p * stats.norm.pdf(y, mean, sigma) for mean in (2.0, -2.0))

    def integrals(first, second):
        return hockey_stick(first, second, [epsilon], y[1] - y[0])[0]

    sampled = (1.0 - q) * null + q * one
    of_met = is_met * integrals(right, left)
    return max((1.0 - is_met) * integrals(*pair) + of_met for pair in ((sampled, null), (null, sampled)))


@pytest.mark.parametrize(
    'sigma, q, num_units, bound', [(1.0, 0.3, 40, 12), (1.5, 0.1, 200, 29), (2.5, 0.33, 100, 45), (0.8, 0.02, 500, 20)]
)
@pytest.mark.parametrize('delta', [1e-3, 1e-5])
def test_epsilon_by_pld_is_that_of_its_pair_by_integrals(sigma, q, num_units, bound, delta):
    steps = epsilon_bounds.steps_of(event_of(sigma, q, 1, num_units, bound))
    epsilon = epsilon_bounds._pld_epsilon(steps, delta, 1e-3)
    assert delta_of_the_pair(epsilon, sigma, q, num_units, bound) <= delta * (1.0 + 1e-6)
    assert delta_of_the_pair(0.98 * epsilon - 2e-3, sigma, q, num_units, bound) > delta


CASES = [(2.0, 0.1, 100, 1000, 120), (4.0, 0.3, 20, 200, 75), (1.5, 0.02, 200, 5000, 140)]


@pytest.mark.parametrize('setting', CASES)
def test_epsilon_is_that_of_dp_accounting_for_a_null_record_or_less(setting):
    sigma, q, num_steps, num_units, bound = setting
    direct = dp_event_lib.TruncatedSubsampledGaussianDpEvent(num_units, q, bound, sigma)
    event = event_of(*setting)
    assert event == dp_accounting.SelfComposedDpEvent(direct, num_steps)
    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    theirs = pld.PLDAccountant(relation, 1e-3).compose(event).get_epsilon(1e-5)
    ours, by_rdp = accounting.epsilon(event, 1e-5, **COARSE), accounting.epsilon(event, 1e-5, accountant='rdp')
    plain = accounting.epsilon(ledger_lib.dp_event(sigma, q, num_steps), 1e-5, **COARSE)
    assert plain < ours <= min(theirs * (1.0 + 1e-4), by_rdp) + 1e-6
    assert ours >= min(theirs, by_rdp) - 1e-9  # What rounding may have taken off is put on.


def test_larger_bound_costs_less_and_in_the_limit_what_plain_poisson_sampling_costs():
    sigma, q, num_steps, num_units = 3.0, 0.1, 100, 1000
    plain = [
        accounting.epsilon(ledger_lib.dp_event(sigma, q, num_steps), 1e-5, accountant=name, **COARSE)
        for name in accounting.ACCOUNTANTS
    ]
    for plain_epsilon, name in zip(plain, accounting.ACCOUNTANTS):
        spent = [
            accounting.epsilon(event_of(sigma, q, num_steps, num_units, bound), 1e-5, accountant=name, **COARSE)
            for bound in (100, 115, 130, 150, 170, 900, 1000, 2000)
        ]
        assert spent[:5] == sorted(spent[:5], reverse=True) and spent[0] > 1.2 * plain_epsilon
        assert plain_epsilon < spent[4] < 1.001 * plain_epsilon
        # So rarely met that it is left out, but paid for; and never met.
        assert spent[5] == pytest.approx(plain_epsilon, rel=1e-5) and spent[5] >= plain_epsilon
        assert spent[6:] == [plain_epsilon] * 2
    steps = epsilon_bounds.steps_of(event_of(sigma, q, num_steps, num_units, 1000))
    assert steps == epsilon_bounds.steps_of(ledger_lib.dp_event(sigma, q, num_steps))


def test_noise_is_found_that_meets_a_target():
    def make_event(sigma):
        return event_of(sigma, 0.1, 50, 300, 40)

    found = accounting.calibrate_noise_multiplier(make_event, 3.0, 1e-4)
    assert accounting.epsilon(make_event(found), 1e-4) <= 3.0
    assert accounting.epsilon(make_event(0.97 * found), 1e-4) > 3.0


@pytest.mark.parametrize('delta', [1e-13, 1e-30])
def test_delta_that_the_convolution_does_not_resolve_is_left_to_the_bound_by_renyi_divergences(delta):
    event = event_of(*CASES[0])
    spent = accounting.epsilon(event, delta)
    assert spent == accounting.epsilon(event, delta, accountant='rdp') < math.inf
    assert spent > accounting.epsilon(ledger_lib.dp_event(*CASES[0][:3]), delta, accountant='rdp')


def bounds_of(steps):
    deltas = epsilon_bounds.deltas_by_pld(steps, np.array([0.0, 1.0]), interval=1e-2)
    return epsilon_bounds.by_pld(steps, 1e-5, interval=1e-2), deltas


def test_rounding_of_the_probabilities_is_put_on(monkeypatch):
    steps = epsilon_bounds.steps_of(event_of(*CASES[0]))
    before = bounds_of(steps)
    monkeypatch.setattr(epsilon_bounds, '_TRUNCATION_ROUNDING', 1e-6)
    after = bounds_of(steps)
    assert after[0] > before[0] + 0.9e-4 and np.all(after[1] > before[1])


def test_bound_that_is_met_too_rarely_to_be_computed_is_taken_off_delta(monkeypatch):
    steps = epsilon_bounds.steps_of(event_of(3.0, 0.1, 100, 1000, 170))
    assert 1e-16 < steps[0].probabilities[0] < 1e-8
    before = bounds_of(steps)
    monkeypatch.setattr(epsilon_bounds, '_NEVER', 1e-8)
    epsilon_bounds._compose.cache_clear()
    assert steps[0].probabilities == (0.0, 0.0)
    after = bounds_of(steps)
    assert after[0] > before[0] + 5e-3 and np.all(after[1] > before[1] + 0.9e-6)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: truncation_lib.Truncation(10, 0), 'truncated_batch_size must be a whole number of at least 1, got 0'),
        (lambda: truncation_lib.Truncation(0, 1), 'num_units must be a whole number'),
        (lambda: truncation_lib.Truncation(10, 2.5), 'truncated_batch_size must be a whole number .* got 2.5'),
        (lambda: truncation_lib.Truncation(10**8 + 1, 5), 'up to num_units=100,000,000, got 100,000,001'),
        (lambda: truncation_lib.Truncation(100, 9).check(0.1), 'at least the expected batch size, 10, got 9'),
        (lambda: truncation_lib.Truncation(100, 9).probabilities(0.1), 'at least the expected batch size'),
        (
            lambda: ledger_lib.Release('a', 1.0, None, 1, truncation_lib.Truncation(100, 9)),
            'not Poisson-sampled are not truncated',
        ),
        (lambda: ledger_lib.Release('a', 1.0, 0.1, 1, truncation_lib.Truncation(100, 9)), 'at least the expected'),
        (
            lambda: accounting.epsilon(
                ledger_lib.Ledger()
                .record('a', 1.0, 0.1, truncation=truncation_lib.Truncation(100, 20))
                .best_of(best_of_runs.NumRuns(4.0))
                .dp_event(),
                1e-5,
            ),
            'releases that are not truncated',
        ),
    ],
)
def test_what_is_not_accounted_for_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert '\n' not in str(error.value)


def test_ledger_puts_the_bound_and_the_number_of_units_on_record_and_nothing_where_there_is_none():
    truncation = truncation_lib.Truncation(100, 20)
    plain, bounded = (ledger_lib.Ledger().record('a', 2.0, 0.1, 3, bound) for bound in (None, truncation))
    assert plain.to_json() == '[{"mechanism": "a", "noise_multiplier": 2.0, "sampling_probability": 0.1, "count": 3}]'
    for ledger in (plain, bounded, plain.best_of(best_of_runs.NumRuns(4.0))):
        assert ledger_lib.Ledger.from_json(ledger.to_json()) == ledger
    assert '"truncation": {"num_units": 100, "truncated_batch_size": 20}' in bounded.to_json()
    assert not bounded.contains(plain) and not plain.contains(bounded)
    once_more = bounded.record('a', 2.0, 0.1, truncation=truncation)
    assert [release.count for release in once_more.releases] == [4]
    assert len(bounded.record('a', 2.0, 0.1, truncation=dataclasses.replace(truncation, num_units=99)).releases) == 2
