"""Tests of what a lay person is told of a claim that protects hardly or not at all."""

import math
import re

import pytest

from tf_dpdiff.privacy import cautions


@pytest.mark.parametrize('num_units', [2, 3, 49, 1000, 1437, 60000, 10**9])
def test_delta_is_too_large_from_one_unit_in_the_clear_on(num_units):
    # To release one unit, drawn at random, and nothing else is (0, 1 / num_units)-differentially private.
    assert cautions.is_large_delta(1.0 / num_units, num_units)
    assert cautions.is_large_delta(math.nextafter(1.0 / num_units, 1.0), num_units)
    assert not cautions.is_large_delta(math.nextafter(1.0 / num_units, 0.0), num_units)


@pytest.mark.parametrize(
    'delta, num_units, people',
    [(0.5, 1000, '500 people'), (0.1, 10, '1 person'), (1e-3, 1437, '2 people'), (0.999, 10**6, '999,000 people')],
)
def test_large_delta_is_put_in_people_rounded_up(delta, num_units, people):
    said = cautions.of_delta(delta, num_units)
    assert f'whole images of about {people}.' in said and f'1 / {num_units:,} units' in said
    assert cautions.of_delta(1e-9, num_units) is None


def test_delta_is_judged_as_far_as_can_be_where_the_number_of_units_is_not_known():
    # A batch of one unit or more is expected: a probability of 0.01 means 100 units or more.
    assert 'is not below 1 / 100 units' in cautions.of_delta_without_num_units(0.01, 0.01)
    assert 'is not below 1 / 100 units' in cautions.of_delta_without_num_units(0.5, 0.01)
    assert 'fewer than 1,001 units' in cautions.of_delta_without_num_units(0.000999001, 0.01)
    assert 'not known here' in cautions.of_delta_without_num_units(1e-5, 1.0)
    assert cautions.of_delta_without_num_units(1e-12, 0.01) is None


@pytest.mark.parametrize('epsilon', [10.0001, 12.0, 29.9, 30.1, 500.0, 1e6])
def test_large_epsilon_is_put_in_odds_rounded_up(epsilon):
    said = cautions.of_epsilon(epsilon)
    odds = re.search(r'at odds of up to (10\^)?([\d,]+) to 1', said)
    logarithm = float(odds.group(2).replace(',', ''))
    logarithm = logarithm * math.log(10.0) if odds.group(1) else math.log(logarithm)
    assert epsilon - 1e-9 <= logarithm < epsilon + 2.4


@pytest.mark.parametrize('epsilon', [0.0, 1.0, 9.9999, 10.0, math.inf])
def test_epsilon_of_ten_and_less_and_none_at_all_need_no_caution(epsilon):
    assert cautions.of_epsilon(epsilon) is None


def test_good_claim_has_no_caution_and_a_bad_one_has_two():
    assert cautions.of_claim(10.0, 1e-5, 60000) == []
    assert [said[:5] for said in cautions.of_claim(11.0, 1e-4, 60000)] == ['epsil', 'delta']


def test_large_delta_is_refused_unless_it_is_accepted():
    with pytest.raises(ValueError, match='accept_large_delta = True') as error:
        cautions.check_delta('target_delta=0.1', 0.1, 10, accepted=False)
    assert '\n' not in str(error.value) and 'target_delta=0.1' in str(error.value)
    cautions.check_delta('target_delta=0.1', 0.1, 10, accepted=True)
    cautions.check_delta('target_delta=0.1', 0.0999, 10, accepted=False)
