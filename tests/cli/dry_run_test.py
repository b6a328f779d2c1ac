"""Tests of what each recipe says that it would cost, with its own network."""

import pathlib
import re

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import planner_flags
from tf_dpdiff.cli import train
from tf_dpdiff.runs import forecast
from tf_dpdiff.training import memory
from tf_dpdiff.training import planner

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def run(*flags):
    """Runs bin/train in this process and returns its exit code."""
    return verbs.call(train, *flags)


def words(table):
    """Returns the words of a table, without its lines and breaks."""
    return ' '.join(table.replace('│', ' ').split())


AFTER_IMAGENET = ('cifar10.gin', 'camelyon.gin')  # They start from the checkpoint of a public run.
# Facts of the paper's recipes: parameters, views, noise multiplier at epsilon 10.
FACTS = [
    # Their networks and their noise are looked at in presets_test and accounting_test.
    pytest.param('mnist.gin', ('4,239,297', '2,097,152,000 views', '60,000 of 28x28x1'), 2.282, marks=pytest.mark.long),
    pytest.param(
        'fashion_mnist.gin', ('4,239,297', '2,097,152,000 views', '60,000 of 28x28x1'), 2.282, marks=pytest.mark.long
    ),
    pytest.param(
        'cifar10.gin', ('80,391,171', '419,430,400 views', '50,000 of 32x32x3'), 2.451, marks=pytest.mark.long
    ),
    pytest.param(
        'camelyon.gin', ('80,385,027', '419,430,400 views', '302,436 of 32x32x3'), 0.763, marks=pytest.mark.long
    ),
    pytest.param('imagenet32.gin', ('81,151,491', '204,800,000', '1,281,167 of 32x32x3'), None, marks=pytest.mark.long),
    pytest.param(
        'mnist_cpu.gin',
        ('654,180', '983,040 views', '60,000, 20 steps of dpmpp_2m: 1,200,000 forward passes'),
        None,
        marks=pytest.mark.long,  # But for its classes, the network of grey28.gin.
    ),
    pytest.param('mnist_cpu_eps1.gin', ('654,180', '327,680 views'), None, marks=pytest.mark.long),  # The same network.
    (
        'cifar10_cpu.gin',
        (
            '1,120,556',
            '983,040 views',
            '4 epochs of 100,000 images',
            '60,000, 10 steps of dpmpp_2m, the best of 4 candidates: 2,400,000 forward passes of one image',
        ),
        None,
    ),
    ('grey28.gin', ('678,', '768,000', '200 classes'), None),
    ('colour32.gin', ('1,1', '768,000', '200 classes', 'forward passes of one image'), None),
]


@pytest.mark.parametrize('name, facts, noise_multiplier', FACTS)
def test_dry_run_says_what_a_recipe_costs_before_its_data_are_there(
    tmp_path, monkeypatch, capsys, name, facts, noise_multiplier
):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'nothing'))
    monkeypatch.chdir(tmp_path)
    flags = [] if name not in AFTER_IMAGENET else [f'--gin_param=FinetuningConfig.init_from = "{tmp_path / "public"}"']
    code = run(f'--gin_file=gin/{name}', '--dry_run', f'--workdir={tmp_path / "run"}', *flags)
    printed = capsys.readouterr()
    assert code == (command.WRONG_USE if name in AFTER_IMAGENET else command.DONE)
    assert ('no public checkpoint in' in printed.err) == (name in AFTER_IMAGENET)  # Which the run would stop at.
    said = words(printed.out)
    for fact in (*facts, 'published sizes', 'memory', 'augmentation'):
        assert fact in said, fact
    if noise_multiplier:
        found = float(re.search(r'noise multiplier ([\d.]+)', said.split('what would be done')[1]).group(1))
        assert found == pytest.approx(noise_multiplier, rel=5e-3)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'flags, code',
    [
        ((), command.WRONG_USE),
        (('--devices=8',), command.DONE),
        (('--gin_param=FinetuningConfig.init_from = None',), command.DONE),
    ],
)
def test_plan_fails_where_the_run_would_for_a_checkpoint_that_is_not_there(
    small_network, tmp_path, monkeypatch, capsys, flags, code
):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'nothing'))
    missing = f'--gin_param=FinetuningConfig.init_from = "{tmp_path / "none"}"'
    assert run('--gin_file=gin/mnist_cpu.gin', '--dry_run', missing, *flags) == code
    printed = capsys.readouterr()
    # All else is planned before, and for other devices the checkpoint may lie elsewhere.
    assert 'PRIVACY STATEMENT' in printed.out and '983,040 views' in words(printed.out)
    if code:
        assert printed.err.strip() == (
            f'train: error: the run would stop at its start: no public checkpoint in '
            f'{tmp_path / "none"}: there is no such folder.'
        )


