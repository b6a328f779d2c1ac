"""Image data sets in memory: the private images, the public ones and the held-out ones."""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Optional, Tuple
import zipfile
import zlib

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images of one size.

    Attributes:
      name: For the statement and the reports.
      images_uint8: uint8 [images, height, width, channels].
      labels: int32 [images], each in [0, num_classes). Unlabelled public images have the label num_classes, "no class".
      class_names: One a class.
      unit: What the guarantee protects, for the privacy statement, e.g. 'one image' or 'one patient'.
      owners: int [images], each in [0, num_owners): whose image each is. The unit is then an owner, with all of its
        images. None: each image is a unit of its own.
      num_owners: How many owners count as public; some may own no image here. None: the largest owner plus one.
    """
    name: str
    images_uint8: np.ndarray
    labels: np.ndarray
    class_names: Tuple[str, ...]
    unit: str = 'one image'
    owners: Optional[np.ndarray] = None
    num_owners: Optional[int] = None

    def __post_init__(self):
        if self.images_uint8.dtype != np.uint8 or self.images_uint8.ndim != 4:
            raise ValueError(f'data set {self.name!r}: images must be uint8 [images, height, width, channels], got '
                             f'{self.images_uint8.dtype} {list(self.images_uint8.shape)}.')
        if self.labels.dtype.kind not in 'iu':
            raise ValueError(f'data set {self.name!r}: labels must be whole numbers, got {self.labels.dtype}.')
        if self.labels.shape != (len(self.images_uint8),):
            raise ValueError(
                f'data set {self.name!r}: {len(self.images_uint8)} images but labels of shape {self.labels.shape}.')
        if not len(self.images_uint8):
            raise ValueError(f'data set {self.name!r} holds no images.')
        if self.labels.min() < 0 or self.labels.max() > self.num_classes:
            raise ValueError(f'data set {self.name!r}: labels must be in [0, {self.num_classes}), got '
                             f'{self.labels.min()} to {self.labels.max()}.')
        if self.owners is None:
            if self.num_owners is not None:
                raise ValueError(f'data set {self.name!r}: num_owners={self.num_owners} without owners.')
            return
        if self.owners.dtype.kind not in 'iu' or self.owners.shape != self.labels.shape:
            raise ValueError(f'data set {self.name!r}: owners must be one whole number an image, got '
                             f'{self.owners.dtype} {list(self.owners.shape)}.')
        if self.owners.min() < 0 or self.owners.max() >= self.num_units:
            raise ValueError(f'data set {self.name!r}: owners must be in [0, {self.num_units}), got '
                             f'{self.owners.min()} to {self.owners.max()}.')

    def __len__(self) -> int:
        return len(self.images_uint8)

    @property
    def image_shape(self) -> Tuple[int, int, int]:
        """(height, width, channels)."""
        return tuple(self.images_uint8.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_units(self) -> int:
        """Number of units: owners where they are named, else images."""
        if self.owners is None:
            return len(self)
        return int(self.owners.max()) + 1 if self.num_owners is None else self.num_owners

    @functools.cached_property
    def images_by_unit(self) -> Tuple[np.ndarray, np.ndarray]:
        """The images in the order of their units, int64 [images], and where each unit begins, int64 [units + 1]."""
        if self.owners is None:
            return np.arange(len(self)), np.arange(len(self) + 1)
        counts = np.bincount(self.owners, minlength=self.num_units)
        return np.argsort(self.owners, kind='stable'), np.concatenate([[0], np.cumsum(counts)])

    def fingerprint(self) -> str:
        """Returns the SHA-256 of all pixels, labels and owners: PRIVATE, it tells who holds the exact same data set."""
        digest = hashlib.sha256(str((self.images_uint8.shape, self.num_units)).encode())
        digest.update(np.ascontiguousarray(self.images_uint8))
        digest.update(np.ascontiguousarray(self.labels, np.int32))
        if self.owners is not None:
            digest.update(np.ascontiguousarray(self.owners, np.int64))
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class PrivateData:
    """A private training set and real images held out from it.

    Attributes:
      train: The images that the guarantee protects.
      held_out: Real images never trained on, for evaluation.
    """
    train: ImageDataset
    held_out: ImageDataset

    def __post_init__(self):
        for part in (self.train, self.held_out):
            if part.labels.max() >= part.num_classes:
                raise ValueError(
                    f'data set {part.name!r}: every private image needs a label in [0, {part.num_classes}).')
        if self.train.image_shape != self.held_out.image_shape or self.train.class_names != self.held_out.class_names:
            raise ValueError(f'{self.train.name!r} and {self.held_out.name!r} differ in image size or classes.')


def digits() -> PrivateData:
    """Loads scikit-learn's bundled handwritten digits: the embedded default, no download.

    Returns:
      1,437 training and 360 held-out images, 8x8x1, ten classes; the split is fixed and stratified by class.
    """
    # Imported here: scikit-learn takes a second that runs on other data need not wait for.
    from sklearn import datasets  # pylint: disable=g-import-not-at-top
    from sklearn import model_selection  # pylint: disable=g-import-not-at-top
    bunch = datasets.load_digits()
    images_uint8 = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, held_out = model_selection.train_test_split(np.arange(len(labels)),
                                                       test_size=360,
                                                       random_state=0,
                                                       stratify=labels)
    names = tuple(str(digit) for digit in range(10))
    return PrivateData(train=ImageDataset('digits', images_uint8[train], labels[train], names),
                       held_out=ImageDataset('digits held out', images_uint8[held_out], labels[held_out], names))


def npz_images(path: str, *, held_out_fraction: float = 0.2, unit: Optional[str] = None) -> PrivateData:
    """Loads one's own images from an .npz file.

    Args:
      path: A file with the arrays `images`, uint8 [images, height, width, channels] or [images, height, width], and
        `labels`, whole numbers [images] from 0; optionally `owners`, numbers or names [images]: whose image each is,
        and `class_names`.
      held_out_fraction: Share that is held out for evaluation, in (0, 1): of the images of each class or, where owners
        are named, of the owners, so that nobody is on both sides. The split is fixed.
      unit: What the guarantee protects, in words; 'one image', or 'one owner' where owners are named.

    Returns:
      The two parts.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file does not hold such arrays; names the file and what is wrong.
    """
    file = pathlib.Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(f'no such file: {file}.')
    if not 0.0 < held_out_fraction < 1.0:
        raise ValueError(f'held_out_fraction must be in (0, 1), got {held_out_fraction}.')
    images, labels, owners, names = _read_npz(file)
    ImageDataset(file.stem, images, labels, names)  # Says what is wrong before the split does.
    train, held_out = _split(file, labels, owners, names, held_out_fraction)
    unit = unit or ('one image' if owners is None else 'one owner')

    def part(name, indices):
        mine = None if owners is None else np.unique(owners[indices], return_inverse=True)[1]
        return ImageDataset(name, images[indices], labels[indices], names, unit, mine)

    return PrivateData(train=part(file.stem, train), held_out=part(f'{file.stem} held out', held_out))


def _read_npz(file: pathlib.Path):
    """Returns the images, labels, owners (or None) and class names of an .npz file."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays['images'], arrays['labels']
            owners = arrays['owners'] if 'owners' in arrays else None
            names = tuple(map(str, arrays['class_names'])) if 'class_names' in arrays else None
    except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f'{file} is not an .npz file with the arrays `images` and `labels`: {error}.') from error
    if images.ndim == 3:
        images = images[..., None]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels) or labels.min() < 0 or \
            labels.max() > len(labels):
        raise ValueError(f'{file}: labels must be whole numbers [images] from 0.')
    if owners is not None and (owners.shape != labels.shape or owners.dtype.kind not in 'iuUS'):
        raise ValueError(f'{file}: owners must be one whole number or name an image, got {owners.dtype} '
                         f'{list(owners.shape)} for {len(labels)} labels.')
    names = names or tuple(str(label) for label in range(int(labels.max()) + 1))
    return images, labels.astype(np.int32), owners, names


def _split(file: pathlib.Path, labels, owners, names, held_out_fraction) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the indices of the training and of the held-out images."""
    from sklearn import model_selection  # pylint: disable=g-import-not-at-top
    if owners is None:
        counts = np.bincount(labels, minlength=len(names))
        if counts.min() < 2:
            raise ValueError(
                f'{file}: class {names[int(counts.argmin())]!r} has {counts.min()} images, too few to hold one out.')
        return model_selection.train_test_split(np.arange(len(labels)),
                                                test_size=held_out_fraction,
                                                random_state=0,
                                                stratify=labels)
    if len(np.unique(owners)) < 2:
        raise ValueError(f'{file}: all images have one owner, so none can be held out.')
    splitter = model_selection.GroupShuffleSplit(1, test_size=held_out_fraction, random_state=0)
    train, held_out = next(splitter.split(labels, groups=owners))
    for part, indices in (('trained on', train), ('held out', held_out)):
        counts = np.bincount(labels[indices], minlength=len(names))
        if not counts.all():
            raise ValueError(f'{file}: no image of class {names[int(counts.argmin())]!r} belongs to the owners that '
                             f'would be {part}; choose another held_out_fraction.')
    return train, held_out
