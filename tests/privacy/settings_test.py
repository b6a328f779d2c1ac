"""Tests of the settings of a run: they cost what a plan of them costs; cli/account_test tests how they are found."""

import dataclasses

import pytest

from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import settings as settings_lib

CONFIG = plan_lib.DpSgdConfig(
    target_delta=1e-4, expected_batch_size=200, num_steps=50, l2_norm_clip=0.1, noise_multiplier=3.0
)
SETTINGS = settings_lib.RunSettings(
    delta=1e-4, noise_multiplier=3.0, num_steps=50, sampling_probability=0.2, target_epsilon=None, num_units=1000
)


@pytest.mark.parametrize('rounds', [None, 1, 4])
@pytest.mark.parametrize('batch_size', [200, 1000])
def test_settings_cost_what_a_plan_of_them_costs(rounds, batch_size):
    release, warm_start = None, {}
    if rounds:
        release = class_means.ClassMeansConfig(6.0, 1.0, means_per_class=rounds, num_rounds=rounds)
        warm_start = {'warm_start_noise_multiplier': 6.0, 'warm_start_num_rounds': rounds}
    plan = plan_lib.make_plan(dataclasses.replace(CONFIG, expected_batch_size=batch_size), 1000, release)
    settings = dataclasses.replace(SETTINGS, sampling_probability=batch_size / 1000, **warm_start)
    for num_steps in (None, 0, 7):
        assert settings.ledger(num_steps).dp_event() == plan.planned_ledger(num_steps).dp_event()
    assert settings.expected_batch_size == batch_size
    assert settings.epsilon() == plan.epsilon() and settings.cautions() == plan.cautions()


@pytest.mark.parametrize('name', ['noise_multiplier', 'num_steps', 'sampling_probability'])
def test_setting_that_is_missing_is_the_one_that_uses_up_the_target(name):
    target = 1.0001 * SETTINGS.epsilon()
    known = dataclasses.replace(SETTINGS, target_epsilon=target, **{name: None})
    found = settings_lib.complete(known)
    assert 0.99 * target < found.epsilon() <= target
    assert getattr(found, name) == pytest.approx(getattr(SETTINGS, name), rel=2e-3)
    assert dataclasses.replace(found, **{name: None}) == known
