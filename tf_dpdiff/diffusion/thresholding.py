"""Keeps the images that a network predicts within the range of images."""

import numpy as np
import tensorflow as tf

THRESHOLDINGS = ('static', 'dynamic', 'none')


def threshold(x_start: tf.Tensor, name: str, *, dynamic_percentile: float) -> tf.Tensor:
    """Returns predicted images within [-1, 1], but for 'none'.

    Args:
      x_start: float32 [batch, height, width, channels], all but the batch known.
      name: 'static' (what is outside is cut off), 'dynamic' (where a percentile s of an image's absolute pixels exceeds
        1, the image is cut off at s and divided by s, which keeps strongly guided images from saturating) or 'none'.
      dynamic_percentile: Which one, for 'dynamic'.

    References: Saharia et al. 2022, arXiv:2205.11487, section 2.3.
    """
    check(name, dynamic_percentile)
    if name == 'none':
        return x_start
    if name == 'static':
        return tf.clip_by_value(x_start, -1.0, 1.0)
    limit = tf.maximum(percentile_of_pixels(tf.abs(x_start), dynamic_percentile), 1.0)[:, None, None, None]
    return tf.clip_by_value(x_start, -limit, limit) / limit


def percentile_of_pixels(images: tf.Tensor, percentile: float) -> tf.Tensor:
    """Returns a percentile, in [0, 1], of each image's pixels, interpolated linearly; float32 [batch]."""
    num_pixels = int(np.prod(images.shape[1:]))
    in_order = tf.sort(tf.reshape(images, [-1, num_pixels]), axis=1)
    position = percentile * (num_pixels - 1)
    below, share = int(position), position % 1.0
    above = min(below + 1, num_pixels - 1)
    return in_order[:, below] + share * (in_order[:, above] - in_order[:, below])


def check(name: str, dynamic_percentile: float) -> None:
    """Raises ValueError for an unknown thresholding, or a percentile outside of (0, 1]."""
    if name not in THRESHOLDINGS:
        raise ValueError(f'thresholding must be one of {THRESHOLDINGS}, got {name!r}.')
    if not 0.0 < dynamic_percentile <= 1.0:
        raise ValueError(f'dynamic_percentile must be in (0, 1], got {dynamic_percentile}.')
