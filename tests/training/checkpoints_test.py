"""Tests of checkpoints: whole or not there, checked before they are read, kept to a limit."""

import contextlib
import errno
import os
import pathlib
import shutil
import stat

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import checkpoint_folders
from tf_dpdiff.training import checkpoints

SECRET = seeds.PrivateSeed(bytes(range(32)))
CONFIGURATION = {'data_fingerprint': 'toys', 'network': {'width': 3}}
INDEX, DATA = 'variables.index', 'variables.data-00000-of-00001'


def make_network():
    """Returns a network whose weights are zero, and its optimizer."""
    model = keras.Sequential([keras.layers.Dense(3, kernel_initializer='zeros', input_shape=(2,))])
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 10))
    optimizer.build(model.trainable_variables)
    return model, optimizer


class Run:
    """A run whose step n has weights, step of the optimizer and releases of n."""

    def __init__(self, directory, **options):
        self.directory = directory
        self.average, self.optimizer = make_network()
        self.checkpoint = checkpoints.RunCheckpoint(
            directory, CONFIGURATION, average=self.average, optimizer=self.optimizer, **options
        )
        self.state = checkpoints.RunState(SECRET)
        self.state.run_id, self.state.stage = 'a1b2', 'finetuning'

    def set(self, step):
        """Goes to a step."""
        self.average.set_weights([np.full(weight.shape, float(step)) for weight in self.average.get_weights()])
        self.optimizer.iterations.assign(step)
        while self.state.step < step:
            self.state.ledger = self.state.ledger.record('dp_sgd_step', 1.0, 0.1)
            self.state.step += 1

    def save(self, *steps):
        """Saves a checkpoint at each of the steps."""
        for step in steps:
            self.set(step)
            self.checkpoint.save(self.state)
        return self


def read_step(directory):
    """Returns the step that a folder goes on from, and checks that all parts are of that step."""
    run = Run(directory)
    state = checkpoints.read_state(directory, CONFIGURATION)
    run.checkpoint.restore(state)
    plain = make_network()[0]
    checkpoints.load_average(directory, plain)
    releases = sum(release.count for release in checkpoints.read_identity(directory).ledger.releases)
    weights = [run.average.get_weights(), plain.get_weights()]
    assert {float(value) for network in weights for weight in network for value in weight.ravel()} == {state.step}
    assert (int(run.optimizer.iterations), releases, state.ledger.count('dp_sgd_step')) == (state.step,) * 3
    assert state.private_seed.reveal() == SECRET.reveal() and (state.run_id, state.stage) == ('a1b2', 'finetuning')
    return state.step


def names(directory):
    return sorted(os.listdir(directory))


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


