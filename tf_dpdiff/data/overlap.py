"""Whether images that are said to be public are among the private ones."""

from collections.abc import Sequence
import hashlib

import numpy as np

# Some images are the same by chance: blank ones.
TOLERATED_SHARE = 0.01


def image_digests(images_uint8: np.ndarray) -> np.ndarray:
    """Returns 64 bits of a hash of each different image, sorted; uint64 [different images].

    Args:
      images_uint8: uint8 [images, height, width, channels].
    """
    digests = [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest() for image in images_uint8]
    return np.unique(np.frombuffer(b''.join(digests), '<u8'))


def check_is_not_private(public_digests: Sequence[np.ndarray], private_digests: np.ndarray, private_name: str) -> int:
    """Refuses public images among which are more than one in a hundred of the private ones, pixel by pixel.

    It finds the same images under other labels, in another order or among others; it does not find them resized.

    Args:
      public_digests: From `image_digests`, one array a source of public images.
      private_digests: The same of the private images.
      private_name: What they are called in the error.

    Returns:
      How many of the different private images are among the public ones of all sources together: PRIVATE.

    Raises:
      ValueError: if there are too many; says how many.
    """
    public = np.unique(np.concatenate(public_digests)) if public_digests else private_digests[:0]
    num_shared = len(np.intersect1d(public, private_digests, assume_unique=True))
    if num_shared > TOLERATED_SHARE * len(private_digests):
        raise ValueError(
            f'{num_shared:,} of the {len(private_digests):,} different private images ({private_name!r}) are '
            'among the public ones: training on them would release them without noise.'
        )
    return num_shared
