"""Tests of pictures: grids of images. Plots are tested with what they show."""

import numpy as np
from PIL import Image
import pytest

from tf_dpdiff.evaluation import pictures


def test_grid_has_a_row_a_class_and_its_images_in_order():
    generator = np.random.default_rng(0)
    images = generator.integers(1, 256, [9, 2, 3, 1]).astype(np.uint8)
    labels = np.array([2, 0, 2, 3, 0, 2, 2, 0, 2])  # None of class 1; more of class 2 than there are columns.
    grid = pictures.class_grid(images, labels, columns=4, pixels=12)
    assert grid.shape == (4 * 3, 4 * 4, 1) and grid.dtype == np.uint8
    cells = {(0, 0): 1, (0, 1): 4, (0, 2): 7, (2, 0): 0, (2, 1): 2, (2, 2): 5, (2, 3): 6, (3, 0): 3}
    for row in range(4):
        for column in range(4):
            cell = grid[row * 3 : row * 3 + 2, column * 4 : column * 4 + 3]
            expected = images[cells[row, column]] if (row, column) in cells else 0
            np.testing.assert_array_equal(cell, np.broadcast_to(expected, cell.shape))
    lines = np.concatenate([grid[2::3].ravel(), grid[:, 3::4].ravel()])
    assert len(np.unique(lines)) == 1 and lines[0] > 0


@pytest.mark.parametrize('columns, pixels, factor', [(4, 16, 1), (4, 1, 1), (4, 32, 2), (4, 47, 2), (2, 48, 6)])
def test_grid_is_enlarged_by_whole_pixels(columns, pixels, factor):
    images = np.random.default_rng(0).integers(0, 256, [6, 2, 3, 3]).astype(np.uint8)
    labels = np.arange(6) % 2
    small = pictures.class_grid(images, labels, columns=columns, pixels=1)
    assert small.shape == (2 * 3, columns * 4, 3)
    large = pictures.class_grid(images, labels, columns=columns, pixels=pixels)
    np.testing.assert_array_equal(large, np.kron(small, np.ones([factor, factor, 1], np.uint8)))


@pytest.mark.parametrize('side, channels', [(2, 1), (8, 3), (64, 1)])
def test_names_stand_beside_their_rows_and_change_nothing_else(side, channels):
    images = np.random.default_rng(0).integers(0, 256, [6, side, side, channels]).astype(np.uint8)
    labels, plain = np.arange(6) % 3, {'columns': 4, 'pixels': 200}
    grid = pictures.class_grid(images, labels, **plain)
    shown = {}
    for names in (['a', 'b', 'c'], ['a', 'd', 'c'], ['a', 'b', 'ж' * 50], ['a', 'b', 'ж' * 60], ['', '', '']):
        picture = pictures.class_grid(images, labels, names=names, **plain)
        margin = picture.shape[1] - grid.shape[1]
        np.testing.assert_array_equal(picture[:, margin:], grid)
        shown[tuple(names)] = picture[:, :margin].reshape(3, -1, margin, channels)
    one, other, cut, also_cut, none = shown.values()
    np.testing.assert_array_equal(one[[0, 2]], other[[0, 2]])
    assert (one[1] != other[1]).any() and all(row.max() > pictures.GREY for row in one)
    np.testing.assert_array_equal(cut, also_cut)
    assert none.max() == pictures.GREY


@pytest.mark.parametrize('channels', [1, 3])
def test_png_holds_the_pixels(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, [4, 5, channels]).astype(np.uint8)
    pictures.write_png(tmp_path / 'a.png', image)
    with Image.open(tmp_path / 'a.png') as picture:
        assert picture.format == 'PNG'
        np.testing.assert_array_equal(np.array(picture).reshape(image.shape), image)


def test_picture_that_cannot_be_encoded_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match='data type'):
        pictures.write_png(tmp_path / 'a.png', np.zeros([2, 2, 3], np.complex128))
    assert not list(tmp_path.iterdir())
