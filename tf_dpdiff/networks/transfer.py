"""Weights carried from one network to another: from a public checkpoint, and from adapters into their kernels."""

import dataclasses

import numpy as np

from tf_dpdiff import keras
from tf_dpdiff.networks import denoiser

_ADAPTER_DOWN, _ADAPTER_UP = 'adapter_down', 'adapter_up'
# Fields that change neither the variables nor the function that these stand for.
_NO_ARCHITECTURE = ('dropout', 'compute_dtype')
_ADAPTERS = ('adapter_rank', 'adapter_alpha', 'adapter_targets')


class WeightsMismatchError(ValueError):
    """Weights are not those of the network."""


def carry_over_weights(
    weights: dict[str, np.ndarray], model: keras.Model, *, keep_class_embedding: bool = False
) -> None:
    """Puts the weights of a checkpoint into a network; all of them, or none where one does not fit.

    What a new task cannot take over as it is:
    - The embeddings of the classes stay as they were drawn, since another data set has other classes. The row of "no
      class" is carried over: it means the same everywhere.
    - Low-rank adapters that the checkpoint lacks stay as they were drawn, which is without effect.
    - A UNet of one channel takes a checkpoint of three. A grey image is a colour image of three equal channels, and
      on such images the first convolution acts as one with its kernel summed over the input channels. What is predicted
      for a grey pixel is the mean of what is predicted for its three channels, so kernel and bias of the last
      convolution are averaged over the output channels. It is a start for training, not a finished network: the noise
      of a colour image differs between the channels.

    Args:
      weights: float arrays by the variable's name, without ':0'.
      model: From `denoiser.build`.
      keep_class_embedding: Whether the embeddings of the classes are carried over too; they must then be as many.

    Raises:
      WeightsMismatchError: one line that names the first variable that is missing, extra or of another shape.
    """
    variables = {variable.name.split(':')[0]: variable for variable in model.variables}
    weights = dict(weights)
    if model.inputs[0].shape[-1] == 1:
        weights.update(_to_grey(weights))
    kernel = denoiser.class_embedding(model).table.kernel
    table_name, new_table = kernel.name.split(':')[0], kernel.numpy()
    table = weights.get(table_name)
    if not keep_class_embedding and table is not None and table.ndim == 2 and table.shape[1] == new_table.shape[1]:
        new_table[-1] = table[-1]
        weights[table_name] = new_table
    for name, variable in variables.items():
        if name.endswith((_ADAPTER_DOWN, _ADAPTER_UP)):
            weights.setdefault(name, variable.numpy())
    _check_shapes(
        {name: np.shape(value) for name, value in weights.items()},
        {name: tuple(variable.shape) for name, variable in variables.items()},
    )
    for name, variable in variables.items():
        variable.assign(weights[name])


def architecture_differences(there: denoiser.DenoiserConfig, here: denoiser.DenoiserConfig) -> list[str]:
    """Returns the differences between the network of a checkpoint and the one here, a phrase a field.

    Also says what the shapes of variables cannot: other groups or heads, with the same variables, are another function.
    Adapters count only where the checkpoint has them.

    Args:
      there: The network of the checkpoint.
      here: The network that its weights are meant for.

    Example:
        >>> from tf_dpdiff.networks import unet
        >>> architecture_differences(unet.UNetConfig(base_channels=192), unet.UNetConfig(base_channels=128))
        ['base_channels is 192 in the checkpoint and 128 here']
    """
    if there.kind != here.kind:
        return [f'the network is of kind {there.kind!r} in the checkpoint and {here.kind!r} here']
    ignored = _NO_ARCHITECTURE + (() if there.adapter_rank else _ADAPTERS)
    names = [field.name for field in dataclasses.fields(there) if field.name not in ignored]
    return [
        f'{name} is {getattr(there, name)!r} in the checkpoint and {getattr(here, name)!r} here'
        for name in names
        if getattr(there, name) != getattr(here, name)
    ]


def merge_adapters(model: keras.Model, config: denoiser.DenoiserConfig) -> tuple[keras.Model, denoiser.DenoiserConfig]:
    """Returns a network without adapters that computes the same, and its shape.

    W x + alpha / rank * up(down(x)) is linear in x: the product of the factors is added to the kernel of W.

    Args:
      model: From `denoiser.build`; stays as it is.
      config: Its shape.
    """
    plain = {field.name: field.default for field in dataclasses.fields(config) if field.name in _ADAPTERS}
    plain_config = dataclasses.replace(config, **plain)
    weights = {variable.name.split(':')[0]: variable.numpy() for variable in model.variables}
    for name in [name for name in weights if name.endswith(_ADAPTER_DOWN)]:
        layer = name[: -len(_ADAPTER_DOWN)]
        down, up = weights.pop(name), weights.pop(layer + _ADAPTER_UP)
        weights[f'{layer}kernel'] += config.adapter_alpha / config.adapter_rank * (down @ up)
    num_classes = denoiser.class_embedding(model).num_classes
    merged = denoiser.build(plain_config, model.inputs[0].shape[1:], num_classes)
    carry_over_weights(weights, merged, keep_class_embedding=True)
    return merged, plain_config


def _to_grey(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns, from the weights of a UNet of three channels, those that one of one channel has other values of."""
    first = weights.get('conv_in/kernel')
    if first is None or first.ndim != 4 or first.shape[2] != 3:
        return {}
    last: dict[str, np.ndarray] = {
        name: np.mean(weights[name], axis=-1, keepdims=True)
        for name in ('conv_out/kernel', 'conv_out/bias')
        if name in weights and weights[name].ndim and weights[name].shape[-1] == 3
    }
    return {'conv_in/kernel': np.sum(first, axis=2, keepdims=True), **last}


def _check_shapes(there: dict[str, tuple], here: dict[str, tuple]) -> None:
    """Refuses shapes that are not the same, by name."""
    differing = [name for name in dict.fromkeys([*here, *there]) if there.get(name) != here.get(name)]
    if differing:

        def describe(shape: tuple | None) -> str:
            return 'missing' if shape is None else str(list(shape))

        first = differing[0]
        rest = f'{len(differing)} variables differ' if len(differing) > 1 else 'nothing else differs'
        raise WeightsMismatchError(
            f'the weights of the checkpoint do not fit the network: {first} is '
            f'{describe(there.get(first))} in the checkpoint and {describe(here.get(first))} '
            f'here; {rest}.'
        )
