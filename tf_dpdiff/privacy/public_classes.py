"""Noisy votes for public classes: which public images look most like each private class, by one Gaussian release."""

import dataclasses
import hashlib
import math
from typing import ClassVar, List, Optional

import dp_accounting
import numpy as np

from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import seeds

_PURPOSE = 'public_class_votes'


@dataclasses.dataclass(frozen=True)
class PublicClassesConfig:
    """A Gaussian release of how often the images of each private class look like each public class.

    Use it where labelled public images of many classes are at hand: a model that is trained on those that look most
    like a private class, under its name, begins near what DP-SGD is to find.

    Guarantee: an image of private class y whose vote is for public class v adds 1 at (y, v) to the released numbers,
      and an owner of several images the average of what they would add, so a unit adds at most 1 in L2 norm. A vote
      must depend on its own image and on public things alone: on a classifier that has seen public images and nothing
      else. An owner without images adds nothing.
      The noise has standard deviation noise_multiplier times the sensitivity in each of all num_classes x
      num_public_classes numbers, so this is a Gaussian mechanism with the stated noise multiplier. The private classes,
      the public images and their classes are public.

    Attributes:
      noise_multiplier: Ratio of the noise's standard deviation to the sensitivity, > 0.
      classes_per_class: How many public classes are chosen for a private one at most, >= 1.
      mechanism: What the ledger calls it.

    References: PrivImage, Li et al. 2023, arXiv:2311.12850 (the semantic query).
    """
    noise_multiplier: float
    classes_per_class: int
    mechanism: ClassVar[str] = 'noisy_public_class_votes'

    def __post_init__(self):
        if not 0.0 < self.noise_multiplier < math.inf:
            raise ValueError(
                f'noise_multiplier of the public class votes must be finite and > 0, got {self.noise_multiplier}.')
        if int(self.classes_per_class) != self.classes_per_class or self.classes_per_class < 1:
            raise ValueError('classes_per_class of the public class votes must be a whole number of at least 1, got '
                             f'{self.classes_per_class}.')

    @property
    def num_rounds(self) -> int:
        """How often the mechanism is applied: once."""
        return 1

    def sensitivity(self, neighboring_relation: str) -> float:
        """Returns how much the numbers of votes can change, in L2 norm.

        Args:
          neighboring_relation: 'add_or_remove_one' or 'replace_with_zero' (1), or 'replace_one' (sqrt(2): one vote less
            and another one more).
        """
        sensitivities = {'add_or_remove_one': 1.0, 'replace_with_zero': 1.0, 'replace_one': math.sqrt(2.0)}
        if neighboring_relation not in sensitivities:
            raise ValueError(
                f'neighboring_relation must be one of {tuple(sensitivities)}, got {neighboring_relation!r}.')
        return sensitivities[neighboring_relation]

    def dp_event(self) -> dp_accounting.DpEvent:
        """Returns the event to be accounted for."""
        return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(self.noise_multiplier), self.num_rounds)

    def exact_vector(self,
                     votes: np.ndarray,
                     labels: np.ndarray,
                     num_classes: int,
                     num_public_classes: int,
                     owners: Optional[np.ndarray] = None) -> np.ndarray:
        """Returns the numbers that the noise is added to: PRIVATE, exposed for the tests of their sensitivity.

        Args:
          votes: int [images], the public class that each image looks most like, in [0, num_public_classes).
          labels: int [images], each in [0, num_classes).
          num_classes: Number of private classes.
          num_public_classes: Number of public classes.
          owners: int [images], whose image each is, or None: each image is a unit of its own.

        Returns:
          float64 [num_classes, num_public_classes].
        """
        for name, values, bound in (('votes', votes, num_public_classes), ('labels', labels, num_classes)):
            # A negative one would count from the end.
            if len(values) and not 0 <= np.min(values) <= np.max(values) < bound:
                raise ValueError(f'{name} must be in [0, {bound}).')
        shares = np.ones([len(votes)]) if owners is None else 1.0 / np.bincount(owners)[owners]
        vector = np.zeros([num_classes, num_public_classes])
        np.add.at(vector, (labels, votes), shares)
        return vector

    def release(self,
                votes: np.ndarray,
                labels: np.ndarray,
                num_classes: int,
                num_public_classes: int,
                *,
                seed: seeds.PrivateSeed,
                neighboring_relation: str,
                generator: str = 'philox',
                owners: Optional[np.ndarray] = None) -> np.ndarray:
        """Returns the noisy numbers of votes.

        Who has released once keeps the result and does not call this again: a classifier that was trained anew may give
        other votes, and each release of other votes is one more to be paid. The noise depends on the numbers that it is
        added to, by a keyed hash: were it the same for two of them, it would tell their difference as it is.

        Args:
          votes: int [images], the public class that each image looks most like, in [0, num_public_classes).
          labels: int [images], each in [0, num_classes).
          num_classes: Number of private classes.
          num_public_classes: Number of public classes.
          seed: The run's secret. The same seed repeats the release of the same votes.
          neighboring_relation: What neighbouring data sets are.
          generator: Of the noise; see `noise.GaussianNoise`.
          owners: int [images], whose image each is, or None: each image is a unit of its own.

        Returns:
          float64 [num_classes, num_public_classes].
        """
        vector = self.exact_vector(votes, labels, num_classes, num_public_classes, owners)
        stddev = self.noise_multiplier * self.sensitivity(neighboring_relation)
        purpose = f'{_PURPOSE}_{hashlib.sha256(vector.tobytes()).hexdigest()}'
        return vector + stddev * noise.standard_normal(seed, purpose, vector.shape, generator)


