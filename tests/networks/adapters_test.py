"""Tests of the low-rank adapters, alone and in the UNet."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.networks import adapters
from tf_dpdiff.networks import convolution
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import transfer
from tf_dpdiff.networks import unet

_PLAIN = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), head_channels=4, groups=2)
_ADAPTED = dataclasses.replace(_PLAIN, adapter_rank=2, adapter_alpha=3.0, adapter_targets=adapters.ROLES)


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomize(variables, seed=0):
    for index, variable in enumerate(variables):
        variable.assign(0.4 * random_array(*variable.shape, seed=seed + index))


def inputs_for(batch=3):
    return [tf.constant(random_array(batch, 4, 4, 1)), tf.range(batch) * 300, tf.range(batch)]


def is_adapter(variable):
    return 'adapter' in variable.name


@pytest.fixture(name='adapted', scope='module')
def fixture_adapted():
    """A network whose every variable is random; tests leave it alone."""
    model = denoiser.build(_ADAPTED, (4, 4, 1), 3)
    randomize(model.variables)
    return model


# The layers.


def test_adapted_dense_is_a_dense_layer_of_the_sum_of_the_kernels():
    layer = adapters.AdaptedDense(5, adapter_rank=2, adapter_alpha=3.0)
    x = tf.constant(random_array(2, 3, 4, 6))
    layer(x)
    randomize(layer.variables)
    kernel = layer.kernel.numpy() + 3.0 / 2 * layer.adapter_down.numpy() @ layer.adapter_up.numpy()
    np.testing.assert_allclose(layer(x), x.numpy() @ kernel + layer.bias.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size, strides', [(3, 1), (3, 2), (1, 1)])
def test_adapted_convolution_is_two_convolutions_beside_its_own(size, strides):
    layer = adapters.AdaptedConv2D(5, size, strides=strides, padding='same', adapter_rank=2, adapter_alpha=3.0)
    x = tf.constant(random_array(2, 6, 6, 4))
    layer(x)
    randomize(layer.variables)
    low_rank = tf.nn.conv2d(x, layer.adapter_down, strides, 'SAME')
    low_rank = tf.nn.conv2d(low_rank, layer.adapter_up[None, None], 1, 'SAME')
    expected = tf.nn.conv2d(x, layer.kernel, strides, 'SAME') + layer.bias + 1.5 * low_rank
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_layer_with_an_activation_is_refused():
    with pytest.raises(ValueError, match="layer 'code': what is adapted has no activation; apply it to the sum"):
        adapters.AdaptedDense(5, adapter_rank=2, adapter_alpha=3.0, activation='swish', name='code')


# The network.


def test_new_adapted_network_is_the_network_without_adapters():
    plain, adapted = (denoiser.build(config, (4, 4, 1), 3) for config in (_PLAIN, _ADAPTED))
    randomize(plain.variables)
    transfer.carry_over_weights(
        {v.name.split(':')[0]: v.numpy() for v in plain.variables}, adapted, keep_class_embedding=True
    )
    np.testing.assert_array_equal(adapted(inputs_for()), plain(inputs_for()))
    # Control: it would not be if what is zero at first were not.
    randomize([v for v in adapted.variables if v.name.endswith('adapter_up:0')])
    assert np.abs(adapted(inputs_for()) - plain(inputs_for())).max() > 1e-2


def test_rank_zero_is_the_network_as_it_was():
    config = dataclasses.replace(_ADAPTED, adapter_rank=0)
    plain, without = (denoiser.build(c, (4, 4, 1), 3) for c in (_PLAIN, config))
    assert [v.name for v in without.variables] == [v.name for v in plain.variables]
    assert not any(isinstance(m, (adapters.AdaptedDense, adapters.AdaptedConv2D)) for m in without.submodules)


@pytest.mark.parametrize(
    'role, layers',
    [
        ('attention', ['attention/qkv', 'attention/out']),
        ('residual', ['0/conv_in', '1/conv_in', '0/conv_out', '1/conv_out']),
        ('embedding', ['embedding_dense', 'timestep_embedding/dense_in', 'timestep_embedding/dense_out']),
    ],
)
def test_adapters_are_on_the_layers_of_the_roles_asked_for(role, layers, adapted):
    model = denoiser.build(dataclasses.replace(_ADAPTED, adapter_targets=(role,)), (4, 4, 1), 3)
    found = {v.name for v in model.variables if is_adapter(v)}
    candidates = {v.name for v in adapted.variables if is_adapter(v)}
    parts = ('adapter_down:0', 'adapter_up:0')
    assert found == {
        name for name in candidates if name.endswith(tuple(f'{x}/{part}' for x in layers for part in parts))
    }
    assert found and len(found) < len(candidates)


def test_adapters_and_classes_are_selected_by_name(adapted):
    selected = denoiser.select_variables(adapted, ('adapter', 'class_embedding'))
    assert {v.name.split('/')[-1] for v in selected} == {'adapter_down:0', 'adapter_up:0', 'kernel:0'}
    assert [v.name for v in selected if not is_adapter(v)] == ['class_embedding/table/kernel:0']
    num_selected, num_all = (sum(int(tf.size(v)) for v in x) for x in (selected, adapted.variables))
    assert num_selected < num_all / 2


def test_adapters_of_attention_where_there_is_none_are_refused():
    config = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, adapter_rank=2)
    with pytest.raises(ValueError, match="adapter_targets=.'attention',. names attention, and the network has none"):
        denoiser.build(config, (4, 4, 1), 3)
    denoiser.build(dataclasses.replace(config, attention_resolutions=(4,), head_channels=4), (4, 4, 1), 3)


def filter_gradients(model, variables):
    """Returns how many gradients of convolution kernels the gradient by some variables takes."""

    @tf.function
    def gradients():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = tf.reduce_mean(tf.square(model(inputs_for())))
        return tape.gradient(loss, variables)

    # The tape writes down more than is used; what no output needs is not run.
    waiting, needed = list(gradients.get_concrete_function().outputs), {}
    while waiting:
        operation = waiting.pop().op
        if operation.name not in needed:
            needed[operation.name] = operation
            waiting.extend(operation.inputs)
    return sum(operation.type == 'Conv2DBackpropFilter' for operation in needed.values())


def test_gradients_of_frozen_kernels_are_not_computed(adapted, monkeypatch):
    monkeypatch.setattr(convolution, '_MAX_PIXELS', 0)  # All by the operation that is counted.
    adapted_convolutions = [m for m in adapted.submodules if isinstance(m, adapters.AdaptedConv2D)]
    # One for the first factor of each; the second is a product of matrices.
    selected = denoiser.select_variables(adapted, ('adapter', 'class_embedding'))
    assert filter_gradients(adapted, selected) == len(adapted_convolutions)
    # Control.
    assert filter_gradients(adapted, adapted.trainable_variables) > 2 * len(adapted_convolutions)


# Merging.


@pytest.mark.parametrize('compute_dtype', ['float32', 'mixed_bfloat16'])
def test_merged_network_has_no_adapters_and_computes_the_same(compute_dtype):
    config = dataclasses.replace(_ADAPTED, compute_dtype=compute_dtype)
    model = denoiser.build(config, (4, 4, 1), 3)
    randomize(model.variables)
    before = model.get_weights()
    merged, merged_config = transfer.merge_adapters(model, config)
    assert merged_config == dataclasses.replace(_PLAIN, compute_dtype=compute_dtype)
    assert [v.name for v in merged.variables] == [v.name for v in model.variables if not is_adapter(v)]
    outputs, expected = merged(inputs_for()).numpy(), model(inputs_for()).numpy()
    tolerance = 1e-4 if compute_dtype == 'float32' else 0.05
    np.testing.assert_allclose(outputs, expected, atol=tolerance * np.abs(expected).max())
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)
    # Control: the adapters do something.
    randomize([v for v in model.variables if is_adapter(v)], seed=1000)
    assert np.abs(model(inputs_for()) - outputs).max() > 2 * tolerance * np.abs(expected).max()
