"""Tests of what samplers make of a denoiser that knows the distribution of the data."""

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff.diffusion import parameterization
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules

_MEAN, _STDDEV = 0.1, 0.2  # Four standard deviations fit between the mean and the nearer end of [-1, 1].
_SECOND_ORDER = ('dpmpp_2m', 'edm_heun')


def process_of(predicts='v', schedule='cosine'):
    return process_lib.DiffusionProcess(schedules.Schedule(schedule, 1000), predicts)


def gaussian_denoiser(process):
    """Returns the perfect denoiser of pixels that are independent N(_MEAN, _STDDEV^2): the posterior mean of
    x_start."""
    alphas_cumprod = tf.constant(process.schedule.alphas_cumprod, tf.float32)

    def denoiser(x_t, t, labels):
        del labels
        alpha = tf.gather(alphas_cumprod, t)[:, None, None, None]
        signal_rate, noise_rate = tf.sqrt(alpha), tf.sqrt(1 - alpha)
        gain = signal_rate * _STDDEV**2 / (alpha * _STDDEV**2 + 1 - alpha)
        x_start = _MEAN + gain * (x_t - signal_rate * _MEAN)
        noise = (x_t - signal_rate * x_start) / noise_rate
        return parameterization.training_target(process.parameterization, x_start, noise, signal_rate, noise_rate)

    return denoiser


def looks_gaussian(images, mean, stddev):
    """Tests that pixels are N(mean, stddev^2), independent of one another."""
    z = (images.reshape(len(images), -1) - mean) / stddev
    location = 2 * stats.norm.sf(abs(z.mean()) * np.sqrt(z.size))
    spread = (z**2).sum()
    spread = 2 * min(stats.chi2.cdf(spread, z.size), stats.chi2.sf(spread, z.size))
    # The mean over an image is as spread as that of independent pixels.
    of_images = ((z.mean(axis=1) * np.sqrt(z.shape[1])) ** 2).sum()
    of_images = 2 * min(stats.chi2.cdf(of_images, len(z)), stats.chi2.sf(of_images, len(z)))
    return min(location, spread, of_images) > 1e-4


@pytest.fixture(scope='module', name='gaussian_samples')
def fixture_gaussian_samples(make_sampler):
    cache = {}

    def sample(sampler, predicts):
        if (sampler, predicts) not in cache:
            process = process_of(predicts)
            # With fewer steps the error of the samplers themselves, 1% of the standard deviation, would show.
            config = samplers.SamplerConfig(sampler, 100 if sampler in _SECOND_ORDER else 1000)
            draw = make_sampler(gaussian_denoiser(process), process, config, image_shape=(6, 7, 1))
            cache[sampler, predicts] = draw(np.arange(60))
        return cache[sampler, predicts]

    return sample


_EVERY = [
    ('ddim', 'epsilon'),
    ('ddim', 'v'),
    ('ddim', 'x_start'),
    ('ancestral', 'v'),
    ('dpmpp_2m', 'v'),
    ('edm_heun', 'v'),
]


@pytest.mark.parametrize('sampler, predicts', _EVERY)
def test_samples_of_a_perfect_denoiser_have_the_distribution_of_the_data(gaussian_samples, sampler, predicts):
    assert looks_gaussian(gaussian_samples(sampler, predicts), _MEAN, _STDDEV)


@pytest.mark.parametrize('sampler', samplers.SAMPLERS)
@pytest.mark.parametrize('mean, stddev', [(_MEAN, _STDDEV * 0.9), (_MEAN, _STDDEV / 0.9), (_MEAN + 0.03, _STDDEV)])
def test_control_another_distribution_is_noticed(gaussian_samples, sampler, mean, stddev):
    assert not looks_gaussian(gaussian_samples(sampler, 'v'), mean, stddev)


@pytest.fixture(scope='module', name='flow_error')
def fixture_flow_error():
    """Returns how far a sampler ends from where the probability flow leads the same noise, root mean square.

    In Karras et al. 2022, equation 1, the flow is dx/dsigma = (x - D(x; sigma)) / sigma. For Gaussian data x - mean is
    proportional to sqrt(stddev^2 + sigma^2).
    """
    cache = {}
    seeds = np.arange(40)
    noise = samplers.seeded_noise(tf.constant(seeds, tf.int64), tf.constant(0), (6, 7, 1)).numpy().astype(np.float64)

    def error(sampler, num_steps):
        if (sampler, num_steps) not in cache:
            process = process_of()
            seen = []

            def denoiser(x_t, t, labels):
                seen.append(t[0])
                return gaussian_denoiser(process)(x_t, t, labels)

            config = samplers.SamplerConfig(sampler, num_steps, thresholding='none')
            images = samplers.sample(
                denoiser,
                tf.zeros([len(seeds)], tf.int32),
                tf.constant(seeds, tf.int64),
                process=process,
                config=config,
                image_shape=(6, 7, 1),
                num_classes=0,
            ).numpy()
            first = process.schedule.alphas_cumprod[int(seen[0])]
            sigma = np.sqrt(1 / first - 1)
            expected = _MEAN + (noise / np.sqrt(first) - _MEAN) * _STDDEV / np.sqrt(_STDDEV**2 + sigma**2)
            error = np.sqrt(np.mean((images - expected) ** 2))
            cache[sampler, num_steps] = error, len(seen)
        return cache[sampler, num_steps]

    return error


