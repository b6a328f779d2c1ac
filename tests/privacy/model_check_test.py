"""Tests of the check that refuses networks which mix examples."""

import pytest
import tensorflow as tf

from tf_dpdiff.privacy import model_check

layers = tf.keras.layers


def make_model(*middle):
    return tf.keras.Sequential([layers.Dense(4, input_shape=(3,)), *middle, layers.Dense(2)])


@pytest.mark.parametrize('layer', [layers.BatchNormalization(name='bad'), layers.Dropout(0.1, name='bad'),
                                   layers.GaussianNoise(0.1, name='bad')])  # yapf: disable
def test_unfit_layer_is_named_with_its_cure(layer):
    with pytest.raises(model_check.ModelCheckError, match=r"'bad' \(\w+\): it (mixes|draws).*; (use|draw)"):
        model_check.check_layers(make_model(layer))


def test_unfit_layer_inside_another_model_is_found():
    inner = tf.keras.Sequential([layers.BatchNormalization(name='hidden', input_shape=(4,))])
    with pytest.raises(model_check.ModelCheckError, match='hidden'):
        model_check.check_layers(make_model(inner))


@pytest.mark.parametrize('layer', [layers.LayerNormalization(), layers.GroupNormalization(2), layers.Dropout(0.0)])
def test_fit_layers_pass(layer):
    model = make_model(layer)
    model_check.check_layers(model)
    model_check.check_independence(lambda x: model(x, training=True), [3])


class CentresOverTheBatch(layers.Layer):
    """A layer that mixes examples under a name that no list knows."""

    def call(self, x):
        return x - tf.reduce_mean(x, axis=0, keepdims=True)


class AddsNoise(layers.Layer):
    """A layer that draws randomness under a name that no list knows."""

    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


@pytest.mark.parametrize('layer, message', [(CentresOverTheBatch(), 'depends on another one'),
                                            (AddsNoise(), 'two outputs')])
def test_unknown_layers_are_caught_by_what_they_do(layer, message):
    model = make_model(layer)
    model_check.check_layers(model)
    with pytest.raises(model_check.ModelCheckError, match=message):
        model_check.check_independence(lambda x: model(x, training=True), [3])
