"""Tests of the training loss."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import losses


@pytest.mark.parametrize('leading', [(), (6,), (3, 2)])
def test_loss_is_the_mean_squared_error_of_each_view(leading):
    generator = np.random.default_rng(0)
    prediction, target = (generator.normal(size=[*leading, 4, 5, 3]).astype(np.float32) for _ in range(2))
    loss = losses.view_losses(tf.constant(prediction), tf.constant(target))
    assert loss.shape == leading
    expected = [np.mean((prediction[view] - target[view]) ** 2) for view in np.ndindex(*leading)]
    np.testing.assert_allclose(np.reshape(loss, -1), expected, rtol=1e-5)


def test_loss_of_a_view_ignores_the_other_views():
    target = tf.zeros([3, 4, 4, 1])
    prediction = np.ones([3, 4, 4, 1], np.float32)
    prediction[1] = np.nan
    loss = losses.view_losses(tf.constant(prediction), target).numpy()
    assert np.isnan(loss[1]) and loss[0] == loss[2] == 1.0


def test_loss_of_a_low_precision_prediction_is_taken_in_float32():
    prediction = tf.cast(tf.random.stateless_normal([2, 8, 8, 1], [0, 1]), tf.bfloat16)
    target = tf.random.stateless_normal([2, 8, 8, 1], [0, 2])
    loss = losses.view_losses(prediction, target)
    assert loss.dtype == tf.float32
    expected = np.mean((tf.cast(prediction, tf.float32).numpy() - target.numpy()) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
