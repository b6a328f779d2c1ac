"""Tests of the words that the processes of a run exchange."""

import numpy as np
import pytest
import tensorflow as tf

from tests import fake_workers
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.training import strategies


@pytest.mark.parametrize('count', [1, 2, 3])
def test_bytes_of_any_length_arrive_as_they_were(count):
    payloads = [bytes(range(256)) * i + b'end' * (i % 2) for i in range(count)]
    gathered = fake_workers.play(lambda workers: workers.gather(payloads[workers.index]), count)
    assert gathered == [payloads] * count
    received = fake_workers.play(lambda workers: workers.broadcast(b'\0word\xff' if workers.is_first else None), count)
    assert received == [b'\0word\xff'] * count


@pytest.mark.parametrize('flags', [(False, False, False), (False, True, False), (True, True, True)])
def test_flag_of_any_worker_is_that_of_all(flags):
    assert fake_workers.play(lambda workers: workers.any(flags[workers.index]), 3) == [any(flags)] * 3


def test_several_flags_are_told_in_one_exchange_and_each_is_that_of_any_worker():

    def tell(workers):
        flags = [[False, True, False], [False, False, False], [False, True, True]][workers.index]
        return workers.any_of(flags), workers.any_of(flags[:1])

    assert fake_workers.play(tell, 3) == [([False, True, True], [False])] * 3
    assert workers_lib.ALONE.any_of([True, False]) == [True, False]


def test_all_workers_learn_which_of_them_has_another_value():
    ended = fake_workers.play(
        lambda workers: workers.check_same(f'{workers.index // 2}', 'the colour', cure='paint'), 4
    )
    for error in ended:
        assert isinstance(error, workers_lib.WorkersDisagreeError)
        assert str(error) == 'worker 2, 3 and worker 0 differ in the colour: paint.'
    # Control: the same values pass.
    assert fake_workers.play(lambda workers: workers.check_same('1', 'the colour')) == [None, None]


def test_variables_of_the_first_worker_are_copied_bit_for_bit():
    values = [np.array([[-0.0, 1e-45, np.pi], [np.inf, -1e38, 0.1]], np.float32), np.int64(2**40 + 1)]

    def copy(workers):
        replicas = strategies.Replicas(tf.distribute.get_strategy(), workers)
        variables = [tf.Variable(value if workers.is_first else value * 0) for value in values[1:]]
        variables.append(tf.Variable(values[0] if workers.is_first else np.zeros_like(values[0])))
        replicas.copy_from_first_worker(variables)
        return [variable.numpy().tobytes() for variable in variables]

    expected = [values[1].tobytes(), values[0].tobytes()]
    assert fake_workers.play(copy) == [expected, expected]


# What TensorFlow says where another worker was killed or has been started anew.
OF_OTHERS = (
    '{{function_node f}} Collective ops is aborted by: Socket closed\nmuch more',
    'Connection reset\nAdditional GRPC error information from remote target /job:worker/replica:0/task:1',
    "Device /job:worker/task:1 current incarnation doesn't match with one in the group.",
    'RecvAsync is cancelled.',
)


@pytest.mark.parametrize(
    'error',
    [
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,
    ],
)
@pytest.mark.parametrize('message', OF_OTHERS)
def test_lost_worker_is_one_clear_line(error, message):
    with pytest.raises(workers_lib.WorkerLostError, match='another worker is gone') as lost:
        with workers_lib.together():
            raise error(None, None, message)
    assert '\n' not in str(lost.value)
    # What is no loss of a worker stays what it is.
    with pytest.raises(tf.errors.ResourceExhaustedError):
        with workers_lib.together():
            raise tf.errors.ResourceExhaustedError(None, None, 'out of memory')


@pytest.mark.parametrize(
    'error, message',
    [
        (tf.errors.FailedPreconditionError, '{{function_node f}} Could not find variable nope. Container worker ...'),
        (tf.errors.FailedPreconditionError, '/runs/a; Directory not empty'),
        (tf.errors.CancelledError, 'Iterator was cancelled'),
    ],
)
def test_what_a_worker_itself_failed_in_is_not_put_down_to_another(error, message):
    with pytest.raises(error):
        with workers_lib.together():
            raise error(None, None, message)
