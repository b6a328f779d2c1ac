"""The classes of a data set: their labels, and names by which samples of them can be asked for and written."""

from collections.abc import Sequence
import unicodedata

import numpy as np

NO_CLASS = 'no_class'  # What samples without a label are called.

# No file, terminal or list of names can be trusted with these: control characters, among them line breaks, and halves
# of characters, which stand for the bytes of a file name that is not UTF-8.
_UNWRITABLE = ('Cc', 'Cs', 'Zl', 'Zp')


def check_text(what: str, text: str) -> None:
    """Checks that a text can stand in a privacy statement, in JSON and in a list of names.

    Args:
      what: What it is, for the error.
      text: The text.

    Raises:
      ValueError: if it is not Unicode or holds control characters.
    """
    if any(unicodedata.category(character) in _UNWRITABLE for character in text):
        raise ValueError(
            f'{what} must be Unicode text without control characters, or neither JSON nor a privacy '
            f'statement could hold it; got {text!r}.'
        )


def check_names(source: str, class_names: Sequence[str]) -> None:
    """Checks that samples of each class can be asked for by its name and written under it.

    Raises:
      ValueError: if a name cannot be written, is that of "no class", or stands for two classes; names the source.
    """
    for name in class_names:
        check_text(f'{source}: the name of a class', name)
        if not name or name != name.strip():
            raise ValueError(
                f'{source}: the name of a class must be neither empty nor begin or end with white space, got {name!r}.'
            )
        if name == NO_CLASS:
            raise ValueError(
                f'{source}: no class can be called {NO_CLASS!r}: that is what samples without a class are called.'
            )
    if len(set(class_names)) != len(class_names):
        twice = next(name for name in class_names if list(class_names).count(name) > 1)
        raise ValueError(f'{source}: two classes are called {twice!r}; their names must differ.')


def names_of(source: str, labels: np.ndarray, class_names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Checks the labels of training images and returns the names of their classes.

    Args:
      source: What the images are called in an error.
      labels: Whole numbers [images], of any size.
      class_names: One a class; None: as many classes as there are different labels, named by their numbers.

    Returns:
      One a class.

    Raises:
      ValueError: if labels do not count from 0 without gaps, or a class has no image; says what to do.
    """
    if class_names is not None:
        names = tuple(map(str, class_names))
        check_labels(source, labels, names)
        return names
    present = _present(source, labels)
    if present[-1] != len(present) - 1:
        if present[0] == 1 and present[-1] == len(present):
            raise ValueError(
                f'{source}: the labels count from 1 (to {present[-1]}) and must count from 0: subtract 1 from each.'
            )
        gap = int(np.flatnonzero(present != np.arange(len(present), dtype=present.dtype))[0])
        raise ValueError(
            f'{source}: the labels have gaps: {len(present):,} different ones, the largest {present[-1]}, '
            f'and no image has the label {gap}. They must count from 0 without gaps; number the classes '
            'anew: numpy.unique(labels, return_inverse=True)[1].'
        )
    return tuple(map(str, range(len(present))))


def check_labels(source: str, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Checks that labels are in range and that each class has a training image.

    Args:
      source: What the images are called in an error.
      labels: Whole numbers [images], of any size.
      class_names: One a class.

    Raises:
      ValueError: names the source, and the label or the class.
    """
    check_range(source, labels, len(class_names))
    present = np.unique(labels)
    if len(present) < len(class_names):
        empty = int(np.setdiff1d(np.arange(len(class_names)), present)[0])
        raise ValueError(f'{source}: class {class_names[empty]!r} has no training image (none has the label {empty}).')


def check_range(source: str, labels: np.ndarray, num_classes: int) -> None:
    """Checks that each label is that of a class.

    Args:
      source: What the images are called in an error.
      labels: Whole numbers [images], of any size.
      num_classes: Labels must be below.

    Raises:
      ValueError: names the source, the image and its label; says where labels seem to count from 1.
    """
    present = _present(source, labels)
    if present[-1] >= num_classes:
        cure = f'there are {num_classes} classes'
        if (present[0], present[-1]) == (1, num_classes):
            cure = 'the labels count from 1: subtract 1 from each'
        row = int(np.flatnonzero(labels >= num_classes)[0])
        raise ValueError(f'{source}: image {row} has label {labels[row]}, which is not in [0, {num_classes}); {cure}.')


def _present(source: str, labels: np.ndarray) -> np.ndarray:
    """Returns the labels that there are, sorted, each once: as many as there are images at most, however large."""
    if not len(labels):
        raise ValueError(f'{source} holds no images.')
    present = np.unique(labels)
    if present[0] < 0:
        row = int(np.flatnonzero(labels < 0)[0])
        raise ValueError(
            f'{source}: image {row} has label {labels[row]}, which is no class: labels must be whole numbers from 0.'
        )
    return present
