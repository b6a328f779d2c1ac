"""Tests of a run of bin/train whose warm start trains on images that match noisy feature means, and of its release."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import release
from tf_dpdiff.cli import train
from tf_dpdiff.sampling import store
from tf_dpdiff.training import matching

pytestmark = pytest.mark.usefixtures('small_network')
TINY = pathlib.Path(__file__).resolve().parent / 'tiny_digits.gin'
BINDINGS = [
    'WarmStartConfig.matching = @MatchingConfig()',
    'MatchingConfig.release = @FeatureMeansConfig()',
    'MatchingConfig.num_images = 500',
    'MatchingConfig.num_networks = 2',
    'MatchingConfig.num_steps = 2',
    'FeatureMeansConfig.noise_multiplier = 4.0',
    'train.pretraining = None',
]


@pytest.fixture(name='run', scope='module')
def fixture_run(tmp_path_factory, small_network):
    """A whole run, to be copied."""
    del small_network
    workdir = tmp_path_factory.mktemp('runs') / 'run'
    flags = [f'--gin_file={TINY}', f'--workdir={workdir}', *(f'--gin_param={binding}' for binding in BINDINGS)]
    assert verbs.call(train, *flags) == command.DONE
    return workdir


def test_images_that_match_are_samples_of_the_run_too(run):
    made = store.read(run / 'matched_images.npz')
    assert made.images.shape == (510, 8, 8, 1) and made.class_names == tuple(map(str, range(10)))
    np.testing.assert_array_equal(np.bincount(made.labels), np.full([10], 51))
    assert (run / 'matched_images.png').is_file()
    statement = json.loads((run / 'privacy_statement.json').read_text())
    assert [entry['mechanism'] for entry in statement['releases']] == [
        'noisy_class_means', 'noisy_feature_means', 'dp_sgd_step'
    ]  # fmt: skip


def test_classifiers_are_trained_on_samples_and_images_that_match_together(run):
    measured = json.loads((run / 'non_private' / 'utility.json').read_text())
    assert measured['num_synthetic'] == 510 + len(store.read(run / 'samples.npz').images)


def test_release_holds_the_images_that_match_and_not_what_was_released_of_the_features(run, tmp_path):
    workdir, output = tmp_path / 'run', tmp_path / 'release'
    shutil.copytree(run, workdir)
    (workdir / 'matched_images.npz').unlink()  # It is made anew from what the run holds.
    assert verbs.call(release, f'--workdir={workdir}', f'--output={output}') == command.DONE
    made, expected = store.read(output / 'matched_images.npz'), store.read(run / 'matched_images.npz')
    np.testing.assert_array_equal(made.images, expected.images)
    np.testing.assert_array_equal(made.labels, expected.labels)
    assert 'matched_images.npz' in (output / 'README.md').read_text()
    assert not (output / matching.FILE).exists()
    assert verbs.call(release, f'--verify={output}') == command.DONE


def test_release_leaves_out_images_of_another_run(run, tmp_path):
    workdir, output = tmp_path / 'run', tmp_path / 'release'
    shutil.copytree(run, workdir)
    with np.load(workdir / matching.FILE) as stored:
        np.savez(workdir / 'another.npz', **{**stored, 'run_id': 'another'})
    (workdir / 'another.npz').replace(workdir / matching.FILE)
    assert verbs.call(release, f'--workdir={workdir}', f'--output={output}') == command.DONE
    assert not (output / 'matched_images.npz').exists()
