"""A privacy budget on disk: appears whole or not at all, is changed by one process at a time."""

from collections.abc import Callable, Iterator
import contextlib
import datetime
import json
import os
import pathlib
from typing import Any

from tf_dpdiff import files
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import ledger as ledger_lib

_OWNER_ONLY = 0o600

Change = Callable[[budget_lib.Budget], budget_lib.Budget]


def create(path: str | os.PathLike, budget: budget_lib.Budget) -> None:
    """Writes a new budget file, readable for its owner only.

    Raises:
      ValueError: if there is such a file.
    """
    path = _resolve(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if path.exists():
            raise ValueError(
                f'{path} exists: a new budget there would forget what its runs have cost. Name '
                'another file for another data set.'
            )
        _write(path, budget)


def read(path: str | os.PathLike) -> budget_lib.Budget:
    """Reads a budget file.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if the file is no budget.
    """
    path = _resolve(path)
    if not path.exists():
        raise FileNotFoundError(
            f'no budget file at {path}; `bin/account --budget_file={path} --create --epsilon=E --delta=D` makes one.'
        )
    try:
        return budget_lib.Budget.from_json(path.read_text(encoding='utf-8'))
    except ValueError as error:
        reason = ' '.join(str(error).split()).rstrip('.')
        raise ValueError(
            f'{path} is damaged or no budget file: {reason}. Restore it from a copy; a new one would '
            'forget what the runs on this data have cost.'
        ) from error


def update(path: str | os.PathLike, change: Change) -> budget_lib.Budget:
    """Reads, changes and writes a budget file while no other process can; returns the changed budget.

    Where `change` raises, the file stays as it was. The lock is flock's, on a file beside it: on a network file system
    it holds between machines only where that file system says so.

    Args:
      path: The file.
      change: From the budget to the changed one.
    """
    with held(path) as update_held:
        return update_held(change)


@contextlib.contextmanager
def held(path: str | os.PathLike) -> Iterator[Callable[[Change], budget_lib.Budget]]:
    """Keeps other processes from a budget file within a block; yields what changes the file, as `update` does."""
    path = _resolve(path)
    read(path)  # Without a budget there is nothing to lock.

    def update_held(change: Change) -> budget_lib.Budget:
        before = read(path)
        after = change(before)
        if after != before:
            _write(path, after)
        return after

    with _locked(path):
        yield update_held


def about(dataset: datasets.ImageDataset) -> dict[str, str]:
    """Returns what an entry of a budget says of its data, and of the time: arguments of `Budget.reserve`."""
    return {'dataset': dataset.name, 'data_fingerprint': dataset.fingerprint(), 'unit': dataset.unit, 'time': now()}


def check_holds(
    budget: budget_lib.Budget, path: str | os.PathLike, workdir: pathlib.Path, statement: dict[str, Any]
) -> None:
    """Checks that a budget was charged with what the run in a folder has released.

    Args:
      budget: The budget.
      path: Its file, for the message.
      workdir: The run's folder, for the message.
      statement: The fields of the run's privacy statement.

    Raises:
      ValueError: if it was not.
    """
    entry = budget.entry(statement['run_id'])
    released = ledger_lib.Ledger.from_json(json.dumps(statement['releases']))
    if entry is None or (entry.status, entry.ledger) != (budget_lib.SETTLED, released):
        raise ValueError(
            f'{path} does not hold the run in {workdir}; charge it first: '
            f'bin/account --budget_file={path} --workdir={workdir}'
        )


def now() -> str:
    """Returns the time to the second, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M:%S UTC')


def _resolve(path: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(path).expanduser().resolve()  # A link is followed: two names of one file share its lock.


def _locked(path: pathlib.Path) -> contextlib.AbstractContextManager:
    return files.holding(path.with_name(f'.{path.name}.lock'), wait=True, needs_locks=True, mode=_OWNER_ONLY)


def _write(path: pathlib.Path, budget: budget_lib.Budget) -> None:
    with files.replacing(path) as temporary:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, _OWNER_ONLY), 'w', encoding='utf-8') as file:
            file.write(budget.to_json())
            file.flush()
            os.fsync(file.fileno())  # A reservation is on disk before its run begins.
