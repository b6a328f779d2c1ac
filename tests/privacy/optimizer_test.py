"""Tests of the DP-Keras optimizers against TensorFlow Privacy's and against plain Keras."""

import sys

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.privacy import optimizer as optimizer_lib

layers = keras.layers
KEYS = dict(learning_rate=0.1)


def make_model(cls=keras.Model):
    keras.utils.set_random_seed(3)
    inputs = layers.Input([4, 4, 1])
    h = layers.Conv2D(3, 3, activation='swish')(inputs)
    return cls(inputs, layers.Dense(2)(layers.Flatten()(layers.GroupNormalization(1)(h))))


def make_data(num_rows=12, seed=0):
    generator = np.random.default_rng(seed)
    return (
        generator.standard_normal([num_rows, 4, 4, 1]).astype(np.float32) * 3.0,
        generator.standard_normal([num_rows, 2]).astype(np.float32),
    )


def stock_adam(*args, **kwargs):
    """Makes TensorFlow Privacy's optimizer; its package, as a whole, no longer works with today's TensorFlow."""
    sys.skip_tf_privacy_import = True  # What its __init__ asks for.
    from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized

    return dp_optimizer_keras_vectorized.VectorizedDPKerasAdamOptimizer(*args, **kwargs)


def vector_loss(model, x, y):
    return lambda: tf.reduce_mean(tf.square(model(x) - y), axis=-1)


def flat(tensors):
    return np.concatenate([np.ravel(t) for t in tensors])


@pytest.fixture(name='of_tensorflow_privacy', scope='module', params=[12, 4])
def fixture_of_tensorflow_privacy(request):
    """A number of microbatches, a model, and the gradients of its variables by TensorFlow Privacy."""
    model, (x, y) = make_model(), make_data()
    stock = stock_adam(0.5, 0.0, request.param, **KEYS)
    pairs = stock._compute_gradients(vector_loss(model, x, y), model.trainable_variables)
    return request.param, model, flat([gradient for gradient, _ in pairs])


@pytest.mark.parametrize('way', ['callable', 'tape', 'units'])
def test_gradients_at_noise_zero_equal_tensorflow_privacy(of_tensorflow_privacy, way):
    num_microbatches, model, expected = of_tensorflow_privacy
    (x, y), variables = make_data(), model.trainable_variables
    ours = optimizer_lib.VectorizedDPAdam(0.5, 0.0, num_microbatches, units_per_chunk=3, **KEYS)
    if way == 'callable':
        pairs = ours.compute_gradients(vector_loss(model, x, y), variables)
    elif way == 'tape':
        with tf.GradientTape(persistent=True) as tape:
            loss = vector_loss(model, x, y)()
        pairs = ours.compute_gradients(loss, variables, tape=tape)
    else:
        views = 12 // num_microbatches
        batch = tf.reshape(x, [num_microbatches, views, 4, 4, 1]), tf.reshape(y, [num_microbatches, views, 2])
        pairs = ours.compute_unit_gradients(lambda unit: tf.reduce_mean(vector_loss(model, *unit)()), batch, variables)
    np.testing.assert_allclose(flat([g for g, _ in pairs]), expected, rtol=2e-4, atol=1e-6)
    assert np.linalg.norm(expected) > 1e-3


# The gradients tell whether each number of microbatches is right; Adam takes them alike at any scale.
@pytest.mark.parametrize('num_microbatches', [pytest.param(12, marks=pytest.mark.long), 4])
def test_updates_at_noise_zero_equal_tensorflow_privacy(num_microbatches):
    updated = []
    for make in (stock_adam, optimizer_lib.VectorizedDPAdam):
        model, (x, y) = make_model(), make_data()
        optimizer = make(0.5, 0.0, num_microbatches, **KEYS)
        for _ in range(2):
            if make is optimizer_lib.VectorizedDPAdam:
                batch = tf.nest.map_structure(lambda t: tf.reshape(t, [num_microbatches, -1, *t.shape[1:]]), (x, y))
                optimizer.minimize_units(
                    lambda unit: tf.reduce_mean(vector_loss(model, *unit)()), batch, model.trainable_variables
                )
            else:
                optimizer.minimize(vector_loss(model, x, y), model.trainable_variables)
        updated.append(flat(model.get_weights()))
    np.testing.assert_allclose(updated[1], updated[0], rtol=2e-3, atol=2e-4)
    assert not np.allclose(updated[0], flat(make_model().get_weights()), atol=1e-2)


ADAM = optimizer_lib.VectorizedDPAdam, keras.optimizers.Adam
SGD = optimizer_lib.VectorizedDPSGD, keras.optimizers.SGD


