"""Tests of the data sets in memory."""

import hashlib

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from tf_dpdiff.data import datasets


@pytest.fixture(scope='module')
def digits():
    return datasets.digits()


def make(num_images=6, image_shape=(4, 3, 3), num_classes=3, **replaced):
    generator = np.random.default_rng(0)
    arguments = {
        'name': 'toy',
        'images_uint8': generator.integers(0, 256, [num_images, *image_shape]).astype(np.uint8),
        'labels': (np.arange(num_images) % num_classes).astype(np.int32),
        'class_names': tuple('abcdefgh'[:num_classes]),
    }
    return datasets.ImageDataset(**{**arguments, **replaced})


def rows(images, labels):
    """Returns images and labels as sorted rows, to compare sets."""
    return sorted(np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1).astype(int).tolist())


def test_digits_are_split_without_loss_or_overlap(digits):
    assert len(digits.train) == 1437 and len(digits.held_out) == 360
    assert digits.train.image_shape == digits.held_out.image_shape == (8, 8, 1)
    bunch = sklearn_datasets.load_digits()
    images_uint8 = np.concatenate([digits.train.images_uint8, digits.held_out.images_uint8])
    labels = np.concatenate([digits.train.labels, digits.held_out.labels])
    # The 17 levels come back from the scaled pixels.
    assert rows(np.round(images_uint8 * (16 / 255)), labels) == rows(bunch.images, bunch.target)


def test_scaling_of_digits_fills_the_range_with_their_17_levels(digits):
    np.testing.assert_array_equal(np.unique(digits.train.images_uint8), np.round(np.arange(17) * 255 / 16))


def test_digits_are_split_evenly_over_classes(digits):
    target = sklearn_datasets.load_digits().target
    held_out = np.bincount(digits.held_out.labels, minlength=10)
    assert np.abs(held_out - np.bincount(target) * 360 / 1797).max() < 1


def test_digits_are_the_same_each_time(digits):
    again = datasets.digits()
    assert again.train.fingerprint() == digits.train.fingerprint()
    assert again.held_out.fingerprint() == digits.held_out.fingerprint() != digits.train.fingerprint()


def test_fingerprint_tells_any_change_apart():
    dataset = make()
    images, labels = dataset.images_uint8, dataset.labels

    def changed(array, index):
        array = array.copy()
        array[index] += 1
        return array

    others = [
        make(images_uint8=changed(images, (5, 3, 2, 1))),
        make(labels=changed(labels, 0)),
        make(images_uint8=images[::-1]),
        make(images_uint8=images[:-1], labels=labels[:-1]),
        make(images_uint8=images.reshape(6, 2, 6, 3)),  # The same bytes in another shape.
    ]
    fingerprints = {dataset.fingerprint(), *(other.fingerprint() for other in others)}
    assert len(fingerprints) == 1 + len(others)


def test_fingerprint_does_not_depend_on_how_arrays_are_stored():
    dataset = make()
    stored_otherwise = make(
        images_uint8=np.asfortranarray(dataset.images_uint8),
        labels=dataset.labels.astype(np.int64),
        name='another name',
    )
    assert stored_otherwise.fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize(
    'replaced, message',
    [
        (
            {'images_uint8': np.zeros([6, 4, 3, 2], np.float32)},
            r"data set 'toy': images must be uint8 .* got float32 \[6, 4, 3, 2\]",
        ),
        ({'images_uint8': np.zeros([6, 4, 3], np.uint8)}, r'got uint8 \[6, 4, 3\]'),
        ({'labels': np.zeros([5], np.int32)}, r'6 images but labels of shape \(5,\)'),
        ({'labels': np.zeros([6, 1], np.int32)}, r'6 images but labels of shape \(6, 1\)'),
        (
            {'images_uint8': np.zeros([0, 4, 3, 2], np.uint8), 'labels': np.zeros([0], np.int32)},
            "'toy' holds no images",
        ),
        ({'labels': np.array([0, 1, 2, 4, 0, 1], np.int32)}, r'labels must be in \[0, 3\), got 0 to 4'),
        ({'labels': np.array([0, 1, 2, -1, 0, 1], np.int32)}, r'labels must be in \[0, 3\), got -1 to 2'),
        ({'labels': np.array([0, 1, 2, 0.5, 0, 1])}, 'labels must be'),
    ],
)
def test_bad_data_set_is_refused(replaced, message):
    with pytest.raises(ValueError, match=message):
        make(**replaced)


