"""Noisy class means: one Gaussian release of per-class sums and counts, from which a model can be warmed up."""

import dataclasses
import math
from typing import Optional

import dp_accounting
import numpy as np

from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import seeds

_IMAGES_AT_A_TIME = 4096


@dataclasses.dataclass(frozen=True)
class ClassMeansConfig:
    """A Gaussian release of the sum of the images and the number of images of each class.

    Use it where few images or little compute are at hand: the release costs a small part of the budget and gives a
    diffusion model the rough look of each class, which DP-SGD then refines.

    Guarantee: an image x of class y adds the vector (x / max(R, |x|) at y, 1 at y) to the released sum, of norm at most
      sqrt(2), and an owner of several images the average of their vectors, so a unit adds at most sqrt(2) either way.
      The noise has standard deviation noise_multiplier * sqrt(2) in each coordinate, so this is a Gaussian mechanism
      with the stated noise multiplier. An image that is not finite contributes zero. The set of classes is public.

    Attributes:
      noise_multiplier: Ratio of the noise's standard deviation to the sensitivity, > 0.
      l2_norm_clip: R > 0, the norm to which an image (pixels in [0, 1], flattened) is clipped. Public: choose it from
        public images or from the number of pixels, not from the private images.

    References: DP-FETA, Gong et al. 2025, arXiv:2504.01395 (the idea of noisy central images).
    """
    noise_multiplier: float
    l2_norm_clip: float

    def __post_init__(self):
        for name in ('noise_multiplier', 'l2_norm_clip'):
            value = getattr(self, name)
            if not 0.0 < value < float('inf'):
                raise ValueError(f'{name} of the noisy class means must be finite and > 0, got {value}.')

    def sensitivity(self, neighboring_relation: str) -> float:
        """Returns how much the vector of scaled sums and counts can change, in L2 norm.

        Args:
          neighboring_relation: 'add_or_remove_one' or 'replace_with_zero' (sqrt(2)), or 'replace_one' (2: images of two
            classes, or two opposite images of one class).
        """
        sensitivities = {'add_or_remove_one': math.sqrt(2.0), 'replace_with_zero': math.sqrt(2.0), 'replace_one': 2.0}
        if neighboring_relation not in sensitivities:
            raise ValueError(
                f'neighboring_relation must be one of {tuple(sensitivities)}, got {neighboring_relation!r}.')
        return sensitivities[neighboring_relation]

    def dp_event(self) -> dp_accounting.DpEvent:
        """Returns the event to be accounted for."""
        return dp_accounting.GaussianDpEvent(self.noise_multiplier)

    def exact_vector(self,
                     images: np.ndarray,
                     labels: np.ndarray,
                     num_classes: int,
                     owners: Optional[np.ndarray] = None) -> np.ndarray:
        """Returns the vector that the noise is added to: PRIVATE, exposed for the tests of its sensitivity.

        Args:
          images: uint8, or float with pixels in [0, 1], [images, height, width, channels].
          labels: int [images], each in [0, num_classes).
          num_classes: Number of classes.
          owners: int [images], whose image each is, or None: each image is a unit of its own.

        Returns:
          float64 [num_classes, pixels + 1]: the sums of the clipped images divided by R, then the counts.
        """
        shares = np.ones([len(images)]) if owners is None else 1.0 / np.bincount(owners)[owners]
        vector = np.zeros([num_classes, int(np.prod(images.shape[1:])) + 1])
        for start in range(0, len(images), _IMAGES_AT_A_TIME):
            part = slice(start, start + _IMAGES_AT_A_TIME)
            flat = np.asarray(images[part], np.float64).reshape(-1, vector.shape[1] - 1)
            flat = flat / (255.0 if images.dtype == np.uint8 else 1.0)
            finite = np.isfinite(flat).all(axis=1)
            flat = np.where(finite[:, None], flat, 0.0)
            flat = flat / np.maximum(self.l2_norm_clip, np.linalg.norm(flat, axis=1, keepdims=True))
            contributions = np.concatenate([flat, np.ones([len(flat), 1])], axis=1)
            np.add.at(vector, labels[part], contributions * (finite * shares[part])[:, None])
        return vector

    def release(self,
                images: np.ndarray,
                labels: np.ndarray,
                num_classes: int,
                *,
                seed: seeds.PrivateSeed,
                neighboring_relation: str,
                generator: str = 'philox',
                owners: Optional[np.ndarray] = None) -> np.ndarray:
        """Returns the noisy mean image of each class.

        Args:
          images: uint8, or float with pixels in [0, 1], [images, height, width, channels].
          labels: int [images], each in [0, num_classes).
          num_classes: Number of classes.
          seed: The run's secret. The same seed repeats the same release: a run that was killed does not release twice.
          neighboring_relation: What neighbouring data sets are.
          generator: Of the noise; see `noise.GaussianNoise`.
          owners: int [images], whose image each is, or None: each image is a unit of its own.

        Returns:
          float32 [num_classes, height, width, channels], clipped to [0, 1].
        """
        vector = self.exact_vector(images, labels, num_classes, owners)
        stddev = self.noise_multiplier * self.sensitivity(neighboring_relation)
        vector = vector + stddev * noise.standard_normal(seed, 'class_means', vector.shape, generator)
        # From here on it is post-processing of a private release.
        sums, counts = vector[:, :-1] * self.l2_norm_clip, vector[:, -1:]
        means = np.clip(sums / np.maximum(counts, 1.0), 0.0, 1.0)
        return means.reshape([num_classes, *images.shape[1:]]).astype(np.float32)
