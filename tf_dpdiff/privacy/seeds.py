"""The secret of a run, from which all of its private randomness is derived."""

import hmac
import secrets

_NUM_BYTES = 32


class PrivateSeed:
    """32 secret bytes and the independent integer seeds derived from them.

    One secret a run makes every private draw (Poisson samples, Gaussian noise) a function of (secret, purpose, step),
    so a run that was killed repeats the draws of the steps it had lost instead of spending new ones.

    Guarantee: whoever knows the secret can subtract the noise. It therefore belongs in the run's private checkpoint and
      nowhere else; `repr` and `str` do not show it.

    Example:
        >>> seed = PrivateSeed.from_os_entropy()
        >>> seed.derive('noise') == seed.derive('noise'), seed.derive('noise') == seed.derive('sampling')
        (True, False)
        >>> seed
        PrivateSeed(<secret>)
    """

    def __init__(self, secret: bytes):
        if len(secret) != _NUM_BYTES:
            raise ValueError(f'A private seed has {_NUM_BYTES} bytes, got {len(secret)}.')
        self._secret = bytes(secret)

    @classmethod
    def from_os_entropy(cls) -> 'PrivateSeed':
        """Returns a fresh seed from the operating system's cryptographic generator."""
        return cls(secrets.token_bytes(_NUM_BYTES))

    def reveal(self) -> bytes:
        """Returns the secret bytes, for the private checkpoint only."""
        return self._secret

    def derive(self, purpose: str) -> int:
        """Returns the seed of one purpose, an integer in [0, 2^63).

        Args:
          purpose: What the draws are for, e.g. 'noise'. Different purposes give independent seeds (HMAC-SHA-256 with
            the secret as its key).
        """
        return int.from_bytes(self.derive_key(purpose)[:8], 'little') >> 1

    def derive_key(self, purpose: str) -> bytes:
        """Returns the 32-byte key of one purpose, for a cryptographic generator."""
        return hmac.digest(self._secret, purpose.encode('utf-8'), 'sha256')

    def __reduce__(self):
        raise TypeError('a private seed is neither copied nor pickled: whoever has a copy draws the same noise again.')

    def __repr__(self) -> str:
        return 'PrivateSeed(<secret>)'
