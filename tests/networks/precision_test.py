"""Tests of the UNet in bfloat16: what stays in float32, and how close it is."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import layers
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import clipping

_EXACT = unet.UNetConfig(base_channels=16, channel_multipliers=(1, 2), head_channels=8, groups=4)
_MIXED = dataclasses.replace(_EXACT, compute_dtype='mixed_bfloat16')


def inputs_for(batch=4):
    x_t = np.random.default_rng(0).normal(size=[batch, 4, 4, 1]).astype(np.float32)
    return [tf.constant(x_t), tf.constant(np.linspace(0, 999, batch), tf.int32), tf.range(batch)]


def random_models(**fields):
    """Returns the network in float32 and in bfloat16, of the same random weights."""
    configs = (dataclasses.replace(config, **fields) for config in (_EXACT, _MIXED))
    exact, mixed = (denoiser.build(config, (4, 4, 1), 10) for config in configs)
    generator = np.random.default_rng(0)
    for variable in exact.variables:
        if not variable.name.endswith('gamma:0'):
            fan_in = max(1, int(np.prod(variable.shape[:-1])))
            variable.assign(generator.normal(0.0, fan_in**-0.5 if variable.shape.rank > 1 else 0.1, variable.shape))
    mixed.set_weights(exact.get_weights())
    return exact, mixed


@pytest.fixture(name='models', scope='module')
def fixture_models():
    return random_models()


def relative_error(actual, expected):
    return np.sqrt(np.mean(np.square(actual - expected)) / np.mean(np.square(expected)))


def test_variables_and_prediction_are_float32_and_activations_are_not(models):
    exact, mixed = models
    assert all(variable.dtype == tf.float32 for variable in mixed.variables)
    assert [v.name for v in mixed.variables] == [v.name for v in exact.variables]
    assert mixed(inputs_for()).dtype == tf.float32
    dtypes = {layer.name: layer.output.dtype for layer in mixed.layers if layer.name not in ('x_t', 't', 'labels')}
    assert dtypes.pop('conv_out') == tf.float32
    assert set(dtypes.values()) == {tf.bfloat16}


@pytest.mark.parametrize('policy, config', [('float32', _MIXED), ('mixed_bfloat16', _EXACT)])
def test_policy_of_the_process_is_neither_used_nor_changed(policy, config):
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = denoiser.build(config, (4, 4, 1), 10)
        assert keras.mixed_precision.global_policy().name == policy
    finally:
        keras.mixed_precision.set_global_policy(before)
    policies = {
        layer.dtype_policy.name for layer in model.layers if layer.name not in ('x_t', 't', 'labels', 'conv_out')
    }
    assert policies == {config.compute_dtype}


def test_prediction_is_close_to_that_in_float32(models):
    exact, mixed = (model(inputs_for()).numpy() for model in models)
    # bfloat16 has a relative precision of 2^-8 = 0.4% a rounding; zero would mean that nothing was rounded.
    assert 1e-4 < relative_error(mixed, exact) < 0.03


def test_softmax_and_statistics_of_norms_are_taken_in_float32(models):
    graph = tf.function(models[1]).get_concrete_function(inputs_for()).graph
    found = {
        kind: {op.inputs[0].dtype for op in graph.get_operations() if op.type == kind}
        for kind in ('Softmax', 'Mean', 'Rsqrt', 'Cos', 'Conv2D')
    }
    assert found == {
        **dict.fromkeys(['Softmax', 'Mean', 'Rsqrt', 'Cos'], {tf.float32}),
        'Conv2D': {tf.float32, tf.bfloat16},
    }


def test_sinusoids_tell_neighbouring_timesteps_apart_in_bfloat16():
    # Rounded to bfloat16, 999 is 1000.
    exact, mixed = (layers.TimestepEmbedding(32, 16, dtype=dtype) for dtype in ('float32', 'mixed_bfloat16'))
    t = tf.constant([997, 998, 999, 1000])
    exact(t), mixed(t)
    mixed.set_weights(exact.get_weights())
    assert relative_error(tf.cast(mixed(t), tf.float32).numpy(), exact(t).numpy()) < 0.02


@pytest.mark.parametrize('mean', [0.0, 3.0])
def test_group_norm_in_bfloat16_is_that_of_keras_up_to_rounding(mean):
    ours, theirs = layers.GroupNorm(4, dtype='mixed_bfloat16'), keras.layers.GroupNormalization(4, epsilon=1e-5)
    generator = np.random.default_rng(0)
    inputs = tf.cast(generator.normal(mean, 1.0, [2, 6, 6, 16]), tf.bfloat16)
    ours(inputs), theirs(tf.cast(inputs, tf.float32))
    for gamma, beta in ((layer.gamma, layer.beta) for layer in (ours, theirs)):
        gamma.assign(np.linspace(0.5, 2.0, 16))
        beta.assign(np.linspace(-1.0, 1.0, 16))
    outputs = ours(inputs)
    assert outputs.dtype == tf.bfloat16
    error = np.abs(tf.cast(outputs, tf.float32) - theirs(tf.cast(inputs, tf.float32)))
    # Three roundings of 2^-9, of terms not above 2 (3 + mean) + 1.
    assert error.max() < 3 * 2**-9 * (2 * (3 + mean) + 1)
    assert error.mean() < 0.2 * 3 * 2**-9 * (2 * (3 + mean) + 1)


# Per-unit gradients.

_TRAINED = ['norm', 'embedding', 'middle_attention']


def gradients_of_unit(model, unit):
    variables = denoiser.select_variables(model, _TRAINED)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        loss = 100.0 * tf.reduce_mean(tf.square(model(unit, training=True) - 1.0))
    return tape.gradient(loss, variables)


@pytest.fixture(name='gradients', scope='module')
def fixture_gradients():
    """Gradients of two units: mapped in bfloat16, in a loop in bfloat16, in a loop in float32."""
    exact, mixed = random_models(channel_multipliers=(1,))
    views = [tf.reshape(x, [2, 2, *x.shape[1:]]) for x in inputs_for(4)]
    mapped = tf.function(
        lambda units: tf.vectorized_map(
            lambda unit: gradients_of_unit(mixed, unit), units, fallback_to_while_loop=False
        )
    )(views)
    loops = ([gradients_of_unit(model, [x[unit] for x in views]) for unit in range(2)] for model in (mixed, exact))
    return [mapped, *([tf.stack(of_units) for of_units in zip(*loop)] for loop in loops)]


def test_mapped_gradients_are_float32_and_those_of_a_loop(gradients):
    mapped, by_loop, in_float32 = gradients
    assert all(gradient.dtype == tf.float32 for gradient in mapped)
    flat = [np.concatenate([np.ravel(x) for x in tensors]) for tensors in (mapped, by_loop, in_float32)]
    assert relative_error(flat[0], flat[1]) < 0.03
    assert relative_error(flat[0], flat[2]) < 0.06


def test_clipped_sum_stays_within_its_bound(gradients):
    mapped = gradients[0]
    clipped = clipping.PerUnitClipper(0.01).clip_and_sum(mapped, tf.constant([False, True]))
    assert clipped.norms[0] > 0.1 and clipped.is_clipped[0]
    assert all(total.dtype == tf.float32 for total in clipped.sums)
    norm = np.sqrt(sum(np.sum(np.square(total.numpy().astype(np.float64))) for total in clipped.sums))
    assert 0.999 * 0.01 < norm <= 0.01
