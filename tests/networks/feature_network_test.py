"""Tests of the small classifier: where its weights come from, and what it makes of images of any size."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.networks import feature_network


def weights_of(seed):
    return feature_network.build_feature_network((8, 8, 1), 3, seed=seed).get_weights()


def test_initial_weights_depend_on_the_seed_alone():
    tf.random.set_seed(1)
    first = weights_of(seed=0)
    tf.random.set_seed(2)
    for again, other, weight in zip(weights_of(seed=0), weights_of(seed=1), first):
        np.testing.assert_array_equal(again, weight)
        assert np.array_equal(other, weight) == (weight.ndim == 1)  # Only the biases, all 0, are the same.


def test_layers_of_one_shape_start_with_different_weights():
    network = feature_network.build_feature_network((64, 64, 3), 3, seed=0)
    kernels = [layer.kernel.numpy() for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    same_shape = [kernel for kernel in kernels if kernel.shape == (3, 3, 64, 64)]
    assert len(same_shape) >= 3
    assert len({kernel.tobytes() for kernel in same_shape}) == len(same_shape)


@pytest.mark.parametrize('shape', [(1, 1, 1), (5, 3, 2), (28, 28, 1), (96, 64, 3)])
@pytest.mark.parametrize('num_classes', [1, 4])
def test_any_image_is_halved_until_it_is_small(shape, num_classes):
    network = feature_network.build_feature_network(shape, num_classes, seed=0)
    images = np.random.default_rng(0).integers(0, 256, [2, *shape], np.uint8)
    features, logits = network(images)
    assert features.shape == (2, feature_network.FEATURE_DIMENSION) and logits.shape == (2, num_classes)
    assert np.all(np.isfinite(features)) and np.all(np.isfinite(logits))
    pooled = next(layer for layer in network.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D))
    assert max(pooled.input_shape[1:3]) <= 4


def test_features_tell_images_apart_in_brightness_and_in_place():
    network = feature_network.build_feature_network((8, 8, 1), 3, seed=0)
    images = np.zeros([4, 8, 8, 1], np.uint8)
    images[1], images[2, 2:4, 2:4], images[3, 0, 0] = 255, 255, 255
    features = network(images)[0].numpy()
    distances = np.linalg.norm(features[:, None] - features, axis=-1)
    assert np.all(distances[~np.eye(4, dtype=bool)] > 1e-3)
