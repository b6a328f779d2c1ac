"""Tests of the REST interface: its JSON and status codes are TensorFlow Serving's, and no client can hurt it."""

import base64
import http.client
import json
import resource
import shutil
import socket
import struct
import subprocess
import time

import numpy as np
import pytest

from tests.serving import toy_models
from tf_dpdiff.serving import http_protocol
from tf_dpdiff.serving import rest_server

VERSION = 3  # Of the model that is served.
_BINARY = b'\x89PNG\xff'
_LIMIT = toy_models.quick_limits().max_message_bytes


def b64(data):
    return {'b64': base64.b64encode(data).decode()}


def test_rows_and_columns_give_the_same_images(server):
    labels, seeds = [2, 0, 1], [5, -7, 2**40 + 1]
    expected = toy_models.images_of(labels, seeds).tolist()
    rows = [{'labels': label, 'seeds': seed} for label, seed in zip(labels, seeds)]
    assert toy_models.post(server, {'instances': rows}) == (200, {'predictions': expected})
    columns = {'signature_name': 'serving_default', 'inputs': {'labels': labels, 'seeds': seeds}}
    assert toy_models.post(server, columns) == (200, {'outputs': expected})
    assert toy_models.post(server, columns, '/versions/3:predict') == (200, {'outputs': expected})


def test_several_outputs_are_named(server):
    rows = {'signature_name': 'half', 'instances': [[1, 2.5], [-1, 0.4]]}
    assert toy_models.post(server, rows) == (
        200,
        {'predictions': [{'positive': [True, True], 'y': [0.5, 1.25]}, {'positive': [False, True], 'y': [-0.5, 0.2]}]},
    )
    columns = {'signature_name': 'half', 'inputs': {'x': [[1, 2.5]]}}
    assert toy_models.post(server, columns) == (200, {'outputs': {'positive': [[True, True]], 'y': [[0.5, 1.25]]}})


def test_strings_are_text_or_base64_by_the_name_of_the_output(server):
    given = {'signature_name': 'echo', 'instances': ['Grüße', b64(b'plain'), b64(_BINARY)]}
    code, answer = toy_models.post(server, given)
    assert code == 200
    assert [row['same_bytes'] for row in answer['predictions']] == [b64('Grüße'.encode()), b64(b'plain'), b64(_BINARY)]
    # What is no text cannot be text in JSON.
    assert [row['same'] for row in answer['predictions']] == ['Grüße', 'plain', b64(_BINARY)]


def test_signature_without_rows_takes_columns(server):
    assert toy_models.post(server, {'signature_name': 'scalar', 'inputs': 1.5}) == (200, {'outputs': 2.5})
    code, answer = toy_models.post(server, {'signature_name': 'scalar', 'instances': [1.5]})
    assert code == 400 and 'shape []' in answer['error']


def test_numbers_that_json_does_not_have_go_both_ways(server):
    code, answer = toy_models.post(server, b'{"signature_name": "half", "instances": [[NaN, -Infinity]]}')
    row = answer['predictions'][0]['y']
    assert code == 200 and np.isnan(row[0]) and row[1] == -np.inf


def test_status_and_metadata_have_the_documented_shape(server):
    entry = {'version': '3', 'state': 'AVAILABLE', 'status': {'error_code': 'OK', 'error_message': ''}}
    for path in ('', '/versions/3'):
        assert toy_models.call(server.rest_port, path=path) == (200, {'model_version_status': [entry]})
    for path in ('/metadata', '/versions/3/metadata'):
        code, answer = toy_models.call(server.rest_port, path=path)
        assert code == 200 and set(answer) == {'model_spec', 'metadata'}
        assert answer['model_spec'] == {'name': toy_models.NAME, 'signature_name': '', 'version': '3'}
        signature = answer['metadata']['signature_def']['signature_def']['serving_default']
        assert signature['method_name'] == 'tensorflow/serving/predict'
        assert signature['inputs']['labels']['dtype'] == 'DT_INT32'
        shape = signature['outputs']['images']['tensor_shape']
        assert [axis['size'] for axis in shape['dim']] == ['-1', '2', '2', '1'] and shape['unknown_rank'] is False


def test_metrics_count_what_was_asked(server):

    def count():
        connection = http.client.HTTPConnection('127.0.0.1', server.rest_port)
        connection.request('GET', '/monitoring/prometheus/metrics')
        answer = connection.getresponse()
        assert answer.status == 200 and answer.headers['content-type'].startswith('text/plain')
        wanted = f'requests_total{{api="REST",code="NOT_FOUND",method="Predict",model_name="{toy_models.NAME}"}}'
        return sum(float(line.split()[-1]) for line in answer.read().decode().splitlines() if wanted in line)

    before = count()
    toy_models.post(server, {'instances': [1]}, '/versions/77:predict')
    assert count() == before + 1