DAMAGES = {
    'truncated data': (lambda f: os.truncate(f / DATA, 40), f'{DATA} is not what was written'),
    'empty data': (lambda f: os.truncate(f / DATA, 0), f'{DATA} is not what was written'),
    'a bit of the data': (lambda f: flip_bit(f / DATA, 20), f'{DATA} is not what was written'),
    'a bit of the index': (lambda f: flip_bit(f / INDEX, -30), f'{INDEX} is not what was written'),
    'no data': (lambda f: (f / DATA).unlink(), f'{DATA} is missing'),
    'no index': (lambda f: (f / INDEX).unlink(), f'{INDEX} is missing'),
    'no manifest': (lambda f: (f / 'manifest.json').unlink(), 'manifest.json is missing'),
    'garbage': (lambda f: (f / 'manifest.json').write_bytes(b'\xff{'), 'manifest.json is unreadable'),
    'truncated manifest': (lambda f: os.truncate(f / 'manifest.json', 30), 'manifest.json is unreadable'),
    'empty list': (lambda f: (f / 'manifest.json').write_text('{"version": 1, "files": {}}'), 'manifest.json is not'),
    'no list': (lambda f: (f / 'manifest.json').write_text('[1]'), 'manifest.json is not one'),
    'a folder as data': (lambda f: ((f / DATA).unlink(), (f / DATA).mkdir()), f'{DATA} is a folder'),
    'an empty folder': (lambda f: [path.unlink() for path in f.iterdir()], 'manifest.json is missing'),
    'a file': (lambda f: (shutil.rmtree(f), f.write_text('')), 'manifest.json is missing'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_checkpoint_is_passed_over_with_one_warning_and_deleted_by_the_next_save(tmp_path, capfd, damage):
    run = Run(tmp_path).save(4, 5, 6)
    break_it, reason = DAMAGES[damage]
    break_it(tmp_path / '000003')
    assert read_step(tmp_path) == 5
    assert read_step(tmp_path) == 5
    said = capfd.readouterr().err
    assert said.count('\n') == said.count('warning:') == 1
    assert f'{tmp_path} is damaged: in 000003 {reason}' in said and '000002 is used instead' in said
    # The good one stays, however many are kept.
    run.save(7)
    assert names(tmp_path) == ['000002', '000004', 'README'] and read_step(tmp_path) == 7
    assert not capfd.readouterr().err


def failing_for(real, folder, error=errno.EIO):
    """Returns a function of a path that the disk does not answer below a folder, and that does as before elsewhere."""

    def call(path):
        if folder in (pathlib.Path(path), *pathlib.Path(path).parents):
            raise OSError(error, os.strerror(error), str(path))
        return real(path)

    return call


@pytest.mark.parametrize('owner, name', [(os, 'scandir'), (pathlib.Path, 'read_bytes'), (checkpoint_folders, '_hash')])
def test_checkpoint_that_cannot_be_read_is_an_error_and_no_reason_to_delete(tmp_path, monkeypatch, owner, name):
    Run(tmp_path / 'run').save(4, 5)
    directory = tmp_path / 'copy'  # Which this process has not looked at.
    shutil.copytree(tmp_path / 'run', directory)
    run, unreadable = Run(directory), directory / '000002'
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing_for(getattr(owner, name), unreadable))
        for act in (lambda: checkpoints.read_state(directory, CONFIGURATION), lambda: run.save(6)):
            with pytest.raises(OSError, match=f'checkpoint {unreadable} cannot be read .Input/output error.') as error:
                act()
            # Not among those that the commands take for wrong use, and one line.
            assert type(error.value) is checkpoint_folders.UnreadableError and '\n' not in str(error.value)
    assert names(directory) == ['000001', '000002', '000003', 'README'] and read_step(directory) == 6
    run.save(7)  # The disk answers again.
    assert names(directory) == ['000003', '000004', 'README']


def test_nothing_is_deleted_where_a_later_one_cannot_be_read(tmp_path, monkeypatch):
    Run(tmp_path / 'run').save(4, 5)
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    os.truncate(tmp_path / 'copy' / '000002' / DATA, 40)
    monkeypatch.setattr(os, 'scandir', failing_for(os.scandir, tmp_path / 'copy' / '000001'))
    with pytest.raises(checkpoint_folders.UnreadableError):
        Run(tmp_path / 'copy').save(6)
    assert names(tmp_path / 'copy') == ['000001', '000002', '000003', 'README']


def test_undamaged_checkpoints_are_read_without_a_word_and_kept_to_the_limit(tmp_path, capfd):
    run = Run(tmp_path).save(4)
    assert names(tmp_path) == ['000001', 'README'] and names(tmp_path / '000001') == ['manifest.json', DATA, INDEX]
    run.save(5, 6, 8)
    assert names(tmp_path) == ['000003', '000004', 'README'] and read_step(tmp_path) == 8
    Run(tmp_path, max_to_keep=1).save(9)
    assert names(tmp_path) == ['000005', 'README'] and read_step(tmp_path) == 9
    Run(tmp_path, max_to_keep=4).save(10, 11, 12, 13)
    assert names(tmp_path) == ['000006', '000007', '000008', '000009', 'README'] and read_step(tmp_path) == 13
    assert not capfd.readouterr().err
    with pytest.raises(ValueError, match='max_to_keep must be at least 1, got 0'):
        Run(tmp_path, max_to_keep=0)


def test_several_damaged_ones_are_named_in_one_line_and_without_a_good_one_the_run_is_refused(tmp_path, capfd):
    Run(tmp_path, max_to_keep=3).save(4, 5, 6)
    for name in ('000002', '000003'):
        os.truncate(tmp_path / name / DATA, 10)
    assert read_step(tmp_path) == 4
    said = capfd.readouterr().err
    assert said.count('\n') == 1 and 'in 000003 ' in said and 'in 000002 ' in said and '000001 is used instead' in said
    (tmp_path / '000001' / INDEX).unlink()
    for read in (
        checkpoints.read_run,
        checkpoints.read_identity,
        lambda d: checkpoints.read_state(d, CONFIGURATION),
        lambda d: checkpoints.load_average(d, make_network()[0]),
        lambda d: Run(d).checkpoint.restore(),
    ):
        with pytest.raises(
            checkpoints.CheckpointDamagedError,
            match=f'none of the 3 .* 000003, {DATA} is not what .*name another --workdir.*stays spent',
        ):
            read(tmp_path)
    assert not capfd.readouterr().err


@pytest.mark.parametrize('left', [{'README'}, {'README', '.saving-1', '.deleting-000001-1'}])
def test_lost_checkpoints_are_no_fresh_start(tmp_path, left):
    Run(tmp_path).save(4)
    shutil.rmtree(tmp_path / '000001')
    for name in left - {'README'}:
        (tmp_path / name).mkdir()
    with pytest.raises(checkpoints.CheckpointDamagedError, match='the checkpoints of the run in .* are missing.*copy'):
        checkpoints.read_state(tmp_path, CONFIGURATION)
    # Controls: where no run was begun.
    (tmp_path / 'README').unlink()
    for folder in (tmp_path, tmp_path / 'none'):
        assert checkpoints.read_state(folder, CONFIGURATION) is None and checkpoints.read_run(folder) is None
        with pytest.raises(FileNotFoundError, match='train first'):
            checkpoints.load_average(folder, make_network()[0])


@pytest.mark.parametrize('without', ['checkpoint', 'ckpt-1.index', ''])
def test_run_of_an_older_version_is_refused(tmp_path, without):
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(record=tf.Variable('')), str(tmp_path), max_to_keep=2)
    manager.save()
    if without:
        (tmp_path / without).unlink()
    with pytest.raises(checkpoints.CheckpointMismatchError, match='begun by an older version of tf_dpdiff'):
        checkpoints.read_state(tmp_path, CONFIGURATION)


