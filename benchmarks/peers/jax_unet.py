"""The UNet of tf_dpdiff/networks/unet.py in JAX: the same function of the same weights, under the same names."""

import math

import jax
import jax.numpy as jnp

NUM_CLASSES = 10


def _dense(parameters, name, x):
    return x @ parameters[f'{name}/kernel'] + parameters[f'{name}/bias']


def _conv(parameters, name, x, stride=1):
    y = jax.lax.conv_general_dilated(
        x, parameters[f'{name}/kernel'], (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return y + parameters[f'{name}/bias']


def _group_norm(parameters, name, x, groups, epsilon=1e-5):
    batch, height, width, channels = x.shape
    groups = max(g for g in range(1, groups + 1) if channels % g == 0)
    grouped = x.reshape(batch, height, width, groups, channels // groups)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.maximum(jnp.square(grouped).mean((1, 2, 4), keepdims=True) - jnp.square(mean), 0.0)
    normalized = ((grouped - mean) * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape)
    return normalized * parameters[f'{name}/gamma'] + parameters[f'{name}/beta']


def _timestep_embedding(parameters, name, t, num_sinusoids):
    half = num_sinusoids // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    code = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return _dense(parameters, f'{name}/dense_out', jax.nn.silu(_dense(parameters, f'{name}/dense_in', code)))


def _residual(parameters, name, x, embedding, groups):
    h = _conv(parameters, f'{name}/conv_in', jax.nn.silu(_group_norm(parameters, f'{name}/norm_in', x, groups)))
    h = h + _dense(parameters, f'{name}/embedding_dense', embedding)[:, None, None]
    h = _conv(parameters, f'{name}/conv_out', jax.nn.silu(_group_norm(parameters, f'{name}/norm_out', h, groups)))
    return h + (_conv(parameters, f'{name}/skip', x) if f'{name}/skip/kernel' in parameters else x)


def _attention(parameters, name, x, head_channels, groups):
    batch, height, width, channels = x.shape
    qkv = _dense(parameters, f'{name}/qkv', _group_norm(parameters, f'{name}/norm', x, groups))
    q, k, v = jnp.moveaxis(qkv.reshape(batch, height * width, 3, channels // head_channels, head_channels), 2, 0)
    h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
    return x + _dense(parameters, f'{name}/out', h)


def _upsample(parameters, name, x):
    return _conv(parameters, f'{name}/conv', x.repeat(2, axis=1).repeat(2, axis=2))


def apply(parameters, config, x_t, t, labels):
    """Returns the prediction, [batch, height, width, channels].

    Args:
      parameters: Arrays by the names of the Keras variables.
      config: Attributes of a UNetConfig, as a dict.
      x_t: float32 [batch, height, width, channels].
      t: int32 [batch].
      labels: int32 [batch].
    """
    groups, head_channels = config['groups'], config['head_channels']
    embedding = _timestep_embedding(parameters, 'timestep_embedding', t, config['base_channels'])
    embedding = jax.nn.silu(embedding + parameters['class_embedding/table/kernel'][labels])
    h = _conv(parameters, 'conv_in', x_t)
    skips = [h]

    def block(h, name):
        h = _residual(parameters, name, h, embedding, groups)
        if h.shape[1] in config['attention_resolutions']:
            h = _attention(parameters, f'{name}_attention', h, head_channels, groups)
        return h

    levels = range(len(config['channel_multipliers']))
    for level in levels:
        if level:
            h = _conv(parameters, f'down_{level}_downsample', h, stride=2)
            skips.append(h)
        for index in range(config['num_res_blocks']):
            h = block(h, f'down_{level}_{index}')
            skips.append(h)
    h = _residual(parameters, 'middle_0', h, embedding, groups)
    if config['middle_attention']:
        h = _attention(parameters, 'middle_attention', h, head_channels, groups)
    h = _residual(parameters, 'middle_1', h, embedding, groups)
    for level in reversed(levels):
        for index in range(config['num_res_blocks'] + 1):
            h = block(jnp.concatenate([h, skips.pop()], axis=-1), f'up_{level}_{index}')
        if level:
            h = _upsample(parameters, f'up_{level}_upsample', h)
    h = jax.nn.silu(_group_norm(parameters, 'out_norm', h, groups))
    return _conv(parameters, 'conv_out', h)
