"""Signatures of a SavedModel as typed specifications that requests are held to before they reach TensorFlow."""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpdiff.serving import status

_STRING_BYTES = 64  # What a string takes besides its text, in Python and in TensorFlow together.


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A signature's description of one tensor.

    Args:
      dtype: Its type.
      shape: Its axes, None where any length will do; None where any shape will do.
    """

    dtype: tf.DType
    shape: Any

    @classmethod
    def from_tensor_info(cls, info) -> 'TensorSpec':
        """Returns the specification that a SavedModel holds as a `TensorInfo` message."""
        shape = info.tensor_shape
        axes = None if shape.unknown_rank else tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
        return cls(tf.as_dtype(info.dtype), axes)

    @property
    def is_batched(self) -> bool:
        """Whether the first axis is as long as a request has rows."""
        return bool(self.shape) and self.shape[0] is None

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises `ServingError` unless a tensor of this shape fits."""
        if self.shape is None:
            return
        if len(shape) != len(self.shape) or any(want not in (None, got) for want, got in zip(self.shape, shape)):
            wanted = ', '.join('?' if axis is None else str(axis) for axis in self.shape)
            raise status.invalid(f'input {name!r} must have shape [{wanted}], got {list(shape)}.')

    def check_size(self, name: str, shape: tuple[int, ...], max_bytes: int, text_bytes: int = 0) -> None:
        """Raises `ServingError` if a tensor of this shape, and its text, would take more memory than a request may."""
        item_bytes = _STRING_BYTES if self.dtype == tf.string else max(self.dtype.size, 1)
        num_bytes = math.prod(shape) * item_bytes + text_bytes
        if num_bytes > max_bytes:
            raise status.invalid(
                f'input {name!r} of shape {list(shape)} would take {num_bytes} bytes, which is more '
                f'than the {max_bytes} of a message.'
            )


@dataclasses.dataclass(frozen=True)
class Signature:
    """One of a model's functions.

    Args:
      name: As in 'serving_default'.
      inputs: Its inputs by name.
      outputs: Its outputs by name.
      function: Maps tensors by name to tensors by name.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    function: Callable[..., dict[str, tf.Tensor]]

    @property
    def is_batched(self) -> bool:
        """Whether requests may be joined: all tensors have rows, any number of them."""
        specs = [*self.inputs.values(), *self.outputs.values()]
        return bool(self.inputs) and bool(self.outputs) and all(spec.is_batched for spec in specs)

    def check_names(self, names) -> None:
        """Raises `ServingError` unless these are the names of the inputs, all of them."""
        extra, missing = sorted(set(names) - set(self.inputs)), sorted(set(self.inputs) - set(names))
        if extra or missing:
            raise status.invalid(
                f'signature {self.name!r} has the inputs {sorted(self.inputs)}. Sent extra: {extra}. '
                f'Missing but required: {missing}.'
            )

    def read_protos(self, protos, *, max_bytes: int, max_rows: int | None = None) -> dict[str, np.ndarray]:
        """Returns the arrays of a request.

        A few bytes may stand for a tensor of any size, as one value that is repeated; so types, shapes, sizes and rows
        are checked before memory is taken.

        Args:
          protos: `TensorProto`s by name, as they came in.
          max_bytes: How large each array may be.
          max_rows: How many rows a request may have where the signature is batched; None for any number.

        Raises:
          ServingError: if names or tensors do not fit, or a tensor holds another number of values than its shape says.
        """
        self.check_names(protos)
        for name, spec in self.inputs.items():
            shape = _check_proto(name, protos[name], spec, max_bytes)
            if self.is_batched and max_rows is not None and shape[0] > max_rows:
                raise too_many_rows(shape[0], max_rows)
        return {name: _to_array(name, protos[name], spec) for name, spec in self.inputs.items()}

    def num_rows(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Checks tensors and counts their rows.

        Args:
          inputs: Arrays by name.

        Returns:
          The length of the first axis, or 1 where the signature is not batched.

        Raises:
          ServingError: if a name, type, shape or the number of rows does not fit.
        """
        self.check_names(inputs)
        for name, spec in self.inputs.items():
            if inputs[name].dtype != spec.dtype.as_numpy_dtype:
                raise status.invalid(f'input {name!r} must be {spec.dtype.name}, got {inputs[name].dtype}.')
            spec.check_shape(name, inputs[name].shape)
        if not self.is_batched:
            return 1
        lengths = {name: len(value) for name, value in inputs.items()}
        if len(set(lengths.values())) != 1:
            raise status.invalid(f'all inputs must have equally many rows, got {lengths}.')
        rows = next(iter(lengths.values()))
        if not rows:
            raise status.invalid('a request must have at least one row.')
        return rows

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Calls the function on checked arrays.

        Args:
          inputs: Arrays by name.

        Returns:
          Arrays by name; strings are bytes in arrays of objects.
        """
        tensors = {name: tf.constant(inputs[name], spec.dtype) for name, spec in self.inputs.items()}
        return {
            name: np.asarray(tensor.numpy(), tensor.dtype.as_numpy_dtype)
            for name, tensor in self.function(**tensors).items()
        }

    def output_names(self, wanted) -> tuple[str, ...]:
        """Returns the names of the outputs that a request asks for: those that it names, or all.

        Raises:
          ServingError: if one is unknown or is named twice.
        """
        wanted = tuple(wanted)
        unknown = sorted(set(wanted) - set(self.outputs))
        if unknown:
            raise status.invalid(
                f'output_filter names {unknown}; signature {self.name!r} has the outputs {sorted(self.outputs)}.'
            )
        if len(set(wanted)) != len(wanted):
            raise status.invalid(f'output_filter names an output twice: {list(wanted)}.')
        return wanted or tuple(self.outputs)


def too_many_rows(rows: int, max_rows: int) -> status.ServingError:
    """Returns the error of a request with more rows than are run at once."""
    return status.invalid(f'Task size {rows} is larger than maximum input batch size {max_rows}')


def _check_proto(name: str, proto, spec: TensorSpec, max_bytes: int) -> tuple[int, ...]:
    """Returns the shape of a `TensorProto` that would fit."""
    if proto.dtype != spec.dtype.as_datatype_enum:
        try:
            found = tf.as_dtype(proto.dtype).name
        except TypeError:
            found = f'type {proto.dtype}'
        raise status.invalid(f'input {name!r} must be {spec.dtype.name}, got {found}.')
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(axis < 0 for axis in shape):
        raise status.invalid(f'input {name!r} must say its whole shape.')
    spec.check_shape(name, shape)
    # The last value stands for those that are missing; TensorFlow copies its text as often.
    repeated = math.prod(shape) - len(proto.string_val)
    text_bytes = len(proto.string_val[-1]) * repeated if proto.string_val and repeated > 0 else 0
    spec.check_size(name, shape, max_bytes, text_bytes)
    return shape


def _to_array(name: str, proto, spec: TensorSpec) -> np.ndarray:
    try:
        array = tf.make_ndarray(proto)
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        shape = [dim.size for dim in proto.tensor_shape.dim]
        raise status.invalid(f'input {name!r} does not hold the values that its shape {shape} says: {error}') from error
    if spec.dtype == tf.string:
        array = array.astype(object)  # Of no values, NumPy makes another type.
    return array
