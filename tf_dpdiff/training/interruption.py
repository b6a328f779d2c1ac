"""Clean stops: on Ctrl-C, on SIGTERM, on SIGUSR1, and where something else asks for one."""

import signal
import threading


class Interrupted(Exception):
    """The run was asked to stop, and stopped with everything saved."""


class StopRequest:
    """A context in which SIGINT, SIGTERM and SIGUSR1 ask for a stop instead of killing the process.

    The work inside looks at `requested` where it can stop. A second Ctrl-C interrupts at once: the last checkpoint
    stands. SIGUSR1 is what Slurm is customarily told to send before the time limit.

    Attributes:
      requested: Whether the work should stop.
      reason: Who first asked, in words, such as 'SIGTERM'; empty where nobody did.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.requested, stop.reason
        (True, 'SIGTERM')
    """

    def __init__(self):
        self.requested = False
        self.reason = ''
        self._previous = {}

    def __enter__(self) -> 'StopRequest':
        # Handlers can be set in the main thread only; elsewhere whoever started the thread decides.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused_error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def request(self, reason: str) -> None:
        """Asks for a stop; may be called from any thread, and again.

        Args:
          reason: Who asks, in words; what came first is kept.
        """
        self.reason = self.reason or reason
        self.requested = True

    def _handle(self, number, frame):
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request(signal.Signals(number).name)
