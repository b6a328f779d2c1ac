"""The one Gaussian draw of a step."""

import dataclasses
from typing import List, Sequence

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Adds N(0, stddev^2) to every coordinate of a sum of clipped gradients.

    Call it once a step, on the sum over all chunks and replicas: with the same seed and step it draws the same numbers
    everywhere, so replicas that all call it on the reduced sum add one draw and not several.

    Guarantee: draws of different (step, variable) pairs use different 128-bit seeds (seed, step * variables + index),
      so no draw is used for two different sums. The seeds are int64: chains of int32 folds collide.

    Attributes:
      stddev: Standard deviation in the units of the sum: noise_multiplier times the clipper's sensitivity. Zero adds
        nothing.

    References: Dwork and Roth 2014, The Algorithmic Foundations of Differential Privacy, appendix A; Balle and Wang
      2018, arXiv:1805.06530.
    """
    stddev: float

    def __post_init__(self):
        if not 0.0 <= self.stddev < float('inf'):
            raise ValueError(f'stddev must be finite and at least 0, got {self.stddev}.')

    def add(self, sums: Sequence[tf.Tensor], *, seed: tf.Tensor, step: tf.Tensor) -> List[tf.Tensor]:
        """Returns the sums with noise.

        Draws outside XLA only: `jit_compile` changes what stateless_normal returns, and a resumed run would differ.

        Args:
          sums: float32 tensors of any shape, one a variable, always in the same order.
          seed: int64 scalar, secret, the same for the whole run.
          step: int64 scalar, counted from 0, different in every step of the run.

        Returns:
          float32 tensors of the same shapes.
        """
        if self.stddev == 0.0:
            return list(sums)
        noisy = []
        for index, value in enumerate(sums):
            draw_seed = tf.stack([tf.cast(seed, tf.int64), tf.cast(step, tf.int64) * len(sums) + index])
            noisy.append(value + tf.random.stateless_normal(
                tf.shape(value), draw_seed, stddev=self.stddev, dtype=tf.float32, alg='philox'))
        return noisy
