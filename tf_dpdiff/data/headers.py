"""What the header of a picture tells without its pixels: whether it is one, and of which shape the image will be."""

from typing import BinaryIO

import numpy as np
from PIL import ExifTags
from PIL import Image

from tf_dpdiff.data import images as images_lib

_FORMATS = ('BMP', 'JPEG', 'PNG')  # As `images.decode` takes them.
_GREY, _COLOUR = ('1', 'L', 'LA'), ('P', 'RGB', 'RGBA', 'PA')
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width.
_PNG_START, _PNG_DEPTH = b'\x89PNG\r\n\x1a\n', 24


def read_shape(file: BinaryIO, source: str) -> tuple[int, int, int]:
    """Returns the shape that `images.decode` will give a PNG, JPEG or BMP file, from its header.

    Args:
      file: The file, at its beginning.
      source: What the file is called in an error.

    Returns:
      (height, width, channels) with 1 or 3 channels.

    Raises:
      ValueError: names the source and what is wrong, as far as the header tells.
    """
    start = file.read(_PNG_DEPTH + 1)
    file.seek(0)
    if start[:8] == _PNG_START and start[_PNG_DEPTH:] == b'\x10':
        raise ValueError(f'{source} has 16 bits a channel; convert it to 8.')
    try:
        with Image.open(file, formats=_FORMATS) as image:
            # Asked by the picture's own method, a PNG file would be decoded for what may stand behind its pixels.
            width, height, mode, exif = *image.size, image.mode, Image.Image.getexif(image)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f'{source} is no PNG, JPEG or BMP image.') from error
    except Exception as error:
        # What a decoder raises on a damaged file is nowhere listed.
        raise ValueError(f'{source} is a damaged image: {images_lib.one_line(error)}.') from error
    if mode not in _GREY + _COLOUR:
        raise ValueError(f'{source} is of mode {mode}; convert it to 8-bit grey or RGB.')
    if exif.get(ExifTags.Base.Orientation) in _SIDEWAYS:
        height, width = width, height
    return height, width, 1 if mode in _GREY else 3


def check_shape(
    file: BinaryIO,
    source: str,
    image_shape: tuple[int, int, int],
    first: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
) -> None:
    """Checks by its header that an image will be of the shape of the first one.

    Args:
      file: As `read_shape` has it.
      source: What the file is called in an error.
      image_shape: (height, width, channels) of the first image, after what the last two arguments do to it.
      first: What the first one is called in an error.
      image_size: As `images.fit` has it.
      channels: As `images.fit` has it.

    Raises:
      ValueError: names both and their shapes, or says why the header cannot be read.
    """
    height, width, depth = read_shape(file, source)
    shape = (image_size or height, image_size or width, channels or depth)
    # One byte seen as an array of that shape.
    images_lib.check_shape(np.broadcast_to(np.uint8(0), shape), image_shape, source, first)
