"""Low-rank adapters: what little is trained in place of large kernels, so that less noise is needed."""

import dataclasses
from typing import Any

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.keras import layers
from tf_dpdiff.networks import convolution

# What this has from Keras comes from the class beside it.
_Layer: Any = object

ROLES = ('attention', 'residual', 'embedding')


class _Adapted(_Layer):
    """Adds alpha / rank * up(down(x)) to a layer W: with up zero at first, what W is.

    A mix-in, to keep the layer's own variables under their own names: weights of a network without adapters fit.
    """

    def __init__(self, *args, adapter_rank: int, adapter_alpha: float, **kwargs):
        super().__init__(*args, **kwargs)
        if self.activation is not keras.activations.linear:
            raise ValueError(f'layer {self.name!r}: what is adapted has no activation; apply it to the sum.')
        self.adapter_rank = adapter_rank
        self.adapter_alpha = adapter_alpha

    def build(self, input_shape):
        super().build(input_shape)
        # Weights of their own policy: variables in float32, used in the compute type.
        self.adapter_down = self.add_weight(
            'adapter_down', [*self.kernel.shape[:-1], self.adapter_rank], initializer='lecun_normal'
        )
        self.adapter_up = self.add_weight('adapter_up', [self.adapter_rank, self.kernel.shape[-1]], initializer='zeros')

    def call(self, inputs):
        # The second factor is a product over the channels, also after a convolution: the gradient of a 1x1 convolution
        # would be one more loop over units.
        low_rank = tf.tensordot(self._down(inputs), self.adapter_up, 1)
        return super().call(inputs) + low_rank * (self.adapter_alpha / self.adapter_rank)

    def get_config(self):
        return {**super().get_config(), 'adapter_rank': self.adapter_rank, 'adapter_alpha': self.adapter_alpha}


class AdaptedDense(_Adapted, layers.Dense):
    """A dense layer with a low-rank adapter.

    Args:
      units: Width of the output.
      adapter_rank: Rank of the adapter, at least 1.
      adapter_alpha: The adapter's output is multiplied by adapter_alpha / adapter_rank.

    References: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    def _down(self, inputs):
        return tf.tensordot(inputs, self.adapter_down, 1)


class AdaptedConv2D(_Adapted, convolution.Conv2D):
    """A convolution with a low-rank adapter: one of the same size to adapter_rank channels, then one of 1x1.

    Args:
      filters: Channels of the output.
      kernel_size: As of `keras.layers.Conv2D`.
      adapter_rank: Rank of the adapter, at least 1.
      adapter_alpha: The adapter's output is multiplied by adapter_alpha / adapter_rank.

    References: Hu et al. 2021, arXiv:2106.09685, section 4.1, for the product of matrices that this is.
    """

    def _down(self, inputs):
        return self.convolution_op(inputs, self.adapter_down)


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Which layers of a network get an adapter; makes the layers.

    Attributes:
      rank: 0: none.
      alpha: Adapters' outputs are multiplied by alpha / rank.
      targets: Roles of the layers that get one; see ROLES.
    """

    rank: int = 0
    alpha: float = 8.0
    targets: tuple[str, ...] = ('attention',)

    @classmethod
    def of(cls, value: Any) -> 'Adapters':
        """Returns a value that is one, or that was turned into a dict by the configuration of a layer."""
        return value if isinstance(value, cls) else cls(**value)

    def dense(self, role: str, units: int, **kwargs) -> layers.Layer:
        """Returns a dense layer, adapted if its role is a target."""
        if self.rank and role in self.targets:
            return AdaptedDense(units, adapter_rank=self.rank, adapter_alpha=self.alpha, **kwargs)
        return layers.Dense(units, **kwargs)

    def conv2d(self, role: str, filters: int, kernel_size: int, **kwargs) -> layers.Layer:
        """Returns a convolution, adapted if its role is a target."""
        if self.rank and role in self.targets:
            return AdaptedConv2D(filters, kernel_size, adapter_rank=self.rank, adapter_alpha=self.alpha, **kwargs)
        return convolution.Conv2D(filters, kernel_size, **kwargs)
