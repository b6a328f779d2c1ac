"""Accuracy on private images, released with noise: one Gaussian release of the numbers of right answers."""

import dataclasses
import math

import numpy as np

from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import owners as owners_lib
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import seeds

HELD_OUT_ACCURACY = 'held_out_accuracy'


@dataclasses.dataclass(frozen=True)
class AccuracyReleaseConfig:
    """A Gaussian release of how many private units several classifiers get right.

    Use it to publish what samples are worth where the real images to measure it on are private. The classifiers must
    not depend on these images but through what was released already: trained on samples, chosen on samples.

    Guarantee: a unit adds to the released vector the share of its images that each classifier gets right, K numbers in
      [0, 1], so adding, removing or replacing a unit changes the vector by at most sqrt(K) in L2 norm. The noise has
      standard deviation noise_multiplier * sqrt(K) in each coordinate: a Gaussian mechanism with the stated noise
      multiplier, however many classifiers. The number of units is public.

    Attributes:
      noise_multiplier: Ratio of the noise's standard deviation to the sensitivity, > 0.

    Example:
        >>> config = AccuracyReleaseConfig(noise_multiplier=2.0)
        >>> config.stddev(num_units=1000, num_classifiers=4)
        0.004
    """

    noise_multiplier: float

    def __post_init__(self):
        if not 0.0 < self.noise_multiplier < math.inf:
            raise ValueError(
                f'noise_multiplier of the accuracy release must be finite and > 0, got {self.noise_multiplier}.'
            )

    def stddev(self, num_units: int, num_classifiers: int) -> float:
        """Returns the standard deviation of the noise in each released accuracy."""
        return self.noise_multiplier * self.sensitivity(num_classifiers) / num_units

    @staticmethod
    def sensitivity(num_classifiers: int, neighboring_relation: str = 'replace_one') -> float:
        """Returns the largest change of the vector, in L2 norm; it is the same for each relation.

        Args:
          num_classifiers: K.
          neighboring_relation: 'add_or_remove_one', 'replace_with_zero' or 'replace_one'.
        """
        relations.check(neighboring_relation)
        return math.sqrt(num_classifiers)

    def record(self, ledger: ledger_lib.Ledger) -> ledger_lib.Ledger:
        """Returns the ledger with this release."""
        return ledger.record(HELD_OUT_ACCURACY, self.noise_multiplier, 1.0)

    def exact_vector(self, correct: np.ndarray, owners: np.ndarray | None = None) -> np.ndarray:
        """Returns the vector that the noise is added to: PRIVATE, exposed for the tests of its sensitivity.

        Args:
          correct: bool [images, classifiers].
          owners: int [images], whose image each is, numbered from 0, or None: each image is a unit of its own.

        Returns:
          float64 [classifiers]: units that are right, those of several images in part.
        """
        correct = np.asarray(correct)
        if correct.ndim != 2 or correct.dtype != bool or not correct.size:
            raise ValueError(f'correct must be bool [images, classifiers], got {correct.dtype} {list(correct.shape)}.')
        shares = owners_lib.shares(len(correct), owners)
        return shares @ correct

    def release(
        self,
        correct: np.ndarray,
        *,
        seed: seeds.PrivateSeed,
        num_units: int,
        owners: np.ndarray | None = None,
        generator: str = 'shake256',
    ) -> np.ndarray:
        """Returns noisy accuracies.

        Args:
          correct: bool [images, classifiers], which images each classifier gets right.
          seed: A secret of this release alone.
          num_units: Number of units, public, by which the noisy sums are divided.
          owners: int [images], whose image each is, numbered from 0, or None: each image is a unit of its own.
          generator: Of the noise; see `noise.GaussianNoise`.

        Returns:
          float64 [classifiers], shares of the units, clipped to [0, 1].
        """
        vector = self.exact_vector(correct, owners)
        stddev = self.noise_multiplier * self.sensitivity(len(vector))
        vector = vector + stddev * noise.standard_normal(seed, HELD_OUT_ACCURACY, vector.shape, generator)
        return np.clip(vector / num_units, 0.0, 1.0)  # Post-processing.

    def score(
        self, correct: np.ndarray, *, seed: seeds.PrivateSeed, num_units: int, owners: np.ndarray | None, generator: str
    ) -> float:
        """Returns the noisy accuracy of one classifier as it is, by which runs are compared: PRIVATE where they lose.

        Guarantee: that of `release`. It is not clipped: two that are above 1 still differ. Of one secret, another
          vector gets other noise, so that a score that is computed again after a crash tells no difference of the two.

        Args:
          correct: bool [images, 1].
          seed: A secret of the score of this run alone.
          num_units: Number of units, public.
          owners: As for `release`.
          generator: Of the noise.

        Raises:
          ValueError: for several classifiers.
        """
        vector = self.exact_vector(correct, owners)
        if len(vector) != 1:
            raise ValueError(f'a score is the accuracy of one classifier, got {len(vector)}.')
        noisy = noise.add_to_release(
            vector,
            self.noise_multiplier * self.sensitivity(len(vector)),
            seed=seed,
            purpose=HELD_OUT_ACCURACY,
            generator=generator,
        )
        return float(noisy[0]) / num_units
