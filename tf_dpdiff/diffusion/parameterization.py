"""What the network predicts, and the way back to x_start and noise."""

import tensorflow as tf

PARAMETERIZATIONS = ('epsilon', 'v', 'x_start')


def training_target(
    parameterization: str, x_start: tf.Tensor, noise: tf.Tensor, signal_rate: tf.Tensor, noise_rate: tf.Tensor
) -> tf.Tensor:
    """Returns the target of the network at x_t = signal_rate * x_start + noise_rate * noise.

    Args:
      parameterization: 'epsilon' (the noise; Ho et al. 2020), 'v' (signal_rate * noise - noise_rate * x_start; Salimans
        and Ho 2022, steadier at high noise) or 'x_start'.
      x_start: float32 [..., height, width, channels].
      noise: float32, same shape.
      signal_rate: sqrt(alphas_cumprod), broadcastable.
      noise_rate: sqrt(1 - alphas_cumprod), broadcastable.

    References: Ho et al. 2020, arXiv:2006.11239, equation 14; Salimans and Ho 2022, arXiv:2202.00512, appendix D.
    """
    check(parameterization)
    if parameterization == 'epsilon':
        return noise
    if parameterization == 'v':
        return signal_rate * noise - noise_rate * x_start
    return x_start


def to_x_start_and_noise(
    parameterization: str, prediction: tf.Tensor, x_t: tf.Tensor, signal_rate: tf.Tensor, noise_rate: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the x_start and the noise that a prediction at x_t stands for; inverse of `training_target`."""
    check(parameterization)
    if parameterization == 'epsilon':
        return (x_t - noise_rate * prediction) / signal_rate, prediction
    if parameterization == 'v':
        return signal_rate * x_t - noise_rate * prediction, noise_rate * x_t + signal_rate * prediction
    return prediction, (x_t - signal_rate * prediction) / noise_rate


def check(parameterization: str) -> None:
    """Raises ValueError for an unknown parameterization."""
    if parameterization not in PARAMETERIZATIONS:
        raise ValueError(f'parameterization must be one of {PARAMETERIZATIONS}, got {parameterization!r}.')
