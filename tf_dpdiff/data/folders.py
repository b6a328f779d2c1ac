"""Images in folders, one a class."""

from collections.abc import Sequence
import os
import pathlib
from typing import NamedTuple

import numpy as np

from tf_dpdiff.data import classes as classes_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.data import headers
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import splitting


class _Files(NamedTuple):
    """The files of a folder of class folders, in the order of their names."""

    paths: tuple[pathlib.Path, ...]
    labels: np.ndarray
    owners: np.ndarray | None
    class_names: tuple[str, ...]


def image_folder(
    path: str,
    *,
    held_out_fraction: float = 0.2,
    unit: str | None = None,
    owner_from: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
) -> datasets.PrivateData:
    """Loads one's own images from folders, one a class: PATH/CLASS/*.png.

    Where there is a folder PATH/train, it holds the class folders of the training images, and PATH/test, if there is
    one, those of the held-out images. Classes are in the order of their names, images of a class in the order of
    theirs. Files and folders whose name begins with a dot are passed over, and so are files beside the class folders;
    anything but an image inside a class folder is an error, and so is a link to nothing.

    Args:
      path: The folder. Images are PNG, JPEG or BMP; `images.decode` says what is refused.
      held_out_fraction: About the share of the images or, where owners are named, of the owners that is held out for
        evaluation where there is no PATH/test, in (0, 1). Each decides for itself by a hash of the owner's name, or
        else of CLASS/NAME of the file: the split is fixed, others do not change it, and nobody is on both sides.
      unit: What the guarantee protects, in words, where owners are named: 'one owner' if nothing is said. Without
        owners it is 'one image'.
      owner_from: 'prefix': the name of a file up to its first underscore says whose image it is, in whatever class
        folder it lies: patient012_3.png belongs to patient012. Nobody may be in both PATH/train and PATH/test.
        None: each image is a unit of its own.
      image_size: Height and width to which the largest centred square of each image is resized. None: all images must
        have one size.
      channels: 1 or 3: images are made grey or colour. None: all images must be of one kind.

    Returns:
      The two parts.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: names the file or folder, and what is wrong with it.
    """
    images_lib.check_fit(image_size, channels)
    splitting.check_fraction(held_out_fraction)
    if owner_from not in (None, 'prefix'):
        raise ValueError(f"owner_from must be None or 'prefix', got {owner_from!r}.")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f'no such folder: {root}.')
    _visible(root)  # Or a link to no PATH/test would be none.
    folder = root / 'train' if (root / 'train').is_dir() else root
    files = _list(folder, owner_from)
    test = _list(root / 'test', owner_from) if folder != root and (root / 'test').is_dir() else None
    if test and test.class_names != files.class_names:
        odd = sorted(set(test.class_names) ^ set(files.class_names))
        raise ValueError(f'{root}: train and test must have the same class folders; {odd[0]!r} is in one of them only.')
    if test and files.owners is not None and test.owners is not None:
        splitting.check_owners_apart(str(root), files.owners, test.owners)

    first = files.paths[0]
    image_shape = _read(first, image_size, channels).shape

    def index_of(name, files):
        return datasets.ImageIndex(
            name,
            image_shape,
            files.labels,
            files.class_names,
            datasets.choose_unit(root.name, unit, owner_from),
            files.owners,
        )

    def read_all(index, paths):

        def read(file):
            return images_lib.check_shape(_read(file, image_size, channels), image_shape, str(file), str(first))

        out = np.empty([len(paths), *image_shape], np.uint8)
        return index.with_images(images_lib.read_all(index.name, paths, read, out))

    train, name = index_of(root.name, files), f'{root.name} held out'
    train_paths: Sequence[pathlib.Path] = files.paths
    held_out_paths: Sequence[pathlib.Path]
    if test:
        held_out, held_out_paths = index_of(name, test), test.paths
    else:
        rows = splitting.split(str(folder), files.labels, _positions(files), files.class_names, held_out_fraction)
        train, held_out = train.take(rows[0], root.name), train.take(rows[1], name)
        train_paths, held_out_paths = ([files.paths[row] for row in part] for part in rows)

    def look_at(part):
        paths = {'train': train_paths, 'held_out': held_out_paths}[part]
        _look_at(root.name, paths, image_shape, first, image_size, channels)

    return datasets.PrivateData(
        train=lambda: read_all(train, train_paths),
        held_out=lambda: read_all(held_out, held_out_paths),
        spec=train.spec,
        look_at=look_at,
    )


def _look_at(
    name: str,
    paths: Sequence[pathlib.Path],
    image_shape: tuple[int, int, int],
    first: pathlib.Path,
    image_size: int | None,
    channels: int | None,
) -> None:
    """Checks images by their headers."""

    def check(file):
        with file.open('rb') as opened:
            headers.check_shape(opened, str(file), image_shape, str(first), image_size=image_size, channels=channels)
        return True

    images_lib.read_all(name, paths, check, np.empty([len(paths)], bool))


def _list(folder: pathlib.Path, owner_from: str | None) -> _Files:
    """Lists the images of class folders."""
    classes = [child for child in _visible(folder) if child.is_dir()]
    if not classes:
        raise ValueError(f'{folder} holds no class folders.')
    classes_lib.check_names(str(folder), [child.name for child in classes])
    paths, labels = [], []
    for label, class_folder in enumerate(classes):
        files = _visible(class_folder)
        if not files:
            raise ValueError(f'the class folder {class_folder} holds no images.')
        for file in files:
            classes_lib.check_text(f'the name of a file in {class_folder}', file.name)
            if file.suffix.lower() not in images_lib.SUFFIXES or not file.is_file():
                raise ValueError(
                    f'{file} is no image file ({", ".join(images_lib.SUFFIXES)}); move it out of the class folder.'
                )
        paths += files
        labels += [label] * len(files)
    owners = np.array([_owner(file) for file in paths]) if owner_from else None
    if owners is not None:
        splitting.check_owners(owners, lambda row: str(paths[row]))
    return _Files(tuple(paths), np.array(labels, np.int32), owners, tuple(child.name for child in classes))


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists a folder, in the order of the names.

    Raises:
      ValueError: if something in it is a link to nothing: what is not there would be missing unseen.
    """
    listed = sorted((child for child in folder.iterdir() if not child.name.startswith('.')), key=lambda path: path.name)
    for child in listed:
        if child.is_symlink() and not child.exists():
            raise ValueError(
                f'{child} is a link to {os.readlink(child)}, which is not there; restore that, or remove the link.'
            )
    return listed


def _owner(file: pathlib.Path) -> str:
    owner, underscore, _ = file.name.partition('_')
    if not owner or not underscore:
        raise ValueError(f"{file} names no owner: with owner_from='prefix' a file is called OWNER_ANYTHING.")
    return owner


def _positions(files: _Files) -> np.ndarray:
    """Returns the position of the unit of each image, by the owner or by the path below the folder."""
    if files.owners is not None:
        return splitting.owner_positions(files.owners)
    ids = (f'{file.parent.name}/{file.name}' for file in files.paths)
    return np.array([splitting.position(unit_id.encode('utf-8', 'surrogateescape')) for unit_id in ids], np.uint64)


def _read(file: pathlib.Path, image_size: int | None, channels: int | None) -> np.ndarray:
    return images_lib.fit(images_lib.decode(file.read_bytes(), str(file)), image_size, channels)
