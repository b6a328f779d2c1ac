"""Tensors as JSON, in rows and in columns, with the rules of TensorFlow Serving's REST interface.

References: https://www.tensorflow.org/tfx/serving/api_rest, "Predict API", "JSON mapping", "Encoding binary values";
`ParseJson` in https://github.com/tensorflow/serving/blob/master/tensorflow_serving/util/json_tensor.cc.
"""

import base64
import binascii
from collections.abc import Mapping
import json
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpdiff.serving import signatures
from tf_dpdiff.serving import status

_BYTES_SUFFIX = '_bytes'  # Outputs of such names are bytes; other strings are text.
_EXACT_INTEGERS = {tf.float16: 2**11, tf.bfloat16: 2**8, tf.float32: 2**24, tf.float64: 2**53}
_MAX_RANK = 32  # NumPy's.


def parse(body: bytes) -> dict[str, Any]:
    """Returns the object that a request's body begins with.

    As TensorFlow Serving does, it reads no further than to the end of the object, takes the first of several members of
    one name, and refuses numbers that are too large for 64 bits. Bytes that are no UTF-8 become surrogates.

    Raises:
      ServingError: if it is no JSON object.
    """
    text = body.decode('utf-8-sig', 'surrogateescape')
    start = len(text) - len(text.lstrip(' \t\n\r'))
    if start == len(text):
        raise status.invalid('JSON Parse error: The document is empty')
    try:
        document, _ = _DECODER.raw_decode(text, start)
    except RecursionError as error:
        raise status.invalid('JSON Parse error: nested too deeply.') from error
    except ValueError as error:
        raise status.invalid(f'JSON Parse error: {error}') from error
    if not isinstance(document, dict):
        raise status.invalid(f'JSON Value: {_shown(document)} Is not object')
    if not isinstance(document.get('signature_name', ''), str):
        raise status.invalid("'signature_name' key must be a string value.")
    return document


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError('Number too big to be stored in double.')
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_first_of_each, parse_float=_finite)


def read_inputs(
    document: Mapping[str, Any], signature: signatures.Signature, max_rows: int, max_bytes: int
) -> tuple[dict[str, np.ndarray], bool]:
    """Returns the tensors of a request, and whether they came in rows.

    Args:
      document: See `parse`.
      signature: What they are for.
      max_rows: More are refused before they are converted.
      max_bytes: How large an array may become.

    Returns:
      Arrays by name; True for rows ("instances"), False for columns ("inputs").

    Raises:
      ServingError: if they do not fit.
    """
    in_rows = 'instances' in document
    if in_rows == ('inputs' in document):
        raise status.invalid(
            "Missing 'inputs' or 'instances' key"
            if not in_rows
            else "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
        )
    columns = _columns_of_rows(document['instances'], signature) if in_rows else _columns(document['inputs'], signature)
    if signature.is_batched:
        rows = max((len(value) for value in columns.values() if isinstance(value, list)), default=0)
        if rows > max_rows:
            raise signatures.too_many_rows(rows, max_rows)
    return {name: _to_array(name, columns[name], spec, max_bytes) for name, spec in signature.inputs.items()}, in_rows


def write_outputs(outputs: Mapping[str, np.ndarray], in_rows: bool) -> bytes:
    """Returns the body of an answer.

    Strings are text, or {"b64": ...} where the name ends in `_bytes`. TensorFlow Serving writes other strings as they
    are, which is no JSON where they are not UTF-8; those are {"b64": ...} here.

    Args:
      outputs: Arrays by name.
      in_rows: As the request was.

    Raises:
      ServingError: if outputs have no rows, or not equally many, and rows are asked for.
    """
    if in_rows:
        lengths = {name: value.shape[0] if value.ndim else None for name, value in outputs.items()}
        if None in lengths.values() or len(set(lengths.values())) != 1:
            raise status.invalid(f'outputs have no rows, or not equally many ({lengths}); ask for columns ("inputs").')
    values = {name: _to_json(name, array) for name, array in outputs.items()}
    if len(values) == 1:
        result = next(iter(values.values()))
    elif in_rows:
        result = [dict(zip(values, row)) for row in zip(*values.values())]
    else:
        result = values
    return json.dumps({'predictions' if in_rows else 'outputs': result}).encode()


def _columns(inputs, signature) -> dict[str, Any]:
    """Names that the signature does not have are passed over, as TensorFlow Serving does."""
    if not isinstance(inputs, dict) or _is_base64(inputs):
        return {_only_input(signature, 'inputs is a plain value/list'): inputs}
    missing = sorted(set(signature.inputs) - set(inputs))
    if missing:
        raise status.invalid(f"Missing named input: {missing[0]} in 'inputs' object.")
    return {name: inputs[name] for name in signature.inputs}


