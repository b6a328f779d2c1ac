"""Pictures in files: what their headers tell without a pixel, and their pixels as uint8 arrays.

Both go by the same header, so that a plan refuses what a run would.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import io
import threading
from typing import BinaryIO
import warnings

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps

from tf_dpdiff.data import images as images_lib

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')

FORMATS = ('BMP', 'JPEG', 'PNG', 'TIFF', 'WEBP')
_PAGED = ('TIFF', 'WEBP')  # Of which one file may be several pictures.
_GREY, _COLOUR, _DEEP = ('1', 'L', 'LA'), ('P', 'RGB', 'RGBA', 'PA'), ('I;16', 'I;16B')
_ALPHA = ('LA', 'PA', 'RGBA')
_ORIENTATION = ExifTags.Base.Orientation  # Among the tags of EXIF, all that changes a pixel.
_SIDEWAYS = (5, 6, 7, 8)  # Orientations that exchange height and width.
_PNG_START, _PNG_DEPTH = b'\x89PNG\r\n\x1a\n', 24
_TIFF_STARTS = (b'II', b'MM')
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_DEEP_BITS = 16
# What Pillow warns of and no pixel depends on: other tags, and what may follow the first picture of a file.
_HARMLESS = (
    f'Metadata Warning|.*Skipping tag (?!{_ORIENTATION.value}$)|Invalid APNG|Image appears to be a malformed MPO file'
)


class WarningFilters:
    """A context in which filters of warnings hold, in all threads: the first one in sets them, the last one out takes
    them back.

    Args:
      set_filters: Sets them.
    """

    def __init__(self, set_filters: Callable[[], None]):
        self._set_filters = set_filters
        self._lock, self._num_inside = threading.Lock(), 0
        self._before: warnings.catch_warnings | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_inside:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                self._set_filters()
            self._num_inside += 1

    def __exit__(self, *error) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                assert self._before is not None
                self._before.__exit__(*error)


def _make_errors_of_warnings() -> None:
    """Makes errors of Pillow's warnings, but for the harmless ones, which are silenced."""
    for category in (UserWarning, Image.DecompressionBombWarning):
        warnings.filterwarnings('error', category=category, module=r'PIL\.')
    warnings.filterwarnings('ignore', message=_HARMLESS, category=UserWarning, module=r'PIL\.')


_pillow_warnings = WarningFilters(_make_errors_of_warnings)


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """What the header of a picture tells.

    Attributes:
      height: In pixels, of the picture as it is upright.
      width: In pixels.
      channels: 1 (grey) or 3 (colour) that its pixels come to.
      bits: 8 or less, or 16, a channel.
      has_alpha: Whether pixels may be transparent.
      has_palette: Whether pixels are numbers of colours.
    """

    height: int
    width: int
    channels: int
    bits: int = 8
    has_alpha: bool = False
    has_palette: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels


def read_header(file: BinaryIO, source: str) -> ImageHeader:
    """Reads the header of a PNG, JPEG, TIFF, BMP or WebP file.

    Args:
      file: The file, at its beginning.
      source: What the file is called in an error.

    Raises:
      ValueError: names the source and what is wrong, as far as the header tells: no such picture, damaged, more pixels
        than Pillow takes for honest, CMYK and other modes, 16 bits a channel of colour, several pages.
    """
    start = file.read(_PNG_DEPTH + 1)
    file.seek(0)
    if not start:
        raise ValueError(f'{source} is an empty file.')
    with _errors_of(source, start), Image.open(file, formats=FORMATS) as image:
        # Asked by the picture's own method, a PNG file would be decoded for what may stand behind its pixels.
        orientation = Image.Image.getexif(image).get(_ORIENTATION)
        (width, height), mode, tags = image.size, image.mode, getattr(image, 'tag_v2', {})
        num_pages = getattr(image, 'n_frames', 1) if image.format in _PAGED else 1
        has_alpha = mode in _ALPHA or 'transparency' in image.info
        is_upright = image.format == 'TIFF'  # Pillow tells the size of the others as they are stored.
    if num_pages != 1:
        raise ValueError(f'{source} has {num_pages} pages; save the one that is meant as a file of its own.')
    is_deep = start[:8] == _PNG_START and start[_PNG_DEPTH:] == b'\x10' or max(tags.get(_TIFF_BITS, (8,))) > 8
    if is_deep and mode in (*_GREY, *_COLOUR):
        raise ValueError(f'{source} has 16 bits a channel and is not plain grey; convert it to 8.')
    if mode not in (*_GREY, *_COLOUR, *_DEEP):
        raise ValueError(f'{source} is of mode {mode}; convert it to 8-bit grey or RGB.')
    if mode in _DEEP and (has_alpha or tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO):
        odd = 'a transparent grey level' if has_alpha else 'white stored as 0'
        raise ValueError(f'{source} has 16 bits a channel and {odd}; save it anew without.')
    if not is_upright and orientation in _SIDEWAYS:
        height, width = width, height
    channels, bits = 3 if mode in _COLOUR else 1, _DEEP_BITS if mode in _DEEP else 8
    return ImageHeader(height, width, channels, bits, has_alpha, mode in ('P', 'PA'))


def read_shape(file: BinaryIO, source: str, fit: images_lib.Fit = images_lib.Fit()) -> tuple[int, int, int]:
    """Returns the shape that `decode` gives a file, (height, width, channels), from its header.

    Args:
      file: As `read_header` has it.
      source: What the file is called in an error.
      fit: What images are made alike by.

    Raises:
      ValueError: as `read_header` and, of grey levels of 16 bits, `decode` do.
    """
    header = read_header(file, source)
    _check_depth(header, source, fit)
    return header.height, header.width, fit.channels or header.channels


