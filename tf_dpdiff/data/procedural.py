"""Public images drawn by a procedure, in any size, grey or colour: a prior that reads no data at all."""

from collections.abc import Callable

import numpy as np

from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data.datasets import ImageDataset

_MAX_SEGMENTS = 5
_MAX_SHAPES = 6
_SMALLEST = 4  # Height or width in which something can be drawn.
_PIXELS = 2**19  # Drawn at a time.


def random_strokes(
    *,
    num_images: int = 8000,
    image_size: int | tuple[int, int] = 8,
    channels: int = 1,
    num_classes: int = 10,
    seed: int = 0,
) -> ImageDataset:
    """Draws random pen strokes: polylines of two to five segments with a random thickness.

    Use it where private images are drawings or letters; for photographs and scans see `random_shapes`.

    Args:
      num_images: How many.
      image_size: Height and width in pixels, or one number for both.
      channels: 1: bright strokes on a dark ground. 3: strokes of one random colour on a ground of another.
      num_classes: Of the private task; the strokes belong to none of them and get the label num_classes.
      seed: Public.

    Returns:
      The images.

    Raises:
      ValueError: if an argument is out of range.

    References: DP-SynGen, arXiv:2412.09842, for procedural images as a public prior.
    """
    height, width = _check('random_strokes', num_images, image_size, channels)
    generator = np.random.default_rng(seed)
    draw = _polylines(generator, num_images, height, width)
    if channels == 1:
        return _dataset(
            'random strokes', num_images, (height, width, 1), num_classes, lambda rows: draw(rows)[..., None]
        )
    ground, ink = generator.uniform(0.0, 1.0, [2, num_images, 1, 1, channels])
    return _dataset(
        'random strokes',
        num_images,
        (height, width, channels),
        num_classes,
        lambda rows: ground[rows] + (ink[rows] - ground[rows]) * draw(rows)[..., None],
    )


def random_shapes(
    *,
    num_images: int = 8000,
    image_size: int | tuple[int, int] = 32,
    channels: int = 3,
    num_classes: int = 10,
    seed: int = 0,
) -> ImageDataset:
    """Draws random round shapes on a shaded ground: one to six, of uneven outline, some within others.

    Use it where private images are photographs, scans or cells: smooth areas of few colours, with edges, shading and
    things that lie on top of one another.

    Args:
      num_images: How many.
      image_size: Height and width in pixels, or one number for both.
      channels: 1 (grey) or 3 (colour).
      num_classes: Of the private task; the images belong to none of them and get the label num_classes.
      seed: Public.

    Returns:
      The images.

    Raises:
      ValueError: if an argument is out of range.

    References: Baradad et al. 2021, "Learning to See by Looking at Noise", arXiv:2106.05963, for how far images of
      such simple procedures (dead leaves) go as a prior.
    """
    height, width = _check('random_shapes', num_images, image_size, channels)
    draw = _shapes(np.random.default_rng(seed), num_images, height, width, channels)
    return _dataset('random shapes', num_images, (height, width, channels), num_classes, draw)


def _check(name: str, num_images: int, image_size: int | tuple[int, int], channels: int) -> tuple[int, int]:
    """Returns height and width."""
    size = images_lib.Fit(image_size, channels).size
    assert size is not None
    if num_images < 1 or min(size) < _SMALLEST:
        raise ValueError(
            f'{name} needs num_images >= 1 and image_size >= {_SMALLEST}, got {num_images} and {image_size}.'
        )
    return size


def _dataset(
    name: str, num_images: int, image_shape: tuple[int, int, int], num_classes: int, draw: Callable[[slice], np.ndarray]
) -> ImageDataset:
    """Returns the images that `draw` makes of rows, in [0, 1], a part of them at a time."""
    images = np.empty([num_images, *image_shape], np.uint8)
    step = max(1, _PIXELS // (image_shape[0] * image_shape[1]))
    for start in range(0, num_images, step):
        rows = slice(start, start + step)
        images[rows] = np.round(draw(rows) * 255.0).astype(np.uint8)
    names = tuple(str(i) for i in range(num_classes))
    return ImageDataset(name, images, np.full([num_images], num_classes, np.int32), names)


def _pixels(height: int, width: int) -> np.ndarray:
    """Returns the centres of pixels, [1, height, width, 2]."""
    axes = np.arange(height) + 0.5, np.arange(width) + 0.5
    return np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)[None]


