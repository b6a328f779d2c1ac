"""Public pre-training as a run of its own: no private image, no secret, no privacy cost."""

import dataclasses
import math
import pathlib

import numpy as np
import tensorflow as tf

from tf_dpdiff.data import overlap
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import kinds
from tf_dpdiff.training import divergence
from tf_dpdiff.training import loop
from tf_dpdiff.training import pretrained
from tf_dpdiff.training import stages
from tf_dpdiff.training import strategies
from tf_dpdiff.training import views as views_lib

# The loss of a checkpoint is the mean over one view of each of so many images, some at a time.
_IMAGES_OF_LOSS, _IMAGES_AT_A_TIME = 2048, 256


class PublicTrainer(loop.StageLoop):
    """Trains a model on public images, from wherever its folder says that it stands.

    Args:
      workdir: The run's folder.
      network: The network's shape.
      process: The diffusion process.
      pretraining: The public stage, with its images.
      config: Settings of the loop.
      draw_grid: Draws the samples of the averaged network that TensorBoard shows; None: no grids.
      replicas: What computes the steps.

    Attributes:
      average: The network with the moving average of the weights: what private runs start from.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        network: denoiser.DenoiserConfig,
        process: process_lib.DiffusionProcess,
        pretraining: stages.PretrainingConfig,
        config: loop.TrainerConfig,
        draw_grid: loop.DrawGrid | None = None,
        replicas: strategies.Replicas = strategies.ONE,
    ):
        self._network, self._process, self._pretraining = network, process, pretraining
        public = pretraining.images
        configuration = {
            'network': kinds.to_json(network),
            'process': dataclasses.asdict(process),
            'pretraining': loop.describe(pretraining),
        }
        super().__init__(
            workdir,
            configuration,
            config,
            network=network,
            image_shape=public.image_shape,
            num_classes=public.num_classes,
            is_private=False,
            draw_grid=draw_grid,
            replicas=replicas,
        )
        self._view_sampler = views_lib.make_view_sampler(process, pretraining.views, network, public.num_classes)
        with replicas.scope():
            stage = stages.make_pretraining(pretraining, self.model, self.average, self._view_sampler, replicas)
        self._open([stage])

    def to_pretrained(self) -> pretrained.PretrainedModel:
        """Returns what private runs start from; of a finished run.

        Raises:
          divergence.DivergedError: if its loss is not finite.
        """
        public = self._pretraining.images
        return pretrained.PretrainedModel(
            image_shape=public.image_shape,
            class_names=public.class_names,
            network=self._network,
            process=self._process,
            dataset=public.name,
            num_images=len(public),
            num_steps=self._pretraining.num_steps,
            batch_size=self._pretraining.batch_size,
            label_drop_probability=self._pretraining.views.label_drop_probability,
            loss=self._loss(),
            weights=pretrained.weights_of(self.average),
            image_digests=overlap.image_digests(public.images_uint8),
        )

    def _loss(self) -> float:
        """Returns the loss of the averaged network on its images, as training draws their views."""
        public = self._pretraining.images
        view_losses = views_lib.view_losses_fn(self.released_model())
        num_images = min(len(public), _IMAGES_OF_LOSS)
        rows, losses = np.arange(num_images) * len(public) // num_images, []
        for start in range(0, num_images, _IMAGES_AT_A_TIME):
            part = rows[start : start + _IMAGES_AT_A_TIME]
            views = self._view_sampler.draw_for_public(
                tf.constant(public.images_uint8[part]),
                tf.constant(public.labels[part], tf.int32),
                tf.range(len(part)),
                batch_size=len(part),
                seed=tf.constant(self._pretraining.seed, tf.int64),
                step=tf.constant(start, tf.int64),
            )
            flat = tf.nest.map_structure(lambda x: tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0)), views)
            losses.append(view_losses(flat).numpy())
        loss = float(np.mean(np.concatenate(losses)))
        if not math.isfinite(loss):
            raise divergence.DivergedError(
                f'pretraining diverged: the loss of what came out is {loss}. Lower '
                "learning_rate of the stage's OptimizationConfig, and start anew in another "
                '--workdir.'
            )
        return loss
