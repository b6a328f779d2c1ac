"""Tests of images from a server: what a good one sends, and what is said of any other."""

import socket
import threading

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import servers
from tf_dpdiff.serving import client

_LABELS, _SEEDS = np.array([2, 0, 1], np.int32), np.array([5, 0, 2**40 + 1], np.int64)


def images_of(labels, seeds):
    """Stands in for a model."""
    pixels = np.arange(6) * (np.asarray(seeds)[:, None] % 41 + 1) + 7 * np.asarray(labels)[:, None]
    return (pixels % 256).reshape(-1, 2, 3, 1)


def sample_fn(labels, seeds):
    return tf.constant(images_of(labels.numpy(), seeds.numpy()), tf.uint8)


def good(request):
    inputs = request['inputs']
    return 200, {'outputs': images_of(inputs['labels'], inputs['seeds']).tolist()}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(client, '_PAUSE_SECS', 0.001)


def sample(url, **arguments):
    endpoint = client.Endpoint(url, **arguments)
    return endpoint.sample(tf.constant(_LABELS), tf.constant(_SEEDS))


def error_of(url, **arguments):
    """Returns the one line that is said."""
    with pytest.raises(client.EndpointError) as error:
        sample(url, **arguments)
    message = str(error.value)
    assert '\n' not in message and f'{url}:predict' in message and message.endswith('.') and '..' not in message
    return message


def named(request):
    code, content = good(request)
    return code, {'outputs': {'images': content['outputs']}}


@pytest.mark.parametrize('answer', [good, named], ids=['only output', 'named output'])
@pytest.mark.parametrize('slash', ['', '/'])
def test_images_come_for_labels_and_seeds(answer, slash):
    with servers.Server(answer) as server:
        images = sample(server.url + slash)
    assert images.dtype == tf.uint8
    np.testing.assert_array_equal(images.numpy(), images_of(_LABELS, _SEEDS))
    ((path, body),) = server.requests
    assert path == f'{servers.PATH}:predict'
    assert body == {'signature_name': 'serving_default', 'inputs': {'labels': [2, 0, 1], 'seeds': [5, 0, 2**40 + 1]}}


@pytest.mark.parametrize(
    'failure', [(503, b'busy'), (429, {'error': 'too many'}), servers.Reset], ids=['overloaded', 'too many', 'reset']
)
def test_what_may_pass_is_tried_again(failure):
    with servers.Server(failure, failure, failure, good) as server:
        np.testing.assert_array_equal(sample(server.url).numpy(), images_of(_LABELS, _SEEDS))
    assert len(server.requests) == 4
    with servers.Server(failure, failure, good) as server:
        error_of(server.url, attempts=2)
    assert len(server.requests) == 2


def test_pauses_double(monkeypatch):
    pauses = []
    monkeypatch.setattr(client.time, 'sleep', pauses.append)
    with servers.Server((503, b'')) as server:
        assert 'HTTP 503 Service Unavailable' in error_of(server.url)
    assert pauses == [0.001, 0.002, 0.004]


def test_reset_connection_is_said():
    with servers.Server(servers.Reset) as server:
        assert 'reset' in error_of(server.url).lower()


def test_server_that_is_not_there_is_said():
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{unused.getsockname()[1]}{servers.PATH}'
    assert 'Connection refused' in error_of(url)


def test_slow_answer_is_not_waited_for():
    done = threading.Event()

    def slow(request):
        done.wait(10)
        return good(request)

    with servers.Server(slow) as server:
        assert 'timed out' in error_of(server.url, timeout_secs=0.1, attempts=2)
        done.set()
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    'code, content, words',
    [
        (
            404,
            {'error': 'Servable not found for request: Latest(toys)'},
            'HTTP 404 Not Found: Servable not found for request: Latest(toys)',
        ),
        (
            400,
            {'error': 'Failed to process\n element: 0 key: labels. '},
            'HTTP 400 Bad Request: Failed to process element',
        ),
        (500, b'<html>no JSON</html>', 'HTTP 500 Internal Server Error: <html>no JSON</html>'),
        (500, b'', 'HTTP 500 Internal Server Error.'),
        (400, b'x' * 5000, 'HTTP 400 Bad Request: ' + 'x' * 300 + '.'),
    ],
)
def test_what_the_server_says_is_passed_on_and_not_asked_again(code, content, words):
    with servers.Server((code, content)) as server:
        assert words in error_of(server.url)
    assert len(server.requests) == 1


