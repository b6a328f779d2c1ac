"""Tests of the check that refuses networks which mix examples."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.privacy import model_check

layers = keras.layers


def make_model(*middle):
    return keras.Sequential([layers.Dense(4, input_shape=(3,)), *middle, layers.Dense(2)])


@pytest.mark.parametrize(
    'layer',
    [layers.BatchNormalization(name='bad'), layers.Dropout(0.1, name='bad'), layers.GaussianNoise(0.1, name='bad')],
)
def test_unfit_layer_is_named_with_its_cure(layer):
    with pytest.raises(model_check.ModelCheckError, match=r"'bad' \(\w+\): it (mixes|draws).*; (use|draw)"):
        model_check.check_layers(make_model(layer))


def test_unfit_layer_inside_another_model_is_found():
    inner = keras.Sequential([layers.BatchNormalization(name='hidden', input_shape=(4,))])
    with pytest.raises(model_check.ModelCheckError, match='hidden'):
        model_check.check_layers(make_model(inner))


def check_independence(model):
    model_check.check_independence(model, lambda x: x, [3])


@pytest.mark.parametrize(
    'layer',
    [
        layers.LayerNormalization(),
        layers.GroupNormalization(2),
        layers.Dropout(0.0),
        layers.Dense(4, kernel_initializer='zeros'),
    ],
)
def test_fit_layers_pass_and_keep_their_weights(layer):
    model = make_model(layer)
    before = model.get_weights()
    model_check.check_layers(model)
    check_independence(model)
    for weight, old in zip(model.get_weights(), before):
        np.testing.assert_array_equal(weight, old)


class CentresOverTheBatch(layers.Layer):
    """A layer that mixes examples under a name that no list knows."""

    def call(self, x):
        return x - tf.reduce_mean(x, axis=0, keepdims=True)


class AddsNoise(layers.Layer):
    """A layer that draws randomness under a name that no list knows."""

    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


class RemembersTheMean(layers.Layer):
    """A layer with running statistics."""

    def build(self, input_shape):
        self.mean = self.add_weight('mean', [input_shape[-1]], trainable=False)

    def call(self, x):
        self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(x, axis=0))
        return x


class Forgets(layers.Layer):
    """A layer whose output says nothing of its input."""

    def call(self, x):
        return tf.zeros_like(x)


UNKNOWN = [
    (CentresOverTheBatch, r"in layer 'bad' \(CentresOverTheBatch\) .* depends on another one"),
    (AddsNoise, r"layer 'bad' \(AddsNoise\) gives two outputs"),
    (RemembersTheMean, "changed '.*mean:0' while it was called"),
    (Forgets, 'does not depend on the input'),
]


@pytest.mark.parametrize('make_layer, message', UNKNOWN)
def test_unknown_layers_are_caught_by_what_they_do(make_layer, message):
    model = make_model(make_layer(name='bad'))
    model_check.check_layers(model)
    with pytest.raises(model_check.ModelCheckError, match=message):
        check_independence(model)


def test_layer_is_caught_behind_an_output_that_begins_at_zero():
    model = make_model(CentresOverTheBatch(), layers.Dense(4, kernel_initializer='zeros'))
    with pytest.raises(model_check.ModelCheckError, match='depends on another one'):
        check_independence(model)


class Subclassed(keras.Model):
    """A model that shows nothing of its layers."""

    def __init__(self, layer):
        super().__init__(name='subclassed')
        self.layer = layer

    def call(self, x):
        return self.layer(x)


def test_subclassed_model_is_checked_as_a_whole():
    check_independence(Subclassed(layers.Dense(2)))
    with pytest.raises(model_check.ModelCheckError, match="in the network 'subclassed' the output for one example"):
        check_independence(Subclassed(CentresOverTheBatch()))


class AddsLoss(layers.Layer):
    """A layer with a loss of the whole batch."""

    def call(self, x):
        self.add_loss(tf.reduce_mean(x))
        return x


@pytest.mark.parametrize(
    'layer',
    [
        AddsLoss(name='bad'),
        layers.Dense(4, kernel_regularizer='l2', name='bad'),
        layers.ActivityRegularization(0.1, name='bad'),
    ],
)
def test_layer_that_adds_a_loss_is_named_with_its_cure(layer):
    with pytest.raises(model_check.ModelCheckError, match=r"'bad' \(\w+\): it adds a loss of its own.*; remove"):
        model_check.check_layers(make_model(layer))


def squared(target, prediction):
    return tf.reduce_mean(tf.square(prediction - target), axis=-1)


def contrastive(target, prediction):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(3), tf.matmul(prediction, target, transpose_b=True))


@pytest.mark.parametrize(
    'loss_fn, message',
    [
        (lambda t, p: tf.reduce_mean(squared(t, p)), 'has shape'),
        (lambda t, p: squared(t, p) - tf.reduce_mean(squared(t, p)), 'depends on another one'),
        (lambda t, p: contrastive(p, p), 'depends on another one'),
        (keras.losses.MeanSquaredError(), "has shape .*reduction='none'"),
    ],
)
def test_loss_that_couples_examples_is_refused(loss_fn, message):
    with pytest.raises(model_check.ModelCheckError, match=message):
        model_check.check_loss(loss_fn, [4])


@pytest.mark.parametrize('loss_fn', [squared, keras.losses.MeanSquaredError(reduction='none')])
def test_loss_of_single_examples_passes(loss_fn):
    model_check.check_loss(loss_fn, [4])


def uniforms_of(units, step=0):
    return tf.map_fn(
        lambda unit: tf.random.stateless_uniform([4], tf.stack([unit, step])), units, fn_output_signature=tf.float32
    )


def independent_views(images, units):
    return tf.cast(images, tf.float32), uniforms_of(units)


def antithetic_views(images, units):
    # The first half of the batch decides on the second one.
    numbers = uniforms_of(units)
    return tf.cast(images, tf.float32), tf.concat([numbers[:2], 1.0 - numbers[:1]], axis=0)


def mixed_up_views(images, units):
    images = tf.cast(images, tf.float32)
    return 0.7 * images + 0.3 * tf.roll(images, 1, axis=0), uniforms_of(units)


class LossAwareViews:
    """Timesteps that depend on what was drawn before."""

    def __init__(self):
        self._calls = 0

    def __call__(self, images, units):
        self._calls += 1
        return tf.cast(images, tf.float32), uniforms_of(units, self._calls)


@pytest.mark.parametrize(
    'draw, message',
    [
        (antithetic_views, 'no antithetic timesteps'),
        (mixed_up_views, 'no mix-up across units'),
        (LossAwareViews(), 'nor from earlier losses'),
    ],
)
def test_views_that_depend_on_other_units_are_refused(draw, message):
    with pytest.raises(model_check.ModelCheckError, match=message):
        model_check.check_views(draw, [2, 2, 1])


def test_views_of_single_units_pass():
    model_check.check_views(independent_views, [2, 2, 1])
