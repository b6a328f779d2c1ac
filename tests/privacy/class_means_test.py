"""Tests of the noisy class means: their sensitivity by neighbours, their noise by its law."""

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import seeds

RELATION = 'add_or_remove_one'


def secret(number):
    return seeds.PrivateSeed(bytes([number] * 32))


def make_data(num_units=20, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    return generator.uniform(0.0, scale, [num_units, 4, 4, 1]), generator.integers(0, 3, num_units).astype(np.int32)


def exact(images, labels, clip=2.0):
    return class_means.ClassMeansConfig(1.0, clip).exact_vector(images, labels, 3)


@pytest.mark.parametrize('scale', [0.01, 1.0, 1e6])
def test_removing_any_unit_changes_the_vector_by_at_most_its_sensitivity(scale):
    images, labels = make_data(scale=scale)
    bound = class_means.ClassMeansConfig(1.0, 2.0).sensitivity(RELATION)
    differences = []
    for unit in range(len(images)):
        rest = np.arange(len(images)) != unit
        differences.append(np.linalg.norm(exact(images, labels) - exact(images[rest], labels[rest])))
    assert max(differences) <= bound + 1e-12
    assert max(differences) >= 1.0  # The count alone; with bright images the bound is met.
    if scale > 1.0:
        assert max(differences) == pytest.approx(bound)


@pytest.mark.parametrize('other', ['another class', 'negated image'])
def test_replacing_a_unit_changes_the_vector_by_at_most_its_sensitivity(other):
    images, labels = make_data(scale=1e6)
    replaced, relabelled = images.copy(), labels.copy()
    if other == 'another class':
        relabelled[0] = (labels[0] + 1) % 3
    else:
        replaced[0] = -images[0]
    difference = np.linalg.norm(exact(images, labels) - exact(replaced, relabelled))
    assert difference == pytest.approx(class_means.ClassMeansConfig(1.0, 2.0).sensitivity('replace_one'))


def test_control_without_clipping_the_bound_breaks():
    images, labels = make_data(scale=10.0)
    unclipped = exact(images, labels, clip=1e9) * 1e9 / 2.0
    rest = exact(images[1:], labels[1:], clip=1e9) * 1e9 / 2.0
    assert np.linalg.norm(unclipped - rest) > class_means.ClassMeansConfig(1.0, 2.0).sensitivity(RELATION)


def test_unit_that_is_not_finite_contributes_zero():
    images, labels = make_data()
    images[3, 0, 0, 0] = np.nan
    rest = np.arange(len(images)) != 3
    np.testing.assert_array_equal(exact(images, labels), exact(images[rest], labels[rest]))


def noise_draws(noise_multiplier, num_seeds=60):
    """Recovers the noise on the mean of a data set so large that the noise on counts does not matter."""
    images, labels = np.full([30000, 4, 4, 1], 0.5), np.zeros([30000], np.int32)
    config = class_means.ClassMeansConfig(noise_multiplier, 2.0)
    means = [
        config.release(images, labels, 1, seed=secret(number), neighboring_relation=RELATION).images
        for number in range(num_seeds)
    ]
    return (np.stack(means) - 0.5).ravel() * 30000 / 2.0


def is_gaussian_of(values, stddev):
    return stats.kstest(values / stddev, 'norm').pvalue > 1e-3


def test_noise_has_the_stated_scale():
    # The noise on the count moves all pixels of a draw together, by 1/30000 of its size times the mean: negligible.
    assert is_gaussian_of(noise_draws(30.0), 30.0 * np.sqrt(2.0))


@pytest.mark.parametrize('factor', [2 / 3, 3 / 2])
def test_control_noise_of_another_scale_is_noticed(factor):
    assert not is_gaussian_of(noise_draws(30.0 * factor), 30.0 * np.sqrt(2.0))


def test_release_is_repeated_by_its_seed_alone():
    images, labels = make_data()
    config = class_means.ClassMeansConfig(1.0, 2.0)
    first, again, other = (
        config.release(images, labels, 3, seed=secret(s), neighboring_relation=RELATION) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.counts, again.counts)
    assert not np.array_equal(first.images, other.images)
    assert first.images.shape == (3, 1, 4, 4, 1) and first.counts.shape == (3, 1) and first.counts.min() >= 0.0


def test_class_of_few_images_under_much_noise_has_one_mean_all_the_same():
    images, labels = make_data(3)
    config = class_means.ClassMeansConfig(50.0, 2.0)
    releases = [config.release(images, labels, 3, seed=secret(s), neighboring_relation=RELATION) for s in range(20)]
    assert all((released.counts > 0.0).all() and np.isfinite(released.images).all() for released in releases)


def test_release_of_other_sums_has_other_noise():
    images, labels = make_data(30)
    changed = images.copy()
    changed[0, 0, 0, 0] += 1e-9  # As another machine may round.
    config = class_means.ClassMeansConfig(1.0, 2.0)
    releases = [config.release(x, labels, 3, seed=secret(0), neighboring_relation=RELATION) for x in (images, changed)]
    assert not np.isclose(releases[0].images, releases[1].images).all()


def test_with_little_noise_the_means_are_the_means():
    images, labels = make_data(300)
    released = class_means.ClassMeansConfig(1e-4, 10.0).release(
        images, labels, 3, seed=secret(0), neighboring_relation=RELATION
    )
    expected = np.stack([images[labels == c].mean(0) for c in range(3)])
    np.testing.assert_allclose(released.images[:, 0], expected, atol=1e-3)
    np.testing.assert_allclose(released.counts[:, 0], np.bincount(labels), atol=1e-2)


@pytest.mark.parametrize(
    'config, rounds', [(class_means.ClassMeansConfig(3.0, 2.0), 1), (class_means.ClassMeansConfig(3.0, 2.0, 5, 4), 4)]
)
def test_event_is_a_gaussian_of_the_noise_multiplier_for_each_round(config, rounds):
    (event,) = config.record(ledger_lib.Ledger()).dp_event().events
    assert event == dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(3.0), rounds)


