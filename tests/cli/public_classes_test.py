"""Tests of a run of bin/train, from a file, whose warm start is on public images of classes that noisy votes choose."""

import json
import pathlib

import numpy as np
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import train

pytestmark = pytest.mark.usefixtures('small_network')
TINY = pathlib.Path(__file__).resolve().parent / 'tiny_digits.gin'


@pytest.fixture(name='flags', scope='module')
def fixture_flags(tmp_path_factory):
    """The flags of a run but for its folder."""
    path = tmp_path_factory.mktemp('data') / 'letters.npz'
    images = np.random.default_rng(0).integers(0, 256, [400, 8, 8, 3]).astype(np.uint8)
    np.savez(path, images=images, labels=np.arange(400) % 20)
    bindings = ['warm_start/public_images.data = @npz_images()', 'warm_start/public_images.image_shape = (8, 8, 1)',
                f'npz_images.path = "{path}"', 'PublicClassesConfig.noise_multiplier = 5.0',
                'PublicClassesConfig.classes_per_class = 2', 'PublicClassifierConfig.num_epochs = 1',
                'WarmStartConfig.num_images = None', 'train.pretraining = None',
                'train.utility = None']  # yapf: disable
    files = [f'--gin_file={name}' for name in (TINY, 'gin/stages/public_classes.gin')]
    return files + [f'--gin_param={binding}' for binding in bindings]


def test_run_says_which_public_classes_stand_for_which_private_ones(flags, tmp_path, capsys):
    assert verbs.call(train, *flags, f'--workdir={tmp_path}') == command.DONE
    out = capsys.readouterr().out.replace('│', ' ')
    assert 'public classes that noisy votes chose' in ' '.join(out.split())
    chosen = json.loads((tmp_path / 'noisy_public_classes.json').read_text())['chosen']
    assert [entry['private_class'] for entry in chosen] == [str(digit) for digit in range(10)]
    assert all(
        f"{entry['private_class']} {', '.join(entry['public_classes'])}" in ' '.join(out.split()) for entry in chosen)
    public_names = [name for entry in chosen for name in entry['public_classes']]
    assert len(set(public_names)) == len(public_names) >= 10
    statement = json.loads((tmp_path / 'privacy_statement.json').read_text())
    assert [(release['mechanism'], release['count']) for release in statement['releases']
           ] == [('noisy_public_class_votes', 1), ('dp_sgd_step', 3)]
    assert any('letters (public)' in phrase for phrase in statement['public_data'])
    assert not (tmp_path / 'noisy_class_means.png').exists()


def test_dry_run_says_it_too_and_writes_nothing(flags, tmp_path, capsys):
    assert verbs.call(train, *flags, f'--workdir={tmp_path / "none"}', '--dry_run') == command.DONE
    out = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    assert 'images of the public classes that noisy votes choose' in out
    assert 'noisy public class votes, once: all units, noise multiplier 5' in out
    assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize('binding, message', [
    ('warm_start/public_images.image_shape = (16, 16, 1)', 'must have the shape of the private images'),
    ('PublicClassesConfig.classes_per_class = 3', 'classes_per_class=3 for 10 private classes needs 30 public classes'),
    ("warm_start/public_images.labels = 'drop'", 'has images without a label'),
    ('WarmStartConfig.public = None', 'public of WarmStartConfig is needed'),
    ('WarmStartConfig.release = @ClassMeansConfig()', 'public of WarmStartConfig means nothing'),
])  # yapf: disable
def test_wrong_configuration_is_one_clear_line(flags, tmp_path, capsys, binding, message):
    workdir = tmp_path / 'none'
    assert verbs.call(train, *flags, f'--gin_param={binding}', f'--workdir={workdir}') == command.WRONG_USE
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (workdir / 'checkpoints').exists()
