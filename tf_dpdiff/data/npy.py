"""Images in .npy files, read from the disk as they are needed: for more images than memory holds."""

import pathlib
from typing import Optional, Tuple

import numpy as np

from tf_dpdiff.data import datasets
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import splitting

_PARTS = ('train', 'held_out')


def npy_images(path: str, *, class_names: Optional[Tuple[str, ...]] = None, unit: Optional[str] = None) -> \
        datasets.PrivateData:
    """Opens one's own images in .npy files without reading them into memory.

    Args:
      path: A folder with train_images.npy (uint8 [images, height, width, channels]) and train_labels.npy (whole numbers
        [images] from 0), with held_out_images.npy and held_out_labels.npy of images that are not trained on, and, where
        a unit is an owner, with train_owners.npy: whose image each is, numbers or names [images].
      class_names: One a class; None: as many classes as the largest training label says, named by their numbers.
      unit: What the guarantee protects, in words, where owners are named: 'one owner' if nothing is said. Without
        owners it is 'one image'.

    Returns:
      The two parts; their images are read-only memory maps.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: names the file and what is wrong with it.
    """
    folder = pathlib.Path(path).expanduser()
    for part in _PARTS:
        for kind in ('images', 'labels'):
            if not (folder / f'{part}_{kind}.npy').is_file():
                raise FileNotFoundError(f'no such file: {folder / f"{part}_{kind}.npy"}.')
    images, labels = _map(folder, 'train'), _load(folder / 'train_labels.npy', 'iu')
    owners = _load(folder / 'train_owners.npy', 'iuUS') if (folder / 'train_owners.npy').is_file() else None
    for name, values in (('train_labels.npy', labels), ('train_owners.npy', owners)):
        _check_length(folder / name, values, images)
    if owners is not None:
        splitting.check_owners(owners, lambda row: f'{folder / "train_owners.npy"}: image {row}')
    names = tuple(class_names) if class_names else tuple(map(str, range(int(labels.max()) + 1)))
    splitting.check_classes(str(folder / 'train_labels.npy'), labels, names)
    index = datasets.ImageIndex(folder.name, images.shape[1:], labels.astype(np.int32), names,
                                datasets.choose_unit(folder.name, unit, owners), owners)

    def open_held_out():
        others, file = _map(folder, 'held_out'), folder / 'held_out_labels.npy'
        other_labels = _load(file, 'iu')
        _check_length(file, other_labels, others)
        name = f'{folder.name} held out'
        return datasets.ImageDataset(name, others, other_labels.astype(np.int32), names)

    def look_at(part):
        if part == 'held_out':  # The training images have been looked at.
            open_held_out()

    return datasets.PrivateData(train=lambda: index.with_images(_map(folder, 'train')),
                                held_out=open_held_out,
                                spec=index.spec,
                                look_at=look_at)


def _map(folder: pathlib.Path, part: str) -> np.ndarray:
    """Returns the images of a part, mapped."""
    file = folder / f'{part}_images.npy'
    images = _open(file, 'r')
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f'{file} must be uint8 [images, height, width, channels], got {images.dtype} '
                         f'{list(images.shape)}.')
    return images


def _load(file: pathlib.Path, kinds: str) -> np.ndarray:
    values = _open(file, None)
    if values.dtype.kind not in kinds:
        raise ValueError(f'{file} must hold whole numbers{" or names" if "U" in kinds else ""}, got {values.dtype}.')
    return values


def _open(file: pathlib.Path, mmap_mode: Optional[str]) -> np.ndarray:
    try:
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f'{file} is no readable .npy file: {images_lib.one_line(error)}.') from error


def _check_length(file: pathlib.Path, values: Optional[np.ndarray], images: np.ndarray) -> None:
    if values is not None and values.shape != (len(images),):
        raise ValueError(f'{file} must hold one value for each of the {len(images)} images, got {list(values.shape)}.')
