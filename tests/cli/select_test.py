"""Tests of bin/select: what it chooses, what it says, where it writes, and that samples alone suffice."""

import json
import re
import types

import numpy as np
import pytest

from tests import fake_workers
from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import select
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import classifiers
from tf_dpdiff.evaluation import selection
from tf_dpdiff.runs import evaluate as evaluate_lib
from tf_dpdiff.sampling import store
from tf_dpdiff.training import strategies

CANDIDATES = (
    "SelectionConfig.candidates = ('logistic_regression', ('rbf_svm', {'C': 0.001}), @good/ClassifierConfig(), "
    "('small_cnn', {'width': 2, 'num_epochs': 1, 'min_steps': 2}))",
    "good/ClassifierConfig.name = 'rbf_svm'",
    "good/ClassifierConfig.options = {'C': 10.0}",
)
TITLES = {'logistic_regression', 'rbf_svm C=0.001', 'rbf_svm C=10', 'small_cnn'}


def write_samples(path, noise=40.0):
    """Writes samples that are real digits with noise."""
    train = datasets.digits().train
    rows = np.arange(0, len(train), 4)
    added = np.random.default_rng(0).normal(0.0, noise, [len(rows), 8, 8, 1])
    images = np.clip(train.images_uint8[rows] + added, 0, 255).astype(np.uint8)
    store.write_file(path, images, train.labels[rows], train.class_names)


def call(workdir, *flags, bindings=CANDIDATES):
    given = [f'--gin_param={binding}' for binding in bindings]
    return verbs.call(select, '--gin_file=gin/select_digits.gin', *given, f'--workdir={workdir}', *flags)


def error_of(capsys):
    error = capsys.readouterr().err.strip()
    assert error.startswith('select: error: ') and '\n' not in error and 'Traceback' not in error
    return error


@pytest.fixture(name='workdir')
def fixture_workdir(tmp_path):
    """The folder of a run with samples."""
    write_samples(tmp_path / 'run' / 'samples.npz')
    return tmp_path / 'run'


@pytest.fixture(name='no_private_images')
def fixture_no_private_images(monkeypatch, workdir):
    """Lets every look at the private images fail, once the samples are made."""
    del workdir

    def fail(unused_self, unused_name):
        raise AssertionError('private images were read')

    monkeypatch.setattr(datasets.PrivateData, '_part', fail)


def test_choice_is_measured_on_real_images_and_stays_private(workdir, capsys):
    assert call(workdir) == command.DONE
    assert {path.name for path in workdir.iterdir()} == {'samples.npz', 'non_private'}
    folder = workdir / 'non_private' / 'selection_samples'
    assert {path.name for path in folder.iterdir()} == {'selection.json', 'selection.png', 'report.html'}
    fields = json.loads((folder / 'selection.json').read_text())
    by_title = {entry['title']: entry for entry in fields['candidates']}
    assert set(by_title) == TITLES
    accuracies = [entry['synthetic_accuracy'] for entry in fields['candidates']]
    assert accuracies == sorted(accuracies, reverse=True) and fields['chosen'] == fields['candidates'][0]['title']
    assert fields['chosen'] in ('logistic_regression', 'rbf_svm C=10')
    assert by_title['rbf_svm C=10']['real_accuracy'] > 0.95 > by_title['small_cnn']['real_accuracy'] + 0.3
    assert by_title['rbf_svm C=10']['settings'] == {'C': 10.0, 'gamma': 'scale'}
    assert fields['rank_correlation']['synthetic_and_real']['spearman'] > 0.0
    printed = capsys.readouterr().out
    page = (folder / 'report.html').read_text()
    for entry in fields['candidates']:
        assert f'{entry["real_accuracy"]:.1%}' in page and f'{entry["real_accuracy"]:.1%}' in printed
    assert f'Spearman {fields["rank_correlation"]["synthetic_and_real"]["spearman"]:.2f}' in page
    assert f'Chosen by samples alone: {fields["chosen"]}.' in page
    assert 'must not be released' in page.split('<h2>')[0] and 'not to be released' in printed
    assert page.count('data:image/png;base64,') == 1 and re.findall('<h2>(.*?)</h2>', page) == ['Selection']
    assert re.search('PRIVATE.*?must not be released', page).group() in evaluate_lib._WARNING


@pytest.mark.usefixtures('no_private_images')
def test_samples_alone_choose_the_same_and_the_data_are_not_even_opened(workdir, capsys, tmp_path):
    missing = [*CANDIDATES, 'DATA = @npz_images()', f'npz_images.path = "{tmp_path / "missing.npz"}"']
    assert call(workdir, '--synthetic_only', bindings=missing) == command.DONE
    assert {path.name for path in workdir.iterdir()} == {
        'samples.npz',
        'selection_samples.json',
        'selection_samples.png',
    }
    content = (workdir / 'selection_samples.json').read_text()
    fields = json.loads(content)
    assert fields['samples'] == 'samples.npz' and str(tmp_path) not in content
    assert fields['num_real_train'] is fields['num_real_test'] is fields['rank_correlation'] is fields['regret'] is None
    printed = capsys.readouterr().out
    assert 'No private image was read' in printed and 'real to real' not in printed
    # Without the flag the same data are opened, and are not there.
    assert call(workdir, bindings=missing) == command.WRONG_USE
    assert 'missing.npz' in error_of(capsys)


