"""Images from a server that speaks TensorFlow Serving's protocol, over gRPC or as REST."""

from collections.abc import Mapping
import http.client
import json
import os
import pathlib
import re
import ssl
import time
from typing import Any
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import tensorflow as tf

from tf_dpdiff.serving import security

# Another processor rounds otherwise; that is seldom more than a grey level or two, and never the whole image.
_MAX_DIFFERENCE, _MAX_MEAN_DIFFERENCE = 16, 1.0
_PAUSE_SECS = 1.0
_TOKEN = 'TF_DPDIFF_TOKEN'
_REST_ADDRESS = re.compile(r'https?://[^\s/?#]+/v1/models/[^\s/?#:]+(/(versions|labels)/[^\s/?#:]+)?/?')
_GRPC_ADDRESS = re.compile(
    r'grpcs?://(?P<host>[^\s/?#@]+:\d+)/(?P<name>[^\s/?#:]+)(/versions/(?P<version>\d{1,18}))?/?'
)
_SIGNATURE = 'serving_default'


class EndpointError(ConnectionError):
    """A server does not answer, or not as TensorFlow Serving does."""


class _Failure(Exception):
    """An answer that is none; `passing` says whether it is worth asking again."""

    def __init__(self, reason: str, *, passing: bool = False):
        super().__init__(reason)
        self.passing = passing


class Endpoint:
    """A model on a server.

    What the environment variable TF_DPDIFF_TOKEN holds goes with each request, as a bearer token. The certificates that
    https and grpcs trust are those of the system, or of the file that SSL_CERT_FILE names.

    Args:
      url: As in http://localhost:8501/v1/models/digits or grpc://localhost:8500/digits; https and grpcs for TLS. Either
        may name a version, as in .../digits/versions/1.
      timeout_secs: How long one answer may take.
      attempts: How often a request is sent, if the server cannot be reached, is overloaded or too slow.
      num_steps: Sent along, to a model that was exported with several step counts.
      labels: What the model was trained on; others are not sent, since an older export may answer them with images that
        mean nothing. None for any.

    Raises:
      ValueError: if the URL is not of this form, if the token cannot be sent, or if tensorflow-serving-api, which gRPC
        needs, is not installed.

    References: https://www.tensorflow.org/tfx/serving/api_rest, "Predict API", in columns.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_secs: float = 600.0,
        attempts: int = 4,
        num_steps: int | None = None,
        labels: range | None = None,
    ):
        if not _is_address(url):
            raise ValueError(
                f'--endpoint={url} is no address of a model; it looks like '
                'http://localhost:8501/v1/models/NAME or grpc://localhost:8500/NAME.'
            )
        self._token = os.environ.get(_TOKEN, '').strip()
        if not re.fullmatch('[!-~]*', self._token):
            raise ValueError(f'{_TOKEN} must be visible ASCII characters, without spaces.')
        if self._token and not _is_safe_for_secrets(url):
            raise ValueError(
                f'--endpoint={url} would carry the token of {_TOKEN} in clear text to another machine: use '
                'https or grpcs, or unset it.'
            )
        transport = _Rest if url.startswith('http') else _Grpc
        self._transport = transport(
            url, {'authorization': f'Bearer {self._token}'} if self._token else {}, timeout_secs
        )
        self._attempts, self._num_steps, self._labels = attempts, num_steps, labels

    def sample(self, labels: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Draws images on the server.

        Args:
          labels: int32 [batch].
          seeds: int64 [batch].

        Returns:
          uint8 [batch, height, width, channels].

        Raises:
          EndpointError: if there is no such answer; names the address.
          ValueError: if the model was not trained on one of the labels.
        """
        known = self._labels
        unknown = sorted({*np.asarray(labels).tolist()} - {*known}) if known else []
        if known and unknown:
            raise ValueError(f'the model was not trained on the label {unknown[0]}, but on {known[0]} to {known[-1]}.')
        inputs: dict[str, np.ndarray] = {'labels': np.asarray(labels, np.int32), 'seeds': np.asarray(seeds, np.int64)}
        if self._num_steps is not None:
            inputs['num_steps'] = np.full(inputs['labels'].shape, self._num_steps, np.int32)
        outputs = self._predict(inputs)
        try:
            # REST gives a signature's only output without its name.
            images = np.array(outputs['images'] if isinstance(outputs, dict) else outputs)
            if images.ndim != 4 or len(images) != len(inputs['seeds']) or images.dtype.kind not in 'iu':
                raise ValueError(f'{images.dtype} {list(images.shape)}')
            if images.min() < 0 or images.max() > 255:
                raise ValueError(f'values from {images.min()} to {images.max()}')
        except (KeyError, ValueError) as error:
            found = f'there is no output {error}' if isinstance(error, KeyError) else str(error).rstrip('.')
            raise EndpointError(
                f'{self} answers with something else than {len(inputs["seeds"])} images: {found}.'
            ) from error
        return tf.constant(images, tf.uint8)

    def __str__(self) -> str:
        return self._transport.address

    def _predict(self, inputs: Mapping[str, np.ndarray]) -> Any:
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(_PAUSE_SECS * 2 ** (attempt - 1))
            try:
                return self._transport.predict(inputs)
            except _Failure as failure:
                reason = str(failure)
                if not failure.passing:
                    break
        if self._token:
            reason = reason.replace(self._token, '...')  # Whatever a server says of it.
        if re.match('HTTP 401|gRPC UNAUTHENTICATED', reason):
            reason += f'; the token is what the environment variable {_TOKEN} holds'
        if 'num_steps' in reason:
            reason += (
                '; either the model there lets a request choose its step count and the one here does not, or the '
                'other way round: name the export that is served by --saved_model, and one of its counts by '
                '--num_steps'
            )
        raise EndpointError(f'{self}: {reason}.')


