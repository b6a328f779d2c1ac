"""Tests of how predicted images are kept within range."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import thresholding


def images_of(scales, shape=(5, 4, 3)):
    generator = np.random.default_rng(0)
    return np.stack([scale * generator.normal(size=shape) for scale in scales]).astype(np.float32)


def threshold(images, name, percentile=0.995):
    """Returns thresholded images, from one tf.function for any batch size."""
    function = tf.function(
        lambda x: thresholding.threshold(x, name, dynamic_percentile=percentile),
        input_signature=[tf.TensorSpec([None, *images.shape[1:]])],
    )
    return function(images).numpy()


@pytest.mark.parametrize('shape', [(5, 4, 3), (2, 2, 1), (1, 1, 1), (16, 16, 3)])
@pytest.mark.parametrize('percentile', [0.01, 0.5, 0.9, 0.995, 1.0])
def test_percentile_of_each_image_is_that_of_numpy(shape, percentile):
    images = images_of([1.0, 0.1, 3.0], shape)
    expected = np.percentile(images.reshape(3, -1).astype(np.float64), 100 * percentile, axis=1, method='linear')
    np.testing.assert_allclose(thresholding.percentile_of_pixels(tf.constant(images), percentile), expected, rtol=1e-5)


def test_static_thresholding_cuts_off_and_none_does_nothing():
    images = images_of([0.2, 2.0])
    np.testing.assert_array_equal(threshold(images, 'static'), np.clip(images, -1, 1))
    np.testing.assert_array_equal(threshold(images, 'none'), images)


@pytest.mark.parametrize('percentile', [0.8, 0.995, 1.0])
def test_dynamic_thresholding_is_that_of_its_paper(percentile):
    images = images_of([3.0, 0.9, 1.5])
    expected = []
    for image in images.astype(np.float64):
        s = max(np.percentile(np.abs(image), 100 * percentile), 1.0)
        expected.append(np.clip(image, -s, s) / s)
    actual = threshold(images, 'dynamic', percentile)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert np.abs(actual).max() <= 1.0
    # Control: another percentile, or one of the whole batch, is another image.
    assert np.abs(threshold(images, 'dynamic', percentile - 0.1) - actual).max() > 0.01
    s = np.percentile(np.abs(images), 100 * percentile)
    assert np.abs(np.clip(images, -s, s) / s - actual).max() > 0.01


def test_dynamic_thresholding_leaves_an_image_within_range_as_it_is():
    images = images_of([0.2, 0.1])
    assert np.abs(images).max() < 1.0
    np.testing.assert_array_equal(threshold(images, 'dynamic'), images)


def test_dynamic_thresholding_of_an_image_does_not_depend_on_the_others():
    images = images_of([3.0, 0.5, 2.0])
    together = threshold(images, 'dynamic')
    for i in range(3):
        np.testing.assert_array_equal(threshold(images[i : i + 1], 'dynamic')[0], together[i])


@pytest.mark.parametrize(
    'name, percentile, message',
    [
        ('clip', 0.5, r"thresholding must be one of \('static', 'dynamic', 'none'\), got 'clip'"),
        ('dynamic', 0.0, r'dynamic_percentile must be in \(0, 1\], got 0.0'),
        ('dynamic', 99.5, r'dynamic_percentile must be in \(0, 1\], got 99.5'),
        ('static', float('nan'), r'dynamic_percentile must be in \(0, 1\], got nan'),
    ],
)
def test_bad_thresholding_is_refused(name, percentile, message):
    with pytest.raises(ValueError, match=message):
        thresholding.threshold(tf.zeros([1, 2, 2, 1]), name, dynamic_percentile=percentile)
