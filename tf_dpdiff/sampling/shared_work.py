"""Work cut into tasks, which are spread over the devices of this process and over the workers of a run.

What comes out is the same, and in the same order, for any number of either.
"""

import collections
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent import futures
import functools
import io
import queue
from typing import Any, cast, TypeVar

import numpy as np
import tensorflow as tf

from tf_dpdiff import workers as workers_lib

_Result = TypeVar('_Result')
Arrays = tuple[np.ndarray, ...]


class Stopped(Exception):
    """A stop was asked for at one of the workers, and all of them have stopped."""


def on_each_device(load: Callable[[], Callable]) -> list[Callable]:
    """Loads a function of tensors once on each GPU or, where there is none, on each logical CPU device.

    Args:
      load: Called once a device, within its scope.

    Returns:
      Functions for `run_ahead`, each of which computes on its device.
    """
    return [_load_on(name, load) for name in _own_devices('GPU') or _own_devices('CPU')]


def _own_devices(kind: str) -> list[str]:
    """Returns the names of devices of this process; where there are several workers, TensorFlow lists those of all."""
    own = tf.DeviceSpec.from_string(tf.zeros([]).device)
    found = [tf.DeviceSpec.from_string(device.name) for device in tf.config.list_logical_devices(kind)]
    return [spec.to_string() for spec in found if spec.job is None or (spec.job, spec.task) == (own.job, own.task)]


def _load_on(device: str, load: Callable[[], Callable]) -> Callable:
    with tf.device(device):
        function = load()

    def call(*arguments):
        with tf.device(device):
            return function(*map(tf.identity, arguments))

    return call


def run_ahead(
    functions: Sequence[Callable], tasks: Iterable[Any], do: Callable[[Callable, Any], _Result]
) -> Generator[_Result, None, None]:
    """Yields the results of tasks in order; each device has one in work and one to follow.

    Args:
      functions: One a device, each used by one thread at a time.
      tasks: Anything that `do` takes.
      do: Called with one of the functions and with a task; gives the result.
    """
    idle: queue.SimpleQueue[Callable] = queue.SimpleQueue()
    for function in functions:
        idle.put(function)

    def do_one(task):
        function = idle.get()
        try:
            return do(function, task)
        finally:
            idle.put(function)

    pending: collections.deque[futures.Future[_Result]] = collections.deque()
    executor = futures.ThreadPoolExecutor(len(functions))
    try:
        for task in tasks:
            pending.append(executor.submit(do_one, task))
            if len(pending) == 2 * len(functions):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        executor.shutdown()


def spread(
    workers: workers_lib.Workers, num_tasks: int, own: Iterator[Arrays], should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Arrays]:
    """Yields the results of all tasks in order, at every worker; worker w does task w and each count-th after it.

    Args:
      workers: All of them call this, with the same number of tasks.
      num_tasks: How many tasks all workers have together.
      own: The results of this worker's own tasks, in order; asked for one at a time.
      should_stop: Asked before each round, in which every worker does one task.

    Raises:
      Stopped: if one of the workers was asked to stop.
      workers_lib.WorkerLostError: if another worker is gone, or failed in a task of its own.
    """
    for first in range(0, num_tasks, workers.count):
        if workers.any(should_stop()):
            raise Stopped
        if workers.count == 1:
            yield next(own)
            continue
        packed = all_or_none(
            workers, functools.partial(_next_as_bytes, own if first + workers.index < num_tasks else None)
        )
        for result in workers.gather(packed)[: num_tasks - first]:
            yield from_bytes(result)


def _next_as_bytes(own: Iterator[Arrays] | None) -> bytes:
    return to_bytes(next(own)) if own else b''


def all_or_none(workers: workers_lib.Workers, do: Callable[[], _Result]) -> _Result:
    """Calls at each worker what may fail; where it fails at one of them, all end, and none waits for it.

    Args:
      workers: All of them call this.
      do: The call, which must not speak to other workers.

    Returns:
      The result of the call at this worker.

    Raises:
      workers_lib.WorkerLostError: if it raised at another worker and not at this one.
    """
    result: _Result | None = None
    error: Exception | None = None
    try:
        result = do()
    except Exception as caught:
        error = caught
    failed = workers.any(error is not None)
    if error is not None:
        raise error
    if failed:
        raise workers_lib.WorkerLostError(
            'another worker failed, and says itself why; what was saved stands. Mend '
            'that, and start all workers again with the same command.'
        )
    return cast(_Result, result)  # The call has ended without an error.


def at_first(workers: workers_lib.Workers, do: Callable[[], _Result]) -> _Result | None:
    """Calls at the first worker alone what may fail; like `all_or_none`, but returns None at the others."""
    return all_or_none(workers, lambda: do() if workers.is_first else None)


def to_bytes(arrays: Sequence[np.ndarray]) -> bytes:
    """Returns arrays as bytes for `from_bytes`."""
    packed = io.BytesIO()
    np.savez(packed, *arrays)
    return packed.getvalue()


def from_bytes(packed: bytes) -> Arrays:
    """Returns the arrays that `to_bytes` was given, which hold numbers or text and no other objects."""
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return tuple(arrays[name] for name in arrays.files)