@pytest.mark.parametrize('arguments', [(0.0, 1.0), (1.0, 0.0), (float('inf'), 1.0), (1.0, float('nan'))])
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(ValueError, match='must be finite and > 0'):
        class_means.ClassMeansConfig(*arguments)


@pytest.mark.parametrize('scale', [0.01, 1e6])
def test_removing_any_owner_changes_the_vector_by_at_most_the_sensitivity(scale):
    images, labels = make_data(60, scale=scale)
    owners = np.random.default_rng(1).integers(0, 4, 60)
    owners[:30] = 0  # One owner of most images.
    config = class_means.ClassMeansConfig(1.0, 2.0)
    whole = config.exact_vector(images, labels, 3, owners)
    bound = config.sensitivity(RELATION)
    for owner in range(4):
        rest = owners != owner
        without = config.exact_vector(images[rest], labels[rest], 3, np.unique(owners[rest], return_inverse=True)[1])
        assert 0.3 < np.linalg.norm(whole - without) <= bound + 1e-12
    # Control: counted as images, the owner of most of them passes the bound.
    mine = owners == 0
    assert np.linalg.norm(config.exact_vector(images[mine], labels[mine], 3)) > bound


def test_pixels_of_8_bits_are_scaled_to_one():
    images, labels = make_data()
    images_uint8 = np.round(images * 255.0).astype(np.uint8)
    np.testing.assert_allclose(exact(images_uint8, labels), exact(images_uint8 / 255.0, labels))


def make_two_ways(num_images=4000):
    """Returns images of two classes, each drawn in two ways: bright on the left or on the right."""
    generator = np.random.default_rng(0)
    images = generator.uniform(0.0, 0.1, [num_images, 8, 8, 1])
    labels, ways = np.arange(num_images) % 2, np.arange(num_images) // 2 % 2
    for label, way in np.ndindex(2, 2):
        rows = slice(0, 4) if label else slice(4, 8)
        images[(labels == label) & (ways == way), rows, 4 * way : 4 * way + 4] += 0.8
    return images, labels.astype(np.int32), ways


