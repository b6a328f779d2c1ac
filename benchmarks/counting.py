"""What the layers of a UNet compute and move, counted while the network is called; nothing is computed.

A layer is as fast as the slower of two things: its operations, and the memory traffic that cannot be avoided while one
layer follows the other. Of the latter: a layer's input is read, its output written; on the way back input and gradient
of the output are read, the gradient of the input is written. Its weights are read twice and their gradient written.
What a layer writes for itself in between, and what is still in the cache when it is read, is not counted.
"""

import collections
import dataclasses
import json
import math
from typing import Any
from unittest import mock

import tensorflow as tf

from benchmarks import our_peak
from tf_dpdiff import keras
from tf_dpdiff.networks import layers as blocks

# Layers whose input depends on no weight: no gradient goes through them.
_FIRST = ('conv_in/kernel:0', 'timestep_embedding/dense_in/kernel:0', 'class_embedding/table/kernel:0')
_OF_ATTENTION = 'norm'  # What its norm is called; all others are followed by a swish.


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of a network, or several that differ in their weights alone.

    Attributes:
      label: What kind of layer it is, and how large its output; shared by layers of other widths.
      bound: Which peak of our_peak.py bounds its operations.
      input_shape: Of an example.
      output_shape: Of an example.
      calls: How many of them there are in the network.
      forward_flops: Of one call on one view.
      training_flops: Of the same, forward and backward.
      values_moved: Between memory and processor, forward and backward, of one call on one view.
      parameters: Of one of them.
      made_from: What the layer can be made from again: (class, its configuration), or None for `layers.attend`.
    """

    label: str
    bound: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    calls: int
    forward_flops: int
    training_flops: int
    values_moved: int
    parameters: int
    made_from: Any = None

    def make(self):
        """Returns a function like the layer and its weights: the same computation, with weights of its own."""
        if self.made_from is None:
            return lambda qkv: blocks.attend(qkv, qkv.shape[-1] // 3 // self.head_channels), []
        kind, config = self.made_from
        layer = kind.from_config(config)
        layer.build([None, *self.input_shape])
        if kind is blocks.GroupNorm and config['name'] != _OF_ATTENTION:
            return lambda x: tf.nn.silu(layer(x)), layer.trainable_variables
        return layer, layer.trainable_variables

    @property
    def head_channels(self):
        """Channels of a head of attention."""
        return int(self.label.partition('heads of ')[2])

    def to_json(self):
        """Returns what is counted, as JSON-able values."""
        counted = dataclasses.asdict(dataclasses.replace(self, made_from=None))
        del counted['made_from']
        return counted


def count_layers(model: keras.Model) -> list[Layer]:
    """Returns the layers of a UNet, alike ones together: those whose operations or memory traffic are worth counting.

    Additions, concatenations and repetitions of pixels between them are left out.
    """
    found, calls = {}, collections.Counter()
    for made_from, layer in _record(model):
        key = json.dumps([dataclasses.asdict(dataclasses.replace(layer, made_from=None)), _without_name(made_from)])
        found.setdefault(key, dataclasses.replace(layer, made_from=made_from))
        calls[key] += 1
    return [dataclasses.replace(layer, calls=calls[key]) for key, layer in found.items()]


def _without_name(made_from):
    if made_from is None:
        return None
    kind, config = made_from
    is_alone = kind is blocks.GroupNorm and config['name'] == _OF_ATTENTION
    return [kind.__name__, is_alone, {name: str(value) for name, value in config.items() if name != 'name'}]


def _record(model):
    """Returns (what it is made from, Layer) of each call of a layer."""
    recorded, call, attend = [], keras.layers.Layer.__call__, blocks.attend

    def recording_call(layer, *args, **kwargs):
        output = call(layer, *args, **kwargs)
        if type(layer) in _KINDS:
            recorded.append(((type(layer), layer.get_config()), _describe(layer, args[0], output)))
        return output

    def recording_attend(qkv, num_heads):
        output = attend(qkv, num_heads)
        height, width, channels = output.shape[1:]
        flops = 2 * 2 * (height * width) ** 2 * channels
        label = f'attention, {height}x{width}, heads of {channels // num_heads}'
        recorded.append((None, _layer(label, our_peak.PRODUCT, qkv, output, flops, 0)))
        return output

    @tf.function(autograph=False)
    def predict(x_t, t, labels):
        return model([x_t, t, labels])

    image = model.inputs[0].shape[1:]
    with (
        mock.patch.object(keras.layers.Layer, '__call__', recording_call),
        mock.patch.object(blocks, 'attend', recording_attend),
    ):
        predict.get_concrete_function(
            tf.TensorSpec([1, *image]), tf.TensorSpec([1], tf.int32), tf.TensorSpec([1], tf.int32)
        )
    return recorded


def _describe(layer, x, y):
    """Returns the Layer of a Keras layer."""
    parameters = layer.count_params()
    place = 'x'.join(map(str, y.shape[1:3]))
    if isinstance(layer, keras.layers.Conv2D):
        rows, columns = layer.kernel_size
        flops = 2 * _size(y) * rows * columns * x.shape[-1]
        label = f'{rows}x{columns} convolution, {place}' + (' (halving)' if layer.strides[0] > 1 else '')
        return _layer(
            label, our_peak.CONVOLUTION, x, y, flops, parameters, has_gradient=layer.kernel.name not in _FIRST
        )
    if isinstance(layer, keras.layers.Dense):
        flops = 2 * _size(y) * x.shape[-1]
        label = f'dense, {place}' if y.shape.rank == 4 else 'dense, of embeddings'
        return _layer(label, our_peak.PRODUCT, x, y, flops, parameters, has_gradient=layer.kernel.name not in _FIRST)
    label = f'normalization{"" if layer.name == _OF_ATTENTION else ", swish"}, {place}'
    return _layer(label, our_peak.MEMORY, x, y, 0, parameters)


_KINDS = (blocks.GroupNorm, blocks.convolution.Conv2D, keras.layers.Conv2D, keras.layers.Dense)


def _layer(label, bound, x, y, flops, parameters, *, has_gradient=True):
    return Layer(
        label,
        bound,
        tuple(x.shape[1:]),
        tuple(y.shape[1:]),
        1,
        flops,
        flops * (3 if has_gradient else 2),
        _size(x) * (3 if has_gradient else 2) + 2 * _size(y),
        parameters,
    )


def _size(tensor):
    return math.prod(tensor.shape[1:])
