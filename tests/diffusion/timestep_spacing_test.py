"""Tests of the timesteps that samplers visit."""

import numpy as np
import pytest

from tf_dpdiff.diffusion import schedules
from tf_dpdiff.diffusion import timestep_spacing

_SPACINGS = (timestep_spacing.evenly_spaced, timestep_spacing.spaced_in_sigma)


@pytest.mark.parametrize('num_timesteps, num_steps', [(1000, 2), (1000, 50), (1000, 999), (1000, 1000), (2, 2), (7, 4)])
def test_timesteps_are_visited_evenly_from_the_last_to_the_first(num_timesteps, num_steps):
    sequence = timestep_spacing.evenly_spaced(schedules.Schedule('cosine', num_timesteps), num_steps)
    assert sequence.dtype == np.int32 and len(sequence) == num_steps
    assert sequence[0] == num_timesteps - 1 and sequence[-1] == 0
    gaps = -np.diff(sequence)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_a_single_step_starts_from_pure_noise():
    assert timestep_spacing.evenly_spaced(schedules.Schedule(), 1).tolist() == [999]


@pytest.mark.parametrize('schedule', schedules.SCHEDULES)
@pytest.mark.parametrize('num_steps', [1, 2, 10, 18, 25])
def test_sigmas_are_the_nearest_ones_to_those_of_edm(schedule, num_steps):
    schedule = schedules.Schedule(schedule)
    sequence = timestep_spacing.spaced_in_sigma(schedule, num_steps)
    sigmas = np.sqrt(1 / schedule.alphas_cumprod - 1)
    for i in range(num_steps):
        # Equation 5 of Karras et al. 2022 with rho = 7.
        share = i / (num_steps - 1) if num_steps > 1 else 0.0
        wanted = (80 ** (1 / 7) + share * (sigmas.min() ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert sequence[i] == np.argmin([abs(np.log(sigma / wanted)) for sigma in sigmas])


def test_schedule_with_less_noise_is_begun_at_its_last_timestep():
    schedule = schedules.Schedule('cosine', 2)
    assert schedule.sigmas[-1] < 80
    assert timestep_spacing.spaced_in_sigma(schedule, 1).tolist() == [1]


@pytest.mark.parametrize('schedule', schedules.SCHEDULES)
@pytest.mark.parametrize(
    'num_timesteps, num_steps', [(1000, 100), (1000, 500), (1000, 1000), (20, 20), (20, 15), (2, 2)]
)
def test_no_timestep_is_visited_twice_where_there_are_more_steps_than_sigmas_nearby(schedule, num_timesteps, num_steps):
    sequence = timestep_spacing.spaced_in_sigma(schedules.Schedule(schedule, num_timesteps), num_steps)
    assert sequence.dtype == np.int32 and len(sequence) == num_steps
    assert sequence[0] < num_timesteps and sequence[-1] == 0
    assert (np.diff(sequence) < 0).all()


@pytest.mark.parametrize('spacing', _SPACINGS)
def test_more_steps_than_timesteps_are_refused(spacing):
    with pytest.raises(ValueError, match="num_steps=21 of the sampler exceeds the schedule's 20 timesteps"):
        spacing(schedules.Schedule('cosine', 20), 21)


def test_each_timestep_is_followed_by_the_next_one_and_the_last_by_the_clean_image():
    schedule = schedules.Schedule()
    alphas, alphas_next = timestep_spacing.alphas_and_next(schedule, np.array([900, 30, 0]))
    np.testing.assert_array_equal(alphas, schedule.alphas_cumprod[[900, 30, 0]])
    assert alphas_next.tolist() == [*schedule.alphas_cumprod[[30, 0]], 1.0]
