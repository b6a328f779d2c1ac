"""Tests of bin/tune: the best run is left, nothing of the others is, and all of it is paid for."""

import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.cli import verbs
from tf_dpdiff import files
from tf_dpdiff.cli import command
from tf_dpdiff.cli import evaluate
from tf_dpdiff.cli import export
from tf_dpdiff.cli import release
from tf_dpdiff.cli import sample
from tf_dpdiff.cli import train
from tf_dpdiff.cli import tune
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import best_of_runs
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import seeds
from tf_dpdiff.runs import budget as budget_file
from tf_dpdiff.runs import run as run_lib
from tf_dpdiff.runs import tune as tune_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import divergence
from tf_dpdiff.training import warm_start

pytestmark = pytest.mark.usefixtures('small_network')
TINY = pathlib.Path(__file__).with_name('tiny_tune.gin')
PHRASES = (
    'the configuration as it is',
    'finetuning/OptimizationConfig.learning_rate = 1e-3',
    'WarmStartConfig.num_steps = 2; DpSgdConfig.l2_norm_clip = 1e-2',
)


def call(workdir, *flags, bindings=()):
    given = [f'--gin_param={binding}' for binding in bindings]
    return verbs.call(tune, f'--gin_file={TINY}', f'--workdir={workdir}', *given, *flags)


def error_of(capsys):
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('tune: error: ') and 'Traceback' not in error
    return error


class Watched:
    """Sets what the scores of runs are, and keeps what would tell of each run.

    Attributes:
      traces: Of each run: its secret, its samples and its weights.
    """

    def __init__(self, scores, stop_before=None):
        self.scores, self.stop_before, self.traces = list(scores), stop_before, []

    def __call__(self, prepared, directory, seed):
        number = len(self.traces)
        if self.stop_before == number:
            self.stop_before = None
            raise KeyboardInterrupt
        with np.load(directory / 'samples.npz') as found:
            samples = found['images'].tobytes()
        reader = tf.train.load_checkpoint(str(max((directory / 'checkpoints').glob('[0-9]*')) / 'variables'))
        names = [name for name in reader.get_variable_to_shape_map() if name.startswith('average/')]
        largest = max((reader.get_tensor(name) for name in names), key=np.size)  # Both data-dependent and noisy.
        secret = checkpoints.read_secret(directory / 'checkpoints').reveal()
        self.traces.append((secret, secret.hex().encode(), samples, largest.tobytes()))
        return self.scores[number]


def holding(workdir, traces):
    """Returns the files below a folder that tell of a run, packed samples among them."""
    found = []
    for path in (path for path in workdir.rglob('*') if path.is_file()):
        content = path.read_bytes()
        if path.suffix == '.npz':
            with np.load(path) as arrays:
                content += b''.join(array.tobytes() for array in arrays.values())
        found += [path.name] * any(trace in content for trace in traces)
    return found


@pytest.fixture(name='two_runs')
def fixture_two_runs(monkeypatch):
    """Two runs, whatever the secret is: each takes seconds."""
    monkeypatch.setattr(best_of_runs.NumRuns, 'draw', lambda self, seed: 2)


@pytest.fixture(name='three_runs')
def fixture_three_runs(monkeypatch):
    """Three runs, whatever the secret is."""
    monkeypatch.setattr(best_of_runs.NumRuns, 'draw', lambda self, seed: 3)


