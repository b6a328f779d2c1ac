"""Tests that a teacher is released once in the life of a run, kept, and what it says of images."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.training import trainer_test as toy
from tests.training.stops import NEVER
from tests.training.stops import run_with_stops
from tests.training.stops import StopAfter
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import teacher as teacher_lib
from tf_dpdiff.training import interruption
from tf_dpdiff.training import released_files
from tf_dpdiff.training import teacher as teacher_stage

pytestmark = pytest.mark.usefixtures('small_network')
CONFIG = teacher_lib.TeacherConfig(0.5, num_rounds=5)
MECHANISM = 'teacher_gradients'
PRIVATE = datasets.ImageDataset(
    'toy',
    np.random.default_rng(0).integers(0, 256, [20, 8, 8, 1], np.uint8),
    (np.arange(20) % 3).astype(np.int32),
    ('a', 'b', 'c'),
)


@pytest.fixture(name='releases', autouse=True)
def fixture_releases(monkeypatch):
    """A list with what was released each time."""
    return toy.record_releases(monkeypatch, teacher_lib.TeacherConfig)


def make_trainer(workdir, **changes):
    return toy.without_steps(toy.make_trainer(workdir, PRIVATE, pretraining=None, teacher=CONFIG, **changes))


def read(workdir):
    with np.load(workdir / teacher_stage.FILE) as stored:
        return dict(stored)


def test_resumed_run_reads_the_teacher_and_never_releases_again(tmp_path, releases):
    trainer = run_with_stops(lambda: make_trainer(tmp_path))
    assert len(releases) == 1
    np.testing.assert_array_equal(read(tmp_path)['weights'], releases[0].weights)
    assert trainer.state.ledger.count(MECHANISM) == 5
    assert trainer.state.ledger == trainer.plan.planned_ledger()


def test_run_that_was_killed_before_the_ledger_was_saved_reads_the_teacher(tmp_path, releases, monkeypatch):

    def killed(*unused_arguments):
        raise KeyboardInterrupt

    trainer = make_trainer(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(plan_lib.DpSgdPlan, 'record_release', killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.run(NEVER)
    before = read(tmp_path)
    resumed = make_trainer(tmp_path)
    assert not resumed.state.ledger.count(MECHANISM)
    resumed.run(NEVER)
    np.testing.assert_equal(read(tmp_path), before)
    assert len(releases) == 1 and resumed.state.ledger.count(MECHANISM) == 5


def test_half_of_a_release_that_a_killed_process_left_is_removed_before_it_is_made_anew(tmp_path):
    path, left = tmp_path / 'teacher.npz', tmp_path / '.teacher.npz.abc'
    left.mkdir()
    (left / 'teacher.npz').write_bytes(b'of other noise')
    with released_files.replacing(path) as temporary:
        assert not left.exists()
        temporary.write_bytes(b'whole')
    assert [found.name for found in tmp_path.iterdir()] == ['teacher.npz'] and path.read_bytes() == b'whole'


def test_run_that_was_killed_before_the_file_was_written_has_released_nothing(tmp_path, releases, monkeypatch):

    def killed(*unused_arguments, **unused_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np, 'savez', killed)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(tmp_path).run(NEVER)
    assert not (tmp_path / teacher_stage.FILE).exists()
    resumed = make_trainer(tmp_path)
    resumed.run(NEVER)
    # The same secret and the same images: the same release.
    np.testing.assert_array_equal(releases[0].weights, releases[1].weights)
    assert resumed.state.ledger.count(MECHANISM) == 5


def test_run_whose_teacher_is_missing_or_damaged_is_refused(tmp_path, releases):
    with pytest.raises(interruption.Interrupted):
        make_trainer(tmp_path).run(StopAfter(0))
    path = tmp_path / teacher_stage.FILE
    path.rename(tmp_path / 'kept')
    with pytest.raises(FileNotFoundError, match='must not be made again. Put the file back from a copy'):
        # The stage has ended: what is left of the run reads it where samples are chosen.
        teacher_stage.make_stage(CONFIG, *stage_arguments(make_trainer(tmp_path)), workdir=tmp_path).begin(lambda: None)
    path.write_bytes((tmp_path / 'kept').read_bytes()[:-30])
    with pytest.raises(ValueError, match='is not as it was written .* holds a release'):
        teacher_stage.make_stage(CONFIG, *stage_arguments(make_trainer(tmp_path)), workdir=tmp_path).begin(lambda: None)
    assert len(releases) == 1


def stage_arguments(trainer):
    return trainer.plan, PRIVATE, trainer.state


def test_owners_of_several_images_are_the_units_of_the_teacher(tmp_path, monkeypatch):
    owners = np.arange(20) // 2
    owned = dataclasses.replace(PRIVATE, owners=owners, unit='one patient')
    given, release = {}, teacher_lib.TeacherConfig.release

    def watched(self, *arguments, **options):
        given.update(options)
        return release(self, *arguments, **options)

    monkeypatch.setattr(teacher_lib.TeacherConfig, 'release', watched)
    toy.without_steps(toy.make_trainer(tmp_path, owned, pretraining=None, warm_start=None, teacher=CONFIG)).run(NEVER)
    np.testing.assert_array_equal(given['owners'], owners)
    assert given['num_units'] == 10


def test_teacher_of_another_run_is_not_read(tmp_path, releases):
    make_trainer(tmp_path / 'first').run(NEVER)
    (tmp_path / 'second').mkdir()
    (tmp_path / 'second' / teacher_stage.FILE).write_bytes((tmp_path / 'first' / teacher_stage.FILE).read_bytes())
    trainer = make_trainer(tmp_path / 'second')
    trainer.run(NEVER)
    assert len(releases) == 2 and read(tmp_path / 'second')['run_id'] == trainer.state.run_id
    with pytest.raises(FileNotFoundError, match='missing or of another run'):
        teacher_stage.read_scorer(tmp_path / 'first', trainer.state.run_id, PRIVATE.image_shape)


def test_scorer_says_what_the_released_classifier_says(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.run(NEVER)
    stored = read(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, [9, *PRIVATE.image_shape], np.uint8)
    features = teacher_stage.TeacherFeatures(PRIVATE.image_shape, stored['mean'], stored['spread'])
    inputs = teacher_lib.make_inputs(features(images), stored['center'])
    expected = teacher_lib.probabilities(inputs, stored['weights'])
    scorer = teacher_stage.read_scorer(tmp_path, trainer.state.run_id, PRIVATE.image_shape)
    np.testing.assert_allclose(tf.nn.softmax(scorer(tf.constant(images))), expected, atol=1e-4)


def test_classes_that_differ_by_shape_are_told_apart():
    generator = np.random.default_rng(0)
    images = generator.integers(100, 140, [600, 16, 16, 1], np.uint8)
    labels = np.arange(600) % 2
    for image, label, row, column in zip(images, labels, *generator.integers(3, 10, [2, 600])):
        image[row : row + (4 if label else 1), column : column + (1 if label else 4)] = 250
    features = teacher_stage.make_features((16, 16, 1))(images)
    config = teacher_lib.TeacherConfig(1.0)
    options = {'num_units': 400, 'seed': toy_secret(), 'neighboring_relation': 'add_or_remove_one'}
    found = config.release(features[:400], labels[:400], 2, **options)
    told = teacher_lib.probabilities(teacher_lib.make_inputs(features[400:], found.center), found.weights)
    assert np.mean(np.argmax(told, axis=1) == labels[400:]) > 0.9


def toy_secret():
    return teacher_lib.seeds.PrivateSeed(bytes(range(32)))


def test_features_of_a_run_are_the_same_for_all_batches():
    features = teacher_stage.make_features((8, 8, 1))
    images = np.random.default_rng(0).integers(0, 256, [300, 8, 8, 1], np.uint8)
    np.testing.assert_array_equal(features(images)[290:], features(images[290:]))


def test_plan_charges_the_teacher_and_refuses_another():
    plan = plan_lib.make_plan(toy.PRIVACY, 20, teacher=CONFIG)
    assert plan.planned_ledger().count(MECHANISM) == 5
    assert plan.epsilon() > plan_lib.make_plan(toy.PRIVACY, 20).epsilon()
    with pytest.raises(ValueError, match='not among the releases of the plan'):
        plan.record_release(plan.planned_ledger(0), dataclasses.replace(CONFIG, num_rounds=4))
    assert plan.fingerprint()['teacher']['num_rounds'] == 5
    assert 'teacher' not in plan_lib.make_plan(toy.PRIVACY, 20).fingerprint()


def test_one_class_has_no_use_for_a_teacher(tmp_path):
    one = datasets.ImageDataset('one', PRIVATE.images_uint8, np.zeros(len(PRIVATE), np.int32), ('a',))
    with pytest.raises(ValueError, match='has one: set train.teacher = None'):
        toy.make_trainer(tmp_path, one, teacher=CONFIG, pretraining=None, warm_start=None)


def test_images_that_are_too_small_are_refused(tmp_path):
    with pytest.raises(ValueError, match='of at least 8x8 pixels, got 4x4'):
        toy.make_trainer(tmp_path, teacher=CONFIG, pretraining=None)


def test_labels_of_the_teacher_are_its_likeliest_classes(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.run(NEVER)
    images = np.random.default_rng(1).integers(0, 256, [300, *PRIVATE.image_shape], np.uint8)
    arguments = tmp_path, trainer.state.run_id, PRIVATE.image_shape
    logits, bias = teacher_stage.read_scorer(*arguments)(tf.constant(images)).numpy(), (0.0, 0.5, -0.5)
    labels = teacher_stage.read_labeller(*arguments, bias)(images)
    np.testing.assert_array_equal(labels, np.argmax(logits + bias, axis=1))
    assert labels.dtype == np.int32 and not np.array_equal(labels, np.argmax(logits, axis=1))


@pytest.mark.parametrize('counts', [(200, 200, 200), (300, 200, 100), (600, 0, 0)])
def test_balanced_logits_make_classes_as_frequent_as_they_should_be(counts):
    logits = np.random.default_rng(0).normal(size=[600, 3]) + [3.0, 0.0, -5.0]
    bias = teacher_stage.balance(logits, np.array(counts))
    found = np.bincount(np.argmax(logits + bias, axis=1), minlength=3)
    np.testing.assert_allclose(found, counts, atol=6)
    assert abs(bias.sum()) < 1e-9
