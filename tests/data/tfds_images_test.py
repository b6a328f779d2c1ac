"""Tests of data sets of TensorFlow Datasets: small ones that are prepared here, and real ones where there are any."""

import os

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.data import images
from tf_dpdiff.data import tfds_images

pytestmark = pytest.mark.usefixtures('no_network')

REAL = os.environ.get('TF_DPDIFF_TFDS_DIR')


def prepare(
    data_dir, name='toy', version='1.0.0', num_images=(12, 6), shape=(6, 5, 3), owners=None, sizes=(6,), labels=None
):
    """Prepares a data set offline; returns the images and labels of each split."""
    import tensorflow_datasets as tfds

    fixed = shape if len(sizes) == 1 else (None, None, shape[2])
    features = {
        'image': tfds.features.Image(shape=fixed, encoding_format='png'),
        'label': tfds.features.ClassLabel(names=['a', 'b', 'c']),
    }
    if owners is not None:
        features['owner'] = tfds.features.Text() if isinstance(owners[0], str) else tfds.features.Scalar(np.int64)
    features = tfds.features.FeaturesDict(features)
    generator, splits, expected = np.random.default_rng(0), {}, {}
    for split, count in zip(('train', 'test'), num_images):
        rows = []
        for i in range(count):
            size = (sizes[i % len(sizes)], *shape[1:])
            rows.append(
                {
                    'image': generator.integers(0, 256, size).astype(np.uint8),
                    'label': i % 3 if labels is None else labels[i],
                }
            )
            if owners is not None:
                rows[-1]['owner'] = owners[i]
        signature = {key: tf.TensorSpec(feature.shape, feature.tf_dtype) for key, feature in features.items()}
        splits[split] = tf.data.Dataset.from_generator(lambda rows=rows: iter(rows), output_signature=signature)
        expected[split] = [row['image'] for row in rows], [row['label'] for row in rows]
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name, version=version, data_dir=data_dir, features=features, split_datasets=splits, disable_shuffling=True
    )
    return expected


