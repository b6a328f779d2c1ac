"""Which images are held out where a source has no split of its own."""

from typing import Optional, Sequence, Tuple

import numpy as np


def split(source: str, labels: np.ndarray, owners: Optional[np.ndarray], class_names: Sequence[str],
          held_out_fraction: float) -> Tuple[np.ndarray, np.ndarray]:
    """Splits images in two: the same way each time, and so that nobody owns images on both sides.

    Args:
      source: What the images are called in an error.
      labels: Whole numbers [images].
      owners: Numbers or names [images], or None.
      class_names: One a class.
      held_out_fraction: In (0, 1): of the images of each class or, where owners are named, of the owners.

    Returns:
      The indices of the training and of the held-out images, int64.

    Raises:
      ValueError: if a class would be without an image on one side; names the source and the class.
    """
    # Imported here: scikit-learn takes a second that runs on other data need not wait for.
    from sklearn import model_selection  # pylint: disable=g-import-not-at-top
    check_fraction(held_out_fraction)
    if owners is None:
        counts = np.bincount(labels, minlength=len(class_names))
        if counts.min() < 2:
            raise ValueError(f'{source}: class {class_names[int(counts.argmin())]!r} has {counts.min()} images, too '
                             'few to hold one out.')
        try:
            return model_selection.train_test_split(np.arange(len(labels)),
                                                    test_size=held_out_fraction,
                                                    random_state=0,
                                                    stratify=labels)
        except ValueError as error:
            raise ValueError(f'{source}: held_out_fraction={held_out_fraction} of {len(labels)} images leaves too few '
                             f'on one side for {len(class_names)} classes.') from error
    if len(np.unique(owners)) < 2:
        raise ValueError(f'{source}: all images have one owner, so none can be held out.')
    splitter = model_selection.GroupShuffleSplit(1, test_size=held_out_fraction, random_state=0)
    train, held_out = next(splitter.split(labels, groups=owners))
    for part, indices in (('trained on', train), ('held out', held_out)):
        counts = np.bincount(labels[indices], minlength=len(class_names))
        if not counts.all():
            raise ValueError(f'{source}: no image of class {class_names[int(counts.argmin())]!r} belongs to the owners '
                             f'that would be {part}; choose another held_out_fraction.')
    return train, held_out


def check_fraction(held_out_fraction: float) -> None:
    """Checks the share of images that are held out.

    Raises:
      ValueError: if it is not in (0, 1).
    """
    if not 0.0 < held_out_fraction < 1.0:
        raise ValueError(f'held_out_fraction must be in (0, 1), got {held_out_fraction}.')


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
