"""Tests of the Gaussian draw."""

import hashlib
import itertools

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import seeds

each_generator = pytest.mark.parametrize('generator', noise.GENERATORS)


def draw(stddev=1.0, seed=5, step=0, shapes=((4000,), (20, 50)), generator='philox'):
    sums = [tf.zeros(shape) for shape in shapes]
    noisy = noise.GaussianNoise(stddev, generator).add(sums, seed=secret(seed), step=tf.constant(step, tf.int64))
    return [value.numpy() for value in noisy]


def secret(number):
    return seeds.PrivateSeed(bytes([number] * 32))


@pytest.mark.parametrize('stddev', [1e-3, 1.0, 40.0])
@each_generator
def test_noise_is_gaussian_with_the_given_stddev(stddev, generator):
    values = np.concatenate([v.ravel() for v in draw(stddev, generator=generator)])
    assert stats.kstest(values / stddev, 'norm').pvalue > 1e-3


@pytest.mark.parametrize('factor', [2 / 3, 3 / 2])
@each_generator
def test_control_noise_of_another_scale_is_noticed(factor, generator):
    values = np.concatenate([v.ravel() for v in draw(factor, generator=generator)])
    assert stats.kstest(values, 'norm').pvalue < 1e-6


def test_noise_is_added_to_the_sum():
    value = tf.constant([1.0, -2.0, 3.0])
    step = tf.constant(2, tf.int64)
    adder = noise.GaussianNoise(0.5)
    difference = adder.add([value], seed=secret(1), step=step)[0] - adder.add([0.0 * value], seed=secret(1),
                                                                              step=step)[0]
    np.testing.assert_allclose(difference, value, rtol=1e-6)


@each_generator
def test_no_number_is_drawn_twice_over_steps_and_variables(generator):
    shapes = ((300,), (300,), (300,))
    draws = [v.ravel() for step in range(20) for v in draw(step=step, shapes=shapes, generator=generator)]
    for first, second in itertools.combinations(draws, 2):
        # Shifted copies would share numbers too: philox counters must not overlap.
        assert np.intersect1d(first, second).size < 5
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


@each_generator
def test_seeds_of_many_steps_do_not_collide(generator):
    firsts = {
        float(draw(step=step, shapes=((1,),), generator=generator)[0][0])
        for step in range(0, 3_000_000_000, 10_000_000)
    }
    assert len(firsts) == 300


@each_generator
def test_same_seed_and_step_repeat_the_draw_in_eager_and_graph(generator):
    adder = noise.GaussianNoise(1.0, generator)
    graph_draw = tf.function(lambda step: adder.add([tf.zeros([50])], seed=secret(5), step=step)[0])
    eager = draw(step=9, shapes=((50,),), generator=generator)[0]
    np.testing.assert_array_equal(eager, draw(step=9, shapes=((50,),), generator=generator)[0])
    np.testing.assert_array_equal(eager, graph_draw(tf.constant(9, tf.int64)))


@each_generator
def test_zero_stddev_adds_nothing(generator):
    assert not any(v.any() for v in draw(0.0, generator=generator))


def test_generators_and_secrets_give_different_draws():
    draws = [
        draw(seed=seed, shapes=((3000,),), generator=generator)[0] for seed in (1, 2) for generator in noise.GENERATORS
    ]
    assert np.abs(np.corrcoef(draws)[np.triu_indices(4, 1)]).max() < 0.1


def test_cryptographic_numbers_come_from_shake256_of_key_and_counter():
    key = bytes(range(32))
    stream = hashlib.shake_256(key + (7).to_bytes(8, 'little')).digest(48)
    uniforms = [(int.from_bytes(stream[i:i + 8], 'little') // 2**11 + 0.5) / 2**53 for i in range(0, 48, 8)]
    expected = [np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v) for u, v in zip(uniforms[:3], uniforms[3:])]
    np.testing.assert_allclose(noise.cryptographic_normal(key, 7, [5])[:3], expected, rtol=1e-12)
    assert noise.cryptographic_normal(key, 7, [3, 0]).shape == (3, 0)


@each_generator
def test_noise_of_a_single_release_is_standard_normal_and_repeats_by_its_purpose(generator):
    drawn = noise.standard_normal(secret(3), 'one', [50, 40], generator)
    assert stats.kstest(drawn.ravel(), 'norm').pvalue > 1e-3
    np.testing.assert_array_equal(drawn, noise.standard_normal(secret(3), 'one', [50, 40], generator))
    other = noise.standard_normal(secret(3), 'other', [50, 40], generator)
    assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.1


def test_unknown_generator_is_refused():
    with pytest.raises(ValueError, match="noise generator must be one of .* got 'mersenne'"):
        noise.GaussianNoise(1.0, 'mersenne')
    with pytest.raises(ValueError, match='noise generator must be one of'):
        noise.standard_normal(secret(3), 'one', [5], 'mersenne')


@pytest.mark.parametrize('stddev', [-1.0, float('inf'), float('nan')])
def test_impossible_stddev_is_refused(stddev):
    with pytest.raises(ValueError, match='stddev must be finite'):
        noise.GaussianNoise(stddev)