def release_two_ways(noise_multiplier=1.0, num_rounds=4):
    images, labels, _ = make_two_ways()
    config = class_means.ClassMeansConfig(noise_multiplier, 4.0, means_per_class=2, num_rounds=num_rounds)
    return config.release(images, labels, 2, seed=secret(0), neighboring_relation=RELATION)


def test_several_means_find_the_ways_in_which_a_class_is_drawn():
    images, labels, ways = make_two_ways()
    released = release_two_ways()
    for label in range(2):
        expected = np.stack([images[(labels == label) & (ways == way)].mean(0) for way in range(2)])
        found = released.images[label]
        # In whichever order.
        found = found if np.abs(found - expected).mean() < np.abs(found[::-1] - expected).mean() else found[::-1]
        np.testing.assert_allclose(found, expected, atol=0.05)
    np.testing.assert_allclose(released.counts, 1000.0, rtol=0.02)


def test_vector_of_a_round_counts_each_image_at_the_nearest_mean_of_its_class():
    images, labels, ways = make_two_ways(40)
    means = np.stack([[images[(labels == label) & (ways == way)][0].ravel() for way in range(2)] for label in range(2)])
    config = class_means.ClassMeansConfig(1.0, 4.0, means_per_class=2, num_rounds=2)
    vector = config.exact_vector(images, labels, 2, means=means)
    expected = np.zeros([2, 2, 65])
    for image, label, way in zip(images, labels, ways):
        expected[label, way] += np.append(image.ravel() / max(4.0, np.linalg.norm(image)), 1.0)
    np.testing.assert_allclose(vector, expected)


@pytest.mark.parametrize('scale', [0.01, 1.0, 1e6])
@pytest.mark.parametrize('with_owners', [False, True])
def test_removing_any_unit_changes_the_vector_of_a_round_by_at_most_its_sensitivity(scale, with_owners):
    images, labels = make_data(60, scale=scale)
    means = np.random.default_rng(1).uniform(0.0, 2.0 / 4.0, [3, 5, 16])
    config = class_means.ClassMeansConfig(1.0, 2.0, means_per_class=5, num_rounds=2)
    owners = np.random.default_rng(2).integers(0, 6, 60) if with_owners else np.arange(60)
    bound, differences = config.sensitivity(RELATION), []
    whole = config.exact_vector(images, labels, 3, owners, means)
    for owner in np.unique(owners):
        rest = owners != owner
        renamed = np.unique(owners[rest], return_inverse=True)[1]
        differences.append(np.linalg.norm(whole - config.exact_vector(images[rest], labels[rest], 3, renamed, means)))
    assert max(differences) <= bound + 1e-12
    if not with_owners:
        assert max(differences) >= 1.0
    if not with_owners and scale > 1.0:
        assert max(differences) == pytest.approx(bound)


def test_rounds_draw_noise_of_their_own(monkeypatch):
    drawn, draw = [], class_means.noise.standard_normal

    def record(seed, purpose, shape, generator):
        drawn.append(draw(seed, purpose, shape, generator))
        return drawn[-1]

    monkeypatch.setattr(class_means.noise, 'standard_normal', record)
    release_two_ways(num_rounds=4)
    assert [len(noise.shape) and noise.shape[1] for noise in drawn] == [1, 2, 2, 2]
    for i in range(1, 4):
        for j in range(1, i):
            assert abs(np.corrcoef(drawn[i].ravel(), drawn[j].ravel())[0, 1]) < 0.3


