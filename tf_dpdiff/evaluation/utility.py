"""What samples are worth: a classifier trained on them, tested on real images, beside the same trained on real ones."""

import dataclasses
from typing import Callable, Dict

import numpy as np

from tf_dpdiff.data import datasets


def _rbf_svm(seed: int):
    from sklearn import svm  # pylint: disable=g-import-not-at-top
    return svm.SVC(kernel='rbf', gamma='scale', random_state=seed)


def _logistic_regression(seed: int):
    from sklearn import linear_model  # pylint: disable=g-import-not-at-top
    return linear_model.LogisticRegression(max_iter=1000, random_state=seed)


def _mlp(seed: int):
    from sklearn import neural_network  # pylint: disable=g-import-not-at-top
    return neural_network.MLPClassifier((128,), max_iter=100, random_state=seed)


# Imported when called: scikit-learn takes a second that a dry run need not wait for.
CLASSIFIERS: Dict[str, Callable] = {'rbf_svm': _rbf_svm, 'logistic_regression': _logistic_regression, 'mlp': _mlp}


@dataclasses.dataclass(frozen=True)
class UtilityConfig:
    """Which classifier tells what the samples are worth.

    Attributes:
      classifier: 'rbf_svm', 'logistic_regression' or 'mlp', each with scikit-learn's defaults.
      seed: Of the classifier.
    """
    classifier: str = 'rbf_svm'
    seed: int = 0

    def __post_init__(self):
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f'classifier must be one of {tuple(CLASSIFIERS)}, got {self.classifier!r}.')


def accuracy(config: UtilityConfig, train_images: np.ndarray, train_labels: np.ndarray, test_images: np.ndarray,
             test_labels: np.ndarray) -> float:
    """Trains the classifier on one set of images and returns its accuracy on another.

    Args:
      config: Which classifier.
      train_images: uint8 [images, height, width, channels].
      train_labels: int32 [images].
      test_images: uint8 [images, height, width, channels].
      test_labels: int32 [images].

    Returns:
      The share of test images that is classified right, in [0, 1]. Where the test images are private, so is this
      number.
    """

    def features(images):
        return images.reshape(len(images), -1) / 255.0

    classifier = CLASSIFIERS[config.classifier](config.seed).fit(features(train_images), train_labels)
    return float(classifier.score(features(test_images), test_labels))


def compare(config: UtilityConfig, images: np.ndarray, labels: np.ndarray, real: datasets.ImageDataset,
            held_out: datasets.ImageDataset) -> dict:
    """Trains one classifier on samples and the same on the private images, and tests both on held-out real images.

    Both numbers come from private data without noise: they are for the owner of the data, and not to be released.

    Args:
      config: Which classifier.
      images: Samples, uint8 [images, height, width, channels].
      labels: Their labels, int32 [images].
      real: The private training images.
      held_out: Real images never trained on.

    Returns:
      JSON-able: the classifier, the numbers of images, and the two accuracies.
    """
    test = held_out.images_uint8, held_out.labels
    return {
        'classifier': config.classifier,
        'num_synthetic': len(images),
        'num_real': len(real),
        'num_test': len(held_out),
        'accuracy': {
            'synthetic_images': accuracy(config, images, labels, *test),
            'real_images': accuracy(config, real.images_uint8, real.labels, *test),
        },
    }