@pytest.mark.parametrize('content', [b'', b'hello', b'[1]', b'3', b'null', b'{"predictions": []}', b'\xff\xfe{'])
def test_answer_of_another_kind_of_server_is_refused(content):
    with servers.Server((200, content)) as server:
        assert 'is not that of TensorFlow Serving' in error_of(server.url)
    assert len(server.requests) == 1


_IMAGES = np.zeros([3, 2, 3, 1], int)


@pytest.mark.parametrize(
    'outputs, words',
    [
        (_IMAGES[:2].tolist(), 'int64 [2, 2, 3, 1]'),
        (_IMAGES[0].tolist(), 'int64 [2, 3, 1]'),
        ((_IMAGES / 2).tolist(), 'float64 [3, 2, 3, 1]'),
        ((_IMAGES + 256).tolist(), 'values from 256 to 256'),
        ((_IMAGES - 1).tolist(), 'values from -1 to -1'),
        ([], '[0]'),
        (None, 'object []'),
        (_IMAGES[:, :0].tolist(), '[3, 0]'),
        ([[[[1]]], [[[2]]], [[[3, 4]]]], 'inhomogeneous'),
        ({'pictures': _IMAGES.tolist()}, "there is no output 'images'"),
    ],
)
def test_what_are_no_such_images_is_refused(outputs, words):
    with servers.Server((200, {'outputs': outputs})) as server:
        message = error_of(server.url)
    assert 'answers with something else than 3 images: ' in message and words in message


@pytest.mark.parametrize(
    'url',
    [
        '',
        'digits',
        'localhost:8501/v1/models/toys',
        'ftp://host/v1/models/toys',
        'http:///v1/models/toys',
        'http://host:8501',
        'http://host:8501/v1/models/',
        'http://host:8501/v2/models/toys',
        'http://host:port/v1/models/toys',
        'http://host:99999/v1/models/toys',
        'http://host:0/v1/models/toys',
        'http://host:8501/v1/models/toys:predict',
        'http://host:8501/v1/models/toys/metadata',
        'http://host:8501/v1/models/to ys',
        'http://host:8501/v1/models/toys?x=1',
        'http://host:8501/v1/models/toys\n',
        'http://[::1/v1/models/toys',
    ],
)
def test_malformed_address_is_refused_at_once(url):
    with pytest.raises(
        ValueError, match='is no address of a model; it looks like http://localhost:8501/v1/models/NAME'
    ):
        client.Endpoint(url)


@pytest.mark.parametrize(
    'url',
    [
        'http://localhost:8501/v1/models/toys',
        'https://host/v1/models/toys/',
        'http://[::1]:8501/v1/models/toys',
        'http://host:8501/v1/models/toys/versions/12',
        'http://host:8501/v1/models/toys/labels/stable',
    ],
)
def test_addresses_of_models_and_versions_are_taken(url):
    assert str(client.Endpoint(url)) == f'{url.rstrip("/")}:predict'


def changed(change):
    """Returns an answer that differs from the good one."""

    def answer(request):
        code, content = good(request)
        return code, {'outputs': change(np.array(content['outputs'])).tolist()}

    return answer


def one_pixel(images):
    images[0, 0, 0, 0] = 255 - images[0, 0, 0, 0]
    return images


@pytest.mark.parametrize(
    'change', [lambda images: images, lambda images: np.clip(images + 1, 0, 255)], ids=['the same', 'rounded otherwise']
)
def test_same_model_on_another_processor_passes(change):
    with servers.Server(changed(change)) as server:
        client.ModelCheck(client.Endpoint(server.url), sample_fn, labels=range(3))()
    # Every class is compared.
    assert set(server.requests[0][1]['inputs']['labels']) == {0, 1, 2}


@pytest.mark.parametrize(
    'change, words',
    [
        (one_pixel, 'grey levels apart'),
        (lambda images: images[::-1], 'grey levels apart'),
        (lambda images: np.clip(images + 3, 0, 255), 'up to 3 grey levels apart'),
        (lambda images: images.reshape(-1, 3, 2, 1), 'of shape (3, 2, 1), not (2, 3, 1)'),
    ],
)
def test_another_model_is_refused_by_address(change, words):
    with servers.Server(changed(change)) as server:
        with pytest.raises(ValueError, match='serves another model than the one whose privacy statement') as error:
            client.ModelCheck(client.Endpoint(server.url), sample_fn, labels=range(3))()
    assert words in str(error.value) and server.url in str(error.value) and '\n' not in str(error.value)
