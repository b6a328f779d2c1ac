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

    Raises:
      ValueError: if others could listen or ask.
    """
    host: str = '127.0.0.1'
    rest_port: int = 8501
    grpc_port: int = 8500
    poll_secs: float = 2.0
    limits: predict.Limits = predict.Limits()
    security: security_lib.Security = security_lib.Security()

    def __post_init__(self):
        for name in ('rest_port', 'grpc_port'):
            if not 0 <= getattr(self, name) < 65536:
                raise ValueError(f'{name} must be in [0, 65535], got {getattr(self, name)}.')
        if not 0 < self.poll_secs <= 86400:
            raise ValueError(f'poll_secs must be in (0, 86400], got {self.poll_secs}.')
        self.security.check_host(self.host)


class ModelServer:
    """Serves a folder of versions.

    Args:
      folder: The model's folder; a version is a sub-folder with a number for a name.
      name: The model's name, as requests say it.
      config: Where and to whom.

    Attributes:
      rest_port: Where REST is spoken.
      grpc_port: Where gRPC is spoken.

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
        core = predict.Core(self._manager, config.limits, metrics)
        where = {'host': config.host, 'security': config.security}
        self._rest = rest_server.RestServer(core, port=config.rest_port, **where)
        self._grpc = grpc_server.GrpcServer(core, port=config.grpc_port, **where)
        self.rest_port, self.grpc_port = self._rest.port, self._grpc.port
        self._poll_secs = config.poll_secs
        self._manager.load_first()

    def start(self) -> None:
        """Begins to answer and to look for new versions, in threads."""
        self._grpc.start()
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
        stops = [threading.Thread(target=part.stop, args=(grace_secs,)) for part in (self._rest, self._grpc)]
        for thread in stops:
            thread.start()
        for thread in stops:
            thread.join()
        unloading = threading.Thread(target=self._manager.close, daemon=True)
        unloading.start()
        unloading.join(_UNLOAD_SECS)
        return not unloading.is_alive()
