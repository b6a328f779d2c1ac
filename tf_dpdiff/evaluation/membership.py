"""Which images was a model trained on? Diffusion losses as membership scores, and how well they tell.

All numbers made here come from private images without noise: they are for the owner of the data, not to be released.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff.diffusion import corruption
from tf_dpdiff.diffusion import losses
from tf_dpdiff.diffusion import parameterization as parameterization_lib
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import denoiser

FALSE_POSITIVE_RATES = (0.001, 0.01)


def check_timesteps(timesteps: Sequence[int], process: process_lib.DiffusionProcess) -> None:
    """Raises ValueError if a timestep is beyond the schedule."""
    if max(timesteps) >= process.schedule.num_timesteps:
        raise ValueError(
            f'losses at timestep {max(timesteps)} are asked for; the schedule has '
            f'{process.schedule.num_timesteps} timesteps, counted from 0.'
        )


class ImageLoss:
    """The mean diffusion loss of single images, at fixed timesteps and with noise draws that all images share.

    Shared draws cancel in comparisons: the loss of a draw varies more from draw to draw than from image to image.

    Args:
      model: The network.
      process: The diffusion process that it was trained for.
      timesteps: At which the loss is taken.
      draws_per_timestep: Noise draws at each.
      seed: Public.
      chunk_size: Images taken at a time.

    Raises:
      ValueError: if a timestep is beyond the schedule.
    """

    def __init__(
        self,
        model: keras.Model,
        process: process_lib.DiffusionProcess,
        timesteps: Sequence[int],
        *,
        draws_per_timestep: int,
        seed: int,
        chunk_size: int,
    ):
        check_timesteps(timesteps, process)
        self._model = model
        self._process = process
        self._chunk_size = chunk_size
        self._t = np.repeat(np.array(timesteps, np.int32), draws_per_timestep)
        shape = [len(self._t), *model.inputs[0].shape[1:]]
        self._noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        self._chunk_loss = tf.function(
            self._take_losses,
            input_signature=[tf.TensorSpec([chunk_size, *shape[1:]], tf.uint8), tf.TensorSpec([chunk_size], tf.int32)],
            autograph=False,
        )

    def _take_losses(self, images_uint8, labels):
        """Returns the losses, float32 [images]."""
        num_draws = len(self._t)
        x_start = tf.repeat(corruption.to_pm1(images_uint8), num_draws, axis=0)
        t = tf.tile(self._t, [self._chunk_size])
        noise = tf.tile(self._noise, [self._chunk_size, 1, 1, 1])
        rates = corruption.gather_coefficients(self._process.schedule, t)
        x_t = corruption.q_sample(self._process.schedule, x_start, t, noise)
        prediction = denoiser.denoise(self._model, x_t, t, tf.repeat(labels, num_draws))
        target = parameterization_lib.training_target(self._process.parameterization, x_start, noise, *rates)
        return tf.reduce_mean(tf.reshape(losses.view_losses(prediction, target), [-1, num_draws]), axis=1)

    def __call__(self, images_uint8: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns the losses of images under labels.

        Args:
          images_uint8: uint8 [images, height, width, channels].
          labels: int32 [images]; the number of classes stands for "no class".

        Returns:
          float32 [images]: the mean over timesteps and draws.
        """
        found = []
        with progress.bar(len(labels), 'losses', 'image', delay_secs=1.0) as bar:
            for start in range(0, len(labels), self._chunk_size):
                images, chunk = (a[start : start + self._chunk_size] for a in (images_uint8, labels))
                missing = self._chunk_size - len(chunk)
                padded = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]), np.pad(chunk, (0, missing))
                found.append(
                    self._chunk_loss(tf.constant(padded[0]), tf.constant(padded[1], tf.int32)).numpy()[: len(chunk)]
                )
                bar.update(len(chunk))
        return np.concatenate(found)


@dataclasses.dataclass(frozen=True)
class MembershipAttack:
    """How well the losses tell images that were trained on from images that were not.

    Attributes:
      auc: Area under the ROC curve: 0.5 tells nothing, 1 everything.
      true_positive_rates: At each of FALSE_POSITIVE_RATES.
      num_members: Images that were trained on.
      num_non_members: Images that were not.
      curve: The ROC curve, false and true positive rates.
    """

    auc: float
    true_positive_rates: tuple[float, ...]
    num_members: int
    num_non_members: int
    curve: tuple[np.ndarray, np.ndarray]

    def to_dict(self) -> dict:
        """Returns plain JSON values, without the curve."""
        return {
            'auc': self.auc,
            'true_positive_rate_at_false_positive_rate': {
                f'{rate:g}': value for rate, value in zip(FALSE_POSITIVE_RATES, self.true_positive_rates)
            },
            'num_members': self.num_members,
            'num_non_members': self.num_non_members,
            'caveats': self.caveats(),
        }

    def caveats(self) -> list:
        """Returns a sentence for each rate that the number of non-members cannot resolve."""
        return [
            f'a false positive rate of {rate:.1%} needs at least {round(1 / rate):,} non-members to mean something; '
            f'here are {self.num_non_members:,}'
            for rate in FALSE_POSITIVE_RATES
            if self.num_non_members * rate < 1
        ]


def attack(member_losses: np.ndarray, non_member_losses: np.ndarray) -> MembershipAttack:
    """Attacks by the threshold on the loss: a low one speaks for "trained on".

    scikit-learn draws the curve: the attack module of tensorflow_privacy 0.9.0 forwards to a package that its wheel
    leaves out.

    Args:
      member_losses: float [images], finite.
      non_member_losses: float [images], finite.

    References: Carlini et al. 2022, arXiv:2112.03570, for true positive rates at low false positive rates; Duan et al.
      2023, arXiv:2302.01316, for attacks by the diffusion loss.
    """
    from sklearn import metrics

    truth = np.repeat([1, 0], [len(member_losses), len(non_member_losses)])
    scores = -np.concatenate([member_losses, non_member_losses])
    false_rates, true_rates, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    return MembershipAttack(
        auc=float(metrics.roc_auc_score(truth, scores)),
        true_positive_rates=tuple(float(true_rates[false_rates <= rate].max()) for rate in FALSE_POSITIVE_RATES),
        num_members=len(member_losses),
        num_non_members=len(non_member_losses),
        curve=(false_rates, true_rates),
    )
