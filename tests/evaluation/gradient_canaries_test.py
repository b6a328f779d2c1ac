"""Tests of gradient canaries: directions that share nothing, a score that no test beats, and what a step releases."""

import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.evaluation import gradient_canaries
from tf_dpdiff.privacy import plan as plan_lib

SHAPES = [[3, 3, 4, 16], [16], [40, 16], [16, 40], [8], [64]]


def make(num_canaries=150):
    return gradient_canaries.make_directions(SHAPES, num_canaries, seed=0)


def flat(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


def test_directions_are_orthonormal_and_have_the_shapes_of_the_variables():
    made = make()
    assert [list(part.shape) for part in made.owners] == [list(part.shape) for part in made.values] == SHAPES
    owners, values = flat(made.owners), flat(made.values)
    matrix = np.zeros([150, len(owners)])
    matrix[owners[owners >= 0], np.flatnonzero(owners >= 0)] = values[owners >= 0]
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(150), atol=1e-6)
    assert np.all(values[owners < 0] == 0.0)


def test_a_direction_has_parts_in_several_variables():
    # So that a program which clips each of them on its own is found out.
    owners = make().owners
    num_variables = [sum(np.any(part == canary) for part in owners) for canary in range(150)]
    assert min(num_variables) >= 3


def test_free_coordinates_are_no_canarys_and_lie_in_most_variables():
    made = make()
    owners, ends = flat(made.owners), np.cumsum([int(np.prod(shape)) for shape in SHAPES])
    assert np.all(owners[made.free] < 0) and len(made.free) > 0.15 * len(owners)
    np.testing.assert_array_equal(made.variables, np.searchsorted(ends, made.free, side='right'))
    assert len(np.unique(made.variables)) >= 5
    # Variables of one size begin with free coordinates; small ones are left out.
    assert set(made.firsts) == {576, 640, 64}
    np.testing.assert_array_equal(made.firsts[640], [592 + np.arange(16), 1232 + np.arange(16)])
    assert all(np.all(owners[first] < 0) for first in made.firsts.values())


def test_as_many_canaries_as_there_can_be_and_no_more():
    with pytest.raises(ValueError, match='take at most (1,[0-9]{3})') as error:
        make(5000)
    most = int(str(error.value).split('at most ')[1].split(',')[0]) * 1000 + int(
        str(error.value).split('at most 1,')[1][:3]
    )
    assert len(np.unique(flat(make(most).owners))) == most + 1
    with pytest.raises(ValueError, match='need more parameters'):
        make(most + 1)


@pytest.mark.parametrize('sigma, q', [(0.7, 0.3), (2.0, 1.0), (5.0, 0.01)])
def test_score_is_the_logarithm_of_the_ratio_of_the_densities(sigma, q):
    x = np.linspace(-3.0, 4.0, 29)
    out = stats.norm.pdf(x, scale=sigma)
    into = (1.0 - q) * out + q * stats.norm.pdf(x, loc=1.0, scale=sigma)
    np.testing.assert_allclose(gradient_canaries.log_likelihood_ratios(x, sigma, q), np.log(into / out), atol=1e-9)


def test_score_without_noise_tells_all():
    products = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    scores = gradient_canaries.log_likelihood_ratios(products, 0.0, 0.6).sum(axis=0)
    np.testing.assert_array_equal(scores > 0.0, [True, True, False])


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'num_canaries': 1}, 'at least 2, got 1'),
        ({'lengths': (0.5,)}, 'shows less than a unit may'),
        ({'lengths': ()}, 'must be in'),
        ({'confidence': 1.0}, 'confidence must be in .0, 1., got 1.0'),
    ],
)
def test_wrong_arguments_are_refused_naming_the_value(changes, message):
    with pytest.raises(ValueError, match=message):
        gradient_canaries.GradientAuditConfig(**changes)


def make_canaries(num_units=50, **changes):
    config = {
        'target_delta': 1e-3,
        'expected_batch_size': 20,
        'num_steps': 3,
        'l2_norm_clip': 0.1,
        'noise_multiplier': 2.0,
        **changes,
    }
    plan = plan_lib.make_plan(plan_lib.DpSgdConfig(**config), num_units)
    return gradient_canaries.GradientCanaries(gradient_canaries.GradientAuditConfig(num_canaries=30), plan)


def test_data_hold_one_image_of_each_canary_that_is_in_and_as_many_units_whoever_is_in():
    canaries = make_canaries()
    included = np.arange(30) % 3 == 0
    data = canaries.make_data(included, (4, 4, 1), ('a',))
    assert data.num_units == 50 and len(data) == 10
    np.testing.assert_array_equal(data.owners, canaries.slots[included])
    assert len(np.unique(canaries.slots)) == 30 and canaries.slots.max() < 50


def test_plan_that_truncates_batches_is_refused():
    with pytest.raises(ValueError, match='truncated_batch_size=40 does not go with .* truncated_batch_size=None'):
        make_canaries(truncated_batch_size=40)


def test_more_canaries_than_units_and_a_plan_that_does_not_clip_are_refused():
    with pytest.raises(ValueError, match='30 canaries are more than the 29 units'):
        make_canaries(29)
    with pytest.raises(ValueError, match='l2_norm_clip is infinite'):
        make_canaries(l2_norm_clip=float('inf'), noise_multiplier=0.0)
