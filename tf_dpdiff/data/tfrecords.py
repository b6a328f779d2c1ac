"""Images in TFRecord files of tf.train.Example."""

from collections.abc import Iterator, Mapping, Sequence
import glob
import io
import itertools
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from tf_dpdiff.data import arrays as arrays_lib
from tf_dpdiff.data import classes
from tf_dpdiff.data import datasets
from tf_dpdiff.data import decoding
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import problems as problems_lib
from tf_dpdiff.data import splitting


class _Format(NamedTuple):
    """How a record is read."""

    image_key: str
    label_key: str
    owner_key: str | None
    raw_shape: tuple[int, ...] | None
    compression: str
    fit: images_lib.Fit


class _Scanned(NamedTuple):
    """What records say but for their images; positions are those of their units, names of records are for errors."""

    files: tuple[str, ...]
    features: tuple[str, ...]
    labels: np.ndarray
    owners: np.ndarray | None
    positions: np.ndarray
    first_image: np.ndarray
    first_name: str


def tfrecord_images(
    pattern: str,
    *,
    held_out_pattern: str | None = None,
    held_out_fraction: float = 0.2,
    image_key: str = 'image/encoded',
    label_key: str = 'image/class/label',
    owner_key: str | None = None,
    raw_shape: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    compression: str = '',
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    resize: str = 'crop',
    background: int | tuple[int, int, int] | None = None,
    window: tuple[float, float] | None = None,
    unit: str | None = None,
) -> datasets.PrivateData:
    """Loads one's own images from TFRecord files of tf.train.Example.

    All records are gone through once to count them, without decoding the images.

    Args:
      pattern: The files, such as '~/scans/train-*.tfrecord'; taken in the order of their names.
      held_out_pattern: The files of the held-out images; None: they are split off from the others.
      held_out_fraction: About the share of the images or, where owners are named, of the owners that is split off, in
        (0, 1). Each decides for itself by a hash of the owner's name, or else of the bytes of the image and the label:
        the split is fixed, others do not change it, identical records are on one side, and nobody is on both.
      image_key: Feature with one string of bytes: a PNG, JPEG, TIFF, BMP or WebP file, or raw pixels.
      label_key: Feature with one int64: the class, from 0.
      owner_key: Feature with one int64 or string that says whose image it is, or None. Nobody may have records in both
        `pattern` and `held_out_pattern`.
      raw_shape: (height, width, channels) of raw uint8 pixels; None: the images are encoded.
      class_names: One a class; None: as many classes as there are different training labels, named by their numbers.
      compression: Of the files: '', 'GZIP' or 'ZLIB'.
      image_size: As `image_folder` has it.
      channels: As `image_folder` has it.
      resize: As `image_folder` has it.
      background: As `image_folder` has it.
      window: As `image_folder` has it; of encoded images.
      unit: What the guarantee protects, in words, where owners are named: 'one owner' if nothing is said. Without
        owners it is 'one image'.

    Returns:
      The two parts.

    Raises:
      FileNotFoundError: if no file matches.
      ValueError: names the file and record, and what is wrong with it.
    """
    fit = images_lib.Fit(image_size, channels, resize=resize, background=background, window=window)
    splitting.check_fraction(held_out_fraction)
    if compression not in ('', 'GZIP', 'ZLIB'):
        raise ValueError(f"compression must be '', 'GZIP' or 'ZLIB', got {compression!r}.")
    if raw_shape is not None and (len(raw_shape) != 3 or min(raw_shape) < 1 or raw_shape[2] not in images_lib.CHANNELS):
        raise ValueError(f'raw_shape must be (height, width, channels) with 1 or 3 channels, got {raw_shape}.')
    if raw_shape is not None and window is not None:
        raise ValueError(f'window={window} is for encoded images; raw_shape={raw_shape} says that pixels have 8 bits.')
    form = _Format(image_key, label_key, owner_key, tuple(raw_shape) if raw_shape else None, compression, fit)
    scanned = _scan(_match(pattern), form)
    if owner_key is None and unit is None:
        arrays_lib.note_unread_owners(pattern, set(scanned.features) - {image_key, label_key})
    names = classes.names_of(pattern, scanned.labels, class_names or None)
    name = pathlib.Path(pattern).name
    unit = datasets.choose_unit(name, unit, owner_key)

    def index_of(name, scanned):
        return datasets.ImageIndex(
            name, scanned.first_image.shape, scanned.labels, names, unit, scanned.owners, fit.describe()
        )

    if held_out_pattern:
        train, rows = index_of(name, scanned), np.arange(len(scanned.labels))

        def scan_held_out():
            other = _scan(_match(held_out_pattern), form)
            classes.check_range(held_out_pattern, other.labels, len(names))
            if scanned.owners is not None and other.owners is not None:
                splitting.check_owners_apart(f'{pattern} and {held_out_pattern}', scanned.owners, other.owners)
            return index_of(f'{name} held out', other), other, np.arange(len(other.labels))
    else:
        rows, rest = splitting.split(pattern, scanned.labels, scanned.positions, names, held_out_fraction)
        both = index_of(name, scanned)
        train, held_out = both.take(rows, name), both.take(rest, f'{name} held out')

        def scan_held_out():
            return held_out, scanned, rest

    def read(part):
        index, source, rows_of_part = (train, scanned, rows) if part == 'train' else scan_held_out()
        return index.with_images(_read_images(index, source, rows_of_part, form, scanned))

    def look_at(part):
        index, source, rows_of_part = (train, scanned, rows) if part == 'train' else scan_held_out()
        _look_at(index, source, rows_of_part, form, scanned)

    return datasets.PrivateData(
        train=lambda: read('train'), held_out=lambda: read('held_out'), spec=train.spec, look_at=look_at
    )


