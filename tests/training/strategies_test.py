"""Tests that a step is the same step on one replica, on two devices, and on two processes that talk over loopback."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tests.training import replica_steps
from tf_dpdiff.training import strategies

PLACES = ('two devices', 'two processes')


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for found in sockets:
        found.bind(('127.0.0.1', 0))
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def start_program(strategy, output, tf_config=None):
    environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'}
    if tf_config:
        environment['TF_CONFIG'] = json.dumps(tf_config)
    return subprocess.Popen([sys.executable, '-I', '-m', 'tests.training.replica_steps', strategy,
                             str(output)],
                            env=environment,
                            stderr=subprocess.PIPE,
                            text=True)


@pytest.fixture(name='measured', scope='module')
def fixture_measured(tmp_path_factory):
    """What steps did, by where they were taken: all replicas of several processes say the same, or it is an error."""
    folder = tmp_path_factory.mktemp('steps')
    cluster = {'worker': [f'127.0.0.1:{port}' for port in free_ports(2)]}
    programs = [start_program(strategies.MIRRORED, folder / 'devices')]
    programs += [
        start_program(strategies.MULTI_WORKER, folder / 'processes', {
            'cluster': cluster,
            'task': {
                'type': 'worker',
                'index': index
            }
        }) for index in range(2)
    ]
    found = {'one replica': replica_steps.measure(strategies.ONE)}
    for program in programs:
        _, errors = program.communicate(timeout=300)
        assert program.returncode == 0, errors[-3000:]
    files = {'two devices': ['devices.0'], 'two processes': ['processes.0', 'processes.1']}
    for place, names in files.items():
        first, *others = [dict(np.load(folder / f'{name}.npz')) for name in names]
        assert first['num_replicas'] == 2
        for other in others:
            assert all(np.array_equal(first[key], other[key]) for key in first), 'the processes drifted apart'
        found[place] = first
    return found


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('name', ['clipped_sums', 'weights', 'average', 'public', 'losses'])
def test_step_is_that_of_one_replica(measured, place, name):
    expected = measured['one replica'][name]
    np.testing.assert_allclose(measured[place][name], expected, atol=3e-6 * np.abs(expected).max())
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize('place', PLACES)
def test_replicas_together_draw_the_units_that_one_replica_draws(measured, place):
    np.testing.assert_array_equal(measured[place]['num_units'], measured['one replica']['num_units'])
    assert measured['one replica']['num_units'].min() > 0


@pytest.mark.parametrize('place', ('one replica', *PLACES))
def test_noise_has_the_variance_of_one_draw(measured, place):
    noise = measured[place]['noise'] / replica_steps.NOISE_MULTIPLIER
    assert stats.kstest(noise.ravel(), 'norm').pvalue > 1e-3
    # Controls: a draw by each of two replicas, and the factors of the privacy contract.
    for factor in (2**0.5, 2**-0.5, 2 / 3, 3 / 2):
        assert stats.kstest(factor * noise.ravel(), 'norm').pvalue < 1e-4
    # Two steps never have the same noise.
    assert np.abs(np.corrcoef(noise)[np.triu_indices(len(noise), 1)]).max() < 0.2


@pytest.mark.parametrize('place', PLACES)
def test_all_sums_of_a_step_are_reduced_by_one_operation(measured, place):
    # Where a worker is lost, either all sums arrive or none does: there is no half of an update.
    assert measured[place]['num_collectives'] == 1
    assert measured['one replica']['num_collectives'] == 0
