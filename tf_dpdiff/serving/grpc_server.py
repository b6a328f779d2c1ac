"""TensorFlow Serving's protocol over gRPC: PredictionService and ModelService, with the standard health service.

References: https://github.com/tensorflow/serving/tree/master/tensorflow_serving/apis, prediction_service.proto and
model_service.proto.
"""

from collections.abc import Callable
from concurrent import futures
import contextlib
import logging
import threading
import time

import grpc
from grpc_health.v1 import health_pb2_grpc
import tensorflow as tf
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tf_dpdiff.serving import grpc_health
from tf_dpdiff.serving import predict
from tf_dpdiff.serving import security as security_lib
from tf_dpdiff.serving import status

MESSAGE_TIMEOUT_SECS = 30.0
STALLED_SECS = 30.0
_LOOK_SECS = 0.2
_CHECKS = 16  # How many a server of health checks alone answers at once.
_KEEPALIVE_SECS = 60  # How often a client that watches is asked whether it still is there.
_log = logging.getLogger(__name__)


class GrpcServer:
    """A server that is bound but does not run yet. It answers health checks at once, and others while the gate is open.

    Args:
      core: Who answers.
      host: Where it listens.
      port: Its port, 0 for any that is free.
      security: What it asks of clients.
      flag: What names the port, for errors.
      only_health: Whether health checks are all that it answers.

    Attributes:
      port: The port that it has.

    Raises:
      OSError: if the port cannot be had.
    """

    def __init__(
        self,
        core: predict.Core,
        *,
        host: str,
        port: int,
        security: security_lib.Security,
        flag: str = 'grpc_port',
        only_health: bool = False,
    ):
        # Each waiting request holds a thread, or the queue could never be full; so does each client that watches.
        threads = (_CHECKS if only_health else core.limits.max_open_requests) + grpc_health.MAX_WATCHERS
        self._core, self._health = core, grpc_health.HealthService(core)
        self._pool = futures.ThreadPoolExecutor(threads, thread_name_prefix='grpc')
        self._watch = _Watch(2 * threads)
        checks = [_TokenCheck(security)] if security.token else []
        self._server = grpc.server(
            self._pool,
            interceptors=[*checks, _Deadlines(core, self._watch)],
            options=[
                ('grpc.max_receive_message_length', core.limits.max_message_bytes),
                ('grpc.max_send_message_length', -1),
                ('grpc.so_reuseport', 0),
                ('grpc.max_metadata_size', 16384),
                ('grpc.http2.max_ping_strikes', 2),
                ('grpc.keepalive_time_ms', _KEEPALIVE_SECS * 1000),
            ],
            maximum_concurrent_rpcs=2 * threads,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if not only_health:
            prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_PredictionService(core), self._server)
            model_service_pb2_grpc.add_ModelServiceServicer_to_server(_ModelService(core), self._server)
        address = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
        try:
            if security.certificate:
                assert security.key is not None  # It comes with the certificate.
                credentials = grpc.ssl_server_credentials(
                    [(security.key.read_bytes(), security.certificate.read_bytes())]
                )
                self.port = self._server.add_secure_port(address, credentials)
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f'cannot listen at {address} for gRPC; is the port in use? Name another --{flag}.') from error

    def start(self) -> None:
        """Begins to answer, in threads."""
        self._watch.start()
        self._server.start()

    def stop(self, grace_secs: float) -> None:
        """Takes no new request, answers those that have begun, and returns at the latest after `grace_secs`.

        Until they are answered, so are health checks.
        """
        until = time.monotonic() + grace_secs
        self._core.gate.close()
        self._core.gate.wait_until_empty(grace_secs)
        self._health.close()
        self._server.stop(max(0.0, until - time.monotonic())).wait()
        self._watch.stop()
        self._pool.shutdown(wait=False)


class _TokenCheck(grpc.ServerInterceptor):
    """Answers UNAUTHENTICATED to whoever does not send the token."""

    def __init__(self, security: security_lib.Security):
        self._security = security

    def intercept_service(self, continuation, handler_call_details):
        """See the base class."""
        sent = dict(handler_call_details.invocation_metadata).get('authorization')
        if self._security.is_authorized(sent if isinstance(sent, str) else None):
            return continuation(handler_call_details)
        # Of a stream, which is the same to the client, since that is answered without waiting for a message.
        return grpc.stream_unary_rpc_method_handler(
            lambda requests, context: context.abort(status.Code.UNAUTHENTICATED, 'no token, or another one.')
        )


