"""Sampler 'dpmpp_2m': DPM-Solver++(2M), second order for one network evaluation a step."""

import numpy as np
import tensorflow as tf

from tf_dpdiff.diffusion import timestep_spacing
from tf_dpdiff.diffusion.schedules import Schedule


def dpmpp_2m(
    predict_x_start: timestep_spacing.PredictXStart,
    schedule: Schedule,
    num_steps: int,
    draw_noise: timestep_spacing.DrawNoise,
) -> tf.Tensor:
    """Returns images that follow from the first draw of noise.

    With lambda = log(signal rate / noise rate), a step of length h in lambda is

        x_next = noise_next / noise_rate * x_t + signal_next * (1 - exp(-h)) * D,
        D = x_start + h / (2 * previous h) * (x_start - previous x_start).

    The first step knows no previous x_start and the last one, to the clean image, has no finite length: both are of
    first order, D = x_start, for any number of steps. The timesteps, which the paper leaves open, are those of the EDM
    sampler: evenly spaced ones make the last steps so much longer in lambda than the ones before that extrapolating
    loses to DDIM.

    References: Lu et al. 2022, arXiv:2211.01095, Algorithm 2.
    """
    steps = timestep_spacing.spaced_in_sigma(schedule, num_steps)
    alphas, alphas_next = timestep_spacing.alphas_and_next(schedule, steps)
    signal_rates, noise_rates = np.sqrt(alphas), np.sqrt(1.0 - alphas)
    signal_next, noise_next = np.sqrt(alphas_next), np.sqrt(1.0 - alphas_next)
    lambdas = np.log(signal_rates / noise_rates)
    h = np.diff(lambdas)  # Of all steps but the last one.
    extrapolation = np.zeros([num_steps])
    extrapolation[1:-1] = h[1:] / (2.0 * h[:-1])
    decay = signal_rates * noise_next / (noise_rates * signal_next)  # exp(-h), 0 for the last step.
    table = [signal_rates, noise_rates, noise_next / noise_rates, signal_next * (1.0 - decay), extrapolation]
    table, steps = tf.constant(np.stack(table, axis=1), tf.float32), tf.constant(steps)
    x_t = draw_noise(tf.constant(0))
    shape = x_t.shape
    previous = tf.zeros_like(x_t)
    for i in tf.range(num_steps):
        signal_rate, noise_rate, of_x_t, of_image, of_change = tf.unstack(table[i], num=5)
        x_start = predict_x_start(x_t, steps[i], signal_rate, noise_rate)
        x_t = of_x_t * x_t + of_image * (x_start + of_change * (x_start - previous))
        x_t = tf.ensure_shape(x_t, shape)
        previous = tf.ensure_shape(x_start, shape)
    return x_t
