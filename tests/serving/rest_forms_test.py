"""Tests that HTTP requests of every form are answered with the status codes of TensorFlow Serving.

What they are follows from its sources, https://github.com/tensorflow/serving: `http_server.cc` (OPTIONS, metrics),
`http_rest_api_util.cc` and `http_rest_api_handler.cc` (paths), `evhttp_server.cc` (methods), `evhttp_request.cc` and
`gzip_zlib.cc` (gzip), `json_tensor.cc` (JSON); and from those of libevent 2.1.12, `evhttp_handle_request` in `http.c`
(methods that are not allowed). `model_server_test` asks TensorFlow Serving itself, where it is installed.
"""

import gzip
import http.client
import json
import resource
import threading
import zlib

import pytest

from tests.serving import toy_models
from tf_dpdiff.serving import json_tensors
from tf_dpdiff.serving import monitoring
from tf_dpdiff.serving import predict
from tf_dpdiff.serving import request_body
from tf_dpdiff.serving import security as security_lib
from tf_dpdiff.serving import status

_MODEL = f'/v1/models/{toy_models.NAME}'
_PREDICT = f'{_MODEL}:predict'
_GOOD = b'{"inputs": {"labels": [1], "seeds": [2]}}'
_PACKED = gzip.compress(_GOOD, mtime=0)  # As names of tests tell: the same in each process.
_ANSWER = {'outputs': toy_models.images_of([1], [2]).tolist()}
_LIMIT = toy_models.quick_limits().max_message_bytes


def post(body, encoding=None, path=_PREDICT, **headers):
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    return 'POST', path, {**headers, **({'Content-Encoding': encoding} if encoding else {})}, body


def packed(body, wbits, **more):
    packer = zlib.compressobj(wbits=wbits, **more)
    return packer.compress(body) + packer.flush()


def options(path=_PREDICT, origin=None):
    return 'OPTIONS', path, {'Origin': origin} if origin else {}, None


def changed(data, at, by=1):
    return data[:at] + bytes([(data[at] + by) % 256]) + data[at + 1 :] if at >= 0 else changed(data, len(data) + at, by)


