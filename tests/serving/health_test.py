"""Tests of gRPC's health checks with the stub of the package that defines them."""

import contextlib
import socket
import threading
import time

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1 import health_pb2_grpc
import numpy as np
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.serving import toy_models
from tf_dpdiff.serving import grpc_health
from tf_dpdiff.serving import grpc_server
from tf_dpdiff.serving import monitoring
from tf_dpdiff.serving import predict as predict_lib
from tf_dpdiff.serving import security as security_lib
from tf_dpdiff.serving import servables
from tf_dpdiff.serving import server as server_lib
from tf_dpdiff.serving import signatures
from tf_dpdiff.serving import versions

Code = grpc.StatusCode
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    getattr(health_pb2.HealthCheckResponse, name) for name in ('SERVING', 'NOT_SERVING', 'SERVICE_UNKNOWN')
)
_TOKEN = 'a-token-of-the-tests-0123'
_SERVICES = [
    '',
    toy_models.NAME,
    'PredictionService',
    'ModelService',
    'tensorflow.serving.PredictionService',
    'tensorflow.serving.ModelService',
]


@contextlib.contextmanager
def health(port):
    with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
        yield health_pb2_grpc.HealthStub(channel)


def request(service=''):
    return health_pb2.HealthCheckRequest(service=service)


def check(port, service='', **more):
    """Asks by Check; returns the status, or the code of the error."""
    with health(port) as stub:
        try:
            return stub.Check(request(service), 10, **more).status
        except grpc.RpcError as error:
            return error.code()


def predict_code(port, **more):
    """Returns how Predict ends."""
    with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
        call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        try:
            call(toy_models.predict_request('scalar', x=np.float32(1)), 10, **more)
            return Code.OK
        except grpc.RpcError as error:
            return error.code()


@pytest.mark.parametrize('service', _SERVICES)
def test_check_says_that_what_is_served_is_served(server, service):
    assert check(server.grpc_port, service) == SERVING


@pytest.mark.parametrize('service', [f'{toy_models.NAME}2', 'grpc.health.v1.Health', '\0', 'x' * 5000])
def test_check_of_what_is_not_served_is_not_found(server, service):
    assert check(server.grpc_port, service) is Code.NOT_FOUND


def test_watch_says_how_it_is_at_once_and_goes_on(server):
    with health(server.grpc_port) as stub:
        for service, status in (('', SERVING), (toy_models.NAME, SERVING), ('other', SERVICE_UNKNOWN)):
            call = stub.Watch(request(service), timeout=1.0)
            assert next(call).status == status
            with pytest.raises(grpc.RpcError) as error:  # Neither said again, nor ended.
                next(call)
            assert error.value.code() is Code.DEADLINE_EXCEEDED


def test_watch_tells_changes_and_ends_with_the_server(folder):
    with toy_models.serving(folder) as server, health(server.grpc_port) as stub:
        call = stub.Watch(request(), timeout=20)
        assert next(call).status == SERVING
        gate = server._core.gate
        for change, status in ((gate.close, NOT_SERVING), (gate.open, SERVING)):
            change()
            assert next(call).status == status
        started = time.monotonic()
        assert server.stop(30.0)
        assert [answer.status for answer in call] == [NOT_SERVING] and call.code() is Code.OK
        assert time.monotonic() - started < 10  # Whoever watches does not hold up the end.


def test_server_that_loads_its_model_does_not_serve_yet(folder, monkeypatch):
    gate, loading, load = threading.Event(), threading.Event(), servables.Servable
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        port = unused.getsockname()[1]

    def wait_and_load(*arguments, **more):
        loading.set()
        gate.wait(30)
        return load(*arguments, **more)

    monkeypatch.setattr(servables, 'Servable', wait_and_load)
    config = server_lib.ServerConfig(rest_port=0, grpc_port=port, limits=toy_models.quick_limits())
    made = []
    thread = threading.Thread(target=lambda: made.append(server_lib.ModelServer(folder, toy_models.NAME, config)))
    thread.start()
    assert loading.wait(10)
    assert check(port) == NOT_SERVING and check(port, toy_models.NAME) == NOT_SERVING
    assert predict_code(port) is Code.UNAVAILABLE
    gate.set()
    thread.join()
    assert check(port) == NOT_SERVING  # It is not started.
    made[0].start()
    assert check(port) == SERVING and predict_code(port) is Code.OK
    made[0].stop(10.0)


def test_server_that_cannot_load_its_model_leaves_no_port_open(tmp_path):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        port = unused.getsockname()[1]
    config = server_lib.ServerConfig(rest_port=0, grpc_port=port, limits=toy_models.quick_limits())
    with pytest.raises(FileNotFoundError):
        server_lib.ModelServer(tmp_path, toy_models.NAME, config)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', port), 5)


@pytest.mark.parametrize('has_port', [False, True])
def test_server_that_drains_says_so_answers_what_has_begun_and_takes_nothing_new(folder, monkeypatch, has_port):
    gate, ran, run = threading.Event(), threading.Event(), signatures.Signature.run

    def wait_and_run(self, inputs):
        ran.set()
        gate.wait(20)
        return run(self, inputs)

    with toy_models.serving(folder, health_port=0 if has_port else None) as server:
        port = server.health_port if has_port else server.grpc_port
        assert check(port) == SERVING
        monkeypatch.setattr(signatures.Signature, 'run', wait_and_run)
        predict = toy_models.stubs(server)[0].Predict
        begun = predict.future(toy_models.predict_request('scalar', x=np.float32(1)), 20)
        assert ran.wait(10)
        stopped = []
        stopping = threading.Thread(target=lambda: stopped.append(server.stop(20.0)))
        stopping.start()
        toy_models.wait_until(lambda: check(port) == NOT_SERVING)
        assert check(port, toy_models.NAME) == NOT_SERVING
        assert predict_code(server.grpc_port) is Code.UNAVAILABLE
        assert not begun.done() and not stopped
        gate.set()
        assert begun.result(10).outputs
        stopping.join()
        assert stopped == [True] and check(port) is Code.UNAVAILABLE