@pytest.mark.parametrize(
    'ours, plain, cls',
    [
        (*ADAM, optimizer_lib.DpModel),
        (*SGD, keras.Model),
        # Each of the four is in one of those above.
        pytest.param(*ADAM, keras.Model, marks=pytest.mark.long),
        pytest.param(*SGD, optimizer_lib.DpModel, marks=pytest.mark.long),
    ],
)
def test_fit_without_noise_and_clipping_equals_plain_keras(ours, plain, cls):
    x, y = make_data(24)
    private, expected = make_model(cls), make_model()
    private.compile(
        ours(float('inf'), 0.0, num_microbatches=12, **KEYS), keras.losses.MeanSquaredError(reduction='none')
    )
    expected.compile(plain(**KEYS), keras.losses.MeanSquaredError())
    for model in (private, expected):
        model.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(flat(private.get_weights()), flat(expected.get_weights()), rtol=1e-3, atol=1e-4)
    assert not np.allclose(flat(expected.get_weights()), flat(make_model().get_weights()), atol=1e-2)


def updates(noise_multiplier, num_steps=3, clip=2.0, divisor=8.0):
    """Returns the updates of a variable whose gradients are zero: nothing but noise."""
    variable = tf.Variable(tf.zeros([4000]))
    optimizer = optimizer_lib.VectorizedDPSGD(clip, noise_multiplier, expected_batch_size=divisor, learning_rate=1.0)
    taken = []
    for _ in range(num_steps):
        before = variable.numpy()
        optimizer.minimize_units(lambda unit: tf.reduce_sum(variable * 0.0) * unit, tf.ones([5]), [variable])
        taken.append((variable.numpy() - before) * divisor / clip)
    return taken


def test_noise_has_the_law_that_it_is_accounted_for_and_is_never_reused():
    taken = updates(1.5)
    assert stats.kstest(np.concatenate(taken) / 1.5, 'norm').pvalue > 1e-3
    assert abs(np.corrcoef(taken[0], taken[1])[0, 1]) < 0.1


@pytest.mark.parametrize('factor', [2 / 3, 3 / 2])
def test_control_noise_of_another_scale_is_noticed(factor):
    assert stats.kstest(np.concatenate(updates(1.5 * factor)) / 1.5, 'norm').pvalue < 1e-6


def test_two_optimizers_draw_different_noise():
    assert abs(np.corrcoef(updates(1.0, 1)[0], updates(1.0, 1)[0])[0, 1]) < 0.1


def test_divisor_is_the_expected_batch_size_not_the_batch_at_hand():
    variable = tf.Variable([0.0])
    for num_units in (2, 5):
        optimizer = optimizer_lib.VectorizedDPSGD(1.0, 0.0, expected_batch_size=4, learning_rate=1.0)
        pairs = optimizer.compute_unit_gradients(lambda unit: variable[0] * unit, tf.fill([num_units], 0.5), [variable])
        np.testing.assert_allclose(pairs[0][0], [num_units * 0.5 / 4], rtol=1e-5)


def test_padding_and_units_that_are_not_finite_contribute_zero():
    variable = tf.Variable([1.0])
    optimizer = optimizer_lib.VectorizedDPSGD(1.0, 0.0, expected_batch_size=2, learning_rate=1.0)
    batch = tf.constant([0.5, float('nan'), 0.25, 7.0])
    pairs = optimizer.compute_unit_gradients(
        lambda unit: variable[0] * unit, batch, [variable], is_padding=tf.constant([False, False, False, True])
    )
    np.testing.assert_allclose(pairs[0][0], [0.375], rtol=1e-5)


def test_missing_divisor_and_scalar_loss_are_refused():
    with pytest.raises(ValueError, match='give num_microbatches or expected_batch_size'):
        optimizer_lib.VectorizedDPAdam(1.0, 1.0)
    variable = tf.Variable([1.0])
    optimizer = optimizer_lib.VectorizedDPSGD(1.0, 0.0, 1)
    with pytest.raises(ValueError, match="reduction is 'none'"):
        optimizer.compute_gradients(lambda: tf.reduce_sum(variable), [variable])


def test_losses_that_are_not_attributed_to_a_unit_are_refused():
    model = optimizer_lib.DpModel.sequential([layers.Dense(2, kernel_regularizer='l2', input_shape=(3,))])
    model.compile(optimizer_lib.VectorizedDPSGD(1.0, 0.0, 4), keras.losses.MeanSquaredError(reduction='none'))
    with pytest.raises(ValueError, match='not attributed to a unit'):
        model.fit(np.ones([4, 3]), np.ones([4, 2]), batch_size=4, verbose=0)


def test_config_keeps_the_privacy_arguments_and_holds_no_seed():
    optimizer = optimizer_lib.VectorizedDPAdam(0.5, 1.1, 8, learning_rate=0.1)
    config = optimizer.get_config()
    assert config['l2_norm_clip'] == 0.5 and config['noise_multiplier'] == 1.1 and config['num_microbatches'] == 8
    assert not any('seed' in name for name in config)
    again = optimizer_lib.VectorizedDPAdam.from_config(config)
    assert again.get_config() == config
