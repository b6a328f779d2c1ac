"""Images as uint8 arrays: brought to one size and kind, checked, read many at a time, encoded.

Resizing and the change between grey and colour count in whole numbers, so that a fingerprint of the result does not
depend on the machine.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import functools
import io
import re
from typing import Any

import numpy as np
from PIL import Image
import tqdm

from tf_dpdiff import progress as progress_lib
from tf_dpdiff.data import problems as problems_lib

CHANNELS = (1, 3)  # Grey and colour: what networks are tested with and sets of samples are written in.
RESIZES = {'crop': 'cropped', 'pad': 'padded', 'stretch': 'stretched'}

_CHUNK = 1024  # Images that are in flight at a time.
_RESIZED_BYTES = 2**22  # Of the pixels that are taken as numbers of 64 bits at a time.
_THREADS = 8  # Pillow decodes outside Python's lock; more threads than cores hide the wait for a network disk.


def one_line(error: Exception) -> str:
    """Returns the first line of a library's error, without TensorFlow's names of nodes and the full stop."""
    text = getattr(error, 'message', None) or str(error)
    text = re.sub(r'\{\{.*?\}\}|\[Op:.*', '', text).strip()
    return text.splitlines()[0].strip().rstrip('.') if text else type(error).__name__


def to_channels(images_uint8: np.ndarray, channels: int) -> np.ndarray:
    """Turns colour to grey (luma of ITU-R BT.601, rounded as Pillow does) or grey to colour (three times the same).

    Args:
      images_uint8: uint8 [..., height, width, channels] with 1 or 3 channels.
      channels: 1 or 3.

    Returns:
      uint8 [..., height, width, channels].

    Raises:
      ValueError: if either number of channels is neither 1 nor 3.
    """
    if images_uint8.shape[-1] == channels:
        return images_uint8
    if {images_uint8.shape[-1], channels} != {1, 3}:
        raise ValueError(
            f'images of {images_uint8.shape[-1]} channels cannot become images of {channels}: '
            'only 1 (grey) and 3 (colour) turn into each other.'
        )
    if channels == 3:
        return np.repeat(images_uint8, 3, axis=-1)
    # 0.299, 0.587 and 0.114 in units of 2**-16.
    luma = images_uint8.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((luma + 2**15) >> 16).astype(np.uint8)[..., None]


def resize(images_uint8: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes by averaging over the area of a new pixel where an axis shrinks, bilinearly where it grows.

    Half a grey level is rounded up. A new pixel that covers 3x3 old ones is their mean.

    Args:
      images_uint8: uint8 [..., height, width, channels].
      height: Of the result, in pixels.
      width: Of the result, in pixels.

    Returns:
      uint8 [..., height, width, channels].
    """
    *batch, old_height, old_width, channels = images_uint8.shape
    if (old_height, old_width) == (height, width):
        return images_uint8
    rows, columns = _axis_weights(old_height, height), _axis_weights(old_width, width)
    # Sums of whole numbers below 2**53 are exact in float64 in whatever order they are added.
    lines = images_uint8.reshape([*batch, old_height, old_width * channels])
    step = max(1, _RESIZED_BYTES // (images_uint8.nbytes // old_height))
    sums = np.zeros([*batch, height, old_width * channels])
    for start in range(0, old_height, step):
        sums += rows[:, start : start + step] @ lines[..., start : start + step, :].astype(np.float64)
    sums = columns @ sums.reshape([*batch, height, old_width, channels])
    total = int(rows[0].sum() * columns[0].sum())
    return ((2 * sums.astype(np.int64) + total) // (2 * total)).astype(np.uint8)


@functools.lru_cache(maxsize=256)  # Images of one's own may be of any number of sizes.
def _axis_weights(old: int, new: int) -> np.ndarray:
    """Returns the weight of each old pixel in each new one, whole numbers [new, old] with the same sum in each row."""
    i, j = np.arange(new)[:, None], np.arange(old)[None, :]
    if new <= old:  # On a line of old * new points a new pixel is old points long and an old pixel new points.
        overlap = np.minimum((i + 1) * old, (j + 1) * new) - np.maximum(i * old, j * new)
        return np.maximum(overlap, 0).astype(np.float64)
    # Centres of the new pixels, in units of 1 / (2 * new) old pixels from the centre of the first old one.
    centres = np.clip((2 * i + 1) * old - new, 0, (old - 1) * 2 * new)
    return np.maximum(2 * new - np.abs(centres - 2 * new * j), 0).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Fit:
    """What images are made alike by: arguments that sources of images have in common.

    Attributes:
      image_size: Height and width of the result in pixels, or one number for both. None: as the images are.
      channels: 1 (grey) or 3 (colour). None: as the images are.
      resize: How an image of other proportions comes to image_size. 'crop': the largest centred rectangle of the new
        proportions is cut out. 'pad': the whole image is put on a border of `background`. 'stretch': height and width
        change freely.
      background: A grey level or (red, green, blue), each from 0 to 255: what stands behind transparent pixels and
        around images that are padded. None: neither is asked for, and transparency is refused.
      window: (low, high): the grey levels of 16-bit images that become 0 and 255. What is between is mapped linearly
        and rounded, what is beyond is clipped. None: images of 16 bits are refused.

    Raises:
      ValueError: names the argument and its value.
    """

    image_size: int | tuple[int, int] | None = None
    channels: int | None = None
    _: dataclasses.KW_ONLY
    resize: str = 'crop'
    background: int | tuple[int, int, int] | None = None
    window: tuple[float, float] | None = None

    def __post_init__(self):
        if self.image_size is not None:
            sizes = self.image_size if isinstance(self.image_size, (tuple, list)) else (self.image_size,) * 2
            if len(sizes) != 2:
                raise ValueError(f'image_size must be a number of pixels or (height, width), got {self.image_size}.')
            if min(sizes) < 1:
                raise ValueError(f'image_size must be at least 1, got {self.image_size}.')
        if self.channels not in (None, *CHANNELS):
            raise ValueError(f'channels must be 1 (grey) or 3 (colour), got {self.channels}.')
        if self.resize not in RESIZES:
            raise ValueError(f"resize must be 'crop', 'pad' or 'stretch', got {self.resize!r}.")
        if self.resize != 'crop' and self.size is None:
            raise ValueError(f'resize={self.resize!r} needs image_size.')
        if self.resize == 'pad' and self.background is None:
            raise ValueError("resize='pad' needs background: a grey level from 0 to 255, or (red, green, blue).")
        if self.background is not None:
            levels = np.atleast_1d(np.asarray(self.background))
            if len(levels) not in CHANNELS or not all(level in range(256) for level in levels.tolist()):
                raise ValueError(
                    f'background must be a grey level from 0 to 255, or (red, green, blue), got {self.background}.'
                )
        if self.window is not None and not (
            len(self.window) == 2 and -np.inf < self.window[0] < self.window[1] < np.inf
        ):
            raise ValueError(f'window must be (low, high) with low below high, got {self.window}.')

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the result, or None."""
        if self.image_size is None:
            return None
        height, width = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return height, width

    def check_border(self) -> None:
        """Checks, for images without transparency, that a background is that of padded images.

        Raises:
          ValueError: names the argument that nothing would read.
        """
        if self.background is not None and self.resize != 'pad':
            raise ValueError(f"background={self.background} is for padded images here: resize = 'pad'.")

    def shape_of(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the shape that an image of a shape is brought to, both (height, width, channels)."""
        height, width = self.size or shape[:2]
        return height, width, self.channels or shape[2]

    def backing(self, channels: int) -> np.ndarray:
        """Returns the background as one pixel of 1 or 3 channels, uint8 [channels]; a colour is grey by its luma."""
        levels = np.atleast_1d(np.array(self.background, np.uint8))
        return to_channels(levels, channels)

    def apply(self, images_uint8: np.ndarray) -> np.ndarray:
        """Returns images brought to the size and the number of channels.

        Args:
          images_uint8: uint8 [..., height, width, channels].

        Returns:
          uint8 [..., height, width, channels].
        """
        if self.channels is not None:
            images_uint8 = to_channels(images_uint8, self.channels)
        if self.size is None or images_uint8.shape[-3:-1] == self.size:
            return images_uint8
        if self.resize == 'stretch':
            return resize(images_uint8, *self.size)
        *batch, height, width, channels = images_uint8.shape
        if self.resize == 'crop':
            rows, columns = _centred(_largest_within((height, width), self.size), (height, width))
            return resize(images_uint8[..., rows, columns, :], *self.size)
        whole = _largest_within(self.size, (height, width))
        rows, columns = _centred(whole, self.size)
        out = np.empty([*batch, *self.size, channels], np.uint8)
        out[:] = self.backing(channels)
        out[..., rows, columns, :] = resize(images_uint8, *whole)
        return out

    def describe(self) -> str:
        """Returns what is done to the images, for statements: '' where nothing is, by the arguments alone."""
        done = []
        if self.size is not None:
            done.append(f'resized to {"x".join(map(str, self.size))} ({RESIZES[self.resize]})')
        if self.channels is not None:
            done.append('turned to grey' if self.channels == 1 else 'turned to colour')
        if self.background is not None:
            done.append(f'put on a background of {self.background}')
        if self.window is not None:
            done.append(f'mapped from grey levels of {self.window[0]:g} to {self.window[1]:g}')
        return ', '.join(done)


def _largest_within(size: tuple[int, int], like: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width of the largest rectangle with the proportions of `like` that `size` holds."""
    (height, width), (like_height, like_width) = size, like
    if height * like_width >= width * like_height:
        return max(1, (2 * width * like_height + like_width) // (2 * like_width)), width
    return height, max(1, (2 * height * like_width + like_height) // (2 * like_height))


def _centred(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[slice, slice]:
    """Returns rows and columns of the centre of a rectangle."""
    top, left = ((of_outer - of_inner) // 2 for of_inner, of_outer in zip(inner, outer))
    return slice(top, top + inner[0]), slice(left, left + inner[1])


def check_image_shape(source: str, image_shape: Sequence[int]) -> None:
    """Checks that images of a shape can be trained on and, as samples, written.

    Args:
      source: What the images are called in an error.
      image_shape: What should be (height, width, channels).

    Raises:
      ValueError: if it is not, or of other channels than 1 or 3; says what to do.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f'{source}: image_shape must be (height, width, channels), got {tuple(image_shape)}.')
    channels = image_shape[2]
    if channels in CHANNELS:
        return
    if image_shape[0] in CHANNELS or image_shape[0] < min(5, channels):
        cure = 'if their channels come first, put them last: images.transpose(0, 2, 3, 1)'
    elif channels - 1 in CHANNELS:
        cure = f'if the last one is transparency, put them on a background or drop it: images[..., :{channels - 1}]'
    else:
        cure = 'keep or compute one or three of them'
    raise ValueError(
        f'{source}: images of {"x".join(map(str, image_shape))} (height x width x channels) have {channels} '
        f'channels and must have 1 (grey) or 3 (colour); {cure}.'
    )


def check_shape(image_uint8: np.ndarray, image_shape: tuple[int, int, int], source: str, first: str) -> np.ndarray:
    """Returns an image if it is of the shape of the first one.

    Raises:
      ValueError: names both and their shapes.
    """
    if image_uint8.shape != tuple(image_shape):
        shapes = ['x'.join(map(str, shape)) for shape in (image_uint8.shape, image_shape)]
        cure = 'image_size' if image_uint8.shape[2] == image_shape[2] else 'channels'
        raise ValueError(
            f'{source} is {shapes[0]} (height x width x channels), {first} is {shapes[1]}; give {cure} to '
            'make all images alike.'
        )
    return image_uint8


def progress(total: int | None, name: str) -> tqdm.tqdm:
    """Returns a progress bar that appears where reading takes more than two seconds; total None: not known."""
    return progress_lib.bar(total, f'reading {name}', 'image', delay_secs=2.0, leave=False)


def read_all(
    name: str, sources: Sequence | np.ndarray, read: Callable[[Any], np.ndarray], out: np.ndarray
) -> np.ndarray:
    """Fills an array with the images of all sources, several at a time, with a progress bar.

    Args:
      name: For the progress bar.
      sources: One an image.
      read: From a source to uint8 [height, width, channels].
      out: uint8 [sources, height, width, channels], written to.

    Returns:
      out.

    Raises:
      ValueError or FileNotFoundError, where `read` raises it: all sources are gone through, and those at fault are told
        at once, see `problems.Problems`. Any other error of `read` at once.
    """
    problems = problems_lib.Problems(f'the images of {name!r}')

    def fill(index):
        try:
            out[index] = read(sources[index])
        except (ValueError, FileNotFoundError) as error:
            return error
        return None

    with futures.ThreadPoolExecutor(_THREADS) as pool, progress(len(sources), name) as bar:
        for start in range(0, len(sources), _CHUNK):
            for error in pool.map(fill, range(start, min(start + _CHUNK, len(sources)))):
                if error:
                    problems.add(error)
                bar.update()
    problems.check()
    return out


def encode_png(image_uint8: np.ndarray) -> bytes:
    """Returns uint8 [height, width, 1 or 3] as a PNG file."""
    encoded = io.BytesIO()
    Image.fromarray(image_uint8[..., 0] if image_uint8.shape[-1] == 1 else image_uint8).save(encoded, 'PNG')
    return encoded.getvalue()