def test_plan_and_run_refuse_a_missing_checkpoint_alike(small_network, tmp_path, capsys):
    flags = [
        '--gin_file=gin/digits_from_mnist.gin',
        f'--workdir={tmp_path / "run"}',
        '--gin_param=NUM_STEPS = 1',
        f'--gin_param=FinetuningConfig.init_from = "{tmp_path / "none"}"',
    ]
    saying = []
    for more in ((), ('--dry_run',)):
        assert run(*flags, *more) == command.WRONG_USE
        saying.append(capsys.readouterr().err.strip().partition('no public checkpoint in')[2])
    assert saying[0] == saying[1] and str(tmp_path / 'none') in saying[0]


def write_folder(root, faulty=None):
    """Writes two classes of 8x8 grey images; the one that is called `faulty` is of another size."""
    for number in range(60):
        part = 'train' if number < 40 else 'test'
        file = root / part / 'ab'[number % 2] / f'{number}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        side = 9 if file.name == faulty else 8
        pixels = np.random.default_rng(number).integers(0, 256, [side, side]).astype(np.uint8)
        Image.fromarray(pixels).save(file)


OWN = (
    'DATA = @image_folder()',
    'image_folder.path = "scans"',
    'train.pretraining = None',
    'train.warm_start = None',
    'EXPECTED_BATCH_SIZE = 10',
    'NUM_STEPS = 1',
    'AUGMENTATION_MULTIPLICITY = 1',
    'DpSgdConfig.noise_multiplier = 30.0',
)


@pytest.mark.parametrize(
    'faulty, more, stops',
    [
        (None, (), False),
        ('7.png', (), True),
        ('7.png', ('image_folder.image_size = 8',), False),
        ('50.png', (), False),
        ('50.png', ('train.utility = @UtilityConfig()',), True),
    ],
)
def test_plan_fails_where_the_run_would_for_images_of_several_sizes(
    small_network, tmp_path, monkeypatch, capsys, faulty, more, stops
):
    write_folder(tmp_path / 'scans', faulty)
    monkeypatch.chdir(tmp_path)
    flags = [f'--gin_param={binding}' for binding in (*OWN, *more)]
    assert run('--gin_file=gin/digits.gin', '--dry_run', *flags) == (command.WRONG_USE if stops else command.DONE)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (f'{faulty} is 9x9x1' in error and 'give image_size to make all images alike' in error) == stops


def test_plan_says_what_is_done_to_images(small_network, tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / 'scans', '7.png')
    monkeypatch.chdir(tmp_path)
    more = ('image_folder.image_size = (8, 6)', 'image_folder.resize = "pad"', 'image_folder.background = 255')
    assert run('--gin_file=gin/digits.gin', '--dry_run', *(f'--gin_param={line}' for line in (*OWN, *more))) == 0
    said = words(capsys.readouterr().out)
    assert '40 of 8x6x1, 2 classes, resized to 8x6 (padded), put on a background of 255' in said
    assert 'Each of its images was resized to 8x6 (padded), put on a background of 255.' in said


