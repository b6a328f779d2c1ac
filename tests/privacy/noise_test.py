"""Tests of the Gaussian draw."""

import itertools

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff.privacy import noise


def draw(stddev=1.0, seed=5, step=0, shapes=((4000,), (20, 50))):
    sums = [tf.zeros(shape) for shape in shapes]
    noisy = noise.GaussianNoise(stddev).add(sums, seed=tf.constant(seed, tf.int64), step=tf.constant(step, tf.int64))
    return [value.numpy() for value in noisy]


@pytest.mark.parametrize('stddev', [1e-3, 1.0, 40.0])
def test_noise_is_gaussian_with_the_given_stddev(stddev):
    values = np.concatenate([v.ravel() for v in draw(stddev)])
    assert stats.kstest(values / stddev, 'norm').pvalue > 1e-3


@pytest.mark.parametrize('factor', [2 / 3, 3 / 2])
def test_control_noise_of_another_scale_is_noticed(factor):
    values = np.concatenate([v.ravel() for v in draw(factor)])
    assert stats.kstest(values, 'norm').pvalue < 1e-6


def test_noise_is_added_to_the_sum():
    value = tf.constant([1.0, -2.0, 3.0])
    seed, step = tf.constant(1, tf.int64), tf.constant(2, tf.int64)
    adder = noise.GaussianNoise(0.5)
    difference = adder.add([value], seed=seed, step=step)[0] - adder.add([0.0 * value], seed=seed, step=step)[0]
    np.testing.assert_allclose(difference, value, rtol=1e-6)


def test_no_number_is_drawn_twice_over_steps_and_variables():
    draws = [v.ravel() for step in range(20) for v in draw(step=step, shapes=((300,), (300,), (300,)))]
    for first, second in itertools.combinations(draws, 2):
        # Shifted copies would share numbers too: philox counters must not overlap.
        assert np.intersect1d(first, second).size < 5
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


def test_seeds_of_many_steps_do_not_collide():
    firsts = {float(draw(step=step, shapes=((1,),))[0][0]) for step in range(0, 3_000_000_000, 10_000_000)}
    assert len(firsts) == 300


def test_same_seed_and_step_repeat_the_draw_in_eager_and_graph():
    graph_draw = tf.function(
        lambda step: noise.GaussianNoise(1.0).add([tf.zeros([50])], seed=tf.constant(5, tf.int64), step=step)[0])
    eager = draw(step=9, shapes=((50,),))[0]
    np.testing.assert_array_equal(eager, draw(step=9, shapes=((50,),))[0])
    np.testing.assert_array_equal(eager, graph_draw(tf.constant(9, tf.int64)))


def test_zero_stddev_adds_nothing():
    assert not any(v.any() for v in draw(0.0))


@pytest.mark.parametrize('stddev', [-1.0, float('inf'), float('nan')])
def test_impossible_stddev_is_refused(stddev):
    with pytest.raises(ValueError, match='stddev must be finite'):
        noise.GaussianNoise(stddev)
