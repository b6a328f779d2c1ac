"""Sets of samples on disk: written in shards, so that a second call completes what a kill has left, and read back."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple
import zipfile
import zlib

import numpy as np
import tensorflow as tf

from tf_dpdiff import files
from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.data import tfds_writer
from tf_dpdiff.privacy import rounding
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import formats
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.serving import export

RECORD = 'samples.json'
STATEMENTS = (export.STATEMENT_TEXT, export.STATEMENT_JSON)

_LOCK, _TEMPORARY = '.lock', '.unfinished'
_HASHED_AT_A_TIME = 2**20


class Samples(NamedTuple):
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
    return _read_folder(_root(path.resolve()), limit) if path.is_dir() else _read_file(path, limit)


def _root(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder with the record of the set."""
    for root in (path, path.parent, path.parent.parent):
        found = _read_record(root / RECORD)
        if found is None:
            continue
        inside = '' if root == path else formats.Spec.from_json(found['plan']).layout.dataset_folder
        if root == path or f'{inside}/'.startswith(f'{path.relative_to(root).as_posix()}/'):
            return root
    raise ValueError(f'{path} holds no samples of bin/sample: {RECORD} is missing. Name another --samples.')


def _read_folder(root: pathlib.Path, limit: int | None) -> Samples:
    record = _read_record(root / RECORD)
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
    return Samples(images[:limit], labels[:limit], spec.class_names, _text_of(root / STATEMENTS[0]))


def _read_file(path: pathlib.Path, limit: int | None) -> Samples:
    if not path.exists() and work_folder(path).is_dir():
        raise ValueError(f'{path} is not complete: its shards are still in {work_folder(path)}. Call bin/sample again.')
    record = _read_record(record_path(path))
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
    text = _text_of(path.with_name(f'{path.stem}.{STATEMENTS[0]}'))
    if text is None and path.name == 'samples.npz':  # What bin/train writes.
        text = _text_of(path.with_name(STATEMENTS[0]))
    return Samples(images[:limit], labels[:limit].astype(np.int32), class_names, text)


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


def _read_record(path: pathlib.Path) -> dict[str, Any] | None:
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


