"""Tests of schedules and samplers against those of the `diffusers` package, which is no dependency of the project.

To run them, install it into a folder of its own, and show that to Python, without -I, which would not look there:

    .venv/bin/python -m pip install --target FOLDER diffusers torch
    PYTHONPATH=FOLDER .venv/bin/python -m pytest tests/diffusion/diffusers_test.py

All of them passed with diffusers 0.42.1 and torch 2.13.0.
"""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import parameterization
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.diffusion import timestep_spacing

diffusers = pytest.importorskip('diffusers', reason='diffusers is not installed; see the top of this file')
torch = pytest.importorskip('torch', reason='torch is not installed; see the top of this file')

_BETA_SCHEDULES = {'linear': 'linear', 'cosine': 'squaredcos_cap_v2'}
_PREDICTION_TYPES = {'epsilon': 'epsilon', 'v': 'v_prediction', 'x_start': 'sample'}
_IMAGE_SHAPE = (4, 4, 3)
_SEEDS = np.arange(6)


@pytest.mark.parametrize('name', schedules.SCHEDULES)
def test_schedule_is_that_of_diffusers(name):
    theirs = diffusers.DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule=_BETA_SCHEDULES[name])
    # Theirs is a product of a thousand numbers in float32.
    np.testing.assert_allclose(schedules.Schedule(name).alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=2e-4)


@pytest.mark.parametrize('num_timesteps', [10, 250])
def test_cosine_schedule_is_that_of_diffusers_for_another_number_of_timesteps(num_timesteps):
    theirs = diffusers.DDPMScheduler(num_timesteps, beta_schedule='squaredcos_cap_v2').alphas_cumprod.numpy()
    np.testing.assert_allclose(schedules.Schedule('cosine', num_timesteps).alphas_cumprod, theirs, rtol=1e-4)


def network(process, x_t, t):
    """Stands in for a network, in NumPy for both: the prediction that stands for an image of some structure.

    Args:
      process: Says what is predicted.
      x_t: [batch, height, width, channels].
      t: The timestep, a whole number.
    """
    alpha = process.schedule.alphas_cumprod[t]
    x_t = np.asarray(x_t, np.float64)
    x_start = 0.9 * np.tanh(x_t + t / 1000) + 0.4 * np.sin(3 * x_t)
    noise = (x_t - np.sqrt(alpha) * x_start) / np.sqrt(1 - alpha)
    target = parameterization.training_target(
        process.parameterization, x_start, noise, np.sqrt(alpha), np.sqrt(1 - alpha)
    )
    return np.asarray(target, np.float32)


def our_images(process, config):
    """Returns the images that the sampler draws, float32 [seeds, *_IMAGE_SHAPE]."""
    return samplers.sample(
        lambda x_t, t, labels: tf.constant(network(process, x_t, int(t[0]))),
        tf.zeros([len(_SEEDS)], tf.int32),
        tf.constant(_SEEDS, tf.int64),
        process=process,
        config=config,
        image_shape=_IMAGE_SHAPE,
        num_classes=0,
    ).numpy()


def noise_of_draw(draw):
    return torch.from_numpy(
        samplers.seeded_noise(tf.constant(_SEEDS, tf.int64), tf.constant(draw), _IMAGE_SHAPE).numpy()
    )


def their_images(process, scheduler, start, **step_options):
    """Returns the images that a scheduler whose timesteps are set makes of the noise that we start from."""
    x = start
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t).numpy()
        prediction = torch.from_numpy(network(process, seen, int(t)))
        x = scheduler.step(prediction, t, x, **step_options).prev_sample
    return np.clip(x.numpy(), -1, 1)


def make_scheduler(make, process, **options):
    """Returns a scheduler of diffusers.

    Its alphas_cumprod, which another test compares, are replaced by ours in float64: theirs in float32 leave an error
    of a thousandth in the least sigma.
    """
    scheduler = make(
        num_train_timesteps=process.schedule.num_timesteps,
        prediction_type=_PREDICTION_TYPES[process.parameterization],
        **options,
    )
    scheduler.alphas_cumprod = torch.from_numpy(process.schedule.alphas_cumprod)
    return scheduler


def thresholding_of(name):
    """Returns the flags of a thresholding in diffusers."""
    return {
        'clip_sample': name == 'static',
        'thresholding': name == 'dynamic',
        'dynamic_thresholding_ratio': 0.9,
        'sample_max_value': 1e6,
    }


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # Neither all cut off, nor all alike.
    assert 0.1 < (np.abs(ours) < 0.99).mean() and np.std(ours) > 0.2


_CASES = [
    ('cosine', 'v', 'static'),
    ('linear', 'epsilon', 'static'),
    ('linear', 'x_start', 'none'),
    ('cosine', 'x_start', 'dynamic'),
]