def test_image_without_a_class_is_public_only():
    unlabelled = make(labels=np.full([6], 3, np.int32))
    assert len(unlabelled) == 6 and unlabelled.num_classes == 3
    for parts in ({'train': unlabelled, 'held_out': make()}, {'train': make(), 'held_out': unlabelled}):
        with pytest.raises(ValueError, match=r"'toy': every private image needs a label in \[0, 3\)"):
            datasets.PrivateData(**parts)


@pytest.mark.parametrize(
    'held_out',
    [
        make(image_shape=(4, 4, 3), name='other'),
        make(class_names=('a', 'b', 'd'), name='other'),
        make(num_classes=2, name='other'),
    ],
)
def test_training_and_held_out_images_must_be_alike(held_out):
    with pytest.raises(ValueError, match="'toy' and 'other' differ in image size or classes"):
        datasets.PrivateData(train=make(), held_out=held_out)


def test_units_are_images_or_owners():
    assert make().num_units == 6
    owned = make(owners=np.array([2, 0, 2, 2, 0, 2]))
    assert owned.num_units == 3 and make(owners=owned.owners, num_owners=7).num_units == 7
    order, starts = owned.images_by_unit
    assert [order[starts[u] : starts[u + 1]].tolist() for u in range(3)] == [[1, 4], [], [0, 2, 3, 5]]


def test_fingerprint_tells_owners_apart():
    owners = np.array([2, 0, 2, 2, 1, 0])
    datasets_of_owners = (make(), make(owners=owners), make(owners=owners[::-1]), make(owners=owners, num_owners=4))
    assert len({dataset.fingerprint() for dataset in datasets_of_owners}) == 4


@pytest.mark.parametrize(
    'replaced, message',
    [
        ({'owners': np.zeros([5], int)}, 'owners must be one whole number an image'),
        ({'owners': np.zeros([6])}, 'owners must be one whole number an image'),
        ({'owners': np.arange(6) - 1}, r'owners must be in \[0, 5\)'),
        ({'owners': np.arange(6), 'num_owners': 5}, r'owners must be in \[0, 5\)'),
        ({'num_owners': 5}, 'num_owners=5 without owners'),
        ({'unit': 'one patient'}, "data set 'toy': unit='one patient' needs owners"),
    ],
)
def test_unfit_owners_are_refused(replaced, message):
    with pytest.raises(ValueError, match=message):
        make(**replaced)


def test_parts_are_read_when_they_are_asked_for_and_once():
    reads = []

    def reader(dataset):

        def read():
            reads.append(dataset.name)
            return dataset

        return read

    data = datasets.PrivateData(train=reader(make()), held_out=reader(make(name='held out')), spec=make().spec)
    assert data.spec.num_units == 6 and not reads
    assert data.train.name == data.train.name == 'toy' and reads == ['toy']
    assert data.held_out.name == data.held_out.name == 'held out' and reads == ['toy', 'held out']