def choose_classes(noisy_votes: np.ndarray, classes_per_class: int) -> List[List[int]]:
    """Chooses public classes for each private one from noisy votes: post-processing, no further privacy cost.

    A public class belongs to the private class of whose votes it has the largest share, so that no image is given two
    labels, and a private class takes those of its own that have most. One that has none takes its best not yet taken.

    Args:
      noisy_votes: float [num_classes, num_public_classes], as released.
      classes_per_class: The most for a private class.

    Returns:
      Of each private class the numbers of its public ones, at least one, the best first; none is named twice.

    Raises:
      ValueError: if there are fewer public classes than may be wanted.

    Example:
        >>> choose_classes(np.array([[90.0, 10.0, 0.0, 4.0], [60.0, 50.0, 30.0, -3.0]]), 2)
        [[0, 3], [1, 2]]
    """
    num_classes, num_public_classes = noisy_votes.shape
    check_enough(num_public_classes, num_classes, classes_per_class)
    positive = np.maximum(noisy_votes, 0.0)
    totals = positive.sum(axis=1, keepdims=True)
    shares = positive / np.where(totals > 0.0, totals, 1.0)
    owner = shares.argmax(axis=0)
    chosen = []
    for label in range(num_classes):
        best_first = np.argsort(-shares[label], kind='stable')
        own = [number for number in best_first.tolist() if owner[number] == label and shares[label, number] > 0.0]
        chosen.append(own[:classes_per_class])
    taken = {number for of_class in chosen for number in of_class}
    for label, of_class in enumerate(chosen):
        if not of_class:
            best_first = np.argsort(-noisy_votes[label], kind='stable').tolist()
            of_class.append(next(number for number in best_first if number not in taken))
            taken.update(of_class)
    return chosen


def check_enough(num_public_classes: int, num_classes: int, classes_per_class: int) -> None:
    """Refuses to choose from too few public classes.

    Raises:
      ValueError: names the numbers.
    """
    if num_classes * classes_per_class > num_public_classes:
        raise ValueError(f'classes_per_class={classes_per_class} for {num_classes} private classes needs '
                         f'{num_classes * classes_per_class} public classes with images; there are '
                         f'{num_public_classes}.')
