"""Tests that files appear whole or not at all, and that one process at a time holds one."""

import errno
import fcntl
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from tf_dpdiff import files


def test_new_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'a.txt'
    with files.replacing(path) as temporary:
        temporary.write_text('whole')
        assert not path.exists()
        # On the same file system, so that it can take its place in one operation.
        assert temporary.parent.parent == path.parent and temporary.suffix == '.txt'
    assert path.read_text() == 'whole'
    assert os.listdir(path.parent) == ['a.txt']


def test_old_content_is_there_until_the_block_ends(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with files.replacing(path) as temporary:
        temporary.write_text('new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize('there_before', [True, False])
def test_error_leaves_what_was_there_and_nothing_else(tmp_path, error, there_before):
    path = tmp_path / 'a.txt'
    if there_before:
        path.write_text('old')
    with pytest.raises(error):
        with files.replacing(path) as temporary:
            temporary.write_text('half')
            raise error
    assert os.listdir(tmp_path) == (['a.txt'] if there_before else [])
    assert not there_before or path.read_text() == 'old'


def test_reader_that_has_the_old_file_open_keeps_it(tmp_path):
    # So it is replaced, and not written over.
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with open(path, encoding='utf-8') as reader:
        files.write_text(path, 'new')
        assert reader.read() == 'old'


def test_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(FileNotFoundError):
        with files.replacing(path):
            pass
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


def test_folder_appears_whole(tmp_path):
    path = tmp_path / 'folder'
    with files.replacing(path) as temporary:
        (temporary / 'deep').mkdir(parents=True)
        (temporary / 'deep' / 'a.txt').write_text('content')
    assert os.listdir(tmp_path) == ['folder']
    assert (path / 'deep' / 'a.txt').read_text() == 'content'


def test_folder_is_never_mixed_with_one_that_is_there(tmp_path):
    path = tmp_path / 'folder'
    path.mkdir()
    (path / 'old.txt').write_text('old')
    with pytest.raises(OSError):
        with files.replacing(path) as temporary:
            temporary.mkdir()
            (temporary / 'new.txt').write_text('new')
    assert os.listdir(tmp_path) == ['folder'] and os.listdir(path) == ['old.txt']


def test_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(ValueError):
        with files.replacing(tmp_path / 'folder') as temporary:
            temporary.mkdir()
            (temporary / 'a.txt').write_text('half')
            raise ValueError
    assert not os.listdir(tmp_path)


def test_written_file_may_be_read_by_those_who_may_read_others(tmp_path):
    # Not by its owner alone, as a temporary file is.
    files.write_text(tmp_path / 'ours', 'text')
    (tmp_path / 'plain').write_text('text')
    assert (tmp_path / 'ours').stat().st_mode == (tmp_path / 'plain').stat().st_mode


@pytest.mark.parametrize('text', ['', 'one line\n', 'ε ≤ 10, δ = 1e-4 ✓\n'])
def test_text_is_written_as_utf8(tmp_path, text):
    files.write_text(str(tmp_path / 'a.txt'), text)
    assert (tmp_path / 'a.txt').read_bytes() == text.encode('utf-8')


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'{"a": 1', 'Expecting'),
        (b'', 'Expecting value'),
        (b'[1, 2]', 'holds no JSON object'),
        (b'{"a": "\xff"}', 'utf-8'),
    ],
)
def test_damaged_json_is_one_line_that_names_the_file(tmp_path, content, reason):
    path = tmp_path / 'a.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'a.json is damaged .*{reason}.*restore it') as error:
        files.read_json(path)
    assert '\n' not in str(error.value)
    path.write_text('{"a": "\u00e9"}', encoding='utf-8')
    assert files.read_json(path) == {'a': '\u00e9'}
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / 'none.json')


HOLD = """
import sys
from tf_dpdiff import files
with files.holding(sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
"""


def is_held(path):
    try:
        with files.holding(path):
            return False
    except BlockingIOError:
        return True


@pytest.fixture(name='holder')
def fixture_holder(tmp_path):
    """A process that holds the file 'lock'."""
    root = pathlib.Path(__file__).resolve().parent.parent
    with subprocess.Popen(
        [sys.executable, '-c', HOLD, tmp_path / 'lock'], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b'held\n'
        yield process
        process.kill()


def test_held_file_holds_others_off_until_its_process_is_killed(tmp_path, holder):
    path = tmp_path / 'lock'
    assert is_held(path) and not is_held(tmp_path / 'other')
    holder.kill()
    holder.wait()
    assert not is_held(path) and path.exists()
    with files.holding(path):
        assert is_held(path)


def test_held_file_is_waited_for_on_request(tmp_path, holder):
    order = []

    def wait():
        with files.holding(tmp_path / 'lock', wait=True):
            order.append('ours')

    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(0.2)
    order.append('killed')
    holder.kill()
    waiting.join(10.0)
    assert order == ['killed', 'ours']


def test_file_that_is_to_be_removed_is_held_again_where_another_process_has_just_removed_it(tmp_path, monkeypatch):
    path, flock, calls = tmp_path / 'lock', fcntl.flock, []

    def removed_before_it_is_locked(descriptor, operation):
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, 'flock', removed_before_it_is_locked)
    with files.holding(path, removes=True):
        assert path.exists() and is_held(path)
    assert len(calls) == 3 and not path.exists()


def test_where_there_are_no_locks_nothing_is_held_off_unless_they_are_needed(tmp_path, monkeypatch):
    for code in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        with monkeypatch.context() as patched:
            patched.setattr(fcntl, 'flock', lambda *unused, code=code: (_ for _ in ()).throw(OSError(code, 'none')))
            assert not is_held(tmp_path / 'lock')
            with pytest.raises(OSError, match='none'), files.holding(tmp_path / 'lock', needs_locks=True):
                pytest.fail('went on without a lock')
    monkeypatch.setattr(files, 'fcntl', None)  # As on Windows.
    with files.holding(tmp_path / 'lock'):
        assert not is_held(tmp_path / 'lock')
    with pytest.raises(OSError, match='no locks of files'), files.holding(tmp_path / 'lock', needs_locks=True):
        pytest.fail('went on without a lock')


def test_error_of_the_block_is_not_taken_for_one_of_the_lock(tmp_path):
    with pytest.raises(OSError, match='full'):
        with files.holding(tmp_path / 'lock'):
            raise OSError('full')
