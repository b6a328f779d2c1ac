"""The denoising network: a class-conditional UNet."""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
from typing import ClassVar

import tensorflow as tf

from tf_dpdiff.keras import layers
from tf_dpdiff.networks import adapters
from tf_dpdiff.networks import convolution
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import layers as blocks
from tf_dpdiff.networks import precision


@dataclasses.dataclass(frozen=True)
class UNetConfig(denoiser.DenoiserConfig):
    """The shape of a UNet.

    Attributes:
      base_channels: Channels of the first level.
      channel_multipliers: One a level; each level after the first has half the height and width of the one before.
      num_res_blocks: Residual blocks a level on the way down; one more on the way up.
      attention_resolutions: Heights of the levels that have self-attention.
      middle_attention: Whether the middle block has self-attention.
      head_channels: Channels of an attention head.
      groups: Groups of the group normalizations.
      patch_size: The network sees squares of so many pixels a side as one pixel of patch_size^2 times the channels, so
        that its first level has a patch_size-th of the height and width: several times quicker on a CPU. 1: as it is.
      scale_shift: How the embedding enters; see `layers.ResidualBlock`.
      dropout: Rate of the dropout in the residual blocks, in [0, 1); above 0 the network has a fourth input, see
        `denoiser.build`.
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

    kind: ClassVar[str] = 'unet'

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
        precision.check(self.compute_dtype)
        if self.adapter_rank < 0:
            raise ValueError(f'adapter_rank must be at least 0, got {self.adapter_rank}.')
        if not self.adapter_alpha > 0.0:
            raise ValueError(f'adapter_alpha must be > 0, got {self.adapter_alpha}.')
        if not self.adapter_targets or not set(self.adapter_targets) <= set(adapters.ROLES):
            raise ValueError(f'adapter_targets must name some of {adapters.ROLES}, got {self.adapter_targets}.')

    @property
    def size(self) -> dict[str, int]:
        """The channels of the first level."""
        return {'base_channels': self.base_channels}

    def resized(self, image_shape, other_shape):
        """Returns the configuration whose attention is at the same levels; see `denoiser.DenoiserConfig.resized`."""
        if image_shape[0] == other_shape[0]:
            return self
        before, after = self._heights(image_shape[0]), self._heights(other_shape[0])
        kept = tuple(after[before.index(height)] for height in self.attention_resolutions if height in before)
        return dataclasses.replace(self, attention_resolutions=kept)

    def _heights(self, height: int) -> list[int]:
        """Returns the height of each level, for images of a height."""
        return [height // self.patch_size // 2**level for level in range(len(self.channel_multipliers))]

    def check_image_shape(self, image_shape: Sequence[int]) -> None:
        """Refuses images that cannot be cut or halved for each level, and adapters of attention where there is none."""
        height, width, _ = image_shape
        blocks.check_patches(self.patch_size, height, width)
        height, width = height // self.patch_size, width // self.patch_size
        what = 'images' if self.patch_size == 1 else 'arrays of patches'
        num_halvings = len(self.channel_multipliers) - 1
        if height % 2**num_halvings or width % 2**num_halvings:
            raise ValueError(
                f'{what} of {height}x{width} cannot be halved {num_halvings} times: take fewer channel_multipliers.'
            )
        has_attention = self.middle_attention or set(self._heights(image_shape[0])).intersection(
            self.attention_resolutions
        )
        if self.adapter_rank and 'attention' in self.adapter_targets and not has_attention:
            raise ValueError(
                f'adapter_targets={self.adapter_targets} names attention, and the network has none: set '
                "middle_attention, or adapt 'residual' or 'embedding'."
            )

    def connect(self, x_t, t, labels, dropout_seeds, *, num_classes):
        """Returns the prediction of the UNet, zero at first; see `denoiser.DenoiserConfig.connect`."""
        policy = precision.policy(self.compute_dtype)
        conv = functools.partial(convolution.Conv2D, kernel_size=3, padding='same', dtype=policy)
        adapted = adapters.Adapters(self.adapter_rank, self.adapter_alpha, self.adapter_targets)
        embedding = _embed(t, labels, self, num_classes, adapted, policy)
        salts = itertools.count()

        def residual(h, channels, name):
            block = blocks.ResidualBlock(
                channels, self.groups, self.scale_shift, self.dropout, next(salts), adapted, name=name, dtype=policy
            )
            return block([h, embedding] if dropout_seeds is None else [h, embedding, dropout_seeds])

        def attention(h, name):
            return blocks.SelfAttention(self.head_channels, self.groups, adapted, name=name, dtype=policy)(h)

        h = blocks.ToPatches(self.patch_size, name='to_patches', dtype=policy)(x_t) if self.patch_size > 1 else x_t
        h = conv(self.base_channels, name='conv_in')(h)
        skips = [h]
        for level, multiplier in enumerate(self.channel_multipliers):
            channels = self.base_channels * multiplier
            if level:
                h = conv(h.shape[-1], strides=2, name=f'down_{level}_downsample')(h)
                skips.append(h)
            for block in range(self.num_res_blocks):
                h = residual(h, channels, f'down_{level}_{block}')
                if h.shape[1] in self.attention_resolutions:
                    h = attention(h, f'down_{level}_{block}_attention')
                skips.append(h)
        h = residual(h, h.shape[-1], 'middle_0')
        if self.middle_attention:
            h = attention(h, 'middle_attention')
        h = residual(h, h.shape[-1], 'middle_1')
        for level, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            for block in range(self.num_res_blocks + 1):
                h = layers.Concatenate(name=f'up_{level}_{block}_concat', dtype=policy)([h, skips.pop()])
                h = residual(h, self.base_channels * multiplier, f'up_{level}_{block}')
                if h.shape[1] in self.attention_resolutions:
                    h = attention(h, f'up_{level}_{block}_attention')
            if level:
                h = blocks.Upsample(h.shape[-1], name=f'up_{level}_upsample', dtype=policy)(h)
        return _predict(h, self, x_t.shape[-1], conv, policy)


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
