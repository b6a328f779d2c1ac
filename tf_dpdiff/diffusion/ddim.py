"""Samplers 'ddim' and 'ancestral': one family, without and with fresh noise in each step."""

import numpy as np
import tensorflow as tf

from tf_dpdiff.diffusion import timestep_spacing
from tf_dpdiff.diffusion.schedules import Schedule


def ddim(
    predict_x_start: timestep_spacing.PredictXStart,
    schedule: Schedule,
    num_steps: int,
    draw_noise: timestep_spacing.DrawNoise,
) -> tf.Tensor:
    """Returns images that follow from the first draw of noise; first order in the length of a step.

    References: Song et al. 2021, arXiv:2010.02502, equation 12 with sigma 0.
    """
    return _generalised(predict_x_start, schedule, num_steps, draw_noise, is_ancestral=False)


def ancestral(
    predict_x_start: timestep_spacing.PredictXStart,
    schedule: Schedule,
    num_steps: int,
    draw_noise: timestep_spacing.DrawNoise,
) -> tf.Tensor:
    """Returns images drawn with the posterior of the forward process, which wants many steps.

    References: Ho et al. 2020, arXiv:2006.11239, Algorithm 2; Song et al. 2021, equation 12 with the sigma of equation
    16 for eta 1, which also covers steps over several timesteps.
    """
    return _generalised(predict_x_start, schedule, num_steps, draw_noise, is_ancestral=True)


def _generalised(predict_x_start, schedule, num_steps, draw_noise, *, is_ancestral):
    """Steps of x_next = signal_next * x_start + noise_next * predicted noise + fresh * fresh noise."""
    steps = timestep_spacing.evenly_spaced(schedule, num_steps)
    alphas, alphas_next = timestep_spacing.alphas_and_next(schedule, steps)
    variance = (1.0 - alphas_next) / (1.0 - alphas) * (1.0 - alphas / alphas_next) * is_ancestral
    noise_next = np.sqrt(np.maximum(1.0 - alphas_next - variance, 0.0))
    table = [np.sqrt(alphas), np.sqrt(1.0 - alphas), np.sqrt(alphas_next), noise_next, np.sqrt(variance)]
    table, steps = tf.constant(np.stack(table, axis=1), tf.float32), tf.constant(steps)
    x_t = draw_noise(tf.constant(0))
    shape = x_t.shape
    for i in tf.range(num_steps):
        signal_rate, noise_rate, signal_next, noise_next, fresh = tf.unstack(table[i], num=5)
        x_start = predict_x_start(x_t, steps[i], signal_rate, noise_rate)
        noise = (x_t - signal_rate * x_start) / noise_rate  # Of the image in range, so that x_t is consistent with it.
        x_t = signal_next * x_start + noise_next * noise
        if is_ancestral:
            x_t += fresh * draw_noise(i + 1)
        x_t = tf.ensure_shape(x_t, shape)
    return x_t
