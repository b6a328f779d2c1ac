"""Refuses networks, losses and views for which a bound on one unit's gradient does not hold."""

from collections.abc import Callable, Sequence
import contextlib
import gc
import itertools
import re
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras

# Names of classes, one's own or inherited. Keras gives each layer that draws randomness the base BaseRandomLayer.
_MIXES_EXAMPLES = {
    'BatchNormalization',
    'BatchNormalizationBase',
    'SyncBatchNormalization',
    'MixUp',
    'CutMix',
    'FourierMix',
    'Mosaic',
}
_DRAWS_RANDOMNESS = {
    'BaseRandomLayer',
    'BaseImageAugmentationLayer',
    'GaussianDropout',
    'GaussianNoise',
    'AlphaDropout',
    'DropPath',
    'StochasticDepth',
    'DropBlock2D',
}
# The largest relative changes that count as rounding.
_ROUNDING_OF_NETWORKS, _ROUNDING_OF_LOSSES = 1e-3, 1e-5
_ASSIGNS = re.compile(r'^(Assign\w*VariableOp|ResourceScatter\w*|ResourceStridedSliceAssign)$')
_CURES = {
    'mixes': (
        'it mixes the examples of a batch, so clipping one unit does not bound what it changes; use GroupNormalization '
        'or LayerNormalization, and mix nothing across units'
    ),
    'random': (
        'it draws randomness inside call, which the mapped gradient shares among units; draw it outside of the '
        'network and pass it in'
    ),
    'loss': (
        'it adds a loss of its own, which belongs to no unit and is not clipped; remove the add_loss, or the '
        'regularizer (weight decay belongs in the optimizer)'
    ),
    'state': (
        'it keeps statistics of the images that pass through it, which are released without noise; use a layer '
        'without running statistics'
    ),
}


class ModelCheckError(ValueError):
    """A network, a loss or a way to draw views is not fit for per-unit clipping."""

    __init__ = Exception.__init__  # AutoGraph then raises the same kind of error out of a tf.function.


def check_layers(model: keras.Model) -> None:
    """Refuses layers known to mix examples, to draw randomness inside `call` or to add losses.

    Guarantee: none for layers that are not on the lists; `check_independence` tries those.

    Args:
      model: A built Keras model.

    Raises:
      ModelCheckError: one line that names every such layer and the cure.
    """
    problems = []
    for layer in model._flatten_layers(include_self=False):
        kinds = [c.__name__ for c in type(layer).__mro__]
        if _MIXES_EXAMPLES.intersection(kinds):
            problems.append((layer, 'mixes'))
        # A dropout of rate zero does nothing.
        elif _DRAWS_RANDOMNESS.intersection(kinds) and bool(getattr(layer, 'rate', getattr(layer, 'stddev', 1.0))):
            problems.append((layer, 'random'))
        elif _adds_loss(layer):
            problems.append((layer, 'loss'))
    if problems:
        raise ModelCheckError(
            '; '.join(f'layer {layer.name!r} ({type(layer).__name__}): {_CURES[kind]}' for layer, kind in problems)
            + '.'
        )


@tf.autograph.experimental.do_not_convert
def check_keeps_no_state(function: Callable, *specs) -> None:
    """Refuses a function that changes a variable when it is called: running statistics are released without noise.

    The function is traced and not run: an assignment is looked for in its graph, whatever its layers are called.

    Guarantee: the traced graph of a function that passes, with all graphs that it calls, holds no assignment, scatter
      or slice assignment of a variable.

    Args:
      function: Of tensors.
      *specs: Nested tf.TensorSpec, of its arguments.

    Raises:
      ModelCheckError: names the assignment, which Keras calls by its layer, and the cure.
    """
    graph = tf.function(function).get_concrete_function(*specs).graph.as_graph_def()
    nodes = itertools.chain(graph.node, *(inner.node_def for inner in graph.library.function))
    # Counters of random draws are no statistics of the data; they are read and skipped, not assigned.
    assignment = next((node for node in nodes if _ASSIGNS.search(node.op)), None)
    if assignment is not None:
        raise ModelCheckError(f'{assignment.name!r} changes a variable while the loss is computed: {_CURES["state"]}.')


