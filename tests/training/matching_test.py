"""Tests that images match one noisy release of features, made once in the life of a run, and that each has its own."""

import dataclasses

import numpy as np
import pytest

from tests.training import trainer_test as toy
from tests.training.stops import NEVER
from tests.training.stops import run_with_stops
from tests.training.stops import StopAfter
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import teacher as teacher_lib
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.sampling import draw
from tf_dpdiff.training import interruption
from tf_dpdiff.training import matching
from tf_dpdiff.training import teacher as teacher_stage
from tf_dpdiff.training import warm_start as warm_start_lib

pytestmark = pytest.mark.usefixtures('small_network')
MECHANISM = 'noisy_feature_means'
CONFIG = matching.MatchingConfig(
    feature_means.FeatureMeansConfig(0.2, 0.2), num_images=600, num_networks=2, num_steps=3
)
WARM_START = warm_start_lib.WarmStartConfig(class_means.ClassMeansConfig(3.0, 2.0), 30, 2, 4, toy.OPTIMIZATION)
PRIVATE = datasets.ImageDataset(
    'toy',
    np.random.default_rng(0).integers(0, 256, [20, 8, 8, 1], np.uint8),
    (np.arange(20) % 3).astype(np.int32),
    ('a', 'b', 'c'),
)

REFERENCE = np.random.default_rng(1).integers(0, 256, [64, 16, 16, 1], np.uint8)


