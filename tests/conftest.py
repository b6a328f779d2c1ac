"""What tests of several packages share."""

import contextlib
import gc

import pytest
import tensorflow as tf
from tensorflow.python.framework import ops

from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import layers

_BUILD = denoiser.build


@pytest.fixture(autouse=True, scope='module')
def fixture_old_graphs_are_let_go():
    """Frees the graphs of a module at its end, and keeps garbage collection quick: what stays is not searched again."""
    yield
    # TensorFlow keeps each gradient that a graph defines (of `swish`, say) for good, and by it the graph.
    gradients = ops.gradient_registry._registry
    for name in [name for name in gradients if name.startswith('CustomGradient-')]:
        del gradients[name]
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope='session')
def fixture_patience():
    """Keeps what a command says on standard error from depending on how fast the machine is."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(progress, '_PATIENCE_SECS', 3600.0)
        yield


def build_small_network(config, image_shape, num_classes):
    """Stands in for `denoiser.build`: a convolution as wide as the network, which is told of t and label, and a norm.

    As many parameters as will tell noise of one scale from another's, in as few operations as can be: they are traced
    again and again.
    """
    width = next(iter(config.size.values()))
    x_t = keras.layers.Input(image_shape)
    t, labels = (keras.layers.Input([], dtype=tf.int32) for _ in range(2))
    embedding = keras.layers.Add()(
        [
            layers.TimestepEmbedding(4, 16, name='timestep_embedding')(t),
            layers.ClassEmbedding(num_classes, 16, name='class_embedding')(labels),
        ]
    )
    h = keras.layers.Conv2D(width, 3, padding='same', name='conv_in')(x_t)
    of_embedding = keras.layers.Dense(width, name='block/embedding')(embedding)
    h = keras.layers.Add()([h, keras.layers.Reshape((1, 1, width))(of_embedding)])
    h = layers.GroupNorm(2, name='block/norm')(h)
    return keras.Model([x_t, t, labels], keras.layers.Conv2D(image_shape[-1], 1, name='conv_out')(h))


@contextlib.contextmanager
def small_networks():
    """Makes every network a small one."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(denoiser, 'build', build_small_network)
        yield


@pytest.fixture(name='small_network', scope='module')
def fixture_small_network():
    """Makes every network of a module a small one: what is tested does not depend on it, and a UNet traces slowly."""
    with small_networks():
        yield


@contextlib.contextmanager
def whole_network():
    """Undoes `small_network`: for what outlives the module that happens to ask for it first."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(denoiser, 'build', _BUILD)
        yield