@pytest.mark.parametrize('part', ['train', 'test'])
def test_plan_names_the_first_ten_bad_files_and_counts_the_rest(small_network, tmp_path, monkeypatch, capsys, part):
    write_folder(tmp_path / 'scans')
    files = sorted((tmp_path / 'scans' / part).rglob('*.png'))[3:16]
    for file in files:
        file.write_bytes(b'no picture')
    monkeypatch.chdir(tmp_path)
    more = ('train.utility = @UtilityConfig()',)
    code = run('--gin_file=gin/digits.gin', '--dry_run', *(f'--gin_param={line}' for line in (*OWN, *more)))
    lines = capsys.readouterr().err.strip().splitlines()[-12:]
    assert code == command.WRONG_USE and lines[0].startswith('train: error: 13 problems with the images of')
    assert lines[1:11] == [f'  {file} is no PNG, JPEG, TIFF, BMP or WebP image.' for file in files[:10]]
    assert lines[11] == '  ... and 3 more.'


def test_plan_looks_at_public_images_too(small_network, tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / 'scans', '7.png')
    monkeypatch.chdir(tmp_path)
    public = (
        'PretrainingConfig.dataset = @public_images()',
        'public_images.data = @image_folder()',
        OWN[1],
        'public_images.num_classes = 10',
        'public_images.image_shape = (8, 8, 1)',
    )
    assert (
        run('--gin_file=gin/digits.gin', '--dry_run', *(f'--gin_param={binding}' for binding in public))
        == command.WRONG_USE
    )
    assert '7.png is 9x9x1' in capsys.readouterr().err


@pytest.mark.parametrize(
    'name, binding, message',
    [
        (
            'digits.gin',
            'public/ViewsConfig.timesteps = @public/LogNormalSigma()\npublic/LogNormalSigma.mean = 99.0',
            'mean',
        ),
        ('digits.gin', 'warm_start/AugmentationConfig.pad_and_crop = 9', 'AugmentationConfig.pad_and_crop = 9 needs'),
        ('mnist8.gin', 'AugmentationConfig.hue = 0.1', 'AugmentationConfig.hue = 0.1 needs images with 3 channels'),
    ],
)
def test_plan_fails_where_a_public_stage_would_for_views_that_do_not_fit(
    small_network, tmp_path, monkeypatch, capsys, name, binding, message
):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'nothing'))
    flags = [f'--gin_param={line}' for line in binding.splitlines()]
    assert run(f'--gin_file=gin/{name}', '--dry_run', *flags) == command.WRONG_USE
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_plan_does_not_give_away_how_many_images_owners_have(small_network, tmp_path, capsys):
    np.savez(
        tmp_path / 'own.npz',
        images=np.random.default_rng(0).integers(0, 256, [400, 8, 8, 1]).astype(np.uint8),
        labels=np.arange(400) % 10,
        owners=np.arange(400) // 4,
    )
    own = ('DATA = @npz_images()', f'npz_images.path = "{tmp_path / "own.npz"}"', *OWN[2:])
    assert run('--gin_file=gin/digits.gin', '--dry_run', *(f'--gin_param={binding}' for binding in own)) == command.DONE
    assert 'owners (the number of images is not to be released)' in words(capsys.readouterr().out)


def test_every_run_file_is_tried():
    tried = {param.values[0] if hasattr(param, 'values') else param[0] for param in FACTS}
    assert tried | verbs.DIGITS == {path.name for path in (ROOT / 'gin').glob('*.gin')} - verbs.INCLUDED


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


