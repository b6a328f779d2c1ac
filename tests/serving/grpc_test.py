"""Tests of the gRPC interface with the stubs of tensorflow-serving-api."""

import functools
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import classification_pb2
from tensorflow_serving.apis import get_model_metadata_pb2
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import model_management_pb2

from tests.serving import toy_models
from tf_dpdiff.serving import grpc_server
from tf_dpdiff.serving import monitoring
from tf_dpdiff.serving import predict as predict_lib
from tf_dpdiff.serving import servables
from tf_dpdiff.serving import signatures
from tf_dpdiff.serving import status
from tf_dpdiff.serving import versions

VERSION = 3  # Of the model that is served.
Code = grpc.StatusCode
I32, I64 = np.int32, np.int64


@pytest.fixture(name='predict', scope='module')
def fixture_predict(server):
    return toy_models.stubs(server)[0].Predict


def error_of(call, request, timeout=20):
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout)
    return error.value.code(), error.value.details()


def sample(predict, labels, seeds, **more):
    request = toy_models.predict_request(labels=np.array(labels, I32), seeds=np.array(seeds, I64), **more)
    return predict(request, 20)


@pytest.mark.parametrize('more', [{}, {'signature': 'serving_default'}, {'version': 3}])
def test_images_come_for_labels_and_seeds(predict, more):
    response = sample(predict, [2, 0, 1], [5, -7, 2**40 + 1], **more)
    images = tf.make_ndarray(response.outputs['images'])
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, toy_models.images_of([2, 0, 1], [5, -7, 2**40 + 1]))
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == (toy_models.NAME, 3, 'serving_default')


def test_strings_numbers_and_scalars_come_back(predict):
    texts = np.array([b'\x89PNG\xff', b'', b'text'], object)
    outputs = predict(toy_models.predict_request('echo', text=texts), 20).outputs
    assert tf.make_ndarray(outputs['same']).tolist() == texts.tolist()
    outputs = predict(toy_models.predict_request('half', x=np.array([[1, -3]], np.float32)), 20).outputs
    assert tf.make_ndarray(outputs['y']).tolist() == [[0.5, -1.5]]
    outputs = predict(toy_models.predict_request('scalar', x=np.float32(2)), 20).outputs
    assert tf.make_ndarray(outputs['y']) == 3


def test_output_filter_chooses(predict):
    request = toy_models.predict_request('half', x=np.zeros((1, 2), np.float32))
    request.output_filter.append('positive')
    assert set(predict(request, 20).outputs) == {'positive'}
    request.output_filter.append('positive')
    assert error_of(predict, request)[0] is Code.INVALID_ARGUMENT
    request.output_filter[1] = 'nothing'
    assert 'nothing' in error_of(predict, request)[1]


GOOD = {'labels': np.array([1], I32), 'seeds': np.array([2], I64)}


def tensor(dtype, dims, **values):
    result = tensor_pb2.TensorProto(dtype=dtype, **values)
    for dim in dims:
        result.tensor_shape.dim.add(size=dim)
    return result


