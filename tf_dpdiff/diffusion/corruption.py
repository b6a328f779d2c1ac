"""The forward process: clean images to noisy ones."""

import numpy as np
import tensorflow as tf

from tf_dpdiff.diffusion.schedules import Schedule


def gather_coefficients(schedule: Schedule, t: tf.Tensor):
    """Returns sqrt(alphas_cumprod[t]) and sqrt(1 - alphas_cumprod[t]), float32 [..., 1, 1, 1] for t [...]."""
    alphas_cumprod = schedule.alphas_cumprod
    signal = tf.gather(tf.constant(np.sqrt(alphas_cumprod), tf.float32), t)
    noise = tf.gather(tf.constant(np.sqrt(1.0 - alphas_cumprod), tf.float32), t)
    return signal[..., None, None, None], noise[..., None, None, None]


def q_sample(schedule: Schedule, x_start: tf.Tensor, t: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Draws from q(x_t | x_start), given the noise.

    Args:
      schedule: The noise schedule.
      x_start: float32 [..., height, width, channels] in [-1, 1].
      t: int32 [...].
      noise: float32, standard normal, shape of x_start.

    Returns:
      x_t, float32, shape of x_start.

    References: Ho et al. 2020, arXiv:2006.11239, equation 4.
    """
    signal_rate, noise_rate = gather_coefficients(schedule, t)
    return signal_rate * x_start + noise_rate * noise


def to_pm1(images_uint8: tf.Tensor) -> tf.Tensor:
    """Scales uint8 in [0, 255] to float32 in [-1, 1]."""
    return tf.cast(images_uint8, tf.float32) / 127.5 - 1.0


def from_pm1(images_pm1: tf.Tensor) -> tf.Tensor:
    """Inverse of `to_pm1`, rounding to the nearest of the 256 levels and cutting off what is outside of [-1, 1]."""
    return tf.cast(tf.round(tf.clip_by_value((images_pm1 + 1.0) * 127.5, 0.0, 255.0)), tf.uint8)
