"""Tests of the UNet."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import hidden_loops
from tf_dpdiff.networks import convolution
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet

_DIGITS = unet.UNetConfig(base_channels=8, channel_multipliers=(1, 2), middle_attention=False, groups=8)
_SMALL = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
_PATCHES = dataclasses.replace(_DIGITS, patch_size=2)
_RICH = unet.UNetConfig(
    base_channels=4,
    channel_multipliers=(1, 3),
    num_res_blocks=2,
    attention_resolutions=(4,),
    head_channels=2,
    groups=2,
    scale_shift=True,
)


def inputs_for(image_shape, batch=3, seed=0):
    x_t = np.random.default_rng(seed).normal(size=[batch, *image_shape]).astype(np.float32)
    return [tf.constant(x_t), tf.constant(np.arange(batch) * 30, tf.int32), tf.constant(np.arange(batch), tf.int32)]


@functools.cache
def new_model(config, image_shape):
    """Builds a model for ten classes; shared by tests that leave its weights alone."""
    return denoiser.build(config, image_shape, 10)


@pytest.mark.parametrize(
    'config, image_shape', [(_DIGITS, (8, 8, 1)), (_SMALL, (5, 7, 3)), (_RICH, (8, 4, 3)), (_PATCHES, (8, 12, 3))]
)
def test_output_has_the_shape_of_the_input_and_is_zero_at_first(config, image_shape):
    outputs = new_model(config, image_shape)(inputs_for(image_shape))
    assert outputs.shape == (3, *image_shape) and outputs.dtype == tf.float32
    np.testing.assert_array_equal(outputs, 0.0)


def count_by_hand(config, image_shape, num_classes):
    """Returns the number of parameters of the UNet that the docstrings describe."""

    def conv(channels_in, channels_out, size=3):
        return size * size * channels_in * channels_out + channels_out

    def dense(units_in, units_out):
        return (units_in + 1) * units_out

    def norm(channels):
        return 2 * channels

    def residual(channels_in, channels_out):
        code = 2 * channels_out if config.scale_shift else channels_out
        skip = conv(channels_in, channels_out, 1) if channels_in != channels_out else 0
        return (
            norm(channels_in)
            + conv(channels_in, channels_out)
            + dense(units, code)
            + norm(channels_out)
            + conv(channels_out, channels_out)
            + skip
        )

    def attention(channels):
        return norm(channels) + dense(channels, 3 * channels) + dense(channels, channels)

    def attention_at(level, channels):
        return attention(channels) if image_shape[0] // 2**level in config.attention_resolutions else 0

    units = 4 * config.base_channels
    total = dense(config.base_channels, units) + dense(units, units) + (num_classes + 1) * units
    widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
    channels = config.base_channels
    image_channels = image_shape[-1] * config.patch_size**2
    total += conv(image_channels, channels)
    skips = [channels]
    for level, width in enumerate(widths):
        if level:
            total += conv(channels, channels)
            skips.append(channels)
        for _ in range(config.num_res_blocks):
            total += residual(channels, width) + attention_at(level, width)
            channels = width
            skips.append(channels)
    total += 2 * residual(channels, channels) + (attention(channels) if config.middle_attention else 0)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(config.num_res_blocks + 1):
            total += residual(channels + skips.pop(), width) + attention_at(level, width)
            channels = width
        if level:
            total += conv(channels, channels)
    assert not skips
    return total + norm(channels) + conv(channels, image_channels)


@pytest.mark.parametrize(
    'config, image_shape', [(_DIGITS, (8, 8, 1)), (_SMALL, (5, 7, 3)), (_RICH, (8, 4, 3)), (_PATCHES, (8, 12, 3))]
)
def test_number_of_parameters_is_that_counted_by_hand(config, image_shape):
    model = new_model(config, image_shape)
    assert model.count_params() == count_by_hand(config, image_shape, 10)
    # Nothing keeps statistics over a batch or a run.
    assert not model.non_trainable_variables


@pytest.mark.parametrize(
    'config, image_shape, attention',
    [
        (_DIGITS, (8, 8, 1), set()),
        (
            _RICH,
            (8, 4, 3),
            {
                'down_1_0_attention',
                'down_1_1_attention',
                'middle_attention',
                'up_1_0_attention',
                'up_1_1_attention',
                'up_1_2_attention',
            },
        ),
    ],
)
def test_attention_is_at_the_levels_that_ask_for_it(config, image_shape, attention):
    model = new_model(config, image_shape)
    assert {layer.name for layer in model.layers if 'attention' in layer.name} == attention


@pytest.fixture(scope='module')
def digits_model():
    model, generator = denoiser.build(_DIGITS, (8, 8, 1), 10), np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0.0, 0.2, variable.shape))
    return model


def test_every_pixel_reaches_every_other_through_the_levels(digits_model):
    # At 8x8 two levels and 3x3 convolutions do without attention.
    x_t, t, labels = inputs_for((8, 8, 1), batch=1)
    with tf.GradientTape() as tape:
        tape.watch(x_t)
        corner = digits_model([x_t, t, labels])[0, 0, 0, 0]
    assert (tape.gradient(corner, x_t)[0].numpy() != 0).all()


@pytest.mark.parametrize('image_shape', [(6, 8, 1), (8, 6, 1), (7, 7, 1)])
def test_image_that_cannot_be_halved_is_refused(image_shape):
    config = unet.UNetConfig(base_channels=4, channel_multipliers=(1, 1, 1), middle_attention=False)
    message = f'images of {image_shape[0]}x{image_shape[1]} cannot be halved 2 times: take fewer channel_multipliers'
    with pytest.raises(ValueError, match=message):
        denoiser.build(config, image_shape, 10)


@pytest.mark.parametrize(
    'image_shape, message',
    [
        ((6, 8, 1), 'arrays of patches of 3x4 cannot be halved 1 times'),
        ((8, 7, 1), 'images of 8x7 cannot be cut into patches of 2x2: take a patch_size that divides both'),
    ],
)
def test_image_that_cannot_be_cut_into_patches_is_refused(image_shape, message):
    with pytest.raises(ValueError, match=message):
        denoiser.build(_PATCHES, image_shape, 10)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'base_channels': 0}, 'base_channels of the UNet must be at least 1, got 0'),
        ({'num_res_blocks': 0}, 'num_res_blocks of the UNet must be at least 1, got 0'),
        ({'head_channels': -1}, 'head_channels of the UNet must be at least 1, got -1'),
        ({'groups': 0}, 'groups of the UNet must be at least 1, got 0'),
        ({'channel_multipliers': ()}, r'channel_multipliers must be whole numbers of at least 1, got \(\)'),
        ({'channel_multipliers': (1, 0)}, r'channel_multipliers must be whole numbers of at least 1, got \(1, 0\)'),
        ({'dropout': 1.0}, r'dropout must be in \[0, 1\), got 1.0'),
        ({'compute_dtype': 'float64'}, "compute_dtype must be one of .*, got 'float64'"),
        ({'compute_dtype': 'mixed_float16'}, 'loss scaling'),
        ({'adapter_rank': -1}, 'adapter_rank must be at least 0, got -1'),
        ({'adapter_alpha': 0.0}, 'adapter_alpha must be > 0, got 0.0'),
        (
            {'adapter_targets': ('attention', 'skip')},
            r"adapter_targets must name some of .*, got \('attention', 'skip'\)",
        ),
        ({'adapter_targets': ()}, r'adapter_targets must name some of .*, got \(\)'),
    ],
)
def test_bad_configuration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        unet.UNetConfig(**arguments)


def test_norms_are_selected_by_their_name(digits_model):
    selected = denoiser.select_variables(digits_model, ['norm'])
    assert all(v.name.split('/')[-1] in ('gamma:0', 'beta:0') for v in selected)
    # Two norms for each of 8 residual blocks, and the last one, of two variables each.
    assert len(selected) == 2 * (2 * 8 + 1)


# Two levels, attention in the middle, dropout: every kind of layer takes part.
_LEVELS = unet.UNetConfig(
    base_channels=4,
    channel_multipliers=(1, 2),
    head_channels=4,
    groups=2,
    scale_shift=True,
    dropout=0.2,
    compute_dtype='mixed_bfloat16',
)
_ADAPTED = dataclasses.replace(_LEVELS, channel_multipliers=(1,), adapter_rank=2)


@pytest.mark.parametrize(
    'config, patterns, max_pixels, expected',
    [
        (_LEVELS, ['norm', 'attention', 'embedding', 'upsample'], 0, {'Conv2DBackpropFilter'}),
        (_ADAPTED, ['adapter', 'class_embedding'], 256, set()),
    ],
)
def test_per_unit_gradients_hide_no_loop_but_that_of_convolution_filters(
    config, patterns, max_pixels, expected, caplog, monkeypatch
):
    # Gradients pass through every layer on their way to the first one; not all filters are trained, since each makes a
    # loop that takes a second to trace.
    monkeypatch.setattr(convolution, '_MAX_PIXELS', max_pixels)
    model = new_model(config, (4, 4, 1))
    views = [tf.stack([x, x]) for x in inputs_for((4, 4, 1))]

    def loss_fn(unit):
        x_t, t, labels = unit
        return tf.reduce_mean(tf.square(denoiser.denoise(model, x_t, t, labels, dropout_seeds=t, training=True)))

    assert hidden_loops.find(loss_fn, denoiser.select_variables(model, patterns), views, caplog) == expected
