"""The checkpoint of a run, saved as one: weights, optimizers, position and, of private runs, ledger and secret seed."""

import json
import os
import pathlib
import secrets
from typing import List, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import seeds

_README = """PRIVATE. These checkpoints hold the secret seed of the run: whoever has it can remove the noise.
Release the exported model (saved_model/) and the samples, never this folder.
"""
_PUBLIC_README = """Checkpoints of a run on public images alone: there is no secret in them. What private runs start
from is the folder pretrained/, which is written when the run is finished.
"""


class CheckpointMismatchError(ValueError):
    """A checkpoint was made by another configuration."""


class RunState:
    """Where a run stands; everything in it is saved in one file, so that no two parts can disagree.

    Attributes:
      private_seed: The run's secret; None for a run that reads no private image.
      run_id: The run's public name, drawn at random when it begins and kept when it is resumed.
      ledger: What has been released by the weights of this state.
      stage: Name of the stage.
      step: Steps done in the stage.
    """

    def __init__(self, private_seed: Optional[seeds.PrivateSeed]):
        self.private_seed = private_seed
        self.run_id = secrets.token_hex(8)
        self.ledger = ledger_lib.Ledger()
        self.stage = ''
        self.step = 0

    def to_json(self) -> str:
        """Returns everything as JSON: PRIVATE, it holds the secret."""
        return json.dumps({
            'private_seed': self.private_seed.reveal().hex() if self.private_seed else None,
            'run_id': self.run_id,
            'ledger': self.ledger.to_json(),
            'stage': self.stage,
            'step': self.step,
        })

    @classmethod
    def from_json(cls, text: str) -> 'RunState':
        """Inverse of `to_json`."""
        record = json.loads(text)
        secret = record['private_seed']
        state = cls(seeds.PrivateSeed(bytes.fromhex(secret)) if secret else None)
        state.run_id = record['run_id']
        state.ledger = ledger_lib.Ledger.from_json(record['ledger'])
        state.stage, state.step = record['stage'], record['step']
        return state


class RunCheckpoint:
    """Saves and restores a RunState together with networks and optimizers.

    A save goes to a temporary name and is then renamed, and the newest two are kept: a run killed at any moment resumes
    from a whole checkpoint.

    Args:
      directory: The folder of checkpoints; made readable for its owner only where the run is private.
      configuration: JSON-able values that must be the same when the run is resumed.
      trackables: Networks and optimizers by name.
    """

    def __init__(self, directory: pathlib.Path, configuration: dict, *, max_to_keep: int = 2, **trackables):
        self._configuration = json.dumps(configuration, sort_keys=True)
        self._record = tf.Variable('', dtype=tf.string, trainable=False)
        self._checkpoint = tf.train.Checkpoint(record=self._record, **trackables)
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(directory), max_to_keep=max_to_keep)
        self._trackables = trackables
        self._directory = directory

    @property
    def variables(self) -> List[tf.Variable]:
        """The variables of all networks and optimizers, in a fixed order."""
        return [variable for trackable in self._trackables.values() for variable in trackable.variables]

    def save(self, state: RunState) -> None:
        """Saves everything."""
        self._directory.mkdir(parents=True, exist_ok=True)
        if state.private_seed:
            os.chmod(self._directory, 0o700)
        (self._directory / 'README').write_text(_README if state.private_seed else _PUBLIC_README)
        self._record.assign(
            json.dumps({
                'configuration': self._configuration,
                'private_seed': state.private_seed.reveal().hex() if state.private_seed else None,
                'run_id': state.run_id,
                'ledger': state.ledger.to_json(),
                'stage': state.stage,
                'step': state.step,
            }))
        self._manager.save()

    def restore(self) -> None:
        """Restores the networks and optimizers from the newest checkpoint; call `read_state` for the rest."""
        self._checkpoint.restore(self._manager.latest_checkpoint).assert_existing_objects_matched()


class RunIdentity(NamedTuple):
    """What tells a run and its data apart from others.

    Attributes:
      run_id: The run's public name.
      data_fingerprint: PRIVATE: who holds the exact same data set can tell. None of a run on public images alone.
      ledger: What has been released by the newest checkpoint.
    """
    run_id: str
    data_fingerprint: Optional[str]
    ledger: ledger_lib.Ledger