@tf.autograph.experimental.do_not_convert
def check_models_with(variables: Sequence[tf.Variable], *, runs_them: bool) -> None:
    """Refuses layers that mix the examples of a batch, or keep statistics of them, in the live models of some
    variables.

    For those who are given a loss and variables and not the model. Layers that are not trained, and so use statistics
    that stay as they are, pass.

    Args:
      variables: Trained variables.
      runs_them: Whether to run the models on random examples too, which finds layers that no list knows: those of
        functional models whose inputs are floats of known shapes.

    Raises:
      ModelCheckError: names the layer and the cure.
    """
    references = {variable.ref() for variable in variables}
    # Neither variables nor losses tell of their model; every live object is looked at, once for a set of variables.
    models = [o for o in gc.get_objects() if issubclass(type(o), keras.Model) and o.built]
    models = [model for model in models if references & {variable.ref() for variable in model.trainable_variables}]
    for model in models:
        for layer in model._flatten_layers(include_self=False):
            if layer.trainable and _MIXES_EXAMPLES.intersection(c.__name__ for c in type(layer).__mro__):
                raise ModelCheckError(f'layer {layer.name!r} ({type(layer).__name__}): {_CURES["mixes"]}.')
        inputs = model.inputs or []
        if runs_them and len(inputs) == 1 and inputs[0].dtype.is_floating and inputs[0].shape[1:].is_fully_defined():
            with tf.init_scope():
                check_independence(model, lambda x: x, inputs[0].shape[1:], may_be_random=True)


def _adds_loss(layer: keras.layers.Layer) -> bool:
    regularizers = ('kernel', 'bias', 'activity', 'beta', 'gamma', 'embeddings', 'depthwise', 'pointwise')
    if any(getattr(layer, f'{name}_regularizer', None) is not None for name in regularizers):
        return True
    # The losses of a layer include those of the layers inside it: name the innermost one.
    inner = list(layer._flatten_layers(include_self=False))
    return bool(layer.losses) and not any(child.losses for child in inner)


def check_independence(
    model: keras.Model,
    make_inputs: Callable[[np.ndarray], Any],
    input_shape: Sequence[int],
    *,
    may_be_random: bool = False,
) -> None:
    """Refuses a network in which one example changes the output of another, whatever its layers are called.

    Runs the network in training mode on three random examples, then changes the first one: what its layers make of the
    others must stay the same, running twice must give the same, and no variable may move. The weights are random while
    this is tried, since what is initialised with zeros would hide what lies before it; they are put back afterwards.

    Guarantee: none beyond what was tried. It is a test and no proof: a network made to pass it could mix all the same.

    Args:
      model: The network.
      make_inputs: Maps float32 [3, *input_shape] to the network's inputs.
      input_shape: Shape of one example.
      may_be_random: Whether the network may draw randomness of its own for each example, as Dropout does. One that does
        is run in inference mode to see whether examples mix. Then one that ignores its input passes too.

    Raises:
      ModelCheckError: names the first layer at which it was seen, and the cure.
    """
    batch = np.random.default_rng(0).standard_normal([3, *input_shape]).astype(np.float32)
    changed = batch.copy()
    changed[0] = 10.0 * changed[0] + 1.0
    if not model.built:
        model(make_inputs(batch))
    names, call = _with_layer_outputs(model)

    def run(training: bool):
        return [
            [np.asarray(out, np.float64) for out in call(make_inputs(x), training)] for x in (batch, batch, changed)
        ]

    with _random_weights(model):
        state = [v.numpy() for v in model.variables]
        runs = run(training=True)
        if may_be_random and any(not np.array_equal(*pair) for pair in zip(*runs[:2])):
            runs = run(training=False)
        moved = [v.name for v, old in zip(model.variables, state) if not np.array_equal(v.numpy(), old)]
    if moved:
        raise ModelCheckError(f'the network changed {moved[0]!r} while it was called: {_CURES["state"]}.')
    for name, before, again, after in zip(names, *runs):
        tolerance = _ROUNDING_OF_NETWORKS * (np.abs(before).max() + 1e-12)
        if np.abs(again - before).max() > tolerance:
            raise ModelCheckError(f'{name} gives two outputs for one input: {_CURES["random"]}.')
        if len(before) == 3 and np.abs(after[1:] - before[1:]).max() > tolerance:
            raise ModelCheckError(
                f'in {name} the output for one example depends on another one in the batch: {_CURES["mixes"]}.'
            )
    if not may_be_random and np.abs(runs[2][-1][0] - runs[0][-1][0]).max() <= tolerance:
        raise ModelCheckError('the output does not depend on the input, so nothing can be said of the network.')


