"""Noisy class means: Gaussian releases of sums and counts of images, from which a model can be warmed up."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import numpy as np
from scipy import fft
from scipy import ndimage

from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import owners as owners_lib
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import seeds

_IMAGES_AT_A_TIME = 4096
# How far the first means of a class are sheared, turned and stretched; a quarter of it of the side, moved.
_LARGEST_CHANGE = 0.25
# Of the first means of a class from their middle, small beside that of images.
_FIRST_DISTANCE = 0.1


class NoisyMeans(NamedTuple):
    """The means that a release gives of each class.

    Attributes:
      images: float64 [num_classes, means, height, width, channels], noisy means of images clipped to l2_norm_clip; not
        clipped to [0, 1].
      counts: float64 [num_classes, means], noisy numbers of images near each mean: 0 where they may be noise alone, but
        all 1 where that is so of all means of a class.
    """

    images: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class ClassMeansConfig:
    """Gaussian releases of the sum and the number of the images near each of a few means of each class.

    Use it where few images or little compute are at hand: it costs a small part of the budget and gives a diffusion
    model the look of each class, which DP-SGD then refines. One mean of a class blurs all ways to write a digit into
    one; where a class has thousands of images, several means keep them apart, for the same noise.

    The first round releases one mean of each class. Where there are to be several, they start as variations of it, and
    in each further round every image joins the nearest mean of its class, as the round before left it (Lloyd's
    algorithm), before the sums are released again. Noise on the sums near several means is reduced by what they have in
    common; that is post-processing.

    Guarantee: in each round, an image of class y that joins mean m adds the vector (x / max(R, |x|) at (y, m), w at
      (y, m)), where x is the image minus center and w is count_weight, to the released sum, of norm at most
      sqrt(1 + w^2), and an owner of several images the average of their vectors, so a unit adds at most sqrt(1 + w^2)
      either way. Which mean it joins depends on itself and on earlier releases alone. The noise has standard deviation
      noise_multiplier * sqrt(1 + w^2) in each coordinate, so each round is a Gaussian mechanism with the stated noise
      multiplier, and the rounds compose adaptively. An image that is not finite contributes zero. The set of classes
      is public.

    Attributes:
      noise_multiplier: Ratio of the noise's standard deviation to the sensitivity, of each round, > 0.
      l2_norm_clip: R > 0, the norm to which an image (pixels in [0, 1] minus center, flattened) is clipped. Public:
        choose it from public images or from the number of pixels, not from the private images.
      means_per_class: How many means a class is given, >= 1.
      num_rounds: Releases in all, >= 1; more than 1 if and only if there are several means per class.
      count_weight: w, in (0, 1]: what a count has of the release beside the pixels of an image. Where classes have
        hundreds of images, less of it makes means with less noise.
      center: The grey level in [0, 1] that an image is clipped towards. Seen from mid-grey (0.5) an image is no longer
        than half the root of the number of its pixels and channels, so the same noise weighs half as much beside it
        as it may seen from black (0), and what is clipped loses contrast instead of brightness. Dark grounds (digits)
        are shorter seen from black.
      smooth: Whether noise is reduced in each frequency band by itself, in the first round too, and the counts of that
        round are drawn towards their average. Means of images are smooth, and noise is not: what a fine band holds is
        mostly noise. Post-processing, at no cost.

    References: DP-FETA, Gong et al. 2025, arXiv:2504.01395 (the idea of noisy central images); Su et al. 2016,
      arXiv:1504.05998 (private Lloyd iterations); James and Stein 1961 (what `smooth` does in the first round).
    """

    noise_multiplier: float
    l2_norm_clip: float
    means_per_class: int = 1
    num_rounds: int = 1
    count_weight: float = 1.0
    center: float = 0.0
    smooth: bool = False
    mechanism: ClassVar[str] = 'noisy_class_means'  # What the ledger calls it.

    def __post_init__(self):
        for name in ('noise_multiplier', 'l2_norm_clip'):
            value = getattr(self, name)
            if not 0.0 < value < float('inf'):
                raise ValueError(f'{name} of the noisy class means must be finite and > 0, got {value}.')
        for name in ('means_per_class', 'num_rounds'):
            value = getattr(self, name)
            if int(value) != value or value < 1:
                raise ValueError(f'{name} of the noisy class means must be a whole number of at least 1, got {value}.')
        if not 0.0 < self.count_weight <= 1.0:
            raise ValueError(f'count_weight of the noisy class means must be in (0, 1], got {self.count_weight}.')
        if not 0.0 <= self.center <= 1.0:
            raise ValueError(f'center of the noisy class means must be in [0, 1], got {self.center}.')
        if (self.means_per_class > 1) != (self.num_rounds > 1):
            raise ValueError(
                'several means of a class need rounds after the first, and one mean needs none: got '
                f'means_per_class={self.means_per_class} and num_rounds={self.num_rounds}.'
            )

    def sensitivity(self, neighboring_relation: str) -> float:
        """Returns the largest change of the vector of scaled sums and counts of a round, in L2 norm.

        Args:
          neighboring_relation: 'add_or_remove_one' or 'replace_with_zero' (sqrt(1 + w^2)), or 'replace_one' (2: two
            opposite images of one mean; images of two means are no farther apart).
        """
        relations.check(neighboring_relation)
        return 2.0 if neighboring_relation == 'replace_one' else math.sqrt(1.0 + self.count_weight**2)

    def record(self, ledger: ledger_lib.Ledger) -> ledger_lib.Ledger:
        """Returns the ledger with all rounds of this release."""
        return ledger.record(self.mechanism, self.noise_multiplier, 1.0, count=self.num_rounds)

    def exact_vector(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        owners: np.ndarray | None = None,
        means: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the vector that the noise is added to: PRIVATE, exposed for the tests of its sensitivity.

        Args:
          images: uint8, or float with pixels in [0, 1], [images, height, width, channels].
          labels: int [images], each in [0, num_classes).
          num_classes: Number of classes.
          owners: int [images], whose image each is, or None: each image is a unit of its own.
          means: float [num_classes, means, pixels], minus center, of which an image joins the nearest of its class;
            None: one each.

        Returns:
          float64 [num_classes, means, pixels + 1]: the sums of the clipped images divided by R, then w times the
          counts.
        """
        shares = owners_lib.shares(len(images), owners)
        num_means = 1 if means is None else means.shape[1]
        vector = np.zeros([num_classes, num_means, int(np.prod(images.shape[1:])) + 1])
        for start in range(0, len(images), _IMAGES_AT_A_TIME):
            part = slice(start, start + _IMAGES_AT_A_TIME)
            flat = np.asarray(images[part], np.float64).reshape(-1, vector.shape[-1] - 1)
            flat = flat / (255.0 if images.dtype == np.uint8 else 1.0) - self.center
            finite = np.all(np.isfinite(flat), axis=1)
            flat = np.where(finite[:, None], flat, 0.0)
            flat = flat / np.maximum(self.l2_norm_clip, np.linalg.norm(flat, axis=1, keepdims=True))
            nearest = np.zeros([len(flat)], np.int64)
            if means is not None:
                nearest = _nearest(flat * self.l2_norm_clip, labels[part], means)
            contributions = np.concatenate([flat, np.full([len(flat), 1], self.count_weight)], axis=1)
            np.add.at(vector, (labels[part], nearest), contributions * (finite * shares[part])[:, None])
        return vector

    def release(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        *,
        seed: seeds.PrivateSeed,
        neighboring_relation: str,
        generator: str = 'philox',
        owners: np.ndarray | None = None,
    ) -> NoisyMeans:
        """Returns noisy means of each class.

        Who has released once keeps the result and does not call this again: on another machine sums may be rounded
        otherwise, and each release of other sums is one more to be paid, with noise of its own.

        Args:
          images: uint8, or float with pixels in [0, 1], [images, height, width, channels].
          labels: int [images], each in [0, num_classes).
          num_classes: Number of classes.
          seed: The run's secret. The same seed repeats the release of the same sums.
          neighboring_relation: What neighbouring data sets are.
          generator: Of the noise; see `noise.GaussianNoise`.
          owners: int [images], whose image each is, or None: each image is a unit of its own.
        """
        stddev = self.noise_multiplier * self.sensitivity(neighboring_relation)
        means = None
        for number in range(self.num_rounds):
            vector = self.exact_vector(images, labels, num_classes, owners, means)
            vector = noise.add_to_release(
                vector, stddev, seed=seed, purpose=f'class_means_{number}', generator=generator
            )
            # From here on it is post-processing of a private release.
            sums, counts = vector[..., :-1], vector[..., -1] / self.count_weight
            if self.smooth:
                sums = _smooth(sums.reshape([-1, *images.shape[1:]]), stddev, is_first=number == 0).reshape(sums.shape)
                if number == 0:
                    counts = _towards_average(counts, stddev / self.count_weight)
            elif number:
                sums = _shrink(sums.reshape([-1, sums.shape[-1]]), stddev).reshape(sums.shape)
            means = sums * self.l2_norm_clip / np.maximum(counts, 1.0)[..., None]
            if self.num_rounds > 1:
                counts = np.where(counts > noise.SURE * stddev / self.count_weight, counts, 0.0)
            if number == 0 and self.num_rounds > 1:
                means = _spread(means[:, 0], images.shape[1:], self.means_per_class)
            elif number + 1 < self.num_rounds:
                means = _split_largest(means, counts, images.shape[1:])
        assert means is not None  # There is at least one round.
        counts = np.maximum(counts, 0.0)  # A class of few images may have less than none.
        counts = np.where(counts.any(axis=1, keepdims=True), counts, 1.0)
        return NoisyMeans(means.reshape([*means.shape[:2], *images.shape[1:]]) + self.center, counts)


