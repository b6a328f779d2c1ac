"""Tests of the noise schedules."""

import numpy as np
import pytest

from tf_dpdiff.diffusion import schedules


def test_linear_schedule_has_the_betas_of_its_paper():
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(schedules.Schedule('linear', 1000).alphas_cumprod, np.cumprod(1.0 - betas), rtol=1e-12)


@pytest.mark.parametrize('num_timesteps', [200, 500, 4000])
def test_linear_schedule_ends_at_the_same_noise_with_another_number_of_timesteps(num_timesteps):
    # The logarithm of what is left of the signal is the sum of the betas, to first order.
    log_end = np.log(schedules.Schedule('linear', num_timesteps).alphas_cumprod[-1])
    np.testing.assert_allclose(log_end, np.log(schedules.Schedule('linear', 1000).alphas_cumprod[-1]), rtol=0.05)


@pytest.mark.parametrize('num_timesteps', [4, 1000])
def test_cosine_schedule_is_that_of_its_paper(num_timesteps):

    def f(t):
        return np.cos((t / num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2

    expected, alpha_cumprod = [], 1.0
    for t in range(1, num_timesteps + 1):
        # The paper's alphas_cumprod[t] is f(t) / f(0); beta follows from two of them and is cut off at 0.999.
        beta = min(1 - (f(t) / f(0)) / (f(t - 1) / f(0)), 0.999)
        alpha_cumprod *= 1 - beta
        expected.append(alpha_cumprod)
    actual = schedules.Schedule('cosine', num_timesteps).alphas_cumprod
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    # Where the betas are not cut off, that is f(t) / f(0) itself.
    t = np.arange(1, num_timesteps)
    np.testing.assert_allclose(actual[:-1], f(t) / f(0), rtol=1e-9)
    np.testing.assert_allclose(actual[-1] / actual[-2], 0.001, rtol=1e-9)


@pytest.mark.parametrize('name', schedules.SCHEDULES)
@pytest.mark.parametrize('num_timesteps', [2, 3, 10, 1000])
def test_noise_grows_with_the_timestep(name, num_timesteps):
    alphas_cumprod = schedules.Schedule(name, num_timesteps).alphas_cumprod
    assert alphas_cumprod.shape == (num_timesteps,) and alphas_cumprod.dtype == np.float64
    assert (alphas_cumprod > 0).all() and (alphas_cumprod < 1).all()
    assert (np.diff(alphas_cumprod) < 0).all()


@pytest.mark.parametrize('name', schedules.SCHEDULES)
def test_sigma_is_noise_over_signal(name):
    schedule = schedules.Schedule(name, 1000)
    signal_rates, noise_rates = np.sqrt(schedule.alphas_cumprod), np.sqrt(1 - schedule.alphas_cumprod)
    np.testing.assert_allclose(schedule.sigmas, noise_rates / signal_rates, rtol=1e-12)
    assert (np.diff(schedule.sigmas) > 0).all()


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="one of .*'cosine'.* got 'quadratic'"):
        schedules.Schedule('quadratic')


@pytest.mark.parametrize('num_timesteps', [1, 0, -5])
def test_too_few_timesteps_are_refused(num_timesteps):
    with pytest.raises(ValueError, match=f'num_timesteps must be at least 2, got {num_timesteps}'):
        schedules.Schedule('cosine', num_timesteps)
