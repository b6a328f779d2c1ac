"""Tests of one step: against a plain Keras update, under changes of chunking, and for the law of its noise."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.data import pipelines
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import memory
from tf_dpdiff.training import train_step
from tf_dpdiff.training import views as views_lib

pytestmark = pytest.mark.usefixtures('small_network')
NETWORK = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
CONFIG = plan_lib.DpSgdConfig(
    target_delta=1e-4, expected_batch_size=5, num_steps=10, l2_norm_clip=1e-2, noise_multiplier=2.0
)
SEED, OTHER_SEED = seeds.PrivateSeed(bytes(range(32))), seeds.PrivateSeed(bytes(32))
VIEWS = views_lib.ViewMaker(
    process_lib.DiffusionProcess(), views_lib.ViewsConfig(augmentation_multiplicity=3), num_classes=3
)
IMAGES = np.random.default_rng(0).integers(0, 256, [12, 4, 4, 1]).astype(np.uint8)
LABELS = (np.arange(12) % 3).astype(np.int32)


def make_model():
    keras.utils.set_random_seed(2)
    model = denoiser.build(NETWORK, (4, 4, 1), 3)
    for variable in model.trainable_variables:  # Zero-initialised layers would hide most gradients.
        variable.assign_add(0.1 * tf.random.stateless_normal(variable.shape, [1, variable.shape.num_elements()]))
    return model


def make_step(units_per_chunk=4, secret=SEED.reveal(), images_per_unit=1, views_per_chunk=3, **changes):
    """Returns a step, its network and average, and the weights that they begin with; of a kind it is traced once."""
    config = dataclasses.replace(CONFIG, **changes)
    return make_step_of_kind(units_per_chunk, secret, config, images_per_unit, views_per_chunk)


@functools.lru_cache  # Tracing takes seconds.
def make_step_of_kind(units_per_chunk, secret, config, images_per_unit, views_per_chunk):
    model, average = make_model(), make_model()
    plan = plan_lib.make_plan(config, 12)
    private_step = train_step.compile_private_step(
        model,
        average,
        model.trainable_variables,
        keras.optimizers.SGD(1.0),
        plan,
        VIEWS,
        seeds.PrivateSeed(secret),
        images_per_unit=images_per_unit,
        max_ema_decay=0.5,
        chunk_sizes=memory.ChunkSizes(units_per_chunk, views_per_chunk),
    )
    return private_step, model, average, model.get_weights()


def take_step(units, units_per_chunk=4, step=0, seed=SEED, views_per_chunk=3, **changes):
    """Returns the update of all weights by one SGD step, float [parameters], the network and its average."""
    private_step, model, average, start = make_step(
        units_per_chunk, seed.reveal(), views_per_chunk=views_per_chunk, **changes
    )
    model.set_weights(start)
    average.set_weights(start)
    before = flat(model.trainable_variables)
    units = np.array(units, np.int64)
    private_step([(IMAGES[units][:, None], LABELS[units][:, None], units)], tf.constant(step, tf.int64))
    return flat(model.trainable_variables) - before, model, average


def flat(tensors):
    return np.concatenate([t.numpy().ravel() for t in tensors]).astype(np.float64)


def expected_update(units, clip):
    """The oracle: each unit alone, clipped in NumPy, added up, divided by the expected batch size."""
    model = make_model()
    total = 0.0
    for unit in units:
        views = VIEWS.draw_for_units(
            tf.constant(IMAGES[None, unit : unit + 1]),
            tf.constant(LABELS[None, unit : unit + 1]),
            tf.constant([unit], tf.int64),
            seed=tf.constant(SEED.derive('views'), tf.int64),
            step=tf.constant(0, tf.int64),
        )
        with tf.GradientTape() as tape:
            prediction = model([views.x_t[0], views.t[0], views.labels[0]])
            loss = tf.reduce_mean(tf.square(prediction - views.target[0]))
        gradient = flat(tape.gradient(loss, model.trainable_variables))
        total = total + gradient * min(1.0, clip / np.linalg.norm(gradient))
    return -total / CONFIG.expected_batch_size


@pytest.mark.parametrize('clip, units_per_chunk', [(1e-2, 4), (float('inf'), 8)])
def test_step_without_noise_is_the_average_of_clipped_unit_gradients(clip, units_per_chunk):
    units = [0, 3, 4, 7, 8, 10]
    update, _, _ = take_step(units, units_per_chunk, noise_multiplier=0.0, l2_norm_clip=clip)
    expected = expected_update(units, clip)
    np.testing.assert_allclose(update, expected, atol=2e-4 * np.abs(expected).max())
    assert np.linalg.norm(expected) > 1e-3


@pytest.mark.parametrize(
    'units_per_chunk, views_per_chunk',
    [(1, 3), *(pytest.param(size, 3, marks=pytest.mark.long) for size in (2, 8)), (2, 1)],
)
def test_update_does_not_depend_on_the_chunk_sizes(units_per_chunk, views_per_chunk):
    units = [0, 3, 4, 7, 8, 10]
    first, _, _ = take_step(units, units_per_chunk=4)
    other, _, _ = take_step(units, units_per_chunk=units_per_chunk, views_per_chunk=views_per_chunk)
    np.testing.assert_allclose(other, first, atol=1e-5 * np.abs(first).max())


def test_update_does_not_depend_on_the_order_of_units_nor_on_padding():
    first, _, _ = take_step([0, 3, 4])
    other, _, _ = take_step([-1, 4, -1, 0, 3, -1])
    np.testing.assert_allclose(other, first, atol=1e-5 * np.abs(first).max())


def noise_only(step=0, **changes):
    """Returns the update of an empty batch, in units of clip norm over expected batch size."""
    update, _, _ = take_step([-1] * 4, step=step, **changes)
    return update * CONFIG.expected_batch_size / CONFIG.l2_norm_clip


def noise_of_steps(**changes):
    """Returns the noise of four steps: enough numbers to tell its scale."""
    return np.concatenate([noise_only(step, **changes) for step in range(4)])


@pytest.mark.parametrize('units_per_chunk', [1, 4])
def test_empty_batch_is_a_noise_only_step_with_noise_added_once(units_per_chunk):
    assert stats.kstest(noise_of_steps(units_per_chunk=units_per_chunk) / 2.0, 'norm').pvalue > 1e-3


# Noise of another scale, for the controls. One of them has another secret, which changes no scale.
TOO_LITTLE, TOO_MUCH = {'noise_multiplier': 4 / 3}, {'noise_multiplier': 3.0, 'seed': OTHER_SEED}


@pytest.mark.parametrize('changes', [TOO_LITTLE, TOO_MUCH])
def test_control_noise_of_another_scale_is_noticed(changes):
    assert stats.kstest(noise_of_steps(**changes) / 2.0, 'norm').pvalue < 1e-6


@pytest.mark.parametrize('clipping', plan_lib.CLIPPINGS)
def test_step_draws_noise_of_the_scale_of_the_clip_however_it_is_clipped(clipping):
    noise = noise_of_steps(clipping=clipping) / 2.0
    assert stats.kstest(noise, 'norm').pvalue > 1e-3
    # Controls: half of the noise, and that of a layer's own bound, which for two layers is 1 / sqrt(2) of the whole.
    for factor in (0.5, 2**-0.5):
        assert stats.kstest(factor * noise, 'norm').pvalue < 1e-6


@pytest.mark.long
def test_step_compiled_by_xla_adds_the_same_noise():
    private_step, model, _, start = make_step()
    compiled = tf.function(private_step, jit_compile=True, autograph=False)
    # What is added to zeros is read off the weights as it was: elsewhere they are rounded after it was added.
    zeros = [np.zeros_like(weight) for weight in start]

    def update(step, units, weights):
        model.set_weights(weights)
        before, units = flat(model.trainable_variables), np.array(units, np.int64)
        step([(IMAGES[units][:, None], LABELS[units][:, None], units)], tf.constant(0, tf.int64))
        return flat(model.trainable_variables) - before

    expected = update(private_step, [-1] * 4, zeros)
    np.testing.assert_allclose(update(compiled, [-1] * 4, zeros), expected, atol=1e-6 * np.abs(expected).max())
    assert (
        np.linalg.norm(update(compiled, [0, 3, 4, -1], start) - expected)
        > 0.1 * CONFIG.l2_norm_clip / CONFIG.expected_batch_size
    )


def test_noise_is_independent_between_steps_and_runs():
    # A correlation knows no scale.
    draws = [noise_only(), noise_only(step=1), noise_only(**TOO_MUCH), noise_only(**TOO_LITTLE)]
    correlations = np.corrcoef(draws)
    assert np.abs(correlations[:3, :3][np.triu_indices(3, 1)]).max() < 0.1
    assert correlations[0, 3] > 0.99  # Control: the same step of the same secret.


def test_moving_average_follows_the_warm_up():
    _, model, average = take_step([0, 3, 4, 7])
    start = flat(make_model().variables)
    # The first decay is min(0.5, 1 / 10).
    np.testing.assert_allclose(flat(average.variables), 0.1 * start + 0.9 * flat(model.variables), atol=1e-6)


def noise_of_averages(**changes):
    """Returns by how much four steps without units move the average, over what the noise should move it by."""
    moved, start = [], flat(make_model().variables)
    for step in range(4):
        _, _, average = take_step([-1] * 4, step=step, **changes)
        # The first decay is 1 / 10, later ones are min(0.5, (1 + n) / (10 + n)).
        moved.append((flat(average.variables) - start) / (1.0 - min(0.5, (1 + step) / (10 + step))))
    return np.concatenate(moved) * CONFIG.expected_batch_size / CONFIG.l2_norm_clip / 2.0


def test_moving_average_takes_in_all_noise_of_each_step():
    assert stats.kstest(noise_of_averages(), 'norm').pvalue > 1e-3
    # Control: an average of steps without noise, or with two thirds of it, is noticed.
    for changes in ({'noise_multiplier': 0.0}, TOO_LITTLE):
        assert stats.kstest(noise_of_averages(**changes), 'norm').pvalue < 1e-6


def test_row_of_padding_is_no_unit_whatever_it_shows():
    units, bright = np.array([0, 3, -1, -1]), IMAGES.copy()
    private_step, model, _, start = make_step(noise_multiplier=0.0)

    def update(pixels):
        model.set_weights(start)
        before = flat(model.trainable_variables)
        diagnostics = private_step([(pixels[:, None], LABELS[units][:, None], units)], tf.constant(0, tf.int64))
        assert diagnostics['num_units'] == 2.0
        return flat(model.trainable_variables) - before

    bright[[0, 1]] = IMAGES[[0, 3]]
    black, bright = np.where(units[:, None, None, None] < 0, 0, bright[:4]).astype(np.uint8), bright[:4]
    assert bright[2:].any() and not black[2:].any()
    np.testing.assert_array_equal(update(bright), update(black))
    alone, _, _ = take_step([0, 3], noise_multiplier=0.0)
    np.testing.assert_allclose(update(bright), alone, atol=1e-6 * np.abs(alone).max())


def test_step_is_traced_once_for_batches_of_any_size():
    for size in (2, 4, 12):
        take_step(np.arange(size))
    assert make_step()[0].experimental_get_tracing_count() == 1


def owner_update(images_of_owner, rest=(1, 2)):
    """Returns the noiseless update of a batch of owners, the first of whom brings the given images."""
    owners = np.concatenate([np.zeros(len(images_of_owner), int), np.repeat(rest, 2)])
    images = np.concatenate([images_of_owner, IMAGES[: 2 * len(rest)]])
    dataset = datasets.ImageDataset(
        'owned', images, np.ones([len(images)], np.int32), ('a', 'b', 'c'), 'one patient', owners, 3
    )
    gathered = pipelines.gather_units(dataset, np.array([0, 1, 2, -1]), num_views=3, seed=1, step=0)
    private_step, model, _, start = make_step(images_per_unit=3, noise_multiplier=0.0)
    model.set_weights(start)
    before = flat(model.trainable_variables)
    private_step([gathered], tf.constant(0, tf.int64))
    return flat(model.trainable_variables) - before


@pytest.mark.parametrize('num_images', [1, 40])
def test_all_images_of_an_owner_together_change_the_sum_by_at_most_the_clip_norm(num_images):
    bright = np.random.default_rng(3).integers(0, 256, [num_images, 4, 4, 1]).astype(np.uint8)
    difference = np.linalg.norm(owner_update(bright) - owner_update(bright[:0])) * CONFIG.expected_batch_size
    assert 0.5 * CONFIG.l2_norm_clip < difference <= CONFIG.l2_norm_clip * (1.0 + 1e-4)


def test_views_of_an_owner_are_averaged_before_clipping():
    images = IMAGES[4:5]
    # An owner of one image is that image: the update equals the one without owners.
    alone, _, _ = take_step([4], noise_multiplier=0.0)
    difference = owner_update(images) - owner_update(images[:0])
    assert np.linalg.norm(alone) * CONFIG.expected_batch_size == pytest.approx(CONFIG.l2_norm_clip, rel=1e-3)
    assert np.linalg.norm(difference) == pytest.approx(np.linalg.norm(alone), rel=1e-3)