@pytest.fixture(name='made', scope='module')
def fixture_made(tmp_path_factory, small_network):
    """A choice that was made, what would tell of each of its runs, and the budget that it was charged to."""
    workdir = tmp_path_factory.mktemp('made') / 'tuned'
    budget_path, watched = workdir.parent / 'budget.json', Watched([0.2, 0.9])
    budget_file.create(budget_path, budget_lib.Budget(7.0, 1e-4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_of_runs.NumRuns, 'draw', lambda self, seed: 2)
        patch.setattr(tune_lib, '_score', watched)
        assert call(workdir, f'--budget_file={budget_path}') == command.DONE
    return workdir, watched.traces, budget_path


def test_best_run_is_left_and_nothing_of_the_others(made):
    workdir, traces, _ = made
    assert len(traces) == 2 and not (workdir / 'tuning').exists()
    assert {'checkpoints', 'samples.npz', 'saved_model', 'report.html', 'privacy_statement.json'} <= {
        path.name for path in workdir.iterdir()
    }
    assert checkpoints.read_secret(workdir / 'checkpoints').reveal() == traces[1][0]
    assert not holding(workdir, traces[0])
    assert len(holding(workdir, traces[1])) >= 2  # Control: of the one that is left there is.
    words = [path.name for path in workdir.rglob('*') if path.is_file() and b'num_judged' in path.read_bytes()]
    assert not words


def test_statement_is_about_the_whole_and_epsilon_is_computed_anew(made):
    fields = json.loads((made[0] / 'privacy_statement.json').read_text())
    text = (made[0] / 'privacy_statement.txt').read_text()
    assert fields['best_of_runs']['candidates'] == list(PHRASES)
    assert fields['best_of_runs']['released_candidate'] in PHRASES
    assert 5.9 < fields['epsilon'] <= 6.0 and rounding.round_up(fields['epsilon']) in text
    ledger = ledger_lib.Ledger.from_json(json.dumps(fields['releases']))
    assert accounting.epsilon(ledger.dp_event(), fields['delta']) == fields['epsilon']
    (choice,) = ledger.releases
    assert [(part.mechanism, part.count) for part in choice.releases] == [
        ('held_out_accuracy', 1),
        ('noisy_class_means', 1),
        ('dp_sgd_step', 3),
    ]
    # Control: a single run of these releases claims far less.
    assert accounting.epsilon(ledger_lib.Ledger(choice.releases).dp_event(), fields['delta']) < 4.5
    assert checkpoints.read_run(made[0] / 'checkpoints').ledger == ledger


def test_budget_is_charged_once_for_the_whole(made):
    fields = json.loads((made[0] / 'privacy_statement.json').read_text())
    budget = budget_file.read(made[2])
    (entry,) = budget.entries
    assert (entry.run_id, entry.status) == (fields['run_id'], 'settled')
    assert budget.epsilon() == fields['epsilon'] and entry.ledger.to_json() == json.dumps(fields['releases'])


def test_other_commands_work_on_the_run_that_is_left(made, tmp_path, capsys):
    workdir, output = shutil.copytree(made[0], tmp_path / 'tuned'), tmp_path / 'out'
    flags = [f'--workdir={workdir}', f'--output={output}', f'--budget_file={made[2]}']
    assert verbs.call(release, *flags) == command.DONE
    assert verbs.call(release, f'--verify={output}') == command.DONE
    assert 'computed anew' in capsys.readouterr().out
    card = ' '.join((output / 'README.md').read_text().split())
    assert 'The best of several runs' in card and 'no privacy loss distribution is known' in card
    record = (output / 'deployment.yaml').read_text()
    assert 'theorem 2 of Papernot and Steinke' in ' '.join(record.split())
    assert not holding(output, made[1][0])
    assert verbs.call(sample, f'--workdir={workdir}', '--num_images=20', f'--output={tmp_path / "s.npz"}') == 0
    assert verbs.call(export, f'--workdir={workdir}', f'--output={tmp_path / "model"}') == command.DONE
    bindings = ['evaluate.quality = None', 'evaluate.neighbors = None', "UtilityConfig.classifiers = ('rbf_svm',)"]
    given = [f'--gin_param={binding}' for binding in [*bindings, 'UtilityConfig.curve_sizes = ()']]
    assert verbs.call(evaluate, f'--gin_file={TINY}', f'--workdir={workdir}', *given) == command.DONE


def test_epsilon_that_is_too_small_is_found_by_the_receiver(made, tmp_path, monkeypatch, capsys):
    output = tmp_path / 'out'
    assert verbs.call(release, f'--workdir={made[0]}', f'--output={output}') == command.DONE
    capsys.readouterr()
    # As if one run were all that there is.
    monkeypatch.setattr(
        best_of_runs.NumRuns, 'renyi_of_best', lambda self, orders, of_a_run: np.full(len(orders), 50.0)
    )
    accounting.epsilon_bounds._rdp_epsilon.cache_clear()
    assert verbs.call(release, f'--verify={output}') == command.FAILED
    accounting.epsilon_bounds._rdp_epsilon.cache_clear()


def test_choice_that_is_made_stays_and_training_goes_on_from_it_in_no_way(made, capsys):
    before = (made[0] / 'privacy_statement.json').read_text()
    assert call(made[0]) == command.DONE
    assert 'is made' in capsys.readouterr().err and (made[0] / 'privacy_statement.json').read_text() == before
    assert verbs.call(train, f'--gin_file={TINY}', f'--workdir={made[0]}') == command.WRONG_USE
    assert 'another configuration' in capsys.readouterr().err


@pytest.mark.usefixtures('two_runs')
def test_choice_that_was_stopped_goes_on_with_the_same_draws(tmp_path, monkeypatch, capsys):
    workdir, budget_path = tmp_path / 'tuned', tmp_path / 'budget.json'
    budget_file.create(budget_path, budget_lib.Budget(7.0, 1e-4))
    watched, taken = Watched([0.9, 0.2], stop_before=1), []
    train_run = run_lib.train

    def spy(recipe, directory, **options):
        taken.append((options['one_of_several'].candidate, checkpoints.read_run(directory / 'checkpoints')))
        return train_run(recipe, directory, **options)

    monkeypatch.setattr(tune_lib, '_score', watched)
    monkeypatch.setattr(run_lib, 'train', spy)
    assert call(workdir, f'--budget_file={budget_path}') == command.FAILED
    state = files.read_json(workdir / 'tuning' / 'choice.json')
    assert (workdir / 'tuning' / 'choice.json').stat().st_mode & 0o777 == 0o600
    assert (workdir / 'tuning').stat().st_mode & 0o777 == 0o700
    (entry,) = budget_file.read(budget_path).entries
    assert entry.status == 'reserved'
    run_id = checkpoints.read_run(workdir / 'tuning' / 'run' / 'checkpoints').run_id
    # Neither on other terms, nor charged again.
    capsys.readouterr()
    assert call(workdir, bindings=['TuneConfig.mean_num_runs = 2.0']) == command.WRONG_USE
    assert 'was begun with another configuration' in error_of(capsys)
    assert call(workdir, bindings=['SamplerConfig.num_steps = 2']) == command.WRONG_USE
    assert call(workdir, f'--budget_file={budget_path}') == command.DONE
    (entry,) = budget_file.read(budget_path).entries
    assert entry.status == 'settled' and entry.run_id == state['run_id'] == run_id
    seed = seeds.PrivateSeed(bytes.fromhex(state['secret']))
    tuning = best_of_runs.Tuning(best_of_runs.NumRuns(3.0), PHRASES, 'any', 8.0)
    expected = [tuning.draw_candidate(seed, number) for number in (0, 1, 1)]
    assert [number for number, _ in taken] == expected
    assert [begun is not None for _, begun in taken] == [False, False, True]  # The second one went on.
    assert checkpoints.read_secret(workdir / 'checkpoints').reveal() == watched.traces[0][0]
    assert not holding(workdir, [state['secret'].encode(), bytes.fromhex(state['secret'])])


def prepared_of(workdir, *bindings):
    """Returns a choice that is ready to begin."""
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune_lib, 'tune', lambda config, recipes, *unused, **options: taken.append((config, recipes)))
        patch.setattr(tune, '_print_results', lambda unused_workdir: None)
        assert call(workdir, bindings=bindings) == command.DONE
    return tune_lib.prepare(*taken[0], workdir, say=lambda unused_text: None)


