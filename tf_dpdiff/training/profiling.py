"""A trace of some steps, for TensorBoard's profiler."""

import pathlib

import tensorflow as tf


class StepProfiler:
    """A context in which the steps that were asked for are traced.

    Args:
      folder: Where the trace goes.
      steps: (start, stop): steps start to stop - 1 are traced, counted from 0; None: none.
    """

    def __init__(self, folder: pathlib.Path, steps: tuple[int, int] | None):
        self._folder = folder
        self._start, self._stop = steps or (0, 0)
        self._is_tracing = False

    def __enter__(self) -> 'StepProfiler':
        return self

    def __exit__(self, *unused_error):
        self._end()

    def before(self, step: int) -> None:
        """Call before a step."""
        if self._start <= step < self._stop and not self._is_tracing:
            tf.profiler.experimental.start(str(self._folder))
            self._is_tracing = True

    def after(self, step: int) -> None:
        """Call after a step."""
        if step + 1 >= self._stop:
            self._end()

    def _end(self) -> None:
        if self._is_tracing:
            self._is_tracing = False
            tf.profiler.experimental.stop()
