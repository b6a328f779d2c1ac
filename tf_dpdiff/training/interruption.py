"""Clean stops on Ctrl-C and SIGTERM."""

import signal
import threading


class Interrupted(Exception):
    """The run was asked to stop, and stopped with everything saved."""


class StopRequest:
    """A context in which SIGINT and SIGTERM ask for a stop instead of killing the process.

    The work inside looks at `requested` where it can stop. A second Ctrl-C interrupts at once: the last checkpoint
    stands.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.requested
        True
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> 'StopRequest':
        # Handlers can be set in the main thread only; elsewhere whoever started the thread decides.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused_error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
