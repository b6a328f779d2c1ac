"""Tests of how requests are joined: nobody notices, and nobody pays for another's mistake."""

from concurrent import futures
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.serving import batching
from tf_dpdiff.serving import signatures
from tf_dpdiff.serving import status


class Doubler(signatures.Signature):
    """Doubles rows, one batch at a time, when it is let; refuses negative numbers."""

    def run(self, inputs):
        self.function.batches.append(inputs['x'].copy())
        self.function.entered.release()
        self.function.gate.wait(10)
        if (inputs['x'] < 0).any():
            raise tf.errors.InvalidArgumentError(None, None, 'negative')
        return {'y': inputs['x'] * 2}


class Record:
    """What a Doubler was asked."""

    def __init__(self):
        self.batches, self.gate, self.entered = [], threading.Event(), threading.Semaphore(0)
        self.gate.set()


def make(shape=(None,), **config):
    """Returns a batcher and what it was asked."""
    record, spec = Record(), signatures.TensorSpec(tf.int32, shape)
    config = batching.BatchingConfig(**{'batch_timeout_secs': 0.0, **config})
    return batching.Batcher(Doubler('double', {'x': spec}, {'y': spec}, record), config), record


def submit(batcher, values, secs=30.0):
    return batcher.submit({'x': np.array(values, np.int32)}, deadline=time.monotonic() + secs)


def hold(batcher, record, values=(0,)):
    """Occupies the worker until the gate is opened; what is submitted then is queued."""
    record.gate.clear()
    first = submit(batcher, values)
    assert record.entered.acquire(timeout=10)
    return first


def test_joined_requests_get_their_own_rows():
    batcher, record = make(max_batch_size=64)
    hold(batcher, record)
    values = [list(range(i, i + i % 3 + 1)) for i in range(20)]
    answers = [submit(batcher, value) for value in values]
    record.gate.set()
    for value, answer in zip(values, answers):
        np.testing.assert_array_equal(answer.result(10)['y'], 2 * np.array(value))
    assert [len(batch) for batch in record.batches] == [1, 39]  # And these were one batch.
    batcher.close()


def test_batches_are_not_larger_than_allowed_and_keep_the_order():
    batcher, record = make(max_batch_size=5)
    hold(batcher, record)
    answers = [submit(batcher, [i, i]) for i in range(6)]
    record.gate.set()
    futures.wait(answers, 10)
    assert [batch.tolist() for batch in record.batches[1:]] == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]
    batcher.close()


def test_a_request_with_more_rows_is_refused():
    batcher, _ = make(max_batch_size=5)
    assert submit(batcher, [1] * 5).result(10)['y'].tolist() == [2] * 5
    with pytest.raises(status.ServingError, match='Task size 6 is larger than maximum input batch size 5') as error:
        submit(batcher, [1] * 6)
    assert error.value.code is status.Code.INVALID_ARGUMENT
    batcher.close()


def test_full_queue_refuses_and_takes_again():
    batcher, record = make(max_queue=3)
    first = hold(batcher, record)
    waiting = [submit(batcher, [i]) for i in range(3)]
    with pytest.raises(status.ServingError, match='is full') as error:
        submit(batcher, [9])
    assert error.value.code is status.Code.UNAVAILABLE and error.value.http_status == 503
    record.gate.set()
    futures.wait([first, *waiting], 10)
    assert submit(batcher, [4]).result(10)['y'] == [8]
    batcher.close()


@pytest.mark.parametrize('leave', ['cancel', 'deadline'])
def test_whoever_does_not_wait_any_more_is_not_run_and_keeps_nobody_out(leave):
    batcher, record = make(max_queue=2)
    hold(batcher, record)
    left = [submit(batcher, [7], secs=30.0 if leave == 'cancel' else 0.01) for _ in range(2)]
    if leave == 'cancel':
        assert all(answer.cancel() for answer in left)
    time.sleep(0.02)
    answer = submit(batcher, [8])
    record.gate.set()
    assert answer.result(10)['y'] == [16]
    assert [batch.tolist() for batch in record.batches] == [[0], [8]]
    if leave == 'deadline':
        assert {answer.exception(10).code for answer in left} == {status.Code.DEADLINE_EXCEEDED}
    batcher.close()


def test_deadline_that_passes_in_the_queue_is_told_when_its_turn_comes():
    batcher, record = make()
    hold(batcher, record)
    late = submit(batcher, [7], secs=0.01)
    time.sleep(0.02)
    record.gate.set()
    assert late.exception(10).http_status == 504
    batcher.close()
    assert len(record.batches) == 1


def test_an_error_is_told_to_the_one_who_caused_it():
    batcher, record = make()
    hold(batcher, record)
    answers = [submit(batcher, [value]) for value in (1, -2, 3)]
    record.gate.set()
    assert [answers[i].result(10)['y'].tolist() for i in (0, 2)] == [[2], [6]]
    error = answers[1].exception(10)
    assert error.code is status.Code.INVALID_ARGUMENT and error.message == 'negative'
    batcher.close()


