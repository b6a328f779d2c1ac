"""Tests of the images that are made from noisy class means."""

import numpy as np
import pytest

from tf_dpdiff.privacy import class_means
from tf_dpdiff.training import warm_start


def make_means(counts=((30.0, 10.0), (1.0, 39.0))):
    """Returns means of two classes, two each, told apart by their grey: 0.3, 0.4, 0.6, 0.7."""
    greys = np.array([[0.3, 0.4], [0.6, 0.7]])
    return class_means.NoisyMeans(np.broadcast_to(greys[..., None, None, None], [2, 2, 4, 4, 1]), np.array(counts))


def draw(means=None, num_images=4000, sharpening=(1.0, 1.0), threshold=(0.5, 0.5), seed=0):
    return warm_start.images_from_class_means(
        means or make_means(), num_images=num_images, sharpening=sharpening, threshold=threshold, seed=seed
    )


def test_classes_come_in_equal_parts_and_means_as_often_as_images_are_near_them():
    dataset = draw()
    np.testing.assert_array_equal(np.bincount(dataset.labels), [2000, 2000])
    greys = dataset.images_uint8[:, 0, 0, 0] / 255.0
    assert (dataset.images_uint8 == dataset.images_uint8[:, :1, :1]).all()
    for label, values, shares in ((0, (0.3, 0.4), (0.75, 0.25)), (1, (0.6, 0.7), (0.025, 0.975))):
        of_class = greys[dataset.labels == label]
        for value, share in zip(values, shares):
            assert np.mean(np.abs(of_class - value) < 0.01) == pytest.approx(share, abs=0.03)


def test_contrast_is_stretched_about_the_threshold():
    greys = draw(sharpening=(2.0, 3.0), threshold=(0.45, 0.55)).images_uint8[:, 0, 0, 0] / 255.0
    # 0.3 becomes 0.5 - 2 * 0.15 at most, 0.7 becomes 0.5 + 2 * 0.15 at least.
    assert greys.min() == 0.0 and greys.max() == 1.0
    assert len(np.unique(greys)) > 50


def test_pixels_beyond_black_and_white_are_brought_back_before_the_contrast_is_stretched():
    means = make_means()._replace(images=np.full([2, 2, 4, 4, 1], -0.5))
    assert not draw(means, threshold=(0.5, 0.5)).images_uint8.any()
    # At a threshold of 0.1 black becomes 0.4, what lies below it too.
    np.testing.assert_allclose(draw(means, threshold=(0.1, 0.1)).images_uint8 / 255.0, 0.4, atol=0.01)


def test_seed_repeats_the_draw():
    first, again, other = (draw(sharpening=(1.0, 3.0), seed=seed).images_uint8 for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