def _polylines(
    generator: np.random.Generator, num_images: int, height: int, width: int
) -> Callable[[slice], np.ndarray]:
    """Returns what draws one polyline an image of rows, float [rows, height, width] in [0, 1]."""
    # Lengths below are in eighths of the image, places in eighths of its height and width.
    scale, scales = min(height, width) / 8.0, np.array([height, width]) / 8.0
    points = generator.uniform(1.0, 7.0, [num_images, 2]) * scales
    thickness = generator.uniform(0.5, 1.1, [num_images, 1, 1]) * scale
    angles = generator.uniform(0.0, 2.0 * np.pi, num_images)
    num_segments = generator.integers(2, _MAX_SEGMENTS + 1, num_images)
    corners = [points]
    for _ in range(_MAX_SEGMENTS):
        angles = angles + generator.normal(0.0, 1.1, num_images)
        lengths = generator.uniform(1.5, 4.0, [num_images, 1]) * scale
        ends = corners[-1] + lengths * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        corners.append(np.clip(ends, 0.7 * scales, 7.3 * scales))
    pixels = _pixels(height, width)

    def draw(rows: slice) -> np.ndarray:
        images = np.zeros([len(num_segments[rows]), height, width])
        for segment, (starts, ends) in enumerate(zip(corners, corners[1:])):
            directions = (ends - starts)[rows, None, None]
            offsets = pixels - starts[rows, None, None]
            # The nearest point of the segment to each pixel, as a share of its length.
            shares = (offsets * directions).sum(-1) / ((directions**2).sum(-1) + 1e-6)
            distances = np.linalg.norm(offsets - np.clip(shares, 0.0, 1.0)[..., None] * directions, axis=-1)
            drawn = np.clip(1.3 - distances / thickness[rows], 0.0, 1.0)
            images = np.maximum(images, drawn * (segment < num_segments[rows])[:, None, None])
        return images

    return draw


def _shapes(
    generator: np.random.Generator, num_images: int, height: int, width: int, channels: int
) -> Callable[[slice], np.ndarray]:
    """Returns what draws the shapes of rows, float [rows, height, width, channels] in [0, 1]."""
    each, size = [num_images, _MAX_SHAPES], np.array([height, width])
    num_shapes = generator.integers(1, _MAX_SHAPES + 1, num_images)
    centers = generator.uniform(0.0, 1.0, [*each, 2]) * size
    radii = generator.uniform(0.08, 0.4, [*each, 1]) * generator.uniform(0.6, 1.0, [*each, 2]) * size.min()
    is_within = generator.uniform(size=each) < 0.4  # Of the shape before it, as a nucleus in a cell.
    for i in range(1, _MAX_SHAPES):
        inside = is_within[:, i, None]
        radii[:, i] = np.where(inside, 0.5 * radii[:, i - 1], radii[:, i])
        offsets = (centers[:, i] / size - 0.5) * radii[:, i - 1]
        centers[:, i] = np.where(inside, centers[:, i - 1] + offsets, centers[:, i])
    angles, phases = generator.uniform(0.0, 2.0 * np.pi, [2, *each])
    num_waves, wave = generator.integers(2, 6, each), generator.uniform(0.0, 0.25, each)
    colours = generator.uniform(0.0, 1.0, [*each, channels])
    shading = generator.uniform(-0.5, 0.5, each)  # From the middle of a shape to its edge.
    ground = generator.uniform(0.0, 1.0, [num_images, 1, 1, channels])
    slope = generator.uniform(-0.3, 0.3, [num_images, 1, 1, 2])  # Of the brightness of the ground.
    pixels = _pixels(height, width)

    def draw(rows: slice) -> np.ndarray:
        images = ground[rows] + ((pixels / size - 0.5) * slope[rows]).sum(-1, keepdims=True)
        for i in range(_MAX_SHAPES):
            row, column = np.moveaxis(pixels - centers[rows, i, None, None], -1, 0)
            of_image = (column, row, angles, phases, num_waves, wave, shading)
            column, row, angle, phase, waves, height_of_waves, shade = (
                values if values.ndim == 3 else values[rows, i, None, None] for values in of_image
            )
            along = np.cos(angle) * column + np.sin(angle) * row
            across = np.cos(angle) * row - np.sin(angle) * column
            long, short = radii[rows, i, 0, None, None], radii[rows, i, 1, None, None]
            outline = 1.0 + height_of_waves * np.cos(waves * np.arctan2(across, along) + phase)
            distance = np.hypot(along / long, across / short) / outline  # 1 at the edge.
            # About a pixel of the edge lies on both sides.
            cover = np.clip((1.0 - distance) * np.minimum(long, short) + 0.5, 0.0, 1.0)
            cover = cover * (i < num_shapes[rows])[:, None, None]
            colour = colours[rows, i, None, None] + (shade * np.minimum(distance, 1.0) ** 2)[..., None]
            images = images + cover[..., None] * (colour - images)
        return np.clip(images, 0.0, 1.0)

    return draw
