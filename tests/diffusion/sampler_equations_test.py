"""Tests of each sampler against NumPy in float64, written from the formulas of its paper."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.diffusion import timestep_spacing

_IMAGE_SHAPE = (2, 2, 1)
_NUM_TIMESTEPS = 20


def process_of(schedule, num_timesteps=_NUM_TIMESTEPS):
    return process_lib.DiffusionProcess(schedules.Schedule(schedule, num_timesteps), 'x_start')


def denoiser(x_t, t, labels):
    """Stands in for a network that predicts x_start: not linear, and another one at each timestep."""
    del labels
    return tf.sin(2.0 * x_t) * (1.4 - 0.03 * tf.cast(t, tf.float32)[:, None, None, None]) + 0.3


def predict(x_t, t, thresholding):
    """Returns the prediction of `denoiser` at timestep t, kept within range."""
    x_start = np.sin(2.0 * x_t) * (1.4 - 0.03 * t) + 0.3
    if thresholding == 'none':
        return x_start
    if thresholding == 'static':
        return np.clip(x_start, -1, 1)
    s = np.maximum(np.percentile(np.abs(x_start), 99.5, axis=(1, 2, 3), keepdims=True), 1.0)
    return np.clip(x_start, -s, s) / s


def seeded_draws(seeds, num_draws):
    """Returns the normal numbers that the samplers use, [draws, seeds, *_IMAGE_SHAPE]."""
    function = tf.function(lambda draw: samplers.seeded_noise(tf.constant(seeds, tf.int64), draw, _IMAGE_SHAPE))
    return np.stack([function(tf.constant(i)) for i in range(num_draws)]).astype(np.float64)


def generalised_reference(schedule, config, draws, eta):
    """Song et al. 2021, equations 12 and 16."""
    alphas_cumprod = schedule.alphas_cumprod
    timesteps = timestep_spacing.evenly_spaced(schedule, config.num_steps)
    x = draws[0]
    for i, t in enumerate(timesteps):
        alpha = alphas_cumprod[t]
        alpha_next = alphas_cumprod[timesteps[i + 1]] if i + 1 < len(timesteps) else 1.0
        x_start = predict(x, t, config.thresholding)
        epsilon = (x - np.sqrt(alpha) * x_start) / np.sqrt(1 - alpha)
        sigma = eta * np.sqrt((1 - alpha_next) / (1 - alpha)) * np.sqrt(1 - alpha / alpha_next)
        x = np.sqrt(alpha_next) * x_start + np.sqrt(max(1 - alpha_next - sigma**2, 0)) * epsilon + sigma * draws[i + 1]
    return x


def dpmpp_2m_reference(schedule, config, draws):
    """Lu et al. 2022, Algorithm 2, whose M is num_steps - 1 here; then a step to the clean image, which is x_theta."""
    timesteps = timestep_spacing.spaced_in_sigma(schedule, config.num_steps)
    alpha, sigma = (np.sqrt(a[timesteps]) for a in (schedule.alphas_cumprod, 1 - schedule.alphas_cumprod))
    lambdas = np.log(alpha / sigma)
    x = draws[0]
    q = [predict(x, timesteps[0], config.thresholding)]
    h = [None]
    for i in range(1, len(timesteps)):
        h.append(lambdas[i] - lambdas[i - 1])
        d = q[-1]
        if i >= 2:
            r = h[i - 1] / h[i]
            d = (1 + 1 / (2 * r)) * q[-1] - 1 / (2 * r) * q[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h[i]) - 1) * d
        q.append(predict(x, timesteps[i], config.thresholding))
    return q[-1]


def edm_heun_reference(schedule, config, draws):
    """Karras et al. 2022, Algorithm 1 with sigma(t) = t and s(t) = 1: x is x_t over the signal rate."""
    timesteps = timestep_spacing.spaced_in_sigma(schedule, config.num_steps)
    alphas_cumprod = schedule.alphas_cumprod[timesteps]
    t = np.append(np.sqrt(1 / alphas_cumprod - 1), 0.0)
    x = draws[0] / np.sqrt(alphas_cumprod[0])

    def slope(x, i):
        return (x - predict(x / np.sqrt(1 + t[i] ** 2), timesteps[i], config.thresholding)) / t[i]

    for i in range(len(timesteps)):
        d = slope(x, i)
        x_next = x + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            x_next = x + (t[i + 1] - t[i]) * (d / 2 + slope(x_next, i + 1) / 2)
        x = x_next
    return x


_REFERENCES = {
    'ddim': lambda *args: generalised_reference(*args, eta=0.0),
    'ancestral': lambda *args: generalised_reference(*args, eta=1.0),
    'dpmpp_2m': dpmpp_2m_reference,
    'edm_heun': edm_heun_reference,
}


def reference(process, config, draws):
    return np.clip(_REFERENCES[config.name](process.schedule, config, draws), -1, 1)


@pytest.mark.parametrize('sampler', samplers.SAMPLERS)
@pytest.mark.parametrize(
    'schedule, num_steps, thresholding',
    [
        ('cosine', 1, 'static'),
        ('linear', 2, 'static'),
        ('linear', 7, 'none'),
        ('cosine', 12, 'dynamic'),
        ('cosine', 20, 'static'),
        ('linear', 20, 'dynamic'),
    ],
)
def test_sampler_follows_its_equations(make_sampler, sampler, schedule, num_steps, thresholding):
    process = process_of(schedule)
    config = samplers.SamplerConfig(sampler, num_steps, thresholding=thresholding)
    seeds = np.arange(8)
    actual = make_sampler(denoiser, process, config)(seeds)
    np.testing.assert_allclose(actual, reference(process, config, seeded_draws(seeds, num_steps + 1)), atol=2e-4)
    # Some of it was cut off, and some was not.
    assert 0.0 < (np.abs(actual) < 0.99).mean() < 1.0


def test_control_the_samplers_differ():
    draws = seeded_draws(np.arange(8), 13)
    images = [reference(process_of('cosine'), samplers.SamplerConfig(name, 12), draws) for name in samplers.SAMPLERS]
    images += [
        reference(process_of('cosine'), samplers.SamplerConfig('dpmpp_2m', 12, thresholding=thresholding), draws)
        for thresholding in ('dynamic', 'none')
    ]
    for i, first in enumerate(images):
        assert all(np.abs(first - second).max() > 0.01 for second in images[:i])


def test_ancestral_step_is_the_posterior_of_ddpm():
    # With T = 4 timesteps and a denoiser that always answers the same image, each step draws from
    # q(x_{t-1} | x_t, x_start), equations 6 and 7 of Ho et al. 2020; the x_t that the denoiser is shown are recorded.
    process = process_of('linear', 4)
    x_start = tf.random.stateless_uniform([6, *_IMAGE_SHAPE], [0, 1], -0.9, 0.9)
    seen = []

    def recorder(x_t, t, unused_labels):
        seen.append((x_t.numpy().astype(np.float64), int(t[0])))
        return x_start

    seeds = np.arange(6)
    samplers.sample(
        recorder,
        tf.zeros([6], tf.int32),
        tf.constant(seeds, tf.int64),
        process=process,
        config=samplers.SamplerConfig('ancestral', 4),
        image_shape=_IMAGE_SHAPE,
        num_classes=0,
    )
    draws = seeded_draws(seeds, 4)
    alphas_cumprod = process.schedule.alphas_cumprod
    assert [t for _, t in seen] == [3, 2, 1, 0]
    np.testing.assert_array_equal(seen[0][0], draws[0])
    for i, t in enumerate([3, 2, 1]):
        before, after = alphas_cumprod[t - 1], alphas_cumprod[t]
        alpha = after / before
        beta = 1 - alpha
        mean = (
            np.sqrt(before) * beta / (1 - after) * x_start.numpy()
            + np.sqrt(alpha) * (1 - before) / (1 - after) * seen[i][0]
        )
        variance = (1 - before) / (1 - after) * beta
        np.testing.assert_allclose(seen[i + 1][0], mean + np.sqrt(variance) * draws[i + 1], atol=1e-5)