def check_shape(
    file: BinaryIO, source: str, image_shape: tuple[int, int, int], first: str, fit: images_lib.Fit = images_lib.Fit()
) -> None:
    """Checks by its header that an image will be of the shape of the first one.

    Args:
      file: As `read_header` has it.
      source: What the file is called in an error.
      image_shape: (height, width, channels) of the first image, after what `fit` does to it.
      first: What the first one is called in an error.
      fit: What images are made alike by.

    Raises:
      ValueError: names both and their shapes, or says why the header cannot be read.
    """
    shape = fit.shape_of(read_shape(file, source, fit))
    # One byte seen as an array of that shape.
    images_lib.check_shape(np.broadcast_to(np.uint8(0), shape), image_shape, source, first)


def decode(
    encoded: bytes, source: str, fit: images_lib.Fit = images_lib.Fit(), *, drop_alpha: bool = False
) -> np.ndarray:
    """Decodes a PNG, JPEG, TIFF, BMP or WebP file.

    Palettes become colour, black-and-white becomes grey, opaque alpha is dropped, and a photograph is turned as its
    EXIF orientation says. What would lose information unseen is refused: transparency without a background, 16 bits a
    channel without a window, several pages, CMYK, EXIF data too damaged to tell the orientation. So is a picture of
    more pixels than Pillow takes for an honest one.

    Args:
      encoded: The bytes of the file.
      source: What the file is called in an error.
      fit: Its channels, background and window; the size stays as it is (`fit.apply` brings the result to it).
      drop_alpha: Take the colours of transparent pixels as they are.

    Returns:
      uint8 [height, width, channels] with 1 or 3 channels.

    Raises:
      ValueError: names the source and what is wrong.
    """
    header = read_header(io.BytesIO(encoded), source)
    _check_depth(header, source, fit)
    with _errors_of(source, encoded), Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if header.bits == _DEEP_BITS:
        assert fit.window is not None  # Checked above.
        pixels = to_window(np.asarray(image), *fit.window)[..., None]
        return images_lib.to_channels(pixels, fit.channels or 1)
    alpha = None
    if header.has_alpha or 'transparency' in image.info:
        image = image.convert('RGBA')
        alpha = np.asarray(image.getchannel('A'))[..., None]
    pixels = np.asarray(image.convert('RGB' if header.channels == 3 else 'L'))
    pixels = pixels.reshape([*pixels.shape[:2], header.channels])
    pixels = images_lib.to_channels(pixels, fit.channels or header.channels)
    if alpha is None or drop_alpha or alpha.min() == 255:
        return pixels
    if fit.background is None:
        raise ValueError(
            f'{source} has transparent pixels; put it on a background, or say which: background = 255, for instance.'
        )
    return _blend(pixels, alpha, fit.backing(pixels.shape[-1]))


def to_window(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps grey levels linearly, `low` to 0 and `high` to 255: rounded, half a level up, and clipped.

    Args:
      levels: Numbers of any shape.
      low: At or below it is 0.
      high: At or above it is 255; low = high is a threshold: what is above is 255.

    Returns:
      uint8 of the same shape.

    Example:
        >>> to_window(np.array([0, 100, 101, 150, 200, 300]), 100, 200)
        array([  0,   0,   3, 128, 255, 255], dtype=uint8)
    """
    levels = levels.astype(np.float64)
    if low == high:
        return np.where(levels > low, 255, 0).astype(np.uint8)
    return np.floor(np.clip((levels - low) * 255.0 / (high - low), 0.0, 255.0) + 0.5).astype(np.uint8)


def _blend(pixels: np.ndarray, alpha: np.ndarray, backing: np.ndarray) -> np.ndarray:
    """Returns pixels in front of a background, rounded."""
    alpha = alpha.astype(np.int32)
    return ((pixels * alpha + backing * (255 - alpha) + 127) // 255).astype(np.uint8)


def _check_depth(header: ImageHeader, source: str, fit: images_lib.Fit) -> None:
    if header.bits == _DEEP_BITS and fit.window is None:
        raise ValueError(
            f'{source} has 16 bits a channel; convert it to 8, or say which grey levels become 0 and 255: '
            'window = (0, 4095), for instance.'
        )
    if header.bits != _DEEP_BITS and fit.window is not None:
        raise ValueError(f'{source} has 8 bits a channel, and window={fit.window} is for 16-bit grey images.')


@contextlib.contextmanager
def _errors_of(source: str, start: bytes) -> Iterator[None]:
    """Turns whatever Pillow raises, or warns of, into one line that names the source; start: of the file."""
    try:
        with _pillow_warnings:
            yield
    except Image.UnidentifiedImageError as error:
        raise ValueError(f'{source} is no PNG, JPEG, TIFF, BMP or WebP image.') from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f'{source} is too large ({images_lib.one_line(error).split(",")[0]}); shrink it.') from error
    except UserWarning as error:
        if start[:2] in _TIFF_STARTS:  # Its tags are the header.
            raise ValueError(f'{source} is a damaged image: {images_lib.one_line(error)}.') from error
        raise ValueError(
            f'{source} has damaged metadata ({images_lib.one_line(error)}), so that it is not known which way is up; '
            'turn it upright and save it anew without them.'
        ) from error
    except Exception as error:
        # What a decoder raises on a damaged file is nowhere listed.
        raise ValueError(f'{source} is a damaged image: {images_lib.one_line(error)}.') from error
