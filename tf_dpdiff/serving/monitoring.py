"""Prometheus metrics of a server."""

from collections.abc import Callable
import time

import prometheus_client

PATH = '/monitoring/prometheus/metrics'  # Where TensorFlow Serving's own configurations put them.
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST

_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_PREFIX = 'tf_dpdiff_serving_'


class Metrics:
    """The counters of a server.

    No label comes from a client: names and signatures that do not exist would make series without end.

    Args:
      model_name: Label of all.
    """

    def __init__(self, model_name: str):
        self._registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._registry)
        self._model_name = model_name
        self._requests = prometheus_client.Counter(
            f'{_PREFIX}requests',
            'Requests by interface, method and canonical status code.',
            ['model_name', 'api', 'method', 'code'],
            registry=self._registry,
        )
        self._latency = self._histogram(
            'request_latency_seconds', 'From the whole request to the whole answer.', ['api', 'method'], _LATENCIES
        )
        self._rows = self._histogram('batch_rows', 'Rows that were run at once.', ['signature'], _ROWS)
        self._waited = self._histogram(
            'batch_queuing_latency_seconds', 'How long the oldest request of a batch waited.', ['signature'], _LATENCIES
        )
        self._queue = prometheus_client.Gauge(
            f'{_PREFIX}queue_length', 'Requests that wait, of all signatures.', ['model_name'], registry=self._registry
        )
        self._version = prometheus_client.Gauge(
            f'{_PREFIX}model_version',
            'The version that requests without one get.',
            ['model_name'],
            registry=self._registry,
        )

    def _histogram(self, name, documentation, labels, buckets):
        return prometheus_client.Histogram(
            f'{_PREFIX}{name}', documentation, ['model_name', *labels], buckets=buckets, registry=self._registry
        )

    def count_request(self, api: str, method: str, code: str, started: float) -> None:
        """Counts an answer.

        Args:
          api: 'REST' or 'gRPC'.
          method: As in 'Predict'.
          code: The canonical code's name, as in 'OK'.
          started: When it began, by `time.monotonic`.
        """
        self._requests.labels(self._model_name, api, method, code).inc()
        self._latency.labels(self._model_name, api, method).observe(time.monotonic() - started)

    def count_batch(self, signature: str, rows: int, waited_secs: float) -> None:
        """Counts a batch that is about to be run."""
        self._rows.labels(self._model_name, signature).observe(rows)
        self._waited.labels(self._model_name, signature).observe(waited_secs)

    def watch(self, queue_length: Callable[[], int], version: Callable[[], int]) -> None:
        """Names functions that are asked whenever metrics are read."""
        self._queue.labels(self._model_name).set_function(queue_length)
        self._version.labels(self._model_name).set_function(version)

    def page(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)
