"""Tests of the procedural images."""

import numpy as np
import pytest

from tf_dpdiff.data import procedural


@pytest.mark.parametrize('image_size', [4, 8, 13, 28])
@pytest.mark.parametrize('num_classes', [1, 10])
def test_strokes_are_grey_images_without_a_class(image_size, num_classes):
    dataset = procedural.random_strokes(num_images=50, image_size=image_size, num_classes=num_classes)
    assert dataset.images_uint8.dtype == np.uint8
    assert dataset.images_uint8.shape == (50, image_size, image_size, 1)
    assert dataset.num_classes == num_classes
    np.testing.assert_array_equal(dataset.labels, num_classes)


@pytest.mark.parametrize('image_size', [8, 28])
def test_each_image_shows_bright_strokes_on_a_dark_ground(image_size):
    images = procedural.random_strokes(num_images=100, image_size=image_size).images_uint8.reshape(100, -1)
    assert (images.max(axis=1) > 128).all() and (images.min(axis=1) == 0).all()
    assert 0.05 < (images > 128).mean() < 0.6
    assert len(np.unique(images, axis=0)) == 100


def test_strokes_look_alike_at_any_size():
    # Lengths are shares of the image: the drawn share of a large image is about that of a small one.
    drawn = [
        procedural.random_strokes(num_images=300, image_size=size).images_uint8.mean() / 255.0 for size in (8, 16, 32)
    ]
    np.testing.assert_allclose(drawn, drawn[0], rtol=0.1)


def test_strokes_depend_on_their_seed_alone():
    first, again, other = (procedural.random_strokes(num_images=20, seed=seed) for seed in (5, 5, 6))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert not (first.images_uint8 == other.images_uint8).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize('num_images, image_size', [(0, 8), (10, 3), (-1, 8)])
def test_bad_sizes_are_refused(num_images, image_size):
    message = f'num_images >= 1 and image_size >= 4, got {num_images} and {image_size}'
    with pytest.raises(ValueError, match=message):
        procedural.random_strokes(num_images=num_images, image_size=image_size)
