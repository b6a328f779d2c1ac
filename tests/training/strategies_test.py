"""Tests that a step is the same step on one replica, on two devices, and on two processes that talk over loopback."""

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tests import cluster
from tests.training import replica_steps
from tf_dpdiff.data import augmentation
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import pretraining as pretraining_lib
from tf_dpdiff.training import stage as stage_lib
from tf_dpdiff.training import strategies
from tf_dpdiff.training import views as views_lib

PLACES = ('two devices', 'two processes')


@pytest.fixture(name='measured', scope='module')
def fixture_measured(tmp_path_factory):
    """The results of steps by where they were taken; replicas of several processes say the same, or it is an error."""
    folder = tmp_path_factory.mktemp('steps')
    program = 'tests.training.replica_steps'
    programs = cluster.start_workers(program, strategies.MIRRORED, folder / 'devices', count=1)
    programs += cluster.start_workers(program, strategies.MULTI_WORKER, folder / 'processes')
    found = {'one replica': replica_steps.measure(strategies.ONE)}
    codes, said = cluster.wait_for(programs)
    assert codes == [0, 0, 0], said
    files = {'two devices': ['devices.0'], 'two processes': ['processes.0', 'processes.1']}
    for place, names in files.items():
        first, *others = [dict(np.load(folder / f'{name}.npz')) for name in names]
        assert first['num_replicas'] == 2
        for other in others:
            assert all(np.array_equal(first[key], other[key]) for key in first), 'the processes drifted apart'
        found[place] = first
    return found


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('name', ['clipped_sums', 'noise', 'average', 'public', 'losses'])
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
def test_all_sums_of_a_private_step_are_reduced_by_one_operation(measured, place):
    # Where a worker is lost, either all sums arrive or none does: there is no half of an update.
    assert measured[place]['num_collectives'] == 1
    assert measured['one replica']['num_collectives'] == 0


@pytest.mark.parametrize(
    'place, drifted',
    [
        ('two devices', 'replica 1 and replica 0 differ in the weights: '),
        ('two processes', 'worker 1 and worker 0 differ in the weights: '),
    ],
)
def test_replica_whose_weights_drift_by_one_bit_is_found_by_all(measured, place, drifted):
    alike, apart = measured[place]['drift']
    assert alike == '' and apart.startswith(drifted) and 'nothing must be released' in apart
    assert measured['one replica']['drift'].tolist() == ['', '']


@pytest.fixture(name='compiled')
def fixture_compiled():
    """Replicas that say of themselves that XLA compiles their steps, as those of a TPU do."""
    replicas = strategies.Replicas(tf.distribute.get_strategy())
    replicas.is_compiled = True
    return replicas


@pytest.mark.parametrize('change', [{'rotation': 0.1}, {'zoom': 0.1}, {'translation': 0.1}])
def test_augmentation_that_xla_does_not_know_is_refused_before_the_first_step(compiled, change):
    views = views_lib.ViewsConfig(augmentation=augmentation.AugmentationConfig(**change))
    config = pretraining_lib.PretrainingConfig(replica_steps.make_private_images(), 1, 4, replica_steps.ADAM, views)
    with pytest.raises(ValueError, match=f'{next(iter(change))} of the augmentation in pretraining cannot be compiled'):
        pretraining_lib.make_stage(config, stage_lib.Training(None, None, None, compiled))


def test_noise_that_runs_on_cpus_is_refused_on_a_tpu(compiled):
    config = plan_lib.DpSgdConfig(1e-4, 4, 1, 1.0, noise_multiplier=1.0, noise_generator='shake256')
    with pytest.raises(ValueError, match="noise_generator='shake256' runs on CPUs"):
        finetuning_lib.make_stage(
            finetuning_lib.FinetuningConfig(replica_steps.ADAM, views_lib.ViewsConfig()),
            stage_lib.Training(None, None, None, compiled),
            plan_lib.make_plan(config, 40),
            None,
            None,
            None,
        )


def test_batches_of_compiled_steps_have_one_size_nearly_always(compiled):
    sizes = np.random.default_rng(0).binomial(10_000, 0.1, 100_000)
    padded = compiled.padded_size(1000, 16)
    assert padded % 16 == 0 and sizes.max() <= padded < 1300
    assert strategies.ONE.padded_size(1000, 16) == 16  # Where nothing is compiled anew, less padding is better.
