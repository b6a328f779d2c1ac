"""Which units take part in a step: Poisson index batches, and a baseline without a guarantee."""

import dataclasses
from typing import Tuple

import numpy as np

PADDING_INDEX = -1


@dataclasses.dataclass(frozen=True)
class PoissonSampler:
    """Each unit takes part in a step with the same probability, independently of all others and of all other steps.

    This is the sampling that privacy amplification by subsampling is proven for, hence the only one that this project
    claims an epsilon for.

    Guarantee: the batch is a function of (num_units, seed, step) alone, so a step that is run again after a crash sees
      the same units. A batch may be empty.

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

    def sample(self, num_units: int, *, seed: int, step: int) -> np.ndarray:
        """Returns the sorted indices of the units of one step, int64 [sampled units], each in [0, num_units)."""
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64)))
        return np.flatnonzero(generator.random(num_units) < self.sampling_probability)


@dataclasses.dataclass(frozen=True)
class ShuffledBatches:
    """Fixed-size batches from a new permutation each epoch: how non-private training usually reads its data.

    Guarantee: none. The amplification proven for Poisson sampling does not hold here, so a plan with this sampler
      trains but claims no epsilon.

    Attributes:
      batch_size: Units a step.
    """
    batch_size: int

    def sample(self, num_units: int, *, seed: int, step: int) -> np.ndarray:
        """Returns the sorted indices of the units of one step, int64 [batch_size]."""
        epoch, position = divmod(step, max(1, num_units // self.batch_size))
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
        start = position * self.batch_size
        return np.sort(generator.permutation(num_units)[start:start + self.batch_size])


def pad_indices(indices: np.ndarray, multiple: int) -> Tuple[np.ndarray, np.ndarray]:
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
    padded[:len(indices)] = indices
    return padded, padded == PADDING_INDEX
