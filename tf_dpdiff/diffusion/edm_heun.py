"""Sampler 'edm_heun': Heun's method on the probability flow, second order for two network evaluations a step."""

import numpy as np
import tensorflow as tf

from tf_dpdiff.diffusion import timestep_spacing
from tf_dpdiff.diffusion.schedules import Schedule


def edm_heun(
    predict_x_start: timestep_spacing.PredictXStart,
    schedule: Schedule,
    num_steps: int,
    draw_noise: timestep_spacing.DrawNoise,
) -> tf.Tensor:
    """Returns images that follow from the first draw of noise, at 2 * num_steps - 1 evaluations of the network.

    The paper's x is x_t / signal_rate, its sigma noise_rate / signal_rate and its slope d the predicted noise. A step
    goes to sigma_next along the slope here, and is corrected by half the difference to the slope found there. The last
    step, to sigma 0, is not corrected and ends at x_start.

    References: Karras et al. 2022, arXiv:2206.00364, Algorithm 1.
    """
    steps = timestep_spacing.spaced_in_sigma(schedule, num_steps)
    alphas, alphas_next = timestep_spacing.alphas_and_next(schedule, steps)
    signal_rates, noise_rates = np.sqrt(alphas), np.sqrt(1.0 - alphas)
    signal_next, noise_next = np.sqrt(alphas_next), np.sqrt(1.0 - alphas_next)
    # (sigma_next - sigma) / 2, in the scale of x_t.
    correction = (noise_next - signal_next * noise_rates / signal_rates) / 2.0
    table = np.stack([signal_rates, noise_rates, signal_next, noise_next, correction], axis=1)
    table, steps = tf.constant(table, tf.float32), tf.constant(steps)
    x_t = draw_noise(tf.constant(0))
    shape = x_t.shape
    for i in tf.range(num_steps - 1):
        signal_rate, noise_rate, signal_next, noise_next, correction = tf.unstack(table[i], num=5)
        x_start = predict_x_start(x_t, steps[i], signal_rate, noise_rate)
        slope = (x_t - signal_rate * x_start) / noise_rate
        x_t = signal_next * x_start + noise_next * slope
        x_start = predict_x_start(x_t, steps[i + 1], signal_next, noise_next)
        slope_there = (x_t - signal_next * x_start) / noise_next
        x_t = tf.ensure_shape(x_t + correction * (slope_there - slope), shape)
    return predict_x_start(x_t, steps[-1], table[-1, 0], table[-1, 1])
