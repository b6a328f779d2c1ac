"""Tests of runs of two workers: they end like runs of one, also when one of the two is stopped or killed."""

import json
import random
import shutil
import signal
import time

import numpy as np
import pytest

from tests import cluster
from tests.cli.verbs import call
from tf_dpdiff.cli import train
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.training import checkpoints

TINY = cluster.ROOT / 'tests' / 'cli' / 'tiny_digits.gin'
# Long enough to be stopped on the way, quick to start: one private stage. All is trained: of norms and embeddings
# alone, before an output layer that was never trained, all gradients would be zero, and nothing but noise compared.
BINDINGS = (
    'FinetuningConfig.trainable = ()',
    'train.pretraining = None',
    'train.warm_start = None',
    'train.utility = None',
    'TrainerConfig.grids_per_stage = 0',
    'TrainerConfig.checkpoint_every_secs = 0.2',
    'UNetConfig.num_res_blocks = 1',
    'UNetConfig.attention_resolutions = ()',
    'UNetConfig.middle_attention = False',
)


def flags(workdir, num_steps):
    bindings = *BINDINGS, f'NUM_STEPS = {num_steps}'
    return [f'--gin_file={TINY}', f'--workdir={workdir}', *(f'--gin_param={binding}' for binding in bindings)]


def start_run(workdir, num_steps):
    return cluster.start_workers(
        'tf_dpdiff.cli',
        'train',
        *flags(workdir, num_steps),
        '--strategy=multi_worker_mirrored',
        '--gin_param=StrategyConfig.start_timeout_secs = 40.0',
    )


def saved_steps(workdir):
    """Returns how many private steps the newest checkpoint holds; None where there is none."""
    found = checkpoints.read_run(workdir / 'checkpoints')
    return found and found.ledger.count(ledger_lib.DP_SGD_STEP)


def wait_until_saved(workdir, workers, steps):
    while (saved_steps(workdir) or 0) < steps:
        assert all(worker.poll() is None for worker in workers), [worker.communicate()[1] for worker in workers]
        time.sleep(0.1)


def averaged_weights(workdir):
    described = folder_lib.read_model(workdir)
    model = denoiser.build(described.network, described.image_shape, len(described.class_names))
    checkpoints.load_average(workdir / 'checkpoints', model)
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def statement(workdir):
    """Returns the statement of a run, without its name."""
    found = json.loads((workdir / 'privacy_statement.json').read_text())
    del found['run_id']
    return found


def stop_the_second(workdir):
    """Runs two workers and asks the one that saves nothing itself to stop; returns at which step both did."""
    workers = start_run(workdir, 60)
    wait_until_saved(workdir, workers, steps=1)
    workers[1].send_signal(signal.SIGTERM)
    codes, said = cluster.wait_for(workers)
    stopped_at = saved_steps(workdir)
    assert codes == [1, 1] and 1 <= stopped_at < 60
    for text, reason in zip(said, ('by another worker', 'SIGTERM')):
        assert f'stopped in finetuning after step {stopped_at} of 60 ({reason}); everything is saved' in text
    return stopped_at


@pytest.mark.long
def test_two_workers_stop_together_with_everything_saved(tmp_path):
    assert 1 <= stop_the_second(tmp_path) < 60


@pytest.mark.long
@pytest.mark.parametrize('count', [1, 2])
def test_run_of_two_workers_goes_on_and_ends_with_the_statement_of_one(tmp_path, count):
    one, two = tmp_path / 'one', tmp_path / 'two'
    stopped_at = stop_the_second(two)
    workers = (
        start_run(two, 60) if count == 2 else cluster.start_workers('tf_dpdiff.cli', 'train', *flags(two, 60), count=1)
    )
    codes, said = cluster.wait_for(workers)
    assert codes == [0] * count and f'goes on in finetuning at step {stopped_at}' in said[0], said
    assert call(train, *flags(one, 60)) == 0
    assert statement(two) == statement(one)
    assert np.load(two / 'samples.npz')['images'].shape == np.load(one / 'samples.npz')['images'].shape


LONG = 400


def kill_one_at_a_random_moment(workdir, generator):
    """Runs two workers, kills one of them some time after the first new checkpoint, and waits for the end of both."""
    before, workers = saved_steps(workdir), start_run(workdir, LONG)
    if generator.random() < 0.2:
        time.sleep(generator.uniform(0.0, 8.0))  # While they start.
    else:
        wait_until_saved(workdir, workers, steps=before + 1)
        time.sleep(generator.uniform(0.0, 2.0))
    assert all(worker.poll() is None for worker in workers), 'it ended before it was killed'
    killed = generator.randrange(2)
    workers[killed].kill()
    codes, said = cluster.wait_for(workers)
    # The other one saves nothing and says why it ends: it was left alone at work, or before they had met.
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 1, said
    last = said[1 - killed].splitlines()[-1]
    assert 'another worker is gone' in last or 'not all of 2 workers were there' in last, said


@pytest.mark.long(in_share=False)
def test_run_of_which_one_of_two_workers_is_killed_again_and_again_equals_one_that_was_not_broken(tmp_path):
    first, broken, generator = tmp_path / 'unbroken', tmp_path / 'broken', random.Random(0)
    workers = start_run(first, LONG)
    wait_until_saved(first, workers, steps=1)
    workers[0].kill()
    cluster.wait_for(workers)
    shutil.copytree(first, broken)  # The same secret, the same place.
    assert cluster.wait_for(start_run(first, LONG))[0] == [0, 0]
    for _ in range(5):
        kill_one_at_a_random_moment(broken, generator)
    assert cluster.wait_for(start_run(broken, LONG))[0] == [0, 0]
    np.testing.assert_array_equal(averaged_weights(broken), averaged_weights(first))
    assert statement(broken) == statement(first)
    assert saved_steps(broken) == LONG
