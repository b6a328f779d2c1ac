"""Owners: units of several images, each of which counts in part."""

import numpy as np


def shares(num_images: int, owners: np.ndarray | None) -> np.ndarray:
    """Returns the weight of each image in a sum over units.

    Use it where units of several images are released without DP-SGD, which averages their gradients instead.

    Guarantee: the shares of an owner's images add up to 1 (within rounding), so a unit adds to a sum weighted by them
      a mean of what its images would add, whose norm is at most the largest of theirs. Removing an owner changes the
      share of no other. An owner without images has no share.

    Args:
      num_images: Number of images.
      owners: int [num_images], whose image each is, numbered from 0, or None: each image is a unit of its own.

    Returns:
      float64 [num_images], in (0, 1].

    Raises:
      ValueError: there is not one owner for each image, or a negative one.
    """
    if owners is None:
        return np.ones([num_images])
    if np.shape(owners) != (num_images,) or np.min(owners, initial=0) < 0:
        raise ValueError(f'owners must name one for each of {num_images} images, by numbers from 0.')
    return 1.0 / np.bincount(owners)[owners]
