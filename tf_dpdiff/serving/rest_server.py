"""TensorFlow Serving's REST interface.

Its paths, JSON and status codes are those of https://www.tensorflow.org/tfx/serving/api_rest, read together with
`http_rest_api_util.cc` (paths), `http_server.cc` (codes, OPTIONS), `evhttp_server.cc` (methods), `evhttp_request.cc`
(gzip) and `json_tensor.cc` (tensors) of https://github.com/tensorflow/serving. Added are 401 (token), 408 (a body that
comes too slowly), 413 (a body that is too large), the reason of every error as JSON and, unless it is switched off, a
page for browsers at / with the names of models at /models.
"""

import asyncio
from concurrent import futures
import json
import logging
import re
import socket
import threading
import time
import urllib.parse

from google.protobuf import json_format
from starlette import requests
from starlette import responses
from tensorflow_serving.apis import get_model_metadata_pb2
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import model_pb2
import uvicorn

from tf_dpdiff.serving import http_protocol
from tf_dpdiff.serving import json_tensors
from tf_dpdiff.serving import monitoring
from tf_dpdiff.serving import page as page_lib
from tf_dpdiff.serving import predict
from tf_dpdiff.serving import request_body
from tf_dpdiff.serving import security as security_lib
from tf_dpdiff.serving import status

_NAME, _VERSION = '/(?P<name>[^/:]+)', '(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?'
_POST = re.compile(f'(?i)/v1/models{_NAME}{_VERSION}:(?P<method>classify|regress|predict)', re.ASCII)
_GET = re.compile(f'(?i)/v1/models(?:{_NAME})?{_VERSION}(?:/(?P<part>metadata))?', re.ASCII)
_METHODS = ('GET', 'POST', 'HEAD', 'PUT', 'DELETE', 'OPTIONS', 'PATCH')
_AUTHORITY = re.compile('https?://[^/?#]*')
_BODY_TIMEOUT_SECS = 30.0
_IDLE_SECS = 30
_JSON_THREADS = 4
_log = logging.getLogger(__name__)


