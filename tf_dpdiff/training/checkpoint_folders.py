"""Numbered folders of files that appear whole or not at all, are checked before they are read, and are kept to a limit.

What the files are is not known here. A folder of checkpoints holds README, once there was a checkpoint, and beside it:

    000007/                what is called a checkpoint here: the files, and manifest.json with the SHA-256 of each
    .saving-1234, ...      what a process that was killed left behind; the next one to write removes it
"""

from collections.abc import Callable
import hashlib
import json
import os
import pathlib
import shutil
import stat
from typing import NamedTuple

MANIFEST, README = 'manifest.json', 'README'
_VERSION = 1
# Names of what is being written and of what is being deleted; neither is ever taken for a checkpoint.
_SAVING, _DELETING = '.saving-', '.deleting-'
_BLOCK_BYTES = 1 << 22

# What is wrong with a folder, by the state of its files: they are read once in a process, and again when they change.
_checked: dict[pathlib.Path, tuple[tuple, str | None]] = {}


class UnreadableError(OSError):
    """A checkpoint could not be read, which says nothing of what is in it."""


class Damage(NamedTuple):
    """A checkpoint that cannot be used.

    Attributes:
      folder: The checkpoint.
      reason: What is wrong with it, in words.
    """

    folder: pathlib.Path
    reason: str


