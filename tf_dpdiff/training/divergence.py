"""Has a run diverged? Told from what it may tell: losses of public images, weights, predictions on public noise.

A run that diverges stops, and everyone can see that it did. So in a private stage nothing may be looked at but what the
ledger holds already: the weights after a step follow from its noisy sum, and the predictions of these weights on noise
drawn from a public seed follow from the weights. Both are post-processing. The loss and the gradients of private images
are not: a run that stopped because of them would tell of the images without noise, at no place in the accountant.

That the weights are finite is not enough. A unit whose gradient is not finite adds nothing to the sum, so where all of
the network's activations have overflowed, private training goes on with noise alone, and its weights stay finite.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.networks import denoiser

_SEED = 0  # Of the noise that the predictions are made on; public.
_TIMESTEPS = (1, 100, 400, 900)


class DivergedError(FloatingPointError):
    """The training has left the finite numbers, and what it has made is of no use."""


class NetworkCheck:
    """Tells whether networks are still of use.

    Args:
      networks: From `denoiser.build`, of one shape; whatever the strategy that they belong to.
      image_shape: (height, width, channels).
      num_classes: Of the networks.
    """

    def __init__(self, networks: Sequence[keras.Model], image_shape: tuple[int, int, int], num_classes: int):
        self._networks = list(networks)
        variables = [v for network in networks for v in network.variables if v.dtype.is_floating]
        self._are_finite = tf.function(lambda: all_finite(variables), autograph=False)
        noise = tf.random.stateless_normal([len(_TIMESTEPS), *image_shape], [_SEED, 0], alg='philox')
        self._view = noise, tf.constant(_TIMESTEPS), tf.range(len(_TIMESTEPS)) % num_classes

    def weights_are_finite(self) -> bool:
        """Returns whether all weights are; quick enough to be asked after each step."""
        return bool(self._are_finite())

    def predictions_are_finite(self) -> bool:
        """Returns whether the networks predict finite numbers on public noise: a forward pass of a few images each."""
        return bool(all_finite([denoiser.denoise(network, *self._view) for network in self._networks]))


def check_released(network: keras.Model, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Refuses to release a network that is of no use.

    Raises:
      DivergedError: if its weights, or its predictions on public noise, are not finite.
    """
    check = NetworkCheck([network], image_shape, num_classes)
    if not check.weights_are_finite() or not check.predictions_are_finite():
        raise DivergedError(
            'the weights of the run, or what they predict, are not finite: its training has diverged, '
            'and there is nothing to release. Train anew with a lower learning_rate in another '
            '--workdir.'
        )


def all_finite(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns whether all numbers of some tensors are finite, a bool scalar."""
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])
