"""Tests of what a guarantee means: against closed forms, and integrals that know nothing of the accountant."""

import decimal
import math

import dp_accounting
import numpy as np
import pytest
from scipy import integrate
from scipy import optimize
from scipy import special

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import meaning
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import truncation

RATES = (1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9)
# Some that hide much, some little, one that needs Renyi accounting.
EVENTS = {
    'one release': dp_accounting.GaussianDpEvent(1.0),
    'sampled': ledger_lib.dp_event(1.5, 0.1, 100),
    'hardly any protection': ledger_lib.dp_event(0.6, 0.5, 20),
    'warm start': dp_accounting.ComposedDpEvent(
        [dp_accounting.GaussianDpEvent(2.0), ledger_lib.dp_event(6.0, 0.5, 100)]
    ),
}


def gaussian_rate(mu, false_positive_rate):
    return special.ndtr(special.ndtri(false_positive_rate) + mu)


@pytest.mark.parametrize('rate', RATES)
@pytest.mark.parametrize('noise_multiplier', [0.3, 1.0, 4.0, 50.0])
def test_rate_of_one_gaussian_release_is_just_above_its_closed_form(noise_multiplier, rate):
    exact = gaussian_rate(1.0 / noise_multiplier, rate)
    bound = meaning.true_positive_rate(dp_accounting.GaussianDpEvent(noise_multiplier), rate)
    assert exact <= bound <= 1.0
    assert bound - exact <= 0.01 * min(exact, 1.0 - exact) + 1e-4 * rate + 1e-8


@pytest.mark.parametrize('rate', RATES)
@pytest.mark.parametrize('epsilon', [0.0, 0.1, 1.0, 3.0, 20.0])
def test_rate_of_randomised_response_is_its_closed_form(epsilon, rate):
    # It tells the truth with probability e^epsilon / (1 + e^epsilon); the best tests of a size mix two of its answers.
    right = math.exp(epsilon) / (1.0 + math.exp(epsilon))
    corners = np.array([[0.0, 0.0], [1.0 - right, right], [1.0, 1.0]])
    exact = np.interp(rate, *corners.T)
    bound = meaning.right_guesses_bound(rate, np.array([epsilon]), np.array([0.0]))
    assert exact <= bound and bound == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize('rate', [1e-3, 1e-2, 0.3])
@pytest.mark.parametrize('noise_multiplier, probability', [(1.0, 0.3), (3.0, 0.05), (0.5, 0.6)])
@pytest.mark.parametrize('is_used', [False, True])
def test_rate_of_a_sampled_step_is_never_below_that_of_the_best_test(noise_multiplier, probability, rate, is_used):
    # Whose sum is larger is used more likely: the best tests look whether it is above (or, exchanged, below) a number.
    def is_above(threshold, mixed):
        alone = special.ndtr(-threshold / noise_multiplier)
        moved = special.ndtr((1.0 - threshold) / noise_multiplier)
        return (1.0 - probability) * alone + probability * moved if mixed else alone

    def false_and_true(threshold):
        if is_used:
            return is_above(threshold, False), is_above(threshold, True)
        return 1.0 - is_above(threshold, True), 1.0 - is_above(threshold, False)

    threshold = optimize.brentq(lambda x: false_and_true(x)[0] - rate, -60.0, 60.0, xtol=1e-14)
    bound = meaning.true_positive_rate(ledger_lib.dp_event(noise_multiplier, probability, 1), rate)
    assert false_and_true(threshold)[1] <= bound
    if is_used:  # This direction is the worse one at small rates.
        assert bound <= 1.05 * false_and_true(threshold)[1] + 0.01 * rate


@pytest.mark.parametrize('name', EVENTS)
def test_rate_grows_with_the_false_positives_and_with_what_is_released(name):
    event, more = EVENTS[name], dp_accounting.ComposedDpEvent([EVENTS[name], dp_accounting.GaussianDpEvent(1.0)])
    rates = [meaning.true_positive_rate(event, rate) for rate in RATES]
    assert rates == sorted(rates) and all(rate <= bound <= 1.0 for rate, bound in zip(RATES, rates))
    assert all(meaning.true_positive_rate(more, rate) >= bound for rate, bound in zip(RATES, rates))
    assert meaning.true_positive_rate(event, 0.01, added_delta=0.05) >= rates[2]


