"""Tests of the seam: what holds for every kind of denoising network."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import hidden_loops
from tf_dpdiff import keras
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import dit
from tf_dpdiff.networks import kinds
from tf_dpdiff.networks import transfer
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import clipping
from tf_dpdiff.privacy import model_check

# A small network of each kind.
_EXAMPLES = {
    'unet': unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2),
    'dit': dit.DiTConfig(hidden_size=8, depth=1, num_heads=2),
}
_IMAGE, _CLASSES = (4, 4, 1), 3


def inputs_for(batch=3, seed=0):
    x_t = np.random.default_rng(seed).normal(size=[batch, *_IMAGE]).astype(np.float32)
    return [tf.constant(x_t), tf.range(batch) * 30, tf.range(batch)]


def random_model(config, num_classes=_CLASSES, seed=0):
    model, generator = denoiser.build(config, _IMAGE, num_classes), np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(generator.normal(0.0, 0.3, variable.shape))
    return model


def weights_of(model):
    return {variable.name.split(':')[0]: variable.numpy() for variable in model.variables}


@pytest.fixture(name='config', scope='module', params=_EXAMPLES)
def fixture_config(request):
    return _EXAMPLES[request.param]


@pytest.fixture(name='model', scope='module')
def fixture_model(config):
    """A network of random weights, shared by tests that leave them alone."""
    return random_model(config)


def test_every_kind_has_an_example_here():
    assert list(_EXAMPLES) == [config.kind for config in kinds.CONFIGS]
    assert all(isinstance(config, of_kind) for config, of_kind in zip(_EXAMPLES.values(), kinds.CONFIGS))


def test_inputs_and_prediction_are_those_of_the_seam(model, config):
    assert model.input_names == ['x_t', 't', 'labels'] and model.name == config.kind
    prediction = denoiser.denoise(model, *inputs_for())
    assert prediction.shape == (3, *_IMAGE) and prediction.dtype == tf.float32
    assert all(variable.dtype == tf.float32 for variable in model.variables)


def test_prediction_of_mixed_compute_type_is_float32_and_close(model, config):
    mixed = denoiser.build(dataclasses.replace(config, compute_dtype='mixed_bfloat16'), _IMAGE, _CLASSES)
    mixed.set_weights(model.get_weights())
    exact, prediction = denoiser.denoise(model, *inputs_for()), denoiser.denoise(mixed, *inputs_for())
    assert prediction.dtype == tf.float32 and all(variable.dtype == tf.float32 for variable in mixed.variables)
    assert 1e-4 < float(tf.norm(prediction - exact) / tf.norm(exact)) < 0.1


def test_a_network_without_dropout_is_called_with_its_three_inputs(model):
    x_t, t, labels = inputs_for()
    expected = model([x_t, t, labels]).numpy()
    for training, seeds in ((False, None), (True, None), (True, tf.constant([1, 2, 3]))):
        outputs = denoiser.denoise(model, x_t, t, labels, dropout_seeds=seeds, training=training)
        np.testing.assert_array_equal(outputs, expected)


@pytest.mark.parametrize('index, value', [(1, [0, 500, 60]), (2, [0, 3, 2])])
def test_timestep_and_label_of_an_example_change_its_output_and_no_other(model, index, value):
    inputs = inputs_for()
    before = model(inputs).numpy()
    inputs[index] = tf.constant(value)
    after = model(inputs).numpy()
    assert np.abs(after[1] - before[1]).max() > 1e-3
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], atol=1e-6)


def test_image_of_an_example_changes_no_other_output(model):
    inputs = inputs_for()
    before = model(inputs).numpy()
    # Not a constant image, which a layer norm would undo.
    inputs[0] = tf.tensor_scatter_nd_update(inputs[0], [[1]], 100.0 * inputs_for(seed=1)[0][:1])
    after = model(inputs).numpy()
    assert np.abs(after[1] - before[1]).max() > 1e-3
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], atol=1e-6)


def test_privacy_check_finds_nothing(model):
    _, t, labels = inputs_for()
    model_check.check_layers(model)
    model_check.check_independence(model, lambda x: [x, t, labels], _IMAGE)
    assert not model.non_trainable_variables  # Nothing keeps statistics over a batch or a run.


def test_names_of_variables_are_unique_and_do_not_depend_on_what_was_built_before(model, config):
    names = [variable.name for variable in model.variables]
    assert len(set(names)) == len(names)
    keras.layers.Dense(2).build([None, 3])
    with tf.name_scope('elsewhere'):
        again = denoiser.build(config, _IMAGE, _CLASSES)
    other = denoiser.build(config, (8, 8, 3), 4)
    assert [variable.name for variable in again.variables] == names
    assert [variable.name for variable in other.variables] == names


def test_weights_follow_from_the_seed(config):
    first, same, other = (
        (keras.utils.set_random_seed(seed), denoiser.build(config, _IMAGE, _CLASSES).get_weights())[1]
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(*pair) for pair in zip(first, same))
    assert not all(np.array_equal(*pair) for pair in zip(first, other))


def unit_loss(model):
    return lambda unit: tf.reduce_mean(tf.square(denoiser.denoise(model, *unit, training=True) - 1.0))


def test_clipped_sum_of_mapped_gradients_is_that_of_a_loop_over_units(model):
    views = [tf.reshape(x, [4, 2, *x.shape[1:]]) for x in inputs_for(8)]
    # Not the filters of convolutions, each of which is a loop that takes a second to trace.
    variables = denoiser.select_variables(model, ('bias', 'embedding'))
    loss_fn, clip = unit_loss(model), 1.0
    expected, norms = 0.0, []
    for unit in range(4):
        with tf.GradientTape() as tape:
            loss = loss_fn([x[unit] for x in views])
        gradient = np.concatenate([np.ravel(g) for g in tape.gradient(loss, variables)]).astype(np.float64)
        norms.append(np.linalg.norm(gradient))
        expected = expected + gradient * min(1.0, clip / norms[-1])
    clipper, is_padding = clipping.PerUnitClipper(clip), tf.zeros([4], tf.bool)
    sums = tf.function(
        lambda: clipper.clipped_sum(loss_fn, variables, views, is_padding, units_per_chunk=2).sums, autograph=False
    )()
    assert max(norms) > clip
    actual = np.concatenate([np.ravel(total) for total in sums])
    np.testing.assert_allclose(actual, expected, atol=2e-4 * np.abs(expected).max())


# The class embedding.


@pytest.mark.parametrize('num_classes', [1, 3])
def test_class_embedding_has_a_vector_for_each_class_and_one_for_none(config, num_classes):
    layer = denoiser.class_embedding(denoiser.build(config, _IMAGE, num_classes))
    assert layer.num_classes == num_classes and layer.table.kernel.shape[0] == num_classes + 1


def test_class_embedding_is_selected_by_its_name(model):
    selected = denoiser.select_variables(model, ('class_embedding',))
    assert [v.ref() for v in selected] == [v.ref() for v in denoiser.class_embedding(model).trainable_variables]


def test_weights_are_carried_over_to_other_classes_but_for_their_embeddings(model, config):
    weights, other = weights_of(model), random_model(config, num_classes=5, seed=1)
    table = denoiser.class_embedding(other).table.kernel.name.split(':')[0]
    before = weights_of(other)
    transfer.carry_over_weights(weights, other)
    for name, value in weights_of(other).items():
        if name != table:
            np.testing.assert_array_equal(value, weights[name])
    np.testing.assert_array_equal(weights_of(other)[table], [*before[table][:-1], weights[table][-1]])


def test_checkpoint_of_another_kind_is_refused():
    there, here = _EXAMPLES['dit'], _EXAMPLES['unet']
    assert transfer.architecture_differences(there, here) == [
        "the network is of kind 'dit' in the checkpoint and 'unet' here"
    ]
    assert not transfer.architecture_differences(there, there)


# Selection of variables.


def test_no_pattern_selects_every_variable(model):
    selected = denoiser.select_variables(model, ())
    assert [v.ref() for v in selected] == [v.ref() for v in model.trainable_variables]


@pytest.mark.parametrize(
    'patterns', [['bias'], ['embedding', 'bias'], ['kernel', 'dense_in/kernel'], ['dense_out/bias']]
)
def test_patterns_select_variables_once_in_the_order_of_the_model(model, patterns):
    selected = {v.ref() for v in denoiser.select_variables(model, patterns)}
    order = [v.ref() for v in model.trainable_variables if v.ref() in selected]
    assert [v.ref() for v in denoiser.select_variables(model, patterns)] == order
    for variable in model.trainable_variables:
        assert (variable.ref() in selected) == any(pattern in variable.name for pattern in patterns)
    assert 0 < len(selected) < len(model.trainable_variables)


def test_pattern_that_matches_nothing_is_refused_with_what_would_match(model):
    with pytest.raises(ValueError, match="no trainable variable matches 'adapter'") as error:
        denoiser.select_variables(model, ['bias', 'adapter'])
    candidates = str(error.value).split('name one of: ')[1].rstrip('.').split(', ')
    assert {'timestep_embedding', 'class_embedding', 'kernel'} <= set(candidates)
    for candidate in candidates:
        assert denoiser.select_variables(model, [candidate])


# How hidden loops are found, of which kinds have tests of their own.


def test_control_random_numbers_drawn_inside_are_noticed_as_a_hidden_loop(caplog):
    weights = tf.Variable(tf.ones([3]))

    def loss_fn(unit):
        return tf.reduce_mean(weights * tf.random.stateless_uniform([3], tf.stack([unit, unit])))

    assert any('Random' in name for name in hidden_loops.find(loss_fn, [weights], tf.constant([1, 2]), caplog))


def test_control_an_embedding_look_up_is_noticed_as_a_hidden_loop(caplog):
    embedding = keras.layers.Embedding(5, 3)
    embedding.build([None])
    units = tf.constant([[0, 1], [2, 2]])
    loops = hidden_loops.find(
        lambda unit: tf.reduce_mean(tf.square(embedding(unit))), embedding.trainable_variables, units, caplog
    )
    assert 'ResourceGather' in loops
