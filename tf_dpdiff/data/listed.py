"""Files of one image each, listed with their labels and owners: split, looked at by their headers, and read."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import os
import pathlib
import posixpath
import unicodedata

import numpy as np

from tf_dpdiff.data import classes
from tf_dpdiff.data import datasets
from tf_dpdiff.data import decoding
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import problems as problems_lib
from tf_dpdiff.data import splitting

# What operating systems and their tools leave in folders, in lower case; it is passed over like hidden files.
_JUNK = ('thumbs.db', 'ehthumbs.db', 'desktop.ini', '__macosx', '$recycle.bin', 'system volume information', '@eadir')


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
    """Files, in the order in which their images will stand.

    Attributes:
      paths: One an image.
      labels: int32 [images].
      owners: Names [images], or None.
      ids: By which each image decides on which side it is where none has an owner: its path in the folder.
    """

    paths: tuple[pathlib.Path, ...]
    labels: np.ndarray
    owners: np.ndarray | None
    ids: tuple[str, ...]

    def positions(self) -> np.ndarray:
        """Returns the position of the unit of each image, see `splitting`."""
        if self.owners is not None:
            return splitting.owner_positions(self.owners)
        ids = [unit_id.encode('utf-8', 'surrogateescape') for unit_id in self.ids]
        return np.array([splitting.position(unit_id) for unit_id in ids], np.uint64)

    def take(self, rows: np.ndarray) -> 'Listing':
        """Returns some of the files."""
        return Listing(
            tuple(self.paths[row] for row in rows),
            self.labels[rows],
            None if self.owners is None else self.owners[rows],
            tuple(self.ids[row] for row in rows),
        )


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a kind of file is read.

    Attributes:
      read: Returns the image of a file, uint8 [height, width, channels], of its final size.
      read_shape: Returns that shape from the header of the file.
      preparation: As DatasetSpec.preparation.
    """

    read: Callable[[pathlib.Path], np.ndarray]
    read_shape: Callable[[pathlib.Path], tuple[int, int, int]]
    preparation: str


def pictures(fit: images_lib.Fit) -> Kind:
    """Returns how PNG, JPEG, TIFF, BMP and WebP files are read."""

    def read(file):
        return fit.apply(decoding.decode(file.read_bytes(), str(file), fit))

    def read_shape(file):
        with file.open('rb') as opened:
            return fit.shape_of(decoding.read_shape(opened, str(file), fit))

    return Kind(read, read_shape, fit.describe())


def open_files(
    name: str,
    kind: Kind,
    train: Listing,
    held_out: Listing | None,
    *,
    class_names: Sequence[str],
    unit: str,
    held_out_fraction: float,
    source: str,
) -> datasets.PrivateData:
    """Returns the data that files hold; no image is decoded yet.

    Args:
      name: Of the data set.
      kind: How the files are read.
      train: The training images; where no others are given, the images that are split.
      held_out: The held-out images, or None.
      class_names: One a class.
      unit: What the guarantee protects.
      held_out_fraction: As `splitting.split` has it.
      source: What the files are called in an error.

    Raises:
      ValueError: if the files cannot be split, or the header of the first image cannot be read; then all headers are
        looked at, and told of at once.
    """
    classes.check_labels(source, train.labels, class_names)
    if held_out is None:
        rows = splitting.split(source, train.labels, train.positions(), class_names, held_out_fraction)
        train, held_out = train.take(rows[0]), train.take(rows[1])
    first = train.paths[0]
    try:
        image_shape = kind.read_shape(first)
    except (ValueError, FileNotFoundError):
        _look_at(name, kind, (*train.paths, *held_out.paths), None)
        raise
    parts = {'train': train, 'held_out': held_out}
    indices = {
        part: datasets.ImageIndex(
            name if part == 'train' else f'{name} held out',
            image_shape,
            listing.labels,
            tuple(class_names),
            unit,
            listing.owners,
            kind.preparation,
        )
        for part, listing in parts.items()
    }

    def read(part):
        index, paths = indices[part], parts[part].paths

        def read_one(file):
            return images_lib.check_shape(kind.read(file), image_shape, str(file), str(first))

        out = np.empty([len(paths), *image_shape], np.uint8)
        return index.with_images(images_lib.read_all(index.name, paths, read_one, out))

    return datasets.PrivateData(
        train=lambda: read('train'),
        held_out=lambda: read('held_out'),
        spec=indices['train'].spec,
        look_at=lambda part: _look_at(indices[part].name, kind, parts[part].paths, (image_shape, first)),
    )


