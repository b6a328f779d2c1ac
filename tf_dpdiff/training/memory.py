"""How many units and views are held in memory at a time: chosen from a budget, without effect on what is learnt."""

from collections.abc import Sequence
from typing import NamedTuple
import weakref

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.training import views as views_lib

# Per-unit gradients are held as the tape made them, as what is left after clipping, and once on the way from one to the
# other; so a unit takes about three times its gradient.
GRADIENT_COPIES = 3
# More at a time was not faster: what a step pays for then is memory traffic and not the number of calls. On a CPU that
# is so with some tens of views of 28x28.
_MAX_UNITS = 64
_MAX_ACTIVATION_BYTES_ON_CPU = 2**31
_HOLDS_NOTHING = {
    'Cast',
    'Const',
    'ExpandDims',
    'Identity',
    'NoOp',
    'Placeholder',
    'ReadVariableOp',
    'Reshape',
    'Shape',
    'Squeeze',
}


# By model, what `activation_bytes_per_view` has found.
_FOUND: weakref.WeakKeyDictionary[keras.Model, int] = weakref.WeakKeyDictionary()


class ChunkSizes(NamedTuple):
    """How a batch is cut up.

    Attributes:
      units: Whose gradients are held at a time.
      views: Of each of them, whose activations are held at a time.
    """

    units: int
    views: int


def activation_bytes_per_view(model: keras.Model) -> int:
    """Returns about how many bytes the backward pass of one view needs: the size of all that the forward pass makes.

    Traces the forward pass of the training loss, once for a model; nothing is computed.
    """
    if model not in _FOUND:
        graph = (
            tf.function(views_lib.unit_loss_fn(model), autograph=False)
            .get_concrete_function(views_lib.spec_of_one_view(model))
            .graph
        )
        _FOUND[model] = sum(
            (tensor.shape.num_elements() or 0) * tensor.dtype.size
            for operation in graph.get_operations()
            if operation.type not in _HOLDS_NOTHING
            for tensor in operation.outputs
        )
    return _FOUND[model]


def choose_chunk_sizes(
    model: keras.Model,
    variables: Sequence[tf.Variable],
    *,
    num_views: int,
    num_units: int,
    memory_budget_bytes: float,
    on_accelerator: bool | None = None,
) -> ChunkSizes:
    """Returns the largest chunk whose gradients and activations stay within a budget.

    Args:
      model: The network.
      variables: Those that are trained.
      num_views: K, views per unit.
      num_units: Units expected in a step; more at a time would be of no use.
      memory_budget_bytes: For per-unit gradients and activations; weights, optimizer and the sum come on top.
      on_accelerator: Whether a GPU or TPU computes; None: as on this machine.

    Returns:
      Whole units with all of their views where at least one fits, in chunks of equal size; else one unit, a part of its
      views at a time (a divisor of K, at least one: less is not possible).
    """
    gradient = GRADIENT_COPIES * sum(v.shape.num_elements() * v.dtype.size for v in variables)
    activations = activation_bytes_per_view(model)
    whole_units = int(memory_budget_bytes // (gradient + num_views * activations))
    if whole_units >= 1:
        units = min(whole_units, num_units, _MAX_UNITS)
        if on_accelerator is None:
            on_accelerator = bool(tf.config.list_logical_devices('GPU') + tf.config.list_logical_devices('TPU'))
        if not on_accelerator:
            units = min(units, max(1, _MAX_ACTIVATION_BYTES_ON_CPU // (num_views * activations)))
        # The last chunk is padded: 13 units at a time would take 26 for 16.
        num_chunks = -(-num_units // units)
        return ChunkSizes(-(-num_units // num_chunks), num_views)
    fitting = (memory_budget_bytes - gradient) / activations
    return ChunkSizes(1, max([v for v in range(1, num_views + 1) if num_views % v == 0 and v <= fitting], default=1))
