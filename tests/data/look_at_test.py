"""Tests that a plan finds, without decoding images, what a run would stop at when it reads them."""

import io

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests.data import camelyon17_layout
from tf_dpdiff.data import camelyon17
from tf_dpdiff.data import datasets
from tf_dpdiff.data import decoding
from tf_dpdiff.data import folders
from tf_dpdiff.data import npy
from tf_dpdiff.data import public
from tf_dpdiff.data import tfrecords

PARTS = ('train', 'held_out')
# What is put in the place of a picture of 6x5x3.
FAULTS = {
    'size': ((7, 5, 3), None),
    'kind': ((6, 5, 1), None),
    'no picture': (None, b'no picture'),
    'empty': (None, b''),
}


def encode(shape, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if shape[-1] == 1 else pixels).save(stream, 'PNG')
    return stream.getvalue()


def put(fault):
    shape, content = FAULTS[fault]
    return content if shape is None else encode(shape)


def folder_of(tmp_path, part=None, fault=None, **options):
    """Returns images in class folders; one of a part may be at fault."""
    for number in range(40):
        file = tmp_path / {True: 'train', False: 'test'}[number < 30] / 'ab'[number % 2] / f'{number:02d}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        is_faulty = number == {'train': 17, 'held_out': 35}.get(part)
        file.write_bytes(put(fault) if is_faulty else encode((6, 5, 3), number))
    return folders.image_folder(str(tmp_path), **options)