def squares(side, *, num_images, seed, size=16):
    """Returns images with one bright square anywhere on a dark ground, uint8 [num_images, size, size, 1]."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 40, [num_images, size, size, 1])
    for image, (top, left) in zip(images, generator.integers(0, size - side + 1, [num_images, 2])):
        image[top : top + side, left : left + side] += 200
    return images.astype(np.uint8)


@pytest.fixture(name='features', scope='module')
def fixture_features():
    return matching.RandomFeatures(REFERENCE, 4, seed=3)


def seen(features, images_uint8):
    return np.concatenate(list(features.blocks(images_uint8)))


def test_features_have_length_1_in_each_network_and_depend_on_their_own_image_alone(features):
    images = squares(5, num_images=300, seed=0)
    together = seen(features, images)
    assert together.shape == (300, 4 * matching.count_features((16, 16, 1)))
    lengths = np.linalg.norm(together.reshape([300, 4, -1]), axis=-1)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)
    others = images.copy()
    others[:299] = 255 - others[:299]  # In the same batch as the last one.
    np.testing.assert_array_equal(seen(features, others)[299], together[299])
    np.testing.assert_array_equal(seen(features, images[299:])[0], together[299])


def test_features_are_the_same_for_the_same_seed_and_reference(features):
    images = squares(5, num_images=3, seed=0)
    again, other = (matching.RandomFeatures(REFERENCE, 4, seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(seen(again, images), seen(features, images))
    assert not np.isclose(seen(other, images), seen(features, images)).all()


@pytest.mark.parametrize('shape', [(4, 4, 3), (8, 12, 1), (28, 20, 1)])
def test_images_of_any_shape_have_as_many_features_as_are_counted(shape):
    images = np.random.default_rng(0).integers(0, 256, [5, *shape], np.uint8)
    some = matching.RandomFeatures(images, 2, seed=0)
    assert seen(some, images).shape == (5, 2 * matching.count_features(shape))
    assert np.isfinite(seen(some, np.zeros_like(images))).all()


def exact_means(features, images, noise_variance=0.0):
    means = np.stack([np.mean(seen(features, of_class), axis=0) for of_class in images]).astype(np.float64)
    # As the mechanism has it: all networks together have length 1.
    means /= np.sqrt(features.num_networks)
    return feature_means.NoisyFeatureMeans(means, np.broadcast_to(noise_variance, [len(images)]))


def test_matched_images_show_what_lies_in_another_place_in_each_image():
    private = np.stack([squares(side, num_images=400, seed=side) for side in (3, 8)])
    starts = np.random.default_rng(2).integers(0, 80, [2, 24, 16, 16, 1]).astype(np.uint8)
    features = matching.RandomFeatures(starts.reshape([-1, 16, 16, 1]), 20, seed=0)
    made = matching.match(features, exact_means(features, private), starts, num_steps=150, seed=0)
    assert made.shape == starts.shape and made.dtype == np.uint8
    # Networks that were not asked see that they are like the images of their own class. The starts are like neither.
    other = matching.RandomFeatures(starts.reshape([-1, 16, 16, 1]), 10, seed=99)
    targets = exact_means(other, private).means

    def distances(images):
        return np.linalg.norm(exact_means(other, images).means[:, None] - targets, axis=-1)

    before, after = distances(starts), distances(made)
    assert np.all(np.diag(after) < 0.5 * np.diag(before))
    assert after[0, 0] < after[0, 1] and after[1, 1] < after[1, 0]


def test_class_that_is_lost_in_the_noise_keeps_its_images(features):
    starts = squares(4, num_images=16, seed=0).reshape([2, 8, 16, 16, 1])
    means = exact_means(features, starts[::-1], np.array([0.1, np.inf]))
    made = matching.match(features, means, starts, num_steps=5, seed=0)
    np.testing.assert_array_equal(made[1], starts[1])
    assert (made[0] != starts[0]).any()


def test_steps_are_told(features):
    starts, told = squares(4, num_images=4, seed=0).reshape([2, 2, 16, 16, 1]), []
    matching.match(features, exact_means(features, starts), starts, num_steps=45, seed=0, on_steps=told.append)
    assert told == [20, 20, 5]


@pytest.fixture(name='releases')
def fixture_releases(monkeypatch):
    """A list with what was released each time."""
    return toy.record_releases(monkeypatch, feature_means.FeatureMeansConfig)


def make_trainer(workdir, private=PRIVATE, privacy=toy.PRIVACY, on_release=lambda released: None, **changes):
    warm_start = dataclasses.replace(WARM_START, matching=dataclasses.replace(CONFIG, **changes))
    return toy.without_steps(
        toy.make_trainer(
            workdir, private, pretraining=None, warm_start=warm_start, privacy=privacy, on_release=on_release
        )
    )


def read(workdir):
    with np.load(workdir / matching.FILE) as stored:
        return dict(stored)


def test_resumed_run_reads_the_images_and_never_releases_again(tmp_path, releases):
    trainer = run_with_stops(lambda: make_trainer(tmp_path))
    assert len(releases) == 1
    np.testing.assert_array_equal(read(tmp_path)['noisy_sums'], releases[0])
    # Two groups of 170 images of each of three classes: as many as asked for, and whole groups.
    assert read(tmp_path)['images'].shape == (2, 3, 170, 8, 8, 1)
    assert trainer.state.ledger.count(MECHANISM) == 1
    assert trainer.state.ledger == trainer.plan.planned_ledger()


def test_images_that_were_made_before_the_run_was_killed_are_not_made_again(tmp_path, releases, monkeypatch):
    made, match = [], matching.match

    def killed_at_the_second(*arguments, **options):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(match(*arguments, **options))
        return made[-1]

    with monkeypatch.context() as patched:
        patched.setattr(matching, 'match', killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(tmp_path).run(NEVER)
    np.testing.assert_array_equal(read(tmp_path)['images'], np.stack(made))
    resumed = make_trainer(tmp_path)
    assert resumed.state.ledger.count(MECHANISM) == 1  # On the ledger before anything is made from it.
    resumed.run(NEVER)
    assert len(releases) == 1 and len(read(tmp_path)['images']) == 2
    np.testing.assert_array_equal(read(tmp_path)['images'][0], made[0])
    assert not np.array_equal(*read(tmp_path)['images'])


def test_images_are_made_of_the_release_alone(tmp_path, releases):
    trainer = make_trainer(tmp_path)
    trainer.run(NEVER)
    made = read(tmp_path)
    np.savez(tmp_path / matching.FILE, **{**made, 'images': made['images'][:1]})
    with np.load(tmp_path / warm_start_lib.MEANS_FILE) as stored:
        means = class_means.NoisyMeans(stored['images'], stored['counts'])
    variations = warm_start_lib.images_from_class_means(
        means, num_images=30, sharpening=(1.2, 3.0), threshold=(0.4, 0.6), seed=1
    )
    # Of other private images, which are not looked at where the release is there.
    other = dataclasses.replace(PRIVATE, images_uint8=255 - PRIVATE.images_uint8)
    arguments = CONFIG, trainer.plan, other, variations, trainer.state
    matching.make_images(*arguments, workdir=tmp_path, save=lambda: None)
    np.testing.assert_array_equal(read(tmp_path)['images'], made['images'])
    assert len(releases) == 1


def test_images_that_are_labelled_anew_keep_these_labels(tmp_path):
    trainer, asked = make_trainer(tmp_path), []

    def turned(images, matched):
        asked.append((images, matched))
        return (matched + 1) % 3

    def make(label_images):
        return matching.make_images(
            CONFIG, *stage_arguments(trainer), workdir=tmp_path, save=lambda: None, label_images=label_images
        )

    first = make(turned)
    ((images, matched),) = asked
    np.testing.assert_array_equal(matched, np.tile(np.repeat([0, 1, 2], 170), 2))
    np.testing.assert_array_equal(first.labels, (matched + 1) % 3)
    np.testing.assert_array_equal(first.images_uint8, images)
    for again in (make(turned), make(None)):  # A run that goes on, also without what labelled them.
        np.testing.assert_array_equal(again.labels, first.labels)
    assert len(asked) == 1
    images, labels = matching.read_images(tmp_path, trainer.state.run_id)
    np.testing.assert_array_equal(images, first.images_uint8)
    np.testing.assert_array_equal(labels, first.labels)
    np.savez(tmp_path / matching.FILE, **{**read(tmp_path), 'labels': labels[1:]})
    with pytest.raises(ValueError, match='is not as it was written .*labels have the shape'):
        make(None)


@pytest.mark.parametrize('how', ['asked', 'teacher', 'auto'])
def test_warm_start_labels_its_images_as_the_samples_will_be(tmp_path, monkeypatch, how):
    told = []
    monkeypatch.setattr(
        teacher_stage.Labeller, 'logits', lambda self, images: np.eye(3)[(np.arange(len(images)) + 1) % 3]
    )
    trainer = toy.make_trainer(
        tmp_path,
        PRIVATE,
        pretraining=None,
        warm_start=dataclasses.replace(WARM_START, matching=CONFIG),
        teacher=teacher_lib.TeacherConfig(0.5, num_rounds=5),
        samples=draw.GenerateConfig(labels=how),
        on_release=told.append,
    )
    toy.without_steps(trainer).run(NEVER)
    labels = told[-1].labels
    matched = np.tile(np.repeat([0, 1, 2], 170), 2)
    if how == 'asked':
        np.testing.assert_array_equal(labels, matched)
    else:  # By chance the teacher agrees with a third of them.
        np.testing.assert_array_equal(labels, (np.arange(len(matched)) + 1) % 3)


def test_warm_start_trains_on_the_images_that_were_made(tmp_path, monkeypatch):
    given, stage = [], warm_start_lib.stage_lib.make_public_stage

    def watched(name, config, training, make_dataset, **options):
        def kept(save):
            given.append(make_dataset(save))
            return given[-1]

        return stage(name, config, training, kept, **options)

    monkeypatch.setattr(warm_start_lib.stage_lib, 'make_public_stage', watched)
    told = []
    make_trainer(tmp_path, on_release=told.append).run(NEVER)
    (trained_on,) = given
    assert told[1] is trained_on  # After the noisy means.
    made = read(tmp_path)['images']
    np.testing.assert_array_equal(trained_on.images_uint8, made.reshape([-1, 8, 8, 1]))
    np.testing.assert_array_equal(trained_on.labels[: 2 * 170], np.repeat([0, 1], 170))


def test_run_whose_release_is_missing_or_damaged_is_refused(tmp_path, releases):
    with pytest.raises(interruption.Interrupted):
        make_trainer(tmp_path).run(StopAfter(0))
    path = tmp_path / matching.FILE
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match='must not be made again. Put the file back from a copy'):
        make_trainer(tmp_path).run(NEVER)
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match='is not as it was written .* holds a release'):
        make_trainer(tmp_path).run(NEVER)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match='is not as it was written .the sums have the shape'):
        # The networks are not what the file is of, and the run's folder says that they were others.
        matching.make_images(
            dataclasses.replace(CONFIG, num_networks=3),
            *stage_arguments(make_trainer(tmp_path)),
            workdir=tmp_path,
            save=lambda: None,
        )
    assert len(releases) == 1


def stage_arguments(trainer):
    variations = datasets.ImageDataset('variations', PRIVATE.images_uint8, PRIVATE.labels, PRIVATE.class_names)
    return trainer.plan, PRIVATE, variations, trainer.state


def test_release_of_another_run_is_not_read(tmp_path, releases):
    make_trainer(tmp_path / 'first').run(NEVER)
    (tmp_path / 'second').mkdir()
    (tmp_path / 'second' / matching.FILE).write_bytes((tmp_path / 'first' / matching.FILE).read_bytes())
    trainer = make_trainer(tmp_path / 'second')
    trainer.run(NEVER)
    assert len(releases) == 2 and read(tmp_path / 'second')['run_id'] == trainer.state.run_id


def test_owners_are_counted_once(tmp_path, monkeypatch):
    vectors, exact_vector = [], feature_means.FeatureMeansConfig.exact_vector

    def recorded(self, *arguments):
        vectors.append(exact_vector(self, *arguments))
        return vectors[-1]

    monkeypatch.setattr(feature_means.FeatureMeansConfig, 'exact_vector', recorded)
    owned = dataclasses.replace(PRIVATE, owners=np.arange(20) % 5, unit='one patient')
    release = feature_means.FeatureMeansConfig(0.02, 0.2)
    privacy = dataclasses.replace(toy.PRIVACY, expected_batch_size=3)
    for private, num_units in ((owned, 5), (PRIVATE, 20)):  # And a control.
        make_trainer(tmp_path / str(num_units), private, privacy, release=release).run(NEVER)
        assert vectors[-1][:, -1].sum() == pytest.approx(0.2 * num_units)


def test_run_with_other_settings_of_the_matching_is_not_resumed(tmp_path):
    with pytest.raises(interruption.Interrupted):
        make_trainer(tmp_path).run(StopAfter(0))
    with pytest.raises(ValueError, match='num_steps'):
        make_trainer(tmp_path, num_steps=4)


def test_plan_that_does_not_account_for_the_matching_is_refused(tmp_path):
    plan = plan_lib.make_plan(toy.PRIVACY, 20, WARM_START.release)
    warm_start = dataclasses.replace(WARM_START, matching=CONFIG)
    with pytest.raises(ValueError, match='the plan does not account for MatchingConfig'):
        toy.make_trainer(tmp_path, PRIVATE, pretraining=None, warm_start=warm_start, plan=plan)


def test_impossible_settings_are_refused():
    for name in ('num_images', 'num_networks', 'num_steps'):
        with pytest.raises(ValueError, match=f'{name} of MatchingConfig must be at least 1, got 0'):
            dataclasses.replace(CONFIG, **{name: 0})
    with pytest.raises(ValueError, match='matching of WarmStartConfig means nothing where release is a FeatureMeans'):
        dataclasses.replace(WARM_START, release=feature_means.FeatureMeansConfig(1.0), num_images=None, matching=CONFIG)


def test_matching_is_for_one_process(tmp_path, monkeypatch):
    check = build_lib.Build.check
    monkeypatch.setattr(build_lib.Build, 'check', lambda build, unused_num_workers: check(build, 2))
    with pytest.raises(ValueError, match='matching is for one process, got 2 workers'):
        make_trainer(tmp_path)


def test_noise_that_hides_classes_is_refused(tmp_path):
    noisy = feature_means.FeatureMeansConfig(10.0, 0.2)
    with pytest.raises(ValueError, match='would hide a class of 7 units'):
        make_trainer(tmp_path, release=noisy)


def test_release_has_one_place_in_the_plan():
    release = class_means.ClassMeansConfig(3.0, 1.0)
    plan = plan_lib.make_plan(toy.PRIVACY, 20, release, matching=CONFIG.release)
    mechanisms = [release.mechanism for release in plan.planned_ledger().releases]
    assert mechanisms[:2] == ['noisy_class_means', MECHANISM]
    assert plan.fingerprint()['matching'] == {'noise_multiplier': 0.2, 'count_weight': 0.2}
    alone = plan_lib.make_plan(dataclasses.replace(toy.PRIVACY), 20, release)
    assert 'matching' not in alone.fingerprint()
    with pytest.raises(ValueError, match='a run releases feature means once'):
        plan_lib.make_plan(toy.PRIVACY, 20, CONFIG.release, matching=CONFIG.release)