def score_of(directory, *bindings):
    """Returns the score that the run in a folder would get."""
    prepared = prepared_of(directory.parent / 'unused', *bindings)
    return tune_lib._score(prepared, directory, seeds.PrivateSeed(bytes(32)))


def test_score_is_the_accuracy_of_a_classifier_trained_on_the_samples(tmp_path):
    """On real digits in place of samples, of which it is known."""
    train = datasets.digits().train
    images, labels = train.images_uint8[:600], train.labels[:600]
    directory = tmp_path / 'run'
    directory.mkdir()
    np.savez(directory / 'samples.npz', images=images, labels=labels, class_names=list(train.class_names))
    little = score_of(directory, 'TuneConfig.score_noise_multiplier = 8.0')
    assert abs(little - 0.93) < 0.04 + 5.0 * 8.0 / 360  # The noise is of 8 of 360 digits.
    loud = [score_of(directory, f'TuneConfig.score_noise_multiplier = {s}') for s in (80.0, 800.0)]
    # The same draw of noise at another scale.
    assert loud[1] - little == pytest.approx((800.0 - 8.0) / (80.0 - 8.0) * (loud[0] - little))
    np.savez(directory / 'samples.npz', images=images, labels=labels[::-1], class_names=list(train.class_names))
    shuffled = score_of(directory, 'TuneConfig.score_noise_multiplier = 8.0')
    assert shuffled < 0.3 + 5.0 * 8.0 / 360  # Control: of labels that mean nothing.