def _fingerprint(paths: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Returns the size of files together, and the SHA-256 of their contents one after the other."""
    size, digest = 0, hashlib.sha256()
    for path in paths:
        with open(path, 'rb') as file:
            while block := file.read(_HASHED_AT_A_TIME):
                size += len(block)
                digest.update(block)
    return {'bytes': size, 'sha256': digest.hexdigest()}


def _damage(paths: Sequence[pathlib.Path], record: dict[str, Any]) -> str | None:
    """Returns the fault of the files of a shard in words, or None if they are as recorded."""
    try:
        size = sum(path.stat().st_size for path in paths)
        if size != record['bytes']:
            return f'is damaged: {size:,} bytes, {record["bytes"]:,} expected'
        return None if _fingerprint(paths)['sha256'] == record['sha256'] else 'is damaged: its contents have changed'
    except FileNotFoundError as error:
        missing = f' ({pathlib.Path(error.filename).name})' if len(paths) > 1 else ''
        return f'is missing{missing}'


def _check_whole(paths: Sequence[pathlib.Path], record: dict[str, Any], title: pathlib.Path) -> None:
    problem = _damage(paths, record)
    if problem is not None:
        raise ValueError(f'{title} {problem}. Call bin/sample again.')


class _NoImages(Exception):
    """A shard is given up half way: drawing failed, which is the cause, or a stop was asked for."""


class Writer:
    """A set of samples that is being written; made by `open_for_writing`.

    Shards are written elsewhere and moved into place; then samples.json, itself replaced as a whole, says that they
    are there. So a kill at any moment loses no more than the shard in work.

    Attributes:
      complete: Whether everything is written.
      problems: What was found damaged or missing, one line each; it is drawn again.
    """

    def __init__(self, output: pathlib.Path, spec: formats.Spec, statements: Sequence[pathlib.Path]):
        self._output, self._spec, self._layout, self._statements = output, spec, spec.layout, statements
        self._single, self._folder = is_single_file(output), work_folder(output)
        self._dataset_folder = self._folder / self._layout.dataset_folder if self._layout.dataset_folder else None
        self._shards: dict[str, dict[str, Any]] = {}
        self.complete = False
        self.problems: list[str] = []
        self._inspect()

    @property
    def pending(self) -> list[int]:
        """Shards that are still to be written, in order."""
        return [shard for shard in range(self._spec.num_shards) if not self.complete and str(shard) not in self._shards]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The seeds that are still to be drawn: the first and the one after the last, of each shard."""
        return [self._spec.seeds_of(shard) for shard in self.pending]

    @property
    def progress(self) -> str:
        """How far it is, in words."""
        return f'{self._spec.num_shards - len(self.pending)} of {self._spec.num_shards} shards are complete'

    def _inspect(self) -> None:
        """Finds out what is there already.

        Raises:
          ValueError: if it was made by another spec, or if its record is damaged.
        """
        found = self._read_record(record_path(self._output)) if self._single else None
        if found:
            self.complete = self._is_whole([self._output], found['file'], self._output, 'made')
        found = None if self.complete else self._read_record(self._folder / RECORD)
        if not found:
            return
        for shard, record in found['shards'].items():
            if self._is_whole(self._paths(int(shard)), record, self._folder / self._layout.title(int(shard)), 'drawn'):
                self._shards[shard] = record
        if found['complete'] and not self._single and not self.pending:
            about = found.get('metadata', {'bytes': 0})
            title = f'what goes with the shards in {self._folder}'
            self.complete = not self._metadata() or self._is_whole(self._metadata(), about, title, 'written')

    def _read_record(self, path: pathlib.Path) -> dict[str, Any] | None:
        found = _read_record(path)
        differing = found and _differences(found['plan'], json.loads(json.dumps(self._spec.to_json())))
        if differing:
            raise ValueError(
                f'{self._output} was begun with other settings ({"; ".join(differing)}): give the same '
                'ones, or name another --output.'
            )
        return found

    def _is_whole(self, paths: Sequence[pathlib.Path], record: dict[str, Any], title: Any, again: str) -> bool:
        problem = _damage(paths, record)
        if problem:
            self.problems.append(f'{title} {problem}; it is {again} again')
        return problem is None

    def _paths(self, shard: int) -> list[pathlib.Path]:
        return [self._folder / path for path in self._layout.paths(shard)]

    def _metadata(self) -> list[pathlib.Path]:
        """Returns the files that a data set of TensorFlow Datasets needs beside its shards."""
        if self._dataset_folder is None:
            return []
        return [self._dataset_folder / name for name in tfds_writer.METADATA_FILES + STATEMENTS]

    def begin(self) -> None:
        """Clears away what a kill has left, and lays the privacy statement in the folder."""
        with self._saving():
            shutil.rmtree(self._folder / _TEMPORARY, ignore_errors=True)
            (self._folder / _TEMPORARY).mkdir()
            if self._single and self.complete:
                self._lay_statements_beside()
                return
            if not self.complete:
                # First of all: without it, what a kill leaves would not be known for ours.
                self._save_record(self._folder / RECORD, complete=False, shards=self._shards)
            self._lay_statements(self._folder)

    def write(self, pieces: Iterator[draw.Piece], should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Writes what is pending, and what makes the set complete.

        Args:
          pieces: The images of `ranges`, in order; no piece reaches over the end of one.
          should_stop: Asked before each piece.

        Returns:
          Whether the set is complete; if not, it was asked to stop.

        Raises:
          OSError: if the disk is full, or something else keeps it from writing; says what is kept.
        """
        try:
            with self._saving():
                for shard in self.pending:
                    self._write_shard(shard, pieces, should_stop)
                self._finish()
        except _NoImages as given_up:
            if given_up.__cause__:
                raise given_up.__cause__
            return False
        self.complete = True
        return True

    def _write_shard(self, shard: int, pieces: Iterator[draw.Piece], should_stop: Callable[[], bool]) -> None:
        """Writes a shard and records it."""
        paths, (first, end) = self._layout.paths(shard), self._spec.seeds_of(shard)
        temporary = self._folder / _TEMPORARY
        for parent in {(folder / path).parent for path in paths for folder in (self._folder, temporary)}:
            parent.mkdir(parents=True, exist_ok=True)
        self._layout.write(shard, temporary, _take(end - first, pieces, should_stop))
        record = {'images': end - first, **_fingerprint([temporary / path for path in paths])}
        for path in paths:
            os.replace(temporary / path, self._folder / path)
        shards = {**self._shards, str(shard): record}
        self._save_record(self._folder / RECORD, complete=False, shards=shards)
        self._shards = shards

    def _finish(self) -> None:
        if self._dataset_folder:
            records = [self._shards[str(shard)] for shard in range(self._spec.num_shards)]
            self._lay_statements(self._dataset_folder)
            tfds_writer.write_metadata(
                self._dataset_folder,
                image_shape=self._spec.image_shape,
                class_names=self._spec.class_names,
                shard_lengths=[record['images'] for record in records],
                num_bytes=sum(record['bytes'] for record in records),
                description=describe(self._statements[1]),
            )
        if not self._single:
            about = {'metadata': _fingerprint(self._metadata())} if self._metadata() else {}
            self._save_record(self._folder / RECORD, complete=True, shards=self._shards, **about)
            return
        temporary = self._folder / _TEMPORARY / self._output.name
        with progress.working('sampling', 'putting the shards together'):
            self._layout.join(self._folder, temporary)
        record = {'name': self._output.name, 'images': self._spec.num_images, **_fingerprint([temporary])}
        self._lay_statements_beside()
        os.replace(temporary, self._output)
        self._save_record(record_path(self._output), complete=True, file=record)

    def _lay_statements_beside(self) -> None:
        self._lay_statements(self._output.parent, f'{self._output.stem}.')

    def _lay_statements(self, folder: pathlib.Path, prefix: str = '') -> None:
        for name, path in zip(STATEMENTS, self._statements):
            self._replace(folder / f'{prefix}{name}', path.read_bytes())

    def _save_record(self, path: pathlib.Path, **written) -> None:
        if 'shards' in written:
            written['shards'] = {key: written['shards'][key] for key in sorted(written['shards'], key=int)}
        content = {'plan': self._spec.to_json(), **written}
        self._replace(path, (json.dumps(content, indent=2, ensure_ascii=False) + '\n').encode())

    def _replace(self, path: pathlib.Path, content: bytes) -> None:
        temporary = self._folder / _TEMPORARY / 'file'
        with open(temporary, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Turns what can go wrong while writing into one line that says what is kept."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            full = getattr(error, 'errno', None) == errno.ENOSPC or 'No space left on device' in str(error)
            reason = (
                'No space left on device' if full else getattr(error, 'strerror', None) or str(error).splitlines()[0]
            )
            raise OSError(
                f'{reason}: {self._output}; {self.progress} and kept; {"make room" if full else "mend it"} and call '
                'it again.'
            ) from error


def _take(num_images: int, pieces: Iterator[draw.Piece], should_stop: Callable[[], bool]) -> Iterator[draw.Piece]:
    """Yields pieces of so many images together; raises _NoImages where there are none."""
    while num_images:
        if should_stop():
            raise _NoImages
        try:
            piece = next(pieces)
        except Exception as error:  # Not to be taken for one of writing.
            raise _NoImages from error
        yield piece
        num_images -= len(piece.seeds)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns 'name: before then, now now' for each value in which two specs, as JSON, differ."""
    return [
        f'{key}: {_short(before.get(key))} then, {_short(now.get(key))} now'
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    text = ', '.join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + '...'


@contextlib.contextmanager
def open_for_writing(output: pathlib.Path, spec: formats.Spec, statements: Sequence[pathlib.Path]) -> Iterator[Writer]:
    """Opens a set of samples for this process alone: a new one, or one that an earlier call has begun.

    Args:
      output: A folder or, in the format 'npz', a name that ends in .npz: one file, made from shards in
        OUTPUT.partial/ when all are there.
      spec: What is sampled.
      statements: The privacy statement as text and as JSON; copies are laid in the folder or, of a file more.npz,
        beside it as more.privacy_statement.txt and .json.

    Yields:
      The set. What it has begun and not finished is removed in the end; finished shards stay.

    Raises:
      ValueError: if something else is there, another spec, or another process at work.
      OSError: if it cannot be written.
    """
    _check_foreign(output, spec)
    folder = work_folder(output)
    with _locked(folder):
        with progress.working('sampling', 'comparing what is there with its checksums'):
            writer = Writer(output, spec, statements)
        try:
            writer.begin()
            yield writer
        finally:
            shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)
            if is_single_file(output) and writer.complete:
                shutil.rmtree(folder, ignore_errors=True)


def complete(
    writer: Writer | None,
    spec: formats.Spec,
    load: Callable[[], Sequence[draw.SampleFn]],
    *,
    workers: workers_lib.Workers = workers_lib.ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Draws by all workers what a set still lacks, and writes it at the first, with a progress bar.

    Args:
      writer: The set; None at the other workers, which draw for the first.
      spec: What is sampled.
      load: Returns the functions that draw, see `draw.in_pieces`; called if anything is to be drawn.
      workers: All of them call this.
      should_stop: Asked before each round of chunks and, at the first worker, before each piece.

    Returns:
      Whether the set is complete, at every worker; if not, one of them was asked to stop.
    """
    state = workers.broadcast(json.dumps([writer.complete, writer.ranges]).encode() if writer else None)
    is_complete, ranges = json.loads(state)
    if is_complete:
        return True
    sample_fns = shared_work.all_or_none(workers, load) if ranges else []
    pieces = draw.in_pieces(
        sample_fns,
        spec.choice,
        ranges,
        spec.chunk_size,
        workers=workers,
        should_stop=should_stop,
        shown_total=spec.num_images,
    )
    with contextlib.closing(pieces):
        try:
            written = writer.write(pieces, should_stop) if writer else all(True for _ in pieces)
            # Asked by all: the others have to know whether the first one wrote everything.
            return not workers.any(not written)
        except shared_work.Stopped:
            return False


def _check_foreign(output: pathlib.Path, spec: formats.Spec) -> None:
    """Raises ValueError if something lies where a set is to be written that was not made here."""
    folder, single = work_folder(output), is_single_file(output)
    if single and spec.format != 'npz':
        raise ValueError(f'{output} names an .npz file, and the format is {spec.format}; name a folder.')
    for path in (folder, output.parent):
        if path.exists() and not path.is_dir():
            raise ValueError(f'{path} is a file, and a folder is needed there; name another --output.')
    found = {path.name for path in folder.iterdir()} - {_LOCK, _TEMPORARY} if folder.is_dir() else set()
    known = record_path(output).exists() or RECORD in found
    if not known and (found or (single and output.exists())):
        raise ValueError(
            f'{output} exists and is no set of samples that could be completed ({RECORD} is missing); '
            'name another --output.'
        )


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out; a folder that is empty in the end is removed."""
    with contextlib.ExitStack() as held:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(files.holding(folder / _LOCK, needs_locks=True, removes=True))
                break
            except FileNotFoundError:
                continue  # Another process has just finished, and removed the folder.
            except BlockingIOError as error:
                raise ValueError(
                    f'another process is writing to {folder}; wait for it, or name another --output.'
                ) from error
        try:
            yield
        finally:
            held.close()
            with contextlib.suppress(OSError):
                folder.rmdir()
