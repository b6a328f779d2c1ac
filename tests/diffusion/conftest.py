"""What tests of the samplers share."""

import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import samplers


def make_sampler(denoiser, process, config, *, image_shape=(2, 2, 1), num_classes=0):
    """Returns a sampler in one tf.function for any batch size, as training and serving have it.

    Labels are 0 where none are given.
    """
    function = tf.function(
        lambda labels, seeds: samplers.sample(
            denoiser, labels, seeds, process=process, config=config, image_shape=image_shape, num_classes=num_classes
        ),
        input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)],
    )

    def sample(seeds, labels=None):
        labels = tf.zeros([len(seeds)], tf.int32) if labels is None else tf.constant(labels, tf.int32)
        return function(labels, tf.constant(seeds, tf.int64)).numpy()

    return sample


@pytest.fixture(name='make_sampler', scope='session')
def fixture_make_sampler():
    """The function `make_sampler`."""
    return make_sampler
