"""The building blocks of denoising networks, written so that `tf.vectorized_map` maps them without hidden loops."""

import dataclasses
import functools
import math

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.keras import layers
from tf_dpdiff.networks import adapters as adapters_lib
from tf_dpdiff.networks import convolution
from tf_dpdiff.networks import dropout as dropout_lib


class GroupNorm(layers.Layer):
    """Group normalization as per-channel sums, group sums and ONE multiply-add over the image, and so its gradient.

    The same function as `keras.layers.GroupNormalization` on images; on a CPU, where memory traffic is what a small
    UNet pays for, it is several times faster. Its gradient is written by hand: what the tape makes of it takes twice
    the passes over the image and five times the operations, and tracing time is what a short run pays for.

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
        # Used in float32 whatever the compute type is, as the statistics are.
        add_weight = functools.partial(self.add_weight, shape=[channels], dtype=tf.float32, experimental_autocast=False)
        self.gamma = add_weight('gamma', initializer='ones')
        self.beta = add_weight('beta', initializer='zeros')

    def call(self, inputs):

        @tf.custom_gradient
        def normalize(x, gamma, beta):
            return _group_norm(x, gamma, beta, num_groups=self._num_groups, epsilon=self.epsilon)

        return normalize(inputs, tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta))

    def get_config(self):
        return {**super().get_config(), 'groups': self.groups, 'epsilon': self.epsilon}


def _group_norm(x, gamma, beta, *, num_groups: int, epsilon: float):
    """Returns the normalized images and the function from their gradient to those of the arguments.

    Args:
      x: [images, height, width, channels].
      gamma: float32 [channels].
      beta: float32 [channels].
    """
    height, width, channels = x.shape[1:]
    group_size = channels // num_groups

    def by_group(of_channels):  # [..., channels] -> [..., groups, channels of a group]
        return tf.reshape(of_channels, [-1, num_groups, group_size])

    def over_image(of_channels):  # [images, groups, channels of a group] -> [images, 1, 1, channels]
        return tf.reshape(of_channels, [-1, 1, 1, channels])

    x32 = tf.cast(x, tf.float32)
    mean = tf.reduce_mean(by_group(tf.reduce_mean(x32, [1, 2])), -1, keepdims=True)
    mean_square = tf.reduce_mean(by_group(tf.reduce_mean(tf.square(x32), [1, 2])), -1, keepdims=True)
    variance = mean_square - tf.square(mean)
    inverse = tf.math.rsqrt(tf.maximum(variance, 0.0) + epsilon)
    scale = inverse * by_group(gamma)
    shift = by_group(beta) - mean * scale
    y = x * tf.cast(over_image(scale), x.dtype) + tf.cast(over_image(shift), x.dtype)

    def gradient(dy):
        dy32 = tf.cast(dy, tf.float32)
        sum_dy = by_group(tf.reduce_sum(dy32, [1, 2]))
        # Of dy times what is normalized, before gamma.
        sum_product = (by_group(tf.reduce_sum(dy32 * x32, [1, 2])) - mean * sum_dy) * inverse
        factor = inverse * by_group(gamma) / (height * width * group_size)
        through_mean = tf.reduce_sum(sum_dy * factor, -1, keepdims=True)
        # Rounding can take the variance below zero; it was raised to zero then and moves with nothing.
        through_variance = tf.reduce_sum(sum_product * factor, -1, keepdims=True)
        through_variance = tf.where(variance < 0.0, 0.0, through_variance * inverse)
        ones = tf.ones([group_size])
        dx = (
            dy32 * over_image(scale)
            - x32 * over_image(through_variance * ones)
            + over_image((mean * through_variance - through_mean) * ones)
        )
        of_channels = [tf.reshape(tf.reduce_sum(total, 0), [channels]) for total in (sum_product, sum_dy)]
        return (tf.cast(dx, x.dtype), *of_channels)

    return y, gradient


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
            **super().get_config(),
            'num_sinusoids': self.num_sinusoids,
            'units': self.units,
            'adapters': dataclasses.asdict(self.adapters),
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
        self.table = layers.Dense(
            units,
            use_bias=False,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.05),
            name='table',
            dtype=self.dtype_policy,
        )

    def call(self, labels):
        return self.table(tf.one_hot(labels, self.num_classes + 1, dtype=self.compute_dtype))

    def get_config(self):
        return {**super().get_config(), 'num_classes': self.num_classes, 'units': self.units}


class ResidualBlock(layers.Layer):
    """Norm, swish, convolution, plus the embedding, norm, swish, dropout, zero-initialised convolution, plus the input.

    Takes [image, embedding], and as a third input the seeds of `SeededDropout` where it has dropout.

    Args:
      channels: Channels of the output.
      groups: Groups of the normalizations.
      scale_shift: Whether the embedding scales and shifts after the second norm (Dhariwal and Nichol 2021) instead of
        being added before it (Ho et al. 2020).
      dropout_rate: In [0, 1); 0: no dropout.
      dropout_salt: Another number for each block of a network.
      adapters: Its 3x3 convolutions have the role 'residual', the dense layer of the embedding 'embedding'.
    """

    def __init__(
        self,
        channels: int,
        groups: int = 32,
        scale_shift: bool = False,
        dropout_rate: float = 0.0,
        dropout_salt: int = 0,
        adapters=adapters_lib.Adapters(),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = channels
        self.groups = groups
        self.scale_shift = scale_shift
        self.adapters = adapters_lib.Adapters.of(adapters)
        conv = functools.partial(self.adapters.conv2d, 'residual', channels, 3, padding='same', dtype=self.dtype_policy)
        self.norm_in = GroupNorm(groups, name='norm_in', dtype=self.dtype_policy)
        self.conv_in = conv(name='conv_in')
        self.dense = self.adapters.dense(
            'embedding', channels * (2 if scale_shift else 1), name='embedding_dense', dtype=self.dtype_policy
        )
        self.norm_out = GroupNorm(groups, name='norm_out', dtype=self.dtype_policy)
        self.dropout_rate = dropout_rate
        self.dropout_salt = dropout_salt
        self.dropout = None
        if dropout_rate:
            self.dropout = dropout_lib.SeededDropout(
                dropout_rate, dropout_salt, name='dropout', dtype=self.dtype_policy
            )
        self.conv_out = conv(name='conv_out', kernel_initializer='zeros')
        self.skip: layers.Layer | None = None

    def build(self, input_shape):
        super().build(input_shape)
        if input_shape[0][-1] != self.channels:
            self.skip = convolution.Conv2D(self.channels, 1, name='skip', dtype=self.dtype_policy)

    def call(self, inputs, training=None):
        x, embedding, *dropout_seeds = inputs
        h = self.conv_in(tf.nn.silu(self.norm_in(x)))
        shift = tf.reshape(self.dense(embedding), [-1, 1, 1, self.dense.units])
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
            **super().get_config(),
            'channels': self.channels,
            'groups': self.groups,
            'scale_shift': self.scale_shift,
            'dropout_rate': self.dropout_rate,
            'dropout_salt': self.dropout_salt,
            'adapters': dataclasses.asdict(self.adapters),
        }


def attend(qkv: tf.Tensor, num_heads: int) -> tf.Tensor:
    """Returns multi-head attention among the places of each example, [batch, height, width, channels].

    Args:
      qkv: [batch, height, width, 3 * channels], the queries, then the keys, then the values, each by heads.
      num_heads: A divisor of the channels.
    """
    height, width, channels = qkv.shape[1:]
    head_channels = channels // (3 * num_heads)
    qkv = tf.reshape(qkv, [-1, height * width, 3, num_heads, head_channels])
    qkv = tf.transpose(qkv, [2, 0, 3, 1, 4])  # [3, batch, heads, places, head_channels]
    q, k, v = tf.unstack(qkv)
    # The softmax is taken in float32 whatever the compute type is.
    logits = tf.cast(tf.matmul(q, k, transpose_b=True), tf.float32) / math.sqrt(head_channels)
    weights = tf.cast(tf.nn.softmax(logits), v.dtype)
    h = tf.transpose(tf.matmul(weights, v), [0, 2, 1, 3])
    return tf.reshape(h, [-1, height, width, num_heads * head_channels])


class SelfAttention(layers.Layer):
    """Multi-head self-attention over the pixels of an image, with a residual connection.

    Args:
      head_channels: Channels of a head; the channels of the input must be a multiple of it.
      groups: Groups of the normalization.
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
        self.out = self.adapters.dense(
            'attention', channels, kernel_initializer='zeros', name='out', dtype=self.dtype_policy
        )

    def call(self, x):
        return x + self.out(attend(self.qkv(self.norm(x)), x.shape[-1] // self.head_channels))

    def get_config(self):
        return {
            **super().get_config(),
            'head_channels': self.head_channels,
            'groups': self.groups,
            'adapters': dataclasses.asdict(self.adapters),
        }


class Upsample(layers.Layer):
    """Doubles height and width by repeating pixels, then a convolution.

    Repeats by broadcasting: the gradient of a resize op has no vectorized conversion.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.conv = convolution.Conv2D(channels, 3, padding='same', name='conv', dtype=self.dtype_policy)

    def call(self, x):
        height, width, channels = x.shape[1:]
        x = tf.reshape(x, [-1, height, 1, width, 1, channels])
        x = tf.tile(x, [1, 1, 2, 1, 2, 1])
        return self.conv(tf.reshape(x, [-1, 2 * height, 2 * width, channels]))

    def get_config(self):
        return {**super().get_config(), 'channels': self.channels}


def check_patches(patch_size: int, height: int, width: int) -> None:
    """Refuses images that cannot be cut into patches.

    Raises:
      ValueError: names both sizes.
    """
    if height % patch_size or width % patch_size:
        raise ValueError(
            f'images of {height}x{width} cannot be cut into patches of {patch_size}x{patch_size}: take a patch_size '
            'that divides both.'
        )


class ToPatches(layers.Layer):
    """Makes the pixels of each patch the channels of one: [batch, h, w, c] to [batch, h / p, w / p, p * p * c].

    Args:
      patch_size: p, the side of a patch in pixels; a divisor of height and width.
    """

    def __init__(self, patch_size: int, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = patch_size

    def call(self, inputs):
        height, width, channels = inputs.shape[1:]
        p = self.patch_size
        cut = tf.reshape(inputs, [-1, height // p, p, width // p, p, channels])
        return tf.reshape(tf.transpose(cut, [0, 1, 3, 2, 4, 5]), [-1, height // p, width // p, p * p * channels])

    def get_config(self):
        return {**super().get_config(), 'patch_size': self.patch_size}


class FromPatches(ToPatches):
    """The inverse of `ToPatches`: [batch, h / p, w / p, p * p * c] to [batch, h, w, c]."""

    def call(self, inputs):
        height, width, channels = inputs.shape[1:]
        p = self.patch_size
        cut = tf.reshape(inputs, [-1, height, width, p, p, channels // p**2])
        return tf.reshape(tf.transpose(cut, [0, 1, 3, 2, 4, 5]), [-1, height * p, width * p, channels // p**2])
