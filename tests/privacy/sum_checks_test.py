"""Tests of the exact checks of noisy sums: they keep their level, and find what they are there for."""

import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.privacy import sum_checks


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def is_uniform(p_values):
    return stats.kstest(p_values, 'uniform').pvalue > 1e-3


def test_p_value_of_the_noise_is_uniform_where_it_is_as_claimed():
    p_values = [sum_checks.too_little_noise(2.0 * draw(5, 40, seed=i), 2.0) for i in range(300)]
    assert is_uniform(p_values)
    # Controls: a twentieth less noise, and a twentieth more.
    for factor in (0.95, 1.05):
        assert not is_uniform([sum_checks.too_little_noise(factor * draw(5, 400, seed=i), 1.0) for i in range(300)])


@pytest.mark.parametrize('factor, is_found', [(1.0, False), (1.1, False), (0.95, True), (2 / 3, True)])
def test_noise_below_its_claim_is_found_and_more_noise_is_no_fault(factor, is_found):
    assert (sum_checks.too_little_noise(factor * draw(20, 1000), 1.0) < 1e-6) == is_found


def test_noise_that_is_missing_in_one_part_is_found_and_the_level_is_kept():
    parts = np.arange(1000) // 5
    p_values = [sum_checks.too_little_noise(draw(4, 1000, seed=i), 1.0, parts) for i in range(300)]
    assert np.mean(np.array(p_values) < 0.1) <= 0.1 + 3.0 * np.sqrt(0.1 / 300)
    noise = draw(10, 1000)
    assert sum_checks.too_little_noise(noise, 1.0, parts) > 1e-3
    noise[:, parts == 7] *= 0.2
    assert sum_checks.too_little_noise(noise, 1.0) > 1e-3  # The whole does not show it.
    assert sum_checks.too_little_noise(noise, 1.0, parts) < 1e-6


def test_p_value_of_repeated_noise_keeps_its_level():
    p_values = np.array([sum_checks.repeated_noise(draw(2, 6, seed=i)) for i in range(500)])
    assert is_uniform(np.minimum(p_values, 1.0))  # Of one pair it is exact.
    of_many = np.array([sum_checks.repeated_noise(draw(12, 8, seed=i), draw(5, 6, seed=1000 + i)) for i in range(500)])
    for level in (0.01, 0.1):
        assert np.mean(of_many < level) <= level + 3.0 * np.sqrt(level / 500)


@pytest.mark.parametrize('scale', [1.0, -3.0])
def test_noise_that_is_used_twice_is_found(scale):
    draws = draw(30, 50)
    assert sum_checks.repeated_noise(draws) > 1e-3
    draws[17] = scale * draws[3]
    assert sum_checks.repeated_noise(draws) < 1e-6
    assert sum_checks.repeated_noise(draw(3, 9), draws) < 1e-6


def test_noise_that_is_half_of_another_draw_is_found():
    draws = draw(30, 400)
    draws[5] = (draws[5] + draws[6]) / 2.0**0.5
    assert sum_checks.repeated_noise(draws) < 1e-6


def test_no_noise_at_all_counts_as_repeated_and_one_draw_has_no_pair():
    assert sum_checks.repeated_noise(np.zeros([3, 5])) == 0.0
    assert sum_checks.repeated_noise(draw(1, 5)) == 1.0 and sum_checks.repeated_noise() == 1.0


def sums_of(length, *, num_units=400, num_steps=50, q=0.3, stddev=2.0, seed=0):
    """Returns each unit's sum over the steps; the first unit has another length."""
    generator = np.random.default_rng(seed)
    lengths = np.where(np.arange(num_units) == 0, length, 1.0)
    counts = generator.binomial(num_steps, q, num_units)
    return lengths * counts + stddev * num_steps**0.5 * generator.standard_normal(num_units)


OPTIONS = {'num_steps': 50, 'sampling_probability': 0.3}


def test_p_value_of_the_longest_unit_keeps_its_level():
    p_values = np.array([sum_checks.too_long_unit(sums_of(1.0, seed=i), stddev=2.0, **OPTIONS) for i in range(500)])
    for level in (0.02, 0.1):
        assert 0.2 * level <= np.mean(p_values < level) <= level + 3.0 * np.sqrt(level / 500)


def test_a_single_unit_that_is_too_long_is_found():
    assert sum_checks.too_long_unit(sums_of(10.0), stddev=2.0, **OPTIONS) < 1e-6
    assert sum_checks.too_long_unit(sums_of(1.0), stddev=2.0, **OPTIONS) > 1e-3


def test_without_noise_a_unit_may_take_part_in_all_steps_and_in_no_more():
    assert sum_checks.too_long_unit(np.array([0.0, 15.0]), stddev=0.0, **OPTIONS) > 1e-3
    assert sum_checks.too_long_unit(np.array([0.0, 50.1]), stddev=0.0, **OPTIONS) == 0.0
