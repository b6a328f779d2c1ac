"""The one Gaussian draw of a step."""

import dataclasses
import hashlib
from typing import List, Sequence

import numpy as np
import tensorflow as tf

from tf_dpdiff.privacy import seeds

GENERATORS = ('philox', 'shake256')
PURPOSE = 'noise'


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
      generator: 'philox' (TensorFlow's counter-based generator: fast, on the accelerator, statistically sound, but not
        proven hard to predict) or 'shake256' (FIPS 202, keyed with 256 secret bits: cryptographic, on the CPU, about
        30 million numbers a second). Both repeat a step's draw after a crash.

    References: Dwork and Roth 2014, The Algorithmic Foundations of Differential Privacy, appendix A; Balle and Wang
      2018, arXiv:1805.06530; Garfinkel and Leclerc 2020, arXiv:2009.03777 (why the generator matters).
    """
    stddev: float
    generator: str = 'philox'

    def __post_init__(self):
        if not 0.0 <= self.stddev < float('inf'):
            raise ValueError(f'stddev must be finite and at least 0, got {self.stddev}.')
        check_generator(self.generator)

    def add(self, sums: Sequence[tf.Tensor], *, seed: seeds.PrivateSeed, step: tf.Tensor) -> List[tf.Tensor]:
        """Returns the sums with noise.

        Draws outside XLA only: `jit_compile` changes what stateless_normal returns, and a resumed run would differ.

        Args:
          sums: float32 tensors of any shape, one a variable, always in the same order.
          seed: The secret, the same for the whole run.
          step: int64 scalar, counted from 0, different in every step of the run.

        Returns:
          float32 tensors of the same shapes.
        """
        if self.stddev == 0.0:
            return list(sums)
        step = tf.cast(step, tf.int64)
        draw = self._draw_philox if self.generator == 'philox' else self._draw_shake256
        return [value + draw(tf.shape(value), seed, step * len(sums) + index) for index, value in enumerate(sums)]

    def _draw_philox(self, shape: tf.Tensor, seed: seeds.PrivateSeed, counter: tf.Tensor) -> tf.Tensor:
        draw_seed = tf.stack([tf.constant(seed.derive(PURPOSE), tf.int64), counter])
        return tf.random.stateless_normal(shape, draw_seed, stddev=self.stddev, dtype=tf.float32, alg='philox')

    def _draw_shake256(self, shape: tf.Tensor, seed: seeds.PrivateSeed, counter: tf.Tensor) -> tf.Tensor:
        key = seed.derive_key(PURPOSE)

        def draw(shape, counter):
            return (self.stddev * cryptographic_normal(key, int(counter), shape)).astype(np.float32)

        return tf.numpy_function(draw, [shape, counter], tf.float32)


def cryptographic_normal(key: bytes, counter: int, shape: Sequence[int]) -> np.ndarray:
    """Returns standard normal numbers from SHAKE-256 of (key, counter), by the Box-Muller transform of 53-bit uniforms.

    Args:
      key: 32 secret bytes.
      counter: In [0, 2^64); each one gives an independent draw.
      shape: Of the result.

    Returns:
      float64 of that shape; no number is beyond 8.7 in magnitude, where a normal one is once in 10^17 draws.

    References: NIST FIPS 202; Box and Muller 1958, A Note on the Generation of Random Normal Deviates.
    """
    size = int(np.prod(shape))
    pairs = -(-size // 2)
    stream = hashlib.shake_256(key + counter.to_bytes(8, 'little')).digest(16 * pairs)
    uniforms = ((np.frombuffer(stream, '<u8') >> np.uint64(11)) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(uniforms[:pairs])), 2.0 * np.pi * uniforms[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size].reshape(shape)


def standard_normal(seed: seeds.PrivateSeed, purpose: str, shape: Sequence[int], generator: str) -> np.ndarray:
    """Returns the noise of a release that is made once, float64, from the generator of that name.

    Args:
      seed: The secret.
      purpose: Of the draw; another one than that of any other draw.
      shape: Of the result.
      generator: One of GENERATORS.
    """
    check_generator(generator)
    if generator == 'shake256':
        return cryptographic_normal(seed.derive_key(purpose), 0, shape)
    bits = np.random.Philox(key=np.array([seed.derive(purpose), 0], np.uint64))
    return np.random.Generator(bits).standard_normal(shape)


def check_generator(generator: str) -> None:
    """Refuses an unknown generator.

    Raises:
      ValueError: names it.
    """
    if generator not in GENERATORS:
        raise ValueError(f'noise generator must be one of {GENERATORS}, got {generator!r}.')
