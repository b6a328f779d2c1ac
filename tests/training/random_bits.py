"""Random numbers that TensorFlow and XLA draw alike: views are then the same ones, whatever compiles the step."""

import contextlib
import math
from unittest import mock

import tensorflow as tf

from tf_dpdiff.privacy import noise

_UNIFORM = tf.random.stateless_uniform


def _bits(shape, seed):
    return _UNIFORM(shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg='philox')


def _uniform(shape, seed, minval=0, maxval=None, dtype=tf.float32, alg='philox'):
    if dtype != tf.float32:
        return _UNIFORM(shape, seed, minval=minval, maxval=maxval, dtype=dtype, alg=alg)
    assert (minval, maxval, alg) == (0, None, 'philox')
    return tf.cast(tf.bitwise.right_shift(_bits(shape, seed), 8), tf.float32) * 2.0**-24


def _normal(shape, seed, alg):
    assert alg == 'philox'
    size = math.prod(shape)
    return tf.reshape(noise.normal_from_bits(_bits([3, (size + 1) // 2], seed))[:size], shape)


@contextlib.contextmanager
def same_everywhere():
    """Makes views of integer bits, which are the same everywhere, where steps are traced within it.

    Of the same bits XLA makes other uniform and normal numbers than TensorFlow, so a step that XLA compiles sees other
    views, of the same law. The noise of the guarantee comes from bits anyway.
    """
    with (
        mock.patch.object(tf.random, 'stateless_uniform', _uniform),
        mock.patch.object(tf.random, 'stateless_normal', _normal),
    ):
        yield