@pytest.mark.parametrize('sampler, order', [('ddim', 1), ('dpmpp_2m', 2), ('edm_heun', 2)])
def test_error_falls_with_the_order_of_the_sampler(flow_error, sampler, order):
    # The orders are each other's control.
    ratio = flow_error(sampler, 25)[0] / flow_error(sampler, 50)[0]
    assert 2 ** (order - 0.3) < ratio < 2 ** (order + 0.5)


@pytest.mark.parametrize('sampler, num_steps', [('dpmpp_2m', 12), ('dpmpp_2m', 25), ('edm_heun', 25)])
def test_second_order_is_nearer_than_ddim_at_equal_cost(flow_error, sampler, num_steps):
    error, num_evaluations = flow_error(sampler, num_steps)
    of_ddim, as_many = flow_error('ddim', num_evaluations)
    assert num_evaluations == as_many == (2 * num_steps - 1 if sampler == 'edm_heun' else num_steps)
    assert error < 0.6 * of_ddim


class Mixture:
    """Images of 2x2 pixels from a mixture of Gaussians, well inside [-1, 1], and their perfect denoiser."""

    def __init__(self, weights=(0.5, 0.3, 0.2)):
        self.weights = np.array(weights)
        self.means = np.array([[0.4, -0.3, 0.1, 0.5], [-0.5, 0.2, -0.1, -0.4], [0.0, 0.5, -0.5, 0.1]])
        self.stddevs = np.array([0.1, 0.15, 0.08])

    def moments(self):
        """Returns the mean, [4], and the covariance, [4, 4]."""
        mean = self.weights @ self.means
        around = self.means - mean
        within = (self.weights @ self.stddevs**2) * np.eye(4)
        return mean, within + np.einsum('k,ki,kj->ij', self.weights, around, around)

    def denoiser(self, process):
        """Returns the posterior mean of x_start, in closed form, as what the process predicts."""
        alphas_cumprod = tf.constant(process.schedule.alphas_cumprod)

        def denoise(x_t, t, labels):
            del labels
            x = tf.cast(tf.reshape(x_t, [-1, 4]), tf.float64)
            alpha = tf.gather(alphas_cumprod, t)[:, None]
            signal_rate, noise_rate = tf.sqrt(alpha), tf.sqrt(1 - alpha)
            variances = alpha * self.stddevs**2 + 1 - alpha  # Of x_t in each component, [batch, 3].
            distances = x[:, None] - signal_rate[:, :, None] * self.means
            log_likelihoods = -tf.reduce_sum(distances**2, -1) / (2 * variances) - 2 * tf.math.log(variances)
            shares = tf.nn.softmax(np.log(self.weights) + log_likelihoods)
            gains = signal_rate * self.stddevs**2 / variances
            x_start = tf.reduce_sum(shares[..., None] * (self.means + gains[..., None] * distances), 1)
            noise = (x - signal_rate * x_start) / noise_rate
            target = parameterization.training_target(process.parameterization, x_start, noise, signal_rate, noise_rate)
            return tf.cast(tf.reshape(target, tf.shape(x_t)), tf.float32)

        return denoise


@pytest.fixture(scope='module', name='mixture_error')
def fixture_mixture_error(make_sampler):
    """Returns how far the mean or the covariance of samples is from that of the mixture, at most."""
    num_images = 15_000
    cache = {}

    def draw_all_at_once(seeds, draw, image_shape):
        del seeds
        return tf.random.stateless_normal([num_images, *image_shape], tf.stack([7, tf.cast(draw, tf.int32)]))

    def error(sampler, num_steps, predicts='v', schedule='cosine', mixture=Mixture()):
        if (sampler, num_steps, predicts, schedule) not in cache:
            process = process_of(predicts, schedule)
            config = samplers.SamplerConfig(sampler, num_steps, thresholding='none')
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(samplers, 'seeded_noise', draw_all_at_once)  # Seed by seed takes long.
                images = make_sampler(Mixture().denoiser(process), process, config)(np.zeros([num_images]))
            cache[sampler, num_steps, predicts, schedule] = images.reshape(num_images, 4)
        images = cache[sampler, num_steps, predicts, schedule]
        mean, covariance = mixture.moments()
        return max(np.abs(images.mean(0) - mean).max(), np.abs(np.cov(images.T) - covariance).max())

    return error


# Of the mean, drawing that many images leaves an error of 0.003 or so.
_TOLERANCE = 0.015


@pytest.mark.parametrize('sampler', samplers.SAMPLERS)
@pytest.mark.parametrize('predicts', parameterization.PARAMETERIZATIONS)
def test_samples_have_the_mean_and_covariance_of_a_mixture(mixture_error, sampler, predicts):
    assert mixture_error(sampler, 50, predicts) < _TOLERANCE
    # Control: other weights.
    assert mixture_error(sampler, 50, predicts, mixture=Mixture((0.4, 0.4, 0.2))) > 4 * _TOLERANCE


@pytest.mark.parametrize('sampler', samplers.SAMPLERS)
def test_samples_have_the_mean_and_covariance_of_a_mixture_with_the_linear_schedule(mixture_error, sampler):
    assert mixture_error(sampler, 50, schedule='linear') < _TOLERANCE


@pytest.mark.parametrize('sampler', samplers.SAMPLERS)
def test_error_falls_as_steps_grow(mixture_error, sampler):
    errors = [mixture_error(sampler, num_steps) for num_steps in (5, 15, 50)]
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2
    # Control: too few steps are noticed.
    assert errors[0] > 3 * _TOLERANCE
