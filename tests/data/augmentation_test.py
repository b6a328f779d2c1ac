"""Tests of the random variations of images, against closed forms and against KerasCV with the same transformation."""

import contextlib
import io
import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
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
    'vertical_flip': True,
    'rotate_90': True,
    'pad_and_crop': 3,
    'saturation': 0.5,
    'hue': 0.1,
}
_NUM_UNIFORMS = {
    'horizontal_flip': 1,
    'rotation': 1,
    'zoom': 2,
    'translation': 2,
    'contrast': 1,
    'brightness': 1,
    'vertical_flip': 1,
    'rotate_90': 1,
    'pad_and_crop': 2,
    'saturation': 1,
    'hue': 2,
}
# Uniforms that leave an image as it is.
_IDENTITY = {
    'horizontal_flip': [0.2],
    'rotation': [0.5],
    'zoom': [0.5, 0.5],
    'translation': [0.5, 0.5],
    'contrast': [0.5],
    'brightness': [0.5],
    'vertical_flip': [0.2],
    'rotate_90': [0.1],
    'pad_and_crop': [0.5, 0.5],
    'saturation': [0.5],
    'hue': [0.7, 0.0],
}


def augmenter(**config):
    return augmentation.Augmenter(augmentation.AugmentationConfig(**config))


def some_images(batch=5, shape=(8, 8, 3), seed=0, low=-1.0, high=1.0):
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


@pytest.mark.parametrize('name', list(_ALL) + ['everything'])
def test_uniforms_of_the_identity_leave_images_as_they_are_and_others_do_not(name):
    names = list(_ALL) if name == 'everything' else [name]
    vary = augmenter(**{each: _ALL[each] for each in names})
    images = some_images(20)
    identity = sum((_IDENTITY[each] for each in names), [])
    np.testing.assert_allclose(vary(images, tf.constant([identity] * 20)), images, atol=1e-5)
    changed = np.abs(vary(images, some_uniforms(20, vary.num_uniforms)) - images).max(axis=(1, 2, 3)) > 1e-3
    # Half of the images at least, but for coins that happen to fall the other way.
    assert changed.sum() >= 5


@pytest.mark.parametrize('name, axis', [('horizontal_flip', 2), ('vertical_flip', 1)])
def test_flip_mirrors_images_whose_uniform_is_in_the_upper_half(name, axis):
    images = some_images(4, (8, 6, 2))
    flipped = augmenter(**{name: True})(images, tf.constant([[0.0], [0.49], [0.51], [0.99]]))
    np.testing.assert_allclose(flipped[:2], images[:2], atol=1e-6)
    np.testing.assert_allclose(flipped[2:], np.flip(images[2:], axis), atol=1e-6)


def shifted(image, down, right, mode='constant'):
    """Shifts by whole pixels with NumPy; beyond the edge is as np.pad has it, or black."""
    fill = {'constant_values': -1.0} if mode == 'constant' else {}
    height, width = image.shape[:2]
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode, **fill)
    return padded[3 - down : 3 - down + height, 3 - right : 3 - right + width]


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear'])
@pytest.mark.parametrize(
    'fill_mode, as_numpy', [('constant', 'constant'), ('reflect', 'symmetric'), ('nearest', 'edge'), ('wrap', 'wrap')]
)
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


def test_saturation_is_that_of_tf_image_given_the_same_factor():
    images = some_images(5)
    uniforms = tf.constant([[0.0], [0.25], [0.5], [0.75], [0.999]])
    factors = 0.5 + uniforms[:, 0].numpy()
    expected = [tf.image.adjust_saturation((image + 1) / 2, factor) for image, factor in zip(images, factors)]
    np.testing.assert_allclose(augmenter(saturation=0.5)(images, uniforms), np.stack(expected) * 2 - 1, atol=1e-5)
    # The formula is not one that holds in any range of pixels.
    elsewhere = [tf.image.adjust_saturation(image, factor) for image, factor in zip(images, factors)]
    assert np.abs(np.stack(elsewhere) - np.stack(expected) * 2 + 1).max() > 0.5


