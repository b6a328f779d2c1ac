"""Tests of the moving average of weights."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.networks import ema


@pytest.mark.parametrize('max_decay', [0.0, 0.5, 0.999, 0.9999])
@pytest.mark.parametrize('num_updates', [0, 1, 7, 8, 1000, 10**6])
def test_decay_warms_up_to_its_maximum(max_decay, num_updates):
    expected = min(max_decay, (1 + num_updates) / (10 + num_updates))
    for n in (num_updates, tf.constant(num_updates, tf.int64)):
        np.testing.assert_allclose(ema.ema_decay(max_decay, n), expected, rtol=1e-6)


def test_averages_are_those_of_numpy():
    generator = np.random.default_rng(0)
    shapes = [(3,), (2, 4), ()]
    variables = [tf.Variable(generator.normal(size=shape), dtype=tf.float32) for shape in shapes]
    averages = [tf.Variable(variable) for variable in variables]
    expected = [variable.numpy().astype(np.float64) for variable in variables]
    update = tf.function(
        lambda n: [ema.update_average(a, v, ema.ema_decay(0.9, n)) for a, v in zip(averages, variables)]
    )
    for n in range(50):
        for variable in variables:
            variable.assign(generator.normal(size=variable.shape))
        update(tf.constant(n))
        decay = min(0.9, (1 + n) / (10 + n))
        expected = [decay * e + (1 - decay) * v.numpy() for e, v in zip(expected, variables)]
    for average, value, variable in zip(averages, expected, variables):
        np.testing.assert_allclose(average, value, rtol=1e-4, atol=1e-6)
        assert np.abs(average - variable).max() > 0.1


def test_average_of_a_constant_stays_where_it_is():
    variable = tf.Variable([1 / 3, 1e-8, -1e8])
    average = tf.Variable(variable)
    for n in range(20):
        ema.update_average(average, variable, ema.ema_decay(0.999, n))
    np.testing.assert_array_equal(average, variable)


def test_low_precision_variable_is_averaged_in_the_type_of_its_average():
    average = tf.Variable([1.0], dtype=tf.float32)
    ema.update_average(average, tf.Variable([0.0], dtype=tf.bfloat16), tf.constant(0.999))
    np.testing.assert_allclose(average, [0.999], rtol=1e-6)
