"""Tests that noisy class means are released once in the life of a run, kept, and the same at all workers."""

import dataclasses
import io

import numpy as np
import pytest

from tests import fake_workers
from tests.training import trainer_test as toy
from tests.training.stops import NEVER
from tests.training.stops import run_with_stops
from tests.training.stops import StopAfter
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import interruption
from tf_dpdiff.training import warm_start as warm_start_lib

pytestmark = pytest.mark.usefixtures('small_network')
MECHANISM = 'noisy_class_means'


@pytest.fixture(name='releases', autouse=True)
def fixture_releases(monkeypatch):
    """A list with what was released each time."""
    return toy.record_releases(monkeypatch, class_means.ClassMeansConfig)


def make_trainer(workdir, **changes):
    """A run without a public stage, and without the steps of the others, of which a release knows nothing."""
    return toy.without_steps(toy.make_trainer(workdir, pretraining=None, **changes))


def assert_same(first, second):
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.counts, second.counts)


def test_resumed_run_reads_the_means_and_never_releases_again(tmp_path, releases):
    said = []
    trainer = run_with_stops(lambda: make_trainer(tmp_path, on_release=said.append))
    assert len(said) == 2 and len(releases) == 1  # It went on within the warm start.
    for means in said:
        assert_same(means, releases[0])
    assert trainer.state.ledger == trainer.plan.planned_ledger()


def test_run_that_was_killed_before_the_ledger_was_saved_reads_the_means(tmp_path, releases, monkeypatch):

    def killed(*unused_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(plan_lib.DpSgdPlan, 'record_release', killed)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(tmp_path).run(NEVER)
    resumed = make_trainer(tmp_path)
    assert not resumed.state.ledger.count(MECHANISM)
    resumed.run(NEVER)
    assert len(releases) == 1 and resumed.state.ledger.count(MECHANISM) == 1


def test_nothing_is_made_from_the_means_before_file_and_ledger_hold_them(tmp_path, monkeypatch):

    def look(*unused_arguments, **unused_options):
        assert (tmp_path / warm_start_lib.MEANS_FILE).exists()
        assert make_trainer(tmp_path).state.ledger.count(MECHANISM) == 1  # As the checkpoint has it.
        raise KeyboardInterrupt

    monkeypatch.setattr(warm_start_lib, 'images_from_class_means', look)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path).run(NEVER)


def test_run_whose_means_are_missing_or_damaged_is_refused(tmp_path, releases):
    with pytest.raises(interruption.Interrupted):
        make_trainer(tmp_path).run(StopAfter(0))
    path = tmp_path / warm_start_lib.MEANS_FILE
    whole = path.read_bytes()
    path.unlink()
    resumed = make_trainer(tmp_path)  # Reads the file each time that it is to run.
    with pytest.raises(FileNotFoundError, match='must not be made again. Put the file back from a copy'):
        resumed.run(NEVER)
    with np.load(io.BytesIO(whole)) as arrays:
        fields = dict(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **{**fields, 'images': fields['images'][:, :, :2]})
    for broken in (whole[:-30], b'', buffer.getvalue()):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match='is not as it was written'):
            resumed.run(NEVER)
    buffer = io.BytesIO()
    np.savez(buffer, **{**fields, 'run_id': 'another'})
    path.write_bytes(buffer.getvalue())
    with pytest.raises(FileNotFoundError, match='the noisy class means of this run'):
        resumed.run(NEVER)
    path.write_bytes(whole)  # Control.
    resumed.run(NEVER)
    assert len(releases) == 1 and resumed.is_done


def test_owners_are_counted_once(tmp_path, monkeypatch):
    vectors, exact_vector = [], class_means.ClassMeansConfig.exact_vector

    def recorded(self, *arguments):
        vectors.append(exact_vector(self, *arguments))
        return vectors[-1]

    monkeypatch.setattr(class_means.ClassMeansConfig, 'exact_vector', recorded)
    owned = dataclasses.replace(toy.make_dataset(), owners=np.arange(20) % 5, unit='one patient')
    plan = plan_lib.make_plan(
        dataclasses.replace(toy.PRIVACY, expected_batch_size=3), 5, class_means.ClassMeansConfig(3.0, 2.0)
    )
    for private, arguments, num_units in ((owned, {'plan': plan}, 5), (toy.make_dataset(), {}, 20)):  # And a control.
        with pytest.raises(interruption.Interrupted):
            make_trainer(tmp_path / str(num_units), private=private, **arguments).run(StopAfter(0))
        assert vectors[-1][..., -1].sum() == pytest.approx(num_units)


def test_all_workers_train_on_what_the_first_one_released(tmp_path, releases):
    config = class_means.ClassMeansConfig(3.0, 2.0)
    plan = plan_lib.make_plan(toy.PRIVACY, 20, config)

    def release(workers):
        # Of a worker that would find other sums, and so other means.
        private = toy.make_dataset(seed=workers.index)
        state = checkpoints.RunState(seeds.PrivateSeed(bytes(32)))
        means = warm_start_lib.release_class_means(
            config, plan, private, state, workdir=tmp_path, save=lambda: None, workers=workers
        )
        return means, state.ledger

    found = fake_workers.play(release, 3)
    assert len(releases) == 1
    for means, ledger in found:
        assert_same(means, releases[0])
        assert ledger == plan.planned_ledger(0)
