"""Tests of who is let in: by a token, by TLS, and nobody from elsewhere without both."""

import http.client
import os
import shutil
import ssl
import subprocess
import threading

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.serving import toy_models
from tf_dpdiff.serving import client
from tf_dpdiff.serving import security as security_lib
from tf_dpdiff.serving import server as server_lib

_TOKEN = 'a-token-of-the-tests-0123'


@pytest.fixture(name='pair', scope='module')
def fixture_pair(tmp_path_factory):
    """A certificate for this machine that signs itself, and its key."""
    if not shutil.which('openssl'):
        pytest.skip('openssl is not on PATH, so there is no certificate to test with')
    folder = tmp_path_factory.mktemp('tls')
    certificate, key = folder / 'certificate.pem', folder / 'key.pem'
    subprocess.run(
        [
            'openssl',
            'req',
            '-x509',
            '-newkey',
            'ec',
            '-pkeyopt',
            'ec_paramgen_curve:prime256v1',
            '-nodes',
            '-keyout',
            str(key),
            '-out',
            str(certificate),
            '-days',
            '1',
            '-subj',
            '/CN=localhost',
            '-addext',
            'subjectAltName=DNS:localhost,IP:127.0.0.1',
        ],
        capture_output=True,
        check=True,
    )
    return certificate, key


@pytest.fixture(name='guarded', scope='module')
def fixture_guarded(folder):
    with toy_models.serving(folder, security=security_lib.Security(_TOKEN)) as server:
        yield server


REFUSED = [None, '', _TOKEN, f'Bearer {_TOKEN}x', f'Bearer {_TOKEN[:-1]}', 'Bearer', f'Basic {_TOKEN}', 'Bearer ü']


@pytest.mark.parametrize('sent', REFUSED)
def test_whoever_has_no_token_learns_nothing_by_rest(guarded, sent):
    headers = {} if sent is None else {'Authorization': sent.encode()}
    for method, path in (('GET', ''), ('GET', '/metadata'), ('POST', ':predict'), ('GET', 'x')):
        code, answer = toy_models.call(guarded.rest_port, method, path, None, headers)
        assert (code, answer) == (401, {'error': 'no token, or another one.'})
    connection = http.client.HTTPConnection('127.0.0.1', guarded.rest_port)
    connection.request('GET', '/monitoring/prometheus/metrics', headers=headers)
    assert connection.getresponse().status == 401