def test_score_by_samples_reads_no_held_out_image_and_costs_nothing(tmp_path, monkeypatch):
    def fail(unused_self):
        raise AssertionError('held-out private images were read')

    monkeypatch.setattr(best_of_runs.NumRuns, 'draw', lambda self, seed: 1)
    monkeypatch.setattr(datasets.PrivateData, 'held_out', property(fail))
    bindings = ["TuneConfig.score = 'samples'", 'TuneConfig.score_noise_multiplier = None']
    assert call(tmp_path / 'tuned', bindings=bindings) == command.DONE
    fields = json.loads((tmp_path / 'tuned' / 'privacy_statement.json').read_text())
    mechanisms = [part['mechanism'] for part in fields['releases'][0]['releases']]
    assert mechanisms == ['noisy_class_means', 'dp_sgd_step']
    assert 'which reads no private image' in ' '.join(
        (tmp_path / 'tuned' / 'privacy_statement.txt').read_text().split()
    )


@pytest.mark.usefixtures('three_runs')
@pytest.mark.parametrize('error', [divergence.DivergedError, warm_start.NothingChosenError])
def test_where_no_run_comes_to_an_end_nothing_is_left_and_all_is_paid(tmp_path, monkeypatch, capsys, error):
    def diverge(recipe, directory, **unused_options):
        (directory / 'checkpoints').mkdir()
        raise error('it diverged')

    monkeypatch.setattr(run_lib, 'train', diverge)
    monkeypatch.setattr(checkpoints, 'read_run', lambda unused_directory: None)
    budget_path, workdir = tmp_path / 'budget.json', tmp_path / 'tuned'
    budget_file.create(budget_path, budget_lib.Budget(7.0, 1e-4))
    for _ in range(2):
        assert call(workdir, f'--budget_file={budget_path}') == command.FAILED
        assert 'all runs diverged, or chose no public image: nothing is released' in error_of(capsys)
    (entry,) = budget_file.read(budget_path).entries
    assert entry.status == 'settled' and budget_file.read(budget_path).epsilon() > 5.9
    assert {path.name for path in (workdir / 'tuning').iterdir()} == {'choice.json', 'README.txt'}
    state = files.read_json(workdir / 'tuning' / 'choice.json')
    assert state['secret'] is state['num_judged'] is None


COSTS_DIFFER = [
    ('NUM_STEPS = 4', 'num_steps'),
    ('EXPECTED_BATCH_SIZE = 31', 'expected_batch_size'),
    ('TARGET_EPSILON = 5.0', 'target_epsilon'),
    ('TARGET_DELTA = 1e-5', 'target_delta'),
    ('DpSgdConfig.noise_multiplier = 20.0', 'what is released'),
    ("DpSgdConfig.neighboring_relation = 'add_or_remove_one'", 'neighboring_relation'),
    ("DpSgdConfig.noise_generator = 'shake256'", 'noise_generator'),
    ('ClassMeansConfig.noise_multiplier = 2.0', 'what is released'),
    ('train.warm_start = None', 'what is released'),
    ("train.budget_file = 'other.json'", 'the budget file'),
    ('DATA = @npz_images()', None),
]


@pytest.mark.parametrize('binding, differs', COSTS_DIFFER, ids=[binding for binding, _ in COSTS_DIFFER])
def test_candidate_that_costs_something_else_is_refused(tmp_path, capsys, binding, differs):
    candidate = [binding]
    if differs is None:
        images = np.random.default_rng(0).integers(0, 256, [400, 8, 8, 1]).astype(np.uint8)
        path = tmp_path / 'other.npz'
        np.savez(path, images=images, labels=np.arange(400) % 10, class_names=[str(i) for i in range(10)])
        candidate, differs = [binding, f"npz_images.path = '{path}'"], 'the private images'
    candidates = f'TuneConfig.candidates = ((), {tuple(candidate)!r})'
    assert call(tmp_path / 'tuned', '--dry_run', bindings=[candidates]) == command.WRONG_USE
    error = error_of(capsys)
    assert differs in error and 'all candidates must cost the same' in error


