"""Tests of what each recipe says that it would cost, with its own network."""

import pathlib
import re

import pytest
import tensorflow as tf

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import planner_flags
from tf_dpdiff.cli import planner_rows
from tf_dpdiff.cli import train
from tf_dpdiff.training import memory
from tf_dpdiff.training import planner

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DIGITS = {'audit_digits.gin', 'digits.gin', 'digits_from_mnist.gin', 'mnist8.gin',
          'select_digits.gin'}  # Not the paper's.


def run(*flags):
    """Runs bin/train in this process and returns its exit code."""
    return verbs.call(train, *flags)


def words(table):
    """Returns what a table says, without its lines and breaks."""
    return ' '.join(table.replace('│', ' ').split())


# Facts of the paper's recipes: parameters, views, noise multiplier at epsilon 10.
FACTS = [
    ('mnist.gin', ('4,239,297', '2,097,152,000 views', '60,000 of 28x28x1'), 2.282),
    pytest.param('fashion_mnist.gin', ('4,239,297', '2,097,152,000 views', '60,000 of 28x28x1'), 2.282,
                 marks=pytest.mark.long),
    pytest.param('cifar10.gin', ('80,391,171', '419,430,400 views', '50,000 of 32x32x3'), 2.451,
                 marks=pytest.mark.long),
    pytest.param('camelyon.gin', ('80,385,027', '419,430,400 views', '302,436 of 32x32x3'), 0.763,
                 marks=pytest.mark.long),
    pytest.param('imagenet32.gin', ('81,151,491', '204,800,000', '1,281,167 of 32x32x3'), None,
                 marks=pytest.mark.long),
    ('mnist_cpu.gin', ('654,180', '983,040 views', '60,000, 20 steps of dpmpp_2m: 1,200,000 forward passes'), None),
    ('mnist_cpu_eps1.gin', ('654,180', '327,680 views'), None),
    ('cifar10_cpu.gin',
     ('1,120,556', '983,040 views', '4 epochs of 100,000 images',
      '60,000, 10 steps of dpmpp_2m, the best of 4 candidates: 2,400,000 forward passes of one image'), None),
    ('grey28.gin', ('678,', '768,000', '200 classes'), None),
    ('colour32.gin', ('1,1', '768,000', '200 classes', 'forward passes of one image'), None),
]  # yapf: disable


@pytest.mark.parametrize('name, facts, noise_multiplier', FACTS)
def test_dry_run_says_what_a_recipe_costs_before_its_data_are_there(tmp_path, monkeypatch, capsys, name, facts,
                                                                    noise_multiplier):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'nothing'))
    monkeypatch.chdir(tmp_path)
    assert run(f'--gin_file=gin/{name}', '--dry_run', f'--workdir={tmp_path / "run"}') == command.DONE
    said = words(capsys.readouterr().out)
    for fact in (*facts, 'published sizes', 'memory', 'augmentation'):
        assert fact in said, fact
    if noise_multiplier:
        found = float(re.search(r'noise multiplier ([\d.]+)', said.split('what would be done')[1]).group(1))
        assert found == pytest.approx(noise_multiplier, rel=5e-3)
    assert not (tmp_path / 'run').exists()


def test_every_run_file_is_tried():
    tried = {param.values[0] if hasattr(param, 'values') else param[0] for param in FACTS}
    assert tried | DIGITS == {path.name for path in (ROOT / 'gin').glob('*.gin')}


def read(*flags):
    """Returns the devices that flags of bin/train describe."""
    parser = command.Parser('train', '')
    parser.add_argument('--dry_run', action='store_true')
    planner_flags.add(parser)
    return planner_flags.read(parser.parse_args(flags))


def test_devices_are_read_from_flags():
    assert read('--dry_run') is None and read() is None
    found = read('--dry_run', '--devices=8', '--device_tflops=312', '--utilization=0.45', '--device_memory_gib=79')
    assert found == planner.Hardware(devices=8, device_tflops=312.0, utilization=0.45, device_memory_gib=79.0)
    assert read('--dry_run', '--devices=1') == planner.Hardware()


