"""Refuses networks for which a per-unit gradient bound does not hold."""

from typing import Callable

import numpy as np
import tensorflow as tf

_MIXES_EXAMPLES = ('BatchNormalization', 'SyncBatchNormalization', 'ExperimentalSyncBatchNormalization', 'MixUp',
                   'CutMix')
_DRAWS_RANDOMNESS = ('Dropout', 'SpatialDropout1D', 'SpatialDropout2D', 'SpatialDropout3D', 'GaussianDropout',
                     'GaussianNoise', 'AlphaDropout')
_CURES = {
    'mixes':
        'it mixes the examples of a batch, so clipping one unit does not bound what it changes; use GroupNormalization '
        'or LayerNormalization, and mix nothing across units',
    'random':
        'it draws randomness inside call, which the mapped gradient shares among units; draw it outside of the network '
        'and pass it in'
}


class ModelCheckError(ValueError):
    """The network is not fit for per-unit clipping."""


def check_layers(model: tf.keras.Model) -> None:
    """Refuses layers known to mix examples or to draw randomness inside `call`.

    Args:
      model: A built Keras model.

    Raises:
      ModelCheckError: one line that names every such layer and the cure.
    """
    problems = []
    for layer in model._flatten_layers(include_self=False):  # pylint: disable=protected-access
        class_names = {c.__name__ for c in type(layer).__mro__}
        kind = ('mixes' if class_names.intersection(_MIXES_EXAMPLES) else
                'random' if class_names.intersection(_DRAWS_RANDOMNESS) else None)
        if kind == 'random' and not getattr(layer, 'rate', getattr(layer, 'stddev', 1.0)):
            kind = None  # A dropout of rate zero does nothing.
        if kind:
            problems.append(f'layer {layer.name!r} ({type(layer).__name__}): {_CURES[kind]}')
    if problems:
        raise ModelCheckError('; '.join(problems) + '.')


def check_independence(call: Callable[[np.ndarray], tf.Tensor], input_shape, *, rtol: float = 1e-3) -> None:
    """Refuses a network in which one example changes the output of another, whatever its layers are called.

    Runs the network in training mode on three random examples, then changes the first one: the outputs of the others
    must stay the same, and running twice must give the same.

    Args:
      call: Maps a float32 batch [3, *input_shape] to the network's output [3, ...], in training mode.
      input_shape: Shape of one example.
      rtol: Largest relative change that counts as rounding.

    Raises:
      ModelCheckError: if the outputs of the other examples change.
    """
    batch = np.random.default_rng(0).standard_normal([3, *input_shape]).astype(np.float32)
    changed = batch.copy()
    changed[0] = 10.0 * changed[0] + 1.0
    before, again, after = (np.asarray(call(x), np.float64) for x in (batch, batch, changed))
    scale = np.abs(before).max() + 1e-12
    if np.abs(again - before).max() > rtol * scale:
        raise ModelCheckError(f'the network gives two outputs for one input: {_CURES["random"]}.')
    if np.abs(after[1:] - before[1:]).max() > rtol * scale:
        raise ModelCheckError(f'the output for one example depends on another one in the batch: {_CURES["mixes"]}.')
