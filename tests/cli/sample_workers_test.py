"""Tests of bin/sample by several processes: the files of one, and an end of all where one is stopped, fails or dies."""

import json
import signal
import threading
import time
import types

import numpy as np
import pytest

from tests import cluster
from tests import fake_workers
from tests.cli import sampling
from tf_dpdiff.cli import command
from tf_dpdiff.cli import sample
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.sampling import store

pytestmark = pytest.mark.usefixtures('loaded_once')
SET = {'kind': 'tfds', 'num_images': 2000, 'shard_size': 130}


def start(run, output, **flags):
    return cluster.start_workers(
        'tf_dpdiff.cli', 'sample', *sampling.flags_of(run, output, **flags), '--strategy=multi_worker_mirrored'
    )


@pytest.mark.long
def test_two_processes_write_the_files_of_one(toy_run, tmp_path):
    codes, said = cluster.wait_for(start(toy_run, tmp_path / 'two', **SET))
    assert codes == [command.DONE] * 2, said
    assert '2000/2000' in said[0] and 'sampling' not in said[1]
    assert sampling.call(toy_run, tmp_path / 'one', **SET) == command.DONE
    assert sampling.contents(tmp_path / 'two') == sampling.contents(tmp_path / 'one')


@pytest.mark.long
@pytest.mark.parametrize('killed', [0, 1])
def test_process_that_dies_ends_the_other_and_the_same_command_goes_on(toy_run, tmp_path, killed):
    flags = {'kind': 'npz', 'num_images': 20000, 'shard_size': 500, 'num_steps': 10}
    workers, record = start(toy_run, tmp_path / 'two', **flags), tmp_path / 'two' / 'samples.json'
    while not record.exists() or len(json.loads(record.read_text())['shards']) < 3:
        assert all(worker.poll() is None for worker in workers), [worker.communicate()[1] for worker in workers]
        time.sleep(0.1)
    workers[killed].send_signal(signal.SIGKILL)
    codes, said = cluster.wait_for(workers)
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == command.FAILED
    assert said[1 - killed].strip().splitlines()[-1].startswith('sample: error: another worker is gone')
    codes, said = cluster.wait_for(start(toy_run, tmp_path / 'two', **flags))
    assert codes == [command.DONE] * 2 and ' of 40 shards are complete; going on with the others' in said[0], said
    assert sampling.call(toy_run, tmp_path / 'one', **flags) == command.DONE
    assert sampling.contents(tmp_path / 'two') == sampling.contents(tmp_path / 'one')


@pytest.fixture(name='call_as_two')
def fixture_call_as_two(monkeypatch):
    """Returns a call of bin/sample by two workers that are threads of this process; it gives both exit codes."""
    own = threading.local()
    monkeypatch.setattr(strategy_flags, 'start', lambda flags: types.SimpleNamespace(workers=own.workers))

    def call_as_two(run, output, of_second=None, **flags):

        def call(workers):
            own.workers = workers
            return sampling.call(run, output, **{**flags, **((of_second or {}) if workers.index else {})})

        return fake_workers.play(call)

    return call_as_two


class FakeStop:
    """A request to stop that is made when one of the workers has looked for it some times."""

    def __init__(self, asked, after):
        self._asked, self._left = asked, after

    def __enter__(self):
        return self

    def __exit__(self, *unused_error):
        pass

    def of(self, workers):
        """Lets the worker of this thread look for it."""
        self._is_asked = workers.index == self._asked
        return self

    @property
    def requested(self):
        self._left -= self._is_asked
        return self._is_asked and self._left < 0


@pytest.mark.parametrize('asked', [0, 1])
@pytest.mark.parametrize('after', [0, 1, 2, 5])
def test_stop_asked_of_one_worker_ends_both_and_the_same_command_goes_on(
    toy_run, tmp_path, call_as_two, monkeypatch, capsys, asked, after
):
    with monkeypatch.context() as patch:
        patch.setattr(
            sample.interruption, 'StopRequest', lambda: FakeStop(asked, after).of(strategy_flags.start(None).workers)
        )
        assert call_as_two(toy_run, tmp_path / 'two', num_images=3000, shard_size=130) == [command.FAILED] * 2
    assert capsys.readouterr().err.count('sample: stopped; ') == 1
    assert call_as_two(toy_run, tmp_path / 'two', num_images=3000, shard_size=130) == [command.DONE] * 2
    images, labels = sampling.images_of(toy_run, np.arange(3000) % 3), np.arange(3000) % 3
    found = store.read(tmp_path / 'two')
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize(
    'changes, codes, message',
    [
        ({'workdir': 'nowhere'}, [command.FAILED, command.WRONG_USE], 'another worker failed, and says itself why'),
        ({'seed': 7}, [command.WRONG_USE] * 2, 'worker 1 and worker 0 differ in what is to be sampled'),
    ],
)
def test_workers_of_different_commands_end_at_once_and_write_nothing(
    toy_run, tmp_path, call_as_two, capsys, changes, codes, message
):
    assert call_as_two(toy_run, tmp_path / 'set', of_second=changes) == codes
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_set_of_other_settings_ends_both_workers(toy_run, tmp_path, call_as_two, capsys):
    assert call_as_two(toy_run, tmp_path / 'set') == [command.DONE] * 2
    before = sampling.contents(tmp_path)
    assert call_as_two(toy_run, tmp_path / 'set') == [command.DONE] * 2  # It is complete.
    assert call_as_two(toy_run, tmp_path / 'set', num_images=61) == [command.WRONG_USE, command.FAILED]
    assert 'was begun with other settings' in capsys.readouterr().err and sampling.contents(tmp_path) == before


@pytest.mark.parametrize(
    'flags, message',
    [
        ({'strategy': 'mirrored'}, "strategy 'mirrored' is for the GPUs of one machine"),
        ({'strategy': 'tpu'}, "invalid choice: 'tpu'"),
        ({'strategy': 'multi_worker_mirrored'}, 'multi_worker_mirrored needs TF_CONFIG='),
        ({'cluster': 'slurm'}, "cluster='slurm' is for the strategy 'multi_worker_mirrored'"),
    ],
)
def test_strategy_that_cannot_be_is_one_clear_line(toy_run, tmp_path, capsys, flags, message):
    assert sampling.call(toy_run, tmp_path / 'set', **flags) == command.WRONG_USE
    assert message in sampling.error_of(capsys) and not list(tmp_path.iterdir())
