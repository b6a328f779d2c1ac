"""WILDS Camelyon17: patches of lymph node tissue, with or without tumour, from five hospitals."""

import csv
import dataclasses
import functools
import hashlib
import io
import pathlib
from typing import BinaryIO

import numpy as np

from tf_dpdiff import files
from tf_dpdiff.data import classes
from tf_dpdiff.data import datasets
from tf_dpdiff.data import decoding
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import splitting

CLASS_NAMES = ('normal', 'tumor')
UNITS = {'image': None, 'patient': 'patient', 'slide': 'slide'}  # The column of metadata.csv that names the owner.
HELD_OUT_SPLITS = ('test', 'val', 'id_val')
PUBLISHED_NUM_IMAGES = 302436  # Of the training split.

_COLUMNS = ('patient', 'node', 'x_coord', 'y_coord', 'tumor', 'slide', 'center', 'split')
_PATCH_SIZE = 96
_MOST_DIGITS = 18  # Of a number in metadata.csv; so many an int64 holds.
_FIRST_LINE = 2  # Of metadata.csv, after the names of the columns.
# The hospitals that are held out as wholes; the column `split` parts the images of the others.
_SPLIT_OF_CENTER = {1: 'val', 2: 'test'}
_SPLIT_OF_COLUMN = {0: 'train', 1: 'id_val'}


@dataclasses.dataclass(frozen=True, eq=False)
class _Metadata:
    """metadata.csv: its columns, the split of each row, and a digest of the file."""

    file: pathlib.Path
    digest: str
    columns: dict[str, np.ndarray]
    splits: np.ndarray

    def column(self, split: str, name: str) -> np.ndarray:
        return self.columns[name][self.splits == split]

    def line(self, row: int) -> str:
        return f'{self.file}, line {row + _FIRST_LINE}'

    def patch(self, row: int) -> pathlib.Path:
        patient, node, x, y = (self.columns[name][row] for name in ('patient', 'node', 'x_coord', 'y_coord'))
        stem = f'patient_{patient}_node_{node}'
        return self.file.parent / 'patches' / stem / f'patch_{stem}_x_{x}_y_{y}.png'


def wilds_camelyon17(
    root: str,
    *,
    held_out_split: str = 'test',
    unit: str = 'image',
    image_size: int | tuple[int, int] = 32,
    resize: str = 'crop',
    background: int | tuple[int, int, int] | None = None,
    cache_dir: str | None = None,
) -> datasets.PrivateData:
    """Loads Camelyon17 as WILDS lays it out: hospitals apart.

    The training part is the split 'train' of WILDS: images of three hospitals. The 96x96 patches are averaged down: at
    image_size 32 a pixel is the rounded mean of 3x3 pixels. Alpha is dropped, as WILDS does. Decoding all training
    patches takes minutes, which `cache_dir` saves the second time.

    Args:
      root: The folder camelyon17_v1.0 with metadata.csv and patches, or the folder that holds it.
      held_out_split: 'test' (another hospital), 'val' (yet another) or 'id_val' (the hospitals, and patients, of the
        training part, so that the unit must be an image).
      unit: What the guarantee protects: 'image', 'patient' or 'slide', each with all of their images.
      image_size: Height and width in pixels, or one number for both.
      resize: As `image_folder` has it; of no effect where height and width are equal, as those of a patch are.
      background: Around patches where they are padded.
      cache_dir: A folder of one's own for the decoded images, PRIVATE like the patches: its files can be read by their
        owner only and are written only where this is given. They are known by the content of metadata.csv, the split
        and the size, not by the pixels: delete them if patches change. Their images are read from the disk as they
        are needed.

    Returns:
      The two parts. Without the folder there is a `spec` of the published size, where the unit is an image.

    Raises:
      FileNotFoundError: if the folder or a patch is missing.
      ValueError: names the file or row, and what is wrong with it; also if the unit is a patient or a slide with
        images in both parts.

    References: Bandi et al. 2018, IEEE Transactions on Medical Imaging 38(2); Koh et al. 2021, arXiv:2012.07421, for
      the split by hospitals.
    """
    for name, value, known in (('unit', unit, tuple(UNITS)), ('held_out_split', held_out_split, HELD_OUT_SPLITS)):
        if value not in known:
            raise ValueError(f'{name} of Camelyon17 must be one of {", ".join(known)}, got {value!r}.')
    fit = images_lib.Fit(image_size, 3, resize=resize, background=background)
    fit.check_border()
    file = _find(pathlib.Path(root).expanduser())
    if file is None:
        return _published(root, unit, fit)
    metadata = _read_metadata(file)
    if held_out_split not in metadata.splits:
        raise ValueError(f'{file} has no images of the split {held_out_split!r}.')

    def index_of(split, name):
        column = UNITS[unit]
        owners = metadata.column(split, column) if column else None
        if owners is not None:
            rows = np.flatnonzero(metadata.splits == split)
            splitting.check_owners(owners, lambda row: metadata.line(rows[row]))
        labels = metadata.column(split, 'tumor').astype(np.int32)
        return datasets.ImageIndex(name, _shape(fit), labels, CLASS_NAMES, f'one {unit}', owners, _describe(fit))

    train, held_out = index_of('train', 'camelyon17'), index_of(held_out_split, f'camelyon17 {held_out_split}')
    if train.owners is not None:
        splitting.check_owners_apart(
            f'{file}: with {unit}s as owners and held_out_split={held_out_split!r}', train.owners, held_out.owners
        )
    read = functools.partial(_read_images, metadata, fit=fit, cache_dir=cache_dir)

    def look_at(part):
        split = {'train': 'train', 'held_out': held_out_split}[part]
        if cache_dir is None or not _cache(cache_dir, split, fit, metadata).exists():
            _look_at_patches(metadata, split)

    return datasets.PrivateData(
        train=lambda: train.with_images(read('train')),
        held_out=lambda: held_out.with_images(read(held_out_split)),
        spec=train.spec,
        look_at=look_at,
    )