def test_drain_ends_with_the_grace_it_is_given(folder, monkeypatch):
    gate, ran = threading.Event(), threading.Event()

    def wait(unused_self, unused_inputs):
        ran.set()
        gate.wait(20)
        return {'y': np.float32(0)}

    monkeypatch.setattr(signatures.Signature, 'run', wait)
    with toy_models.serving(folder) as server:
        monkeypatch.setattr(server_lib, '_UNLOAD_SECS', 0.1)
        begun = toy_models.stubs(server)[0].Predict.future(toy_models.predict_request('scalar', x=np.float32(1)), 20)
        assert ran.wait(10)
        started = time.monotonic()
        assert not server.stop(0.5)
        assert time.monotonic() - started < 8 and begun.exception(10) is not None
        gate.set()


@pytest.mark.parametrize('number', [None, 0, 7])
def test_only_an_open_server_with_a_version_serves(tmp_path, number):
    folder = tmp_path / toy_models.NAME
    manager = versions.VersionManager(folder, toy_models.NAME, lambda folder: Loaded())
    if number is not None:
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / 'saved_model.pb').touch()
        manager.load_first()
    core = predict_lib.Core(manager, toy_models.quick_limits(), monitoring.Metrics(toy_models.NAME))
    assert not core.is_serving()
    core.gate.open()
    assert core.is_serving() == (number is not None)
    manager.close()
    assert not core.is_serving()


class Loaded:
    """Stands in for a servable."""

    def close(self):
        """See `Servable`."""


def test_clients_that_watch_have_a_limit_of_their_own_and_give_their_place_back(folder, monkeypatch):
    monkeypatch.setattr(grpc_health, 'MAX_WATCHERS', 3)
    limits = toy_models.quick_limits(max_queue=1, max_batch_size=1)
    with toy_models.serving(folder, limits=limits) as server, health(server.grpc_port) as stub:
        calls = [stub.Watch(request(), timeout=30) for _ in range(3)]
        assert [next(call).status for call in calls] == [SERVING] * 3
        with pytest.raises(grpc.RpcError) as error:
            next(stub.Watch(request(), timeout=10))
        assert error.value.code() is Code.RESOURCE_EXHAUSTED
        assert check(server.grpc_port) == SERVING and predict_code(server.grpc_port) is Code.OK
        calls[0].cancel()

        def is_taken():
            try:
                return next(stub.Watch(request(), timeout=10)).status == SERVING
            except grpc.RpcError:
                return False

        toy_models.wait_until(is_taken)


def test_more_watch_than_other_requests_may_be_open_and_none_is_held_up(folder):
    limits = toy_models.quick_limits(max_queue=1, max_batch_size=1)
    assert limits.max_open_requests < grpc_health.MAX_WATCHERS
    with toy_models.serving(folder, limits=limits) as server, health(server.grpc_port) as stub:
        calls = [stub.Watch(request(), timeout=30) for _ in range(grpc_health.MAX_WATCHERS)]
        assert {next(call).status for call in calls} == {SERVING}
        assert predict_code(server.grpc_port) is Code.OK


def test_token_is_asked_for_on_the_main_port_and_not_on_that_of_health_checks(folder):
    with toy_models.serving(folder, security=security_lib.Security(_TOKEN), health_port=0) as server:
        metadata = [('authorization', f'Bearer {_TOKEN}')]
        assert check(server.grpc_port) is Code.UNAUTHENTICATED
        assert check(server.grpc_port, metadata=metadata) == SERVING
        with health(server.grpc_port) as stub:
            with pytest.raises(grpc.RpcError) as error:
                next(stub.Watch(request(), timeout=10))
            assert error.value.code() is Code.UNAUTHENTICATED
            assert next(stub.Watch(request(), timeout=10, metadata=metadata)).status == SERVING
        assert check(server.health_port) == SERVING
        for given in ([], metadata):  # Nothing else is answered there, whoever asks.
            assert predict_code(server.health_port, metadata=given) is Code.UNIMPLEMENTED


def test_checks_that_send_no_message_do_not_keep_others_out(folder, monkeypatch):
    monkeypatch.setattr(grpc_server, 'MESSAGE_TIMEOUT_SECS', 0.5)
    stop = threading.Event()
    with toy_models.serving(folder, health_port=0) as server:
        with grpc.insecure_channel(f'127.0.0.1:{server.health_port}') as channel:
            for method in ('Check', 'Watch'):
                call = channel.stream_stream(f'{grpc_health.PREFIX}{method}')
                stalled = [call(toy_models.no_message(stop), timeout=20) for _ in range(100)]
                toy_models.wait_until(lambda: check(server.health_port) == SERVING)
                toy_models.wait_until(lambda stalled=stalled: all(one.code() for one in stalled))
                assert {one.code() for one in stalled} <= {Code.CANCELLED, Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED}
            stop.set()


@pytest.mark.parametrize('message', [b'\xff', b'\x0a\x02\xff\xff'])
def test_message_that_is_none_is_told(server, message):
    with grpc.insecure_channel(f'127.0.0.1:{server.grpc_port}') as channel:
        for method in ('Check', 'Watch'):
            call = channel.unary_stream(f'{grpc_health.PREFIX}{method}')
            with pytest.raises(grpc.RpcError) as error:
                next(call(message, timeout=10))
            assert error.value.code() is Code.INVALID_ARGUMENT
