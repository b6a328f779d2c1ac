"""Tests of the accountant against closed forms, published numbers, and itself."""

import math

import dp_accounting
from dp_accounting import pld
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution
import pytest
from scipy import optimize
from scipy import stats

from tf_dpdiff.privacy import accounting


def gaussian_epsilon(noise_multiplier, delta):
    """The exact epsilon of one Gaussian release (Balle and Wang 2018, arXiv:1805.06530, Theorem 8)."""

    def excess(eps):
        a, b = 0.5 / noise_multiplier, eps * noise_multiplier
        return stats.norm.cdf(a - b) - math.exp(eps) * stats.norm.cdf(-a - b) - delta

    return optimize.brentq(excess, 0.0, 200.0)


@pytest.mark.parametrize('noise_multiplier, num_steps', [(3.0, 1), (1.0, 1), (10.0, 50)])
def test_unsampled_gaussian_matches_the_closed_form(noise_multiplier, num_steps):
    event = accounting.poisson_dp_sgd_event(noise_multiplier, 1.0, num_steps)
    exact = gaussian_epsilon(noise_multiplier / math.sqrt(num_steps), 1e-5)
    spent = accounting.epsilon(event, 1e-5)
    assert exact - 1e-9 <= spent <= exact * 1.001


# Noise multipliers of the paper's three settings, by PLD and Poisson sampling.
RECIPES = [(60000, 4096, 4000, 1e-5, 2.282, 10.0), (50000, 16384, 200, 1e-5, 2.451, 10.0),
           pytest.param(302436, 16384, 200, 3e-6, 0.763, 10.0, marks=pytest.mark.long),
           (60000, 4096, 4000, 1e-5, 16.222, 1.0), (50000, 16384, 200, 1e-5, 17.384, 1.0),
           (302436, 16384, 200, 3e-6, 3.259, 1.0)]


@pytest.mark.parametrize('num_units, batch_size, num_steps, delta, noise_multiplier, target', RECIPES)
def test_recipes_are_calibrated_to_their_known_noise_and_rdp_bounds_them_from_above(num_units, batch_size, num_steps,
                                                                                    delta, noise_multiplier, target):

    def make_event(sigma):
        return accounting.poisson_dp_sgd_event(sigma, batch_size / num_units, num_steps)

    calibrated = accounting.calibrate_noise_multiplier(make_event, target, delta)
    assert calibrated == pytest.approx(noise_multiplier, rel=5e-3)
    spent = accounting.epsilon(make_event(calibrated), delta)
    assert spent <= target
    assert spent == pytest.approx(target, rel=2e-3)
    assert accounting.epsilon(make_event(calibrated), delta, accountant='rdp') >= spent


def direct_event(noise_multiplier, sampling_probability, num_steps):
    """The steps as dp_accounting's documentation has them, none of our code involved."""
    step = dp_accounting.PoissonSampledDpEvent(sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier))
    return dp_accounting.SelfComposedDpEvent(step, num_steps)


def direct_epsilon(noise_multiplier, sampling_probability, num_steps, delta=1e-5):
    event = direct_event(noise_multiplier, sampling_probability, num_steps)
    return pld.PLDAccountant().compose(event).get_epsilon(delta)


@pytest.mark.parametrize('num_units, batch_size, num_steps, delta, noise_multiplier, target', RECIPES)
def test_recipes_cost_what_dp_accounting_says_when_it_is_called_directly(num_units, batch_size, num_steps, delta,
                                                                         noise_multiplier, target):
    arguments = noise_multiplier, batch_size / num_units, num_steps
    event = accounting.poisson_dp_sgd_event(*arguments)
    spent = accounting.epsilon(event, delta)
    direct = direct_epsilon(*arguments, delta)
    assert direct <= spent <= direct * (1.0 + 1e-7)  # What rounding may have taken off is put on.
    assert spent == pytest.approx(target, rel=6e-3)
    by_rdp = rdp.RdpAccountant().compose(direct_event(*arguments)).get_epsilon(delta)
    assert accounting.epsilon(event, delta, accountant='rdp') == pytest.approx(by_rdp, rel=1e-2)
    assert by_rdp >= spent


