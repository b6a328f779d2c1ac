"""Tests that each recipe runs, with a small network on small data in its own layout."""

import functools
import json
import pathlib

import gin
import numpy as np
import pytest

from tests.cli import verbs
from tests.data import camelyon17_layout
from tf_dpdiff.cli import account
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import train
from tf_dpdiff.data import datasets
from tf_dpdiff.networks import dit
from tf_dpdiff.runs import folder as folder_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RUN_FILES = sorted({path.name for path in (ROOT / 'gin').glob('*.gin')} - verbs.INCLUDED)
SMALL = (
    'UNetConfig.base_channels = 4',
    'UNetConfig.channel_multipliers = (1,)',
    'UNetConfig.num_res_blocks = 1',
    'UNetConfig.attention_resolutions = ()',
    'UNetConfig.middle_attention = False',
    'UNetConfig.groups = 2',
    'SamplerConfig.num_steps = 2',
    'GenerateConfig.num_images = 20',
    'GenerateConfig.chunk_size = 20',
    'TrainerConfig.grids_per_stage = 0',  # They would be traced beside the samples.
)
SMALL_PUBLIC = SMALL + ('PRETRAINING_STEPS = 2', 'PRETRAINING_BATCH_SIZE = 4', 'PretrainingConfig.images_per_chunk = 2')
SMALL_PRIVATE = SMALL + (
    'NUM_STEPS = 2',
    'EXPECTED_BATCH_SIZE = 4',
    'AUGMENTATION_MULTIPLICITY = 2',
    'DpSgdConfig.noise_multiplier = 9.0',
)


def run(*flags):
    """Runs bin/train in this process and returns its exit code."""
    return verbs.call(train, *flags)


def flags_of(name, workdir, bindings):
    """Returns flags for bin/train; so few images and steps are noise alone, which it is told to train on anyway."""
    paths = [f'--gin_file=gin/{name}', f'--workdir={workdir}', '--anyway']
    return paths + [f'--gin_param={binding}' for binding in bindings]


def write_images(path, shape, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, [50, *shape]).astype(np.uint8)
    np.savez(path, images=images, labels=np.arange(50) % 2)
    return ['DATA = @npz_images()', f'npz_images.path = "{path}"']


def run_public(folder, name):
    """Runs a public recipe on small data; returns the run's folder."""
    bindings = [f'npz_images.path = "{folder / "public.npz"}"', 'PUBLIC_DATA = @npz_images()']
    write_images(folder / 'public.npz', (32, 32, 3), seed=1)
    assert run(*flags_of(name, folder / 'run', [*SMALL_PUBLIC, *bindings])) == command.DONE
    return folder / 'run'


@pytest.fixture(name='run_public_once', scope='module')
def fixture_run_public_once(tmp_path_factory, small_network):
    """Returns a function from a public recipe to the folder of a small run of it, to be started from."""
    del small_network
    return functools.lru_cache(maxsize=None)(lambda name: run_public(tmp_path_factory.mktemp('public'), name))


@pytest.fixture(name='public', scope='module')
def fixture_public(run_public_once):
    """The folder of a small run of gin/imagenet32.gin."""
    return run_public_once('imagenet32.gin')


@pytest.fixture(name='mnist', scope='module')
def fixture_mnist(tmp_path_factory, small_network):
    """The folder of a small run of gin/mnist.gin, of calibrated noise, on images in a folder of a telling name."""
    del small_network
    folder = tmp_path_factory.mktemp('mnist')
    (folder / 'hospital_of_secrets').mkdir()
    bindings = [binding for binding in SMALL_PRIVATE if 'noise_multiplier' not in binding]
    bindings += write_images(folder / 'hospital_of_secrets' / 'scans.npz', (28, 28, 1))
    assert run(*flags_of('mnist.gin', folder / 'run', bindings)) == command.DONE
    return folder / 'run'


def check_run(workdir):
    """Checks that a run left what each run leaves; returns its statement."""
    assert (workdir / 'samples.png').read_bytes().startswith(b'\x89PNG')
    assert (workdir / 'saved_model' / '1' / 'saved_model.pb').exists()
    assert 'PRIVACY STATEMENT' in (workdir / 'privacy_statement.txt').read_text()
    assert 'PRIVACY STATEMENT' in (workdir / 'report.html').read_text().replace('<', ' ')
    return json.loads((workdir / 'privacy_statement.json').read_text())