def _match(pattern: str) -> list[str]:
    files = sorted(glob.glob(os.path.expanduser(pattern)))
    if not files:
        raise FileNotFoundError(f'no such file: {pattern}.')
    return files


def _records(files: Sequence[str], form: _Format) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the name of each record and its features, in the order of the files."""
    import tensorflow as tf

    for file in files:
        records = iter(tf.data.TFRecordDataset(file, compression_type=form.compression).as_numpy_iterator())
        number = 0
        while True:
            name = f'{file}, record {number}'
            try:
                record = next(records, None)
                if record is None:
                    break
                features = tf.train.Example.FromString(record).features.feature
            except tf.errors.OpError as error:
                raise ValueError(f'{name} cannot be read: {images_lib.one_line(error)}.') from error
            except Exception as error:
                # The errors of protobuf's implementations share no public base.
                raise ValueError(f'{name} is no tf.train.Example.') from error
            yield name, features
            number += 1


def _value(features, key: str, kinds: Sequence[str], name: str):
    """Returns the one value of a feature."""
    if key not in features:
        raise ValueError(f'{name} has no {key!r}; it has {", ".join(sorted(features)) or "nothing"}.')
    kind = features[key].WhichOneof('kind')
    values: Sequence[Any] = getattr(features[key], kind).value if kind in kinds else ()
    if len(values) != 1:
        raise ValueError(f'{name}: {key!r} must hold one value ({" or ".join(kinds)}), got {len(values)} of {kind}.')
    return values[0]


def _scan(files: Sequence[str], form: _Format) -> _Scanned:
    """Goes through all records without decoding images, but for the first."""
    labels: list[int] = []
    owners: list[int | bytes] = []
    positions: list[int] = []
    first: tuple[str, np.ndarray, tuple[str, ...]] | None = None
    with images_lib.progress(None, 'labels') as bar:
        for name, features in _records(files, form):
            label = _value(features, form.label_key, ('int64_list',), name)
            if not 0 <= label < 2**31 - 1:
                raise ValueError(f'{name}: the label {label} is no class; classes count from 0.')
            labels.append(label)
            if form.owner_key:
                owner = _value(features, form.owner_key, ('int64_list', 'bytes_list'), name)
                if owners and isinstance(owner, bytes) != isinstance(owners[0], bytes):
                    raise ValueError(f'{name}: {form.owner_key!r} is a number in some records and a text in others.')
                owners.append(owner)
            else:
                encoded = _value(features, form.image_key, ('bytes_list',), name)
                positions.append(splitting.image_position(encoded, label))
            if first is None:
                first = name, _decode(features, form, name), tuple(features)
            bar.update()
    if first is None:
        raise ValueError(f'{files[0]} holds no images.')
    first_name, first_image, names = first
    classes_of = np.array(labels, np.int32)
    if not form.owner_key:
        return _Scanned(tuple(files), names, classes_of, None, np.array(positions, np.uint64), first_image, first_name)
    owner_of = np.array(
        [owner.decode('utf-8', 'backslashreplace') if isinstance(owner, bytes) else owner for owner in owners]
    )
    splitting.check_owners(owner_of, lambda row: next(itertools.islice(_records(files, form), row, None))[0])
    positions_of = splitting.owner_positions(owner_of)
    return _Scanned(tuple(files), names, classes_of, owner_of, positions_of, first_image, first_name)


def _decode(features, form: _Format, name: str) -> np.ndarray:
    """Returns the image of a record, uint8 [height, width, channels]."""
    encoded = _value(features, form.image_key, ('bytes_list',), name)
    if form.raw_shape is None:
        image = decoding.decode(encoded, name, form.fit)
    elif len(encoded) != np.prod(form.raw_shape):
        raise ValueError(
            f'{name}: {len(encoded)} bytes of pixels, {"x".join(map(str, form.raw_shape))} need '
            f'{np.prod(form.raw_shape)}.'
        )
    else:
        image = np.frombuffer(encoded, np.uint8).reshape(form.raw_shape)
    return form.fit.apply(image)


def _look_at(index: datasets.ImageIndex, source: _Scanned, rows: np.ndarray, form: _Format, like: _Scanned) -> None:
    """Checks the images of some rows, encoded ones by their headers."""
    shape, first, wanted = like.first_image.shape, like.first_name, set(rows.tolist())
    problems = problems_lib.Problems(f'the images of {index.name!r}')
    with images_lib.progress(len(rows), index.name) as bar:
        for row, (record, features) in enumerate(_records(source.files, form)):
            if row not in wanted:
                continue
            try:
                if form.raw_shape:
                    images_lib.check_shape(_decode(features, form, record), shape, record, first)
                else:
                    encoded = io.BytesIO(_value(features, form.image_key, ('bytes_list',), record))
                    decoding.check_shape(encoded, record, shape, first, form.fit)
            except ValueError as error:
                problems.add(error)
            bar.update()
    problems.check()


def _read_images(
    index: datasets.ImageIndex, source: _Scanned, rows: np.ndarray, form: _Format, like: _Scanned
) -> np.ndarray:
    """Decodes the images of some rows."""
    where = np.full([len(source.labels)], -1)
    where[rows] = np.arange(len(rows))
    out = np.empty([len(rows), *like.first_image.shape], np.uint8)
    count, problems = 0, problems_lib.Problems(f'the images of {index.name!r}')
    with images_lib.progress(len(rows), index.name) as bar:
        for name, features in _records(source.files, form):
            if count == len(where):
                raise ValueError(f'{name} was not there when the records were counted.')
            if where[count] >= 0:
                try:
                    image = _decode(features, form, name)
                    out[where[count]] = images_lib.check_shape(image, out.shape[1:], name, like.first_name)
                except ValueError as error:
                    problems.add(error)
                bar.update()
            count += 1
    problems.check()
    if count < len(where):
        raise ValueError(f'{source.files[-1]}: {len(where) - count} of the records that were counted are gone.')
    return out
