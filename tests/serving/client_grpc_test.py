"""Tests of images from a server over gRPC, of tokens and TLS, and of models with several step counts."""

from concurrent import futures
import contextlib
import http.server
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.cli import sampling
from tests.cli import verbs
from tests.serving import client_test
from tests.serving import servers
from tf_dpdiff.cli import command
from tf_dpdiff.cli import export as export_verb
from tf_dpdiff.cli import sample as sample_verb
from tf_dpdiff.serving import client
from tf_dpdiff.serving import export

_LABELS, _SEEDS = np.array([2, 0, 1], np.int32), np.array([5, 0, 2**40 + 1], np.int64)
_TOKEN = 'Zq8-secret~token=='


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(client, '_PAUSE_SECS', 0.001)
    monkeypatch.delenv('TF_DPDIFF_TOKEN', raising=False)
    monkeypatch.delenv('SSL_CERT_FILE', raising=False)


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers as it is told; each answer a status and its details, or a function from inputs to outputs."""

    def __init__(self, *answers):
        self.requests, self.metadata, self._answers = [], [], list(answers)

    def Predict(self, request, context):
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if not callable(answer):
            context.abort(*answer)
        outputs = answer({name: tf.make_ndarray(value) for name, value in request.inputs.items()})
        if isinstance(outputs, predict_pb2.PredictResponse):
            return outputs
        response = predict_pb2.PredictResponse()
        for name, values in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(values))
        return response


@contextlib.contextmanager
def serve(service, credentials=None):
    """Yields the address of a server on this machine."""
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[('grpc.max_receive_message_length', -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    if credentials:
        port = server.add_secure_port('localhost:0', credentials)
    else:
        port = server.add_insecure_port('127.0.0.1:0')
    server.start()
    try:
        yield f'grpcs://localhost:{port}/toys' if credentials else f'grpc://127.0.0.1:{port}/toys'
    finally:
        server.stop(0).wait()


def good(inputs):
    return {'images': client_test.images_of(inputs['labels'], inputs['seeds']).astype(np.uint8)}


def sample(url, **arguments):
    return client.Endpoint(url, **arguments).sample(tf.constant(_LABELS), tf.constant(_SEEDS))


def error_of(url, **arguments):
    """Returns the one line that is said."""
    with pytest.raises(client.EndpointError) as error:
        sample(url, **arguments)
    message = str(error.value)
    assert '\n' not in message and url in message and message.endswith('.') and '..' not in message
    return message


@pytest.mark.parametrize('path, version', [('', None), ('/', None), ('/versions/12', 12)])
def test_images_come_for_labels_and_seeds(path, version):
    service = Service(good)
    with serve(service) as url:
        images = sample(url + path)
    assert images.dtype == tf.uint8
    np.testing.assert_array_equal(images.numpy(), client_test.images_of(_LABELS, _SEEDS))
    (request,) = service.requests
    spec = request.model_spec
    assert (spec.name, spec.signature_name) == ('toys', 'serving_default')
    assert spec.HasField('version') == (version is not None) and spec.version.value == (version or 0)
    assert {name: value.dtype for name, value in request.inputs.items()} == {'labels': tf.int32, 'seeds': tf.int64}
    assert 'authorization' not in service.metadata[0]


@pytest.mark.parametrize('code', ['UNAVAILABLE', 'RESOURCE_EXHAUSTED', 'DEADLINE_EXCEEDED'])
def test_what_may_pass_is_tried_again(code):
    failure = (grpc.StatusCode[code], 'not now')
    service = Service(failure, failure, failure, good)
    with serve(service) as url:
        np.testing.assert_array_equal(sample(url).numpy(), client_test.images_of(_LABELS, _SEEDS))
    assert len(service.requests) == 4
    service = Service(failure, failure, good)
    with serve(service) as url:
        assert f'gRPC {code}: not now.' in error_of(url, attempts=2)
    assert len(service.requests) == 2


@pytest.mark.parametrize('code', ['INVALID_ARGUMENT', 'NOT_FOUND', 'UNAUTHENTICATED', 'INTERNAL', 'UNIMPLEMENTED'])
def test_what_the_server_says_is_passed_on_and_not_asked_again(code):
    service = Service((grpc.StatusCode[code], 'Servable not found\n for request: ' + 'x' * 5000))
    with serve(service) as url:
        message = error_of(url)
    assert f'gRPC {code}: Servable not found for request: xxx' in message and len(message) < 480
    assert len(service.requests) == 1


@pytest.mark.parametrize('status', [408, 429, 503, 504])
def test_rest_answers_that_may_pass_are_tried_again(status):
    with servers.Server((status, {'error': 'not now'}), client_test.good) as server:
        np.testing.assert_array_equal(sample(server.url).numpy(), client_test.images_of(_LABELS, _SEEDS))
    assert len(server.requests) == 2


def test_server_that_is_not_there_is_said():
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        url = f'grpc://127.0.0.1:{unused.getsockname()[1]}/toys'
    message = error_of(url)
    assert 'gRPC UNAVAILABLE: ' in message and 'Connection refused' in message


def test_slow_answer_is_not_waited_for():
    done = threading.Event()
    service = Service(lambda inputs: done.wait(10) and good(inputs))
    with serve(service) as url:
        began = time.monotonic()
        assert 'gRPC DEADLINE_EXCEEDED' in error_of(url, timeout_secs=0.1, attempts=2)
        assert time.monotonic() - began < 5
        done.set()
    assert len(service.requests) == 2


def test_messages_may_be_large():
    shape = (3, 1024, 2048, 1)  # 6 MiB; 4 are allowed where nothing is said.
    with serve(Service(lambda unused_inputs: {'images': np.full(shape, 7, np.uint8)})) as url:
        assert sample(url).shape == shape


def strange(unused_inputs):
    response = predict_pb2.PredictResponse()
    response.outputs['images'].dtype = 123
    return response


_IMAGES = np.zeros([3, 2, 3, 1], np.uint8)


@pytest.mark.parametrize(
    'answer, words',
    [
        (lambda inputs: {'pictures': _IMAGES}, "there is no output 'images'"),
        (lambda inputs: {}, "there is no output 'images'"),
        (lambda inputs: {'images': _IMAGES[:2]}, 'uint8 [2, 2, 3, 1]'),
        (lambda inputs: {'images': _IMAGES[0]}, 'uint8 [2, 3, 1]'),
        (lambda inputs: {'images': _IMAGES / 2}, 'float64 [3, 2, 3, 1]'),
        (lambda inputs: {'images': _IMAGES.astype(int) + 256}, 'values from 256 to 256'),
        (lambda inputs: {'images': np.array([b'a', b'b', b'c'])}, 'object [3]'),
        (strange, 'is not that of TensorFlow Serving'),
    ],
)
def test_what_are_no_such_images_is_refused(answer, words):
    with serve(Service(answer)) as url:
        assert words in error_of(url)


@pytest.mark.parametrize(
    'url',
    [
        'grpc://',
        'grpc://host:8500',
        'grpc://host:8500/',
        'grpc://host/toys',
        'grpc://:8500/toys',
        'grpc://host:0/toys',
        'grpc://host:99999/toys',
        'grpc://host:port/toys',
        'grpc://host:8500/v1/models/toys',
        'grpc://host:8500/to ys',
        'grpc://host:8500/toys/versions/',
        'grpc://host:8500/toys/versions/latest',
        'grpc://host:8500/toys?x=1',
        'grpc://user:secret@host:8500/toys',
        'grpc://host:8500/toys:predict',
        'grpc://host:8500/toys\n',
        'GRPC://host:8500/toys',
    ],
)
def test_malformed_address_is_refused_at_once(url):
    with pytest.raises(ValueError, match='is no address of a model; it looks like .* or grpc://localhost:8500/NAME'):
        client.Endpoint(url)


@pytest.mark.parametrize(
    'url',
    [
        'grpc://localhost:8500/toys',
        'grpcs://host:443/toys/',
        'grpc://[::1]:8500/toys',
        'grpc://host:8500/toys/versions/12/',
    ],
)
def test_addresses_of_models_and_versions_are_taken(url):
    assert str(client.Endpoint(url)) == url.rstrip('/')


def test_missing_protocol_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_serving.apis', None)
    with pytest.raises(ValueError, match='grpc://host:8500/toys needs tensorflow-serving-api, which is not installed'):
        client.Endpoint('grpc://host:8500/toys')
    client.Endpoint('http://host:8501/v1/models/toys')  # Does not need it.


def test_token_goes_with_each_request(monkeypatch):
    monkeypatch.setenv('TF_DPDIFF_TOKEN', f' {_TOKEN}\n')  # As `$(cat FILE)` may leave it.
    service = Service((grpc.StatusCode.UNAVAILABLE, ''), good)
    with serve(service) as url:
        sample(url)
    assert [metadata['authorization'] for metadata in service.metadata] == [f'Bearer {_TOKEN}'] * 2


def test_where_the_token_comes_from_is_said_where_one_is_missed():
    with serve(Service((grpc.StatusCode.UNAUTHENTICATED, 'no token'))) as url:
        assert 'no token; the token is what the environment variable TF_DPDIFF_TOKEN holds' in error_of(url)
    with servers.Server((401, {'error': 'no token'})) as server:
        assert 'no token; the token is what the environment variable TF_DPDIFF_TOKEN holds' in error_of(server.url)
    with serve(Service((grpc.StatusCode.PERMISSION_DENIED, 'no'))) as url:
        assert 'TF_DPDIFF_TOKEN' not in error_of(url)


class Authorizing(http.server.BaseHTTPRequestHandler):
    """Says which token it was given, or sends on to itself."""

    seen: list = []

    def _answer(self):
        self.seen.append((self.command, self.path, self.headers['Authorization']))
        self.rfile.read(int(self.headers['Content-Length'] or 0))
        self.send_response(302 if 'moved' in self.path else 403)
        self.send_header('Location', '/elsewhere')
        self.end_headers()
        self.wfile.write(f'{{"error": "not {self.headers["Authorization"]}"}}'.encode())

    do_GET = do_POST = _answer

    def log_message(self, *unused_arguments):
        pass


@pytest.fixture(name='authorizing')
def fixture_authorizing():
    Authorizing.seen = []
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Authorizing)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{server.server_address[1]}/v1/models'
    server.shutdown()
    server.server_close()


def test_token_is_never_shown_whatever_the_server_says_of_it(monkeypatch, authorizing):
    monkeypatch.setenv('TF_DPDIFF_TOKEN', _TOKEN)
    with pytest.raises(client.EndpointError, match='HTTP 403 Forbidden: not Bearer [.]{3}') as error:
        sample(f'{authorizing}/toys')
    assert _TOKEN not in str(error.value)
    assert Authorizing.seen == [('POST', '/v1/models/toys:predict', f'Bearer {_TOKEN}')]
    with serve(Service((grpc.StatusCode.UNAUTHENTICATED, f'wrong: {_TOKEN}'))) as url:
        with pytest.raises(client.EndpointError, match='UNAUTHENTICATED: wrong: [.]{3}') as error:
            sample(url)
    assert _TOKEN not in str(error.value)


def test_token_does_not_follow_to_another_address(monkeypatch, authorizing):
    monkeypatch.setenv('TF_DPDIFF_TOKEN', _TOKEN)
    with pytest.raises(client.EndpointError):
        sample(f'{authorizing}/moved')
    assert [(path, given) for _, path, given in Authorizing.seen] == [
        ('/v1/models/moved:predict', f'Bearer {_TOKEN}'),
        ('/elsewhere', None),
    ]


@pytest.mark.parametrize('token', ['two words', 'line\nbreak', 'ümlaut', 'bell\a'])
@pytest.mark.parametrize('url', ['grpc://host:8500/toys', 'http://host:8501/v1/models/toys'])
def test_token_that_no_header_can_hold_is_refused_unseen(monkeypatch, token, url):
    monkeypatch.setenv('TF_DPDIFF_TOKEN', token)
    with pytest.raises(ValueError, match='TF_DPDIFF_TOKEN must be visible ASCII characters') as error:
        client.Endpoint(url)
    assert token not in str(error.value)


@pytest.fixture(name='certificate', scope='module')
def fixture_certificate(tmp_path_factory):
    """The paths of a key and of a certificate of localhost that nobody else trusts."""
    if not shutil.which('openssl'):
        pytest.skip('openssl, which makes a certificate, is not on PATH')
    folder = tmp_path_factory.mktemp('tls')
    key, certificate = folder / 'key.pem', folder / 'certificate.pem'
    subprocess.run(
        [
            'openssl',
            'req',
            '-x509',
            '-newkey',
            'rsa:2048',
            '-nodes',
            '-days',
            '2',
            '-subj',
            '/CN=localhost',
            '-addext',
            'subjectAltName=DNS:localhost',
            '-keyout',
            key,
            '-out',
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    return key, certificate


def test_tls_server_is_trusted_by_the_certificate_that_the_environment_names(certificate, monkeypatch):
    credentials = grpc.ssl_server_credentials([tuple(path.read_bytes() for path in certificate)])
    monkeypatch.setenv('TF_DPDIFF_TOKEN', _TOKEN)
    service = Service(good)
    with serve(service, credentials) as url:
        assert 'gRPC UNAVAILABLE' in error_of(url, attempts=1)
        assert not service.requests  # No token either, for a server that is not trusted.
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate[1]))
        np.testing.assert_array_equal(sample(url).numpy(), client_test.images_of(_LABELS, _SEEDS))
    assert service.metadata[0]['authorization'] == f'Bearer {_TOKEN}'


def test_https_server_is_trusted_by_the_certificate_that_the_environment_names(certificate, monkeypatch):
    server = servers.Server(client_test.good)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    inner = server._server
    inner.socket = context.wrap_socket(inner.socket, server_side=True)
    url = server.url.replace('http://127.0.0.1', 'https://localhost')
    with server:
        assert 'certificate verify failed' in error_of(url, attempts=1)
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate[1]))
        np.testing.assert_array_equal(sample(url).numpy(), client_test.images_of(_LABELS, _SEEDS))


def test_certificate_that_cannot_be_read_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv('SSL_CERT_FILE', str(tmp_path / 'missing.pem'))
    with pytest.raises(ValueError, match='SSL_CERT_FILE=.*missing.pem cannot be read: No such file'):
        client.Endpoint('grpcs://host:8500/toys')


@pytest.fixture(name='toy_run', scope='module')
def fixture_toy_run(tmp_path_factory):
    return sampling.make_run(tmp_path_factory.mktemp('runs') / 'toys')


@pytest.fixture(name='several', scope='module')
def fixture_several(toy_run, tmp_path_factory):
    """The model of the run, with several step counts."""
    folder = tmp_path_factory.mktemp('models') / 'several'
    assert verbs.call(export_verb, f'--workdir={toy_run}', f'--output={folder}', '--num_steps=2,3') == command.DONE
    return folder


def serving(saved_model):
    """Returns the answers of a server of an exported model: images, or TensorFlow Serving's refusal."""
    signature = tf.saved_model.load(str(export.find_version(saved_model))).signatures['serving_default']
    wanted = set(signature.structured_input_signature[1])

    def answer(inputs):
        if set(inputs) != wanted:
            missing, extra = ','.join(sorted(wanted - set(inputs))), ','.join(sorted(set(inputs) - wanted))
            raise tf.errors.InvalidArgumentError(
                None, None, f'input size does not match signature. Sent extra: {{{extra}}}. Missing: {{{missing}}}.'
            )
        return {'images': signature(**{name: tf.constant(value) for name, value in inputs.items()})['images'].numpy()}

    return answer


