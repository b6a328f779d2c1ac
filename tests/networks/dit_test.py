"""Tests of the diffusion transformer."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import hidden_loops
from tf_dpdiff import keras
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import dit
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.serving import export
from tf_dpdiff.training import memory
from tf_dpdiff.training import train_step
from tf_dpdiff.training import views as views_lib

_CONFIG = dit.DiTConfig(patch_size=2, hidden_size=8, depth=2, num_heads=2, mlp_ratio=3.0)
_CLASSES = 3


def inputs_for(image_shape, batch=3):
    x_t = np.random.default_rng(0).normal(size=[batch, *image_shape]).astype(np.float32)
    return [tf.constant(x_t), tf.range(batch) * 30, tf.range(batch)]


def randomize(model, scale=0.4):
    generator = np.random.default_rng(1)
    for variable in model.variables:
        variable.assign(generator.normal(0.0, scale, variable.shape))
    return model


@functools.cache
def random_model(image_shape=(4, 4, 1), config=_CONFIG):
    """Returns a network of random weights, shared by tests that leave them alone."""
    return randomize(denoiser.build(config, image_shape, _CLASSES))


@pytest.mark.parametrize('patch_size, image_shape', [(2, (8, 4, 3)), (1, (2, 3, 1)), (4, (4, 8, 1))])
def test_output_has_the_shape_of_the_input_and_is_zero_at_first(patch_size, image_shape):
    model = denoiser.build(dataclasses.replace(_CONFIG, patch_size=patch_size), image_shape, _CLASSES)
    outputs = model(inputs_for(image_shape))
    assert outputs.shape == (3, *image_shape) and outputs.dtype == tf.float32
    np.testing.assert_array_equal(outputs, 0.0)


def test_block_returns_its_tokens_at_first():
    x, conditioning = tf.random.normal([2, 3, 4, 8]), tf.random.normal([2, 8])
    block = dit.DiTBlock(num_heads=2)
    np.testing.assert_array_equal(block([x, conditioning]), x)
    randomize(block)
    assert np.abs(block([x, conditioning]) - x).max() > 1e-2


def test_number_of_parameters_is_that_counted_by_hand():
    hidden, depth, pixels = 8, 2, 2 * 2 * 3
    of_block = (hidden + 1) * (6 * hidden + 3 * hidden + hidden + 3 * hidden) + (3 * hidden + 1) * hidden
    of_embeddings = 2 * (hidden + 1) * hidden + (_CLASSES + 1) * hidden
    of_final = (hidden + 1) * (2 * hidden + pixels)
    model = denoiser.build(_CONFIG, (4, 6, 3), _CLASSES)
    assert model.count_params() == (pixels + 1) * hidden + of_embeddings + depth * of_block + of_final


def predict_in_numpy(model, config, x_t, t, labels):
    """Returns what section 3.2 of the paper says, a token at a time."""
    weights = {variable.name.split(':')[0]: variable.numpy().astype(np.float64) for variable in model.variables}
    size, p = config.hidden_size, config.patch_size

    def dense(name, x):
        return x @ weights[f'{name}/kernel'] + weights[f'{name}/bias']

    def swish(x):
        return x / (1.0 + np.exp(-x))

    def modulate(x, shift, scale):
        normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return normal * (1.0 + scale) + shift

    def sinusoids(value, count):
        angles = value * 10000.0 ** -(np.arange(count // 2) / (count // 2))
        return np.sin(angles), np.cos(angles)

    def attention(name, x):
        out = np.zeros_like(x)
        q, k, v = np.split(dense(f'{name}/qkv', x), 3, axis=-1)
        width = size // config.num_heads
        for head in range(config.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width))
            out[:, part] = scores / scores.sum(-1, keepdims=True) @ v[:, part]
        return dense(f'{name}/attention_out', out)

    def perceptron(name, x):
        h = dense(f'{name}/mlp_in', x)
        return dense(f'{name}/mlp_out', 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))))

    predictions = []
    for image, timestep, label in zip(x_t, t, labels):
        rows, columns = image.shape[0] // p, image.shape[1] // p
        places = [(row, column) for row in range(rows) for column in range(columns)]
        patches = [image[p * row : p * (row + 1), p * column : p * (column + 1)].ravel() for row, column in places]
        codes = [np.concatenate([*sinusoids(row, size // 2), *sinusoids(column, size // 2)]) for row, column in places]
        h = dense('tokens/dense', np.array(patches)) + np.array(codes)
        of_t = dense('timestep_embedding/dense_in', np.concatenate(sinusoids(timestep, size)[::-1]))
        condition = dense('timestep_embedding/dense_out', swish(of_t)) + weights['class_embedding/table/kernel'][label]
        for i in range(config.depth):
            modulation = np.split(dense(f'block_{i}/adaln', swish(condition)), 6)
            h = h + modulation[2] * attention(f'block_{i}', modulate(h, *modulation[:2]))
            h = h + modulation[5] * perceptron(f'block_{i}', modulate(h, *modulation[3:5]))
        h = dense('final/linear', modulate(h, *np.split(dense('final/adaln', swish(condition)), 2)))
        prediction = np.zeros(image.shape)
        for (row, column), patch in zip(places, h):
            patch = patch.reshape(p, p, -1)
            prediction[p * row : p * (row + 1), p * column : p * (column + 1)] = patch
        predictions.append(prediction)
    return np.array(predictions)


def test_prediction_is_that_of_the_paper():
    model, inputs = random_model((4, 6, 3)), inputs_for((4, 6, 3))
    expected = predict_in_numpy(model, _CONFIG, *(x.numpy() for x in inputs))
    np.testing.assert_allclose(model(inputs), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected).max() > 0.5


def test_places_have_codes_of_their_own():
    codes = dit.position_code(14, 14, 32).reshape([196, 32])
    distances = np.linalg.norm(codes[:, None] - codes[None], axis=-1)
    assert distances[~np.eye(196, dtype=bool)].min() > 0.1


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'patch_size': 0}, 'patch_size of the DiT must be at least 1, got 0'),
        ({'depth': 0}, 'depth of the DiT must be at least 1, got 0'),
        ({'num_heads': -2}, 'num_heads of the DiT must be at least 1, got -2'),
        ({'hidden_size': 0}, 'hidden_size of the DiT must be at least 1, got 0'),
        ({'hidden_size': 6}, 'hidden_size of the DiT must be a multiple of 4, got 6'),
        ({'hidden_size': 8, 'num_heads': 3}, 'hidden_size of the DiT must be a multiple of num_heads=3, got 8'),
        ({'mlp_ratio': 0.0}, 'mlp_ratio of the DiT must leave at least one hidden unit, got 0.0'),
        ({'compute_dtype': 'float64'}, "compute_dtype must be one of .*, got 'float64'"),
    ],
)
def test_bad_configuration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        dit.DiTConfig(**arguments)


def test_image_that_cannot_be_cut_into_patches_is_refused():
    with pytest.raises(ValueError, match='images of 4x5 cannot be cut into patches of 2x2'):
        denoiser.build(_CONFIG, (4, 5, 1), _CLASSES)


def unit_loss(model):
    return lambda unit: tf.reduce_mean(tf.square(denoiser.denoise(model, *unit, training=True) - 1.0))


@pytest.mark.parametrize('compute_dtype', ['float32', 'mixed_bfloat16'])
def test_per_unit_gradients_hide_no_loop(compute_dtype, caplog):
    model = random_model(config=dataclasses.replace(_CONFIG, depth=1, compute_dtype=compute_dtype))
    views = [tf.stack([x, x]) for x in inputs_for((4, 4, 1))]
    assert not hidden_loops.find(unit_loss(model), model.trainable_variables, views, caplog)


def test_loss_goes_down_when_it_is_trained():
    keras.utils.set_random_seed(0)
    model = denoiser.build(_CONFIG, (4, 4, 1), _CLASSES)
    # A picture for each class: to be told by the label alone.
    pictures = tf.random.stateless_normal([_CLASSES, 4, 4, 1], [1, 2])
    x_t, t, labels = inputs_for((4, 4, 1))
    optimizer = keras.optimizers.Adam(1e-2)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(denoiser.denoise(model, x_t, t, labels) - pictures))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    losses = [float(step()) for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]


# In the private step.

_PROCESS = process_lib.DiffusionProcess(schedules.Schedule('cosine'), 'v')
_VIEWS = views_lib.ViewMaker(_PROCESS, views_lib.ViewsConfig(augmentation_multiplicity=2), num_classes=_CLASSES)
_SEED = seeds.PrivateSeed(bytes(range(32)))


def flat(tensors):
    return np.concatenate([np.ravel(tensor) for tensor in tensors]).astype(np.float64)


def test_private_step_without_noise_is_the_average_of_clipped_gradients_of_units_alone():
    clip, batch_size, units = 0.3, 5, np.array([0, 2, 3], np.int64)
    config = plan_lib.DpSgdConfig(
        target_delta=1e-4, expected_batch_size=batch_size, num_steps=10, l2_norm_clip=clip, noise_multiplier=0.0
    )
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, [4, 1, 4, 4, 1]).astype(np.uint8), np.array([[0], [1], [2], [1]])
    model, average = (randomize(denoiser.build(_CONFIG, (4, 4, 1), _CLASSES), 0.2) for _ in range(2))
    variables, expected, norms = model.trainable_variables, 0.0, []
    for unit in units:
        views = _VIEWS.draw_for_units(
            tf.constant(images[unit : unit + 1]),
            tf.constant(labels[unit : unit + 1], tf.int32),
            tf.constant([unit], tf.int64),
            seed=tf.constant(_SEED.derive('views'), tf.int64),
            step=tf.constant(0, tf.int64),
        )
        with tf.GradientTape() as tape:
            prediction = model([views.x_t[0], views.t[0], views.labels[0]])
            loss = tf.reduce_mean(tf.square(prediction - views.target[0]))
        gradient = flat(tape.gradient(loss, variables))
        norms.append(np.linalg.norm(gradient))
        expected = expected - gradient * min(1.0, clip / norms[-1]) / batch_size
    assert max(norms) > clip
    step = train_step.compile_private_step(
        model,
        average,
        variables,
        keras.optimizers.SGD(1.0),
        plan_lib.make_plan(config, 12),
        _VIEWS,
        _SEED,
        images_per_unit=1,
        max_ema_decay=0.5,
        chunk_sizes=memory.ChunkSizes(2, 2),
    )
    before = flat(variables)
    step([(images[units], labels[units].astype(np.int32), units)], tf.constant(0, tf.int64))
    np.testing.assert_allclose(flat(variables) - before, expected, atol=2e-4 * np.abs(expected).max())


# What is left of it.


def test_weights_are_saved_and_loaded_under_their_names(tmp_path):
    model, other = random_model(), denoiser.build(_CONFIG, (4, 4, 1), _CLASSES)
    model.save_weights(tmp_path / 'weights.h5')
    other.load_weights(tmp_path / 'weights.h5')
    np.testing.assert_array_equal(other(inputs_for((4, 4, 1))), model(inputs_for((4, 4, 1))))


def test_exported_sampler_gives_the_same_images(tmp_path):
    sampler = export.ImageSampler(random_model(), _PROCESS, samplers.SamplerConfig('ddim', 2))
    labels, seeds_of_images = tf.constant([0, 1, 2, 3]), tf.constant([5, 6, 2**40, -7], tf.int64)
    images = sampler.sample(labels, seeds_of_images)['images'].numpy()
    version = export.export_saved_model(sampler, tmp_path, [], warmup_batch_sizes=())
    served = tf.saved_model.load(str(version)).signatures['serving_default'](labels=labels, seeds=seeds_of_images)
    np.testing.assert_array_equal(served['images'], images)
    assert images.std() > 10.0
