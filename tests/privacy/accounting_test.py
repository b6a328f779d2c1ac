"""Tests of the accountant against closed forms, published numbers, and itself."""

import math

import dp_accounting
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
           (302436, 16384, 200, 3e-6, 0.763, 10.0), (60000, 4096, 4000, 1e-5, 16.222, 1.0),
           (50000, 16384, 200, 1e-5, 17.384, 1.0), (302436, 16384, 200, 3e-6, 3.259, 1.0)]


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
