"""Measures layers of a residual block, forward and backward, when asked to; a case of settings.py, see measuring.py."""

import argparse
import pathlib
import sys

from tf_dpdiff import keras

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

_REPEATED = 4  # So that a step takes longer than its start.


def make_step(flags):
    """Returns the function that computes the gradients of a stack of norm, SiLU and 3x3 convolution."""
    import tensorflow as tf

    from tf_dpdiff.networks import layers

    channels_first = flags.layout == 'channels_first'
    norms = {
        'none': lambda: tf.identity,
        'fused': lambda: layers.GroupNorm(groups=8),
        'keras': lambda: keras.layers.GroupNormalization(8),
    }
    stack = []
    for _ in range(_REPEATED):
        convolution = keras.layers.Conv2D(flags.channels, 3, padding='same', data_format=flags.layout)
        stack += [norms[flags.norm](), tf.nn.silu, convolution]
    size = (flags.size, flags.size)
    shape = (flags.channels, *size) if channels_first else (*size, flags.channels)
    images = tf.random.stateless_normal([flags.images, *shape], (0, 0))

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(images)
            x = images
            for layer in stack:
                x = layer(x)
            loss = tf.reduce_sum(tf.square(x))
        return tape.gradient(loss, [images, *tape.watched_variables()])

    return gradients


def main():
    """Makes the step and serves it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--layout', choices=('channels_last', 'channels_first'), default='channels_last')
    parser.add_argument('--norm', choices=('none', 'fused', 'keras'), default='none')
    parser.add_argument('--channels', type=int, default=32)
    parser.add_argument('--size', type=int, default=28)
    parser.add_argument('--images', type=int, default=64)
    flags = parser.parse_args()
    from benchmarks import measuring

    gradients = make_step(flags)
    measuring.serve(lambda: [gradient.numpy() for gradient in gradients()])


if __name__ == '__main__':
    main()
