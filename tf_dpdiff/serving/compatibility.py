"""Whether a new version of a servable takes what clients of the one before send, and answers what they read."""

import collections
from collections.abc import Iterator, Mapping

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

_Shape = tuple[int | None, ...] | None
_INTERNAL = '__'  # Signatures of initialization; no client calls them.


def differences(
    before: Mapping[str, meta_graph_pb2.SignatureDef], after: Mapping[str, meta_graph_pb2.SignatureDef]
) -> list[str]:
    """Lists what breaks clients when one version takes the place of another.

    A request names each input of a signature and no other, so an input that comes or goes breaks every client.
    Signatures and outputs may come; shapes of inputs may become wider, those of outputs narrower.

    Args:
      before: The signatures of the version that clients know, by name.
      after: The signatures of the new one.

    Returns:
      One phrase a difference, with the signatures that have it; none if no client notices.
    """
    found = collections.defaultdict(list)
    for name, old in sorted(before.items()):
        if name.startswith(_INTERNAL):
            continue
        if name not in after:
            found['is gone'].append(name)
            continue
        for difference in _differences(old, after[name]):
            found[difference].append(name)
    return [f'{", ".join(names)}: {difference}' for difference, names in found.items()]


def _differences(old: meta_graph_pb2.SignatureDef, new: meta_graph_pb2.SignatureDef) -> Iterator[str]:
    """Yields the differences of one signature."""
    if old.method_name != new.method_name:
        yield f'is of {new.method_name} and no longer of {old.method_name}'
    for name in sorted({*old.inputs} ^ {*new.inputs}):
        yield f'input {name!r} is {"new" if name in new.inputs else "gone"}'
    for name in sorted({*old.outputs} - {*new.outputs}):
        yield f'output {name!r} is gone'
    if len(old.outputs) == 1 < len(new.outputs):
        yield f'output {next(iter(old.outputs))!r} is no longer the only one, which changes the form of REST answers'
    for kind, olds, news in (('input', old.inputs, new.inputs), ('output', old.outputs, new.outputs)):
        for name in sorted({*olds} & {*news}):
            was, now = olds[name], news[name]
            given, taken = (was, now) if kind == 'input' else (now, was)
            if was.dtype != now.dtype:
                yield f'{kind} {name!r} is {tf.as_dtype(now.dtype).name} and no longer {tf.as_dtype(was.dtype).name}'
            elif not _covers(_shape(taken), _shape(given)):
                yield f'{kind} {name!r} has shape {_shown(_shape(now))} and no longer {_shown(_shape(was))}'


def _shape(info: meta_graph_pb2.TensorInfo) -> _Shape:
    """Returns the axes, None where any length will do; None where any shape will do."""
    if info.tensor_shape.unknown_rank:
        return None
    return tuple(None if axis.size < 0 else axis.size for axis in info.tensor_shape.dim)


def _covers(wide: _Shape, narrow: _Shape) -> bool:
    """Returns True if each tensor of the second shape is one of the first."""
    if wide is None:
        return True
    return (
        narrow is not None
        and len(wide) == len(narrow)
        and all(axis in (None, other) for axis, other in zip(wide, narrow))
    )


def _shown(shape: _Shape) -> str:
    if shape is None:
        return 'unknown'
    return f'[{", ".join("?" if axis is None else str(axis) for axis in shape)}]'
