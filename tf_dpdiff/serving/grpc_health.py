"""The standard health service of gRPC, by which Kubernetes and load balancers ask whether a server serves.

References: https://github.com/grpc/grpc/blob/master/doc/health-checking.md. Besides the services of that page, the two
short names that TensorFlow Serving gives with `--enable_grpc_healthcheck_service` are known.
"""

import threading

from grpc_health.v1 import health_pb2
from grpc_health.v1 import health_pb2_grpc

from tf_dpdiff.serving import predict
from tf_dpdiff.serving import status

PREFIX = '/grpc.health.v1.Health/'
MAX_WATCHERS = 64  # Each holds a thread.
_SERVICES = tuple(
    f'{package}{name}' for package in ('', 'tensorflow.serving.') for name in ('PredictionService', 'ModelService')
)
_LOOK_SECS = 0.1
_Answer = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """Answers SERVING while a version is loaded and requests are taken, else NOT_SERVING.

    The services are the whole server (''), those of TensorFlow Serving's protocol, and the model's name.

    Args:
      core: Who answers the other requests.
    """

    def __init__(self, core: predict.Core):
        self._core = core
        self._services = {'', core.model_name, *_SERVICES}
        self._places = threading.BoundedSemaphore(MAX_WATCHERS)
        self._closed = threading.Event()

    def Check(self, request, context):
        """Says how a service is."""
        if request.service not in self._services:
            raise status.ServingError(status.Code.NOT_FOUND, f'unknown service: {request.service[:80]}')
        return _Answer(status=self._status(request.service))

    def Watch(self, request, context):
        """Says how a service is, now and whenever that changes, for as long as the client asks and the server runs."""
        if not self._places.acquire(blocking=False):
            raise status.ServingError(status.Code.RESOURCE_EXHAUSTED, 'too many clients watch.')
        try:
            told = None
            while context.is_active():
                is_last, now = self._closed.is_set(), self._status(request.service)
                if now != told:
                    yield _Answer(status=now)
                    told = now
                if is_last:
                    return
                self._closed.wait(_LOOK_SECS)
        finally:
            self._places.release()

    def close(self) -> None:
        """Ends the calls that watch."""
        self._closed.set()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return _Answer.SERVICE_UNKNOWN
        return _Answer.SERVING if self._core.is_serving() else _Answer.NOT_SERVING
