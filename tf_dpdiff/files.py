"""Files that appear whole or not at all, and files that one process holds at a time."""

from collections.abc import Iterator
import contextlib
import errno
import json
import os
import pathlib
import tempfile
from typing import Any

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None  # type: ignore[assignment]  # What is imported is a module or nothing.


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
def holding(
    path: str | os.PathLike, *, wait: bool = False, needs_locks: bool = False, removes: bool = False, mode: int = 0o666
) -> Iterator[None]:
    """A context in which no other process can hold the same file, which is made if it is missing.

    The operating system lets go of it when the process ends, however it ends. Between machines it holds where the file
    system says so.

    Args:
      path: The file.
      wait: Waits until another process lets go of it.
      needs_locks: Refuses to go on where the file system (or the platform) has no such locks; else nothing is held off
        there.
      removes: Removes the file in the end, in place of leaving it where it is.
      mode: Permissions of the file where it is made.

    Raises:
      BlockingIOError: if another process holds it, and is not waited for.
      OSError: if there are no locks, and they are needed.
    """
    descriptor = _open_locked(path, wait, needs_locks, mode)
    while removes and not _is_at(path, descriptor):  # It is of a process that has just removed it.
        os.close(descriptor)
        descriptor = _open_locked(path, wait, needs_locks, mode)
    try:
        yield
    finally:
        if removes:
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(descriptor)


def _open_locked(path: str | os.PathLike, wait: bool, needs_locks: bool, mode: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
    try:
        if fcntl is None:
            raise OSError(errno.ENOTSUP, 'this platform has no locks of files')
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if needs_locks or isinstance(error, BlockingIOError):
            os.close(descriptor)
            raise
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_at(path: str | os.PathLike, descriptor: int) -> bool:
    """Returns True where an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


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
