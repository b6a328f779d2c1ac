"""What a classifier of public images sees in an image, and how like that is to the noisy mean of each private class."""

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.networks import classifiers
from tf_dpdiff.privacy import feature_means

_IMAGES_AT_A_TIME = 256
# Probabilities below it are told apart no more.
_SMALLEST_PROBABILITY = 1e-4
# Of the mean variance, added to that of each direction: there are some in which public images hardly vary.
_RIDGE = 1e-3
_WEIGHT = 'classifier_'


class PublicFeatures:
    """Features of an image that depend on that image and on public ones alone.

    They are the logarithms of the probabilities that a classifier gives the public classes, of which the mean over the
    public images is subtracted, in coordinates in which these vary alike in all directions (whitened): a distance then
    does not count what all images have in common, or what two public classes say twice. `fit` makes them.

    Args:
      model: From images to logits, see `public_classifier.train`.
      mean: float [classes].
      whitening: float [classes, classes], which the difference from the mean is multiplied with from the right.
    """

    def __init__(self, model: keras.Model, mean: np.ndarray, whitening: np.ndarray):
        self._model = model
        self._mean, self._whitening = np.asarray(mean, np.float32), np.asarray(whitening, np.float32)

    @property
    def variables(self) -> list[tf.Variable]:
        """Those of the classifier."""
        return self._model.variables

    def compute(self, images_uint8: tf.Tensor) -> tf.Tensor:
        """Returns the features of images, uint8 [images, height, width, channels], as float32 [images, classes]."""
        probabilities = tf.nn.softmax(self._model(images_uint8, training=False))
        return (tf.math.log(probabilities + _SMALLEST_PROBABILITY) - self._mean) @ self._whitening

    def __call__(self, images_uint8: np.ndarray) -> np.ndarray:
        """Returns the features of any number of images: PRIVATE where the images are.

        The network does not mix the images of a batch where it does not learn, and all batches have one size, the last
        one padded: were there sizes that follow from the number of images, each would be computed in its own way, and
        round in its own way.

        Args:
          images_uint8: uint8 [images, height, width, channels].

        Returns:
          float32 [images, classes].
        """
        return in_batches(self.compute, images_uint8, len(self._mean))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that they consist of, by name."""
        weights = {f'{_WEIGHT}{number}': weight for number, weight in enumerate(self._model.get_weights())}
        return {'feature_mean': self._mean, 'whitening': self._whitening, **weights}


def in_batches(
    compute: Callable[[tf.Tensor], tf.Tensor], images_uint8: np.ndarray, num_columns: int, *, delay_secs: float = 1.0
) -> np.ndarray:
    """Returns what is computed from images, batch by batch, all of one size; the last one is padded.

    Args:
      compute: Maps images, uint8 [batch, height, width, channels], to float32 [batch, num_columns], each by itself.
      images_uint8: uint8 [images, height, width, channels].
      num_columns: See above.
      delay_secs: What takes less shows no progress bar.

    Returns:
      float32 [images, num_columns].
    """
    rows, start = np.zeros([len(images_uint8), num_columns], np.float32), 0
    for block in blocks(compute, images_uint8, _IMAGES_AT_A_TIME, delay_secs=delay_secs):
        rows[start : start + len(block)] = block
        start += len(block)
    return rows


def blocks(
    compute: Callable[[tf.Tensor], tf.Tensor],
    images_uint8: np.ndarray,
    images_at_a_time: int,
    *,
    name: str = 'features',
    delay_secs: float = 1.0,
) -> Iterator[np.ndarray]:
    """Yields what is computed from images batch by batch, all of one size; of the last one, padded, what is of images.

    Args:
      compute: Maps images, uint8 [images_at_a_time, height, width, channels], to float32 of as many, each by itself.
      images_uint8: uint8 [images, height, width, channels].
      images_at_a_time: >= 1.
      name: Of the progress bar.
      delay_secs: What takes less shows none.
    """
    shape = [images_at_a_time, *images_uint8.shape[1:]]
    of_batch = tf.function(compute, input_signature=[tf.TensorSpec(shape, tf.uint8)])
    # In percent: where units are owners, how many images they have is private.
    with progress.bar(100, name, '%', delay_secs=delay_secs) as bar:
        for start in range(0, len(images_uint8), images_at_a_time):
            part = images_uint8[start : start + images_at_a_time]
            padded = np.zeros(shape, np.uint8)
            padded[: len(part)] = part
            yield of_batch(tf.constant(padded)).numpy()[: len(part)]
            bar.update(100 * (start + len(part)) // len(images_uint8) - bar.n)


def fit(model: keras.Model, public: datasets.ImageDataset) -> PublicFeatures:
    """Returns the features that a classifier gives images, centred and whitened by the public ones."""
    num_classes = model.outputs[0].shape[-1]
    logarithms = PublicFeatures(model, np.zeros([num_classes]), np.eye(num_classes))(public.images_uint8)
    mean = np.asarray(np.mean(logarithms, axis=0, dtype=np.float64))
    covariance = (logarithms - mean).T @ (logarithms - mean) / len(logarithms)
    ridge = _RIDGE * np.trace(covariance) / num_classes
    variances, axes = np.linalg.eigh(covariance + ridge * np.eye(num_classes))
    return PublicFeatures(model, mean, axes / np.sqrt(variances))


class ClassScorer(tf.Module):
    """Scores images by how near their features are to the noisy mean of each private class.

    Args:
      features: Of images.
      means: As released; nothing else that is known here depends on private images.
    """

    def __init__(self, features: PublicFeatures, means: feature_means.NoisyFeatureMeans):
        super().__init__()
        # Not the network: what it was trained by would be exported with it.
        self._variables, self._compute = features.variables, features.compute
        self._has_mean = np.isfinite(means.noise_variance)
        self._means = means.means.astype(np.float32)
        self._squared_lengths = feature_means.squared_lengths(means).astype(np.float32)

    def __call__(self, images_uint8: tf.Tensor) -> tf.Tensor:
        """Returns the scores of images, the higher the likelier; the lowest number for a class that has no mean.

        Args:
          images_uint8: uint8 [images, height, width, channels].

        Returns:
          float32 [images, num_classes].
        """
        directions = tf.math.l2_normalize(self._compute(images_uint8), axis=-1)
        scores = 2.0 * directions @ tf.transpose(self._means) - self._squared_lengths
        return tf.where(self._has_mean, scores, scores.dtype.min)


def to_arrays(features: PublicFeatures, means: feature_means.NoisyFeatureMeans) -> dict[str, np.ndarray]:
    """Returns the arrays that `scorer_from_arrays` needs."""
    return {'means': means.means, 'noise_variance': means.noise_variance, **features.to_arrays()}


def scorer_from_arrays(arrays: dict[str, np.ndarray], image_shape: tuple[int, int, int]) -> ClassScorer:
    """Makes a scorer of arrays.

    Args:
      arrays: From `to_arrays`; others among them are left alone.
      image_shape: (height, width, channels).

    Raises:
      KeyError: if an array is missing.
      ValueError: if an array is of another shape.
    """
    model = classifiers.small_cnn(image_shape, len(arrays['feature_mean']))
    model.set_weights([arrays[f'{_WEIGHT}{number}'] for number in range(len(model.weights))])
    features = PublicFeatures(model, arrays['feature_mean'], arrays['whitening'])
    return ClassScorer(features, feature_means.NoisyFeatureMeans(arrays['means'], arrays['noise_variance']))
