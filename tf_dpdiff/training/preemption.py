"""Notices that a cloud gives before it takes a machine away, turned into a request to stop."""

from collections.abc import Iterator
import contextlib
import http.client
import os
import socket
import sys
import threading
import urllib.parse

from tf_dpdiff.training import interruption

(GCE,) = NOTICES = ('gce',)

_TIMEOUT_SECS = 5.0  # To connect, and to answer a question that does not wait.
_POLL_SECS = 60.0  # How long the server may hold back an answer.
_PAUSE_SECS = 5.0  # Between tries, where the server does not answer.
_TRIES_AT_THE_START = 3
# What is watched, the value that means the end, and what it is called.
_EVENTS = (
    ('preempted', 'TRUE', 'preemption notice of GCE'),
    ('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE', 'maintenance notice of GCE'),
)


def check(kind: str | None) -> None:
    """Checks the name of a kind of notice.

    Raises:
      ValueError: names it.
    """
    if kind is not None and kind not in NOTICES:
        raise ValueError(f'preemption_notice of the strategy must be None or one of {NOTICES}, got {kind!r}.')


@contextlib.contextmanager
def watching(kind: str | None, stop: interruption.StopRequest) -> Iterator[None]:
    """A context in which a notice that this machine will be taken away asks for a stop.

    With 'gce', the metadata server of Google Compute Engine is asked, which a virtual machine reaches without
    credentials; the environment variable GCE_METADATA_HOST names another host. A server that does not answer later on
    is asked again and again, and never ends the run. A machine that will be moved while it runs does not stop.

    Args:
      kind: One of NOTICES; None watches nothing.
      stop: What is asked to stop.

    Raises:
      ValueError: if the kind is unknown, or the metadata server cannot be reached at the start; says what to do.
    """
    check(kind)
    if kind is None:
        yield
        return
    host = os.environ.get('GCE_METADATA_HOST') or 'metadata.google.internal'
    may_warn = threading.Lock()  # Taken by the one that warns, and kept.
    watchers = [_Watcher(host, *event, stop, may_warn) for event in _EVENTS]
    try:
        for watcher in watchers:
            watcher.start()
        yield
    finally:
        for watcher in watchers:
            watcher.end()


class _Watcher:
    """Watches one value of the metadata server in a thread of its own."""

    def __init__(
        self, host: str, key: str, final: str, reason: str, stop: interruption.StopRequest, may_warn: threading.Lock
    ):
        self._host, self._path = host, f'/computeMetadata/v1/instance/{key}'
        self._final, self._reason, self._stop, self._may_warn = final, reason, stop, may_warn
        self._ended = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self._watch, name=f'gce {key}', daemon=True)
        self._etag = self._seen = ''

    def start(self) -> None:
        for left in reversed(range(_TRIES_AT_THE_START)):
            try:
                value = self._ask('')
                break
            except (OSError, http.client.HTTPException) as error:
                if not left:
                    raise ValueError(
                        f"preemption_notice='{GCE}' needs the metadata server of Google Compute Engine, and "
                        f'http://{self._host}{self._path} does not answer as it ({error or type(error).__name__}): set '
                        'StrategyConfig.preemption_notice = None elsewhere.'
                    ) from error
                self._ended.wait(_PAUSE_SECS / 5)
        # Maintenance is announced up to an hour ahead. What was announced before the start is no reason to stop, or a
        # run that is started again on this machine would stop again until the hour is over; SIGTERM comes at its end.
        if value == self._final == 'TRUE':
            self._stop.request(self._reason)
        self._seen = value
        self._thread.start()

    def end(self) -> None:
        """Ends the thread, also while the server holds back an answer."""
        self._ended.set()
        while self._thread.is_alive():
            connected = self._connection and self._connection.sock
            if connected:
                with contextlib.suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)
            self._thread.join(0.05)

    def _watch(self) -> None:
        while not self._ended.is_set():
            etag = urllib.parse.quote(self._etag)
            try:
                value = self._ask(f'?wait_for_change=true&timeout_sec={_POLL_SECS:g}&last_etag={etag}')
            except (OSError, http.client.HTTPException) as error:
                if not self._ended.is_set() and self._may_warn.acquire(blocking=False):
                    print(
                        f'warning: no answer about preemption from {self._host} '
                        f'({error or type(error).__name__}); the run goes on, and it is asked again.',
                        file=sys.stderr,
                    )
                self._ended.wait(_PAUSE_SECS)
                continue
            if self._ended.is_set():
                return
            if value != self._seen and value == self._final:
                self._stop.request(self._reason)
            self._seen = value
            self._ended.wait(_PAUSE_SECS / 5)  # A server that does not wait is not asked without a break.

    def _ask(self, query: str) -> str:
        """Returns the value; with a query that waits, once it has changed or some time is over."""
        # Not by urllib.request: a proxy that the environment names must not be asked, and a connection must be held to
        # be ended from outside.
        connection = http.client.HTTPConnection(self._host, timeout=_TIMEOUT_SECS)
        self._connection = connection
        with contextlib.closing(connection):
            connection.connect()
            if query:
                connection.sock.settimeout(_TIMEOUT_SECS + _POLL_SECS)
            connection.request('GET', self._path + query, headers={'Metadata-Flavor': 'Google'})
            response = connection.getresponse()
            text = response.read().decode(errors='replace').strip()
            if response.status != 200 or response.headers.get('Metadata-Flavor') != 'Google':
                raise http.client.HTTPException(f'status {response.status}')
            self._etag = response.headers.get('ETag', '')
            return text
