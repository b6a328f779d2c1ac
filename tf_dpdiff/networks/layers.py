"""The building blocks of the UNet, written so that `tf.vectorized_map` maps them without hidden loops."""

import dataclasses
import functools
import math

import tensorflow as tf

from tf_dpdiff.networks import adapters as adapters_lib
from tf_dpdiff.networks import dropout as dropout_lib

layers = tf.keras.layers


class GroupNorm(layers.Layer):
    """Group normalization as per-channel sums, group sums and ONE multiply-add over the image.

    The same function as `tf.keras.layers.GroupNormalization` on images; on a CPU, where memory traffic is what a small
    UNet pays for, it is several times faster.

    Args:
      groups: Number of groups; lowered to the largest divisor of the channels that is not above it.
      epsilon: Added to the variance.

    References: Wu and He 2018, arXiv:1803.08494.
    """

    def __init__(self, groups: int = 32, epsilon: float = 1e-5, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[-1]
        self._num_groups = max(g for g in range(1, self.groups + 1) if channels % g == 0)
        self.gamma = self.add_weight('gamma', [channels], initializer='ones')
        self.beta = self.add_weight('beta', [channels], initializer='zeros')

    def call(self, inputs):
        channels = inputs.shape[-1]
        # The statistics are taken in float32 whatever the compute type is.
        x = tf.cast(inputs, tf.float32)
        moments = tf.concat([tf.reduce_mean(x, [1, 2]), tf.reduce_mean(tf.square(x), [1, 2])], axis=-1)
        moments = tf.reshape(moments, [-1, 2, self._num_groups, channels // self._num_groups])
        moments = tf.reduce_mean(moments, axis=-1, keepdims=True)
        moments = tf.repeat(moments, channels // self._num_groups, axis=-1)
        moments = tf.reshape(moments, [-1, 2, channels])
        mean, variance = moments[:, 0], tf.maximum(moments[:, 1] - tf.square(moments[:, 0]), 0.0)
        scale = tf.math.rsqrt(variance + self.epsilon) * tf.cast(self.gamma, tf.float32)
        shift = tf.cast(self.beta, tf.float32) - mean * scale
        return inputs * tf.cast(scale, inputs.dtype)[:, None, None] + tf.cast(shift, inputs.dtype)[:, None, None]

    def get_config(self):
        return {**super().get_config(), 'groups': self.groups, 'epsilon': self.epsilon}


class TimestepEmbedding(layers.Layer):
    """Sinusoids of the timestep, then two dense layers.

    Args:
      num_sinusoids: Width of the sinusoidal code.
      units: Width of the output.
      adapters: Its dense layers have the role 'embedding'.

    References: Ho et al. 2020, arXiv:2006.11239, appendix B.
    """

    def __init__(self, num_sinusoids: int, units: int, adapters=adapters_lib.Adapters(), **kwargs):
        super().__init__(**kwargs)
        self.num_sinusoids = num_sinusoids
        self.units = units
        self.adapters = adapters_lib.Adapters.of(adapters)
        self.dense_in = self.adapters.dense('embedding', units, name='dense_in', dtype=self.dtype_policy)
        self.dense_out = self.adapters.dense('embedding', units, name='dense_out', dtype=self.dtype_policy)

    def call(self, t):
        half = self.num_sinusoids // 2
        frequencies = tf.exp(-math.log(10000.0) * tf.range(half, dtype=tf.float32) / half)
        angles = tf.cast(t, tf.float32)[:, None] * frequencies[None]
        code = tf.concat([tf.cos(angles), tf.sin(angles)], axis=-1)
        return self.dense_out(tf.nn.silu(self.dense_in(tf.cast(code, self.compute_dtype))))

    def get_config(self):
        return {
            **super().get_config(), 'num_sinusoids': self.num_sinusoids,
            'units': self.units,
            'adapters': dataclasses.asdict(self.adapters)
        }


class ClassEmbedding(layers.Layer):
    """A learnt vector for each class, as a matrix product.

    A look-up (`layers.Embedding`) becomes a loop under `tf.vectorized_map`; a product with one-hot vectors does not.

    Args:
      num_classes: Number of classes; the label num_classes stands for "no class".
      units: Width of the output.
    """

    def __init__(self, num_classes: int, units: int, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.units = units
        self.table = layers.Dense(units,
                                  use_bias=False,
                                  kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.05),
                                  name='table',
                                  dtype=self.dtype_policy)

    def call(self, labels):
        return self.table(tf.one_hot(labels, self.num_classes + 1, dtype=self.compute_dtype))

    def get_config(self):
        return {**super().get_config(), 'num_classes': self.num_classes, 'units': self.units}


class ResidualBlock(layers.Layer):
    """Norm, swish, convolution, plus the embedding, norm, swish, dropout, zero-initialised convolution, plus the input.

    Takes [image, embedding], and as a third input the seeds of `SeededDropout` where it has dropout.

    Args:
      channels: Of the output.
      groups: Of the normalizations.
      scale_shift: Whether the embedding scales and shifts after the second norm (Dhariwal and Nichol 2021) instead of
        being added before it (Ho et al. 2020).
      dropout_rate: In [0, 1); 0: no dropout.
      dropout_salt: Another number for each block of a network.
      adapters: Its 3x3 convolutions have the role 'residual', the dense layer of the embedding 'embedding'.
    """

    def __init__(self,
                 channels: int,
                 groups: int = 32,
                 scale_shift: bool = False,
                 dropout_rate: float = 0.0,
                 dropout_salt: int = 0,
                 adapters=adapters_lib.Adapters(),
                 **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.groups = groups
        self.scale_shift = scale_shift
        self.adapters = adapters_lib.Adapters.of(adapters)
        conv = functools.partial(self.adapters.conv2d, 'residual', channels, 3, padding='same', dtype=self.dtype_policy)
        self.norm_in = GroupNorm(groups, name='norm_in', dtype=self.dtype_policy)
        self.conv_in = conv(name='conv_in')
        self.dense = self.adapters.dense('embedding',
                                         channels * (2 if scale_shift else 1),
                                         name='embedding_dense',
                                         dtype=self.dtype_policy)
        self.norm_out = GroupNorm(groups, name='norm_out', dtype=self.dtype_policy)
        self.dropout_rate = dropout_rate
        self.dropout_salt = dropout_salt
        self.dropout = None
        if dropout_rate:
            self.dropout = dropout_lib.SeededDropout(dropout_rate,
                                                     dropout_salt,
                                                     name='dropout',
                                                     dtype=self.dtype_policy)
        self.conv_out = conv(name='conv_out', kernel_initializer='zeros')
        self.skip = None

    def build(self, input_shape):
        super().build(input_shape)
        if input_shape[0][-1] != self.channels:
            self.skip = layers.Conv2D(self.channels, 1, name='skip', dtype=self.dtype_policy)

    def call(self, inputs, training=None):
        x, embedding, *dropout_seeds = inputs
        h = self.conv_in(tf.nn.silu(self.norm_in(x)))
        shift = self.dense(embedding)[:, None, None]
        if self.scale_shift:
            scale, shift = tf.split(shift, 2, axis=-1)
            h = self.norm_out(h) * (1.0 + scale) + shift
        else:
            h = self.norm_out(h + shift)
        h = tf.nn.silu(h)
        if self.dropout is not None:
            h = self.dropout([h, *dropout_seeds], training=training)
        h = self.conv_out(h)
        return h + (x if self.skip is None else self.skip(x))

    def get_config(self):
        return {
            **super().get_config(), 'channels': self.channels,
            'groups': self.groups,
            'scale_shift': self.scale_shift,
            'dropout_rate': self.dropout_rate,
            'dropout_salt': self.dropout_salt,
            'adapters': dataclasses.asdict(self.adapters)
        }


class SelfAttention(layers.Layer):
    """Multi-head self-attention over the pixels of an image, with a residual connection.

    Args:
      head_channels: Channels of a head; the channels of the input must be a multiple of it.
      groups: Of the normalization.
      adapters: Its two dense layers have the role 'attention'.

    References: Dhariwal and Nichol 2021, arXiv:2105.05233, section 3.
    """

    def __init__(self, head_channels: int = 64, groups: int = 32, adapters=adapters_lib.Adapters(), **kwargs):
        super().__init__(**kwargs)
        self.head_channels = head_channels
        self.groups = groups
        self.adapters = adapters_lib.Adapters.of(adapters)
        self.norm = GroupNorm(groups, name='norm', dtype=self.dtype_policy)

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[-1]
        if channels % self.head_channels:
            raise ValueError(f'{channels} channels are not a multiple of head_channels={self.head_channels}.')
        self.qkv = self.adapters.dense('attention', 3 * channels, name='qkv', dtype=self.dtype_policy)
        self.out = self.adapters.dense('attention',
                                       channels,
                                       kernel_initializer='zeros',
                                       name='out',
                                       dtype=self.dtype_policy)

    def call(self, x):
        height, width, channels = x.shape[1:]
        heads = channels // self.head_channels
        qkv = tf.reshape(self.qkv(self.norm(x)), [-1, height * width, 3, heads, self.head_channels])
        qkv = tf.transpose(qkv, [2, 0, 3, 1, 4])  # [3, batch, heads, pixels, head_channels]
        q, k, v = qkv[0], qkv[1], qkv[2]
        # The softmax is taken in float32 whatever the compute type is.
        logits = tf.cast(tf.matmul(q, k, transpose_b=True), tf.float32) / math.sqrt(self.head_channels)
        weights = tf.cast(tf.nn.softmax(logits), v.dtype)
        h = tf.transpose(tf.matmul(weights, v), [0, 2, 1, 3])
        return x + self.out(tf.reshape(h, [-1, height, width, channels]))

    def get_config(self):
        return {
            **super().get_config(), 'head_channels': self.head_channels,
            'groups': self.groups,
            'adapters': dataclasses.asdict(self.adapters)
        }


class Upsample(layers.Layer):
    """Doubles height and width by repeating pixels, then a convolution.

    Repeats by broadcasting: the gradient of a resize op has no vectorized conversion.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.conv = layers.Conv2D(channels, 3, padding='same', name='conv', dtype=self.dtype_policy)

    def call(self, x):
        height, width, channels = x.shape[1:]
        x = tf.reshape(x, [-1, height, 1, width, 1, channels])
        x = tf.tile(x, [1, 1, 2, 1, 2, 1])
        return self.conv(tf.reshape(x, [-1, 2 * height, 2 * width, channels]))

    def get_config(self):
        return {**super().get_config(), 'channels': self.channels}
