"""Random variations of images by whole pixels, which KerasCV has not or not exactly.

The classes have the methods with which KerasCV's layers draw and apply, so that what drives those layers drives these
too. They move pixels and compute nothing: images may lie in any range, and each pixel of the outcome is, bit for bit,
one of the image.
"""

import numpy as np
import tensorflow as tf


class PadAndCrop:
    """Mirrors an image beyond its edges and crops a window of its size from a place of equal chance.

    The usual variation of small photographs, with 4 pixels at 32 x 32. KerasCV's RandomTranslation interpolates between
    pixels; its RandomCrop resizes the window, which skips a row or a column in every third image or so, and begins at
    the outermost places half as often as at others.

    Args:
      pad: Pixels on each side, at least 1 and below height and width. The pixel of the edge itself is not repeated, as
        in tf.pad's 'REFLECT'.
      random_generator: Has the method uniform(shape) of Keras's random generators.

    Example:
        >>> move = PadAndCrop(1, random_generator=None)
        >>> image = tf.reshape(tf.range(9), [1, 3, 3, 1])
        >>> move.augment_images(image, (tf.constant([1]), tf.constant([-1])))[0, :, :, 0].numpy().tolist()
        [[4, 3, 4], [7, 6, 7], [4, 3, 4]]

    References: He et al. 2016, arXiv:1512.03385, section 4.2, where zeros stand beyond the edges.
    """

    def __init__(self, pad: int, random_generator):
        self._pad = pad
        self._random_generator = random_generator

    def get_random_transformation_batch(self, batch_size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws where each window begins: int32 [batch] rows and columns in [-pad, pad] from that of the image."""
        return self._offset(batch_size), self._offset(batch_size)

    def _offset(self, batch_size) -> tf.Tensor:
        num_offsets = 2 * self._pad + 1
        offset = tf.cast(tf.floor(self._random_generator.uniform([batch_size]) * num_offsets), tf.int32)
        # The product may have been rounded up.
        return tf.minimum(offset, num_offsets - 1) - self._pad

    def augment_images(self, images: tf.Tensor, transformations: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Returns the windows of [batch, height, width, channels] that begin at the given offsets."""
        rows, columns = transformations
        height, width = images.shape[1:3]
        # Two gathers instead of a padded copy and a loop over the images.
        images = tf.gather(images, _mirrored(rows, height), axis=1, batch_dims=1)
        return tf.gather(images, _mirrored(columns, width), axis=2, batch_dims=1)


def _mirrored(first: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the positions of `size` places from `first` on, in a line of pixels that is mirrored at its ends."""
    places = tf.abs(first[:, None] + tf.range(size))
    return (size - 1) - tf.abs((size - 1) - places)


class QuarterTurns:
    """Turns a square image by 0, 1, 2 or 3 quarters to the left, each as likely.

    For images that have no upright position, such as tissue under a microscope.

    Args:
      random_generator: Has the method uniform(shape) of Keras's random generators.
    """

    def __init__(self, random_generator):
        self._random_generator = random_generator

    def get_random_transformation_batch(self, batch_size: tf.Tensor) -> tf.Tensor:
        """Draws the number of quarters, int32 [batch]."""
        return tf.cast(tf.floor(self._random_generator.uniform([batch_size]) * 4.0), tf.int32)

    def augment_images(self, images: tf.Tensor, transformations: tf.Tensor) -> tf.Tensor:
        """Returns [batch, size, size, channels] turned by the given numbers of quarters."""
        size, channels = images.shape[2:]
        places = np.arange(size * size, dtype=np.int32).reshape([size, size])
        # Which pixel comes to stand where: one gather takes a quarter of the time of choosing among turned copies.
        sources = tf.constant(np.stack([np.rot90(places, quarters).ravel() for quarters in range(4)]))
        pixels = tf.reshape(images, [-1, size * size, channels])
        pixels = tf.gather(pixels, tf.gather(sources, transformations), axis=1, batch_dims=1)
        return tf.reshape(pixels, [-1, size, size, channels])