# Name: request (method, path, headers, body), status.
FORMS = {
    # Bodies that are packed.
    'gzip': (post(_PACKED, 'gzip'), 200),
    'x-gzip': (post(_PACKED, 'x-gzip'), 200),
    'gzip among others': (post(_PACKED, 'identity, gzip'), 200),
    'gzip of no compression': (post(gzip.compress(_GOOD, 0), 'gzip'), 200),
    'gzip in capitals': (post(_PACKED, 'GZIP'), 400),
    'gzip that is not said': (post(_PACKED), 400),
    'plain that is called gzip': (post(_GOOD, 'gzip'), 400),
    'zlib that is called gzip': (post(zlib.compress(_GOOD), 'gzip'), 400),
    'gzip without its end': (post(_PACKED[:-1], 'gzip'), 400),
    'gzip without half of it': (post(_PACKED[:20], 'gzip'), 400),
    'gzip without all but its header': (post(_PACKED[:10], 'gzip'), 400),
    'gzip of another checksum': (post(changed(_PACKED, -5), 'gzip'), 400),
    'gzip of another length': (post(changed(_PACKED, -4), 'gzip'), 400),
    'gzip with more behind it': (post(_PACKED + b'123456789', 'gzip'), 400),
    'two times gzip in a row': (post(_PACKED + _PACKED, 'gzip'), 400),
    'gzip in gzip': (post(gzip.compress(_PACKED), 'gzip, gzip'), 400),
    'gzip of nothing': (post(gzip.compress(b''), 'gzip'), 400),
    'nothing that is called gzip': (post(b'', 'gzip'), 400),
    'deflate': (post(zlib.compress(_GOOD), 'deflate'), 400),
    'raw deflate': (post(packed(_GOOD, -15), 'deflate'), 400),
    'plain that is called deflate': (post(_GOOD, 'deflate'), 200),
    'plain that is called br': (post(_GOOD, 'br'), 200),
    # Answers are never packed.
    'answer as gzip': (post(_GOOD, Accept_Encoding='gzip, deflate'), 200),
    'answer as anything else': (post(_GOOD, Accept_Encoding='identity;q=0'), 200),
    # Text behind the object, and around it.
    'text behind': (post(_GOOD + b' and so on'), 200),
    'another object behind': (post(_GOOD + b'{"inputs": 1}'), 200),
    'bracket behind': (post(_GOOD + b'}]'), 200),
    'no UTF-8 behind': (post(_GOOD + b'\xff\xfe\x00'), 200),
    'brackets without end behind': (post(_GOOD + b'[' * 100000), 200),
    'text behind, packed': (post(gzip.compress(_GOOD + b' and so on'), 'gzip'), 200),
    'space around': (post(b' \r\n\t' + _GOOD + b'\n'), 200),
    'byte order mark': (post(b'\xef\xbb\xbf' + _GOOD), 200),
    'text before': (post(b'x' + _GOOD), 400),
    'vertical tab before': (post(b'\x0b' + _GOOD), 400),
    'no object but text behind': (post(b'[1] ' + _GOOD), 400),
    'nothing': (post(b''), 400),
    'no body': (post(None), 400),
    'space': (post(b' \n'), 400),
    # JSON at its edges.
    'first of two keys': (post(_GOOD[:-1] + b', "inputs": {"labels": [1, 1], "seeds": [2]}}'), 200),
    'first of two keys, wrong': (post(b'{"inputs": {"labels": "x"}, ' + _GOOD[1:]), 400),
    'first of two inputs': (post(b'{"inputs": {"labels": [1], "labels": ["x"], "seeds": [2]}}'), 200),
    'first of two inputs, wrong': (post(b'{"inputs": {"labels": ["x"], "labels": [1], "seeds": [2]}}'), 400),
    'NaN for an integer': (post(b'{"inputs": {"labels": [NaN], "seeds": [2]}}'), 400),
    'deep': (post(b'[' * 100000), 400),
    'deep in an input': (post(b'{"inputs": {"labels": %s1%s, "seeds": [2]}}' % (b'[' * 40, b']' * 40)), 400),
    'comment': (post(b'/* a */' + _GOOD), 400),
    'comma at the end': (post(_GOOD[:-1] + b',}'), 400),
    'no UTF-8 in a name': (post(b'{"\xff": 1, ' + _GOOD[1:]), 200),
    # Headers that do not matter.
    'no type': (post(_GOOD, Content_Type=''), 200),
    'another type': (post(_GOOD, Content_Type='application/x-protobuf'), 200),
    'form': (post(_GOOD, Content_Type='application/x-www-form-urlencoded'), 200),
    # OPTIONS.
    'preflight': (options(origin='https://example.org'), 200),
    'preflight of status': (options(_MODEL, 'http://localhost:3000'), 200),
    'preflight of what is not there': (options('/v1/anything', 'http://a'), 200),
    'preflight without an origin': (options(), 400),
    'preflight of no page': (options(origin='null'), 400),
    'preflight elsewhere': (options('/', 'https://example.org'), 404),
    # Other methods.
    'HEAD': (('HEAD', _MODEL, {}, None), 400),
    'HEAD of predict': (('HEAD', _PREDICT, {}, None), 400),
    'PUT': (('PUT', _PREDICT, {}, _GOOD), 400),
    'PATCH': (('PATCH', _PREDICT, {}, _GOOD), 400),
    'DELETE': (('DELETE', _MODEL, {}, None), 400),
    'TRACE': (('TRACE', _MODEL, {}, None), 501),
    'unknown method': (('BREW', _MODEL, {}, None), 501),
    'small letters': (('get', _MODEL, {}, None), 501),
    'unknown method elsewhere': (('BREW', '/', {}, None), 501),
    'GET with a body': (('GET', _MODEL, {}, _GOOD), 200),
    # Paths, with their queries.
    'query of predict': (post(_GOOD, path=f'{_PREDICT}?key=1'), 400),
    'query of status': (('GET', f'{_MODEL}?key=1', {}, None), 404),
    'query of metadata': (('GET', f'{_MODEL}/metadata?key=1', {}, None), 400),
    'slash at the end': (('GET', f'{_MODEL}/', {}, None), 400),
    'no name': (('GET', '/v1/models', {}, None), 400),
    'no name but a version': (('GET', '/v1/models/versions/1', {}, None), 400),
    'metadata of no name': (('GET', '/v1/models/versions/1/metadata', {}, None), 400),
    'escaped letter': (post(_GOOD, path=f'/v1/models/%{ord(toy_models.NAME[0]):x}{toy_models.NAME[1:]}:predict'), 200),
    'escaped colon': (post(_GOOD, path=f'{_MODEL}%3Apredict'), 400),
    'escaped slash': (('GET', f'{_MODEL}%2Fmetadata', {}, None), 404),
    'capitals': (post(_GOOD, path=f'/V1/MODELS/{toy_models.NAME}:predict'), 200),
    'verb in capitals': (post(_GOOD, path=f'{_MODEL}:PREDICT'), 400),
    'whole address': (('GET', f'http://localhost{_MODEL}', {}, None), 200),
    'page for browsers': (('GET', '/', {}, None), 200),
    'elsewhere': (('GET', '/elsewhere', {}, None), 404),
    'nearly there': (('GET', '/v1', {}, None), 404),
    'another version of the protocol': (post(_GOOD, path=f'/v2/models/{toy_models.NAME}:predict'), 404),
}


