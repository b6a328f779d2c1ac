"""A classifier of public images."""

import dataclasses
import math

import numpy as np

from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.networks import classifiers
from tf_dpdiff.training import divergence


@dataclasses.dataclass(frozen=True)
class PublicClassifierConfig:
    """How the classifier is trained, on public images alone.

    Attributes:
      num_epochs: How often each public image is seen, >= 1.
      batch_size: Images a step, >= 1.
      learning_rate: Of Adam, finite and > 0; it falls to 0 along half a cosine.
      seed: Public.
    """

    num_epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 2

    def __post_init__(self):
        for name in ('num_epochs', 'batch_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the public classifier must be at least 1, got {getattr(self, name)}.')
        if not 0.0 < self.learning_rate < float('inf'):
            raise ValueError(
                f'learning_rate of the public classifier must be finite and > 0, got {self.learning_rate}.'
            )


def train(config: PublicClassifierConfig, public: datasets.ImageDataset) -> keras.Model:
    """Trains a small network to name the class of public images.

    Args:
      config: How.
      public: Labelled public images, at least one of each class.

    Returns:
      A model from images, uint8 [batch, height, width, channels], to logits, float32 [batch, classes].

    Raises:
      divergence.DivergedError: if the training diverges.
    """
    model = classifiers.small_cnn(public.image_shape, public.num_classes, seed=config.seed)
    batches = _MirroredBatches(config, public)
    rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.num_epochs * len(batches))
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with progress.bar(config.num_epochs * len(batches), 'classifier', 'step') as bar:

        def look(unused_batch, logs):
            bar.update()
            if not math.isfinite(logs['loss']):
                raise _diverged(f'by step {bar.n} of {bar.total}: the loss is {logs["loss"]}')

        # Keras would shuffle the batches by a global seed.
        model.fit(
            batches,
            epochs=config.num_epochs,
            shuffle=False,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_batch_end=look)],
        )
    if not divergence.all_finite([*model.weights, model(public.images_uint8[:1])]):
        raise _diverged('at its end: its weights, or what it says of an image, are not finite')
    return model


def _diverged(where: str) -> divergence.DivergedError:
    return divergence.DivergedError(
        f'the public classifier diverged {where}. It reads no private image. Lower '
        'learning_rate of PublicClassifierConfig, and start anew in another --workdir.'
    )


class _MirroredBatches(keras.utils.Sequence):
    """Batches of public images in an order drawn anew for each epoch, half of the images mirrored left to right."""

    def __init__(self, config: PublicClassifierConfig, public: datasets.ImageDataset):
        self._public, self._batch_size = public, min(config.batch_size, len(public))
        self._generator = np.random.default_rng(config.seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self._public) // self._batch_size

    def __getitem__(self, number: int):
        rows = self._order[number * self._batch_size : (number + 1) * self._batch_size]
        images = self._public.images_uint8[rows]
        mirrored = self._is_mirrored[rows][:, None, None, None]
        return np.where(mirrored, images[:, :, ::-1], images), self._public.labels[rows]

    def on_epoch_end(self) -> None:
        self._order = self._generator.permutation(len(self._public))
        self._is_mirrored = self._generator.random(len(self._public)) < 0.5
