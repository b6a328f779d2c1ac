"""Classifier-free guidance: images that show their class more clearly, at the price of variety."""

from collections.abc import Callable
import math

import tensorflow as tf


def guide(
    denoiser: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
    labels: tf.Tensor,
    *,
    scale: float,
    num_classes: int,
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns the network's prediction for labels, guided away from what it predicts without them.

    guided = unconditional + scale * (conditional - unconditional). With scale 1 that is the conditional prediction and
    costs one evaluation of the batch; with any other, one of twice the batch. The network must have been trained with
    labels dropped.

    Args:
      denoiser: Maps x_t, float32 [batch, height, width, channels], t, int32 [batch], and labels, int32 [batch], to a
        prediction.
      labels: int32 [batch].
      scale: At least 0; 0 ignores the labels, above 1 exaggerates them.
      num_classes: The label that stands for "no class".

    Returns:
      A function from x_t and t, int32 scalar, to the prediction, float32, shape of x_t.

    References: Ho and Salimans 2022, arXiv:2207.12598, equation 6, whose w is scale - 1.
    """
    check(scale)

    def conditional(x_t: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        return tf.cast(denoiser(x_t, tf.fill(tf.shape(labels), t), labels), tf.float32)

    def guided(x_t: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        both = tf.concat([labels, tf.fill(tf.shape(labels), tf.cast(num_classes, labels.dtype))], axis=0)
        prediction = tf.cast(denoiser(tf.concat([x_t, x_t], axis=0), tf.fill(tf.shape(both), t), both), tf.float32)
        with_class, without = tf.split(prediction, 2)
        return without + scale * (with_class - without)

    return conditional if scale == 1.0 else guided


def check(scale: float) -> None:
    """Raises ValueError for a scale that is no finite number of at least 0."""
    if not 0.0 <= scale < math.inf:
        raise ValueError(f'guidance_scale must be a finite number, at least 0, got {scale}.')
