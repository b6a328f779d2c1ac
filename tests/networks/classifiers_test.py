"""Tests of the networks that classify images: their size and structure, and what their weights depend on."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.networks import classifiers

BUILDERS = {
    'wide_resnet': lambda shape, num_classes, **options: classifiers.wide_resnet(
        shape, num_classes, depth=10, width=1, **options
    ),
    'small_cnn': classifiers.small_cnn,
}


def layers_of(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.fixture(name='wrn_40_4', scope='module')
def fixture_wrn_40_4():
    return classifiers.wide_resnet((32, 32, 3), 10)


def count_by_hand(blocks, width, channels, num_classes):
    """Weights that are trained of a wide residual network: 3x3 kernels, 1x1 projections, scales and offsets, logits."""
    total, inputs = 9 * channels * 16, 16
    for outputs in (16 * width, 32 * width, 64 * width):
        for _ in range(blocks):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs
            total += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    return total + 2 * inputs + inputs * num_classes + num_classes


def test_wrn_40_4_has_the_parameters_of_the_paper(wrn_40_4):
    trained = sum(int(np.prod(variable.shape)) for variable in wrn_40_4.trainable_variables)
    assert trained == count_by_hand(blocks=6, width=4, channels=3, num_classes=10)
    assert round(trained / 1e6, 1) == 8.9  # Table 4 of the paper.


def test_wrn_40_4_has_three_groups_of_six_blocks_that_halve_the_image_twice(wrn_40_4):
    convolutions = collections.Counter(
        (layer.kernel_size[0], layer.filters, layer.strides[0], layer.output_shape[1])
        for layer in layers_of(wrn_40_4, keras.layers.Conv2D)
    )
    assert convolutions == {
        (3, 16, 1, 32): 1,
        (1, 64, 1, 32): 1,
        (3, 64, 1, 32): 12,
        (1, 128, 2, 16): 1,
        (3, 128, 2, 16): 1,
        (3, 128, 1, 16): 11,
        (1, 256, 2, 8): 1,
        (3, 256, 2, 8): 1,
        (3, 256, 1, 8): 11,
    }
    assert len(layers_of(wrn_40_4, keras.layers.Add)) == 18
    assert not any(layer.use_bias for layer in layers_of(wrn_40_4, keras.layers.Conv2D))


def test_wrn_40_4_activates_before_convolutions_and_leaves_the_identity_path_alone(wrn_40_4):
    made_by = {layer.output.ref(): layer for layer in wrn_40_4.layers}
    first, *others = layers_of(wrn_40_4, keras.layers.Conv2D)
    for layer in others:
        assert isinstance(made_by[layer.input.ref()], keras.layers.ReLU)
    for layer in layers_of(wrn_40_4, keras.layers.Add):
        for tensor in layer.input:  # A sum, a projection or a convolution, and nothing after them.
            assert isinstance(made_by[tensor.ref()], (keras.layers.Add, keras.layers.Conv2D))
    assert first.input_shape == (None, 32, 32, 3)


@pytest.mark.parametrize('shape', [(8, 8, 1), (28, 28, 1), (9, 20, 3)])
@pytest.mark.parametrize('name', BUILDERS)
def test_any_size_of_image_gives_a_finite_logit_a_class(name, shape):
    model = BUILDERS[name](shape, 7)
    images = np.random.default_rng(0).integers(0, 256, [3, *shape]).astype(np.uint8)
    logits = model(images).numpy()
    assert logits.shape == (3, 7) and logits.dtype == np.float32 and np.all(np.isfinite(logits))
    assert np.ptp(logits, axis=0).min() > 0.0  # Images matter.


@pytest.mark.parametrize('name', BUILDERS)
def test_weights_depend_on_the_seed_and_on_nothing_else(name):

    def weights(seed, global_seed):
        keras.utils.set_random_seed(global_seed)
        return BUILDERS[name]((8, 8, 1), 3, seed=seed).get_weights()

    first, again, other = weights(1, 1), weights(1, 2), weights(2, 1)
    for one, two in zip(first, again):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(first, other):
        if one.ndim > 1:
            assert not np.any(one == two)


@pytest.mark.parametrize('name', BUILDERS)
def test_bfloat16_is_computed_in_from_the_first_convolution_to_the_logits_and_weights_are_float32(name):
    images = np.random.default_rng(0).integers(0, 256, [20, 16, 16, 1]).astype(np.uint8)
    exact, rounded = BUILDERS[name]((16, 16, 1), 7), BUILDERS[name]((16, 16, 1), 7, compute_dtype='mixed_bfloat16')
    assert {layer.compute_dtype for layer in layers_of(exact, keras.layers.Layer)} <= {'float32', 'uint8'}
    *inner, logits = [layer for layer in rounded.layers if layer.weights or isinstance(layer, keras.layers.Add)]
    assert {layer.compute_dtype for layer in inner} == {'bfloat16'} and logits.compute_dtype == 'float32'
    assert all(weight.dtype == tf.float32 for weight in rounded.weights)
    one, two = exact(images).numpy(), rounded(images).numpy()
    assert two.dtype == np.float32 and not np.array_equal(one, two)
    np.testing.assert_allclose(one, two, rtol=0.0, atol=0.05 * np.ptp(one))


def test_no_two_layers_start_alike():
    kernels = [w.flatten() for w in classifiers.wide_resnet((8, 8, 1), 3, depth=16).get_weights() if w.ndim == 4]
    sizes = collections.Counter(kernel.size for kernel in kernels)
    assert max(sizes.values()) > 1
    for row, one in enumerate(kernels):
        for two in kernels[row + 1 :]:
            assert one.size != two.size or not np.array_equal(one, two)


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: classifiers.wide_resnet((32, 32, 3), 10, depth=28 + 1), 'depth .* 10, 16, 22, ..., got 29'),
        (lambda: classifiers.wide_resnet((32, 32, 3), 10, depth=4), 'depth .* got 4'),
        (lambda: classifiers.wide_resnet((32, 32, 3), 10, width=0), 'width of a classifier must be at least 1, got 0'),
        (lambda: classifiers.wide_resnet((7, 32, 3), 10), r'at least 8x8, got \(7, 32, 3\)'),
        (lambda: classifiers.small_cnn((32, 7, 3), 10), r'at least 8x8, got \(32, 7, 3\)'),
        (lambda: classifiers.small_cnn((8, 8, 1), 10, width=0), 'width of a classifier must be at least 1, got 0'),
        (lambda: classifiers.wide_resnet((8, 8, 1), 10, compute_dtype='float16'), "'mixed_bfloat16'.*, got 'float16'"),
    ],
)
def test_impossible_network_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
