"""Tests of canaries: who is in is a fair coin, and who is out leaves no trace in the data set."""

import dataclasses

import numpy as np
import pytest

from tf_dpdiff.data import datasets
from tf_dpdiff.data import pipelines
from tf_dpdiff.evaluation import canaries as canaries_lib


def make_data(owners=None):
    generator = np.random.default_rng(0)

    def part(name, count, **more):
        images = generator.integers(0, 256, [count, 4, 4, 1]).astype(np.uint8)
        return datasets.ImageDataset(name, images, np.arange(count, dtype=np.int32) % 3, ('a', 'b', 'c'), **more)

    return datasets.PrivateData(train=part('train', 20, owners=owners), held_out=part('held out', 30))


def make(kind, num_canaries=10, data=None):
    return canaries_lib.make_canaries(canaries_lib.AuditConfig(num_canaries, kind), data or make_data())


def test_inclusions_are_fair_independent_coin_flips():
    flips = np.array([canaries_lib.draw_inclusions(37) for _ in range(2000)])
    assert flips.shape == (2000, 37) and flips.dtype == bool
    assert np.all(np.abs(flips.mean(axis=0) - 0.5) < 5.0 * 0.5 / np.sqrt(2000))
    correlation = np.corrcoef(flips.T) - np.eye(37)
    assert np.abs(correlation).max() < 5.0 / np.sqrt(2000)
    assert len(np.unique(flips, axis=0)) == 2000


def test_own_class_canaries_have_a_class_each_and_the_real_classes_keep_theirs():
    made = make('own_class')
    assert made.class_names[:3] == ('a', 'b', 'c') and len(made.class_names) == 13
    np.testing.assert_array_equal(made.labels, np.arange(3, 13))
    assert made.images_uint8.shape == (10, 4, 4, 1) and len(np.unique(made.images_uint8, axis=0)) == 10
    assert len(made.non_members) == 30 and made.non_members.labels.max() == 2


def test_mislabelled_canaries_are_held_out_images_with_a_wrong_label_and_no_longer_non_members():
    data = make_data()
    made = make('mislabelled', 25, data)
    true_label = {image.tobytes(): label for image, label in zip(data.held_out.images_uint8, data.held_out.labels)}
    assert made.class_names == ('a', 'b', 'c')
    assert all(true_label[image.tobytes()] != label for image, label in zip(made.images_uint8, made.labels))
    assert set(made.labels) == {0, 1, 2}
    canary_images, rest = (
        {i.tobytes() for i in images} for images in (made.images_uint8, made.non_members.images_uint8)
    )
    assert len(rest) == 5 and not canary_images & rest
    assert all(
        true_label[i.tobytes()] == label for i, label in zip(made.non_members.images_uint8, made.non_members.labels)
    )


def test_canaries_are_public_and_the_same_again():
    for kind in canaries_lib.KINDS:
        first, again = make(kind), make(kind)
        np.testing.assert_array_equal(first.images_uint8, again.images_uint8)
        np.testing.assert_array_equal(first.labels, again.labels)


@pytest.mark.parametrize('kind', canaries_lib.KINDS)
@pytest.mark.parametrize('owners', [None, np.arange(20) // 4])
def test_number_of_units_does_not_depend_on_who_is_in(kind, owners):
    data = make_data(owners)
    real_units = data.train.num_units
    made = make(kind, 10, data)
    for included in (np.zeros(10, bool), np.ones(10, bool), np.arange(10) % 2 == 0):
        audited = canaries_lib.insert(data.train, made, included)
        assert audited.num_units == real_units + 10 and len(audited) == 20 + included.sum()
        images, labels, units = pipelines.gather_units(
            audited, np.arange(audited.num_units), num_views=2, seed=1, step=0
        )
        np.testing.assert_array_equal(units[:real_units], np.arange(real_units))
        np.testing.assert_array_equal(units[real_units:] >= 0, included)
        np.testing.assert_array_equal(images[real_units:][included][:, 1], made.images_uint8[included])
        np.testing.assert_array_equal(labels[real_units:][included][:, 1], made.labels[included])
        assert not images[real_units:][~included].any()


def test_canaries_change_no_draw_of_the_real_units():
    data = make_data(np.arange(20) // 4)
    made = make('own_class', 10, data)
    gathered = [
        pipelines.gather_units(
            canaries_lib.insert(data.train, made, included), np.arange(5), num_views=3, seed=1, step=2
        )
        for included in (np.zeros(10, bool), np.ones(10, bool))
    ]
    for first, second in zip(*gathered):
        np.testing.assert_array_equal(first, second)


def test_images_without_a_class_stay_without_one():
    public = dataclasses.replace(make_data().train, labels=np.arange(20, dtype=np.int32) % 4)
    more = canaries_lib.with_classes(public, tuple('abcdefg'))
    np.testing.assert_array_equal(more.labels, np.where(public.labels == 3, 7, public.labels))
    assert more.num_classes == 7


def test_score_is_what_the_own_label_lowers_the_loss_below_no_class():
    made = make('own_class')

    def image_loss(images_uint8, labels):
        assert len(images_uint8) == 10
        return np.where(labels == 13, 1.0, 0.1 * labels)

    np.testing.assert_allclose(canaries_lib.scores(image_loss, made), 1.0 - 0.1 * np.arange(3, 13))


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'num_canaries': 1}, 'num_canaries must be at least 2, got 1'),
        ({'kind': 'own'}, "must be one of .'own_class', 'mislabelled'., got 'own'"),
        ({'timesteps': ()}, 'timesteps of the audit must be one or more'),
        ({'timesteps': (-1,)}, 'each at least 0, got .-1,.'),
        ({'draws_per_timestep': 0}, 'draws_per_timestep of the audit must be at least 1, got 0'),
        ({'guess_fraction': 0.0}, 'guess_fraction must be in .0, 1., got 0.0'),
        ({'confidence': 1.0}, 'confidence must be in .0, 1., got 1.0'),
    ],
)
def test_wrong_configuration_is_refused_naming_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        canaries_lib.AuditConfig(**arguments)


def test_more_mislabelled_canaries_than_held_out_images_are_refused():
    with pytest.raises(ValueError, match="num_canaries=30 mislabelled canaries .* 'held out' has 30"):
        make('mislabelled', 30)
