"""Class-conditional training images made from noisy class means: post-processing, no further privacy cost."""

import numpy as np

from tf_dpdiff.data.datasets import ImageDataset


def images_from_class_means(means: np.ndarray, *, num_images: int, sharpening, threshold, seed: int) -> ImageDataset:
    """Draws variations of noisy class means that look more like single images than their mean does.

    A mean is blurred and the release's noise lies on it as grey: stretching the contrast about a threshold undoes some
    of both. The threshold and the stretch are drawn at random for each image.

    Args:
      means: float32 [num_classes, height, width, channels] in [0, 1], as released.
      num_images: How many, in equal parts of each class up to one.
      sharpening: (low, high), the factor by which contrast is stretched.
      threshold: (low, high), the grey level that becomes mid-grey.
      seed: Public.

    Returns:
      The images with the labels of their classes.
    """
    generator = np.random.default_rng(seed)
    labels = (np.arange(num_images) % len(means)).astype(np.int32)

    def draw(bounds):
        return generator.uniform(*bounds, [num_images, 1, 1, 1])

    images = np.clip((means[labels] - draw(threshold)) * draw(sharpening) + 0.5, 0.0, 1.0)
    names = tuple(str(i) for i in range(len(means)))
    return ImageDataset('noisy class means', np.round(images * 255.0).astype(np.uint8), labels, names)
