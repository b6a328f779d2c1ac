"""Data sets that TensorFlow Datasets has prepared on this machine."""

from collections.abc import Iterator
import contextlib
import functools
import os
import pathlib
import re

from absl import logging
import numpy as np

from tf_dpdiff.data import arrays as arrays_lib
from tf_dpdiff.data import classes
from tf_dpdiff.data import datasets
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import splitting

# Image shape, classes and training images of data sets that a run may be planned for before they are there.
PUBLISHED_SIZES = {
    'mnist': ((28, 28, 1), 10, 60000),
    'fashion_mnist': ((28, 28, 1), 10, 60000),
    'cifar10': ((32, 32, 3), 10, 50000),
    'imagenet_resized/32x32': ((32, 32, 3), 1000, 1281167),
    'tiny_imagenet32': ((32, 32, 3), 200, 100000),
}

_BATCH = 512  # Images decoded at a time.


def tfds_images(
    name: str,
    *,
    train_split: str = 'train',
    held_out_split: str = 'test',
    data_dir: str | None = None,
    image_key: str = 'image',
    label_key: str = 'label',
    owner_key: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    resize: str = 'crop',
    background: int | tuple[int, int, int] | None = None,
    unit: str | None = None,
) -> datasets.PrivateData:
    """Loads a data set of TensorFlow Datasets by its name; reads what is prepared and never downloads.

    Args:
      name: Such as 'mnist', 'imagenet_resized/32x32' or 'cifar10:3.0.2'; without a version the latest that is there.
      train_split: A split or a slice of one, such as 'train[:80%]'.
      held_out_split: The same, of images that are not trained on.
      data_dir: Where data sets are prepared; None: the environment's TFDS_DATA_DIR, or ~/tensorflow_datasets.
      image_key: Feature with the image.
      label_key: Feature with the class; must be a tfds.features.ClassLabel.
      owner_key: Feature, a whole number or a text, that says whose image it is, or None. Nobody may be in both splits.
      image_size: As `image_folder` has it.
      resize: As `image_folder` has it.
      background: Around images that are padded.
      unit: What the guarantee protects, in words, where owners are named: 'one owner' if nothing is said. Without
        owners it is 'one image'.

    Returns:
      The two parts, images in the order of the files. Where one of PUBLISHED_SIZES is not prepared,
      there is a `spec` of its published sizes, and asking for images raises the error.

    Raises:
      FileNotFoundError: if the data set is not prepared; says where it was looked for and how to prepare it.
      ValueError: if it lacks a split or a feature, or a record cannot be read.
    """
    fit = images_lib.Fit(image_size, resize=resize, background=background)
    fit.check_border()
    is_unit_said, unit = unit is not None, datasets.choose_unit(name, unit, owner_key)
    root = pathlib.Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()
    folder = _find(root, name)
    if folder is None:
        return _published(name, root, train_split, owner_key, fit, unit)
    if owner_key is None and not is_unit_said:
        arrays_lib.note_unread_owners(str(folder), set(_open(folder)[1].info.features) - {image_key, label_key})
    read = functools.partial(_read_part, folder, keys=(image_key, label_key, owner_key), fit=fit, unit=unit)
    image_shape, class_names, num_images, num_units = _spec(
        folder, (image_key, label_key, owner_key), train_split, held_out_split, fit
    )
    whole_name = name if train_split == 'train' else f'{name} {train_split}'
    spec = datasets.DatasetSpec(
        whole_name,
        image_shape,
        class_names,
        num_images,
        num_units,
        unit,
        owner_key is not None,
        preparation=fit.describe(),
    )
    return datasets.PrivateData(
        train=lambda: read(spec.name, train_split, check_classes=True),
        held_out=lambda: read(f'{name} {held_out_split}', held_out_split, apart_from=train_split),
        spec=spec,
    )


def _find(root: pathlib.Path, name: str) -> pathlib.Path | None:
    """Returns the folder of a version of a prepared data set, or None."""
    name, _, version = name.partition(':')
    folder = root / name
    versions = {
        tuple(map(int, child.name.split('.'))): child
        for child in (folder.iterdir() if folder.is_dir() else ())
        if re.fullmatch(r'\d+\.\d+\.\d+', child.name) and (child / 'dataset_info.json').is_file()
    }
    if version:
        return next((child for child in versions.values() if child.name == version), None)
    return versions[max(versions)] if versions else None


def _published(name, root, train_split, owner_key, fit, unit) -> datasets.PrivateData:
    """Returns data that are planned with and cannot be read."""
    error = FileNotFoundError(
        f'the data set {name!r} is not prepared in {root}; prepare it with .venv/bin/python -c '
        f"\"import tensorflow_datasets as tfds; tfds.load('{name}', data_dir='{root}')\"."
    )
    if name not in PUBLISHED_SIZES or train_split != 'train' or owner_key is not None:
        raise error

    def read():
        raise error

    image_shape, num_classes, num_images = PUBLISHED_SIZES[name]
    spec = datasets.DatasetSpec(
        name,
        fit.shape_of(image_shape),
        tuple(map(str, range(num_classes))),
        num_images,
        num_images,
        unit,
        note=f'not found in {root}; published sizes',
        preparation=fit.describe(),
    )
    return datasets.PrivateData(train=read, held_out=read, spec=spec)