@pytest.mark.parametrize('bad', [0, 13, 31])
def test_one_bad_request_among_many_is_found_in_few_runs(bad):
    batcher, record = make()
    hold(batcher, record)
    answers = [submit(batcher, [-1 if i == bad else i]) for i in range(32)]
    record.gate.set()
    for i, answer in enumerate(answers):
        if i == bad:
            assert answer.exception(10).message == 'negative'
        else:
            assert answer.result(10)['y'].tolist() == [2 * i]
    assert len(record.batches[1]) == 32 and len(record.batches) == 1 + 1 + 2 * 5
    batcher.close()


def test_whoever_left_during_a_run_that_failed_is_not_run_again():
    batcher, record = make(max_batch_size=4, batch_timeout_secs=5.0)
    record.gate.clear()
    answers = [submit(batcher, [value], secs=0.3 if value == 1 else 30.0) for value in (1, 2, -3, 4)]
    assert record.entered.acquire(timeout=10)
    assert not answers[1].cancel()  # It is being run.
    time.sleep(0.4)
    record.gate.set()
    assert answers[3].result(10)['y'] == [8] and answers[2].exception(10).message == 'negative'
    assert [answers[i].exception(10).code for i in (0, 1)] == [status.Code.DEADLINE_EXCEEDED, status.Code.CANCELLED]
    assert [batch.tolist() for batch in record.batches] == [[1, 2, -3, 4], [-3, 4], [-3], [4]]
    batcher.close()


def test_requests_of_other_shapes_are_not_joined():
    batcher, record = make(shape=(None, None))
    hold_answer = batcher.submit({'x': np.zeros((1, 1), np.int32)}, deadline=time.monotonic() + 9)
    hold_answer.result(10)
    record.gate.clear()
    answers = [
        batcher.submit({'x': np.ones(shape, np.int32)}, deadline=time.monotonic() + 9)
        for shape in ((1, 1), (1, 2), (2, 2))
    ]
    record.gate.set()
    assert [answer.result(10)['y'].shape for answer in answers] == [(1, 1), (1, 2), (2, 2)]
    batcher.close()


@pytest.mark.parametrize('rows, size', [(1, 4), (4, 4), (5, 8), (8, 8)])
def test_batches_are_filled_up_to_an_allowed_size(rows, size):
    batcher, record = make(max_batch_size=8, allowed_batch_sizes=(4, 8))
    answer = submit(batcher, np.arange(rows) + 1).result(10)['y']
    np.testing.assert_array_equal(answer, 2 * np.arange(rows) + 2)
    assert len(record.batches[0]) == size and (record.batches[0] > 0).all()
    batcher.close()


def test_a_batch_waits_for_others_but_not_longer_than_it_may():
    batcher, record = make(batch_timeout_secs=0.3, max_batch_size=3)
    started = time.monotonic()
    answers = [submit(batcher, [1]), submit(batcher, [2])]
    futures.wait(answers, 10)
    assert 0.25 < time.monotonic() - started < 5
    assert [len(batch) for batch in record.batches] == [2]
    batcher.close()
    batcher, record = make(batch_timeout_secs=60, max_batch_size=3)
    assert not futures.wait([submit(batcher, [1]) for _ in range(3)], 30).not_done  # Full, so it does not wait.
    assert [len(batch) for batch in record.batches] == [3]
    batcher.close()


def test_what_is_queued_is_answered_before_the_worker_ends():
    batcher, record = make()
    hold(batcher, record)
    answers = [submit(batcher, [i]) for i in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    record.gate.set()
    closing.join(10)
    assert [answer.result(0)['y'].item() for answer in answers] == [0, 2, 4, 6, 8]
    with pytest.raises(status.ServingError, match='unloaded'):
        submit(batcher, [1])


def test_many_threads_get_what_they_asked_for():
    batcher, record = make(max_batch_size=8, max_queue=1000)
    with futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: submit(batcher, [i, i + 1]).result(10)['y'].tolist(), range(400)))
    assert answers == [[2 * i, 2 * i + 2] for i in range(400)]
    assert max(len(batch) for batch in record.batches) <= 8
    batcher.close()


def test_signature_without_rows_is_run_one_by_one():
    batcher, record = make(shape=())
    hold(batcher, record, 0)
    answers = [submit(batcher, i) for i in (1, 2)]
    record.gate.set()
    assert [answer.result(10)['y'].item() for answer in answers] == [2, 4]
    assert len(record.batches) == 3
    batcher.close()


@pytest.mark.parametrize(
    'field, value',
    [
        ('max_batch_size', 0),
        ('max_queue', 0),
        ('batch_timeout_secs', -1.0),
        ('allowed_batch_sizes', (4, 2)),
        ('allowed_batch_sizes', (4, 8)),
    ],
)
def test_settings_that_cannot_be_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        batching.BatchingConfig(**{field: value})
