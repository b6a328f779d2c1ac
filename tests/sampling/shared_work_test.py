"""Tests of work that several workers share: it ends like the work of one, also where one of them stops or fails."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from tests import fake_workers
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import classifiers
from tf_dpdiff.evaluation import features
from tf_dpdiff.evaluation import metrics
from tf_dpdiff.evaluation import neighbors
from tf_dpdiff.evaluation import selection
from tf_dpdiff.evaluation import utility
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import shared_work

counts = pytest.mark.parametrize('count', [1, 2, 3])
CHOICE = draw.ClassChoice((0, 1, 2))


class Recorder:
    """Stands in for a sampler: its pixels say label and seed, and it knows which seeds it has drawn first."""

    def __init__(self):
        self.first_seeds = []

    def __call__(self, labels, seeds):
        self.first_seeds.append(int(seeds[0]))
        pixels = tf.stack([tf.cast(labels, tf.int64), seeds % 256], axis=-1)
        return tf.cast(tf.reshape(pixels, [-1, 2, 1, 1]), tf.uint8)


def draw_all(workers, ranges, samplers, should_stop=lambda: False):
    sampler = Recorder()
    samplers.append((workers.index, sampler))
    return list(draw.in_pieces([sampler], CHOICE, ranges, 7, workers=workers, should_stop=should_stop))


@counts
@pytest.mark.parametrize('ranges', [[(0, 70)], [(3, 5)], [(5, 30), (33, 34), (100, 141)], []])
def test_workers_draw_the_pieces_of_one_and_no_chunk_twice(count, ranges):
    alone = draw_all(workers_lib.ALONE, ranges, [])
    samplers = []
    for pieces in fake_workers.play(lambda workers: draw_all(workers, ranges, samplers), count):
        assert len(pieces) == len(alone)
        for found, expected in zip(pieces, alone):
            for one, other in zip(found, expected):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
    drawn = [sampler.first_seeds for _, sampler in sorted(samplers, key=lambda item: item[0])]
    chunks = sorted({seed // 7 * 7 for first, end in ranges for seed in range(first, end)})
    assert drawn == [chunks[index::count] for index in range(count)]


@pytest.mark.parametrize('asked', [0, 1])
def test_stop_asked_of_one_worker_stops_all_after_the_same_images(asked):
    config = draw.GenerateConfig(num_images=700, chunk_size=7)
    rounds = [0, 0]

    def run(workers):

        def should_stop():
            rounds[workers.index] += 1
            return workers.index == asked and rounds[asked] == 4

        return draw.at_once([Recorder()], config, choice=CHOICE, should_stop=should_stop, workers=workers)

    assert fake_workers.play(run) == [None, None] and rounds == [4, 4]


@pytest.mark.parametrize('failing', [0, 1])
def test_worker_that_fails_says_why_and_the_others_end_with_it(failing):

    def run(workers):

        def sample(labels, seeds):
            if workers.index == failing and seeds[0] >= 28:
                raise ValueError('no memory left')
            return Recorder()(labels, seeds)

        return list(draw.in_pieces([sample], CHOICE, [(0, 700)], 7, workers=workers))

    errors = fake_workers.play(run)
    assert isinstance(errors[failing], ValueError) and str(errors[failing]) == 'no memory left'
    assert isinstance(errors[1 - failing], workers_lib.WorkerLostError)
    assert 'another worker failed' in str(errors[1 - failing])


def test_worker_that_is_gone_ends_the_others():

    def run(workers):
        if workers.index == 1:
            return None
        return draw_all(workers, [(0, 70)], [])

    lost, _ = fake_workers.play(run)
    assert isinstance(lost, workers_lib.WorkerLostError)


def test_first_worker_alone_does_what_is_for_it_alone():
    done = []
    found = fake_workers.play(lambda workers: shared_work.at_first(workers, lambda: done.append(workers.index) or 7))
    assert found == [7, None] and done == [0]


def test_arrays_come_back_and_objects_are_refused():
    arrays = (np.arange(6, dtype=np.uint8).reshape(2, 3), np.float64(0.1), np.zeros([0, 4], np.float32))
    again = shared_work.from_bytes(shared_work.to_bytes(arrays))
    assert len(again) == 3
    for one, other in zip(again, arrays):
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match='allow_pickle=False'):
        shared_work.from_bytes(shared_work.to_bytes([np.array([{}])]))


def test_each_device_computes_one_task_at_a_time_and_results_are_in_order():
    busy, at_once = set(), []
    both = threading.Barrier(2, timeout=30)

    def do(device, task):
        assert device not in busy
        busy.add(device)
        if task < 2:
            both.wait()  # The two devices work side by side.
        at_once.append(len(busy))
        busy.remove(device)
        return task * task

    assert list(shared_work.run_ahead(['a', 'b'], range(9), do)) == [task * task for task in range(9)]
    assert max(at_once) == 2


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


def test_choice_of_several_workers_is_that_of_one(data):
    samples = make_images(90, seed=3)
    config = selection.SelectionConfig((*CLASSIFIERS, ('rbf_svm', {'C': 1e-3})), num_seeds=2)

    def select(workers):
        return selection.select(
            config, samples.images_uint8, samples.labels, data.train, data.held_out, workers=workers
        ).to_dict()

    assert fake_workers.play(select) == [select(workers_lib.ALONE)] * 2
