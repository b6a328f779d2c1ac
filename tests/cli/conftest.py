"""What tests of several verbs share."""

import fcntl
import functools
import pathlib

import numpy as np
import pytest

from tests import conftest
from tests.cli import sampling
from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import train
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.runs import budget as budget_file
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import forecast
from tf_dpdiff.runs import outcome
from tf_dpdiff.serving import export

TINY = pathlib.Path(__file__).with_name('tiny_digits.gin')


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    """A machine of one speed: to measure it takes seconds, which forecast_test spends once."""
    monkeypatch.setattr(forecast, 'measure_speed', lambda model, trainable, **options: forecast.Speed(300.0, 500.0))


@pytest.fixture(name='tiny_run', scope='session')
def fixture_tiny_run(tmp_path_factory, worker_id):
    """A finished run of tiny_digits.gin with a small network, and the budget that it was charged to; to be copied.

    Who builds its network again asks for `small_network` too.
    """
    folder = tmp_path_factory.getbasetemp()
    if worker_id != 'master':  # One of the processes that share the tests: the first makes the run for all.
        folder = folder.parent
    workdir, budget_path, done = (folder / 'tiny_run' / name for name in ('digits', 'budget.json', 'done'))
    done.parent.mkdir(exist_ok=True)
    with open(folder / 'tiny_run.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            budget_file.create(budget_path, budget_lib.Budget(3.5, 1e-5))
            logs = ('TrainerConfig.log_non_private = True', 'TrainerConfig.log_every_steps = 1')
            flags = [f'--gin_file={TINY}', f'--workdir={workdir}', f'--budget_file={budget_path}']
            with conftest.small_networks():
                assert verbs.call(train, *flags, *(f'--gin_param={binding}' for binding in logs)) == command.DONE
            done.touch()
    return workdir, budget_path


@pytest.fixture(name='nothing_drawn_anew')
def fixture_nothing_drawn_anew(monkeypatch):
    """Leaves the samples and the exported model of a run that is complete as they are: to trace both takes seconds."""

    def draw(*unused_arguments, workdir, **unused_options):
        with np.load(workdir / folder_lib.SAMPLES) as samples:
            return samples['images'], samples['labels']

    def write(workdir, title, facts, statement, *unused_arguments, **unused_options):
        del title, facts
        folder_lib.write_statement(workdir, statement)
        return workdir / folder_lib.SAVED_MODEL / '1'

    monkeypatch.setattr(outcome, 'draw', draw)
    monkeypatch.setattr(outcome, 'write', write)


@pytest.fixture(name='loaded_once', scope='module')
def fixture_loaded_once():
    """Loads an exported model once for all tests: it is a function without state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, 'load_sample_fn', functools.lru_cache(maxsize=None)(export.load_sample_fn))
        yield


@pytest.fixture(name='toy_run', scope='session')
def fixture_toy_run(tmp_path_factory):
    """A finished run."""
    with conftest.whole_network():
        return sampling.make_run(tmp_path_factory.mktemp('runs') / 'Toys 1')


@pytest.fixture(name='other_toy_run', scope='session')
def fixture_other_run(tmp_path_factory):
    """A run of other weights and another statement, which always saw labels."""
    with conftest.whole_network():
        return sampling.make_run(tmp_path_factory.mktemp('runs') / 'other', seed=1, label_drop_probability=0.0)
