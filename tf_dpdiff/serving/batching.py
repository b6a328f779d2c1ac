"""Joins requests of one signature to batches: a bounded queue and one worker."""

import collections
from collections.abc import Callable, Mapping
from concurrent import futures
import dataclasses
import threading
import time

import numpy as np

from tf_dpdiff.serving import signatures
from tf_dpdiff.serving import status

_FULL = 'The batch scheduling queue to which this task was submitted is full'
Outputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BatchingConfig:
    """How requests are joined.

    Args:
      max_batch_size: How many rows are run at once; a request with more is refused.
      batch_timeout_secs: How long a batch that is not full waits for more requests, once the model is free.
      max_queue: How many requests wait; one more is refused.
      allowed_batch_sizes: Batches are filled up to one of these numbers of rows, increasing and ending with
        max_batch_size; if empty, they are run as they come. With one size only, a row's result is the same bit for bit
        whatever it is joined with.

    References: https://github.com/tensorflow/serving/blob/master/tensorflow_serving/batching/README.md, whose names and
    errors these are.
    """

    max_batch_size: int = 256
    batch_timeout_secs: float = 0.005
    max_queue: int = 256
    allowed_batch_sizes: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ('max_batch_size', 'max_queue'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}.')
        if not 0 <= self.batch_timeout_secs <= 60:
            raise ValueError(f'batch_timeout_secs must be in [0, 60], got {self.batch_timeout_secs}.')
        sizes = self.allowed_batch_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != self.max_batch_size):
            raise ValueError(
                f'allowed_batch_sizes must increase and end with max_batch_size={self.max_batch_size}, got '
                f'{list(sizes)}.'
            )

    def padded_size(self, rows: int) -> int:
        """Returns the number of rows that a batch is run with."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


class _Answer(futures.Future):
    """A future that notes that nobody waits for it any more, even if it is being run and cannot be cancelled."""

    is_abandoned = False

    def cancel(self):
        """See the base class."""
        self.is_abandoned = True
        return super().cancel()


class _Request:
    """A request that waits: its inputs, and the future that is answered."""

    def __init__(self, inputs: Mapping[str, np.ndarray], rows: int, deadline: float):
        self.inputs, self.rows, self.deadline = inputs, rows, deadline
        self.future = _Answer()
        self.arrival = time.monotonic()
        # Of one shape but for their rows, or they cannot be joined.
        self.kind = {name: value.shape[1:] for name, value in inputs.items()}

    def fail(self, error: BaseException) -> None:
        """Answers with an error."""
        self.future.set_exception(status.from_exception(error))


class Batcher:
    """Runs a signature for many requests at once.

    An answer does not depend on what a request was joined with: a batch that fails is run again in halves, and so on,
    until an error is told to the one who caused it. Among n requests that is found in about 2 log2(n) runs.

    Args:
      signature: What is run.
      config: How requests are joined; those of a signature without rows never are.
      on_batch: Is told the number of rows of a batch and how long its oldest request waited, in seconds.
    """

    def __init__(
        self,
        signature: signatures.Signature,
        config: BatchingConfig,
        on_batch: Callable[[int, float], None] | None = None,
    ):
        self._signature, self._config = signature, config
        self._on_batch = on_batch or (lambda rows, waited: None)
        self._queue: collections.deque[_Request] = collections.deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._worker = threading.Thread(target=self._work, name=f'batcher {signature.name}', daemon=True)
        self._worker.start()

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, inputs: Mapping[str, np.ndarray], *, deadline: float) -> 'futures.Future[Outputs]':
        """Queues a request; cancelling the future takes it out again, unless it is already being run.

        Args:
          inputs: Arrays by name.
          deadline: By `time.monotonic`; a request that still waits then is not run.

        Returns:
          A future of arrays by name, or of a `ServingError`.

        Raises:
          ServingError: if the inputs do not fit the signature, are too many, or the queue is full.
        """
        rows = self._signature.num_rows(inputs)
        if self._signature.is_batched and rows > self._config.max_batch_size:
            raise signatures.too_many_rows(rows, self._config.max_batch_size)
        request = _Request(inputs, rows, deadline)
        with self._changed:
            if self._is_closed:
                raise status.ServingError(status.Code.UNAVAILABLE, 'the model is being unloaded.')
            if len(self._queue) >= self._config.max_queue:
                self._drop_abandoned()
            if len(self._queue) >= self._config.max_queue:
                raise status.ServingError(status.Code.UNAVAILABLE, _FULL)
            self._queue.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Answers what is queued, then ends the worker; nothing is taken in any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._worker.join()

    def _drop_abandoned(self) -> None:
        """Whoever cancelled, or asked for an answer by now, does not keep others out."""
        waiting = [request for request in self._queue if self._is_wanted(request)]
        self._queue.clear()
        self._queue.extend(waiting)

    def _is_wanted(self, request: _Request) -> bool:
        if request.future.cancelled():
            return False
        if request.deadline > time.monotonic():
            return True
        if request.future.set_running_or_notify_cancel():
            request.fail(status.ServingError(status.Code.DEADLINE_EXCEEDED, 'the deadline passed in the queue.'))
        return False

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            if not batch:
                return
            started = [request for request in batch if request.future.set_running_or_notify_cancel()]
            if started:
                self._on_batch(sum(request.rows for request in started), time.monotonic() - started[0].arrival)
                self._answer(started)
            del batch, started  # The next may come late, and images are large.

    def _next_batch(self) -> list[_Request]:
        """Waits for requests; returns those to be run together, or none when the batcher is closed and empty."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._is_closed)
                if not self._queue:
                    return []
                # From now on, and not from the arrival: those who were answered just now ask again, and would else make
                # every other batch.
                self._changed.wait_for(
                    lambda: self._is_closed or not self._may_grow(), timeout=self._config.batch_timeout_secs
                )
                batch = self._take()
                if batch:
                    return batch

    def _may_grow(self) -> bool:
        return self._signature.is_batched and sum(request.rows for request in self._queue) < self._config.max_batch_size

    def _take(self) -> list[_Request]:
        batch: list[_Request] = []
        rows = 0
        while self._queue:
            request = self._queue[0]
            if batch and (
                not self._signature.is_batched
                or request.kind != batch[0].kind
                or rows + request.rows > self._config.max_batch_size
            ):
                break
            self._queue.popleft()
            if self._is_wanted(request):
                batch.append(request)
                rows += request.rows
        return batch

    def _answer(self, batch: list[_Request]) -> None:
        try:
            results = self._run(batch)
        except BaseException as error:
            if len(batch) == 1:
                batch[0].fail(error)
                return
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                half = [request for request in half if self._is_still_wanted(request)]
                if half:
                    self._answer(half)
            return
        for request, result in zip(batch, results):
            request.future.set_result(result)

    def _is_still_wanted(self, request: _Request) -> bool:
        """Returns True where a request that was run with others in vain is to be run again; else answers it."""
        if request.future.is_abandoned:
            request.fail(status.ServingError(status.Code.CANCELLED, 'the client is gone.'))
        elif request.deadline <= time.monotonic():
            request.fail(status.ServingError(status.Code.DEADLINE_EXCEEDED, 'the deadline passed in the queue.'))
        return not request.future.done()

    def _run(self, batch: list[_Request]) -> list[Outputs]:
        if not self._signature.is_batched:
            return [self._signature.run(batch[0].inputs)]
        counts = [request.rows for request in batch]
        rows = sum(counts)
        padding = self._config.padded_size(rows) - rows
        joined = {}
        for name in self._signature.inputs:
            parts = [request.inputs[name] for request in batch]
            # Any valid row will do, and the first is one.
            parts += [np.repeat(parts[0][:1], padding, axis=0)] if padding else []
            joined[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
        outputs = self._signature.run(joined)
        for name, value in outputs.items():
            if value.shape[:1] != (rows + padding,):
                raise status.ServingError(
                    status.Code.FAILED_PRECONDITION,
                    f'output {name!r} has shape {list(value.shape)} for {rows + padding} rows of inputs.',
                )
        ends = np.cumsum(counts)
        # Copies, so that one answer that is sent slowly does not hold the whole batch.
        copied = len(batch) > 1 or padding
        return [
            {name: value[end - count : end].copy() if copied else value for name, value in outputs.items()}
            for count, end in zip(counts, ends)
        ]
