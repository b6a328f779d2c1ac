"""Data sets of TensorFlow Datasets that are written here: `tfds.load` reads them, and nothing is downloaded."""

from collections.abc import Iterable, Sequence
import os
import pathlib
import re
import warnings

import numpy as np
import tensorflow as tf

VERSION = '1.0.0'
METADATA_FILES = ('dataset_info.json', 'features.json', 'label.labels.txt')

_RECORD = {
    'image': tf.io.FixedLenFeature([], tf.string),
    'label': tf.io.FixedLenFeature([], tf.int64),
    'seed': tf.io.FixedLenFeature([], tf.int64),
}
_BATCH = 1000


def _library():
    # Or it asks a metadata server whether this machine is in Google's cloud, and waits.
    os.environ.setdefault('NO_GCE_CHECK', 'true')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        import tensorflow_datasets as tfds
    return tfds


def check_name(name: str) -> None:
    """Checks that a data set can be loaded by a name.

    Raises:
      ValueError: if it is no valid name, or that of a data set which TensorFlow Datasets already knows.
    """
    if not re.fullmatch(r'[a-z][a-z0-9]*(_[a-z0-9]+)*', name):
        raise ValueError(
            f'the data set cannot be called {name!r}: a name of TensorFlow Datasets is of lower-case '
            'letters, digits and single underscores, and begins with a letter.'
        )
    if name in _library().list_builders(with_community_datasets=False):
        raise ValueError(
            f'TensorFlow Datasets has a data set {name!r} already, and tfds.load would take that one; '
            'choose another name.'
        )


def shard_name(name: str, shard: int, num_shards: int) -> str:
    """Returns the name that TensorFlow Datasets gives a file of the split 'train'."""
    return f'{name}-train.tfrecord-{shard:05d}-of-{num_shards:05d}'


def write_records(path: pathlib.Path, records: Iterable[tuple[bytes, int, int]]) -> None:
    """Writes a TFRecord file of images.

    Args:
      path: The file.
      records: Each image as PNG, its label (-1 for no class) and its seed.
    """
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image, label, seed in records:
            feature = {
                'image': tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                'label': tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                'seed': tf.train.Feature(int64_list=tf.train.Int64List(value=[seed])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            # The order of a map's entries is left open otherwise.
            writer.write(example.SerializeToString(deterministic=True))


def write_metadata(
    folder: pathlib.Path,
    *,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
    shard_lengths: Sequence[int],
    num_bytes: int,
    description: str,
) -> None:
    """Writes what `tfds.load` needs beside the TFRecord files.

    Args:
      folder: NAME/VERSION, with all files of the split 'train'.
      image_shape: (height, width, channels).
      class_names: One a class.
      shard_lengths: Images in each file.
      num_bytes: The size of all files together.
      description: A text for the data set's users.
    """
    tfds = _library()
    features = tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(shape=image_shape, encoding_format='png'),
            'label': tfds.features.ClassLabel(names=list(class_names)),
            'seed': tfds.features.Scalar(np.int64),
        }
    )
    split = tfds.core.SplitInfo(name='train', shard_lengths=list(shard_lengths), num_bytes=num_bytes)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features,
        split_infos=[split],
        description=description,
        supervised_keys=('image', 'label'),
        check_data=False,
    )


def read_records(path: pathlib.Path, image_shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads a TFRecord file of images.

    Args:
      path: The file.
      image_shape: (height, width, channels).

    Returns:
      Images, uint8 [images, height, width, channels], labels, int64 [images], and seeds, int64 [images].

    Raises:
      ValueError: if a record cannot be read.
    """

    def parse(record):
        fields = tf.io.parse_single_example(record, _RECORD)
        image = tf.ensure_shape(tf.io.decode_png(fields['image'], channels=image_shape[-1]), image_shape)
        return image, fields['label'], fields['seed']

    records = tf.data.TFRecordDataset(str(path)).map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    try:
        batches = list(records.batch(_BATCH).as_numpy_iterator())
    except tf.errors.OpError as error:
        raise ValueError(f'{path} is damaged or holds other records: {error.message.splitlines()[0]}.') from error
    if not batches:
        raise ValueError(f'{path} holds no records.')
    images, labels, seeds = map(np.concatenate, zip(*batches))
    return images, labels, seeds