def _with_layer_outputs(model: keras.Model):
    """Returns the names of a model's layers, and a function that returns the output of each, the model's own last."""
    if not model.inputs:  # A subclassed model shows nothing of its inside.
        return [f'the network {model.name!r}'], lambda inputs, training: tf.nest.flatten(
            model(inputs, training=training)
        )[:1]
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    outputs = [tf.nest.flatten(layer.get_output_at(0))[0] for layer in layers]
    probe = keras.Model(model.inputs, outputs + [model.outputs[0]])
    names = [f'layer {layer.name!r} ({type(layer).__name__})' for layer in layers]
    return names + [f'the network {model.name!r}'], lambda inputs, training: probe(inputs, training=training)


@contextlib.contextmanager
def _random_weights(model: keras.Model):
    """Moves the weights by random amounts, and puts them back."""
    weights = model.get_weights()
    generator = np.random.default_rng(1)
    model.set_weights(
        [w + 0.1 * generator.standard_normal(w.shape).astype(w.dtype) if w.dtype.kind == 'f' else w for w in weights]
    )
    try:
        yield
    finally:
        model.set_weights(weights)


def check_loss(loss_fn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], output_shape: Sequence[int]) -> None:
    """Refuses a loss that couples the examples of a batch: contrastive, ranking, or averaged over the batch.

    Guarantee: none beyond the batch of three that was tried.

    Args:
      loss_fn: Maps targets and predictions, float32 [3, *output_shape], to a loss an example, [3, ...].
      output_shape: Shape of one prediction.

    Raises:
      ModelCheckError: says what was seen, and the cure.
    """
    cure = "return one loss an example, computed from this example alone (in Keras: reduction='none')"
    generator = np.random.default_rng(0)
    target, prediction = (generator.uniform(0.1, 0.9, [3, *output_shape]).astype(np.float32) for _ in range(2))
    others = prediction.copy()
    others[0] = 1.0 - others[0]
    before, after = (np.asarray(loss_fn(tf.constant(target), tf.constant(x)), np.float64) for x in (prediction, others))
    if before.ndim == 0 or len(before) != 3:
        raise ModelCheckError(f'the loss of a batch of 3 has shape {list(before.shape)}: {cure}.')
    if np.abs(after[1:] - before[1:]).max() > _ROUNDING_OF_LOSSES * (np.abs(before).max() + 1e-12):
        raise ModelCheckError(f'the loss of one example depends on another one in the batch: {cure}.')


def check_views(draw_for_units: Callable[[tf.Tensor, tf.Tensor], Any], image_shape: Sequence[int]) -> None:
    """Refuses views of a unit that depend on the other units: mix-up across units, antithetic timesteps.

    Draws the views of three units, and of the same with another unit first: those of the others must stay the same, to
    the last bit, and drawing twice must give the same.

    Guarantee: none beyond the three units that were tried.

    Args:
      draw_for_units: Maps images uint8 [3, *image_shape] and units int64 [3] to nested tensors [3, ...].
      image_shape: Shape of one unit's images.

    Raises:
      ModelCheckError: says what was seen, and the cure.
    """
    images = np.random.default_rng(0).integers(0, 256, [3, *image_shape]).astype(np.uint8)
    changed = images.copy()
    changed[0] = 255 - changed[0]
    units, other_units = np.array([5, 6, 7]), np.array([50, 6, 7])
    before, again, after = (
        [np.asarray(x) for x in tf.nest.flatten(draw_for_units(tf.constant(i), tf.constant(u, tf.int64)))]
        for i, u in ((images, units), (images, units), (changed, other_units))
    )
    if any(not np.array_equal(x, y) for x, y in zip(before, again)):
        raise ModelCheckError(
            'the views of a unit differ when they are drawn again: draw them from (seed, step, unit) '
            'alone, neither from a state nor from earlier losses.'
        )
    if any(not np.array_equal(x[1:], y[1:]) for x, y in zip(before, after)):
        raise ModelCheckError(
            'the views of one unit depend on another one in the batch: draw them from (seed, step, '
            'unit) alone (no mix-up across units, no antithetic timesteps).'
        )
