"""Tests of work that several workers share: it ends like the work of one, also where one of them stops or fails."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from tests import fake_workers
from tf_dpdiff import workers as workers_lib
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