def test_public_run_leaves_a_checkpoint_and_says_that_nothing_is_claimed(public):
    statement = check_run(public)
    assert not statement['guarantee_claimed'] and statement['private_data'] is None
    num_images = datasets.npz_images(str(public.parent / 'public.npz')).spec.num_images
    assert statement['public_data'] == [f"{num_images} images of 'public (public)'"] and statement['steps_run'] == 2
    assert (public / 'pretrained' / 'weights.npz').exists()
    assert 'PRIVATE' not in (public / 'checkpoints' / 'README').read_text()


def test_public_run_costs_no_budget(tmp_path, public, capsys):
    budget = f'--budget_file={tmp_path / "a.budget"}'
    assert verbs.call(account, budget, '--create', '--epsilon=1', '--delta=1e-5') == command.DONE
    assert verbs.call(account, budget, f'--workdir={public}') == command.WRONG_USE
    assert 'read public images alone: it costs no privacy budget' in capsys.readouterr().err


def test_finished_public_run_says_so(public, capsys):
    bindings = [f'npz_images.path = "{public.parent / "public.npz"}"', 'PUBLIC_DATA = @npz_images()']
    assert run(*flags_of('imagenet32.gin', public, [*SMALL_PUBLIC, *bindings])) == command.DONE
    assert 'is complete' in capsys.readouterr().err


@pytest.mark.usefixtures('small_network')
def test_recipe_of_another_set_from_scratch_runs(tmp_path):
    bindings = write_images(tmp_path / 'images.npz', (28, 28, 1))
    assert run(*flags_of('fashion_mnist.gin', tmp_path / 'run', [*SMALL_PRIVATE, *bindings])) == command.DONE
    statement = check_run(tmp_path / 'run')
    assert statement['epsilon'] <= 10.0 and statement['steps_run'] == 2 and statement['public_data'] == []


@pytest.mark.parametrize(
    'public_name, name, shape',
    [
        ('imagenet32.gin', 'cifar10.gin', (32, 32, 3)),
        ('colour32.gin', 'cifar10_cpu.gin', (32, 32, 3)),
        ('grey28.gin', 'mnist_cpu.gin', (28, 28, 1)),
        ('grey28.gin', 'mnist_cpu_eps1.gin', (28, 28, 1)),
    ],
)
def test_recipe_from_a_public_checkpoint_runs(tmp_path, run_public_once, public_name, name, shape):
    start = run_public_once(public_name)
    bindings = write_images(tmp_path / 'images.npz', shape)
    bindings = [*SMALL_PRIVATE, *bindings, f'FinetuningConfig.init_from = "{start}"']
    if 'mnist' in name:
        bindings += [
            'WarmStartConfig.num_steps = 2',
            'WarmStartConfig.num_images = 20',
            'ClassMeansConfig.noise_multiplier = 50.0',
        ]
    if name == 'cifar10_cpu.gin':
        write_images(tmp_path / 'other.npz', shape, seed=3)
        bindings += [
            'PUBLIC_DATA = @other/npz_images()',
            f'other/npz_images.path = "{tmp_path / "other.npz"}"',
            'FeatureMeansConfig.noise_multiplier = 0.5',
            'PublicClassifierConfig.num_epochs = 1',
            'WarmStartConfig.num_steps = 2',
        ]
    assert run(*flags_of(name, tmp_path / 'run', bindings)) == command.DONE
    statement = check_run(tmp_path / 'run')
    assert 0.0 < statement['epsilon'] <= 10.0 and 'public (public)' in statement['public_data'][0]
    assert any('public images' in item for item in statement['not_covered'])


def test_checkpoint_of_the_large_recipe_is_refused_by_the_small_one(tmp_path, public, capsys):
    bindings = [
        *SMALL_PRIVATE,
        *write_images(tmp_path / 'images.npz', (32, 32, 3)),
        f'FinetuningConfig.init_from = "{public}"',
    ]
    assert run(*flags_of('cifar10_cpu.gin', tmp_path / 'run', bindings)) == command.WRONG_USE
    assert "parameterization is 'epsilon' in the checkpoint and 'v' here" in capsys.readouterr().err


