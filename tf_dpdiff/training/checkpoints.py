"""The checkpoint of a run, saved as one: weights, optimizers, position and, of private runs, ledger and secret seed."""

from collections.abc import Callable
import json
import pathlib
import re
import secrets
import sys
from typing import NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import checkpoint_folders

FOLDER = 'checkpoints'  # In the folder of a run.
_README = """PRIVATE. These checkpoints hold the secret seed of the run: whoever has it can remove the noise.
Release the exported model (saved_model/) and the samples, never this folder.
"""
_PUBLIC_README = """Checkpoints of a run on public images alone: there is no secret in them. What private runs start
from is the folder pretrained/, which is written when the run is finished.
"""

# What TensorFlow's files are called in the folder of a checkpoint.
_PREFIX = 'variables'
_RECORD = 'record/.ATTRIBUTES/VARIABLE_VALUE'
_CURE = 'Put the folder back from a copy, or name another --workdir; the privacy that the run has spent stays spent.'
_OTHER_IMAGES = 'the private images or labels are not the same'
_MOST_DIFFERENCES = 6  # That an error names.
DIVERGED = 'diverged'  # In place of the stage of a run that has diverged, and is over.
_T = TypeVar('_T')
_warnings: set[str] = set()  # Each is shown once in a process, which reads its checkpoint several times.


class CheckpointMismatchError(ValueError):
    """A checkpoint was made by another configuration."""


class CheckpointDamagedError(ValueError):
    """A run has no checkpoint that is as it was written."""


def new_run_id() -> str:
    """Returns the public name of a new run, drawn at random."""
    return secrets.token_hex(8)


