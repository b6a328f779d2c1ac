"""Tests of what the network predicts."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import corruption
from tf_dpdiff.diffusion import parameterization
from tf_dpdiff.diffusion import process
from tf_dpdiff.diffusion import schedules

_SCHEDULE = schedules.Schedule('cosine', 1000)


def corrupted(t):
    """Returns x_start, noise, x_t and the two rates, at timestep t."""
    generator = np.random.default_rng(t)
    x_start = tf.constant(generator.uniform(-1, 1, [5, 4, 4, 3]), tf.float32)
    noise = tf.constant(generator.normal(size=[5, 4, 4, 3]), tf.float32)
    ts = tf.fill([5], t)
    return (
        x_start,
        noise,
        corruption.q_sample(_SCHEDULE, x_start, ts, noise),
        *corruption.gather_coefficients(_SCHEDULE, ts),
    )


@pytest.mark.parametrize('t', [1, 30, 300, 700, 970])
@pytest.mark.parametrize('name', parameterization.PARAMETERIZATIONS)
def test_target_leads_back_to_image_and_noise(name, t):
    x_start, noise, x_t, *rates = corrupted(t)
    target = parameterization.training_target(name, x_start, noise, *rates)
    x_start_again, noise_again = parameterization.to_x_start_and_noise(name, target, x_t, *rates)
    # What is divided by a small rate carries the rounding of x_t, of order 1e-7, divided by it.
    np.testing.assert_allclose(x_start_again, x_start, atol=2e-6 / float(rates[0][0, 0, 0, 0]))
    np.testing.assert_allclose(noise_again, noise, atol=2e-6 / float(rates[1][0, 0, 0, 0]))


@pytest.mark.parametrize('t', [1, 300, 970])
@pytest.mark.parametrize('name', parameterization.PARAMETERIZATIONS)
def test_any_prediction_stands_for_an_image_and_noise_that_make_x_t(name, t):
    # Holds for a prediction that is wrong, too.
    _, _, x_t, signal_rate, noise_rate = corrupted(t)
    prediction = tf.constant(np.random.default_rng(9).normal(size=x_t.shape), tf.float32)
    x_start, noise = parameterization.to_x_start_and_noise(name, prediction, x_t, signal_rate, noise_rate)
    np.testing.assert_allclose(signal_rate * x_start + noise_rate * noise, x_t, atol=1e-5)
    back = parameterization.training_target(name, x_start, noise, signal_rate, noise_rate)
    tolerance = 1e-5 / float(min(signal_rate[0, 0, 0, 0], noise_rate[0, 0, 0, 0]))
    np.testing.assert_allclose(back, prediction, atol=tolerance)


@pytest.mark.parametrize('t', [0, 300, 999])
def test_targets_are_those_of_their_papers(t):
    x_start, noise, x_t, signal_rate, noise_rate = corrupted(t)

    def target(name):
        return parameterization.training_target(name, x_start, noise, signal_rate, noise_rate).numpy()

    np.testing.assert_array_equal(target('epsilon'), noise)
    np.testing.assert_array_equal(target('x_start'), x_start)
    # v is the derivative of x_t by the angle whose cosine is the signal rate, and turns x_t back into the image.
    angle = np.arccos(np.float64(signal_rate[0, 0, 0, 0]))
    step = 1e-4
    x_after = np.cos(angle + step) * x_start.numpy().astype(float) + np.sin(angle + step) * noise.numpy().astype(float)
    x_before = np.cos(angle - step) * x_start.numpy().astype(float) + np.sin(angle - step) * noise.numpy().astype(float)
    np.testing.assert_allclose(target('v'), (x_after - x_before) / (2 * step), atol=2e-4)
    np.testing.assert_allclose(signal_rate * x_t - noise_rate * target('v'), x_start, atol=1e-5)


@pytest.mark.parametrize(
    'make',
    [
        lambda name: parameterization.check(name),
        lambda name: process.DiffusionProcess(parameterization=name),
        lambda name: parameterization.training_target(name, 0.0, 0.0, 1.0, 0.0),
        lambda name: parameterization.to_x_start_and_noise(name, 0.0, 0.0, 1.0, 0.0),
    ],
)
def test_unknown_parameterization_is_refused(make):
    with pytest.raises(ValueError, match="one of .*'epsilon', 'v', 'x_start'.* got 'score'"):
        make('score')
