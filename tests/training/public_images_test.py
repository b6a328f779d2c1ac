"""Tests of the warm start on public images: a release is made and counted once, and chooses what is trained on."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests import fake_workers
from tests.training import trainer_test as toy
from tests.training.stops import NEVER
from tests.training.stops import StopAfter
from tf_dpdiff.data import datasets
from tf_dpdiff.data import public as public_lib
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.training import interruption
from tf_dpdiff.training import public_classifier
from tf_dpdiff.training import public_features
from tf_dpdiff.training import strategies
from tf_dpdiff.training import warm_start as warm_start_lib

pytestmark = pytest.mark.usefixtures('small_network')
RELEASE = feature_means.FeatureMeansConfig(noise_multiplier=0.5)
MECHANISM = 'noisy_feature_means'
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
WARM_START = warm_start_lib.WarmStartConfig(
    RELEASE, None, 2, 4, toy.OPTIMIZATION, public=PUBLIC, images_per_class=15, classifier=QUICK
)


def make_training(workdir, private=PRIVATE, warm_start=WARM_START, **changes):
    return toy.make_training(workdir, private, warm_start=warm_start, **{'pretraining': None, **changes})


def make_trainer(*arguments, **changes):
    return make_training(*arguments, **changes).trainer


@pytest.fixture(name='trained', scope='module', autouse=True)
def fixture_trained():
    """Classifiers by what they were trained by: one is trained once, for all runs."""
    trained, train = {}, public_classifier.train

    def train_once(config, public):
        key = config, public.fingerprint()
        if key not in trained:
            trained[key] = train(config, public)
        return trained[key]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(public_classifier, 'train', train_once)
        yield trained


def read_means(workdir):
    with np.load(workdir / warm_start_lib.FEATURE_MEANS_FILE) as arrays:
        return dict(arrays)


@pytest.fixture(name='releases')
def fixture_releases(monkeypatch):
    """A list of the features of each release; from the second one on they are others."""
    made, exact_vector = [], feature_means.FeatureMeansConfig.exact_vector

    def counted(self, features, *arguments):
        made.append(np.roll(features, len(made), axis=1))
        return exact_vector(self, made[-1], *arguments)

    monkeypatch.setattr(feature_means.FeatureMeansConfig, 'exact_vector', counted)
    return made


@pytest.fixture(name='unbroken', scope='module')
def fixture_unbroken(tmp_path_factory, small_network):
    """A whole run: its folder, its trainer, and what it said was chosen."""
    del small_network
    workdir, said = tmp_path_factory.mktemp('unbroken'), []
    training = make_training(workdir, on_release=said.append)
    training.trainer.run(NEVER)
    return workdir, training, said


def test_images_that_look_alike_are_chosen_and_the_ledger_counts_the_release_once(unbroken):
    workdir, training, (chosen,) = unbroken
    trainer = training.trainer
    assert [origins[0][0] for origins in chosen.origins] == ['grey 220', 'grey 20', 'grey 140']
    assert trainer.state.ledger.count(MECHANISM) == 1
    assert trainer.state.ledger == trainer.plan.planned_ledger()
    images, found = chosen.images, read_means(workdir)
    np.testing.assert_array_equal(images.images_uint8, PUBLIC.images_uint8[found['rows']])
    np.testing.assert_array_equal(images.labels, found['labels'])
    assert images.class_names == PRIVATE.class_names and max(np.bincount(images.labels)) == 15
    for label, grey in enumerate((220, 20, 140)):
        greys = images.images_uint8[images.labels == label].mean((1, 2, 3))
        assert abs(greys[0] - grey) < 6 and np.mean(abs(greys - grey) < 45) > 0.9
        assert sum(count for _, count in chosen.origins[label]) == len(greys)
    # 20 images of each class, and noise of 0.5.
    noise = found['noisy_sums'][:, -1] - 20.0 / 2.0**0.5
    assert (noise != 0.0).all() and np.max(np.abs(noise)) < 2.5


def test_statement_names_the_release_and_the_public_images(unbroken):
    statement = unbroken[1].statement()
    assert statement.public_data == ("140 images of 'greys'",)
    text = statement.to_text()
    assert 'noisy feature means, once: all units, noise multiplier 0.5' in text
    assert "the public images it was trained on before: 140 images of 'greys'" in text


def test_resumed_run_reads_the_release_and_never_makes_it_again(tmp_path, releases):
    said, written = [], []
    while True:
        trainer = toy.without_steps(make_trainer(tmp_path, on_release=said.append))
        try:
            trainer.run(StopAfter(1))
            break
        except interruption.Interrupted:
            written.append((tmp_path / warm_start_lib.FEATURE_MEANS_FILE).read_bytes())
    assert len(said) == 2  # It went on within the warm start.
    np.testing.assert_array_equal(said[0].images.images_uint8, said[1].images.images_uint8)
    assert said[0].origins == said[1].origins
    assert len(releases) == 1 and len(set(written)) == 1
    assert trainer.state.ledger == trainer.plan.planned_ledger()


def test_run_that_was_killed_before_the_ledger_was_saved_reads_the_release(tmp_path, releases, monkeypatch):

    def killed(*unused_arguments):
        raise KeyboardInterrupt

    trainer = make_trainer(tmp_path)  # Its plan asks what the release will cost.
    with monkeypatch.context() as patched:
        patched.setattr(plan_lib.DpSgdPlan, 'record_release', killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.run(NEVER)
    before = read_means(tmp_path)
    resumed = make_trainer(tmp_path)
    assert not resumed.state.ledger.count(MECHANISM)
    toy.without_steps(resumed).run(NEVER)
    np.testing.assert_equal(read_means(tmp_path), before)
    assert len(releases) == 1
    assert resumed.state.ledger.count(MECHANISM) == 1


def test_nothing_is_made_from_the_release_before_file_and_ledger_hold_them(tmp_path, monkeypatch):

    def look(*unused_arguments):
        assert read_means(tmp_path)['run_id'] == trainer.state.run_id
        assert make_trainer(tmp_path).state.ledger.count(MECHANISM) == 1  # As the checkpoint has it.
        raise KeyboardInterrupt

    monkeypatch.setattr(warm_start_lib, '_gather_chosen', look)
    trainer = make_trainer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(NEVER)


def test_run_whose_release_is_missing_or_damaged_is_refused(tmp_path, releases):
    with pytest.raises(interruption.Interrupted):
        toy.without_steps(make_trainer(tmp_path)).run(StopAfter(0))
    path = tmp_path / warm_start_lib.FEATURE_MEANS_FILE
    whole = path.read_bytes()
    path.unlink()
    resumed = toy.without_steps(make_trainer(tmp_path))  # Reads the file each time that it is to run.
    with pytest.raises(FileNotFoundError, match='must not be made again. Put the file back from a copy'):
        resumed.run(NEVER)
    path.write_bytes(whole)
    arrays = read_means(tmp_path)
    for name, value in (
        ('noisy_sums', np.zeros([3, 7])),
        ('rows', arrays['rows'] + 140),
        ('labels', arrays['labels'] - 1),
        ('labels', arrays['labels'][1:]),
        ('rows', None),
    ):
        changed = {**arrays, name: value}
        np.savez(path, **{key: array for key, array in changed.items() if array is not None})
        with pytest.raises(ValueError, match='is not as it was written'):
            resumed.run(NEVER)
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match='is not as it was written'):
        resumed.run(NEVER)
    np.savez(path, **{**arrays, 'run_id': 'another'})
    with pytest.raises(FileNotFoundError, match='the noisy feature means of this run'):
        resumed.run(NEVER)
    path.write_bytes(whole)  # Control.
    resumed.run(NEVER)
    assert len(releases) == 1 and resumed.is_done


def test_release_of_another_run_is_not_taken_for_that_of_this_one(tmp_path, unbroken):
    other = read_means(unbroken[0])
    np.savez(tmp_path / warm_start_lib.FEATURE_MEANS_FILE, **other)
    trainer = toy.without_steps(make_trainer(tmp_path))
    trainer.run(NEVER)
    found = read_means(tmp_path)
    assert found['run_id'] == trainer.state.run_id != other['run_id']
    assert not np.isclose(found['noisy_sums'], other['noisy_sums']).any()  # A secret of its own.


def test_images_are_chosen_by_the_noisy_sums_and_not_by_the_exact_ones(tmp_path, monkeypatch, features):
    exact, exact_vector = [], feature_means.FeatureMeansConfig.exact_vector
    monkeypatch.setattr(
        feature_means.FeatureMeansConfig,
        'exact_vector',
        lambda *arguments: exact.append(exact_vector(*arguments)) or exact[-1],
    )
    release = dataclasses.replace(RELEASE, noise_multiplier=3.0)
    trainer = toy.without_steps(make_trainer(tmp_path, warm_start=dataclasses.replace(WARM_START, release=release)))
    with pytest.raises(interruption.Interrupted):
        trainer.run(StopAfter(0))
    found = read_means(tmp_path)

    def choose(sums):
        means = release.means(sums, trainer.plan.config.neighboring_relation)
        return feature_means.choose_images(means, features(PUBLIC.images_uint8), 15)

    for name, expected in zip(('rows', 'labels'), choose(found['noisy_sums'])):
        np.testing.assert_array_equal(found[name], expected)
    # Control: the exact sums would choose others.
    assert not np.array_equal(choose(exact[0])[0], found['rows'])


def test_owners_are_counted_once(tmp_path):
    owned = dataclasses.replace(PRIVATE, owners=np.arange(60) % 30, unit='one patient')
    trainer = toy.without_steps(make_trainer(tmp_path, owned))
    trainer.run(NEVER)
    assert 2.0**0.5 * np.sum(read_means(tmp_path)['noisy_sums'][:, -1]) == pytest.approx(30, abs=5 * 0.5 * 6**0.5)
    assert trainer.state.ledger == trainer.plan.planned_ledger()


def test_release_of_noise_alone_is_one_clear_error(tmp_path, monkeypatch):
    nothing = np.zeros([0], np.int64), np.zeros([0], np.int32)
    monkeypatch.setattr(feature_means, 'choose_images', lambda *unused_arguments: nothing)
    with pytest.raises(ValueError, match='no public image is nearest to a private class'):
        make_trainer(tmp_path).run(NEVER)


@pytest.fixture(name='features', scope='module')
def fixture_features(small_network):
    del small_network
    return public_features.fit(public_classifier.train(QUICK, PUBLIC), PUBLIC)


def test_features_of_an_image_do_not_depend_on_the_others(features):
    images = make_images(range(10, 250, 3), 600, 2, 'more greys', tuple(map(str, range(80)))).images_uint8
    whole = features(images)
    assert whole.shape == (600, 7) and len(np.unique(whole, axis=0)) > 100
    for rows in (slice(17, None), slice(None, 300), slice(5, 6)):
        np.testing.assert_array_equal(features(images[rows]), whole[rows])


def test_features_of_public_images_vary_alike_in_all_directions(features):
    of_public = features(PUBLIC.images_uint8)
    np.testing.assert_allclose(np.mean(of_public, axis=0), 0.0, atol=1e-3)
    variances = np.linalg.eigvalsh(np.cov(of_public.T, bias=True))
    # But for those in which they hardly vary at all.
    assert variances.max() < 1.01 and np.sum(variances > 0.9) >= 3


def test_scorer_finds_the_mean_that_is_nearest_and_is_read_from_the_run(unbroken, features):
    workdir, training, (chosen,) = unbroken
    trainer = training.trainer
    scorer = warm_start_lib.read_scorer(workdir, trainer.state.run_id, (8, 8, 1))
    scores = scorer(tf.constant(chosen.images.images_uint8)).numpy()
    assert scores.shape == (len(chosen.images), 3)
    np.testing.assert_array_equal(np.argmax(scores, axis=1), chosen.images.labels)
    found = read_means(workdir)
    means = RELEASE.means(found['noisy_sums'], toy.PRIVACY.neighboring_relation)
    again = public_features.scorer_from_arrays(public_features.to_arrays(features, means), (8, 8, 1))
    np.testing.assert_allclose(again(chosen.images.images_uint8), scores, atol=1e-5)
    # Squared distances but for a number that all classes share.
    directions = feature_means.directions(features(chosen.images.images_uint8))
    distances = np.sum((directions[:, None] - means.means) ** 2, axis=2) - 7 * means.noise_variance
    np.testing.assert_allclose(scores - scores[:, :1], distances[:, :1] - distances, atol=1e-4)


def test_class_that_has_no_mean_has_the_lowest_score(features):
    means = feature_means.NoisyFeatureMeans(np.eye(3, 7) * [[1.0], [0.0], [1.0]], np.array([0.0, np.inf, 0.0]))
    scores = public_features.ClassScorer(features, means)(tf.constant(PUBLIC.images_uint8[:30])).numpy()
    assert (scores[:, 1] == np.finfo(np.float32).min).all() and np.isfinite(scores).all()


def test_scorer_that_is_missing_or_damaged_is_one_clear_error(tmp_path, unbroken):
    with pytest.raises(FileNotFoundError, match='is missing, by which a run chooses among candidates'):
        warm_start_lib.read_scorer(tmp_path, 'this', (8, 8, 1))
    arrays = read_means(unbroken[0])
    for broken, message in (
        ({}, 'run_id'),
        (arrays, 'it is of another run'),
        ({**arrays, 'run_id': 'this', 'classifier_0': np.zeros([2])}, 'shape'),
    ):
        np.savez(tmp_path / warm_start_lib.FEATURE_MEANS_FILE, **broken)
        with pytest.raises(ValueError, match=f'is not as it was written .*{message}'):
            warm_start_lib.read_scorer(tmp_path, 'this', (8, 8, 1))


def test_images_of_a_class_have_features_of_one_direction(features):
    of_public = features(PUBLIC.images_uint8)
    means = np.stack([of_public[PUBLIC.labels == label].mean(axis=0) for label in range(7)])
    nearest = np.argmax(feature_means.directions(of_public) @ feature_means.directions(means).T, axis=1)
    assert np.mean(nearest == PUBLIC.labels) > 0.9


def test_classifier_learns_and_is_repeated_by_its_public_seed(trained):
    first = public_classifier.train(QUICK, PUBLIC)
    trained.clear()
    again = public_classifier.train(QUICK, PUBLIC)
    assert first is not again
    for ours, theirs in zip(first.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    assert np.mean(np.argmax(first(PUBLIC.images_uint8), axis=1) == PUBLIC.labels) > 0.9


def test_public_classes_without_images_cannot_be_chosen():
    padded = dataclasses.replace(PUBLIC, labels=PUBLIC.labels + 1, class_names=('none', *PUBLIC.class_names, 'none'))
    kept = warm_start_lib.with_classes_that_have_images(padded)
    assert kept.class_names == PUBLIC.class_names
    np.testing.assert_array_equal(kept.labels, PUBLIC.labels)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'public': None}, 'public of WarmStartConfig is needed where release is a FeatureMeansConfig'),
        ({'images_per_class': None}, 'images_per_class of WarmStartConfig is needed'),
        ({'images_per_class': 0}, 'images_per_class of WarmStartConfig must be at least 1, got 0'),
        ({'public': 'greys'}, 'public of WarmStartConfig is a str; turn a source'),
        ({'num_images': 10}, 'num_images of WarmStartConfig means nothing where release is a FeatureMeansConfig'),
        ({'sharpening': (1.0, 1.0)}, 'sharpening of WarmStartConfig means nothing'),
        (
            {'release': class_means.ClassMeansConfig(1.0, 1.0), 'num_images': 9},
            'public of WarmStartConfig means nothing',
        ),
        (
            {'release': class_means.ClassMeansConfig(1.0, 1.0), 'num_images': 9, 'public': None},
            'images_per_class of WarmStartConfig means nothing where release is a ClassMeansConfig',
        ),
        (
            {
                'release': class_means.ClassMeansConfig(1.0, 1.0),
                'num_images': 9,
                'public': None,
                'images_per_class': None,
            },
            'classifier of WarmStartConfig means nothing where release is a ClassMeansConfig',
        ),
        (
            {
                'release': class_means.ClassMeansConfig(1.0, 1.0),
                'public': None,
                'images_per_class': None,
                'classifier': None,
            },
            'num_images of WarmStartConfig is needed where release is a ClassMeansConfig',
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(WARM_START, **changes)


@pytest.mark.parametrize('field, value', [('num_epochs', 0), ('batch_size', 0), ('learning_rate', 0.0)])
def test_impossible_settings_of_the_classifier_are_refused(field, value):
    with pytest.raises(ValueError, match=f'{field} of the public classifier .* got {value}'):
        public_classifier.PublicClassifierConfig(**{field: value})


def drop_labels():
    return public_lib.public_images(datasets.PrivateData(train=PUBLIC, held_out=PUBLIC), labels='drop')


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda: {'public': toy.make_dataset()},
            r"public of WarmStartConfig \('toy': \(4, 4, 1\)\) must have the shape",
        ),
        (lambda: {'public': drop_labels()}, "has images without a label.* labels = 'keep'"),
        (lambda: {'release': dataclasses.replace(RELEASE, noise_multiplier=5.0)}, 'would hide a class of 20 units'),
        (
            lambda: {
                'public': dataclasses.replace(PUBLIC, images_uint8=np.concatenate([PRIVATE.images_uint8] * 3)[:140])
            },
            'are among the public ones: training on them would release them',
        ),
    ],
)
def test_public_images_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, warm_start=dataclasses.replace(WARM_START, **change()))
    assert not (tmp_path / 'checkpoints').exists()


@pytest.mark.parametrize(
    'accounted', [None, dataclasses.replace(RELEASE, noise_multiplier=5.0), class_means.ClassMeansConfig(0.5, 1.0)]
)
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
