"""Tests of how batches are made."""

import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.data import datasets
from tf_dpdiff.data import pipelines


def toy():
    images = np.arange(1, 1 + 6 * 8, dtype=np.uint8).reshape(6, 2, 2, 2)
    return datasets.ImageDataset('toy', images, np.array([1, 2, 1, 2, 1, 2], np.int32), ('a', 'b', 'c'))


def test_batch_holds_the_images_and_labels_of_its_indices():
    dataset = toy()
    images, labels = pipelines.gather(dataset, np.array([4, 0, 5, 4]))
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(images, np.stack([dataset.images_uint8[i] for i in (4, 0, 5, 4)]))
    assert labels.tolist() == [1, 1, 2, 1]


@pytest.mark.parametrize('indices', [[-1, -1], [2, -1, 3, -1], [-1, 5], [-7, 1]])
def test_padding_is_black_with_label_zero(indices):
    dataset = toy()
    fingerprint = dataset.fingerprint()
    images, labels = pipelines.gather(dataset, np.array(indices))
    for index, image, label in zip(indices, images, labels):
        # No pixel and no label of the toy is 0.
        assert (image == 0).all() == (label == 0) == (index < 0)
    # What is set to zero is a copy.
    assert dataset.fingerprint() == fingerprint


def test_empty_batch_is_empty():
    images, labels = pipelines.gather(toy(), np.zeros([0], np.int64))
    assert images.shape == (0, 2, 2, 2) and labels.shape == (0,)


def looks_uniform(indices, num_images):
    return stats.chisquare(np.bincount(indices, minlength=num_images)).pvalue > 1e-4


def test_public_indices_are_uniform():
    drawn = np.concatenate([pipelines.random_indices(20, 500, seed=3, step=step) for step in range(40)])
    assert drawn.dtype == np.int64 and drawn.min() == 0 and drawn.max() == 19
    assert looks_uniform(drawn, 20)
    # Control: with every tenth draw of the last image moved to the first, they are not.
    moved = drawn.copy()
    moved[np.flatnonzero(drawn == 19)[::5]] = 0
    assert not looks_uniform(moved, 20)


def test_public_indices_are_a_function_of_seed_and_step():
    first = pipelines.random_indices(1000, 50, seed=1, step=2)
    np.testing.assert_array_equal(first, pipelines.random_indices(1000, 50, seed=1, step=2))
    for seed, step in ((1, 3), (2, 2), (2, 1)):
        assert not np.array_equal(first, pipelines.random_indices(1000, 50, seed=seed, step=step))


def test_public_batch_may_be_larger_than_the_data_set():
    assert set(pipelines.random_indices(3, 100, seed=0, step=0)) == {0, 1, 2}


def owned():
    """Ten images of five owners, one of whom has none; each image is one grey level of its own."""
    images = np.repeat(np.arange(1, 11, dtype=np.uint8), 4).reshape(10, 2, 2, 1)
    owners = np.array([3, 0, 3, 1, 3, 0, 3, 4, 3, 3])
    return datasets.ImageDataset(
        'owned', images, (np.arange(10) % 3).astype(np.int32), ('a', 'b', 'c'), 'one patient', owners, 5
    )


def pick(units, dataset=None, **changes):
    return pipelines.gather_units(
        dataset or owned(), np.array(units), **{**dict(num_views=6, seed=1, step=2), **changes}
    )


def test_views_of_an_owner_look_at_this_owners_images_alone():
    dataset = owned()
    images, labels, units = pick([3, 0, 1, -1])
    assert images.shape == (4, 6, 2, 2, 1) and labels.shape == (4, 6) and units.tolist() == [3, 0, 1, -1]
    for row, unit in enumerate([3, 0, 1]):
        seen = images[row, :, 0, 0, 0].astype(int) - 1
        assert set(dataset.owners[seen]) == {unit}
        np.testing.assert_array_equal(labels[row], dataset.labels[seen])
    assert not images[3].any() and not labels[3].any()


def test_owner_without_images_is_padding():
    _, _, units = pick([2, 4])
    assert units.tolist() == [-1, 4]


def test_picks_of_an_owner_depend_on_seed_step_and_owner_alone():
    together, alone = pick([0, 3, 4]), pick([3])
    np.testing.assert_array_equal(together[0][1], alone[0][0])
    for change in ({'seed': 9}, {'step': 3}):
        assert not np.array_equal(pick([3], num_views=30)[0], pick([3], num_views=30, **change)[0])


def test_images_of_an_owner_are_picked_evenly():
    seen = np.concatenate([pick([3], step=step)[0][0, :, 0, 0, 0] for step in range(300)])
    assert stats.chisquare(np.unique(seen, return_counts=True)[1]).pvalue > 1e-3


def test_unit_that_is_one_image_brings_it_once():
    images, labels, units = pick([4, -1, 0], toy())
    assert images.shape == (3, 1, 2, 2, 2) and units.tolist() == [4, -1, 0]
    np.testing.assert_array_equal(images[0, 0], toy().images_uint8[4])
    assert labels.tolist() == [[1], [0], [1]]
