"""Tests of the votes for public classes: their sensitivity by neighbours, their noise by its law, what is chosen."""

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.privacy import public_classes
from tf_dpdiff.privacy import seeds

RELATION = 'add_or_remove_one'
NUM_CLASSES, NUM_PUBLIC = 3, 7


def secret(number):
    return seeds.PrivateSeed(bytes([number] * 32))


def make_votes(num_images=40, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, NUM_PUBLIC, num_images), generator.integers(0, NUM_CLASSES, num_images)


def make_config(noise_multiplier=3.0, classes_per_class=2):
    return public_classes.PublicClassesConfig(noise_multiplier, classes_per_class)


def exact(votes, labels, owners=None):
    return make_config().exact_vector(votes, labels, NUM_CLASSES, NUM_PUBLIC, owners)


def test_vector_counts_the_votes_of_each_class():
    votes, labels = make_votes()
    expected = [[np.sum((labels == y) & (votes == v)) for v in range(NUM_PUBLIC)] for y in range(NUM_CLASSES)]
    np.testing.assert_array_equal(exact(votes, labels), expected)


def test_removing_any_image_changes_the_vector_by_its_sensitivity():
    votes, labels = make_votes()
    for unit in range(len(votes)):
        rest = np.arange(len(votes)) != unit
        difference = np.linalg.norm(exact(votes, labels) - exact(votes[rest], labels[rest]))
        assert difference == pytest.approx(make_config().sensitivity(RELATION)) == 1.0


def test_replacing_an_image_changes_the_vector_by_at_most_its_sensitivity():
    votes, labels = make_votes()
    differences = []
    for label, vote in np.ndindex(NUM_CLASSES, NUM_PUBLIC):
        changed = votes.copy(), labels.copy()
        changed[0][0], changed[1][0] = vote, label
        differences.append(np.linalg.norm(exact(votes, labels) - exact(*changed)))
    assert max(differences) == pytest.approx(make_config().sensitivity('replace_one'))


def without(owner, votes, labels, owners):
    """Returns the vector without an owner; the others are numbered anew."""
    rest = owners != owner
    return exact(votes[rest], labels[rest], np.unique(owners[rest], return_inverse=True)[1])


def test_removing_any_owner_changes_the_vector_by_at_most_the_sensitivity():
    votes, labels = make_votes(60)
    owners = np.random.default_rng(1).integers(0, 4, 60)
    owners[:30] = 0  # One owner of most images.
    owners[59], bound = 4, make_config().sensitivity(RELATION)  # And one of a single image.
    differences = [np.linalg.norm(exact(votes, labels, owners) - without(i, votes, labels, owners)) for i in range(5)]
    assert max(differences) == pytest.approx(bound) and min(differences) > 0.1
    # Images of one class and one vote meet the bound, however many they are.
    same = np.zeros([60], int)
    difference = exact(same, same, owners) - without(0, same, same, owners)
    assert np.linalg.norm(difference) == pytest.approx(bound)
    # Control: counted as images they pass it.
    mine = owners == 0
    assert np.linalg.norm(exact(votes[mine], labels[mine])) > bound


@pytest.mark.parametrize('seed', range(5))
def test_replacing_an_owner_changes_the_vector_by_at_most_the_sensitivity(seed):
    votes, labels = make_votes(60, seed)
    owners = np.arange(60) % 3
    other_votes, other_labels = make_votes(60, seed + 100)
    others = np.where(owners == 0, other_votes, votes), np.where(owners == 0, other_labels, labels)
    difference = np.linalg.norm(exact(votes, labels, owners) - exact(*others, owners))
    assert 0.1 < difference <= make_config().sensitivity('replace_one')