def test_a_round_sees_the_images_only_through_the_noisy_sums_before_it(monkeypatch):
    """Where the noise of the first round is the same and that round's sums are too, so are the means it leaves."""
    given, exact = [], class_means.ClassMeansConfig.exact_vector

    def record(self, images, labels, num_classes, owners=None, means=None):
        given.append(means)
        vector = exact(self, images, labels, num_classes, owners, means)
        return np.full_like(vector, 7.0)  # What is released no longer depends on the images.

    monkeypatch.setattr(class_means.ClassMeansConfig, 'exact_vector', record)
    config = class_means.ClassMeansConfig(1.0, 2.0, means_per_class=2, num_rounds=3)
    releases = []
    for seed in (0, 1):
        images, labels = make_data(seed=seed)
        releases.append(config.release(images, labels, 3, seed=secret(0), neighboring_relation=RELATION))
    np.testing.assert_array_equal(releases[0].images, releases[1].images)
    for first, second in zip(given[1:3], given[4:6]):
        np.testing.assert_array_equal(first, second)


def means_given_to_each_round(monkeypatch, seed, cancels_out):
    """Returns what the rounds of a release begin from; its noise may cancel out whatever the images are."""
    given, exact_sums, exact = [], [], class_means.ClassMeansConfig.exact_vector
    stddev = class_means.ClassMeansConfig(1.0, 2.0).sensitivity(RELATION)

    def record(self, images, labels, num_classes, owners=None, means=None):
        given.append(means)
        exact_sums.append(exact(self, images, labels, num_classes, owners, means))
        return exact_sums[-1]

    def draw(unused_seed, unused_purpose, shape, unused_generator):
        released = np.random.default_rng(len(given)).uniform(20.0, 30.0, shape)
        return (released - exact_sums[-1]) / stddev if cancels_out else released

    with monkeypatch.context() as patched:
        patched.setattr(class_means.ClassMeansConfig, 'exact_vector', record)
        patched.setattr(class_means.noise, 'standard_normal', draw)
        config = class_means.ClassMeansConfig(1.0, 2.0, means_per_class=3, num_rounds=3)
        images, labels = make_data(60, seed=seed)
        released = config.release(images, labels, 3, seed=secret(0), neighboring_relation=RELATION)
    assert given[0] is None
    return [*given[1:], released.images, released.counts]


def test_a_round_begins_from_noisy_sums_and_not_from_exact_ones(monkeypatch):
    """Of other images, where what is released is the same number for number, all that is made of it is the same."""
    first, second = (means_given_to_each_round(monkeypatch, seed, cancels_out=True) for seed in (0, 1))
    for ours, theirs in zip(first, second):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    # Control: where what is released differs, so does what is made of it.
    others = means_given_to_each_round(monkeypatch, 1, cancels_out=False)
    assert all(np.abs(ours - theirs).max() > 1e-3 for ours, theirs in zip(first, others))


def test_shrinking_brings_noisy_sums_of_low_rank_nearer_to_the_sums():
    generator = np.random.default_rng(0)
    sums = generator.normal(size=[100, 5]) @ generator.normal(size=[5, 784])
    noisy = sums + 2.0 * generator.normal(size=sums.shape)
    error = np.linalg.norm(class_means._shrink(noisy, 2.0) - sums)
    # The best that a projection on the right five directions leaves of the noise is sqrt(5 / 100) of it, or so.
    assert error < 0.35 * np.linalg.norm(noisy - sums)
    # Control: noise believed to be far smaller is kept.
    assert np.linalg.norm(class_means._shrink(noisy, 0.02) - sums) > 0.9 * np.linalg.norm(noisy - sums)
    np.testing.assert_allclose(class_means._shrink(2.0 * generator.normal(size=sums.shape), 2.2), 0.0, atol=1e-6)


@pytest.mark.parametrize('weight', [0.1, 0.5, 1.0])
def test_sensitivity_is_met_for_every_weight_of_the_count(weight):
    images, labels = make_data(scale=1e6)
    config, rest = class_means.ClassMeansConfig(1.0, 2.0, count_weight=weight), np.arange(len(images)) != 0
    difference = config.exact_vector(images, labels, 3) - config.exact_vector(images[rest], labels[rest], 3)
    assert np.linalg.norm(difference) == pytest.approx(config.sensitivity(RELATION))
    relabelled = np.where(rest, labels, (labels + 1) % 3)
    moved = config.exact_vector(images, labels, 3) - config.exact_vector(images, relabelled, 3)
    assert np.linalg.norm(moved) <= config.sensitivity('replace_one') + 1e-12