class _App:
    """Maps requests to answers; an ASGI application.

    Args:
      core: Who answers.
      security: What is asked of clients.
      page: Whether browsers get a page.
    """

    def __init__(self, core: predict.Core, security: security_lib.Security, page: bool):
        self._core, self._security, self._page = core, security, page
        self._json_pool = futures.ThreadPoolExecutor(_JSON_THREADS, thread_name_prefix='json')
        self._num_open = 0

    async def __call__(self, scope, receive, send):
        response = await self._answer(requests.Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer(self, request: requests.Request) -> responses.Response:
        """Answers any request; whatever goes wrong is {"error": ...}."""
        started, method = time.monotonic(), 'other'
        self._num_open += 1
        try:
            # Of the page everyone may know: it is the same for all models.
            is_public = self._is_page(request.method, _target(request))
            if not is_public and not self._security.is_authorized(request.headers.get('authorization')):
                raise status.ServingError(status.Code.UNAUTHENTICATED, 'no token, or another one.')
            if self._num_open > self._core.limits.max_open_requests:
                raise status.ServingError(status.Code.UNAVAILABLE, 'too many requests are open.')
            method, handle = self._route(request)
            response, code = await handle(), 'OK'
        except requests.ClientDisconnect:
            response, code = responses.Response(status_code=499), 'CANCELLED'
        except status.ServingError as error:
            response, code = _error(error), error.code.name
        except Exception as error:
            _log.exception('%s %s failed', request.method, request.scope['path'])
            response, code = _error(status.from_exception(error)), 'INTERNAL'
        finally:
            self._num_open -= 1
        self._core.metrics.count_request('REST', method, code, started)
        return response

    def _route(self, request: requests.Request):
        """Returns the method's name for metrics, and a coroutine function."""
        method, target = request.method, _target(request)
        if method not in _METHODS:
            raise status.ServingError(status.Code.UNIMPLEMENTED, f'Not implemented: {method[:40]} {target[:200]}')
        if target.partition('?')[0] == monitoring.PATH:
            if target != monitoring.PATH:
                raise status.invalid(f'Unexpected path: {target[:200]}. Should be {monitoring.PATH}')
            return 'metrics', self._metrics
        if self._is_page(method, target):
            return 'page', self._browse
        if self._page and method == 'GET' and target == page_lib.MODELS_PATH:
            return 'models', self._models
        if not target.lower().startswith('/v1/'):
            raise status.ServingError(status.Code.NOT_FOUND, f'Not found: {target[:200]}')
        if method == 'OPTIONS':
            return 'other', lambda: self._preflight(request)
        found = None
        if method == 'GET':
            found = self._route_get(target)
        elif method == 'POST':
            found = self._route_post(request, target)
        if not found:
            raise status.invalid(f'Malformed request: {method} {target[:200]}')
        return found

    def _route_post(self, request: requests.Request, target: str):
        match = _POST.fullmatch(target)
        method = match and match['method']
        if method in ('classify', 'regress'):
            raise status.ServingError(
                status.Code.UNIMPLEMENTED, 'this server answers predict, not classify or regress.'
            )
        return ('Predict', lambda: self._predict(request, _spec(match))) if method == 'predict' else None

    def _route_get(self, target: str):
        match = _GET.fullmatch(target)
        if not match:
            return None
        if not match['name']:
            raise status.invalid('Missing model name in request.')
        if match['part'] == 'metadata':  # In capitals, TensorFlow Serving takes it for the path of the status.
            return 'GetModelMetadata', lambda: self._metadata(_spec(match))
        return 'GetModelStatus', lambda: self._status(_spec(match))

    async def _preflight(self, request: requests.Request) -> responses.Response:
        """Lets a browser ask, and tells it nothing that would let a page of another origin go on."""
        if not re.search('https?://', request.headers.get('origin', '')):
            raise status.ServingError(status.Code.FAILED_PRECONDITION, 'Origin header is missing in CORS preflight')
        return responses.Response()

    async def _metrics(self) -> responses.Response:
        return responses.Response(self._core.metrics.page(), media_type=monitoring.CONTENT_TYPE)

    def _is_page(self, method: str, target: str) -> bool:
        return self._page and method == 'GET' and target.partition('?')[0] == page_lib.PATH

    async def _browse(self) -> responses.Response:
        return responses.Response(page_lib.content(), media_type=page_lib.CONTENT_TYPE, headers=page_lib.headers())

    async def _models(self) -> responses.Response:
        return _json({'models': [self._core.model_name]})

    async def _status(self, spec: model_pb2.ModelSpec) -> responses.Response:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        return _json(_as_json(self._core.model_status(request)))

    async def _metadata(self, spec: model_pb2.ModelSpec) -> responses.Response:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=['signature_def'])
        response = self._core.model_metadata(request)
        signature_defs = get_model_metadata_pb2.SignatureDefMap()
        response.metadata['signature_def'].Unpack(signature_defs)
        return _json(
            {'model_spec': _as_json(response.model_spec), 'metadata': {'signature_def': _as_json(signature_defs)}}
        )

    async def _predict(self, request: requests.Request, spec: model_pb2.ModelSpec) -> responses.Response:
        with self._core.budget.share() as share:
            body = await self._read_body(request, share)
            body = await asyncio.get_running_loop().run_in_executor(
                self._json_pool,
                request_body.unpack,
                body,
                request.headers.get('content-encoding', ''),
                self._core.limits.max_message_bytes,
                share,
            )
            outputs, in_rows = await self._run(request, spec, body)
        content = await asyncio.get_running_loop().run_in_executor(
            self._json_pool, json_tensors.write_outputs, outputs, in_rows
        )
        return responses.Response(content, media_type='application/json')

    async def _run(self, request: requests.Request, spec: model_pb2.ModelSpec, body: bytes):
        loop, limits = asyncio.get_running_loop(), self._core.limits
        deadline = time.monotonic() + limits.request_timeout_secs
        with self._core.use(spec) as servable:

            def prepare():
                document = json_tensors.parse(body)
                signature = servable.signature(document.get('signature_name', ''))
                return signature, *json_tensors.read_inputs(
                    document, signature, limits.batching.max_batch_size, limits.max_message_bytes
                )

            signature, inputs, in_rows = await loop.run_in_executor(self._json_pool, prepare)
            return await _wait(servable.submit(signature, inputs, deadline=deadline), request, deadline), in_rows

    async def _read_body(self, request: requests.Request, share: predict.Share) -> bytes:
        """Never holds more than a message may have, whatever the client sends."""
        limit, chunks, size = self._core.limits.max_message_bytes, [], 0
        if int(request.headers.get('content-length', 0)) > limit:  # The parser of HTTP lets digits through only.
            raise request_body.too_large(limit)

        async def read():
            nonlocal size
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise request_body.too_large(limit)
                share.take(len(chunk))
                chunks.append(chunk)

        try:
            await asyncio.wait_for(read(), min(_BODY_TIMEOUT_SECS, self._core.limits.request_timeout_secs))
        except TimeoutError as error:
            raise status.ServingError(
                status.Code.DEADLINE_EXCEEDED,
                f'the body did not come in time; {size} bytes of it did.',
                http_status=408,
            ) from error
        return b''.join(chunks)


