"""Which images was a model trained on? Diffusion losses as membership scores, and how well scores tell.

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
from tf_dpdiff.privacy import meaning

FALSE_POSITIVE_RATES = (0.001, 0.01)
CONFIDENCE = 0.95  # Of intervals.


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
    """How well scores tell images, or owners, that were trained on from those that were not.

    Attributes:
      auc: Area under the ROC curve: 0.5 tells nothing, 1 everything.
      true_positives: Members that are said to be members, at each of FALSE_POSITIVE_RATES.
      false_positives: Non-members that then are said to be members: no larger share of them than that rate.
      num_members: Images, or owners, that were trained on.
      num_non_members: Images, or owners, that were not.
      curve: The ROC curve, false and true positive rates.
    """

    auc: float
    true_positives: tuple[int, ...]
    false_positives: tuple[int, ...]
    num_members: int
    num_non_members: int
    curve: tuple[np.ndarray, np.ndarray]

    @property
    def true_positive_rates(self) -> tuple[float, ...]:
        """At each of FALSE_POSITIVE_RATES."""
        return tuple(count / self.num_members for count in self.true_positives)

    @property
    def true_positive_intervals(self) -> tuple[tuple[float, float], ...]:
        """Where the rates would lie of all members that might have been attacked, at CONFIDENCE each."""
        return tuple(binomial_interval(count, self.num_members, CONFIDENCE) for count in self.true_positives)

    @property
    def auc_by_chance(self) -> float:
        """The standard deviation of the AUC of scores that tell nothing, and without ties."""
        members, others = self.num_members, self.num_non_members
        return float(np.sqrt((members + others + 1) / (12 * members * others)))

    def exceeds(self, epsilon: float, delta: float, *, confidence: float) -> bool:
        """Returns whether a rate is above what is permitted, even where chance is allowed for.

        The lower end of the true positive rate is held against what is permitted at the upper end of the false positive
        rate, since both rates are known by counting alone. Targets are taken as independent of one another.

        Args:
          epsilon: Of the claim, at least 0.
          delta: Of the claim.
          confidence: Of each of the two intervals, in (0, 1).
        """
        for true_positives, false_positives in zip(self.true_positives, self.false_positives):
            least = binomial_interval(true_positives, self.num_members, confidence)[0]
            most_false = binomial_interval(false_positives, self.num_non_members, confidence)[1]
            if least > permitted(epsilon, delta, most_false):
                return True
        return False

    def to_dict(self) -> dict:
        """Returns plain JSON values, without the curve."""
        keys = [f'{rate:g}' for rate in FALSE_POSITIVE_RATES]
        return {
            'auc': self.auc,
            'auc_standard_deviation_by_chance': self.auc_by_chance,
            'true_positive_rate_at_false_positive_rate': dict(zip(keys, self.true_positive_rates)),
            'true_positive_rate_interval': {
                'confidence': CONFIDENCE,
                **{key: list(interval) for key, interval in zip(keys, self.true_positive_intervals)},
            },
            'true_positives': dict(zip(keys, self.true_positives)),
            'false_positives': dict(zip(keys, self.false_positives)),
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


def binomial_interval(count: int, total: int, confidence: float) -> tuple[float, float]:
    """Returns the exact interval of a probability of which `count` of `total` independent tries came true.

    Args:
      count: At least 0.
      total: At least `count`, and 1.
      confidence: In (0, 1); both ends are missed with the same probability, (1 - confidence) / 2 at most.

    References: Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of the
      binomial.
    """
    from scipy import stats

    interval = stats.binomtest(count, total).proportion_ci(confidence, method='exact')
    return float(interval.low), float(interval.high)


def permitted(epsilon: float, delta: float, false_positive_rate: float) -> float:
    """Returns the largest true positive rate that an (epsilon, delta)-DP release permits at a false positive rate.

    That is e^epsilon times the false positive rate plus delta, or less where the same of the complement says less.

    Args:
      epsilon: At least 0.
      delta: In [0, 1].
      false_positive_rate: In (0, 1).
    """
    return meaning.right_guesses_bound(false_positive_rate, np.array([epsilon]), np.array([delta]))


def attack(member_scores: np.ndarray, non_member_scores: np.ndarray) -> MembershipAttack:
    """Attacks by a threshold on a loss, or on any other score of which low values speak for "trained on".

    scikit-learn draws the curve: the attack module of tensorflow_privacy 0.9.0 forwards to a package that its wheel
    leaves out, and wants tensorflow_estimator, which has no maintainer.

    Args:
      member_scores: float [members], finite.
      non_member_scores: float [non-members], finite.

    References: Carlini et al. 2022, arXiv:2112.03570, for true positive rates at low false positive rates; Duan et al.
      2023, arXiv:2302.01316, for attacks by the diffusion loss.
    """
    from sklearn import metrics

    num_members, num_non_members = len(member_scores), len(non_member_scores)
    truth = np.repeat([1, 0], [num_members, num_non_members])
    scores = -np.concatenate([member_scores, non_member_scores])
    false_rates, true_rates, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    # Both rise, so the last threshold that is allowed finds the most.
    last = [int(np.flatnonzero(false_rates <= rate)[-1]) for rate in FALSE_POSITIVE_RATES]
    return MembershipAttack(
        auc=float(metrics.roc_auc_score(truth, scores)),
        true_positives=tuple(round(true_rates[row] * num_members) for row in last),
        false_positives=tuple(round(false_rates[row] * num_non_members) for row in last),
        num_members=num_members,
        num_non_members=num_non_members,
        curve=(false_rates, true_rates),
    )