def _find(root: pathlib.Path) -> pathlib.Path | None:
    """Returns metadata.csv, or None."""
    candidates = [root / 'metadata.csv', root / 'camelyon17_v1.0' / 'metadata.csv']
    return next((file for file in candidates if file.is_file()), None)


def _published(root: str, unit: str, fit: images_lib.Fit) -> datasets.PrivateData:
    """Returns data that are planned with and cannot be read."""
    missing = f'no metadata.csv of Camelyon17 in {root} or in camelyon17_v1.0 there'
    if unit != 'image':
        raise FileNotFoundError(f"{missing}; it is needed to count the units where unit='{unit}'.")

    def read():
        raise FileNotFoundError(
            f'{missing}; download it with the package wilds: '
            f"wilds.get_dataset('camelyon17', root_dir={str(root)!r}, download=True)."
        )

    spec = datasets.DatasetSpec(
        'camelyon17',
        _shape(fit),
        CLASS_NAMES,
        PUBLISHED_NUM_IMAGES,
        PUBLISHED_NUM_IMAGES,
        note=f'not found in {root}; published sizes',
        preparation=_describe(fit),
    )
    return datasets.PrivateData(train=read, held_out=read, spec=spec)


def _read_metadata(file: pathlib.Path) -> _Metadata:
    """Reads and checks metadata.csv."""
    content = file.read_bytes()
    columns: dict[str, list[int | str]] = {name: [] for name in _COLUMNS}
    splits, number = [], 1
    try:
        table = csv.reader(io.StringIO(content.decode('utf-8')))
        header = next(table, [])
        missing = [name for name in _COLUMNS if name not in header]
        if missing:
            raise ValueError(f'no column {missing[0]!r} among {", ".join(filter(None, header)) or "none"}')
        positions = [header.index(name) for name in _COLUMNS]
        for number, values in enumerate(table, start=_FIRST_LINE):
            if len(values) != len(header):
                raise ValueError(f'{len(values)} values for {len(header)} columns')
            row = {name: values[position] for name, position in zip(_COLUMNS, positions)}
            splits.append(_split_of(row))
            for name, value in row.items():
                columns[name].append(value if name == 'patient' else int(value))
    except (csv.Error, ValueError) as error:
        raise ValueError(f'{file}, line {number}: {error}.') from error
    arrays = {name: np.array(values, str if name == 'patient' else np.int64) for name, values in columns.items()}
    metadata = _Metadata(file, hashlib.sha256(content).hexdigest(), arrays, np.array(splits, str))
    classes.check_labels(f'{file}: the training split', metadata.column('train', 'tumor'), CLASS_NAMES)
    return metadata


