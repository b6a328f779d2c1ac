"""Tests of the forward process and of the scaling of pixels."""

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff.diffusion import corruption
from tf_dpdiff.diffusion import schedules

_SCHEDULE = schedules.Schedule('cosine', 1000)


def looks_like_q(x_t, x_start, alpha_cumprod):
    """Tests that x_t [...] has the mean and the variance of q(x_t | x_start)."""
    z = (x_t - np.sqrt(alpha_cumprod) * x_start) / np.sqrt(1 - alpha_cumprod)
    mean = 2 * stats.norm.sf(abs(z.mean()) * np.sqrt(z.size))
    spread = (z**2).sum()
    spread = 2 * min(stats.chi2.cdf(spread, z.size), stats.chi2.sf(spread, z.size))
    return min(mean, spread) > 1e-4


def corrupt(t, x_start=0.6, schedule=_SCHEDULE, num=20_000, seed=0):
    noise = np.random.default_rng(seed).normal(size=[num, 2, 2, 1]).astype(np.float32)
    return corruption.q_sample(schedule, tf.fill(noise.shape, x_start), tf.fill([num], t), tf.constant(noise)).numpy()


@pytest.mark.parametrize('t', [0, 100, 500, 999])
def test_corrupted_images_have_the_mean_and_variance_of_q(t):
    assert looks_like_q(corrupt(t), 0.6, _SCHEDULE.alphas_cumprod[t])


@pytest.mark.parametrize('t', [100, 500])
def test_control_another_timestep_is_noticed(t):
    assert not looks_like_q(corrupt(t), 0.6, _SCHEDULE.alphas_cumprod[t + 20])


def test_corruption_is_its_formula_for_any_leading_axes():
    generator = np.random.default_rng(1)
    x_start = generator.uniform(-1, 1, [3, 4, 2, 5, 3]).astype(np.float32)
    noise = generator.normal(size=x_start.shape).astype(np.float32)
    t = generator.integers(0, 1000, [3, 4]).astype(np.int32)
    x_t = corruption.q_sample(_SCHEDULE, tf.constant(x_start), tf.constant(t), tf.constant(noise)).numpy()
    for unit, view in np.ndindex(3, 4):
        alpha = _SCHEDULE.alphas_cumprod[t[unit, view]]
        expected = np.sqrt(alpha) * x_start[unit, view] + np.sqrt(1 - alpha) * noise[unit, view]
        np.testing.assert_allclose(x_t[unit, view], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', schedules.SCHEDULES)
def test_variance_is_preserved_at_every_timestep(name):
    schedule = schedules.Schedule(name)
    signal, noise = corruption.gather_coefficients(schedule, tf.range(1000))
    assert signal.shape == noise.shape == (1000, 1, 1, 1)
    np.testing.assert_allclose(signal.numpy() ** 2 + noise.numpy() ** 2, 1.0, rtol=1e-6)
    # Neither is lost to float32.
    assert signal.numpy().min() > 0 and noise.numpy().min() > 0


def test_scaling_is_undone_for_all_levels():
    levels = np.arange(256, dtype=np.uint8)
    scaled = corruption.to_pm1(tf.constant(levels))
    assert scaled.dtype == tf.float32
    np.testing.assert_allclose(scaled, np.linspace(-1, 1, 256), atol=1e-6)
    np.testing.assert_array_equal(corruption.from_pm1(scaled), levels)
    assert corruption.from_pm1(scaled).dtype == tf.uint8


def test_levels_are_rounded_to_the_nearest():
    near = np.arange(256) + np.random.default_rng(0).uniform(-0.49, 0.49, 256)
    np.testing.assert_array_equal(corruption.from_pm1(tf.constant(near / 127.5 - 1, tf.float32)), np.arange(256))


@pytest.mark.parametrize('value, level', [(-1.001, 0), (-50.0, 0), (1.001, 255), (50.0, 255)])
def test_values_outside_of_the_range_are_cut_off(value, level):
    assert int(corruption.from_pm1(tf.constant(value))) == level
