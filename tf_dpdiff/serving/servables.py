"""One version of a SavedModel in memory: its signatures, each behind a queue; its warm-up."""

from collections.abc import Callable, Mapping
import functools
import logging
import pathlib
import time

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2
from tensorflow_serving.apis import prediction_log_pb2

from tf_dpdiff.serving import batching
from tf_dpdiff.serving import signatures
from tf_dpdiff.serving import status
from tf_dpdiff.serving import version_folders

DEFAULT_SIGNATURE = 'serving_default'
WARMUP = pathlib.Path('assets.extra') / 'tf_serving_warmup_requests'
_MAX_WARMUP_REQUESTS = 1000  # TensorFlow Serving's.
_MAX_WARMUP_BYTES = 2**30
_MAX_WARMUP_SECS = 60.0  # Few requests are enough here: nothing is compiled for a shape.
_log = logging.getLogger(__name__)


class LoadError(Exception):
    """A folder holds no SavedModel that works; the message is one line."""


class Servable:
    """A loaded version.

    Args:
      folder: Of the version; its name is the version's number.
      config: How requests are joined.
      on_batch: See `batching.Batcher`; is told the signature's name first.

    Attributes:
      version: Its number.
      signature_defs: A `SignatureDefMap`, as GetModelMetadata gives it.

    Raises:
      LoadError: if it cannot be loaded, or fails on one of its warm-up requests.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: batching.BatchingConfig,
        on_batch: Callable[[str, int, float], None] | None = None,
    ):
        self.version = int(folder.name)
        try:
            self.signature_defs = get_model_metadata_pb2.SignatureDefMap()
            for name, definition in version_folders.read_signature_defs(folder).items():
                self.signature_defs.signature_def[name].CopyFrom(definition)
            self._model = tf.saved_model.load(str(folder))
            self._signatures = _read_signatures(self._model.signatures, self.signature_defs)
            _warm_up(folder, self.signature, config.max_batch_size)
        except Exception as error:
            # Damage shows as any error, an IndexError among them.
            raise LoadError(f'{folder}: {status.from_exception(error).message}') from error
        on_batch = on_batch or (lambda name, rows, waited: None)
        self._batchers: dict[str, batching.Batcher] = {
            name: batching.Batcher(signature, config, functools.partial(on_batch, name))
            for name, signature in self._signatures.items()
        }

    def signature(self, name: str = '') -> signatures.Signature:
        """Returns a signature by its name, by default 'serving_default'.

        Raises:
          ServingError: if there is none of this name.
        """
        name = name or DEFAULT_SIGNATURE
        if name not in self._signatures:
            raise status.ServingError(
                status.Code.FAILED_PRECONDITION, f'Serving signature key "{name[:80]}" not found.'
            )
        return self._signatures[name]

    def submit(self, signature: signatures.Signature, inputs: Mapping[str, np.ndarray], *, deadline: float):
        """Queues a request for a signature of this version; see `batching.Batcher.submit`."""
        return self._batchers[signature.name].submit(inputs, deadline=deadline)

    def queue_length(self) -> int:
        """Returns the number of requests that wait."""
        return sum(len(batcher) for batcher in self._batchers.values())

    def close(self) -> None:
        """Answers what is queued and gives the model's memory back."""
        for batcher in self._batchers.values():
            batcher.close()
        self._batchers, self._signatures, self._model = {}, {}, None


def _read_signatures(functions, signature_defs) -> dict[str, signatures.Signature]:
    """A signature without a function (of initialization, say) cannot be called and is left out."""
    result = {}
    for name, definition in signature_defs.signature_def.items():
        if name in functions:
            inputs, outputs = (
                {key: signatures.TensorSpec.from_tensor_info(info) for key, info in sorted(infos.items())}
                for infos in (definition.inputs, definition.outputs)
            )
            result[name] = signatures.Signature(name, inputs, outputs, functions[name])
    return result


def _warm_up(folder: pathlib.Path, find_signature, max_rows: int) -> None:
    """Replays the requests that lie beside the model, as TensorFlow Serving does: no client waits for tracing."""
    path = folder / WARMUP
    if not path.exists():
        return
    started = time.monotonic()
    for i, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
        if i >= _MAX_WARMUP_REQUESTS:
            raise ValueError(f'{path} holds more than {_MAX_WARMUP_REQUESTS} requests.')
        if time.monotonic() - started > _MAX_WARMUP_SECS:
            _log.warning('%s: only the first %d requests were replayed, in %.0f seconds', path, i, _MAX_WARMUP_SECS)
            return
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.WhichOneof('log_type') != 'predict_log':
            continue  # Of methods that are not served here.
        request = log.predict_log.request
        signature = find_signature(request.model_spec.signature_name)
        inputs = signature.read_protos(request.inputs, max_bytes=_MAX_WARMUP_BYTES)
        if signature.num_rows(inputs) <= max_rows:  # No client may ask for more at once, and memory may not do.
            signature.run(inputs)
