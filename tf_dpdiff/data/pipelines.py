"""From data sets and indices to batches of arrays."""

from typing import Tuple

import numpy as np

from tf_dpdiff.data.datasets import ImageDataset


def gather(dataset: ImageDataset, indices: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the images and labels of an index batch.

    Args:
      dataset: Where from.
      indices: int64 [batch]; negative ones are padding.

    Returns:
      uint8 [batch, height, width, channels] and int32 [batch]; padding is black with label 0, so no pixel of a unit
      that was not drawn reaches the step.
    """
    is_padding = indices < 0
    units = np.where(is_padding, 0, indices)
    images, labels = dataset.images_uint8[units], dataset.labels[units]
    images[is_padding], labels[is_padding] = 0, 0
    return images, labels


def random_indices(num_images: int, batch_size: int, *, seed: int, step: int) -> np.ndarray:
    """Returns the indices of a public training batch, drawn with replacement: a function of (seed, step) alone.

    Args:
      num_images: Images to draw from.
      batch_size: Indices to draw.
      seed: Public.
      step: Counted from 0.

    Returns:
      int64 [batch_size], each in [0, num_images).
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64)))
    return generator.integers(0, num_images, batch_size)
