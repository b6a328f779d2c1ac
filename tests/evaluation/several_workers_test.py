"""Tests of measurements that several workers share: what comes out is that of one."""

import threading

import numpy as np
import pytest

from tests import fake_workers
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import classifiers
from tf_dpdiff.evaluation import features
from tf_dpdiff.evaluation import metrics
from tf_dpdiff.evaluation import neighbors
from tf_dpdiff.evaluation import selection
from tf_dpdiff.evaluation import utility


def make_images(count, seed=0):
    generator = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.int32)
    images = generator.integers(0, 256, [count, 8, 8, 1])
    images[:, 2:6, 2:6] = 80 * labels[:, None, None, None]
    return datasets.ImageDataset('private', images.astype(np.uint8), labels, ('a', 'b', 'c'))


@pytest.fixture(name='data', scope='module')
def fixture_data():
    return datasets.PrivateData(train=make_images(1010), held_out=make_images(300, seed=1))


def test_features_and_what_is_measured_by_them_are_those_of_one_worker(data, tmp_path):
    config, synthetic = features.FeaturesConfig(num_steps=2), make_images(600, seed=2).images_uint8
    looked_for = neighbors.NeighborsConfig(max_samples=50)

    def measure(workers):
        # Folders of their own, to see who writes.
        extractor = features.load(config, data.train, tmp_path / f'{workers.count} {workers.index}', workers)
        arguments = {'synthetic': synthetic, 'train': data.train, 'held_out': data.held_out}
        quality = metrics.measure(metrics.QualityConfig(max_images=280), extractor, **arguments)
        found = neighbors.find(looked_for, extractor, **arguments)
        return extractor(data.train.images_uint8), quality, found and found.to_dict()

    expected, quality, found = measure(workers_lib.ALONE)
    first, second = fake_workers.play(measure)
    for activations, *_ in (first, second):
        np.testing.assert_array_equal(activations.pool, expected.pool)
        np.testing.assert_array_equal(activations.logits, expected.logits)
    assert first[1:] == (quality, found) and second[1:] == (None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['1 0', '2 0']


def test_networks_that_differ_between_workers_are_refused(data, tmp_path):

    def load(workers):
        own = tmp_path / str(workers.index)
        features.load(features.FeaturesConfig(num_steps=1, seed=workers.index), data.train, own)
        return features.load(features.FeaturesConfig(str(own)), data.train, tmp_path / 'unused', workers)

    errors = fake_workers.play(load)
    assert all(isinstance(error, workers_lib.WorkersDisagreeError) for error in errors)
    assert 'FeaturesConfig.source' in str(errors[0])


CLASSIFIERS = ('logistic_regression', ('small_cnn', {'num_epochs': 1, 'min_steps': 3, 'width': 2}))


@pytest.fixture(name='trainings')
def fixture_trainings(monkeypatch):
    """Counts the trainings of each thread."""
    fit, done = classifiers.fit, []

    def record(*arguments, **options):
        done.append(threading.get_ident())
        return fit(*arguments, **options)

    monkeypatch.setattr(classifiers, 'fit', record)
    return done


def test_classifiers_trained_by_two_workers_are_those_of_one(data, trainings):
    samples = make_images(90, seed=3)
    config = utility.UtilityConfig(CLASSIFIERS, num_seeds=2, curve_sizes=(30,))

    def measure(workers):
        return utility.measure(config, samples.images_uint8, samples.labels, data.train, data.held_out, workers=workers)

    expected = measure(workers_lib.ALONE)
    num_trainings = len(trainings)
    trainings.clear()
    for found in fake_workers.play(measure):
        assert found.fields == expected.fields
        for title, predicted in expected.predictions.items():
            np.testing.assert_array_equal(found.predictions[title], predicted)
    of_threads = [trainings.count(thread) for thread in set(trainings)]
    assert sum(of_threads) == num_trainings == 10 and len(of_threads) == 2
    assert max(of_threads) - min(of_threads) <= 1


@pytest.mark.long  # bin/select of two workers, in tests/cli/select_test.py, chooses what one does.
def test_choice_of_several_workers_is_that_of_one(data):
    samples = make_images(90, seed=3)
    config = selection.SelectionConfig((*CLASSIFIERS, ('rbf_svm', {'C': 1e-3})), num_seeds=2)

    def select(workers):
        return selection.select(
            config, samples.images_uint8, samples.labels, data.train, data.held_out, workers=workers
        ).to_dict()

    assert fake_workers.play(select) == [select(workers_lib.ALONE)] * 2
