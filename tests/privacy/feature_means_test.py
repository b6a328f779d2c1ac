"""Tests of the noisy feature means: their sensitivity by neighbours, their noise by its law, what they choose."""

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import seeds

RELATION = 'add_or_remove_one'
NUM_CLASSES, NUM_FEATURES = 3, 7
CONFIG = feature_means.FeatureMeansConfig(3.0)
LITTLE_COUNT = feature_means.FeatureMeansConfig(3.0, count_weight=0.2)


def secret(number):
    return seeds.PrivateSeed(bytes([number] * 32))


def make_images(num_images=40, seed=0):
    """Returns features of all sizes, a few of them unfit, and labels."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=[num_images, NUM_FEATURES]) * 10.0 ** generator.uniform(-3, 3, [num_images, 1])
    features[0, 0], features[1], features[2, 3], features[3], features[4] = np.nan, 0.0, np.inf, 1e200, 1e-200
    return features, generator.integers(0, NUM_CLASSES, num_images)


def exact(features, labels, owners=None, config=CONFIG):
    return config.exact_vector(features, labels, NUM_CLASSES, owners)


def test_vector_adds_up_directions_and_counts_of_each_class():
    features, labels = make_images()
    fit = np.ones([40], bool)
    fit[:5] = False
    vector = exact(features[fit], labels[fit])
    for label in range(NUM_CLASSES):
        own = features[fit & (labels == label)]
        expected = np.sum(own / np.linalg.norm(own, axis=1, keepdims=True), axis=0)
        np.testing.assert_allclose(vector[label, :-1] * 2**0.5, expected)
        assert vector[label, -1] * 2**0.5 == pytest.approx(len(own))


def test_blocks_add_up_to_what_features_at_once_do():
    features, labels = make_images()
    owners = np.random.default_rng(1).integers(0, 7, 40)
    for bounds in ((0, 40), (0, 3, 3, 25, 40)):
        blocks = (features[start:stop] for start, stop in zip(bounds, bounds[1:]))
        np.testing.assert_allclose(exact(blocks, labels, owners), exact(features, labels, owners), atol=1e-12)
    for stop in (39, 41):
        blocks = iter([np.ones([20, 2]), np.ones([stop - 20, 2])])
        with pytest.raises(ValueError, match='there are 40 labels, and features of another number of images'):
            exact(blocks, labels)


def test_features_that_have_no_direction_are_counted_and_add_nothing_else():
    features = np.array([[np.nan, 1.0], [0.0, 0.0], [np.inf, 0.0], [3e200, 4e200], [3e-200, 4e-200]])
    np.testing.assert_allclose(feature_means.directions(features), [[0, 0], [0, 0], [0, 0], [0.6, 0.8], [0.6, 0.8]])
    assert feature_means.directions(np.zeros([0, 4])).shape == (0, 4)


@pytest.mark.parametrize('config', [CONFIG, LITTLE_COUNT])
def test_removing_any_image_changes_the_vector_by_at_most_its_sensitivity(config):
    features, labels = make_images()
    differences, whole = [], exact(features, labels, config=config)
    for unit in range(len(labels)):
        rest = np.arange(len(labels)) != unit
        differences.append(np.linalg.norm(whole - exact(features[rest], labels[rest], config=config)))
    np.testing.assert_allclose(differences[3:], config.sensitivity(RELATION))
    np.testing.assert_allclose(differences[:3], config.count_weight)  # Counted alone.


@pytest.mark.parametrize('config', [CONFIG, LITTLE_COUNT])
def test_replacing_an_image_changes_the_vector_by_at_most_its_sensitivity(config):
    features, labels = make_images()
    differences, bound = [], config.sensitivity('replace_one')
    for sign, label in ((-1, labels[9]), (-1, (labels[9] + 1) % 3), (1, (labels[9] + 1) % 3), (0, labels[9])):
        changed = features.copy(), labels.copy()
        changed[0][9] *= sign
        changed[1][9] = label
        differences.append(np.linalg.norm(exact(features, labels, config=config) - exact(*changed, config=config)))
    # The opposite features in the same class meet the bound; any features in another class do for equal weights.
    np.testing.assert_allclose(differences[:3], [bound, 2**0.5, 2**0.5])
    assert 0.1 < differences[3] < bound


def without(owner, features, labels, owners):
    """Returns the vector without an owner; the others are numbered anew."""
    rest = owners != owner
    return exact(features[rest], labels[rest], np.unique(owners[rest], return_inverse=True)[1])


def test_removing_any_owner_changes_the_vector_by_at_most_the_sensitivity():
    features, labels = make_images(60)
    owners = np.random.default_rng(1).integers(0, 4, 60)
    owners[:30] = 0  # One owner of most images.
    owners[59], bound = 4, CONFIG.sensitivity(RELATION)  # And one of a single image.
    whole = exact(features, labels, owners)
    differences = [np.linalg.norm(whole - without(i, features, labels, owners)) for i in range(5)]
    assert max(differences) == pytest.approx(bound) and min(differences) > 0.1
    # Images of one class that look alike meet the bound, however many they are.
    same = np.ones([60, NUM_FEATURES]), np.zeros([60], int)
    assert np.linalg.norm(exact(*same, owners) - without(0, *same, owners)) == pytest.approx(bound)
    # Control: counted as images they pass it.
    assert np.linalg.norm(exact(features[owners == 0], labels[owners == 0])) > bound


@pytest.mark.parametrize('seed', range(5))
def test_replacing_an_owner_changes_the_vector_by_at_most_the_sensitivity(seed):
    owners = np.arange(60) % 3
    features, labels = make_images(60, seed)
    other_features, other_labels = make_images(60, seed + 100)
    mine = owners == 0
    changed = np.where(mine[:, None], other_features, features), np.where(mine, other_labels, labels)
    for config in (CONFIG, LITTLE_COUNT):
        difference = np.linalg.norm(exact(features, labels, owners, config) - exact(*changed, owners, config))
        assert 0.1 < difference <= config.sensitivity('replace_one')


def test_owner_without_images_adds_nothing():
    features, labels = make_images()
    owners = 2 * (np.arange(40) % 5)
    np.testing.assert_array_equal(exact(features, labels, owners), exact(features, labels, owners // 2))


def release(config, features, labels, number=0, **options):
    options = {'neighboring_relation': RELATION, **options}
    return config.release(features, labels, NUM_CLASSES, seed=secret(number), **options)


def noise_draws(noise_multiplier, **options):
    """Returns what releases under many secrets add to the exact sums."""
    images, config = make_images(), feature_means.FeatureMeansConfig(noise_multiplier)
    draws = [release(config, *images, number, **options) for number in range(100)]
    return (np.stack(draws) - exact(*images)).ravel()


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
    images = make_images()
    first, again, other = (release(CONFIG, *images, number) for number in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (NUM_CLASSES, NUM_FEATURES + 1) and not np.isclose(first, other).any()


def test_release_of_other_features_has_other_noise():
    features, labels = make_images()
    changed = features.copy()
    changed[5] *= -1.0
    noises = [release(CONFIG, f, labels) - exact(f, labels) for f in (features, changed)]
    assert not np.isclose(*noises).any()


def test_event_is_one_gaussian_of_the_noise_multiplier():
    (event,) = CONFIG.record(ledger_lib.Ledger()).dp_event().events
    assert CONFIG.num_rounds == 1
    assert event == dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(3.0), 1)


@pytest.mark.parametrize('count_weight', [0.5**0.5, 0.3])
def test_means_have_the_stated_noise_and_classes_lost_in_it_have_none(count_weight):
    labels = np.repeat([0, 1, 2], [4000, 1000, 6])
    features = np.ones([len(labels), 50])
    config = feature_means.FeatureMeansConfig(10.0, count_weight)
    noisy = config.release(features, labels, 3, seed=secret(1), neighboring_relation=RELATION)
    means = config.means(noisy, RELATION)
    assert means.noise_variance[2] == np.inf and not means.means[2].any()
    for label, count in ((0, 4000), (1, 1000)):
        stddev = 10.0 / (1.0 - count_weight**2) ** 0.5 / count
        assert config.noise_on_mean(count, RELATION) == pytest.approx(stddev)
        assert means.noise_variance[label] == pytest.approx(stddev**2, rel=0.1)
        assert 0.7 * stddev < np.std(means.means[label]) < 1.3 * stddev
        assert np.mean(means.means[label]) == pytest.approx(50**-0.5, rel=0.1)


def make_means(means, noise_variance=0.0):
    means = np.array(means, np.float64)
    return feature_means.NoisyFeatureMeans(means, np.broadcast_to(noise_variance, [len(means)]))


def test_class_takes_the_images_that_are_most_clearly_nearest_to_its_mean():
    angles = np.radians([0, 10, 40, 50, 80, 100])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1.0], [5.0], [0.1], [1.0], [2.0], [1.0]]
    rows, labels = feature_means.choose_images(make_means([[0.5, 0.0], [0.0, 0.5]]), features, 2)
    assert rows.tolist() == [0, 1, 5, 4] and labels.tolist() == [0, 0, 1, 1]
    rows, labels = feature_means.choose_images(make_means([[0.5, 0.0], [0.0, 0.5]]), features, 9)
    assert rows.tolist() == [0, 1, 2, 5, 4, 3] and labels.dtype == np.int32
    # Of one class alone, the nearest.
    rows, labels = feature_means.choose_images(make_means([[0.0, 0.5]]), features, 3)
    assert rows.tolist() == [4, 5, 3] and not labels.any()


def test_class_without_a_mean_has_no_images():
    features = np.random.default_rng(0).normal(size=[50, 2])
    means = make_means([[0.5, 0.0], [0.0, 0.0], [0.0, 0.5]], [0.1, np.inf, 0.1])
    rows, labels = feature_means.choose_images(means, features, 100)
    assert sorted(rows) == list(range(50)) and set(labels) == {0, 2}
    rows, labels = feature_means.choose_images(make_means([[0.0, 0.0]], np.inf), features, 100)
    assert not len(rows) and not len(labels)


def test_noise_does_not_drive_the_images_away_from_a_class_of_few():
    generator = np.random.default_rng(3)
    num_features, sizes = 200, np.array([5000, 300])
    centres = feature_means.directions(generator.normal(size=[2, num_features]))

    def draw(labels):
        return centres[labels] + generator.normal(size=[len(labels), num_features]) * 0.1

    private_labels = np.repeat([0, 1], sizes)
    config = feature_means.FeatureMeansConfig(15.0)
    noisy = config.release(draw(private_labels), private_labels, 2, seed=secret(2), neighboring_relation=RELATION)
    means, labels = config.means(noisy, RELATION), np.arange(1000) % 2
    features = draw(labels)

    def share_of_the_few(of_means):
        rows, chosen = feature_means.choose_images(of_means, features, 1000)
        return np.mean(chosen == 1), np.mean(chosen == labels[rows])

    share, accuracy = share_of_the_few(means)
    assert 0.4 < share < 0.6 and accuracy > 0.8
    # Control: without the correction they go to the class of many.
    assert share_of_the_few(means._replace(noise_variance=np.zeros([2])))[0] < 0.2


@pytest.mark.parametrize('value', [0.0, -1.0, float('inf'), float('nan')])
def test_impossible_noise_is_refused(value):
    with pytest.raises(ValueError, match=f'noise_multiplier .* must be finite and > 0, got {value}'):
        feature_means.FeatureMeansConfig(value)


@pytest.mark.parametrize('value', [0.0, 1.0, float('nan')])
def test_impossible_weight_of_the_count_is_refused(value):
    with pytest.raises(ValueError, match=f'count_weight .* must be in .0, 1., got {value}'):
        feature_means.FeatureMeansConfig(3.0, value)


def test_noise_that_hides_classes_is_refused():
    config = feature_means.FeatureMeansConfig(23.0)
    config.check_enough(1000, 10, RELATION)
    with pytest.raises(ValueError, match='would hide a class of 100 units, the average: choose at most 16.7'):
        config.check_enough(1000, 10, 'replace_one')
    with pytest.raises(ValueError, match='noise_multiplier=24 .* would hide .* choose at most 23.6'):
        feature_means.FeatureMeansConfig(24.0).check_enough(1000, 10, RELATION)


def test_unknown_relations_and_labels_are_refused():
    with pytest.raises(ValueError, match="got 'swap'"):
        CONFIG.sensitivity('swap')
    for label in (-1, 3):
        with pytest.raises(ValueError, match='labels must be in'):
            exact(np.ones([1, 2]), np.array([label]))
