"""Who may ask a server: a token, TLS, and the rule that without both none draws images for everyone."""

import dataclasses
import hmac
import ipaddress
import pathlib
import re
import socket
import ssl

_TOKEN = re.compile(r'[!-~]{16,4096}')


@dataclasses.dataclass(frozen=True)
class Security:
    """The proof that a server asks of its clients.

    Args:
      token: What they send as `authorization: Bearer TOKEN`, in HTTP and in gRPC; None lets everyone in.
      certificate: File of the certificate (chain), PEM; None for no TLS.
      key: File of its private key, PEM.

    Raises:
      ValueError: if the token is too short to be secret, or certificate and key do not fit.
    """

    token: str | None = None
    certificate: pathlib.Path | None = None
    key: pathlib.Path | None = None

    def __post_init__(self):
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ValueError(
                'the token must be 16 or more visible ASCII characters without spaces; make one with '
                "`python -c 'import secrets; print(secrets.token_urlsafe())'`."
            )
        if (self.certificate is None) != (self.key is None):
            raise ValueError('TLS needs both --tls_certificate and --tls_key.')
        if self.certificate and self.key:
            for flag, path in (('tls_certificate', self.certificate), ('tls_key', self.key)):
                try:
                    path.read_bytes()
                except OSError as error:
                    raise ValueError(f'--{flag}={path} cannot be read: {error.strerror}.') from error
            try:
                ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(self.certificate, self.key)
            except ssl.SSLError as error:
                raise ValueError(
                    f'no TLS by the certificate {self.certificate} and the key {self.key}: '
                    f'{error.reason or error}; both must be PEM and belong together.'
                ) from error

    def check_host(self, host: str) -> None:
        """Raises ValueError if others could listen or ask: any address but loopback wants TLS and a token."""
        if not is_loopback(host) and not (self.token and self.certificate):
            raise ValueError(
                f'--host={host} can be reached by other machines: that needs --tls_certificate, --tls_key '
                'and --token_file. Or keep to 127.0.0.1.'
            )

    def is_authorized(self, header: str | None) -> bool:
        """Returns True where the value of an `authorization` header lets its sender in, in time that tells nothing.

        Example:
            >>> security = Security(token='a-token-that-is-long-enough')
            >>> security.is_authorized('Bearer a-token-that-is-long-enough'), security.is_authorized('Bearer a')
            (True, False)
        """
        if self.token is None:
            return True
        scheme, _, given = (header or '').partition(' ')
        same = hmac.compare_digest(given.strip().encode('utf-8', 'replace'), self.token.encode())
        return same and scheme.lower() == 'bearer'


def read_token(path: pathlib.Path) -> str:
    """Returns the token that a file holds; space around it does not count.

    Raises:
      ValueError: if it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding='ascii').strip()
    except UnicodeDecodeError as error:
        raise ValueError(f'--token_file={path} is no ASCII text.') from error
    except OSError as error:
        raise ValueError(f'--token_file={path} cannot be read: {error.strerror}.') from error


def is_loopback(host: str | None) -> bool:
    """Returns True where all addresses of a host are of this machine alone.

    Raises:
      ValueError: if it has none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f'--host={host} is no address of this machine: {error}') from error
    return bool(host) and all(ipaddress.ip_address(str(address[4][0]).split('%')[0]).is_loopback for address in found)
