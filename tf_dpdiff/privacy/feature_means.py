"""Noisy class means of public features: one Gaussian release, and the public images that are nearest to each class."""

from collections.abc import Iterable
import dataclasses
import math
from typing import ClassVar, NamedTuple

import numpy as np

from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import owners as owners_lib
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import seeds

# Features and count of an image have the same part in what is released.
EQUAL_COUNT_WEIGHT = math.sqrt(0.5)


class NoisyFeatureMeans(NamedTuple):
    """The means that a release gives of the private classes, and how noisy each is.

    Attributes:
      means: float64 [num_classes, features], noisy means of the directions of the features.
      noise_variance: float64 [num_classes], of the noise in each coordinate of a mean; infinite for a class of which
        not even the count stands out of the noise.
    """

    means: np.ndarray
    noise_variance: np.ndarray


@dataclasses.dataclass(frozen=True)
class FeatureMeansConfig:
    """A Gaussian release of the mean of the features that a public network sees in the images of each private class.

    Use it where labelled public images are at hand: a model that is trained on those nearest to the mean of a private
    class, under its name, begins near what DP-SGD is to find. Or, with the features of random networks, to make images
    that match the means (`matching`).

    Guarantee: an image of private class y with features f adds the vector (sqrt(1 - w^2) f / |f|, w) at y to the
      released sums, of norm 1 for a count_weight of w, and an owner of several images the average of what they would
      add, so a unit adds at most 1 in L2 norm. The product of what two units add is at least min(0, 2 w^2 - 1), so that
      replacing one changes the sums by at most max(sqrt(2), 2 sqrt(1 - w^2)). Features must depend on their own image
      and on public things alone, or on what this run has released before: on a network that has seen nothing else.
      Features that are not finite count as 0; an owner without images adds nothing. The noise has standard deviation
      noise_multiplier times the sensitivity in each number, so this is a Gaussian mechanism with the stated noise
      multiplier. The set of private classes and the public images are public.

    Attributes:
      noise_multiplier: Ratio of the noise's standard deviation to the sensitivity, > 0.
      count_weight: In (0, 1), the part of an image's vector that counts it: the less, the less noise on the features,
        and the more on the counts.

    References: PrivImage, Li et al. 2023, arXiv:2311.12850 (the semantic query, by classes where this is by images);
      Private Evolution, Lin et al. 2023, arXiv:2305.15560 (choosing images by a noisy query of public features).
    """

    noise_multiplier: float
    count_weight: float = EQUAL_COUNT_WEIGHT
    mechanism: ClassVar[str] = 'noisy_feature_means'  # What the ledger calls it.
    num_rounds: ClassVar[int] = 1  # How often it is applied.

    def __post_init__(self):
        if not 0.0 < self.noise_multiplier < math.inf:
            raise ValueError(
                f'noise_multiplier of the noisy feature means must be finite and > 0, got {self.noise_multiplier}.'
            )
        if not 0.0 < self.count_weight < 1.0:
            raise ValueError(f'count_weight of the noisy feature means must be in (0, 1), got {self.count_weight}.')

    @property
    def _feature_weight(self) -> float:
        return math.sqrt(1.0 - self.count_weight**2)

    def sensitivity(self, neighboring_relation: str) -> float:
        """Returns the largest change of the sums between neighbouring data sets, in L2 norm.

        Args:
          neighboring_relation: 'add_or_remove_one' or 'replace_with_zero' (1), or 'replace_one' (sqrt(2) to 2).
        """
        relations.check(neighboring_relation)
        return max(math.sqrt(2.0), 2.0 * self._feature_weight) if neighboring_relation == 'replace_one' else 1.0

    def noise_stddev(self, neighboring_relation: str) -> float:
        """Returns the standard deviation of the noise in each number."""
        return self.noise_multiplier * self.sensitivity(neighboring_relation)

    def noise_on_mean(self, num_units: float, neighboring_relation: str) -> float:
        """Returns the standard deviation of the noise in each number of the mean of a class.

        Args:
          num_units: Of the class.
          neighboring_relation: What neighbouring data sets are.
        """
        return self.noise_stddev(neighboring_relation) / (self._feature_weight * num_units)

    def record(self, ledger: ledger_lib.Ledger) -> ledger_lib.Ledger:
        """Returns the ledger with this release."""
        return ledger.record(self.mechanism, self.noise_multiplier, 1.0)

    def exact_vector(
        self,
        features: np.ndarray | Iterable[np.ndarray],
        labels: np.ndarray,
        num_classes: int,
        owners: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the sums that the noise is added to: PRIVATE, exposed for the tests of their sensitivity.

        Args:
          features: float [images, features], of any length; or blocks of them, one after another.
          labels: int [images], each in [0, num_classes).
          num_classes: Number of private classes.
          owners: int [images], whose image each is, or None: each image is a unit of its own.

        Returns:
          float64 [num_classes, features + 1].

        Raises:
          ValueError: if a label is out of range, or there are not as many labels as features.
        """
        # A negative one would count from the end.
        if len(labels) and not 0 <= np.min(labels) <= np.max(labels) < num_classes:
            raise ValueError(f'labels must be in [0, {num_classes}).')
        shares = owners_lib.shares(len(labels), owners)
        total, start = np.zeros([num_classes, 0]), 0
        for block in [features] if isinstance(features, np.ndarray) else features:
            rows = slice(start, start + len(block))
            start += len(block)
            if start > len(labels):
                break
            contributions = np.pad(
                self._feature_weight * directions(block), [(0, 0), (0, 1)], constant_values=self.count_weight
            )
            if not total.size:
                total = np.zeros([num_classes, contributions.shape[1]])
            is_of_class = labels[rows] == np.arange(num_classes)[:, None]
            total += (is_of_class * shares[rows]) @ contributions
        if start != len(labels):
            raise ValueError(f'there are {len(labels)} labels, and features of another number of images.')
        return total

    def release(
        self,
        features: np.ndarray | Iterable[np.ndarray],
        labels: np.ndarray,
        num_classes: int,
        *,
        seed: seeds.PrivateSeed,
        neighboring_relation: str,
        generator: str = 'philox',
        owners: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the noisy sums.

        Who has released once keeps the result and does not call this again: a network that was trained anew may give
        other features, and each release of other features is one more to be paid, with noise of its own.

        Args:
          features: float [images, features], of any length; or blocks of them, one after another.
          labels: int [images], each in [0, num_classes).
          num_classes: Number of private classes.
          seed: The run's secret. The same seed repeats the release of the same features.
          neighboring_relation: What neighbouring data sets are.
          generator: Of the noise; see `noise.GaussianNoise`.
          owners: int [images], whose image each is, or None: each image is a unit of its own.

        Returns:
          float64 [num_classes, features + 1].
        """
        vector = self.exact_vector(features, labels, num_classes, owners)
        stddev = self.noise_stddev(neighboring_relation)
        return noise.add_to_release(vector, stddev, seed=seed, purpose='feature_means', generator=generator)

    def means(self, noisy_sums: np.ndarray, neighboring_relation: str) -> NoisyFeatureMeans:
        """Returns the means that released sums stand for: post-processing, no further privacy cost."""
        stddev = self.noise_stddev(neighboring_relation)
        sums, counts = noisy_sums[:, :-1], noisy_sums[:, -1]
        is_sure = counts > noise.SURE * stddev
        # In units of the weight of the features.
        counts = np.where(is_sure, counts * self._feature_weight / self.count_weight, np.inf)
        return NoisyFeatureMeans(sums / counts[:, None], np.where(is_sure, (stddev / counts) ** 2, np.inf))

    def check_enough(self, num_units: int, num_classes: int, neighboring_relation: str) -> None:
        """Refuses noise in which a class of the average number of units would be lost.

        Raises:
          ValueError: names the noise, and the most that fits.
        """
        per_class = num_units / num_classes
        largest = per_class * self.count_weight / (noise.SURE * self.sensitivity(neighboring_relation))
        if self.noise_multiplier > largest:
            raise ValueError(
                f'noise_multiplier={self.noise_multiplier:g} of the noisy feature means would hide a class of '
                f'{per_class:.0f} units, the average: choose at most {largest:.3g}.'
            )


def directions(features: np.ndarray) -> np.ndarray:
    """Returns features of length 1; 0 where they are 0 or not finite.

    Args:
      features: float [images, features].

    Returns:
      float64 [images, features].
    """
    features = np.asarray(features, np.float64)
    features = np.where(np.isfinite(features).all(axis=1, keepdims=True), features, 0.0)
    # By the largest first: squares of very large or very small numbers do not fit.
    for norm in (
        lambda f: np.max(np.abs(f), axis=1, keepdims=True, initial=0.0),
        lambda f: np.linalg.norm(f, axis=1, keepdims=True),
    ):
        scale = norm(features)
        features = features / np.where(scale > 0.0, scale, 1.0)
    return features


def squared_lengths(means: NoisyFeatureMeans) -> np.ndarray:
    """Returns the squared lengths of the means without noise, as far as they can be told: post-processing.

    Noise makes a mean longer, and that of a class of few images most; what is expected of it is subtracted.

    Args:
      means: As released.

    Returns:
      float64 [num_classes]; 0 for a class that has no mean.
    """
    has_mean = np.isfinite(means.noise_variance)
    return np.sum(means.means**2, axis=1) - means.means.shape[1] * np.where(has_mean, means.noise_variance, 0.0)


def choose_images(
    means: NoisyFeatureMeans, features: np.ndarray, images_per_class: int
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses public images for each private class: post-processing, no further privacy cost.

    An image belongs to the class with the nearest mean, and a class takes those of its own that are most clearly nearer
    to its mean than to any other.

    Args:
      means: As released.
      features: float [public images, features], of any length.
      images_per_class: The most for a class, >= 1.

    Returns:
      Of each chosen image its number and its private class, int64 and int32 [chosen]; class by class, the clearest
      first. A class that no image is nearest to has none.
    """
    has_mean = np.isfinite(means.noise_variance)
    distances = np.where(has_mean, squared_lengths(means) - 2.0 * directions(features) @ means.means.T, np.inf)
    nearest = np.argmin(distances, axis=1)
    # Of one class alone, the nearest; where others are, those with the widest gap to the second.
    others = np.sort(distances, axis=1)[:, 1] if np.sum(has_mean) > 1 else 0.0
    gaps = others - np.min(distances, axis=1)
    chosen = []
    for label in np.flatnonzero(has_mean):
        own = np.flatnonzero(nearest == label)
        chosen.append(own[np.argsort(-gaps[own], kind='stable')][:images_per_class])
    rows = np.concatenate(chosen) if chosen else np.zeros([0], np.int64)
    return rows, nearest[rows].astype(np.int32)