def read_run(directory: pathlib.Path) -> Optional[RunIdentity]:
    """Returns which run a folder of checkpoints holds, on private images or not, or None where there is none.

    Args:
      directory: The folder of checkpoints.

    Raises:
      CheckpointMismatchError: if the run was begun before runs had an identity.
    """
    record = _read_record(directory)
    if record is None:
        return None
    return RunIdentity(record['run_id'],
                       json.loads(record['configuration']).get('data_fingerprint'),
                       ledger_lib.Ledger.from_json(record['ledger']))


def read_identity(directory: pathlib.Path) -> Optional[RunIdentity]:
    """Returns which run on private images a folder of checkpoints holds, or None where there is none.

    Args:
      directory: The folder of checkpoints.

    Raises:
      CheckpointMismatchError: if the run was begun before runs had an identity, or reads no private images.
    """
    found = read_run(directory)
    if found is not None and found.data_fingerprint is None:
        raise CheckpointMismatchError(f'the run in {directory.parent} read public images alone: it has no private data '
                                      'to charge, to attack or to go on with; name another --workdir.')
    return found


def read_state(directory: pathlib.Path, configuration: dict) -> Optional[RunState]:
    """Returns where the run in a folder of checkpoints stands, or None where there is none.

    Args:
      directory: The folder of checkpoints.
      configuration: As given to RunCheckpoint.

    Raises:
      CheckpointMismatchError: if the run was begun with another configuration; names what differs.
    """
    record = _read_record(directory)
    if record is None:
        return None
    begun, given = json.loads(record['configuration']), json.loads(json.dumps(configuration))
    differing = sorted(_differences(begun, given))
    if differing:
        raise CheckpointMismatchError(
            f'the run in {directory.parent} was begun with another configuration ({"; ".join(differing)}): resuming it '
            'would break its accounting. Use the same configuration, or another --workdir.')
    secret = record['private_seed']
    state = RunState(seeds.PrivateSeed(bytes.fromhex(secret)) if secret else None)
    state.run_id = record['run_id']
    state.ledger = ledger_lib.Ledger.from_json(record['ledger'])
    state.stage, state.step = record['stage'], record['step']
    return state


def load_average(directory: pathlib.Path, model: tf.keras.Model) -> None:
    """Loads the moving-average weights of the newest checkpoint into a network of the same shape.

    Raises:
      FileNotFoundError: if the folder holds no checkpoint.
    """
    latest = tf.train.latest_checkpoint(str(directory))
    if latest is None:
        raise FileNotFoundError(f'no checkpoint in {directory}; train first, or name another --workdir.')
    tf.train.Checkpoint(average=model).restore(latest).expect_partial().assert_existing_objects_matched()


def _read_record(directory: pathlib.Path) -> Optional[dict]:
    """Returns what `RunCheckpoint.save` recorded beside the weights."""
    latest = tf.train.latest_checkpoint(str(directory))
    if latest is None:
        return None
    record = json.loads(tf.train.load_variable(latest, 'record/.ATTRIBUTES/VARIABLE_VALUE'))
    if 'run_id' not in record:
        raise CheckpointMismatchError(
            f'the run in {directory.parent} was begun by an older version of tf_dpdiff, which '
            'gave runs no identity; name another --workdir.')
    return record


def _differences(begun, given, path=''):
    """Yields 'name: before -> now' for each leaf in which two JSON trees differ."""
    if isinstance(begun, dict) and isinstance(given, dict):
        for key in {*begun, *given}:
            yield from _differences(begun.get(key), given.get(key), f'{path}.{key}' if path else key)
    elif begun != given:
        if path == 'data_fingerprint':
            yield 'the private images or labels are not the same'
        else:
            yield f'{path}: {_short(begun)} then, {_short(given)} now'


def _short(value) -> str:
    if isinstance(value, dict):
        return 'given'
    if isinstance(value, float):
        return np.format_float_positional(value, precision=6, trim='-')
    return repr(value)
