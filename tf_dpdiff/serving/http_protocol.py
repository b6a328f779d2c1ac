"""HTTP/1.1 connections that end when their client is too slow."""

from uvicorn.protocols.http import h11_impl

HEADER_TIMEOUT_SECS = 10.0
STALLED_SECS = 30.0
_MAX_CONNECTIONS = 1000
_FAREWELL_SECS = 0.3


class TimeLimitedProtocol(h11_impl.H11Protocol):
    """A connection of uvicorn's with two limits that uvicorn lacks.

    Between requests, a client has `HEADER_TIMEOUT_SECS` from its first byte (or from connecting) to the end of the next
    request's header; a body that was refused unread is passed over for as long. A client that does not read its answer
    is cut off after `STALLED_SECS`.
    """

    _header_timer = _write_timer = None

    def connection_made(self, transport):
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > _MAX_CONNECTIONS:
            transport.abort()
            return
        self._watch_header()

    def data_received(self, data):
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._watch_header()

    def on_response_complete(self):
        """Called by uvicorn."""
        super().on_response_complete()
        self._set_header_timer(None)  # From here on, uvicorn's own limit for idle connections counts.

    def connection_lost(self, exc):
        """See `asyncio.Protocol`."""
        self._set_header_timer(None)
        self.resume_writing()
        super().connection_lost(exc)

    def shutdown(self):
        """Called by uvicorn when the server stops; a request that is on its way to a connection still counts."""
        self.loop.call_later(_FAREWELL_SECS, self._shut_down)

    def _shut_down(self):
        if not self.transport.is_closing():
            super().shutdown()
            if self.cycle is None or self.cycle.response_complete:
                self.loop.call_later(_FAREWELL_SECS, self._abandon)

    def _abandon(self):
        """Ends an idle connection whose client does not take part in the end of TLS."""
        if not self.transport.get_write_buffer_size():
            self.transport.abort()

    def pause_writing(self):
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(STALLED_SECS, self.transport.abort)

    def resume_writing(self):
        """See `asyncio.Protocol`."""
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _watch_header(self):
        if self.cycle is not None and not self.cycle.response_complete:
            self._set_header_timer(None)
        elif self._header_timer is None:
            self._set_header_timer(self.loop.call_later(HEADER_TIMEOUT_SECS, self.transport.close))

    def _set_header_timer(self, timer):
        if self._header_timer:
            self._header_timer.cancel()
        self._header_timer = timer
