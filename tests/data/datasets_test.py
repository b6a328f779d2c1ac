"""Tests of the data sets in memory."""

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from tf_dpdiff.data import datasets


@pytest.fixture(scope='module')
def digits():
    return datasets.digits()


def make(num_images=6, image_shape=(4, 3, 2), num_classes=3, **replaced):
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
        make(images_uint8=images.reshape(6, 2, 6, 2)),  # The same bytes in another shape.
    ]
    fingerprints = {dataset.fingerprint(), *(other.fingerprint() for other in others)}
    assert len(fingerprints) == 1 + len(others)


def test_fingerprint_does_not_depend_on_how_arrays_are_stored():
    dataset = make()
    stored_otherwise = make(images_uint8=np.asfortranarray(dataset.images_uint8),
                            labels=dataset.labels.astype(np.int64),
                            name='another name')
    assert stored_otherwise.fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize('replaced, message', [
    ({
        'images_uint8': np.zeros([6, 4, 3, 2], np.float32)
    }, r"data set 'toy': images must be uint8 .* got float32 \[6, 4, 3, 2\]"),
    ({
        'images_uint8': np.zeros([6, 4, 3], np.uint8)
    }, r'got uint8 \[6, 4, 3\]'),
    ({
        'labels': np.zeros([5], np.int32)
    }, r'6 images but labels of shape \(5,\)'),
    ({
        'labels': np.zeros([6, 1], np.int32)
    }, r'6 images but labels of shape \(6, 1\)'),
    ({
        'images_uint8': np.zeros([0, 4, 3, 2], np.uint8),
        'labels': np.zeros([0], np.int32)
    }, "'toy' holds no images"),
    ({
        'labels': np.array([0, 1, 2, 4, 0, 1], np.int32)
    }, r'labels must be in \[0, 3\), got 0 to 4'),
    ({
        'labels': np.array([0, 1, 2, -1, 0, 1], np.int32)
    }, r'labels must be in \[0, 3\), got -1 to 2'),
    ({
        'labels': np.array([0, 1, 2, 0.5, 0, 1])
    }, 'labels must be'),
])
def test_bad_data_set_is_refused(replaced, message):
    with pytest.raises(ValueError, match=message):
        make(**replaced)


def test_image_without_a_class_is_public_only():
    unlabelled = make(labels=np.full([6], 3, np.int32))
    assert len(unlabelled) == 6 and unlabelled.num_classes == 3
    for parts in ({'train': unlabelled, 'held_out': make()}, {'train': make(), 'held_out': unlabelled}):
        with pytest.raises(ValueError, match=r"'toy': every private image needs a label in \[0, 3\)"):
            datasets.PrivateData(**parts)


@pytest.mark.parametrize('held_out', [
    make(image_shape=(4, 4, 2), name='other'),
    make(class_names=('a', 'b', 'd'), name='other'),
    make(num_classes=2, name='other'),
])
def test_training_and_held_out_images_must_be_alike(held_out):
    with pytest.raises(ValueError, match="'toy' and 'other' differ in image size or classes"):
        datasets.PrivateData(train=make(), held_out=held_out)


def test_units_are_images_or_owners():
    assert make().num_units == 6
    owned = make(owners=np.array([2, 0, 2, 2, 0, 2]))
    assert owned.num_units == 3 and make(owners=owned.owners, num_owners=7).num_units == 7
    order, starts = owned.images_by_unit
    assert [order[starts[u]:starts[u + 1]].tolist() for u in range(3)] == [[1, 4], [], [0, 2, 3, 5]]


def test_fingerprint_tells_owners_apart():
    owners = np.array([2, 0, 2, 2, 1, 0])
    datasets_of_owners = (make(), make(owners=owners), make(owners=owners[::-1]), make(owners=owners, num_owners=4))
    assert len({dataset.fingerprint() for dataset in datasets_of_owners}) == 4


@pytest.mark.parametrize('replaced, message', [
    ({'owners': np.zeros([5], int)}, 'owners must be one whole number an image'),
    ({'owners': np.zeros([6])}, 'owners must be one whole number an image'),
    ({'owners': np.arange(6) - 1}, r'owners must be in \[0, 5\)'),
    ({'owners': np.arange(6), 'num_owners': 5}, r'owners must be in \[0, 5\)'),
    ({'num_owners': 5}, 'num_owners=5 without owners'),
])  # yapf: disable
def test_unfit_owners_are_refused(replaced, message):
    with pytest.raises(ValueError, match=message):
        make(**replaced)