def _look_at(
    name: str, kind: Kind, paths: Sequence[pathlib.Path], like: tuple[tuple[int, int, int], pathlib.Path] | None
) -> None:
    """Checks images by their headers; like: the shape that all must have, and which image is of it."""

    def check(file):
        shape = kind.read_shape(file)
        if like:  # One byte seen as an array of that shape.
            images_lib.check_shape(np.broadcast_to(np.uint8(0), shape), like[0], str(file), str(like[1]))
        return True

    images_lib.read_all(name, paths, check, np.empty([len(paths)], bool))


def visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists a folder in the order of the names, but for hidden files and what operating systems leave behind.

    Raises:
      ValueError: if something in it is a link to nothing: what is not there would be missing unseen.
    """
    listed = sorted((child for child in folder.iterdir() if not is_passed_over(child.name)), key=lambda path: path.name)
    problems = problems_lib.Problems(f'links in {folder}')
    for child in listed:
        if child.is_symlink() and not child.exists():
            problems.add(
                f'{child} is a link to {os.readlink(child)}, which is not there; restore that, or remove the link.'
            )
    problems.check()
    return listed


def name_of(folder: pathlib.Path) -> str:
    """Returns the name of a folder, also of the working folder."""
    return folder.name or folder.resolve().name


def is_passed_over(name: str) -> bool:
    """Returns whether a file or folder of this name is none of a person's own: hidden, or left by a system."""
    return name.startswith('.') or name.lower() in _JUNK


def check_name(file: pathlib.Path) -> None:
    """Checks that the name of a file can be written.

    Raises:
      ValueError: names the folder and the name.
    """
    classes.check_text(f'the name of a file in {file.parent}', file.name)


def walk(folder: pathlib.Path, inside: frozenset[pathlib.Path] = frozenset()) -> Iterator[pathlib.Path]:
    """Yields the visible files of a folder and of the folders in it, in the order of their paths.

    Args:
      folder: The folder.
      inside: The folders that it lies in, as far as they are gone through.

    Raises:
      ValueError: names a link to nothing, or to a folder that holds it.
    """
    real = folder.resolve()
    if real in inside:
        raise ValueError(f'{folder} is a link to a folder that holds it; remove the link.')
    for child in visible(folder):
        if child.is_dir():
            yield from walk(child, inside | {real})
        else:
            yield child


class FileIndex:
    """The files below a folder, to be found by what a table calls them.

    Args:
      root: The folder.
      files: Those below it that may be meant.
    """

    def __init__(self, root: pathlib.Path, files: Iterable[pathlib.Path]):
        self._root = root
        self._found: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
        for file in files:
            relative = file.relative_to(root)
            stem = relative.with_name(file.name.removesuffix(file.suffix))
            # As a path or as a name alone, with its suffix or without: all different keys, but for files in the folder.
            for key in {_key(relative), _key(stem, '*'), f'//{_key(file.name)}', f'//{_key(stem.name, "*")}'}:
                self._found[key].append(file)

    def holds(self, name: str) -> bool:
        """Returns whether a name means one file, with or without its suffix."""
        try:
            return bool(self.find(name))
        except ValueError:
            return False

    def find(self, name: str, suffix: str | None = None) -> pathlib.Path:
        """Returns the file that is meant by a name.

        Args:
          name: A path below the folder or, where only one file has it, the name alone; in either case of its suffix,
            and without it where nothing else is called so.
          suffix: That follows the name where it does not end so; None: the name has one, or needs none.

        Raises:
          ValueError: why there is none, or more than one.
        """
        path = name.replace('\\', '/') if '\\' in name else name
        path = posixpath.normpath(path) if path else '.'
        if path == '.' or path.split('/')[0] in ('', '..'):
            raise ValueError(f'{name!r} is no file below {self._root}')
        whole = path if not suffix or path.lower().endswith(suffix.lower()) else f'{path}{suffix}'
        keys = [_key(whole)] if suffix else [_key(whole), _key(path, '*')]
        if '/' not in path:
            keys += [f'//{key}' for key in keys]
        for key in keys:
            found = self._found.get(key, [])
            exact = [file for file in found if file.relative_to(self._root).as_posix() == whole]
            if len(exact or found) == 1:
                return (exact or found)[0]
            if found:
                raise ValueError(f'{whole!r} may be {found[0]} or {found[1]}; name its folder too')
        hint = '' if suffix or pathlib.PurePosixPath(path).suffix else "; if names lack their suffix, say suffix='.jpg'"
        raise ValueError(f'there is no {whole!r} in {self._root}{hint}')


def _key(path: str | pathlib.PurePath, suffix: str = '') -> str:
    """Returns a path in one spelling of Unicode, and its suffix, or the one given, in lower case."""
    pure = pathlib.PurePosixPath(unicodedata.normalize('NFC', str(path)))
    return f'{pure}{suffix}' if suffix else str(pure.with_name(pure.stem + pure.suffix.lower()))