@pytest.mark.parametrize('largest', [0.1, 0.5])
def test_hue_is_that_of_tf_image_given_the_same_turn(largest):
    images = some_images(5)
    # The first number says which way, the second how far.
    uniforms = tf.constant([[0.2, 0.0], [0.2, 0.5], [0.7, 0.5], [0.2, 0.999], [0.7, 0.999]])
    turns = largest * np.array([0.0, 0.5, -0.5, 0.999, -0.999])
    expected = [tf.image.adjust_hue((image + 1) / 2, turn) for image, turn in zip(images, turns)]
    np.testing.assert_allclose(augmenter(hue=largest)(images, uniforms), np.stack(expected) * 2 - 1, atol=1e-5)


def test_grey_pixels_keep_their_value_whatever_the_change_of_colour():
    images = tf.repeat(some_images(5, (8, 8, 1)), 3, axis=3)
    colour = augmenter(saturation=0.9, hue=0.5)
    np.testing.assert_allclose(colour(images, some_uniforms(5, colour.num_uniforms)), images, atol=1e-5)


def test_pixels_that_only_move_keep_their_bits():
    images = some_images(20)
    vary = augmenter(pad_and_crop=3, rotate_90=True)
    varied = vary(images, some_uniforms(20, vary.num_uniforms)).numpy()
    for before, after in zip(images.numpy(), varied):
        assert {tuple(pixel) for pixel in after.reshape(-1, 3)} <= {tuple(pixel) for pixel in before.reshape(-1, 3)}


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
    if name == 'saturation':
        return layers.RandomSaturation(((1 + values[0]) / (2 + values[0]),) * 2)
    return layers.RandomBrightness((values[0], values[0]), (0, 1))


@pytest.mark.parametrize('name', ['rotation', 'zoom', 'translation', 'contrast', 'brightness', 'saturation'])
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
        expected = theirs((images[index : index + 1] + 1) / 2, training=True) * 2 - 1
        np.testing.assert_allclose(varied[index], expected[0], atol=1e-4)


def test_variations_follow_one_another_each_with_its_own_uniforms():
    images = some_images(4)
    together = augmenter(**_ALL)
    uniforms = some_uniforms(4, together.num_uniforms)
    expected, column = images, 0
    for name, value in _ALL.items():
        expected = augmenter(**{name: value})(expected, uniforms[:, column : column + _NUM_UNIFORMS[name]])
        column += _NUM_UNIFORMS[name]
    assert column == together.num_uniforms
    np.testing.assert_allclose(together(images, uniforms), expected, atol=1e-5)


@pytest.fixture(scope='module')
def everything():
    return augmenter(**_ALL)


@pytest.mark.parametrize('names', [[name] for name in _ALL] + [list(_ALL)], ids='-'.join)
def test_image_depends_on_its_own_uniforms_alone(names):
    vary = augmenter(**{name: _ALL[name] for name in names})
    images, uniforms = some_images(6), some_uniforms(6, vary.num_uniforms)
    whole = vary(images, uniforms).numpy()
    # One image with six draws does not look the same six times.
    assert len({tuple(image.ravel()) for image in vary(images[:1] + 0.0 * images, uniforms).numpy()}) > 1
    order = [3, 0, 5, 1, 4, 2]
    np.testing.assert_array_equal(vary(tf.gather(images, order), tf.gather(uniforms, order)), whole[order])
    split = [vary(images[part], uniforms[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    np.testing.assert_array_equal(np.concatenate(split), whole)


def test_nothing_is_drawn_from_a_generator(everything):
    images, uniforms = some_images(3), some_uniforms(3, everything.num_uniforms)
    state = tf.random.get_global_generator().state.numpy()
    first = everything(images, uniforms)
    np.testing.assert_array_equal(everything(images, uniforms), first)
    np.testing.assert_array_equal(tf.random.get_global_generator().state, state)


@pytest.mark.parametrize(
    'shape, without', [((8, 8, 3), []), ((5, 9, 3), ['rotate_90']), ((5, 9, 1), ['rotate_90', 'saturation', 'hue'])]
)
def test_varied_images_stay_in_range_and_shape(shape, without):
    images = tf.sign(some_images(20, shape))
    vary = augmenter(**{name: value for name, value in _ALL.items() if name not in without})
    varied = vary(images, some_uniforms(20, vary.num_uniforms))
    assert varied.shape == images.shape and varied.dtype == tf.float32
    assert -1.0 <= varied.numpy().min() and varied.numpy().max() <= 1.0


def test_variation_is_the_same_in_a_function_of_unknown_batch_size(everything):
    function = tf.function(
        everything.__call__,
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, 8, 8, 3], tf.float32),
            tf.TensorSpec([None, everything.num_uniforms], tf.float32),
        ],
    )
    for batch in (1, 4):
        images, uniforms = some_images(batch), some_uniforms(batch, everything.num_uniforms)
        varied = function(images, uniforms)
        np.testing.assert_allclose(varied, everything(images, uniforms), atol=1e-5)
    concrete = function.get_concrete_function()
    assert concrete.structured_outputs.shape.as_list() == [None, 8, 8, 3]
    assert not loops(concrete)