def _nearest(flat: np.ndarray, labels: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Returns the number of the nearest mean of its class for each image, int [images].

    Args:
      flat: float [images, pixels].
      labels: int [images].
      means: float [num_classes, means, pixels].
    """
    nearest = np.zeros([len(flat)], np.int64)
    for label in np.unique(labels):
        of_class = means[label]
        mine = labels == label
        # |x - m|^2 without |x|^2, which is the same for all means.
        nearest[mine] = np.argmin(np.sum(of_class**2, axis=1) - 2.0 * flat[mine] @ of_class.T, axis=1)
    return nearest


def _spread(means: np.ndarray, image_shape, means_per_class: int) -> np.ndarray:
    """Returns several first means of each class: its one mean, a little towards moved ones.

    All lie as far from the one mean, and about it: images join the one in whose direction they differ from it. Were
    some farther from it than others, nobody would join them.

    Args:
      means: float [num_classes, pixels].
      image_shape: (height, width, channels).
      means_per_class: How many.

    Returns:
      float64 [num_classes, means_per_class, pixels].
    """
    generator = np.random.default_rng(0)  # Public.
    changed = np.stack([[_move(mean, image_shape, generator) for _ in range(means_per_class)] for mean in means])
    return means[:, None] + _FIRST_DISTANCE * _unit(changed - changed.mean(axis=1, keepdims=True))


def _split_largest(means: np.ndarray, counts: np.ndarray, image_shape) -> np.ndarray:
    """Returns means [num_classes, means, pixels] of which none has no images: it takes half of those of the largest."""
    generator = np.random.default_rng(1)  # Public.
    means, counts = means.copy(), counts.copy()
    for label, number in np.argwhere(counts == 0.0):
        largest = np.argmax(counts[label])
        mean = means[label, largest].copy()
        difference = _FIRST_DISTANCE * _unit(_move(mean, image_shape, generator) - mean)
        means[label, number], means[label, largest] = mean + difference, mean - difference
        counts[label, [number, largest]] = counts[label, largest] / 2.0
    return means


def _move(image: np.ndarray, image_shape, generator: np.random.Generator) -> np.ndarray:
    """Returns an image [pixels] sheared, turned, stretched and moved at random."""
    height, width, _ = image_shape
    matrix, shift = np.eye(3), np.zeros([3])
    matrix[:2, :2] += generator.uniform(-_LARGEST_CHANGE, _LARGEST_CHANGE, [2, 2])
    shift[:2] = generator.uniform(-_LARGEST_CHANGE, _LARGEST_CHANGE, [2]) * (height, width) / 4.0
    center = (np.array([height, width, 1.0]) - 1.0) / 2.0
    moved = ndimage.affine_transform(image.reshape(image_shape), matrix, center - matrix @ center + shift, order=1)
    return moved.ravel()


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [..., pixels] brought to norm 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def _shrink(noisy: np.ndarray, stddev: float) -> np.ndarray:
    """Returns an estimate of a matrix of low rank under noise: its singular values, shrunk.

    The sums near many means have much in common, and noise has nothing: few directions hold the former, all the latter.

    Args:
      noisy: float [rows, columns], a matrix with independent Gaussian noise in each entry.
      stddev: The standard deviation of the noise.

    References: Gavish and Donoho 2017, arXiv:1405.7511, equation 7 (least expected squared error).
    """
    left, values, right = np.linalg.svd(noisy, full_matrices=False)
    scale = stddev * math.sqrt(max(noisy.shape))
    beta = min(noisy.shape) / max(noisy.shape)
    y = np.maximum(values / scale, 1.0 + math.sqrt(beta))  # At which nothing is left: what is below is noise alone.
    shrunk = scale * np.sqrt(np.maximum((y**2 - beta - 1.0) ** 2 - 4.0 * beta, 0.0)) / y
    return (left * shrunk) @ right


def _smooth(noisy: np.ndarray, stddev: float, *, is_first: bool) -> np.ndarray:
    """Returns an estimate of the sums of images under noise, each frequency band by itself.

    The cosine transform is orthonormal, so in each of its numbers the noise stays what it was. Sums near many means
    have much in common (`_shrink`); of the first round, one a class, their average is told from what sets each apart.

    Args:
      noisy: float [rows, height, width, channels], with independent Gaussian noise in each number.
      stddev: The standard deviation of the noise.
      is_first: Whether these are the sums of the first round.
    """
    transformed = fft.dctn(noisy, axes=(1, 2), norm='ortho')
    rows, columns = np.ogrid[: noisy.shape[1], : noisy.shape[2]]
    bands = np.floor(np.hypot(rows, columns)).astype(np.int64)
    for band in np.unique(bands):
        of_band = transformed[:, bands == band]  # [rows, frequencies, channels]
        flat = of_band.reshape([len(noisy), -1])
        if is_first:
            average, variance = flat.mean(axis=0, keepdims=True), stddev**2
            apart = _shorten(flat - average, variance * (1.0 - 1.0 / len(flat)))
            estimate = _shorten(average, variance / len(flat)) + apart
        else:
            estimate = _shrink(flat, stddev)
        transformed[:, bands == band] = estimate.reshape(of_band.shape)
    return fft.idctn(transformed, axes=(1, 2), norm='ortho')


def _towards_average(noisy: np.ndarray, stddev: float) -> np.ndarray:
    """Returns an estimate of counts under noise: as near to their average as the noise may have driven them from it."""
    average = noisy.mean()
    return average + _shorten(noisy - average, stddev**2 * (1.0 - 1.0 / noisy.size))


def _shorten(noisy: np.ndarray, variance: float) -> np.ndarray:
    """Returns numbers under noise of a variance, all times the share of their energy that is not noise's."""
    energy = np.mean(noisy**2)
    return noisy * max(0.0, 1.0 - variance / energy) if energy > 0.0 else noisy
