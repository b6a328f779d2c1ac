"""Public images drawn by a procedure: a prior that reads no data at all."""

import numpy as np

from tf_dpdiff.data.datasets import ImageDataset

_MAX_SEGMENTS = 5


def random_strokes(
    *, num_images: int = 8000, image_size: int = 8, num_classes: int = 10, seed: int = 0
) -> ImageDataset:
    """Draws random pen strokes: polylines of two to five segments with a random thickness.

    Args:
      num_images: How many.
      image_size: Height and width in pixels.
      num_classes: Of the private task; the strokes belong to none of them and get the label num_classes.
      seed: Public.

    Returns:
      Grey images, bright strokes on a dark ground.

    References: DP-SynGen, arXiv:2412.09842, for procedural images as a public prior.
    """
    if num_images < 1 or image_size < 4:
        raise ValueError(
            f'random_strokes needs num_images >= 1 and image_size >= 4, got {num_images} and {image_size}.'
        )
    images = _draw_polylines(np.random.default_rng(seed), num_images, image_size)
    labels = np.full([num_images], num_classes, np.int32)
    names = tuple(str(i) for i in range(num_classes))
    return ImageDataset('random strokes', np.round(images * 255.0).astype(np.uint8)[..., None], labels, names)


def _draw_polylines(generator: np.random.Generator, num_images: int, size: int) -> np.ndarray:
    """Returns one polyline an image, float [num_images, size, size] in [0, 1]."""
    scale = size / 8.0  # Lengths below are in eighths of the image.
    axis = np.arange(size) + 0.5
    pixels = np.stack(np.meshgrid(axis, axis, indexing='ij'), axis=-1)[None]  # [1, size, size, 2]
    images = np.zeros([num_images, size, size])
    points = generator.uniform(1.0, 7.0, [num_images, 2]) * scale
    thickness = generator.uniform(0.5, 1.1, [num_images, 1, 1]) * scale
    angles = generator.uniform(0.0, 2.0 * np.pi, num_images)
    num_segments = generator.integers(2, _MAX_SEGMENTS + 1, num_images)
    for segment in range(_MAX_SEGMENTS):
        angles = angles + generator.normal(0.0, 1.1, num_images)
        lengths = generator.uniform(1.5, 4.0, [num_images, 1]) * scale
        ends = np.clip(points + lengths * np.stack([np.cos(angles), np.sin(angles)], axis=-1), 0.7 * scale, 7.3 * scale)
        directions = (ends - points)[:, None, None]
        offsets = pixels - points[:, None, None]
        # The nearest point of the segment to each pixel, as a share of its length.
        shares = (offsets * directions).sum(-1) / ((directions**2).sum(-1) + 1e-6)
        distances = np.linalg.norm(offsets - np.clip(shares, 0.0, 1.0)[..., None] * directions, axis=-1)
        drawn = np.clip(1.3 - distances / thickness, 0.0, 1.0) * (segment < num_segments)[:, None, None]
        images = np.maximum(images, drawn)
        points = ends
    return images
