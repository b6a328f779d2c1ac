"""Tests of epsilon in the course of a run: a bound after each step, made from few computations."""

import math

import numpy as np
import pytest

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import plan as plan_lib

DELTA = 1e-5


def make_plan(num_steps, noise_multiplier=2.0, release=None):
    config = plan_lib.DpSgdConfig(
        target_delta=DELTA,
        expected_batch_size=100,
        num_steps=num_steps,
        l2_norm_clip=1.0,
        noise_multiplier=noise_multiplier,
    )
    return plan_lib.make_plan(config, 1000, release)


def bounds_of(plan, steps):
    return [curves.epsilon_bound(plan.dp_event, plan.config.num_steps, DELTA, step) for step in steps]


@pytest.mark.parametrize('release', [None, class_means.ClassMeansConfig(3.0, 2.0)])
@pytest.mark.parametrize('num_steps, noise_multiplier', [(1, 2.0), (7, 2.0), (20, 0.5), (250, 3.0)])
def test_bound_is_never_below_what_was_spent_and_is_the_cost_of_the_run_at_its_end(
    num_steps, noise_multiplier, release
):
    plan, steps = make_plan(num_steps, noise_multiplier, release), range(num_steps + 1)
    bounds = bounds_of(plan, steps)
    assert bounds == sorted(bounds) and bounds[-1] == plan.epsilon()
    assert bounds[0] == 0.0 if release is None else bounds[0] > 0.0
    # Where there are many steps, the cost of the next ones stands for a while.
    slack = math.ceil(num_steps / 100) - 1
    for step in steps if num_steps < 10 else (1, 2, num_steps // 2, num_steps - 1):
        ahead = min(step + slack, num_steps)
        assert (
            plan.epsilon(plan.planned_ledger(step)) <= bounds[step] <= 1.01 * plan.epsilon(plan.planned_ledger(ahead))
        )


def test_bound_is_computed_for_a_hundredth_of_the_steps(monkeypatch):
    asked, epsilon = set(), accounting.epsilon

    def count(event, *arguments, **options):
        asked.add(str(event))
        return epsilon(event, *arguments, **options)

    monkeypatch.setattr(accounting, 'epsilon', count)
    bounds = bounds_of(make_plan(1000), range(1, 1001))
    assert len(asked) <= 100 and len(set(bounds)) == len(asked)
    assert np.all(np.diff(bounds) >= 0.0)


def test_no_guarantee_has_no_bound():
    assert bounds_of(make_plan(5, noise_multiplier=0.0), range(6)) == [math.inf] * 6
