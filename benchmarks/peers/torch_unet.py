"""The UNet of tf_dpdiff/networks/unet.py in PyTorch: the same function of the same weights, as users would write it."""

import math

import torch
from torch import nn
from torch.nn import functional

NUM_CLASSES = 10


def _norm(channels, groups):
    return nn.GroupNorm(max(g for g in range(1, groups + 1) if channels % g == 0), channels)


class TimestepEmbedding(nn.Module):
    """Sinusoids of the timestep, then two dense layers."""

    def __init__(self, num_sinusoids, units):
        super().__init__()
        self.num_sinusoids = num_sinusoids
        self.dense_in = nn.Linear(num_sinusoids, units)
        self.dense_out = nn.Linear(units, units)

    def forward(self, t):
        half = self.num_sinusoids // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / half))
        angles = t.to(torch.float32)[:, None] * frequencies
        code = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.dense_out(functional.silu(self.dense_in(code)))


class ClassEmbedding(nn.Module):
    """A learnt vector for each class, and one for "no class"."""

    def __init__(self, units):
        super().__init__()
        self.table = nn.Embedding(NUM_CLASSES + 1, units)

    def forward(self, labels):
        return self.table(labels)


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, plus the embedding, norm, swish, convolution, plus the input."""

    def __init__(self, in_channels, channels, embedding_units, groups):
        super().__init__()
        self.norm_in = _norm(in_channels, groups)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.embedding_dense = nn.Linear(embedding_units, channels)
        self.norm_out = _norm(channels, groups)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = None if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x, embedding):
        h = self.conv_in(functional.silu(self.norm_in(x)))
        h = self.norm_out(h + self.embedding_dense(embedding)[:, :, None, None])
        h = self.conv_out(functional.silu(h))
        return h + (x if self.skip is None else self.skip(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels, with a residual connection."""

    def __init__(self, channels, head_channels, groups):
        super().__init__()
        self.heads = channels // head_channels
        self.norm = _norm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x):
        batch, channels, height, width = x.shape
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(pixels).reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        h = self.out(h.transpose(1, 2).reshape(batch, height * width, channels))
        return x + h.transpose(1, 2).reshape(x.shape)


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2, mode='nearest'))


class Downsample(nn.Conv2d):
    """Halves height and width; 'same' padding of an even size by a stride of 2 adds one pixel, behind."""

    def forward(self, input):
        return super().forward(functional.pad(input, (0, 1, 0, 1)))


class UNet(nn.Module):
    """The network.

    Args:
      config: Attributes of a UNetConfig, as a dict.
      image_shape: (height, width, channels).
    """

    def __init__(self, config, image_shape):
        super().__init__()
        base, groups = config['base_channels'], config['groups']
        multipliers, num_blocks = config['channel_multipliers'], config['num_res_blocks']
        units = 4 * base
        self.timestep_embedding = TimestepEmbedding(base, units)
        self.class_embedding = ClassEmbedding(units)
        height, image_channels = image_shape[0], image_shape[-1]
        # What runs in turn: (name of the module, what it is to the flow of the image).
        self.plan = []

        def add(name, kind, module=None):
            if module is not None:
                self.add_module(name, module)
            self.plan.append((name, kind))

        def residual(name, in_channels, channels):
            add(name, 'residual', ResidualBlock(in_channels, channels, units, groups))

        def attention(name, channels):
            add(name, 'layer', SelfAttention(channels, config['head_channels'], groups))

        add('conv_in', 'layer', nn.Conv2d(image_channels, base, 3, padding=1))
        add('', 'push')
        skips, channels = [base], base
        for level, multiplier in enumerate(multipliers):
            if level:
                add(f'down_{level}_downsample', 'layer', Downsample(channels, channels, 3, stride=2))
                add('', 'push')
                skips.append(channels)
                height //= 2
            for block in range(num_blocks):
                residual(f'down_{level}_{block}', channels, base * multiplier)
                channels = base * multiplier
                if height in config['attention_resolutions']:
                    attention(f'down_{level}_{block}_attention', channels)
                add('', 'push')
                skips.append(channels)
        residual('middle_0', channels, channels)
        if config['middle_attention']:
            attention('middle_attention', channels)
        residual('middle_1', channels, channels)
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(num_blocks + 1):
                add('', 'concat')
                residual(f'up_{level}_{block}', channels + skips.pop(), base * multiplier)
                channels = base * multiplier
                if height in config['attention_resolutions']:
                    attention(f'up_{level}_{block}_attention', channels)
            if level:
                add(f'up_{level}_upsample', 'layer', Upsample(channels))
                height *= 2
        add('out_norm', 'layer', _norm(channels, groups))
        add('', 'silu')
        add('conv_out', 'layer', nn.Conv2d(channels, image_channels, 3, padding=1))

    def forward(self, x_t, t, labels):
        embedding = functional.silu(self.timestep_embedding(t) + self.class_embedding(labels))
        h, skips = x_t, []
        for name, kind in self.plan:
            if kind == 'push':
                skips.append(h)
            elif kind == 'concat':
                h = torch.cat([h, skips.pop()], dim=1)
            elif kind == 'silu':
                h = functional.silu(h)
            elif kind == 'residual':
                h = self._modules[name](h, embedding)
            else:
                h = self._modules[name](h)
        return h


def from_keras(name, value):
    """Returns (name, tensor) of a parameter of UNet from those of a Keras variable."""
    *path, kind = name.split('/')
    if kind == 'kernel' and value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)  # Height, width, in, out.
    elif kind == 'kernel' and path != ['class_embedding', 'table']:
        value = value.transpose(1, 0)
    kind = {'kernel': 'weight', 'gamma': 'weight', 'beta': 'bias', 'bias': 'bias'}[kind]
    return '.'.join([*path, kind]), torch.from_numpy(value.copy())


def to_keras(name, tensor):
    """Returns the array of a Keras variable from a tensor that is like the parameter of `from_keras`."""
    array = tensor.detach().numpy()
    if name.endswith('kernel') and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.transpose(1, 0) if name.endswith('kernel') and name != 'class_embedding/table/kernel' else array
