"""Sets of samples as they are written: in shards, so that a second call completes what a kill has left."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import errno
import json
import os
import pathlib
import shutil
from typing import Any

import tensorflow as tf

from tf_dpdiff import files as files_lib
from tf_dpdiff.data import tfds_writer
from tf_dpdiff.evaluation import generate
from tf_dpdiff.evaluation import sample_files
from tf_dpdiff.evaluation import sample_formats
from tf_dpdiff.evaluation import sample_plan

_LOCK, _TEMPORARY = '.lock', '.unfinished'


class _Stopped(Exception):
    """A shard is given up half way, because a stop was asked for."""


class SampleFiles:
    """A set of samples that is being written; made by `open_for_writing`.

    Shards are written elsewhere and moved into place; then samples.json, itself replaced as a whole, says that they
    are there. So a kill at any moment loses no more than the shard in work.

    Attributes:
      problems: What was found damaged or missing, one line each; it is drawn again.
    """

    def __init__(self, output: pathlib.Path, plan: sample_plan.SamplePlan, statements: Sequence[pathlib.Path]):
        self._output, self._plan, self._statements = output, plan, statements
        self._single = sample_files.is_single_file(output)
        self._folder = sample_files.work_folder(output)
        self._shards: dict[str, dict[str, Any]] = {}
        self._complete = False
        self.problems: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether everything is written."""
        return self._complete

    @property
    def pending(self) -> list[int]:
        """Shards that are still to be written, in order."""
        return [shard for shard in range(self._plan.num_shards) if str(shard) not in self._shards]

    def _paths(self, shard: int) -> list[pathlib.Path]:
        return [self._folder / path for path in sample_formats.paths(self._plan, shard)]

    def inspect(self) -> None:
        """Finds out what is there already.

        Raises:
          ValueError: if it was made by another plan, or if its record is damaged.
        """
        found = sample_files.read_manifest(sample_files.manifest_path(self._output)) if self._single else None
        if found is not None:
            self._check_plan(found)
            problem = sample_files.damage([self._output], found['file'])
            if problem is None:
                self._complete, self._shards = True, {str(shard): {} for shard in range(self._plan.num_shards)}
                return
            self.problems.append(f'{self._output} {problem}; it is made again')
        found = sample_files.read_manifest(self._folder / sample_files.MANIFEST)
        if found is None:
            return
        self._check_plan(found)
        for shard, record in found['shards'].items():
            problem = sample_files.damage(self._paths(int(shard)), record)
            if problem is None:
                self._shards[shard] = record
            else:
                title = sample_formats.title(self._plan, int(shard))
                self.problems.append(f'{self._folder / title} {problem}; it is drawn again')
        self._complete = not self._single and not self.pending and found['complete']
        if self._complete and self._metadata():
            problem = sample_files.damage(self._metadata(), found.get('metadata', {'bytes': 0}))
            if problem is not None:
                self._complete = False
                self.problems.append(f'what goes with the shards in {self._folder} {problem}; it is written again')

    def _check_plan(self, found: dict[str, Any]) -> None:
        differing = sample_plan.differences(found['plan'], json.loads(json.dumps(self._plan.to_json())))
        if differing:
            raise ValueError(
                f'{self._output} was begun with other settings ({"; ".join(differing)}): give the same '
                'ones, or name another --output.'
            )

    def _metadata(self) -> list[pathlib.Path]:
        """Returns what a data set of TensorFlow Datasets needs beside its shards."""
        if self._plan.format != 'tfds':
            return []
        folder = self._folder / sample_formats.dataset_folder(self._plan)
        return [folder / name for name in tfds_writer.METADATA_FILES + sample_files.STATEMENTS]

    def begin(self) -> None:
        """Clears away what a kill has left, and lays the privacy statement in the folder."""
        with self._saving():
            shutil.rmtree(self._folder / _TEMPORARY, ignore_errors=True)
            (self._folder / _TEMPORARY).mkdir()
            if self._single and self._complete:
                self._lay_statements_beside()
                return
            if not self._complete:
                # First of all: without it, what a kill leaves would not be known for ours.
                self._save_manifest(self._folder / sample_files.MANIFEST, complete=False, shards=self._shards)
            self._lay_statements(self._folder)

    def ranges(self) -> list[tuple[int, int]]:
        """Returns the seeds that are still to be drawn: the first and the one after the last, of each shard."""
        return [self._plan.seeds_of(shard) for shard in self.pending]

    def write(
        self,
        pieces: Iterator[generate.Piece],
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int], Any] = lambda size: None,
    ) -> bool:
        """Writes what is pending, and what makes the set complete.

        Args:
          pieces: The images of `ranges`, in order; no piece reaches over the end of one.
          should_stop: Asked after each piece.
          progress: Told how many images each piece has.

        Returns:
          Whether the set is complete; if not, it was asked to stop.

        Raises:
          OSError: if the disk is full, or something else keeps it from writing; says what is kept.
        """
        try:
            for shard in self.pending:
                self._write_shard(shard, pieces, should_stop, progress)
        except _Stopped:
            return False
        with self._saving():
            self._finish()
        self._complete = True
        return True

    def _write_shard(self, shard, pieces, should_stop, progress) -> None:
        """Writes a shard and records it."""
        first, end = self._plan.seeds_of(shard)
        temporary = self._folder / _TEMPORARY
        with contextlib.ExitStack() as open_files:
            with self._saving():
                add = open_files.enter_context(sample_formats.writing(self._plan, shard, temporary))
            while first < end:
                if should_stop():
                    raise _Stopped  # What is there of the shard goes with the temporary folder.
                piece = next(pieces)
                with self._saving():
                    add(piece)
                first += len(piece.seeds)
                progress(len(piece.seeds))
            with self._saving():
                open_files.close()
        with self._saving():
            record = {
                'images': len(range(*self._plan.seeds_of(shard))),
                **sample_files.fingerprint([temporary / path for path in sample_formats.paths(self._plan, shard)]),
            }
            for path in sample_formats.paths(self._plan, shard):
                (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / path, self._folder / path)
            shards = {**self._shards, str(shard): record}
            self._save_manifest(self._folder / sample_files.MANIFEST, complete=False, shards=shards)
            self._shards = shards

    def _finish(self) -> None:
        if self._plan.format == 'tfds':
            records = [self._shards[str(shard)] for shard in range(self._plan.num_shards)]
            folder = self._folder / sample_formats.dataset_folder(self._plan)
            self._lay_statements(folder)
            tfds_writer.write_metadata(
                folder,
                image_shape=self._plan.image_shape,
                class_names=self._plan.class_names,
                shard_lengths=[record['images'] for record in records],
                num_bytes=sum(record['bytes'] for record in records),
                description=sample_files.describe(self._statements[1]),
            )
        if not self._single:
            about = {'metadata': sample_files.fingerprint(self._metadata())} if self._metadata() else {}
            self._save_manifest(self._folder / sample_files.MANIFEST, complete=True, shards=self._shards, **about)
            return
        temporary = self._folder / _TEMPORARY / self._output.name
        sample_formats.join_arrays(self._plan, self._folder, temporary)
        record = {'name': self._output.name, 'images': self._plan.num_images, **sample_files.fingerprint([temporary])}
        self._lay_statements_beside()
        os.replace(temporary, self._output)
        self._save_manifest(sample_files.manifest_path(self._output), complete=True, file=record)

    def _lay_statements_beside(self) -> None:
        self._lay_statements(self._output.parent, f'{self._output.stem}.')

    def _lay_statements(self, folder: pathlib.Path, prefix: str = '') -> None:
        for name, path in zip(sample_files.STATEMENTS, self._statements):
            self._replace(folder / f'{prefix}{name}', path.read_bytes())

    def _save_manifest(self, path: pathlib.Path, **written) -> None:
        if 'shards' in written:
            written['shards'] = {key: written['shards'][key] for key in sorted(written['shards'], key=int)}
        content = {'plan': self._plan.to_json(), **written}
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
            done, count = self._plan.num_shards - len(self.pending), self._plan.num_shards
            raise OSError(
                f'{reason}: {self._output}; {done} of {count} shards are complete and kept; '
                f'{"make room" if full else "mend it"} and call it again.'
            ) from error