@pytest.mark.parametrize('noise_multiplier, target',
                         [(3.0, 2.0),
                          (17.0, 0.5), pytest.param(1.0, 3.0, marks=pytest.mark.long)])
def test_most_steps_are_found_and_one_more_would_pass_the_target(noise_multiplier, target):
    found = accounting.solve_num_steps(lambda n: accounting.poisson_dp_sgd_event(noise_multiplier, 0.05, n), target,
                                       1e-5)
    assert isinstance(found, int) and found > 10
    assert direct_epsilon(noise_multiplier, 0.05, found) <= target < direct_epsilon(noise_multiplier, 0.05, found + 1)


@pytest.mark.parametrize('num_units, target', [(50000, 2.0), (300, 2.0), (300, 0.5)])
def test_largest_batch_is_found_and_one_unit_more_would_pass_the_target(num_units, target):
    found = accounting.solve_batch_size(lambda n: accounting.poisson_dp_sgd_event(3.0, n / num_units, 100), target,
                                        1e-5, num_units)
    assert isinstance(found, int) and 1 < found < num_units
    assert direct_epsilon(3.0, found / num_units, 100) <= target < direct_epsilon(3.0, (found + 1) / num_units, 100)


def test_largest_sampling_probability_is_found():
    found = accounting.solve_sampling_probability(lambda q: accounting.poisson_dp_sgd_event(3.0, q, 100), 2.0, 1e-5)
    assert direct_epsilon(3.0, found, 100) <= 2.0 < direct_epsilon(3.0, 1.002 * found, 100)


def test_batch_never_passes_the_whole_data_set():

    def make_event(q):
        return accounting.poisson_dp_sgd_event(100.0, q, 2)

    assert accounting.solve_batch_size(lambda units: make_event(units / 300), 3.0, 1e-5, 300) == 300
    assert accounting.solve_sampling_probability(make_event, 3.0, 1e-5) == 1.0


def test_other_releases_leave_less_for_the_steps():

    def make_event(num_steps, others):
        return dp_accounting.ComposedDpEvent([*others, accounting.poisson_dp_sgd_event(3.0, 0.05, num_steps)])

    alone, beside = (accounting.solve_num_steps(lambda n, others=others: make_event(n, others), 2.0, 1e-5)
                     for others in ([], [dp_accounting.GaussianDpEvent(3.0)]))  # yapf: disable
    assert 0 < beside < 0.8 * alone


@pytest.mark.parametrize('solve, message', [
    (lambda: accounting.solve_num_steps(lambda n: accounting.poisson_dp_sgd_event(2.0, 0.5, n), 0.1, 1e-5),
     'one step already costs'),
    (lambda: accounting.solve_num_steps(lambda n: accounting.poisson_dp_sgd_event(5000.0, 0.01, n), 10.0, 1e-5),
     '1,000,000 steps and more meet'),
    (lambda: accounting.solve_batch_size(lambda b: accounting.poisson_dp_sgd_event(1.0, b / 9, 9), 0.1, 1e-5, 9),
     'an expected batch of one unit already costs'),
    (lambda: accounting.solve_sampling_probability(
        lambda q: dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(20.0),
                                                 accounting.poisson_dp_sgd_event(5.0, q, 9)]), 0.1, 1e-5),
     'a sampling probability of .* already costs'),
])  # yapf: disable
def test_target_that_no_value_meets_is_refused_in_one_line(solve, message):
    with pytest.raises(accounting.BudgetError, match=message) as error:
        solve()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('target', [1000.0, pytest.param(100.0, marks=pytest.mark.long)])
def test_lax_target_is_met_and_nearly_used_up(target):

    def spent(noise_multiplier, **options):
        return accounting.epsilon(accounting.poisson_dp_sgd_event(noise_multiplier, 0.1, 100), 1e-5, **options)

    found = accounting.calibrate_noise_multiplier(lambda s: accounting.poisson_dp_sgd_event(s, 0.1, 100), target, 1e-5)
    assert found < 0.4 and spent(found) <= target < spent(0.99 * found)
    # A discretization ten times finer finds hardly less.
    finer = 1e-4 if target < 300.0 else 1e-3
    assert spent(found) == pytest.approx(spent(found, discretization_interval=finer), rel=1e-4)


