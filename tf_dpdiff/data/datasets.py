"""Labelled images in memory or on disk: the private images, the public ones and the held-out ones."""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import pathlib

import numpy as np

from tf_dpdiff.data import classes
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import npz
from tf_dpdiff.data import splitting

ONE_IMAGE = 'one image'  # The unit where no owners are named.

_HASHED_BYTES = 2**24  # At a time.


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set before its images are read: enough to plan a run.

    What no run could end with is refused here, before anything is trained or charged: images that no set of samples can
    hold, names that no statement or file can.

    Attributes:
      name: As ImageDataset.name.
      image_shape: (height, width, channels), of 1 or 3 channels.
      class_names: One a class, all different.
      num_images: Number of images, >= 1.
      num_units: Number of units, >= 1: owners where they are named, else images.
      unit: What the guarantee protects; without owners it is 'one image'.
      has_owners: Whether a unit is an owner with all of its images.
      note: Where the numbers do not come from the data themselves: where they do come from.
      preparation: What is done to each image when it is read, by the arguments of the source alone, such as 'resized to
        32x32 (cropped)'; '' where nothing is.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    num_images: int
    num_units: int
    unit: str = ONE_IMAGE
    has_owners: bool = False
    note: str = ''
    preparation: str = ''

    def __post_init__(self):
        _check_shape_and_names(self.name, self.image_shape, self.class_names, self.unit)
        for field in ('num_images', 'num_units', 'num_classes'):
            if getattr(self, field) < 1:
                raise ValueError(f'data set {self.name!r}: {field} must be at least 1, got {getattr(self, field)}.')
        _check_unit(self.name, self.unit, self.has_owners)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def to_phrase(self) -> str:
        """Returns a phrase that names the data set and its number of images, for statements."""
        return f'{self.num_images:,} images of {self.name!r}'


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images of one size.

    Attributes:
      name: For the statement and the reports.
      images_uint8: uint8 [images, height, width, channels]; a read-only memory map of a file does for images that do
        not fit into memory.
      labels: int32 [images], each in [0, num_classes). Unlabelled public images have the label num_classes, "no class".
      class_names: One a class.
      unit: What the guarantee protects, for the privacy statement: 'one image' or, where there are owners, e.g. 'one
        patient'.
      owners: int [images], each in [0, num_owners): whose image each is. The unit is then an owner, with all of its
        images. None: each image is a unit of its own.
      num_owners: How many owners count as public; some may own no image here. None: the largest owner plus one.
      preparation: As DatasetSpec.preparation.
    """

    name: str
    images_uint8: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    unit: str = ONE_IMAGE
    owners: np.ndarray | None = None
    num_owners: int | None = None
    preparation: str = ''

    def __post_init__(self):
        if self.images_uint8.dtype != np.uint8 or self.images_uint8.ndim != 4:
            raise ValueError(
                f'data set {self.name!r}: images must be uint8 [images, height, width, channels], got '
                f'{self.images_uint8.dtype} {list(self.images_uint8.shape)}.'
            )
        if self.labels.dtype.kind not in 'iu':
            raise ValueError(f'data set {self.name!r}: labels must be whole numbers, got {self.labels.dtype}.')
        if self.labels.shape != (len(self.images_uint8),):
            raise ValueError(
                f'data set {self.name!r}: {len(self.images_uint8)} images but labels of shape {self.labels.shape}.'
            )
        if not len(self.images_uint8):
            raise ValueError(f'data set {self.name!r} holds no images.')
        if self.labels.min() < 0 or self.labels.max() > self.num_classes:
            raise ValueError(
                f'data set {self.name!r}: labels must be in [0, {self.num_classes}), got '
                f'{self.labels.min()} to {self.labels.max()}.'
            )
        _check_unit(self.name, self.unit, self.owners is not None)
        if self.owners is None:
            if self.num_owners is not None:
                raise ValueError(f'data set {self.name!r}: num_owners={self.num_owners} without owners.')
            return
        if self.owners.dtype.kind not in 'iu' or self.owners.shape != self.labels.shape:
            raise ValueError(
                f'data set {self.name!r}: owners must be one whole number an image, got '
                f'{self.owners.dtype} {list(self.owners.shape)}.'
            )
        if self.owners.min() < 0 or self.owners.max() >= self.num_units:
            raise ValueError(
                f'data set {self.name!r}: owners must be in [0, {self.num_units}), got '
                f'{self.owners.min()} to {self.owners.max()}.'
            )

    def __len__(self) -> int:
        return len(self.images_uint8)

    @property
    def image_shape(self) -> tuple[int, int, int]:
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

    @property
    def spec(self) -> DatasetSpec:
        """What the data set says of itself."""
        return DatasetSpec(
            self.name,
            self.image_shape,
            self.class_names,
            len(self),
            self.num_units,
            self.unit,
            self.owners is not None,
            preparation=self.preparation,
        )

    @functools.cached_property
    def images_by_unit(self) -> tuple[np.ndarray, np.ndarray]:
        """The images in the order of their units, int64 [images], and where each unit begins, int64 [units + 1]."""
        if self.owners is None:
            return np.arange(len(self)), np.arange(len(self) + 1)
        counts = np.bincount(self.owners, minlength=self.num_units)
        return np.argsort(self.owners, kind='stable'), np.concatenate([[0], np.cumsum(counts)])

    def fingerprint(self) -> str:
        """Returns the SHA-256 of all pixels, labels and owners: PRIVATE, it tells who holds the exact same data set."""
        digest = hashlib.sha256(str((self.images_uint8.shape, self.num_units)).encode())
        step = max(1, _HASHED_BYTES // int(np.prod(self.image_shape)))  # Images in a file are never all in memory.
        for start in range(0, len(self), step):
            digest.update(np.ascontiguousarray(self.images_uint8[start : start + step]).data)
        digest.update(np.ascontiguousarray(self.labels, np.int32).data)
        if self.owners is not None:
            digest.update(np.ascontiguousarray(self.owners, np.int64).data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class ImageIndex:
    """Labels and owners of images that are not read yet.

    Attributes:
      name: As ImageDataset.name.
      image_shape: (height, width, channels).
      labels: int32 [images].
      class_names: One a class.
      unit: What the guarantee protects.
      owners: Numbers or names [images], or None.
      preparation: As DatasetSpec.preparation.
    """

    name: str
    image_shape: tuple[int, int, int]
    labels: np.ndarray
    class_names: tuple[str, ...]
    unit: str
    owners: np.ndarray | None = None
    preparation: str = ''

    def __post_init__(self):
        _check_shape_and_names(self.name, self.image_shape, self.class_names, self.unit)
        _check_unit(self.name, self.unit, self.owners is not None)
        if self.owners is not None:
            splitting.check_owners(self.owners, lambda row: f'data set {self.name!r}: image {row}')

    @property
    def spec(self) -> DatasetSpec:
        """What is known before the images are read."""
        num_units = len(self.labels) if self.owners is None else len(np.unique(self.owners))
        return DatasetSpec(
            self.name,
            self.image_shape,
            self.class_names,
            len(self.labels),
            num_units,
            self.unit,
            self.owners is not None,
            preparation=self.preparation,
        )

    def take(self, rows: np.ndarray, name: str) -> 'ImageIndex':
        """Returns the index of some of the images."""
        owners = None if self.owners is None else self.owners[rows]
        return dataclasses.replace(self, name=name, labels=self.labels[rows], owners=owners)

    def with_images(self, images_uint8: np.ndarray) -> ImageDataset:
        """Returns the data set, its owners numbered in the order of their names, every one with an image."""
        owners = None if self.owners is None else np.unique(self.owners, return_inverse=True)[1]
        return ImageDataset(
            self.name, images_uint8, self.labels, self.class_names, self.unit, owners, preparation=self.preparation
        )


class PrivateData:
    """A private training set and real images held out from it, each read when it is first asked for.

    What only plans a run asks for `spec`, and a run that measures nothing leaves the held-out images unread.
    """

    def __init__(
        self,
        *,
        train: ImageDataset | Callable[[], ImageDataset],
        held_out: ImageDataset | Callable[[], ImageDataset],
        spec: DatasetSpec | None = None,
        look_at: Callable[[str], None] | None = None,
        is_public: bool = False,
    ):
        """Checks the parts that are there already.

        Args:
          train: The images that the guarantee protects, or what reads them.
          held_out: Real images never trained on, for evaluation, or what reads them.
          spec: What is known of the training images; needed where they are not read yet.
          look_at: Given 'train' or 'held_out', raises what reading that part would, as far as can be told without
            decoding images; None: all of it is known to be readable.
          is_public: Whether the images are known to everyone, so that what is measured on them gives nothing away.

        Raises:
          ValueError: if an image has no label, or the parts differ in image size or classes.
        """
        self._parts = {'train': train, 'held_out': held_out}
        self._look_at = look_at
        self.is_public = is_public
        if spec is None:
            if callable(train):
                raise ValueError('images that are read later need a spec.')
            spec = train.spec
        self.spec = spec
        for name, part in self._parts.items():
            if not callable(part):
                self._check(name, part)

    @property
    def train(self) -> ImageDataset:
        """The images that the guarantee protects."""
        return self._part('train')

    @property
    def held_out(self) -> ImageDataset:
        """Real images never trained on, for evaluation."""
        return self._part('held_out')

    def look_at(self, part: str) -> None:
        """Looks at 'train' or 'held_out' without decoding images, for a plan: raises what reading it would."""
        if self._look_at:
            self._look_at(part)

    def _part(self, name: str) -> ImageDataset:
        part = self._parts[name]
        if callable(part):
            part = part()
            self._check(name, part)
            self._parts[name] = part
        return part

    def _check(self, name: str, part: ImageDataset) -> None:
        if part.labels.max() >= part.num_classes:
            raise ValueError(f'data set {part.name!r}: every private image needs a label in [0, {part.num_classes}).')
        if part.image_shape != self.spec.image_shape or part.class_names != self.spec.class_names:
            raise ValueError(f'{self.spec.name!r} and {part.name!r} differ in image size or classes.')
        # The budget was planned for the units of the spec.
        if name == 'train' and part.spec != dataclasses.replace(self.spec, note=''):
            raise ValueError(
                f'data set {part.name!r} is not what it was said to be: {part.num_units} units and '
                f'{len(part)} images were read, {self.spec.num_units} and {self.spec.num_images} expected.'
            )


def digits() -> PrivateData:
    """Loads scikit-learn's bundled handwritten digits: the embedded default, no download.

    Returns:
      1,437 training and 360 held-out images, 8x8x1, ten classes; the split is fixed and stratified by class.
    """
    names = tuple(str(digit) for digit in range(10))

    def read(name, part):
        # Imported here: scikit-learn takes a second that runs on other data need not wait for.
        from sklearn import datasets
        from sklearn import model_selection

        bunch = datasets.load_digits()
        images_uint8 = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
        labels = bunch.target.astype(np.int32)
        rows = model_selection.train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)[
            part
        ]
        return ImageDataset(name, images_uint8[rows], labels[rows], names)

    return PrivateData(
        train=lambda: read('digits', 0),
        held_out=lambda: read('digits held out', 1),
        spec=DatasetSpec('digits', (8, 8, 1), names, num_images=1437, num_units=1437),
        is_public=True,
    )


def npz_images(path: str, *, held_out_fraction: float = 0.2, unit: str | None = None) -> PrivateData:
    """Loads one's own images from an .npz file.

    Args:
      path: A file with the arrays `images`, uint8 [images, height, width, channels] or [images, height, width], and
        `labels`, whole numbers [images] from 0 without gaps; optionally `owners`, numbers or names [images]: whose
        image each is, and `class_names`. Any other array is refused, but for the `seeds` of samples.
      held_out_fraction: About the share of the images or, where owners are named, of the owners that is held out for
        evaluation, in (0, 1). Each decides for itself by a hash of the owner's name, or else of pixels and label: the
        split is fixed, others do not change it, identical images are on one side, and nobody is on both.
      unit: What the guarantee protects, in words, where owners are named: 'one owner' if nothing is said. Without
        owners it is 'one image'.

    Returns:
      The two parts.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file does not hold such arrays; names the file and what is wrong.
    """
    file = pathlib.Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(f'no such file: {file}.')
    splitting.check_fraction(held_out_fraction)
    arrays = npz.read_arrays(file)
    unit = choose_unit(file.stem, unit, arrays.owners)
    index = ImageIndex(file.stem, arrays.image_shape, arrays.labels, arrays.class_names, unit, arrays.owners)
    if arrays.owners is None:
        ids = zip(npz.pixels(file), arrays.labels)
        positions = np.fromiter((splitting.image_position(*image_id) for image_id in ids), np.uint64)
    else:
        positions = splitting.owner_positions(arrays.owners)
    rows = splitting.split(str(file), arrays.labels, positions, arrays.class_names, held_out_fraction)
    train, held_out = index.take(rows[0], file.stem), index.take(rows[1], f'{file.stem} held out')
    return PrivateData(
        train=lambda: train.with_images(npz.read_images(file, rows[0])),
        held_out=lambda: held_out.with_images(npz.read_images(file, rows[1])),
        spec=train.spec,
    )


def choose_unit(name: str, unit: str | None, owners) -> str:
    """Returns the words for what a source protects; owners: anything but None where there are any.

    Raises:
      ValueError: if the words that were given are not what would be protected; names the data set and the words.
    """
    if owners is None:
        _check_unit(name, unit or ONE_IMAGE, False)
        return ONE_IMAGE
    # An owner's gradient is clipped as a whole, so one image of several more or less may change it by twice the norm.
    if unit == ONE_IMAGE:
        raise ValueError(
            f'data set {name!r}: unit={unit!r}, but owners are named, each protected with all of their images.'
        )
    return unit or 'one owner'


def _check_shape_and_names(name: str, image_shape: tuple[int, ...], class_names: tuple[str, ...], unit: str) -> None:
    source = f'data set {name!r}'
    images_lib.check_image_shape(source, image_shape)
    classes.check_names(source, class_names)
    classes.check_text(f'{source}: its name', name)
    classes.check_text(f'{source}: unit', unit)


def _check_unit(name: str, unit: str, has_owners: bool) -> None:
    if not has_owners and unit != ONE_IMAGE:
        raise ValueError(
            f'data set {name!r}: unit={unit!r} needs owners: where none are named, the guarantee protects '
            f'{ONE_IMAGE!r}.'
        )