def numbered(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints of a folder, damaged ones too, the newest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = sorted((int(name) for name in names if name.isdecimal() and name == _name(int(name))), reverse=True)
    return [directory / _name(number) for number in found]


def find_newest(directory: pathlib.Path) -> tuple[pathlib.Path | None, list[Damage]]:
    """Returns the newest checkpoint that is not damaged, or None, and all newer ones, from the newest on.

    Raises:
      UnreadableError: if a checkpoint cannot be read: an older one must not take the place of one that may be whole.
    """
    while True:
        damaged: list[Damage] = []
        for folder in numbered(directory):
            try:
                reason = find_damage(folder)
            except UnreadableError:
                if not _is_gone(folder):
                    raise
                break
            if reason is None:
                return folder, damaged
            if _is_gone(folder):
                break  # The process that writes them has deleted it since: it has saved newer ones.
            damaged.append(Damage(folder, reason))
        else:
            return None, damaged


def find_damage(folder: pathlib.Path) -> str | None:
    """Returns the fault of a checkpoint, in words; None: its files are those that were written.

    Raises:
      UnreadableError: if that is not known, since the disk or the network did not let it be read.
    """
    state = _state(folder)
    if folder not in _checked or _checked[folder][0] != state:
        _checked[folder] = (state, _compare(folder))
    return _checked[folder][1]


def write(
    directory: pathlib.Path, write_files: Callable[[pathlib.Path], None], *, max_to_keep: int, mode: int, readme: str
) -> pathlib.Path:
    """Writes a checkpoint, and then deletes old ones and damaged ones.

    A process killed at any moment leaves the checkpoints that were there, or those and the new one. There must be room
    for one more than are kept. One process alone may write: another one's half-written files would be removed, and its
    write would fail.

    Args:
      directory: The folder of checkpoints; made if it is missing.
      write_files: Writes plain files into the folder that it is given.
      max_to_keep: How many are kept that are not damaged, the new one among them, >= 1.
      mode: Of the folder and of what is in it, set before anything is in it.
      readme: Text of README, which is there once a checkpoint is: without any checkpoint it says that they are lost.

    Returns:
      The checkpoint.

    Raises:
      OSError: if it cannot be written; the checkpoints that were there stand.
      UnreadableError: if it is written, and an older one cannot be read; nothing is deleted.
    """
    is_new = not directory.exists()
    directory.mkdir(mode=mode, parents=True, exist_ok=True)
    if stat.S_IMODE(directory.stat().st_mode) & 0o777 & ~mode:
        os.chmod(directory, mode)
    if is_new:
        _sync(directory.parent)
    _remove_leftovers(directory)
    existing = numbered(directory)
    temporary = directory / f'{_SAVING}{os.getpid()}'
    try:
        temporary.mkdir(mode=mode)
        write_files(temporary)
        _write_manifest(temporary)
        for name in os.listdir(temporary):
            _sync(temporary / name)
        _sync(temporary)
        folder = directory / _name(int(existing[0].name) + 1 if existing else 1)
        os.rename(temporary, folder)
    finally:
        # Gone where all went well; half of it would keep a full disk full.
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(directory)
    _checked[folder] = (_state(folder), None)  # Its hashes were just made from what is on the disk.
    _write_readme(directory / README, readme)
    _prune(existing, max_to_keep - 1)
    return folder


def _name(number: int) -> str:
    return f'{number:06d}'


def _write_manifest(folder: pathlib.Path) -> None:
    manifest = {'version': _VERSION, 'files': {name: _hash(folder / name) for name in sorted(os.listdir(folder))}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + '\n', encoding='utf-8')


def _write_readme(path: pathlib.Path, text: str) -> None:
    if not path.exists():
        temporary = path.with_name(f'{_SAVING}{os.getpid()}-{path.name}')
        temporary.write_text(text, encoding='utf-8')
        _sync(temporary)
        os.rename(temporary, path)
        _sync(path.parent)


def _prune(older: list[pathlib.Path], num_kept: int) -> None:
    """Deletes checkpoints, given from the newest to the oldest, but for the newest that are not damaged."""
    unwanted = []
    for folder in older:
        if num_kept > 0 and find_damage(folder) is None:
            num_kept -= 1
        else:
            unwanted.append(folder)
    for folder in unwanted:  # All of them were looked at by now: where one cannot be read, none is deleted.
        hidden = folder.with_name(f'{_DELETING}{folder.name}-{os.getpid()}')
        os.rename(folder, hidden)  # No half of it is ever seen.
        _checked.pop(folder, None)
        _remove(hidden)


def _remove_leftovers(directory: pathlib.Path) -> None:
    """Removes what killed processes left, theirs by its name alone: a number of a process may have been given again."""
    for name in os.listdir(directory):
        if name.startswith((_SAVING, _DELETING)):
            _remove(directory / name)


def _remove(path: pathlib.Path) -> None:
    """Removes a file or a folder under a hidden name, or leaves it to the next write."""
    if path.is_dir() and not path.is_symlink():
        # A network file system may hold a file a little longer.
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _state(folder: pathlib.Path) -> tuple:
    """Returns a value that changes when a file of a folder does."""
    try:
        with os.scandir(folder) as entries:
            files = [(entry.name, entry.stat()) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise _unreadable(folder, error) from error
    return tuple(sorted((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in files))


def _compare(folder: pathlib.Path) -> str | None:
    """Reads a checkpoint and returns what is wrong with it, in words; None: nothing."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return f'{MANIFEST} is missing'
    except IsADirectoryError:
        return f'{MANIFEST} is a folder'
    except OSError as error:
        raise _unreadable(folder, error) from error
    except ValueError:  # No JSON, or no UTF-8.
        return f'{MANIFEST} is unreadable'
    files = manifest.get('files') if isinstance(manifest, dict) and manifest.get('version') == _VERSION else None
    if not isinstance(files, dict) or not files or any(os.path.basename(name) != name for name in files):
        return f'{MANIFEST} is not one of version {_VERSION}'
    for name, digest in files.items():
        try:
            if _hash(folder / name) != digest:
                return f'{name} is not what was written: its checksum differs'
        except FileNotFoundError:
            return f'{name} is missing'
        except IsADirectoryError:
            return f'{name} is a folder'
        except OSError as error:
            raise _unreadable(folder, error) from error
    return None


def _unreadable(folder: pathlib.Path, error: OSError) -> UnreadableError:
    return UnreadableError(
        f'the checkpoint {folder} cannot be read ({error.strerror or error}): it may be whole, so nothing is deleted '
        'and none older is used. See to the disk or the network, and start the same command again; where it stays '
        'unreadable, move that folder away, and the one before it is used.'
    )


def _is_gone(path: pathlib.Path) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    return False


def _hash(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
