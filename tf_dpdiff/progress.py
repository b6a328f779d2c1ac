"""What long work says of itself, on standard error."""

from collections.abc import Callable, Iterator
import contextlib
import sys
import threading
import time

import tqdm

_NAME_WIDTH = 11
_PATIENCE_SECS = 2.0
_AGAIN_SECS = 60.0


def bar(
    total: int | None,
    name: str,
    unit: str,
    *,
    initial: int = 0,
    delay_secs: float = 0.0,
    leave: bool = True,
    disable: bool = False,
) -> tqdm.tqdm:
    """Returns a progress bar with rate and time left; in a log it says so twice a minute at most.

    Args:
      total: How much there is to do; None where that is not known.
      name: What is done.
      unit: Of what: 'step', 'image'.
      initial: How much was done before.
      delay_secs: Work that takes less shows no bar.
      leave: Whether the bar stays when the work is done.
      disable: Shows nothing.
    """
    return tqdm.tqdm(
        total=total,
        initial=initial,
        desc=name.ljust(_NAME_WIDTH),
        unit=unit,
        delay=delay_secs,
        leave=leave,
        disable=disable,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
    )


def sayer(verb: str) -> Callable[[str], None]:
    """Returns a function that prints a line of a verb on standard error."""
    return lambda text: print(f'{verb}: {text}', file=sys.stderr)


@contextlib.contextmanager
def working(name: str, what: str) -> Iterator[None]:
    """Says on standard error what is being done within a block that takes more than two seconds, and again each minute.

    Args:
      name: Of the verb or the stage that says so.
      what: As in 'writing the report'.
    """
    started, ended = time.monotonic(), threading.Event()

    def tell():
        if ended.wait(_PATIENCE_SECS):
            return
        print(f'{name}: {what} ...', file=sys.stderr, flush=True)
        while not ended.wait(_AGAIN_SECS):
            minutes = (time.monotonic() - started) / 60.0
            print(f'{name}: {what} ... for {minutes:.0f} min', file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, name='progress', daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
