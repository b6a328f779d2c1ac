"""A classifier of public images."""

from collections.abc import Iterator
import dataclasses
import math

import numpy as np

from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.networks import classifiers
from tf_dpdiff.training import classifier_steps
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
    batch_size = min(config.batch_size, len(public))
    num_steps = config.num_epochs * (len(public) // batch_size)
    losses = classifier_steps.train(
        model,
        _mirrored_batches(public, batch_size, config.seed),
        num_steps,
        learning_rate=config.learning_rate,
        tells_loss=True,
    )
    with progress.bar(num_steps, 'classifier', 'step') as bar:
        for loss in losses:
            bar.update()
            assert loss is not None
            if not math.isfinite(loss):
                raise _diverged(f'by step {bar.n} of {bar.total}: the loss is {float(loss)}')
    if not divergence.all_finite([*model.weights, model(public.images_uint8[:1])]):
        raise _diverged('at its end: its weights, or what it says of an image, are not finite')
    return model


def _diverged(where: str) -> divergence.DivergedError:
    return divergence.DivergedError(
        f'the public classifier diverged {where}. It reads no private image. Lower '
        'learning_rate of PublicClassifierConfig, and start anew in another --workdir.'
    )


def _mirrored_batches(public: datasets.ImageDataset, batch_size: int, seed: int) -> Iterator:
    """Yields whole batches of public images in an order drawn anew for each epoch, half of the images mirrored."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(public))
        is_mirrored = generator.random(len(public)) < 0.5
        for start in range(0, len(public) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            images = public.images_uint8[rows]
            yield np.where(is_mirrored[rows][:, None, None, None], images[:, :, ::-1], images), public.labels[rows]