class Model(Service):
    """Serves an exported model."""

    def Predict(self, request, context):
        try:
            return super().Predict(request, context)
        except tf.errors.InvalidArgumentError as error:
            return context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)


def call(tmp_path, *flags):
    return verbs.call(sample_verb, f'--output={tmp_path / "set.npz"}', '--num_images=300', *flags)


def read(tmp_path):
    with np.load(tmp_path / 'set.npz') as arrays:
        return arrays['images']


def test_command_draws_over_grpc(toy_run, tmp_path):
    service = Model(serving(toy_run / 'saved_model'))
    with serve(service) as url:
        assert call(tmp_path, f'--workdir={toy_run}', f'--endpoint={url}') == command.DONE
    assert [len(tf.make_ndarray(request.inputs['seeds'])) for request in service.requests] == [8, 250, 1, 250, 1]
    np.testing.assert_array_equal(read(tmp_path), sampling.images_of(toy_run, np.arange(300) % 3))
    assert (tmp_path / 'set.privacy_statement.json').read_bytes() == (toy_run / 'privacy_statement.json').read_bytes()


def test_step_count_asked_for_is_drawn_here_and_there(toy_run, several, tmp_path):
    service = Model(serving(several))
    for folder in ('served', 'local', 'run'):
        (tmp_path / folder).mkdir()
    with serve(service) as url:
        flags = [f'--saved_model={several}', '--num_steps=3']
        assert call(tmp_path / 'served', f'--endpoint={url}', *flags) == command.DONE
    assert {int(step) for request in service.requests for step in tf.make_ndarray(request.inputs['num_steps'])} == {3}
    assert call(tmp_path / 'local', *flags) == command.DONE
    assert call(tmp_path / 'run', f'--workdir={toy_run}', '--num_steps=3') == command.DONE
    np.testing.assert_array_equal(read(tmp_path / 'served'), read(tmp_path / 'run'))
    np.testing.assert_array_equal(read(tmp_path / 'local'), read(tmp_path / 'run'))
    assert (read(tmp_path / 'run') != sampling.images_of(toy_run, np.arange(300) % 3)).any()


