"""Random variations of images: KerasCV's layers, driven by random numbers that the caller supplies.

KerasCV is imported here and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import importlib
import io
import numbers
from typing import Any, NamedTuple

import tensorflow as tf

from tf_dpdiff.data import augmentation_layers

_FLAGS = ('horizontal_flip', 'vertical_flip', 'rotate_90')
_SHARES = ('translation', 'rotation', 'zoom', 'contrast', 'brightness', 'saturation')


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Which variations a view of an image may show. The default is none.

    Photographs of 32 x 32 usually take pad_and_crop=4 with horizontal_flip; tissue under a microscope takes both flips
    and rotate_90; pictures of colour may take brightness, contrast, saturation and hue together.

    Attributes:
      horizontal_flip: Whether to mirror half of the views left to right.
      translation: Largest shift, as a share of height and width.
      rotation: Largest turn either way, as a share of a full turn.
      zoom: Largest change of size, as a share.
      contrast: Largest change of contrast about the image's mean, as a share.
      brightness: Largest change of brightness, as a share of the range.
      fill_mode: What stands beyond the edge: 'constant' (black), 'reflect', 'nearest' or 'wrap'.
      interpolation: 'bilinear', or 'nearest', which shifts by whole pixels.
      vertical_flip: Whether to mirror half of the views upside down.
      rotate_90: Whether to turn views by 0, 1, 2 or 3 quarters, each as likely. For square images.
      pad_and_crop: Pixels by which an image is mirrored beyond each edge before a window of its size is cropped at
        random; less than height and width. It shifts by whole pixels, whatever fill_mode and interpolation are.
      saturation: Largest change of saturation, as a share. For images of colour.
      hue: Largest turn of hue either way, as a share of the circle of colours, up to 0.5. For images of colour.

    Example:
        >>> AugmentationConfig(hue=0.1).check([28, 28, 1])
        Traceback (most recent call last):
        ...
        ValueError: AugmentationConfig.hue = 0.1 needs images with 3 channels (red, green, blue), got 1: set it to 0.
    """

    horizontal_flip: bool = False
    translation: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    fill_mode: str = 'constant'
    interpolation: str = 'bilinear'
    vertical_flip: bool = False
    rotate_90: bool = False
    pad_and_crop: int = 0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f'{name} of the augmentation must be True or False, got {getattr(self, name)!r}.')
        for name in _SHARES:
            value = getattr(self, name)
            if not (_is_number(value, numbers.Real) and 0.0 <= value < 1.0):
                raise ValueError(f'{name} of the augmentation must be in [0, 1), got {value!r}.')
        if not (_is_number(self.hue, numbers.Real) and 0.0 <= self.hue <= 0.5):
            raise ValueError(f'hue of the augmentation must be in [0, 0.5], got {self.hue!r}.')
        if not (_is_number(self.pad_and_crop, numbers.Integral) and self.pad_and_crop >= 0):
            raise ValueError(
                'pad_and_crop of the augmentation must be a whole number of pixels that is at least 0, got '
                f'{self.pad_and_crop!r}.'
            )
        if self.fill_mode not in ('constant', 'reflect', 'nearest', 'wrap'):
            raise ValueError(f"fill_mode must be 'constant', 'reflect', 'nearest' or 'wrap', got {self.fill_mode!r}.")
        if self.interpolation not in ('bilinear', 'nearest'):
            raise ValueError(f"interpolation must be 'bilinear' or 'nearest', got {self.interpolation!r}.")

    def check(self, image_shape: Sequence[int | None]) -> None:
        """Raises ValueError if images of a shape cannot be varied in this way.

        Args:
          image_shape: Height, width and channels.
        """
        height, width, channels = image_shape
        size = f'{height} x {width}'
        for name in ('saturation', 'hue'):
            if getattr(self, name) and channels != 3:
                raise ValueError(
                    f'AugmentationConfig.{name} = {getattr(self, name):g} needs images with 3 channels '
                    f'(red, green, blue), got {channels}: set it to 0.'
                )
        if self.pad_and_crop and not (height and width and self.pad_and_crop < min(height, width)):
            raise ValueError(
                f'AugmentationConfig.pad_and_crop = {self.pad_and_crop} needs images that are higher and '
                f'wider than that, got {size}: lower it.'
            )
        if self.rotate_90 and not height == width is not None:
            raise ValueError(f'AugmentationConfig.rotate_90 needs square images, got {size}: set it to False.')