@pytest.fixture(name='toy', scope='module')
def fixture_toy(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp('tfds')
    return data_dir, prepare(data_dir)


def test_images_and_labels_are_those_that_were_prepared(toy):
    data_dir, expected = toy
    data = tfds_images.tfds_images('toy', data_dir=data_dir)
    assert data.spec == data.train.spec and data.spec.class_names == ('a', 'b', 'c') and not data.spec.note
    for part, split in ((data.train, 'train'), (data.held_out, 'test')):
        images, labels = expected[split]
        np.testing.assert_array_equal(part.images_uint8, images)
        np.testing.assert_array_equal(part.labels, labels)
    assert data.train.name == 'toy' and data.held_out.name == 'toy test' and data.train.unit == 'one image'


def test_slices_folder_of_the_environment_and_unit(toy, monkeypatch):
    data_dir, expected = toy
    monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
    data = tfds_images.tfds_images(
        'toy:1.0.0', train_split='train[:50%]', held_out_split='train[50%:]', unit='one image'
    )
    assert data.spec.num_images == 6 and data.spec == data.train.spec and data.train.unit == 'one image'
    np.testing.assert_array_equal(data.held_out.images_uint8, expected['train'][0][6:])


def test_latest_version_is_read(tmp_path):
    for version, count in (('1.2.0', 12), ('1.10.0', 9), ('1.9.0', 6)):
        prepare(tmp_path, version=version, num_images=(count, 3))
    assert tfds_images.tfds_images('toy', data_dir=tmp_path).spec.num_images == 9
    assert tfds_images.tfds_images('toy:1.2.0', data_dir=tmp_path).spec.num_images == 12
    with pytest.raises(FileNotFoundError, match="'toy:2.0.0' is not prepared"):
        tfds_images.tfds_images('toy:2.0.0', data_dir=tmp_path)


@pytest.mark.parametrize('owners', [list('cabcabcabcab'), [7, 3, 9, 3] * 3])
def test_unit_may_be_an_owner(tmp_path, owners):
    prepare(tmp_path, owners=owners, num_images=(12, 6))
    data = tfds_images.tfds_images('toy', data_dir=tmp_path, owner_key='owner')
    assert data.spec == data.train.spec and data.spec.has_owners and data.spec.unit == 'one owner'
    words = tfds_images.tfds_images('toy', data_dir=tmp_path, owner_key='owner', unit='one patient')
    assert words.spec == words.train.spec and words.spec.unit == 'one patient'
    names = sorted(set(owners))
    assert data.spec.num_units == len(names) and [names[i] for i in data.train.owners] == owners


@pytest.mark.parametrize(
    'options, noted', [({}, True), ({'unit': 'one image'}, False), ({'owner_key': 'owner'}, False)]
)
def test_owners_that_nobody_asks_for_are_not_passed_over_in_silence(tmp_path, capsys, options, noted):
    prepare(tmp_path, owners=list('cabcabcabcab'))
    tfds_images.tfds_images('toy', data_dir=tmp_path, **options)
    assert ("'owner' seems to say whose image each is, and is not read" in capsys.readouterr().err) == noted


def test_unit_in_words_needs_owners(toy, tmp_path):
    for name, folder in (('toy', toy[0]), ('mnist', tmp_path)):  # The second is not there, but can be planned with.
        with pytest.raises(ValueError, match=f"^data set '{name}': unit='one patient' needs owners"):
            tfds_images.tfds_images(name, data_dir=folder, unit='one patient')
    with pytest.raises(ValueError, match="^data set 'toy': unit='one image', but owners are named"):
        tfds_images.tfds_images('toy', data_dir=toy[0], owner_key='label', unit='one image')


def test_owner_in_both_splits_is_refused_when_the_held_out_part_is_read(tmp_path):
    prepare(tmp_path, owners=list('aabbccddeeff'), num_images=(12, 6))  # The split test has a, b and c.
    options = {'data_dir': tmp_path, 'owner_key': 'owner', 'train_split': 'train[6:]'}
    apart = tfds_images.tfds_images('toy', **options)
    assert apart.train.num_units == apart.held_out.num_units == 3
    mixed = tfds_images.tfds_images('toy', **{**options, 'train_split': 'train[5:]'})
    assert mixed.train.num_units == 4
    with pytest.raises(ValueError, match=r"the splits 'train\[5:\]' and 'test': 1 owner\(s\) have both .* such as 'c'"):
        mixed.held_out


def test_images_of_several_sizes_are_resized(tmp_path):
    expected = prepare(tmp_path, sizes=(6, 7, 9), shape=(6, 6, 3))
    with pytest.raises(ValueError, match='images have no common size; give image_size'):
        tfds_images.tfds_images('toy', data_dir=tmp_path)
    data = tfds_images.tfds_images('toy', data_dir=tmp_path, image_size=3)
    assert data.train.image_shape == data.spec.image_shape == (3, 3, 3)
    np.testing.assert_array_equal(
        data.train.images_uint8[0], np.floor(expected['train'][0][0].reshape(3, 2, 3, 2, 3).mean((1, 3)) + 0.5)
    )


@pytest.mark.parametrize('resize, background', [('crop', None), ('pad', 9), ('stretch', None)])
def test_images_come_to_any_proportions(toy, resize, background):
    whole = tfds_images.tfds_images('toy', data_dir=toy[0])
    options = {'image_size': (3, 7), 'resize': resize, 'background': background}
    data = tfds_images.tfds_images('toy', data_dir=toy[0], **options)
    np.testing.assert_array_equal(data.train.images_uint8, images.Fit(**options).apply(whole.train.images_uint8))
    assert data.spec == data.train.spec and data.spec.preparation.startswith('resized to 3x7')


def test_held_out_images_stay_unread(tmp_path):
    prepare(tmp_path)
    next(tmp_path.glob('toy/1.0.0/toy-test*')).write_bytes(b'damaged')
    data = tfds_images.tfds_images('toy', data_dir=tmp_path)
    assert len(data.train) == 12
    with pytest.raises(ValueError, match=r"toy/1.0.0: record 0 or one of the next 512 of the split 'test' cannot be"):
        data.held_out


@pytest.mark.parametrize('name', tfds_images.PUBLISHED_SIZES)
def test_run_can_be_planned_before_the_data_are_there(tmp_path, name):
    shape, num_classes, num_images = tfds_images.PUBLISHED_SIZES[name]
    data = tfds_images.tfds_images(name, data_dir=tmp_path)
    assert data.spec.image_shape == shape and data.spec.num_classes == num_classes
    assert data.spec.num_units == data.spec.num_images == num_images
    assert data.spec.note == f'not found in {tmp_path}; published sizes'
    assert tfds_images.tfds_images(name, data_dir=tmp_path, image_size=8).spec.image_shape == (8, 8, shape[2])
    for part in ('train', 'held_out'):
        with pytest.raises(FileNotFoundError, match=f"tfds.load\\('{name}', data_dir='{tmp_path}'\\)"):
            getattr(data, part)


@pytest.mark.parametrize(
    'options', [{'name': 'toy'}, {'name': 'mnist', 'train_split': 'train[:9]'}, {'name': 'mnist', 'owner_key': 'owner'}]
)
def test_what_is_not_prepared_is_named_with_the_cure(tmp_path, options):
    with pytest.raises(
        FileNotFoundError,
        match=f"'{options['name']}' is not prepared in {tmp_path}; prepare it with "
        r'.venv/bin/python -c "import tensorflow_datasets as tfds; tfds.load\(',
    ) as error:
        tfds_images.tfds_images(data_dir=tmp_path, **options)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'held_out_split': 'validation'}, "toy/1.0.0 has no split 'validation'; it has test, train"),
        ({'train_split': 'train[:'}, r"has no split 'train\[:'"),
        ({'train_split': 'train[:0]'}, r"the split 'train\[:0\]' holds no images"),
        ({'train_split': 'train[:2]'}, r"the split 'train\[:2\]': class 'c' has no training image"),
        ({'image_key': 'picture'}, "there is no feature 'picture'; there are image, label"),
        ({'owner_key': 'patient'}, "there is no feature 'patient'"),
        ({'owner_key': 'image'}, "the feature 'image' is neither a whole number nor a text"),
        ({'image_key': 'label'}, "the feature 'label' is no image of 8-bit pixels"),
        ({'label_key': 'image'}, "the feature 'image' is no class label"),
        ({'background': 0}, 'background=0 is for padded images here'),
        ({'image_size': 0}, 'image_size must be at least 1, got 0'),
    ],
)
def test_what_is_wrong_with_the_options_is_said_in_one_line(toy, options, message):
    with pytest.raises(ValueError, match=message) as error:
        tfds_images.tfds_images('toy', data_dir=toy[0], **options).train
    assert '\n' not in str(error.value)


