"""Tests of the commands as a user calls them: what they make, and what they say when they cannot."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import gin
import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from tests.cli import verbs
from tf_dpdiff import cli
from tf_dpdiff.cli import command
from tf_dpdiff.cli import evaluate
from tf_dpdiff.cli import export
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import release
from tf_dpdiff.cli import sample
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.cli import train
from tf_dpdiff.data import datasets
from tf_dpdiff.training import strategies

pytestmark = pytest.mark.usefixtures('small_network')
VERBS = {'train': train, 'sample': sample, 'evaluate': evaluate, 'export': export, 'release': release}
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TINY = ROOT / 'tests' / 'cli' / 'tiny_digits.gin'


def call(verb, *flags):
    return verbs.call(VERBS[verb], *flags)


def tiny(*bindings):
    return [f'--gin_file={TINY}'] + [f'--gin_param={binding}' for binding in bindings]


@pytest.fixture(name='run', scope='module')
def fixture_run(tiny_run, tmp_path_factory):
    """A finished tiny run."""
    return shutil.copytree(tiny_run[0], tmp_path_factory.mktemp('runs') / 'digits')


def test_run_leaves_everything_that_it_promises(run):
    statement = json.loads((run / 'privacy_statement.json').read_text())
    assert statement['epsilon'] <= 10.0 and statement['delta'] == 1e-4 and statement['steps_run'] == 3
    assert [release['mechanism'] for release in statement['releases']] == ['noisy_class_means', 'dp_sgd_step']
    assert 'one image' in (run / 'privacy_statement.txt').read_text()
    with np.load(run / 'samples.npz') as samples:
        assert samples['images'].shape == (120, 8, 8, 1) and samples['images'].dtype == np.uint8
        assert set(samples['labels']) == set(range(10))
    assert (run / 'samples.png').read_bytes().startswith(b'\x89PNG')
    assert (run / 'saved_model' / '1' / 'saved_model.pb').exists()
    assert (run / 'saved_model' / '1' / 'assets.extra' / 'privacy_statement.json').exists()
    assert (run / 'saved_model' / '1' / 'assets.extra' / 'model.json').read_text() == (run / 'model.json').read_text()
    assert list((run / 'tensorboard').glob('events*'))
    assert 'Privacy statement' in (run / 'report.html').read_text()
    assert 'DpSgdConfig.target_delta' in (run / 'operative_config.gin').read_text()
    (entry,) = json.loads((run / 'non_private' / 'utility.json').read_text())['classifiers']
    assert entry['classifier'] == 'rbf_svm' and entry['real_images']['accuracy'] > 0.95
    assert [path.name for path in run.glob('.*')] == ['.lock'], 'temporary files are left'


def test_released_files_hold_no_accuracy_and_no_secret(run):
    (entry,) = json.loads((run / 'non_private' / 'utility.json').read_text())['classifiers']
    real = entry['real_images']['accuracy']
    for path in (run / 'report.html', run / 'privacy_statement.txt', run / 'operative_config.gin', run / 'model.json'):
        text = path.read_text()
        assert f'{real:.3f}' not in text and f'{real:.1%}' not in text
        assert 'private_seed' not in text


def test_operative_configuration_alone_repeats_the_dry_run(run, capsys):
    assert call('train', f'--gin_file={run / "operative_config.gin"}', '--dry_run', '--show_config') == command.DONE
    assert 'AUGMENTATION_MULTIPLICITY = 2' in capsys.readouterr().out


def test_evaluate_measures_samples_made_later(run, tmp_path, capsys):
    path = tmp_path / 'more.npz'
    call('sample', f'--workdir={run}', '--num_images=60', f'--output={path}')
    assert call('evaluate', *tiny(), f'--workdir={run}', f'--samples={path}') == command.DONE
    (folder,) = (run / 'non_private').glob('evaluation_more_*')
    assert f'{folder}: report.html, evaluation.json' in capsys.readouterr().out
    results = json.loads((folder / 'evaluation.json').read_text())
    assert results['num_samples'] == results['utility']['num_synthetic'] == 60


def test_export_makes_versions_with_the_sampler_asked_for(run, tmp_path):
    target = tmp_path / 'digits'
    for version, flags in ((1, ()), (2, ('--sampler=ancestral', '--num_steps=4'))):
        assert call('export', f'--workdir={run}', f'--output={target}', *flags) == command.DONE
        assert (target / str(version) / 'saved_model.pb').exists()
    sample_fn = tf.saved_model.load(str(target / '1')).signatures['serving_default']
    # The run's own samples: another batch size changes the last bits, so at most one grey level.
    drawn = sample_fn(labels=tf.constant([3]), seeds=tf.constant([3], tf.int64))['images'].numpy()
    assert np.abs(drawn[0].astype(int) - np.load(run / 'samples.npz')['images'][3]).max() <= 1


def test_dry_run_says_what_the_run_would_be_and_writes_nothing(tmp_path, capsys):
    flags = ('--gin_file=gin/digits.gin', f'--workdir={tmp_path / "none"}', '--dry_run')
    assert call('train', *flags) == command.DONE
    in_short = capsys.readouterr().out
    assert 'DpSgdConfig.target_epsilon' not in in_short and in_short.index('verdict') < in_short.index('parameters')
    assert call('train', *flags, '--show_config') == command.DONE
    out = capsys.readouterr().out
    for fact in (
        'DpSgdConfig.target_epsilon',
        'parameters',
        'views',
        'PRIVACY STATEMENT',
        'epsilon = ',
        'noisy class means',
    ):
        assert fact in out
    assert not (tmp_path / 'none').exists()


def test_patients_of_ones_own_images_are_what_is_protected(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, [400, 8, 8, 1]).astype(np.uint8)
    np.savez(tmp_path / 'own.npz', images=images, labels=np.arange(400) % 10, owners=np.arange(400) // 10)
    own = [
        'DATA = @npz_images()',
        f'npz_images.path = "{tmp_path / "own.npz"}"',
        'npz_images.unit = "one patient"',
        'EXPECTED_BATCH_SIZE = 16',
    ]
    assert call('train', *tiny(*own), '--dry_run') == command.DONE
    out = capsys.readouterr().out
    spec = datasets.npz_images(str(tmp_path / 'own.npz')).spec
    assert spec.num_images == 10 * spec.num_units and 20 < spec.num_units < 40
    assert f'{spec.num_images} of 8x8x1, 10 classes, of {spec.num_units} owners' in out
    assert 'Protected unit: one patient' in out and f'({spec.num_units} units)' in out


def test_unit_that_would_not_be_protected_is_refused(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, [400, 8, 8, 1]).astype(np.uint8)
    np.savez(tmp_path / 'own.npz', images=images, labels=np.arange(400) % 10)
    own = ['DATA = @npz_images()', f'npz_images.path = "{tmp_path / "own.npz"}"', 'npz_images.unit = "one patient"']
    assert call('train', *tiny(*own), '--dry_run') == command.WRONG_USE
    error = capsys.readouterr()
    assert "data set 'own': unit='one patient' needs owners" in error.err and '\n' not in error.err.strip()
    assert 'Protected unit' not in error.out


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--gin_file=gin/digits.gin', '--gin_param=DpSgdConfig.num_stps = 3'], 'Did you mean DpSgdConfig.num_steps?'),
        (['--gin_file=gin/digits.gin', '--gin_param=DpSgdConfg.num_steps = 3'], 'Did you mean DpSgdConfig?'),
        (['--gin_file=gin/digits.gin', '--gin_param=train.sampler = @SamplerConfg()'], 'Did you mean SamplerConfig?'),
        (['--gin_file=gin/digits.gin', '--gin_param=NUM_STEPS = %STEPS'], 'uses %STEPS, which it does not define'),
        (['--gin_file=gin/digits.gin', '--gin_param=NUM_STEPS = (3'], 'EOF'),
        (['--gin_file=gin/base/private.gin'], 'REQUIRED'),
        (
            ['--gin_file=nowhere.gin'],
            'no such configuration: nowhere.gin; the project has audit_digits.gin, audit_gradients_digits.gin, ',
        ),
        ([], 'give a configuration'),
        (['--gin_fil=gin/digits.gin'], 'unrecognized arguments: --gin_fil'),
        (
            tiny('TARGET_EPSILON = 0.001', 'DpSgdConfig.noise_multiplier = None'),
            'target_epsilon=0.001 at target_delta=0.0001 cannot be met',
        ),
        (tiny('EXPECTED_BATCH_SIZE = 5000'), 'expected_batch_size=5000 is larger than the data set of 1437 units'),
        (
            tiny("SamplerConfig.name = 'plms'"),
            "must be one of ('ddim', 'ancestral', 'dpmpp_2m', 'edm_heun'), got 'plms'",
        ),
        (tiny('SamplerConfig.num_steps = 2000'), 'num_steps=2000 of the sampler exceeds the 1000 timesteps'),
        (tiny("FinetuningConfig.trainable = ('nrom',)"), "no trainable variable matches 'nrom'"),
        (tiny('TIMESTEP_MIXTURE = ((0.5, 0, 100),)'), 'must add up to 1, got 0.5'),
        (tiny('UNetConfig.channel_multipliers = (1, 1, 1, 1, 1)'), 'cannot be halved 4 times'),
    ],
)
def test_wrong_use_is_one_clear_line_and_exit_code_2(tmp_path, capsys, flags, message):
    with conftest.whole_network() if 'halved' in message else contextlib.nullcontext():
        assert call('train', *flags, f'--workdir={tmp_path / "run"}') == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith('train: error: ')
    assert '\n' not in error and 'Traceback' not in error
    assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_folder_that_cannot_be_written_to_is_one_clear_line(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert call('train', *tiny(), f'--workdir={tmp_path / "file" / "run"}') == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert 'cannot write to --workdir=' in error and '\n' not in error


@pytest.mark.parametrize(
    'verb, message',
    [
        ('sample', 'holds no run'),
        ('export', 'holds no run'),
        ('release', 'holds no run'),
        ('evaluate', 'no samples at'),
    ],
)
def test_verbs_that_need_a_run_say_where_they_looked(tmp_path, capsys, verb, message):
    flags = {'evaluate': tiny(), 'release': [f'--output={tmp_path / "out"}']}.get(verb, [])
    assert call(verb, *flags, f'--workdir={tmp_path}') == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert message in error and str(tmp_path) in error and '\n' not in error


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('model.json', '{"image_shape": [8,', 'is damaged .*restore it from a copy'),
        ('model.json', '{"image_shape": [8, 8, 1]}', "is damaged or of another version: KeyError.'class_names'"),
        ('report.json', '[]', 'is damaged .it holds no JSON object.*restore it from a copy'),
        ('privacy_statement.json', '', 'is damaged .*restore it from a copy'),
    ],
)
def test_damaged_file_of_a_run_is_one_line_that_names_it(run, tmp_path, capsys, name, content, message):
    shutil.copytree(run, tmp_path / 'run')
    (tmp_path / 'run' / name).write_text(content)
    verbs = {
        'model.json': ('export', ()),
        'report.json': ('evaluate', tiny()),
        'privacy_statement.json': ('train', tiny()),
    }
    verb, flags = verbs[name]
    assert call(verb, f'--workdir={tmp_path / "run"}', *flags) == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert re.search(f'{name} {message}', error) and '\n' not in error


@pytest.mark.parametrize(
    'verb', ['sample', *(pytest.param(verb, marks=pytest.mark.long) for verb in ('evaluate', 'select'))]
)
def test_error_is_all_that_a_process_says(tmp_path, verb):
    environment = {name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
    ended = subprocess.run(
        [sys.executable, '-m', 'tf_dpdiff.cli', verb, f'--workdir={tmp_path / "none"}'],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == command.WRONG_USE and ended.stdout == ''
    assert re.fullmatch(f'{verb}: error: [^\\n]*\\n', ended.stderr)


@pytest.mark.parametrize('level, kept', [('1', 'WEF'), ('2', 'EF'), ('3', 'F')])
def test_log_level_holds_while_tensorflow_is_loaded_and_nothing_else_is_dropped(capfd, monkeypatch, level, kept):
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', level)
    head = 'WARNING: All log messages before absl::InitializeLog() is called are written to STDERR'
    logged = [f'{letter}0000 00:00:1795977439.906503   18486 port.cc:153] said' for letter in 'IWEF']
    others = ['Illegal instruction', 'I am no log', 'I0000', '']
    with pytest.raises(ImportError):
        with cli._log_level_kept():
            os.write(2, '\n'.join([head, *logged, *others]).encode())
            raise ImportError()
    assert capfd.readouterr().err.split('\n') == [*(line for line in logged if line[0] in kept), *others]


def test_resuming_with_another_budget_is_refused(run, capsys):
    assert call('train', *tiny('TARGET_EPSILON = 9.0'), f'--workdir={run}') == command.WRONG_USE
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'begun with another configuration' in error and 'target_epsilon: 10 then, 9 now' in error


@pytest.mark.parametrize(
    'error, code',
    [
        (ValueError('a\nb'), command.WRONG_USE),
        (RuntimeError('x'), command.FAILED),
        (OSError(28, 'No space left on device'), command.FAILED),
        (KeyboardInterrupt(), command.FAILED),
        (MemoryError(), command.FAILED),
    ],
)
def test_any_error_is_one_line_with_its_exit_code(capsys, error, code):

    def fail(unused_flags):
        raise error

    parser = command.Parser('verb', 'A verb.')
    assert command.run(parser, fail, []) == code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert command.run(parser, fail, ['--debug']) == code
    assert 'Traceback' in capsys.readouterr().err


def test_help_is_shown(capsys):
    assert call('train', '--help') == command.DONE
    assert '--gin_file' in capsys.readouterr().out


RUN_FILES = sorted({path.name for path in (ROOT / 'gin').glob('*.gin')} - verbs.INCLUDED)


@pytest.mark.parametrize('name', RUN_FILES)
def test_every_run_file_parses_and_names_its_command(name):
    gin.clear_config()
    gin_config.parse([f'gin/{name}'], [])
    header = (ROOT / 'gin' / name).read_text().split('include')[0]
    verb = next((verb for verb in ('audit', 'select', 'tune') if name.startswith(f'{verb}_')), 'train')
    assert f'bin/{verb} --gin_file=gin/{name}' in header


def test_strategy_of_the_flag_wins_and_is_in_the_operative_configuration():
    gin.clear_config()
    gin_config.parse([str(TINY)], ["StrategyConfig.name = 'tpu'"])
    assert strategies.start(strategy_flags.configured('default')).count == 1
    assert "StrategyConfig.name = 'default'" in gin.operative_config_str()
