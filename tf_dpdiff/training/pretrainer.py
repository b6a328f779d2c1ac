"""Public pre-training as a run of its own: no private image, no secret, no privacy cost."""

import dataclasses
import pathlib
from typing import Optional

from tf_dpdiff.data import overlap
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import unet
from tf_dpdiff.training import loop
from tf_dpdiff.training import pretrained
from tf_dpdiff.training import stages
from tf_dpdiff.training import strategies
from tf_dpdiff.training import views as views_lib


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

    def __init__(self,
                 workdir: pathlib.Path,
                 *,
                 network: unet.UNetConfig,
                 process: process_lib.DiffusionProcess,
                 pretraining: stages.PretrainingConfig,
                 config: loop.TrainerConfig,
                 draw_grid: Optional[loop.DrawGrid] = None,
                 replicas: strategies.Replicas = strategies.ONE):
        self._network, self._process, self._pretraining = network, process, pretraining
        public = pretraining.images
        configuration = {
            'network': dataclasses.asdict(network),
            'process': dataclasses.asdict(process),
            'pretraining': loop.describe(pretraining),
        }
        super().__init__(workdir,
                         configuration,
                         config,
                         network=network,
                         image_shape=public.image_shape,
                         num_classes=public.num_classes,
                         is_private=False,
                         draw_grid=draw_grid,
                         replicas=replicas)
        view_sampler = views_lib.make_view_sampler(process, pretraining.views, network, public.num_classes)
        with replicas.scope():
            stage = stages.make_pretraining(pretraining, self.model, self.average, view_sampler, replicas)
        self._open([stage])

    def to_pretrained(self) -> pretrained.PretrainedModel:
        """Returns what private runs start from; of a finished run."""
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
            weights=pretrained.weights_of(self.average),
            image_digests=overlap.image_digests(public.images_uint8),
        )