@pytest.mark.parametrize('flags, said', [
    (('--devices=8',), '--devices .* --dry_run'),
    (('--dry_run', '--devices=0'), '--devices must be at least 1, got 0'),
    (('--dry_run', '--views_per_second=-3'), '--views_per_second must be a number > 0, got -3'),
    (('--dry_run', '--views_per_second=9', '--device_tflops=5'), '--views_per_second=9 .*device_tflops=5'),
])
def test_devices_that_mean_nothing_are_wrong_use(flags, said):
    with pytest.raises(command.UsageError, match=said) as refused:
        read(*flags)
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize('has_private_stage, has_public_stage', [(True, False), (False, True)])
def test_rate_of_a_kind_of_stage_that_a_run_has_not_is_refused(has_private_stage, has_public_stage):
    hardware = planner.Hardware(views_per_second=1.0, public_views_per_second=2.0)
    kinds = {'has_private_stage': has_private_stage, 'has_public_stage': has_public_stage}
    with pytest.raises(command.UsageError, match='public_views_per_second=2'):
        planner_rows.check(hardware, **kinds)
    planner_rows.check(planner.Hardware(views_per_second=1.0), **kinds)
    planner_rows.check(hardware, has_private_stage=True, has_public_stage=True)


@pytest.fixture(name='planned')
def fixture_planned(tmp_path, monkeypatch, capsys):
    """Returns a function from a recipe and flags to what its plan says; the network is a small one."""
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'nothing'))

    def plan(name, *flags):
        assert run(f'--gin_file=gin/{name}', '--dry_run', *flags) == command.DONE
        return words(capsys.readouterr().out.split('what would be done')[1].split('The statement')[0])

    return plan


def test_plan_of_a_private_run_is_worked_out_for_its_devices(small_network, planned):
    said = planned('digits.gin', '--devices=4', '--views_per_second=2000', '--public_views_per_second=1000',
                   '--price_per_device_hour=3', '--device_memory_gib=1')  # yapf: disable
    largest = planner.largest_sampled_share(1437, 700, 4, 16)
    seconds = 64000 / 4000 + 320000 / 4000 + 100 * largest * 8 / 2000
    for fact in ('64,000 views in 16 s', '320,000 views in 80 s', '560,000 views in 77 s',
                 f'{seconds / 60.0:.1f} min on 4', f'cost {4 * seconds / 1200.0:.2f} at 3 each',
                 f'largest of 4 has {largest:.1f} on average', 'efficiency 1, assumed and not measured',
                 'fits in 90% of 1 GiB'):
        assert fact in said, fact
    assert 'ESTIMATED' not in said


def test_plan_is_for_accelerators_whatever_this_machine_holds_at_a_time(small_network, planned, monkeypatch):
    binding = '--gin_param=FinetuningConfig.units_per_chunk = None'
    expected = planned('digits.gin', '--devices=8', binding)
    monkeypatch.setattr(memory, '_MAX_ACTIVATION_BYTES_ON_CPU', 1)
    assert planned('digits.gin', '--devices=8', binding) == expected


def test_parameters_are_counted_whatever_their_shape():
    assert planner_rows.count_parameters([tf.Variable(tf.zeros(shape)) for shape in ([2, 3], [5], [])]) == 12


def test_plan_of_a_public_run_by_the_peak_is_an_estimate(small_network, planned):
    said = planned('grey28.gin', '--device_tflops=1', '--utilization=0.2', '--device_memory_gib=0.001')
    for fact in ('ESTIMATED, NOT MEASURED: 20% (assumed) of 1 TFLOPS', '768,000 views in', 'DOES NOT FIT',
                 'nothing fits'):
        assert fact in said, fact
