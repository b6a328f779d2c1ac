"""Small details that tell classes apart, wherever in an image they lie: found by which kinds of patches a class has.

The mean of a class shows nothing of a detail whose place varies: a parasite in a blood cell becomes a faint haze. So
images are counted by their patches first, class by class and under noise. A kind of patch that is frequent in one class
and rare in the others tells of it. Each image is then moved so that the patch that tells most of its class lies in the
middle of a cell of a grid, and joins the mean of that cell: there the details of many images lie on each other.
"""

import math

import numpy as np
from scipy import ndimage

from tf_dpdiff.privacy import noise

# Kinds of patches: levels of each colour, or levels of grey times those of how much it varies within a patch.
_COLOUR_LEVELS, _GREY_LEVELS, _RANGE_LEVELS = 6, 12, 4
_SIDE_OF_PATCHES = 32  # Sides of images at which a patch has three pixels a side.
# A kind of patch tells of a class that has it so many times as often as the others do.
_TELLING_RATIO = 3.0
# What such patches cover of the images of a class for them to be details: less is noise, more shows in a mean anyway.
_LEAST_AREA, _LARGEST_AREA = 0.002, 0.1
_BLUR = 0.6  # Of details, in pixels: it takes half of their noise.


def num_kinds(image_shape: tuple[int, ...]) -> int:
    """Returns how many kinds of patches are told apart in images of a shape (height, width, channels)."""
    return _COLOUR_LEVELS**3 if image_shape[-1] == 3 else _GREY_LEVELS * _RANGE_LEVELS


def frequencies(images: np.ndarray) -> np.ndarray:
    """Returns the roots of the frequencies of each kind of patch in each image: vectors of norm 1.

    Roots, since rare kinds are what matters: one pixel in a hundred weighs a tenth.

    Args:
      images: float [images, height, width, channels], finite; pixels are clipped to [0, 1].

    Returns:
      float64 [images, num_kinds].
    """
    kinds = _kinds(images).reshape(len(images), -1)
    counts = np.zeros([len(images), num_kinds(images.shape[1:])])
    np.add.at(counts, (np.arange(len(images))[:, None], kinds), 1.0)
    return np.sqrt(counts / kinds.shape[1])


def find(noisy: np.ndarray, counts: np.ndarray, stddev: float) -> np.ndarray | None:
    """Returns what each kind of patch tells of each class, or None where no small details tell them apart.

    Args:
      noisy: float [num_classes, num_kinds], sums over the images of a class of `frequencies`, with noise.
      counts: float [num_classes], how many images a class has, with noise.
      stddev: The standard deviation of the noise on the sums.

    Returns:
      float64 [num_classes, num_kinds], logarithms of how much more frequent a kind is in a class than in the others. It
      is found where patches that surely tell of a class cover a small part of its images, for half of the classes.
    """
    if len(noisy) < 2:
        return None
    sums = np.maximum(noisy, 0.0) + noise.SURE * stddev  # So that what noise may have made tells little.
    others = sums.sum(axis=0) - sums
    told = np.log(sums / sums.sum(axis=1, keepdims=True)) - np.log(others / others.sum(axis=1, keepdims=True))
    telling = (noisy > noise.SURE * stddev) & (told > math.log(_TELLING_RATIO))
    areas = np.sum((noisy / np.maximum(counts, 1.0)[:, None]) ** 2 * telling, axis=1)
    has_details = (areas >= _LEAST_AREA) & (areas <= _LARGEST_AREA)
    return told if 2 * np.sum(has_details) >= len(noisy) else None


def align(
    images: np.ndarray, labels: np.ndarray, told: np.ndarray, cells_per_side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Moves the patch that tells most of the class of its image to the middle of the cell of a grid that it lies in.

    Args:
      images: float [images, height, width, channels], finite.
      labels: int [images].
      told: As `find` returns it.
      cells_per_side: Of the grid, >= 1.

    Returns:
      The moved images, whose borders are repeated where they moved away from, and the cell of each, int [images], in
      [0, cells_per_side^2). Each depends on its image, its label and `told` alone.
    """
    height, width = images.shape[1:3]
    kinds = _kinds(images)
    around = ndimage.uniform_filter(told[labels[:, None, None], kinds], (1, *_patch(images)), mode='nearest')
    rows, columns = np.divmod(around.reshape(len(images), -1).argmax(axis=1), width)
    (cell_row, middle_row), (cell_column, middle_column) = (
        _cell(place, side, cells_per_side) for place, side in ((rows, height), (columns, width))
    )
    from_rows = np.clip(np.arange(height) + (rows - middle_row)[:, None], 0, height - 1)
    from_columns = np.clip(np.arange(width) + (columns - middle_column)[:, None], 0, width - 1)
    number = np.arange(len(images))[:, None, None]
    moved = images[number, from_rows[:, :, None], from_columns[:, None, :]]
    return moved, cell_row * cells_per_side + cell_column


def restore(noisy: np.ndarray, smoothed: np.ndarray, stddev: float) -> np.ndarray:
    """Returns smoothed sums of images with the details that smoothing took away, where noise can't have made them.

    Args:
      noisy: float [..., height, width, channels], sums with independent Gaussian noise in each number.
      smoothed: The same after smoothing.
      stddev: The standard deviation of the noise.
    """
    axes = (noisy.ndim - 3, noisy.ndim - 2)
    missing = ndimage.uniform_filter(noisy - smoothed, 3, mode='nearest', axes=axes)
    limit = noise.SURE * stddev / 3.0  # Of the average of nine pixels.
    share = np.maximum(0.0, 1.0 - (limit / np.maximum(np.abs(missing), 1e-12)) ** 2)
    return smoothed + share * (ndimage.gaussian_filter(noisy, _BLUR, mode='nearest', axes=axes) - smoothed)


def _patch(images: np.ndarray) -> tuple[int, int]:
    """Returns the height and width of a patch, odd numbers of pixels."""
    side = 2 * round(min(images.shape[1:3]) / _SIDE_OF_PATCHES) + 1
    return side, side


def _kinds(images: np.ndarray) -> np.ndarray:
    """Returns of which kind the patch around each pixel is, int [images, height, width]."""
    size, images = (1, *_patch(images), 1), np.clip(images, 0.0, 1.0)
    if images.shape[-1] == 3:
        levels = _levels(ndimage.uniform_filter(images, size, mode='nearest'), _COLOUR_LEVELS)
        return (levels[..., 0] * _COLOUR_LEVELS + levels[..., 1]) * _COLOUR_LEVELS + levels[..., 2]
    grey = images.mean(axis=-1, keepdims=True)
    ranges = ndimage.maximum_filter(grey, size) - ndimage.minimum_filter(grey, size)
    levels = _levels(ndimage.uniform_filter(grey, size, mode='nearest'), _GREY_LEVELS)
    return (levels * _RANGE_LEVELS + _levels(ranges, _RANGE_LEVELS))[..., 0]


def _levels(values: np.ndarray, num_levels: int) -> np.ndarray:
    return (values * num_levels).astype(np.int64).clip(0, num_levels - 1)


def _cell(places: np.ndarray, side: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns in which cell of a side places lie, and the pixel in the middle of that cell."""
    numbers = places * cells // side
    return numbers, np.floor((numbers + 0.5) * side / cells).astype(np.int64)
