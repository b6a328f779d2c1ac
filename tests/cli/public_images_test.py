"""Tests of a run of bin/train, from a file, whose warm start is on public images that noisy feature means choose."""

import contextlib
import io
import json
import pathlib
import re
import shutil

import numpy as np
from PIL import Image
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import export
from tf_dpdiff.cli import sample
from tf_dpdiff.cli import train
from tf_dpdiff.data import datasets

pytestmark = pytest.mark.usefixtures('small_network')
TINY = pathlib.Path(__file__).resolve().parent / 'tiny_digits.gin'


@pytest.fixture(name='flags', scope='module')
def fixture_flags(tmp_path_factory):
    """The flags of a run but for its folder."""
    path = tmp_path_factory.mktemp('data') / 'letters.npz'
    images = np.random.default_rng(0).integers(0, 256, [400, 8, 8, 3]).astype(np.uint8)
    images[:5] = datasets.digits().train.images_uint8[:5]  # As many as pass for chance.
    np.savez(path, images=images, labels=np.arange(400) % 20)
    bindings = [
        'warm_start/public_images.data = @npz_images()',
        'warm_start/public_images.image_shape = (8, 8, 1)',
        f'npz_images.path = "{path}"',
        'FeatureMeansConfig.noise_multiplier = 5.0',
        'WarmStartConfig.images_per_class = 9',
        'PublicClassifierConfig.num_epochs = 1',
        'WarmStartConfig.num_images = None',
        'train.pretraining = None',
        'train.utility = None',
        'TrainerConfig.grids_per_stage = 0',
    ]
    files = [f'--gin_file={name}' for name in (TINY, 'gin/stages/public_images.gin')]
    return files + [f'--gin_param={binding}' for binding in bindings]


@pytest.fixture(name='run', scope='module')
def fixture_run(flags, tmp_path_factory, small_network):
    """A run whose samples are the best of three candidates, to be copied; and what it printed, on each stream."""
    del small_network
    workdir, out, err = tmp_path_factory.mktemp('runs') / 'run', io.StringIO(), io.StringIO()
    given = [*flags, '--gin_param=SamplerConfig.num_candidates = 3', f'--workdir={workdir}']
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert verbs.call(train, *given) == command.DONE
    return workdir, out.getvalue(), err.getvalue()


def test_run_says_which_public_images_stand_for_which_private_ones(run):
    workdir, out, err = run
    out = ' '.join(out.replace('│', ' ').split())
    assert 'train: 5 of the private images are among the public ones too' in err
    assert 'This number is private: do not release it' in err
    with np.load(workdir / 'noisy_feature_means.npz') as arrays:
        labels = arrays['labels']
    assert 'public images that noisy feature means chose' in out and len(labels)
    for label, count in enumerate(np.bincount(labels, minlength=10)):
        assert count <= 9
        assert re.search(rf'{label} {count}: \d+ \(\d+\)' if count else rf'{label} none', out)
    width, height = Image.open(workdir / 'chosen_public_images.png').size
    assert width > 300 and height > 50
    statement = json.loads((workdir / 'privacy_statement.json').read_text())
    assert [(release['mechanism'], release['count']) for release in statement['releases']] == [
        ('noisy_feature_means', 1),
        ('dp_sgd_step', 3),
    ]
    assert any('letters (public)' in phrase for phrase in statement['public_data'])
    assert any('among those public ones too, of which a run refuses more' in item for item in statement['not_covered'])
    assert not any('5' in item for item in statement['not_covered'])
    assert not (workdir / 'noisy_class_means.png').exists()


def test_best_of_several_candidates_is_sampled_by_every_verb(run, tmp_path, capsys):
    run, exported = shutil.copytree(run[0], tmp_path / 'run'), tmp_path / 'exported'
    with np.load(run / 'samples.npz') as samples:
        expected = dict(samples)
    count = len(expected['labels'])
    assert verbs.call(export, f'--workdir={run}', f'--output={exported}', '--warmup_batch_sizes=none') == command.DONE
    for number, source in enumerate(
        ([f'--workdir={run}'], [f'--saved_model={exported}'], [f'--workdir={run}', '--num_candidates=1'])
    ):
        path = tmp_path / f'{number}.npz'
        assert verbs.call(sample, *source, f'--num_images={count}', f'--output={path}') == command.DONE
        with np.load(path) as samples:
            np.testing.assert_array_equal(samples['labels'], expected['labels'])
            assert np.array_equal(samples['images'], expected['images']) == (number < 2)
    means = run / 'noisy_feature_means.npz'
    with np.load(means) as stored:
        arrays = dict(stored)
    for damage, message in (
        (lambda: np.savez(means, **{**arrays, 'run_id': 'another'}), 'it is of another run'),
        (means.unlink, 'noisy_feature_means.npz is missing'),
    ):
        damage()
        capsys.readouterr()
        given = [f'--workdir={run}', '--num_candidates=3', f'--output={tmp_path / "none.npz"}']
        assert verbs.call(sample, *given) != command.DONE
        assert message in capsys.readouterr().err and not (tmp_path / 'none.npz').exists()


def test_dry_run_says_it_too_and_writes_nothing(flags, tmp_path, capsys):
    assert verbs.call(train, *flags, f'--workdir={tmp_path / "none"}', '--dry_run') == command.DONE
    out = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    assert 'images that noisy feature means choose, at most 9 a class, among' in out
    assert 'noisy feature means, once: all units, noise multiplier 5' in out
    assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize(
    'binding, message',
    [
        ('warm_start/public_images.image_shape = (16, 16, 1)', 'must have the shape of the private images'),
        (
            'FeatureMeansConfig.noise_multiplier = 50.0',
            'noise_multiplier=50 of the noisy feature means would hide a class',
        ),
        ('WarmStartConfig.images_per_class = None', 'images_per_class of WarmStartConfig is needed'),
        ("warm_start/public_images.labels = 'drop'", 'has images without a label'),
        ('WarmStartConfig.public = None', 'public of WarmStartConfig is needed'),
        ('WarmStartConfig.release = @ClassMeansConfig()', 'public of WarmStartConfig means nothing'),
    ],
)
def test_wrong_configuration_is_one_clear_line(flags, tmp_path, capsys, binding, message):
    workdir = tmp_path / 'none'
    assert verbs.call(train, *flags, f'--gin_param={binding}', f'--workdir={workdir}') == command.WRONG_USE
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (workdir / 'checkpoints').exists()
