"""How images are drawn from a released model: in chunks, by all devices and workers, each by a seed of its own."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import fractions
import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.sampling import shared_work

# Images sampled at a time. Fixed, since the last bits of a network depend on the size of its batch.
CHUNK_SIZE = 250

# 2**64 divided by the golden ratio, and odd: its multiples, modulo 2**64, fill the numbers evenly in every window.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

SampleFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
LabelFn = Callable[[np.ndarray], np.ndarray]  # From images, uint8 [images, ...], to labels, int32 [images].
LABELS = ('asked', 'teacher', 'auto')


@dataclasses.dataclass(frozen=True)
class ClassChoice:
    """Which class an image is of: a function of its seed alone, so that any part of a set knows its own.

    Example:
        >>> ClassChoice((3, 7)).labels(np.arange(4))
        array([3, 7, 3, 7], dtype=int32)

    Attributes:
      classes: Labels; the number of classes stands for "no class".
      weights: How often each is drawn against the others, or None for equal parts. In any window of consecutive seeds
        the counts follow the weights within a few images.
    """

    classes: tuple[int, ...]
    weights: tuple[fractions.Fraction, ...] | None = None

    def __post_init__(self):
        if not self.classes or len(set(self.classes)) != len(self.classes) or min(self.classes) < 0:
            raise ValueError(f'classes must be distinct labels from 0, and at least one; got {self.classes}.')
        if self.weights is None:
            return
        if len(self.weights) != len(self.classes):
            raise ValueError(f'there are {len(self.weights)} weights for {len(self.classes)} classes.')
        if min(self.weights) < 0 or not sum(self.weights):
            raise ValueError(
                'weights of classes must not be negative, and at least one must be above 0; got '
                f'{", ".join(map(str, self.weights))}.'
            )

    def labels(self, seeds: np.ndarray) -> np.ndarray:
        """Returns labels, int32 [images], of seeds, int64 [images], none of them negative."""
        if self.weights is None:
            return np.array(self.classes, np.int32)[seeds % len(self.classes)]
        drawn = [(label, weight) for label, weight in zip(self.classes, self.weights) if weight]
        total, passed, thresholds = sum(weight for _, weight in drawn), fractions.Fraction(0), []
        for _, weight in drawn[:-1]:
            passed += weight
            thresholds.append(int(passed / total * 2**64))  # Exact, and below 2**64: the last weight is above 0.
        places = np.searchsorted(np.array(thresholds, np.uint64), seeds.astype(np.uint64) * _GOLDEN, side='right')
        return np.array([label for label, _ in drawn], np.int32)[places]


def check_numbers(*, seed: int, num_images: int, chunk_size: int, **other_sizes: int) -> None:
    """Checks that sizes are at least 1, and that all seeds, those of the last chunk too, are int64 and not negative.

    Raises:
      ValueError: if not; gives name and value.
    """
    for name, size in {'num_images': num_images, 'chunk_size': chunk_size, **other_sizes}.items():
        if size < 1:
            raise ValueError(f'{name} of the samples must be at least 1, got {size}.')
    if seed < 0 or seed + num_images + chunk_size > 2**63:
        raise ValueError(
            f'seeds of the samples must be from 0 to 2**63 - 1, got seed={seed} and num_images={num_images}.'
        )


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """How many images to draw.

    Attributes:
      num_images: How many, in equal parts of each class up to one.
      seed: Image i has the seed seed + i: the same call gives the same images.
      chunk_size: Images sampled at a time. Fixed inside, since a network's last bits depend on the size of its batch.
      labels: 'asked': an image has the label that it was drawn for. 'teacher': it has the label that the run's teacher
        gives it, by limits between the classes that make each as frequent as it was asked for. 'auto': 'teacher' unless
        its labels mostly agree with those that the images were drawn for; else 'asked'. Images that a warm start makes
        to match noisy features are labelled by the same rule.
    """

    num_images: int = 5000
    seed: int = 0
    chunk_size: int = CHUNK_SIZE
    labels: str = 'asked'

    def __post_init__(self):
        check_numbers(seed=self.seed, num_images=self.num_images, chunk_size=self.chunk_size)
        if self.labels not in LABELS:
            raise ValueError(f'labels of the samples must be one of {LABELS}, got {self.labels!r}.')


class Piece(NamedTuple):
    """Consecutive images.

    Attributes:
      seeds: int64 [images].
      labels: int32 [images].
      images: uint8 [images, height, width, channels].
    """

    seeds: np.ndarray
    labels: np.ndarray
    images: np.ndarray


def at_once(
    sample_fns: Sequence[SampleFn],
    config: GenerateConfig,
    *,
    choice: ClassChoice,
    label_images: LabelFn | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    workers: workers_lib.Workers = workers_lib.ALONE,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draws images and holds them in memory, with a progress bar at the first worker.

    Args:
      sample_fns: See `in_pieces`.
      config: How many.
      choice: The class of each seed.
      label_images: Labels them anew; None: their labels are those that they were drawn for.
      should_stop: Asked before each round of chunks, and in the end.
      workers: All of them call this.

    Returns:
      Images, uint8 [num_images, height, width, channels], and labels, int32 [num_images], at every worker; None if one
      of them was asked to stop.
    """
    pieces = in_pieces(
        sample_fns,
        choice,
        [(config.seed, config.seed + config.num_images)],
        config.chunk_size,
        label_images=label_images,
        workers=workers,
        should_stop=should_stop,
        shown_total=config.num_images,
    )
    try:
        with contextlib.closing(pieces):
            _, labels, images = map(np.concatenate, zip(*pieces))
    except shared_work.Stopped:
        return None
    return None if workers.any(should_stop()) else (images, labels)


