"""What long work says of itself, on standard error."""

from collections.abc import Callable, Iterator
import contextlib
import sys
import threading

import tqdm

_NAME_WIDTH = 11
_PATIENCE_SECS = 2.0


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
def working(verb: str, what: str) -> Iterator[None]:
    """Says on standard error what is being done within a block that takes more than two seconds."""
    timer = threading.Timer(_PATIENCE_SECS, lambda: print(f'{verb}: {what} ...', file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
