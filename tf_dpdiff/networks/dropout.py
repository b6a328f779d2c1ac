"""Dropout from seeds that come in as data: under a mapped gradient nothing may draw random numbers."""

import tensorflow as tf

from tf_dpdiff import keras

_MASK = 2**32 - 1


class SeededDropout(keras.layers.Layer):
    """Inverted dropout whose mask is a hash of (seed of the example, salt, place of the activation).

    Takes [activations, float [batch, ...], and seeds, int32 [batch]]; off unless called with training=True, as every
    Keras dropout. The seeds are drawn outside of the network, one a view, from where the view's other random numbers
    come. Drawing inside would be a loop under `tf.vectorized_map` where it is stateless, and shared or irreproducible
    where it is stateful; a hash of element-wise operations on uint32 is neither.

    The mask of an example depends on nothing else in the batch. Masks of other seeds, salts and places are as good as
    independent; the share that is kept is 1 - rate to within 2^-24.

    Args:
      rate: Share of the activations set to zero, in [0, 1); the others are divided by 1 - rate.
      salt: Another number for each dropout of a network, or they would drop the same places. At least 0.

    Raises:
      ValueError: for a rate out of range.

    References: Srivastava et al. 2014, JMLR 15, for dropout; the hash is the finalizer of MurmurHash3 (Appleby 2011).
    """

    def __init__(self, rate: float, salt: int = 0, **kwargs):
        super().__init__(**kwargs)
        if not 0.0 <= rate < 1.0:
            raise ValueError(f'rate of a dropout must be in [0, 1), got {rate}.')
        self.rate = rate
        self.salt = salt

    def call(self, inputs, training=None):
        h, seeds = inputs
        if not training or not self.rate:
            return h
        keep = self._bits(seeds, h.shape[1:]) >= self.rate * 2.0**32
        return tf.where(keep, h * tf.cast(1.0 / (1.0 - self.rate), h.dtype), tf.zeros([], h.dtype))

    def _bits(self, seeds, shape):
        """Returns whole numbers in [0, 2^32) as float32 [batch, *shape]; the cost is in what is done for each."""
        salt = _hash_of_int(self.salt)
        places = tf.cast(tf.range(shape.num_elements()), tf.uint32)
        # Hashed once for all examples, and once for all places of an example.
        of_places = _hash(places ^ _constant(salt))
        of_examples = _hash(tf.cast(seeds, tf.uint32) ^ _constant(_hash_of_int(salt)))
        h = tf.reshape(of_examples, [-1] + [1] * shape.rank) ^ tf.reshape(of_places, shape)
        # The hash without its first and last step: the first would mix what is mixed, and the last changes low bits
        # only, which do not matter to a comparison.
        h = _mix(h * _constant(_FACTORS[0]), 13) * _constant(_FACTORS[1])
        # By way of float32: uint32 has no comparison on a GPU.
        return tf.cast(h, tf.float32)

    def get_config(self):
        return {**super().get_config(), 'rate': self.rate, 'salt': self.salt}


# The finalizer of MurmurHash3 on uint32. Each step can be undone (a product with an odd number modulo 2^32, a number
# xored with its own upper bits), so different numbers have different hashes.
_FACTORS = (0x85EBCA6B, 0xC2B2AE35)


def _constant(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint32)


def _mix(h: tf.Tensor, shift: int) -> tf.Tensor:
    return h ^ tf.bitwise.right_shift(h, _constant(shift))


def _hash(h: tf.Tensor) -> tf.Tensor:
    h = _mix(h, 16) * _constant(_FACTORS[0])
    return _mix(_mix(h, 13) * _constant(_FACTORS[1]), 16)


def _hash_of_int(value: int) -> int:
    """Returns the hash of a Python number, moved away from 0, which would stay 0."""
    h = (value + 0x9E3779B9) & _MASK
    h = ((h ^ h >> 16) * _FACTORS[0]) & _MASK
    h = ((h ^ h >> 13) * _FACTORS[1]) & _MASK
    return h ^ h >> 16
