"""Arrays of an .npz file, the shape of the images without their pixels."""

import dataclasses
import pathlib
from typing import Iterator, Optional, Tuple
import zipfile
import zlib

import numpy as np

from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import splitting

_READ_BYTES = 2**24  # At a time.
_ERRORS = (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True, eq=False)
class NpzArrays:
    """What an .npz file holds but for the pixels.

    Attributes:
      image_shape: (height, width, channels).
      labels: int32 [images].
      owners: Numbers or names [images], or None.
      class_names: One a class.
    """
    image_shape: Tuple[int, int, int]
    labels: np.ndarray
    owners: Optional[np.ndarray]
    class_names: Tuple[str, ...]


def read_arrays(file: pathlib.Path) -> NpzArrays:
    """Reads the small arrays of a file, and the header of the images.

    Raises:
      ValueError: if the file does not hold what it should; names the file and what is wrong.
    """
    try:
        with zipfile.ZipFile(file) as archive, archive.open('images.npy') as member:
            shape, _, dtype = _read_header(member)
        with np.load(file, allow_pickle=False) as arrays:
            labels = arrays['labels']
            owners = arrays['owners'] if 'owners' in arrays else None
            names = tuple(map(str, arrays['class_names'])) if 'class_names' in arrays else None
    except _ERRORS as error:
        raise _unreadable(file, error) from error
    if dtype != np.uint8 or len(shape) not in (3, 4):
        raise ValueError(f'{file}: images must be uint8 [images, height, width, channels], got {dtype} {list(shape)}.')
    if labels.shape != shape[:1]:
        raise ValueError(f'{file}: {shape[0]} images but labels of shape {labels.shape}.')
    if not len(labels):
        raise ValueError(f'{file} holds no images.')
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > len(labels):
        raise ValueError(f'{file}: labels must be whole numbers [images] from 0.')
    if owners is not None and (owners.shape != labels.shape or owners.dtype.kind not in 'iuUS'):
        raise ValueError(f'{file}: owners must be one whole number or name an image, got {owners.dtype} '
                         f'{list(owners.shape)} for {len(labels)} labels.')
    if owners is not None:
        splitting.check_owners(owners, lambda row: f'{file}: image {row}')
    names = names or tuple(str(label) for label in range(int(labels.max()) + 1))
    if labels.max() >= len(names):
        raise ValueError(f'{file}: labels must be in [0, {len(names)}), one of `class_names` each, got up to '
                         f'{labels.max()}.')
    return NpzArrays((*shape[1:], 1)[:3], labels.astype(np.int32), owners, names)


def read_images(file: pathlib.Path, rows: np.ndarray) -> np.ndarray:
    """Returns the images of some rows, uint8 [rows, height, width, channels].

    Raises:
      ValueError: if the pixels cannot be read; names the file.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images = arrays['images'][rows]
    except (*_ERRORS, IndexError) as error:
        raise _unreadable(file, error) from error
    return images[..., None] if images.ndim == 3 else images


def pixels(file: pathlib.Path) -> Iterator[bytes]:
    """Yields the pixels of each image, in their order, without keeping them.

    Raises:
      ValueError: if the pixels cannot be read; names the file.
    """
    try:
        with zipfile.ZipFile(file) as archive, archive.open('images.npy') as member:
            shape, fortran_order, _ = _read_header(member)
            size = int(np.prod(shape[1:]))
            num_left, step = shape[0], max(1, _READ_BYTES // max(1, size))
            while num_left and not fortran_order:
                count = min(step, num_left)
                content = member.read(count * size)
                if len(content) != count * size:
                    raise EOFError(f'{num_left} images or fewer are missing')
                yield from (content[start:start + size] for start in range(0, len(content), size))
                num_left -= count
            member.read(0 if fortran_order else 1)  # At its end the checksum is compared.
    except _ERRORS as error:
        raise _unreadable(file, error) from error
    if fortran_order:  # The pixels of an image do not lie together.
        yield from (image.tobytes() for image in read_images(file, np.arange(shape[0])))


def _read_header(member):
    """Returns shape, whether the first axis is the innermost, and dtype; the file is then at its first pixel."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


def _unreadable(file: pathlib.Path, error: Exception) -> ValueError:
    return ValueError(
        f'{file} is not an .npz file with the arrays `images` and `labels`: {images_lib.one_line(error)}.')
