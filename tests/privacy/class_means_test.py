"""Tests of the noisy class means: their sensitivity by neighbours, their noise by its law."""

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.privacy import class_means
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
        config.release(images, labels, 1, seed=secret(number), neighboring_relation=RELATION)
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
        config.release(images, labels, 3, seed=secret(s), neighboring_relation=RELATION) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (3, 4, 4, 1) and first.min() >= 0.0 and first.max() <= 1.0


def test_with_little_noise_the_means_are_the_means():
    images, labels = make_data(300)
    released = class_means.ClassMeansConfig(1e-4, 10.0).release(images,
                                                                labels,
                                                                3,
                                                                seed=secret(0),
                                                                neighboring_relation=RELATION)
    expected = np.stack([images[labels == c].mean(0) for c in range(3)])
    np.testing.assert_allclose(released, expected, atol=1e-3)


def test_event_is_a_gaussian_of_the_noise_multiplier():
    assert class_means.ClassMeansConfig(3.0, 2.0).dp_event() == dp_accounting.GaussianDpEvent(3.0)


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
