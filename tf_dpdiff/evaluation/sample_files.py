"""Sets of samples on disk: what their files are called, whether they are whole, and how they are read back."""

from collections.abc import Sequence
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from tf_dpdiff import files
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import generate
from tf_dpdiff.evaluation import sample_formats
from tf_dpdiff.evaluation import sample_plan
from tf_dpdiff.privacy import rounding

MANIFEST = 'samples.json'
STATEMENTS = ('privacy_statement.txt', 'privacy_statement.json')

_HASHED_AT_A_TIME = 2**20


class SampleSet(NamedTuple):
    """Samples in memory, in the order of their seeds.

    Attributes:
      images: uint8 [images, height, width, channels].
      labels: int32 [images]; the number of classes stands for "no class".
      class_names: One a class.
      statement_text: The privacy statement that came with them, or None where none did.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    statement_text: str | None

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


def read(path: str | pathlib.Path, limit: int | None = None) -> SampleSet:
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
    if path.is_dir():
        return _read_folder(_root(path.resolve()), limit)
    return _read_file(path, limit)


def is_single_file(output: pathlib.Path) -> bool:
    """Returns whether a set of this name is one .npz file."""
    return output.suffix == '.npz'


def work_folder(output: pathlib.Path) -> pathlib.Path:
    """Returns where the shards of a set are: its folder or, of an .npz file, one that is removed in the end."""
    return output.with_name(f'{output.name}.partial') if is_single_file(output) else output


def manifest_path(output: pathlib.Path) -> pathlib.Path:
    """Returns the record of a complete set: samples.json in its folder or, of more.npz, more.samples.json beside it."""
    return output.with_name(f'{output.stem}.{MANIFEST}') if is_single_file(output) else output / MANIFEST


def read_manifest(path: pathlib.Path) -> dict[str, Any] | None:
    """Reads the record of a set: its plan, and what is written of it.

    Returns:
      The record, or None if there is none.

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
    """Returns what is wrong with the files of a shard, or None if they are what was recorded."""
    try:
        size = sum(path.stat().st_size for path in paths)
        if size != record['bytes']:
            return f'is damaged: {size:,} bytes, {record["bytes"]:,} expected'
        return None if fingerprint(paths)['sha256'] == record['sha256'] else 'is damaged: its contents have changed'
    except FileNotFoundError as error:
        missing = f' ({pathlib.Path(error.filename).name})' if len(paths) > 1 else ''
        return f'is missing{missing}'


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


def _root(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder with the record of the set."""
    for root in (path, path.parent, path.parent.parent):
        found = read_manifest(root / MANIFEST)
        if found is None:
            continue
        inside = sample_formats.dataset_folder(sample_plan.from_json(found['plan'])) if root != path else ''
        if root == path or f'{inside}/'.startswith(f'{path.relative_to(root).as_posix()}/'):
            return root
    raise ValueError(f'{path} holds no samples of bin/sample: {MANIFEST} is missing. Name another --samples.')


def _read_folder(root: pathlib.Path, limit: int | None) -> SampleSet:
    manifest = read_manifest(root / MANIFEST)
    plan = sample_plan.from_json(manifest['plan'])
    if not manifest['complete']:
        raise ValueError(
            f'{root} is not complete: {len(manifest["shards"])} of {plan.num_shards} shards are there. '
            'Call bin/sample again.'
        )
    pieces: list[generate.Piece] = []
    for shard in range(plan.num_shards):
        left = None if limit is None else limit - sum(len(piece.labels) for piece in pieces)
        if left == 0:
            break
        _check_whole(
            [root / path for path in sample_formats.paths(plan, shard)],
            manifest['shards'][str(shard)],
            root / sample_formats.title(plan, shard),
        )
        piece = sample_formats.read(plan, shard, root)
        pieces.append(generate.Piece(*(column[:left] for column in piece)))
    _, labels, images = (np.concatenate(columns) for columns in zip(*pieces))
    return SampleSet(images, labels, plan.class_names, _text_of(root / STATEMENTS[0]))


def _read_file(path: pathlib.Path, limit: int | None) -> SampleSet:
    if not path.exists() and work_folder(path).is_dir():
        raise ValueError(f'{path} is not complete: its shards are still in {work_folder(path)}. Call bin/sample again.')
    manifest = read_manifest(manifest_path(path))
    if manifest is not None:
        _check_whole([path], manifest['file'], path)
    images, labels = generate.read_npz(path)
    with np.load(path) as arrays:
        names = arrays['class_names'] if 'class_names' in arrays else None
    # Where nothing names the classes, a label of a billion must not make as many names.
    most = len(labels) if names is None else len(names)
    if labels.max(initial=0) > most:
        raise ValueError(
            f'{path} holds samples without a class: the label {labels.max()}, but {most} '
            f'{"images" if names is None else "classes"}.'
        )
    names = range(int(labels.max()) + 1) if names is None else names
    text = _text_of(path.with_name(f'{path.stem}.{STATEMENTS[0]}'))
    if text is None and path.name == 'samples.npz':  # Of a run.
        text = _text_of(path.with_name(STATEMENTS[0]))
    return SampleSet(images[:limit], labels[:limit].astype(np.int32), tuple(map(str, names)), text)


def _check_whole(paths: Sequence[pathlib.Path], record: dict[str, Any], title: pathlib.Path) -> None:
    problem = damage(paths, record)
    if problem is not None:
        raise ValueError(f'{title} {problem}. Call bin/sample again.')


def _text_of(path: pathlib.Path) -> str | None:
    return path.read_text(encoding='utf-8') if path.exists() else None