def test_target_that_needs_no_noise_gets_some():
    found = accounting.calibrate_noise_multiplier(lambda s: accounting.poisson_dp_sgd_event(s, 0.1, 100), 1e6, 1e-5)
    assert found == 0.1


def test_epsilon_of_the_same_releases_is_computed_once(monkeypatch):
    made = []
    original = privacy_loss_distribution.from_gaussian_mechanism
    monkeypatch.setattr(privacy_loss_distribution, 'from_gaussian_mechanism',
                        lambda *args, **options: made.append(args) or original(*args, **options))

    def spent(noise_multiplier):
        return accounting.epsilon(dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(noise_multiplier)]),
                                  1e-5)

    assert spent(3.21) == spent(3.21) and len(made) == 1
    assert spent(3.22) < spent(3.21) and len(made) == 2


def test_calibration_off_by_one_percent_would_be_noticed():

    def make_event(sigma):
        return accounting.poisson_dp_sgd_event(sigma, 0.3, 200)

    calibrated = accounting.calibrate_noise_multiplier(make_event, 10.0, 1e-5)
    assert accounting.epsilon(make_event(calibrated), 1e-5) <= 10.0
    assert accounting.epsilon(make_event(0.99 * calibrated), 1e-5) > 10.0


def test_epsilon_falls_with_noise_and_delta_and_rises_with_steps_and_sampling():

    def epsilon(s=2.0, q=0.1, n=100, d=1e-5):
        return accounting.epsilon(accounting.poisson_dp_sgd_event(s, q, n), d, discretization_interval=1e-3)

    assert epsilon(s=3.0) < epsilon() < epsilon(s=1.5)
    assert epsilon(d=1e-3) < epsilon() < epsilon(d=1e-8)
    assert epsilon(n=50) < epsilon() < epsilon(n=200)
    assert epsilon(q=0.05) < epsilon() < epsilon(q=0.2)


def test_coarser_discretization_is_a_looser_upper_bound():
    event = accounting.poisson_dp_sgd_event(2.0, 0.1, 100)
    assert accounting.epsilon(event, 1e-5) <= accounting.epsilon(event, 1e-5, discretization_interval=1e-2)


@pytest.mark.parametrize('accountant', accounting.ACCOUNTANTS)
def test_no_noise_is_no_guarantee_and_nothing_released_costs_nothing(accountant):
    no_noise = accounting.poisson_dp_sgd_event(0.0, 0.1, 10)
    assert accounting.epsilon(no_noise, 1e-5, accountant=accountant) == math.inf
    nothing = accounting.poisson_dp_sgd_event(1.0, 0.1, 0)
    assert accounting.epsilon(nothing, 1e-5, accountant=accountant) == 0.0


def test_target_that_another_release_already_passes_is_refused_in_one_line():
    release = dp_accounting.GaussianDpEvent(3.0)

    def make_event(sigma):
        return dp_accounting.ComposedDpEvent([release, accounting.poisson_dp_sgd_event(sigma, 0.5, 100)])

    with pytest.raises(accounting.BudgetError,
                       match='target_epsilon=0.001 at target_delta=0.0001 cannot be met') as error:
        accounting.calibrate_noise_multiplier(make_event, 0.001, 1e-4)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('delta', [0.0, 1.0, -1e-5, float('nan')])
def test_impossible_delta_is_refused(delta):
    with pytest.raises(ValueError, match='delta must be in'):
        accounting.epsilon(accounting.poisson_dp_sgd_event(1.0, 0.1, 10), delta)


@pytest.mark.parametrize('target', [0.0, -1.0, float('inf'), float('nan')])
def test_impossible_target_is_refused(target):
    with pytest.raises(ValueError, match='target_epsilon must be finite'):
        accounting.calibrate_noise_multiplier(lambda s: dp_accounting.GaussianDpEvent(s), target, 1e-5)


def test_unknown_accountant_is_refused():
    with pytest.raises(ValueError, match='accountant must be one of'):
        accounting.epsilon(dp_accounting.GaussianDpEvent(1.0), 1e-5, accountant='moments')