def test_recipe_from_scratch_runs_and_spends_its_budget_but_does_not_pass_it(mnist):
    statement = check_run(mnist)
    assert 9.9 < statement['epsilon'] <= 10.0
    assert statement['steps_run'] == 2 and statement['public_data'] == []


def test_unlabelled_public_images_give_samples_of_no_class(tmp_path, small_network):
    del small_network
    bindings = [
        f'npz_images.path = "{tmp_path / "public.npz"}"',
        'PUBLIC_DATA = @npz_images()',
        'public_images.labels = "drop"',
        'public_images.num_classes = 3',
    ]
    write_images(tmp_path / 'public.npz', (32, 32, 3))
    assert run(*flags_of('imagenet32.gin', tmp_path / 'run', [*SMALL_PUBLIC, *bindings])) == command.DONE
    check_run(tmp_path / 'run')
    np.testing.assert_array_equal(np.load(tmp_path / 'run' / 'samples.npz')['labels'], np.full([20], 3))


def test_what_is_sent_on_holds_no_path_of_the_private_data(mnist):
    assert 'hospital_of_secrets' in (mnist / 'operative_config.gin').read_text()
    sent_on = [mnist / 'report.html', mnist / 'privacy_statement.json']
    sent_on += [path for folder in ('tensorboard', 'saved_model') for path in (mnist / folder).rglob('*.*')]
    assert len(sent_on) > 4
    for path in sent_on:
        assert path.is_dir() or b'hospital_of_secrets' not in path.read_bytes(), path
    assert '.../scans.npz' in (mnist / 'report.html').read_text()


def test_digits_start_from_a_model_of_another_public_set(tmp_path, small_network):
    del small_network
    bindings = write_images(tmp_path / 'public.npz', (28, 28, 1), seed=1)[1:] + ['PUBLIC_DATA = @npz_images()']
    public = tmp_path / 'public'
    assert run(*flags_of('mnist8.gin', public, [*SMALL_PUBLIC, *bindings])) == command.DONE
    bindings = [
        'EXPECTED_BATCH_SIZE = 4',
        'NUM_STEPS = 2',
        f'FinetuningConfig.init_from = "{public}"',
        'train.utility = None',
        'DpSgdConfig.noise_multiplier = 9.0',
    ]
    assert run(*flags_of('digits_from_mnist.gin', tmp_path / 'run', [*SMALL, *bindings])) == command.DONE
    assert "images of 'public (public)'" in check_run(tmp_path / 'run')['public_data'][0]


def test_digits_run_with_a_transformer_and_the_run_says_so(tmp_path, capsys):
    bindings = [binding for binding in SMALL if not binding.startswith('UNetConfig')] + [
        'NUM_STEPS = 2',
        'DiTConfig.hidden_size = 8',
        'DiTConfig.depth = 1',
        'DiTConfig.num_heads = 2',
        'EXPECTED_BATCH_SIZE = 30',
        'AUGMENTATION_MULTIPLICITY = 2',
        'DpSgdConfig.noise_multiplier = 5.0',
        'random_strokes.num_images = 50',
        'PretrainingConfig.num_steps = 2',
        'WarmStartConfig.num_images = 50',
        'WarmStartConfig.num_steps = 2',
        'train.utility = None',
    ]
    flags = flags_of('digits_dit.gin', tmp_path / 'run', bindings)
    assert run(*flags, '--dry_run') == command.DONE
    assert 'compute type' in capsys.readouterr().out
    assert run(*flags) == command.DONE
    assert check_run(tmp_path / 'run')['steps_run'] == 2
    assert json.loads((tmp_path / 'run' / 'model.json').read_text())['network']['kind'] == 'dit'
    assert folder_lib.read_model(tmp_path / 'run').network == dit.DiTConfig(hidden_size=8, depth=1, num_heads=2)
    assert run(*flags) == command.DONE  # What is resumed is the same network.
    assert 'is complete' in capsys.readouterr().err


