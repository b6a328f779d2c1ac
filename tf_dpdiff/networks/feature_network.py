"""A small classifier of images whose last hidden layer gives the features of quality metrics."""

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.keras import layers

FEATURE_DIMENSION = 64  # Small: the Frechet distance wants more images than features, and some held-out sets are small.
_SMALLEST_SIDE = 4


def build_feature_network(image_shape: tuple[int, int, int], num_classes: int, *, seed: int) -> keras.Model:
    """Builds convolutions that halve the image until it is small, a mean over positions, and a layer of logits.

    Use it where the standard Inception graph is not at hand or means little, as on 8x8 digits.

    Args:
      image_shape: (height, width, channels), any size.
      num_classes: At least 1.
      seed: Of the initial weights, which depend on nothing else.

    Returns:
      A model from images, uint8 [batch, height, width, channels], to features, float32 [batch, FEATURE_DIMENSION], and
      logits, float32 [batch, num_classes]. Its outputs for an image do not depend on the other images.
    """
    num_layers = 0

    def initializer():
        nonlocal num_layers
        num_layers += 1
        return keras.initializers.HeNormal(seed=1000 * seed + num_layers)

    def convolution(x, filters, strides=1):
        layer = layers.Conv2D(filters, 3, strides, 'same', activation='relu', kernel_initializer=initializer())
        return layer(x)

    images_uint8 = layers.Input(image_shape, dtype=tf.uint8)
    x = convolution(tf.cast(images_uint8, tf.float32) / 127.5 - 1.0, FEATURE_DIMENSION // 4)
    filters = FEATURE_DIMENSION // 2
    while max(x.shape[1:3]) > _SMALLEST_SIDE:
        x = convolution(x, filters, strides=2)
        filters = FEATURE_DIMENSION
    features = layers.GlobalAveragePooling2D()(convolution(x, FEATURE_DIMENSION))
    logits = layers.Dense(num_classes, kernel_initializer=initializer())(features)
    return keras.Model(images_uint8, [features, logits])


def scale_features(network: keras.Model, factor: float) -> None:
    """Multiplies the features of a network from `build_feature_network` by a factor > 0 and leaves its logits alone."""
    # ReLU and mean over positions pass a positive factor on.
    last_convolution = [layer for layer in network.layers if isinstance(layer, layers.Conv2D)][-1]
    for weight in last_convolution.weights:
        weight.assign(weight * factor)
    kernel = network.layers[-1].kernel
    kernel.assign(kernel / factor)