@pytest.mark.parametrize(
    'flags, message',
    [
        ([], 'was exported for several step counts; say --num_steps=2 or 3'),
        (['--num_steps=4'], 'was exported for several step counts, and not for 4; say --num_steps=2 or 3'),
        (['--num_steps=2', '--sampler=ancestral'], 'the sampler of an exported model is fixed; .*drop --sampler'),
    ],
)
@pytest.mark.parametrize('endpoint', [[], ['--endpoint=grpc://localhost:1/toys']])
def test_model_of_several_step_counts_wants_one_of_them(several, tmp_path, capsys, flags, message, endpoint):
    assert call(tmp_path, f'--saved_model={several}', *endpoint, *flags) == command.WRONG_USE
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)
    assert not list(tmp_path.iterdir())


def test_server_of_several_step_counts_is_told_from_a_model_of_one(toy_run, several, tmp_path, capsys):
    with serve(Model(serving(several))) as url:
        assert call(tmp_path, f'--workdir={toy_run}', f'--endpoint={url}') == command.FAILED
    message = capsys.readouterr().err
    assert 'Missing: {num_steps}' in message and 'name the export that is served by --saved_model' in message
    with serve(Model(serving(toy_run / 'saved_model'))) as url:
        assert call(tmp_path, f'--saved_model={several}', '--num_steps=2', f'--endpoint={url}') == command.FAILED
    message = capsys.readouterr().err
    assert 'Sent extra: {num_steps}' in message and 'name the export that is served by --saved_model' in message


