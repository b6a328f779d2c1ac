"""Tests of the private teacher: its sensitivity by neighbours, its noise by its law, what it learns."""

import dataclasses

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from tests.privacy.feature_means_test import make_images
from tests.privacy.feature_means_test import NUM_CLASSES
from tests.privacy.feature_means_test import NUM_FEATURES
from tests.privacy.feature_means_test import RELATION
from tests.privacy.feature_means_test import secret
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import teacher as teacher_lib

CONFIG = teacher_lib.TeacherConfig(3.0, num_rounds=4, l2_norm_clip=0.2, learning_rate=0.5)


def make_round(seed=0):
    """Returns a centre and weights that know some images well and others not at all."""
    generator = np.random.default_rng(seed)
    return 0.1 * generator.normal(size=[NUM_FEATURES]), generator.normal(size=[NUM_CLASSES, NUM_FEATURES + 1])


def gradient(features, labels, owners=None, config=CONFIG):
    center, weights = make_round()
    return config.exact_gradient(teacher_lib.make_inputs(features, center), labels, weights, owners)


def directions(features, labels, owners=None):
    return CONFIG.exact_directions(features, owners)


ROUNDS = pytest.mark.parametrize('exact, is_first', [(directions, True), (gradient, False)])


def test_gradient_is_that_of_the_loss_where_nothing_is_clipped():
    features, labels = make_images()
    features = features[5:]
    center, weights = make_round()
    inputs = teacher_lib.make_inputs(features, center).astype(np.float64)
    config = dataclasses.replace(CONFIG, l2_norm_clip=10.0)
    found = config.exact_gradient(inputs, labels[5:], weights)

    def loss(weights):
        logits = inputs @ weights.T
        return np.sum(np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(len(inputs)), labels[5:]])

    for place in np.ndindex(*weights.shape):
        step = np.zeros_like(weights)
        step[place] = 1e-5
        assert found[place] == pytest.approx((loss(weights + step) - loss(weights - step)) / 2e-5, abs=1e-5)


def test_image_of_which_overflown_weights_say_nothing_stays_within_the_bound():
    features, labels = make_images()
    center, weights = make_round()
    inputs = teacher_lib.make_inputs(features, center)
    with np.errstate(all='ignore'):
        for row, label in zip(inputs, labels):
            found = CONFIG.exact_gradient(row[None], label[None], 1e39 * weights)
            assert np.linalg.norm(found) <= CONFIG.l2_norm_clip * (1.0 + 1e-6)


