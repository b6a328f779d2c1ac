"""Tests of the random variations of images, against closed forms and against KerasCV with the same transformation."""

import contextlib
import io

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.data import augmentation

with contextlib.redirect_stdout(io.StringIO()):  # It announces its backend.
    import keras_cv

_ALL = {
    'horizontal_flip': True,
    'rotation': 0.05,
    'zoom': 0.2,
    'translation': 0.2,
    'contrast': 0.3,
    'brightness': 0.2,
}
_NUM_UNIFORMS = {'horizontal_flip': 1, 'rotation': 1, 'zoom': 2, 'translation': 2, 'contrast': 1, 'brightness': 1}


def augmenter(**config):
    return augmentation.Augmenter(augmentation.AugmentationConfig(**config))


def some_images(batch=5, shape=(8, 6, 2), seed=0, low=-1.0, high=1.0):
    return tf.constant(np.random.default_rng(seed).uniform(low, high, [batch, *shape]), tf.float32)


def some_uniforms(batch, columns, seed=1):
    return tf.constant(np.random.default_rng(seed).random([batch, columns], np.float32))


def test_no_variation_leaves_images_as_they_are():
    none = augmenter()
    images = some_images()
    assert none.num_uniforms == 0
    np.testing.assert_array_equal(none(images, tf.zeros([5, 0])), images)


@pytest.mark.parametrize('names', [[name] for name in _ALL] + [list(_ALL), ['translation', 'horizontal_flip']])
def test_an_image_needs_a_uniform_for_each_random_choice(names):
    assert augmenter(**{name: _ALL[name] for name in names}).num_uniforms == sum(_NUM_UNIFORMS[name] for name in names)


def test_flip_mirrors_images_whose_uniform_is_in_the_upper_half():
    images = some_images(4)
    flipped = augmenter(horizontal_flip=True)(images, tf.constant([[0.0], [0.49], [0.51], [0.99]]))
    np.testing.assert_allclose(flipped[:2], images[:2], atol=1e-6)
    np.testing.assert_allclose(flipped[2:], images[2:, :, ::-1], atol=1e-6)


def shifted(image, down, right, mode='constant'):
    """Shifts by whole pixels with NumPy; beyond the edge is as np.pad has it, or black."""
    fill = {'constant_values': -1.0} if mode == 'constant' else {}
    height, width = image.shape[:2]
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode, **fill)
    return padded[3 - down:3 - down + height, 3 - right:3 - right + width]


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear'])
@pytest.mark.parametrize('fill_mode, as_numpy', [('constant', 'constant'), ('reflect', 'symmetric'),
                                                 ('nearest', 'edge'), ('wrap', 'wrap')])
def test_translation_by_whole_pixels_moves_them(interpolation, fill_mode, as_numpy):
    images = some_images(5, (8, 8, 1))
    # A quarter of 8 pixels either way.
    shifts = np.array([[0, 0], [1, 0], [0, -1], [-2, 1], [1, 1]])
    uniforms = (shifts / 2 + 1) / 2
    translate = augmenter(translation=0.25, fill_mode=fill_mode, interpolation=interpolation)
    expected = np.stack([shifted(image, *shift, as_numpy) for image, shift in zip(images, shifts)])
    np.testing.assert_allclose(translate(images, tf.constant(uniforms, tf.float32)), expected, atol=1e-5)


def test_translation_by_half_a_pixel_averages_neighbours():
    images = some_images(1, (8, 8, 1))
    moved = augmenter(translation=0.25)(images, tf.constant([[0.5, (0.5 / 2 + 1) / 2]]))
    expected = (shifted(images[0], 0, 0) + shifted(images[0], 0, 1)) / 2
    np.testing.assert_allclose(moved[0], expected, atol=1e-5)


@pytest.mark.parametrize('uniform, quarters', [(0.5, 0), (0.75, 1), (0.25, -1), (0.0, 2)])
def test_rotation_by_quarters_turns_the_image(uniform, quarters):
    images = some_images(1, (8, 8, 2), low=-0.9, high=0.9)
    turned = augmenter(rotation=0.5, fill_mode='nearest')(images, tf.constant([[uniform]]))
    np.testing.assert_allclose(turned[0], np.rot90(images[0], quarters), atol=1e-4)


def test_contrast_scales_the_distance_from_the_mean():
    images = some_images(5)
    uniforms = tf.constant([[0.0], [0.25], [0.5], [0.75], [0.999]])
    mean = images.numpy().mean(axis=(1, 2), keepdims=True)
    expected = np.clip(mean + (images - mean) * (0.7 + 0.6 * uniforms[..., None, None].numpy()), -1, 1)
    np.testing.assert_allclose(augmenter(contrast=0.3)(images, uniforms), expected, atol=1e-5)


def test_brightness_adds_a_share_of_the_range():
    images = some_images(5)
    uniforms = tf.constant([[0.0], [0.25], [0.5], [0.75], [0.999]])
    expected = np.clip(images + 2.0 * (-0.2 + 0.4 * uniforms[..., None, None].numpy()), -1, 1)
    np.testing.assert_allclose(augmenter(brightness=0.2)(images, uniforms), expected, atol=1e-5)