def test_empty_address_is_refused_and_not_drawn_here(toy_run, tmp_path, capsys):
    assert call(tmp_path, f'--workdir={toy_run}', '--endpoint=') == command.WRONG_USE
    assert '--endpoint= is no address of a model' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_names_both_forms_of_address(capsys):
    assert verbs.call(sample_verb, '--help') == command.DONE
    shown = ' '.join(capsys.readouterr().out.split())
    assert 'http://HOST:8501/v1/models/NAME' in shown and 'grpc://HOST:8500/NAME' in shown
    assert 'TF_DPDIFF_TOKEN' in shown


@pytest.mark.parametrize(
    'url, is_safe',
    [
        ('http://192.0.2.1:8501/v1/models/toys', False),
        ('grpc://192.0.2.1:8500/toys', False),
        ('grpc://no-such-host.invalid:8500/toys', False),
        ('https://192.0.2.1:8501/v1/models/toys', True),
        ('grpcs://192.0.2.1:8500/toys', True),
        ('http://127.0.0.1:8501/v1/models/toys', True),
        ('http://[::1]:8501/v1/models/toys', True),
        ('grpc://localhost:8500/toys', True),
    ],
)
def test_token_is_not_sent_in_clear_text_to_another_machine(url, is_safe, monkeypatch):
    client.Endpoint(url)  # Without a token, any.
    monkeypatch.setenv('TF_DPDIFF_TOKEN', _TOKEN)
    if is_safe:
        client.Endpoint(url)
        return
    with pytest.raises(ValueError, match='would carry the token of TF_DPDIFF_TOKEN in clear text') as error:
        client.Endpoint(url)
    assert _TOKEN not in str(error.value)
