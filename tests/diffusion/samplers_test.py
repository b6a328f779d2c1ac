"""Tests that every sampler keeps: what images depend on, how often the network is asked, what is refused."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules

_IMAGE_SHAPE = (2, 2, 1)
_NUM_CLASSES = 3
# Eight images of four pixels: what is left over by whole vectors of pixels may be rounded otherwise by a kernel.
_LABELS = np.array([2, 0, 1, 1, 0, 2, 1, 0])
_SEEDS = np.array([5, 2**40, 7, 0, -3, 8, 9, 10])
# Every sampler, and what may be done to its predictions.
_CONFIGS = [samplers.SamplerConfig(name, 5) for name in samplers.SAMPLERS] + [
    samplers.SamplerConfig('ddim', 5, guidance_scale=3.0),
    samplers.SamplerConfig('dpmpp_2m', 5, guidance_scale=2.0, thresholding='dynamic', dynamic_percentile=0.8),
    samplers.SamplerConfig('edm_heun', 5, thresholding='none'),
]


def name_of(config):
    return f'{config.name}-{config.guidance_scale:g}-{config.thresholding}'


def process_of(predicts='v', num_timesteps=20):
    return process_lib.DiffusionProcess(schedules.Schedule('cosine', num_timesteps), predicts)


def network(x_t, t, labels):
    """Stands in for a network: its answer depends on all it is given."""
    each = 0.1 * tf.cast(t, tf.float32) + tf.cast(labels, tf.float32)
    return tf.sin(x_t + each[:, None, None, None])


def sample_in_python(denoiser, config):
    return samplers.sample(
        denoiser,
        tf.constant(_LABELS, tf.int32),
        tf.constant(_SEEDS, tf.int64),
        process=process_of(),
        config=config,
        image_shape=_IMAGE_SHAPE,
        num_classes=_NUM_CLASSES,
    )


@pytest.fixture(scope='module', name='draw')
def fixture_draw(make_sampler):
    """Returns the images of a sampler for seeds and labels."""
    made = {}

    def draw(config, seeds, labels, denoiser=network):
        if (config, denoiser) not in made:
            made[config, denoiser] = make_sampler(denoiser, process_of(), config, num_classes=_NUM_CLASSES)
        return made[config, denoiser](seeds, labels)

    return draw


@pytest.mark.parametrize('config', _CONFIGS, ids=name_of)
def test_image_depends_on_its_label_and_seed_alone(draw, config):
    images = draw(config, _SEEDS, _LABELS)
    order = [3, 0, 4, 2, 7, 6, 1, 5]
    np.testing.assert_array_equal(draw(config, _SEEDS[order], _LABELS[order]), images[order])
    others = draw(config, [5, 11, 12, 13, -3, 14, 15, 16], [2, 1, 0, 2, 0, 0, 1, 1])
    np.testing.assert_array_equal(others[[0, 4]], images[[0, 4]])
    np.testing.assert_allclose(draw(config, _SEEDS[1:3], _LABELS[1:3]), images[1:3], atol=1e-5)
    np.testing.assert_allclose(draw(config, [7] * 9, [1] * 9), images[[2] * 9], atol=1e-5)


@pytest.mark.parametrize('config', _CONFIGS, ids=name_of)
def test_images_are_finite_in_range_and_of_the_right_shape_for_any_batch(draw, config):
    for size in (0, 1, 6):
        images = draw(config, np.arange(size), np.zeros([size]))
        assert images.shape == (size, *_IMAGE_SHAPE) and images.dtype == np.float32
        assert np.isfinite(images).all() and (np.abs(images) <= 1.0).all()


@pytest.mark.parametrize('config', _CONFIGS, ids=name_of)
def test_seed_and_label_each_change_the_image(draw, config):
    # Seeds that share their low or their high 32 bits are told apart.
    seeds = np.array([0, 1, 2, -1, 2**31, 2**32, 2**32 + 1, 2**62])
    images = draw(config, seeds, np.zeros_like(seeds)).reshape(len(seeds), -1)
    distances = np.abs(images[:, None] - images[None]).max(-1) + np.eye(len(seeds))
    assert distances.min() > 1e-3
    by_label = draw(config, [4, 4, 4], [0, 1, 2]).reshape(3, -1)
    assert min(np.abs(by_label[i] - by_label[i - 1]).max() for i in range(3)) > 1e-3


@pytest.mark.parametrize('config', _CONFIGS, ids=name_of)
def test_one_step_gives_images_too(draw, config):
    # One step from pure noise ends at the prediction, whichever the sampler; some of it is not cut off.
    images = draw(dataclasses.replace(config, num_steps=1), _SEEDS, _LABELS)
    assert np.isfinite(images).all() and (np.abs(images) < 0.99).any()
    if config in _CONFIGS[:4]:
        expected = draw(samplers.SamplerConfig('ddim', 1), _SEEDS, _LABELS)
        np.testing.assert_allclose(images, expected, atol=1e-6)


@pytest.mark.parametrize('config', _CONFIGS, ids=name_of)
def test_loop_in_a_graph_gives_what_python_gives(draw, config):
    images = sample_in_python(network, config)
    np.testing.assert_allclose(images, draw(config, _SEEDS, _LABELS), atol=1e-5)


@pytest.mark.parametrize('name', samplers.SAMPLERS)
@pytest.mark.parametrize('num_steps', [1, 4])
@pytest.mark.parametrize('scale, batch', [(1.0, 8), (0.0, 16), (3.0, 16)])
def test_network_is_evaluated_as_often_as_said(name, num_steps, scale, batch):
    batches = []

    def denoiser(x_t, t, labels):
        batches.append(x_t.shape[0])
        assert t.shape == labels.shape == [batch] and t.dtype == labels.dtype == tf.int32
        return network(x_t, t, labels)

    config = samplers.SamplerConfig(name, num_steps, guidance_scale=scale)
    sample_in_python(denoiser, config)
    assert batches == [batch] * (2 * num_steps - 1 if name == 'edm_heun' else num_steps)
    assert sum(batches) == len(_LABELS) * config.evaluations_per_image
    of_two = dataclasses.replace(config, num_candidates=2)
    assert of_two.evaluations_per_image == 2 * config.evaluations_per_image


def guided_by_hand(x_t, t, labels):
    """The network with guidance of scale 3 in it."""
    conditional, unconditional = network(x_t, t, labels), network(x_t, t, tf.fill(tf.shape(labels), _NUM_CLASSES))
    return 3.0 * conditional - 2.0 * unconditional


@pytest.mark.parametrize('name', samplers.SAMPLERS)
def test_guidance_acts_on_the_prediction_of_the_network(draw, name):
    config = samplers.SamplerConfig(name, 5)
    without = draw(config, _SEEDS, _LABELS)
    none = draw(config, _SEEDS, np.full([8], _NUM_CLASSES))
    guided = draw(dataclasses.replace(config, guidance_scale=3.0), _SEEDS, _LABELS)
    np.testing.assert_allclose(guided, draw(config, _SEEDS, _LABELS, guided_by_hand), atol=2e-5)
    np.testing.assert_allclose(draw(dataclasses.replace(config, guidance_scale=0.0), _SEEDS, _LABELS), none, atol=2e-5)
    # Control: the three are different images.
    assert min(np.abs(a - b).max() for a, b in [(without, none), (none, guided), (guided, without)]) > 0.1


@pytest.mark.parametrize('name', samplers.SAMPLERS)
@pytest.mark.parametrize('thresholding', ['static', 'dynamic'])
def test_samples_are_cut_off_at_the_ends_of_the_range(make_sampler, name, thresholding):
    config = samplers.SamplerConfig(name, 20, thresholding=thresholding)
    draw = make_sampler(lambda x_t, t, labels: tf.ones_like(x_t) * 3.0, process_of('x_start'), config)
    np.testing.assert_allclose(draw([0, 1]), 1.0, atol=1e-6)


def seeded_draws(seeds, num_draws):
    """Returns the normal numbers that samplers use, [draws, seeds, *_IMAGE_SHAPE]."""
    function = tf.function(lambda draw: samplers.seeded_noise(tf.constant(seeds, tf.int64), draw, _IMAGE_SHAPE))
    return np.stack([function(tf.constant(i)) for i in range(num_draws)])


def test_draws_of_one_image_are_independent_standard_normal():
    draws = seeded_draws(np.arange(300), 4).reshape(4, -1)
    assert stats.kstest(draws.reshape(-1), 'norm').pvalue > 1e-4
    correlations = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlations).max() < 5 / np.sqrt(draws.shape[1])
    # Draw d of seed s is not draw s of seed d.
    assert not np.allclose(seeded_draws([1], 3)[2], seeded_draws([2], 2)[1])


@pytest.mark.parametrize('name', samplers.SAMPLERS)
def test_more_steps_than_timesteps_are_refused(make_sampler, name):
    with pytest.raises(ValueError, match="num_steps=21 of the sampler exceeds the schedule's 20 timesteps"):
        make_sampler(network, process_of(), samplers.SamplerConfig(name, 21))([0])


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'name': 'euler'}, "one of .*'ddim', 'ancestral', 'dpmpp_2m', 'edm_heun'.* got 'euler'"),
        ({'num_steps': 0}, 'num_steps of the sampler must be at least 1, got 0'),
        ({'guidance_scale': -1.0}, 'guidance_scale must be a finite number, at least 0, got -1.0'),
        ({'guidance_scale': float('nan')}, 'guidance_scale must be a finite number, at least 0, got nan'),
        ({'thresholding': 'clip'}, "thresholding must be one of .*'static', 'dynamic', 'none'.*, got 'clip'"),
        ({'dynamic_percentile': 99.5}, r'dynamic_percentile must be in \(0, 1\], got 99.5'),
    ],
)
def test_bad_sampler_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        samplers.SamplerConfig(**arguments)


def test_image_sampler_passes_labels_on_and_returns_pixels():
    process, config = process_of('x_start'), samplers.SamplerConfig('ddim', 3)
    levels = tf.constant([0, 3, 128, 255])

    def denoiser(x_t, t, labels):
        assert t.dtype == tf.int32
        x_start = tf.gather(tf.cast(levels, tf.float32), labels) / 127.5 - 1.0
        return tf.ones_like(x_t) * x_start[:, None, None, None]

    sample_images = samplers.make_image_sampler(
        denoiser, process=process, config=config, image_shape=(3, 5, 2), num_classes=4
    )
    images = tf.function(sample_images)(tf.constant([2, 0, 1, 3, 1]), tf.range(5, dtype=tf.int64))
    assert images.dtype == tf.uint8 and images.shape == (5, 3, 5, 2)
    expected = np.array([128, 0, 3, 255, 3])[:, None, None, None]
    np.testing.assert_array_equal(images, np.broadcast_to(expected, images.shape))


@pytest.mark.parametrize('name', samplers.SAMPLERS)
def test_image_sampler_survives_being_saved(tmp_path, name):
    config = samplers.SamplerConfig(name, 4, guidance_scale=2.0, thresholding='dynamic')
    module = tf.Module()
    module.sample = tf.function(
        samplers.make_image_sampler(
            network, process=process_of(), config=config, image_shape=_IMAGE_SHAPE, num_classes=_NUM_CLASSES
        ),
        input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)],
    )
    tf.saved_model.save(module, str(tmp_path))
    labels, seeds = tf.constant(_LABELS, tf.int32), tf.constant(_SEEDS, tf.int64)
    images = tf.saved_model.load(str(tmp_path)).sample(labels, seeds)
    np.testing.assert_array_equal(images, module.sample(labels, seeds))


@pytest.mark.parametrize('config', _CONFIGS, ids=name_of)
def test_path_begins_with_the_noise_and_ends_with_the_image(draw, config):
    process = process_of()
    path = samplers.denoising_path(
        network,
        tf.constant(_LABELS, tf.int32),
        tf.constant(_SEEDS, tf.int64),
        num_frames=4,
        process=process,
        config=config,
        image_shape=_IMAGE_SHAPE,
        num_classes=_NUM_CLASSES,
    )
    assert path.shape == (4, len(_SEEDS), *_IMAGE_SHAPE) and path.dtype == np.uint8
    noise = samplers.seeded_noise(tf.constant(_SEEDS, tf.int64), tf.constant(0), _IMAGE_SHAPE).numpy()
    shown = np.clip(np.round((noise + 1.0) * 127.5), 0, 255).astype(int)
    assert np.abs(path[0].astype(int) - shown).max() <= 1
    images = np.round((draw(config, _SEEDS, _LABELS) + 1.0) * 127.5).astype(int)
    assert np.abs(path[-1].astype(int) - images).max() <= 1
    changes = np.abs(np.diff(path.astype(int), axis=0)).mean(axis=(1, 2, 3, 4))
    assert (changes > 0).all()


def test_path_of_few_steps_has_fewer_frames():
    path = samplers.denoising_path(
        network,
        tf.constant([0]),
        tf.constant([0], tf.int64),
        num_frames=9,
        process=process_of(),
        config=samplers.SamplerConfig('ddim', 3),
        image_shape=_IMAGE_SHAPE,
        num_classes=_NUM_CLASSES,
    )
    assert len(path) == 4  # Before each of the three steps, and after the last.


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('config', _CONFIGS, ids=name_of)
def test_predictions_that_are_not_finite_give_an_error_and_no_images(make_sampler, config, value):

    def broken(x_t, t, labels):
        """Predicts one pixel of one image wrongly, at the last timesteps alone: cut off it would be white or black."""
        pixel = tf.one_hot(tf.range(tf.size(x_t)) // 4, tf.size(x_t))[:, 0] * tf.cast(t[0] < 12, tf.float32)
        predicted = network(x_t, t, labels)
        return tf.where(tf.reshape(pixel, tf.shape(x_t)) > 0.0, value, predicted)

    sampler = make_sampler(broken, process_of(), config, num_classes=_NUM_CLASSES)
    with pytest.raises(samplers.NotFiniteError, match='predicts numbers that are not finite') as error:
        with samplers.telling_of_divergence():
            sampler(_SEEDS, _LABELS)
    assert '\n' not in str(error.value)


def test_other_errors_of_a_sampler_stay_what_they_are():
    with pytest.raises(tf.errors.InvalidArgumentError):
        with samplers.telling_of_divergence():
            tf.debugging.assert_positive(-1.0)
