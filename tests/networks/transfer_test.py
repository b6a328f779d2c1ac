"""Tests of weights that are carried from one network to another."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import dit
from tf_dpdiff.networks import transfer
from tf_dpdiff.networks import unet

_CONFIG = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), head_channels=4, groups=2)
_TABLE = 'class_embedding/table/kernel'


def random_model(image_shape=(4, 4, 1), num_classes=3, config=_CONFIG, seed=0):
    model, generator = denoiser.build(config, image_shape, num_classes), np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(generator.normal(0.0, 0.3, variable.shape))
    return model


def weights_of(model):
    return {variable.name.split(':')[0]: variable.numpy() for variable in model.variables}


@pytest.fixture(name='checkpoint', scope='module')
def fixture_checkpoint():
    """Weights of a network of three channels and five classes."""
    return weights_of(random_model((4, 4, 3), 5, seed=1))


def copy_of(checkpoint):
    return {name: value.copy() for name, value in checkpoint.items()}


def test_weights_are_carried_over_by_name_and_the_checkpoint_stays_as_it_is(checkpoint):
    model, weights = random_model((4, 4, 3), 5), dict(reversed(list(copy_of(checkpoint).items())))
    transfer.carry_over_weights(weights, model, keep_class_embedding=True)
    for name, value in weights_of(model).items():
        np.testing.assert_array_equal(value, checkpoint[name])
        np.testing.assert_array_equal(weights[name], checkpoint[name])


@pytest.mark.parametrize('num_classes', [3, 5, 8])
def test_classes_stay_as_they_were_drawn_but_for_no_class(num_classes, checkpoint):
    model = random_model((4, 4, 3), num_classes)
    before = weights_of(model)[_TABLE]
    transfer.carry_over_weights(checkpoint, model)
    after = weights_of(model)
    np.testing.assert_array_equal(after[_TABLE][:-1], before[:-1])
    np.testing.assert_array_equal(after[_TABLE][-1], checkpoint[_TABLE][-1])
    assert all(np.array_equal(after[name], checkpoint[name]) for name in checkpoint if name != _TABLE)


def test_adapters_that_the_checkpoint_lacks_stay_as_they_were_drawn(checkpoint):
    model = random_model((4, 4, 3), 5, dataclasses.replace(_CONFIG, adapter_rank=2))
    before = weights_of(model)
    transfer.carry_over_weights(checkpoint, model, keep_class_embedding=True)
    for name, value in weights_of(model).items():
        np.testing.assert_array_equal(value, before[name] if 'adapter' in name else checkpoint[name])
    # Those that it has are carried over as any other weight.
    other = random_model((4, 4, 3), 5, dataclasses.replace(_CONFIG, adapter_rank=2), seed=7)
    transfer.carry_over_weights(before, other, keep_class_embedding=True)
    assert all(np.array_equal(value, before[name]) for name, value in weights_of(other).items())


def test_grey_network_predicts_the_mean_of_what_the_colour_network_predicts_for_a_grey_image(checkpoint):
    grey, colour = random_model((4, 4, 1), 5), random_model((4, 4, 3), 5)
    for model in (grey, colour):
        transfer.carry_over_weights(checkpoint, model, keep_class_embedding=True)
    x_t = np.random.default_rng(3).normal(size=[2, 4, 4, 1]).astype(np.float32)
    t, labels = tf.constant([3, 700]), tf.constant([0, 4])
    expected = denoiser.denoise(colour, tf.repeat(x_t, 3, axis=-1), t, labels).numpy().mean(-1, keepdims=True)
    np.testing.assert_allclose(denoiser.denoise(grey, x_t, t, labels), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


_REFUSED = {
    'missing': (
        lambda w: without(w, 'middle_0/norm_in/beta'),
        'middle_0/norm_in/beta is missing in the checkpoint and [4] here; nothing else differs.',
    ),
    'extra': (
        lambda w: {**w, 'up_9/kernel': np.zeros([2, 3])},
        'up_9/kernel is [2, 3] in the checkpoint and missing here; nothing else differs.',
    ),
    'of another shape': (
        lambda w: {**w, 'conv_in/bias': np.zeros([7]), 'out_norm/beta': np.zeros([7]), 'more': np.zeros([])},
        'conv_in/bias is [7] in the checkpoint and [4] here; 3 variables differ.',
    ),
    'with another table': (
        lambda w: {**w, _TABLE: np.zeros([6, 8])},
        f'{_TABLE} is [6, 8] in the checkpoint and [6, 16] here; nothing else differs.',
    ),
}


@pytest.mark.parametrize('change, message', _REFUSED.values(), ids=_REFUSED.keys())
def test_weights_that_do_not_fit_are_refused_in_one_line_and_none_is_changed(change, message, checkpoint):
    model = random_model((4, 4, 3), 5)
    before = model.get_weights()
    with pytest.raises(transfer.WeightsMismatchError) as error:
        transfer.carry_over_weights(change(checkpoint), model)
    assert str(error.value) == f'the weights of the checkpoint do not fit the network: {message}'
    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights()))


def test_classes_of_another_number_cannot_be_kept(checkpoint):
    with pytest.raises(transfer.WeightsMismatchError, match=r'is \[6, 16\] in the checkpoint and \[4, 16\] here'):
        transfer.carry_over_weights(checkpoint, random_model((4, 4, 3), 3), keep_class_embedding=True)


def test_colour_network_takes_no_grey_checkpoint():
    with pytest.raises(transfer.WeightsMismatchError, match=r'conv_in/kernel is \[3, 3, 1, 4\] in the checkpoint'):
        transfer.carry_over_weights(weights_of(random_model((4, 4, 1))), random_model((4, 4, 3)))


_OTHER = {
    'base_channels': 128,
    'channel_multipliers': (1, 2),
    'num_res_blocks': 2,
    'attention_resolutions': (16,),
    'middle_attention': False,
    'head_channels': 32,
    'groups': 8,
    'patch_size': 2,
    'scale_shift': True,
}


@pytest.mark.parametrize('name, value', _OTHER.items())
def test_field_of_the_architecture_that_differs_is_named_with_both_values(name, value):
    there, here = unet.UNetConfig(), dataclasses.replace(unet.UNetConfig(), **{name: value})
    assert transfer.architecture_differences(there, here) == [
        f'{name} is {getattr(there, name)!r} in the checkpoint and {value!r} here'
    ]
    assert not transfer.architecture_differences(here, here)


def test_several_differences_are_all_named():
    differences = transfer.architecture_differences(unet.UNetConfig(), unet.UNetConfig(**_OTHER))
    assert [phrase.split()[0] for phrase in differences] == list(_OTHER)


@pytest.mark.parametrize(
    'fields',
    [
        {'dropout': 0.2},
        {'compute_dtype': 'mixed_bfloat16'},
        {'adapter_rank': 4, 'adapter_alpha': 1.0, 'adapter_targets': ('residual',)},
    ],
)
def test_what_weights_do_not_depend_on_is_no_difference(fields):
    assert not transfer.architecture_differences(unet.UNetConfig(), unet.UNetConfig(**fields))


@pytest.mark.parametrize(
    'name, value', [('adapter_rank', 2), ('adapter_alpha', 1.0), ('adapter_targets', ('residual',))]
)
def test_adapters_of_a_checkpoint_must_be_those_of_the_network(name, value):
    there = unet.UNetConfig(adapter_rank=4)
    differences = transfer.architecture_differences(there, dataclasses.replace(there, **{name: value}))
    assert [phrase.split()[0] for phrase in differences] == [name]


def test_every_field_of_a_network_is_architecture_or_known_not_to_be():
    fields = {field.name for field in dataclasses.fields(unet.UNetConfig)}
    assert fields - set(_OTHER) == {'dropout', 'compute_dtype', 'adapter_rank', 'adapter_alpha', 'adapter_targets'}


def test_attention_stays_at_the_same_levels_for_images_of_another_size():
    there = unet.UNetConfig(base_channels=8, groups=4, head_channels=8, attention_resolutions=(8,), patch_size=2)
    assert there.resized((32, 32, 3), (64, 32, 3)).attention_resolutions == (16,)
    assert there.resized((32, 32, 3), (32, 64, 3)) == there
    assert there.resized((28, 28, 1), (64, 64, 1)).attention_resolutions == ()  # No level there is 8 high.
    here = there.resized((32, 32, 3), (64, 48, 3))
    small, large = (denoiser.build(config, shape, 2) for config, shape in ((there, (32, 32, 3)), (here, (64, 48, 3))))
    weights = {variable.name.split(':')[0]: variable.numpy() for variable in small.variables}
    transfer.carry_over_weights(weights, large)
    with pytest.raises(transfer.WeightsMismatchError, match='attention'):  # Control.
        transfer.carry_over_weights(weights, denoiser.build(there, (64, 48, 3), 2))


def test_network_without_levels_is_the_same_for_images_of_any_size():
    config = dit.DiTConfig()
    assert config.resized((8, 8, 1), (32, 32, 1)) is config