def ask(port, method, path, headers, body, **more):
    """Returns the status, the headers and the body of an answer."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    try:
        connection.request(method, path, body, headers, **more)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize('name', FORMS)
def test_each_form_has_the_status_of_tensorflow_serving(server, name):
    (method, path, headers, body), code = FORMS[name]
    found, given, content = ask(server.rest_port, method, path, headers, body)
    assert found == code, content
    assert 'content-encoding' not in given
    if method == 'HEAD' or (method == 'OPTIONS' and code == 200):
        assert content == b''
    elif code != 200:
        answer = json.loads(content)
        assert list(answer) == ['error'] and answer['error'] and '\n' not in answer['error']
    elif path == _PREDICT:
        assert json.loads(content) == _ANSWER
    assert ask(server.rest_port, *post(_GOOD))[0] == 200


@pytest.mark.parametrize(
    'name, words',
    [
        ('nothing', 'JSON Parse error: The document is empty'),
        ('space', 'JSON Parse error: The document is empty'),
        ('gzip without its end', 'JSON Parse error: The document is empty, for what its Content-Encoding calls gzip'),
        ('preflight without an origin', 'Origin header is missing in CORS preflight'),
        ('no name', 'Missing model name in request.'),
        ('query of status', 'Could not find any versions of model toys?key=1'),
        ('query of predict', 'Malformed request: POST /v1/models/toys:predict?key=1'),
    ],
)
def test_words_are_those_of_tensorflow_serving(server, name, words):
    request, _ = FORMS[name]
    assert words in json.loads(ask(server.rest_port, *request)[2])['error']


def test_preflight_lets_no_page_of_another_origin_read_answers(server):
    for request in (options(origin='https://example.org'), post(_GOOD, Origin='https://example.org')):
        code, headers, _ = ask(server.rest_port, *request)
        assert code == 200 and not [name for name in headers if name.lower().startswith('access-control')]


def test_preflight_needs_the_token_too(folder):
    with toy_models.serving(folder, security=security_lib.Security('a-token-of-the-tests-0123')) as server:
        assert ask(server.rest_port, *options(origin='https://example.org'))[0] == 401
        assert ask(server.rest_port, 'BREW', '/', {}, None)[0] == 401


@pytest.mark.parametrize('method', ['GET', 'POST', 'HEAD', 'PUT', 'DELETE', 'OPTIONS', 'PATCH'])
def test_metrics_are_given_by_every_method_and_without_a_query(server, method):
    code, headers, content = ask(server.rest_port, method, monitoring.PATH, {}, None)
    assert code == 200 and headers['content-type'].startswith('text/plain') and bool(content) == (method != 'HEAD')
    code, _, content = ask(server.rest_port, method, f'{monitoring.PATH}?x=1', {}, None)
    assert code == 400 and (method == 'HEAD' or b'Unexpected path' in content)


@pytest.mark.parametrize('body, headers', [(_GOOD, {}), (_PACKED, {'Content-Encoding': 'gzip'})])
def test_body_in_chunks_is_answered(server, body, headers):
    pieces = (body[i : i + 3] for i in range(0, len(body), 3))
    code, _, content = ask(server.rest_port, 'POST', _PREDICT, headers, pieces, encode_chunked=True)
    assert code == 200 and json.loads(content) == _ANSWER


@pytest.mark.parametrize(
    'text, code',
    [
        (b'1e400', 400),
        (b'-1e999', 400),
        (b'1' + b'0' * 400 + b'.0', 400),
        (b'1e38', 200),
        (b'1e-400', 200),
        (b'NaN', 200),
        (b'Infinity', 200),
        (b'-Infinity', 200),
    ],
)
def test_number_that_is_too_large_for_a_double_is_refused_and_does_not_become_infinite(server, text, code):
    body = b'{"signature_name": "half", "instances": [[%s, 0]]}' % text
    found, _, content = ask(server.rest_port, *post(body))
    assert found == code and (code == 200 or b'Number too big to be stored in double' in content)


def test_text_that_is_no_utf8_is_refused_as_an_input(server):
    found, _, content = ask(server.rest_port, *post(b'{"signature_name": "echo", "instances": ["\xff"]}'))
    assert found == 400 and 'is no UTF-8' in json.loads(content)['error']


def bomb(num_bytes):
    """A body that becomes so large: an object, and a lot of space behind it."""
    return gzip.compress(_GOOD + b' ' * (num_bytes - len(_GOOD)), 9)


@pytest.mark.parametrize('num_bytes, code', [(_LIMIT, 200), (_LIMIT + 1, 413), (200 * _LIMIT, 413)])
def test_packed_body_may_become_as_large_as_a_message_and_no_larger(server, num_bytes, code):
    body = bomb(num_bytes)
    assert len(body) < _LIMIT
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, _, content = ask(server.rest_port, *post(body, 'gzip'))
    assert found == code and (code == 200 or f'larger than the {_LIMIT} bytes' in json.loads(content)['error'])
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 40 * _LIMIT
    assert ask(server.rest_port, *post(_GOOD))[0] == 200


def test_length_that_a_packed_body_claims_is_not_believed(server):
    body = bomb(200 * _LIMIT)[:-4] + (10).to_bytes(4, 'little')
    assert ask(server.rest_port, *post(body, 'gzip'))[0] == 413


def test_what_is_unpacked_counts_among_what_all_requests_may_take():
    budget = predict.ByteBudget(1000)
    with budget.share() as share:
        with pytest.raises(status.ServingError) as error:
            request_body.unpack(gzip.compress(b' ' * 1001), 'gzip', 10**6, share)
        assert error.value.code is status.Code.UNAVAILABLE
    with budget.share() as share:  # All was given back.
        assert request_body.unpack(gzip.compress(b' ' * 1000), 'gzip', 10**6, share) == b' ' * 1000
        with pytest.raises(status.ServingError):
            share.take(1)
    with budget.share() as share:
        assert request_body.unpack(b'x' * 2000, 'br', 10**6, share) == b'x' * 2000


def test_many_bombs_at_once_leave_the_server_as_it_was(server):
    body, codes = bomb(100 * _LIMIT), []

    def send():
        codes.append(ask(server.rest_port, *post(body, 'gzip'))[0])

    threads = [threading.Thread(target=send) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*codes} <= {413, 503} and 413 in codes
    assert ask(server.rest_port, *post(_PACKED, 'gzip'))[0] == 200


@pytest.mark.parametrize('level', range(10))
@pytest.mark.parametrize('size', [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 700_000])
def test_unpacking_gives_back_what_was_packed(level, size):
    body = bytes(i * i % 251 for i in range(size))
    with predict.ByteBudget(2**20).share() as share:
        assert request_body.unpack(gzip.compress(body, level), 'gzip', size, share) == body
        assert share.num_bytes == size


def test_first_of_several_members_is_taken_at_every_depth():
    document = json_tensors.parse(b'{"a": 1, "b": {"c": 2, "c": 3}, "a": 4, "b": 5}')
    assert document == {'a': 1, 'b': {'c': 2}}
