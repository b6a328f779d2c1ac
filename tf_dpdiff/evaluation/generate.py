"""Sets of samples, pictures of them, and the files that hold them."""

import dataclasses
import pathlib
import sys
from typing import Callable, Optional, Sequence, Tuple
import zipfile
import zlib

import numpy as np
from PIL import Image
import tensorflow as tf
import tqdm

from tf_dpdiff import files

_GRID_LINE = 96

SampleFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """How many samples, of which classes.

    Attributes:
      num_images: How many, in equal parts of each class up to one.
      seed: Image i has the seed seed + i: the same call gives the same images.
      chunk_size: Images sampled at a time. Fixed inside, since a network's last bits depend on the size of its batch.
    """
    num_images: int = 5000
    seed: int = 0
    chunk_size: int = 250

    def __post_init__(self):
        for name in ('num_images', 'chunk_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the samples must be at least 1, got {getattr(self, name)}.')


def generate(sample_fn: SampleFn,
             config: GenerateConfig,
             num_classes: int,
             should_stop: Callable[[], bool] = lambda: False) -> Optional[Tuple[np.ndarray, np.ndarray]]:
    """Draws class-conditional samples, with a progress bar.

    Args:
      sample_fn: Maps labels, int32 [batch], and seeds, int64 [batch], to images, uint8 [batch, height, width,
        channels].
      config: How many.
      num_classes: Labels go round 0, ..., num_classes - 1.
      should_stop: Asked after each chunk.

    Returns:
      Images, uint8 [num_images, height, width, channels], and labels, int32 [num_images]; None if asked to stop.
    """
    labels = (np.arange(config.num_images) % num_classes).astype(np.int32)
    seeds = np.arange(config.seed, config.seed + config.num_images, dtype=np.int64)
    images = []
    with tqdm.tqdm(total=config.num_images,
                   desc='sampling'.ljust(11),
                   unit='image',
                   dynamic_ncols=True,
                   mininterval=0.2 if sys.stderr.isatty() else 30.0) as progress:
        for start in range(0, config.num_images, config.chunk_size):
            chunk = slice(start, start + config.chunk_size)
            size = len(labels[chunk])
            padding = (0, config.chunk_size - size)
            drawn = sample_fn(tf.constant(np.pad(labels[chunk], padding)), tf.constant(np.pad(seeds[chunk], padding)))
            images.append(drawn.numpy()[:size])
            progress.update(size)
            if should_stop():
                return None
    return np.concatenate(images), labels


def class_grid(images: np.ndarray,
               labels: np.ndarray,
               *,
               columns: int = 12,
               max_rows: int = 20,
               pixels: int = 480) -> np.ndarray:
    """Returns a picture with a row a class.

    Args:
      images: uint8 [images, height, width, channels].
      labels: int [images].
      columns: Images a row.
      max_rows: Of more classes, the first ones are shown.
      pixels: About how wide the picture becomes, by repeating whole pixels.

    Returns:
      uint8 [rows * (height + 1) * k, columns * (width + 1) * k, channels]: below and right of each image is a grey
      line; places without an image are black.
    """
    num_classes = min(int(labels.max()) + 1, max_rows)
    height, width, channels = images.shape[1:]
    grid = np.full([num_classes, columns, height + 1, width + 1, channels], _GRID_LINE, np.uint8)
    for label in range(num_classes):
        row = images[labels == label][:columns]
        grid[label, :, :height, :width] = 0
        grid[label, :len(row), :height, :width] = row
    picture = grid.transpose(0, 2, 1, 3, 4).reshape(num_classes * (height + 1), columns * (width + 1), channels)
    factor = max(1, pixels // picture.shape[1])
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def write_png(path: pathlib.Path, image_uint8: np.ndarray) -> None:
    """Writes uint8 [height, width, 1 or 3] as PNG."""
    with files.replacing(path) as temporary:
        Image.fromarray(image_uint8[..., 0] if image_uint8.shape[-1] == 1 else image_uint8).save(temporary, 'PNG')


def write_npz(path: pathlib.Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes samples as a compressed .npz with the arrays `images`, `labels` and `class_names`."""
    with files.replacing(path) as temporary:
        np.savez_compressed(temporary, images=images, labels=labels, class_names=np.array(class_names))


def read_npz(path: pathlib.Path) -> Tuple[np.ndarray, np.ndarray]:
    """Reads images and labels written by `write_npz`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it does not hold samples.
    """
    if not path.exists():
        raise FileNotFoundError(f'no samples at {path}; make some with bin/sample, or name another --samples.')
    try:
        with np.load(path) as arrays:
            images, labels = arrays['images'], arrays['labels']
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f'images are {images.dtype} {list(images.shape)}')
        if labels.shape != (len(images),) or labels.dtype.kind not in 'iu':
            raise ValueError(f'labels are {labels.dtype} {list(labels.shape)}')
    # TypeError: np.load of an .npy file gives an array, which is no context.
    except (KeyError, ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f'{path} does not hold samples (arrays `images` and `labels` of an .npz file): {error}.') from error
    return images, labels
