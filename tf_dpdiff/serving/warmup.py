"""Requests that TF Serving sends itself before a model takes any: the first of each shape is slow."""

from collections.abc import Iterable, Mapping, Sequence
import pathlib

import numpy as np
import tensorflow as tf

FILE = 'tf_serving_warmup_requests'
# The batch sizes that a server should allow: it fills a batch up to the next of them, so that at most half of the work
# is for nothing. The last is the one in which bin/sample asks for images.
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 250)


def write(
    folder: pathlib.Path,
    signatures: Mapping[str, tf.types.experimental.GenericFunction],
    batch_sizes: Sequence[int],
    *,
    label: int = 0,
    num_steps: int | None = None,
) -> bool:
    """Writes the warm-up requests of an exported model: one a signature and batch size.

    Args:
      folder: The model's `assets.extra`.
      signatures: Its signatures by name; each says what its inputs are.
      batch_sizes: At least 1 each.
      label: One that the model was trained on.
      num_steps: The step count to ask for, if the model lets requests choose.

    Returns:
      Whether they were written; not where tensorflow-serving-api is missing.

    References: https://www.tensorflow.org/tfx/serving/saved_model_warmup
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError:
        return False
    with tf.io.TFRecordWriter(str(folder / FILE)) as records:
        for name, signature in signatures.items():
            specs, _ = signature.get_concrete_function().structured_input_signature
            for size in batch_sizes:
                log = prediction_log_pb2.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name = 'warmup'  # A server goes by the folder.
                request.model_spec.signature_name = name
                for key, values in _inputs(specs, size, label, num_steps).items():
                    request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
                records.write(log.SerializeToString())
    return True


def _inputs(specs: Iterable[tf.TensorSpec], size: int, label: int, num_steps: int | None) -> dict[str, np.ndarray]:
    """Returns the inputs of a request of so many rows, by name."""
    known = {
        'format': np.full([size], b'json'),
        'labels': np.full([size], label, np.int32),
        'seeds': np.arange(size, dtype=np.int64),
        'num_steps': np.full([size], num_steps or 0, np.int32),
    }
    return {
        spec.name: np.zeros([size, *spec.shape[1:]], np.uint8) if spec.name == 'images' else known[spec.name]
        for spec in specs
    }
