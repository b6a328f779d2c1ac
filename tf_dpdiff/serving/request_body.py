"""Bodies of HTTP requests: what they are packed as, and how large they may become.

References: `ReadRequestBytes` and `UncompressGzipBody` in `evhttp_request.cc`, and `gzip_zlib.cc`, of
https://github.com/tensorflow/serving/tree/master/tensorflow_serving/util/net_http.
"""

import zlib

from tf_dpdiff.serving import predict
from tf_dpdiff.serving import status

_GZIP = zlib.MAX_WBITS | 16  # Of zlib: a gzip header and trailer, and no other.
_STEP_BYTES = 2**18


def too_large(max_bytes: int) -> status.ServingError:
    """Returns the error of a body that is too large, as it comes or unpacked."""
    return status.ServingError(
        status.Code.RESOURCE_EXHAUSTED,
        f'the body is larger than the {max_bytes} bytes that a message may have.',
        http_status=413,
    )


def unpack(body: bytes, content_encoding: str, max_bytes: int, share: predict.Share) -> bytes:
    """Returns a body as it was before it was packed.

    Like TensorFlow Serving it unpacks gzip alone, wherever that word stands in the header, takes a body of any other
    encoding as it is, and one that is no single gzip member, or is damaged, for an empty document.

    Args:
      body: What came.
      content_encoding: The header of this name; may be empty.
      max_bytes: How large it may become. It is given up there, whatever it says of its size.
      share: What is unpacked is taken from it, bit by bit.

    Raises:
      ServingError: if it becomes too large, there is no room for it, or it is not what the header says.
    """
    if not body or 'gzip' not in content_encoding:
        return body
    inflater, chunks, size = zlib.decompressobj(_GZIP), [], 0
    while not inflater.eof:
        try:
            chunk = inflater.decompress(body, _STEP_BYTES)
        except zlib.error as error:
            raise _damaged() from error
        body = inflater.unconsumed_tail
        if not chunk and not body and not inflater.eof:
            raise _damaged()  # It ends too early.
        size += len(chunk)
        if size > max_bytes:
            raise too_large(max_bytes)
        share.take(len(chunk))
        chunks.append(chunk)
    if inflater.unused_data:
        raise _damaged()
    return b''.join(chunks)


def _damaged() -> status.ServingError:
    return status.invalid(
        'JSON Parse error: The document is empty, for what its Content-Encoding calls gzip cannot be unpacked'
    )
