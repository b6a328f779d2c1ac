"""Tests of bin/evaluate: what it measures, what it says, what it releases and what that costs."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from tests import fake_workers
from tests.cli import verbs
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.cli import account
from tf_dpdiff.cli import command
from tf_dpdiff.cli import evaluate
from tf_dpdiff.cli import gin_config
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.evaluation import utility
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.runs import budget as budget_file
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import released_accuracy
from tf_dpdiff.runs import report as report_lib
from tf_dpdiff.sampling import store
from tf_dpdiff.training import checkpoints

QUICK = (
    "UtilityConfig.classifiers = ('rbf_svm', ('logistic_regression', {'C': 0.5}))",
    'UtilityConfig.num_seeds = 1',
    'UtilityConfig.curve_sizes = (100, 300)',
)
RELEASE = ('evaluate.accuracy_release = @AccuracyReleaseConfig()', 'AccuracyReleaseConfig.noise_multiplier = 4.0')
ACCURACY_ALONE = ('evaluate.quality = None', 'evaluate.neighbors = None', 'UtilityConfig.curve_sizes = ()')
DELTA = 1e-4


def make_statement(noise_multiplier):
    config = plan_lib.DpSgdConfig(
        target_delta=DELTA, expected_batch_size=200, num_steps=10, l2_norm_clip=0.1, noise_multiplier=noise_multiplier
    )
    plan = plan_lib.make_plan(config, 1437)
    return statement_lib.PrivacyStatement('one image', 'digits', plan, plan.planned_ledger(), 8, run_id='run')


def make_run(workdir, noise_multiplier=5.0):
    """Makes the files of a finished run whose samples are real digits with noise."""
    workdir.mkdir()
    train = datasets.digits().train
    rows = np.argsort(train.labels, kind='stable')[::2]
    noise = np.random.default_rng(0).normal(0.0, 40.0, [len(rows), 8, 8, 1])
    images = np.clip(train.images_uint8[rows] + noise, 0, 255).astype(np.uint8)
    store.write_file(workdir / 'samples.npz', images, train.labels[rows], train.class_names)
    for name in ('samples.png', 'denoising.png'):
        pictures.write_png(workdir / name, pictures.class_grid(images, train.labels[rows]))
    statement = make_statement(noise_multiplier)
    folder_lib.write_statement(workdir, statement)
    state = checkpoints.RunState(seeds.PrivateSeed.from_os_entropy())
    state.run_id, state.ledger = statement.run_id, statement.ledger
    checkpoints.RunCheckpoint(workdir / 'checkpoints', {'data_fingerprint': train.fingerprint()}).save(state)
    report_lib.write(
        workdir,
        title='A run',
        facts={'epsilon': '1'},
        points=statement.epsilon_over_steps(),
        delta=DELTA,
        configuration='A = 1\n',
    )
    return workdir


def call(workdir, *flags, bindings=()):
    given = [f'--gin_param={binding}' for binding in (*QUICK, *bindings)]
    return verbs.call(evaluate, '--gin_file=gin/digits.gin', *given, f'--workdir={workdir}', *flags)


def error_of(capsys):
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('evaluate: error: ') and 'Traceback' not in error
    return error


@pytest.fixture(name='run', scope='module')
def fixture_run(tmp_path_factory):
    """A finished run that was evaluated, and what was printed."""
    return make_run(tmp_path_factory.mktemp('runs') / 'digits')


@pytest.fixture(name='evaluated', scope='module')
def fixture_evaluated(run):
    assert call(run) == command.DONE
    folder = run / 'non_private' / 'evaluation_samples'
    shutil.copy(folder / 'evaluation.json', run.parent / 'first.json')  # Tests evaluate the run again.
    return folder


def test_everything_is_measured_with_its_protocol(evaluated):
    results = json.loads((evaluated / 'evaluation.json').read_text())
    rows = {row['images']: row for row in results['quality']['rows']}
    assert rows['real training images']['fid'] < rows['synthetic']['fid'] < rows['uniform noise']['fid']
    protocol = results['quality']['protocol']
    assert re.fullmatch('[0-9a-f]{64}', protocol['weights_sha256'])
    assert protocol['num_reference'] == 360 and protocol['features'] and protocol['resize']
    by_name = {entry['classifier']: entry for entry in results['utility']['classifiers']}
    for entry in by_name.values():
        assert entry['synthetic_images']['accuracy'] > 0.8 and entry['real_images']['accuracy'] > 0.9
    assert [point['num_synthetic'] for point in results['utility']['curve'] if point['classifier'] == 'rbf_svm'] == [
        100,
        300,
    ]
    assert results['neighbors']['exact_copies']['synthetic'] == 0


def test_page_shows_what_was_measured_beside_statement_and_configuration(evaluated):
    page = (evaluated / 'report.html').read_text()
    assert re.findall('<h2>(.*?)</h2>', page) == [
        'Samples',
        'Denoising',
        'Quality',
        'Downstream accuracy',
        'Nearest private images',
        'Epsilon over steps',
        'Privacy statement',
        'Configuration',
    ]
    results = json.loads((evaluated / 'evaluation.json').read_text())
    assert f'{results["quality"]["rows"][0]["fid"]:.2f}' in page
    assert f'{results["utility"]["classifiers"][0]["synthetic_images"]["accuracy"]:.1%}' in page
    assert results['neighbors']['verdict'] in page
    assert results['quality']['protocol']['weights_sha256'][:16] in page
    assert 'must not be released' in page.split('<h2>')[0]
    assert page.count('data:image/png;base64,') == 6


def test_page_that_may_be_released_holds_nothing_that_was_measured(run, evaluated):
    assert re.findall('<h2>(.*?)</h2>', (run / 'report.html').read_text()) == [
        'Samples',
        'Denoising',
        'Epsilon over steps',
        'Privacy statement',
        'Configuration',
        'What this page holds',
    ]
    names = {path.name for path in run.iterdir()}
    assert names == {
        'samples.npz',
        'samples.png',
        'denoising.png',
        'epsilon.png',
        'privacy_statement.txt',
        'privacy_statement.json',
        'report.json',
        'report.html',
        'non_private',
        'checkpoints',
    }
    del evaluated


def test_settings_of_a_file_reach_what_is_measured(tmp_path, capsys):
    workdir = make_run(tmp_path / 'run')
    less = (
        'QualityConfig.max_images = 100',
        'NeighborsConfig.max_samples = 50',
        'FeaturesConfig.num_steps = 3',
        'evaluate.utility = None',
    )
    assert call(workdir, bindings=less) == command.DONE
    results = json.loads((workdir / 'non_private' / 'evaluation_samples' / 'evaluation.json').read_text())
    assert results['quality']['protocol']['num_reference'] == 100 and results['neighbors']['num_synthetic'] == 50
    assert 'utility' not in results
    assert json.loads((workdir / 'non_private' / 'features' / 'classifier.json').read_text())['num_steps'] == 3
    assert call(workdir, bindings=('FeaturesConfig.source = "nowhere"',)) == command.WRONG_USE
    assert "source 'nowhere' of the features is neither" in error_of(capsys)


def words(printed):
    """Returns the printed words, without the lines of tables and breaks."""
    return ' '.join(re.sub('[│┃━┏┓┗┛┡┩╇┳┻─└┘┴]', ' ', printed).split())


def test_what_another_runs_file_asks_for_and_is_not_at_hand_is_left_out_and_said(tmp_path, capsys):
    workdir = make_run(tmp_path / 'run')
    (tmp_path / 'my.gin').write_text(
        "include 'digits.gin'\n"
        "UtilityConfig.classifiers = ('rbf_svm',)\n"
        'QualityConfig.neighbors = 400\nevaluate.neighbors = None\n'
    )
    flags = [f'--gin_file={tmp_path / "my.gin"}', f'--workdir={workdir}']
    assert verbs.call(evaluate, *flags) == command.DONE
    printed = capsys.readouterr()
    saying = [line for line in printed.err.splitlines() if line.startswith('evaluate: ')]
    assert saying == [
        'evaluate: left out of UtilityConfig.curve_sizes, since there are 719 samples: 1,000, 2,000, 5,000.',
        'evaluate: quality metrics with neighbors=400 need at least 401 images of each kind, got 719 synthetic, '
        '1437 training, 360 held-out ones.',
    ]
    results = json.loads((workdir / 'non_private' / 'evaluation_samples' / 'evaluation.json').read_text())
    assert [point['num_synthetic'] for point in results['utility']['curve']] == [100, 200, 500]
    assert 'quality' not in results and len(results['left_out']) == 2


def test_images_too_small_for_networks_are_measured_by_the_others(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, [200, 6, 6, 1]).astype(np.uint8)
    np.savez(tmp_path / 'own.npz', images=images, labels=np.arange(200) % 2)
    store.write_file(tmp_path / 'samples.npz', images[:50], np.arange(50) % 2, ('0', '1'))
    own = (
        'DATA = @npz_images()',
        f'npz_images.path = "{tmp_path / "own.npz"}"',
        'FeaturesConfig.num_steps = 2',
        'UtilityConfig.num_seeds = 1',
        'UtilityConfig.curve_sizes = ()',
    )
    flags = [f'--gin_param={binding}' for binding in own]
    assert verbs.call(evaluate, '--gin_file=gin/digits.gin', *flags, f'--workdir={tmp_path}') == command.DONE
    assert 'since images of 6x6 are too small: small_cnn.' in capsys.readouterr().err
    results = json.loads((tmp_path / 'non_private' / 'evaluation_samples' / 'evaluation.json').read_text())
    assert [entry['classifier'] for entry in results['utility']['classifiers']] == [
        'logistic_regression',
        'gradient_boosting',
        'rbf_svm',
    ]


def test_every_number_on_the_console_is_marked(tmp_path, capsys):
    workdir = make_run(tmp_path / 'run')
    assert call(workdir, bindings=('UtilityConfig.curve_sizes = ()', 'FeaturesConfig.num_steps = 3')) == command.DONE
    said = words(capsys.readouterr().out)
    for title in ('against held-out real images', 'held-out real images, by what was trained on', 'Nearest neighbours'):
        assert f'{title} (not to be released)' in said, title


def test_features_are_trained_once(run, evaluated, capsys):
    del evaluated
    cached = {path: path.stat().st_mtime_ns for path in (run / 'non_private' / 'features').rglob('*') if path.is_file()}
    assert cached
    assert call(run, bindings=['evaluate.utility = None', 'evaluate.neighbors = None']) == command.DONE
    assert {path: path.stat().st_mtime_ns for path in cached} == cached
    assert 'Protocol: features: ' in capsys.readouterr().out


def make_budget(path, *workdirs, total_epsilon=3.0):
    """Makes a budget that holds runs."""
    budget_file.create(path, budget_lib.Budget(total_epsilon=total_epsilon, delta=DELTA))
    for workdir in workdirs:
        assert verbs.call(account, f'--budget_file={path}', f'--workdir={workdir}') == command.DONE
    return path


@pytest.fixture(name='budget_path')
def fixture_budget_path(tmp_path):
    """A budget without runs."""
    return make_budget(tmp_path / 'digits.budget')


def test_accuracy_is_released_with_noise_and_charged(tmp_path, capsys):
    workdir = make_run(tmp_path / 'run')
    budget_path = make_budget(tmp_path / 'digits.budget', workdir)
    bindings = [*RELEASE, *ACCURACY_ALONE]
    assert call(workdir, f'--budget_file={budget_path}', bindings=bindings) == command.DONE
    released = json.loads((workdir / 'released_accuracy.json').read_text())
    exact = json.loads((workdir / 'non_private' / 'evaluation_samples' / 'evaluation.json').read_text())['utility']
    stddev = 4.0 * np.sqrt(2.0) / 360
    assert released['noise_stddev'] == pytest.approx(stddev)
    for entry in exact['classifiers']:
        off = released['accuracy'][entry['classifier']] - entry['synthetic_images']['accuracy']
        assert 0.0 < abs(off) < 6.0 * stddev
    budget = budget_file.read(budget_path)
    _, entry = budget.entries
    assert entry.status == budget_lib.SETTLED and entry.run_id == released['run_id']
    assert entry.ledger == ledger_lib.Ledger().record('held_out_accuracy', 4.0, 1.0)
    assert released['epsilon'] == accounting.epsilon(entry.ledger.dp_event(), DELTA)
    together = ledger_lib.Ledger(make_statement(5.0).ledger.releases + entry.ledger.releases)
    assert released['epsilon_of_all_releases'] == budget.epsilon() > released['epsilon']
    assert budget.epsilon() == pytest.approx(accounting.epsilon(together.dp_event(), DELTA), rel=1e-6)
    page = (workdir / 'report.html').read_text()
    assert f'{released["accuracy"]["rbf_svm"]:.1%}' in page and 'Gaussian mechanism' in page
    assert 'RELEASED in' in capsys.readouterr().out
    # A second release would cost again: it is not made unasked. A page that a crash kept back is made good.
    (workdir / 'report.html').write_text('')
    assert call(workdir, f'--budget_file={budget_path}', bindings=bindings) == command.WRONG_USE
    assert 'were released before' in error_of(capsys)
    assert budget_file.read(budget_path) == budget and (workdir / 'report.html').read_text() == page
    # Made all the same, its text knows of the first.
    (workdir / 'released_accuracy.json').rename(tmp_path / 'first.json')
    assert call(workdir, f'--budget_file={budget_path}', bindings=bindings) == command.DONE
    again = json.loads((workdir / 'released_accuracy.json').read_text())
    assert again['epsilon_of_all_releases'] == budget_file.read(budget_path).epsilon()
    assert again['epsilon_of_all_releases'] > released['epsilon_of_all_releases']


def test_accuracy_on_images_without_owners_is_not_released_for_a_budget_of_patients(tmp_path):
    digits = datasets.digits()
    owned = dataclasses.replace(digits.train, unit='one patient', owners=np.arange(len(digits.train)) // 3)
    with pytest.raises(ValueError, match="protects 'one patient', but the held-out images name no owners"):
        released_accuracy.check(
            tmp_path,
            tmp_path / 'a.budget',
            accuracy_release.AccuracyReleaseConfig(4.0),
            datasets.PrivateData(train=owned, held_out=digits.held_out),
            None,
        )


def evaluate_as_two(workdir, *bindings, of_second=None, **arguments):
    """Evaluates by two workers that are threads, and returns what each returned or raised."""
    gin_config.parse(['gin/digits.gin'], [*QUICK, *bindings])
    recipe = gin_config.make('evaluate', **arguments)

    def evaluate_as(workers):
        samples_paths = [(workers.index and of_second) or workdir / 'samples.npz']
        evaluate.measure(recipe, workdir, samples_paths, workers)

    return fake_workers.play(evaluate_as)


def test_two_workers_measure_what_one_does_and_release_it_once(run, evaluated, tmp_path, capsys):
    del evaluated
    workdir = make_run(tmp_path / 'run')
    budget_path = make_budget(tmp_path / 'digits.budget', workdir)
    assert evaluate_as_two(workdir, *RELEASE, budget_file=budget_path) == [None] * 2
    of_one, of_two = (
        json.loads(path.read_text())
        for path in (run.parent / 'first.json', workdir / 'non_private' / 'evaluation_samples' / 'evaluation.json')
    )
    for name in ('quality', 'utility', 'neighbors', 'num_samples'):
        assert of_two[name] == of_one[name]
    assert len(budget_file.read(budget_path).entries) == 2
    assert capsys.readouterr().out.count('RELEASED in') == 1
    # What the first worker refuses ends the other, and nothing is charged.
    found = evaluate_as_two(workdir, *RELEASE, budget_file=budget_path)
    assert isinstance(found[0], ValueError) and 'were released before' in str(found[0])
    assert isinstance(found[1], workers_lib.WorkerLostError)
    assert len(budget_file.read(budget_path).entries) == 2


def test_workers_with_other_samples_are_refused(tmp_path):
    workdir = make_run(tmp_path / 'run')
    samples = store.read(workdir / 'samples.npz')
    samples.images[0, 0, 0] ^= 1
    store.write_file(tmp_path / 'other.npz', samples.images, samples.labels, datasets.digits().train.class_names)
    for error in evaluate_as_two(workdir, of_second=tmp_path / 'other.npz'):
        assert isinstance(error, workers_lib.WorkersDisagreeError)
        assert 'worker 1 and worker 0 differ in the configuration, the samples or the data' in str(error)
    assert not (workdir / 'non_private').exists()


def test_accuracy_of_another_model_is_not_shown(tmp_path):
    workdir = make_run(tmp_path / 'run')
    budget_path = make_budget(tmp_path / 'digits.budget', workdir)
    assert call(workdir, f'--budget_file={budget_path}', bindings=[*RELEASE, *ACCURACY_ALONE]) == command.DONE
    assert 'Gaussian mechanism' in (workdir / 'report.html').read_text()
    path = workdir / 'privacy_statement.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'run_id': 'another'}))
    report_lib.write_page(workdir)
    assert 'Gaussian mechanism' not in (workdir / 'report.html').read_text()


def test_second_process_does_not_release_in_between(tmp_path, capsys, monkeypatch):
    workdir = make_run(tmp_path / 'run')
    budget_path = make_budget(tmp_path / 'digits.budget', workdir)
    measure = utility.measure

    def measure_while_another_process_releases(*arguments, **options):
        (workdir / 'released_accuracy.json').write_text(json.dumps({'model_run_id': 'run', 'accuracy': {}, 'text': ''}))
        return measure(*arguments, **options)

    monkeypatch.setattr(utility, 'measure', measure_while_another_process_releases)
    flags = f'--budget_file={budget_path}'
    assert call(workdir, flags, bindings=[*RELEASE, *ACCURACY_ALONE]) == command.WRONG_USE
    assert 'were released before' in error_of(capsys)
    assert len(budget_file.read(budget_path).entries) == 1


@pytest.mark.parametrize('change', ['not charged', 'charged for less'])
def test_release_needs_the_run_in_the_budget(tmp_path, capsys, change):
    workdir = make_run(tmp_path / 'run')
    budget_path = make_budget(tmp_path / 'digits.budget')
    if change == 'charged for less':
        about = {'dataset': 'digits', 'unit': 'one image', 'data_fingerprint': datasets.digits().train.fingerprint()}
        less = ledger_lib.Ledger(make_statement(50.0).ledger.releases)
        budget_file.update(budget_path, lambda budget: budget.record_finished('run', less, time='now', **about))
    before = budget_file.read(budget_path)
    assert call(workdir, f'--budget_file={budget_path}', bindings=RELEASE) == command.WRONG_USE
    assert f'does not hold the run in {workdir}; charge it first: bin/account --budget_file=' in error_of(capsys)
    assert budget_file.read(budget_path) == before and not (workdir / 'non_private').exists()


def test_release_for_another_unit_than_the_run_protects_is_refused(tmp_path, capsys):
    workdir = make_run(tmp_path / 'run')
    budget_path = make_budget(tmp_path / 'digits.budget')
    about = {'dataset': 'digits', 'unit': 'one owner', 'data_fingerprint': datasets.digits().train.fingerprint()}
    ledger = make_statement(5.0).ledger
    budget_file.update(budget_path, lambda budget: budget.record_finished('run', ledger, time='now', **about))
    assert call(workdir, f'--budget_file={budget_path}', bindings=RELEASE) == command.WRONG_USE
    assert 'one owner' in error_of(capsys) and len(budget_file.read(budget_path).entries) == 1


def test_other_split_of_the_data_is_refused(tmp_path, capsys):
    workdir = make_run(tmp_path / 'run')
    everything = datasets.digits()
    images = np.concatenate([everything.train.images_uint8, everything.held_out.images_uint8])
    labels = np.concatenate([everything.train.labels, everything.held_out.labels])
    np.savez(tmp_path / 'all.npz', images=images, labels=labels)
    other = ('evaluate.data = @npz_images()', f'npz_images.path = "{tmp_path / "all.npz"}"')
    assert call(workdir, bindings=other) == command.WRONG_USE
    assert 'was trained on other images than those of' in error_of(capsys) and not (workdir / 'non_private').exists()
    # Of samples in a folder without checkpoints nothing is known, and that is said.
    (workdir / 'checkpoints').rename(tmp_path / 'away')
    quick = ('evaluate.quality = None', 'evaluate.neighbors = None', 'UtilityConfig.curve_sizes = ()')
    assert call(workdir, bindings=quick) == command.DONE
    assert 'holds no checkpoints: whether its run was trained on these images' in capsys.readouterr().err


def test_without_real_images_classifiers_are_trained_on_samples_alone(tmp_path):
    workdir = make_run(tmp_path / 'run')
    bindings = ('UtilityConfig.real_images = False', 'evaluate.quality = None', 'evaluate.neighbors = None')
    assert call(workdir, bindings=bindings) == command.DONE
    page = (workdir / 'non_private' / 'evaluation_samples' / 'report.html').read_text()
    assert re.search('after training on [0-9]+ samples; mean', page) and 'Dashed' not in page


def test_sets_of_one_name_do_not_overwrite_each_other(tmp_path):
    workdir, quick = make_run(tmp_path / 'run'), ('evaluate.quality = None', 'evaluate.neighbors = None')
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'samples.npz').write_bytes((workdir / 'samples.npz').read_bytes())
        assert call(workdir, f'--samples={tmp_path / folder / "samples.npz"}', bindings=quick) == command.DONE
    assert call(workdir, bindings=quick) == command.DONE
    found = {
        json.loads(path.read_text())['samples']: path.parent.name
        for path in (workdir / 'non_private').glob('evaluation_*/evaluation.json')
    }
    assert len(found) == 3 and found[str(workdir / 'samples.npz')] == 'evaluation_samples'


@pytest.mark.parametrize('are_named', [False, True])
def test_samples_and_matched_images_of_a_run_are_measured_as_one_set(tmp_path, are_named):
    workdir, quick = make_run(tmp_path / 'run'), ('evaluate.quality = None', 'evaluate.neighbors = None')
    own = store.read(workdir / 'samples.npz')
    store.write_file(workdir / 'matched_images.npz', 255 - own.images[:20], own.labels[:20], own.class_names)
    paths = [str(workdir / name) for name in ('samples.npz', 'matched_images.npz')]
    assert call(workdir, *(('--samples', *paths) if are_named else ()), bindings=quick) == command.DONE
    folder = workdir / 'non_private' / 'evaluation_samples+matched_images'
    fields = json.loads((folder / 'evaluation.json').read_text())
    assert fields['num_samples'] == len(own.images) + 20 and fields['samples'] == ' and '.join(paths)
    assert fields['utility']['num_synthetic'] == len(own.images) + 20
    assert fields['samples'] in (folder / 'report.html').read_text()


def test_set_that_is_named_twice_is_refused(tmp_path, capsys):
    workdir = make_run(tmp_path / 'run')
    paths = [str(workdir / 'samples.npz'), str(workdir / '..' / 'run' / 'samples.npz')]
    assert call(workdir, '--samples', *paths) == command.WRONG_USE
    assert 'a set of samples is named twice' in error_of(capsys)
    shutil.copy(paths[0], workdir / 'again.npz')
    assert call(workdir, '--samples', paths[0], str(workdir / 'again.npz')) == command.WRONG_USE
    assert f'most images of {workdir / "again.npz"} are in the sets before it too' in error_of(capsys)


def test_budget_without_a_release_is_refused(tmp_path, budget_path, capsys):
    assert call(make_run(tmp_path / 'run'), f'--budget_file={budget_path}') == command.WRONG_USE
    assert '--budget_file is for evaluate.accuracy_release, which is not bound' in error_of(capsys)


def test_misspelled_folder_is_not_made(tmp_path, capsys):
    assert call(tmp_path / 'typo') == command.WRONG_USE
    assert 'no samples at' in error_of(capsys) and not (tmp_path / 'typo').exists()


def test_release_that_would_pass_the_budget_is_refused_before_anything_is_measured(tmp_path, capsys):
    workdir = make_run(tmp_path / 'run')
    total = json.loads((workdir / 'privacy_statement.json').read_text())['epsilon'] + 1e-3
    path = make_budget(tmp_path / 'small.budget', workdir, total_epsilon=total)
    assert call(workdir, f'--budget_file={path}', bindings=RELEASE) == command.WRONG_USE
    assert 'the privacy budget would be passed' in error_of(capsys)
    assert len(budget_file.read(path).entries) == 1 and not (workdir / 'non_private').exists()


def test_release_without_a_budget_is_refused(tmp_path, capsys):
    assert call(make_run(tmp_path / 'run'), bindings=RELEASE) == command.WRONG_USE
    assert 'name the budget of the data set, --budget_file=FILE' in error_of(capsys)


def test_release_for_a_run_without_a_guarantee_is_refused(tmp_path, budget_path, capsys):
    workdir = make_run(tmp_path / 'run', noise_multiplier=0.0)
    assert call(workdir, f'--budget_file={budget_path}', bindings=RELEASE) == command.WRONG_USE
    assert 'claims no guarantee' in error_of(capsys)
    assert not budget_file.read(budget_path).entries


def test_release_on_samples_of_another_model_is_refused(tmp_path, budget_path, capsys):
    workdir, other = make_run(tmp_path / 'run'), make_run(tmp_path / 'other', noise_multiplier=0.0)
    flags = (f'--samples={other / "samples.npz"}', f'--budget_file={budget_path}')
    assert call(workdir, *flags, bindings=RELEASE) == command.WRONG_USE
    assert 'the samples did not come with the statement of the run' in error_of(capsys)
    assert not budget_file.read(budget_path).entries


@pytest.mark.parametrize(
    'change, message',
    [
        ({'images': np.zeros([40, 6, 6, 1], np.uint8)}, "of shape (6, 6, 1), 'digits' of (8, 8, 1)"),
        ({'labels': np.arange(40) % 11}, 'samples without a class'),
        ({'class_names': [f'digit {i}' for i in range(10)]}, 'holds the classes digit 0'),
    ],
)
def test_samples_of_other_data_are_refused(tmp_path, capsys, change, message):
    arrays = {
        'images': np.zeros([40, 8, 8, 1], np.uint8),
        'labels': np.arange(40) % 10,
        'class_names': [str(i) for i in range(10)],
    }
    np.savez(tmp_path / 'other.npz', **{**arrays, **change})
    assert call(tmp_path / 'run', f'--samples={tmp_path / "other.npz"}') == command.WRONG_USE
    assert message in error_of(capsys)