@pytest.mark.parametrize('schedule, predicts, thresholding', _CASES)
@pytest.mark.parametrize('num_steps', [10, 28])
def test_ddim_is_that_of_diffusers(schedule, predicts, thresholding, num_steps):
    process = process_lib.DiffusionProcess(schedules.Schedule(schedule), predicts)
    config = samplers.SamplerConfig('ddim', num_steps, thresholding=thresholding, dynamic_percentile=0.9)
    scheduler = make_scheduler(diffusers.DDIMScheduler, process, **thresholding_of(thresholding))
    # Theirs takes the length of a step from the number of steps: 1000 // 27 = 37 = 999 / 27.
    scheduler.set_timesteps(num_steps - 1)
    scheduler.timesteps = torch.from_numpy(timestep_spacing.evenly_spaced(process.schedule, num_steps))
    theirs = their_images(process, scheduler, noise_of_draw(0), use_clipped_model_output=True)
    assert_same(our_images(process, config), theirs)


@pytest.mark.parametrize('schedule, predicts, thresholding', _CASES)
@pytest.mark.parametrize('num_steps', [7, 60])
def test_ancestral_is_ddpm_of_diffusers(monkeypatch, schedule, predicts, thresholding, num_steps):
    process = process_lib.DiffusionProcess(schedules.Schedule(schedule), predicts)
    config = samplers.SamplerConfig('ancestral', num_steps, thresholding=thresholding, dynamic_percentile=0.9)
    scheduler = make_scheduler(
        diffusers.DDPMScheduler, process, **thresholding_of(thresholding), variance_type='fixed_small'
    )
    scheduler.set_timesteps(timesteps=timestep_spacing.evenly_spaced(process.schedule, num_steps).tolist())
    draws = iter(range(1, num_steps))
    monkeypatch.setattr(
        'diffusers.schedulers.scheduling_ddpm.randn_tensor', lambda *unused, **also_unused: noise_of_draw(next(draws))
    )
    assert_same(our_images(process, config), their_images(process, scheduler, noise_of_draw(0)))
    assert next(draws, None) is None


def dpm_solver_of_diffusers(process, num_steps, thresholding, order):
    """Returns the images that DPM-Solver++ of diffusers makes of the noise that we start from, at our timesteps."""
    options = thresholding_of(thresholding)
    del options['clip_sample']  # Theirs has none.
    scheduler = make_scheduler(
        diffusers.DPMSolverMultistepScheduler,
        process,
        **options,
        algorithm_type='dpmsolver++',
        solver_order=order,
        solver_type='midpoint',
        final_sigmas_type='zero',
    )
    scheduler.set_timesteps(timesteps=timestep_spacing.spaced_in_sigma(process.schedule, num_steps).tolist())
    return their_images(process, scheduler, noise_of_draw(0))


@pytest.mark.parametrize(
    'schedule, predicts, thresholding',
    [('cosine', 'v', 'none'), ('linear', 'epsilon', 'dynamic'), ('linear', 'x_start', 'none')],
)
@pytest.mark.parametrize('num_steps', [1, 2, 10, 25])
def test_dpmpp_2m_is_that_of_diffusers(schedule, predicts, thresholding, num_steps):
    process = process_lib.DiffusionProcess(schedules.Schedule(schedule), predicts)
    config = samplers.SamplerConfig('dpmpp_2m', num_steps, thresholding=thresholding, dynamic_percentile=0.9)
    assert_same(our_images(process, config), dpm_solver_of_diffusers(process, num_steps, thresholding, order=2))


def test_control_dpm_solver_of_another_order_is_noticed():
    process = process_lib.DiffusionProcess()
    ours = our_images(process, samplers.SamplerConfig('dpmpp_2m', 25, thresholding='none'))
    with pytest.raises(AssertionError, match='Not equal to tolerance'):
        assert_same(ours, dpm_solver_of_diffusers(process, 25, 'none', order=1))


@pytest.mark.parametrize(
    'schedule, predicts, thresholding',
    [('cosine', 'v', 'static'), ('linear', 'epsilon', 'none'), ('linear', 'v', 'static')],
)
@pytest.mark.parametrize('num_steps', [1, 10, 25])
def test_edm_heun_is_heun_of_diffusers(schedule, predicts, thresholding, num_steps):
    process = process_lib.DiffusionProcess(schedules.Schedule(schedule), predicts)
    config = samplers.SamplerConfig('edm_heun', num_steps, thresholding=thresholding)
    scheduler = make_scheduler(diffusers.HeunDiscreteScheduler, process, clip_sample=thresholding == 'static')
    steps = timestep_spacing.spaced_in_sigma(process.schedule, num_steps)
    scheduler.set_timesteps(timesteps=steps.tolist())
    # Their images are not scaled down by the signal rate.
    start = noise_of_draw(0) / float(np.sqrt(process.schedule.alphas_cumprod[steps[0]]))
    assert_same(our_images(process, config), their_images(process, scheduler, start))
