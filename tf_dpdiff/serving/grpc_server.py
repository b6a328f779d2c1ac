"""TensorFlow Serving's protocol over gRPC: PredictionService and ModelService.

References: https://github.com/tensorflow/serving/tree/master/tensorflow_serving/apis, prediction_service.proto and
model_service.proto.
"""

from concurrent import futures
import logging
import time
from typing import Callable

import grpc
import tensorflow as tf
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tf_dpdiff.serving import predict
from tf_dpdiff.serving import security as security_lib
from tf_dpdiff.serving import signatures
from tf_dpdiff.serving import status

_log = logging.getLogger(__name__)


class GrpcServer:
    """A server that is bound but does not run yet.

    Args:
      core: Who answers.
      host: Where it listens.
      port: Its port, 0 for any that is free.
      security: What it asks of clients.

    Attributes:
      port: The port that it has.

    Raises:
      OSError: if the port cannot be had.
    """

    def __init__(self, core: predict.Core, *, host: str, port: int, security: security_lib.Security):
        # Each waiting request holds a thread, or the queue could never be full.
        threads = core.limits.max_open_requests
        self._pool = futures.ThreadPoolExecutor(threads, thread_name_prefix='grpc')
        self._server = grpc.server(self._pool,
                                   interceptors=[_TokenCheck(security)] if security.token else [],
                                   options=[('grpc.max_receive_message_length', core.limits.max_message_bytes),
                                            ('grpc.max_send_message_length', -1), ('grpc.so_reuseport', 0),
                                            ('grpc.max_metadata_size', 16384), ('grpc.http2.max_ping_strikes', 2)],
                                   maximum_concurrent_rpcs=2 * threads)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_PredictionService(core), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_ModelService(core), self._server)
        address = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
        try:
            if security.certificate:
                credentials = grpc.ssl_server_credentials([(security.key.read_bytes(),
                                                            security.certificate.read_bytes())])
                self.port = self._server.add_secure_port(address, credentials)
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f'cannot listen at {address} for gRPC; is the port in use? Name another --grpc_port.') from error

    def start(self) -> None:
        """Begins to answer, in threads."""
        self._server.start()

    def stop(self, grace_secs: float) -> None:
        """Takes no new request, answers those that have begun, and returns at the latest after `grace_secs`."""
        self._server.stop(grace_secs).wait()
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
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(status.Code.UNAUTHENTICATED, 'no token, or another one.'))


def _answer(core: predict.Core, method: str, context, function: Callable):
    """Returns what a function does; tells errors by their codes, and counts."""
    started = time.monotonic()
    try:
        response = function()
        core.metrics.count_request('gRPC', method, 'OK', started)
        return response
    except status.ServingError as raised:
        error = raised
    except Exception as raised:  # pylint: disable=broad-except
        _log.exception('%s failed', method)
        error = status.from_exception(raised)
    core.metrics.count_request('gRPC', method, error.code.name, started)
    return context.abort(error.code, error.message)


def _unimplemented(unused_self, unused_request, context):
    context.abort(status.Code.UNIMPLEMENTED, 'this server answers Predict, GetModelMetadata and GetModelStatus.')


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata."""

    Classify = Regress = MultiInference = _unimplemented  # pylint: disable=invalid-name

    def __init__(self, core: predict.Core):
        self._core = core

    def Predict(self, request, context):  # pylint: disable=invalid-name
        """Runs a signature."""
        return _answer(self._core, 'Predict', context, lambda: self._predict(request, context))

    def GetModelMetadata(self, request, context):  # pylint: disable=invalid-name
        """Describes the signatures."""
        return _answer(self._core, 'GetModelMetadata', context, lambda: self._core.model_metadata(request))

    def _predict(self, request, context):
        limits = self._core.limits
        # None where the client sets no deadline.
        timeout = min(context.time_remaining() or limits.request_timeout_secs, limits.request_timeout_secs)
        deadline = time.monotonic() + timeout
        with self._core.use(request.model_spec) as servable:
            signature = servable.signature(request.model_spec.signature_name)
            names = signature.output_names(request.output_filter)
            signature.check_names(request.inputs)
            inputs = {
                name: signatures.from_tensor_proto(name, request.inputs[name], spec, limits.max_message_bytes)
                for name, spec in signature.inputs.items()
            }
            future = servable.submit(signature, inputs, deadline=deadline)
            context.add_callback(future.cancel)  # A client that is gone gives its place in the queue back.
            outputs = _wait(future, deadline)
            response = predict_pb2.PredictResponse(
                model_spec=self._core.answered_spec(request.model_spec, servable, signature.name))
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
        raise status.ServingError(status.Code.CANCELLED, 'the client is gone.') from error


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    HandleReloadConfigRequest = _unimplemented  # pylint: disable=invalid-name

    def __init__(self, core: predict.Core):
        self._core = core

    def GetModelStatus(self, request, context):  # pylint: disable=invalid-name
        """Says which versions there are."""
        return _answer(self._core, 'GetModelStatus', context, lambda: self._core.model_status(request))
