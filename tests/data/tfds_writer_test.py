"""Tests of data sets written for TensorFlow Datasets: that library reads them, and downloads nothing."""

import numpy as np
from PIL import Image
import pytest

from tf_dpdiff.data import tfds_writer

pytestmark = pytest.mark.usefixtures('no_network')


def encode(image, path):
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path, 'PNG')
    return path.read_bytes()


def write_shard(path, tmp_path, *, first=0, count=10, channels=3, labels=None):
    images = np.random.default_rng(first).integers(0, 256, [count, 5, 4, channels]).astype(np.uint8)
    labels = np.arange(first, first + count) % 3 if labels is None else labels
    seeds = np.arange(first, first + count) + 2**40
    encoded = (encode(image, tmp_path / 'image.png') for image in images)
    tfds_writer.write_records(path, zip(encoded, labels, seeds))
    return images, labels, seeds


@pytest.mark.parametrize('channels', [1, 3])
def test_tfds_loads_images_labels_and_seeds(tmp_path, channels):
    folder = tmp_path / 'data' / 'toy_set' / tfds_writer.VERSION
    folder.mkdir(parents=True)
    shards = [
        write_shard(folder / tfds_writer.shard_name('toy_set', shard, 2), tmp_path, first=10 * shard, channels=channels)
        for shard in range(2)
    ]
    tfds_writer.write_metadata(
        folder,
        image_shape=(5, 4, channels),
        class_names=('cat', 'dog', 'öwl'),
        shard_lengths=[10, 10],
        num_bytes=123,
        description='Said of it.',
    )
    import tensorflow_datasets as tfds

    loaded, info = tfds.load('toy_set', data_dir=tmp_path / 'data', split='train', batch_size=-1, with_info=True)
    expected = dict(zip(('image', 'label', 'seed'), map(np.concatenate, zip(*shards))))
    order = np.argsort(loaded['seed'])
    for key, values in expected.items():
        np.testing.assert_array_equal(loaded[key].numpy()[order], values)
    assert info.features['label'].names == ['cat', 'dog', 'öwl'] and info.description == 'Said of it.'
    assert info.splits['train'].num_examples == 20 and info.splits['train'].num_shards == 2
    images, labels = tfds.load('toy_set', data_dir=tmp_path / 'data', split='train', batch_size=-1, as_supervised=True)
    assert images.shape == (20, 5, 4, channels) and labels.shape == (20,)


def test_records_come_back(tmp_path):
    labels = np.array([0, -1, 2, 1, -1])
    written = write_shard(tmp_path / 'records', tmp_path, count=5, labels=labels)
    for before, after in zip(written, tfds_writer.read_records(tmp_path / 'records', (5, 4, 3))):
        np.testing.assert_array_equal(before, after)


def test_the_same_records_are_the_same_bytes(tmp_path):
    for name in ('a', 'b'):
        write_shard(tmp_path / name, tmp_path)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def _cut(content):
    return content[:-7]


def _change(content):
    return content[:40] + bytes([content[40] ^ 1]) + content[41:]


@pytest.mark.parametrize('damage', [_cut, _change, lambda content: b''])
def test_damaged_records_are_refused_in_one_line(tmp_path, damage):
    path = tmp_path / 'records'
    write_shard(path, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match='records (is damaged|holds no records)') as error:
        tfds_writer.read_records(path, (5, 4, 3))
    assert '\n' not in str(error.value)


def test_records_of_images_of_another_size_are_refused(tmp_path):
    write_shard(tmp_path / 'records', tmp_path)
    with pytest.raises(ValueError, match='holds other records'):
        tfds_writer.read_records(tmp_path / 'records', (5, 5, 3))


@pytest.mark.parametrize('name', ['', 'Toy', '1toy', 'toy set', 'toy-set', 'toy/set', '_toy', 'toy_', 'toy__set'])
def test_names_that_tfds_could_not_load_are_refused(name):
    with pytest.raises(ValueError, match='a name of TensorFlow Datasets is of lower-case letters'):
        tfds_writer.check_name(name)


def test_names_that_tfds_knows_are_refused():
    tfds_writer.check_name('synthetic_mnist')
    for name in ('mnist', 'cifar10'):
        with pytest.raises(ValueError, match=f'has a data set {name!r} already'):
            tfds_writer.check_name(name)
