"""Random variations of images: KerasCV's layers, driven by random numbers that the caller supplies.

KerasCV is imported here and nowhere else.
"""

import contextlib
import dataclasses
import io
from typing import List

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Which variations a view of an image may show. The default is none.

    Attributes:
      horizontal_flip: Whether to mirror half of the views left to right.
      translation: Largest shift, as a share of height and width.
      rotation: Largest turn either way, as a share of a full turn.
      zoom: Largest change of size, as a share.
      contrast: Largest change of contrast about the image's mean, as a share.
      brightness: Largest change of brightness, as a share of the range.
      fill_mode: What stands beyond the edge: 'constant' (black), 'reflect', 'nearest' or 'wrap'.
      interpolation: 'bilinear', or 'nearest', which shifts by whole pixels.
    """
    horizontal_flip: bool = False
    translation: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    fill_mode: str = 'constant'
    interpolation: str = 'bilinear'

    def __post_init__(self):
        for name in ('translation', 'rotation', 'zoom', 'contrast', 'brightness'):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f'{name} of the augmentation must be in [0, 1), got {getattr(self, name)}.')
        if self.fill_mode not in ('constant', 'reflect', 'nearest', 'wrap'):
            raise ValueError(f"fill_mode must be 'constant', 'reflect', 'nearest' or 'wrap', got {self.fill_mode!r}.")
        if self.interpolation not in ('bilinear', 'nearest'):
            raise ValueError(f"interpolation must be 'bilinear' or 'nearest', got {self.interpolation!r}.")


class Augmenter:
    """Applies an AugmentationConfig to images in [-1, 1], given uniform random numbers.

    KerasCV's layers draw from generators with a state of their own, so their output would depend on what was drawn
    before. Here each image brings its own uniform numbers: its variation depends on them alone, and not on the batch,
    the chunk or the replica that it happens to be in, which is what lets a resumed run repeat itself.

    Attributes:
      num_uniforms: How many uniform numbers an image needs.

    Example:
        >>> augmenter = Augmenter(AugmentationConfig(horizontal_flip=True))
        >>> images = tf.reshape(tf.constant([-1.0, -0.5, 0.5, 1.0]), [1, 1, 4, 1])
        >>> tf.reshape(augmenter(images, tf.fill([1, augmenter.num_uniforms], 0.9)), [-1]).numpy().tolist()
        [1.0, 0.5, -0.5, -1.0]
    """

    def __init__(self, config: AugmentationConfig):
        self._uniforms = _SuppliedUniforms()
        self._layers = _make_layers(config, self._uniforms)
        with self._uniforms.supply(tf.zeros([1, 64])):
            for layer in self._layers:
                layer.get_random_transformation_batch(1)
            self.num_uniforms = self._uniforms.num_taken

    def __call__(self, images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
        """Returns varied images.

        Args:
          images: float32 [batch, height, width, channels] in [-1, 1].
          uniforms: float32 [batch, num_uniforms] in [0, 1).

        Returns:
          float32, shape of images, in [-1, 1].
        """
        if not self._layers:
            return images
        static_shape = images.shape
        images = (images + 1.0) / 2.0  # KerasCV fills with 0, which is black here.
        with self._uniforms.supply(uniforms):
            for layer in self._layers:
                transformations = layer.get_random_transformation_batch(tf.shape(images)[0])
                images = layer.augment_images(images, transformations)
        return tf.ensure_shape(tf.clip_by_value(images * 2.0 - 1.0, -1.0, 1.0), static_shape)


class _SuppliedUniforms:
    """Stands in for the random generator of a layer and hands out columns of given uniform numbers."""

    def __init__(self):
        self._columns = None
        self.num_taken = 0

    @contextlib.contextmanager
    def supply(self, columns: tf.Tensor):
        """Hands out the columns of float32 [batch, numbers] from the first one on."""
        self._columns, self.num_taken = columns, 0
        yield
        self._columns = None

    def uniform(self, shape, minval=0.0, maxval=1.0, dtype=tf.float32):
        """Returns the next column as [batch, 1, ...] in [minval, maxval)."""
        if any(size != 1 for size in shape[1:]):
            raise NotImplementedError(f'one number an image is supported, got a request for {shape}.')
        column = self._columns[:, self.num_taken]
        self.num_taken += 1
        return tf.cast(tf.reshape(column, [-1] + [1] * (len(shape) - 1)) * (maxval - minval) + minval, dtype)

    def factor(self, low: float, high: float):
        """Returns a stand-in for the KerasCV factor sampler that is uniform on [low, high)."""
        return lambda shape, dtype=tf.float32: self.uniform(shape, low, high, dtype)


def _make_layers(config: AugmentationConfig, uniforms: _SuppliedUniforms) -> List[tf.keras.layers.Layer]:
    if config == AugmentationConfig():
        return []
    # Takes three seconds, so only where it is needed.
    with contextlib.redirect_stdout(io.StringIO()):  # It announces its backend.
        import keras_cv  # pylint: disable=g-import-not-at-top
    dtype = {'dtype': 'float32'}  # Whatever the networks compute in.
    geometry = {**dtype, 'fill_mode': config.fill_mode, 'interpolation': config.interpolation}
    layers = []
    if config.horizontal_flip:
        layers.append(keras_cv.layers.RandomFlip('horizontal', **dtype))
    if config.rotation:
        layers.append(keras_cv.layers.RandomRotation(config.rotation, **geometry))
    if config.zoom:
        layers.append(keras_cv.layers.RandomZoom(config.zoom, config.zoom, **geometry))
    if config.translation:
        layers.append(keras_cv.layers.RandomTranslation(config.translation, config.translation, **geometry))
    if config.contrast:
        layers.append(keras_cv.layers.RandomContrast((0, 1), config.contrast, **dtype))
        layers[-1].factor = uniforms.factor(1.0 - config.contrast, 1.0 + config.contrast)
    if config.brightness:
        layers.append(keras_cv.layers.RandomBrightness(config.brightness, value_range=(0, 1), **dtype))
        layers[-1].factor = uniforms.factor(-config.brightness, config.brightness)
    for layer in layers:
        layer._random_generator = uniforms  # pylint: disable=protected-access
    return layers
