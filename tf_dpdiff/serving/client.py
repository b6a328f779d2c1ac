"""Images from a server that speaks TensorFlow Serving's REST interface."""

import http.client
import json
import re
import time
from typing import Any, Optional
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import tensorflow as tf

# Another processor rounds otherwise; that is seldom more than a grey level or two, and never the whole image.
_MAX_DIFFERENCE, _MAX_MEAN_DIFFERENCE = 16, 1.0
_PAUSE_SECS = 1.0
_ADDRESS = re.compile(r'https?://[^\s/?#]+/v1/models/[^\s/?#:]+(/(versions|labels)/[^\s/?#:]+)?/?')


class EndpointError(ConnectionError):
    """A server does not answer, or not as TensorFlow Serving does."""


class Endpoint:
    """A model on a server.

    Args:
      url: As in http://localhost:8501/v1/models/digits, or a version of it, .../digits/versions/1.
      timeout_secs: How long one answer may take.
      attempts: How often a request is sent, if the server cannot be reached or is overloaded.

    Raises:
      ValueError: if the URL is not of this form.

    References: https://www.tensorflow.org/tfx/serving/api_rest, "Predict API", in columns.
    """

    def __init__(self, url: str, *, timeout_secs: float = 600.0, attempts: int = 4):
        if not _is_address(url):
            raise ValueError(f'--endpoint={url} is no address of a model; it looks like '
                             'http://localhost:8501/v1/models/NAME.')
        self._url = f'{url.rstrip("/")}:predict'
        self._timeout_secs, self._attempts = timeout_secs, attempts

    def sample(self, labels: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Draws images on the server.

        Args:
          labels: int32 [batch].
          seeds: int64 [batch].

        Returns:
          uint8 [batch, height, width, channels].

        Raises:
          EndpointError: if there is no such answer; names the address.
        """
        inputs = {'labels': np.asarray(labels).tolist(), 'seeds': np.asarray(seeds).tolist()}
        body = json.dumps({'signature_name': 'serving_default', 'inputs': inputs}).encode()
        outputs = self._post(body)
        try:
            # A signature's only output comes without its name.
            images = np.array(outputs['images'] if isinstance(outputs, dict) else outputs)
            if images.ndim != 4 or len(images) != len(inputs['seeds']) or images.dtype.kind not in 'iu':
                raise ValueError(f'{images.dtype} {list(images.shape)}')
            if images.min() < 0 or images.max() > 255:
                raise ValueError(f'values from {images.min()} to {images.max()}')
        except (KeyError, ValueError) as error:
            found = f'there is no output {error}' if isinstance(error, KeyError) else str(error).rstrip('.')
            raise EndpointError(f'{self._url} answers with something else than {len(inputs["seeds"])} images: '
                                f'{found}.') from error
        return tf.constant(images, tf.uint8)

    def __str__(self) -> str:
        return self._url

    def _post(self, body: bytes) -> Any:
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(_PAUSE_SECS * 2**(attempt - 1))
            request = urllib.request.Request(self._url, body, {'Content-Type': 'application/json'})
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_secs) as answer:
                    return json.loads(answer.read())['outputs']
            except urllib.error.HTTPError as error:
                reason = _reason(error)
                if error.code not in (429, 503):
                    break
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, 'reason', None) or error) or type(error).__name__
            except (ValueError, KeyError, TypeError) as error:
                reason = f'its answer is not that of TensorFlow Serving ({type(error).__name__})'
                break
        raise EndpointError(f'{self._url}: {reason}.')


def _is_address(url: str) -> bool:
    try:
        return bool(_ADDRESS.fullmatch(url)) and urllib.parse.urlsplit(url).port != 0
    except ValueError:  # The port is no number, or too large.
        return False


def _reason(error: urllib.error.HTTPError) -> str:
    """Returns what TensorFlow Serving says, in one line."""
    text = ''
    try:
        text = error.read().decode('utf-8', 'replace')
        text = json.loads(text)['error']
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        pass  # What was read stands.
    return f'HTTP {error.code} {error.reason}: {" ".join(str(text).split())[:300]}'.rstrip(': .')


class ModelCheck:
    """Checks that a server has the model that is here, by what both draw.

    Args:
      endpoint: The server.
      sample_fn: The model that is here; maps labels, int32 [batch], and seeds, int64 [batch], to images, uint8 [batch,
        height, width, channels].
      num_classes: Labels go round.
      num_images: How many there are to compare.
    """

    def __init__(self, endpoint: Endpoint, sample_fn, num_classes: int, num_images: int = 8):
        self._endpoint, self._num_images = endpoint, num_images
        self._seeds = tf.range(num_images, dtype=tf.int64)
        self._labels = tf.cast(self._seeds % num_classes, tf.int32)
        self._ours = sample_fn(self._labels, self._seeds).numpy().astype(int)

    def __call__(self, num_images: Optional[int] = None) -> None:
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
            '--saved_model.')
