"""A search of what goes out for what must stay: secrets, private files and images, places on this machine."""

import base64
from collections.abc import Iterator, Sequence
import dataclasses
import gzip
import hashlib
import io
import pathlib
import re
import zipfile
import zlib

import numpy as np
from PIL import Image

from tf_dpdiff.data import decoding
from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import seeds
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import outcome
from tf_dpdiff.training import checkpoints

_PICTURE_IN_PAGE = re.compile(rb'data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)')


@dataclasses.dataclass(frozen=True)
class Forbidden:
    """What must not be found. PRIVATE.

    Attributes:
      traces: What it is, and the bytes that would tell it.
      places: Patterns of paths of this machine.
      files: The private files, by the SHA-256 of what they hold.
      images: Digests of the private images; None where they are not known.
      image_bytes: How many bytes an image has.
    """

    traces: Sequence[tuple[str, bytes]]
    places: Sequence[re.Pattern[bytes]]
    files: dict[bytes, str]
    images: frozenset[bytes] | None
    image_bytes: int

    def but_for(self, path: pathlib.Path) -> 'Forbidden':
        """Returns the same without a file that was drawn from the samples: an evaluation keeps such a picture too."""
        drawn = _sha256(path)
        return dataclasses.replace(self, files={digest: name for digest, name in self.files.items() if digest != drawn})


def collect(workdir: pathlib.Path, images_uint8: Sequence[np.ndarray] | None) -> Forbidden:
    """Returns what must not leave the folder of a run.

    Args:
      workdir: The folder.
      images_uint8: The private images, uint8 [images, height, width, channels], the held-out ones too; None where they
        cannot be read. One that is all of one colour is not looked for: a model may well draw it.

    Raises:
      checkpoints.CheckpointDamagedError: if no checkpoint is as it was written.
    """
    secret = checkpoints.read_secret(workdir / checkpoints.FOLDER)
    configuration = workdir / folder.OPERATIVE_CONFIG
    text = configuration.read_text(encoding='utf-8') if configuration.exists() else ''
    places = {str(workdir.resolve()), str(workdir.absolute()), str(pathlib.Path.home()), *outcome.absolute_paths(text)}
    private = [
        path
        for name in (checkpoints.FOLDER, folder.NON_PRIVATE)
        for path in sorted((workdir / name).rglob('*'))
        if path.is_file() and path.stat().st_size
    ]
    return Forbidden(
        list(_of_secret(secret)) if secret else [],
        [_of_path(place) for place in sorted(places) if len(place) > 1],
        {_sha256(path): str(path.relative_to(workdir)) for path in private},
        None if images_uint8 is None else frozenset(_digests(images_uint8)),
        0 if images_uint8 is None else int(np.prod(images_uint8[0].shape[1:])),
    )


def find(directory: pathlib.Path, forbidden: Forbidden) -> list[str]:
    """Returns what was found below a folder that must not be there, a phrase each; nothing of the secret is in it.

    Looked into are all files, what is packed in archives and .npz files, and the pictures of pages.
    """
    found = []
    for path in sorted(directory.rglob('*')):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            found.append(f'{name} is a link')
        elif path.is_file():
            for content in _contents(path.read_bytes()):
                found += [f'{name} holds {what}' for what in _in_content(content, forbidden)]
    return list(dict.fromkeys(found))


def _of_secret(secret: seeds.PrivateSeed) -> Iterator[tuple[str, bytes]]:
    """Yields the encodings in which the secret, or the seed of the noise, might have been written."""
    yield from _of_bytes('the secret seed of the run', secret.reveal())
    yield from _of_bytes('the key of the noise', secret.derive_key(noise.PURPOSE))
    derived = secret.derive(noise.PURPOSE)
    yield from _of_number('the seed of the noise', derived, 8)


def _of_bytes(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, content
    for text in (content.hex(), content.hex().upper(), content.hex(':')):
        yield name, text.encode()
    yield name, repr(content)[2:-1].encode()
    for separator in (', ', ','):
        yield name, separator.join(map(str, content)).encode()
    for shift in range(3):  # What stands before it shifts base64 by up to two bytes.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield name, encode(bytes(shift) + content)[4:-4]
    for order in ('little', 'big'):
        yield from _of_number(name, int.from_bytes(content, order), len(content))


def _of_number(name: str, number: int, num_bytes: int) -> Iterator[tuple[str, bytes]]:
    yield name, str(number).encode()
    yield name, f'{number:x}'.encode()
    yield name, number.to_bytes(num_bytes, 'little')
    yield name, number.to_bytes(num_bytes, 'big')


def _of_path(place: str) -> re.Pattern[bytes]:
    """Returns a pattern of a path; one of a single name, such as /data, must stand alone: it may be part of others."""
    text = re.escape(place.encode())
    is_long = len(re.findall(r'[/\\]', place)) > 1
    return re.compile(text if is_long else rb'(?<![\w.~/-])' + text + rb'(?![\w.-])')


def _sha256(path: pathlib.Path) -> bytes:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').digest()


def _digests(images_uint8: Sequence[np.ndarray]) -> Iterator[bytes]:
    for images in images_uint8:
        for image in images:
            if image.min() < image.max():
                yield hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()


def _contents(content: bytes) -> Iterator[bytes]:
    """Yields the bytes of a file, and of what is packed in it."""
    yield content
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for name in archive.namelist():
                    yield archive.read(name)
        elif content[:2] == b'\x1f\x8b':
            yield gzip.decompress(content)
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, RuntimeError):
        return  # It only begins like one, as weights may.
    for picture in _PICTURE_IN_PAGE.findall(content):
        yield base64.b64decode(picture)


def _in_content(content: bytes, forbidden: Forbidden) -> Iterator[str]:
    yield from (name for name, trace in forbidden.traces if trace in content)
    if any(pattern.search(content) for pattern in forbidden.places):
        yield 'a path of this machine'
    private = forbidden.files.get(hashlib.sha256(content).digest())
    if private:
        yield f'the private file {private}'
    if forbidden.images and any(digest in forbidden.images for digest in _digests(_images_in(content, forbidden))):
        yield 'a private image, pixel by pixel'


def _images_in(content: bytes, forbidden: Forbidden) -> list[np.ndarray]:
    """Returns what may be images in an array or a picture, uint8 [images, bytes of each]."""
    if content[:6] == b'\x93NUMPY':
        try:
            array = np.load(io.BytesIO(content), allow_pickle=False)
        except ValueError:
            return []
        if array.dtype != np.uint8 or not array.size or array.size % forbidden.image_bytes:
            return []
        return [array.reshape(-1, forbidden.image_bytes)]
    try:
        picture = np.asarray(Image.open(io.BytesIO(content), formats=decoding.FORMATS))
    except (OSError, ValueError, SyntaxError):
        return []
    is_one = picture.dtype == np.uint8 and picture.size == forbidden.image_bytes
    return [picture.reshape(1, -1)] if is_one else []
