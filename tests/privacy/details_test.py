"""Tests of small details: they are found where there are any, and lie on each other once images are moved."""

import numpy as np
import pytest

from tf_dpdiff.privacy import details

DOT = {1: 0.9, 3: (0.5, 0.1, 0.6)}


def make_cells(num_images=600, side=32, channels=3, dots=(0, 1), seed=0):
    """Returns grey discs that differ in tone, with a dot of 3x3 pixels anywhere in those of some classes.

    Args:
      num_images: Of two classes by turns.
      side: Of the images.
      channels: 1 or 3.
      dots: How many dots images of each class have.
      seed: Of the images.

    Returns:
      The images in [0, 1], their labels and the rows and columns of the dots, -1 where there is none.
    """
    generator = np.random.default_rng(seed)
    axis = np.arange(side) - (side - 1) / 2.0
    disc = (axis[:, None] ** 2 + axis[None, :] ** 2 < (side / 2.2) ** 2)[..., None]
    tone = generator.uniform(0.4, 0.6, [num_images, 1, 1, 1])
    images = np.repeat(disc * tone, channels, axis=-1) + generator.normal(0.0, 0.01, [num_images, side, side, channels])
    labels = np.arange(num_images) % 2
    places = np.full([num_images, 2], -1)
    for number in range(num_images):
        for _ in range(dots[labels[number]]):
            row, column = places[number] = generator.integers(side // 4, side - side // 4, 2)
            images[number, row - 1 : row + 2, column - 1 : column + 2] = DOT[channels]
    return np.clip(images, 0.0, 1.0), labels, places


def find(images, labels, stddev=1.0):
    roots = details.frequencies(images)
    sums = np.stack([roots[labels == label].sum(axis=0) for label in range(2)])
    noisy = sums + np.random.default_rng(0).normal(0.0, stddev, sums.shape)
    return details.find(noisy, np.bincount(labels).astype(float), stddev)


@pytest.mark.parametrize('shape', [(32, 32, 3), (28, 20, 1), (64, 64, 3), (8, 8, 1)])
@pytest.mark.parametrize('scale', [1.0, 1e-9, 1e300])
def test_frequencies_of_any_image_are_a_vector_of_norm_1(shape, scale):
    images = np.random.default_rng(0).uniform(-scale, scale, [5, *shape])
    roots = details.frequencies(images)
    assert roots.shape == (5, details.num_kinds(shape))
    np.testing.assert_allclose(np.linalg.norm(roots, axis=1), 1.0)


def test_frequencies_and_places_of_an_image_depend_on_no_other():
    images, labels, _ = make_cells(20)
    told = np.random.default_rng(1).normal(size=[2, details.num_kinds(images.shape[1:])])
    together, cells = details.align(images, labels, told, 4)
    for number in range(20):
        one = slice(number, number + 1)
        np.testing.assert_array_equal(details.frequencies(images)[one], details.frequencies(images[one]))
        moved, cell = details.align(images[one], labels[one], told, 4)
        np.testing.assert_array_equal(together[one], moved)
        np.testing.assert_array_equal(cells[one], cell)


@pytest.mark.parametrize('channels', [1, 3])
def test_dots_of_one_class_are_found_and_moved_to_the_middle_of_their_cells(channels):
    images, labels, places = make_cells(channels=channels)
    told = find(images, labels)
    assert told is not None
    moved, cells = details.align(images, labels, told, 4)
    with_dot = labels == 1
    middles = np.array([4, 12, 20, 28])
    expected = places[with_dot] // 8
    found = np.stack(np.divmod(cells[with_dot], 4), axis=1)
    # The darkest or brightest of the nine pixels of a dot may be its rim, which may lie in the next cell.
    assert np.mean(np.all(found == expected, axis=1)) > 0.7
    rows, columns = middles[found[:, 0]], middles[found[:, 1]]
    at_middle = moved[with_dot][np.arange(np.sum(with_dot)), rows, columns]
    assert np.mean(np.abs(at_middle - DOT[channels]).max(axis=-1) < 0.1) > 0.9
    # Control: not so before.
    before = images[with_dot][np.arange(np.sum(with_dot)), rows, columns]
    assert np.mean(np.abs(before - DOT[channels]).max(axis=-1) < 0.1) < 0.5


@pytest.mark.parametrize('dots', [(0, 0), (1, 1)])
def test_nothing_is_found_where_classes_have_the_same_details(dots):
    images, labels, _ = make_cells(dots=dots)
    assert find(images, labels) is None


def test_nothing_is_found_in_noise_alone_or_in_what_covers_much_of_an_image_or_of_one_class():
    images, labels, _ = make_cells()
    assert find(images, labels) is not None
    assert find(images, labels, stddev=100.0) is None
    for seed in range(50):
        noise = np.random.default_rng(seed).normal(0.0, 3.0, [2, 216])
        assert details.find(noise, np.full([2], 1000.0), 3.0) is None
    images[labels == 1] = images[labels == 1] * (1.0, 0.4, 0.4)  # What a mean shows.
    assert find(images, labels) is None
    sums = details.frequencies(images).sum(axis=0, keepdims=True)
    assert details.find(sums, np.array([600.0]), 1.0) is None


def test_restoring_keeps_what_stands_out_and_no_noise():
    generator = np.random.default_rng(0)
    smoothed = np.full([3, 32, 32, 3], 5.0)
    sums = smoothed.copy()
    sums[1, 10:13, 20:23] += 8.0
    noisy = sums + generator.normal(size=sums.shape)
    restored = details.restore(noisy, smoothed, 1.0)
    assert abs(restored[1, 11, 21].mean() - 13.0) < 1.5
    far = np.ones([32, 32], bool)
    far[7:16, 17:26] = False
    assert np.sqrt(np.mean((restored - smoothed)[:, far] ** 2)) < 0.1
    # Control: noise believed to be far smaller is kept.
    kept = details.restore(noisy, smoothed, 0.01)
    assert np.sqrt(np.mean((kept - smoothed)[:, far] ** 2)) > 0.3


def test_cells_of_sides_that_they_do_not_divide_hold_all_pixels_and_their_middles_lie_in_them():
    for side, cells in ((28, 4), (30, 4), (33, 3), (9, 2)):
        numbers, middles = details._cell(np.arange(side), side, cells)
        assert numbers.min() == 0 and numbers.max() == cells - 1 and (np.diff(numbers) >= 0).all()
        again, _ = details._cell(middles, side, cells)
        np.testing.assert_array_equal(again, numbers)
