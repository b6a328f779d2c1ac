"""From encoded pictures to uint8 arrays of one size, and back: decoding, resizing, grey and colour, encoding.

Resizing and the change between grey and colour count in whole numbers, so that a fingerprint of the result does not
depend on the machine.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import functools
import io
import re
import threading
from typing import Any
import warnings

import numpy as np
from PIL import Image
from PIL import ImageOps
import tqdm

from tf_dpdiff import progress as progress_lib

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png')
CHANNELS = (1, 3)  # Grey and colour: what networks are tested with and sets of samples are written in.

FORMATS = ('BMP', 'JPEG', 'PNG')
_CHUNK = 1024  # Images that are in flight at a time.
_THREADS = 8  # Pillow decodes outside Python's lock; more threads than cores hide the wait for a network disk.
_ORIENTATION = 274  # Among the tags of EXIF, all that changes a pixel.
# What Pillow warns of and no pixel depends on: other tags, and what may follow the first picture of a file.
_HARMLESS = f'Metadata Warning|.*Skipping tag (?!{_ORIENTATION}$)|Invalid APNG|Image appears to be a malformed MPO file'


class _PillowWarnings:
    """A context in which Pillow's warnings are errors, but for the harmless ones, which are silenced.

    Python's filters hold for all threads, so the first one in sets them and the last one out takes them back.
    """

    def __init__(self):
        self._lock, self._num_inside, self._before = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_inside:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                for category in (UserWarning, Image.DecompressionBombWarning):
                    warnings.filterwarnings('error', category=category, module=r'PIL\.')
                warnings.filterwarnings('ignore', message=_HARMLESS, category=UserWarning, module=r'PIL\.')
            self._num_inside += 1

    def __exit__(self, *error) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                assert self._before is not None
                self._before.__exit__(*error)


_pillow_warnings = _PillowWarnings()


def decode(encoded: bytes, source: str, *, drop_alpha: bool = False) -> np.ndarray:
    """Decodes a PNG, JPEG or BMP file.

    Palettes become colour, black-and-white becomes grey, opaque alpha is dropped, and a photograph is turned as its
    EXIF orientation says. What would lose information unseen is refused: transparency, 16 bits a channel, CMYK, EXIF
    data too damaged to tell the orientation. So is a picture of more pixels than Pillow takes for an honest one.

    Args:
      encoded: The bytes of the file.
      source: What the file is called in an error.
      drop_alpha: Take the colours of transparent pixels as they are.

    Returns:
      uint8 [height, width, channels] with 1 or 3 channels.

    Raises:
      ValueError: names the source and what is wrong.
    """
    # Pillow drops the low byte of 16-bit colour without a word; the header of a PNG file tells.
    if encoded[:8] == b'\x89PNG\r\n\x1a\n' and encoded[24:25] == b'\x10':
        raise ValueError(f'{source} has 16 bits a channel; convert it to 8.')
    image = _open(encoded, source)
    if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        grey = image.mode in ('1', 'L', 'LA')
        image = image.convert('RGBA')
        if not drop_alpha and image.getchannel('A').getextrema() != (255, 255):
            raise ValueError(f'{source} has transparent pixels; put it on a background.')
        image = image.getchannel('R') if grey else image.convert('RGB')
    elif image.mode == '1':
        image = image.convert('L')
    elif image.mode == 'P':
        image = image.convert('RGB')
    if image.mode not in ('L', 'RGB'):
        raise ValueError(f'{source} is of mode {image.mode}; convert it to 8-bit grey or RGB.')
    array = np.asarray(image, np.uint8)
    return array[..., None] if array.ndim == 2 else array


def _open(encoded: bytes, source: str) -> Image.Image:
    """Returns the loaded picture, upright."""
    try:
        with _pillow_warnings, Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f'{source} is no PNG, JPEG or BMP image.') from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f'{source} is too large ({one_line(error).split(",")[0]}); shrink it.') from error
    except UserWarning as error:
        raise ValueError(
            f'{source} has damaged metadata ({one_line(error)}), so that it is not known which way is up; '
            'turn it upright and save it anew without them.'
        ) from error
    except Exception as error:
        # What a decoder raises on a damaged file is nowhere listed.
        raise ValueError(f'{source} is a damaged image: {one_line(error)}.') from error


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
    sums = rows @ images_uint8.reshape([*batch, old_height, old_width * channels]).astype(np.float64)
    sums = columns @ sums.reshape([*batch, height, old_width, channels])
    total = int(rows[0].sum() * columns[0].sum())
    return ((2 * sums.astype(np.int64) + total) // (2 * total)).astype(np.uint8)


@functools.cache
def _axis_weights(old: int, new: int) -> np.ndarray:
    """Returns the weight of each old pixel in each new one, whole numbers [new, old] with the same sum in each row."""
    i, j = np.arange(new)[:, None], np.arange(old)[None, :]
    if new <= old:  # On a line of old * new points a new pixel is old points long and an old pixel new points.
        overlap = np.minimum((i + 1) * old, (j + 1) * new) - np.maximum(i * old, j * new)
        return np.maximum(overlap, 0).astype(np.float64)
    # Centres of the new pixels, in units of 1 / (2 * new) old pixels from the centre of the first old one.
    centres = np.clip((2 * i + 1) * old - new, 0, (old - 1) * 2 * new)
    return np.maximum(2 * new - np.abs(centres - 2 * new * j), 0).astype(np.float64)


def fit(images_uint8: np.ndarray, image_size: int | None = None, channels: int | None = None) -> np.ndarray:
    """Brings images to a size and a number of channels.

    Args:
      images_uint8: uint8 [..., height, width, channels].
      image_size: Height and width of the result; the largest centred square is cut out and resized. None: as it is.
      channels: 1 or 3; None: as it is.

    Returns:
      uint8 [..., height, width, channels].
    """
    if channels is not None:
        images_uint8 = to_channels(images_uint8, channels)
    if image_size is None:
        return images_uint8
    height, width = images_uint8.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(images_uint8[..., top : top + side, left : left + side, :], image_size, image_size)


def check_fit(image_size: int | None, channels: int | None) -> None:
    """Checks the arguments that sources of images have in common.

    Raises:
      ValueError: names the argument and its value.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f'image_size must be at least 1, got {image_size}.')
    if channels not in (None, *CHANNELS):
        raise ValueError(f'channels must be 1 (grey) or 3 (colour), got {channels}.')


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
      What `read` raises for the first source that it fails on.
    """

    def fill(index):
        out[index] = read(sources[index])

    with futures.ThreadPoolExecutor(_THREADS) as pool, progress(len(sources), name) as bar:
        for start in range(0, len(sources), _CHUNK):
            for _ in pool.map(fill, range(start, min(start + _CHUNK, len(sources)))):
                bar.update()
    return out


def encode_png(image_uint8: np.ndarray) -> bytes:
    """Returns uint8 [height, width, 1 or 3] as a PNG file."""
    encoded = io.BytesIO()
    Image.fromarray(image_uint8[..., 0] if image_uint8.shape[-1] == 1 else image_uint8).save(encoded, 'PNG')
    return encoded.getvalue()
