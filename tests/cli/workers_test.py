"""Tests of runs of two workers: they end like runs of one, also when one of the two is stopped or killed."""

import json
import signal
import time

import numpy as np

from tests.cli import cluster
from tests.cli.verbs import call
from tf_dpdiff.cli import train
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.training import checkpoints

TINY = cluster.ROOT / 'tests' / 'cli' / 'tiny_digits.gin'
# Long enough to be stopped on the way, quick to start: one private stage.
BINDINGS = ('train.pretraining = None', 'train.warm_start = None', 'train.utility = None', 'NUM_STEPS = 60',
            'TrainerConfig.grids_per_stage = 0', 'TrainerConfig.checkpoint_every_secs = 0.2')  # yapf: disable


def flags(workdir):
    return [f'--gin_file={TINY}', f'--workdir={workdir}', *(f'--gin_param={binding}' for binding in BINDINGS)]


def start_run(workdir):
    return cluster.start_workers('tf_dpdiff.cli', 'train', *flags(workdir), '--strategy=multi_worker_mirrored')


def saved_steps(workdir):
    """Returns how many private steps the newest checkpoint holds; None where there is none."""
    found = checkpoints.read_run(workdir / 'checkpoints')
    return found and found.ledger.count(plan_lib.DP_SGD_STEP)


def wait_until_saved(workdir, workers, steps):
    while (saved_steps(workdir) or 0) < steps:
        assert all(worker.poll() is None for worker in workers), [worker.communicate()[1] for worker in workers]
        time.sleep(0.1)


def statement(workdir):
    """Returns the statement of a run, without its name."""
    found = json.loads((workdir / 'privacy_statement.json').read_text())
    del found['run_id']
    return found


def test_two_workers_stop_together_and_end_with_the_statement_of_one(tmp_path):
    one, two = tmp_path / 'one', tmp_path / 'two'
    workers = start_run(two)
    wait_until_saved(two, workers, steps=1)
    workers[1].send_signal(signal.SIGTERM)  # To the one that saves nothing itself.
    codes, said = cluster.wait_for(workers)
    assert codes == [1, 1] and all('stopped in finetuning after step' in text for text in said), said
    stopped_at = saved_steps(two)
    assert 1 <= stopped_at < 60
    assert f'after step {stopped_at} of 60' in said[0] and f'after step {stopped_at} of 60' in said[1]
    codes, said = cluster.wait_for(start_run(two))
    assert codes == [0, 0] and f'goes on in finetuning at step {stopped_at}' in said[0], said
    assert call(train, *flags(one)) == 0
    assert statement(two) == statement(one)
    assert np.load(two / 'samples.npz')['images'].shape == np.load(one / 'samples.npz')['images'].shape
