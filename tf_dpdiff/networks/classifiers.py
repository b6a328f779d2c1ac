"""Networks that are trained on samples, or on real images, to tell what the samples are worth.

They normalize over the batch, which mixes its images: no step of theirs may claim a privacy guarantee of its own. On
samples none is needed, since all that is computed from samples is covered by theirs.
"""

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.keras import layers
from tf_dpdiff.networks import precision

# The moving statistics follow within tens of steps: trainings may be short.
_BATCH_NORM_MOMENTUM = 0.9
_SMALLEST_SIDE = 4
MIN_IMAGE_SIDE = 8  # Of the images that are classified, in pixels.


def wide_resnet(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    depth: int = 40,
    width: int = 4,
    compute_dtype: str = 'float32',
    seed: int = 0,
) -> keras.Model:
    """Builds a wide residual network with activations before convolutions; WRN-40-4 by default.

    Three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels; the second and the third group
    halve the image.

    Args:
      image_shape: (height, width, channels), at least 8x8.
      num_classes: At least 1.
      depth: 6 n + 4.
      width: At least 1.
      compute_dtype: 'float32', or 'mixed_bfloat16': activations and products in bfloat16; variables, gradients and
        logits in float32.
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
    make = _Layers(compute_dtype, seed)

    def block(x, filters, strides):
        activated = make.normalized(x)
        if strides > 1 or x.shape[-1] != filters:
            x = make.convolution(activated, filters, 1, strides)
        h = make.normalized(make.convolution(activated, filters, 3, strides))
        return layers.Add(dtype=make.policy)([x, make.convolution(h, filters)])

    images_uint8 = layers.Input(image_shape, dtype=tf.uint8)
    x = make.convolution(_scaled(images_uint8), 16)
    for group in range(3):
        for index in range((depth - 4) // 6):
            x = block(x, 16 * width * 2**group, 2 if group and not index else 1)
    x = layers.GlobalAveragePooling2D(dtype=make.policy)(make.normalized(x))
    return keras.Model(images_uint8, make.logits(x, num_classes))


def small_cnn(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 16,
    compute_dtype: str = 'float32',
    seed: int = 0,
) -> keras.Model:
    """Builds a few convolutions that halve the image until it is small, and a layer of logits; for CPUs.

    Args:
      image_shape: (height, width, channels), at least 8x8.
      num_classes: At least 1.
      width: Channels of the first convolution; later ones have twice and four times as many.
      compute_dtype: 'float32' or 'mixed_bfloat16', see `wide_resnet`.
      seed: Of the initial weights, which depend on nothing else.

    Returns:
      A model from images, uint8 [batch, height, width, channels], to logits, float32 [batch, num_classes].

    Raises:
      ValueError: if there is no such network.
    """
    _check(image_shape, width)
    make = _Layers(compute_dtype, seed)

    def convolution(x, filters):
        return make.normalized(make.convolution(x, filters))

    images_uint8 = layers.Input(image_shape, dtype=tf.uint8)
    x, filters = convolution(_scaled(images_uint8), width), 2 * width
    while min(x.shape[1:3]) > _SMALLEST_SIDE:
        x = layers.MaxPooling2D(padding='same', dtype=make.policy)(convolution(x, filters))
        filters = 4 * width
    x = layers.Flatten(dtype=make.policy)(convolution(x, 4 * width))
    return keras.Model(images_uint8, make.logits(x, num_classes))


class _Layers:
    """Adds layers that compute in one type, each with initial weights of its own.

    Attributes:
      policy: Given to each layer, so that the policy of the process is neither used nor changed.
    """

    def __init__(self, compute_dtype: str, seed: int):
        if compute_dtype not in precision.COMPUTE_DTYPES:
            raise ValueError(
                f'compute_dtype of a classifier must be one of {precision.COMPUTE_DTYPES}, got {compute_dtype!r}.'
            )
        self.policy = keras.mixed_precision.Policy(compute_dtype)
        self._initializers = (keras.initializers.HeNormal(seed=1000 * seed + index) for index in range(1000))

    def convolution(self, x, filters, kernel_size=3, strides=1):
        return layers.Conv2D(
            filters,
            kernel_size,
            strides,
            padding='same',
            use_bias=False,
            kernel_initializer=next(self._initializers),
            dtype=self.policy,
        )(x)

    def normalized(self, x):
        x = layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM, epsilon=1e-5, dtype=self.policy)(x)
        return layers.ReLU(dtype=self.policy)(x)

    def logits(self, x, num_classes):
        return layers.Dense(num_classes, kernel_initializer=next(self._initializers), dtype=tf.float32)(x)


def _check(image_shape, width) -> None:
    if len(image_shape) != 3 or min(image_shape[:2]) < MIN_IMAGE_SIDE:
        raise ValueError(
            f'a classifier needs images of at least {MIN_IMAGE_SIDE}x{MIN_IMAGE_SIDE}, got {tuple(image_shape)}.'
        )
    if width < 1:
        raise ValueError(f'width of a classifier must be at least 1, got {width}.')


def _scaled(images_uint8):
    return tf.cast(images_uint8, tf.float32) / 127.5 - 1.0
