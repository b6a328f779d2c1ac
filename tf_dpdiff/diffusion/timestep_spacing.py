"""Which timesteps a sampler visits, and how much signal and noise there is at them and at the next ones."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_dpdiff.diffusion.schedules import Schedule

# What every sampler is given. From x_t, the timestep (int32 scalar) and sqrt(alphas_cumprod) and
# sqrt(1 - alphas_cumprod) there (float32 scalars) to x_start: one evaluation of the network.
PredictXStart = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
# From the number of a draw to standard normal noise, float32 [batch, height, width, channels].
DrawNoise = Callable[[tf.Tensor], tf.Tensor]

RHO = 7.0
SIGMA_MAX = 80.0


def evenly_spaced(schedule: Schedule, num_steps: int) -> np.ndarray:
    """Returns timesteps that are evenly spaced, from num_timesteps - 1 down to 0; int32 [num_steps]."""
    _check(schedule, num_steps)
    return np.linspace(schedule.num_timesteps - 1, 0, num_steps).round().astype(np.int32)


def spaced_in_sigma(schedule: Schedule, num_steps: int) -> np.ndarray:
    """Returns timesteps whose sigmas^(1/7) are evenly spaced: short steps where there is little noise.

    From sigma = 80, or the schedule's largest if that is less, down to the schedule's smallest. What lies beyond 80 in
    images of unit range is noise alone, and the cosine schedule goes there in leaps (20000, 640, 320, ...) that
    second-order samplers could not follow. Networks take whole timesteps, so the nearest in log sigma is taken, or,
    where that one has been visited already, the next one below it: there are always num_steps different ones.

    Args:
      schedule: The noise schedule.
      num_steps: How many; 1 is the first one alone.

    Returns:
      int32 [num_steps], decreasing.

    References: Karras et al. 2022, arXiv:2206.00364, equation 5 and Table 1.
    """
    _check(schedule, num_steps)
    sigmas = schedule.sigmas
    first, last = min(SIGMA_MAX, sigmas[-1]) ** (1.0 / RHO), sigmas[0] ** (1.0 / RHO)
    wanted = np.linspace(first, last, num_steps) ** RHO
    steps = np.abs(np.log(sigmas) - np.log(wanted)[:, None]).argmin(axis=1)
    for i in range(1, num_steps):
        steps[i] = min(steps[i], steps[i - 1] - 1)
    # Where that ran out of timesteps, the lowest ones are taken from the end.
    return np.maximum(steps, np.arange(num_steps)[::-1]).astype(np.int32)


def alphas_and_next(schedule: Schedule, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns alphas_cumprod at the timesteps and at the ones that follow, the last followed by 1, the clean image."""
    alphas = schedule.alphas_cumprod[steps]
    return alphas, np.append(alphas[1:], 1.0)


def _check(schedule, num_steps):
    if num_steps > schedule.num_timesteps:
        raise ValueError(
            f"num_steps={num_steps} of the sampler exceeds the schedule's {schedule.num_timesteps} timesteps."
        )