@contextlib.contextmanager
def open_for_writing(
    output: pathlib.Path, plan: sample_plan.SamplePlan, statements: Sequence[pathlib.Path]
) -> Iterator[SampleFiles]:
    """Opens a set of samples for this process alone: a new one, or one that an earlier call has begun.

    Args:
      output: A folder or, in the format 'npz', a name that ends in .npz: one file, made from shards in
        OUTPUT.partial/ when all are there.
      plan: What is sampled.
      statements: The privacy statement as text and as JSON; copies are laid in the folder or, of a file more.npz,
        beside it as more.privacy_statement.txt and .json.

    Yields:
      The set. What it has begun and not finished is removed in the end; finished shards stay.

    Raises:
      ValueError: if something else is there, another plan, or another process at work.
      OSError: if it cannot be written.
    """
    _check_foreign(output, plan)
    folder = sample_files.work_folder(output)
    with _locked(folder):
        files = SampleFiles(output, plan, statements)
        files.inspect()
        try:
            files.begin()
            yield files
        finally:
            shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)
            if sample_files.is_single_file(output) and files.complete:
                shutil.rmtree(folder, ignore_errors=True)


def _check_foreign(output: pathlib.Path, plan: sample_plan.SamplePlan) -> None:
    folder = sample_files.work_folder(output)
    single = sample_files.is_single_file(output)
    if single and plan.format != 'npz':
        raise ValueError(f'{output} names an .npz file, and the format is {plan.format}; name a folder.')
    for path in (folder, output.parent):
        if path.exists() and not path.is_dir():
            raise ValueError(f'{path} is a file, and a folder is needed there; name another --output.')
    known = sample_files.manifest_path(output).exists() or (folder / sample_files.MANIFEST).exists()
    strange = (
        output
        if single and output.exists()
        else next(
            (
                path
                for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
                if path.name not in (_LOCK, _TEMPORARY)
            ),
            None,
        )
    )
    if strange is not None and not known:
        raise ValueError(
            f'{output} exists and is no set of samples that could be completed ({sample_files.MANIFEST} is missing); '
            'name another --output.'
        )


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out; a folder that is empty in the end is removed."""
    with contextlib.ExitStack() as held:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(files_lib.holding(folder / _LOCK, needs_locks=True, removes=True))
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
