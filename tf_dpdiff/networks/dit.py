"""A diffusion transformer (DiT): patches of the image as tokens, timestep and class by adaptive layer norms."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import ClassVar

import numpy as np
import tensorflow as tf

from tf_dpdiff.keras import layers
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import layers as blocks
from tf_dpdiff.networks import precision


@dataclasses.dataclass(frozen=True)
class DiTConfig(denoiser.DenoiserConfig):
    """The shape of a DiT with adaLN-Zero blocks; as it stands, DiT-S/2.

    Differs from the paper in that the timestep enters by hidden_size sinusoids, not 256.

    Attributes:
      patch_size: Pixels a side of the square that is a token.
      hidden_size: Channels of a token, a multiple of 4 (rows and columns, sines and cosines) and of num_heads.
      depth: Number of blocks.
      num_heads: Attention heads of a block.
      mlp_ratio: Hidden units of a block's perceptron over hidden_size.
      compute_dtype: 'float32', or 'mixed_bfloat16': activations and products in bfloat16; variables, gradients, norms,
        softmaxes and the prediction stay in float32.

    References: Peebles and Xie 2022, arXiv:2212.09748, section 3.2.
    """

    kind: ClassVar[str] = 'dit'

    patch_size: int = 2
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    compute_dtype: str = 'float32'

    def __post_init__(self):
        for name in ('patch_size', 'hidden_size', 'depth', 'num_heads'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the DiT must be at least 1, got {getattr(self, name)}.')
        for divisor, what in ((4, '4'), (self.num_heads, f'num_heads={self.num_heads}')):
            if self.hidden_size % divisor:
                raise ValueError(f'hidden_size of the DiT must be a multiple of {what}, got {self.hidden_size}.')
        if not self.mlp_ratio * self.hidden_size >= 1.0:
            raise ValueError(f'mlp_ratio of the DiT must leave at least one hidden unit, got {self.mlp_ratio}.')
        precision.check(self.compute_dtype)

    @property
    def size(self) -> dict[str, int]:
        """Channels of a token, and how many blocks they go through."""
        return {'hidden_size': self.hidden_size, 'depth': self.depth}

    def check_image_shape(self, image_shape: Sequence[int]) -> None:
        """Refuses images that cannot be cut into patches."""
        blocks.check_patches(self.patch_size, *image_shape[:2])

    def connect(self, x_t, t, labels, dropout_seeds, *, num_classes):
        """Returns the prediction of the DiT, zero at first; see `denoiser.DenoiserConfig.connect`."""
        del dropout_seeds  # It has no dropout.
        policy = precision.policy(self.compute_dtype)
        of_t = blocks.TimestepEmbedding(self.hidden_size, self.hidden_size, name='timestep_embedding', dtype=policy)(t)
        of_label = blocks.ClassEmbedding(num_classes, self.hidden_size, name='class_embedding', dtype=policy)(labels)
        conditioning = layers.Add(name='embedding_sum', dtype=policy)([of_t, of_label])
        conditioning = layers.Activation('swish', name='embedding_swish', dtype=policy)(conditioning)

        h = blocks.ToPatches(self.patch_size, name='to_patches', dtype=policy)(x_t)
        h = Tokens(self.hidden_size, name='tokens', dtype=policy)(h)
        for i in range(self.depth):
            h = DiTBlock(self.num_heads, self.mlp_ratio, name=f'block_{i}', dtype=policy)([h, conditioning])
        h = FinalLayer(self.patch_size**2 * x_t.shape[-1], name='final', dtype=policy)([h, conditioning])
        return blocks.FromPatches(self.patch_size, name='from_patches', dtype='float32')(h)


class Tokens(layers.Layer):
    """A dense layer of each patch, plus the code of its place: [batch, rows, columns, features] to [..., units].

    Args:
      units: Width of the output, a multiple of 4.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units, name='dense', dtype=self.dtype_policy)

    def call(self, inputs):
        rows, columns = inputs.shape[1:3]
        code = position_code(rows, columns, self.units)
        return self.dense(inputs) + tf.constant(code, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), 'units': self.units}