@pytest.mark.parametrize(
    'inputs, words',
    [
        ({'labels': GOOD['labels']}, "Missing but required: ['seeds']"),
        ({**GOOD, 'more': GOOD['seeds']}, "Sent extra: ['more']"),
        ({**GOOD, 'labels': np.array([1], I64)}, "'labels' must be int32, got int64"),
        ({**GOOD, 'labels': np.array([b'1'], object)}, "'labels' must be int32, got string"),
        ({**GOOD, 'labels': tensor(999, [1])}, 'must be int32, got type 999'),
        ({**GOOD, 'labels': np.array([[1]], I32)}, 'must have shape [?], got [1, 1]'),
        ({**GOOD, 'labels': np.array([1, 2], I32)}, 'equally many rows'),
        ({**GOOD, 'labels': np.array([-1], I32)}, 'labels must not be negative'),
        ({'labels': np.zeros(0, I32), 'seeds': np.zeros(0, I64)}, 'at least one row'),
        ({'labels': np.zeros(17, I32), 'seeds': np.zeros(17, I64)}, 'Task size 17 is larger than maximum'),
        ({**GOOD, 'labels': tensor(types_pb2.DT_INT32, [-1], int_val=[1])}, 'whole shape'),
        ({**GOOD, 'labels': tensor(types_pb2.DT_INT32, [3], tensor_content=b'1234')}, 'does not hold the values'),
        ({**GOOD, 'labels': tensor(types_pb2.DT_INT32, [1], tensor_content=b'123')}, 'does not hold the values'),
        ({**GOOD, 'labels': tensor(types_pb2.DT_INT32, [1], int_val=[1, 2, 3])}, 'does not hold the values'),
        # A few bytes that stand for terabytes.
        ({**GOOD, 'labels': tensor(types_pb2.DT_INT32, [2**40], int_val=[1])}, 'would take'),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else '',
)
def test_inputs_that_do_not_fit_are_invalid(predict, inputs, words):
    code, details = error_of(predict, toy_models.predict_request(**inputs))
    assert code is Code.INVALID_ARGUMENT and words in details


@pytest.mark.parametrize(
    'proto, words',
    [
        (
            tensor(types_pb2.DT_STRING, [17], string_val=[b'a']),
            'Task size 17 is larger than maximum input batch size 16',
        ),
        (tensor(types_pb2.DT_STRING, [2**24], string_val=[b'a']), 'would take'),
        (tensor(types_pb2.DT_STRING, [16], string_val=[b'x' * 10**5]), 'would take'),
        (tensor(types_pb2.DT_STRING, [16], string_val=[b'a', b'x' * 10**5]), 'would take'),
    ],
    ids=['rows', 'strings', 'long string', 'long last string'],
)
def test_few_bytes_that_stand_for_many_take_no_memory(predict, monkeypatch, proto, words):
    read = []
    monkeypatch.setattr(tf, 'make_ndarray', read.append)
    code, details = error_of(predict, toy_models.predict_request('echo', text=proto))
    assert code is Code.INVALID_ARGUMENT and words in details and not read


def test_text_that_is_repeated_is_taken_if_small(predict):
    text = tensor(types_pb2.DT_STRING, [16], string_val=[b'a', b'bc'])
    outputs = predict(toy_models.predict_request('echo', text=text), 20).outputs
    assert tf.make_ndarray(outputs['same']).tolist() == [b'a'] + [b'bc'] * 15


@pytest.mark.parametrize(
    'spec, code, words',
    [
        ({'name': 'other'}, Code.NOT_FOUND, 'Servable not found for request: Latest(other)'),
        ({'version': 9}, Code.NOT_FOUND, 'Servable not found for request: Specific(toys, 9)'),
        ({'signature': 'other'}, Code.FAILED_PRECONDITION, 'Serving signature key "other" not found'),
        ({'signature': '__saved_model_init_op'}, Code.FAILED_PRECONDITION, 'not found'),
    ],
)
def test_what_is_not_there_is_said(predict, spec, code, words):
    found, details = error_of(predict, toy_models.predict_request(**spec, **GOOD))
    assert found is code and words in details


def test_label_of_a_version_is_invalid(predict):
    request = toy_models.predict_request(**GOOD)
    request.model_spec.version_label = 'stable'
    assert error_of(predict, request)[0] is Code.INVALID_ARGUMENT


@pytest.mark.parametrize('size', [2**21, 2**27])
@pytest.mark.parametrize('compression', [None, grpc.Compression.Gzip])
def test_message_that_is_too_large_is_refused_packed_or_not(predict, compression, size):
    request = toy_models.predict_request('echo', text=np.array([b'x' * size], object))
    with pytest.raises(grpc.RpcError) as error:
        predict(request, 20, compression=compression)
    assert error.value.code() is Code.RESOURCE_EXHAUSTED
    assert sample(predict, [1], [2]).outputs


def test_answer_may_be_larger_than_a_request(predict):
    response = predict(toy_models.predict_request('wide', n=np.ones(4, I32)), 20)
    assert tf.make_ndarray(response.outputs['x']).shape == (4, toy_models.WIDE)


def test_metadata_holds_the_signatures(server):
    call = toy_models.stubs(server)[0].GetModelMetadata
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=['signature_def'])
    assert error_of(call, request) == (Code.INVALID_ARGUMENT, 'Missing ModelSpec')
    request.model_spec.name = toy_models.NAME
    response = call(request, 20)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata['signature_def'].Unpack(found) and response.model_spec.version.value == 3
    assert found.signature_def['serving_default'].inputs['seeds'].dtype == types_pb2.DT_INT64
    request.metadata_field.append('weights')
    assert error_of(call, request) == (Code.INVALID_ARGUMENT, 'Metadata field weights is not supported')
    del request.metadata_field[:]
    assert error_of(call, request)[0] is Code.INVALID_ARGUMENT


