"""Tests of the samplers, mostly with a denoiser that knows the distribution of the data."""

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff.diffusion import parameterization
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules

_IMAGE_SHAPE = (2, 2, 1)
_MEAN, _STDDEV = 0.1, 0.2  # Four standard deviations fit between the mean and the nearer end of [-1, 1].


def process_of(name='cosine', num_timesteps=20, predicts='v'):
    return process_lib.DiffusionProcess(schedules.Schedule(name, num_timesteps), predicts)


def gaussian_denoiser(process, mean=_MEAN, stddev=_STDDEV):
    """Returns the perfect denoiser of pixels that are independent N(mean, stddev^2): the posterior mean of x_start."""
    alphas_cumprod = tf.constant(process.schedule.alphas_cumprod, tf.float32)

    def denoiser(x_t, t):
        alpha = tf.gather(alphas_cumprod, t)[:, None, None, None]
        signal_rate, noise_rate = tf.sqrt(alpha), tf.sqrt(1 - alpha)
        gain = signal_rate * stddev**2 / (alpha * stddev**2 + 1 - alpha)
        x_start = mean + gain * (x_t - signal_rate * mean)
        noise = (x_t - signal_rate * x_start) / noise_rate
        return parameterization.training_target(process.parameterization, x_start, noise, signal_rate, noise_rate)

    return denoiser


def make_sampler(denoiser, process, config, image_shape=_IMAGE_SHAPE):
    """Returns a sampler in one tf.function for any batch size, as training and serving have it."""
    function = tf.function(
        lambda seeds: samplers.sample(denoiser, seeds, process=process, config=config, image_shape=image_shape),
        input_signature=[tf.TensorSpec([None], tf.int64)])
    return lambda seeds: function(tf.constant(seeds, tf.int64)).numpy()


def looks_gaussian(images, mean, stddev):
    """Tests that pixels are N(mean, stddev^2), independent of one another."""
    z = (images.reshape(len(images), -1) - mean) / stddev
    location = 2 * stats.norm.sf(abs(z.mean()) * np.sqrt(z.size))
    spread = (z**2).sum()
    spread = 2 * min(stats.chi2.cdf(spread, z.size), stats.chi2.sf(spread, z.size))
    # The mean over an image is as spread as that of independent pixels.
    of_images = ((z.mean(axis=1) * np.sqrt(z.shape[1]))**2).sum()
    of_images = 2 * min(stats.chi2.cdf(of_images, len(z)), stats.chi2.sf(of_images, len(z)))
    return min(location, spread, of_images) > 1e-4


@pytest.fixture(scope='module')
def gaussian_samples():
    cache = {}

    def sample(sampler, predicts):
        if (sampler, predicts) not in cache:
            # With fewer timesteps the error of the samplers themselves, 1% of the standard deviation, would show.
            process = process_of(num_timesteps=1000, predicts=predicts)
            config = samplers.SamplerConfig(sampler, 1000)
            cache[sampler, predicts] = make_sampler(gaussian_denoiser(process), process, config,
                                                    (6, 7, 1))(np.arange(60))
        return cache[sampler, predicts]

    return sample


_EVERY = [('ddim', 'epsilon'), ('ddim', 'v'), ('ddim', 'x_start'), ('ancestral', 'v')]


@pytest.mark.parametrize('sampler, predicts', _EVERY)
def test_samples_of_a_perfect_denoiser_have_the_distribution_of_the_data(gaussian_samples, sampler, predicts):
    assert looks_gaussian(gaussian_samples(sampler, predicts), _MEAN, _STDDEV)


@pytest.mark.parametrize('sampler', samplers.SAMPLERS)
@pytest.mark.parametrize('mean, stddev', [(_MEAN, _STDDEV * 0.9), (_MEAN, _STDDEV / 0.9), (_MEAN + 0.03, _STDDEV)])
def test_control_another_distribution_is_noticed(gaussian_samples, sampler, mean, stddev):
    assert not looks_gaussian(gaussian_samples(sampler, 'v'), mean, stddev)


