"""Plain training of a network that classifies images: no privacy, so for samples, or for the owner's own comparison."""

from collections.abc import Callable
import dataclasses

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff.training import classifier_steps

Predict = Callable[[np.ndarray], np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]

_PREDICTED_AT_A_TIME = 512
_BAR_DELAY_SECS = 5.0  # What takes less shows no progress bar.


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Attributes:
      optimizer: 'adam', or 'sgd' with Nesterov momentum of 0.9.
      learning_rate: The first one; it falls to 0 along half a cosine.
      num_epochs: Validation follows each.
      min_steps: At least as many optimizer steps are made: a small set is gone through more often.
      batch_size: Images a step; a smaller set makes smaller batches.
      weight_decay: Times half the squared norm of all kernels, added to the loss.
      shift: Images are moved at random by up to this share of their sides; what comes in is black.
      flip: Whether half of the images are mirrored left to right.
      patience: Epochs without a better validation after which training ends.
    """

    optimizer: str
    learning_rate: float
    num_epochs: int
    min_steps: int
    batch_size: int
    weight_decay: float
    shift: float
    flip: bool
    patience: int


def train(
    model: keras.Model,
    config: TrainingConfig,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    validation: Pair | None = None,
    seed: int = 0,
    name: str = 'training',
) -> Predict:
    """Trains a network; with validation images, the weights that classify most of them right are kept.

    Touches no global random state. On CPUs the same call gives the same weights, bit for bit.

    Args:
      model: From images, uint8 [batch, height, width, channels], to logits, float32 [batch, classes].
      config: How.
      images: uint8 [images, height, width, channels].
      labels: int32 [images].
      validation: Images and labels for early stopping and the choice of weights; None: the last ones are kept.
      seed: Of batches and augmentation.
      name: For the progress bar of long trainings.

    Returns:
      Maps images, uint8 [n, height, width, channels], to probabilities, float32 [n, classes].
    """
    batch_size = min(config.batch_size, len(images))
    steps = max(-(-len(images) // batch_size), -(-config.min_steps // config.num_epochs))
    rng = np.random.default_rng([seed, len(images)])
    rows = classifier_steps.rows_in_random_order(len(images), batch_size, rng)
    training = classifier_steps.train(
        model,
        ((augment(images[chosen], config, rng), labels[chosen]) for chosen in rows),
        config.num_epochs * steps,
        learning_rate=config.learning_rate,
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
    )
    predict = _make_predict(model)
    best: tuple[tuple[float, float], int, list[np.ndarray]] = (-np.inf, -np.inf), 0, []
    with progress.bar(config.num_epochs, name, 'epoch', delay_secs=_BAR_DELAY_SECS, leave=False) as bar:
        for epoch in range(config.num_epochs):
            for _ in range(steps):
                next(training)
            bar.update()
            if validation is None:
                continue
            score = _score(predict, *validation)
            if score > best[0]:
                best = score, epoch, model.get_weights()
            elif epoch - best[1] >= config.patience:
                break
    if best[2]:
        model.set_weights(best[2])
    return predict


def augment(images: np.ndarray, config: TrainingConfig, rng: np.random.Generator) -> np.ndarray:
    """Moves and mirrors images at random.

    Args:
      images: uint8 [batch, height, width, channels].
      config: By how much, and whether.
      rng: The source of randomness.

    Returns:
      uint8 [batch, height, width, channels].
    """
    batch, height, width, _ = images.shape
    down, right = (int(config.shift * side + 0.5) for side in (height, width))
    if down or right:
        padded = np.pad(images, ((0, 0), (down, down), (right, right), (0, 0)))
        rows = rng.integers(0, 2 * down, [batch], endpoint=True)[:, None] + np.arange(height)
        columns = rng.integers(0, 2 * right, [batch], endpoint=True)[:, None] + np.arange(width)
        images = padded[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if config.flip:
        images = np.where(rng.random([batch])[:, None, None, None] < 0.5, images[:, :, ::-1], images)
    return images


def _make_predict(model: keras.Model) -> Predict:

    @tf.function(input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)])
    def probabilities(images):
        found = tf.nn.softmax(model(images, training=False))
        # A network that diverged knows nothing.
        return tf.where(tf.math.is_nan(found), 1.0 / found.shape[-1], found)

    def predict(images):
        chunks = range(0, len(images), _PREDICTED_AT_A_TIME)
        return np.concatenate(
            [probabilities(tf.constant(images[start : start + _PREDICTED_AT_A_TIME])).numpy() for start in chunks]
        )

    return predict


def _score(predict: Predict, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns accuracy and, where it is equal, what decides: minus the mean cross-entropy."""
    probabilities = predict(images)
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(np.mean(probabilities.argmax(axis=-1) == labels)), float(np.mean(np.log(of_label + 1e-9)))
