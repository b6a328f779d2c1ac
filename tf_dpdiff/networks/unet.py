"""The denoising network: a class-conditional UNet."""

import dataclasses
from typing import List, Sequence, Tuple

import tensorflow as tf

from tf_dpdiff.networks import layers as blocks

layers = tf.keras.layers


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
      scale_shift: How the embedding enters; see `layers.ResidualBlock`.

    References: Ho et al. 2020, arXiv:2006.11239, appendix B; Dhariwal and Nichol 2021, arXiv:2105.05233.
    """
    base_channels: int = 64
    channel_multipliers: Tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 1
    attention_resolutions: Tuple[int, ...] = ()
    middle_attention: bool = True
    head_channels: int = 64
    groups: int = 32
    scale_shift: bool = False

    def __post_init__(self):
        for name in ('base_channels', 'num_res_blocks', 'head_channels', 'groups'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the UNet must be at least 1, got {getattr(self, name)}.')
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(
                f'channel_multipliers must be whole numbers of at least 1, got {self.channel_multipliers}.')


def build_unet(config: UNetConfig, image_shape: Sequence[int], num_classes: int) -> tf.keras.Model:
    """Builds the network.

    Args:
      config: Its shape.
      image_shape: (height, width, channels); height and width must be divisible by 2 for each level after the first.
      num_classes: Number of classes; the label num_classes stands for "no class".

    Returns:
      A Keras model of [x_t float [batch, height, width, channels], t int32 [batch], labels int32 [batch]] to the
      prediction, float32 [batch, height, width, channels].

    Raises:
      ValueError: if the image cannot be halved as often as there are levels.
    """
    height, width, image_channels = image_shape
    factor = 2**(len(config.channel_multipliers) - 1)
    if height % factor or width % factor:
        raise ValueError(
            f'images of {height}x{width} cannot be halved {len(config.channel_multipliers) - 1} times: take fewer '
            'channel_multipliers.')
    x_t = layers.Input([height, width, image_channels], name='x_t')
    t = layers.Input([], dtype=tf.int32, name='t')
    labels = layers.Input([], dtype=tf.int32, name='labels')

    width_embedding = 4 * config.base_channels
    embedding = blocks.TimestepEmbedding(config.base_channels, width_embedding, name='timestep_embedding')(t)
    embedding = layers.Add(name='embedding_sum')(
        [embedding, blocks.ClassEmbedding(num_classes, width_embedding, name='class_embedding')(labels)])
    embedding = layers.Activation('swish', name='embedding_swish')(embedding)

    def residual(h, channels, name):
        return blocks.ResidualBlock(channels, config.groups, config.scale_shift, name=name)([h, embedding])

    def attention(h, name):
        return blocks.SelfAttention(config.head_channels, config.groups, name=name)(h)

    h = layers.Conv2D(config.base_channels, 3, padding='same', name='conv_in')(x_t)
    skips: List[tf.Tensor] = [h]
    for level, multiplier in enumerate(config.channel_multipliers):
        channels = config.base_channels * multiplier
        if level:
            h = layers.Conv2D(h.shape[-1], 3, strides=2, padding='same', name=f'down_{level}_downsample')(h)
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
            h = layers.Concatenate(name=f'up_{level}_{block}_concat')([h, skips.pop()])
            h = residual(h, config.base_channels * multiplier, f'up_{level}_{block}')
            if h.shape[1] in config.attention_resolutions:
                h = attention(h, f'up_{level}_{block}_attention')
        if level:
            h = blocks.Upsample(h.shape[-1], name=f'up_{level}_upsample')(h)
    h = layers.Activation('swish', name='out_swish')(blocks.GroupNorm(config.groups, name='out_norm')(h))
    out = layers.Conv2D(image_channels, 3, padding='same', kernel_initializer='zeros', dtype='float32',
                        name='conv_out')(h)
    return tf.keras.Model([x_t, t, labels], out, name='unet')


def select_variables(model: tf.keras.Model, patterns: Sequence[str]) -> List[tf.Variable]:
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