def _open(folder: pathlib.Path):
    """Returns the library and the builder of a prepared data set."""
    # Or it asks a metadata server whether this machine is in Google's cloud, and waits.
    os.environ.setdefault('NO_GCE_CHECK', 'true')
    import tensorflow_datasets as tfds

    try:
        return tfds, tfds.builder_from_directory(str(folder))
    except Exception as error:
        # The library lists no errors for damaged files.
        raise ValueError(f'{folder} is not a prepared data set: {images_lib.one_line(error)}.') from error


def _spec(folder, keys, train_split, held_out_split, fit) -> tuple:
    """Returns image shape, class names, and numbers of images and units of the training part."""
    tfds, builder = _open(folder)
    features = builder.info.features
    for key in keys:
        if key is not None and key not in features:
            raise ValueError(f'{folder}: there is no feature {key!r}; there are {", ".join(sorted(features))}.')
    image_key, label_key, owner_key = keys
    image, label = features[image_key], features[label_key]
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(f'{folder}: the feature {image_key!r} is no image of 8-bit pixels.')
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise ValueError(f'{folder}: the feature {label_key!r} is no class label.')
    num_images = _num_images(builder, folder, train_split)
    _num_images(builder, folder, held_out_split)
    height, width, channels = image.shape
    if fit.size is None and None in (height, width):
        raise ValueError(f'{folder}: images have no common size; give image_size.')
    if channels not in images_lib.CHANNELS:
        raise ValueError(f'{folder}: images have {channels} channels; they must have 1 or 3.')
    num_units = num_images
    if owner_key is not None:
        owners = _read_columns(folder, train_split, (owner_key,))[owner_key]
        num_units = len(np.unique(_check_owners(folder, owner_key, owners)))
    return fit.shape_of((height, width, channels)), tuple(label.names), num_images, num_units


def _num_images(builder, folder, split) -> int:
    try:
        num_images = builder.info.splits[split].num_examples
    except Exception as error:
        known = ', '.join(sorted(builder.info.splits))
        raise ValueError(f'{folder} has no split {split!r}; it has {known}, and slices of them.') from error
    if not num_images:
        raise ValueError(f'{folder}: the split {split!r} holds no images.')
    return num_images


def _check_owners(folder, owner_key, owners) -> np.ndarray:
    """Returns the owners if each has a name or a number."""
    if owners.ndim != 1 or owners.dtype.kind not in 'iuO':
        raise ValueError(f'{folder}: the feature {owner_key!r} is neither a whole number nor a text.')
    if owners.dtype.kind == 'O':
        owners = np.array([owner.decode('utf-8', 'backslashreplace') for owner in owners])
    splitting.check_owners(owners, lambda row: f'{folder}: record {row}')
    return owners


@contextlib.contextmanager
def _errors_of(source: str) -> Iterator[None]:
    """Turns whatever the library raises into one line that names the source."""
    try:
        yield
    except Exception as error:
        raise ValueError(f'{source} cannot be read: {images_lib.one_line(error)}.') from error


def _batches(folder, split, keys, batch_size) -> Iterator[dict]:
    """Yields the features of records in the order of the files, each [records, ...]."""
    tfds, builder = _open(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # The library warns of its own use of a deprecated name.
    try:
        dataset = builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding({key: True for key in keys}),
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
    finally:
        logging.set_verbosity(verbosity)
    yield from dataset.batch(batch_size).as_numpy_iterator()


def _read_columns(folder, split, keys) -> dict:
    """Returns features without the images."""
    with _errors_of(f'{folder}: a record of the split {split!r}'):
        batches = list(_batches(folder, split, keys, 8 * _BATCH))
        return {key: np.concatenate([batch[key] for batch in batches]) for key in keys}


def _read_part(folder, name, split, *, keys, fit, unit, check_classes=False, apart_from=None) -> datasets.ImageDataset:
    """Reads a split; apart_from: another one that may not have the same owners."""
    image_key, label_key, owner_key = keys
    _, builder = _open(folder)
    num_images, names = builder.info.splits[split].num_examples, tuple(builder.info.features[label_key].names)
    height, width, channels = builder.info.features[image_key].shape
    # Images of several sizes make no batch.
    batch_size = 1 if None in (height, width) else _BATCH
    out = np.empty([num_images, *fit.shape_of((height, width, channels))], np.uint8)
    columns: dict[str, list[np.ndarray]] = {key: [] for key in (label_key, owner_key) if key}
    row = 0
    with images_lib.progress(num_images, name) as bar:
        batches = _batches(folder, split, [key for key in keys if key], batch_size)
        while row < num_images:
            with _errors_of(f'{folder}: record {row} or one of the next {batch_size} of the split {split!r}'):
                batch = next(batches, None)
            if batch is None:
                raise ValueError(f'{folder}: the split {split!r} holds {row} records, {num_images} expected.')
            images = batch[image_key]
            out[row : row + len(images)] = fit.apply(images)
            for key, values in columns.items():
                values.append(batch[key])
            row += len(images)
            bar.update(len(images))
    labels = np.concatenate(columns[label_key])
    classes.check_range(f'{folder}: the split {split!r}', labels, len(names))
    if check_classes:
        classes.check_labels(f'{folder}: the split {split!r}', labels, names)
    owners = _check_owners(folder, owner_key, np.concatenate(columns[owner_key])) if owner_key else None
    if owners is not None and apart_from:
        others = _check_owners(folder, owner_key, _read_columns(folder, apart_from, (owner_key,))[owner_key])
        splitting.check_owners_apart(f'{folder}: the splits {apart_from!r} and {split!r}', others, owners)
    index = datasets.ImageIndex(name, out.shape[1:], labels.astype(np.int32), names, unit, owners, fit.describe())
    return index.with_images(out)
