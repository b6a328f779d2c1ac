"""The page that a browser gets from a server: one file, which draws images through the server's REST interface."""

import base64
import functools
import hashlib
from importlib import resources
import re

PATH = '/'
MODELS_PATH = '/models'  # Where the page learns by which names models are served.
CONTENT_TYPE = 'text/html; charset=utf-8'
_INLINE = re.compile(r'<(script|style)>(.*?)</\1>', re.DOTALL)


@functools.cache
def content() -> bytes:
    """Returns the page: it holds nothing of any model, so whoever gets it has learnt nothing."""
    return resources.files(__package__).joinpath('page.html').read_bytes()


@functools.cache
def headers() -> dict[str, str]:
    """Returns what a browser is told to refuse: all but the page's own script and style, this server and PNG data."""
    hashes: dict[str, list[str]] = {'script': [], 'style': []}
    for kind, inline in _INLINE.findall(content().decode()):
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = {
        'default-src': "'none'",
        'script-src': ' '.join(hashes['script']),
        'style-src': ' '.join(hashes['style']),
        'img-src': 'data:',
        'connect-src': "'self'",
        'base-uri': "'none'",
        'form-action': "'none'",
        'frame-ancestors': "'none'",
    }
    return {
        'content-security-policy': '; '.join(f'{name} {value}' for name, value in policy.items()),
        'x-content-type-options': 'nosniff',
        'x-frame-options': 'DENY',
        'referrer-policy': 'no-referrer',
        'cross-origin-opener-policy': 'same-origin',
        'cross-origin-resource-policy': 'same-origin',
        'cache-control': 'no-cache',
    }