def damage_records(folder):
    file = next(folder.glob('toy-train*'))
    file.write_bytes(file.read_bytes()[:-30])


def drop_records(folder):
    file = next(folder.glob('toy-train*'))
    records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records[:7]:
            writer.write(record)


def replace_image(folder):
    file = next(folder.glob('toy-train*'))
    records = [tf.train.Example.FromString(r) for r in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()]
    records[5].features.feature['image'].bytes_list.value[0] = b'damaged'
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record.SerializeToString())


@pytest.mark.parametrize(
    'damage, message',
    [
        (damage_records, "record 0 or one of the next 512 of the split 'train' cannot be read: truncated record"),
        (
            drop_records,
            "record 0 .* of the split 'train' cannot be read|the split 'train' holds 7 records, 12 expected",
        ),
        (replace_image, "record 0 or one of the next 512 of the split 'train' cannot be read"),
        (lambda folder: next(folder.glob('toy-train*')).unlink(), "of the split 'train' cannot be read"),
        (lambda folder: (folder / 'dataset_info.json').write_text('{'), 'is not a prepared data set'),
        (lambda folder: (folder / 'features.json').write_text('{'), 'is not a prepared data set'),
    ],
)
def test_damaged_data_are_named_in_one_line(tmp_path, damage, message):
    prepare(tmp_path)
    damage(tmp_path / 'toy' / '1.0.0')
    with pytest.raises(ValueError, match=message) as error:
        tfds_images.tfds_images('toy', data_dir=tmp_path).train
    assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize('owners, named', [(['a', 'b', '', 'c'] * 3, "''"), ([4, 0, -1, -1] * 3, '-1')])
def test_record_without_an_owner_is_named(tmp_path, owners, named):
    prepare(tmp_path, owners=owners, num_images=(12, 6))
    with pytest.raises(ValueError, match=f'toy/1.0.0: record 2 names no owner: {named}'):
        tfds_images.tfds_images('toy', data_dir=tmp_path, owner_key='owner')


@pytest.mark.skipif(not REAL, reason='TF_DPDIFF_TFDS_DIR does not name a folder with prepared data sets')
@pytest.mark.parametrize('name, held_out', [('mnist', 10000), ('cifar10', 10000)])
def test_real_data_sets_have_their_published_sizes(name, held_out):
    data = tfds_images.tfds_images(name, data_dir=REAL)
    published = tfds_images.PUBLISHED_SIZES[name]
    assert (data.spec.image_shape, data.spec.num_classes, data.spec.num_images) == published and not data.spec.note
    assert data.train.spec == data.spec and len(data.held_out) == held_out
    counts = np.bincount(data.train.labels)
    assert counts.min() > 0.8 * counts.mean() and 20 < data.train.images_uint8.mean() < 200
