"""Tests of the layers: each against an independent implementation, and all of them against what DP-SGD asks of a
layer."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.networks import adapters
from tf_dpdiff.networks import layers


def random_array(shape, seed=0, mean=0.0, stddev=1.0):
    return np.random.default_rng(seed).normal(mean, stddev, shape).astype(np.float32)


def randomize(layer, seed=0):
    """Gives every variable random values, so that no zero initialisation hides a part of the layer."""
    for index, variable in enumerate(layer.trainable_variables):
        variable.assign(random_array(variable.shape, seed + index, stddev=0.5))
    return layer


# GroupNorm.


def matching_norms(channels, groups, used_groups, epsilon=1e-5):
    """Returns ours and Keras's, with the same random weights."""
    ours, theirs = layers.GroupNorm(groups, epsilon), keras.layers.GroupNormalization(used_groups, epsilon=epsilon)
    for layer in (ours, theirs):
        layer(tf.zeros([1, 3, 5, channels]))
        layer.gamma.assign(random_array([channels], 1))
        layer.beta.assign(random_array([channels], 2))
    return ours, theirs


_NORMS = [
    ([2, 3, 5, 8], 4, 4),
    ([2, 3, 5, 8], 1, 1),
    ([1, 4, 4, 12], 12, 12),
    ([3, 1, 1, 6], 3, 3),
    ([2, 3, 5, 12], 32, 12),  # Lowered to the number of channels.
    ([2, 3, 5, 12], 5, 4),  # Lowered to a divisor of it.
    ([2, 3, 5, 7], 4, 1),
]


@pytest.mark.parametrize('shape, groups, used_groups', _NORMS)
def test_group_norm_is_that_of_keras(shape, groups, used_groups):
    ours, theirs = matching_norms(shape[-1], groups, used_groups)
    inputs = tf.constant(random_array(shape, 3, mean=2.0, stddev=3.0))
    np.testing.assert_allclose(ours(inputs), theirs(inputs), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('shape, groups, used_groups', _NORMS[:3])
def test_gradients_of_group_norm_are_those_of_keras(shape, groups, used_groups):
    gradients = []
    inputs, weights = tf.constant(random_array(shape, 3)), tf.constant(random_array(shape, 4))
    for layer in matching_norms(shape[-1], groups, used_groups):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(layer(inputs) * weights)
        gradients.append(tape.gradient(loss, [inputs, layer.gamma, layer.beta]))
    for ours, theirs in zip(*gradients):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('compute_dtype', ['float32', 'mixed_bfloat16'])
def test_gradient_of_group_norm_is_that_of_its_definition(compute_dtype):
    layer = layers.GroupNorm(4, dtype=keras.mixed_precision.Policy(compute_dtype))
    layer(tf.zeros([1, 3, 5, 8]))
    randomize(layer)
    inputs, weights = tf.constant(random_array([2, 3, 5, 8], 3, mean=0.5)), tf.constant(random_array([2, 3, 5, 8], 4))

    def defined(x):
        x = tf.reshape(x, [2, 3, 5, 4, 2])
        mean, variance = tf.nn.moments(x, [1, 2, 4], keepdims=True)
        x = tf.reshape((x - mean) * tf.math.rsqrt(variance + layer.epsilon), [2, 3, 5, 8])
        return x * tf.identity(layer.gamma) + tf.identity(layer.beta)

    gradients = []
    for function in (layer, defined):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(tf.cast(function(inputs), tf.float32) * weights)
        gradients.append(tape.gradient(loss, [inputs, layer.gamma, layer.beta]))
    tolerance = 1e-5 if compute_dtype == 'float32' else 2e-2
    for ours, expected in zip(*gradients):
        assert ours.dtype == tf.float32
        np.testing.assert_allclose(ours, expected, atol=tolerance * np.abs(expected).max())


def test_group_norm_stands_a_mean_far_from_zero():
    ours, theirs = matching_norms(8, 4, 4)
    inputs = random_array([2, 6, 6, 8], 3, mean=30.0)
    np.testing.assert_allclose(ours(inputs), theirs(inputs), atol=2e-3)


@pytest.mark.parametrize('value', [0.0, 3.0, -1000.0])
def test_group_norm_of_a_constant_image_is_its_shift_and_has_finite_gradients(value):
    ours, _ = matching_norms(8, 4, 4)
    inputs = tf.fill([1, 4, 4, 8], value)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = ours(inputs)
        loss = tf.reduce_sum(outputs * tf.constant(random_array(outputs.shape)))
    np.testing.assert_allclose(outputs, np.broadcast_to(ours.beta, outputs.shape), atol=1e-6 + 1e-4 * abs(value))
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(loss, [inputs, ours.gamma, ours.beta]))