def _split_of(row: dict[str, str]) -> str:
    """Checks a row and returns the split that it belongs to."""
    for name, value in row.items():
        # Nothing but digits finds its way into the path of a patch.
        if not (value.isascii() and value.isdigit()):
            raise ValueError(f'{name} must be a whole number, got {value!r}')
        if len(value) > _MOST_DIGITS:
            raise ValueError(f'{name} must have at most {_MOST_DIGITS} digits, got {value}')
    if row['tumor'] not in ('0', '1'):
        raise ValueError(f'tumor must be 0 or 1, got {row["tumor"]}')
    split = _SPLIT_OF_CENTER.get(int(row['center'])) or _SPLIT_OF_COLUMN.get(int(row['split']))
    if split is None:
        raise ValueError(f'split must be 0 (train) or 1 (id_val), got {row["split"]}')
    return split


def _read_images(metadata: _Metadata, split: str, *, fit: images_lib.Fit, cache_dir: str | None) -> np.ndarray:
    """Returns the images of a split, from the cache where there is one."""
    rows = np.flatnonzero(metadata.splits == split)
    shape = (len(rows), *_shape(fit))

    def read_all(out):
        return images_lib.read_all('camelyon17', rows, lambda row: _read_patch(metadata, row, fit), out)

    if cache_dir is None:
        return read_all(np.empty(shape, np.uint8))
    cache = _cache(cache_dir, split, fit, metadata)
    if not cache.exists():
        with files.replacing(cache) as temporary:
            temporary.touch(mode=0o600)
            out = np.lib.format.open_memmap(temporary, mode='w+', dtype=np.uint8, shape=shape)
            read_all(out).flush()
    try:
        images = np.load(cache, mmap_mode='r', allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f'the cache {cache} is damaged, delete it: {images_lib.one_line(error)}.') from error
    if images.shape != shape or images.dtype != np.uint8:
        raise ValueError(f'the cache {cache} is damaged, delete it: it holds {images.dtype} {list(images.shape)}.')
    return images


def _cache(cache_dir: str, split: str, fit: images_lib.Fit, metadata: _Metadata) -> pathlib.Path:
    height, width, _ = _shape(fit)
    size = str(height)
    if height != width:  # Or there is nothing to crop, to pad or to stretch.
        border = f'_{"_".join(map(str, fit.backing(3)))}' if fit.resize == 'pad' else ''
        size = f'{height}x{width}_{fit.resize}{border}'
    return pathlib.Path(cache_dir).expanduser() / f'camelyon17_{split}_{size}_{metadata.digest[:16]}.npy'


def _describe(fit: images_lib.Fit) -> str:
    return dataclasses.replace(fit, channels=None).describe()  # All patches are in colour.


def _shape(fit: images_lib.Fit) -> tuple[int, int, int]:
    return fit.shape_of((_PATCH_SIZE, _PATCH_SIZE, 3))


def _look_at_patches(metadata: _Metadata, split: str) -> None:
    """Checks that the patches of a split are there, and their size, without decoding them."""
    rows = np.flatnonzero(metadata.splits == split)

    def check(row):
        with _open_patch(metadata, row) as opened:
            _check_size(metadata.patch(row), *decoding.read_shape(opened, str(metadata.patch(row))))
        return True

    images_lib.read_all('camelyon17', rows, check, np.empty([len(rows)], bool))


def _read_patch(metadata: _Metadata, row: int, fit: images_lib.Fit) -> np.ndarray:
    """Returns a patch, resized."""
    patch = metadata.patch(row)
    with _open_patch(metadata, row) as opened:
        image = decoding.decode(opened.read(), str(patch), drop_alpha=True)
    _check_size(patch, *image.shape)
    return fit.apply(image)


def _open_patch(metadata: _Metadata, row: int) -> BinaryIO:
    patch = metadata.patch(row)
    try:
        return patch.open('rb')
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{metadata.line(row)}: no such patch: {patch}.') from error


def _check_size(patch: pathlib.Path, height: int, width: int, unused_channels: int) -> None:
    if (height, width) != (_PATCH_SIZE, _PATCH_SIZE):
        raise ValueError(f'{patch} is {height}x{width}, a patch is {_PATCH_SIZE}x{_PATCH_SIZE}.')