def reference_steps(process, config, draws):
    """Samples with NumPy in float64; draws [steps + 1, ...] are the normal numbers, the first one where it starts.

    The generalised step of Song et al. 2021, equation 12, with eta 0 ('ddim') or 1 ('ancestral').
    """
    eta = {'ddim': 0.0, 'ancestral': 1.0}[config.name]
    timesteps = samplers.timestep_sequence(process.schedule.num_timesteps, config.num_steps)
    x = draws[0].astype(np.float64)
    for i, t in enumerate(timesteps):
        alpha = process.schedule.alphas_cumprod[t]
        alpha_next = process.schedule.alphas_cumprod[timesteps[i + 1]] if i + 1 < len(timesteps) else 1.0
        x_start = np.clip(np.tanh(x) + 0.3, -1, 1)  # As `nonlinear_denoiser`, the stand-in for a network.
        epsilon = (x - np.sqrt(alpha) * x_start) / np.sqrt(1 - alpha)
        sigma = eta * np.sqrt((1 - alpha_next) / (1 - alpha)) * np.sqrt(1 - alpha / alpha_next)
        x = np.sqrt(alpha_next) * x_start + np.sqrt(max(1 - alpha_next - sigma**2, 0)) * epsilon + sigma * draws[i + 1]
    return np.clip(x, -1, 1)


def nonlinear_denoiser(x_t, t):
    del t
    return tf.tanh(x_t) + 0.3


def seeded_draws(seeds, num_draws):
    """Returns the normal numbers that the sampler uses, [draws, seeds, *_IMAGE_SHAPE]."""
    function = tf.function(lambda draw: samplers.seeded_noise(tf.constant(seeds, tf.int64), draw, _IMAGE_SHAPE))
    return np.stack([function(tf.constant(i)) for i in range(num_draws)])


@pytest.mark.parametrize('sampler', samplers.SAMPLERS)
@pytest.mark.parametrize('schedule', schedules.SCHEDULES)
@pytest.mark.parametrize('num_steps', [1, 7, 20])
def test_sampler_follows_its_equation(sampler, schedule, num_steps):
    process, config = process_of(schedule, 20, 'x_start'), samplers.SamplerConfig(sampler, num_steps)
    seeds = np.arange(8)
    actual = make_sampler(nonlinear_denoiser, process, config)(seeds)
    np.testing.assert_allclose(actual, reference_steps(process, config, seeded_draws(seeds, num_steps + 1)), atol=2e-4)
    # Some of it was cut off, and some was not.
    assert 0.2 < (np.abs(actual) < 0.99).mean() < 1.0


def test_control_the_two_samplers_differ():
    process, seeds = process_of(predicts='x_start'), np.arange(8)
    draws = seeded_draws(seeds, 21)
    images = [reference_steps(process, samplers.SamplerConfig(name, 20), draws) for name in samplers.SAMPLERS]
    assert np.abs(images[0] - images[1]).max() > 0.05


def test_ancestral_step_is_the_posterior_of_ddpm():
    # With T = 4 timesteps and a denoiser that always answers the same image, each step draws from
    # q(x_{t-1} | x_t, x_start), equations 6 and 7 of Ho et al. 2020; the x_t that the denoiser is shown are recorded.
    process = process_of('linear', 4, 'x_start')
    x_start = tf.random.stateless_uniform([6, *_IMAGE_SHAPE], [0, 1], -0.9, 0.9)
    seen = []

    def denoiser(x_t, t):
        seen.append((x_t.numpy().astype(np.float64), int(t[0])))
        return x_start

    seeds = np.arange(6)
    samplers.sample(denoiser,
                    tf.constant(seeds, tf.int64),
                    process=process,
                    config=samplers.SamplerConfig('ancestral', 4),
                    image_shape=_IMAGE_SHAPE)
    draws = seeded_draws(seeds, 4)
    alphas_cumprod = process.schedule.alphas_cumprod
    assert [t for _, t in seen] == [3, 2, 1, 0]
    np.testing.assert_array_equal(seen[0][0], draws[0])
    for i, t in enumerate([3, 2, 1]):
        before, after = alphas_cumprod[t - 1], alphas_cumprod[t]
        alpha = after / before
        beta = 1 - alpha
        mean = (np.sqrt(before) * beta / (1 - after) * x_start.numpy() + np.sqrt(alpha) * (1 - before) /
                (1 - after) * seen[i][0])
        variance = (1 - before) / (1 - after) * beta
        np.testing.assert_allclose(seen[i + 1][0], mean + np.sqrt(variance) * draws[i + 1], atol=1e-5)


