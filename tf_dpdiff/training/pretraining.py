"""Public pre-training: the stage, and the checkpoint that a run of this stage alone leaves for private runs."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.data import overlap
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.training import divergence
from tf_dpdiff.training import optimization as optimization_lib
from tf_dpdiff.training import public_checkpoint
from tf_dpdiff.training import stage as stage_lib
from tf_dpdiff.training import views as views_lib

NAME = 'pretraining'
# The loss of a checkpoint is the mean over one view of each of so many images, some at a time.
_IMAGES_OF_LOSS, _IMAGES_AT_A_TIME = 2048, 256


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
    """Plain training on public images.

    Attributes:
      dataset: The public images, or what reads them when they are first asked for.
      num_steps: Steps, >= 1.
      batch_size: Images a step, >= 1.
      optimization: How the weights follow the gradients.
      views: How an image is looked at.
      max_ema_decay: Upper end of the decay of the weights' moving average, in [0, 1): what comes after the stage starts
        from the average. 0: from the last weights.
      images_per_chunk: Images held in memory at a time, a divisor of batch_size; changes speed and memory only. None:
        the whole batch.
      seed: Public.
    """

    dataset: stage_lib.PublicSource
    num_steps: int
    batch_size: int
    optimization: optimization_lib.OptimizationConfig
    views: views_lib.ViewsConfig = views_lib.ViewsConfig()
    max_ema_decay: float = 0.0
    images_per_chunk: int | None = None
    seed: int = 0

    def __post_init__(self):
        stage_lib.check_at_least_one(self, 'num_steps', 'batch_size')
        stage_lib.check_decay(self)
        stage_lib.check_public_source(self.dataset, 'dataset of the public stage')
        if self.images_per_chunk is not None and (self.images_per_chunk < 1 or self.batch_size % self.images_per_chunk):
            raise ValueError(f'images_per_chunk must divide batch_size={self.batch_size}, got {self.images_per_chunk}.')

    @property
    def spec(self) -> datasets.DatasetSpec:
        """What is known of the images without reading them."""
        return self.dataset.spec

    @property
    def images(self) -> datasets.ImageDataset:
        """The images, read where they are not yet."""
        return stage_lib.read_public(self.dataset)


def make_stage(config: PretrainingConfig, training: stage_lib.Training) -> stage_lib.Stage:
    """Returns the public pre-training stage; at its end, model and average both hold what was pre-trained."""
    stage = stage_lib.make_public_stage(
        NAME,
        config,
        training,
        lambda unused_save: config.images,
        max_ema_decay=config.max_ema_decay,
        images_per_chunk=config.images_per_chunk,
    )

    def end():
        if config.max_ema_decay:
            training.model.set_weights(training.average.get_weights())
        else:
            training.average.set_weights(training.model.get_weights())

    return dataclasses.replace(stage, end=end)


def make_checkpoint(
    config: PretrainingConfig,
    network: denoiser.DenoiserConfig,
    process: process_lib.DiffusionProcess,
    trained: keras.Model,
) -> public_checkpoint.PublicCheckpoint:
    """Returns the checkpoint that private runs start from.

    Args:
      config: The stage, which has ended.
      network: The network's shape.
      process: The diffusion process.
      trained: The network with the averaged weights.

    Raises:
      divergence.DivergedError: if its loss is not finite.
    """
    public = config.images
    return public_checkpoint.PublicCheckpoint(
        image_shape=public.image_shape,
        class_names=public.class_names,
        network=network,
        process=process,
        dataset=public.name,
        num_images=len(public),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        label_drop_probability=config.views.label_drop_probability,
        loss=_loss(config, views_lib.make_view_maker(process, config.views, network, public.num_classes), trained),
        weights=public_checkpoint.weights_of(trained),
        image_digests=overlap.image_digests(public.images_uint8),
    )


def _loss(config: PretrainingConfig, view_maker: views_lib.ViewMaker, trained: keras.Model) -> float:
    """Returns the loss of a network on the public images, as training draws their views."""
    public = config.images
    view_losses = views_lib.view_losses_fn(trained)
    num_images = min(len(public), _IMAGES_OF_LOSS)
    rows, losses = np.arange(num_images) * len(public) // num_images, []
    for start in range(0, num_images, _IMAGES_AT_A_TIME):
        part = rows[start : start + _IMAGES_AT_A_TIME]
        views = view_maker.draw_for_public(
            tf.constant(public.images_uint8[part]),
            tf.constant(public.labels[part], tf.int32),
            tf.range(len(part)),
            batch_size=len(part),
            seed=tf.constant(config.seed, tf.int64),
            step=tf.constant(start, tf.int64),
        )
        flat = tf.nest.map_structure(lambda x: tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0)), views)
        losses.append(view_losses(flat).numpy())
    loss = float(np.mean(np.concatenate(losses)))
    if not math.isfinite(loss):
        raise divergence.DivergedError(
            f'pretraining diverged: the loss of what came out is {loss}. Lower learning_rate of the '
            "stage's OptimizationConfig, and start anew in another --workdir."
        )
    return loss
