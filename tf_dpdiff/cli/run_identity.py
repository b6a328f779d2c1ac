"""Do the files of a run belong together: its statement, its checkpoints, and the data that a command is given?"""

import json
import pathlib
import sys

from tf_dpdiff import files
from tf_dpdiff.cli import command
from tf_dpdiff.cli import run_files
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.training import checkpoints


def check_free(workdir: pathlib.Path) -> None:
    """Checks that a folder holds neither a run that is over nor results of another run than its checkpoints, if any.

    A run that began there would leave its checkpoints beside a statement that says less than they cost. A run that has
    diverged was charged for what it had released, and would release more.

    Raises:
      command.UsageError: if it does.
      ValueError: if the statement is damaged.
    """
    path, found = run_files.statement_paths(workdir)[1], checkpoints.read_run(workdir / 'checkpoints')
    if found is not None and found.has_diverged:
        raise command.UsageError(
            f'the run in {workdir} has diverged, and is over: lower learning_rate of the '
            'OptimizationConfig of the stage that did, and name another --workdir.'
        )
    if not path.exists():
        return
    statement = files.read_json(path)
    if found is None or statement.get('run_id', found.run_id) != found.run_id:
        raise command.UsageError(
            f'{workdir} holds the results of another run than its checkpoints ({path.name} is not '
            'theirs): name another --workdir, or move those files away.'
        )
    if _count(_released(statement)) > _count(found.ledger):
        raise command.UsageError(
            f'{path.name} in {workdir} tells of more steps than its newest whole checkpoint: the '
            'model is released, and must not be trained and released anew. Put the checkpoints '
            'back from a copy, or name another --workdir.'
        )


def check_statement(workdir: pathlib.Path) -> None:
    """Checks that a run's statement is about its newest checkpoint.

    Raises:
      command.UsageError: if it is about another run, or about fewer steps.
      ValueError: if it is damaged.
    """
    path = run_files.statement_paths(workdir)[1]
    statement, found = files.read_json(path), checkpoints.read_run(workdir / 'checkpoints')
    if found is None:
        raise command.UsageError(
            f'{workdir / "checkpoints"} is missing: without it the run cannot draw anew; draw from its --saved_model.'
        )
    if (statement.get('run_id', found.run_id), _released(statement)) != (found.run_id, found.ledger):
        raise command.UsageError(
            f'{path} and {workdir / "checkpoints"} are not of the same run, or the run goes on: '
            'finish it by its bin/train command, which writes its statement.'
        )


def check_same_data(workdir: pathlib.Path, train: datasets.ImageDataset) -> None:
    """Checks that a run was trained on these images, if its checkpoints tell.

    Raises:
      command.UsageError: if it was trained on others: held-out images may be among those.
    """
    found = checkpoints.read_run(workdir / 'checkpoints')
    if found is None:
        print(
            f'{workdir} holds no checkpoints: whether its run was trained on these images, and not on the held-out '
            'ones, is not known.',
            file=sys.stderr,
        )
    elif found.data_fingerprint not in (None, train.fingerprint()):
        raise command.UsageError(
            f'the run in {workdir} was trained on other images than those of {train.name!r} that are not held out '
            '(another file, split or owners): its training images may be among the held-out ones. Give the data as '
            'the run had them.'
        )


def _released(statement: dict) -> ledger_lib.Ledger:
    """Returns the releases that a statement tells of."""
    return ledger_lib.Ledger.from_json(json.dumps(statement.get('releases', [])))


def _count(ledger: ledger_lib.Ledger) -> int:
    return sum(release.count for release in ledger.releases)