def in_pieces(
    sample_fns: Sequence[SampleFn],
    choice: ClassChoice,
    ranges: Sequence[tuple[int, int]],
    chunk_size: int,
    *,
    label_images: LabelFn | None = None,
    workers: workers_lib.Workers = workers_lib.ALONE,
    should_stop: Callable[[], bool] = lambda: False,
    shown_total: int | None = None,
) -> Generator[Piece, None, None]:
    """Draws the images of ranges of seeds, some chunks ahead of the caller.

    Chunk k is the seeds from k * chunk_size, and is always drawn whole: an image stands in the same row of the same
    batch whatever the ranges are, so on one kind of device not even its last bits depend on them, nor on the number of
    devices or workers.

    Args:
      sample_fns: Each maps labels, int32 [batch], and seeds, int64 [batch], to images, uint8 [batch, height, width,
        channels]; one a device, each used by one thread at a time.
      choice: The class of each seed.
      ranges: (first seed, the one after the last), ascending.
      chunk_size: Images drawn together.
      label_images: Labels the images of a chunk anew; None: their labels are those that they were drawn for.
      workers: All of them call this and take all pieces, and each draws its share of the chunks.
      should_stop: Asked before each round of chunks, one of each worker.
      shown_total: Images of the whole set, for a progress bar at the first worker; those outside the ranges count as
        drawn before. None for no bar.

    Yields:
      The images in order, at every worker; no piece reaches over the end of a range or of a chunk.

    Raises:
      shared_work.Stopped: if one of the workers was asked to stop.
      samplers.NotFiniteError: if the network predicts numbers that are not finite.
      workers_lib.WorkerLostError: if another worker is gone or failed.
    """
    numbers = itertools.islice(_chunks_of(ranges, chunk_size), workers.index, None, workers.count)
    own = _draw_chunks(sample_fns, choice, numbers, chunk_size, label_images)
    num_chunks, num_left = sum(1 for _ in _chunks_of(ranges, chunk_size)), sum(end - first for first, end in ranges)
    hidden = shown_total is None or not workers.is_first
    bar = progress.bar(shown_total, 'sampling', 'image', initial=(shown_total or num_left) - num_left, disable=hidden)
    with contextlib.closing(own), bar:
        chunks, chunk = (Piece(*found) for found in shared_work.spread(workers, num_chunks, own, should_stop)), None
        for first, end in ranges:
            while first < end:
                if chunk is None or first > chunk.seeds[-1]:
                    chunk = next(chunks)
                rows = slice(first - int(chunk.seeds[0]), end - int(chunk.seeds[0]))
                piece = Piece(*(column[rows] for column in chunk))
                bar.update(len(piece.seeds))
                yield piece
                first += len(piece.seeds)


def _chunks_of(ranges: Sequence[tuple[int, int]], chunk_size: int) -> Iterator[int]:
    """Yields the numbers of the chunks that hold the ranges; one that two ranges share comes once."""
    numbers = itertools.chain.from_iterable(
        range(first // chunk_size, (end - 1) // chunk_size + 1) for first, end in ranges
    )
    return (number for number, _ in itertools.groupby(numbers))


def _draw_chunks(
    sample_fns: Sequence[SampleFn],
    choice: ClassChoice,
    numbers: Iterable[int],
    chunk_size: int,
    label_images: LabelFn | None,
) -> Generator[Piece, None, None]:
    """Yields whole chunks in order."""

    def draw_chunk(sample_fn: SampleFn, number: int) -> Piece:
        seeds = np.arange(number * chunk_size, (number + 1) * chunk_size, dtype=np.int64)
        labels = choice.labels(seeds)
        with samplers.telling_of_divergence():
            images = sample_fn(tf.constant(labels), tf.constant(seeds)).numpy()
        return Piece(seeds, labels if label_images is None else label_images(images), images)

    return shared_work.run_ahead(sample_fns, numbers, draw_chunk)
