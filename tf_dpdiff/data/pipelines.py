"""From data sets and indices to batches of arrays."""

import numpy as np

from tf_dpdiff.data.datasets import ImageDataset


def gather(dataset: ImageDataset, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images and labels of an index batch.

    Args:
      dataset: Where from.
      indices: int64 [...]; negative ones are padding.

    Returns:
      uint8 [..., height, width, channels] and int32 [...]; padding is black with label 0, so no pixel of a unit
      that was not drawn reaches the step.
    """
    is_padding = indices < 0
    units = np.where(is_padding, 0, indices)
    images, labels = dataset.images_uint8[units], dataset.labels[units]
    images[is_padding], labels[is_padding] = 0, 0
    return images, labels


def gather_units(
    dataset: ImageDataset, units: np.ndarray, *, num_views: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the images that the views of each unit of an index batch look at.

    Where the data set names owners, each view picks one of its owner's images at random: a function of (seed, step,
    unit) alone, whichever units are drawn beside it. An owner without images becomes padding.

    Args:
      dataset: Where from.
      units: int64 [batch], negative ones are padding.
      num_views: Views a unit.
      seed: Secret.
      step: Counted from 0.

    Returns:
      Images uint8 [batch, views, height, width, channels], labels int32 [batch, views], and the units, int64 [batch],
      with absent ones as padding. There is one view where a unit is one image: all its views look at the same.
    """
    order, starts = dataset.images_by_unit
    known = np.maximum(units, 0)
    counts = np.where(units < 0, 0, starts[known + 1] - starts[known])
    units = np.where(counts > 0, units, -1)
    if dataset.owners is None:
        indices = units[:, None]
    else:
        indices = np.full([len(units), num_views], -1)
        for row in np.flatnonzero(counts):
            key = np.array([seed, step * 2**32 + units[row]], np.uint64)
            picks = np.random.Generator(np.random.Philox(key=key)).integers(counts[row], size=num_views)
            indices[row] = order[starts[units[row]] + picks]
    images, labels = gather(dataset, indices)
    return images, labels, units


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