def loops(concrete):
    """Returns the operations of a graph, and of the functions that it calls, that go through a batch one by one."""
    graph = concrete.graph.as_graph_def()
    nodes = list(graph.node) + [node for function in graph.library.function for node in function.node_def]
    return [node.op for node in nodes if 'While' in node.op or 'Map' in node.op or 'TensorList' in node.op]


def test_loop_over_images_would_be_seen():
    one_by_one = tf.function(lambda images: tf.map_fn(tf.image.flip_left_right, images), autograph=False)
    assert loops(one_by_one.get_concrete_function(tf.TensorSpec([None, 8, 8, 3])))


def test_variation_is_the_same_where_networks_compute_in_mixed_precision(everything):
    images, uniforms = some_images(3), some_uniforms(3, everything.num_uniforms)
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy('mixed_bfloat16')
    try:
        varied = augmenter(**_ALL)(images, uniforms)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    assert varied.dtype == tf.float32
    np.testing.assert_array_equal(varied, everything(images, uniforms))


def test_keras_cv_is_not_imported_for_what_it_does_not_do(monkeypatch):
    monkeypatch.setitem(sys.modules, 'keras_cv', None)
    assert augmenter(pad_and_crop=4, rotate_90=True).num_uniforms == 3
    assert augmenter().num_uniforms == 0
    with pytest.raises(ImportError):
        augmenter(pad_and_crop=4, vertical_flip=True)


@pytest.mark.parametrize(
    'config, expected',
    [
        ({}, 'none'),
        ({'fill_mode': 'wrap'}, 'none'),
        (
            {'pad_and_crop': 4, 'horizontal_flip': True},
            'horizontal flip (KerasCV RandomFlip, keyed), mirror-pad 4 and crop (stateless)',
        ),
        (
            {'vertical_flip': True, 'rotate_90': True},
            'vertical flip (KerasCV RandomFlip, keyed), quarter turns (stateless)',
        ),
        (
            {'hue': 0.1, 'saturation': 0.25},
            'saturation up to 0.25 (KerasCV RandomSaturation, keyed), '
            'hue up to 0.1 of the circle (KerasCV RandomHue, keyed)',
        ),
    ],
)
def test_description_says_who_does_what_in_order(config, expected):
    assert augmenter(**config).describe() == expected


def test_description_names_each_variation_once(everything):
    described = everything.describe().split('), ')
    assert len(described) == len(_ALL) and '\n' not in everything.describe()
    for name, part in zip(_ALL, described):
        assert {'rotate_90': 'quarter turns', 'pad_and_crop': 'mirror-pad'}.get(name, name.replace('_', ' ')) in part


