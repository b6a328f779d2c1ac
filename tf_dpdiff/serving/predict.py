"""The answers of a server, whatever protocol they are asked for in: messages of TensorFlow Serving's API in and out."""

from collections.abc import Iterator
import contextlib
import dataclasses
import threading

from tensorflow_serving.apis import get_model_metadata_pb2
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import model_pb2

from tf_dpdiff.serving import batching as batching_lib
from tf_dpdiff.serving import monitoring
from tf_dpdiff.serving import servables
from tf_dpdiff.serving import status
from tf_dpdiff.serving import versions

_SIGNATURE_DEF = 'signature_def'
_OPEN_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of what a server takes.

    Args:
      batching: How requests are joined, and how many wait.
      request_timeout_secs: How long a request may take, from its arrival to the model's answer.
      max_message_bytes: How large a request may be; so may each of its tensors.
    """

    batching: batching_lib.BatchingConfig = batching_lib.BatchingConfig()
    request_timeout_secs: float = 60.0
    max_message_bytes: int = 16 * 2**20

    def __post_init__(self):
        if not 0 < self.request_timeout_secs <= 86400:
            raise ValueError(f'request_timeout_secs must be in (0, 86400], got {self.request_timeout_secs}.')
        if not 1024 <= self.max_message_bytes < 2**31:
            raise ValueError(f'max_message_bytes must be in [1024, 2**31), got {self.max_message_bytes}.')

    @property
    def max_open_requests(self) -> int:
        """How many requests are in the server at once, with those that are being read, run or answered."""
        return self.batching.max_queue + self.batching.max_batch_size + 32

    @property
    def max_open_bytes(self) -> int:
        """How large all requests in the server may be together."""
        return max(_OPEN_BYTES, 4 * self.max_message_bytes)


class Share:
    """The bytes that one request takes of a `ByteBudget`."""

    def __init__(self, budget: 'ByteBudget'):
        self._budget, self.num_bytes = budget, 0

    def take(self, num_bytes: int) -> None:
        """Takes more.

        Raises:
          ServingError: if there is not so much left.
        """
        self._budget.move(num_bytes)
        self.num_bytes += num_bytes


class ByteBudget:
    """Bytes that all requests have together, so that many large ones do not fill the memory.

    Args:
      num_bytes: How many.
    """

    def __init__(self, num_bytes: int):
        self._left, self._lock = num_bytes, threading.Lock()

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """Yields a share of nothing yet; what it takes is given back when the block ends."""
        share = Share(self)
        try:
            yield share
        finally:
            self.move(-share.num_bytes)

    def move(self, num_bytes: int) -> None:
        """Takes bytes out, or puts them back if negative; see `Share.take`."""
        with self._lock:
            if num_bytes > max(self._left, 0):
                raise status.ServingError(status.Code.UNAVAILABLE, 'too many large requests are open.')
            self._left -= num_bytes


class Gate:
    """Lets requests in while it is open, and counts those that are in; closed at first."""

    def __init__(self):
        self._is_open, self._num_in, self._changed = False, 0, threading.Condition()

    @property
    def is_open(self) -> bool:
        """Whether requests are let in."""
        return self._is_open

    def open(self) -> None:
        """Lets requests in from now on."""
        self._is_open = True

    def close(self) -> None:
        """Lets none in from now on."""
        with self._changed:
            self._is_open = False

    def wait_until_empty(self, timeout_secs: float) -> None:
        """Returns when no request is in, or at the latest after this time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_in, timeout_secs)

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """A context in which a request is in.

        Raises:
          ServingError: if the gate is closed.
        """
        with self._changed:
            if not self._is_open:
                raise status.ServingError(status.Code.UNAVAILABLE, 'the server loads its model, or is about to stop.')
            self._num_in += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_in -= 1
                self._changed.notify_all()


class Core:
    """Answers for one model.

    Args:
      manager: Its versions.
      limits: What is taken.
      metrics: Where requests are counted.

    Attributes:
      limits: See above.
      metrics: See above.
      budget: Requests take their size from it.
      gate: Requests by gRPC go through it.
      model_name: As requests say it.
    """

    def __init__(self, manager: versions.VersionManager, limits: Limits, metrics: monitoring.Metrics):
        self.limits, self.metrics = limits, metrics
        self.budget, self.gate = ByteBudget(limits.max_open_bytes), Gate()
        self.model_name = manager.name
        self._manager = manager

    def is_serving(self) -> bool:
        """True while requests are let in and there is a version to answer them."""
        return self.gate.is_open and self._manager.is_loaded()

    @contextlib.contextmanager
    def use(self, spec: model_pb2.ModelSpec) -> Iterator[servables.Servable]:
        """Yields the version that a request names, for as long as the block lasts.

        Raises:
          ServingError: if there is no such model or version.
        """
        with self._manager.use(spec.name, _version_of(spec)) as servable:
            yield servable

    def answered_spec(
        self, spec: model_pb2.ModelSpec, servable: servables.Servable, signature_name: str
    ) -> model_pb2.ModelSpec:
        """Returns the model, version and signature that an answer names."""
        result = model_pb2.ModelSpec(name=spec.name, signature_name=signature_name)
        result.version.value = servable.version
        return result

    def model_status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Answers GetModelStatus.

        Raises:
          ServingError: if there is no such model or version.
        """
        if not request.HasField('model_spec'):
            raise status.invalid('Missing ModelSpec')
        response = get_model_status_pb2.GetModelStatusResponse()
        for state in self._manager.states(request.model_spec.name, _version_of(request.model_spec)):
            entry = response.model_version_status.add(version=state.version, state=state.state)
            entry.status.error_code = state.error.code.value[0] if state.error else 0
            entry.status.error_message = state.error.message if state.error else ''
        return response

    def model_metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Answers GetModelMetadata.

        Raises:
          ServingError: if there is no such model or version, or something else than signatures is asked for.
        """
        if not request.HasField('model_spec'):
            raise status.invalid('Missing ModelSpec')
        if not request.metadata_field:
            raise status.invalid('GetModelMetadataRequest must specify at least one metadata_field')
        for field in request.metadata_field:
            if field != _SIGNATURE_DEF:
                raise status.invalid(f'Metadata field {field[:80]} is not supported')
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self.use(request.model_spec) as servable:
            response.model_spec.CopyFrom(self.answered_spec(request.model_spec, servable, ''))
            response.metadata[_SIGNATURE_DEF].Pack(servable.signature_defs)
        return response


def _version_of(spec: model_pb2.ModelSpec):
    if spec.WhichOneof('version_choice') == 'version_label':
        raise status.invalid(f'Unrecognized servable version label: {spec.version_label[:80]}')
    return spec.version.value if spec.HasField('version') else None
