"""Tests of exported models in TensorFlow Serving itself, where `tensorflow_model_server` is installed.

It is looked for on PATH, and in the environment variable TENSORFLOW_MODEL_SERVER.
"""

import base64
from concurrent import futures
import json
import os
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.cli import sampling
from tests.cli import verbs
from tests.serving import rest_forms_test
from tf_dpdiff.cli import command
from tf_dpdiff.cli import export as export_verb
from tf_dpdiff.cli import sample as sample_verb
from tf_dpdiff.serving import client
from tf_dpdiff.serving import export

_EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / 'examples' / 'serving'
_BINARY = os.environ.get('TENSORFLOW_MODEL_SERVER') or shutil.which('tensorflow_model_server')
_STARTING_SECS = 180
_LABELS, _SEEDS = np.array([0, 1, 2, 3, 1], np.int32), np.array([5, 6, 2**40, 0, 8], np.int64)

pytestmark = pytest.mark.skipif(not _BINARY, reason='no tensorflow_model_server on PATH or in TENSORFLOW_MODEL_SERVER')


def free_ports(count):
    """Returns ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(('127.0.0.1', 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(name='toy_run', scope='module')
def fixture_toy_run(tmp_path_factory):
    return sampling.make_run(tmp_path_factory.mktemp('runs') / 'toys')


@pytest.fixture(name='models', scope='module')
def fixture_models(toy_run, tmp_path_factory):
    """The folders of the models by name."""
    folder = tmp_path_factory.mktemp('models')
    for name, steps in (('toys', '2'), ('several', '2,3')):
        flags = [f'--workdir={toy_run}', f'--output={folder / name}', f'--num_steps={steps}']
        assert verbs.call(export_verb, *flags) == command.DONE
    return {name: folder / name for name in ('toys', 'several')}


@pytest.fixture(name='server', scope='module')
def fixture_server(models, tmp_path_factory):
    """The ports of a server with the models, with batching and monitoring as in the examples: gRPC, REST."""
    folder, ports = tmp_path_factory.mktemp('server'), free_ports(2)
    listed = ''.join(
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" }}\n'
        for name, path in models.items()
    )
    (folder / 'models.config').write_text(f'model_config_list {{\n{listed}}}\n')
    flags = {
        'port': ports[0],
        'rest_api_port': ports[1],
        'model_config_file': folder / 'models.config',
        'enable_batching': 'true',
        'batching_parameters_file': _EXAMPLES / 'batching_parameters.txt',
        'monitoring_config_file': _EXAMPLES / 'monitoring.config',
        'rest_api_timeout_in_ms': 120000,
    }
    with open(folder / 'log.txt', 'wb') as log:
        arguments = [_BINARY, *(f'--{name}={value}' for name, value in flags.items())]
        with subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT) as process:
            try:
                for name in models:
                    wait_until_available(process, f'http://127.0.0.1:{ports[1]}/v1/models/{name}', folder / 'log.txt')
                yield ports
            finally:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()


def wait_until_available(process, url, log):
    """Returns once a model is loaded and warmed up."""
    began = time.monotonic()
    while time.monotonic() - began < _STARTING_SECS and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if json.loads(answer.read())['model_version_status'][0]['state'] == 'AVAILABLE':
                    return
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.2)
    pytest.fail(f'the server did not start:\n{log.read_text(errors="replace")[-5000:]}')


def url_of(server, kind, name):
    if kind == 'grpc':
        return f'grpc://127.0.0.1:{server[0]}/{name}'
    return f'http://127.0.0.1:{server[1]}/v1/models/{name}'


def post(server, name, body):
    """Returns the status and the JSON of an answer."""
    request = urllib.request.Request(f'{url_of(server, "http", name)}:predict', json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def predict(server, name, signature, **inputs):
    """Returns the outputs of a signature over gRPC."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    for key, values in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
    with grpc.insecure_channel(f'127.0.0.1:{server[0]}') as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    return {key: tf.make_ndarray(values) for key, values in answer.outputs.items()}


def local(models, labels=_LABELS, seeds=_SEEDS):
    return export.load_sample_fn(models['toys'])(tf.constant(labels), tf.constant(seeds)).numpy()


def assert_close(images, others):
    """The server pads batches, and a network's last bits depend on their size: one grey level."""
    assert np.abs(np.asarray(images, int) - np.asarray(others, int)).max() <= 1


@pytest.mark.parametrize('kind', ['grpc', 'http'])
def test_client_draws_what_the_model_draws_here(server, models, kind):
    images = client.Endpoint(url_of(server, kind, 'toys')).sample(tf.constant(_LABELS), tf.constant(_SEEDS))
    assert_close(images, local(models))
    chosen = client.Endpoint(url_of(server, kind, 'several'), num_steps=3)
    here = export.load_sample_fn(models['several'], num_steps=3)
    assert_close(
        chosen.sample(tf.constant(_LABELS), tf.constant(_SEEDS)), here(tf.constant(_LABELS), tf.constant(_SEEDS))
    )