def test_rate_is_never_above_what_the_claim_alone_gives():
    for event in EVENTS.values():
        epsilon = accounting.epsilon(event, 1e-5)
        by_claim = min(1.0, math.exp(epsilon) * 1e-3 + 1e-5, 1.0 - math.exp(-epsilon) * (1.0 - 1e-3 - 1e-5))
        assert meaning.true_positive_rate(event, 1e-3) <= by_claim * (1.0 + 1e-3)


def test_where_nothing_is_known_an_attacker_may_always_be_right():
    for event in (dp_accounting.NonPrivateDpEvent(), ledger_lib.dp_event(1.0, None, 3)):
        assert meaning.true_positive_rate(event, 1e-3) == 1.0
        assert meaning.group_epsilon(event, 2, 1e-5) == math.inf and meaning.gaussian_mu(event) is None
    assert meaning.true_positive_rate(dp_accounting.NoOpDpEvent(), 0.25) == pytest.approx(0.25)
    assert meaning.group_epsilon(dp_accounting.NoOpDpEvent(), 3, 1e-5) == 0.0


@pytest.mark.parametrize('rate', [0.0, 1.0, -0.1, math.nan])
def test_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match='false_positive_rate must be in'):
        meaning.true_positive_rate(EVENTS['one release'], rate)


@pytest.mark.parametrize('num_units', [1, 2, 5])
def test_units_of_one_person_in_a_gaussian_release_cost_what_their_shift_costs(num_units):
    event = dp_accounting.GaussianDpEvent(8.0)
    alone = accounting.epsilon(dp_accounting.GaussianDpEvent(8.0 / num_units), 1e-5)
    assert alone * (1.0 - 1e-6) <= meaning.group_epsilon(event, num_units, 1e-5) <= alone * (1.0 + 1e-3)


def delta_of_group(epsilon, noise_multiplier, probability, num_units):
    """Returns delta at epsilon of a step from which several units are sampled, by an integral, the larger direction."""
    shifts = np.arange(num_units + 1)
    weights = special.comb(num_units, shifts) * probability**shifts * (1.0 - probability) ** (num_units - shifts)

    def density(x, mixed):
        at = shifts if mixed else np.zeros(1)
        each = np.exp(-0.5 * ((x - at) / noise_multiplier) ** 2) / (noise_multiplier * math.sqrt(2.0 * math.pi))
        return float(np.sum((weights if mixed else 1.0) * each))

    def excess(x, first):
        return max(density(x, first) - math.exp(epsilon) * density(x, not first), 0.0)

    reach = 12.0 * noise_multiplier
    return max(
        integrate.quad(excess, -reach, num_units + reach, args=(first,), limit=500)[0] for first in (False, True)
    )


@pytest.mark.parametrize('num_units', [2, 3])
@pytest.mark.parametrize('noise_multiplier, probability', [(2.0, 0.1), (4.0, 0.5)])
def test_units_of_one_person_cost_never_less_than_an_integral_says(noise_multiplier, probability, num_units):
    bound = meaning.group_epsilon(ledger_lib.dp_event(noise_multiplier, probability, 1), num_units, 1e-4)
    assert delta_of_group(bound, noise_multiplier, probability, num_units) <= 1e-4 * (1.0 + 1e-6)
    # Control: the cost of one unit is too little.
    one = accounting.epsilon(ledger_lib.dp_event(noise_multiplier, probability, 1), 1e-4)
    assert delta_of_group(one, noise_multiplier, probability, num_units) > 1e-4


@pytest.mark.parametrize('name', EVENTS)
def test_more_units_of_one_person_cost_more_and_one_costs_epsilon(name):
    costs = [meaning.group_epsilon(EVENTS[name], count, 1e-5) for count in (1, 2, 3)]
    assert costs[0] == pytest.approx(accounting.epsilon(EVENTS[name], 1e-5), rel=1e-6)
    assert costs == sorted(costs) and costs[1] > 1.5 * costs[0]