def test_counts_are_numbers_of_images_for_every_weight():
    images, labels = make_data(300)
    config = class_means.ClassMeansConfig(1e-4, 10.0, count_weight=0.1)
    released = config.release(images, labels, 3, seed=secret(0), neighboring_relation=RELATION)
    np.testing.assert_allclose(released.counts[:, 0], np.bincount(labels), atol=0.1)
    np.testing.assert_allclose(released.images[0, 0], images[labels == 0].mean(0), atol=1e-3)


def test_mean_without_images_takes_half_of_those_of_the_largest():
    means = np.zeros([2, 3, 16])
    means[:, 0] = np.linspace(0.0, 1.0, 16)
    split = class_means._split_largest(means, np.array([[90.0, 0.0, 0.0], [30.0, 60.0, 9.0]]), (4, 4, 1))
    np.testing.assert_array_equal(split[1], means[1])
    distances = np.linalg.norm(split[0, 1:] - means[0, 0], axis=-1)
    assert (distances > 0.05).all() and (distances < 0.3).all()
    assert np.linalg.norm(split[0, 0] - means[0, 0]) < 0.3
    assert len(np.unique(split[0].round(6), axis=0)) == 3


def test_means_that_may_be_noise_alone_count_as_none_unless_all_do():
    images, labels, _ = make_two_ways()
    labels = np.where(labels == 1, 1, 0).astype(np.int32)
    config = class_means.ClassMeansConfig(20.0, 4.0, means_per_class=60, num_rounds=2)
    some = config.release(images, labels, 2, seed=secret(0), neighboring_relation=RELATION)
    assert (some.counts[some.counts != 0.0] >= 3.0 * 20.0 * np.sqrt(2.0)).all() and (some.counts == 0.0).any()
    none = config.release(images[:40], labels[:40], 2, seed=secret(0), neighboring_relation=RELATION)
    np.testing.assert_array_equal(none.counts, 1.0)


@pytest.mark.parametrize('weight', [0.0, 1.1, float('nan')])
def test_impossible_weight_of_the_count_is_refused(weight):
    with pytest.raises(ValueError, match='count_weight of the noisy class means must be in'):
        class_means.ClassMeansConfig(1.0, 1.0, count_weight=weight)


@pytest.mark.parametrize('means, rounds', [(2, 1), (1, 2), (0, 1), (1, 0), (2.5, 2)])
def test_impossible_numbers_of_means_and_rounds_are_refused(means, rounds):
    with pytest.raises(ValueError, match='means_per_class|num_rounds'):
        class_means.ClassMeansConfig(1.0, 1.0, means, rounds)


