"""Tests of the views of a unit: what they are, and that they depend on nothing else."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.data import augmentation
from tf_dpdiff.diffusion import corruption
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import timesteps
from tf_dpdiff.training import views as views_lib

NUM_VIEWS = 5
PROCESS = process_lib.DiffusionProcess()


def make_sampler(**changes):
    config = views_lib.ViewsConfig(augmentation_multiplicity=NUM_VIEWS, **changes)
    return views_lib.ViewSampler(PROCESS, config)


def draw(units, sampler=None, seed=1, step=0):
    units = np.array(units)
    images = np.random.default_rng(0).integers(0, 256, [50, 4, 4, 1]).astype(np.uint8)[units]
    return (sampler or make_sampler()).draw_for_units(tf.constant(images[:, None]),
                                                      tf.constant(units[:, None] % 10, tf.int32),
                                                      tf.constant(units, tf.int64),
                                                      seed=tf.constant(seed, tf.int64),
                                                      step=tf.constant(step, tf.int64))


@pytest.mark.parametrize('augment', [{}, {'horizontal_flip': True, 'translation': 0.2}])
def test_views_of_a_unit_do_not_depend_on_the_rest_of_the_batch(augment):
    sampler = make_sampler(augmentation=augmentation.AugmentationConfig(**augment))
    together = draw([3, 11, 42], sampler)
    for place, unit in enumerate([3, 11, 42]):
        alone = draw([unit], sampler)
        for whole, single in zip(together, alone):
            np.testing.assert_array_equal(whole[place], single[0])


def test_views_differ_from_one_another_and_between_units_steps_and_seeds():
    drawn = [draw([3, 4]), draw([3, 4], step=1), draw([3, 4], seed=2)]
    keys = [tuple(np.round(x.numpy().ravel(), 5)) for views in drawn for unit in views.x_t for x in unit]
    assert len(set(keys)) == len(keys) == 3 * 2 * NUM_VIEWS


def test_views_show_the_image_at_their_timestep():
    views = draw(range(50))
    signal_rate, noise_rate = corruption.gather_coefficients(PROCESS.schedule, views.t)
    # From x_t and the v target, the clean image and the noise follow.
    x_start = signal_rate * views.x_t - noise_rate * views.target
    noise = noise_rate * views.x_t + signal_rate * views.target
    images = np.random.default_rng(0).integers(0, 256, [50, 4, 4, 1]).astype(np.uint8)
    expected = np.repeat(images[:, None] / 127.5 - 1.0, NUM_VIEWS, axis=1)
    np.testing.assert_allclose(x_start, expected, atol=1e-4)
    assert abs(float(tf.reduce_mean(noise))) < 0.06 and float(tf.math.reduce_std(noise)) == pytest.approx(1.0, abs=0.05)
    # Timesteps and noise come from different random numbers.
    level = np.abs(noise.numpy()).mean(axis=(2, 3, 4)).ravel()
    assert abs(np.corrcoef(level, views.t.numpy().ravel())[0, 1]) < 0.25
    np.testing.assert_array_equal(views.labels, np.repeat(np.arange(50)[:, None] % 10, NUM_VIEWS, axis=1))


def test_views_fall_on_the_timesteps_of_the_mixture():
    views = draw(range(50), make_sampler(timesteps=timesteps.TimestepMixture(((0.5, 100, 110), (0.5, 700, 710)))))
    t = views.t.numpy()
    assert set(np.unique(t // 10)) == {10, 70}


def test_padding_draws_views_too_so_that_shapes_are_fixed():
    assert draw([3, -1]).x_t.shape == (2, NUM_VIEWS, 4, 4, 1)


def test_public_views_are_repeated_by_seed_and_step():
    sampler = make_sampler()
    arguments = tf.zeros([6, 4, 4, 1], tf.uint8), tf.zeros([6], tf.int32)
    first, again, other = (sampler.draw_for_public(*arguments,
                                                   seed=tf.constant(1, tf.int64),
                                                   step=tf.constant(s, tf.int64)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.x_t, again.x_t)
    assert not np.allclose(first.x_t, other.x_t)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match='augmentation_multiplicity must be at least 1'):
        views_lib.ViewsConfig(augmentation_multiplicity=0)
    with pytest.raises(ValueError, match='timesteps must be a TimestepMixture, got function'):
        views_lib.ViewsConfig(timesteps=timesteps.TimestepMixture.from_uniforms)
    with pytest.raises(ValueError, match="beyond the schedule's 1000"):
        make_sampler(timesteps=timesteps.TimestepMixture(((1.0, 0, 2000),)))
