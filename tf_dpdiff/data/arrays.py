"""Arrays that a person wrote with NumPy: which there may be, and of which kind, before they are read."""

from collections.abc import Iterable
import difflib
import re
import sys
from typing import NamedTuple

import numpy as np

# Words by which people call the same; the first that is found counts.
_MEANINGS = (
    ('owners', 'owner|patient|subject|person|people|participant|user|client|individual|donor|family|^p?ids?$'),
    ('class_names', 'name|categor'),
    ('labels', 'label|target|class|^y'),
    ('images', 'image|img|pixel|picture|photo|^x'),
)
_CURES = {
    'images': 'make all images of one size and store numpy.stack(images)',
    'labels': 'store labels.astype(numpy.int64)',
    'owners': 'store owners.astype(str), or numbers',
    'class_names': 'store class_names.astype(str)',
}


class ArrayHeader(NamedTuple):
    """What stands before the values of an array in a file.

    Attributes:
      shape: Of the array.
      fortran_order: Whether the first axis is the innermost.
      dtype: Of the values.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def read_header(file) -> ArrayHeader:
    """Reads the header of an open .npy file, which is then at its first value.

    Raises:
      ValueError, EOFError: if there is none.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return ArrayHeader(*read(file))


def check_holds_values(source: str, kind: str, header: ArrayHeader) -> None:
    """Refuses an array of Python objects, which could run any program when it is read.

    Args:
      source: What the array is called in an error.
      kind: 'images', 'labels', 'owners' or 'class_names'.
      header: Of the array.

    Raises:
      ValueError: names the array and the cure.
    """
    if header.dtype.hasobject:
        raise ValueError(f'{source} holds Python objects (dtype {header.dtype}), which are not read; {_CURES[kind]}.')


def cure_of_labels(labels: np.ndarray) -> str:
    """Returns advice on labels that are not one whole number an image, to end a sentence; '' where unknown."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        return '; if there is a column a class, store labels.argmax(axis=1)'
    if labels.dtype.kind in 'US':
        return '; store class_names, labels = numpy.unique(labels, return_inverse=True)'
    if labels.dtype.kind == 'b' or labels.dtype.kind == 'f' and (labels == np.floor(labels)).all():
        return '; store labels.astype(numpy.int64)'
    return ''


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns which of the known names somebody means who writes another one, or None.

    Args:
      name: Such as 'patient_id' or 'train_owner'.
      known: Such as 'owners', or 'train_owners' and 'held_out_owners'.
    """
    known, lowered = list(known), name.lower()
    for kind, words in _MEANINGS:
        if re.search(words, lowered):
            of_kind = [other for other in known if other.endswith(kind)]
            return next(iter(difflib.get_close_matches(lowered, of_kind, 1, 0.0)), None)
    return next(iter(difflib.get_close_matches(lowered, known, 1, 0.5)), None)


def note_unread_owners(source: str, names: Iterable[str], option: str = 'owner_key') -> None:
    """Says on the console, if one of several features seems to name owners, that it is not read.

    Use it where owners are not asked for, and records may well hold what nothing reads.
    """
    for name in sorted(names):
        if nearest(name.rpartition('/')[2], ('owners',)):
            print(
                f'{source}: {name!r} seems to say whose image each is, and is not read: the guarantee is for one '
                f'image, not for a person with all of theirs. {option}={name!r} makes it one for each owner; '
                "unit='one image' says that an image is meant.",
                file=sys.stderr,
            )
            return