@pytest.mark.parametrize('sampler', samplers.SAMPLERS)
def test_image_depends_on_its_seed_alone(sampler):
    process, config = process_of(), samplers.SamplerConfig(sampler, 5)
    draw = make_sampler(gaussian_denoiser(process), process, config)
    seeds = np.array([5, 2**40, 7, 0, -3])
    images = draw(seeds)
    order = [3, 0, 4, 2, 1]
    np.testing.assert_array_equal(draw(seeds[order]), images[order])
    np.testing.assert_array_equal(draw(seeds[1:3]), images[1:3])
    np.testing.assert_array_equal(draw([7, 7, 7, 7, 7, 7, 7]), images[[2] * 7])


@pytest.mark.parametrize('sampler', samplers.SAMPLERS)
def test_different_seeds_give_different_images(sampler):
    process, config = process_of(), samplers.SamplerConfig(sampler, 5)
    # Seeds that share their low or their high 32 bits are told apart.
    seeds = np.array([0, 1, 2, -1, 2**31, 2**32, 2**32 + 1, 2**62])
    images = make_sampler(gaussian_denoiser(process), process, config)(seeds).reshape(len(seeds), -1)
    distances = np.abs(images[:, None] - images[None]).max(-1) + np.eye(len(seeds))
    assert distances.min() > 1e-3


def test_draws_of_one_image_are_independent_standard_normal():
    draws = seeded_draws(np.arange(300), 4).reshape(4, -1)
    assert stats.kstest(draws.reshape(-1), 'norm').pvalue > 1e-4
    correlations = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlations).max() < 5 / np.sqrt(draws.shape[1])
    # Draw d of seed s is not draw s of seed d.
    assert not np.allclose(seeded_draws([1], 3)[2], seeded_draws([2], 2)[1])


@pytest.mark.parametrize('sampler', samplers.SAMPLERS)
def test_samples_are_cut_off_at_the_ends_of_the_range(sampler):
    process = process_of(predicts='x_start')
    draw = make_sampler(lambda x_t, t: tf.ones_like(x_t) * 3.0, process, samplers.SamplerConfig(sampler, 20))
    np.testing.assert_allclose(draw([0, 1]), 1.0, atol=1e-6)


@pytest.mark.parametrize('num_timesteps, num_steps', [(1000, 2), (1000, 50), (1000, 999), (1000, 1000), (2, 2), (7, 4)])
def test_timesteps_are_visited_evenly_from_the_last_to_the_first(num_timesteps, num_steps):
    sequence = samplers.timestep_sequence(num_timesteps, num_steps)
    assert sequence.dtype == np.int32 and len(sequence) == num_steps
    assert sequence[0] == num_timesteps - 1 and sequence[-1] == 0
    gaps = -np.diff(sequence)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_a_single_step_starts_from_pure_noise():
    assert samplers.timestep_sequence(1000, 1).tolist() == [999]


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(ValueError, match='num_steps=21 of the sampler exceeds the schedule\'s 20 timesteps'):
        make_sampler(nonlinear_denoiser, process_of(), samplers.SamplerConfig('ddim', 21))([0])


@pytest.mark.parametrize('arguments, message', [
    ({
        'name': 'euler'
    }, "one of .*'ddim', 'ancestral'.* got 'euler'"),
    ({
        'num_steps': 0
    }, 'num_steps of the sampler must be at least 1, got 0'),
])
def test_bad_sampler_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        samplers.SamplerConfig(**arguments)


def test_image_sampler_passes_labels_on_and_returns_pixels():
    process, config = process_of(predicts='x_start'), samplers.SamplerConfig('ddim', 3)
    levels = tf.constant([0, 3, 128, 255])

    def model(inputs, training):
        x_t, t, labels = inputs
        assert training is False and t.dtype == tf.int32
        x_start = tf.gather(tf.cast(levels, tf.float32), labels) / 127.5 - 1.0
        return tf.ones_like(x_t) * x_start[:, None, None, None]

    sample_images = samplers.make_image_sampler(model, process=process, config=config, image_shape=(3, 5, 2))
    images = tf.function(sample_images)(tf.constant([2, 0, 1, 3, 1]), tf.range(5, dtype=tf.int64))
    assert images.dtype == tf.uint8 and images.shape == (5, 3, 5, 2)
    expected = np.array([128, 0, 3, 255, 3])[:, None, None, None]
    np.testing.assert_array_equal(images, np.broadcast_to(expected, images.shape))
