"""Which images are held out where a source has no split of its own, and whose images they are."""

import hashlib
import math
from typing import Callable, List, Sequence, Tuple

import numpy as np

# Sets the hashes of this split apart from those that anybody else makes of the same images or owners.
_SALT = b'tf_dpdiff: held out or trained on?\0'
_POSITION_BYTES = 8


def position(*unit_id: bytes) -> int:
    """Returns where a unit lies in [0, 2**64): the first bytes of the SHA-256 of its id, which is given in parts."""
    digest = hashlib.sha256(_SALT)
    for part in unit_id:
        digest.update(part)
    return int.from_bytes(digest.digest()[:_POSITION_BYTES], 'big')


def image_position(image: bytes, label: int) -> int:
    """Returns where an image lies that is known by nothing but its bytes and its label."""
    return position(image, int(label).to_bytes(8, 'big'))


def owner_positions(owners: np.ndarray) -> np.ndarray:
    """Returns where the owner of each image lies, uint64 [images].

    Args:
      owners: Numbers or names [images].
    """
    different, inverse = np.unique(owners, return_inverse=True)
    positions = [position(name.encode('utf-8', 'surrogatepass')) for name in _names(different)]
    return np.array(positions, np.uint64)[inverse]


def split(source: str, labels: np.ndarray, positions: np.ndarray, class_names: Sequence[str],
          held_out_fraction: float) -> Tuple[np.ndarray, np.ndarray]:
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
    is_held_out = positions < np.uint64(math.ceil(held_out_fraction * 2**(8 * _POSITION_BYTES)))
    train, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    for part, rows in (('trained on', train), ('held out', held_out)):
        counts = np.bincount(labels[rows], minlength=len(class_names))
        if counts.all():
            continue
        label = int(counts.argmin())
        of_class = positions[labels == label]
        if len(np.unique(of_class)) < 2:
            raise ValueError(f'{source}: class {class_names[label]!r} has {len(of_class)} images, too few to hold one '
                             'out: images of one owner and identical images stay together.')
        raise ValueError(f'{source}: no image of class {class_names[label]!r} would be {part} with '
                         f'held_out_fraction={held_out_fraction}; choose another held_out_fraction.')
    return train, held_out


def check_fraction(held_out_fraction: float) -> None:
    """Checks the share of units that are held out.

    Raises:
      ValueError: if it is not in (0, 1).
    """
    if not 0.0 < held_out_fraction < 1.0:
        raise ValueError(f'held_out_fraction must be in (0, 1), got {held_out_fraction}.')


def check_owners(owners: np.ndarray, name_of: Callable[[int], str]) -> None:
    """Checks that each image has an owner.

    Images that say '' or -1 where an owner is missing would count as the images of one owner, who would be protected,
    while each of the people behind them would not be.

    Args:
      owners: Numbers or names [images].
      name_of: From an index of owners to what the image is called in an error.

    Raises:
      ValueError: if a name is empty or blank or a number negative; names the first such image.
    """
    if owners.dtype.kind in 'US':
        is_unnamed = np.char.str_len(np.char.strip(owners)) == 0
    else:
        is_unnamed = owners < 0
    if is_unnamed.any():
        row = int(is_unnamed.argmax())
        raise ValueError(f'{name_of(row)} names no owner: {owners[row].item()!r}; each image needs a name or a number '
                         'from 0, or the images of several people would count as those of one.')


def check_owners_apart(source: str, train: np.ndarray, held_out: np.ndarray) -> None:
    """Checks that nobody owns images on both sides where each side is given.

    Args:
      source: What the images are called in an error.
      train: Owners of the training images, numbers or names.
      held_out: Owners of the held-out images.

    Raises:
      ValueError: names one owner who does.
    """
    shared = sorted(set(_names(np.unique(train))) & set(_names(np.unique(held_out))))
    if shared:
        raise ValueError(f'{source}: {len(shared)} owner(s) have both training and held-out images, such as '
                         f'{shared[0]!r}: nobody may be on both sides.')


def _names(owners: np.ndarray) -> List[str]:
    """Returns owners as texts."""
    return [
        owner.decode('utf-8', 'backslashreplace') if isinstance(owner, bytes) else str(owner)
        for owner in owners.tolist()
    ]


def check_classes(source: str, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Checks that labels are in range and that each class has a training image.

    Raises:
      ValueError: names the source, and the label or the class.
    """
    if not len(labels):
        raise ValueError(f'{source} holds no images.')
    if labels.min() < 0 or labels.max() >= len(class_names):
        row = int(np.flatnonzero((labels < 0) | (labels >= len(class_names)))[0])
        raise ValueError(f'{source}: image {row} has label {labels[row]}, which is not in [0, {len(class_names)}).')
    counts = np.bincount(labels, minlength=len(class_names))
    if not counts.all():
        raise ValueError(f'{source}: class {class_names[int(counts.argmin())]!r} has no training image.')
