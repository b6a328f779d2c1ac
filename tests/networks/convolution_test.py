"""Tests of the convolution: it is that of Keras, whichever way its filter gradient is computed."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.networks import convolution


def random_tensor(shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def gradients_of(layer, inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs)
        loss = tf.reduce_sum(tf.square(outputs))
    return [outputs, *tape.gradient(loss, [inputs, *layer.trainable_variables])]


def operations_of_gradient(layer, inputs):
    graph = tf.function(lambda x: gradients_of(layer, x)).get_concrete_function(inputs).graph
    return {operation.type for operation in graph.get_operations()}


SETTINGS = [
    dict(kernel_size=3, padding='same'),
    dict(kernel_size=1),
    dict(kernel_size=1, padding='same'),
    dict(kernel_size=(2, 3), padding='same'),
    dict(kernel_size=3, padding='same', strides=2),
    dict(kernel_size=3),
    dict(kernel_size=3, padding='same', dilation_rate=2),
    dict(kernel_size=3, padding='same', groups=2),
]


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
@pytest.mark.parametrize('shape', [(1, 1, 1, 4), (3, 5, 7, 4), (5, 8, 8, 4)], ids=str)
def test_convolution_and_its_gradients_are_those_of_keras(settings, shape):
    if shape[1] < 3 and settings.get('padding') != 'same':
        settings = {**settings, 'kernel_size': 1}
    ours, theirs = convolution.Conv2D(6, **settings), keras.layers.Conv2D(6, **settings)
    inputs = random_tensor(shape)
    for layer in (ours, theirs):
        layer.build(inputs.shape)
        layer.set_weights([random_tensor(v.shape, 1).numpy() for v in layer.weights])
    for value, expected in zip(gradients_of(ours, inputs), gradients_of(theirs, inputs)):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('shape, is_product', [((4, 8, 8, 3), True), ((5, 8, 8, 3), False), ((None, 2, 2, 3), False)])
def test_filter_gradient_on_few_pixels_is_a_product_of_matrices(shape, is_product):
    layer = convolution.Conv2D(6, 3, padding='same')
    layer.build(shape)
    operations = operations_of_gradient(layer, tf.TensorSpec(shape))
    assert ('Conv2DBackpropFilter' in operations) != is_product
    assert 'MatMul' in operations or not is_product


def test_mapped_over_units_no_loop_is_left():
    layer = convolution.Conv2D(6, 3, padding='same')
    layer.build((None, 4, 4, 3))

    @tf.function
    def mapped(units):
        return tf.vectorized_map(lambda unit: gradients_of(layer, unit)[2], units)

    units = random_tensor([5, 2, 4, 4, 3])
    assert not any('While' in op.type for op in mapped.get_concrete_function(units).graph.get_operations())
    expected = tf.stack([gradients_of(layer, unit)[2] for unit in units])
    np.testing.assert_allclose(mapped(units), expected, rtol=1e-4, atol=1e-4)
