"""Exponential moving average of weights, with a warm-up."""

import tensorflow as tf


def ema_decay(max_decay: float, num_updates: tf.Tensor) -> tf.Tensor:
    """Returns min(max_decay, (1 + n) / (10 + n)), float32.

    DP-SGD takes few steps: a plain decay of 0.9999 over 200 of them would keep 98% of the initial weights.

    Args:
      max_decay: In [0, 1).
      num_updates: n, updates made before this one.

    Example:
        >>> [round(float(ema_decay(0.999, n)), 2) for n in (0, 90)]
        [0.1, 0.91]
    """
    n = tf.cast(num_updates, tf.float32)
    return tf.minimum(tf.constant(max_decay, tf.float32), (1.0 + n) / (10.0 + n))


def update_average(average: tf.Variable, variable: tf.Variable, decay: tf.Tensor) -> None:
    """Moves an average towards its variable: average <- decay * average + (1 - decay) * variable."""
    average.assign_sub((1.0 - decay) * (average - tf.cast(variable, average.dtype)))
