"""How long a run has taken, over all calls of its command: told at the console, and part of no release."""

from collections.abc import Iterator
import contextlib
import json
import pathlib
import threading
import time

from tf_dpdiff import files
from tf_dpdiff.training import checkpoints

_FILE = 'seconds.json'
_EVERY_SECS = 10.0  # What the call of a process that is killed may lose.


class Clock:
    """Measures this call from now on, and adds what earlier calls of the same run have taken.

    How long private steps take tells of how many images are in them, so the file lies with the checkpoints, which stay
    private.
    """

    def __init__(self):
        self._started, self._earlier_secs = time.monotonic(), 0.0

    @contextlib.contextmanager
    def kept_in(self, workdir: pathlib.Path) -> Iterator[None]:
        """A context in which the time is kept in a run's folder, where a call that goes on with the run finds it.

        Args:
          workdir: The run's folder, which has its first checkpoint.
        """
        path, ended = workdir / checkpoints.FOLDER / _FILE, threading.Event()
        self._earlier_secs = _read(path)

        def keep_until_ended():
            while not ended.wait(_EVERY_SECS):
                self._write(path)

        keeper = threading.Thread(target=keep_until_ended, name='clock', daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            self._write(path)

    def describe(self) -> str:
        """Returns the time of all calls in words, and of this one where it is not the only one."""
        here = time.monotonic() - self._started
        in_all = f'{(self._earlier_secs + here) / 60.0:.1f} minutes'
        return f'{in_all} in all, {here / 60.0:.1f} of them in this call' if self._earlier_secs else in_all

    def _write(self, path: pathlib.Path) -> None:
        with contextlib.suppress(OSError):  # A full disk ends a run where it loses more than its time.
            seconds = self._earlier_secs + time.monotonic() - self._started
            files.write_text(path, json.dumps({'seconds': round(seconds, 1)}) + '\n')


def _read(path: pathlib.Path) -> float:
    """Returns the seconds of earlier calls; none where no file tells them."""
    try:
        return max(0.0, float(files.read_json(path)['seconds']))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return 0.0