class _Rest:
    """Sends a request as JSON."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_secs: float):
        self.address = f'{url.rstrip("/")}:predict'
        self._headers, self._timeout_secs = headers, timeout_secs
        # Left to itself, urllib keeps the certificates that the process's first call found.
        self._tls = ssl.create_default_context()

    def predict(self, inputs: Mapping[str, np.ndarray]) -> Any:
        """Returns the outputs, by name unless there is but one."""
        columns = {name: values.tolist() for name, values in inputs.items()}
        body = json.dumps({'signature_name': _SIGNATURE, 'inputs': columns}).encode()
        request = urllib.request.Request(self.address, body, {'Content-Type': 'application/json'})
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)  # Not to be told to whom the server may point.
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_secs, context=self._tls) as answer:
                return json.loads(answer.read())['outputs']
        except urllib.error.HTTPError as error:
            raise _Failure(_reason(error), passing=error.code in (408, 429, 503, 504)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, 'reason', None) or error) or type(error).__name__
            raise _Failure(_one_line(reason), passing=True) from error
        except (ValueError, KeyError, TypeError) as error:
            raise _Failure(f'its answer is not that of TensorFlow Serving ({type(error).__name__})') from error


class _Grpc:
    """Sends a request to PredictionService."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_secs: float):
        try:
            import grpc
            from tensorflow_serving.apis import predict_pb2
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError as error:
            raise ValueError(
                f'--endpoint={url} needs tensorflow-serving-api, which is not installed; install '
                'tf_dpdiff[serving], or use the http address.'
            ) from error
        self.address = url.rstrip('/')
        parts = _GRPC_ADDRESS.fullmatch(url)
        assert parts is not None  # See `_is_address`.
        self._request = predict_pb2.PredictRequest()
        self._request.model_spec.name = parts['name']
        self._request.model_spec.signature_name = _SIGNATURE
        if parts['version']:
            self._request.model_spec.version.value = int(parts['version'])
        # Large batches of large images are more than the 4 MiB that a message may have otherwise.
        options = [('grpc.max_receive_message_length', -1), ('grpc.max_send_message_length', -1)]
        if url.startswith('grpcs'):
            trusted = grpc.ssl_channel_credentials(_trusted_certificates())
            channel = grpc.secure_channel(parts['host'], trusted, options)
        else:
            channel = grpc.insecure_channel(parts['host'], options)
        self._call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        self._metadata, self._timeout_secs = list(headers.items()), timeout_secs
        self._error = grpc.RpcError
        self._passing = (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs by name."""
        request = type(self._request)()
        request.CopyFrom(self._request)
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        try:
            answer = self._call(request, timeout=self._timeout_secs, metadata=self._metadata)
            return {name: tf.make_ndarray(values) for name, values in answer.outputs.items()}
        except self._error as error:
            reason = f'gRPC {error.code().name}: {_one_line(error.details() or "")}'.rstrip(': .')
            raise _Failure(reason, passing=error.code() in self._passing) from error
        except (TypeError, ValueError) as error:
            raise _Failure(f'its answer is not that of TensorFlow Serving ({type(error).__name__})') from error


def _trusted_certificates() -> bytes | None:
    """Returns the file that the environment names, which OpenSSL reads by itself and gRPC does not."""
    path = os.environ.get('SSL_CERT_FILE')
    try:
        return pathlib.Path(path).read_bytes() if path else None
    except OSError as error:
        raise ValueError(f'SSL_CERT_FILE={path} cannot be read: {error.strerror}.') from error


def _is_safe_for_secrets(url: str) -> bool:
    """Returns True where what is sent is encrypted, or stays on this machine."""
    parts = urllib.parse.urlsplit(url)
    try:
        return parts.scheme.endswith('s') or security.is_loopback(parts.hostname)
    except ValueError:  # It cannot be told.
        return False


def _is_address(url: str) -> bool:
    try:
        return (
            bool(_REST_ADDRESS.fullmatch(url) or _GRPC_ADDRESS.fullmatch(url)) and urllib.parse.urlsplit(url).port != 0
        )
    except ValueError:  # The port is no number, or too large.
        return False


def _reason(error: urllib.error.HTTPError) -> str:
    """Returns the message of TensorFlow Serving, in one line."""
    text = ''
    try:
        text = error.read().decode('utf-8', 'replace')
        text = json.loads(text)['error']
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        pass  # What was read stands.
    return f'HTTP {error.code} {error.reason}: {_one_line(str(text))}'.rstrip(': .')


def _one_line(text: str) -> str:
    return ' '.join(text.split())[:300]


class ModelCheck:
    """Checks that a server has the model that is here, by what both draw.

    Args:
      endpoint: The server.
      sample_fn: The model that is here; maps labels, int32 [batch], and seeds, int64 [batch], to images, uint8 [batch,
        height, width, channels].
      labels: What the model was trained on; they go round.
      num_images: How many there are to compare.
    """

    def __init__(self, endpoint: Endpoint, sample_fn, labels: range, num_images: int = 8):
        self._endpoint, self._num_images = endpoint, num_images
        self._seeds = tf.range(num_images, dtype=tf.int64)
        self._labels = tf.constant(np.resize(labels, num_images), tf.int32)
        self._ours = sample_fn(self._labels, self._seeds).numpy().astype(int)

    def __call__(self, num_images: int | None = None) -> None:
        """Compares the first images, all unless `num_images` says how many.

        Raises:
          EndpointError: if the server does not answer.
          ValueError: if its images are others.
        """
        compared = slice(num_images or self._num_images)
        ours = self._ours[compared]
        theirs = self._endpoint.sample(self._labels[compared], self._seeds[compared]).numpy().astype(int)
        if theirs.shape == ours.shape:
            difference = np.abs(theirs - ours)
            if difference.max() <= _MAX_DIFFERENCE and difference.mean() <= _MAX_MEAN_DIFFERENCE:
                return
            found = f'up to {difference.max()} grey levels apart'
        else:
            found = f'of shape {theirs.shape[1:]}, not {ours.shape[1:]}'
        raise ValueError(
            f'{self._endpoint} serves another model than the one whose privacy statement is to go with '
            f'its images: the same seeds give images {found}. Serve that model, or name another --workdir or '
            '--saved_model.'
        )