# The other layers.


def test_timestep_embedding_is_sinusoids_and_two_dense_layers():
    layer = layers.TimestepEmbedding(6, 5)
    t = np.array([0, 1, 37, 999])
    layer(tf.constant(t))
    randomize(layer)
    # Ho et al. 2020 take the positions of Vaswani et al. 2017: wavelengths from 2 pi to 10,000 x 2 pi.
    frequencies = np.array([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])
    code = np.concatenate([np.cos(np.outer(t, frequencies)), np.sin(np.outer(t, frequencies))], axis=1)
    hidden = code @ layer.dense_in.kernel.numpy() + layer.dense_in.bias.numpy()
    expected = hidden / (1 + np.exp(-hidden)) @ layer.dense_out.kernel.numpy() + layer.dense_out.bias.numpy()
    np.testing.assert_allclose(layer(tf.constant(t)), expected, atol=5e-4)


def test_timesteps_keep_their_own_embeddings():
    layer = layers.TimestepEmbedding(8, 16)
    layer(tf.constant([0]))
    embeddings = randomize(layer)(tf.range(1000)).numpy()
    distances = np.abs(embeddings[:, None] - embeddings[None]).max(-1) + np.eye(1000)
    assert distances.min() > 1e-4


def test_class_embedding_is_a_look_up():
    layer = layers.ClassEmbedding(4, 3)
    labels = np.array([3, 0, 4, 4, 1, 2])  # 4 is "no class".
    layer(tf.constant(labels))
    (table,) = randomize(layer).trainable_variables
    assert table.shape == (5, 3)
    np.testing.assert_allclose(layer(tf.constant(labels)), table.numpy()[labels], rtol=1e-6)


@pytest.mark.parametrize('channels, scale_shift', [(6, False), (6, True), (8, False), (8, True)])
def test_residual_block_is_its_formula(channels, scale_shift):
    x, embedding = tf.constant(random_array([2, 4, 6, 6], 1)), tf.constant(random_array([2, 5], 2))
    block = layers.ResidualBlock(channels, groups=2, scale_shift=scale_shift)
    block([x, embedding])
    randomize(block)

    def norm(layer, h):
        theirs = keras.layers.GroupNormalization(2, epsilon=1e-5)
        theirs.build(h.shape)
        theirs.set_weights(layer.get_weights())
        return theirs(h)

    def conv(layer, h):
        return tf.nn.conv2d(h, layer.kernel, 1, 'SAME') + layer.bias

    h = conv(block.conv_in, tf.nn.silu(norm(block.norm_in, x)))
    code = (embedding @ block.dense.kernel + block.dense.bias)[:, None, None, :]
    if scale_shift:
        h = norm(block.norm_out, h) * (1 + code[..., :channels]) + code[..., channels:]
    else:
        h = norm(block.norm_out, h + code)
    h = conv(block.conv_out, tf.nn.silu(h))
    expected = h + (x if channels == 6 else conv(block.skip, x))
    np.testing.assert_allclose(block([x, embedding]), expected, rtol=1e-4, atol=1e-4)


def test_new_residual_block_passes_its_input_on():
    x = random_array([2, 4, 4, 6])
    np.testing.assert_array_equal(layers.ResidualBlock(6, 2)([x, random_array([2, 5])]), x)


