"""Tests of the procedural images."""

import re

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


@pytest.mark.parametrize('draw', [procedural.random_strokes, procedural.random_shapes])
def test_images_depend_on_their_seed_alone(draw):
    first, again, other = (draw(num_images=20, seed=seed) for seed in (5, 5, 6))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert not (first.images_uint8 == other.images_uint8).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize('draw', [procedural.random_strokes, procedural.random_shapes])
@pytest.mark.parametrize('size', [(4, 9), (24, 16), (7, 30)])
@pytest.mark.parametrize('channels', [1, 3])
def test_images_are_of_any_size_and_kind_and_all_different(draw, size, channels):
    dataset = draw(num_images=60, image_size=size, channels=channels, num_classes=2)
    assert dataset.images_uint8.shape == (60, *size, channels) and dataset.images_uint8.dtype == np.uint8
    np.testing.assert_array_equal(dataset.labels, 2)
    assert len(np.unique(dataset.images_uint8.reshape(60, -1), axis=0)) == 60
    per_image = dataset.images_uint8.reshape(60, -1, channels)
    assert (per_image.std(1).max(-1) > 1).mean() > 0.9  # There is something to see.
    if channels == 3:
        assert (np.ptp(per_image.astype(int), axis=-1).max(1) > 20).mean() > 0.9  # In colour.


@pytest.mark.parametrize('draw', [procedural.random_strokes, procedural.random_shapes])
def test_square_size_may_be_said_in_both_ways(draw):
    one, other = (draw(num_images=9, image_size=size) for size in (12, (12, 12)))
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize('draw', [procedural.random_strokes, procedural.random_shapes])
def test_images_are_the_same_however_many_are_drawn_at_a_time(draw, monkeypatch):
    whole = draw(num_images=30, image_size=(9, 12), channels=3)
    monkeypatch.setattr(procedural, '_PIXELS', 9 * 12 * 7)
    assert draw(num_images=30, image_size=(9, 12), channels=3).fingerprint() == whole.fingerprint()


def test_strokes_reach_all_of_an_oblong_image():
    drawn = procedural.random_strokes(num_images=400, image_size=(8, 24)).images_uint8.mean((0, 3)) > 0
    assert drawn[1:7, 2:22].all()


def test_shapes_are_smooth_with_edges():
    pixels = procedural.random_shapes(num_images=200, image_size=32).images_uint8.astype(int)
    steps = np.abs(np.diff(pixels, axis=2)).max(-1)
    assert (steps <= 8).mean() > 0.7 and (steps.reshape(200, -1).max(1) > 25).mean() > 0.8
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape)
    assert (np.abs(np.diff(noise, axis=2)).max(-1) <= 8).mean() < 0.1, 'the control must fail'


@pytest.mark.parametrize('num_images, image_size', [(0, 8), (10, 3), (-1, 8), (10, (8, 3))])
@pytest.mark.parametrize('draw', [procedural.random_strokes, procedural.random_shapes])
def test_bad_sizes_are_refused(draw, num_images, image_size):
    message = f'{draw.__name__} needs num_images >= 1 and image_size >= 4, got {num_images} and {image_size}'
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(num_images=num_images, image_size=image_size)
    with pytest.raises(ValueError, match='channels must be 1'):
        draw(channels=2)