def test_rows_and_columns_are_answered_in_their_own_form(server, models):
    rows = [{'labels': int(label), 'seeds': int(seed)} for label, seed in zip(_LABELS, _SEEDS)]
    status, answer = post(server, 'toys', {'instances': rows})
    assert status == 200
    assert_close(answer['predictions'], local(models))
    status, answer = post(server, 'toys', {'inputs': {'labels': _LABELS.tolist(), 'seeds': _SEEDS.tolist()}})
    assert status == 200
    assert_close(answer['outputs'], local(models))


def test_png_and_statement_are_served(server, models, toy_run):
    pngs = predict(server, 'toys', 'sample_png', labels=_LABELS, seeds=_SEEDS)['png_bytes']
    assert_close([tf.io.decode_png(png) for png in pngs], local(models))
    inputs = {'labels': _LABELS.tolist(), 'seeds': _SEEDS.tolist()}
    status, answer = post(server, 'toys', {'signature_name': 'sample_png', 'inputs': inputs})
    assert status == 200
    np.testing.assert_array_equal([base64.b64decode(png['b64']) for png in answer['outputs']], pngs)
    (statement,) = predict(server, 'toys', 'privacy_statement', format=np.array([b'json']))['statement']
    assert statement == (toy_run / 'privacy_statement.json').read_bytes()
    body = {'signature_name': 'privacy_statement', 'inputs': {'format': ['text']}}
    assert post(server, 'toys', body) == (200, {'outputs': [(toy_run / 'privacy_statement.txt').read_text()]})


def test_what_cannot_be_sampled_is_refused_and_the_server_lives(server, models):
    status, answer = post(server, 'toys', {'inputs': {'labels': [0, 4], 'seeds': [0, 1]}})
    assert status == 400 and 'labels must be from 0 to 2, or 3 for no class' in answer['error']
    with pytest.raises(grpc.RpcError) as error:
        predict(server, 'toys', 'serving_default', labels=np.array([-1], np.int32), seeds=np.array([0], np.int64))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as error:
        predict(server, 'several', 'serving_default', labels=_LABELS, seeds=_SEEDS, num_steps=np.full([5], 4, np.int32))
    assert (
        error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and 'num_steps must be one of' in error.value.details()
    )
    assert post(server, 'nothing', {'inputs': {'labels': [0], 'seeds': [0]}})[0] == 404
    test_client_draws_what_the_model_draws_here(server, models, 'grpc')


def test_requests_that_come_together_each_get_their_own_images(server, models):
    seeds = np.arange(60, dtype=np.int64)
    labels = (seeds % 3).astype(np.int32)
    endpoint = client.Endpoint(url_of(server, 'grpc', 'toys'))

    def draw(row):
        return endpoint.sample(tf.constant(labels[row : row + 1]), tf.constant(seeds[row : row + 1]))

    with futures.ThreadPoolExecutor(20) as threads:
        images = np.concatenate(list(threads.map(draw, range(len(seeds)))))
    assert_close(images, local(models, labels, seeds))
    # Other seeds make other images, or else nothing was shown.
    assert len(np.unique(images.reshape(60, -1), axis=0)) == 60


@pytest.mark.parametrize('name', rest_forms_test.FORMS)
def test_each_form_of_request_has_the_status_that_this_project_s_server_gives_it(server, name):
    (method, path, headers, body), code = rest_forms_test.FORMS[name]
    assert rest_forms_test.ask(server[1], method, path, headers, body)[0] == code


def test_metrics_are_where_the_examples_say(server):
    with urllib.request.urlopen(f'http://127.0.0.1:{server[1]}/monitoring/prometheus/metrics', timeout=30) as answer:
        assert answer.status == 200 and ':tensorflow:serving:' in answer.read().decode()


@pytest.mark.parametrize('kind', ['grpc', 'http'])
@pytest.mark.parametrize('name, flags', [('toys', []), ('several', ['--num_steps=3'])])
def test_command_draws_there(server, models, tmp_path, kind, name, flags):
    drawn = {}
    for where, endpoint in (('there', [f'--endpoint={url_of(server, kind, name)}']), ('here', [])):
        output = tmp_path / f'{where}.npz'
        assert (
            verbs.call(
                sample_verb,
                f'--saved_model={models[name]}',
                f'--output={output}',
                '--num_images=300',
                *endpoint,
                *flags,
            )
            == command.DONE
        )
        with np.load(output) as arrays:
            drawn[where] = arrays['images']
    assert_close(drawn['there'], drawn['here'])
