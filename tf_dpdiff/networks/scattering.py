"""Scattering features: what wavelets see in an image, at two scales. Nothing in them is learnt."""

import math

import numpy as np
import tensorflow as tf

MIN_IMAGE_SIDE = 8  # In pixels.
_ANGLES = 8
_LARGEST_SIDE = 32  # Larger images are made smaller first.
_SMALLEST_SIDE_OF_TWO_SCALES = 16
_PARTS, _NUM_STATISTICS = 4, 4
_EPSILON = 1e-4  # Below what local averages differ by; constant images are no exception.


class Scattering(tf.Module):
    """Features of images that depend on nothing but the image: moduli of wavelet transforms, and where they are large.

    Use them where a classifier must be linear, and its training private: there is nothing in them to be learnt, and few
    other features of that kind tell classes apart as well.

    An image is averaged over places (order 0), after one wavelet of each of 8 angles at each scale and a modulus (order
    1), and after a second wavelet of a larger scale and a second modulus (order 2). In each order and channel these
    local averages are shifted and scaled to have mean 0 and variance 1 within the image, so that its brightness and
    contrast do not count. The features are their means in 4x4 parts of the image, and their mean, largest and smallest
    value and standard deviation over the whole of it: what is small and may lie anywhere shows in the latter.

    Args:
      image_shape: (height, width, channels), of which the sides are at least 8.

    Attributes:
      num_features: Of an image.

    Raises:
      ValueError: if the images are too small.

    References:
      Bruna and Mallat 2013, "Invariant Scattering Convolution Networks", arXiv:1203.1513; Tramer and Boneh 2021,
      arXiv:2011.11660 (private linear classifiers of them, and the normalization within an image).
    """

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__()
        height, width, self._channels = image_shape
        if min(height, width) < MIN_IMAGE_SIDE:
            raise ValueError(
                f'scattering features are of images of at least {MIN_IMAGE_SIDE}x{MIN_IMAGE_SIDE} pixels, got '
                f'{height}x{width}.'
            )
        scale = max(1.0, max(height, width) / _LARGEST_SIDE)
        self._size = max(_PARTS, round(height / scale)), max(_PARTS, round(width / scale))
        self._num_scales = 2 if min(self._size) >= _SMALLEST_SIDE_OF_TWO_SCALES else 1
        self._stride = 2**self._num_scales
        # What a wavelet reaches, mirrored at the borders; sides that the stride divides.
        margin = self._stride
        self._padding = [(margin, margin + (-side - 2 * margin) % self._stride) for side in self._size]
        padded = [side + sum(padding) for side, padding in zip(self._size, self._padding)]
        angles = math.pi / _ANGLES * np.arange(_ANGLES)
        self._wavelets = [
            np.stack([_wavelet(padded, 0.8 * 2**scale, angle, 0.75 * math.pi / 2**scale) for angle in angles])
            for scale in range(self._num_scales)
        ]
        self._low_pass = _low_pass(padded, 0.8 * 2 ** (self._num_scales - 1))
        self._num_places = [-(-side // self._stride) for side in self._size]
        num_maps = 1 + _ANGLES * self._num_scales + (_ANGLES**2 if self._num_scales == 2 else 0)
        self.num_features = self._channels * num_maps * (_PARTS**2 + _NUM_STATISTICS)

    def __call__(self, images_uint8: tf.Tensor) -> tf.Tensor:
        """Returns the features, float32 [images, num_features], of images, uint8 [images, height, width, channels].

        Each image's are computed from it alone.
        """
        images = tf.cast(images_uint8, tf.float32) / 255.0
        if tuple(images.shape[1:3]) != self._size:
            images = tf.image.resize(images, self._size, 'area')
        images = tf.pad(tf.transpose(images, [0, 3, 1, 2]), [(0, 0), (0, 0), *self._padding], 'REFLECT')
        transformed = _transform(images)[:, :, None]
        first = [
            _transform(_modulus(tf.signal.ifft2d(transformed * tf.constant(wavelets, tf.complex64))))
            for wavelets in self._wavelets
        ]
        orders = [self._average(transformed), tf.concat([self._average(maps) for maps in first], axis=2)]
        if self._num_scales == 2:
            # At half the resolution, which is all that the larger wavelets leave.
            products = first[0][:, :, :, None] * tf.constant(self._wavelets[1], tf.complex64)
            second = _transform(_modulus(tf.signal.ifft2d(_fold(products, 2))))
            averages = self._average(second, folded=2)
            shape = [tf.shape(images)[0], self._channels, _ANGLES**2, *self._num_places]
            orders.append(tf.reshape(averages, shape))
        maps = tf.concat([_standardized(order) for order in orders], axis=2)
        features = tf.concat([_parts(maps), _statistics(maps)], axis=-1)
        return tf.reshape(features, [tf.shape(images)[0], self.num_features])

    def _average(self, transformed: tf.Tensor, folded: int = 1) -> tf.Tensor:
        """Returns local averages at every 2^scales-th place of maps that are given by their Fourier transform."""
        height, width = self._low_pass.shape
        # A filter at a lower resolution is the sum of the aliases of its transform, a signal their mean.
        low_pass = self._low_pass.reshape(folded, height // folded, folded, width // folded).sum(axis=(0, 2))
        products = transformed * tf.constant(low_pass, tf.complex64)
        averages = tf.math.real(tf.signal.ifft2d(_fold(products, self._stride // folded)))
        rows, columns = self._num_places
        return averages[..., 1 : 1 + rows, 1 : 1 + columns]  # The margin is one place wide.


def _standardized(maps: tf.Tensor) -> tf.Tensor:
    """Returns maps [images, channels, maps, height, width] shifted and scaled to mean 0 and variance 1 in a channel."""
    mean, variance = tf.nn.moments(maps, axes=[2, 3, 4], keepdims=True)
    return (maps - mean) * tf.math.rsqrt(variance + _EPSILON**2)


def _parts(maps: tf.Tensor) -> tf.Tensor:
    """Returns the means of maps [..., height, width] in 4x4 parts of them, [..., 16]."""
    rows, columns = ([round(side * i / _PARTS) for i in range(_PARTS + 1)] for side in maps.shape[-2:])
    means = [
        tf.reduce_mean(maps[..., rows[i] : rows[i + 1], columns[j] : columns[j + 1]], axis=[-2, -1])
        for i in range(_PARTS)
        for j in range(_PARTS)
    ]
    return tf.stack(means, axis=-1)


def _statistics(maps: tf.Tensor) -> tf.Tensor:
    """Returns mean, largest and smallest value and standard deviation of maps [..., height, width], [..., 4]."""
    mean, variance = tf.nn.moments(maps, axes=[-2, -1])
    largest, smallest = tf.reduce_max(maps, axis=[-2, -1]), tf.reduce_min(maps, axis=[-2, -1])
    return tf.stack([mean, largest, smallest, tf.sqrt(variance + _EPSILON**2)], axis=-1)


def _modulus(maps: tf.Tensor) -> tf.Tensor:
    """Returns the modulus of complex maps; its gradient is finite also where it is 0."""
    return tf.sqrt(tf.square(tf.math.real(maps)) + tf.square(tf.math.imag(maps)) + 1e-12)


def _transform(maps: tf.Tensor) -> tf.Tensor:
    return tf.signal.fft2d(tf.cast(maps, tf.complex64))


def _fold(transformed: tf.Tensor, factor: int) -> tf.Tensor:
    """Returns the Fourier transform of every factor-th value, [..., height, width]: the mean of its aliases."""
    if factor == 1:
        return transformed
    *leading, height, width = transformed.shape
    shape = [tf.shape(transformed)[0], *leading[1:], factor, height // factor, factor, width // factor]
    return tf.reduce_mean(tf.reshape(transformed, shape), axis=[-4, -2])


def _wavelet(shape, sigma: float, angle: float, frequency: float) -> np.ndarray:
    """Returns the Fourier transform of a Morlet wavelet, float32 [height, width]: none of its mean, a band at an angle.

    Args:
      shape: (height, width) of the maps.
      sigma: Width of its envelope along its wave, in pixels; across it, twice that.
      angle: Of its wave, in radians.
      frequency: Of its wave, in radians a pixel.
    """
    direction = np.array([math.cos(angle), math.sin(angle)])
    envelope = _gaussian(shape, sigma, 2.0 * sigma, direction, np.zeros([2]))
    wave = _gaussian(shape, sigma, 2.0 * sigma, direction, frequency * direction)
    return (wave - wave[0, 0] / envelope[0, 0] * envelope).astype(np.float32)


def _low_pass(shape, sigma: float) -> np.ndarray:
    """Returns the Fourier transform of a Gaussian of a width in pixels, float32 [height, width]."""
    return _gaussian(shape, sigma, sigma, np.array([1.0, 0.0]), np.zeros([2])).astype(np.float32)


def _gaussian(shape, along: float, across: float, direction: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Returns the Fourier transform of a Gaussian, moved to a centre, with the aliases that sampling at pixels adds."""
    total = np.zeros(shape)
    height, width = (2.0 * math.pi * np.fft.fftfreq(side) for side in shape)
    for down in range(-2, 3):
        for right in range(-2, 3):
            y = height[:, None] + 2.0 * math.pi * down - center[0]
            x = width[None, :] + 2.0 * math.pi * right - center[1]
            u, v = direction[0] * y + direction[1] * x, direction[0] * x - direction[1] * y
            total += np.exp(-0.5 * ((along * u) ** 2 + (across * v) ** 2))
    return total