@pytest.mark.parametrize(
    'config, shape, message',
    [
        (
            {'saturation': 0.5},
            [8, 8, 1],
            r'AugmentationConfig.saturation = 0.5 needs images with 3 channels .* got 1: set',
        ),
        ({'hue': 0.1}, [8, 8, 4], r'AugmentationConfig.hue = 0.1 needs images with 3 channels .*, got 4: set it to 0'),
        ({'pad_and_crop': 4}, [4, 9, 1], 'AugmentationConfig.pad_and_crop = 4 needs .* higher and wider .* got 4 x 9'),
        ({'pad_and_crop': 4}, [9, 3, 1], 'AugmentationConfig.pad_and_crop = 4 needs .* higher and wider .* got 9 x 3'),
        (
            {'rotate_90': True},
            [8, 6, 3],
            'AugmentationConfig.rotate_90 needs square images, got 8 x 6: set it to False',
        ),
    ],
)
def test_images_that_cannot_be_varied_so_are_refused(config, shape, message):
    with pytest.raises(ValueError, match=message):
        augmentation.AugmentationConfig(**config).check(shape)
    vary = augmenter(**config)
    with pytest.raises(ValueError, match=message):
        vary(some_images(2, shape), some_uniforms(2, vary.num_uniforms))


@pytest.mark.parametrize('config', [{'pad_and_crop': 4}, {'rotate_90': True}])
def test_images_of_unknown_size_are_refused_where_the_size_counts(config):
    with pytest.raises(ValueError, match='got None x None'):
        augmentation.AugmentationConfig(**config).check([None, None, 3])


def test_images_that_can_be_varied_so_are_not_refused():
    augmentation.AugmentationConfig(**_ALL).check([4, 4, 3])
    augmentation.AugmentationConfig(pad_and_crop=4).check([5, 9, 1])
    augmentation.AugmentationConfig(horizontal_flip=True, zoom=0.1).check([None, None, 1])
    for changes, shape in ((_ALL, (4, 4, 3)), ({'pad_and_crop': 4}, (5, 9, 1))):
        vary = augmentation.Augmenter(augmentation.AugmentationConfig(**changes))
        assert vary(some_images(2, shape), some_uniforms(2, vary.num_uniforms)).shape == (2, *shape)


@pytest.mark.parametrize(
    'name, bad, message',
    [
        ('translation', 1.0, r'translation of the augmentation must be in \[0, 1\), got 1.0'),
        ('rotation', -0.1, r'rotation of the augmentation must be in \[0, 1\), got -0.1'),
        ('zoom', 2.0, 'zoom of the augmentation'),
        ('contrast', float('nan'), 'contrast of the augmentation .* got nan'),
        ('brightness', 1.5, 'brightness of the augmentation .* got 1.5'),
        ('saturation', 1.0, r'saturation of the augmentation must be in \[0, 1\), got 1.0'),
        ('saturation', '0.5', r"saturation of the augmentation must be in \[0, 1\), got '0.5'"),
        ('hue', 0.6, r'hue of the augmentation must be in \[0, 0.5\], got 0.6'),
        ('hue', float('nan'), r'hue of the augmentation must be in \[0, 0.5\], got nan'),
        ('hue', True, r'hue of the augmentation must be in \[0, 0.5\], got True'),
        ('pad_and_crop', -1, 'pad_and_crop of the augmentation must be a whole number .* at least 0, got -1'),
        ('pad_and_crop', 4.0, 'pad_and_crop of the augmentation must be a whole number .* at least 0, got 4.0'),
        ('pad_and_crop', True, 'pad_and_crop of the augmentation must be a whole number .* at least 0, got True'),
        ('horizontal_flip', 'no', "horizontal_flip of the augmentation must be True or False, got 'no'"),
        ('vertical_flip', 0.5, 'vertical_flip of the augmentation must be True or False, got 0.5'),
        ('rotate_90', 2, 'rotate_90 of the augmentation must be True or False, got 2'),
        ('fill_mode', 'mirror', "fill_mode must be .* got 'mirror'"),
        ('interpolation', 'bicubic', "interpolation must be .* got 'bicubic'"),
    ],
)
def test_bad_configuration_is_refused(name, bad, message):
    with pytest.raises(ValueError, match=message):
        augmentation.AugmentationConfig(**{name: bad})