@pytest.mark.parametrize('unit, num_units, batch', [('image', 16, 4), ('patient', 4, 2)])
def test_camelyon_runs_with_the_image_and_with_the_patient_as_unit(tmp_path, public, unit, num_units, batch):
    camelyon17_layout.write(tmp_path, centers=(0, 1, 2, 3))
    bindings = [
        f'wilds_camelyon17.root = "{tmp_path}"',
        f'wilds_camelyon17.unit = "{unit}"',
        f'FinetuningConfig.init_from = "{public}"',
    ]
    bindings = [*SMALL_PRIVATE, *bindings, f'EXPECTED_BATCH_SIZE = {batch}']
    assert run(*flags_of('camelyon.gin', tmp_path / 'run', bindings)) == command.DONE
    statement = check_run(tmp_path / 'run')
    assert statement['unit'] == f'one {unit}' and statement['num_units_treated_as_public'] == num_units
    assert statement['delta'] == 3e-6 and statement['sampling_probability'] == batch / num_units
    assert np.load(tmp_path / 'run' / 'samples.npz')['images'].shape == (20, 32, 32, 3)


@pytest.mark.parametrize('epsilon', [1, 5, 10])
@pytest.mark.parametrize('name', ['mnist.gin', 'cifar10.gin', 'camelyon.gin'])
def test_privacy_file_after_a_run_file_sets_its_budget(name, epsilon):
    gin.clear_config()
    gin_config.parse([f'gin/{name}', f'gin/privacy/eps{epsilon}.gin'], [])
    assert gin.query_parameter('TARGET_EPSILON/gin.macro.value') == epsilon


@pytest.mark.parametrize('name', RUN_FILES)
def test_head_of_a_run_file_says_its_command_needs_hours_and_result(name):
    head = (ROOT / 'gin' / name).read_text().split('\n\n')[0].splitlines()
    assert [line.split(':')[0] for line in head] == ['# Command', '# Needs', '# Hours', '# Result']
    texts = [line.split(':', 1)[1].strip() for line in head]
    verb = name.split('_')[0] if name.startswith(('audit', 'select', 'tune')) else 'train'
    assert texts[0].startswith(f'bin/{verb} --gin_file=gin/{name} --workdir=runs/') and all(texts)
    assert max(map(len, head)) <= 140
    if texts[2].startswith(('not run', 'days')):  # The paper's.
        assert 'confirmed' in texts[3] or 'unconfirmed' in texts[3]


@pytest.mark.parametrize(
    'name, binding, message',
    [
        ('imagenet32.gin', 'train.privacy = @DpSgdConfig()', "DpSgdConfig needs 'target_delta'"),
        (
            'imagenet32.gin',
            'train.pretraining = None',
            'binds no private images (train.data), and no public ones either',
        ),
        ('imagenet32.gin', 'TrainerConfig.log_non_private = True', 'log_non_private is for private runs'),
        ('imagenet32.gin', 'PretrainingConfig.dataset = @public/tfds_images()', 'by @public_images()'),
        (
            'digits.gin',
            'random_strokes.image_size = 16',
            'must have the shape and the number of classes of the private',
        ),
        ('imagenet32.gin', 'train.utility = @UtilityConfig()', 'but what belongs to them (train.utility)'),
        ('digits.gin', 'train.privacy = None', 'train.privacy and train.finetuning must be bound too'),
        ('digits.gin', 'SamplerConfig.guidance_scale = 2.0', 'guidance_scale=2 of the sampler needs a model'),
        (
            'digits.gin',
            'FinetuningConfig.init_from = "runs/none"',
            'either has a public stage of its own or starts from',
        ),
        ('digits.gin', 'UNetConfig.compute_dtype = "mixed_float16"', 'mixed_float16'),
    ],
)
def test_parts_that_do_not_belong_together_are_one_clear_line(tmp_path, capsys, name, binding, message):
    # Where there is noise it is given: calibrating it takes a while, and says so.
    has_noise = name == 'digits.gin' and not binding.startswith('train.privacy')
    given = ['DpSgdConfig.noise_multiplier = 30.0'] * has_noise
    assert run(*flags_of(name, tmp_path / 'run', [binding, *given])) == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert message in error and '\n' not in error
    assert not (tmp_path / 'run' / 'checkpoints').exists()
