"""Tests that the DP-Keras optimizers take the same private step on two devices as on one."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tests.privacy import replica_updates
from tf_dpdiff.privacy import optimizer as optimizer_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture(name='measured', scope='module')
def fixture_measured(tmp_path_factory):
    """What the program measured; it is one of its own, since the number of devices is chosen before anything else."""
    output = tmp_path_factory.mktemp('replicas') / 'measured.npz'
    subprocess.run(
        [sys.executable, '-m', 'tests.privacy.replica_updates', str(output)],
        check=True,
        cwd=ROOT,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
    )
    return dict(np.load(output))


@pytest.mark.parametrize('way', replica_updates.WAYS)
def test_update_without_noise_is_that_of_one_replica_with_the_whole_batch(measured, way):
    expected, updates = measured[f'{way}, one'], measured[f'{way}, two']
    assert expected.shape[0] == 1 and updates.shape[0] == 2
    np.testing.assert_array_equal(updates[0], updates[1])
    np.testing.assert_allclose(updates[:1], expected, rtol=1e-5, atol=1e-7)
    # Controls: sums that are not reduced, or are reduced twice, give about a half or two times that.
    for factor in (0.5, 2.0):
        assert not np.allclose(updates[:1], factor * expected, rtol=0.3, atol=1e-3)


def test_all_ways_take_the_same_step_and_the_expected_batch_size_counts_for_all_replicas(measured):
    *ways, expected_batch_size = replica_updates.WAYS
    first = measured[f'{ways[0]}, two']
    for way in ways[1:]:
        np.testing.assert_allclose(measured[f'{way}, two'], first, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        measured[f'{expected_batch_size}, two'] * 10.0 / replica_updates.NUM_UNITS, first, rtol=1e-5, atol=1e-7
    )


def looks_like_one_draw(noise):
    return stats.kstest(np.ravel(noise), 'norm').pvalue > 1e-3


@pytest.mark.parametrize('place', ['one', 'two'])
def test_noise_is_one_draw_on_any_number_of_replicas(measured, place):
    noise = measured[f'noise of {place}']
    np.testing.assert_array_equal(noise[:, 0], noise[:, -1])
    assert looks_like_one_draw(noise[:, 0])
    assert abs(np.corrcoef(noise[0, 0], noise[1, 0])[0, 1]) < 0.1
    # Controls: another scale, and the noise that two draws, one a replica, would be.
    for factor in (2 / 3, 3 / 2, 2**0.5):
        assert not looks_like_one_draw(factor * noise[:, 0])


@pytest.mark.parametrize('strategy', ['MultiWorkerMirroredStrategy', 'CentralStorageStrategy'])
@pytest.mark.parametrize('way', ['fit of DpModel', 'fit of a plain model'])
def test_strategies_whose_noise_is_not_added_once_are_refused_by_name(measured, strategy, way):
    message = str(measured[f'{strategy}, {way}'])
    assert message.startswith('RuntimeError') and f'{strategy} is not supported by the VectorizedDP' in message


@pytest.mark.parametrize('name', ['ParameterServerStrategy', 'TPUStrategy', 'MultiWorkerMirroredStrategy'])
def test_strategies_are_refused_by_the_names_that_users_know(monkeypatch, name):
    cls = getattr(tf.distribute, name)
    monkeypatch.setattr(tf.distribute, 'has_strategy', lambda: True)
    monkeypatch.setattr(tf.distribute, 'get_strategy', lambda: cls.__new__(cls))
    with pytest.raises(RuntimeError, match=f'^{name} is not supported .* Use MirroredStrategy, or bin/train'):
        optimizer_lib.VectorizedDPSGD(1.0, 0.0, 1).compute_unit_gradients(None, None, [])


@pytest.mark.parametrize(
    'what, expected',
    [
        ('apply_gradients', 'RuntimeError.*added up already.*skip_gradients_aggregation=True'),
        ('mean loss', "ValueError.*compile with a loss whose reduction is 'none'"),
        ('mean loss on one', '^no error$'),
        ('made outside of the scope', 'RuntimeError.*in the scope of the strategy: its counter of draws'),
        ('outside', 'RuntimeError.*is taken by each replica: call it by strategy.run'),
    ],
)
def test_what_would_be_of_the_wrong_scale_on_several_replicas_is_refused(measured, what, expected):
    assert re.search(expected, str(measured[what]), re.DOTALL)


def test_one_device_strategy_takes_the_step_of_no_strategy():
    alone, one_device = (
        replica_updates.take_step('fit of DpModel', strategy)
        for strategy in (tf.distribute.get_strategy(), tf.distribute.OneDeviceStrategy('CPU:0'))
    )
    np.testing.assert_allclose(one_device, alone, rtol=1e-5, atol=1e-7)
    assert np.abs(alone).max() > 1e-3
