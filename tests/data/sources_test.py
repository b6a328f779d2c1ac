"""Tests of what all sources of one's own images refuse alike, before a run could begin: each source writes the same."""

import csv
import io

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests.data import camelyon17_layout
from tests.data import dicom_files
from tf_dpdiff.data import camelyon17
from tf_dpdiff.data import datasets
from tf_dpdiff.data import dicom
from tf_dpdiff.data import folders
from tf_dpdiff.data import npy
from tf_dpdiff.data import problems
from tf_dpdiff.data import table_images
from tf_dpdiff.data import tfds_images
from tf_dpdiff.data import tfrecords

NUM_IMAGES = 36
OWNERS = [f'p{i // 3}' for i in range(NUM_IMAGES)]
LABELS = np.arange(NUM_IMAGES) % 3


def pictures(shape=(4, 3, 3)):
    return np.random.default_rng(0).integers(0, 256, [NUM_IMAGES, *shape]).astype(np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


def open_npz(folder, images, labels, owners):
    more = {} if owners is None else {'owners': np.array(owners)}
    np.savez(folder / 'own.npz', images=images, labels=labels, **more)
    return datasets.npz_images(folder / 'own.npz')


def open_npy(folder, images, labels, owners):
    more = {} if owners is None else {'train_owners': np.array(owners)}
    arrays = {'train_images': images, 'train_labels': labels, 'held_out_images': images, 'held_out_labels': labels}
    for name, values in {**arrays, **more}.items():
        np.save(folder / f'{name}.npy', values)
    return npy.npy_images(folder)


def open_folders(folder, images, labels, owners):
    for i, (image, label) in enumerate(zip(images, labels)):
        file = folder / 'scans' / f'class {label}' / (f'{i}.png' if owners is None else f'{owners[i]}_{i}.png')
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return folders.image_folder(folder / 'scans', owner_from=None if owners is None else 'prefix')


def open_table(folder, images, labels, owners):
    (folder / 'scans').mkdir(exist_ok=True)
    columns = {'file_name': [f'{i}.png' for i in range(len(images))], 'label': labels}
    columns |= {} if owners is None else {'owner': owners}
    for name, image in zip(columns['file_name'], images):
        (folder / 'scans' / name).write_bytes(png(image))
    with open(folder / 'scans' / 'metadata.csv', 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file)
        writer.writerows([list(columns), *zip(*columns.values())])
    return table_images.csv_images(folder / 'scans', owner_column=None if owners is None else 'owner')


def open_dicom(folder, images, labels, owners):
    """Has owners as texts, and always; that they are named is told without their names."""
    for i, (image, label) in enumerate(zip(images, labels)):
        file = folder / 'scans' / f'class {label}' / f'{i}.dcm'
        dicom_files.write(file, image, OWNERS[i] if owners is None else owners[i])
    return dicom.dicom_folder(folder / 'scans')


def open_tfrecords(folder, images, labels, owners):

    def feature(value):
        if isinstance(value, (str, bytes)):
            value = value.encode() if isinstance(value, str) else value
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    with tf.io.TFRecordWriter(str(folder / 'scans')) as writer:
        for i, (image, label) in enumerate(zip(images, labels)):
            features = {'image/encoded': feature(png(image)), 'image/class/label': feature(label)}
            if owners is not None:
                features['owner'] = feature(owners[i])
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return tfrecords.tfrecord_images(str(folder / 'scans'), owner_key=None if owners is None else 'owner')


def open_tfds(folder, images, labels, owners):
    import tensorflow_datasets as tfds

    features = {
        'image': tfds.features.Image(shape=images.shape[1:], encoding_format='png'),
        'label': tfds.features.ClassLabel(num_classes=3),
    }
    if owners is not None:
        features['owner'] = tfds.features.Text() if isinstance(owners[0], str) else tfds.features.Scalar(np.int64)
    columns = {'image': images, 'label': labels, **({} if owners is None else {'owner': owners})}
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    features = tfds.features.FeaturesDict(features)
    signature = {key: tf.TensorSpec(feature.shape, feature.tf_dtype) for key, feature in features.items()}
    split = tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)
    tfds.dataset_builders.store_as_tfds_dataset(
        name='toy',
        version='1.0.0',
        data_dir=folder,
        features=features,
        split_datasets={'train': split},
        disable_shuffling=True,
    )
    return tfds_images.tfds_images('toy', data_dir=folder, held_out_split='train', owner_key=owners and 'owner')


