"""Tests of the private step on a GPU, against the numbers of the CPU.

`bin/test -m gpu` runs those of the GPU. The long tests are the same ones with the CPU as the device: they show that the
tests work where there is no GPU, and what XLA makes of the step there.
"""

import os

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from benchmarks import networks
from tests import cluster
from tests.training import device_steps
from tests.training import replica_steps
from tf_dpdiff.training import strategies

each_device = pytest.mark.parametrize(
    'device',
    [pytest.param('CPU:0', marks=pytest.mark.long(in_share=False)), pytest.param('GPU:0', marks=pytest.mark.gpu)],
)


@pytest.fixture(name='exact', scope='module', autouse=True)
def fixture_exact():
    """Switches TF32 off, by which GPUs round the operands of products to 10 bits."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@each_device
@pytest.mark.parametrize('jit_compile', [False, True])
def test_step_on_a_device_and_by_xla_is_that_of_the_cpu(device, jit_compile):
    expected = device_steps.clipped_sum('CPU:0')
    assert 1.0 < np.linalg.norm(expected) < 5.0 + 1e-3
    assert relative_error(device_steps.clipped_sum(device, jit_compile=jit_compile), expected) < 1e-3
    # Control: another step looks at other views.
    assert relative_error(device_steps.clipped_sum(device, step=1, jit_compile=jit_compile), expected) > 1e-2


@each_device
def test_no_unit_passes_the_clip_norm_where_products_are_rounded(device):
    tf.config.experimental.enable_tensor_float_32_execution(True)
    try:
        alone = device_steps.clipped_sum(device, (0, -1, -1), jit_compile=True)
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(False)
    # What is read are differences of weights, which are rounded too.
    assert 0.99 < np.linalg.norm(alone) < 1.0 + 1e-3


def noise_on(device, jit_compile, step=0):
    """Returns the noise of a step without units, over what its standard deviation should be."""
    settings = {'step': step, 'noise_multiplier': device_steps.NOISE_MULTIPLIER, 'jit_compile': jit_compile}
    return device_steps.clipped_sum(device, device_steps.NO_UNITS, **settings) / device_steps.NOISE_MULTIPLIER


@each_device
@pytest.mark.parametrize('jit_compile', [False, True])
def test_noise_on_a_device_is_that_of_the_cpu_and_added_once(device, jit_compile):
    noise = noise_on(device, jit_compile)
    # What is read are differences of weights of about 1, rounded at 2^-24, over a noise of some 5e-3.
    np.testing.assert_allclose(noise, noise_on('CPU:0', False), atol=1e-4)
    assert stats.kstest(noise, 'norm').pvalue > 1e-3
    # Controls: two draws, none but a half, and the factors of the privacy contract.
    for factor in (2**0.5, 2**-0.5, 2 / 3, 3 / 2):
        assert stats.kstest(factor * noise, 'norm').pvalue < 1e-6
    assert abs(np.corrcoef(noise, noise_on(device, jit_compile, step=1))[0, 1]) < 5.0 / len(noise) ** 0.5


@each_device
def test_steps_are_repeated_bit_for_bit_by_another_process_where_tensorflow_is_told_to(device, tmp_path, monkeypatch):
    monkeypatch.setenv('TF_DETERMINISTIC_OPS', '1')
    programs = [
        program
        for name in ('first', 'again')
        for program in cluster.start_workers('tests.training.device_steps', device, tmp_path / f'{name}.npz', count=1)
    ]
    codes, said = cluster.wait_for(programs, timeout_secs=1200)
    assert codes == [0, 0], said
    first, again = (np.load(tmp_path / f'{name}.npz')['sums'] for name in ('first', 'again'))
    for sums in first:  # As it is, and by XLA.
        np.testing.assert_array_equal(sums[0], sums[1])
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[:, :, 0] - first[:, :, 1]).max() > 1.0  # Another step has another noise.


@each_device
def test_step_taken_again_is_the_same_but_for_rounding(device):
    first, again = (device_steps.clipped_sum(device, jit_compile=True) for _ in range(2))
    assert relative_error(again, first) < 1e-4


@each_device
@pytest.mark.parametrize('jit_compile', [False, True])
def test_step_in_bfloat16_is_close_to_that_in_float32(device, jit_compile):
    exact = device_steps.clipped_sum(device, jit_compile=jit_compile)
    mixed = device_steps.clipped_sum(device, jit_compile=jit_compile, compute_dtype='mixed_bfloat16')
    # Zero would mean that nothing was rounded.
    assert 1e-4 < relative_error(mixed, exact) < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize('compute_dtype', ['float32', 'mixed_bfloat16'])
def test_memory_of_a_step_on_a_gpu_is_within_the_plan(compute_dtype):
    before = tf.config.experimental.get_memory_info('GPU:0')['current']
    tf.config.experimental.reset_memory_stats('GPU:0')
    step = networks.private_step('1.1M', 64, 4, units_per_chunk=64, compute_dtype=compute_dtype)
    for number in range(2):
        step.run(number)
    peak = tf.config.experimental.get_memory_info('GPU:0')['peak'] - before
    # The planner leaves a tenth of a device to the allocator and to libraries.
    assert 0.1 * step.planned_bytes < peak < step.planned_bytes / 0.9


@pytest.fixture(name='on_two_gpus', scope='module')
def fixture_on_two_gpus(tmp_path_factory):
    """The results of steps that two GPUs take together, in a process of its own."""
    gpus = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(len(gpus_here()))))).split(',')
    if len(gpus) < 2:
        pytest.skip(f'TensorFlow sees {len(gpus_here())} GPU(s) on this machine, and this test takes two')
    output = tmp_path_factory.mktemp('steps') / 'two_gpus'
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', ','.join(gpus[:2]))
        monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '0')
        program = 'tests.training.replica_steps'
        programs = cluster.start_workers(program, strategies.MIRRORED, output, replica_steps.GPUS, count=1)
    codes, said = cluster.wait_for(programs, timeout_secs=600)
    assert codes == [0], said
    return dict(np.load(f'{output}.0.npz'))


def gpus_here():
    return tf.config.list_physical_devices('GPU')


@pytest.mark.gpu
def test_two_gpus_take_the_steps_of_one(on_two_gpus):
    one = replica_steps.measure(strategies.ONE)
    assert on_two_gpus['num_replicas'] == 2
    np.testing.assert_array_equal(on_two_gpus['num_units'], one['num_units'])
    for name in ('clipped_sums', 'noise', 'average', 'public', 'losses'):
        np.testing.assert_allclose(on_two_gpus[name], one[name], atol=1e-4 * np.abs(one[name]).max(), err_msg=name)


@pytest.mark.gpu
def test_two_gpus_add_one_draw_of_noise(on_two_gpus):
    noise = on_two_gpus['noise'].ravel() / replica_steps.NOISE_MULTIPLIER
    assert stats.kstest(noise, 'norm').pvalue > 1e-3
    for factor in (2**0.5, 2**-0.5, 2 / 3, 3 / 2):
        assert stats.kstest(factor * noise, 'norm').pvalue < 1e-4
