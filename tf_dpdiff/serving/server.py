"""A small model server: TensorFlow Serving's protocol over gRPC and REST, for one model, in one process."""

import dataclasses
import functools
import pathlib
import threading

from tf_dpdiff.serving import grpc_server
from tf_dpdiff.serving import monitoring
from tf_dpdiff.serving import predict
from tf_dpdiff.serving import rest_server
from tf_dpdiff.serving import security as security_lib
from tf_dpdiff.serving import servables
from tf_dpdiff.serving import versions

_UNLOAD_SECS = 5.0


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Where a server listens, and to whom.

    Args:
      host: A name or address of this machine.
      rest_port: 0 for any that is free.
      grpc_port: 0 for any that is free.
      poll_secs: How often it looks for new versions.
      limits: What it takes.
      security: What it asks of clients.
      health_port: Where health checks, and nothing else, are answered to everyone: by gRPC without TLS and token, as
        Kubernetes and many load balancers ask. 0 for any that is free, None for no such port.
      page: Whether browsers get a page by which to draw images.

    Raises:
      ValueError: if others could listen or ask.
    """

    host: str = '127.0.0.1'
    rest_port: int = 8501
    grpc_port: int = 8500
    poll_secs: float = 2.0
    limits: predict.Limits = predict.Limits()
    security: security_lib.Security = security_lib.Security()
    health_port: int | None = None
    page: bool = True

    def __post_init__(self):
        for name in ('rest_port', 'grpc_port', 'health_port'):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 65536:
                raise ValueError(f'{name} must be in [0, 65535], got {getattr(self, name)}.')
        if not 0 < self.poll_secs <= 86400:
            raise ValueError(f'poll_secs must be in (0, 86400], got {self.poll_secs}.')
        self.security.check_host(self.host)


class ModelServer:
    """Serves a folder of versions. While it loads the first one, it answers health checks.

    Args:
      folder: The model's folder; a version is a sub-folder with a number for a name.
      name: The model's name, as requests say it.
      config: Where and to whom.

    Attributes:
      rest_port: Where REST is spoken.
      grpc_port: Where gRPC is spoken.
      health_port: Where health checks alone are answered, or None.

    Raises:
      OSError: if a port cannot be had.
      FileNotFoundError: if there is no version.
      LoadError: if none can be loaded.
    """

    def __init__(self, folder: pathlib.Path, name: str, config: ServerConfig):
        metrics = monitoring.Metrics(name)
        load = functools.partial(servables.Servable, config=config.limits.batching, on_batch=metrics.count_batch)
        self._manager = versions.VersionManager(folder, name, load)
        metrics.watch(self._manager.queue_length, self._manager.newest_version)
        self._core = predict.Core(self._manager, config.limits, metrics)
        host, security = config.host, config.security
        self._rest = rest_server.RestServer(
            self._core, port=config.rest_port, host=host, security=security, page=config.page
        )
        self._grpc = grpc_server.GrpcServer(self._core, port=config.grpc_port, host=host, security=security)
        self._health = _health_server(self._core, config)
        self.rest_port, self.grpc_port = self._rest.port, self._grpc.port
        self.health_port = self._health.port if self._health else None
        self._poll_secs = config.poll_secs
        self._load_first()

    def _load_first(self) -> None:
        of_grpc = [part for part in (self._grpc, self._health) if part]
        for server in of_grpc:
            server.start()
        try:
            self._manager.load_first()
        except BaseException:
            for server in of_grpc:
                server.stop(0.0)
            self._rest.stop(0.0)
            raise

    def start(self) -> None:
        """Begins to answer and to look for new versions, in threads."""
        self._core.gate.open()
        self._rest.start()
        self._manager.watch(self._poll_secs)

    def newest_version(self) -> int:
        """Returns the version that requests without one get."""
        return self._manager.newest_version()

    def stop(self, grace_secs: float) -> bool:
        """Takes no new request, answers those that have begun, and unloads the model.

        Args:
          grace_secs: How long clients wait for their answers at most.

        Returns:
          Whether all requests were answered; a model that is still running, or a version that is still being loaded,
          cannot be stopped but by ending the process.
        """
        self._core.gate.close()  # From now on health checks say so.
        stops = [threading.Thread(target=part.stop, args=(grace_secs,)) for part in (self._rest, self._grpc)]
        for thread in stops:
            thread.start()
        for thread in stops:
            thread.join()
        unloading = threading.Thread(target=self._manager.close, daemon=True)
        unloading.start()
        unloading.join(_UNLOAD_SECS)
        if self._health:  # Last, to say until then that the server is not to be asked.
            self._health.stop(0.0)
        return not unloading.is_alive()


def _health_server(core: predict.Core, config: ServerConfig) -> grpc_server.GrpcServer | None:
    if config.health_port is None:
        return None
    return grpc_server.GrpcServer(
        core,
        host=config.host,
        port=config.health_port,
        security=security_lib.Security(),
        flag='health_port',
        only_health=True,
    )