@pytest.mark.parametrize('center', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('scale', [0.01, 1.0, 1e6])
def test_removing_any_unit_changes_the_vector_by_at_most_its_sensitivity_for_every_center(center, scale):
    images, labels = make_data(scale=scale)
    config = class_means.ClassMeansConfig(1.0, 2.0, center=center)
    differences = []
    for unit in range(len(images)):
        rest = np.arange(len(images)) != unit
        without = config.exact_vector(images[rest], labels[rest], 3)
        differences.append(np.linalg.norm(config.exact_vector(images, labels, 3) - without))
    assert 1.0 <= max(differences) <= config.sensitivity(RELATION) + 1e-12


def test_seen_from_mid_grey_no_image_is_longer_than_half_the_root_of_its_size():
    images = np.random.default_rng(0).integers(0, 2, [50, 4, 4, 1]).astype(float)  # The longest: black and white.
    labels, bound = np.zeros([50], np.int32), 0.5 * np.sqrt(16)
    clipped = class_means.ClassMeansConfig(1.0, bound, center=0.5).exact_vector(images, labels, 1)
    np.testing.assert_allclose(clipped[0, 0, :-1], (images - 0.5).sum(0).ravel() / bound)
    # Control: seen from black, that norm cuts some of them.
    cut = class_means.ClassMeansConfig(1.0, bound).exact_vector(images, labels, 1)
    assert np.abs(cut[0, 0, :-1] - images.sum(0).ravel() / bound).max() > 1.0


@pytest.mark.parametrize('smooth', [False, True])
@pytest.mark.parametrize('center', [0.0, 0.5])
def test_with_little_noise_the_means_are_the_means_for_every_center_and_smoothed(center, smooth):
    images, labels = make_data(300)
    config = class_means.ClassMeansConfig(1e-4, 10.0, center=center, smooth=smooth)
    released = config.release(images, labels, 3, seed=secret(0), neighboring_relation=RELATION)
    expected = np.stack([images[labels == c].mean(0) for c in range(3)])
    np.testing.assert_allclose(released.images[:, 0], expected, atol=1e-3)
    np.testing.assert_allclose(released.counts[:, 0], np.bincount(labels), atol=1e-2)


def release_blobs(smooth, means_per_class=1, noise_multiplier=12.0):
    """Returns the error of the means of two classes of smooth blobs of 16x16, and their noisy counts."""
    generator = np.random.default_rng(0)
    axis = np.arange(16) - 7.5
    blob = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / 18.0)[..., None]
    labels = (np.arange(400) % 2).astype(np.int32)
    images = np.clip(0.2 + (0.4 + 0.3 * labels)[:, None, None, None] * blob, 0.0, 1.0)
    images = images + generator.normal(0.0, 0.02, images.shape)
    rounds = 1 if means_per_class == 1 else 3
    config = class_means.ClassMeansConfig(
        noise_multiplier, 8.0, means_per_class, rounds, count_weight=0.5, center=0.5, smooth=smooth
    )
    released = config.release(images, labels, 2, seed=secret(0), neighboring_relation=RELATION)
    expected = np.stack([images[labels == c].mean(0) for c in range(2)])[:, None]
    return np.sqrt(np.mean((released.images - expected) ** 2)), released.counts


@pytest.mark.parametrize('means_per_class', [1, 2])
def test_smoothing_brings_means_under_noise_nearer_to_the_means(means_per_class):
    smoothed, _ = release_blobs(True, means_per_class)
    plain, _ = release_blobs(False, means_per_class)
    assert smoothed < 0.5 * plain


def test_smoothed_noise_alone_is_nearly_nothing():
    generator = np.random.default_rng(0)
    noisy = 3.0 * generator.normal(size=[5, 16, 16, 3])
    for is_first in (True, False):
        smoothed = class_means._smooth(noisy, 3.0, is_first=is_first)
        assert np.mean(smoothed**2) < 0.05 * np.mean(noisy**2)
        # Control: noise believed to be far smaller is kept.
        kept = class_means._smooth(noisy, 0.03, is_first=is_first)
        assert np.mean(kept**2) > 0.9 * np.mean(noisy**2)


def test_counts_that_noise_may_have_driven_apart_are_drawn_together():
    counts = 100.0 + 30.0 * np.random.default_rng(0).normal(size=[10, 1])
    drawn = class_means._towards_average(counts, 30.0)
    assert np.std(drawn) < 0.5 * np.std(counts) and np.mean(drawn) == pytest.approx(np.mean(counts))
    np.testing.assert_allclose(class_means._towards_average(counts, 0.1), counts, rtol=1e-3)
    np.testing.assert_array_equal(class_means._towards_average(np.full([1, 1], 7.0), 30.0), 7.0)


@pytest.mark.parametrize('center', [-0.1, 1.1, float('nan')])
def test_center_outside_the_pixels_is_refused(center):
    with pytest.raises(ValueError, match='center of the noisy class means'):
        class_means.ClassMeansConfig(1.0, 1.0, center=center)
