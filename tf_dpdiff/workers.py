"""The processes of one run: which of them this is, and the few words that they exchange.

Results do not depend on how many there are. The first worker (0) alone reads and writes the run's folder.
"""

from collections.abc import Callable, Sequence
import contextlib
import re

import numpy as np
import tensorflow as tf

# What TensorFlow says of other workers. Errors of these kinds may also be this worker's own, of a variable that is not
# initialized or of work that it called off itself.
_AMBIGUOUS = (tf.errors.FailedPreconditionError, tf.errors.CancelledError)
_OF_OTHERS = re.compile(
    r'Collective|remote target|incarnation|BufRendezvous|coordination service|'
    r'(Group|group|RecvAsync|RecvFromRemoteAsync) is cancelled'
)


class WorkersDisagreeError(ValueError):
    """The workers of a run were not given the same configuration or the same data."""


class WorkerLostError(ConnectionError):
    """A worker of the run is gone, and what all of them should do together cannot be done."""


@contextlib.contextmanager
def together():
    """A context for what all workers compute together.

    Raises:
      WorkerLostError: where TensorFlow says that another worker cannot be reached, or stopped on the way. What this
        worker itself failed in is raised as it is.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError, *_AMBIGUOUS) as error:
        if isinstance(error, _AMBIGUOUS) and not _OF_OTHERS.search(str(error)):
            raise
        raise WorkerLostError(
            'another worker is gone or cannot be reached; what was saved stands. End all workers, and '
            'start them again with the same command.'
        ) from error


class Workers:
    """The processes of one run, seen from one of them.

    What is said here is said by all of them in the same order: a call that one leaves out would make the others wait.

    Args:
      index: Which worker this is.
      count: How many there are.
      sum_vectors: Maps a float32 vector of each worker, equally long in all, to their sum; None where there is one
        worker alone.
    """

    def __init__(self, index: int = 0, count: int = 1, sum_vectors: Callable[[np.ndarray], np.ndarray] | None = None):
        self.index, self.count, self._sum_vectors = index, count, sum_vectors

    def together(self):
        """Returns a context for what all workers compute together; see `together`."""
        return together() if self.count > 1 else contextlib.nullcontext()

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that reads and writes the run's folder."""
        return self.index == 0

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set at any worker."""
        return self.any_of([flag])[0]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Returns of each flag whether it is set at any worker; equally many at all of them, told in one exchange."""
        return [bool(total) for total in self._sum(np.array(flags, np.float32))]

    def wait_for_all(self) -> None:
        """Returns when all workers are here."""
        self.any(False)

    def gather(self, payload: bytes) -> list[bytes]:
        """Returns the bytes that each worker gave, in the order of the workers."""
        if self.count == 1:
            return [payload]
        sizes = [int.from_bytes(row, 'little') for row in self._gather_rows(len(payload).to_bytes(8, 'little'))]
        rows = self._gather_rows(payload.ljust(max(sizes), b'\0'))
        return [row[:size] for row, size in zip(rows, sizes)]

    def broadcast(self, payload: bytes | None) -> bytes:
        """Returns the bytes that the first worker gave; what the others give does not count."""
        own = b''
        if self.is_first:
            assert payload is not None
            own = payload
        if self.count == 1:
            return own
        size = int.from_bytes(self._sum_bytes(len(own).to_bytes(8, 'little')), 'little')
        return self._sum_bytes(own if self.is_first else bytes(size))

    def check_same(
        self, value: str, what: str, *, cure: str = 'all workers must be started with the same command on the same data'
    ) -> None:
        """Checks that all workers have the same value.

        Args:
          value: Of this worker.
          what: The value in words, for the message: it may be private, and is not shown.
          cure: What to do where it is not the same.

        Raises:
          WorkersDisagreeError: in all workers; names those that differ from the first.
        """
        values = self.gather(value.encode())
        differing = [str(index) for index, other in enumerate(values) if other != values[0]]
        if differing:
            raise WorkersDisagreeError(f'worker {", ".join(differing)} and worker 0 differ in {what}: {cure}.')

    def _gather_rows(self, row: bytes) -> list[bytes]:
        """Returns the bytes that each worker gave, equally many at all of them."""
        before, after = self.index * len(row), (self.count - self.index - 1) * len(row)
        rows = self._sum_bytes(bytes(before) + row + bytes(after))
        return [rows[i * len(row) : (i + 1) * len(row)] for i in range(self.count)]

    def _sum_bytes(self, payload: bytes) -> bytes:
        """Returns the sum of bytes of which all but one worker give zeros, equally many at all of them."""
        # As float32, which holds every byte exactly and is what every collective implementation can add up.
        values = np.frombuffer(payload, np.uint8).astype(np.float32)
        return self._sum(values).astype(np.uint8).tobytes()

    def _sum(self, vector: np.ndarray) -> np.ndarray:
        if self.count == 1:
            return vector
        assert self._sum_vectors is not None
        return self._sum_vectors(vector)


ALONE = Workers()


def make_sum_vectors(strategy: tf.distribute.Strategy, num_workers: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the sum over the workers of a MultiWorkerMirroredStrategy, for `Workers`."""
    replicas_per_worker = strategy.num_replicas_in_sync // num_workers

    def value(vector: tf.Tensor, context) -> tf.Tensor:
        # Of a worker's replicas the first one speaks; the others add zeros.
        speaks = context.replica_id_in_sync_group % replicas_per_worker == 0
        return vector if speaks else tf.zeros_like(vector)

    def in_replica(vector):
        # Times one: a tensor that is an argument as it stands cannot be reduced.
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, vector * 1.0)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.float32)])
    def sum_vectors(vector):
        values = strategy.experimental_distribute_values_from_function(lambda context: value(vector, context))
        return strategy.experimental_local_results(strategy.run(in_replica, args=(values,)))[0]

    def sum_together(vector: np.ndarray) -> np.ndarray:
        with together():
            return sum_vectors(tf.constant(vector)).numpy()

    return sum_together
