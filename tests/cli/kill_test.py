"""Long: a run killed with SIGKILL at random moments ends like one that never was."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Long enough to be ended ten times while it trains.
BINDINGS = [
    'PretrainingConfig.num_steps = 150',
    'WarmStartConfig.num_steps = 150',
    'NUM_STEPS = 300',
    'EXPECTED_BATCH_SIZE = 200',
    'TrainerConfig.checkpoint_every_secs = 0.5',
]


def start(workdir):
    flags = ['--gin_file=tests/cli/tiny_digits.gin', f'--workdir={workdir}'] + [
        f'--gin_param={binding}' for binding in BINDINGS
    ]
    return subprocess.Popen(
        [sys.executable, '-m', 'tf_dpdiff.cli', 'train', *flags],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )


def newest(workdir):
    """Returns the newest checkpoint; None where there is none yet."""
    return max((workdir / 'checkpoints').glob('[0-9]*'), default=None)


def released(workdir):
    """Returns the averaged weights and the statement."""
    reader = tf.train.load_checkpoint(str(newest(workdir) / 'variables'))
    names = sorted(name for name in reader.get_variable_to_shape_map() if name.startswith('average/'))
    weights = np.concatenate([reader.get_tensor(name).ravel() for name in names if 'VARIABLE_VALUE' in name])
    return weights, (workdir / 'privacy_statement.json').read_text()


def end_at_a_random_moment(process, workdir, number, generator):
    """Ends a run by a signal: while it starts, or some time after it began to train. Returns whether it still ran."""
    before = newest(workdir)
    if generator.random() < 0.2:
        time.sleep(generator.uniform(0.0, 8.0))
    else:
        while newest(workdir) == before and process.poll() is None:
            time.sleep(0.05)
        time.sleep(generator.uniform(0.0, 3.0))
    if process.poll() is not None:
        return False
    process.send_signal(number)
    # Killed by the signal, or stopped in good order with exit code 1.
    assert process.wait() in (-number, 1)
    return True


@pytest.mark.long(in_share=False)
@pytest.mark.parametrize('number, times', [(signal.SIGKILL, 10), (signal.SIGINT, 3), (signal.SIGTERM, 3)])
def test_run_that_was_ended_at_random_moments_equals_one_that_was_not(tmp_path, number, times):
    first, broken = tmp_path / 'unbroken', tmp_path / 'broken'
    process = start(first)
    while newest(first) is None:
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.wait()
    shutil.copytree(first, broken)  # The same secret, the same place.
    assert start(first).wait() == 0
    generator = random.Random(0)
    ends = sum(end_at_a_random_moment(start(broken), broken, number, generator) for _ in range(times))
    assert ends == times
    assert start(broken).wait() == 0
    np.testing.assert_array_equal(released(broken)[0], released(first)[0])
    assert released(broken)[1] == released(first)[1]
    assert json.loads(released(broken)[1])['steps_run'] == 300