@pytest.mark.parametrize(
    'binding',
    [
        'DpSgdConfig.l2_norm_clip = 0.5',
        "DpSgdConfig.clipping = 'per_layer'",
        'ClassMeansConfig.l2_norm_clip = 2.0',
        'AUGMENTATION_MULTIPLICITY = 1',
        'PretrainingConfig.num_steps = 2',
        "FinetuningConfig.trainable = ('norm',)",
        'SamplerConfig.num_steps = 2',
    ],
)
def test_candidate_that_costs_the_same_is_let_in(tmp_path, binding):
    assert call(tmp_path / 'tuned', '--dry_run', bindings=[f'TuneConfig.candidates = ((), ({binding!r},))']) == 0


@pytest.mark.parametrize('part', ['digits', 'digits held out'])
def test_images_that_differ_in_pixels_alone_are_told_apart(tmp_path, monkeypatch, capsys, part):
    """Of two sets of one size and name: plans do not differ, fingerprints do."""
    fingerprint, asked = datasets.ImageDataset.fingerprint, []

    def other(self):
        asked.append(self)
        return f'{fingerprint(self)}{len(asked) if self.name == part else ""}'

    monkeypatch.setattr(datasets.ImageDataset, 'fingerprint', other)
    assert call(tmp_path / 'tuned') == command.WRONG_USE
    assert 'has other private images' in error_of(capsys) and not (tmp_path / 'tuned' / 'tuning').exists()


def test_score_on_images_without_owners_does_not_stand_for_owners(tmp_path):
    prepared = prepared_of(tmp_path / 'unused')
    part = prepared.data.held_out
    tune_lib._check_data(prepared, say=print)  # Control.
    prepared.data._parts['held_out'] = dataclasses.replace(part, unit='one scan', owners=np.arange(len(part)))
    with pytest.raises(ValueError, match="would protect no more than 'one scan'"):
        tune_lib._check_data(prepared, say=print)


@pytest.mark.parametrize(
    'bindings, message',
    [
        (['TuneConfig.candidates = ((),)'], 'at least two'),
        (['TuneConfig.candidates = ((), ())'], 'all different'),
        (["TuneConfig.candidates = ((), ('NUM_STEP = 3',))"], "the candidate 'NUM_STEP = 3'"),
        (["TuneConfig.candidates = ((), ('SelectionConfig.num_seeds = 3',))"], 'not used'),
        (["TuneConfig.candidates = ('a', 'b')"], 'TuneConfig.candidates wants'),
        (['TuneConfig.mean_num_runs = 1.0'], 'mean of the number of runs'),
        (['TuneConfig.eta = -0.5'], 'eta of the number of runs'),
        (["TuneConfig.score = 'training'"], 'score of TuneConfig'),
        (["TuneConfig.score = 'samples'"], 'score_noise_multiplier'),
        (['TuneConfig.score_noise_multiplier = None'], 'score_noise_multiplier'),
        (['TuneConfig.score_noise_multiplier = 0.0'], 'noise multiplier of the score'),
        (['TuneConfig.score_noise_multiplier = 0.01'], 'cannot be met'),
        (['DpSgdConfig.noise_multiplier = 0.0', 'DpSgdConfig.target_epsilon = None'], 'has a guarantee'),
        (['select.selection = None'], 'bin/tune does not read it'),
    ],
)
def test_wrong_choices_are_one_clear_line(tmp_path, capsys, bindings, message):
    assert call(tmp_path / 'tuned', bindings=bindings) == command.WRONG_USE
    assert message in error_of(capsys)
    assert not (tmp_path / 'tuned' / 'tuning').exists()


def test_folder_that_is_not_empty_is_refused(tmp_path, capsys):
    (tmp_path / 'samples.npz').write_text('mine')
    assert call(tmp_path) == command.WRONG_USE
    assert 'is not empty' in error_of(capsys) and (tmp_path / 'samples.npz').read_text() == 'mine'