def open_camelyon17(folder, images, labels, owners):
    """Has columns for owners, but neither other images nor other labels."""
    del images, labels
    rows = camelyon17_layout.write(folder, centers=(0, 2, 3))
    with open(folder / 'camelyon17_v1.0' / 'metadata.csv', 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, camelyon17_layout.COLUMNS)
        writer.writeheader()
        writer.writerows({**row, 'patient': owner} for row, owner in zip(rows, owners))
    return camelyon17.wilds_camelyon17(folder, unit='patient')


ARRAYS = {'npz': open_npz, 'npy': open_npy}
SOURCES = {**ARRAYS, 'folders': open_folders, 'table': open_table, 'tfrecords': open_tfrecords, 'tfds': open_tfds}
OWNED = {**SOURCES, 'camelyon17': open_camelyon17, 'dicom': open_dicom}


def refusal(open_source, folder, *, images=None, labels=LABELS, owners=None):
    """Returns the objection of a source to data, or None if it takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        open_source(folder, pictures() if images is None else images, labels, owners)
    except (ValueError, FileNotFoundError) as error:
        assert '\n' not in str(error) or isinstance(error, problems.ProblemsError)
        return str(error)
    return None


def with_last(*names):
    return [*OWNERS[: -len(names)], *names]


@pytest.mark.parametrize('name', SOURCES)
def test_every_source_takes_good_data(tmp_path, name):
    assert refusal(SOURCES[name], tmp_path / 'images') is None
    assert refusal(SOURCES[name], tmp_path / 'texts', owners=OWNERS) is None
    numbers = [i // 3 for i in range(NUM_IMAGES)]
    assert name == 'folders' or refusal(SOURCES[name], tmp_path / 'numbers', owners=numbers) is None


@pytest.mark.parametrize(
    'missing', ['', ' ', 'nan', 'NaN', 'None', 'null', 'NA', '<NA>', 'n.a.', 'NaT', 'unknown', '-1', 'pnan', '?']
)
@pytest.mark.parametrize('name', ['npz', 'npy', 'folders', 'table', 'tfrecords', 'camelyon17'])
def test_every_source_refuses_images_of_nobody(tmp_path, name, missing):
    said = refusal(OWNED[name], tmp_path / 'own', owners=with_last(missing, missing))
    assert 'names no owner' in said or name == 'camelyon17' and 'patient must be a whole number' in said


@pytest.mark.parametrize('other', ['P1', 'p1 ', ' p1', 'p 1', 'p\uff11', 'p1\u200b'])
@pytest.mark.parametrize('name', ['npz', 'npy', 'folders', 'table', 'tfrecords'])
def test_every_source_refuses_one_name_in_two_spellings(tmp_path, name, other):
    said = refusal(SOURCES[name], tmp_path / 'own', owners=with_last(other))
    assert 'names its owner' in said and ascii(other)[1:-1] in ascii(said).replace('\\\\', '\\')


@pytest.mark.parametrize('other', [None, '', ' ', 'unknown', '-1', '?', 'P1', 'p 1', '1.2E+17'])
def test_dicom_refuses_the_same_without_the_name(tmp_path, other):
    assert refusal(open_dicom, tmp_path / 'good') is None
    said = refusal(open_dicom, tmp_path / 'own', owners=with_last(other))
    assert '35.dcm ' in said and (not other or f"'{other}'" not in said)


def test_camelyon17_knows_a_patient_whose_zeros_were_lost(tmp_path):
    num_rows = 36  # Of the first hospital, of which 24 are trained on, and of the others.
    owners = [f'{i // 6:03d}' for i in range(num_rows)]
    assert refusal(open_camelyon17, tmp_path / 'good', owners=owners) is None
    owners[6:9] = ['1'] * 3
    assert "names its owner '001'" in refusal(open_camelyon17, tmp_path / 'lost', owners=owners)


@pytest.mark.parametrize(
    'owners, message', [(with_last('nan'), "names no owner: 'nan'"), (with_last('P1'), "names its owner 'P1'")]
)
def test_tfds_refuses_the_same(tmp_path, owners, message):
    assert message in refusal(open_tfds, tmp_path, owners=owners)


@pytest.mark.parametrize('name', ARRAYS)
@pytest.mark.parametrize(
    'owners, message',
    [
        (np.array([0.0, 1.0, np.nan] * 12), 'names no owner: nan'),
        (np.arange(36.0), 'got float64; store owners.astype(numpy.int64)'),
        (np.arange(36.0) + 2.0**53, 'got float64; such large ones are rounded'),
        ((np.arange(36) + 2**24).astype(np.float32), 'got float32; such large ones are rounded'),
        (np.arange(36) / 2, 'got float64; no owner is a fraction'),
        (np.array(['1.23E+17', 'a', 'b'] * 12), "'1.23E+17', which is a rounded number"),
        (np.arange(36) % 2 == 0, 'got bool'),
        (np.array(OWNERS, object), 'holds Python objects (dtype object), which are not read; store owners.astype(str)'),
        (np.array(with_last(None), object), 'store owners.astype(str)'),
        (np.array(with_last(' '), 'S'), "names no owner: b' '"),
    ],
)
def test_owners_that_are_neither_whole_numbers_nor_names_are_refused_with_the_cure(tmp_path, name, owners, message):
    assert message in refusal(ARRAYS[name], tmp_path, owners=owners)


@pytest.mark.parametrize('name', ['npz', 'npy', 'tfrecords'])
@pytest.mark.parametrize(
    'labels, message',
    [
        (LABELS + 1, 'the labels count from 1 (to 3) and must count from 0: subtract 1 from each'),
        (LABELS * 2, 'the labels have gaps: 3 different ones, the largest 4, and no image has the label 1'),
        (LABELS * 10**7, 'the labels have gaps: 3 different ones, the largest 20000000, and no image has the label 1'),
        (LABELS - 1, 'label -1'),
    ],
)
def test_labels_that_do_not_count_from_0_are_named_for_what_they_are(tmp_path, name, labels, message):
    assert message in refusal(SOURCES[name], tmp_path, labels=labels)


@pytest.mark.parametrize('name', ARRAYS)
@pytest.mark.parametrize(
    'labels, cure',
    [
        (LABELS.astype(float), 'store labels.astype(numpy.int64)'),
        (np.array(['cat', 'dog', 'eel'])[LABELS], 'numpy.unique(labels, return_inverse=True)'),
        (np.eye(3)[LABELS], 'store labels.argmax(axis=1)'),
        (
            LABELS.astype(object),
            'holds Python objects (dtype object), which are not read; store labels.astype(numpy.int',
        ),
    ],
)
def test_labels_that_are_no_whole_numbers_are_refused_with_the_cure(tmp_path, name, labels, cure):
    assert cure in refusal(ARRAYS[name], tmp_path, labels=labels)


def test_tfds_names_the_class_without_an_image(tmp_path):
    data = open_tfds(tmp_path, pictures(), LABELS % 2, None)
    with pytest.raises(ValueError, match="class '2' has no training image"):
        data.train


@pytest.mark.parametrize('name', ARRAYS)
@pytest.mark.parametrize(
    'shape, cure',
    [
        ((1, 8, 8), 'have 8 channels .* if their channels come first, put them last: images.transpose(0, 2, 3, 1)'),
        ((3, 8, 6), 'have 6 channels .* images.transpose(0, 2, 3, 1)'),
        ((4, 8, 8), 'have 8 channels .* images.transpose(0, 2, 3, 1)'),
        ((8, 6, 4), 'have 4 channels .* drop it: images[..., :3]'),
        ((8, 6, 2), 'have 2 channels .* drop it: images[..., :1]'),
        ((8, 6, 12), 'have 12 channels .* keep or compute one or three of them'),
    ],
)
def test_images_that_no_set_of_samples_can_hold_are_refused(tmp_path, name, shape, cure):
    said = refusal(ARRAYS[name], tmp_path, images=pictures(shape))
    first, second = cure.split(' .* ')
    assert first in said and second in said


@pytest.mark.parametrize('name', ARRAYS)
@pytest.mark.parametrize('shape', [(1, 8, 1), (1, 8, 3), (3, 8, 1), (3, 3, 3), (8, 1, 3), (1, 1, 1)])
def test_odd_but_honest_shapes_are_taken(tmp_path, name, shape):
    assert refusal(ARRAYS[name], tmp_path, images=pictures(shape), labels=LABELS * 0) is None
