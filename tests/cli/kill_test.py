"""Long: a run killed with SIGKILL at random moments ends like one that never was."""

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
BINDINGS = [
    'UNetConfig.base_channels = 4', 'UNetConfig.channel_multipliers = (1,)', 'UNetConfig.groups = 2',
    'PretrainingConfig.num_steps = 30', 'random_strokes.num_images = 50', 'WarmStartConfig.num_steps = 30',
    'WarmStartConfig.num_images = 50', 'NUM_STEPS = 40', 'EXPECTED_BATCH_SIZE = 200', 'AUGMENTATION_MULTIPLICITY = 2',
    'DpSgdConfig.noise_multiplier = 5.0', 'SamplerConfig.num_steps = 3', 'GenerateConfig.num_images = 100',
    'TrainerConfig.checkpoint_every_secs = 0.5'
]  # yapf: disable


def start(workdir):
    flags = ['--gin_file=gin/digits.gin', f'--workdir={workdir}'] + [f'--gin_param={binding}' for binding in BINDINGS]
    return subprocess.Popen([sys.executable, '-m', 'tf_dpdiff.cli', 'train', *flags],
                            cwd=ROOT,
                            stderr=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            env={
                                **os.environ, 'PYTHONPATH': str(ROOT)
                            })


def released(workdir):
    """Returns the averaged weights and the statement."""
    latest = tf.train.latest_checkpoint(str(workdir / 'checkpoints'))
    reader = tf.train.load_checkpoint(latest)
    names = sorted(name for name in reader.get_variable_to_shape_map() if name.startswith('average/'))
    weights = np.concatenate([reader.get_tensor(name).ravel() for name in names if 'VARIABLE_VALUE' in name])
    return weights, (workdir / 'privacy_statement.json').read_text()


@pytest.mark.long
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_run_that_was_ended_at_random_moments_equals_one_that_was_not(tmp_path, number):
    first, broken = tmp_path / 'unbroken', tmp_path / 'broken'
    process = start(first)
    while not (first / 'checkpoints' / 'checkpoint').exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.wait()
    shutil.copytree(first, broken)  # The same secret, the same place.
    assert start(first).wait() == 0
    generator, ends = random.Random(0), 0
    for _ in range(5):
        process = start(broken)
        try:
            code = process.wait(timeout=generator.uniform(15.0, 40.0))
            assert code == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            code = process.wait()
            assert code == (-9 if number == signal.SIGKILL else 1) or (code == -number)
            ends += 1
    assert start(broken).wait() == 0
    assert ends >= 1
    np.testing.assert_array_equal(released(broken)[0], released(first)[0])
    assert released(broken)[1] == released(first)[1]