def position_code(rows: int, columns: int, channels: int) -> np.ndarray:
    """Returns sines and cosines of each place's row, then of its column: float32 [rows, columns, channels]."""
    frequencies = 10000.0 ** -(np.arange(channels // 4) / (channels // 4))

    def code(count):
        angles = np.arange(count)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    shape = [rows, columns, channels // 2]
    of_rows, of_columns = np.broadcast_to(code(rows)[:, None], shape), np.broadcast_to(code(columns)[None], shape)
    return np.concatenate([of_rows, of_columns], axis=-1).astype(np.float32)


class DiTBlock(layers.Layer):
    """Self-attention, then a perceptron, each shifted, scaled and gated by the conditioning: adaLN-Zero.

    Takes tokens [batch, rows, columns, channels] and conditioning [batch, channels]; returns its tokens at first.

    Args:
      num_heads: Attention heads; a divisor of the channels.
      mlp_ratio: Hidden units of the perceptron over the channels.

    References: Peebles and Xie 2022, arXiv:2212.09748, figure 3.
    """

    def __init__(self, num_heads: int, mlp_ratio: float = 4.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[0][-1]
        dense = functools.partial(layers.Dense, dtype=self.dtype_policy)
        self.adaln = dense(6 * channels, kernel_initializer='zeros', name='adaln')
        self.qkv = dense(3 * channels, name='qkv')
        self.attention_out = dense(channels, name='attention_out')
        self.mlp_in = dense(int(self.mlp_ratio * channels), name='mlp_in')
        self.mlp_out = dense(channels, name='mlp_out')

    def call(self, inputs):
        x, conditioning = inputs
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _split(self.adaln(conditioning), 6)
        h = blocks.attend(self.qkv(_modulate(x, shift, scale)), self.num_heads)
        x += gate * self.attention_out(h)
        h = _gelu(self.mlp_in(_modulate(x, mlp_shift, mlp_scale)))
        return x + mlp_gate * self.mlp_out(h)

    def get_config(self):
        return {**super().get_config(), 'num_heads': self.num_heads, 'mlp_ratio': self.mlp_ratio}


class FinalLayer(layers.Layer):
    """Shifted and scaled by the conditioning, then a dense layer in float32; zero at first.

    Takes tokens [batch, rows, columns, channels] and conditioning [batch, channels].

    Args:
      units: Width of the output.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[0][-1]
        self.adaln = layers.Dense(2 * channels, kernel_initializer='zeros', name='adaln', dtype=self.dtype_policy)
        self.linear = layers.Dense(self.units, kernel_initializer='zeros', name='linear', dtype='float32')

    def call(self, inputs):
        x, conditioning = inputs
        shift, scale = _split(self.adaln(conditioning), 2)
        return self.linear(_modulate(x, shift, scale))

    def get_config(self):
        return {**super().get_config(), 'units': self.units}


def _split(of_examples, count: int):
    """Returns the parts of vectors [batch, count * channels], each to be broadcast over the tokens of its example."""
    return tf.split(tf.reshape(of_examples, [-1, 1, 1, of_examples.shape[-1]]), count, axis=-1)


def _modulate(x, shift, scale):
    """Returns the layer norm of each token, scaled by 1 + scale and shifted."""
    centred = tf.cast(x, tf.float32)
    centred -= tf.reduce_mean(centred, -1, keepdims=True)
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + 1e-6)
    return tf.cast(centred * inverse, x.dtype) * (1.0 + scale) + shift


def _gelu(x):
    """Returns the GELU by its approximation with a tanh, as products: `tf.nn.gelu` takes a power, which is slow."""
    return 0.5 * x * (1.0 + tf.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