def tfrecords_of(tmp_path, part=None, fault=None, **options):
    """Returns images in TFRecord files; one of a part may be at fault."""
    for name, count in (('train', 30), ('test', 10)):
        with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
            for number in range(count):
                is_faulty = name == {'train': 'train', 'held_out': 'test'}.get(part) and number == 7
                encoded = put(fault) if is_faulty else encode((6, 5, 3), number)
                features = {
                    'image/encoded': tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
                    'image/class/label': tf.train.Feature(int64_list=tf.train.Int64List(value=[number % 2])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
    return tfrecords.tfrecord_images(str(tmp_path / 'train'), held_out_pattern=str(tmp_path / 'test'), **options)


SOURCES = {'folder': folder_of, 'tfrecords': tfrecords_of}


def error_of(call, *arguments):
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        call(*arguments)
    return str(raised.value)


@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('part', PARTS)
def test_image_that_stops_a_run_stops_its_plan_in_the_same_words(tmp_path, monkeypatch, source, fault, part):
    data = SOURCES[source](tmp_path, part, fault)
    decoded = []
    with monkeypatch.context() as patched:
        patched.setattr(
            decoding, 'decode', lambda *arguments, decode=decoding.decode: decoded.append(1) or decode(*arguments)
        )
        said = error_of(data.look_at, part)
        data.look_at({'train': 'held_out', 'held_out': 'train'}[part])  # The other part is as it should be.
    assert len(decoded) <= 2  # The first record of a set of files says which shape the others must have.
    assert said == error_of(getattr, data, part)
    assert '\n' not in said


@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize(
    'options, faults',
    [
        ({'image_size': 4}, ('size',)),
        ({'channels': 1}, ('kind',)),
        ({'image_size': 4, 'channels': 3}, ('size', 'kind')),
        ({'image_size': (4, 7), 'resize': 'pad', 'background': 9, 'channels': 3}, ('size', 'kind')),
        ({'image_size': (7, 2), 'resize': 'stretch'}, ('size',)),
    ],
)
def test_images_that_are_made_alike_stop_neither(tmp_path, source, options, faults):
    for fault in faults:
        (tmp_path / fault).mkdir()
        data = SOURCES[source](tmp_path / fault, 'train', fault, **options)
        data.look_at('train')
        assert data.train.image_shape == data.spec.image_shape


@pytest.mark.parametrize('source', SOURCES)
def test_good_images_stop_neither(tmp_path, source):
    data = SOURCES[source](tmp_path)
    for part in PARTS:
        data.look_at(part)
    assert len(data.train) == 30 and len(data.held_out) == 10


def test_grey_levels_of_16_bits_in_records_are_mapped_by_a_window(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / 'deep')) as writer:
        for number in range(30):
            stream = io.BytesIO()
            Image.fromarray(np.full([3, 4], 1000 + number, np.uint16)).save(stream, 'TIFF')
            features = {
                'image/encoded': tf.train.Feature(bytes_list=tf.train.BytesList(value=[stream.getvalue()])),
                'image/class/label': tf.train.Feature(int64_list=tf.train.Int64List(value=[number % 2])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    data = tfrecords.tfrecord_images(str(tmp_path / 'deep'), window=(1000, 1255))
    for part in PARTS:
        data.look_at(part)
    levels = [image[0, 0, 0] for part in (data.train, data.held_out) for image in part.images_uint8]
    assert sorted(levels) == list(range(30)) and data.spec.preparation == data.train.spec.preparation != ''
    with pytest.raises(ValueError, match='is for encoded images'):
        tfrecords.tfrecord_images(str(tmp_path / 'deep'), window=(0, 9), raw_shape=(3, 4, 1))


def test_raw_pixels_of_records_are_looked_at(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / 'raw')) as writer:
        for number in range(30):
            pixels = bytes(range(number, number + (12 if number != 20 else 11)))
            features = {
                'image/encoded': tf.train.Feature(bytes_list=tf.train.BytesList(value=[pixels])),
                'image/class/label': tf.train.Feature(int64_list=tf.train.Int64List(value=[number % 2])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    data = tfrecords.tfrecord_images(str(tmp_path / 'raw'), raw_shape=(3, 4, 1))
    saying = [error_of(data.look_at, part) for part in PARTS if _stops(data, part)]
    assert len(saying) == 1 and 'record 20: 11 bytes of pixels' in saying[0]


def _stops(data, part):
    try:
        return not getattr(data, part)
    except ValueError:
        return True


@pytest.mark.parametrize('part, center', [('train', '0'), ('held_out', '2')])
@pytest.mark.parametrize('fault', ['missing', 'size', 'no picture'])
def test_patch_that_stops_a_run_stops_its_plan_in_the_same_words(tmp_path, part, center, fault):
    rows = camelyon17_layout.write(tmp_path, centers=(0, 2))
    file = camelyon17_layout.patch_file(tmp_path, next(row for row in rows if row['center'] == center))
    if fault == 'missing':
        file.unlink()
    else:
        file.write_bytes(put(fault))
    data = camelyon17.wilds_camelyon17(str(tmp_path))
    said = error_of(data.look_at, part)
    assert said == error_of(getattr, data, part) and str(file) in said
    data.look_at({'train': 'held_out', 'held_out': 'train'}[part])


def test_patches_that_are_cached_are_not_looked_at(tmp_path):
    rows = camelyon17_layout.write(tmp_path, centers=(0, 2))
    data = camelyon17.wilds_camelyon17(str(tmp_path), cache_dir=str(tmp_path / 'cache'))
    data.look_at('train')
    assert len(data.train)
    camelyon17_layout.patch_file(tmp_path, rows[0]).unlink()
    data.look_at('train')
    with pytest.raises(FileNotFoundError):  # Control: without the cache.
        camelyon17.wilds_camelyon17(str(tmp_path)).look_at('train')


def test_held_out_files_of_arrays_are_looked_at(tmp_path):
    generator = np.random.default_rng(0)
    for part, labels in (('train', 14), ('held_out', 5)):
        np.save(tmp_path / f'{part}_images.npy', generator.integers(0, 256, [14, 4, 4, 1]).astype(np.uint8))
        np.save(tmp_path / f'{part}_labels.npy', np.arange(labels) % 2)
    data = npy.npy_images(str(tmp_path))
    data.look_at('train')
    assert error_of(data.look_at, 'held_out') == error_of(getattr, data, 'held_out')


def test_public_images_are_those_of_the_training_part(tmp_path):
    (tmp_path / 'bad').mkdir()
    (tmp_path / 'good').mkdir()
    public.public_images(folder_of(tmp_path / 'good', 'held_out', 'size')).look_at()
    with pytest.raises(ValueError, match='give image_size'):
        public.public_images(folder_of(tmp_path / 'bad', 'train', 'size')).look_at()


def test_data_that_are_known_to_be_readable_need_no_look():
    data = datasets.digits()
    before = dict(data._parts)
    for part in PARTS:
        data.look_at(part)
    assert all(data._parts[name] is part for name, part in before.items())  # Nothing was read.
