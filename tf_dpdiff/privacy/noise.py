"""The one Gaussian draw of a step."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import math

import numpy as np
import tensorflow as tf

from tf_dpdiff.privacy import seeds

GENERATORS = ('philox', 'shake256')
PURPOSE = 'noise'
# A noisy count of so many standard deviations is not noise alone.
SURE = 3.0
MOST_PARAMETERS = 1e10  # Of a network, for the bound on the tail of the noise, which hardly grows with them.
_LARGEST_UNIFORM = 1.0 - 2.0**-24  # The largest float32 below 1.
# The largest radius of a pair of numbers, where the probability of a larger one is 2^-65 and 2^-54.
_LOG2_OF_TAIL = {'philox': -65, 'shake256': -54}
# Far from where float32 loses digits or overflows, also when noise is divided by a batch or multiplied by 10.
SMALLEST_STDDEV, LARGEST_STDDEV = 1e-20, 1e20


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Adds N(0, stddev^2) to every coordinate of a sum of clipped gradients.

    Call it once a step, on the sum over all chunks and replicas: with the same seed and step it draws the same numbers
    everywhere, so replicas that all call it on the reduced sum add one draw and not several.

    Guarantee: each draw has an address, a 128-bit seed (secret seed, number of the draw), and different addresses give
      independent draws. `add` numbers them step * variables + index, so the draws of a run whose variables stay the
      same never meet; who trains other variables in other steps counts the draws and calls `add_at`. The numbers are
      int64: chains of int32 folds collide.
      What is drawn is a Gaussian number but for its tail and for rounding. The tail is cut; `tail_delta` bounds what
      that adds to delta. Rounding: the numbers are float32, as the sums are. The claim leaves floating-point rounding
      out.

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
        if self.stddev and not SMALLEST_STDDEV <= self.stddev <= LARGEST_STDDEV:
            raise ValueError(
                f'stddev must be 0 or in [{SMALLEST_STDDEV:g}, {LARGEST_STDDEV:g}], which float32 carries, '
                f'got {self.stddev}.'
            )
        check_generator(self.generator)

    def add(self, sums: Sequence[tf.Tensor], *, seed: seeds.PrivateSeed, step: tf.Tensor) -> list[tf.Tensor]:
        """Returns the sums with noise.

        With 'philox' it may be called eagerly, in a graph and within XLA (`jit_compile=True`, TPUs), on devices of any
        kind: the draw is made from integer bits, which are the same everywhere, and differs by float rounding alone;
        on one device of one kind it is the same bit for bit, eagerly and in a graph. 'shake256' runs in Python on the
        CPU of the calling process and cannot be compiled: within XLA TensorFlow refuses it (`PyFunc` is not supported),
        so whoever compiles whole steps must ask for 'philox'.

        Args:
          sums: float32 tensors of any shape, one a variable, always in the same order.
          seed: The secret, the same for the whole run.
          step: int64 scalar, counted from 0, different in every step of the run.

        Returns:
          float32 tensors of the same shapes.
        """
        return self.add_at(sums, seed=seed, first_draw=tf.cast(step, tf.int64) * len(sums))

    def add_at(self, sums: Sequence[tf.Tensor], *, seed: seeds.PrivateSeed, first_draw: tf.Tensor) -> list[tf.Tensor]:
        """Returns the sums with noise, given the number of the first draw; otherwise as `add`.

        Args:
          sums: float32 tensors of any shape.
          seed: The secret.
          first_draw: int64 scalar, at least 0. The tensors take the draws first_draw, first_draw + 1, ..., none of
            which may ever be used for another sum under the same secret.

        Returns:
          float32 tensors of the same shapes.
        """
        if self.stddev == 0.0:
            return list(sums)
        draw = functools.partial(self._draw_philox if self.generator == 'philox' else self._draw_shake256, seed)

        def add_draw(flat, counter):
            return flat + draw(tf.size(flat, tf.int64), counter)

        if tf.inside_function():
            # One function in the graph, called for each variable: the draw's many operations are traced once, and
            # optimized once, which TensorFlow does for each constant that a function is called with: no size is given.
            add_draw = tf.function(
                add_draw,
                autograph=False,
                input_signature=[tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.int64)],
                experimental_attributes={'_noinline': True},
            )
        first_draw = tf.cast(first_draw, tf.int64)
        return [
            tf.reshape(add_draw(tf.reshape(value, [-1]), first_draw + index), tf.shape(value))
            for index, value in enumerate(sums)
        ]

    def _draw_philox(self, seed: seeds.PrivateSeed, size: tf.Tensor, counter: tf.Tensor) -> tf.Tensor:
        draw_seed = tf.stack([tf.constant(seed.derive(PURPOSE), tf.int64), counter])
        pairs = (size + 1) // 2
        # Integer bits: XLA changes what stateless_normal returns.
        bits = tf.random.stateless_uniform(
            tf.stack([3, pairs]), draw_seed, minval=None, maxval=None, dtype=tf.uint32, alg='philox'
        )
        return self.stddev * normal_from_bits(bits)[:size]

    def _draw_shake256(self, seed: seeds.PrivateSeed, size: tf.Tensor, counter: tf.Tensor) -> tf.Tensor:
        key = seed.derive_key(PURPOSE)

        def draw(size, counter):
            return (self.stddev * cryptographic_normal(key, int(counter), [size])).astype(np.float32)

        return tf.ensure_shape(tf.numpy_function(draw, [size, counter], tf.float32), [None])


def normal_from_bits(bits: tf.Tensor) -> tf.Tensor:
    """Returns standard normal numbers from random bits, by the Box-Muller transform in float32.

    The radius of a pair comes from 64 bits and its angle from 24. With 32 bits for the radius no number would pass 6.8,
    and over 10^10 numbers the tail that is cut would be a total variation far above any delta.

    Guarantee: for independent uniform bits the numbers are independent and standard normal, but for the tail and for
      rounding. The radius lies in [3.4e-4, 9.493]; a Gaussian pair is beyond with probability 2^-65, and nearer than
      3.4e-4 with probability 2^-24 (such pairs are moved outwards, by no more than that). Its uniform number has steps
      of 2^-64 at the tail and of 2^-24 at the centre, the angle of 2^-24 of a turn. No bits give a number that is not
      finite.

    Args:
      bits: uint32 [3, pairs].

    Returns:
      float32 [2 * pairs]. The same in eager, graph and XLA within 1e-6: up to the logarithm, the sine and the cosine
      every operation is exact or rounded as IEEE 754 says, and those are good to a few units in the last place.

    References: Box and Muller 1958, A Note on the Generation of Random Normal Deviates.
    """
    high, low, of_angle = tf.unstack(bits)
    uniforms = tf.constant(0.5)
    # From the last bits to the first, 16 at a time: each piece is a float32 without rounding on any device.
    for word in (low, high):
        for piece in (tf.bitwise.bitwise_and(word, 0xFFFF), tf.bitwise.right_shift(word, 16)):
            uniforms = (uniforms + tf.cast(piece, tf.float32)) * 2.0**-16
    radius = tf.sqrt(-2.0 * tf.math.log(tf.minimum(uniforms, _LARGEST_UNIFORM)))
    # Half a step beside the whole numbers, symmetric around zero: [-2^23 + 0.5, 2^23 - 0.5] is exact too.
    steps = tf.cast(tf.bitwise.right_shift(of_angle, 8), tf.float32) - (2.0**23 - 0.5)
    angle = steps * (np.pi * 2.0**-23)
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=0)


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


def tail_delta(noise_multiplier: float, *, num_draws: float, num_numbers: float, generator: str = 'philox') -> float:
    """Bounds what the cut tail of the noise adds to delta.

    The pairs of numbers that a generator makes have a radius of at most R. Noise with that cut is a Gaussian
    conditioned on all pairs lying within R, an event of probability Z that does not depend on the data. Let v be what
    one unit adds to a sum, in standard deviations of the noise, so that its norm is at most 1 / noise_multiplier. An
    output that both of two neighbouring data sets can lead to has, for each, its Gaussian density over Z, so there the
    bound with the Gaussian's delta holds with delta / Z. What remains are outputs that only one of them can lead to:
    there some pair of the noise has a radius between R - |v of the pair| and R. With a_j for |v| of pair j and p for
    the probability e^(-R^2/2) of a radius above R, that has a probability of at most p times the sum of e^(R a_j) - 1,
    hence of at most p (R a sqrt(pairs) + e^(R a) - 1 - R a), where a = 1 / noise_multiplier (by the power series and
    Cauchy-Schwarz). Over several releases, each chosen knowing those before it, these probabilities add up, and mixing
    over which units were sampled makes neither larger. No factor e^epsilon is in it.

    Args:
      noise_multiplier: Smallest of all releases, > 0.
      num_draws: Releases: steps, rounds.
      num_numbers: Coordinates of each release.
      generator: One of GENERATORS.

    Returns:
      A bound on the growth of delta, in [0, 1]; to be read beside the share 1 / Z - 1 by which delta grows besides,
      which is below num_draws * num_numbers * 2^-65 for 'philox' and 2^-54 for 'shake256'.

    Example:
        >>> tail_delta(2.451, num_draws=200, num_numbers=80e6) < 1e-12
        True
    """
    check_generator(generator)
    log_p = _LOG2_OF_TAIL[generator] * math.log(2.0)
    radius, shift = math.sqrt(-2.0 * log_p), 1.0 / noise_multiplier
    if log_p + radius * shift >= 0.0:
        return 1.0
    spread = radius * shift * math.sqrt(max(1.0, num_numbers / 2.0))
    return min(1.0, num_draws * (math.exp(log_p) * spread + math.exp(log_p + radius * shift)))


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


def add_to_release(
    vector: np.ndarray, stddev: float, *, seed: seeds.PrivateSeed, purpose: str, generator: str
) -> np.ndarray:
    """Returns the vector of a release with its noise.

    Guarantee: N(0, stddev^2) is added to every number, independently, but for the tail and for rounding. The noise
      depends on the numbers that it is added to, by a keyed hash: were it the same for two vectors, it would tell their
      difference as it is. The same vector gets the same noise.

    Args:
      vector: float64, of any shape: PRIVATE.
      stddev: At least 0.
      seed: The run's secret.
      purpose: Of the release; another one than that of any other.
      generator: One of GENERATORS.

    Returns:
      float64 of the same shape.
    """
    address = f'{purpose}_{hashlib.sha256(vector.tobytes()).hexdigest()}'
    return vector + stddev * standard_normal(seed, address, vector.shape, generator)


def check_is_not_lost(noise_multiplier: float, expected_batch_size: float) -> None:
    """Refuses noise that is not well above the rounding of the sum that it is added to.

    A coordinate of a sum of B gradients of norm C may be as large as B C, where neighbouring float32 numbers are
    2^-23 B C apart. Noise must be four times that: with less, the noisy sum would show the steps of the sum itself.

    Args:
      noise_multiplier: At least 0; 0 is no noise, for which nothing is claimed.
      expected_batch_size: B, > 0.

    Raises:
      ValueError: gives both numbers and the least noise.
    """
    least = expected_batch_size * 2.0**-21
    if 0.0 < noise_multiplier < least:
        raise ValueError(
            f'noise_multiplier={noise_multiplier:g} is lost in float32 beside a sum of '
            f'{expected_batch_size:g} gradients: give at least {least:.3g}, or a smaller '
            'expected_batch_size.'
        )


def check_generator(generator: str) -> None:
    """Refuses an unknown generator.

    Raises:
      ValueError: names it.
    """
    if generator not in GENERATORS:
        raise ValueError(f'noise generator must be one of {GENERATORS}, got {generator!r}.')
