"""The denoising network: a class-conditional UNet."""

from collections.abc import Sequence
import dataclasses
import functools
import itertools

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.networks import adapters
from tf_dpdiff.networks import convolution
from tf_dpdiff.networks import layers as blocks

layers = keras.layers

COMPUTE_DTYPES = ('float32', 'mixed_bfloat16')


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet.

    Attributes:
      base_channels: Channels of the first level.
      channel_multipliers: One a level; each level after the first has half the height and width of the one before.
      num_res_blocks: Residual blocks a level on the way down; one more on the way up.
      attention_resolutions: Heights of the levels that have self-attention.
      middle_attention: Whether the middle block has self-attention.
      head_channels: Channels of an attention head.
      groups: Of the group normalizations.
      patch_size: The network sees squares of so many pixels a side as one pixel of patch_size^2 times the channels, so
        that its first level has a patch_size-th of the height and width: several times quicker on a CPU. 1: as it is.
      scale_shift: How the embedding enters; see `layers.ResidualBlock`.
      dropout: Rate of the dropout in the residual blocks, in [0, 1); above 0 the network has a fourth input, see
        `build_unet`.
      compute_dtype: 'float32', or 'mixed_bfloat16': activations and products in bfloat16; variables, gradients, what
        norms and softmaxes add up, and the prediction stay in float32.
      adapter_rank: Rank of the low-rank adapters (DP-LoRA); 0: none, and the two that follow mean nothing.
      adapter_alpha: The adapters' outputs are multiplied by adapter_alpha / adapter_rank.
      adapter_targets: Which layers have adapters: 'attention' (projections to queries, keys and values, and from the
        heads), 'residual' (the 3x3 convolutions of residual blocks), 'embedding' (the dense layers of the timestep and
        of the embedding in each block).

    References: Ho et al. 2020, arXiv:2006.11239, appendix B; Dhariwal and Nichol 2021, arXiv:2105.05233; for adapters
      Hu et al. 2021, arXiv:2106.09685, and Tsai et al. 2024, arXiv:2406.01355.
    """

    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 1
    attention_resolutions: tuple[int, ...] = ()
    middle_attention: bool = True
    head_channels: int = 64
    groups: int = 32
    patch_size: int = 1
    scale_shift: bool = False
    dropout: float = 0.0
    compute_dtype: str = 'float32'
    adapter_rank: int = 0
    adapter_alpha: float = 8.0
    adapter_targets: tuple[str, ...] = ('attention',)

    def __post_init__(self):
        for name in ('base_channels', 'num_res_blocks', 'head_channels', 'groups', 'patch_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the UNet must be at least 1, got {getattr(self, name)}.')
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(
                f'channel_multipliers must be whole numbers of at least 1, got {self.channel_multipliers}.'
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f'dropout must be in [0, 1), got {self.dropout}.')
        if self.compute_dtype == 'mixed_float16':
            raise ValueError(
                "compute_dtype='mixed_float16' needs loss scaling, which would scale gradients before they "
                "are clipped; use 'mixed_bfloat16', which does not."
            )
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f'compute_dtype must be one of {COMPUTE_DTYPES}, got {self.compute_dtype!r}.')
        if self.adapter_rank < 0:
            raise ValueError(f'adapter_rank must be at least 0, got {self.adapter_rank}.')
        if not self.adapter_alpha > 0.0:
            raise ValueError(f'adapter_alpha must be > 0, got {self.adapter_alpha}.')
        if not self.adapter_targets or not set(self.adapter_targets) <= set(adapters.ROLES):
            raise ValueError(f'adapter_targets must name some of {adapters.ROLES}, got {self.adapter_targets}.')


def build_unet(config: UNetConfig, image_shape: Sequence[int], num_classes: int) -> keras.Model:
    """Builds the network; `denoise` calls it.

    The names of its variables are paths that depend on the configuration alone.

    Args:
      config: Its shape.
      image_shape: (height, width, channels); height and width must be divisible by patch_size, and then by 2 for each
        level after the first.
      num_classes: Number of classes; the label num_classes stands for "no class".

    Returns:
      A Keras model of [x_t float [batch, height, width, channels], t int32 [batch], labels int32 [batch]] to the
      prediction, float32 [batch, height, width, channels]. With dropout it has a fourth input: dropout_seeds, int32
      [batch], see `dropout.SeededDropout`.

    Raises:
      ValueError: if the image cannot be cut into patches or halved as often as there are levels, or if adapters are
        asked for where there is no attention.
    """
    height, width, image_channels = image_shape
    _check_fits(config, height, width)
    x_t = layers.Input([height, width, image_channels], name='x_t')
    t, labels = (layers.Input([], dtype=tf.int32, name=name) for name in ('t', 'labels'))
    seeds = [layers.Input([], dtype=tf.int32, name='dropout_seeds')] if config.dropout else []

    # Given to each layer, so that the policy of the process is neither used nor changed.
    policy = keras.mixed_precision.Policy(config.compute_dtype)
    conv = functools.partial(convolution.Conv2D, kernel_size=3, padding='same', dtype=policy)
    adapted = adapters.Adapters(config.adapter_rank, config.adapter_alpha, config.adapter_targets)
    embedding = _embed(t, labels, config, num_classes, adapted, policy)
    salts = itertools.count()

    def residual(h, channels, name):
        block = blocks.ResidualBlock(
            channels, config.groups, config.scale_shift, config.dropout, next(salts), adapted, name=name, dtype=policy
        )
        return block([h, embedding, *seeds])

    def attention(h, name):
        return blocks.SelfAttention(config.head_channels, config.groups, adapted, name=name, dtype=policy)(h)

    h = blocks.ToPatches(config.patch_size, name='to_patches', dtype=policy)(x_t) if config.patch_size > 1 else x_t
    h = conv(config.base_channels, name='conv_in')(h)
    skips: list[tf.Tensor] = [h]
    for level, multiplier in enumerate(config.channel_multipliers):
        channels = config.base_channels * multiplier
        if level:
            h = conv(h.shape[-1], strides=2, name=f'down_{level}_downsample')(h)
            skips.append(h)
        for block in range(config.num_res_blocks):
            h = residual(h, channels, f'down_{level}_{block}')
            if h.shape[1] in config.attention_resolutions:
                h = attention(h, f'down_{level}_{block}_attention')
            skips.append(h)
    h = residual(h, h.shape[-1], 'middle_0')
    if config.middle_attention:
        h = attention(h, 'middle_attention')
    h = residual(h, h.shape[-1], 'middle_1')
    for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
        for block in range(config.num_res_blocks + 1):
            h = layers.Concatenate(name=f'up_{level}_{block}_concat', dtype=policy)([h, skips.pop()])
            h = residual(h, config.base_channels * multiplier, f'up_{level}_{block}')
            if h.shape[1] in config.attention_resolutions:
                h = attention(h, f'up_{level}_{block}_attention')
        if level:
            h = blocks.Upsample(h.shape[-1], name=f'up_{level}_upsample', dtype=policy)(h)
    out = _predict(h, config, image_channels, conv, policy)
    return keras.Model([x_t, t, labels, *seeds], out, name='unet')


def _check_fits(config: UNetConfig, height: int, width: int) -> None:
    """Refuses images that cannot be cut or halved for each level, and adapters of attention where there is none."""
    if height % config.patch_size or width % config.patch_size:
        raise ValueError(
            f'images of {height}x{width} cannot be cut into patches of {config.patch_size}x'
            f'{config.patch_size}: take a patch_size that divides both.'
        )
    height, width = height // config.patch_size, width // config.patch_size
    what = 'images' if config.patch_size == 1 else 'arrays of patches'
    num_halvings = len(config.channel_multipliers) - 1
    if height % 2**num_halvings or width % 2**num_halvings:
        raise ValueError(
            f'{what} of {height}x{width} cannot be halved {num_halvings} times: take fewer channel_multipliers.'
        )
    heights = {height // 2**level for level in range(num_halvings + 1)}
    has_attention = config.middle_attention or heights.intersection(config.attention_resolutions)
    if config.adapter_rank and 'attention' in config.adapter_targets and not has_attention:
        raise ValueError(
            f'adapter_targets={config.adapter_targets} names attention, and the network has none: set '
            "middle_attention, or adapt 'residual' or 'embedding'."
        )


def _embed(t, labels, config: UNetConfig, num_classes: int, adapted: adapters.Adapters, policy) -> tf.Tensor:
    """Returns the embedding of timestep and label that enters every residual block."""
    units = 4 * config.base_channels
    of_t = blocks.TimestepEmbedding(config.base_channels, units, adapted, name='timestep_embedding', dtype=policy)(t)
    of_label = blocks.ClassEmbedding(num_classes, units, name='class_embedding', dtype=policy)(labels)
    embedding = layers.Add(name='embedding_sum', dtype=policy)([of_t, of_label])
    return layers.Activation('swish', name='embedding_swish', dtype=policy)(embedding)


def _predict(h: tf.Tensor, config: UNetConfig, image_channels: int, conv, policy) -> tf.Tensor:
    """Returns the prediction of what the last level has left: zero at first."""
    h = blocks.GroupNorm(config.groups, name='out_norm', dtype=policy)(h)
    h = layers.Activation('swish', name='out_swish', dtype=policy)(h)
    out_channels = image_channels * config.patch_size**2
    out = conv(out_channels, kernel_initializer='zeros', dtype='float32', name='conv_out')(h)
    if config.patch_size == 1:
        return out
    return blocks.FromPatches(config.patch_size, name='from_patches', dtype='float32')(out)


def denoise(
    model: keras.Model,
    x_t: tf.Tensor,
    t: tf.Tensor,
    labels: tf.Tensor,
    *,
    dropout_seeds: tf.Tensor | None = None,
    training: bool = False,
) -> tf.Tensor:
    """Calls the network, whether or not it has dropout.

    Args:
      model: From `build_unet`.
      x_t: float [batch, height, width, channels].
      t: int32 [batch].
      labels: int32 [batch].
      dropout_seeds: int32 [batch], what the dropout of each image is drawn from. Needed to train a network with
        dropout; means nothing otherwise.
      training: Whether dropout is on.

    Returns:
      The prediction, float32 [batch, height, width, channels].

    Raises:
      ValueError: if a network with dropout is trained without seeds.
    """
    inputs = [x_t, t, labels]
    if len(model.inputs) == 4:
        if training and dropout_seeds is None:
            raise ValueError('a network with dropout is trained with dropout_seeds, one a view.')
        inputs.append(tf.zeros_like(t, tf.int32) if dropout_seeds is None else dropout_seeds)
    return model(inputs, training=training)


def select_variables(model: keras.Model, patterns: Sequence[str]) -> list[tf.Variable]:
    """Returns the trainable variables whose name contains one of the patterns, in the model's order.

    Args:
      model: The network.
      patterns: Substrings of variable names such as 'norm', 'embedding', 'conv_out'; empty for all variables.

    Raises:
      ValueError: for a pattern that matches nothing.
    """
    if not patterns:
        return list(model.trainable_variables)
    for pattern in patterns:
        if not any(pattern in v.name for v in model.trainable_variables):
            parts = sorted({part for v in model.trainable_variables for part in v.name.split(':')[0].split('/')})
            raise ValueError(f'no trainable variable matches {pattern!r}; name one of: {", ".join(parts)}.')
    return [v for v in model.trainable_variables if any(pattern in v.name for pattern in patterns)]
