"""Watches a model's folder: loads a new version beside the old one, switches, unloads the old one when it is free."""

from collections.abc import Callable, Iterator
import contextlib
import gc
import logging
import pathlib
import threading
from typing import NamedTuple

from tensorflow_serving.apis import get_model_status_pb2

from tf_dpdiff.serving import servables
from tf_dpdiff.serving import status
from tf_dpdiff.serving import version_folders

_State = get_model_status_pb2.ModelVersionStatus
_MAX_ENDED = 16  # Of how many unloaded versions the state is told.
_log = logging.getLogger(__name__)


class VersionState(NamedTuple):
    """The state of a version, as GetModelStatus tells it."""

    version: int
    state: int
    error: status.ServingError | None


class _Loaded:
    """A version and how many requests use it."""

    def __init__(self, servable: servables.Servable):
        self.servable, self.num_users = servable, 0


class VersionManager:
    """Serves the newest version of a folder that can be loaded.

    A request that has begun keeps its version; a version that was replaced is unloaded when the last such request is
    answered. A new version that cannot be loaded is logged, and is tried again only when its files change.

    Args:
      folder: Its sub-folders with numbers for names are versions.
      name: The model's name.
      load: Makes a servable of a version's folder, or raises `servables.LoadError`.
    """

    def __init__(self, folder: pathlib.Path, name: str, load: Callable[[pathlib.Path], servables.Servable]):
        self.name = name
        self._folder, self._load = folder, load
        self._free = threading.Condition()
        self._loaded: dict[int, _Loaded] = {}
        self._newest: int | None = None
        self._num_unloading = 0
        self._states: dict[int, VersionState] = {}
        self._broken: dict[int, list[tuple[str, int, int]]] = {}
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def load_first(self) -> None:
        """Loads the newest version that works.

        Raises:
          FileNotFoundError: if there is no version.
          LoadError: if there are, and none works; it is of the newest.
        """
        found = self._find_versions()
        if not found:
            inside = self._folder / 'saved_model'  # Of a run or a release.
            cure = f'name {inside}' if inside.is_dir() else 'bin/export makes one'
            raise FileNotFoundError(
                f'no SavedModel in {self._folder}: it holds no folder like 1/ with a saved_model.pb; {cure}.'
            )
        errors = []
        for version in found:
            error = self._try_to_load(version)
            if error is None:
                return
            errors.append(error)
        raise errors[0]

    def watch(self, poll_secs: float) -> None:
        """Looks for versions from now on, in a thread of its own."""

        def poll():
            while not self._stopping.wait(poll_secs):
                try:
                    self.refresh()
                except Exception:
                    _log.exception('cannot look for new versions in %s', self._folder)

        self._watcher = threading.Thread(target=poll, name='version watcher', daemon=True)
        self._watcher.start()

    def refresh(self) -> None:
        """Loads the newest version on disk, unless it is already served or known not to load."""
        for version in self._find_versions():
            if version == self._newest:
                return
            if self._broken.get(version) != _stamp(self._folder / str(version)):
                if self._try_to_load(version) is None:
                    return

    @contextlib.contextmanager
    def use(self, name: str, version: int | None = None) -> Iterator[servables.Servable]:
        """Yields a version, which is not unloaded before the block ends.

        Args:
          name: The model's name.
          version: Its number; by default the newest.

        Raises:
          ServingError: if there is no such model or version.
        """
        with self._free:
            number = self._newest if version is None else version
            loaded = self._loaded.get(number) if name == self.name and number is not None else None
            if loaded is None:
                asked = f'Latest({name[:80]})' if version is None else f'Specific({name[:80]}, {version})'
                raise status.ServingError(status.Code.NOT_FOUND, f'Servable not found for request: {asked}')
            loaded.num_users += 1
        try:
            yield loaded.servable
        finally:
            with self._free:
                loaded.num_users -= 1
                self._free.notify_all()

    def states(self, name: str, version: int | None = None) -> list[VersionState]:
        """Returns the states of a version, or of all, the newest first.

        Raises:
          ServingError: if there is no such model or version.
        """
        with self._free:
            known = dict(self._states) if name == self.name else {}
        if version is not None and version not in known:
            raise status.ServingError(status.Code.NOT_FOUND, f'Could not find version {version} of model {name[:80]}')
        if not known:
            raise status.ServingError(status.Code.NOT_FOUND, f'Could not find any versions of model {name[:80]}')
        return [known[number] for number in sorted(known, reverse=True) if version in (None, number)]

    def newest_version(self) -> int:
        """Returns the version that requests without one get, or 0."""
        return self._newest or 0

    def is_loaded(self) -> bool:
        """True while there is a version for requests that name none; its number may be 0."""
        return self._newest is not None

    def queue_length(self) -> int:
        """Returns the number of requests that wait, of all versions."""
        with self._free:
            return sum(loaded.servable.queue_length() for loaded in self._loaded.values())

    def close(self) -> None:
        """Stops watching, and unloads every version when its requests are answered; waits for none that loads."""
        self._stopping.set()
        with self._free:
            self._newest = None
            versions = list(self._loaded)
        for version in versions:
            self._unload(version)
        with self._free:
            self._free.wait_for(lambda: not self._num_unloading)  # The watcher may be at it, too.

    def _find_versions(self) -> list[int]:
        """Versions on disk, the newest first."""
        return [
            number
            for number in version_folders.numbers(self._folder)
            if (self._folder / str(number) / 'saved_model.pb').exists()
        ]

    def _set_state(self, version: int, state: int, error: status.ServingError | None = None) -> None:
        with self._free:
            self._states[version] = VersionState(version, state, error)
            ended = sorted(number for number, known in self._states.items() if known.state == _State.END)
            for number in ended[:-_MAX_ENDED]:
                del self._states[number]

    def _try_to_load(self, version: int) -> servables.LoadError | None:
        folder, old = self._folder / str(version), self._newest
        stamp = _stamp(folder)
        self._set_state(version, _State.LOADING)
        try:
            servable = self._load(folder)
        except servables.LoadError as error:
            self._broken[version] = stamp
            told = status.without_paths(str(error), self._folder.parent)  # Clients learn nothing of this machine.
            self._set_state(version, _State.END, status.ServingError(status.Code.UNKNOWN, told))
            _log.error('version %d cannot be loaded%s: %s', version, f', {old} stays' if old else '', error)
            return error
        self._broken.pop(version, None)
        with self._free:
            is_late = self._stopping.is_set()
            if not is_late:
                self._loaded[version] = _Loaded(servable)
                self._newest = version
        if is_late:
            servable.close()
            return None
        self._set_state(version, _State.AVAILABLE)
        _log.info('version %d is served', version)
        if old is not None:
            self._unload(old)
        return None

    def _unload(self, version: int) -> None:
        with self._free:
            loaded = self._loaded.pop(version, None)
            if loaded is None:
                return  # Another thread unloads it.
            self._num_unloading += 1
        self._set_state(version, _State.UNLOADING)
        try:
            with self._free:
                self._free.wait_for(lambda: not loaded.num_users)
            loaded.servable.close()
            gc.collect()  # Functions and their graphs refer to each other in circles.
            self._set_state(version, _State.END)
        finally:
            with self._free:
                self._num_unloading -= 1
                self._free.notify_all()
        _log.info('version %d is unloaded', version)


def _stamp(folder: pathlib.Path):
    """Changes when a file of a version does, as while it is being copied."""
    result = []
    for path in sorted(folder.rglob('*')):
        try:
            found = path.stat()
        except OSError:
            continue
        result.append((str(path), found.st_size, found.st_mtime_ns))
    return result