class Killed(BaseException):
    """What no code of ours catches."""


@contextlib.contextmanager
def killed_at(owner, name, call):
    """Ends the block at the call of that number, and, as a kill does, all that would be done after it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        real, calls = getattr(owner, name), []

        def count(*args, **kwargs):
            calls.append(name)
            if len(calls) == call:
                monkeypatch.setattr(shutil, 'rmtree', lambda *args, **kwargs: None)
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, count)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize(
    'owner, name, call, expected',
    [
        (tf.train.Checkpoint, 'write', 1, 5),  # Nothing is written yet.
        (checkpoint_folders, '_write_manifest', 1, 5),
        (checkpoint_folders, '_sync', 1, 5),
        (os, 'rename', 1, 5),  # All is written, under the temporary name.
        (checkpoint_folders, '_sync', 5, 6),  # It has its name: three files, their folder and the one around it.
        (os, 'rename', 2, 6),  # The oldest is to be deleted.
        (shutil, 'rmtree', 2, 6),  # It has its hidden name.
    ],
)
def test_save_killed_at_any_stage_leaves_whole_checkpoints(tmp_path, capfd, owner, name, call, expected):
    run = Run(tmp_path).save(4, 5)
    with killed_at(owner, name, call):
        run.save(6)
    assert read_step(tmp_path) == expected
    Run(tmp_path).save(7)
    assert [other for other in names(tmp_path) if other != 'README'] == (
        ['000003', '000004'] if expected == 6 else ['000002', '000003']
    )
    assert read_step(tmp_path) == 7 and not capfd.readouterr().err


def test_first_save_killed_is_a_fresh_start_until_its_checkpoint_is_in_place(tmp_path):
    with killed_at(os, 'rename', 1):
        Run(tmp_path).save(4)
    assert names(tmp_path) == [f'.saving-{os.getpid()}']
    assert checkpoints.read_state(tmp_path, CONFIGURATION) is None
    with killed_at(os, 'rename', 2):  # Of README.
        Run(tmp_path).save(4)
    assert 'README' not in names(tmp_path) and read_step(tmp_path) == 4
    Run(tmp_path).save(5)
    assert names(tmp_path) == ['000001', '000002', 'README']


def _full_in_tensorflow(checkpoint, prefix):
    del checkpoint
    with open(f'{prefix}.data-00000-of-00001', 'wb') as file:
        file.write(b'half')
    raise tf.errors.ResourceExhaustedError(
        None, None, '{{function_node a}} variables.data; No space left on device [Op:SaveV2]\nmore'
    )


def _full(*args):
    raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize(
    'owner, name, full',
    [
        (tf.train.Checkpoint, 'write', _full_in_tensorflow),
        (checkpoint_folders, '_write_manifest', _full),
        (os, 'fsync', _full),
    ],
)
def test_full_disk_leaves_the_old_checkpoints_and_takes_no_room(tmp_path, monkeypatch, owner, name, full):
    run = Run(tmp_path).save(4, 5)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, full)
        with pytest.raises(
            OSError, match='cannot save to [^ ]* .No space left on device.: the last checkpoint stands'
        ) as error:
            run.save(6)
    assert '\n' not in str(error.value)
    assert names(tmp_path) == ['000001', '000002', 'README'] and read_step(tmp_path) == 5
    run.save(7)  # There is room again.
    assert read_step(tmp_path) == 7


def test_secret_is_behind_its_mode_before_it_is_written(tmp_path, monkeypatch):
    Run(tmp_path / 'opened').save(4)
    os.chmod(tmp_path / 'opened', 0o755)
    modes, write = [], tf.train.Checkpoint.write

    def look_and_write(checkpoint, prefix):
        modes.append(stat.S_IMODE(os.stat(os.path.dirname(os.path.dirname(prefix))).st_mode))
        return write(checkpoint, prefix)

    monkeypatch.setattr(tf.train.Checkpoint, 'write', look_and_write)
    for name in ('new', 'opened'):
        Run(tmp_path / name).save(5)
    assert modes == [0o700, 0o700]
    public = Run(tmp_path / 'public')  # Control.
    public.state.private_seed = None
    public.save(4)
    assert (tmp_path / 'public').stat().st_mode & 0o055 and 'no secret' in (tmp_path / 'public' / 'README').read_text()


def test_files_are_hashed_once_and_again_when_they_change(tmp_path, monkeypatch, capfd):
    Run(tmp_path / 'run').save(4, 5)
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    hashed, real = [], checkpoint_folders._hash
    monkeypatch.setattr(checkpoint_folders, '_hash', lambda path: (hashed.append(path.name), real(path))[1])
    assert read_step(tmp_path / 'run') == 5 and not hashed  # This process wrote them.
    assert read_step(tmp_path / 'copy') == 5 and sorted(hashed) == [DATA, INDEX]
    data = tmp_path / 'copy' / '000002' / DATA
    before = data.stat()
    flip_bit(data, 20)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read_step(tmp_path / 'copy') == 4 and 'warning' in capfd.readouterr().err


def test_weights_of_another_checkpoint_than_the_state_are_refused(tmp_path):
    Run(tmp_path).save(4, 5)
    state = checkpoints.read_state(tmp_path, CONFIGURATION)
    Run(tmp_path).checkpoint.restore(state)  # Control.
    (tmp_path / '000002' / DATA).unlink()
    with pytest.raises(checkpoints.CheckpointMismatchError, match='was changed while it was read'):
        Run(tmp_path).checkpoint.restore(state)


def test_checkpoint_deleted_by_its_writer_while_it_is_read_is_not_called_damaged(tmp_path, monkeypatch, capfd):
    run = Run(tmp_path, max_to_keep=1).save(4)
    numbered, load = checkpoint_folders.numbered, tf.train.load_variable

    def list_and_save(directory):
        found = numbered(directory)
        monkeypatch.setattr(checkpoint_folders, 'numbered', numbered)
        run.save(5)
        return found

    def save_and_load(*args):
        monkeypatch.setattr(tf.train, 'load_variable', load)
        run.save(6)
        return load(*args)

    monkeypatch.setattr(checkpoint_folders, 'numbered', list_and_save)
    monkeypatch.setattr(tf.train, 'load_variable', save_and_load)
    assert checkpoints.read_state(tmp_path, CONFIGURATION).step == 6 and not capfd.readouterr().err


def test_checkpoint_that_another_machine_deletes_while_it_is_read_is_not_called_unreadable(tmp_path, monkeypatch):
    Run(tmp_path / 'run').save(4, 5)
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    deleted, scandir = tmp_path / 'copy' / '000002', os.scandir

    def delete_and_fail(path):  # As a network file system does.
        if path == deleted:
            monkeypatch.setattr(os, 'scandir', scandir)
            shutil.rmtree(deleted)
            raise OSError(errno.ESTALE, 'Stale file handle')
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', delete_and_fail)
    assert checkpoints.read_state(tmp_path / 'copy', CONFIGURATION).step == 4


@pytest.mark.parametrize('secret', [SECRET, None])
def test_state_survives_json(secret):
    state = checkpoints.RunState(secret)
    state.ledger, state.stage, state.step = state.ledger.record('dp_sgd_step', 1.5, 0.1), 'warm_start', 7
    text = state.to_json()
    again = checkpoints.RunState.from_json(text)
    assert '\n' not in text and again.to_json() == text
    assert (again.run_id, again.ledger, again.stage, again.step) == (state.run_id, state.ledger, 'warm_start', 7)
    assert (again.private_seed and again.private_seed.reveal()) == (secret and secret.reveal())


def test_variables_are_all_that_is_saved_besides_the_record_in_one_order(tmp_path):
    run = Run(tmp_path).save(4)
    saved = {name for name, _ in tf.train.list_variables(str(tmp_path / '000001' / 'variables'))}
    saved -= {'_CHECKPOINTABLE_OBJECT_GRAPH', 'record/.ATTRIBUTES/VARIABLE_VALUE'}
    saved = {name for name in saved if 'learning_rate' not in name}
    variables = run.checkpoint.variables
    assert len(variables) == len(saved) == 2 + 5 and len({id(variable) for variable in variables}) == len(variables)
    other = checkpoints.RunCheckpoint(tmp_path, CONFIGURATION, optimizer=run.optimizer, average=run.average)
    assert [id(variable) for variable in other.variables] == [id(variable) for variable in variables]
