"""Sets of samples are written in shards, so that a second call completes what a kill has left."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import errno
import json
import os
import pathlib
import shutil
from typing import Any

import tensorflow as tf

from tf_dpdiff import files
from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import tfds_writer
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import formats
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.sampling import store

_LOCK, _TEMPORARY = '.lock', '.unfinished'


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
        self._single, self._folder = store.is_single_file(output), store.work_folder(output)
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
        found = self._read_record(store.record_path(self._output)) if self._single else None
        if found:
            self.complete = self._is_whole([self._output], found['file'], self._output, 'made')
        found = None if self.complete else self._read_record(self._folder / store.RECORD)
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
        found = store.read_record(path)
        differing = found and _differences(found['plan'], json.loads(json.dumps(self._spec.to_json())))
        if differing:
            raise ValueError(
                f'{self._output} was begun with other settings ({"; ".join(differing)}): give the same '
                'ones, or name another --output.'
            )
        return found

    def _is_whole(self, paths: Sequence[pathlib.Path], record: dict[str, Any], title: Any, again: str) -> bool:
        problem = store.damage(paths, record)
        if problem:
            self.problems.append(f'{title} {problem}; it is {again} again')
        return problem is None

    def _paths(self, shard: int) -> list[pathlib.Path]:
        return [self._folder / path for path in self._layout.paths(shard)]

    def _metadata(self) -> list[pathlib.Path]:
        """Returns the files that a data set of TensorFlow Datasets needs beside its shards."""
        if self._dataset_folder is None:
            return []
        return [self._dataset_folder / name for name in tfds_writer.METADATA_FILES + store.STATEMENTS]

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
                self._save_record(self._folder / store.RECORD, complete=False, shards=self._shards)
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
        record = {'images': end - first, **store.fingerprint([temporary / path for path in paths])}
        for path in paths:
            os.replace(temporary / path, self._folder / path)
        shards = {**self._shards, str(shard): record}
        self._save_record(self._folder / store.RECORD, complete=False, shards=shards)
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
                description=store.describe(self._statements[1]),
            )
        if not self._single:
            about = {'metadata': store.fingerprint(self._metadata())} if self._metadata() else {}
            self._save_record(self._folder / store.RECORD, complete=True, shards=self._shards, **about)
            return
        temporary = self._folder / _TEMPORARY / self._output.name
        with progress.working('sampling', 'putting the shards together'):
            self._layout.join(self._folder, temporary)
        record = {'name': self._output.name, 'images': self._spec.num_images, **store.fingerprint([temporary])}
        self._lay_statements_beside()
        os.replace(temporary, self._output)
        self._save_record(store.record_path(self._output), complete=True, file=record)

    def _lay_statements_beside(self) -> None:
        self._lay_statements(self._output.parent, f'{self._output.stem}.')

    def _lay_statements(self, folder: pathlib.Path, prefix: str = '') -> None:
        for name, path in zip(store.STATEMENTS, self._statements):
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
    folder = store.work_folder(output)
    with _locked(folder):
        with progress.working('sampling', 'comparing what is there with its checksums'):
            writer = Writer(output, spec, statements)
        try:
            writer.begin()
            yield writer
        finally:
            shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)
            if store.is_single_file(output) and writer.complete:
                shutil.rmtree(folder, ignore_errors=True)


def complete(
    writer: Writer | None,
    spec: formats.Spec,
    load: Callable[[], Sequence[draw.SampleFn]],
    *,
    label_images: draw.LabelFn | None = None,
    workers: workers_lib.Workers = workers_lib.ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Draws by all workers what a set still lacks, and writes it at the first, with a progress bar.

    Args:
      writer: The set; None at the other workers, which draw for the first.
      spec: What is sampled.
      load: Returns the functions that draw, see `draw.in_pieces`; called if anything is to be drawn.
      label_images: Labels the images anew; None: their labels are those that they were drawn for.
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
        label_images=label_images,
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
    folder, single = store.work_folder(output), store.is_single_file(output)
    if single and spec.format != 'npz':
        raise ValueError(f'{output} names an .npz file, and the format is {spec.format}; name a folder.')
    for path in (folder, output.parent):
        if path.exists() and not path.is_dir():
            raise ValueError(f'{path} is a file, and a folder is needed there; name another --output.')
    found = {path.name for path in folder.iterdir()} - {_LOCK, _TEMPORARY} if folder.is_dir() else set()
    known = store.record_path(output).exists() or store.RECORD in found
    if not known and (found or (single and output.exists())):
        raise ValueError(
            f'{output} exists and is no set of samples that could be completed ({store.RECORD} is missing); '
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
