"""Which units take part in a step: Poisson index batches, and a baseline without a guarantee."""

from collections.abc import Sequence
import dataclasses

import numpy as np

PADDING_INDEX = -1
GENERATOR = 'philox'  # What draws the units of a step, whichever generator draws the noise.


def shard_bounds(num_units: int, replica: int, num_replicas: int) -> tuple[int, int]:
    """Returns the first unit of a replica's shard and the one after its last; the shards of all replicas are disjoint.

    Args:
      num_units: Units of the data set.
      replica: In [0, num_replicas).
      num_replicas: At least 1.

    Raises:
      ValueError: for a replica outside of its range.

    Example:
        >>> [shard_bounds(10, replica, 3) for replica in range(3)]
        [(0, 3), (3, 6), (6, 10)]
    """
    if not 0 <= replica < num_replicas:
        raise ValueError(f'replica must be in [0, {num_replicas}), got {replica}.')
    return num_units * replica // num_replicas, num_units * (replica + 1) // num_replicas


@dataclasses.dataclass(frozen=True)
class PoissonSampler:
    """Each unit takes part in a step with the same probability, independently of all others and of all other steps.

    This is the sampling that privacy amplification by subsampling is proven for, hence the only one, but for its
    truncated form, that this project claims an epsilon for. It holds indices alone and never looks at an image, so the
    data set may be of any size.

    Guarantee: the batch is a function of (num_units, seed, step) alone, so a step that is run again after a crash sees
      the same units. Over several replicas each samples its own shard at the same probability, and together they draw
      the very units that one replica would. A batch may be empty.

    Attributes:
      sampling_probability: In (0, 1].

    Example:
        >>> PoissonSampler(0.5).sample(8, seed=1, step=0).dtype
        dtype('int64')

    References: Abadi et al. 2016, arXiv:1607.00133, section 3.1 ("lots").
    """

    sampling_probability: float

    def __post_init__(self):
        if not 0.0 < self.sampling_probability <= 1.0:
            raise ValueError(f'sampling_probability must be in (0, 1], got {self.sampling_probability}.')

    def sample(self, num_units: int, *, seed: int, step: int, replica: int = 0, num_replicas: int = 1) -> np.ndarray:
        """Returns the units of one step that belong to a replica's shard.

        Args:
          num_units: Units of the data set.
          seed: Secret, in [0, 2^63).
          step: Counted from 0.
          replica: In [0, num_replicas).
          num_replicas: At least 1.

        Returns:
          Sorted indices, int64 [sampled units], each in [0, num_units).
        """
        first, end = shard_bounds(num_units, replica, num_replicas)
        numbers = _numbers(first, end, seed=seed, step=step)
        return first + np.flatnonzero(numbers < self.sampling_probability)


@dataclasses.dataclass(frozen=True)
class TruncatedPoissonSampler(PoissonSampler):
    """Poisson sampling of which at most a given number of units is kept, as devices with fixed shapes need it.

    Where more are drawn, the kept ones are a uniformly random subset of them: those with the smallest of the numbers by
    which units are drawn, which are independent and alike. It is a function of the secret seed, as the draw is.

    Guarantee: that of `PoissonSampler`, but units are not independent of one another where the bound is met: one that
      is drawn may push another one out. See `truncation` for what that costs. Each replica takes an equal part of what
      is kept, in place of the units of its own shard: at most the bound over num_replicas, rounded upwards.

    Attributes:
      truncated_batch_size: The most units of a step, at least 1.

    Example:
        >>> len(TruncatedPoissonSampler(0.5, 3).sample(1000, seed=1, step=0))
        3
    """

    truncated_batch_size: int

    def __post_init__(self):
        super().__post_init__()
        if self.truncated_batch_size < 1:
            raise ValueError(f'truncated_batch_size must be at least 1, got {self.truncated_batch_size}.')

    def sample(self, num_units: int, *, seed: int, step: int, replica: int = 0, num_replicas: int = 1) -> np.ndarray:
        """Returns the units of one step that a replica takes; arguments as for `PoissonSampler.sample`."""
        numbers = _numbers(0, num_units, seed=seed, step=step)
        units = np.flatnonzero(numbers < self.sampling_probability)
        if len(units) > self.truncated_batch_size:
            units = np.sort(units[np.argsort(numbers[units], kind='stable')[: self.truncated_batch_size]])
        first, end = shard_bounds(len(units), replica, num_replicas)
        return units[first:end]


def _numbers(first: int, end: int, *, seed: int, step: int) -> np.ndarray:
    """Returns the numbers in [0, 1) by which the units from first to end are drawn, float64 [end - first]."""
    bits = np.random.Philox(key=np.array([seed, step], np.uint64))
    # Unit i always gets the i-th number of the step; the generator makes four at a time.
    bits.advance(first // 4)
    return np.random.Generator(bits).random(first % 4 + end - first)[first % 4 :]


@dataclasses.dataclass(frozen=True)
class ShuffledBatches:
    """Fixed-size batches from a new permutation each epoch: how non-private training usually reads its data.

    Guarantee: none. The amplification proven for Poisson sampling does not hold here, so a plan with this sampler
      trains but claims no epsilon.

    Attributes:
      batch_size: Units a step.
    """

    batch_size: int

    def sample(self, num_units: int, *, seed: int, step: int, replica: int = 0, num_replicas: int = 1) -> np.ndarray:
        """Returns the units of one step that belong to a replica's shard; arguments as for `PoissonSampler.sample`."""
        first, end = shard_bounds(num_units, replica, num_replicas)
        epoch, position = divmod(step, max(1, num_units // self.batch_size))
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
        start = position * self.batch_size
        units = np.sort(generator.permutation(num_units)[start : start + self.batch_size])
        return units[(units >= first) & (units < end)]


def pad_indices(indices: np.ndarray, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads an index batch to a multiple of the physical chunk, so that compiled code sees whole chunks.

    Args:
      indices: int64 [sampled units].
      multiple: Units a chunk, at least 1.

    Returns:
      The indices, int64 [padded], with PADDING_INDEX at the end, and the mask of padding, bool [padded]. An empty batch
      becomes one chunk of padding: its step is a noise-only step.

    Example:
        >>> pad_indices(np.array([3, 7, 9]), 2)[0]
        array([ 3,  7,  9, -1])
    """
    padded_size = max(1, -(-len(indices) // multiple)) * multiple
    padded = np.full([padded_size], PADDING_INDEX, np.int64)
    padded[: len(indices)] = indices
    return padded, padded == PADDING_INDEX


def pad_batches(batches: Sequence[np.ndarray], multiple: int, *, equally: bool) -> list[np.ndarray]:
    """Pads the index batches of several replicas; see `pad_indices`.

    Args:
      batches: int64 [sampled units], one a replica.
      multiple: Indices to whose multiples each is padded, at least 1.
      equally: Whether all of them become as long as the longest one.

    Returns:
      int64 [padded], one a replica.

    Example:
        >>> pad_batches([np.array([3, 7, 9]), np.array([4])], 2, equally=True)
        [array([ 3,  7,  9, -1]), array([ 4, -1, -1, -1])]
    """
    longest = max(map(len, batches)) if equally else 0
    return [pad_indices(batch, max(multiple, -(-longest // multiple) * multiple))[0] for batch in batches]
