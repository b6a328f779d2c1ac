"""Sets of samples on disk: where their files lie, whether these are as they were written, and what is in them."""

from collections.abc import Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any, NamedTuple
import zipfile
import zlib

import numpy as np

from tf_dpdiff import files
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import rounding
from tf_dpdiff.sampling import formats
from tf_dpdiff.serving import export

RECORD = 'samples.json'
OF_A_RUN = ('samples.npz', 'matched_images.npz')  # Of bin/train; the privacy statement of the run is theirs.
STATEMENTS = (export.STATEMENT_TEXT, export.STATEMENT_JSON)

_HASHED_AT_A_TIME = 2**20


class Samples(NamedTuple):
    """Samples in memory, in the order of their seeds.

    Attributes:
      images: uint8 [images, height, width, channels].
      labels: int32 [images]; the number of classes stands for "no class".
      class_names: One a class.
      statement_text: The privacy statement that came with them, or None where none did.
      statement_json: The same for programs.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    statement_text: str | None
    statement_json: str | None = None

    def check_classified(self, path: pathlib.Path) -> None:
        """Raises ValueError if a sample has no class; `path` names the set."""
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise ValueError(f'{path} holds samples without a class: no classifier can learn from them.')

    def check_like(self, spec: datasets.DatasetSpec, path: pathlib.Path) -> None:
        """Raises ValueError if the samples differ from a data set in image shape or classes, or have no class."""
        if self.images.shape[1:] != spec.image_shape:
            raise ValueError(
                f'{path} holds images of shape {tuple(self.images.shape[1:])}, {spec.name!r} of {spec.image_shape}.'
            )
        if self.class_names != spec.class_names:
            raise ValueError(
                f'{path} holds the classes {", ".join(self.class_names[:5])}, ..., {spec.name!r} '
                f'{", ".join(spec.class_names[:5])}, ...'
            )
        self.check_classified(path)


def is_single_file(output: pathlib.Path) -> bool:
    """Returns True for the name of a set that is one .npz file."""
    return output.suffix == '.npz'


def work_folder(output: pathlib.Path) -> pathlib.Path:
    """Returns the folder with the shards of a set: its own or, for an .npz file, one that is removed in the end."""
    return output.with_name(f'{output.name}.partial') if is_single_file(output) else output


def record_path(output: pathlib.Path) -> pathlib.Path:
    """Returns the record of a complete set: samples.json in its folder or, of more.npz, more.samples.json beside it."""
    return output.with_name(f'{output.stem}.{RECORD}') if is_single_file(output) else output / RECORD


def describe(statement: pathlib.Path) -> str:
    """Returns in one sentence what a privacy statement, as JSON, says of samples."""
    fields = files.read_json(statement)
    if fields['guarantee_claimed']:
        epsilon = rounding.round_up(fields['epsilon'])
        return (
            f'Synthetic images, (epsilon, delta)-differentially private with epsilon = {epsilon} at delta = '
            f'{rounding.exact(fields["delta"])} towards {fields["unit"]} of {fields["dataset"]!r}.'
        )
    if fields.get('dataset') is None:
        return 'Synthetic images of a model trained on public images alone; no privacy guarantee is claimed.'
    return f'Synthetic images of a model of {fields["dataset"]!r}; NO PRIVACY GUARANTEE IS CLAIMED.'


def write_file(path: pathlib.Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes samples that are in memory as one .npz file, whole or not at all.

    Args:
      path: The file.
      images: uint8 [images, height, width, channels].
      labels: int32 [images]; the number of classes stands for "no class".
      class_names: One a class.
    """
    with files.replacing(path) as temporary:
        formats.write_arrays(temporary, len(images), {'images': [images], 'labels': [labels]}, class_names)


def read(path: str | pathlib.Path, limit: int | None = None) -> Samples:
    """Reads samples that bin/train or bin/sample wrote.

    Args:
      path: An .npz file, or a folder that bin/sample wrote; of a data set of TensorFlow Datasets also the folder of
        its name or version inside.
      limit: Read the first ones only.

    Returns:
      The samples.

    Raises:
      FileNotFoundError: if nothing is there.
      ValueError: if the set is not complete, damaged, or holds no samples; says which file.
    """
    path = pathlib.Path(path).expanduser()
    if limit is not None and limit < 1:
        raise ValueError(f'limit of the samples to be read must be at least 1, got {limit}.')
    if path.is_file() and not is_single_file(path):
        raise ValueError(f'{path} is neither a folder of samples nor an .npz file; of a zip, unpack it first.')
    return _read_folder(_root(path.resolve()), limit) if path.is_dir() else _read_file(path, limit)


def join(sets: Mapping[pathlib.Path, Samples]) -> Samples:
    """Joins sets of samples, one after the other.

    Args:
      sets: At least one set, by where it was read from.

    Raises:
      ValueError: if two sets differ in image shape or classes, or came with different privacy statements: what is
        learnt from both would be covered by neither.
    """
    (first_path, first), *others = sets.items()
    for path, samples in others:
        for what, of_first, own in (
            ('images of shape', first.images.shape[1:], samples.images.shape[1:]),
            ('the classes', ', '.join(first.class_names), ', '.join(samples.class_names)),
        ):
            if own != of_first:
                raise ValueError(f'samples cannot be joined: {first_path} holds {what} {of_first}, {path} {own}.')
        if samples.statement_text != first.statement_text:
            raise ValueError(
                f'{first_path} and {path} came with different privacy statements, and neither covers both: name one '
                'at a time.'
            )
    if not others:
        return first
    images, labels = (np.concatenate([getattr(one, name) for one in sets.values()]) for name in ('images', 'labels'))
    return first._replace(images=images, labels=labels)