@pytest.mark.parametrize(
    'method, path, body, code, words',
    [
        ('GET', 'x', None, 404, 'Could not find any versions of model toysx'),
        ('GET', '/versions/4', None, 404, 'Could not find version 4 of model toys'),
        ('GET', 'x/metadata', None, 404, 'Servable not found for request: Latest(toysx)'),
        ('POST', 'x:predict', {'instances': [1]}, 404, 'Servable not found for request: Latest(toysx)'),
        ('POST', '/versions/4:predict', {'instances': [1]}, 404, 'Servable not found for request: Specific(toys, 4)'),
        ('POST', '/labels/stable:predict', {'instances': [1]}, 400, 'Unrecognized servable version label: stable'),
        ('GET', f'/versions/{2**63 - 1}', None, 404, f'Could not find version {2**63 - 1} of model toys'),
        ('GET', f'/versions/{2**63}', None, 400, 'Failed to convert version'),
        ('GET', f'/versions/{"9" * 5000}', None, 400, 'Failed to convert version'),
        ('GET', ':predict', None, 400, 'Malformed request: GET /v1/models/toys:predict'),
        ('POST', '', {}, 400, 'Malformed request: POST'),
        ('PUT', ':predict', {}, 400, 'Malformed request: PUT'),
        ('DELETE', '', None, 400, 'Malformed request: DELETE'),
        ('BREW', '', None, 501, 'Not implemented: BREW'),
        ('GET', '/versions/one', None, 400, 'Malformed request'),
        ('GET', '/../../secret', None, 400, 'Malformed request'),
        ('POST', ':classify', {'examples': [{}]}, 501, 'not classify'),
        ('POST', ':predict', b'', 400, 'JSON Parse error'),
        ('POST', ':predict', b'{"instances": [', 400, 'JSON Parse error'),
        ('POST', ':predict', b'\xff\xfe{}', 400, 'JSON Parse error'),
        ('POST', ':predict', b'[' * 100000, 400, 'nested too deeply'),
        ('POST', ':predict', b'9' * 5000, 400, 'JSON Parse error'),
        ('POST', ':predict', [1], 400, 'Is not object'),
        ('POST', ':predict', {}, 400, "Missing 'inputs' or 'instances' key"),
        ('POST', ':predict', {'instances': [1], 'inputs': [1]}, 400, 'only one of'),
        ('POST', ':predict', {'signature_name': 1, 'instances': [1]}, 400, 'must be a string'),
        ('POST', ':predict', {'signature_name': 'no', 'instances': [1]}, 400, 'Serving signature key "no" not found'),
        ('POST', ':predict', {'instances': {}}, 400, 'list/array'),
        ('POST', ':predict', {'instances': []}, 400, "No values in 'instances' array"),
        ('POST', ':predict', {'instances': [1]}, 400, 'must be named'),
        ('POST', ':predict', {'instances': [{'labels': 1}]}, 400, 'with the keys: labels,seeds'),
        ('POST', ':predict', {'instances': [{'labels': 1, 'seeds': 1, 'x': 1}]}, 400, 'with the keys: labels,seeds'),
        ('POST', ':predict', {'instances': [{'labels': 1, 'seeds': 1}, 4]}, 400, 'process element: 1'),
        ('POST', ':predict', {'inputs': {'labels': [1]}}, 400, 'Missing named input: seeds'),
        ('POST', ':predict', {'inputs': {'labels': [1], 'seeds': [1, 2]}}, 400, 'equally many rows'),
        ('POST', ':predict', {'inputs': {'labels': [], 'seeds': []}}, 400, 'at least one row'),
        ('POST', ':predict', {'inputs': {'labels': 1, 'seeds': 1}}, 400, 'must have shape [?], got []'),
        ('POST', ':predict', {'inputs': {'labels': [[1]], 'seeds': [1]}}, 400, 'must have shape [?], got [1, 1]'),
        ('POST', ':predict', {'inputs': {'labels': [1.0], 'seeds': [1]}}, 400, 'is not of expected type: int32'),
        ('POST', ':predict', {'inputs': {'labels': [True], 'seeds': [1]}}, 400, 'is not of expected type: int32'),
        ('POST', ':predict', {'inputs': {'labels': [None], 'seeds': [1]}}, 400, 'is not of expected type: int32'),
        ('POST', ':predict', {'inputs': {'labels': ['1'], 'seeds': [1]}}, 400, 'is not of expected type: int32'),
        ('POST', ':predict', {'inputs': {'labels': [2**31], 'seeds': [1]}}, 400, 'is not of expected type: int32'),
        ('POST', ':predict', {'inputs': {'labels': [1], 'seeds': [2**63]}}, 400, 'is not of expected type: int64'),
        ('POST', ':predict', {'inputs': {'labels': [1], 'seeds': [10**4000]}}, 400, 'is not of expected type: int64'),
        ('POST', ':predict', {'inputs': {'labels': [-1], 'seeds': [1]}}, 400, 'labels must not be negative'),
        ('POST', ':predict', {'inputs': {'labels': [1] * 17, 'seeds': [1] * 17}}, 400, 'Task size 17 is larger'),
        ('POST', ':predict', {'signature_name': 'half', 'instances': [[1, 2], [3]]}, 400, 'no list of 2'),
        ('POST', ':predict', {'signature_name': 'half', 'instances': [[1, 2, 3]]}, 400, 'must have shape [?, 2]'),
        (
            'POST',
            ':predict',
            {'signature_name': 'half', 'instances': [[2**24 + 1, 0]]},
            400,
            'without loss of precision',
        ),
        ('POST', ':predict', {'signature_name': 'half', 'instances': [[1e39, 0]]}, 400, 'without loss of precision'),
        ('POST', ':predict', {'signature_name': 'echo', 'instances': [{'b64': '*'}]}, 400, 'Unable to base64 decode'),
        ('POST', ':predict', {'signature_name': 'echo', 'instances': ['\ud800']}, 400, 'surrogate'),
        ('POST', ':predict', {'signature_name': 'echo', 'instances': [1]}, 400, 'is not of expected type: string'),
    ],
)
def test_errors_have_the_codes_of_tensorflow_serving(server, method, path, body, code, words):
    body = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
    found, answer = toy_models.call(server.rest_port, method, path, body)
    assert (found, list(answer)) == (code, ['error']), answer
    assert words in answer['error'] and '\n' not in answer['error']