def test_group_privacy_is_taken_where_it_is_the_smaller_bound():
    event = ledger_lib.dp_event(20.0, 0.01, 10_000)
    found = meaning.group_epsilon(event, 2, 1e-5)
    steps = meaning.epsilon_bounds.steps_of(event)
    assert found == meaning._by_group_privacy(steps, 2, 1e-5, 0.0) < meaning._by_composition(steps, 2, 1e-5)
    # What it is: some (e, d) of one unit with 2 e = found and d (1 + e^e) <= delta.
    assert accounting.epsilon(event, 1e-5 / (1.0 + math.exp(found / 2.0))) <= found / 2.0 * (1.0 + 1e-2)
    assert found <= 2.1 * accounting.epsilon(event, 1e-5 / (1.0 + math.exp(found / 2.0)))


def test_tail_of_the_noise_counts():
    ledger = ledger_lib.Ledger().record('dp_sgd_step', 2.0, 0.1, 100)
    tails = [meaning.tail_delta(ledger, count, generator='philox') for count in (1, 2, 5, 100)]
    assert 0.0 < tails[0] < 1e-9 and tails == sorted(tails) and tails[-1] == 1.0
    assert meaning.group_epsilon(ledger.dp_event(), 2, 1e-5, added_delta=lambda unused_count: 1.0) == math.inf
    assert meaning.tail_delta(ledger_lib.Ledger(), 1, generator='philox') == 0.0


def test_mu_of_releases_of_all_units_is_proven_and_of_sampled_ones_an_approximation():
    event = dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(2.0), ledger_lib.dp_event(4.0, 1.0, 4)])
    mu = meaning.gaussian_mu(event)
    assert mu.is_proven and math.sqrt(0.5) <= mu.value <= math.sqrt(0.5) * (1.0 + 1e-9)
    for rate in RATES:
        exact = gaussian_rate(mu.value, rate)
        assert exact * (1.0 - 1e-9) <= meaning.true_positive_rate(event, rate) <= 1.02 * exact
    sampled = meaning.gaussian_mu(EVENTS['sampled'])
    assert not sampled.is_proven
    # No looser than the accountant's own bound at the rates it is about.
    for rate in (1e-3, 1e-2, 0.1):
        assert meaning.true_positive_rate(EVENTS['sampled'], rate) <= gaussian_rate(sampled.value, rate) * (1.0 + 1e-2)


@pytest.mark.parametrize('share', [0.0, 1e-9, 0.00101, 0.1 + 0.2, 0.99999, 1.0, *np.random.default_rng(0).random(100)])
def test_percentage_is_never_below_the_share(share):
    text = rounding.percent_up(share)
    distance = decimal.Decimal(text[:-1]) - 100 * decimal.Decimal(repr(float(share)))
    assert text[-1] == '%' and 0 <= distance < decimal.Decimal('1e-2')


TRUNCATED = ledger_lib.dp_event(4.0, 0.3, 20, truncation.Truncation(200, 75))


def test_truncated_batches_of_several_units_are_bounded_by_group_privacy_alone():
    epsilons = [meaning.group_epsilon(TRUNCATED, count, 1e-4) for count in (1, 2)]
    assert accounting.epsilon(TRUNCATED, 1e-4) <= epsilons[0] < 0.6 * epsilons[1] < math.inf
    # What is proven for units that are drawn independently is not used.
    assert meaning._grouped(meaning.epsilon_bounds.steps_of(TRUNCATED), 2) is None
    assert not meaning.gaussian_mu(TRUNCATED).is_proven


def test_truncated_batches_tell_an_attacker_more_than_whole_ones():
    plain = ledger_lib.dp_event(4.0, 0.3, 20)
    assert meaning.true_positive_rate(plain, 0.01) < meaning.true_positive_rate(TRUNCATED, 0.01) < 1.0