def keras_cv_layer(name, values, geometry):
    """Returns KerasCV's layer with a range of factors that holds one value only."""
    layers = keras_cv.layers
    if name == 'rotation':
        return layers.RandomRotation((values[0], values[0]), **geometry)
    if name == 'zoom':
        return layers.RandomZoom((values[0], values[0]), (values[1], values[1]), **geometry)
    if name == 'translation':
        return layers.RandomTranslation((values[0], values[0]), (values[1], values[1]), **geometry)
    if name == 'contrast':
        return layers.RandomContrast((0, 1), (-values[0], values[0]))
    return layers.RandomBrightness((values[0], values[0]), (0, 1))


@pytest.mark.parametrize('name', ['rotation', 'zoom', 'translation', 'contrast', 'brightness'])
@pytest.mark.parametrize('geometry', [{}, {'fill_mode': 'reflect', 'interpolation': 'nearest'}])
def test_variation_is_that_of_keras_cv_given_the_same_factors(name, geometry):
    images = some_images(3)
    ours = augmenter(**{name: _ALL[name]}, **geometry)
    uniforms = some_uniforms(3, ours.num_uniforms)
    varied = ours(images, uniforms)
    assert np.abs(varied - images).max() > 0.05
    for index in range(3):
        factors = [float(value) for value in _ALL[name] * (2 * uniforms[index].numpy() - 1)]
        theirs = keras_cv_layer(name, factors, geometry or {'fill_mode': 'constant', 'interpolation': 'bilinear'})
        expected = theirs((images[index:index + 1] + 1) / 2, training=True) * 2 - 1
        np.testing.assert_allclose(varied[index], expected[0], atol=1e-4)


def test_variations_follow_one_another_each_with_its_own_uniforms():
    # The order of KerasCV's layers in the source: geometry first, then intensity.
    images = some_images(4)
    together = augmenter(**_ALL)
    uniforms = some_uniforms(4, together.num_uniforms)
    expected, column = images, 0
    for name, value in _ALL.items():
        expected = augmenter(**{name: value})(expected, uniforms[:, column:column + _NUM_UNIFORMS[name]])
        column += _NUM_UNIFORMS[name]
    assert column == together.num_uniforms
    np.testing.assert_allclose(together(images, uniforms), expected, atol=1e-5)


@pytest.fixture(scope='module')
def everything():
    return augmenter(**_ALL)


def test_image_depends_on_its_own_uniforms_alone(everything):
    images, uniforms = some_images(6), some_uniforms(6, everything.num_uniforms)
    whole = everything(images, uniforms).numpy()
    assert np.abs(whole - images.numpy()).max(axis=(1, 2, 3)).min() > 0.05
    order = [3, 0, 5, 1, 4, 2]
    np.testing.assert_array_equal(everything(tf.gather(images, order), tf.gather(uniforms, order)), whole[order])
    split = [everything(images[part], uniforms[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    np.testing.assert_array_equal(np.concatenate(split), whole)


def test_nothing_is_drawn_from_a_generator(everything):
    images, uniforms = some_images(3), some_uniforms(3, everything.num_uniforms)
    state = tf.random.get_global_generator().state.numpy()
    first = everything(images, uniforms)
    np.testing.assert_array_equal(everything(images, uniforms), first)
    np.testing.assert_array_equal(tf.random.get_global_generator().state, state)


@pytest.mark.parametrize('shape', [(8, 8, 1), (5, 9, 3)])
def test_varied_images_stay_in_range_and_shape(everything, shape):
    images = tf.sign(some_images(20, shape))
    varied = everything(images, some_uniforms(20, everything.num_uniforms))
    assert varied.shape == images.shape and varied.dtype == tf.float32
    assert -1.0 <= varied.numpy().min() and varied.numpy().max() <= 1.0


def test_variation_is_the_same_in_a_function_of_unknown_batch_size(everything):
    function = tf.function(everything.__call__,
                           input_signature=[
                               tf.TensorSpec([None, 8, 6, 2], tf.float32),
                               tf.TensorSpec([None, everything.num_uniforms], tf.float32)
                           ])
    for batch in (1, 4):
        images, uniforms = some_images(batch), some_uniforms(batch, everything.num_uniforms)
        varied = function(images, uniforms)
        np.testing.assert_allclose(varied, everything(images, uniforms), atol=1e-5)
    assert function.get_concrete_function().structured_outputs.shape.as_list() == [None, 8, 6, 2]


def test_variation_is_the_same_where_networks_compute_in_mixed_precision(everything):
    images, uniforms = some_images(3), some_uniforms(3, everything.num_uniforms)
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy('mixed_bfloat16')
    try:
        varied = augmenter(**_ALL)(images, uniforms)
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    assert varied.dtype == tf.float32
    np.testing.assert_array_equal(varied, everything(images, uniforms))


@pytest.mark.parametrize('arguments, message', [
    ({
        'translation': 1.0
    }, r'translation of the augmentation must be in \[0, 1\), got 1.0'),
    ({
        'rotation': -0.1
    }, r'rotation of the augmentation must be in \[0, 1\), got -0.1'),
    ({
        'zoom': 2.0
    }, 'zoom of the augmentation'),
    ({
        'contrast': float('nan')
    }, 'contrast of the augmentation .* got nan'),
    ({
        'brightness': 1.5
    }, 'brightness of the augmentation .* got 1.5'),
    ({
        'fill_mode': 'mirror'
    }, "fill_mode must be .* got 'mirror'"),
    ({
        'interpolation': 'bicubic'
    }, "interpolation must be .* got 'bicubic'"),
])
def test_bad_configuration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        augmentation.AugmentationConfig(**arguments)
