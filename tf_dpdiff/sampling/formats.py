"""What a set of samples consists of, and how its images lie in files: TFRecords, PNG files in class folders, arrays."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import fractions
import functools
import pathlib
from typing import Any
import zipfile

import numpy as np
from PIL import Image

from tf_dpdiff.data import classes as classes_lib
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import tfds_writer
from tf_dpdiff.sampling import draw

NO_CLASS = classes_lib.NO_CLASS

_COLUMNS = ('images', 'labels', 'seeds')  # The order of arrays in an .npz file.
_DIGITS = 7  # The least for a seed in the name of a file.


@dataclasses.dataclass(frozen=True)
class Spec:
    """All that a set of samples follows from; the same spec gives the same files.

    Attributes:
      num_images: How many.
      seed: Image i has the seed seed + i.
      choice: The class of each.
      image_shape: (height, width, channels).
      class_names: One a class.
      format: A key of `FORMATS`.
      name: What `tfds.load` calls the set, where the format is 'tfds'.
      origin: What identifies the model and its sampler, as plain JSON values.
      shard_size: Images that are written, or lost by a kill, together.
      chunk_size: Images that are sampled together: seeds from a multiple of it to the next.
    """

    num_images: int
    seed: int
    choice: draw.ClassChoice
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    format: str = 'npz'
    name: str | None = None
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shard_size: int = 10000
    chunk_size: int = draw.CHUNK_SIZE

    def __post_init__(self):
        sizes = ('num_images', 'shard_size', 'chunk_size')
        draw.check_numbers(seed=self.seed, **{name: getattr(self, name) for name in sizes})
        if len(set(self.class_names)) != len(self.class_names) or NO_CLASS in self.class_names:
            raise ValueError(
                f'classes must have distinct names, none of them {NO_CLASS!r}; got {", ".join(self.class_names)}.'
            )
        if max(self.choice.classes) > len(self.class_names):
            raise ValueError(f'there is no class {max(self.choice.classes)} among {len(self.class_names)}.')
        if self.format not in FORMATS:
            raise ValueError(f'format of the samples must be one of {tuple(FORMATS)}, got {self.format!r}.')
        if (self.name is not None) != (self.format == 'tfds'):
            raise ValueError(
                f'a name is what samples of the format tfds have, got name={self.name!r} and format={self.format!r}.'
            )
        self.layout.check_names()

    @property
    def layout(self) -> 'Layout':
        """How the images lie in files."""
        return FORMATS[self.format](self)

    @property
    def num_shards(self) -> int:
        """How many files, or groups of files, the images are written in."""
        return -(-self.num_images // self.shard_size)

    def seeds_of(self, shard: int) -> tuple[int, int]:
        """Returns the first seed of a shard and the one after its last."""
        first = shard * self.shard_size
        return self.seed + first, self.seed + min(first + self.shard_size, self.num_images)

    def name_of(self, label: int) -> str:
        """Returns the name of a class, or of "no class"."""
        return self.class_names[label] if label < len(self.class_names) else NO_CLASS

    def to_json(self) -> dict[str, Any]:
        """Returns the spec as plain JSON values."""
        names = [self.name_of(label) for label in self.choice.classes]
        weights = self.choice.weights and dict(zip(names, map(str, self.choice.weights)))
        return {
            **self.origin,
            'num_images': self.num_images,
            'seed': self.seed,
            'classes': names,
            'class_weights': weights,
            'image_shape': list(self.image_shape),
            'class_names': list(self.class_names),
            'format': self.format,
            'name': self.name,
            'shard_size': self.shard_size,
            'chunk_size': self.chunk_size,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> 'Spec':
        """Returns the spec that `to_json` returned.

        Raises:
          ValueError: if there is no such spec.
        """
        fields = dict(fields)
        try:
            names, chosen, weights = (fields.pop(key) for key in ('class_names', 'classes', 'class_weights'))
            weights = weights and tuple(fractions.Fraction(weights[name]) for name in chosen)
            labels = tuple(len(names) if name == NO_CLASS else names.index(name) for name in chosen)
            choice = draw.ClassChoice(labels, weights)
            known = {field.name for field in dataclasses.fields(cls)}
            given = {key: fields.pop(key) for key in list(fields) if key in known}
            given['image_shape'] = tuple(given['image_shape'])
            return cls(choice=choice, class_names=tuple(names), origin=fields, **given)
        except (KeyError, TypeError) as error:
            raise ValueError(f'this is no plan of samples: {error}.') from error


class Layout:
    """How the images of a set lie in files, by shards.

    Args:
      spec: What the set consists of.
    """

    def __init__(self, spec: Spec):
        self._spec = spec

    @property
    def dataset_folder(self) -> str:
        """The folder of a data set of TensorFlow Datasets, relative to that of the set; empty elsewhere."""
        return ''

    def check_names(self) -> None:
        """Raises ValueError if the set or a class has a name that its files cannot have."""

    def paths(self, shard: int) -> list[str]:
        """Returns the files of a shard, in the order of their seeds, relative to the folder of the set."""
        raise NotImplementedError

    def title(self, shard: int) -> str:
        """Returns the name of a shard in messages."""
        return self.paths(shard)[0]

    def write(self, shard: int, folder: pathlib.Path, pieces: Iterable[draw.Piece]) -> None:
        """Writes the images of a shard, in the order of their seeds, below a folder where all parents of files are."""
        raise NotImplementedError

    def join(self, folder: pathlib.Path, target: pathlib.Path) -> None:
        """Joins all shards to one file; only of a format whose sets are one file."""
        raise NotImplementedError

    def read(self, shard: int, folder: pathlib.Path) -> draw.Piece:
        """Reads a shard of the set in a folder; raises OSError or ValueError if it is missing or damaged."""
        raise NotImplementedError


class _Records(Layout):
    """A data set of TensorFlow Datasets, whose label -1 stands for "no class"."""

    @property
    def _name(self) -> str:
        assert self._spec.name is not None  # Sets of this format have one.
        return self._spec.name

    def check_names(self):
        tfds_writer.check_name(self._name)

    @property
    def dataset_folder(self):
        return f'{self._name}/{tfds_writer.VERSION}'

    def paths(self, shard):
        return [f'{self.dataset_folder}/{tfds_writer.shard_name(self._name, shard, self._spec.num_shards)}']

    def write(self, shard, folder, pieces):
        rows = (row for piece in pieces for row in zip(*piece))
        num_classes = len(self._spec.class_names)
        records = (
            (images_lib.encode_png(image), label if label < num_classes else -1, seed) for seed, label, image in rows
        )
        tfds_writer.write_records(folder / self.paths(shard)[0], records)

    def read(self, shard, folder):
        images, labels, seeds = tfds_writer.read_records(folder / self.paths(shard)[0], self._spec.image_shape)
        labels = np.where(labels >= 0, labels, len(self._spec.class_names)).astype(np.int32)
        return draw.Piece(seeds, labels, images)


class _ClassFolders(Layout):
    """One folder per class, with a PNG file an image that is called by its seed."""

    def check_names(self):
        for name in map(self._spec.name_of, self._spec.choice.classes):
            if not name or name.startswith('.') or set(name) & set('/\\\0'):
                raise ValueError(f'the class {name!r} can name no folder; choose the format tfds or npz.')

    def paths(self, shard):
        seeds = np.arange(*self._spec.seeds_of(shard), dtype=np.int64)
        return [self._path(label, int(seed)) for label, seed in zip(self._spec.choice.labels(seeds), seeds)]

    def title(self, shard):
        first, end = self._spec.seeds_of(shard)
        return f'{self._file_name(first)} to {self._file_name(end - 1)}'

    def write(self, shard, folder, pieces):
        for seed, label, image in (row for piece in pieces for row in zip(*piece)):
            (folder / self._path(label, seed)).write_bytes(images_lib.encode_png(image))

    def read(self, shard, folder):
        seeds = np.arange(*self._spec.seeds_of(shard), dtype=np.int64)
        images = np.empty([len(seeds), *self._spec.image_shape], np.uint8)
        for row, path in enumerate(self.paths(shard)):
            with Image.open(folder / path) as image:
                images[row] = np.asarray(image, np.uint8).reshape(self._spec.image_shape)
        return draw.Piece(seeds, self._spec.choice.labels(seeds), images)

    def _path(self, label: int, seed: int) -> str:
        return f'{self._spec.name_of(label)}/{self._file_name(seed)}'

    def _file_name(self, seed: int) -> str:
        digits = max(_DIGITS, len(str(self._spec.seed + self._spec.num_images - 1)))
        return f'{seed:0{digits}d}.png'


class _Arrays(Layout):
    """An .npz file a shard, each with the arrays images, labels, seeds and class_names."""

    def paths(self, shard):
        return [f'samples-{shard:05d}-of-{self._spec.num_shards:05d}.npz']

    def write(self, shard, folder, pieces):
        _, labels, _ = parts = list(map(list, zip(*pieces)))
        columns = {name: parts[draw.Piece._fields.index(name)] for name in _COLUMNS}
        write_arrays(folder / self.paths(shard)[0], sum(map(len, labels)), columns, self._spec.class_names)

    def read(self, shard, folder):
        return draw.Piece(*(self._read_column(name, folder, shard) for name in draw.Piece._fields))

    def join(self, folder: pathlib.Path, target: pathlib.Path) -> None:
        """Writes all shards of the set in a folder as one such file."""
        read_columns = {name: functools.partial(self._read_column, name, folder) for name in _COLUMNS}
        columns = {name: map(read, range(self._spec.num_shards)) for name, read in read_columns.items()}
        write_arrays(target, self._spec.num_images, columns, self._spec.class_names)

    def _read_column(self, name: str, folder: pathlib.Path, shard: int) -> np.ndarray:
        with np.load(folder / self.paths(shard)[0]) as arrays:
            return arrays[name]


FORMATS = {'tfds': _Records, 'png': _ClassFolders, 'npz': _Arrays}


def write_arrays(
    target: pathlib.Path, num_rows: int, columns: Mapping[str, Iterable[np.ndarray]], class_names: Sequence[str]
) -> None:
    """Writes arrays, and the names of classes as `class_names`, as a compressed .npz file; holds one part at a time.

    Args:
      target: The file.
      num_rows: Rows of each array.
      columns: The arrays by name, each in one or more parts of consecutive rows.
      class_names: One a class.
    """
    names = np.array(class_names)
    arrays = {name: (num_rows, parts) for name, parts in columns.items()} | {'class_names': (len(names), [names])}
    with zipfile.ZipFile(target, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, (length, parts) in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
                for number, part in enumerate(map(np.ascontiguousarray, parts)):
                    if number == 0:
                        form = np.lib.format.header_data_from_array_1_0(part)
                        np.lib.format.write_array_header_1_0(file, {**form, 'shape': (length, *part.shape[1:])})
                    file.write(part.data)
