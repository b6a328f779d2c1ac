"""Requests to stop that come when a test wants them."""


class StopAfter:
    """A request to stop that comes after so many steps."""

    reason = 'a test'

    def __init__(self, steps):
        self._left = steps

    @property
    def requested(self):
        self._left -= 1
        return self._left < 0


NEVER = StopAfter(10**9)
