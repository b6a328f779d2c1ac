"""The training loss of each view."""

import tensorflow as tf


def view_losses(prediction: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Returns the mean squared error of each view: reduced over pixels, never over views or units.

    Args:
      prediction: float [..., height, width, channels], the network's output.
      target: float32, same shape; see `parameterization.training_target`.

    Returns:
      float32 [...].

    References: Ho et al. 2020, arXiv:2006.11239, equation 14.
    """
    return tf.reduce_mean(tf.square(tf.cast(prediction, tf.float32) - target), axis=[-3, -2, -1])