@pytest.mark.parametrize('channels, head_channels', [(6, 6), (6, 2)])
def test_self_attention_is_softmax_attention_over_pixels(channels, head_channels):
    x = random_array([2, 3, 4, channels])
    layer = layers.SelfAttention(head_channels, groups=2)
    np.testing.assert_array_equal(layer(x), x)  # A new one passes its input on.
    randomize(layer)
    pixels = layer.norm(x).numpy().reshape(2, 12, channels)
    qkv = pixels @ layer.qkv.kernel.numpy() + layer.qkv.bias.numpy()
    expected = np.zeros([2, 12, channels])
    for head in range(channels // head_channels):
        columns = slice(head * head_channels, (head + 1) * head_channels)
        q, k, v = (qkv[..., part * channels : (part + 1) * channels][..., columns] for part in range(3))
        for image in range(2):
            for pixel in range(12):
                weights = np.exp(k[image] @ q[image, pixel] / np.sqrt(head_channels))
                expected[image, pixel, columns] = weights / weights.sum() @ v[image]
    expected = x + (expected @ layer.out.kernel.numpy() + layer.out.bias.numpy()).reshape(x.shape)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_channels_that_heads_do_not_divide_are_refused():
    with pytest.raises(ValueError, match='6 channels are not a multiple of head_channels=4'):
        layers.SelfAttention(4)(tf.zeros([1, 2, 2, 6]))


def test_upsample_repeats_pixels():
    x = random_array([2, 3, 4, 2])
    layer = layers.Upsample(2)
    layer(x)
    kernel = np.zeros([3, 3, 2, 2], np.float32)
    kernel[1, 1] = np.eye(2)  # The convolution then changes nothing.
    layer.conv.kernel.assign(kernel)
    np.testing.assert_array_equal(layer(x), x.repeat(2, axis=1).repeat(2, axis=2))


# What DP-SGD asks of every layer. Inputs have the axes [units, views, ...].

_UNITS, _VIEWS = 3, 2
_ADAPTERS = adapters.Adapters(rank=2, targets=adapters.ROLES)


def image_of(channels):
    return random_array([_UNITS, _VIEWS, 4, 4, channels], 7)


_CASES = {
    'GroupNorm': (lambda: layers.GroupNorm(2), image_of(4)),
    'TimestepEmbedding': (lambda: layers.TimestepEmbedding(4, 6), np.arange(6, dtype=np.int32).reshape(3, 2) * 7),
    'ClassEmbedding': (lambda: layers.ClassEmbedding(5, 3), np.array([[0, 5], [2, 2], [1, 4]], np.int32)),
    'ResidualBlock': (lambda: layers.ResidualBlock(4, 2), (image_of(4), random_array([_UNITS, _VIEWS, 6], 8))),
    'ResidualBlock, other': (
        lambda: layers.ResidualBlock(6, 2, scale_shift=True),
        (image_of(4), random_array([_UNITS, _VIEWS, 6], 8)),
    ),
    'SelfAttention': (lambda: layers.SelfAttention(2, 2), image_of(4)),
    'Upsample': (lambda: layers.Upsample(3), image_of(4)),
    'AdaptedDense': (lambda: adapters.AdaptedDense(5, adapter_rank=2, adapter_alpha=3.0), image_of(4)),
    'AdaptedConv2D': (
        lambda: adapters.AdaptedConv2D(5, 3, padding='same', adapter_rank=2, adapter_alpha=3.0),
        image_of(4),
    ),
    'TimestepEmbedding, adapted': (
        lambda: layers.TimestepEmbedding(4, 6, _ADAPTERS),
        np.arange(6, dtype=np.int32).reshape(3, 2) * 7,
    ),
    'ResidualBlock, adapted': (
        lambda: layers.ResidualBlock(4, 2, adapters=_ADAPTERS),
        (image_of(4), random_array([_UNITS, _VIEWS, 6], 8)),
    ),
    'SelfAttention, adapted': (lambda: layers.SelfAttention(2, 2, _ADAPTERS), image_of(4)),
}

_EVERY_LAYER = pytest.mark.parametrize('make, inputs', _CASES.values(), ids=_CASES.keys())


def apply(layer, inputs):
    """Calls a layer on the inputs of one unit."""
    return layer(list(inputs) if isinstance(inputs, tuple) else inputs)


def of_unit(inputs, unit):
    return tf.nest.map_structure(lambda array: tf.constant(array[unit]), inputs)


def build(make, inputs):
    layer = make()
    apply(layer, of_unit(inputs, 0))
    return randomize(layer)


def gradients_of_unit(layer, inputs):
    with tf.GradientTape() as tape:
        outputs = tf.cast(apply(layer, inputs), tf.float32)
        loss = tf.reduce_mean(tf.square(outputs - 0.5))
    return tape.gradient(loss, layer.trainable_variables)


def test_every_layer_is_a_case():
    classes = {
        name
        for name, value in {**vars(layers), **vars(adapters)}.items()
        if isinstance(value, type) and issubclass(value, keras.layers.Layer)
    }
    # These two have no variables, and a test of their own.
    assert {key.split(',')[0] for key in _CASES} | {'ToPatches', 'FromPatches'} == classes


@_EVERY_LAYER
def test_gradients_mapped_over_units_are_those_of_a_loop_and_map_without_one(make, inputs):
    layer = build(make, inputs)
    expected = [gradients_of_unit(layer, of_unit(inputs, unit)) for unit in range(_UNITS)]

    @tf.function
    def mapped(inputs):
        # Without the fallback, an operation that would be run in a loop is an error.
        return tf.vectorized_map(lambda unit: gradients_of_unit(layer, unit), inputs, fallback_to_while_loop=False)

    for index, gradient in enumerate(mapped(tf.nest.map_structure(tf.constant, inputs))):
        by_loop = np.stack([gradients[index] for gradients in expected])
        assert np.abs(by_loop).max() > 1e-4
        np.testing.assert_allclose(gradient, by_loop, rtol=1e-3, atol=1e-5)


def test_control_a_layer_that_maps_with_a_loop_is_noticed():
    layer = keras.layers.UpSampling2D(interpolation='bilinear')
    dense = keras.layers.Dense(2)
    dense.build([None, 4])

    @tf.function
    def mapped(images):

        def gradients(image):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(layer(dense(image))))
            return tape.gradient(loss, dense.trainable_variables)

        return tf.vectorized_map(gradients, images, fallback_to_while_loop=False)

    with pytest.raises(ValueError, match='No pfor vectorization'):
        mapped(tf.constant(image_of(4)))


