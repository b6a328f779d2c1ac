"""Networks that are trained on samples, or on real images, to tell what the samples are worth.

They normalize over the batch, which mixes its images: no step of theirs may claim a privacy guarantee of its own. On
samples none is needed, since all that is computed from samples is covered by theirs.
"""

from typing import Iterator, Tuple

import tensorflow as tf

layers = tf.keras.layers

# The moving statistics follow within tens of steps: trainings may be short.
_BATCH_NORM_MOMENTUM = 0.9
_SMALLEST_SIDE = 4


def wide_resnet(image_shape: Tuple[int, int, int],
                num_classes: int,
                *,
                depth: int = 40,
                width: int = 4,
                seed: int = 0) -> tf.keras.Model:
    """Builds a wide residual network with activations before convolutions; WRN-40-4 by default.

    Three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels; the second and the third group
    halve the image.

    Args:
      image_shape: (height, width, channels), at least 8x8.
      num_classes: At least 1.
      depth: 6 n + 4.
      width: At least 1.
      seed: Of the initial weights, which depend on nothing else.

    Returns:
      A model from images, uint8 [batch, height, width, channels], to logits, float32 [batch, num_classes].

    Raises:
      ValueError: if there is no such network.

    References:
      Zagoruyko & Komodakis 2016, "Wide Residual Networks", arXiv:1605.07146, table 1.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f'depth of a wide residual network must be 10, 16, 22, ..., got {depth}.')
    _check(image_shape, width)
    initializers = _initializers(seed)

    def convolution(x, filters, kernel_size=3, strides=1):
        return layers.Conv2D(filters,
                             kernel_size,
                             strides,
                             padding='same',
                             use_bias=False,
                             kernel_initializer=next(initializers))(x)

    def block(x, filters, strides):
        activated = _normalized(x)
        if strides > 1 or x.shape[-1] != filters:
            x = convolution(activated, filters, 1, strides)
        h = _normalized(convolution(activated, filters, 3, strides))
        return layers.Add()([x, convolution(h, filters)])

    images_uint8 = layers.Input(image_shape, dtype=tf.uint8)
    x = convolution(_scaled(images_uint8), 16)
    for group in range(3):
        for index in range((depth - 4) // 6):
            x = block(x, 16 * width * 2**group, 2 if group and not index else 1)
    x = layers.GlobalAveragePooling2D()(_normalized(x))
    return tf.keras.Model(images_uint8, layers.Dense(num_classes, kernel_initializer=next(initializers))(x))


def small_cnn(image_shape: Tuple[int, int, int], num_classes: int, *, width: int = 16, seed: int = 0) -> tf.keras.Model:
    """Builds a few convolutions that halve the image until it is small, and a layer of logits; for CPUs.

    Args:
      image_shape: (height, width, channels), at least 8x8.
      num_classes: At least 1.
      width: Channels of the first convolution; later ones have twice and four times as many.
      seed: Of the initial weights, which depend on nothing else.

    Returns:
      A model from images, uint8 [batch, height, width, channels], to logits, float32 [batch, num_classes].

    Raises:
      ValueError: if there is no such network.
    """
    _check(image_shape, width)
    initializers = _initializers(seed)

    def convolution(x, filters):
        x = layers.Conv2D(filters, 3, padding='same', use_bias=False, kernel_initializer=next(initializers))(x)
        return _normalized(x)

    images_uint8 = layers.Input(image_shape, dtype=tf.uint8)
    x, filters = convolution(_scaled(images_uint8), width), 2 * width
    while min(x.shape[1:3]) > _SMALLEST_SIDE:
        x = layers.MaxPooling2D(padding='same')(convolution(x, filters))
        filters = 4 * width
    x = layers.Flatten()(convolution(x, 4 * width))
    return tf.keras.Model(images_uint8, layers.Dense(num_classes, kernel_initializer=next(initializers))(x))


def _check(image_shape, width) -> None:
    if len(image_shape) != 3 or min(image_shape[:2]) < 8:
        raise ValueError(f'a classifier needs images of at least 8x8, got {tuple(image_shape)}.')
    if width < 1:
        raise ValueError(f'width of a classifier must be at least 1, got {width}.')


def _initializers(seed: int) -> Iterator[tf.keras.initializers.Initializer]:
    """Yields an initializer a layer, each with a seed of its own."""
    return (tf.keras.initializers.HeNormal(seed=1000 * seed + index) for index in range(1000))


def _scaled(images_uint8):
    return tf.cast(images_uint8, tf.float32) / 127.5 - 1.0


def _normalized(x):
    return layers.ReLU()(layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM, epsilon=1e-5)(x))
