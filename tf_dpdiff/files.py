"""Files that appear whole or not at all, and files that one process holds at a time."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import tempfile
from typing import Any

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends without an error.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(pathlib.Path(folder) / 'a.txt') as temporary:
        ...         _ = temporary.write_text('whole')
        ...     sorted(os.listdir(folder))
        ['a.txt']
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        temporary = pathlib.Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def holding(path: str | os.PathLike) -> Iterator[None]:
    """A context in which no other process can hold the same file; made if it is missing, and left where it is.

    The operating system lets go of it when the process ends, however it ends. Where the file system has no such locks
    (or the platform no flock) nothing is held off. Between machines it holds where the file system says so.

    Raises:
      BlockingIOError: if another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # No locks here.
        yield
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file that is never seen half written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it holds something else; names the file.
    """
    try:
        fields = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    except ValueError as error:  # No UTF-8, or no JSON.
        raise ValueError(f'{path} is damaged ({error}); restore it from a copy.') from error
    if not isinstance(fields, dict):
        raise ValueError(f'{path} is damaged (it holds no JSON object); restore it from a copy.')
    return fields
