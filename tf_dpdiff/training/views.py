"""Views: independent draws of (augmentation, timestep, noise, label drop, dropout) of an image, with what the network
should predict for each."""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import augmentation as augmentation_lib
from tf_dpdiff.diffusion import corruption
from tf_dpdiff.diffusion import losses
from tf_dpdiff.diffusion import parameterization as parameterization_lib
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import timesteps as timesteps_lib
from tf_dpdiff.networks import denoiser


@dataclasses.dataclass(frozen=True)
class ViewsConfig:
    """How an image is looked at in training.

    Attributes:
      augmentation_multiplicity: K >= 1, views of a unit that are averaged before its gradient is clipped. Costs
        compute, and no privacy.
      timesteps: Which timesteps the views fall on.
      augmentation: How the views of an image vary.
      label_drop_probability: Share of the views whose label is replaced by "no class", in [0, 1); what classifier-free
        guidance needs when sampling. 0: none.

    References: Ghalebikesabi et al. 2023, arXiv:2302.13861; De et al. 2022, arXiv:2204.13650, section 3.2.
    """

    augmentation_multiplicity: int = 1
    timesteps: timesteps_lib.TimestepMixture | timesteps_lib.LogNormalSigma = timesteps_lib.TimestepMixture()
    augmentation: augmentation_lib.AugmentationConfig = augmentation_lib.AugmentationConfig()
    label_drop_probability: float = 0.0

    def __post_init__(self):
        if self.augmentation_multiplicity < 1:
            raise ValueError(f'augmentation_multiplicity must be at least 1, got {self.augmentation_multiplicity}.')
        if not isinstance(self.timesteps, timesteps_lib.TIMESTEP_DISTRIBUTIONS):
            allowed = ' or a '.join(kind.__name__ for kind in timesteps_lib.TIMESTEP_DISTRIBUTIONS)
            raise ValueError(
                f'timesteps must be a {allowed}, got {type(self.timesteps).__name__}: timesteps chosen by '
                'losses, or together for several units, are not covered by the guarantee.'
            )
        if not 0.0 <= self.label_drop_probability < 1.0:
            raise ValueError(f'label_drop_probability must be in [0, 1), got {self.label_drop_probability}.')


class Views(NamedTuple):
    """Views of units (axes [units, K, ...]) or of one unit ([K, ...]).

    Attributes:
      x_t: float32 [..., height, width, channels], the corrupted images.
      t: int32 [...], their timesteps.
      labels: int32 [...].
      target: float32 [..., height, width, channels], what the network should predict.
      dropout_seeds: int32 [...], what the dropout of each view is drawn from; zeros where the network has none.
    """

    x_t: tf.Tensor
    t: tf.Tensor
    labels: tf.Tensor
    target: tf.Tensor
    dropout_seeds: tf.Tensor