@pytest.mark.parametrize(
    'part, read, message',
    [
        ('train', make(num_images=5), r"'toy' is not what it was said to be: 5 units and 5 images were read, 6 and 6"),
        ('train', make(owners=np.arange(6) // 2), "'toy' is not what it was said to be: 3 units"),
        ('train', make(owners=np.arange(6), unit='one patient'), "'toy' is not what it was said to be"),
        ('train', make(labels=np.full([6], 3)), 'every private image needs a label'),
        ('held_out', make(labels=np.full([6], 3)), 'every private image needs a label'),
        ('held_out', make(image_shape=(4, 4, 3), name='other'), "'toy' and 'other' differ in image size or classes"),
        (
            'held_out',
            make(class_names=('a', 'b', 'd'), name='other'),
            "'toy' and 'other' differ in image size or classes",
        ),
    ],
)
def test_what_is_read_is_checked_when_it_is_read(part, read, message):
    parts = {'train': make, 'held_out': make, part: lambda: read}
    data = datasets.PrivateData(**parts, spec=make().spec)
    with pytest.raises(ValueError, match=message):
        getattr(data, part)
    getattr(data, 'held_out' if part == 'train' else 'train')


def test_images_that_are_read_later_need_a_spec():
    with pytest.raises(ValueError, match='need a spec'):
        datasets.PrivateData(train=make, held_out=make)


def test_spec_tells_what_the_data_set_is(digits):
    spec = make(owners=np.arange(6) // 2, unit='one patient').spec
    assert spec == datasets.DatasetSpec('toy', (4, 3, 3), ('a', 'b', 'c'), 6, 3, 'one patient', True)
    assert spec.num_classes == 3
    assert datasets.digits().spec == digits.train.spec


@pytest.mark.parametrize(
    'replaced, message',
    [
        ({'image_shape': (8, 8)}, 'image_shape must be .* got'),
        ({'image_shape': (8, 8, 0)}, 'image_shape must be .* got'),
        ({'image_shape': (1, 8, 8)}, r'images of 1x8x8 .* have 8 channels .* images.transpose\(0, 2, 3, 1\)'),
        ({'image_shape': (8, 8, 2)}, 'images of 8x8x2 .* have 2 channels'),
        ({'image_shape': (8, 8, 4)}, 'images of 8x8x4 .* have 4 channels'),
        ({'class_names': ('a', 'a')}, "two classes are called 'a'"),
        ({'class_names': ('no_class',)}, "no class can be called 'no_class'"),
        ({'unit': 'one image\nepsilon = 0.1'}, 'unit must be Unicode text without control characters'),
        ({'class_names': ()}, 'num_classes must be at least 1, got 0'),
        ({'num_images': 0}, 'num_images must be at least 1, got 0'),
        ({'num_units': 0}, 'num_units must be at least 1, got 0'),
        ({'unit': 'one patient'}, "unit='one patient' needs owners: .* the guarantee protects 'one image'"),
    ],
)
def test_bad_spec_is_refused(replaced, message):
    with pytest.raises(ValueError, match=f"'toy': {message}"):
        datasets.DatasetSpec(
            **{
                'name': 'toy',
                'image_shape': (8, 8, 1),
                'class_names': ('a',),
                'num_images': 1,
                'num_units': 1,
                **replaced,
            }
        )


@pytest.mark.parametrize(
    'owners, unit, message',
    [
        (None, 'one patient', "unit='one patient' needs owners"),
        (np.array(['a', '', 'b', 'b', 'c', 'd']), 'one patient', "image 1 names no owner: ''"),
        (np.array([3, 3, -1, 0, 1, -1]), 'one patient', 'image 2 names no owner: -1'),
    ],
)
def test_index_of_unfit_units_is_refused(owners, unit, message):
    with pytest.raises(ValueError, match=f"^data set 'toy': {message}"):
        datasets.ImageIndex('toy', (4, 3, 3), make().labels, make().class_names, unit, owners)
    assert datasets.ImageIndex('toy', (4, 3, 3), make().labels, make().class_names, 'one image').spec == make().spec


@pytest.mark.parametrize('image_shape', [(1, 8, 8), (4, 3, 2), (4, 3, 4)])
def test_images_that_no_set_of_samples_can_hold_are_no_data_of_a_run(image_shape):
    images = make(image_shape=image_shape)
    for parts in ({'train': images}, {'train': lambda: images, 'spec': make().spec}):
        with pytest.raises(ValueError, match="^data set 'toy': images of .* must have 1 .* or 3|differ in image size"):
            datasets.PrivateData(held_out=images, **parts).train
    with pytest.raises(ValueError, match="^data set 'toy': images of .* must have 1 .* or 3"):
        datasets.ImageIndex('toy', image_shape, make().labels, make().class_names, 'one image')


def test_words_for_the_unit_are_those_of_what_is_protected():
    assert datasets.choose_unit('toy', None, None) == datasets.choose_unit('toy', 'one image', None) == 'one image'
    assert datasets.choose_unit('toy', None, 'owner') == 'one owner'
    assert datasets.choose_unit('toy', 'one patient', 'owner') == 'one patient'
    with pytest.raises(ValueError, match="^data set 'toy': unit='one patient' needs owners"):
        datasets.choose_unit('toy', 'one patient', None)
    with pytest.raises(ValueError, match="^data set 'toy': unit='one image', but owners are named"):
        datasets.choose_unit('toy', 'one image', 'owner')


def test_fingerprint_of_images_in_a_file_is_that_of_images_in_memory(tmp_path, monkeypatch):
    np.save(tmp_path / 'images.npy', make().images_uint8)
    mapped = make(images_uint8=np.load(tmp_path / 'images.npy', mmap_mode='r'))
    expected = make().fingerprint()
    for size in (1, 50, 2**24):  # An image a time, two, all.
        monkeypatch.setattr(datasets, '_HASHED_BYTES', size)
        assert mapped.fingerprint() == make().fingerprint() == expected
    digest = hashlib.sha256(b'((6, 4, 3, 3), 6)')
    digest.update(make().images_uint8.tobytes() + make().labels.tobytes())
    assert expected == digest.hexdigest()