@_EVERY_LAYER
def test_examples_of_a_batch_do_not_mix(make, inputs):
    layer = build(make, inputs)
    of_batch = tf.nest.map_structure(lambda array: array.reshape(-1, *array.shape[2:]), inputs)
    changed = tf.nest.map_structure(np.copy, of_batch)
    for array in tf.nest.flatten(changed):
        array[2] = array[2] + 1
    before, after = (apply(layer, tf.nest.map_structure(tf.constant, x)).numpy() for x in (of_batch, changed))
    others = np.arange(len(before)) != 2
    np.testing.assert_array_equal(after[others], before[others])
    # But for a norm, which takes the same number added to each pixel out again.
    assert np.abs(after[2] - before[2]).max() > (0 if isinstance(layer, layers.GroupNorm) else 1e-3)


@_EVERY_LAYER
def test_layer_that_was_built_is_not_built_again(make, inputs):
    layer = make()
    unit = of_unit(inputs, 0)
    layer.build([array.shape for array in unit] if isinstance(unit, tuple) else unit.shape)
    before = [variable.ref() for variable in layer.weights]
    apply(layer, unit)
    assert [variable.ref() for variable in layer.weights][: len(before)] == before
    assert len(layer.weights) == len(build(make, inputs).weights)


@_EVERY_LAYER
def test_layer_comes_back_from_its_configuration(make, inputs):
    layer = build(make, inputs)
    again = type(layer).from_config(layer.get_config())
    apply(again, of_unit(inputs, 0))
    again.set_weights(layer.get_weights())
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(apply(again, of_unit(inputs, 1)), apply(layer, of_unit(inputs, 1)))


@pytest.fixture
def mixed_precision():
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy('mixed_bfloat16')
    yield
    keras.mixed_precision.set_global_policy(policy)


@_EVERY_LAYER
def test_layer_takes_its_precision_along(make, inputs, mixed_precision):
    config = make().get_config()
    keras.mixed_precision.set_global_policy('float32')
    layer = type(make()).from_config(config)
    assert apply(layer, of_unit(inputs, 0)).dtype == tf.bfloat16


@_EVERY_LAYER
def test_layer_runs_in_mixed_precision(make, inputs, mixed_precision):
    layer = build(make, inputs)
    outputs = apply(layer, of_unit(inputs, 0))
    assert outputs.dtype == tf.bfloat16
    assert all(variable.dtype == tf.float32 for variable in layer.trainable_variables)
    assert all(gradient.dtype == tf.float32 for gradient in gradients_of_unit(layer, of_unit(inputs, 0)))
    keras.mixed_precision.set_global_policy('float32')
    exact = make()
    apply(exact, of_unit(inputs, 0))
    exact.set_weights(layer.get_weights())
    expected = apply(exact, of_unit(inputs, 0)).numpy()
    # bfloat16 has eight bits.
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), expected, atol=0.05 * np.abs(expected).max())


def test_patches_are_squares_of_the_image_and_are_put_back_in_place():
    images = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape([2, 4, 6, 3])
    patches = layers.ToPatches(2)(images).numpy()
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 1, 2], images[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(layers.FromPatches(2)(patches), images)


def test_patches_are_mapped_over_units_without_a_loop():

    @tf.function
    def mapped(images):
        there_and_back = keras.Sequential([layers.ToPatches(2), layers.FromPatches(2)])
        return tf.vectorized_map(there_and_back, images, fallback_to_while_loop=False)

    np.testing.assert_array_equal(mapped(tf.constant(image_of(3))), image_of(3))
