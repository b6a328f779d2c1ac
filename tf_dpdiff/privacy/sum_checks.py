"""Are noisy sums what their mechanism says? Exact tests on what steps release, by who knows what went into them.

A guess about canaries shows how much is lost in all. These look for what it does not show: noise that was used twice
(the difference of two sums then holds none), noise that is smaller than claimed by a little, and a single unit that is
longer than the clipping norm. Each returns a p-value: where the mechanism is as claimed it is below p with probability
at most p. They test the program as it is, not a claim of differential privacy: what fails here may still be private.

References: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1 (the mechanism).
"""

import math

import numpy as np
from scipy import stats


def too_little_noise(noise: np.ndarray, stddev: float, parts: np.ndarray | None = None) -> float:
    """Returns the p-value of noise being at least as large as claimed, by sums of squares.

    Args:
      noise: float [steps, coordinates], of coordinates that no unit moves: noise alone.
      stddev: Claimed, > 0.
      parts: int [coordinates], at least 0, by which each part is looked at besides the whole; p-values then add up.

    Returns:
      In [0, 1].
    """
    squares = np.sum(np.square(noise, dtype=np.float64), axis=0) / stddev**2
    p_whole = float(stats.chi2.cdf(squares.sum(), noise.size))
    if parts is None:
        return p_whole
    of_parts, counts = np.bincount(parts, squares), np.bincount(parts)
    p_values = stats.chi2.cdf(of_parts[counts > 0], len(noise) * counts[counts > 0])
    return min(1.0, (len(p_values) + 1) * min(p_whole, float(p_values.min())))


def repeated_noise(*draws: np.ndarray) -> float:
    """Returns the p-value of draws of noise being independent, by the largest correlation of two of them.

    Independent Gaussian vectors of n numbers each have a random direction, so (1 + correlation) / 2 of two of them has
    the distribution Beta((n - 1) / 2, (n - 1) / 2) exactly, whatever their scale. Over all pairs p-values add up.

    Args:
      *draws: float [draws, n], n >= 2: sets of draws within each of which no two may resemble one another.

    Returns:
      In [0, 1]; 1 where there is no pair.
    """
    num_pairs = sum(len(vectors) * (len(vectors) - 1) // 2 for vectors in draws)
    p_value = 1.0
    for vectors in draws:
        if len(vectors) < 2:
            continue
        vectors = np.asarray(vectors, np.float64)
        norms = np.linalg.norm(vectors, axis=1)
        if not np.all(norms > 0.0):
            return 0.0  # Of no noise at all every copy is the same.
        directions = vectors / norms[:, None]
        correlations = np.abs(directions @ directions.T)
        np.fill_diagonal(correlations, 0.0)
        half = (vectors.shape[1] - 1) / 2.0
        largest = min(1.0, float(correlations.max()))
        p_value = min(p_value, 2.0 * num_pairs * float(stats.beta.sf((1.0 + largest) / 2.0, half, half)))
    return p_value


def too_long_unit(products: np.ndarray, *, stddev: float, num_steps: int, sampling_probability: float) -> float:
    """Returns the p-value of no unit being longer than the clipping norm, by the largest sum over the steps.

    A unit takes part in k of the steps, k binomial, and moves its inner product by at most 1 in each; noise is added in
    all. Over all units p-values add up.

    Args:
      products: float64 [units], of each unit's direction with the noisy sums of all steps, in clipping norms, added up.
      stddev: Of the noise of a step, in clipping norms, at least 0.
      num_steps: At least 1.
      sampling_probability: In (0, 1].

    Returns:
      In [0, 1].
    """
    largest, counts = float(np.max(products)), np.arange(num_steps + 1)
    probabilities = stats.binom.pmf(counts, num_steps, sampling_probability)
    if stddev == 0.0:
        tails = np.where(largest > counts * (1.0 + 1e-6), 0.0, 1.0)  # Sums of float32 numbers are rounded.
    else:
        tails = stats.norm.sf((largest - counts) / (stddev * math.sqrt(num_steps)))
    return min(1.0, len(products) * float(np.sum(probabilities * tails)))
