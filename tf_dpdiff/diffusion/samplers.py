"""Samplers: from noise to images, one image a seed."""

import dataclasses
from typing import Callable

import numpy as np
import tensorflow as tf

from tf_dpdiff.diffusion import corruption
from tf_dpdiff.diffusion import parameterization as parameterization_lib
from tf_dpdiff.diffusion.process import DiffusionProcess

SAMPLERS = ('ddim', 'ancestral')


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Which sampler, and with how many steps.

    Attributes:
      name: 'ddim' (deterministic after the first draw) or 'ancestral' (the DDPM posterior; fresh noise in each step).
      num_steps: Network evaluations an image, 1 to the schedule's num_timesteps. DDIM does with tens, ancestral wants
        all.

    References: Song et al. 2021, arXiv:2010.02502, equation 12; Ho et al. 2020, arXiv:2006.11239, Algorithm 2.
    """
    name: str = 'ddim'
    num_steps: int = 50

    def __post_init__(self):
        if self.name not in SAMPLERS:
            raise ValueError(f'the name of a sampler must be one of {SAMPLERS}, got {self.name!r}.')
        if self.num_steps < 1:
            raise ValueError(f'num_steps of the sampler must be at least 1, got {self.num_steps}.')


def timestep_sequence(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Returns the timesteps that a sampler visits, evenly spaced, from num_timesteps - 1 down to 0; int32
    [num_steps]."""
    if num_steps > num_timesteps:
        raise ValueError(f'num_steps={num_steps} of the sampler exceeds the schedule\'s {num_timesteps} timesteps.')
    return np.linspace(num_timesteps - 1, 0, num_steps).round().astype(np.int32)


def seeded_noise(seeds: tf.Tensor, draw: tf.Tensor, image_shape) -> tf.Tensor:
    """Returns standard normal noise that depends on each image's own seed alone.

    Args:
      seeds: int64 [batch].
      draw: int64 scalar, which draw of the image this is.
      image_shape: (height, width, channels).

    Returns:
      float32 [batch, height, width, channels].
    """
    draw = tf.cast(draw, tf.int64)
    return tf.map_fn(lambda seed: tf.random.stateless_normal(image_shape, tf.stack([seed, draw]), alg='philox'),
                     seeds,
                     fn_output_signature=tf.TensorSpec(image_shape, tf.float32))


def sample(denoiser: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], seeds: tf.Tensor, *, process: DiffusionProcess,
           config: SamplerConfig, image_shape) -> tf.Tensor:
    """Draws images.

    Args:
      denoiser: Maps x_t, float32 [batch, height, width, channels], and t, int32 [batch], to the network's prediction.
      seeds: int64 [batch]. The same seed gives the same image, wherever it stands in a batch.
      process: What the denoiser was trained for.
      config: The sampler.
      image_shape: (height, width, channels).

    Returns:
      float32 [batch, height, width, channels] in [-1, 1].
    """
    steps = timestep_sequence(process.schedule.num_timesteps, config.num_steps)
    alphas = process.schedule.alphas_cumprod[steps]
    alphas_next = np.append(alphas[1:], 1.0)
    # Coefficients of x_{next} = c_x_start * x_start + c_noise * predicted noise + c_fresh * fresh noise.
    if config.name == 'ddim':
        variance = np.zeros_like(alphas)
    else:
        variance = (1.0 - alphas_next) / (1.0 - alphas) * (1.0 - alphas / alphas_next)
    table = tf.constant(
        np.stack([
            np.sqrt(alphas),
            np.sqrt(1.0 - alphas),
            np.sqrt(alphas_next),
            np.sqrt(np.maximum(1.0 - alphas_next - variance, 0.0)),
            np.sqrt(variance)
        ],
                 axis=1), tf.float32)
    steps = tf.constant(steps)
    x_t = seeded_noise(seeds, tf.constant(0, tf.int64), image_shape)
    batch = tf.shape(seeds)[0]
    for i in tf.range(config.num_steps):
        signal_rate, noise_rate, signal_next, noise_next, fresh = tf.unstack(table[i], num=5)
        prediction = tf.cast(denoiser(x_t, tf.fill([batch], steps[i])), tf.float32)
        x_start, _ = parameterization_lib.to_x_start_and_noise(process.parameterization, prediction, x_t, signal_rate,
                                                               noise_rate)
        x_start = tf.clip_by_value(x_start, -1.0, 1.0)
        noise = (x_t -
                 signal_rate * x_start) / noise_rate  # Of the clipped image, so that x_t stays consistent with it.
        x_t = signal_next * x_start + noise_next * noise
        if config.name == 'ancestral':
            x_t += fresh * seeded_noise(seeds, tf.cast(i, tf.int64) + 1, image_shape)
        x_t = tf.ensure_shape(x_t, [None, *image_shape])
    return tf.clip_by_value(x_t, -1.0, 1.0)


def make_image_sampler(model: Callable, *, process: DiffusionProcess, config: SamplerConfig,
                       image_shape) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function from labels, int32 [batch], and seeds, int64 [batch], to images, uint8 [batch, *image_shape].

    Args:
      model: Maps [x_t, t, labels] to the network's prediction.
      process: What it was trained for.
      config: The sampler.
      image_shape: (height, width, channels).
    """

    def sample_images(labels: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        images_pm1 = sample(lambda x_t, t: model([x_t, t, labels], training=False),
                            seeds,
                            process=process,
                            config=config,
                            image_shape=image_shape)
        return corruption.from_pm1(images_pm1)

    return sample_images
