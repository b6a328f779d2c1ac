"""Requests to stop that come when a test wants them, and a run that is resumed after each."""

from tf_dpdiff.training import interruption


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


def run_with_stops(make_trainer):
    """Runs a run that is stopped after every other step, and made anew to go on; returns the trainer that ended it."""
    while True:
        trainer = make_trainer()
        try:
            trainer.run(StopAfter(1))
            return trainer
        except interruption.Interrupted:
            pass
