"""Images in .npy files, read from the disk as they are needed: for more images than memory holds."""

import pathlib
from typing import Literal

import numpy as np

from tf_dpdiff.data import arrays as arrays_lib
from tf_dpdiff.data import classes
from tf_dpdiff.data import datasets
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import splitting

_PARTS = ('train', 'held_out')
_KNOWN = tuple(f'{part}_{kind}' for part in _PARTS for kind in ('images', 'labels', 'owners'))
_OPTIONAL = tuple(f'{part}_owners' for part in _PARTS)
_SUFFIXES = ('.npy', '.npz')


def npy_images(
    path: str, *, class_names: tuple[str, ...] | None = None, unit: str | None = None
) -> datasets.PrivateData:
    """Opens one's own images in .npy files without reading them into memory.

    Args:
      path: A folder with train_images.npy (uint8 [images, height, width, channels]) and train_labels.npy (whole numbers
        [images] from 0), with held_out_images.npy and held_out_labels.npy of images that are not trained on, and, where
        a unit is an owner, with train_owners.npy: whose image each is, numbers or names [images]. held_out_owners.npy
        says the same of the others, so that nobody is on both sides, and accuracies on them can be released.
      class_names: One a class; None: as many classes as there are different training labels, named by their numbers.
      unit: What the guarantee protects, in words, where owners are named: 'one owner' if nothing is said. Without
        owners it is 'one image'.

    Returns:
      The two parts; their images are read-only memory maps.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: names the file and what is wrong with it, or the one that nothing reads.
    """
    folder = pathlib.Path(path).expanduser()
    files = _find(folder)
    images = _map(files['train_images'])
    labels, owners = _labels(files['train_labels'], images), _owners(files.get('train_owners'), images)
    names = classes.names_of(str(files['train_labels']), labels, class_names or None)
    index = datasets.ImageIndex(
        folder.name,
        images.shape[1:],
        labels.astype(np.int32),
        names,
        datasets.choose_unit(folder.name, unit, owners),
        owners,
    )

    def open_held_out():
        others, file = _map(files['held_out_images']), files.get('held_out_owners')
        other_labels, other_owners = _labels(files['held_out_labels'], others), _owners(file, others)
        classes.check_range(str(files['held_out_labels']), other_labels, len(names))
        if file:
            assert owners is not None and other_owners is not None
            splitting.check_owners_apart(str(folder), owners, other_owners)
        held_out = datasets.ImageIndex(
            f'{folder.name} held out',
            others.shape[1:],
            other_labels.astype(np.int32),
            names,
            index.unit if file else datasets.ONE_IMAGE,
            other_owners,
        )
        return held_out.with_images(others)

    def look_at(part):
        if part == 'held_out':  # The training images have been looked at.
            open_held_out()

    return datasets.PrivateData(
        train=lambda: index.with_images(_map(files['train_images'])),
        held_out=open_held_out,
        spec=index.spec,
        look_at=look_at,
    )


def _find(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the files that are read, by their names without '.npy'; refuses others that were meant to be read."""
    if not folder.is_dir():
        raise FileNotFoundError(f'no such folder: {folder}.')
    # Links to nothing are listed too: owners that cannot be read are not the same as none.
    listed = sorted(file for file in folder.iterdir() if not file.name.startswith('.'))
    files = {file.stem: file for file in listed if file.name in {f'{name}.npy' for name in _KNOWN}}
    for file in listed:
        near = arrays_lib.nearest(file.stem, _KNOWN)
        if file not in files.values() and (file.suffix.lower() in _SUFFIXES or near in _OPTIONAL):
            meant = f'is it {near}.npy? Rename' if near else 'rename'
            raise ValueError(
                f'nothing reads {file}: {meant} it, or move it away; what is read is '
                f'{", ".join(f"{name}.npy" for name in _KNOWN)}.'
            )
    for name in _KNOWN:
        is_there = files[name].is_file() if name in files else name in _OPTIONAL
        if not is_there:
            raise FileNotFoundError(f'no such file: {folder / f"{name}.npy"}.')
    if 'held_out_owners' in files and 'train_owners' not in files:
        raise ValueError(
            f'{files["held_out_owners"]} names owners, and no train_owners.npy does: name them on both sides.'
        )
    return files


def _map(file: pathlib.Path) -> np.ndarray:
    """Returns images, mapped."""
    images = _open(file, 'images', 'r')
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(
            f'{file} must be uint8 [images, height, width, channels], got {images.dtype} {list(images.shape)}.'
        )
    return images


def _labels(file: pathlib.Path, images: np.ndarray) -> np.ndarray:
    labels = _open(file, 'labels', None)
    if labels.dtype.kind not in 'iu':
        raise ValueError(f'{file} must hold whole numbers, got {labels.dtype}{arrays_lib.cure_of_labels(labels)}.')
    _check_length(file, labels, images, arrays_lib.cure_of_labels(labels))
    return labels


def _owners(file: pathlib.Path | None, images: np.ndarray) -> np.ndarray | None:
    """Returns whose image each is, or None where no file says so."""
    if file is None:
        return None
    owners = _open(file, 'owners', None)
    _check_length(file, owners, images)
    splitting.check_owners(owners, lambda row: f'{file}: image {row}')
    return owners


def _open(file: pathlib.Path, kind: str, mmap_mode: Literal['r'] | None) -> np.ndarray:
    try:
        with open(file, 'rb') as opened:
            header = arrays_lib.read_header(opened)
    except (ValueError, EOFError) as error:
        raise _unreadable(file, error) from error
    arrays_lib.check_holds_values(str(file), kind, header)
    try:
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: pathlib.Path, error: Exception) -> ValueError:
    return ValueError(f'{file} is no readable .npy file: {images_lib.one_line(error)}.')


def _check_length(file: pathlib.Path, values: np.ndarray, images: np.ndarray, cure: str = '') -> None:
    if values.shape != (len(images),):
        raise ValueError(
            f'{file} must hold one value for each of the {len(images)} images, got {list(values.shape)}{cure}.'
        )
