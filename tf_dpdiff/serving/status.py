"""Canonical status codes of gRPC and what they are called in HTTP, as TensorFlow Serving maps them."""

import pathlib
import re
from typing import TypeAlias

import grpc
import tensorflow as tf

Code: TypeAlias = grpc.StatusCode

_CODES = {code.value[0]: code for code in Code}
_HTTP = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}
_MAX_MESSAGE = 500
# What TensorFlow says around the words of an operation that failed.
_AROUND = re.compile(
    r'Graph execution error:|Detected at node .*|<stack traces unavailable>|Error in [^\n]*'
    r'|\[\[\{\{node [^\n]*|\[Op:[^\n]*|\d+ root error\(s\) found\.'
)
_PATH = re.compile(r'(?<![\w/.:])/(?:[^\s/\'":,;()]+/)+')  # The folders of an absolute path.


class ServingError(Exception):
    """A request that cannot be answered.

    Args:
      code: A canonical code.
      message: What is wrong, in one line; cut where it is long.
      http_status: Where HTTP has a closer one than that of the code.
    """

    def __init__(self, code: Code, message: str, *, http_status: int = 0):
        message = ' '.join(message.split())
        if len(message) > _MAX_MESSAGE:
            message = f'{message[:_MAX_MESSAGE]}...'
        super().__init__(message)
        self.code, self.message = code, message
        self.http_status = http_status or _HTTP.get(code, 500)


def invalid(message: str) -> ServingError:
    """Returns the error of a request that can never succeed."""
    return ServingError(Code.INVALID_ARGUMENT, message)


def from_exception(error: BaseException) -> ServingError:
    """Returns the error that a client is told of where a model raised one.

    Args:
      error: A TensorFlow error keeps its code; anything else is INTERNAL.
    """
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        return ServingError(_CODES.get(error.error_code, Code.UNKNOWN), _AROUND.sub(' ', error.message) or 'no message')
    if isinstance(error, MemoryError):
        return ServingError(Code.RESOURCE_EXHAUSTED, 'out of memory; send fewer rows.')
    return ServingError(Code.INTERNAL, f'{type(error).__name__}: {error}')


def without_paths(message: str, folder: pathlib.Path) -> str:
    """Returns a message in which files are named, but not where they lie.

    Args:
      message: As it is logged.
      folder: Names below it are kept; of other paths only the last part is.

    Example:
        >>> without_paths('/home/me/models/digits/2: no /etc/some/file', pathlib.Path('/home/me/models'))
        'digits/2: no file'
    """
    return _PATH.sub('', message.replace(f'{folder}/', ''))
