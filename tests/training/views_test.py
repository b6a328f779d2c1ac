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

NUM_CLASSES = 10


def make_sampler(has_dropout=False, **changes):
    config = views_lib.ViewsConfig(augmentation_multiplicity=NUM_VIEWS, **changes)
    return views_lib.ViewMaker(PROCESS, config, num_classes=NUM_CLASSES, has_dropout=has_dropout)


def draw(units, sampler=None, seed=1, step=0):
    units = np.array(units)
    images = np.random.default_rng(0).integers(0, 256, [50, 4, 4, 1]).astype(np.uint8)[units]
    return (sampler or make_sampler()).draw_for_units(
        tf.constant(images[:, None]),
        tf.constant(units[:, None] % 10, tf.int32),
        tf.constant(units, tf.int64),
        seed=tf.constant(seed, tf.int64),
        step=tf.constant(step, tf.int64),
    )


@pytest.mark.parametrize('augment', [{}, {'horizontal_flip': True, 'translation': 0.2}])
@pytest.mark.parametrize('others', [{}, {'label_drop_probability': 0.4, 'has_dropout': True}])
def test_views_of_a_unit_do_not_depend_on_the_rest_of_the_batch(augment, others):
    sampler = make_sampler(augmentation=augmentation.AugmentationConfig(**augment), **others)
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


def share_dropped(views):
    return np.mean(views.labels.numpy() == NUM_CLASSES)


def test_labels_of_single_views_are_dropped_with_the_given_probability():
    views = draw(range(50), make_sampler(label_drop_probability=0.3))
    # Four standard deviations of a share among 250.
    assert abs(share_dropped(views) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 250)
    kept = views.labels.numpy() != NUM_CLASSES
    np.testing.assert_array_equal(
        views.labels.numpy()[kept], np.repeat(np.arange(50)[:, None] % 10, NUM_VIEWS, axis=1)[kept]
    )
    assert any(0 < share < 1 for share in kept.mean(axis=1)), 'views of one unit must drop independently'
    plain = draw(range(50), make_sampler())
    assert share_dropped(plain) == 0.0


@pytest.mark.parametrize('probability', [0.3 / 2, 0.3 * 2])
def test_control_another_share_of_dropped_labels_is_noticed(probability):
    views = draw(range(50), make_sampler(label_drop_probability=probability))
    assert abs(share_dropped(views) - 0.3) > 4 * np.sqrt(0.3 * 0.7 / 250)


def test_each_view_has_a_dropout_seed_of_its_own_where_the_network_has_dropout():
    seeds = draw(range(50), make_sampler(has_dropout=True)).dropout_seeds.numpy()
    assert seeds.dtype == np.int32 and len(np.unique(seeds)) == seeds.size
    assert not draw(range(50)).dropout_seeds.numpy().any()


def test_label_drop_and_dropout_leave_the_other_numbers_alone():
    plain, dropping = draw(range(4)), draw(range(4), make_sampler(has_dropout=True))
    for name in ('x_t', 't', 'labels', 'target'):
        np.testing.assert_array_equal(getattr(plain, name), getattr(dropping, name))


def test_views_fall_on_the_timesteps_of_a_log_normal_sigma():
    views = draw(range(50), make_sampler(timesteps=timesteps.LogNormalSigma(0.0, 0.1)))
    log_sigmas = np.log(PROCESS.schedule.sigmas)[views.t.numpy()]
    assert abs(log_sigmas.mean()) < 4 * 0.1 / np.sqrt(250) and 0.08 < log_sigmas.std() < 0.12


def test_padding_draws_views_too_so_that_shapes_are_fixed():
    assert draw([3, -1]).x_t.shape == (2, NUM_VIEWS, 4, 4, 1)


def test_public_views_are_repeated_by_seed_and_step():
    sampler = make_sampler()
    arguments = tf.zeros([6, 4, 4, 1], tf.uint8), tf.zeros([6], tf.int32), tf.range(6)
    first, again, other = (
        sampler.draw_for_public(*arguments, batch_size=6, seed=tf.constant(1, tf.int64), step=tf.constant(s, tf.int64))
        for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.x_t, again.x_t)
    assert not np.allclose(first.x_t, other.x_t)


def test_views_of_a_part_of_a_public_batch_are_those_of_the_whole():
    sampler = make_sampler()
    images = np.random.default_rng(0).integers(0, 256, [6, 4, 4, 1]).astype(np.uint8)
    labels = np.arange(6, dtype=np.int32) % 3

    def draw(places):
        places = np.array(places, np.int32)
        return sampler.draw_for_public(
            tf.constant(images[places]),
            tf.constant(labels[places]),
            tf.constant(places),
            batch_size=6,
            seed=tf.constant(1, tf.int64),
            step=tf.constant(2, tf.int64),
        )

    whole, part = draw(range(6)), draw([4, 2])
    for of_whole, of_part in zip(whole, part):
        np.testing.assert_array_equal(of_whole.numpy()[[4, 2]], of_part)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match='augmentation_multiplicity must be at least 1'):
        views_lib.ViewsConfig(augmentation_multiplicity=0)
    with pytest.raises(ValueError, match='timesteps must be a TimestepMixture or a LogNormalSigma, got function'):
        views_lib.ViewsConfig(timesteps=timesteps.TimestepMixture.from_uniforms)
    with pytest.raises(ValueError, match=r'label_drop_probability must be in \[0, 1\), got 1.0'):
        views_lib.ViewsConfig(label_drop_probability=1.0)
    with pytest.raises(ValueError, match="beyond the schedule's 1000"):
        make_sampler(timesteps=timesteps.TimestepMixture(((1.0, 0, 2000),)))