def test_total_is_said_before_anything_is_spent(tmp_path, capsys):
    budget_path = tmp_path / 'budget.json'
    budget_file.create(budget_path, budget_lib.Budget(7.0, 1e-4))
    before = budget_path.read_text()
    assert call(tmp_path / 'tuned', '--dry_run', f'--budget_file={budget_path}') == command.DONE
    said = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    for words in (
        'of all runs and of the choice',
        'were it the only one',
        '3 on average',
        'at most 8 in 95%',
        *PHRASES,
    ):
        assert words in said, words
    assert not (tmp_path / 'tuned').exists() and budget_path.read_text() == before
    budget_file.create(tmp_path / 'small.json', budget_lib.Budget(5.0, 1e-4))
    for flags in (('--dry_run',), ()):
        small = f'--budget_file={tmp_path / "small.json"}'
        assert call(tmp_path / 'tuned', small, *flags) == command.WRONG_USE
        assert 'the privacy budget would be passed' in error_of(capsys)
    assert not (tmp_path / 'tuned' / 'tuning').exists()


TUNING = best_of_runs.Tuning(best_of_runs.NumRuns(3.0), ('a', 'b'), 'any', None)


def begin(directory):
    directory.mkdir(parents=True, exist_ok=True)
    return tune_lib._Choice.resume_or_begin(directory / 'tuning', {'any': 1}, TUNING)


def play(directory, scores, trained=None):
    """Plays a choice in which runs are files, from wherever it stands, to its end; notes which runs are made anew."""
    choice = begin(directory)
    while choice.phase == 'running':
        choice.tidy()
        if choice.is_over:
            choice.end()
            continue
        number = choice._state['num_judged']
        if trained is not None and not (directory / 'tuning' / 'run' / 'two').exists():
            trained.append(number)
        (directory / 'tuning' / 'run').mkdir(exist_ok=True)
        (directory / 'tuning' / 'run' / 'one').write_text(str(number))
        (directory / 'tuning' / 'run' / 'two').write_text(str(number))
        choice.judge(scores[number])
    choice.hand_over(directory)


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.usefixtures('three_runs')
@pytest.mark.parametrize('scores, best', [([1.0, 2.0, 0.0], '1'), ([2.0, 1.0, 3.0], '2'), ([0.5, -np.inf, 0.1], '0')])
def test_killed_at_any_change_of_a_file_it_goes_on(tmp_path, monkeypatch, scores, best):
    names = [(os, 'rename'), (os, 'replace'), (os, 'unlink'), (os, 'rmdir')]
    real = {name: getattr(module, name) for module, name in names}
    for after in range(200):
        directory, left, is_killed, trained = tmp_path / str(after), [after], False, []

        def guarded(name, left=left):
            def change(*arguments, **options):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return real[name](*arguments, **options)

            return change

        with pytest.MonkeyPatch.context() as patch:
            for module, name in names:
                patch.setattr(module, name, guarded(name))
            try:
                play(directory, scores, trained)
            except Killed:
                is_killed = True
        if (directory / 'tuning' / 'choice.json').exists():
            assert is_killed
            play(directory, scores, trained)
        assert len(set(trained)) == len(trained)  # A run that is made again has other draws, and another score.
        # It was killed before its secret was on disk, or when all was done; what it then finds it tidies up.
        assert not tune_lib._is_made(directory) and not (directory / 'tuning').exists()
        done = sorted(path.name for path in directory.iterdir() if not path.name.startswith('.'))
        assert done in ([], ['one', 'two']) and (done or after < 10)
        assert {(directory / name).read_text() for name in done} <= {best}
        if not is_killed:
            break
    assert 20 < after < 199


@pytest.mark.usefixtures('three_runs')
def test_of_equal_scores_each_is_as_likely_to_be_the_best(tmp_path):
    counts = np.zeros(3)
    for number in range(120):
        directory = tmp_path / str(number)
        play(directory, [0.5, 0.5, 0.5])
        counts[int((directory / 'one').read_text())] += 1
    assert np.all(np.abs(counts - 40.0) < 5.0 * np.sqrt(120 * 1 / 3 * 2 / 3))
    # Control: were the first one taken always, this would be noticed.
    assert not np.all(np.abs(np.array([120.0, 0.0, 0.0]) - 40.0) < 5.0 * np.sqrt(120 * 1 / 3 * 2 / 3))


def test_score_that_is_no_number_orders_nothing(tmp_path):
    choice = begin(tmp_path)
    with pytest.raises(ValueError, match='no number'):
        choice.judge(float('nan'))
