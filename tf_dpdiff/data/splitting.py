"""Which images are held out where a source has no split of its own, and whose images they are."""

from collections.abc import Callable, Iterator, Sequence
import hashlib
import math
import pathlib
import unicodedata

import numpy as np

from tf_dpdiff.data import owner_names

# Sets the hashes of this split apart from those that anybody else makes of the same images or owners.
_SALT = b'tf_dpdiff: held out or trained on?\0'
_POSITION_BYTES = 8


def position(*unit_id: bytes) -> int:
    """Returns the position of a unit in [0, 2**64): the first bytes of the SHA-256 of its id, given in parts."""
    digest = hashlib.sha256(_SALT)
    for part in unit_id:
        digest.update(part)
    return int.from_bytes(digest.digest()[:_POSITION_BYTES], 'big')


def image_position(image: bytes, label: int) -> int:
    """Returns the position of an image that is known by nothing but its bytes and its label."""
    return position(image, int(label).to_bytes(8, 'big'))


def owner_positions(owners: np.ndarray) -> np.ndarray:
    """Returns the position of the owner of each image, uint64 [images].

    Args:
      owners: Numbers or names [images].
    """
    different, inverse = np.unique(owners, return_inverse=True)
    positions = [position(name.encode('utf-8', 'surrogatepass')) for name in _names(different)]
    return np.array(positions, np.uint64)[inverse]


