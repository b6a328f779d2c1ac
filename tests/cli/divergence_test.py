"""Tests that no verb makes anything of a run that has diverged, and that what it has spent is written down."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.cli import sampling
from tests.cli import verbs
from tf_dpdiff.cli import account
from tf_dpdiff.cli import audit
from tf_dpdiff.cli import command
from tf_dpdiff.cli import evaluate
from tf_dpdiff.cli import export
from tf_dpdiff.cli import sample
from tf_dpdiff.cli import select
from tf_dpdiff.cli import train
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import budget as budget_file
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import release
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import divergence

TINY = pathlib.Path(__file__).with_name('tiny_digits.gin')
HUGE = '{}/OptimizationConfig.learning_rate = 1e30'
RELEASED = ('samples.npz', 'samples.png', 'saved_model', 'report.html', 'pretrained')


@pytest.fixture(name='budget')
def fixture_budget(tmp_path):
    """A budget that no run was charged to yet."""
    path = tmp_path / 'budget.json'
    budget_file.create(path, budget_lib.Budget(30.0, 1e-4))
    return path


def run(workdir, capsys, *bindings, budget=None):
    """Calls bin/train; returns its exit code and the last line that it said."""
    flags = [f'--gin_file={TINY}', f'--workdir={workdir}', '--gin_param=train.utility = None']
    flags += [f'--budget_file={budget}'] if budget else []
    code = verbs.call(train, *flags, *(f'--gin_param={binding}' for binding in bindings))
    lines = capsys.readouterr().err.strip().splitlines()
    assert not [line for line in lines if 'Traceback' in line]
    return code, lines[-1]


@pytest.mark.usefixtures('small_network')
def test_run_whose_public_stage_diverges_costs_nothing_and_leaves_nothing(tmp_path, capsys, budget):
    before, workdir = json.loads(budget.read_text()), tmp_path / 'run'
    code, line = run(workdir, capsys, HUGE.format('public'), budget=budget)
    assert code == command.FAILED and line.startswith('train: error: pretraining diverged by step ')
    assert 'no privacy is spent' in line and 'learning_rate' in line
    assert json.loads(budget.read_text()) == before
    assert not [
        name for name in (*RELEASED, 'privacy_statement.txt', 'noisy_class_means.npz') if (workdir / name).exists()
    ]


@pytest.mark.usefixtures('small_network')
@pytest.mark.parametrize(
    'stage, mechanisms', [('warm_start', ['noisy_class_means']), ('finetuning', ['noisy_class_means', 'dp_sgd_step'])]
)
def test_run_whose_later_stage_diverges_is_charged_for_what_it_released_and_is_over(
    tmp_path, capsys, budget, stage, mechanisms
):
    workdir = tmp_path / 'run'
    bindings = (
        HUGE.format(stage),
        'finetuning/OptimizationConfig.warmup_steps = 0',
        'train.pretraining = None',
        'FinetuningConfig.trainable = ()',
    )
    code, line = run(workdir, capsys, *bindings, budget=budget)
    assert code == command.FAILED and line.startswith(f'train: error: {stage} diverged by step ')
    statement = json.loads((workdir / 'privacy_statement.json').read_text())
    assert [(release['mechanism'], release['count']) for release in statement['releases']] == [
        (mechanism, 1) for mechanism in mechanisms
    ]
    assert f'epsilon = {rounding.round_up(statement["epsilon"])} at delta = 0.0001, and stays spent' in line
    (entry,) = budget_file.read(budget).entries
    assert entry.status == 'settled' and json.loads(entry.ledger.to_json()) == statement['releases']
    assert not [name for name in RELEASED if (workdir / name).exists()]
    found = checkpoints.read_run(workdir / 'checkpoints')
    assert found.has_diverged and found.ledger == entry.ledger
    # The same command does not go on, and says why.
    charged = budget.read_text()
    code, line = run(workdir, capsys, *bindings, budget=budget)
    assert code == command.WRONG_USE and 'has diverged, and is over' in line and budget.read_text() == charged
    # A budget that it was not charged to can still be told of it.
    other = tmp_path / 'other.json'
    budget_file.create(other, budget_lib.Budget(30.0, 1e-4))
    assert verbs.call(account, f'--budget_file={other}', f'--workdir={workdir}') == command.DONE
    assert budget_file.read(other).entries[0].ledger == entry.ledger
    check_nothing_is_made_of(workdir, capsys)


def check_nothing_is_made_of(workdir, capsys):
    """Calls every verb that takes a run: each says in one line that it has diverged."""
    before = {path for path in workdir.rglob('*') if path.name != '.lock'}
    capsys.readouterr()
    place, configured = f'--workdir={workdir}', (f'--gin_file={TINY}', f'--workdir={workdir}')
    for verb, flags in (
        (sample, (place,)),
        (sample, (place, '--num_steps=2')),  # From its checkpoint.
        (export, (place, f'--output={workdir / "exported"}')),
        (evaluate, configured),
        (select, ('--gin_file=gin/select_digits.gin', place, '--synthetic_only')),
        (audit, ('--gin_file=gin/audit_digits.gin', place, '--membership')),
    ):
        assert verbs.call(verb, *flags) == command.WRONG_USE
        line = capsys.readouterr().err.strip()
        assert f'the run in {workdir} has diverged, and left neither a model nor samples' in line and '\n' not in line
    assert {path for path in workdir.rglob('*') if path.name != '.lock'} == before


@pytest.mark.usefixtures('small_network')
def test_trained_run_that_cannot_be_sampled_leaves_its_statement_and_nothing_else(
    tmp_path, capsys, budget, monkeypatch
):

    def refuse(*unused_arguments, **unused_options):
        raise divergence.DivergedError('nothing can be sampled')

    workdir, bindings = tmp_path / 'run', ('train.pretraining = None', 'train.warm_start = None')
    with monkeypatch.context() as patched:
        patched.setattr(release, 'draw', refuse)
        code, line = run(workdir, capsys, *bindings, budget=budget)
    assert (code, line) == (command.FAILED, 'train: error: nothing can be sampled')
    statement = json.loads((workdir / 'privacy_statement.json').read_text())
    (entry,) = budget_file.read(budget).entries
    assert entry.status == 'settled' and statement['steps_run'] == 3
    assert not [name for name in RELEASED if (workdir / name).exists()]
    # Control: where it can be sampled, the same command goes on from there.
    assert run(workdir, capsys, *bindings, budget=budget)[0] == command.DONE
    assert (workdir / 'samples.npz').exists() and budget_file.read(budget).entries == (entry,)


@pytest.mark.usefixtures('small_network')
def test_public_run_that_diverges_leaves_no_checkpoint_to_start_from(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, [300, 28, 28, 1]).astype(np.uint8)
    np.savez(tmp_path / 'public.npz', images=images, labels=np.arange(300) % 2)
    bindings = (
        'OptimizationConfig.learning_rate = 1e30',
        'PUBLIC_DATA = @npz_images()',
        'PRETRAINING_STEPS = 5',
        f'npz_images.path = "{tmp_path / "public.npz"}"',
        'PRETRAINING_BATCH_SIZE = 4',
    )
    flags = ['--gin_file=gin/grey28.gin', *(f'--gin_param={binding}' for binding in bindings)]
    assert verbs.call(train, *flags, f'--workdir={tmp_path / "run"}') == command.FAILED
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('train: error: pretraining diverged by step ') and 'No private image was read' in line
    assert not [name for name in RELEASED if (tmp_path / 'run' / name).exists()]


@pytest.fixture(name='overflowing_run')
def fixture_overflowing_run(toy_run, tmp_path):
    """A finished run whose averaged weights are finite, and so large that what they predict is not."""
    workdir = pathlib.Path(shutil.copytree(toy_run, tmp_path / 'run'))
    described, found = folder_lib.read_model(workdir), checkpoints.read_run(workdir / 'checkpoints')
    model = denoiser.build(described.network, described.image_shape, len(described.class_names))
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, 3e38))
    record = checkpoints.RunState(sampling.seeds.PrivateSeed.from_os_entropy())
    record.run_id, record.ledger = found.run_id, found.ledger
    checkpoints.RunCheckpoint(workdir / 'checkpoints', {'data_fingerprint': 'toys'}, average=model).save(record)
    return workdir


def test_weights_that_predict_no_numbers_are_neither_sampled_nor_exported(overflowing_run, tmp_path, capsys):
    flags = sampling.flags_of(overflowing_run, tmp_path / 'set', num_steps=2)
    for verb, given in ((sample, flags), (export, [f'--workdir={overflowing_run}', f'--output={tmp_path / "model"}'])):
        assert verbs.call(verb, *given) == command.FAILED
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert 'are not finite: its training has diverged, and there is nothing to release' in line
    assert not (tmp_path / 'set').exists() and not list((tmp_path).glob('model/*'))
