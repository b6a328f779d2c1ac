"""Tests of the time of a run: of all its calls together, however they ended, and in nothing that is released."""

import json
import re
import types

import pytest

from tests.cli import non_private_test
from tests.cli import verbs
from tf_dpdiff import progress
from tf_dpdiff.cli import command
from tf_dpdiff.cli import train
from tf_dpdiff.runs import clock as clock_lib
from tf_dpdiff.runs import library
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import interruption


class Time:
    """Stands in for the module: time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.secs = 1000.0
        monkeypatch.setattr(clock_lib, 'time', types.SimpleNamespace(monotonic=lambda: self.secs))


def kept(workdir):
    return json.loads((workdir / checkpoints.FOLDER / 'seconds.json').read_text())['seconds']


def test_calls_add_up_however_they_end(tmp_path, monkeypatch):
    time = Time(monkeypatch)
    clock = clock_lib.Clock()
    time.secs += 60.0  # Before there is a folder to keep it in.
    with pytest.raises(interruption.Interrupted), clock.kept_in(tmp_path):
        time.secs += 240.0
        assert clock.describe() == '5.0 minutes'
        raise interruption.Interrupted
    assert kept(tmp_path) == 300.0
    time.secs += 5000.0  # Between two calls.
    clock = clock_lib.Clock()
    with clock.kept_in(tmp_path):
        time.secs += 120.0
        assert clock.describe() == '7.0 minutes in all, 2.0 of them in this call'
    assert kept(tmp_path) == 420.0


def test_call_that_is_killed_has_kept_its_time(tmp_path, monkeypatch):
    time = Time(monkeypatch)
    monkeypatch.setattr(clock_lib, '_EVERY_SECS', 0.01)
    context = clock_lib.Clock().kept_in(tmp_path)
    context.__enter__()
    time.secs += 30.0
    until = progress.time.monotonic() + 10.0
    while not (tmp_path / checkpoints.FOLDER / 'seconds.json').exists() or kept(tmp_path) < 30.0:
        assert progress.time.monotonic() < until
    context.__exit__(None, None, None)


@pytest.mark.parametrize('text', ['', 'x', '[]', '{}', '{"seconds": "many"}', '{"seconds": null}', '{"seconds": -5}'])
def test_damaged_time_ends_no_run(tmp_path, text):
    (tmp_path / checkpoints.FOLDER).mkdir()
    (tmp_path / checkpoints.FOLDER / 'seconds.json').write_text(text)
    clock = clock_lib.Clock()
    with clock.kept_in(tmp_path):
        assert clock.describe() == '0.0 minutes'


def test_full_disk_is_left_to_what_it_hurts(tmp_path, monkeypatch):
    def fail(*unused_arguments):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(clock_lib.files, 'write_text', fail)
    clock = clock_lib.Clock()
    with clock.kept_in(tmp_path):
        assert clock.describe() == '0.0 minutes'
    assert not (tmp_path / checkpoints.FOLDER / 'seconds.json').exists()


class StopAtOnce(interruption.StopRequest):
    """A request to stop that was made before the work began."""

    def __init__(self):
        super().__init__()
        self.requested = True


@pytest.mark.usefixtures('small_network')
def test_resumed_run_tells_the_time_of_all_its_calls_and_releases_it_nowhere(tmp_path, capsys, monkeypatch):
    path, workdir = tmp_path / 'my.gin', tmp_path / 'run'
    quick = '\n'.join((*non_private_test.QUICK, *non_private_test.PRIVATE_ALONE)).replace(
        'NUM_STEPS = 1', 'NUM_STEPS = 2'
    )
    path.write_text(f"include 'digits.gin'\n{quick}\n")
    flags = f'--gin_file={path}', f'--workdir={workdir}'
    with monkeypatch.context() as patched:
        patched.setattr(interruption, 'StopRequest', StopAtOnce)
        assert verbs.call(train, *flags) == command.FAILED
    assert 'stopped in finetuning after step 1 of 2' in capsys.readouterr().err and kept(workdir) > 0.0
    (workdir / checkpoints.FOLDER / 'seconds.json').write_text('{"seconds": 7384.0}')  # As if it had taken long.
    assert verbs.call(train, *flags) == command.DONE
    said = re.search(r'time +│ (\d+\.\d) minutes in all, (\d+\.\d) of them in this call', capsys.readouterr().out)
    in_all, here = map(float, said.groups())
    assert in_all - here == pytest.approx(7384.0 / 60.0, abs=0.11) and kept(workdir) > 7384.0
    released = library.Run(workdir).release(tmp_path / 'released')
    assert not [path for path in released.rglob('*') if path.name == 'seconds.json']
    assert [path.parent.name for path in workdir.rglob('seconds.json')] == [checkpoints.FOLDER]


def test_long_work_says_what_is_done_and_for_how_long(capsys, monkeypatch):
    monkeypatch.setattr(progress, '_PATIENCE_SECS', 0.0)
    monkeypatch.setattr(progress, '_AGAIN_SECS', 0.05)
    with progress.working('export', 'writing'):
        progress.time.sleep(0.3)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert (first, second) == ('export: writing ...', 'export: writing ... for 0 min')
    monkeypatch.setattr(progress, '_PATIENCE_SECS', 60.0)
    with progress.working('export', 'writing'):
        pass
    assert not capsys.readouterr().err
