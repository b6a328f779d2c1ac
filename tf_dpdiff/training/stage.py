"""A stage as the loop sees it, and the one of plain training that both public stages are."""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.data import pipelines
from tf_dpdiff.data import public as public_lib
from tf_dpdiff.networks import ema
from tf_dpdiff.privacy import sampling
from tf_dpdiff.training import strategies
from tf_dpdiff.training import train_step
from tf_dpdiff.training import views as views_lib

PublicSource = datasets.ImageDataset | public_lib.PublicImages
Save = Callable[[], None]  # Saves where the run stands; called by all workers.


class Training(NamedTuple):
    """What the stages of a run share.

    Attributes:
      model: The network that is trained.
      average: The network that holds the moving average of its weights.
      make_view_maker: Makes what draws the views that a stage asks for.
      replicas: What computes the steps; the networks were made in their scope.
    """

    model: keras.Model
    average: keras.Model
    make_view_maker: Callable[[views_lib.ViewsConfig], views_lib.ViewMaker]
    replicas: strategies.Replicas


@dataclasses.dataclass
class Stage:
    """A stage as the trainer's loop sees it.

    Attributes:
      name: For checkpoints, progress and summaries.
      num_steps: Steps in all; 0: all that the stage does is to begin.
      optimizer: Saved with the run, or None.
      begin: Called before the first step that this process runs, also after a resume, with what saves the run.
      run_step: Runs one step, counted from 0, and returns scalars that may be released.
      end: Called after the last step, before the next stage begins.
    """

    name: str
    num_steps: int
    optimizer: keras.optimizers.Optimizer | None
    begin: Callable[[Save], None]
    run_step: Callable[[int], dict[str, float]]
    end: Callable[[], None] = lambda: None


def make_public_stage(
    name: str,
    config,
    training: Training,
    make_dataset: Callable[[Save], datasets.ImageDataset],
    *,
    max_ema_decay: float = 0.0,
    images_per_chunk: int | None = None,
) -> Stage:
    """Returns a stage of plain training.

    Args:
      name: The stage's name.
      config: Its settings: num_steps, batch_size, optimization, views and seed.
      training: What the stages of the run share.
      make_dataset: Returns the images; called when the stage begins, with what saves the run.
      max_ema_decay: Upper end of the moving average's decay; 0: the average is the weights themselves.
      images_per_chunk: Images held in memory at a time; None: the whole batch.
    """
    replicas = training.replicas
    check_compiles(name, config, replicas)
    optimizer = config.optimization.make_optimizer(config.num_steps)
    images_per_replica = -(-config.batch_size // replicas.count)
    images_per_chunk = min(images_per_chunk or images_per_replica, images_per_replica)
    public_step = train_step.compile_public_step(
        training.model,
        training.average,
        optimizer,
        training.make_view_maker(config.views),
        max_ema_decay=max_ema_decay,
        batch_size=config.batch_size,
        images_per_chunk=images_per_chunk,
        seed=config.seed,
        replicas=replicas,
    )
    images = {}

    def begin(save):
        images['dataset'] = make_dataset(save)

    def batches(step: int):
        """Returns the batch of each local replica: its part of one batch, which is the same for any number of them."""
        dataset = images['dataset']
        indices = pipelines.random_indices(len(dataset), config.batch_size, seed=config.seed, step=step)
        bounds = [sampling.shard_bounds(config.batch_size, replica, replicas.count) for replica in replicas.local]
        places = sampling.pad_batches([np.arange(*bound) for bound in bounds], images_per_chunk, equally=True)
        rows = [np.where(place < 0, sampling.PADDING_INDEX, indices[place]) for place in places]
        return [(*pipelines.gather(dataset, own), place.astype(np.int32)) for own, place in zip(rows, places)]

    def run_step(step: int) -> dict[str, float]:
        loss = public_step(batches(step), tf.constant(step, tf.int64))
        return {
            'loss': float(loss),
            'learning_rate': float(optimizer.learning_rate.numpy()),
            'ema_decay': ema_decay(max_ema_decay, step),
        }

    return Stage(name, config.num_steps, optimizer, begin, run_step)


def check_compiles(stage: str, config, replicas: strategies.Replicas) -> None:
    """Refuses augmentation that XLA does not know, before the first step is compiled.

    Raises:
      ValueError: names the setting and the stage.
    """
    augmentation = config.views.augmentation
    wanted = [name for name in ('rotation', 'zoom', 'translation') if getattr(augmentation, name)]
    if replicas.is_compiled and wanted:
        raise ValueError(
            f'{" and ".join(wanted)} of the augmentation in {stage} cannot be compiled for a TPU: leave it '
            'out (pad_and_crop moves images too), or use another strategy.'
        )


def ema_decay(max_ema_decay: float, step: int) -> float:
    """Returns the decay of the moving average at a step."""
    return float(ema.ema_decay(max_ema_decay, step))


def check_decay(config) -> None:
    """Refuses a max_ema_decay that is not in [0, 1)."""
    if not 0.0 <= config.max_ema_decay < 1.0:
        raise ValueError(f'max_ema_decay of {type(config).__name__} must be in [0, 1), got {config.max_ema_decay}.')


def check_public_source(source, what: str) -> None:
    """Refuses a source of images that nobody has declared to be public."""
    if not isinstance(source, (datasets.ImageDataset, public_lib.PublicImages)):
        raise ValueError(
            f'the {what} is a {type(source).__name__}; turn a source of images into public ones by @public_images().'
        )


def read_public(source: PublicSource) -> datasets.ImageDataset:
    """Returns public images, read where they are not yet."""
    return source.images if isinstance(source, public_lib.PublicImages) else source


def check_at_least_one(config, *names: str) -> None:
    """Refuses fields of a configuration that are below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f'{name} of {type(config).__name__} must be at least 1, got {getattr(config, name)}.')
