"""Class-conditional training images made from noisy class means: post-processing, no further privacy cost."""

import numpy as np

from tf_dpdiff.data.datasets import ImageDataset
from tf_dpdiff.privacy import class_means


def images_from_class_means(means: class_means.NoisyMeans, *, num_images: int, sharpening, threshold,
                            seed: int) -> ImageDataset:
    """Draws variations of noisy class means that look more like single images than their mean does.

    A mean is blurred and the release's noise lies on it as grey: stretching the contrast about a threshold undoes some
    of both. The threshold and the stretch are drawn at random for each image.

    Args:
      means: As released. Of the means of a class, each is taken as often as the images near it are many.
      num_images: How many, in equal parts of each class up to one.
      sharpening: (low, high), the factor by which contrast is stretched.
      threshold: (low, high), the grey level that becomes mid-grey.
      seed: Public.

    Returns:
      The images with the labels of their classes.
    """
    generator = np.random.default_rng(seed)
    num_classes = len(means.counts)
    labels = (np.arange(num_images) % num_classes).astype(np.int32)
    shares = np.cumsum(means.counts, axis=1) / np.sum(means.counts, axis=1, keepdims=True)
    # The first mean whose cumulative share is not below a uniform number.
    numbers = np.sum(shares[labels] < generator.uniform(size=[num_images, 1]), axis=1)

    def draw(bounds):
        return generator.uniform(*bounds, [num_images, 1, 1, 1])

    drawn = np.clip(means.images[labels, numbers], 0.0, 1.0)
    images = np.clip((drawn - draw(threshold)) * draw(sharpening) + 0.5, 0.0, 1.0)
    names = tuple(str(i) for i in range(num_classes))
    return ImageDataset('noisy class means', np.round(images * 255.0).astype(np.uint8), labels, names)