class RunState:
    """Where a run stands; everything in it is saved in one file, so that no two parts can disagree.

    Attributes:
      private_seed: The run's secret; None for a run that reads no private image.
      run_id: The run's public name, drawn at random when it begins and kept when it is resumed.
      ledger: What has been released by the weights of this state.
      stage: Name of the stage, or DIVERGED; empty before the first one.
      step: Steps done in the stage.
    """

    def __init__(self, private_seed: seeds.PrivateSeed | None, run_id: str | None = None):
        self.private_seed = private_seed
        self.run_id = run_id or new_run_id()
        self.ledger = ledger_lib.Ledger()
        self.stage = ''
        self.step = 0

    @property
    def has_begun(self) -> bool:
        """Whether the run is past its beginning, as one that is resumed is."""
        return bool(self.stage)

    def to_json(self) -> str:
        """Returns all of it as one line. PRIVATE: the secret seed is in it, to be saved or sent in private alone."""
        return json.dumps(
            {
                'private_seed': self.private_seed.reveal().hex() if self.private_seed else None,
                'run_id': self.run_id,
                'ledger': self.ledger.to_json(),
                'stage': self.stage,
                'step': self.step,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> 'RunState':
        """Returns the state of which `to_json` made the text."""
        record = json.loads(text)
        secret = record['private_seed']
        state = cls(seeds.PrivateSeed(bytes.fromhex(secret)) if secret else None)
        state.run_id = record['run_id']
        state.ledger = ledger_lib.Ledger.from_json(record['ledger'])
        state.stage, state.step = record['stage'], record['step']
        return state


class RunCheckpoint:
    """Saves and restores a RunState together with networks and optimizers.

    A checkpoint appears whole or not at all, and is compared with the checksums of its files before it is read: a run
    that was killed at any moment resumes from the newest one that is as it was written. Weights, ledger and secret are
    of one checkpoint always: who goes back to an older one goes back in the ledger too, and repeats the lost steps with
    the same draws.

    Args:
      directory: The folder of checkpoints; made readable for its owner only where the run is private.
      configuration: JSON-able values that must be the same when the run is resumed.
      max_to_keep: How many of the newest checkpoints are kept, >= 1.
      trackables: Networks, optimizers or variables by name.
    """

    def __init__(self, directory: pathlib.Path, configuration: dict, *, max_to_keep: int = 2, **trackables):
        if max_to_keep < 1:
            raise ValueError(f'max_to_keep must be at least 1, got {max_to_keep}.')
        self._configuration = json.dumps(configuration, sort_keys=True)
        self._record = tf.Variable('', dtype=tf.string, trainable=False)
        self._trackables = trackables
        self._checkpoint = tf.train.Checkpoint(record=self._record, **trackables)
        self._directory, self._max_to_keep = directory, max_to_keep

    @property
    def variables(self) -> list[tf.Variable]:
        """All variables of networks and optimizers, without the record, in the order of the names given to them.

        A learning rate is not among them: it belongs to the configuration.
        """
        return [variable for name in sorted(self._trackables) for variable in _variables(self._trackables[name])]

    def save(self, state: RunState) -> None:
        """Saves everything, and then deletes what is older than the checkpoints that are kept.

        Raises:
          OSError: if it cannot be written, as on a full disk; the checkpoints that were there stand. Or if an older one
            cannot be read: then nothing is deleted.
        """
        self._record.assign(json.dumps({'configuration': self._configuration, 'state': state.to_json()}))
        is_private = state.private_seed is not None
        try:
            checkpoint_folders.write(
                self._directory,
                lambda folder: self._checkpoint.write(str(folder / _PREFIX)),
                max_to_keep=self._max_to_keep,
                mode=0o700 if is_private else 0o777,
                readme=_README if is_private else _PUBLIC_README,
            )
        except checkpoint_folders.UnreadableError:
            raise  # Of an older one: this one is saved.
        except (OSError, tf.errors.OpError) as error:
            raise OSError(
                f'cannot save to {self._directory} ({_reason(error)}): the last checkpoint stands; make room or mend '
                'the disk, and start the same command again.'
            ) from error

    def restore(self, state: RunState | None = None) -> None:
        """Restores the networks and optimizers from the newest checkpoint; call `read_state` for the rest.

        Args:
          state: What `read_state` returned. Where it is given, the weights are of the same checkpoint for sure.

        Raises:
          FileNotFoundError: if the folder holds no checkpoint.
          CheckpointMismatchError: if the checkpoint is another one than that of the state.
          CheckpointDamagedError: if no checkpoint is as it was written.
        """
        _read_newest(self._directory, lambda prefix: self._checkpoint.read(prefix).assert_existing_objects_matched())
        if state is not None and json.loads(self._record.numpy())['state'] != state.to_json():
            raise CheckpointMismatchError(
                f'{self._directory} was changed while it was read: another process writes '
                'there, or its newest checkpoint was lost. Start the same command again.'
            )


class RunIdentity(NamedTuple):
    """What tells a run and its data apart from others.

    Attributes:
      run_id: The run's public name.
      data_fingerprint: PRIVATE: who holds the exact same data set can tell. None of a run on public images alone.
      ledger: What has been released by the newest checkpoint.
      has_diverged: Whether the run is over since it diverged; the newest checkpoint then has the last good weights.
    """

    run_id: str
    data_fingerprint: str | None
    ledger: ledger_lib.Ledger
    has_diverged: bool


def read_run(directory: pathlib.Path) -> RunIdentity | None:
    """Returns which run a folder of checkpoints holds, on private images or not, or None where there is none.

    Args:
      directory: The folder of checkpoints.

    Raises:
      CheckpointMismatchError: if the run was begun by an older version.
      CheckpointDamagedError: if no checkpoint is as it was written.
    """
    record = _read_record(directory)
    if record is None:
        return None
    state = RunState.from_json(record['state'])
    data_fingerprint = json.loads(record['configuration']).get('data_fingerprint')
    return RunIdentity(state.run_id, data_fingerprint, state.ledger, state.stage == DIVERGED)


def read_identity(directory: pathlib.Path) -> RunIdentity | None:
    """Returns which run on private images a folder of checkpoints holds, or None where there is none.

    Args:
      directory: The folder of checkpoints.

    Raises:
      CheckpointMismatchError: if the run was begun by an older version, or reads no private images.
      CheckpointDamagedError: if no checkpoint is as it was written.
    """
    found = read_run(directory)
    if found is not None and found.data_fingerprint is None:
        raise CheckpointMismatchError(
            f'the run in {directory.parent} read public images alone: it has no private data '
            'to charge, to attack or to go on with; name another --workdir.'
        )
    return found


def read_secret(directory: pathlib.Path) -> seeds.PrivateSeed | None:
    """Returns the secret seed of a run, by which it can be looked for where it must not be; None where there is none.

    Args:
      directory: The folder of checkpoints.

    Raises:
      CheckpointMismatchError: if the run was begun by an older version.
      CheckpointDamagedError: if no checkpoint is as it was written.
    """
    record = _read_record(directory)
    return RunState.from_json(record['state']).private_seed if record else None


def read_state(directory: pathlib.Path, configuration: dict) -> RunState | None:
    """Returns the state of the run in a folder of checkpoints, or None where there is none.

    Args:
      directory: The folder of checkpoints.
      configuration: As given to RunCheckpoint.

    Raises:
      CheckpointMismatchError: if the run was begun with another configuration; names what differs. Or by an older
        version.
      CheckpointDamagedError: if no checkpoint is as it was written, or if all of a run that was begun are missing: a
        fresh start would forget what was released.
    """
    record = _read_record(directory)
    if record is None:
        return None
    begun, given = json.loads(record['configuration']), json.loads(json.dumps(configuration))
    differing = sorted(_differences(begun, given), key=lambda text: (text != _OTHER_IMAGES, text))
    if differing:
        num_more = len(differing) - _MOST_DIFFERENCES
        more = f'; and {num_more} more' if num_more > 0 else ''
        raise CheckpointMismatchError(
            f'the run in {directory.parent} was begun with another configuration '
            f'({"; ".join(differing[:_MOST_DIFFERENCES])}{more}): resuming it would break its accounting. Use the same '
            'configuration, or another --workdir.'
        )
    return RunState.from_json(record['state'])


def resume_or_begin(
    directory: pathlib.Path,
    configuration: dict,
    *,
    is_private: bool,
    run_id: str | None = None,
    workers: workers_lib.Workers = workers_lib.ALONE,
) -> RunState:
    """Returns the state of the run in a folder of checkpoints, or where there is none that of a new one.

    Args:
      directory: The folder of checkpoints.
      configuration: As given to RunCheckpoint.
      is_private: Whether the run reads private images, and so has a secret.
      run_id: The public name that the run must have, that of a choice in which it takes part; None: a new one.
      workers: The processes of the run, all of which call this and get what the first one found.

    Raises:
      As `read_state` does, and
      ValueError: if the run has diverged.
      workers_lib.WorkersDisagreeError: if the configuration is not the same at all workers.
    """
    workers.check_same(json.dumps(configuration, sort_keys=True), 'the configuration or the data')
    found = None
    if workers.is_first:
        state = read_state(directory, configuration)
        state = state or RunState(seeds.PrivateSeed.from_os_entropy() if is_private else None, run_id)
        if run_id is not None and state.run_id != run_id:
            raise CheckpointMismatchError(f'the run in {directory.parent} is another one; name another --workdir.')
        found = state.to_json().encode()
    # The secret goes the same way as the sums without noise do: both need a network that can be trusted.
    state = RunState.from_json(workers.broadcast(found).decode())
    if state.stage == DIVERGED:
        raise diverged_error(directory)
    return state


def diverged_error(directory: pathlib.Path) -> ValueError:
    """Returns what is raised where the run in a folder of checkpoints cannot go on since it has diverged."""
    return ValueError(
        f'the run in {directory.parent} has diverged, and is over: lower learning_rate of the '
        'OptimizationConfig of the stage that did, and name another --workdir.'
    )


def load_average(directory: pathlib.Path, model: keras.Model) -> None:
    """Loads the moving-average weights of the newest checkpoint into a network of the same shape.

    The network may belong to another strategy of tf.distribute than the one that was saved, or to none.

    Raises:
      FileNotFoundError: if the folder holds no checkpoint.
      CheckpointMismatchError: if the run was begun by an older version.
      CheckpointDamagedError: if no checkpoint is as it was written.
    """
    checkpoint = tf.train.Checkpoint(average=model)
    _read_newest(directory, lambda prefix: checkpoint.read(prefix).expect_partial().assert_existing_objects_matched())


def _reason(error: Exception) -> str:
    """Returns why a file could not be written, without TensorFlow's words about itself."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r'\{\{.*?\}\}|\[Op:\w*\]', '', line).split('; ')[-1].strip()


def _variables(trackable) -> list[tf.Variable]:
    return [trackable] if isinstance(trackable, tf.Variable) else list(trackable.variables)


def _read_record(directory: pathlib.Path) -> dict | None:
    """Returns the record that `RunCheckpoint.save` put beside the weights, or None where no run was begun."""
    try:
        text = _read_newest(directory, lambda prefix: tf.train.load_variable(prefix, _RECORD))
    except FileNotFoundError:
        return None
    return json.loads(text)


def _read_newest(directory: pathlib.Path, read: Callable[[str], _T]) -> _T:
    """Returns the result of `read` for TensorFlow's prefix of the newest checkpoint that is as it was written.

    Raises:
      FileNotFoundError: if no run was begun in the folder.
    """
    while True:
        folder = _newest(directory)
        try:
            return read(str(folder / _PREFIX))
        except (tf.errors.OpError, ValueError):
            if folder.exists():
                raise
            # The process that writes them has deleted it meanwhile: it has saved newer ones.


def _newest(directory: pathlib.Path) -> pathlib.Path:
    """Returns the newest checkpoint that is as it was written; warns once where that is not the newest of all."""
    if (directory / 'checkpoint').exists() or any(directory.glob('ckpt-*.index')):
        raise CheckpointMismatchError(
            f'the run in {directory.parent} was begun by an older version of tf_dpdiff, whose '
            'checkpoints have no checksums; name another --workdir.'
        )
    folder, damaged = checkpoint_folders.find_newest(directory)
    if folder is None and damaged:
        raise CheckpointDamagedError(
            f'none of the {len(damaged)} checkpoints in {directory} is as it was written; of the newest, '
            f'{damaged[0].folder.name}, {damaged[0].reason}. {_CURE}'
        )
    if folder is None and (directory / checkpoint_folders.README).exists():
        raise CheckpointDamagedError(f'the checkpoints of the run in {directory} are missing. {_CURE}')
    if folder is None:
        raise FileNotFoundError(f'no checkpoint in {directory}; train first, or name another --workdir.')
    if damaged:
        _warn_once(
            f'warning: {directory} is damaged: '
            f'{"; ".join(f"in {name.name} {reason}" for name, reason in damaged)}. {folder.name} is used instead; '
            'what was learnt since is lost, and is repeated with the same draws where the run goes on.'
        )
    return folder


def _warn_once(line: str) -> None:
    if line not in _warnings:
        _warnings.add(line)
        print(line, file=sys.stderr)


def _differences(begun, given, path=''):
    """Yields 'name: before -> now' for each leaf in which two JSON trees differ."""
    if isinstance(begun, dict) and isinstance(given, dict):
        for key in {*begun, *given}:
            yield from _differences(begun.get(key), given.get(key), f'{path}.{key}' if path else key)
    elif begun != given:
        if path == 'data_fingerprint':
            yield _OTHER_IMAGES
        else:
            yield f'{path}: {_short(begun)} then, {_short(given)} now'


def _short(value) -> str:
    if isinstance(value, dict):
        return 'given'
    if isinstance(value, float):
        return np.format_float_positional(value, precision=6, trim='-')
    if isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value):  # A SHA-256.
        return f'{value[:16]}...'
    return repr(value)