class _Watch:
    """Ends calls whose clients take too long.

    Args:
      max_calls: How many are watched at once.
    """

    def __init__(self, max_calls: int):
        self._max_calls = max_calls
        self._until: dict[grpc.ServicerContext, float] = {}
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name='gRPC watch', daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Looks no more."""
        self._stopping.set()

    def begin(self, context) -> bool:
        """Watches a call until it is over, or returns False if there are too many."""
        with self._lock:
            if len(self._until) >= self._max_calls:
                return False
            self._until[context] = float('inf')
        if not context.add_callback(lambda: self._end(context)):
            self._end(context)
        return True

    def limit(self, context, secs: float) -> None:
        """Says how much time the client has from now on."""
        with self._lock:
            if context in self._until:
                self._until[context] = time.monotonic() + secs

    def _end(self, context) -> None:
        with self._lock:
            self._until.pop(context, None)

    def _work(self) -> None:
        while not self._stopping.wait(_LOOK_SECS):
            now = time.monotonic()
            with self._lock:
                late = [context for context, until in self._until.items() if until < now]
            for context in late:
                context.cancel()


class _Deadlines(grpc.ServerInterceptor):
    """Lets no client hold a thread without sending its message, or memory without reading its answer.

    gRPC itself waits for a message for ever. So methods become ones of a stream, which is the same to clients, and the
    one message is read here: `MESSAGE_TIMEOUT_SECS` for that, `STALLED_SECS` for the answer to be read.
    """

    def __init__(self, core: predict.Core, watch: _Watch):
        self._core, self._watch = core, watch

    def intercept_service(self, continuation, handler_call_details):
        """See the base class."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                lambda messages, context: self._handle_watching(handler, messages, context),
                response_serializer=handler.response_serializer,
            )
        is_health = handler_call_details.method.startswith(grpc_health.PREFIX)
        enter = contextlib.nullcontext if is_health else self._core.gate.enter
        return grpc.stream_unary_rpc_method_handler(
            lambda messages, context: self._handle(handler, enter, messages, context),
            response_serializer=handler.response_serializer,
        )

    def _handle(self, handler, enter, messages, context):
        try:
            with enter(), self._core.budget.share() as share:
                request = self._read(handler, share, messages, context)
                return handler.unary_unary(request, context)
        except status.ServingError as error:
            return context.abort(error.code, error.message)
        finally:
            self._watch.limit(context, STALLED_SECS)

    def _handle_watching(self, handler, messages, context):
        try:
            with self._core.budget.share() as share:
                request = self._read(handler, share, messages, context)
            yield from handler.unary_stream(request, context)
        except status.ServingError as error:
            context.abort(error.code, error.message)

    def _read(self, handler, share, messages, context):
        if not self._watch.begin(context):
            context.abort(status.Code.UNAVAILABLE, 'too many requests are open.')
        timeout = min(MESSAGE_TIMEOUT_SECS, self._core.limits.request_timeout_secs)
        self._watch.limit(context, timeout)
        try:
            message = next(messages, None)
        except grpc.RpcError:
            context.abort(status.Code.CANCELLED, f'the message did not come within {timeout:g} seconds.')
        if message is None:
            context.abort(status.Code.UNIMPLEMENTED, 'the method takes one message.')
        assert message is not None
        self._watch.limit(context, float('inf'))
        try:
            request = handler.request_deserializer(message)
        except Exception:
            context.abort(status.Code.INVALID_ARGUMENT, 'the message is not of the type that the method takes.')
        share.take(len(message))
        return request


def _answer(core: predict.Core, method: str, context, function: Callable):
    """Returns the result of a function; tells errors by their codes, and counts."""
    started = time.monotonic()
    try:
        response = function()
        core.metrics.count_request('gRPC', method, 'OK', started)
        return response
    except status.ServingError as raised:
        error = raised
    except Exception as raised:
        _log.exception('%s failed', method)
        error = status.from_exception(raised)
    core.metrics.count_request('gRPC', method, error.code.name, started)
    return context.abort(error.code, error.message)


def _unimplemented(unused_self, unused_request, context):
    context.abort(status.Code.UNIMPLEMENTED, 'this server answers Predict, GetModelMetadata and GetModelStatus.')


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata."""

    Classify = Regress = MultiInference = _unimplemented

    def __init__(self, core: predict.Core):
        self._core = core

    def Predict(self, request, context):
        """Runs a signature."""
        return _answer(self._core, 'Predict', context, lambda: self._predict(request, context))

    def GetModelMetadata(self, request, context):
        """Describes the signatures."""
        return _answer(self._core, 'GetModelMetadata', context, lambda: self._core.model_metadata(request))

    def _predict(self, request, context):
        limits = self._core.limits
        remaining = context.time_remaining()  # None where the client sets no deadline.
        timeout = limits.request_timeout_secs
        deadline = time.monotonic() + (timeout if remaining is None else min(remaining, timeout))
        with self._core.use(request.model_spec) as servable:
            signature = servable.signature(request.model_spec.signature_name)
            names = signature.output_names(request.output_filter)
            inputs = signature.read_protos(
                request.inputs, max_bytes=limits.max_message_bytes, max_rows=limits.batching.max_batch_size
            )
            waiting: list[futures.Future] = []
            # A client that is gone gives its place in the queue back, or does not get one.
            if not context.add_callback(lambda: [future.cancel() for future in waiting]):
                raise _gone()
            waiting.append(servable.submit(signature, inputs, deadline=deadline))
            if not context.is_active():  # It may have gone before there was something to cancel.
                waiting[0].cancel()
            outputs = _wait(waiting[0], deadline)
            response = predict_pb2.PredictResponse(
                model_spec=self._core.answered_spec(request.model_spec, servable, signature.name)
            )
        for name in names:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        return response


def _wait(future, deadline: float):
    try:
        return future.result(deadline - time.monotonic())
    except futures.TimeoutError as error:
        future.cancel()
        raise status.ServingError(status.Code.DEADLINE_EXCEEDED, 'the model did not answer in time.') from error
    except futures.CancelledError as error:
        raise _gone() from error


def _gone() -> status.ServingError:
    return status.ServingError(status.Code.CANCELLED, 'the client is gone.')


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    HandleReloadConfigRequest = _unimplemented

    def __init__(self, core: predict.Core):
        self._core = core

    def GetModelStatus(self, request, context):
        """Says which versions there are."""
        return _answer(self._core, 'GetModelStatus', context, lambda: self._core.model_status(request))