async def _wait(future, request: requests.Request, deadline: float):
    """Waits for a model's answer; a client that is gone gives its place in the queue back."""
    answer = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait(
            {answer, gone}, timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
        )
        if answer.done():
            return answer.result()
        if gone.done():
            raise requests.ClientDisconnect
        raise status.ServingError(status.Code.DEADLINE_EXCEEDED, 'the model did not answer in time.')
    finally:
        gone.cancel()
        answer.cancel()


async def _until_gone(request: requests.Request) -> None:
    while (await request.receive())['type'] != 'http.disconnect':
        pass


def _target(request: requests.Request) -> str:
    """Returns the path as it was sent, with the query, since TensorFlow Serving matches both together."""
    path = request.scope['raw_path'].decode('latin-1')
    query = request.scope['query_string'].decode('latin-1')
    return (_AUTHORITY.sub('', path, 1) or '/') + (f'?{query}' if query else '')


def _spec(match) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match['name']))
    if match['version']:
        digits = match['version'].lstrip('0') or '0'
        if len(digits) > 19 or int(digits) >= 2**63:
            raise status.invalid(f'Failed to convert version: {match["version"][:40]} to numeric.')
        spec.version.value = int(digits)
    elif match['label']:
        spec.version_label = urllib.parse.unquote(match['label'])
    return spec


def _as_json(message) -> dict:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _json(value, code: int = 200) -> responses.Response:
    return responses.Response(
        json.dumps(value, indent=1).encode() + b'\n', status_code=code, media_type='application/json'
    )


def _error(error: status.ServingError) -> responses.Response:
    response = _json({'error': error.message}, error.http_status)
    if error.http_status == 401:
        response.headers['www-authenticate'] = 'Bearer'
    return response


class RestServer:
    """A server that is bound but does not run yet.

    Args:
      core: Who answers.
      host: Where it listens.
      port: Its port, 0 for any that is free.
      security: What it asks of clients.
      page: Whether browsers get a page, see `page`.

    Attributes:
      port: The port that it has.

    Raises:
      OSError: if the port cannot be had.
    """

    def __init__(self, core: predict.Core, *, host: str, port: int, security: security_lib.Security, page: bool = True):
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            family, kind, protocol, _, address = found[0]
            # Without the protocol asyncio leaves Nagle's algorithm on: each answer would come 40 ms late.
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
        except (OSError, OverflowError) as error:
            raise OSError(
                f'cannot listen at {host}:{port} for REST: {getattr(error, "strerror", None) or error}; name '
                'another --rest_port.'
            ) from error
        self.port = self._socket.getsockname()[1]
        self._config = uvicorn.Config(
            _App(core, security, page),
            http=http_protocol.TimeLimitedProtocol,
            ws='none',
            lifespan='off',
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECS,
            ssl_certfile=security.certificate,
            ssl_keyfile=security.key,
        )
        self._server = uvicorn.Server(self._config)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to answer, in a thread.

        Raises:
          OSError: if the server ends at once.
        """
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name='REST', daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise OSError('the REST server could not be started.')
            time.sleep(0.005)

    def stop(self, grace_secs: float) -> None:
        """Takes no new request, answers those that have begun, and returns soon after `grace_secs` at the latest."""
        # Fractions of a second work too, whatever uvicorn's annotation says.
        self._config.timeout_graceful_shutdown = grace_secs  # type: ignore[assignment]
        self._server.should_exit = True
        if self._thread:
            self._thread.join(grace_secs + 5.0)
        self._socket.close()