def test_other_paths_are_not_found(server):
    connection = http.client.HTTPConnection('127.0.0.1', server.rest_port)
    connection.request('GET', '/v2')
    answer = connection.getresponse()
    assert answer.status == 404 and json.loads(answer.read()) == {'error': 'Not found: /v2'}


@pytest.mark.skipif(not shutil.which('curl'), reason='curl is not on PATH')
def test_curl_samples(server):
    url = f'http://127.0.0.1:{server.rest_port}/v1/models/{toy_models.NAME}:predict'
    for body, key in (
        ('{"instances": [{"labels": 1, "seeds": 2}]}', 'predictions'),
        ('{"inputs": {"labels": [1], "seeds": [2]}}', 'outputs'),
    ):
        answer = subprocess.run(['curl', '-sS', '-f', '-d', body, url], capture_output=True, check=True)
        assert json.loads(answer.stdout) == {key: toy_models.images_of([1], [2]).tolist()}


def dial(server):
    connection = socket.create_connection(('127.0.0.1', server.rest_port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def head(length, *headers):
    lines = [f'POST /v1/models/{toy_models.NAME}:predict HTTP/1.1', 'Host: x', *headers]
    return '\r\n'.join(lines + ([f'Content-Length: {length}'] if length is not None else []) + ['', '']).encode()


def read_all(connection):
    """Reads until the server ends the connection."""
    received = b''
    while True:
        chunk = connection.recv(65536)
        if not chunk:
            return received
        received += chunk


_BODY = b'{"instances": [{"labels": 1, "seeds": 2}]}'


def is_alive(server):
    return toy_models.post(server, _BODY) == (200, {'predictions': toy_models.images_of([1], [2]).tolist()})


def test_body_that_comes_byte_by_byte_is_answered(server):
    with dial(server) as connection:
        for byte in head(len(_BODY), 'Connection: close') + _BODY:
            connection.sendall(bytes([byte]))
            time.sleep(0.0005)
        assert read_all(connection).startswith(b'HTTP/1.1 200')


def test_body_that_comes_too_slowly_is_given_up(server, monkeypatch):
    monkeypatch.setattr(rest_server, '_BODY_TIMEOUT_SECS', 0.1)
    with dial(server) as connection:
        connection.sendall(head(100, 'Connection: close') + b'{"inst')
        answer = read_all(connection)
    assert answer.startswith(b'HTTP/1.1 408') and b'6 bytes of it did' in answer
    monkeypatch.undo()
    assert is_alive(server)


@pytest.mark.parametrize('sent', [b'', b'POST /v1/models/toys:pre', head(10)[:-2]], ids=['nothing', 'line', 'header'])
def test_header_that_does_not_end_ends_the_connection(server, monkeypatch, sent):
    monkeypatch.setattr(http_protocol, 'HEADER_TIMEOUT_SECS', 0.1)
    with dial(server) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        assert read_all(connection) == b'' and time.monotonic() - started < 5
    monkeypatch.undo()
    assert is_alive(server)


def test_header_of_a_second_request_must_end_too(server, monkeypatch):
    monkeypatch.setattr(http_protocol, 'HEADER_TIMEOUT_SECS', 0.5)
    with dial(server) as connection:
        connection.sendall(head(len(_BODY)) + _BODY)
        received = b''
        while b']}' not in received:
            received += connection.recv(65536)
        connection.sendall(head(10)[:-2])
        assert read_all(connection) == b''
    monkeypatch.undo()
    assert is_alive(server)


def test_answer_that_nobody_reads_is_dropped(server, monkeypatch):
    monkeypatch.setattr(http_protocol, 'STALLED_SECS', 0.2)
    body = json.dumps({'signature_name': 'wide', 'instances': [1] * 16}).encode()
    with dial(server) as connection:
        connection.sendall(head(len(body)) + body)
        assert connection.recv(100)
        time.sleep(0.5)
        try:
            received = read_all(connection)
        except ConnectionResetError:
            received = b''
        assert len(received) < 3 * 16 * toy_models.WIDE  # Three characters a number.
    assert is_alive(server)


def test_huge_bodies_are_refused_and_not_held(server):
    with dial(server) as connection:
        connection.sendall(head(10**12))
        assert connection.recv(65536).startswith(b'HTTP/1.1 413')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with dial(server) as connection:
        connection.sendall(head(None, 'Transfer-Encoding: chunked'))
        chunk = b'%x\r\n' % 2**20 + b' ' * 2**20 + b'\r\n'
        for _ in range(100):
            connection.sendall(chunk)
        connection.sendall(b'0\r\n\r\n')
        answer = connection.recv(65536)
    assert answer.startswith(b'HTTP/1.1 413') and str(_LIMIT).encode() in answer
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 40 * 2**20
    assert is_alive(server)


@pytest.mark.parametrize('moment', ['mid-header', 'mid-body', 'waiting', 'mid-answer'])
def test_killed_clients_leave_nothing_behind(server, moment):
    wide = json.dumps({'signature_name': 'wide', 'instances': [1] * 8}).encode()
    for _ in range(5):
        connection = dial(server)
        if moment == 'mid-header':
            connection.sendall(head(10)[:-2])
        elif moment == 'mid-body':
            connection.sendall(head(100) + b'{"')
        else:
            connection.sendall(head(len(wide)) + wide)
            if moment == 'mid-answer':
                assert connection.recv(1000)
        # Resets instead of closing, as for a process that is killed with unread data.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        connection.close()
    assert is_alive(server)


NO_HTTP = {
    'bytes': b'\x00\x01\x02\x03\r\n\r\n',
    'version': b'GET /x HTTP/9.9\r\n\r\n',
    'target': b'GET \xff HTTP/1.1\r\n\r\n',
    'TLS': b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' + bytes(100),
    'negative length': b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n',
    'two lengths': b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n',
    'many headers': b'GET / HTTP/1.1\r\nHost: x\r\n' + b'a: b\r\n' * 20000,
}


@pytest.mark.parametrize('sent', NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_http_is_refused(server, monkeypatch, sent):
    monkeypatch.setattr(http_protocol, 'HEADER_TIMEOUT_SECS', 0.2)
    with dial(server) as connection:
        try:
            connection.sendall(sent)
            answer = connection.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            answer = b''
        assert not answer or answer.startswith(b'HTTP/1.1 4')
    monkeypatch.undo()
    assert is_alive(server)


def test_answer_on_a_kept_connection_is_not_held_back(server):
    connection = http.client.HTTPConnection('127.0.0.1', server.rest_port)
    took = []
    for _ in range(10):
        started = time.perf_counter()
        connection.request('GET', f'/v1/models/{toy_models.NAME}')
        assert connection.getresponse().read()
        took.append(time.perf_counter() - started)
    assert min(took[1:]) < 0.03  # With Nagle's algorithm and delayed acknowledgements none takes less than 40 ms.
    connection.close()


def test_connection_is_kept_and_requests_on_it_are_answered_in_turn(server):
    with dial(server) as connection:
        connection.sendall((head(len(_BODY)) + _BODY) * 3 + head(len(_BODY), 'Connection: close') + _BODY)
        answer = read_all(connection)
    assert answer.count(b'HTTP/1.1 200') == 4 and answer.count(b'predictions') == 4
