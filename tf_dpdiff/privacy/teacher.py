"""A private teacher: a linear classifier of fixed features, learnt by noisy gradient descent."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import numpy as np

from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import owners as owners_lib
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import seeds

INTERCEPT = 0.3  # The number that stands for it beside the features, whose squares add up to 1 with it.
_IMAGES_AT_A_TIME = 8192
_MOMENTUM = 0.9
_LEARNING_RATE, _SMALLEST_LEARNING_RATE, _LARGEST_LEARNING_RATE = 0.4, 3.0, 50.0


class Teacher(NamedTuple):
    """A linear classifier that was released.

    Attributes:
      center: float64 [features], the noisy mean of the directions of the features.
      weights: float64 [num_classes, features + 1], the last one of the intercept.
    """

    center: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Noisy gradient descent on a linear classifier of fixed features: a label for any image, at little cost.

    Use it where samples should be of their class: what is computed from the classifier, such as which of several
    samples is most clearly of its class, is post-processing. A private classifier is cheaper than a private generator:
    it has fewer parameters, and all units take part in each of its rounds.

    The first round releases the mean of the features' directions, which all images have in common. It is subtracted:
    gradient descent is fast where features lie about 0. The other rounds are its steps.

    Guarantee: in the first round, an image adds the direction of its features, of norm at most 1. In each other round,
      an image of class y adds g / max(1, |g| / C) to the released sum, where g is the outer product of p - e_y and x; p
      are the probabilities that the classifier of the round before gives the classes, and x are the centred features,
      brought to length 1 together with an intercept. So it adds at most C. An owner of several images adds the average
      of what they would add, so a unit adds at most 1 in the first round and at most C in the others. p and x depend on
      the image itself and on earlier releases alone. Features must depend on their own image and on public things
      alone. Features that are not finite count as 0; an owner without images adds nothing. The noise has standard
      deviation noise_multiplier times the sensitivity in each number, so each round is a Gaussian mechanism with the
      stated noise multiplier, and the rounds compose adaptively. The set of classes and the number of units are public.

    Attributes:
      noise_multiplier: Ratio of the noise's standard deviation to the sensitivity, of each round, > 0.
      num_rounds: Releases in all, in each of which all units take part, >= 2: the mean, then steps.
      l2_norm_clip: C, the norm to which the gradient of an image is clipped. That of an image that the classifier does
        not know is about 1. A small one counts those that it does not know yet alike.
      learning_rate: Of gradient descent with momentum of 0.9 on the mean loss, of which C is divided out, > 0. None: by
        the noise, from public facts alone; see `choose_learning_rate`.

    References: Tramer and Boneh 2021, arXiv:2011.11660 (private linear classifiers of fixed features beat deep private
      ones); Mehta et al. 2022, arXiv:2205.02973 (few steps on all units).
    """

    noise_multiplier: float
    num_rounds: int = 100
    l2_norm_clip: float = 0.1
    learning_rate: float | None = None
    mechanism: ClassVar[str] = 'teacher_gradients'  # What the ledger calls it.

    def __post_init__(self):
        for name in ('noise_multiplier', 'l2_norm_clip', 'learning_rate'):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float('inf'):
                raise ValueError(f'{name} of the teacher must be finite and > 0, got {value}.')
        if int(self.num_rounds) != self.num_rounds or self.num_rounds < 2:
            raise ValueError(f'num_rounds of the teacher must be a whole number of at least 2, got {self.num_rounds}.')

    def sensitivity(self, neighboring_relation: str, *, is_first: bool = False) -> float:
        """Returns the largest change of the sum of a round between neighbouring data sets, in L2 norm.

        Args:
          neighboring_relation: 'add_or_remove_one' or 'replace_with_zero' (C), or 'replace_one' (2 C).
          is_first: Whether it is the first round, where 1 takes the place of C.
        """
        relations.check(neighboring_relation)
        return (1.0 if is_first else self.l2_norm_clip) * (2.0 if neighboring_relation == 'replace_one' else 1.0)

    def record(self, ledger: ledger_lib.Ledger) -> ledger_lib.Ledger:
        """Returns the ledger with all rounds."""
        return ledger.record(self.mechanism, self.noise_multiplier, 1.0, count=self.num_rounds)

    def noise_share(self, num_units: int, num_parameters: int) -> float:
        """Returns the length of the noise of all rounds together beside the longest that their sums could be.

        Args:
          num_units: Number of units.
          num_parameters: Of the classifier.
        """
        return self.noise_multiplier * math.sqrt(num_parameters / self.num_rounds) / num_units

    def choose_learning_rate(self, num_units: int, num_parameters: int) -> float:
        """Returns the learning rate for so much noise; arguments as of `noise_share`.

        Found on digits, MNIST and blood cells, with more noise and with less: the less noise, the larger the steps.
        """
        share = self.noise_share(num_units, num_parameters)
        return min(max(_LEARNING_RATE / share, _SMALLEST_LEARNING_RATE), _LARGEST_LEARNING_RATE)

    def exact_directions(self, features: np.ndarray, owners: np.ndarray | None = None) -> np.ndarray:
        """Returns the sum that the noise of the first round is added to: PRIVATE, exposed for the tests.

        Args:
          features: float [images, features], of any length.
          owners: int [images], whose image each is, or None: each image is a unit of its own.

        Returns:
          float64 [features].
        """
        shares = owners_lib.shares(len(features), owners)
        total = np.zeros([features.shape[1]])
        for part in _parts(len(features)):
            total += shares[part] @ feature_means.directions(features[part])
        return total

    def exact_gradient(
        self, inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, owners: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the sum that the noise of another round is added to: PRIVATE, exposed for the tests.

        Args:
          inputs: float [images, features + 1], from `make_inputs`.
          labels: int [images], each in [0, num_classes).
          weights: float [num_classes, features + 1], as the round before left them.
          owners: int [images], whose image each is, or None: each image is a unit of its own.

        Returns:
          float64 [num_classes, features + 1].
        """
        num_classes = len(weights)
        # A negative one would count from the end.
        if len(labels) and not 0 <= np.min(labels) <= np.max(labels) < num_classes:
            raise ValueError(f'labels must be in [0, {num_classes}).')
        shares = owners_lib.shares(len(inputs), owners)
        total = np.zeros(weights.shape)
        for part in _parts(len(inputs)):
            residuals = probabilities(inputs[part], weights)
            residuals[np.arange(len(residuals)), labels[part]] -= 1.0
            # Weights that have overflowed say nothing of an image, and must not make its bound that of no other.
            residuals[~np.isfinite(residuals).all(axis=1)] = 0.0
            # The gradient of an image is the outer product of the two, and its norm the product of theirs.
            norms = np.linalg.norm(residuals, axis=1) * np.linalg.norm(inputs[part], axis=1)
            scales = shares[part] / np.maximum(1.0, norms / self.l2_norm_clip)
            total += (residuals * scales[:, None]).astype(inputs.dtype).T @ inputs[part]
        return total

    def release(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        *,
        num_units: int,
        seed: seeds.PrivateSeed,
        neighboring_relation: str,
        generator: str = 'philox',
        owners: np.ndarray | None = None,
    ) -> Teacher:
        """Returns the classifier, its weights averaged over the last half of the rounds.

        Who has released once keeps the result and does not call this again: on another machine sums may be rounded
        otherwise, and each release of other sums is one more to be paid, with noise of its own.

        Args:
          features: float [images, features], of any length.
          labels: int [images], each in [0, num_classes).
          num_classes: Number of classes.
          num_units: Number of units, treated as public.
          seed: The run's secret. The same seed repeats the release of the same features.
          neighboring_relation: What neighbouring data sets are.
          generator: Of the noise; see `noise.GaussianNoise`.
          owners: int [images], whose image each is, or None: each image is a unit of its own.
        """

        def with_noise(total: np.ndarray, number: int) -> np.ndarray:
            stddev = self.noise_multiplier * self.sensitivity(neighboring_relation, is_first=number == 0)
            return noise.add_to_release(total, stddev, seed=seed, purpose=f'teacher_{number}', generator=generator)

        center = with_noise(self.exact_directions(features, owners), 0) / num_units
        # From here on, whatever is not an exact sum is post-processing of a private release.
        energy = np.sum(center**2)
        of_noise = len(center) * (self.noise_multiplier * self.sensitivity(neighboring_relation, is_first=True)) ** 2
        center *= max(0.0, 1.0 - of_noise / num_units**2 / energy)
        inputs = make_inputs(features, center)
        weights = np.zeros([num_classes, inputs.shape[1]])
        velocity, averaged = np.zeros_like(weights), np.zeros_like(weights)
        learning_rate = self.learning_rate or self.choose_learning_rate(num_units, weights.size)
        first_averaged = (self.num_rounds + 1) // 2
        for number in range(1, self.num_rounds):
            total = with_noise(self.exact_gradient(inputs, labels, weights, owners), number)
            velocity = _MOMENTUM * velocity + total / (num_units * self.l2_norm_clip)
            weights = weights - learning_rate * velocity
            if number >= first_averaged:
                averaged += weights / (self.num_rounds - first_averaged)
        return Teacher(center, averaged)


def make_inputs(features: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Returns the inputs of the classifier: centred features and an intercept, of norm 1 together.

    Args:
      features: float [images, features]; those of an image that are 0 or not finite give 0.
      center: float [features].

    Returns:
      float32 [images, features + 1].
    """
    inputs = np.full([len(features), features.shape[1] + 1], INTERCEPT, np.float32)
    for part in _parts(len(features)):
        centered = feature_means.directions(feature_means.directions(features[part]) - center)
        inputs[part, :-1] = centered * np.sqrt(1.0 - INTERCEPT**2)
    return inputs


def probabilities(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the probabilities that the classifier gives the classes, float64 [images, num_classes].

    Args:
      inputs: float [images, features + 1], from `make_inputs`.
      weights: float [num_classes, features + 1].
    """
    logits = np.asarray(inputs @ weights.astype(inputs.dtype).T, np.float64)
    logits = np.exp(logits - np.max(logits, axis=1, keepdims=True))
    return logits / np.sum(logits, axis=1, keepdims=True)


def _parts(count: int):
    return (slice(start, start + _IMAGES_AT_A_TIME) for start in range(0, count, _IMAGES_AT_A_TIME))
