"""Tests of the warm start on public images: votes are drawn, kept and counted once, and lead to what is trained on."""

import dataclasses
import json

import numpy as np
import pytest

from tests import fake_workers
from tests.training import trainer_test as toy
from tests.training.stops import NEVER
from tests.training.stops import StopAfter
from tf_dpdiff.data import datasets
from tf_dpdiff.data import public as public_lib
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import public_classes
from tf_dpdiff.training import interruption
from tf_dpdiff.training import public_classifier
from tf_dpdiff.training import stages
from tf_dpdiff.training import strategies
from tf_dpdiff.training import warm_start as warm_start_lib

pytestmark = pytest.mark.usefixtures('small_network')
RELEASE = public_classes.PublicClassesConfig(noise_multiplier=0.5, classes_per_class=2)
MECHANISM = 'noisy_public_class_votes'
QUICK = public_classifier.PublicClassifierConfig(num_epochs=10, batch_size=16, learning_rate=1e-2)
GREYS = (20, 60, 100, 140, 180, 220, 250)  # Of the public classes.


def make_images(greys, count, seed, name, class_names):
    """Returns images of as many classes as there are greys, told apart by them; private ones also by a dark corner."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(count) % len(greys)).astype(np.int32)
    images = np.array(greys)[labels][:, None, None, None] + generator.integers(-5, 6, [count, 8, 8, 1])
    return datasets.ImageDataset(name, images.astype(np.uint8), labels, class_names)


PUBLIC = make_images(GREYS, 140, 0, 'greys', tuple(f'grey {grey}' for grey in GREYS))
PRIVATE = make_images((220, 20, 140), 60, 1, 'toy', ('light', 'dark', 'middle'))
WARM_START = stages.WarmStartConfig(RELEASE, None, 2, 4, toy.OPTIMIZATION, public=PUBLIC, classifier=QUICK)


def make_trainer(workdir, private=PRIVATE, warm_start=WARM_START, **changes):
    plan = plan_lib.make_plan(toy.PRIVACY, private.num_units, warm_start.release)
    arguments = {'pretraining': None, 'plan': plan, **changes}
    return toy.make_trainer(workdir, private, warm_start=warm_start, **arguments)


def read_votes(workdir):
    return json.loads((workdir / warm_start_lib.VOTES_FILE).read_text())


@pytest.fixture(name='votes_are_counted')
def fixture_votes_are_counted(monkeypatch):
    """A list with the votes of each time that they are asked for; from the second time on they are others."""
    asked, vote = [], public_classifier.vote

    def counted(model, images_uint8):
        asked.append((vote(model, images_uint8) + len(asked)) % len(GREYS))
        return asked[-1]

    monkeypatch.setattr(public_classifier, 'vote', counted)
    return asked


@pytest.fixture(name='unbroken', scope='module')
def fixture_unbroken(tmp_path_factory, small_network):
    """A whole run: its folder, its trainer, and what it said was chosen."""
    del small_network
    workdir, said = tmp_path_factory.mktemp('unbroken'), []
    trainer = make_trainer(workdir, on_release=said.append)
    trainer.run(NEVER)
    return workdir, trainer, said


def test_classes_that_look_alike_are_chosen_and_the_ledger_counts_the_release_once(unbroken):
    workdir, trainer, (chosen,) = unbroken
    assert [(name, public_names[0]) for name, public_names in chosen.names] == [('light', 'grey 220'),
                                                                                ('dark', 'grey 20'),
                                                                                ('middle', 'grey 140')]
    assert trainer.state.ledger.count(MECHANISM) == 1
    assert trainer.state.ledger == trainer._plan.planned_ledger()
    found = read_votes(workdir)
    assert [entry['private_class'] for entry in found['chosen']] == ['light', 'dark', 'middle']
    assert found['chosen'][0]['public_classes'] == list(chosen.names[0][1])
    assert found['public_classes'] == list(PUBLIC.class_names)
    # 20 images of each class, and noise of 0.5.
    expected = np.zeros([3, 7])
    expected[[0, 1, 2], [5, 0, 3]] = 20.0
    noise = np.array(found['noisy_votes']) - expected
    assert 0.2 < noise.std() < 0.9 and (noise != 0.0).all()


def test_statement_names_the_release_and_the_public_images(unbroken):
    statement = unbroken[1].statement()
    assert statement.public_data == ("140 images of 'greys'",)
    text = statement.to_text()
    assert 'noisy public class votes, once: all units, noise multiplier 0.5' in text
    assert "the public images it was trained on before: 140 images of 'greys'" in text


def test_images_of_the_chosen_classes_are_trained_on_under_private_labels():
    chosen = warm_start_lib.ChosenClasses(((5, 6), (0,), (3,)), ())
    images = warm_start_lib.images_of_chosen_classes(PUBLIC, chosen, PRIVATE.class_names)
    assert images.class_names == PRIVATE.class_names and len(images) == 80
    np.testing.assert_array_equal(np.bincount(images.labels), [40, 20, 20])
    for label, greys in ((0, (220, 250)), (1, (20,)), (2, (140,))):
        means = images.images_uint8[images.labels == label].mean((1, 2, 3))
        assert all(min(abs(mean - grey) for grey in greys) < 6 for mean in means)


def test_resumed_run_reads_the_votes_and_never_votes_again(tmp_path, votes_are_counted):
    said, written = [], []
    while True:
        trainer = make_trainer(tmp_path, on_release=said.append)
        try:
            trainer.run(StopAfter(1))
            break
        except interruption.Interrupted:
            written.append((tmp_path / warm_start_lib.VOTES_FILE).read_bytes())
    assert len(said) == 2 and said[0] == said[1]  # It went on within the warm start.
    assert len(votes_are_counted) == 1 and len(set(written)) == 1
    assert trainer.state.ledger == trainer._plan.planned_ledger()


def test_run_that_was_killed_before_the_ledger_was_saved_reads_the_votes(tmp_path, votes_are_counted, monkeypatch):

    def killed(*unused_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(plan_lib.DpSgdPlan, 'record_warm_start_release', killed)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(tmp_path).run(NEVER)
    before = read_votes(tmp_path)
    resumed = make_trainer(tmp_path)
    assert not resumed.state.ledger.count(MECHANISM)
    resumed.run(NEVER)
    assert read_votes(tmp_path) == before and len(votes_are_counted) == 1
    assert resumed.state.ledger.count(MECHANISM) == 1


def test_nothing_is_made_from_the_votes_before_file_and_ledger_hold_them(tmp_path, monkeypatch):

    def look(*unused_arguments):
        assert read_votes(tmp_path)['run_id'] == trainer.state.run_id
        assert make_trainer(tmp_path).state.ledger.count(MECHANISM) == 1  # As the checkpoint has it.
        raise KeyboardInterrupt

    monkeypatch.setattr(warm_start_lib, 'images_of_chosen_classes', look)
    trainer = make_trainer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(NEVER)


def stop_in_the_warm_start(workdir):
    with pytest.raises(interruption.Interrupted):
        make_trainer(workdir).run(StopAfter(0))
    return workdir / warm_start_lib.VOTES_FILE


def test_run_whose_votes_are_missing_or_damaged_is_refused(tmp_path, votes_are_counted):
    path = stop_in_the_warm_start(tmp_path)
    whole = path.read_text()
    path.unlink()
    with pytest.raises(FileNotFoundError, match='must not be made again. Put the file back from a copy'):
        make_trainer(tmp_path).run(NEVER)
    fields = json.loads(whole)
    for broken in (whole[:-30], '{}', json.dumps({**fields, 'noisy_votes': [[1.0]]}),
                   json.dumps({**fields, 'noisy_votes': [[None] * 7] * 3})):  # yapf: disable
        path.write_text(broken)
        with pytest.raises(ValueError, match='is not as it was written'):
            make_trainer(tmp_path).run(NEVER)
    path.write_text(json.dumps({**fields, 'run_id': 'another'}))
    with pytest.raises(FileNotFoundError, match='the noisy votes of this run'):
        make_trainer(tmp_path).run(NEVER)
    path.write_text(whole)  # Control.
    make_trainer(tmp_path).run(NEVER)
    assert len(votes_are_counted) == 1


def test_votes_of_another_run_are_not_taken_for_those_of_this_one(tmp_path, unbroken):
    other = read_votes(unbroken[0])
    (tmp_path / warm_start_lib.VOTES_FILE).write_text(json.dumps(other))
    trainer = make_trainer(tmp_path)
    trainer.run(NEVER)
    found = read_votes(tmp_path)
    assert found['run_id'] == trainer.state.run_id != other['run_id']
    assert not np.isclose(found['noisy_votes'], other['noisy_votes']).any()  # A secret of its own.


def test_owners_vote_together(tmp_path):
    owned = dataclasses.replace(PRIVATE, owners=np.arange(60) % 15, unit='one patient')
    trainer = make_trainer(tmp_path, owned)
    trainer.run(NEVER)
    assert np.sum(read_votes(tmp_path)['noisy_votes']) == pytest.approx(15, abs=5 * 0.5 * 21**0.5)
    assert trainer.state.ledger == trainer._plan.planned_ledger()


def test_vote_of_an_image_does_not_depend_on_the_others():
    model = public_classifier.train(QUICK, PUBLIC)
    images = make_images(range(10, 250, 3), 600, 2, 'more greys', tuple(map(str, range(80)))).images_uint8
    votes = public_classifier.vote(model, images)
    assert len(np.unique(votes)) >= 5
    for rows in (slice(17, None), slice(None, 300), slice(5, 6)):
        np.testing.assert_array_equal(public_classifier.vote(model, images[rows]), votes[rows])


def test_classifier_learns_and_is_repeated_by_its_public_seed():
    first, again = (public_classifier.train(QUICK, PUBLIC) for _ in range(2))
    for ours, theirs in zip(first.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    assert np.mean(public_classifier.vote(first, PUBLIC.images_uint8) == PUBLIC.labels) > 0.9


def test_public_classes_without_images_cannot_be_chosen():
    padded = dataclasses.replace(PUBLIC, labels=PUBLIC.labels + 1, class_names=('none', *PUBLIC.class_names, 'none'))
    kept = warm_start_lib.with_classes_that_have_images(padded)
    assert kept.class_names == PUBLIC.class_names
    np.testing.assert_array_equal(kept.labels, PUBLIC.labels)


@pytest.mark.parametrize('changes, message', [
    ({'public': None}, 'public of WarmStartConfig is needed where release is a PublicClassesConfig'),
    ({'public': 'greys'}, 'public of WarmStartConfig is a str; turn a source'),
    ({'num_images': 10}, 'num_images of WarmStartConfig means nothing where release is a PublicClassesConfig'),
    ({'sharpening': (1.0, 1.0)}, 'sharpening of WarmStartConfig means nothing'),
    ({'release': class_means.ClassMeansConfig(1.0, 1.0), 'num_images': 9}, 'public of WarmStartConfig means nothing'),
    ({'release': class_means.ClassMeansConfig(1.0, 1.0), 'num_images': 9, 'public': None},
     'classifier of WarmStartConfig means nothing where release is a ClassMeansConfig'),
    ({'release': class_means.ClassMeansConfig(1.0, 1.0), 'public': None, 'classifier': None},
     'num_images of WarmStartConfig is needed where release is a ClassMeansConfig'),
])  # yapf: disable
def test_settings_that_do_not_go_together_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(WARM_START, **changes)


@pytest.mark.parametrize('field, value', [('num_epochs', 0), ('batch_size', 0), ('learning_rate', 0.0)])
def test_impossible_settings_of_the_classifier_are_refused(field, value):
    with pytest.raises(ValueError, match=f'{field} of the public classifier .* got {value}'):
        public_classifier.PublicClassifierConfig(**{field: value})


def drop_labels():
    return public_lib.public_images(datasets.PrivateData(train=PUBLIC, held_out=PUBLIC), labels='drop')


@pytest.mark.parametrize('change, message', [
    (lambda: {'public': toy.make_dataset()}, r"public of WarmStartConfig \('toy': \(4, 4, 1\)\) must have the shape"),
    (lambda: {'public': drop_labels()}, "has images without a label.* labels = 'keep'"),
    (lambda: {'release': dataclasses.replace(RELEASE, classes_per_class=3)}, 'needs 9 public classes .* there are 7'),
    (lambda: {'public': dataclasses.replace(PUBLIC, images_uint8=np.concatenate([PRIVATE.images_uint8] * 3)[:140])},
     'are among the public ones: training on them would release them'),
])  # yapf: disable
def test_public_images_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, warm_start=dataclasses.replace(WARM_START, **change()))
    assert not (tmp_path / 'checkpoints').exists()


@pytest.mark.parametrize('accounted', [
    None,
    dataclasses.replace(RELEASE, noise_multiplier=5.0),
    class_means.ClassMeansConfig(0.5, 1.0),
])
def test_release_that_the_plan_does_not_account_for_is_refused(tmp_path, accounted):
    plan = plan_lib.make_plan(toy.PRIVACY, PRIVATE.num_units, accounted)
    with pytest.raises(ValueError, match='the warm start makes another release'):
        make_trainer(tmp_path, plan=plan)


def test_several_processes_are_refused(tmp_path):

    class TwoWorkers(strategies.Replicas):

        def __init__(self, workers):
            super().__init__(strategies.ONE.strategy)
            self.workers = workers

    errors = fake_workers.play(lambda workers: make_trainer(tmp_path, replicas=TwoWorkers(workers)))
    for error in errors:
        assert isinstance(error, ValueError) and 'is for one process, got 2 workers' in str(error)
    assert not (tmp_path / 'checkpoints').exists()


def test_resuming_with_other_public_images_or_another_classifier_is_refused(tmp_path):
    make_trainer(tmp_path)
    other = make_images(GREYS, 140, 5, 'greys', PUBLIC.class_names)
    for change in ({'public': other}, {'classifier': dataclasses.replace(QUICK, num_epochs=3)}):
        with pytest.raises(ValueError, match='begun with another configuration'):
            make_trainer(tmp_path, warm_start=dataclasses.replace(WARM_START, **change))
