"""How many floating-point operations the training of a network takes, counted in its graph."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.training import views as views_lib


class Flops(NamedTuple):
    """Floating-point operations for one view; a product and an addition are two.

    Attributes:
      forward: Of the network.
      training: Of loss and gradient.
    """

    forward: int
    training: int


def flops_per_view(model: keras.Model, variables: Sequence[tf.Variable]) -> Flops:
    """Counts the convolutions and matrix products of one view, in the graphs of the loss and of its gradient.

    What is cheap beside them, element by element, is left out; nothing is computed. A gradient takes twice the forward
    pass where all is trained, and less where the gradients of filters are not needed.

    Args:
      model: The network.
      variables: Those that are trained.
    """
    loss_fn = views_lib.unit_loss_fn(model)

    def loss_and_gradients(views):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = loss_fn(views)
        return loss, [g for g in tape.gradient(loss, variables) if g is not None]

    graph = (
        tf.function(loss_and_gradients, autograph=False).get_concrete_function(views_lib.spec_of_one_view(model)).graph
    )
    # The graph holds operations that no result needs: they are pruned before it runs.
    loss, *gradients = graph.outputs
    return Flops(forward=_flops_of([loss]), training=_flops_of([loss, *gradients]))


def _flops_of(outputs: Sequence[tf.Tensor]) -> int:
    """Returns the operations of all that outputs depend on."""
    seen, waiting, flops = set(), [tensor.op for tensor in outputs], 0
    while waiting:
        operation = waiting.pop()
        if operation.name not in seen:
            seen.add(operation.name)
            flops += _flops_of_operation(operation)
            waiting.extend(tensor.op for tensor in operation.inputs)
    return flops


def _flops_of_operation(operation: tf.Operation) -> int:
    """Returns two operations for each product that is added up."""
    kind, inputs = operation.type, operation.inputs
    if kind == 'Conv2D':
        return 2 * _size(operation.outputs[0]) * _size(inputs[1]) // inputs[1].shape[-1]
    if kind == 'Conv2DBackpropInput':  # Of (input sizes, filter, gradient of the output).
        return 2 * _size(inputs[2]) * _size(inputs[1]) // inputs[1].shape[-1]
    if kind == 'Conv2DBackpropFilter':  # Of (input, filter sizes, gradient of the output).
        height, width, channels, _ = operation.outputs[0].shape
        return 2 * _size(inputs[2]) * height * width * channels
    if kind in ('MatMul', 'BatchMatMulV2'):
        is_transposed = operation.get_attr('transpose_a' if kind == 'MatMul' else 'adj_x')
        return 2 * _size(operation.outputs[0]) * inputs[0].shape[-2 if is_transposed else -1]
    if kind.startswith(('Conv', 'DepthwiseConv', 'BatchMatMul', 'Einsum', 'While', 'StatelessWhile')) and not (
        kind.startswith('Concat')
    ):
        raise ValueError(
            f'the floating-point operations of {operation.name!r} ({kind}) are not counted: measure '
            'views_per_second instead.'
        )
    return 0


def _size(tensor: tf.Tensor) -> int:
    return tensor.shape.num_elements()