@pytest.mark.parametrize('sent', [value for value in REFUSED if value is None or value.isascii()])
def test_whoever_has_no_token_learns_nothing_by_grpc(guarded, sent):
    prediction, models = toy_models.stubs(guarded)
    metadata = [] if sent is None else [('authorization', sent)]
    for call, request in (
        (prediction.Predict, toy_models.predict_request()),
        (models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call(request, 20, metadata=metadata)
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_calls_without_a_token_that_send_no_message_hold_no_thread(folder):
    limits, stop = toy_models.quick_limits(max_queue=1, max_batch_size=1), threading.Event()
    with toy_models.serving(folder, security=security_lib.Security(_TOKEN), limits=limits) as server:
        channel = grpc.insecure_channel(f'127.0.0.1:{server.grpc_port}')
        call = channel.stream_unary('/tensorflow.serving.PredictionService/Predict')
        stalled = [call.future(toy_models.no_message(stop)) for _ in range(limits.max_open_requests + 5)]
        assert {future.exception(10).code() for future in stalled} == {grpc.StatusCode.UNAUTHENTICATED}
        prediction, _ = toy_models.stubs(server)
        request = toy_models.predict_request('scalar', x=np.float32(1))
        assert prediction.Predict(request, 10, metadata=[('authorization', f'Bearer {_TOKEN}')]).outputs
        stop.set()


@pytest.mark.parametrize('scheme', ['Bearer', 'bearer'])
def test_token_lets_in(guarded, scheme):
    headers = {'Authorization': f'{scheme} {_TOKEN}'}
    assert toy_models.call(guarded.rest_port, headers=headers)[0] == 200
    request = toy_models.predict_request('scalar', x=np.float32(1))
    prediction, _ = toy_models.stubs(guarded)
    assert prediction.Predict(request, 20, metadata=[('authorization', f'{scheme} {_TOKEN}')]).outputs


def test_tls_is_spoken_by_both(folder, pair):
    security = security_lib.Security(_TOKEN, *pair)
    with toy_models.serving(folder, security=security, host='localhost') as server:
        trusted = ssl.create_default_context(cafile=str(pair[0]))
        connection = http.client.HTTPSConnection('localhost', server.rest_port, context=trusted)
        path = f'/v1/models/{toy_models.NAME}'
        connection.request('GET', path, headers={'Authorization': f'Bearer {_TOKEN}'})
        assert connection.getresponse().status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            http.client.HTTPSConnection('localhost', server.rest_port).request('GET', path)
        with pytest.raises((http.client.HTTPException, OSError)):
            toy_models.call(server.rest_port)
        channel = grpc.secure_channel(
            f'localhost:{server.grpc_port}', grpc.ssl_channel_credentials(pair[0].read_bytes())
        )
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = toy_models.NAME
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        assert stub.GetModelStatus(request, 20, metadata=[('authorization', f'Bearer {_TOKEN}')])
        plain = grpc.insecure_channel(f'localhost:{server.grpc_port}')
        with pytest.raises(grpc.RpcError):
            prediction_service_pb2_grpc.PredictionServiceStub(plain).Predict(toy_models.predict_request(), 1)


@pytest.mark.parametrize('protocol', ['http', 'grpc'])
def test_this_project_s_client_is_let_in(folder, guarded, monkeypatch, protocol):
    port, path = (guarded.rest_port, 'v1/models/') if protocol == 'http' else (guarded.grpc_port, '')
    url = f'{protocol}://127.0.0.1:{port}/{path}{folder.name}'
    monkeypatch.setenv('TF_DPDIFF_TOKEN', _TOKEN)
    images = client.Endpoint(url).sample(np.array([1, 2], np.int32), np.array([3, 4], np.int64))
    np.testing.assert_array_equal(images, toy_models.images_of([1, 2], [3, 4]))
    monkeypatch.setenv('TF_DPDIFF_TOKEN', _TOKEN + 'x')
    with pytest.raises(client.EndpointError, match='token'):
        client.Endpoint(url).sample(np.array([1], np.int32), np.array([3], np.int64))


@pytest.mark.parametrize('host', ['127.0.0.1', '127.3.2.1', '::1', 'localhost'])
def test_loopback_needs_nothing(host):
    try:
        assert server_lib.ServerConfig(host=host).host == host
    except ValueError as error:
        if 'no address' not in str(error):  # As of ::1, where there is no IPv6.
            raise


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '', '192.0.2.1'])
def test_other_addresses_need_token_and_tls(host, pair):
    for security in (security_lib.Security(), security_lib.Security(_TOKEN), security_lib.Security(None, *pair)):
        with pytest.raises(ValueError, match='needs --tls_certificate, --tls_key and --token_file|no address'):
            server_lib.ServerConfig(host=host, security=security)
    if host == '0.0.0.0':
        server_lib.ServerConfig(host=host, security=security_lib.Security(_TOKEN, *pair))


@pytest.mark.parametrize('token', ['', 'short', 'with a space in between', 'ünicode-ünicode-ünicode', 'two\nlines' * 4])
def test_token_that_is_no_secret_is_refused(token):
    with pytest.raises(ValueError, match='token must be 16 or more') as error:
        security_lib.Security(token)
    assert not token or token not in str(error.value)


def test_certificate_and_key_must_fit(pair, tmp_path):
    with pytest.raises(ValueError, match='needs both'):
        security_lib.Security(certificate=pair[0])
    other = tmp_path / 'other.pem'
    other.write_text('no key')
    with pytest.raises(ValueError, match='other.pem'):
        security_lib.Security(None, pair[0], other)
    missing = tmp_path / 'missing'
    for files, flag in (((pair[0], missing), 'tls_key'), ((missing, pair[1]), 'tls_certificate')):
        with pytest.raises(ValueError, match=f'--{flag}={missing} cannot be read: No such file'):
            security_lib.Security(None, *files)


def test_token_is_read_without_the_space_around_it(tmp_path):
    path = tmp_path / 'token'
    path.write_text(f'{_TOKEN}\n')
    os.chmod(path, 0o600)
    assert security_lib.read_token(path) == _TOKEN
    path.write_bytes(b'\xff')
    with pytest.raises(ValueError, match='no ASCII text'):
        security_lib.read_token(path)