def test_status_tells_the_versions(server):
    call = toy_models.stubs(server)[1].GetModelStatus
    request = get_model_status_pb2.GetModelStatusRequest()
    assert error_of(call, request) == (Code.INVALID_ARGUMENT, 'Missing ModelSpec')
    request.model_spec.name = toy_models.NAME
    (entry,) = call(request, 20).model_version_status
    assert (entry.version, entry.state) == (3, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    assert (entry.status.error_code, entry.status.error_message) == (0, '')
    request.model_spec.version.value = 4
    assert error_of(call, request)[0] is Code.NOT_FOUND


def test_methods_that_are_not_served_say_so(server):
    prediction, models = toy_models.stubs(server)
    assert error_of(prediction.Classify, classification_pb2.ClassificationRequest())[0] is Code.UNIMPLEMENTED
    assert (
        error_of(models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest())[0] is Code.UNIMPLEMENTED
    )


@pytest.fixture(name='gate')
def fixture_gate(monkeypatch):
    """Lets models answer only when it is set; counts how often one was run."""
    gate, run = threading.Event(), signatures.Signature.run
    gate.runs = []

    def wait_and_run(self, inputs):
        gate.runs.append(next(iter(inputs.values())).tolist())
        gate.wait(10)
        return run(self, inputs)

    monkeypatch.setattr(signatures.Signature, 'run', wait_and_run)
    yield gate
    gate.set()


def test_deadline_of_the_client_is_kept_and_its_request_not_run(predict, gate):
    first = predict.future(toy_models.predict_request(**GOOD), 20)
    toy_models.wait_until(lambda: gate.runs)
    started = time.monotonic()
    assert error_of(predict, toy_models.predict_request(**GOOD), 0.2)[0] is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5
    time.sleep(0.1)
    gate.set()
    assert first.result().outputs
    assert sample(predict, [1], [2]).outputs and len(gate.runs) == 2


def test_request_of_a_client_that_is_gone_is_not_run(predict, gate):
    first = predict.future(toy_models.predict_request(**GOOD), 20)
    toy_models.wait_until(lambda: gate.runs)
    gone = predict.future(toy_models.predict_request(labels=np.array([9], I32), seeds=GOOD['seeds']), 20)
    time.sleep(0.2)
    gone.cancel()
    time.sleep(0.2)
    gate.set()
    assert first.result().outputs
    assert sample(predict, [1], [2]).outputs and [9] not in gate.runs


def test_full_queue_is_unavailable(server, predict, gate):
    first = predict.future(toy_models.predict_request(**GOOD), 20)
    toy_models.wait_until(lambda: gate.runs)
    limits = toy_models.quick_limits().batching
    more = [predict.future(toy_models.predict_request(**GOOD), 20) for _ in range(limits.max_queue + 5)]
    toy_models.wait_until(lambda: sum(call.done() for call in more) == 5)
    refused = [call.exception() for call in more if call.done()]
    assert {error.code() for error in refused} == {Code.UNAVAILABLE}
    assert toy_models.post(server, {'instances': [{'labels': 1, 'seeds': 1}]})[0] == 503
    gate.set()
    assert first.result() and sum(call.exception() is None for call in more) == limits.max_queue


def test_calls_that_send_no_message_do_not_hold_threads(folder, monkeypatch):
    monkeypatch.setattr(grpc_server, 'MESSAGE_TIMEOUT_SECS', 0.3)
    limits, stop = toy_models.quick_limits(max_queue=1, max_batch_size=1), threading.Event()
    with toy_models.serving(folder, limits=limits) as server:
        channel = grpc.insecure_channel(f'127.0.0.1:{server.grpc_port}')
        call = channel.stream_unary('/tensorflow.serving.PredictionService/Predict')
        stalled = [call.future(toy_models.no_message(stop)) for _ in range(limits.max_open_requests + 10)]
        time.sleep(0.1)
        assert sample(toy_models.stubs(server)[0].Predict, [1], [2]).outputs
        assert {future.exception(10).code() for future in stalled} == {Code.CANCELLED}
        stop.set()


@pytest.mark.parametrize('messages, code', [([], Code.UNIMPLEMENTED), ([b'\xff'], Code.INVALID_ARGUMENT)])
def test_message_that_is_none_is_told(server, messages, code):
    channel = grpc.insecure_channel(f'127.0.0.1:{server.grpc_port}')
    call = channel.stream_unary('/tensorflow.serving.PredictionService/Predict')
    with pytest.raises(grpc.RpcError) as error:
        call(iter(messages), 20)
    assert error.value.code() is code


@pytest.mark.parametrize('secs', [0.2, 30.0])
def test_answer_that_nobody_reads_is_dropped_after_a_while(server, monkeypatch, secs):
    monkeypatch.setattr(grpc_server, 'STALLED_SECS', secs)
    channel = grpc.insecure_channel(f'127.0.0.1:{server.grpc_port}', [('grpc.max_receive_message_length', -1)])
    call = channel.unary_stream('/tensorflow.serving.PredictionService/Predict')
    answer = call(toy_models.predict_request('wide', n=np.ones(16, I32)).SerializeToString(), timeout=20)
    time.sleep(1.0)
    if secs > 1:
        assert len(next(answer)) > 16 * 4 * toy_models.WIDE
    else:
        with pytest.raises(grpc.RpcError) as error:
            next(answer)
        assert error.value.code() is Code.CANCELLED


def test_large_requests_are_refused_where_there_are_too_many(folder, gate, monkeypatch):
    monkeypatch.setattr(predict_lib, '_OPEN_BYTES', 2**20)
    with toy_models.serving(folder) as server:  # It takes four of the largest messages.
        call = toy_models.stubs(server)[0].Predict
        large = toy_models.predict_request('echo', text=np.array([b'x' * 900_000], object))
        held = [call.future(large, 20) for _ in range(4)]
        time.sleep(0.5)
        code, details = error_of(call, large)
        assert code is Code.UNAVAILABLE and 'too many large requests' in details
        document = {'signature_name': 'echo', 'instances': ['x' * 900_000]}
        assert toy_models.post(server, document)[0] == 503
        gate.set()
        assert all(future.result().outputs for future in held)
        assert toy_models.post(server, document)[0] == 200 and call(large, 20).outputs


def test_budget_is_given_back_and_not_overdrawn():
    budget = predict_lib.ByteBudget(10)
    with budget.share() as share:
        share.take(6)
        with pytest.raises(status.ServingError), budget.share() as other:
            other.take(3)
            other.take(2)
        with budget.share() as other:
            other.take(4)
    with budget.share() as share:
        share.take(10)


class Context:
    """Of a call that is over."""

    def __init__(self, remaining, is_watched):
        self.time_remaining, self.add_callback = lambda: remaining, lambda unused_callback: is_watched
        self.is_active, self.code = lambda: True, None

    def abort(self, code, unused_details):
        """Keeps the code."""
        self.code = code


@pytest.mark.parametrize(
    'remaining, is_watched, code',
    [(0.0, True, Code.DEADLINE_EXCEEDED), (9.0, False, Code.CANCELLED), (None, True, None)],
)
def test_call_that_is_over_is_not_run(folder, gate, remaining, is_watched, code):
    gate.set()
    limits = toy_models.quick_limits()
    manager = versions.VersionManager(
        folder, toy_models.NAME, functools.partial(servables.Servable, config=limits.batching)
    )
    manager.load_first()
    core = predict_lib.Core(manager, limits, monitoring.Metrics(toy_models.NAME))
    context = Context(remaining, is_watched)
    grpc_server._PredictionService(core).Predict(toy_models.predict_request(**GOOD), context)
    manager.close()
    assert context.code is code and bool(gate.runs) == (code is None)