def test_inputs_have_length_1_and_a_direction_and_the_intercept_in_it():
    features, _ = make_images()
    inputs = teacher_lib.make_inputs(features, make_round()[0])
    np.testing.assert_allclose(np.linalg.norm(inputs, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(inputs[:, -1], np.float32(teacher_lib.INTERCEPT))
    np.testing.assert_allclose(inputs[5:], teacher_lib.make_inputs(features[5:] * 3.0, make_round()[0]), rtol=1e-5)
    # Those that are not finite are as those that are 0.
    np.testing.assert_array_equal(inputs[[0, 2]], inputs[[1, 1]])
    at_center = teacher_lib.make_inputs(np.ones([1, 4]), np.full([4], 0.5))
    np.testing.assert_array_equal(at_center[0, :-1], 0.0)


@ROUNDS
def test_removing_any_image_changes_the_sum_by_at_most_the_sensitivity(exact, is_first):
    features, labels = make_images()
    bound = CONFIG.sensitivity(RELATION, is_first=is_first)
    differences = []
    for unit in range(len(labels)):
        rest = np.arange(len(labels)) != unit
        differences.append(np.linalg.norm(exact(features, labels) - exact(features[rest], labels[rest])))
    assert max(differences) == pytest.approx(bound, rel=1e-5)
    assert min(differences[3:]) > 0.0
    # Control: without clipping some pass it.
    if not is_first:
        unclipped = dataclasses.replace(CONFIG, l2_norm_clip=1e6)
        assert np.linalg.norm(gradient(features[5:6], labels[5:6], config=unclipped)) > bound


@ROUNDS
@pytest.mark.parametrize('seed', range(5))
def test_replacing_an_image_or_an_owner_changes_the_sum_by_at_most_the_sensitivity(exact, is_first, seed):
    owners = np.arange(60) % 3
    (features, labels), (others, other_labels) = make_images(60, seed), make_images(60, seed + 100)
    bound = CONFIG.sensitivity('replace_one', is_first=is_first)
    for mine, of_units in ((np.arange(60) == 9, None), (owners == 0, owners)):
        changed = np.where(mine[:, None], others, features), np.where(mine, other_labels, labels)
        difference = np.linalg.norm(exact(features, labels, of_units) - exact(*changed, of_units))
        assert 0.001 < difference <= bound * (1.0 + 1e-6)


@ROUNDS
def test_opposite_images_meet_the_bound_of_a_replacement(exact, is_first):
    features, labels = np.ones([1, NUM_FEATURES]), np.zeros([1], int)
    if is_first:
        difference = exact(features, labels) - exact(-features, labels)
    else:
        # Of two classes, p - e_y turns about with the class where both are as likely.
        inputs = teacher_lib.make_inputs(features, np.zeros([NUM_FEATURES]))
        weights = np.zeros([2, NUM_FEATURES + 1])
        difference = CONFIG.exact_gradient(inputs, labels, weights) - CONFIG.exact_gradient(inputs, labels + 1, weights)
    assert np.linalg.norm(difference) == pytest.approx(CONFIG.sensitivity('replace_one', is_first=is_first), rel=1e-6)


@ROUNDS
def test_removing_any_owner_changes_the_sum_by_at_most_the_sensitivity(exact, is_first):
    features, labels = make_images(60)
    owners = np.random.default_rng(1).integers(0, 4, 60)
    owners[:30] = 0  # One owner of most images.
    owners[59], bound = 4, CONFIG.sensitivity(RELATION, is_first=is_first)  # And one of a single image.
    whole = exact(features, labels, owners)

    def without(owner):
        rest = owners != owner
        return exact(features[rest], labels[rest], np.unique(owners[rest], return_inverse=True)[1])

    differences = [np.linalg.norm(whole - without(owner)) for owner in range(5)]
    assert 0.0 < min(differences) and max(differences) <= bound * (1.0 + 1e-6)
    # Images that look alike meet the bound, however many they are; counted as images they pass it.
    same = np.ones([60, NUM_FEATURES]), np.full([60], np.argmin(make_round()[1].sum(axis=1)))
    alone = np.linalg.norm(exact(*same, np.zeros([60], int)))
    assert alone == pytest.approx(bound, rel=1e-5) and np.linalg.norm(exact(*same)) > 50 * bound


@ROUNDS
def test_owner_without_images_adds_nothing(exact, is_first):
    del is_first
    features, labels = make_images()
    owners = 2 * (np.arange(40) % 5)
    np.testing.assert_array_equal(exact(features, labels, owners), exact(features, labels, owners // 2))


def test_many_images_are_added_up_as_few_are(monkeypatch):
    features, labels = make_images()
    whole = gradient(features, labels), directions(features, labels)
    monkeypatch.setattr(teacher_lib, '_IMAGES_AT_A_TIME', 7)
    np.testing.assert_allclose(gradient(features, labels), whole[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(directions(features, labels), whole[1], rtol=1e-12)


def release(config, features, labels, number=0, **options):
    options = {'num_units': 40, 'neighboring_relation': RELATION, **options}
    return config.release(features, labels, NUM_CLASSES, seed=secret(number), **options)


@pytest.mark.parametrize('generator', ['philox', 'shake256'])
@pytest.mark.parametrize('relation', [RELATION, 'replace_one'])
def test_noise_of_every_round_is_gaussian_with_the_stated_deviation(monkeypatch, generator, relation):
    added = []

    def watched(vector, stddev, **options):
        noisy = add_to_release(vector, stddev, **options)
        added.append((noisy - vector).ravel())
        return noisy

    add_to_release = teacher_lib.noise.add_to_release
    monkeypatch.setattr(teacher_lib.noise, 'add_to_release', watched)
    images = make_images()
    for number in range(250):
        release(CONFIG, *images, number, generator=generator, neighboring_relation=relation)
    for first in range(CONFIG.num_rounds):
        draws = np.concatenate(added[first :: CONFIG.num_rounds])
        stddev = 3.0 * CONFIG.sensitivity(relation, is_first=first == 0)
        assert stats.kstest(draws / stddev, 'norm').pvalue > 3e-7
        assert stats.kstest(draws / stddev * 1.5, 'norm').pvalue < 3e-7  # Control.
    # No two rounds have the same noise, nor runs of other secrets.
    assert len({draw.tobytes() for draw in added}) == len(added)


def test_same_secret_repeats_the_release():
    images = make_images()
    first, again = release(CONFIG, *images), release(CONFIG, *images)
    np.testing.assert_array_equal(first.weights, again.weights)
    np.testing.assert_array_equal(first.center, again.center)
    assert not np.array_equal(first.weights, release(CONFIG, *images, number=1).weights)


def test_ledger_charges_every_round():
    ledger = CONFIG.record(ledger_lib.Ledger())
    assert ledger.count('teacher_gradients') == 4
    expected = dp_accounting.ComposedDpEvent([dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(3.0), 4)])
    assert ledger.dp_event() == expected


def test_classes_are_learnt_unless_the_noise_hides_them():
    generator = np.random.default_rng(0)
    centers = generator.normal(size=[NUM_CLASSES, 20])
    labels = np.arange(3000) % NUM_CLASSES
    features = 5.0 + centers[labels] + 0.5 * generator.normal(size=[3000, 20])

    def accuracy(noise_multiplier):
        config = teacher_lib.TeacherConfig(noise_multiplier, num_rounds=40, l2_norm_clip=0.3, learning_rate=10.0)
        found = release(config, features[:2000], labels[:2000], num_units=2000)
        inputs = teacher_lib.make_inputs(features[2000:], found.center)
        return np.mean(np.argmax(teacher_lib.probabilities(inputs, found.weights), axis=1) == labels[2000:])

    assert accuracy(10.0) > 0.95
    assert accuracy(1e5) < 0.6


@pytest.mark.parametrize(
    'field, value',
    [
        ('noise_multiplier', 0.0),
        ('noise_multiplier', float('nan')),
        ('num_rounds', 1),
        ('num_rounds', 2.5),
        ('l2_norm_clip', 0.0),
        ('l2_norm_clip', float('inf')),
        ('learning_rate', -1.0),
    ],
)
def test_bad_settings_are_refused_by_name_and_value(field, value):
    with pytest.raises(ValueError, match=f'{field}.* got {value}'):
        dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize('labels', [[-1], [3]])
def test_labels_of_no_class_are_refused(labels):
    with pytest.raises(ValueError, match=r'labels must be in \[0, 3\)'):
        gradient(np.ones([1, NUM_FEATURES]), np.array(labels))
