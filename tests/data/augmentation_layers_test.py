"""Tests of the variations by whole pixels, against tf.pad with tf.image and NumPy an image at a time."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tf_dpdiff.data import augmentation_layers


class Uniforms:
    """A random generator that hands out given columns."""

    def __init__(self, *columns):
        self._columns = list(columns)

    def uniform(self, shape):
        """Returns the next column."""
        column = tf.constant(self._columns.pop(0), tf.float32)
        assert column.shape == shape
        return column


def some_images(batch, height, width):
    return tf.constant(np.random.default_rng(0).normal(size=[batch, height, width, 3]), tf.float32)


@pytest.mark.parametrize('pad, height, width', [(1, 5, 7), (4, 8, 5), (3, 4, 4)])
def test_crop_is_that_of_an_image_padded_by_tf_pad(pad, height, width):
    offsets = [(row, column) for row in range(-pad, pad + 1) for column in range(-pad, pad + 1)]
    images = some_images(len(offsets), height, width)
    cropped = augmentation_layers.PadAndCrop(pad, None).augment_images(
        images, tuple(tf.constant(axis, tf.int32) for axis in zip(*offsets))
    )
    for image, ours, (row, column) in zip(images, cropped, offsets):
        padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]], 'REFLECT')
        expected = tf.image.crop_to_bounding_box(padded, pad + row, pad + column, height, width)
        np.testing.assert_array_equal(ours, expected)


def offsets_of(pad, *columns):
    drawn = augmentation_layers.PadAndCrop(pad, Uniforms(*columns)).get_random_transformation_batch(len(columns[0]))
    return [offset.numpy() for offset in drawn]


@pytest.mark.parametrize('pad', [1, 4, 127])
def test_offsets_are_equal_parts_of_the_range_of_a_uniform(pad):
    middles = (np.arange(2 * pad + 1) + 0.5) / (2 * pad + 1)
    rows, columns = offsets_of(pad, middles, middles[::-1])
    np.testing.assert_array_equal(rows, np.arange(-pad, pad + 1))
    np.testing.assert_array_equal(columns, rows[::-1])
    last = np.nextafter(np.float32(1.0), np.float32(0.0))
    np.testing.assert_array_equal(offsets_of(pad, [0.0, last], [last, 0.0]), [[-pad, pad], [pad, -pad]])


def p_value_of_equal_chance(uniforms, pad=4):
    """Returns the chance of counts of offsets that are at least as uneven, if all are equally likely."""
    rows, columns = offsets_of(pad, *uniforms.T)
    counts = np.bincount((rows + pad) * (2 * pad + 1) + columns + pad, minlength=(2 * pad + 1) ** 2)
    assert counts.size == (2 * pad + 1) ** 2
    return scipy.stats.chisquare(counts).pvalue


def test_all_offsets_are_equally_likely():
    uniforms = tf.random.stateless_uniform([20000, 2], [3, 4], alg='philox').numpy()
    assert p_value_of_equal_chance(uniforms) > 1e-3
    # Controls: rounding to the nearest makes the ends half as likely; one number for both axes ties them together.
    assert p_value_of_equal_chance((np.round(uniforms * 8) + 0.5) / 9) < 1e-9
    assert p_value_of_equal_chance(uniforms[:, [0, 0]]) < 1e-9


@pytest.mark.parametrize(
    'uniform, quarters', [(0.0, 0), (0.24, 0), (0.26, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.999, 3)]
)
def test_quarter_turns_swap_and_mirror_the_axes(uniform, quarters):
    images = some_images(2, 5, 5).numpy()
    turn = augmentation_layers.QuarterTurns(Uniforms([uniform, 0.1]))
    turned = turn.augment_images(tf.constant(images), turn.get_random_transformation_batch(2))
    transposed = images[0].transpose(1, 0, 2)
    expected = [images[0], transposed[::-1], images[0, ::-1, ::-1], transposed[:, ::-1]]
    np.testing.assert_array_equal(turned[0], expected[quarters])
    np.testing.assert_array_equal(turned[1], images[1])
    assert quarters == 0 or np.abs(turned[0] - images[0]).max() > 0.1