def check_differ(sets: Mapping[pathlib.Path, Samples]) -> None:
    """Raises ValueError if most images of a set, by where it was read from, are in one before it too."""
    seen: set[int] = set()
    for path, samples in sets.items():
        images = [hash(image.tobytes()) for image in samples.images]
        if 2 * sum(image in seen for image in images) > len(images):
            raise ValueError(
                f'most images of {path} are in the sets before it too, as samples of the same seeds are: draw them '
                'from another --seed, or leave them out.'
            )
        seen.update(images)


def _root(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder with the record of the set."""
    for root in (path, path.parent, path.parent.parent):
        found = read_record(root / RECORD)
        if found is None:
            continue
        inside = '' if root == path else formats.Spec.from_json(found['plan']).layout.dataset_folder
        if root == path or f'{inside}/'.startswith(f'{path.relative_to(root).as_posix()}/'):
            return root
    raise ValueError(f'{path} holds no samples of bin/sample: {RECORD} is missing. Name another --samples.')


def _read_folder(root: pathlib.Path, limit: int | None) -> Samples:
    record = read_record(root / RECORD)
    assert record is not None  # By it `_root` has found the folder.
    spec = formats.Spec.from_json(record['plan'])
    if not record['complete']:
        raise ValueError(
            f'{root} is not complete: {len(record["shards"])} of {spec.num_shards} shards are there. '
            'Call bin/sample again.'
        )
    layout, num_wanted, pieces = spec.layout, min(limit or spec.num_images, spec.num_images), []
    for shard in range(-(-num_wanted // spec.shard_size)):
        paths = [root / path for path in layout.paths(shard)]
        _check_whole(paths, record['shards'][str(shard)], root / layout.title(shard))
        pieces.append(layout.read(shard, root))
    _, labels, images = map(np.concatenate, zip(*pieces))
    return Samples(images[:limit], labels[:limit], spec.class_names, *(_text_of(root / name) for name in STATEMENTS))


def _read_file(path: pathlib.Path, limit: int | None) -> Samples:
    if not path.exists() and work_folder(path).is_dir():
        raise ValueError(f'{path} is not complete: its shards are still in {work_folder(path)}. Call bin/sample again.')
    record = read_record(record_path(path))
    if record is not None:
        _check_whole([path], record['file'], path)
    if not path.exists():
        raise FileNotFoundError(f'no samples at {path}; make some with bin/sample, or name another --samples.')
    images, labels, names = _read_arrays(path)
    # Where nothing names the classes, a label of a billion must not make as many names.
    most = len(labels) if names is None else len(names)
    if labels.max(initial=0) > most:
        raise ValueError(
            f'{path} holds samples without a class: the label {labels.max()}, but {most} '
            f'{"images" if names is None else "classes"}.'
        )
    class_names = tuple(map(str, range(int(labels.max()) + 1) if names is None else names))
    statements = [_text_of(path.with_name(f'{path.stem}.{name}')) for name in STATEMENTS]
    if statements == [None, None] and path.name in OF_A_RUN:
        statements = [_text_of(path.with_name(name)) for name in STATEMENTS]
    return Samples(images[:limit], labels[:limit].astype(np.int32), class_names, *statements)


def _read_arrays(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns images, labels and, if they are there, the names of classes of an .npz file, whoever wrote it."""
    try:
        with np.load(path) as arrays:
            images, labels = arrays['images'], arrays['labels']
            names = arrays['class_names'] if 'class_names' in arrays else None
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f'images are {images.dtype} {list(images.shape)}')
        if labels.shape != (len(images),) or labels.dtype.kind not in 'iu':
            raise ValueError(f'labels are {labels.dtype} {list(labels.shape)}')
        return images, labels, names
    # TypeError: np.load of an .npy file gives an array, which is no context.
    except (KeyError, ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f'{path} does not hold samples (arrays `images` and `labels` of an .npz file): {error}.'
        ) from error


def _text_of(path: pathlib.Path) -> str | None:
    return path.read_text(encoding='utf-8') if path.exists() else None


def read_record(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the record of a set, its spec ("plan") and what is written of it; None if there is none.

    Raises:
      ValueError: if it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        if not isinstance(content['plan'], dict) or not isinstance(content.get('file', content.get('shards')), dict):
            raise ValueError('it is no record of samples')
        return content
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'{path} is damaged ({reason}); restore it, or name another --output.') from error


def fingerprint(paths: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Returns the size of files together, and the SHA-256 of their contents one after the other."""
    size, digest = 0, hashlib.sha256()
    for path in paths:
        with open(path, 'rb') as file:
            while block := file.read(_HASHED_AT_A_TIME):
                size += len(block)
                digest.update(block)
    return {'bytes': size, 'sha256': digest.hexdigest()}


def damage(paths: Sequence[pathlib.Path], record: dict[str, Any]) -> str | None:
    """Returns the fault of the files of a shard in words, or None if they are as recorded."""
    try:
        size = sum(path.stat().st_size for path in paths)
        if size != record['bytes']:
            return f'is damaged: {size:,} bytes, {record["bytes"]:,} expected'
        return None if fingerprint(paths)['sha256'] == record['sha256'] else 'is damaged: its contents have changed'
    except FileNotFoundError as error:
        missing = f' ({pathlib.Path(error.filename).name})' if len(paths) > 1 else ''
        return f'is missing{missing}'


def _check_whole(paths: Sequence[pathlib.Path], record: dict[str, Any], title: pathlib.Path) -> None:
    problem = damage(paths, record)
    if problem is not None:
        raise ValueError(f'{title} {problem}. Call bin/sample again.')
