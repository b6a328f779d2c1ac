"""A small model of many signatures, a server of it, and clients that know nothing but the protocol."""

import contextlib
import functools
import http.client
import json
import pathlib
import time

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tf_dpdiff.serving import batching
from tf_dpdiff.serving import predict
from tf_dpdiff.serving import server as server_lib

NAME = 'toys'
WIDE = 400_000


def spec(shape, dtype, name):
    """Returns a TensorSpec."""
    return tf.TensorSpec(shape, dtype, name)


class Toys(tf.Module):
    """What is exported; `mark` tells versions apart."""

    def __init__(self, mark=0):
        super().__init__()
        self.mark = tf.Variable(mark, dtype=tf.int64)

    @tf.function(input_signature=[spec([None], tf.int32, 'labels'), spec([None], tf.int64, 'seeds')])
    def sample(self, labels, seeds):
        """Stands in for a sampler."""
        with tf.control_dependencies([tf.debugging.assert_non_negative(labels, 'labels must not be negative')]):
            pixels = tf.range(4, dtype=tf.int64)[None] * (seeds[:, None] % 41 + 1)
        pixels += 7 * tf.cast(labels, tf.int64)[:, None] + self.mark
        return {'images': tf.cast(tf.reshape(pixels % 256, [-1, 2, 2, 1]), tf.uint8)}

    @tf.function(input_signature=[spec([None], tf.string, 'text')])
    def echo(self, text):
        """Gives strings back, as text and as bytes."""
        return {'same': text, 'same_bytes': text}

    @tf.function(input_signature=[spec([None, 2], tf.float32, 'x')])
    def half(self, x):
        """Numbers of other types."""
        return {'y': x / 2, 'positive': x > 0}

    @tf.function(input_signature=[spec([None], tf.int32, 'n')])
    def spin(self, n):
        """Takes a while, longer for larger n."""
        return {'n': tf.while_loop(lambda i: i < tf.reduce_max(n), lambda i: [i + 1], [0])[0] * 0 + n}

    @tf.function(input_signature=[spec([None], tf.int32, 'n')])
    def wide(self, n):
        """A large answer to a small question."""
        return {'x': tf.tile(n[:, None], [1, WIDE])}

    @tf.function(input_signature=[spec([], tf.float32, 'x')])
    def scalar(self, x):
        """Without rows."""
        return {'y': x + 1}


def images_of(labels, seeds, mark=0):
    """What `Toys.sample` should give."""
    pixels = np.arange(4) * (np.asarray(seeds)[:, None] % 41 + 1) + 7 * np.asarray(labels)[:, None] + mark
    return (pixels % 256).reshape(-1, 2, 2, 1)


def export(folder: pathlib.Path, version: int, mark: int = 0) -> pathlib.Path:
    """Writes a version, at once."""
    toys, temporary = Toys(mark), folder.parent / f'{folder.name}.{version}.writing'
    names = ('echo', 'half', 'spin', 'wide', 'scalar')
    tf.saved_model.save(
        toys,
        str(temporary),
        signatures={'serving_default': toys.sample, **{name: getattr(toys, name) for name in names}},
    )
    folder.mkdir(exist_ok=True)
    return temporary.rename(folder / str(version))


@functools.cache
def quick_limits(**batched):
    """Limits of a small server."""
    return predict.Limits(
        batching.BatchingConfig(**{'max_batch_size': 16, 'batch_timeout_secs': 0.001, 'max_queue': 64, **batched}),
        request_timeout_secs=20.0,
        max_message_bytes=2**20,
    )


@contextlib.contextmanager
def serving(folder: pathlib.Path, *, limits=None, poll_secs=0.02, **config):
    """Runs a server of a folder in this process."""
    server = server_lib.ModelServer(
        folder,
        NAME,
        server_lib.ServerConfig(
            rest_port=0, grpc_port=0, poll_secs=poll_secs, limits=limits or quick_limits(), **config
        ),
    )
    server.start()
    try:
        yield server
    finally:
        server.stop(10.0)


def call(port, method='GET', path='', body=None, headers=()):
    """Sends one HTTP request; returns the status and what the body says."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    try:
        connection.request(method, f'/v1/models/{NAME}{path}', body, dict(headers))
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else None
    finally:
        connection.close()


def post(server, document, path=':predict'):
    """Posts a document, or bytes as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return call(server.rest_port, 'POST', path, body)


def stubs(server):
    """Returns the two gRPC stubs of a server."""
    channel = grpc.insecure_channel(
        f'127.0.0.1:{server.grpc_port}', [('grpc.max_receive_message_length', -1), ('grpc.max_send_message_length', -1)]
    )
    return prediction_service_pb2_grpc.PredictionServiceStub(channel), model_service_pb2_grpc.ModelServiceStub(channel)


def predict_request(signature='', name=NAME, version=None, **inputs):
    """Returns a PredictRequest; an input is an array or a TensorProto."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    if version is not None:
        request.model_spec.version.value = version
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(value if hasattr(value, 'tensor_shape') else tf.make_tensor_proto(value))
    return request


def no_message(stop):
    """The messages of a client that sends none."""
    stop.wait(30)
    yield from ()


def wait_until(condition, secs=10.0):
    """Waits for a condition, or fails."""
    until = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < until, 'waited in vain'
        time.sleep(0.01)
