"""Samplers: from noise to images, one image a seed."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses

import numpy as np
import tensorflow as tf

from tf_dpdiff.diffusion import corruption
from tf_dpdiff.diffusion import ddim
from tf_dpdiff.diffusion import dpm_solver
from tf_dpdiff.diffusion import edm_heun
from tf_dpdiff.diffusion import guidance
from tf_dpdiff.diffusion import parameterization as parameterization_lib
from tf_dpdiff.diffusion import thresholding
from tf_dpdiff.diffusion.process import DiffusionProcess

_SAMPLERS = {
    'ddim': ddim.ddim,
    'ancestral': ddim.ancestral,
    'dpmpp_2m': dpm_solver.dpmpp_2m,
    'edm_heun': edm_heun.edm_heun,
}
SAMPLERS = tuple(_SAMPLERS)

Denoiser = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
_NOT_FINITE = 'the network predicts numbers that are not finite'


class NotFiniteError(FloatingPointError):
    """There is nothing to be sampled from a network, since what it predicts is not finite."""


@contextlib.contextmanager
def telling_of_divergence() -> Iterator[None]:
    """A context in which TensorFlow's error where a sampler has found numbers that are not finite is a clear one.

    Raises:
      NotFiniteError: in place of that error.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if _NOT_FINITE not in str(error):
            raise
        raise NotFiniteError(
            f'{_NOT_FINITE}, so nothing can be sampled: its training has diverged. Train anew with a '
            'lower learning_rate in another --workdir; if the sampler is guided strongly, try a lower '
            'guidance_scale first.'
        ) from error


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Which sampler, with how many steps, and what is done to the network's predictions.

    Attributes:
      name: 'ddim' (deterministic after the first draw), 'ancestral' (the DDPM posterior; fresh noise in each step),
        'dpmpp_2m' (DPM-Solver++(2M), deterministic, second order) or 'edm_heun' (Heun's method as in EDM,
        deterministic, second order).
      num_steps: 1 to the schedule's num_timesteps. One network evaluation each, but for 'edm_heun', which takes
        2 * num_steps - 1. DDIM does with tens, the second-order samplers with about 20 ('edm_heun' goes astray with
        less than 10), ancestral wants all.
      guidance_scale: Of classifier-free guidance; 1 is none, anything else doubles the cost.
      thresholding: How a predicted image is kept within range: 'static', 'dynamic' (for strong guidance) or 'none'.
      dynamic_percentile: Share of an image's pixels that 'dynamic' does not cut off, in (0, 1].
      num_candidates: Drawn for each image of what is released, >= 1: of several, the one is taken that looks most like
        its class to the teacher of the run, or to the noisy feature means of its warm start; see `candidates`. Costs so
        many times as much.

    References: `ddim`, `dpm_solver`, `edm_heun`, `guidance` and `thresholding` name those of the methods.
    """

    name: str = 'ddim'
    num_steps: int = 50
    guidance_scale: float = 1.0
    thresholding: str = 'static'
    dynamic_percentile: float = 0.995
    num_candidates: int = 1

    def __post_init__(self):
        if self.name not in SAMPLERS:
            raise ValueError(f'the name of a sampler must be one of {SAMPLERS}, got {self.name!r}.')
        for name in ('num_steps', 'num_candidates'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the sampler must be at least 1, got {getattr(self, name)}.')
        guidance.check(self.guidance_scale)
        thresholding.check(self.thresholding, self.dynamic_percentile)

    @property
    def evaluations_per_image(self) -> int:
        """How many noisy images the network is shown for one that is released."""
        of_solver = 2 * self.num_steps - 1 if self.name == 'edm_heun' else self.num_steps
        return of_solver * (1 if self.guidance_scale == 1.0 else 2) * self.num_candidates


def seeded_noise(seeds: tf.Tensor, draw: tf.Tensor, image_shape) -> tf.Tensor:
    """Returns standard normal noise that depends on each image's own seed alone.

    Args:
      seeds: int64 [batch].
      draw: int scalar, which draw of the image this is.
      image_shape: (height, width, channels).

    Returns:
      float32 [batch, height, width, channels].
    """
    draw = tf.cast(draw, tf.int64)
    return tf.map_fn(
        lambda seed: tf.random.stateless_normal(image_shape, tf.stack([seed, draw]), alg='philox'),
        seeds,
        fn_output_signature=tf.TensorSpec(image_shape, tf.float32),
    )


def sample(
    denoiser: Denoiser,
    labels: tf.Tensor,
    seeds: tf.Tensor,
    *,
    process: DiffusionProcess,
    config: SamplerConfig,
    image_shape,
    num_classes: int,
    observe: Callable[[tf.Tensor, tf.Tensor], None] = lambda x_t, t: None,
) -> tf.Tensor:
    """Draws images.

    Args:
      denoiser: Maps x_t, float32 [batch, height, width, channels], t, int32 [batch], and labels, int32 [batch], to the
        network's prediction. Guidance shows it twice as many images as are drawn.
      labels: int32 [batch], below num_classes, or num_classes for "no class".
      seeds: int64 [batch]. The same label and seed give the same image, wherever they stand in a batch.
      process: What the denoiser was trained for.
      config: The sampler.
      image_shape: (height, width, channels).
      num_classes: The label that stands for "no class", which guidance compares with.
      observe: Shown x_t and the timestep before each evaluation of the network.

    Returns:
      float32 [batch, height, width, channels] in [-1, 1].

    Raises:
      tf.errors.InvalidArgumentError: when it runs, if the network predicts numbers that are not finite: cut off and
        rounded they would be black or white pixels. `telling_of_divergence` makes it a clear error.
    """
    predict = guidance.guide(denoiser, labels, scale=config.guidance_scale, num_classes=num_classes)

    def predict_x_start(x_t, t, signal_rate, noise_rate):
        observe(x_t, t)
        prediction = tf.debugging.check_numerics(predict(x_t, t), _NOT_FINITE)
        x_start, _ = parameterization_lib.to_x_start_and_noise(
            process.parameterization, prediction, x_t, signal_rate, noise_rate
        )
        return thresholding.threshold(x_start, config.thresholding, dynamic_percentile=config.dynamic_percentile)

    x = _SAMPLERS[config.name](
        predict_x_start, process.schedule, config.num_steps, lambda draw: seeded_noise(seeds, draw, image_shape)
    )
    return tf.clip_by_value(x, -1.0, 1.0)


def denoising_path(
    denoiser: Denoiser, labels: tf.Tensor, seeds: tf.Tensor, *, num_frames: int, **arguments
) -> np.ndarray:
    """Draws images and returns what they looked like on the way, from noise to image.

    Runs outside of tf.function, an evaluation of the network at a time: for a few images.

    Args:
      denoiser: As in `sample`.
      labels: As in `sample`.
      seeds: As in `sample`.
      num_frames: At least 2: the noise, then evenly spaced among the steps, the image last. Fewer steps, fewer frames.
      **arguments: The others of `sample`.

    Returns:
      uint8 [frames, batch, height, width, channels]; what is out of range is cut off.
    """
    path = {}  # By timestep: second-order samplers evaluate a guess there first, and then the result, which stays.
    images_pm1 = sample(denoiser, labels, seeds, **arguments, observe=lambda x_t, t: path.update({int(t): x_t}))
    frames = [*path.values(), images_pm1]
    chosen = np.unique(np.linspace(0, len(frames) - 1, num_frames).round().astype(int))
    return np.stack([corruption.from_pm1(frames[index]).numpy() for index in chosen])


def make_image_sampler(
    denoiser: Denoiser, *, process: DiffusionProcess, config: SamplerConfig, image_shape, num_classes: int
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function from labels, int32 [batch], and seeds, int64 [batch], to images, uint8 [batch, *image_shape].

    Args: those of `sample`.
    """

    def sample_images(labels: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        images_pm1 = sample(
            denoiser, labels, seeds, process=process, config=config, image_shape=image_shape, num_classes=num_classes
        )
        return corruption.from_pm1(images_pm1)

    return sample_images