def test_owner_without_images_adds_nothing():
    votes, labels = make_votes()
    owners = 2 * (np.arange(40) % 5)
    np.testing.assert_array_equal(exact(votes, labels, owners), exact(votes, labels, owners // 2))


def release(config, votes, labels, number=0, **options):
    options = {'neighboring_relation': RELATION, **options}
    return config.release(votes, labels, NUM_CLASSES, NUM_PUBLIC, seed=secret(number), **options)


def noise_draws(noise_multiplier, **options):
    """Returns what releases under many secrets add to the exact numbers."""
    votes, labels = make_votes()
    draws = [release(make_config(noise_multiplier), votes, labels, number, **options) for number in range(100)]
    return (np.stack(draws) - exact(votes, labels)).ravel()


def is_gaussian_of(values, stddev):
    return stats.kstest(values / stddev, 'norm').pvalue > 1e-3


@pytest.mark.parametrize('generator', ['philox', 'shake256'])
def test_noise_has_the_stated_scale(generator):
    assert is_gaussian_of(noise_draws(5.0, generator=generator), 5.0)
    assert is_gaussian_of(noise_draws(5.0, generator=generator, neighboring_relation='replace_one'), 5.0 * 2.0**0.5)


@pytest.mark.parametrize('factor', [2 / 3, 3 / 2])
def test_control_noise_of_another_scale_is_noticed(factor):
    assert not is_gaussian_of(noise_draws(5.0 * factor), 5.0)


def test_release_is_repeated_by_its_seed_alone():
    votes, labels = make_votes()
    first, again, other = (release(make_config(), votes, labels, number) for number in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (NUM_CLASSES, NUM_PUBLIC) and not np.isclose(first, other).any()


def test_release_of_other_votes_has_other_noise():
    votes, labels = make_votes()
    changed = np.where(np.arange(40) == 5, (votes + 1) % NUM_PUBLIC, votes)
    noises = [release(make_config(), v, labels) - exact(v, labels) for v in (votes, changed)]
    assert not np.isclose(*noises).any()


def test_event_is_one_gaussian_of_the_noise_multiplier():
    config = make_config()
    assert config.num_rounds == 1
    assert config.dp_event() == dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(3.0), 1)


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('scale', [0.1, 10.0])
def test_no_public_class_is_chosen_twice_and_each_private_class_has_one(seed, scale):
    noisy = np.random.default_rng(seed).normal(5.0, scale, [4, 12])
    noisy[3] -= 100.0  # A class of noise alone.
    chosen = public_classes.choose_classes(noisy, 3)
    every = [number for of_class in chosen for number in of_class]
    assert len(chosen) == 4 and len(set(every)) == len(every) and set(every) <= set(range(12))
    assert all(1 <= len(of_class) <= 3 for of_class in chosen)


def test_public_class_goes_to_the_private_class_with_the_largest_share_of_its_votes():
    # The first class has ten times the images, and fewer of them in a hundred look like number 1.
    noisy = np.array([[700.0, 200.0, 100.0, -5.0], [10.0, 60.0, 5.0, 25.0]])
    assert public_classes.choose_classes(noisy, 2) == [[0, 2], [1, 3]]
    assert public_classes.choose_classes(noisy, 1) == [[0], [1]]


def test_private_class_without_a_public_one_takes_its_best_not_yet_taken():
    noisy = np.array([[90.0, 10.0, 0.0, 0.0], [50.0, 5.0, 3.0, 40.0], [80.0, 9.0, 1.0, 2.0]])
    assert public_classes.choose_classes(noisy, 1) == [[0], [3], [1]]


@pytest.mark.parametrize('values, message', [
    ((0.0, 1), 'noise_multiplier .* must be finite and > 0, got 0.0'),
    ((float('inf'), 1), 'noise_multiplier .* must be finite and > 0, got inf'),
    ((float('nan'), 1), 'noise_multiplier .* must be finite and > 0, got nan'),
    ((1.0, 0), 'classes_per_class .* at least 1, got 0'),
    ((1.0, 1.5), 'classes_per_class .* at least 1, got 1.5'),
])  # yapf: disable
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        public_classes.PublicClassesConfig(*values)


def test_more_classes_than_there_are_and_unknown_relations_are_refused():
    with pytest.raises(ValueError, match='classes_per_class=3 for 3 private classes needs 9 .* there are 7'):
        public_classes.choose_classes(np.zeros([3, 7]), 3)
    with pytest.raises(ValueError, match="got 'swap'"):
        make_config().sensitivity('swap')


@pytest.mark.parametrize('votes, labels, message', [([-1], [0], 'votes'), ([7], [0], 'votes'), ([0], [-1], 'labels'),
                                                    ([0], [3], 'labels')])
def test_votes_and_labels_that_do_not_exist_are_refused(votes, labels, message):
    with pytest.raises(ValueError, match=f'{message} must be in'):
        exact(np.array(votes), np.array(labels))
