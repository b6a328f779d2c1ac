"""Arrays of an .npz file, the shape of the images without their pixels."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import pathlib
import zipfile
import zlib

import numpy as np

from tf_dpdiff.data import arrays as arrays_lib
from tf_dpdiff.data import classes
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import splitting

KNOWN = ('images', 'labels', 'owners', 'class_names')
_PASSED_OVER = ('seeds',)  # Of samples, which may be public images; bin/sample writes them.

_READ_BYTES = 2**24  # At a time.
_ERRORS = (LookupError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True, eq=False)
class NpzArrays:
    """What an .npz file holds but for the pixels.

    Attributes:
      image_shape: (height, width, channels).
      labels: int32 [images].
      owners: Numbers or names [images], or None.
      class_names: One a class.
    """

    image_shape: tuple[int, int, int]
    labels: np.ndarray
    owners: np.ndarray | None
    class_names: tuple[str, ...]


def read_arrays(file: pathlib.Path) -> NpzArrays:
    """Reads the small arrays of a file, and the header of the images.

    Raises:
      ValueError: if the file does not hold what it should, or anything else; names the file and what is wrong.
    """
    (shape, _, dtype), values = _read_all_but_images(file)
    labels, owners = values['labels'], values.get('owners')
    if dtype != np.uint8 or len(shape) not in (3, 4):
        raise ValueError(f'{file}: images must be uint8 [images, height, width, channels], got {dtype} {list(shape)}.')
    if labels.shape != shape[:1]:
        raise ValueError(
            f'{file}: {shape[0]} images but labels of shape {labels.shape}{arrays_lib.cure_of_labels(labels)}.'
        )
    if labels.dtype.kind not in 'iu':
        raise ValueError(
            f'{file}: labels must be whole numbers [images] from 0, got {labels.dtype}'
            f'{arrays_lib.cure_of_labels(labels)}.'
        )
    names = classes.names_of(str(file), labels, _class_names(file, values.get('class_names')))
    if owners is not None:
        if owners.shape != labels.shape:
            raise ValueError(
                f'{file}: owners must be one whole number or name an image, got {owners.dtype} '
                f'{list(owners.shape)} for {len(labels)} labels.'
            )
        splitting.check_owners(owners, lambda row: f'{file}: image {row}')
    height, width, channels = (*shape[1:], 1)[:3]
    return NpzArrays((height, width, channels), labels.astype(np.int32), owners, names)


def _read_all_but_images(file: pathlib.Path) -> tuple[arrays_lib.ArrayHeader, dict[str, np.ndarray]]:
    """Returns the header of the images, and the other arrays."""
    with _errors_of(file), zipfile.ZipFile(file) as archive:
        members = archive.namelist()
    _check_names(file, members)
    headers = {}
    for name in KNOWN:
        if f'{name}.npy' in members:
            with _errors_of(file), zipfile.ZipFile(file) as archive, archive.open(f'{name}.npy') as member:
                headers[name] = arrays_lib.read_header(member)
            arrays_lib.check_holds_values(f'{file}: the array `{name}`', name, headers[name])
    with _errors_of(file), np.load(file, allow_pickle=False) as arrays:
        for name in ('images', 'labels'):
            if name not in headers:
                raise ValueError(f'there is no `{name}`')
        return headers['images'], {name: arrays[name] for name in headers if name != 'images'}


def _check_names(file: pathlib.Path, members: Sequence[str]) -> None:
    """Refuses arrays that nothing would read: the people of an array `owner` would not be protected."""
    for member in members:
        name = member[: -len('.npy')] if member.endswith('.npy') else member
        if name == member or name not in (*KNOWN, *_PASSED_OVER):
            near = arrays_lib.nearest(name, KNOWN)
            meant = f': is it `{near}`? Rename' if near else ': rename'
            raise ValueError(
                f'{file} holds `{name}`, which nothing reads{meant} it, or leave it out; what is read is '
                '`images`, `labels`, `owners` and `class_names`.'
            )
    if len(set(members)) != len(members):
        twice = next(member for member in members if members.count(member) > 1)
        raise ValueError(f'{file} holds {twice} twice.')


def _class_names(file: pathlib.Path, names: np.ndarray | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind not in 'iuUS':
        raise ValueError(f'{file}: class_names must be one text a class, got {names.dtype} {list(names.shape)}.')
    if names.dtype.kind == 'S':
        names = np.char.decode(names, 'utf-8', 'surrogateescape')
    return tuple(map(str, names.tolist()))


def read_images(file: pathlib.Path, rows: np.ndarray) -> np.ndarray:
    """Returns the images of some rows, uint8 [rows, height, width, channels].

    Raises:
      ValueError: if the pixels cannot be read; names the file.
    """
    with _errors_of(file), np.load(file, allow_pickle=False) as arrays:
        images = arrays['images'][rows]
    return images[..., None] if images.ndim == 3 else images


def pixels(file: pathlib.Path) -> Iterator[bytes]:
    """Yields the pixels of each image, in their order, without keeping them.

    Raises:
      ValueError: if the pixels cannot be read; names the file.
    """
    with _errors_of(file), zipfile.ZipFile(file) as archive, archive.open('images.npy') as member:
        shape, fortran_order, _ = arrays_lib.read_header(member)
        size = int(np.prod(shape[1:]))
        num_left, step = shape[0], max(1, _READ_BYTES // max(1, size))
        while num_left and not fortran_order:
            count = min(step, num_left)
            content = member.read(count * size)
            if len(content) != count * size:
                raise EOFError(f'{num_left} images or fewer are missing')
            yield from (content[start : start + size] for start in range(0, len(content), size))
            num_left -= count
        member.read(0 if fortran_order else 1)  # At its end the checksum is compared.
    if fortran_order:  # The pixels of an image do not lie together.
        yield from (image.tobytes() for image in read_images(file, np.arange(shape[0])))


@contextlib.contextmanager
def _errors_of(file: pathlib.Path) -> Iterator[None]:
    """Turns whatever a damaged file raises into one line that names it."""
    try:
        yield
    except _ERRORS as error:
        raise ValueError(
            f'{file} is not an .npz file with the arrays `images` and `labels`: {images_lib.one_line(error)}.'
        ) from error
