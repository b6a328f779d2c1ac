"""What a run is worth, as one classifier tells that is trained on its samples: by this runs are compared."""

import numpy as np

from tf_dpdiff.evaluation import classifiers as classifiers_lib
from tf_dpdiff.evaluation import utility

_STOPPING_FRACTION = 0.1  # Of the samples, for a classifier that stops early.
_APART_FRACTION = 0.2  # Of the samples, to be tested with where no other image is.


def predicted_classes(
    config: classifiers_lib.ClassifierConfig,
    images: np.ndarray,
    labels: np.ndarray,
    test_images: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """Returns the classes that a classifier trained on samples takes test images for; the same each time, on a CPU.

    Args:
      config: The classifier.
      images: Samples, uint8 [samples, height, width, channels].
      labels: Their classes, int32 [samples].
      test_images: uint8 [images, height, width, channels]; only looked at.
      num_classes: How many classes there are.

    Returns:
      int64 [images].
    """
    stopping = None
    if config.stops_early:  # By samples: test images decide nothing.
        kept, apart = utility.stratified_split(labels, _STOPPING_FRACTION, 0)
        images, labels, stopping = images[kept], labels[kept], (images[apart], labels[apart])
    predict = classifiers_lib.fit(config, images, labels, num_classes, validation=stopping, seed=0)
    return predict(test_images).argmax(axis=-1)


def accuracy_on_samples(
    config: classifiers_lib.ClassifierConfig, images: np.ndarray, labels: np.ndarray, num_classes: int
) -> float:
    """Returns the accuracy of a classifier on a fifth of the samples, after training on the others.

    It reads no other image. Arguments as for `predicted_classes`.
    """
    kept, apart = utility.stratified_split(labels, _APART_FRACTION, 0)
    found = predicted_classes(config, images[kept], labels[kept], images[apart], num_classes)
    return float(np.mean(found == labels[apart]))
