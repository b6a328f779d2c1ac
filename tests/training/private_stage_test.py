"""Tests of what surrounds the private step: whom it is given, by which secret, how often, and what comes out of it."""

import dataclasses

import numpy as np
import pytest

from tests import fake_workers
from tests.training import trainer_test as toy
from tests.training.stops import NEVER
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import train_step

pytestmark = pytest.mark.usefixtures('small_network')
PLAN = plan_lib.make_plan(toy.PRIVACY, 20)
SECRETS = [seeds.PrivateSeed(bytes(range(start, start + 32))) for start in (0, 100)]


def make_trainer(workdir, **changes):
    """A run of its private stage alone."""
    return toy.make_trainer(workdir, **{'plan': PLAN, 'pretraining': None, 'warm_start': None, **changes})


@pytest.fixture(name='given')
def fixture_given(monkeypatch):
    """The batches that steps are given, which compute nothing."""
    batches = []

    def make_recorder(*unused_arguments, **unused_options):

        def record(batch, unused_step):
            batches.append(batch)
            return {'loss_sum': 1.0}

        return record

    monkeypatch.setattr(train_step, 'compile_private_step', make_recorder)
    return batches


def batches_of(workdir, given, monkeypatch, secret, **changes):
    """Returns the images and units of each step of a run with a secret."""
    del given[:]
    monkeypatch.setattr(seeds.PrivateSeed, 'from_os_entropy', lambda: secret)
    make_trainer(workdir, **changes).run(NEVER)
    return [[array.tolist() for array in (images, units[units >= 0])] for ((images, _, units),) in given]


def test_units_of_each_step_are_drawn_by_the_secret_of_the_run(tmp_path, given, monkeypatch):
    first, other = (batches_of(tmp_path / str(number), given, monkeypatch, SECRETS[number]) for number in (0, 1))
    assert len(first) == len(other) == 3
    for step, ((_, ours), (_, theirs)) in enumerate(zip(first, other)):
        # Who knows which units take part has no use for the noise that hides it.
        assert ours != theirs
        for units, secret in ((ours, SECRETS[0]), (theirs, SECRETS[1])):
            assert units == PLAN.sampler.sample(20, seed=secret.derive('sampling'), step=step).tolist()


def test_images_of_an_owner_are_picked_by_the_secret_of_the_run(tmp_path, given, monkeypatch):
    images = toy.make_dataset()
    owned = dataclasses.replace(images, owners=np.arange(20) % 2, unit='one patient')
    everybody = dataclasses.replace(toy.PRIVACY, expected_batch_size=2)
    changes = {'private': owned, 'plan': plan_lib.make_plan(everybody, 2)}
    first, again, other = (
        batches_of(tmp_path / name, given, monkeypatch, SECRETS[number], **changes)
        for name, number in (('first', 0), ('again', 0), ('other', 1))
    )
    assert first == again and all(ours[1] == theirs[1] == [0, 1] for ours, theirs in zip(first, other))
    assert all(ours[0] != theirs[0] for ours, theirs in zip(first, other))


def test_no_step_is_computed_beyond_the_plan(tmp_path, given):
    trainer = make_trainer(tmp_path)
    trainer.run(NEVER)
    assert len(given) == 3
    with pytest.raises(accounting.BudgetError, match='all 3 planned steps have been run'):
        trainer._stages[-1].run_step(3)
    assert len(given) == 3 and trainer.state.ledger == trainer.plan.planned_ledger()


def test_secret_and_name_of_a_run_are_on_disk_before_its_first_step(tmp_path):
    begun = make_trainer(tmp_path)
    resumed = make_trainer(tmp_path)  # As after a kill: the draws of lost steps must be the same.
    assert resumed.resumed
    assert resumed.state.private_seed.reveal() == begun.state.private_seed.reveal()
    assert resumed.state.run_id == begun.state.run_id
    # Control: another run has another secret, and another name.
    other = make_trainer(tmp_path / 'other')
    assert other.state.private_seed.reveal() != begun.state.private_seed.reveal()
    assert other.state.run_id != begun.state.run_id


def test_name_of_a_run_does_not_follow_from_its_secret(monkeypatch):
    first, again = (checkpoints.RunState(SECRETS[0]) for _ in range(2))
    assert first.run_id != again.run_id


def begin(workdir, workers, configuration=None):
    """Returns the secret and the name of a private run, as one of its workers has them."""
    state = checkpoints.resume_or_begin(
        workdir / checkpoints.FOLDER, configuration or {}, is_private=True, workers=workers
    )
    return state.private_seed.reveal(), state.run_id


@pytest.mark.parametrize('count', [2, 3])
def test_all_workers_hold_one_secret(tmp_path, count):
    assert len(set(fake_workers.play(lambda workers: begin(tmp_path / 'together', workers), count))) == 1
    # Control: runs of one worker each.
    assert len({begin(tmp_path / str(number), workers_lib.ALONE) for number in range(2)}) == 2


def test_workers_of_other_data_or_another_plan_do_not_begin_together(tmp_path):
    for error in fake_workers.play(lambda workers: begin(tmp_path, workers, {'data_fingerprint': workers.index})):
        assert isinstance(error, workers_lib.WorkersDisagreeError)
        assert 'worker 1 and worker 0 differ in the configuration or the data' in str(error)
    # Control: of the same data they do.
    assert len(set(fake_workers.play(lambda workers: begin(tmp_path, workers, {'data_fingerprint': 0})))) == 1


def test_what_is_released_is_the_moving_average_and_not_the_last_weights(tmp_path):
    trainer = make_trainer(tmp_path)
    stage, expected, seen = trainer._stages[-1], trainer.model.get_weights(), []
    run_step = stage.run_step

    def run_and_average(step):
        scalars = run_step(step)
        decay = min(0.99, (1 + step) / (10 + step))
        seen.append(trainer.model.get_weights())
        expected[:] = [decay * old + (1.0 - decay) * new for old, new in zip(expected, seen[-1])]
        return scalars

    stage.run_step = run_and_average
    trainer.run(NEVER)
    saved = trainer.released_model()
    checkpoints.load_average(tmp_path / 'checkpoints', saved)
    for found in (trainer.released_model().get_weights(), saved.get_weights(), trainer.average.get_weights()):
        for ours, theirs in zip(found, expected):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    # Control: the last weights, and those of any step, are not the average.
    for weights in seen:
        assert max(np.abs(ours - theirs).max() for ours, theirs in zip(weights, expected)) > 1e-3
