"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import tempfile
from typing import Iterator, Union


@contextlib.contextmanager
def replacing(path: Union[str, os.PathLike]) -> Iterator[pathlib.Path]:
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


def write_text(path: Union[str, os.PathLike], text: str) -> None:
    """Writes a text file that is never seen half written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8')
