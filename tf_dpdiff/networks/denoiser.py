"""What a denoising network is to the rest of the program: built from a configuration, called, and trained in part.

Whoever uses a network knows it by what is here, and knows no kind of network by its name. `kinds.py` lists the kinds.
"""

import abc
from collections.abc import Sequence
import dataclasses
from typing import ClassVar

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.keras import layers
from tf_dpdiff.networks import layers as blocks

_CLASS_EMBEDDING = 'class_embedding'


class DenoiserConfig(abc.ABC):
    """The configuration of a denoising network; each kind of network inherits from it.

    A subclass is a frozen dataclass, checked on construction, whose fields are numbers, texts, and tuples of them, so
    that it can be written as JSON.

    Attributes:
      kind: The name of this kind of network in files and of its Keras models.
      compute_dtype: What it computes in, one of `precision.COMPUTE_DTYPES`; variables and prediction are float32.
      dropout: Rate of its dropout. Above 0 the network is called with seeds; see `denoise`.
      adapter_rank: Rank of its low-rank adapters; above 0 it has adapter_alpha and adapter_targets too, see
        `adapters.Adapters`.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]
    kind: ClassVar[str]
    compute_dtype: str
    # Of a kind without such fields.
    dropout: float = 0.0
    adapter_rank: int = 0
    adapter_alpha: float

    @property
    @abc.abstractmethod
    def size(self) -> dict[str, int]:
        """The fields that say how large the network is, by name: what sweeps are made over."""

    def resized(self, image_shape: Sequence[int], other_shape: Sequence[int]) -> 'DenoiserConfig':
        """Returns the configuration of the same layers for images of another shape, so that weights for one fit both.

        Args:
          image_shape: (height, width, channels) that this configuration is for.
          other_shape: Those that the new one is for.
        """
        del image_shape, other_shape
        return self

    @abc.abstractmethod
    def check_image_shape(self, image_shape: Sequence[int]) -> None:
        """Refuses images, (height, width, channels), that the network cannot be built for.

        Raises:
          ValueError: one line that says which field to change.
        """

    @abc.abstractmethod
    def connect(
        self, x_t: tf.Tensor, t: tf.Tensor, labels: tf.Tensor, dropout_seeds: tf.Tensor | None, *, num_classes: int
    ) -> tf.Tensor:
        """Connects the network's layers to its inputs.

        Labels go through a `layers.ClassEmbedding` called 'class_embedding'. Names of variables are paths that depend
        on the configuration alone. No layer draws random numbers, mixes the examples of a batch, keeps statistics of
        them, or computes what `tf.vectorized_map` would run in a loop.

        Args:
          x_t: A Keras input, float32 [batch, height, width, channels].
          t: A Keras input, int32 [batch].
          labels: A Keras input, int32 [batch].
          dropout_seeds: A Keras input, int32 [batch]; None for a network without dropout.
          num_classes: Number of classes; the label num_classes stands for "no class".

        Returns:
          The prediction, float32 of the shape of x_t.
        """


def build(config: DenoiserConfig, image_shape: Sequence[int], num_classes: int) -> keras.Model:
    """Builds a network; `denoise` calls it.

    Args:
      config: Its kind and shape.
      image_shape: (height, width, channels).
      num_classes: Number of classes; the label num_classes stands for "no class".

    Returns:
      A Keras model of [x_t float [batch, height, width, channels], t int32 [batch], labels int32 [batch]] to the
      prediction, float32 [batch, height, width, channels]. With dropout it has a fourth input: dropout_seeds, int32
      [batch], see `dropout.SeededDropout`.

    Raises:
      ValueError: if it cannot be built for such images.
    """
    config.check_image_shape(image_shape)
    x_t = layers.Input(list(image_shape), name='x_t')
    t, labels = (layers.Input([], dtype=tf.int32, name=name) for name in ('t', 'labels'))
    seeds = layers.Input([], dtype=tf.int32, name='dropout_seeds') if config.dropout else None
    prediction = config.connect(x_t, t, labels, seeds, num_classes=num_classes)
    inputs = [x_t, t, labels] if seeds is None else [x_t, t, labels, seeds]
    return keras.Model(inputs, prediction, name=config.kind)


def denoise(
    model: keras.Model,
    x_t: tf.Tensor,
    t: tf.Tensor,
    labels: tf.Tensor,
    *,
    dropout_seeds: tf.Tensor | None = None,
    training: bool = False,
) -> tf.Tensor:
    """Calls the network, whether or not it has dropout.

    Args:
      model: From `build`.
      x_t: float [batch, height, width, channels].
      t: int32 [batch].
      labels: int32 [batch].
      dropout_seeds: int32 [batch], what the dropout of each image is drawn from. Needed to train a network with
        dropout; means nothing otherwise.
      training: Whether dropout is on.

    Returns:
      The prediction, float32 [batch, height, width, channels].

    Raises:
      ValueError: if a network with dropout is trained without seeds.
    """
    inputs = [x_t, t, labels]
    if len(model.inputs) == 4:
        if training and dropout_seeds is None:
            raise ValueError('a network with dropout is trained with dropout_seeds, one a view.')
        inputs.append(tf.zeros_like(t, tf.int32) if dropout_seeds is None else dropout_seeds)
    return model(inputs, training=training)


def select_variables(model: keras.Model, patterns: Sequence[str]) -> list[tf.Variable]:
    """Returns the trainable variables whose name contains one of the patterns, in the model's order.

    Args:
      model: The network.
      patterns: Substrings of variable names such as 'norm', 'embedding', 'conv_out'; empty for all variables.

    Raises:
      ValueError: for a pattern that matches nothing.
    """
    if not patterns:
        return list(model.trainable_variables)
    for pattern in patterns:
        if not any(pattern in v.name for v in model.trainable_variables):
            parts = sorted({part for v in model.trainable_variables for part in v.name.split(':')[0].split('/')})
            raise ValueError(f'no trainable variable matches {pattern!r}; name one of: {", ".join(parts)}.')
    return [v for v in model.trainable_variables if any(pattern in v.name for pattern in patterns)]


def class_embedding(model: keras.Model) -> blocks.ClassEmbedding:
    """Returns the layer that embeds the classes: what of a network belongs to a data set and to no other."""
    return model.get_layer(_CLASS_EMBEDDING)