def _columns_of_rows(instances, signature) -> dict[str, Any]:
    if not isinstance(instances, list):
        raise status.invalid("Expecting 'instances' to be a list/array")
    if not instances:
        raise status.invalid("No values in 'instances' array")
    are_named = [isinstance(row, dict) and not _is_base64(row) for row in instances]
    if not any(are_named):
        return {_only_input(signature, 'instances is a plain list'): instances}
    names = set(signature.inputs)
    for i, row in enumerate(instances):
        if not are_named[i] or set(row) != names:
            raise status.invalid(
                f"Failed to process element: {i} of 'instances' list. JSON Value: {_shown(row)} must "
                f'be an object with the keys: {",".join(sorted(names))}'
            )
    return {name: [row[name] for row in instances] for name in signature.inputs}


def _only_input(signature, what: str) -> str:
    if len(signature.inputs) != 1:
        raise status.invalid(f'{what}, but the signature has {len(signature.inputs)} inputs, so they must be named')
    return next(iter(signature.inputs))


def _to_array(name: str, value, spec, max_bytes: int) -> np.ndarray:
    sides: list[int] = []
    inner = value
    while isinstance(inner, list) and len(sides) < _MAX_RANK:
        sides.append(len(inner))
        inner = inner[0] if inner else None
    shape = tuple(sides)
    spec.check_shape(name, shape)
    spec.check_size(name, shape, max_bytes)
    array = np.empty(shape, object)
    try:
        array.reshape(-1)[...] = _flatten(value, shape, spec.dtype) if 0 not in shape else []
    except _Unfit as error:
        raise status.invalid(f'Failed to process input {name!r}: {error}') from error
    return array if spec.dtype == tf.string else array.astype(spec.dtype.as_numpy_dtype)


class _Unfit(ValueError):
    """A value that is not of the type of its tensor."""


def _flatten(value, shape, dtype):
    """Returns an array of objects: assigned one by one, since NumPy would look into bytes."""
    flat = [value]
    for length in shape:
        for item in flat:
            if not isinstance(item, list) or len(item) != length:
                raise _Unfit(f'JSON Value: {_shown(item)} is no list of {length}, as others at its level are')
        flat = [element for item in flat for element in item]
    array = np.empty(len(flat), object)
    for i, item in enumerate(flat):
        array[i] = _to_scalar(item, dtype)
    return array


def _to_scalar(value, dtype):
    """Returns a value of JSON as one that NumPy converts to `dtype` without loss."""
    kind = _kind(dtype)
    if kind == 'string':
        if _is_base64(value):
            return _decode(value['b64'])
        if isinstance(value, str):
            try:
                return value.encode()
            except UnicodeEncodeError as error:
                raise _Unfit('half of a surrogate pair, or what is no UTF-8, is no text') from error
    elif kind == 'boolean':
        if isinstance(value, bool):
            return value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if kind == 'float':
            if isinstance(value, int):
                exact = abs(value) <= _EXACT_INTEGERS[dtype]
            else:
                with np.errstate(over='ignore'):  # The largest number's shortest text is a little more than it.
                    exact = not np.isfinite(value) or np.isfinite(np.float64(value).astype(dtype.as_numpy_dtype))
            if not exact:
                raise _Unfit(f'Cannot convert JSON value: {_shown(value)} to {dtype.name} without loss of precision')
            return value
        if isinstance(value, int) and dtype.min <= value <= dtype.max:
            return value
    raise _Unfit(f'JSON Value: {_shown(value)} is not of expected type: {dtype.name}')


def _kind(dtype) -> str:
    for kind, is_kind in (
        ('string', dtype == tf.string),
        ('boolean', dtype.is_bool),
        ('float', dtype.is_floating),
        ('integer', dtype.is_integer and not dtype.is_quantized),
    ):
        if is_kind:
            return kind
    raise status.ServingError(status.Code.UNIMPLEMENTED, f'Conversion of JSON to type: {dtype.name}')


def _is_base64(value) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get('b64'), str)


def _decode(text: str) -> bytes:
    """Padding may be missing; anything else than the alphabet is refused."""
    try:
        return base64.b64decode(text.rstrip('=') + '=' * (-len(text.rstrip('=')) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise _Unfit('Unable to base64 decode') from error


def _to_json(name: str, array: np.ndarray):
    if array.dtype == object:
        encode = _as_base64 if name.endswith(_BYTES_SUFFIX) else _as_text
        return _mapped(array.tolist(), encode)
    dtype = tf.as_dtype(array.dtype)
    if _kind(dtype) == 'float' and dtype != tf.float64:
        # By way of its shortest text: 0.2 stays 0.2.
        return array.astype(np.float32).astype(str).astype(np.float64).tolist()
    return array.tolist()


def _mapped(value, encode):
    return [_mapped(item, encode) for item in value] if isinstance(value, list) else encode(value)


def _as_base64(value: bytes) -> dict[str, str]:
    return {'b64': base64.b64encode(value).decode()}


def _as_text(value: bytes):
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _as_base64(value)


def _shown(value) -> str:
    """A value in a message: cut where it is long, and never rendered whole where it is large."""
    if isinstance(value, (dict, list)):
        return f'a {"list" if isinstance(value, list) else "object"} of {len(value)}'
    if isinstance(value, int) and value.bit_length() > 256:
        return 'a number of many digits'
    text = json.dumps(value)
    return text if len(text) <= 60 else f'{text[:60]}...'