@pytest.mark.parametrize(
    'flags, said',
    [
        (('--devices=8',), '--devices .* --dry_run'),
        (('--dry_run', '--devices=0'), '--devices must be at least 1, got 0'),
        (('--dry_run', '--views_per_second=-3'), '--views_per_second must be a number > 0, got -3'),
        (('--dry_run', '--views_per_second=9', '--device_tflops=5'), '--views_per_second=9 .*device_tflops=5'),
    ],
)
def test_devices_that_mean_nothing_are_wrong_use(flags, said):
    with pytest.raises(command.UsageError, match=said) as refused:
        read(*flags)
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize('has_private_stage, has_public_stage', [(True, False), (False, True)])
def test_rate_of_a_kind_of_stage_that_a_run_has_not_is_refused(has_private_stage, has_public_stage):
    hardware = planner.Hardware(views_per_second=1.0, public_views_per_second=2.0)
    kinds = {'has_private_stage': has_private_stage, 'has_public_stage': has_public_stage}
    with pytest.raises(command.UsageError, match='public_views_per_second=2'):
        planner_flags.check(hardware, **kinds)
    planner_flags.check(planner.Hardware(views_per_second=1.0), **kinds)
    planner_flags.check(hardware, has_private_stage=True, has_public_stage=True)


@pytest.fixture(name='planned')
def fixture_planned(tmp_path, monkeypatch, capsys):
    """Returns a function from a recipe and flags to what its plan says; the network is a small one."""
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'nothing'))

    def plan(name, *flags):
        assert run(f'--gin_file=gin/{name}', '--dry_run', *flags) == command.DONE
        return words(capsys.readouterr().out.split('what would be done')[1].split('The statement')[0])

    return plan


def test_plan_of_a_private_run_is_worked_out_for_its_devices(small_network, planned):
    said = planned(
        'digits.gin',
        '--devices=4',
        '--views_per_second=2000',
        '--public_views_per_second=1000',
        '--price_per_device_hour=3',
        '--device_memory_gib=1',
    )
    largest = planner.largest_sampled_share(1437, 700, 4, 16)
    seconds = 64000 / 4000 + 320000 / 4000 + 100 * largest * 8 / 2000
    for fact in (
        '64,000 views in 16 s',
        '320,000 views in 80 s',
        '560,000 views in 77 s',
        f'{seconds / 60.0:.1f} min on 4',
        f'cost {4 * seconds / 1200.0:.2f} at 3 each',
        f'largest of 4 has {largest:.1f} on average',
        'efficiency 1, assumed and not measured',
        'fits in 90% of 1 GiB',
    ):
        assert fact in said, fact
    assert 'ESTIMATED' not in said


def test_plan_of_truncated_batches_tells_the_bound_and_has_devices_share_them_equally(small_network, planned):
    said = planned('digits.gin', '--devices=4', '--gin_param=DpSgdConfig.truncated_batch_size = 800')
    # A quarter of the 700 units that are expected, in whole chunks of 16.
    assert '; at most 800 units a step' in said and 'the largest of 4 has 176.0 on average' in said


def test_plan_is_for_accelerators_whatever_this_machine_holds_at_a_time(small_network, planned, monkeypatch):
    binding = '--gin_param=FinetuningConfig.units_per_chunk = None'
    expected = planned('digits.gin', '--devices=8', binding)
    monkeypatch.setattr(memory, '_MAX_ACTIVATION_BYTES_ON_CPU', 1)
    assert planned('digits.gin', '--devices=8', binding) == expected


def test_parameters_are_counted_whatever_their_shape():
    assert forecast.count_parameters([tf.Variable(tf.zeros(shape)) for shape in ([2, 3], [5], [])]) == 12


def test_plan_of_a_public_run_by_the_peak_is_an_estimate(small_network, planned):
    said = planned('grey28.gin', '--device_tflops=1', '--utilization=0.2', '--device_memory_gib=0.001')
    for fact in (
        'ESTIMATED, NOT MEASURED: 20% (assumed) of 1 TFLOPS',
        '768,000 views in',
        'DOES NOT FIT',
        'nothing fits',
    ):
        assert fact in said, fact