def split(
    source: str, labels: np.ndarray, positions: np.ndarray, class_names: Sequence[str], held_out_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Splits images in two; each unit decides for itself on which side it is.

    A unit is held out where its position is below held_out_fraction of the range. So the side of a unit depends on
    nothing but the unit: adding or removing another one, which is what neighbouring data sets differ in, moves nobody,
    and what holds for the training images holds for the whole file or folder. The share that is held out is therefore
    about held_out_fraction, not exactly, and neither is it the same in each class.

    Args:
      source: What the images are called in an error.
      labels: Whole numbers [images].
      positions: Of the unit of each image, uint64 [images]; images of one position are on one side.
      class_names: One a class.
      held_out_fraction: In (0, 1): about the share of the units.

    Returns:
      The indices of the training and of the held-out images, int64.

    Raises:
      ValueError: if a class would be without an image on one side; names the source and the class.
    """
    check_fraction(held_out_fraction)
    is_held_out = positions < np.uint64(math.ceil(held_out_fraction * 2 ** (8 * _POSITION_BYTES)))
    train, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    for part, rows in (('trained on', train), ('held out', held_out)):
        counts = np.bincount(labels[rows], minlength=len(class_names))
        if counts.all():
            continue
        label = int(counts.argmin())
        of_class = positions[labels == label]
        if len(np.unique(of_class)) < 2:
            raise ValueError(
                f'{source}: class {class_names[label]!r} has too few images to hold one out: '
                'images of one owner and identical images stay together.'
            )
        raise ValueError(
            f'{source}: no image of class {class_names[label]!r} would be {part} with '
            f'held_out_fraction={held_out_fraction}; choose another held_out_fraction, or say the parts yourself.'
        )
    return train, held_out


def check_fraction(held_out_fraction: float) -> None:
    """Checks the share of units that are held out.

    Raises:
      ValueError: if it is not in (0, 1).
    """
    if not 0.0 < held_out_fraction < 1.0:
        raise ValueError(f'held_out_fraction must be in (0, 1), got {held_out_fraction}.')


def check_owners(owners: np.ndarray, name_of: Callable[[int], str]) -> None:
    """Checks that each image has an owner, and that two owners are two people, see `owner_problems`.

    Raises:
      ValueError: names the first image of which that is not so, and says what to do.
    """
    problem = next(owner_problems(owners, name_of), None)
    if problem:
        raise ValueError(problem)


def owner_problems(owners: np.ndarray, name_of: Callable[[int], str], *, shows_names: bool = True) -> Iterator[str]:
    """Yields what is wrong with the owners of images: each image needs one, and two owners must be two people.

    Images that say '', 'nan' or -1 where an owner is missing would count as the images of one owner, who would be
    protected, while each of the people behind them would not be. Nor would a person whose images stand under two
    spellings of a name. Nothing is stripped or joined here: two spellings may be two people just as well, and joining
    them would make a unit of both, of which each is only a part.

    Args:
      owners: Numbers or names [images].
      name_of: From an index of owners to what the image is called in an error.
      shows_names: Whether names of owners may be shown.

    Yields:
      A line for each image whose owner is negative or stands for a missing one, and for the first image of each owner
      whose name is surrounded by white space or is another spelling of one that is there, by white space, case or
      Unicode; or one, if owners are neither whole numbers nor names. It says what to do.
    """
    if owners.dtype.kind in 'US':
        yield from _problems_of_names(owners, name_of, shows_names)
    elif owners.dtype.kind in 'iuf':
        for row in np.flatnonzero(~(owners >= 0)).tolist():  # Also where it is no number.
            yield _nobody(name_of(row), owners[row].item(), shows_names)
    if owners.dtype.kind not in 'iuUS' and len(owners):
        yield f'{name_of(0)}: owners must be one whole number or name an image, got {owners.dtype}; {_cure(owners)}.'


def _problems_of_names(owners: np.ndarray, name_of: Callable[[int], str], shows_names: bool) -> Iterator[str]:
    different, rows, inverse = np.unique(owners, return_index=True, return_inverse=True)
    # By the first image of each, in the order of images.
    names = sorted(zip(rows.tolist(), range(len(different)), _names(different)))
    keys = [owner_names.key(name) for _, _, name in names]
    first_of: dict[str, tuple[int, str]] = {}
    numbered = owner_names.prefixes(keys)
    for key, (row, number, name) in zip(keys, names):
        if owner_names.is_nobody(key, numbered):
            for each in np.flatnonzero(inverse == number).tolist():
                yield _nobody(name_of(each), owners[each].item(), shows_names)
            continue
        doubt = owner_names.doubt(name)
        if doubt:
            yield f'{name_of(row)} names its owner{f" {name!r}" if shows_names else ""}, which {doubt}.'
            continue
        first, other = first_of.setdefault(key, (row, name))
        if first != row:
            yield _two_spellings((name_of(row), name_of(first)), (name, other), shows_names)


def _two_spellings(images: tuple[str, str], names: tuple[str, str], shows_names: bool) -> str:
    one, other = (repr(name) for name in names)
    if unicodedata.normalize('NFC', one) == unicodedata.normalize('NFC', other):  # They look the same.
        one, other = (ascii(name) for name in names)
    said = (
        f'names its owner {one}, and {images[1]} {other}: they' if shows_names else f'and {images[1]} name owners who'
    )
    return (
        f'{images[0]} {said} differ in white space, case or spelling alone. Give one person one name, and two people '
        'other names, or a number each.'
    )


def _nobody(image: str, owner, shows_names: bool) -> str:
    cure = '' if isinstance(owner, (int, float)) else " Where it is somebody's name, number the owners."
    shown = f': {owner!r}' if shows_names else ''
    return (
        f'{image} names no owner{shown}; each image needs a name or a number from 0, or the images of several people '
        f'would count as those of one.{cure}'
    )


def _cure(owners: np.ndarray) -> str:
    """Returns advice on owners that are neither whole numbers nor texts."""
    if owners.dtype.kind != 'f':
        return 'store texts' + (', such as owners.astype(str)' if owners.dtype.kind == 'O' else '')
    if owners.max() >= 2 ** (np.finfo(owners.dtype).nmant + 1):
        return (
            'such large ones are rounded, and may be those of several people: take them from where they are whole '
            'numbers or texts'
        )
    return 'store owners.astype(numpy.int64)' if (owners == np.floor(owners)).all() else 'no owner is a fraction'


def check_owners_apart(
    source: str,
    train: np.ndarray,
    held_out: np.ndarray,
    files: tuple[Sequence[pathlib.Path], Sequence[pathlib.Path]] | None = None,
) -> None:
    """Checks that nobody owns images on both sides where each side is given.

    Args:
      source: What the images are called in an error.
      train: Owners of the training images, numbers or names.
      held_out: Owners of the held-out images.
      files: Of the images of both, by which to tell of owners whose names may not be shown; None: names may.

    Raises:
      ValueError: names one owner who does, in whatever spelling.
    """
    trained, others = ({owner_names.key(name): name for name in _names(np.unique(part))} for part in (train, held_out))
    shared = sorted(set(trained) & set(others))
    if not shared:
        return
    one, other = trained[shared[0]], others[shared[0]]
    if files:
        first, second = (
            of_part[_names(part).index(name)] for of_part, part, name in zip(files, (train, held_out), (one, other))
        )
        spelt = f'the one of {first} and {second}'
    else:
        spelt = repr(one) if one == other else f'{one!r}, written {other!r} among the held-out ones'
    raise ValueError(
        f'{source}: {len(shared)} owner(s) have both training and held-out images, such as {spelt}: '
        'nobody may be on both sides.'
    )


def _names(owners: np.ndarray) -> list[str]:
    """Returns owners as texts."""
    return [
        owner.decode('utf-8', 'backslashreplace') if isinstance(owner, bytes) else str(owner)
        for owner in owners.tolist()
    ]
