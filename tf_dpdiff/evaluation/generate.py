"""Sets of samples, drawn in chunks by all devices and workers; pictures of them, and files that hold small ones."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import io
import itertools
import pathlib
from typing import NamedTuple
import zipfile
import zlib

import numpy as np
from PIL import Image
import tensorflow as tf

from tf_dpdiff import files
from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.evaluation import sample_plan
from tf_dpdiff.evaluation import shared_work

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
    chunk_size: int = sample_plan.CHUNK_SIZE

    def __post_init__(self):
        for name in ('num_images', 'chunk_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the samples must be at least 1, got {getattr(self, name)}.')
        sample_plan.check_seeds(self.seed, self.num_images, self.chunk_size)


class Piece(NamedTuple):
    """Consecutive images of a set.

    Attributes:
      seeds: int64 [images].
      labels: int32 [images].
      images: uint8 [images, height, width, channels].
    """

    seeds: np.ndarray
    labels: np.ndarray
    images: np.ndarray


def generate(
    sample_fns: Sequence[SampleFn],
    config: GenerateConfig,
    *,
    choice: sample_plan.ClassChoice,
    should_stop: Callable[[], bool] = lambda: False,
    workers: workers_lib.Workers = workers_lib.ALONE,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draws class-conditional samples, with a progress bar at the first worker.

    Args:
      sample_fns: See `draw`.
      config: How many.
      choice: The class of each seed.
      should_stop: Asked before each round of chunks, and in the end.
      workers: All of them call this.

    Returns:
      Images, uint8 [num_images, height, width, channels], and labels, int32 [num_images], at every worker; None if one
      of them was asked to stop.
    """
    whole, drawn = (config.seed, config.seed + config.num_images), []
    pieces = draw(sample_fns, choice, [whole], config.chunk_size, workers=workers, should_stop=should_stop)
    with (
        contextlib.closing(pieces),
        progress.bar(config.num_images, 'sampling', 'image', disable=not workers.is_first) as bar,
    ):
        try:
            for piece in pieces:
                drawn.append(piece)
                bar.update(len(piece.seeds))
        except shared_work.Stopped:
            return None
    if workers.any(should_stop()):
        return None
    return np.concatenate([piece.images for piece in drawn]), np.concatenate([piece.labels for piece in drawn])


def draw(
    sample_fns: Sequence[SampleFn],
    choice: sample_plan.ClassChoice,
    ranges: Sequence[tuple[int, int]],
    chunk_size: int,
    *,
    workers: workers_lib.Workers = workers_lib.ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Piece]:
    """Draws the images of ranges of seeds, some chunks ahead of who asks.

    Chunk k is the seeds from k * chunk_size, and is always drawn whole: an image stands in the same row of the same
    batch whatever the ranges are, so on one kind of device not even its last bits depend on them, nor on the number of
    devices or workers.

    Args:
      sample_fns: Each maps labels, int32 [batch], and seeds, int64 [batch], to images, uint8 [batch, height, width,
        channels]; one a device, each used by one thread at a time.
      choice: The class of each seed.
      ranges: (first seed, the one after the last), ascending.
      chunk_size: Images drawn together.
      workers: All of them call this and take all pieces, and each draws its share of the chunks.
      should_stop: Asked before each round of chunks, one of each worker.

    Yields:
      The images in order, at every worker; no piece reaches over the end of a range or of a chunk.

    Raises:
      shared_work.Stopped: if one of the workers was asked to stop.
      samplers.NotFiniteError: if the network predicts numbers that are not finite.
      workers_lib.WorkerLostError: if another worker is gone or failed.
    """
    numbers = itertools.islice(_chunks_of(ranges, chunk_size), workers.index, None, workers.count)
    own = _draw_chunks(sample_fns, choice, numbers, chunk_size)
    num_chunks = sum(1 for _ in _chunks_of(ranges, chunk_size))
    with contextlib.closing(own):
        chunks, chunk = (Piece(*found) for found in shared_work.spread(workers, num_chunks, own, should_stop)), None
        for first, end in ranges:
            while first < end:
                if chunk is None or first > chunk.seeds[-1]:
                    chunk = next(chunks)
                rows = slice(first - int(chunk.seeds[0]), end - int(chunk.seeds[0]))
                piece = Piece(*(column[rows] for column in chunk))
                yield piece
                first += len(piece.seeds)


def _chunks_of(ranges: Sequence[tuple[int, int]], chunk_size: int) -> Iterator[int]:
    """Yields the numbers of the chunks that hold the ranges; one that two ranges share comes once."""
    numbers = itertools.chain.from_iterable(
        range(first // chunk_size, (end - 1) // chunk_size + 1) for first, end in ranges
    )
    return (number for number, _ in itertools.groupby(numbers))


def _draw_chunks(
    sample_fns: Sequence[SampleFn], choice: sample_plan.ClassChoice, numbers: Iterable[int], chunk_size: int
) -> Iterator[Piece]:
    """Yields whole chunks in order."""

    def draw_chunk(sample_fn: SampleFn, number: int) -> Piece:
        seeds = np.arange(number * chunk_size, (number + 1) * chunk_size, dtype=np.int64)
        labels = choice.labels(seeds)
        with samplers.telling_of_divergence():
            return Piece(seeds, labels, sample_fn(tf.constant(labels), tf.constant(seeds)).numpy())

    return shared_work.run_ahead(sample_fns, numbers, draw_chunk)


def class_grid(
    images: np.ndarray, labels: np.ndarray, *, columns: int = 12, max_rows: int = 20, pixels: int = 480
) -> np.ndarray:
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
        grid[label, : len(row), :height, :width] = row
    picture = grid.transpose(0, 2, 1, 3, 4).reshape(num_classes * (height + 1), columns * (width + 1), channels)
    factor = max(1, pixels // picture.shape[1])
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def encode_png(image_uint8: np.ndarray) -> bytes:
    """Returns uint8 [height, width, 1 or 3] as PNG."""
    encoded = io.BytesIO()
    Image.fromarray(image_uint8[..., 0] if image_uint8.shape[-1] == 1 else image_uint8).save(encoded, 'PNG')
    return encoded.getvalue()


def write_png(path: pathlib.Path, image_uint8: np.ndarray) -> None:
    """Writes uint8 [height, width, 1 or 3] as PNG."""
    with files.replacing(path) as temporary:
        temporary.write_bytes(encode_png(image_uint8))


def write_npz(path: pathlib.Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes samples as a compressed .npz with the arrays `images`, `labels` and `class_names`."""
    with files.replacing(path) as temporary:
        np.savez_compressed(temporary, images=images, labels=labels, class_names=np.array(class_names))


def read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
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
            f'{path} does not hold samples (arrays `images` and `labels` of an .npz file): {error}.'
        ) from error
    return images, labels
