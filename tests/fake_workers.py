"""Workers of one run that are threads of a test, so that what they say to one another takes no time."""

import collections
from concurrent import futures
import threading

import numpy as np

from tf_dpdiff import workers as workers_lib


class _Exchange:
    """The words that workers have said: the n-th word of each belongs to the n-th of the others."""

    def __init__(self, count):
        self._count, self._said, self._gone = count, collections.defaultdict(dict), set()
        self._changed = threading.Condition()

    def sum_vectors_of(self, index):
        """Returns a function that gives a worker the sum over all workers; raises if one has ended without its word."""
        numbers = iter(range(10**6))

        def is_settled(said):
            return len(said) == self._count or self._gone - set(said)

        def sum_vectors(vector):
            assert vector.dtype == np.float32
            with self._changed:
                said = self._said[next(numbers)]
                said[index] = vector
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: is_settled(said), timeout=60), 'workers wait for each other'
            if len(said) < self._count:
                raise workers_lib.WorkerLostError('gone')
            # Vectors of different lengths are words that do not belong together.
            return np.sum(np.stack([said[i] for i in range(self._count)]), axis=0)

        return sum_vectors

    def leave(self, index):
        with self._changed:
            self._gone.add(index)
            self._changed.notify_all()


def play(do, count=2):
    """Calls do(workers) as each of several workers.

    Returns:
      What it returned or raised, the first worker first.
    """
    exchange = _Exchange(count)

    def play_one(index):
        try:
            return do(workers_lib.Workers(index, count, exchange.sum_vectors_of(index)))
        except Exception as error:
            return error
        finally:
            exchange.leave(index)

    with futures.ThreadPoolExecutor(count) as executor:
        return list(executor.map(play_one, range(count)))