class ViewMaker:
    """Draws the views of images, each from random numbers of its own.

    Everything random in training happens here, outside of the network and outside of the mapped gradient. The numbers
    of a unit depend on (seed, step, unit) alone: not on the chunk, the replica or the other units of the batch.

    Args:
      process: The diffusion process that the network learns.
      config: How an image is looked at.
      num_classes: Of the network; the label num_classes stands for "no class".
      has_dropout: Whether the network has dropout, and views need seeds for it.
    """

    def __init__(
        self, process: process_lib.DiffusionProcess, config: ViewsConfig, *, num_classes: int, has_dropout: bool = False
    ):
        config.timesteps.check(process.schedule)
        self._process = process
        self._config = config
        self._num_classes = num_classes
        self._has_dropout = has_dropout
        self._augmenter = augmentation_lib.Augmenter(config.augmentation)
        # Per view: two for the timestep, then the augmentation's, then one for the label.
        self._num_uniforms = 2 + self._augmenter.num_uniforms + (config.label_drop_probability > 0.0)

    @property
    def num_views(self) -> int:
        """K, the views of a unit."""
        return self._config.augmentation_multiplicity

    def unit_loss_fn(self, model: keras.Model) -> Callable[[Views], tf.Tensor]:
        """Returns the function from the K views of ONE unit to its loss; see the function of that name."""
        return unit_loss_fn(model)

    def draw_for_units(
        self, images_uint8: tf.Tensor, labels: tf.Tensor, units: tf.Tensor, *, seed: tf.Tensor, step: tf.Tensor
    ) -> Views:
        """Draws the K views of each unit.

        Args:
          images_uint8: uint8 [units, V, height, width, channels], the images that a unit's views look at: V is K, or 1
            where all views look at one image.
          labels: int32 [units, V].
          units: int64 [units], which unit each is, below 2^31; the key of its random numbers.
          seed: int64 scalar.
          step: int64 scalar, below 2^31.

        Returns:
          Views with axes [units, K, ...].
        """
        num_views = self._config.augmentation_multiplicity
        image_shape = images_uint8.shape[2:].as_list()

        def draw(unit):
            return self._draw([num_views], image_shape, seed, step * 2**32 + tf.maximum(unit, 0))

        drawn = tf.map_fn(
            draw,
            units,
            fn_output_signature=(
                tf.TensorSpec([num_views, self._num_uniforms]),
                tf.TensorSpec([num_views, *image_shape]),
                tf.TensorSpec([num_views], tf.int32),
            ),
        )
        return self._corrupt(corruption.to_pm1(images_uint8), labels, *drawn)

    def draw_for_public(
        self,
        images_uint8: tf.Tensor,
        labels: tf.Tensor,
        places: tf.Tensor,
        *,
        batch_size: int,
        seed: tf.Tensor,
        step: tf.Tensor,
    ) -> Views:
        """Draws the K views of public images: the numbers of each depend on its place in the batch.

        Args:
          images_uint8: uint8 [images, height, width, channels].
          labels: int32 [images].
          places: int32 [images], where each stands in the batch of all replicas; -1: padding.
          batch_size: Of all replicas together.
          seed: int64 scalar.
          step: int64 scalar.

        Returns:
          Views with axes [images, K, ...].
        """
        shape = [batch_size, self._config.augmentation_multiplicity]
        drawn = self._draw(shape, images_uint8.shape[1:].as_list(), seed, step)
        drawn = [tf.gather(numbers, tf.maximum(places, 0)) for numbers in drawn]
        return self._corrupt(corruption.to_pm1(images_uint8[:, None]), labels[:, None], *drawn)

    def _draw(self, shape, image_shape, seed, key):
        """Returns the random numbers of views: uniforms [*shape, numbers], noise [*shape, *image_shape], seeds
        [*shape]."""
        # Three base seeds: with one, the three kinds of numbers would come from the same bits.
        uniforms = tf.random.stateless_uniform([*shape, self._num_uniforms], tf.stack([seed, key]), alg='philox')
        noise = tf.random.stateless_normal([*shape, *image_shape], tf.stack([seed + 1, key]), alg='philox')
        if not self._has_dropout:
            return uniforms, noise, tf.zeros(shape, tf.int32)
        dropout_seeds = tf.random.stateless_uniform(
            shape, tf.stack([seed + 2, key]), minval=None, maxval=None, dtype=tf.int32, alg='philox'
        )
        return uniforms, noise, dropout_seeds

    def _corrupt(self, images_pm1, labels, uniforms, noise, dropout_seeds) -> Views:
        """Turns images [units, 1 or K, ...] and random numbers [units, K, ...] into views."""
        num_views = self._config.augmentation_multiplicity
        repeats = num_views // labels.shape[1]
        x_start = tf.repeat(images_pm1, repeats, axis=1)
        x_start = tf.reshape(x_start, tf.concat([[-1], tf.shape(x_start)[2:]], axis=0))
        x_start = tf.ensure_shape(x_start, [None, *images_pm1.shape[2:]])
        flat_uniforms = tf.reshape(uniforms, [-1, self._num_uniforms])
        of_augmentation = flat_uniforms[:, 2 : 2 + self._augmenter.num_uniforms]
        x_start = tf.reshape(self._augmenter(x_start, of_augmentation), tf.shape(noise))
        x_start = tf.ensure_shape(x_start, noise.shape)
        t = self._config.timesteps.from_uniforms(uniforms[..., 0], uniforms[..., 1], self._process.schedule)
        signal_rate, noise_rate = corruption.gather_coefficients(self._process.schedule, t)
        target = parameterization_lib.training_target(
            self._process.parameterization, x_start, noise, signal_rate, noise_rate
        )
        x_t = corruption.q_sample(self._process.schedule, x_start, t, noise)
        labels = tf.repeat(labels, repeats, axis=1)
        if self._config.label_drop_probability:
            labels = tf.where(uniforms[..., -1] < self._config.label_drop_probability, self._num_classes, labels)
        return Views(x_t, t, labels, target, dropout_seeds)


def make_view_maker(
    process: process_lib.DiffusionProcess, config: ViewsConfig, network: denoiser.DenoiserConfig, num_classes: int
) -> ViewMaker:
    """Returns what makes the views that a network is trained on."""
    return ViewMaker(process, config, num_classes=num_classes, has_dropout=network.dropout > 0.0)


def spec_of_one_view(model: keras.Model) -> Views:
    """Returns the TensorSpecs [1, ...] of one view of a network's images: what its loss is traced with, to be looked
    at and not computed."""
    image = model.inputs[0].shape[1:].as_list()
    return Views(
        x_t=tf.TensorSpec([1, *image]),
        t=tf.TensorSpec([1], tf.int32),
        labels=tf.TensorSpec([1], tf.int32),
        target=tf.TensorSpec([1, *image]),
        dropout_seeds=tf.TensorSpec([1], tf.int32),
    )


def view_losses_fn(model: keras.Model) -> Callable[[Views], tf.Tensor]:
    """Returns the function from views [views, ...] to the loss of each, float32 [views]: the mean over its pixels."""

    def view_losses(views: Views) -> tf.Tensor:
        prediction = denoiser.denoise(
            model, views.x_t, views.t, views.labels, dropout_seeds=views.dropout_seeds, training=True
        )
        return losses.view_losses(prediction, views.target)

    return view_losses


def unit_loss_fn(model: keras.Model) -> Callable[[Views], tf.Tensor]:
    """Returns the function from the K views of ONE unit to its loss: the mean over its views and pixels."""
    view_losses = view_losses_fn(model)
    return lambda views: tf.reduce_mean(view_losses(views))