def _is_number(value, kind) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


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
        >>> augmenter.describe()
        'horizontal flip (KerasCV RandomFlip, keyed)'
    """

    def __init__(self, config: AugmentationConfig):
        self._config = config
        self._uniforms = _SuppliedUniforms()
        self._variations = list(_variations(config, self._uniforms))
        self._layers = _make_layers(self._variations, self._uniforms)
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

        Raises:
          ValueError: If the variations are not for images of this shape.
        """
        if not self._layers:
            return images
        self._config.check(images.shape[1:])
        static_shape = images.shape
        # KerasCV fills with 0, which is black in [0, 1]. Where pixels only move they keep their bits.
        computes = any(variation.by_keras_cv for variation in self._variations)
        if computes:
            images = (images + 1.0) / 2.0
        with self._uniforms.supply(uniforms):
            for layer in self._layers:
                transformations = layer.get_random_transformation_batch(tf.shape(images)[0])
                images = layer.augment_images(images, transformations)
        if computes:
            images = tf.clip_by_value(images * 2.0 - 1.0, -1.0, 1.0)
        return tf.ensure_shape(images, static_shape)

    def describe(self) -> str:
        """Returns, in the order of application, which variations are on and who does each; 'none' without any."""
        return (
            ', '.join(
                f'{variation.words} '
                + (f'(KerasCV {variation.layer}, keyed)' if variation.by_keras_cv else '(stateless)')
                for variation in self._variations
            )
            or 'none'
        )


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
        assert self._columns is not None
        column = self._columns[:, self.num_taken]
        self.num_taken += 1
        return tf.cast(tf.reshape(column, [-1] + [1] * (len(shape) - 1)) * (maxval - minval) + minval, dtype)

    def factor(self, low: float, high: float):
        """Returns a stand-in for the KerasCV factor sampler that is uniform on [low, high)."""
        return lambda shape, dtype=tf.float32: self.uniform(shape, low, high, dtype)

    def saturation_factor(self, low: float, high: float):
        """Returns a stand-in whose saturation is multiplied by a number uniform on [low, high).

        KerasCV's layer multiplies by x / (1 - x), which is f for x = f / (1 + f).
        """

        def factor(shape, dtype=tf.float32):
            multiplier = self.uniform(shape, low, high, dtype)
            return multiplier / (1.0 + multiplier)

        return factor


class _Variation(NamedTuple):
    """One variation: in words, the layer that does it (KerasCV's by name), what it is made with, and what replaces the
    sampler of its factor, if it has one."""

    words: str
    layer: str | type
    arguments: dict[str, Any]
    sampler: Callable[..., tf.Tensor] | None = None

    @property
    def by_keras_cv(self) -> bool:
        return isinstance(self.layer, str)


def _variations(config: AugmentationConfig, uniforms: _SuppliedUniforms) -> Iterator[_Variation]:
    """Yields what is on, in the order of application, which is that in which uniform numbers are taken.

    A new kind of variation goes to the end, so that the others take the numbers that they took without it.
    """
    geometry = {'fill_mode': config.fill_mode, 'interpolation': config.interpolation}
    in_range = {'value_range': (0, 1)}
    if config.horizontal_flip:
        yield _Variation('horizontal flip', 'RandomFlip', {'mode': 'horizontal'})
    if config.rotation:
        yield _Variation(
            f'rotation up to {config.rotation:g} of a turn', 'RandomRotation', {'factor': config.rotation, **geometry}
        )
    if config.zoom:
        share = {'height_factor': config.zoom, 'width_factor': config.zoom}
        yield _Variation(f'zoom up to {config.zoom:g}', 'RandomZoom', {**share, **geometry})
    if config.translation:
        share = {'height_factor': config.translation, 'width_factor': config.translation}
        yield _Variation(f'translation up to {config.translation:g}', 'RandomTranslation', {**share, **geometry})
    if config.contrast:
        yield _Variation(
            f'contrast up to {config.contrast:g}',
            'RandomContrast',
            {'factor': config.contrast, **in_range},
            uniforms.factor(1.0 - config.contrast, 1.0 + config.contrast),
        )
    if config.brightness:
        yield _Variation(
            f'brightness up to {config.brightness:g}',
            'RandomBrightness',
            {'factor': config.brightness, **in_range},
            uniforms.factor(-config.brightness, config.brightness),
        )
    if config.vertical_flip:
        yield _Variation('vertical flip', 'RandomFlip', {'mode': 'vertical'})
    if config.rotate_90:
        yield _Variation('quarter turns', augmentation_layers.QuarterTurns, {})
    if config.pad_and_crop:
        yield _Variation(
            f'mirror-pad {config.pad_and_crop} and crop', augmentation_layers.PadAndCrop, {'pad': config.pad_and_crop}
        )
    if config.saturation:
        yield _Variation(
            f'saturation up to {config.saturation:g}',
            'RandomSaturation',
            {'factor': 0.5},
            uniforms.saturation_factor(1.0 - config.saturation, 1.0 + config.saturation),
        )
    if config.hue:
        # KerasCV counts in half circles, and draws the way to turn from a number of its own.
        half_circles = 2.0 * config.hue
        yield _Variation(
            f'hue up to {config.hue:g} of the circle',
            'RandomHue',
            {'factor': half_circles, **in_range},
            uniforms.factor(0.0, half_circles),
        )


def _make_layers(variations: Sequence[_Variation], uniforms: _SuppliedUniforms) -> list[Any]:
    """Returns the layers: KerasCV's, or such as have its methods get_random_transformation_batch and augment_images."""
    if any(variation.by_keras_cv for variation in variations):
        # Takes three seconds, so only where it is needed.
        with contextlib.redirect_stdout(io.StringIO()):  # It announces its backend.
            importlib.import_module('tf_dpdiff.keras')  # Sees to it that KerasCV finds Keras 2.
            import keras_cv
    layers = []
    for variation in variations:
        if not isinstance(variation.layer, str):
            layers.append(variation.layer(**variation.arguments, random_generator=uniforms))
            continue
        make = getattr(keras_cv.layers, variation.layer)
        # float32 whatever the networks compute in.
        layers.append(make(**variation.arguments, dtype='float32'))
        layers[-1]._random_generator = uniforms
        if variation.sampler:
            layers[-1].factor = variation.sampler
    return layers
