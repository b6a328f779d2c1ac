"""Tests of bin/serve: what it prints, what it refuses, and that a stop under load loses no request."""

import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1 import health_pb2_grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tests.cli import verbs
from tests.serving import toy_models
from tf_dpdiff.cli import command
from tf_dpdiff.cli import serve
from tf_dpdiff.serving import servables

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(name='folder', scope='module')
def fixture_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models') / toy_models.NAME
    toy_models.export(folder, 1)
    return folder


class Process:
    """The command in a process of its own."""

    def __init__(self, folder, *flags):
        arguments = [sys.executable, '-m', 'tf_dpdiff.cli', 'serve', str(folder), '--rest_port=0', '--grpc_port=0']
        self.process = subprocess.Popen(
            [*arguments, *flags],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'PYTHONUNBUFFERED': '1'},
        )
        lines = []
        while not lines or lines[-1] and not lines[-1].startswith('serving version 1'):
            lines.append(self.process.stdout.readline())
        found = [
            re.fullmatch(rf'{kind}://127.0.0.1:(\d+)/{path}\n', line.split(': ', 1)[-1])
            for kind, path, line in (
                ('http', f'v1/models/{toy_models.NAME}', lines[0]),
                ('grpc', toy_models.NAME, lines[1]),
            )
        ]
        assert all(found), (lines, self.process.stderr.read())
        assert lines[-1].startswith('serving version 1')
        self.more = lines[2:-1]
        self.rest_port, self.grpc_port = (int(match[1]) for match in found)

    def __enter__(self):
        return self

    def __exit__(self, *unused_error):
        self.process.kill()
        self.process.communicate()

    def end(self, number):
        """Sends a signal; returns the exit code and what was printed since."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def spin_answers(server, stop, answered, lost):
    """Asks again and again on fresh connections; notes those that were begun and not answered."""
    while not stop.is_set():
        connection = http.client.HTTPConnection('127.0.0.1', server.rest_port, timeout=60)
        try:
            connection.connect()
        except OSError:
            return  # It listens no more.
        try:
            body = json.dumps({'signature_name': 'spin', 'instances': [20000]})
            connection.request('POST', f'/v1/models/{toy_models.NAME}:predict', body)
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())) == (200, {'predictions': [20000]})
            answered.append(time.monotonic())
        except (OSError, http.client.HTTPException, AssertionError) as error:
            lost.append(error)
        finally:
            connection.close()


@pytest.mark.parametrize('number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_stop_under_load_answers_requests_that_have_begun(folder, number):
    with Process(folder, '--max_batch_size=4') as server:
        prediction, _ = toy_models.stubs(server)
        assert toy_models.post(server, {'signature_name': 'spin', 'instances': [1]})[0] == 200
        stop, answered, lost = threading.Event(), [], []
        threads = [threading.Thread(target=spin_answers, args=(server, stop, answered, lost)) for _ in range(3)]
        for thread in threads:
            thread.start()
        toy_models.wait_until(lambda: len(answered) > 3, 30)
        calls = [
            prediction.Predict.future(toy_models.predict_request('spin', n=np.array([30000], np.int32)), 60)
            for _ in range(8)
        ]
        time.sleep(0.3)  # They wait in the server now.
        stopped = time.monotonic()
        code, out, err = server.end(number)
        stop.set()
        for thread in threads:
            thread.join()
        assert code == 0 and 'stopped' in out and 'Traceback' not in err
        assert all(call.exception() is None for call in calls)
        assert max(answered) > stopped  # Some were answered after the signal, ...
        # ... and any that was not was on a connection that waited for the listener when it closed: it had not begun.
        assert {type(error) for error in lost} <= {ConnectionResetError}
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(('127.0.0.1', server.rest_port), 5)


@pytest.mark.long  # server_versions_test stops a server in this state without a process of its own.
def test_stop_while_a_version_loads_is_no_error(folder, tmp_path):
    shutil.copytree(folder, tmp_path / toy_models.NAME)
    new = shutil.copytree(folder / '1', tmp_path / '2')
    log = prediction_log_pb2.PredictionLog()  # Its warm-up does not end.
    log.predict_log.request.CopyFrom(toy_models.predict_request('spin', n=np.array([2**31 - 1], np.int32)))
    (new / servables.WARMUP).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(new / servables.WARMUP)) as writer:
        writer.write(log.SerializeToString())
    with Process(tmp_path / toy_models.NAME, '--poll_secs=0.1') as server:
        new.rename(tmp_path / toy_models.NAME / '2')
        toy_models.wait_until(lambda: '"LOADING"' in json.dumps(toy_models.call(server.rest_port)[1]))
        time.sleep(0.5)
        started = time.monotonic()
        code, out, err = server.end(signal.SIGTERM)
        assert code == command.DONE and 'stopped' in out and 'error' not in err
        assert time.monotonic() - started < 5


def test_stop_does_not_wait_longer_than_it_is_told_and_there_is_one_port_for_all(folder):
    with Process(folder, '--grace_secs=0.5') as server:
        # Unasked, probes have no port of their own.
        assert (
            server.more == [f'page for browsers: http://127.0.0.1:{server.rest_port}/\n']
            and check(server.grpc_port) == health_pb2.HealthCheckResponse.SERVING
        )
        prediction, _ = toy_models.stubs(server)
        call = prediction.Predict.future(toy_models.predict_request('spin', n=np.array([2**31 - 1], np.int32)), 60)
        time.sleep(0.5)
        started = time.monotonic()
        code, _, err = server.end(signal.SIGTERM)
        assert code == command.FAILED and err.count('serve: error: not all requests were answered') == 1
        assert time.monotonic() - started < 15 and call.exception() is not None


def check(port):
    """Asks as a probe does; returns the status, or the code of the error."""
    with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
        try:
            return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), 10).status
        except grpc.RpcError as error:
            return error.code()


@pytest.mark.long  # health_test asks a server that drains without a process of its own.
def test_probes_are_answered_on_a_port_of_their_own_until_the_last_answer_is_given(folder):
    with Process(folder, '--health_port=0', '--grace_secs=20', '--no_page') as server:
        (line,) = server.more
        (port,) = re.fullmatch(r'health checks alone, by gRPC for everyone: 127.0.0.1:(\d+)\n', line).groups()
        assert check(port) == check(server.grpc_port) == health_pb2.HealthCheckResponse.SERVING
        prediction, _ = toy_models.stubs(server)
        call = prediction.Predict.future(toy_models.predict_request('spin', n=np.array([10**6], np.int32)), 60)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        toy_models.wait_until(lambda: check(port) == health_pb2.HealthCheckResponse.NOT_SERVING)
        assert call.exception() is None
        assert server.process.wait(60) == command.DONE and check(port) is grpc.StatusCode.UNAVAILABLE


def test_port_in_use_is_one_line(folder, capsys):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        for kind in ('rest', 'grpc', 'health'):
            flags = {'rest': 0, 'grpc': 0, kind: port}
            code = verbs.call(serve, str(folder), *(f'--{name}_port={value}' for name, value in flags.items()))
            message = capsys.readouterr().err
            assert code == command.FAILED and message.count('\n') == 1
            assert f':{port}' in message and f'--{kind}_port' in message


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--host=0.0.0.0'], 'needs --tls_certificate, --tls_key and --token_file'),
        (['--host=no.such.host.invalid'], 'is no address'),
        (['--model_name=a/b'], "--model_name='a/b' cannot stand in an address"),
        (['--max_batch_size=0'], 'max_batch_size must be at least 1'),
        (['--allowed_batch_sizes=4'], 'allowed_batch_sizes must increase and end with max_batch_size=256'),
        (['--allowed_batch_sizes=4,many'], "'4,many' is not whole numbers with commas between"),
        (['--batch_timeout_ms=-1'], 'batch_timeout_secs'),
        (['--max_queue=0'], 'max_queue must be at least 1'),
        (['--request_timeout_secs=0'], 'request_timeout_secs must be in'),
        (['--max_message_mib=0'], '--max_message_mib must be in'),
        (['--max_message_mib=0.0001'], 'max_message_bytes must be in'),
        (['--max_message_mib=nan'], 'max_message_mib'),
        (['--poll_secs=0'], 'poll_secs must be in'),
        (['--grace_secs=-1'], '--grace_secs must be in'),
        (['--rest_port=70000'], 'rest_port must be in'),
        (['--health_port=-1'], 'health_port must be in'),
        (['--tls_certificate=missing.pem'], 'TLS needs both'),
        (['--tls_certificate=/nope', '--tls_key=/nope2'], '--tls_certificate=/nope cannot be read: No such file'),
        (['--token_file=missing'], '--token_file=missing cannot be read: No such file'),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, capsys, flags, words):
    assert verbs.call(serve, str(folder), *flags) == command.WRONG_USE
    message = capsys.readouterr().err
    assert words in message and message.count('\n') == 1 and message.startswith('serve: error: ')


@pytest.mark.parametrize('damage', [None, b'no graph'])
def test_folder_without_a_model_is_refused_in_one_line(tmp_path, capsys, damage):
    folder = tmp_path / 'toys'
    if damage:
        (folder / '1').mkdir(parents=True)
        (folder / '1' / 'saved_model.pb').write_bytes(damage)
    assert verbs.call(serve, str(folder), '--rest_port=0', '--grpc_port=0') == command.WRONG_USE
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith('serve: ')]
    assert len(message) == 1 and str(folder) in message[0]
