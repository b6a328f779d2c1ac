"""Tests of the noisy accuracy: its sensitivity by neighbours, its noise by its law, its cost by the closed form."""

import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import seeds

CONFIG = accuracy_release.AccuracyReleaseConfig(noise_multiplier=2.0)


def secret(number):
    return seeds.PrivateSeed(number.to_bytes(32, 'little'))


def answers(num_images=30, num_classifiers=4, seed=0):
    return np.random.default_rng(seed).random([num_images, num_classifiers]) < 0.7


@pytest.mark.parametrize('num_classifiers', [1, 4, 9])
def test_removing_any_image_changes_the_vector_by_at_most_its_sensitivity(num_classifiers):
    correct = answers(num_classifiers=num_classifiers)
    correct[3] = True  # All classifiers are right: the bound is met.
    bound = CONFIG.sensitivity(num_classifiers)
    exact = CONFIG.exact_vector(correct)
    differences = [
        np.linalg.norm(exact - CONFIG.exact_vector(np.delete(correct, row, axis=0))) for row in range(len(correct))
    ]
    assert max(differences) == pytest.approx(bound)


def test_replacing_an_image_by_its_opposite_changes_the_vector_by_its_sensitivity():
    correct = answers()
    correct[3] = True
    replaced = correct.copy()
    replaced[3] = False
    difference = np.linalg.norm(CONFIG.exact_vector(correct) - CONFIG.exact_vector(replaced))
    assert difference == pytest.approx(CONFIG.sensitivity(4, 'replace_one'))


def test_removing_an_owner_with_all_images_changes_the_vector_by_at_most_its_sensitivity():
    correct = np.ones([12, 4], bool)
    owners = np.array([0] * 7 + [1] * 4 + [2])
    exact = CONFIG.exact_vector(correct, owners)
    np.testing.assert_allclose(exact, 3.0)
    rest = CONFIG.exact_vector(correct[7:], owners[7:] - 1)
    assert np.linalg.norm(exact - rest) == pytest.approx(CONFIG.sensitivity(4))
    # The control: counted by image, the owner of seven changes it by far more.
    by_image = CONFIG.exact_vector(correct) - CONFIG.exact_vector(correct[7:])
    assert np.linalg.norm(by_image) > 3.0 * CONFIG.sensitivity(4)


@pytest.mark.parametrize('generator', ['shake256', 'philox'])
def test_noise_has_the_stated_law(generator):
    correct = np.zeros([10000, 4], bool)
    correct[:5000] = True  # Far from 0 and 1, where the result is cut off.
    stddev = CONFIG.stddev(len(correct), 4)
    assert stddev == pytest.approx(2.0 * np.sqrt(4.0) / 10000)
    draws = np.concatenate(
        [
            CONFIG.release(correct, seed=secret(number), num_units=len(correct), generator=generator)
            for number in range(1000)
        ]
    )
    scaled = (draws - 0.5) / stddev
    assert stats.kstest(scaled, 'norm').pvalue > 1e-3
    for wrong in (2.0 / 3.0, 1.5):  # Controls.
        assert stats.kstest(scaled * wrong, 'norm').pvalue < 1e-3


def test_noise_depends_on_the_secret_and_on_nothing_else():
    correct = answers(1000)
    first, again, other = (CONFIG.release(correct, seed=secret(number), num_units=1000) for number in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_owners_count_once_in_the_released_share():
    correct = np.array([[True]] * 999 + [[False]])
    owners = np.array([0] * 999 + [1])
    tight = accuracy_release.AccuracyReleaseConfig(1e-9)
    assert tight.release(correct, seed=secret(0), num_units=2, owners=owners)[0] == pytest.approx(0.5)
    assert tight.release(correct, seed=secret(0), num_units=1000)[0] == pytest.approx(0.999)


def test_result_is_a_share():
    loud = accuracy_release.AccuracyReleaseConfig(1e3)
    released = np.stack([loud.release(answers(), seed=secret(number), num_units=100) for number in range(20)])
    assert released.min() == 0.0 and released.max() == 1.0


def test_cost_is_that_of_one_gaussian_whatever_the_number_of_classifiers():
    epsilon = accounting.epsilon(CONFIG.record(ledger_lib.Ledger()).dp_event(), 1e-5)

    def delta(eps, mu=1.0 / CONFIG.noise_multiplier):  # Balle and Wang 2018, theorem 8.
        return stats.norm.cdf(mu / 2 - eps / mu) - np.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu)

    assert delta(epsilon) <= 1e-5 < delta(epsilon - 1e-3)


@pytest.mark.parametrize('noise_multiplier', [0.0, -1.0, float('nan'), float('inf')])
def test_release_without_noise_is_refused(noise_multiplier):
    with pytest.raises(ValueError, match='must be finite and > 0'):
        accuracy_release.AccuracyReleaseConfig(noise_multiplier)


@pytest.mark.parametrize('correct', [np.ones([5]), np.ones([5, 2]), np.ones([0, 2], bool), np.full([5, 2], 7)])
def test_anything_but_right_and_wrong_is_refused(correct):
    with pytest.raises(ValueError, match='correct must be bool'):
        CONFIG.release(correct, seed=secret(0), num_units=5)