def test_choice_is_the_same_with_and_without_private_images(workdir):
    assert call(workdir) == call(workdir, '--synthetic_only') == command.DONE
    with_real = json.loads((workdir / 'non_private' / 'selection_samples' / 'selection.json').read_text())
    alone = json.loads((workdir / 'selection_samples.json').read_text())
    assert alone['chosen'] == with_real['chosen']
    for one, two in zip(alone['candidates'], with_real['candidates']):
        assert (one['title'], one['synthetic_accuracy']) == (two['title'], two['synthetic_accuracy'])


def test_two_workers_choose_what_one_does_and_write_once(workdir, capsys):
    assert call(workdir) == command.DONE
    path = workdir / 'non_private' / 'selection_samples' / 'selection.json'
    of_one = path.read_text()
    path.unlink()
    capsys.readouterr()
    # The configuration of the call stands.
    arguments = {'workdir': workdir, 'samples_paths': [workdir / 'samples.npz']}
    recipe = gin_config.make('select')
    found = fake_workers.play(lambda workers: select.choose(recipe, workers=workers, **arguments))
    assert found == [None] * 2 and path.read_text() == of_one
    assert capsys.readouterr().out.count('Chosen by samples alone') == 1


def test_tpu_of_a_configuration_is_refused(workdir, capsys, monkeypatch):
    replicas = types.SimpleNamespace(is_compiled=True)
    monkeypatch.setattr(strategies, 'start', lambda config: replicas)
    assert call(workdir) == command.WRONG_USE
    assert "the strategy 'tpu' is for training: say --strategy=default" in error_of(capsys)


@pytest.mark.usefixtures('no_private_images')
def test_configuration_may_forbid_private_images(workdir):
    assert call(workdir, bindings=[*CANDIDATES, 'SelectionConfig.measure_on_real = False']) == command.DONE
    assert (workdir / 'selection_samples.json').exists() and not (workdir / 'non_private').exists()


def test_samples_of_another_name_get_files_of_their_own(workdir):
    write_samples(workdir / 'more.npz')
    assert call(workdir, '--synthetic_only', f'--samples={workdir / "more.npz"}') == command.DONE
    assert (workdir / 'selection_more.json').exists() and (workdir / 'selection_more.png').exists()


@pytest.mark.parametrize(
    'change, flags, message',
    [
        ({'images': np.zeros([40, 9, 9, 1], np.uint8)}, (), "of shape (9, 9, 1), 'digits' of (8, 8, 1)"),
        ({'class_names': [f'digit {i}' for i in range(10)]}, (), 'holds the classes digit 0'),
        ({'labels': np.arange(40) % 11}, (), 'samples without a class'),
        ({'labels': np.arange(40) % 11}, ('--synthetic_only',), 'samples without a class'),
        ({'labels': np.arange(40) - 1}, ('--synthetic_only',), 'samples without a class'),
    ],
)
def test_samples_that_do_not_fit_are_one_clear_line(workdir, tmp_path, capsys, change, flags, message):
    arrays = {
        'images': np.zeros([40, 8, 8, 1], np.uint8),
        'labels': np.arange(40) % 10,
        'class_names': [str(i) for i in range(10)],
    }
    np.savez(tmp_path / 'other.npz', **{**arrays, **change})
    assert call(workdir, f'--samples={tmp_path / "other.npz"}', *flags) == command.WRONG_USE
    assert message in error_of(capsys)
    assert {path.name for path in workdir.iterdir()} == {'samples.npz'}


@pytest.mark.parametrize(
    'bindings, message',
    [
        (("SelectionConfig.candidates = ('rbf_svm',)",), 'at least two classifiers'),
        (("SelectionConfig.candidates = ('rbf_svm', 'rbf_svn')",), "did you mean 'rbf_svm'"),
        (("SelectionConfig.candidates = ('mlp', ('rbf_svm', {'gama': 1}))",), "did you mean 'gamma'"),
        (("SelectionConfig.candidates = ('mlp', 'mlp')",), "classifier 'mlp' is given twice"),
        (('SelectionConfig.num_seed = 2',), 'Did you mean SelectionConfig.num_seeds'),
        (('select.selection = None',), 'select.selection'),
    ],
)
def test_wrong_candidates_are_one_clear_line(workdir, capsys, bindings, message):
    assert call(workdir, bindings=bindings) == command.WRONG_USE
    assert message in error_of(capsys)
    assert not (workdir / 'non_private').exists()


def test_folder_without_samples_is_one_clear_line(tmp_path, capsys):
    assert call(tmp_path) == command.WRONG_USE
    assert f'no samples at {tmp_path}' in error_of(capsys)


def test_configuration_without_candidates_is_one_clear_line(workdir, capsys):
    assert verbs.call(select, '--gin_file=gin/digits.gin', f'--workdir={workdir}') == command.WRONG_USE
    assert "the configuration is incomplete: select needs 'data' and 'selection'" in error_of(capsys)


def test_recipe_holds_candidates_of_every_family_that_a_cpu_can_train(workdir, monkeypatch):
    seen = {}

    def stop(config, *unused, **unused_options):
        seen['config'] = config
        raise ValueError('seen')

    monkeypatch.setattr(selection, 'select', stop)
    assert call(workdir, '--synthetic_only', bindings=()) == command.WRONG_USE
    families = [candidate.name for candidate in seen['config'].candidates]
    assert set(families) == set(classifiers.CLASSIFIERS) - {'wrn_40_4'} and 14 <= len(families) <= 16
