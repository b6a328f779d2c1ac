"""Tests of bin/setup.sh: a checkout with stub commands, a tiny lock and, mostly, a stand-in for uv.

The stand-in makes real (empty) environments, so what is tested of them, the .pth file and the way
that Python is started, is the real thing; it installs nothing and writes down how it was called.
"""

import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest

_BIN = pathlib.Path(__file__).resolve().parents[2] / 'bin'
_VERBS = (
    'init',
    'train',
    'sample',
    'evaluate',
    'select',
    'tune',
    'export',
    'release',
    'account',
    'audit',
    'serve',
    'tensorboard',
)
# Besides Python and uv, the programs that a set-up may use.
_TOOLS = (
    'awk',
    'bash',
    'cat',
    'cksum',
    'dirname',
    'env',
    'flock',
    'grep',
    'mkdir',
    'readlink',
    'rm',
    'sleep',
    'tail',
    'wc',
)
_VERSION = f'{sys.version_info[0]}.{sys.version_info[1]}'
_OTHER_VERSION = '3.12' if _VERSION == '3.13' else '3.13'

_UV = r"""#!/bin/bash
echo "$1 $2 PYTHONHOME=${PYTHONHOME-} VIRTUAL_ENV=${VIRTUAL_ENV-}" >>"$CALLS"
case $1 in
  --version) ;;
  venv)  # venv --allow-existing --python PYTHON DIRECTORY
    "$MAKES_ENVIRONMENTS" -I -m venv --without-pip "$5" && echo "asked for $4" >>"$CALLS" ;;
  pip)  # pip install --python PYTHON OPTIONS -r LOCK
    echo "options ${*:5}" >>"$CALLS"
    cat "${!#}" >>"$CALLS"
    if [[ ${!#} != requirements.lock ]]; then exit; fi
    : >"${4%/bin/python}/half_written"
    sleep "${INSTALL_SECONDS:-0}"
    if [[ -s $CALLS.says ]]; then cat "$CALLS.says"; fi
    if [[ -e $CALLS.cut ]]; then rm "$CALLS.cut"; echo 'error decoding response body: connection reset'; exit 2; fi
    if [[ -e $CALLS.offline ]]; then echo 'error: Request failed after 3 retries in 5.5s'; exit 2; fi
    if [[ -e $CALLS.fail ]]; then echo 'a hash of another file'; exit 2; fi
    rm "${4%/bin/python}/half_written" ;;
esac
"""

_BROKEN = '#!/bin/bash\nexit 127\n'


def _passing_for(version):
    """Returns a program that runs `-I -c CODE ARGUMENTS` in this Python, which it makes pass for another version."""
    return f'''#!/bin/bash
[[ $1 == -I && $2 == -c ]] || exit 9
exec "{sys.executable}" -I -c \\
  'import sys; sys.version_info = ({version.replace('.', ', ')}, 1)
sys.executable = sys.argv.pop(1); exec(sys.argv.pop(1))' "$0" "${{@:3}}"
'''


_TOO_NEW = _passing_for('3.14')
_TOO_OLD = _passing_for('3.10')

_COMMAND = """
import os, sys
print(os.getcwd(), __file__, sys.executable, *sys.argv[1:], sep='\\n')
"""


class _Checkout:
    """A checkout, its own PATH and a record of what was asked of the stand-in for uv."""

    def __init__(self, folder, *, uv=True, python=True):
        self.root = folder / 'check out'  # Each test so runs in a path with a space.
        self.venv = self.root / '.venv'
        self.lock = self.root / 'requirements.lock'
        self.path = folder / 'path'
        self.path.mkdir()
        self.calls = folder / 'calls'
        shutil.copytree(_BIN, self.root / 'bin')
        self.lock.write_text('one==1\n')
        cli = self.root / 'tf_dpdiff' / 'cli'
        cli.mkdir(parents=True)
        for package in (cli.parent, cli):
            (package / '__init__.py').touch()
        (cli / '__main__.py').write_text(_COMMAND)
        for tool in _TOOLS:
            found = shutil.which(tool)
            if found:
                (self.path / tool).symlink_to(found)
        if uv:
            self.add_program('uv', _UV)
        if python:
            self.add_python('python3')

    def add_program(self, name, text):
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def add_python(self, name):
        self.add_program(name, f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')

    def start(self, command=None, *arguments, cwd='/', path='', **environment):
        return subprocess.Popen(
            [str(command or self.root / 'bin' / 'train'), *arguments],
            cwd=cwd,
            env={
                'PATH': f'{path}{self.path}',
                'HOME': str(self.root.parent),
                'CALLS': str(self.calls),
                'MAKES_ENVIRONMENTS': sys.executable,
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            start_new_session=True,
        )

    def run(self, *args, **kwargs):
        process = self.start(*args, **kwargs)
        process.out, process.err = process.communicate(timeout=120)
        return process

    def installations(self):
        """Returns the lock files that were installed, oldest first, and forgets them."""
        calls = self.calls.read_text() if self.calls.exists() else ''
        self.calls.write_text('')
        return [line for line in calls.splitlines() if line.startswith('one==')]


def _assert_ran(process):
    assert process.returncode == 0, process.err
    assert '/check out/tf_dpdiff/cli/' in process.out


def _assert_made_anew(checkout, process, leftover):
    _assert_ran(process)
    assert process.err.startswith('tf_dpdiff: making .venv')
    assert len(checkout.installations()) == 1
    assert not leftover.exists()


@pytest.fixture
def fresh(tmp_path):
    return _Checkout(tmp_path)


@pytest.fixture
def ready(fresh):
    _assert_ran(fresh.run())
    fresh.installations()
    (fresh.venv / 'kept').touch()
    return fresh


@pytest.mark.parametrize('verb', _VERBS)
def test_fresh_checkout_is_set_up_and_runs_the_command(fresh, verb):
    process = fresh.run(fresh.root / 'bin' / verb, '--workdir=a b', '')
    _assert_ran(process)
    lines = process.err.splitlines()
    assert lines[0].startswith('tf_dpdiff: making .venv') and 'GB' in lines[0]
    assert lines[1].startswith('tf_dpdiff: .venv is ready') and len(lines) == 2
    assert process.out.splitlines() == [
        '/',
        str(fresh.root / 'tf_dpdiff' / 'cli' / '__main__.py'),
        str(fresh.venv / 'bin' / 'python'),
        verb,
        '--workdir=a b',
        '',
    ]
    assert fresh.installations() == ['one==1']


def _write_wheel(folder, version):
    """Writes the package tiny and returns the line of a lock that asks for it."""
    wheel = folder / f'tiny-{version}-py3-none-any.whl'
    info = f'tiny-{version}.dist-info'
    files = {
        'tiny.py': '',
        f'{info}/METADATA': f'Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n',
        f'{info}/WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
    }
    files[f'{info}/RECORD'] = ''.join(f'{name},,\n' for name in (*files, f'{info}/RECORD'))
    with zipfile.ZipFile(wheel, 'w') as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f'tiny=={version} --hash=sha256:{digest}\n'


def test_without_uv_pip_installs_the_lock_and_checks_its_hashes(tmp_path):
    checkout = _Checkout(tmp_path, uv=False)
    environment = {
        'PIP_CONFIG_FILE': os.devnull,
        'PIP_NO_INDEX': '1',
        'PIP_FIND_LINKS': str(tmp_path),
        'PIP_USER': '1',  # Set by some people; pip would refuse it in an environment.
    }
    checkout.lock.write_text(_write_wheel(tmp_path, '1'))
    _assert_ran(checkout.run(**environment))
    assert list(checkout.venv.glob('lib/python3*/site-packages/tiny-1.dist-info'))

    line = _write_wheel(tmp_path, '2')
    for bad, complaint in ((line[:-9] + '00000000\n', 'DO NOT MATCH THE HASHES'), ('tiny==2\n', 'Hashes are required')):
        checkout.lock.write_text(bad)
        process = checkout.run(**environment)
        assert process.returncode == 1 and complaint in process.err


def test_ready_environment_is_used_as_it_is(ready):
    for name in ('uv', 'python3'):  # Nothing but what .venv holds is needed.
        (ready.path / name).unlink()
    process = ready.run()
    _assert_ran(process)
    assert process.err == '' and ready.installations() == []


def test_set_up_killed_at_work_is_made_anew(fresh):
    process = fresh.start(INSTALL_SECONDS='60')
    leftover = fresh.venv / 'half_written'
    deadline = time.monotonic() + 60
    while not leftover.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert leftover.exists()
    fresh.installations()
    _assert_made_anew(fresh, fresh.run(), leftover)


def test_update_killed_at_work_is_made_anew(ready):
    ready.lock.write_text('one==2\n')
    process = ready.start(INSTALL_SECONDS='60')
    deadline = time.monotonic() + 60
    while not (ready.venv / 'half_written').exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    ready.installations()
    _assert_made_anew(ready, ready.run(), ready.venv / 'half_written')


def test_changed_lock_is_installed_in_place(ready):
    ready.lock.write_text('one==2\n')
    process = ready.run()
    _assert_ran(process)
    assert process.err.startswith('tf_dpdiff: bringing .venv up')
    assert ready.installations() == ['one==2']
    assert (ready.venv / 'kept').exists()
    assert ready.run().err == ''


def test_environment_made_by_hand_is_brought_up_to_the_lock(fresh):
    subprocess.run([sys.executable, '-I', '-m', 'venv', '--without-pip', str(fresh.venv)], check=True)
    (fresh.venv / 'kept').touch()
    process = fresh.run()
    _assert_ran(process)
    assert process.err.startswith('tf_dpdiff: bringing .venv up')
    assert fresh.installations() == ['one==1']
    assert (fresh.venv / 'kept').exists()


def test_update_that_fails_is_tried_again_in_place(ready):
    ready.lock.write_text('one==2\n')
    failure = pathlib.Path(f'{ready.calls}.fail')
    failure.touch()
    process = ready.run()
    assert process.returncode == 1 and 'a hash of another file' in process.err
    failure.unlink()
    _assert_ran(ready.run())
    assert ready.installations() == ['one==2', 'one==2']
    assert (ready.venv / 'kept').exists()


def test_failed_set_up_shows_the_end_of_its_log_and_is_made_anew(fresh):
    failure = pathlib.Path(f'{fresh.calls}.fail')
    failure.touch()
    process = fresh.run()
    assert process.returncode == 1 and process.out == ''
    assert 'a hash of another file' in process.err
    assert process.err.rstrip().endswith(str(fresh.venv / 'setup.log'))
    failure.unlink()
    fresh.installations()
    _assert_made_anew(fresh, fresh.run(), fresh.venv / 'half_written')


def test_moved_checkout_is_made_anew(ready):
    moved = ready.root.parent / 'moved' / 'check out'
    moved.parent.mkdir()
    ready.root.rename(moved)
    _assert_made_anew(ready, ready.run(moved / 'bin' / 'train'), moved / '.venv' / 'kept')


@pytest.mark.parametrize('interpreter', ['gone', 'broken', 'of another version'])
def test_environment_without_its_interpreter_is_made_anew(ready, interpreter):
    python = ready.venv / 'bin' / 'python'
    python.unlink()
    if interpreter == 'gone':
        python.symlink_to('/nonexistent/python3.11')
    else:
        python.write_text(_BROKEN if interpreter == 'broken' else _TOO_NEW)
        python.chmod(0o755)
    _assert_made_anew(ready, ready.run(), ready.venv / 'kept')


@pytest.mark.parametrize('part', ['pyvenv.cfg', 'lib'])
def test_environment_that_lacks_a_part_is_made_anew(ready, part):
    # Without pyvenv.cfg, .venv/bin/python would install into the Python that it is a link to.
    (ready.venv / 'tf_dpdiff_stamp').unlink()
    (ready.venv / part).rename(ready.venv / 'gone')
    _assert_made_anew(ready, ready.run(), ready.venv / 'kept')


def test_python_that_cannot_run_is_passed_over(fresh):
    for name in ('python3.13', 'python3.12', 'python3.11'):
        fresh.add_program(name, '#!/bin/bash\necho "pyenv: command not found" >&2\nexit 127\n')
    process = fresh.run()
    _assert_ran(process)
    assert 'pyenv' not in process.err


def test_python_is_looked_for_on_the_whole_path(fresh):
    shims = fresh.root.parent / 'shims'
    shims.mkdir()
    (shims / 'python3').write_text(_BROKEN)
    (shims / 'python3').chmod(0o755)
    _assert_ran(fresh.run(path=f'{shims}:'))


@pytest.mark.parametrize('python', ['none', 'broken', 'too new', 'too old'])
def test_no_right_python_is_one_line(tmp_path, python):
    checkout = _Checkout(tmp_path, uv=False, python=False)
    if python == 'broken':
        checkout.add_program('python3', _BROKEN)
    elif python == 'too new':
        checkout.add_program('python3', _TOO_NEW)
    elif python == 'too old':
        checkout.add_program('python3', _TOO_OLD)
    process = checkout.run()
    assert process.returncode == 1 and process.out == ''
    assert process.err.startswith('tf_dpdiff: needs Python 3.11, 3.12 or 3.13')
    assert len(process.err.splitlines()) == 1
    assert not checkout.venv.exists()


def test_lock_is_installed_with_hashes_without_resolution_and_without_a_compiler(fresh):
    fresh.lock.write_text('one==1\nsetuptools==80 \\\n    --hash=sha256:abc\n    # via one\ntwo==2\n')
    _assert_ran(fresh.run())
    calls = fresh.calls.read_text()
    options = [line.split()[1:] for line in calls.splitlines() if line.startswith('options')]
    assert len(options) == 2
    for words in options:
        assert {'--require-hashes', '--no-deps', '--no-build-isolation'} <= {*words}
        assert '--only-binary :all: --no-binary promise --no-binary jsonpath-rw -r' in ' '.join(words)
    # What those two are built with comes first, alone and with its hash.
    first = (fresh.venv / 'setuptools.lock').read_text()
    assert first == 'setuptools==80 \\\n    --hash=sha256:abc\n    # via one\n' and calls.count(first) == 2


_UV_SAYS = """Resolved 109 packages in 1ms
Downloading scipy (33.7MiB)
Downloading tensorflow (546.1MiB)
 Downloaded scipy
 Downloaded tensorflow
Prepared 108 packages in 1ms
"""


def test_progress_is_told_and_what_the_installer_says_is_kept(fresh):
    pathlib.Path(f'{fresh.calls}.says').write_text(_UV_SAYS)
    process = fresh.run()
    _assert_ran(process)
    assert process.err.splitlines()[1:-1] == ['tf_dpdiff: 0 of 2 large packages: tensorflow (546.1MiB)']
    assert _UV_SAYS in (fresh.venv / 'setup.log').read_text()


def test_progress_is_one_rewritten_line_on_a_terminal(fresh):
    pathlib.Path(f'{fresh.calls}.says').write_text(_UV_SAYS)
    process, said = _run_on_terminal(fresh)
    assert process.returncode == 0, said
    making, progress, *_ = said.split('\r\n')
    assert making.startswith('tf_dpdiff: making .venv')
    shown = progress.split('\r\x1b[K')
    assert shown[1:-1] == [
        f'tf_dpdiff: {text}'
        for text in (
            '0 of 1 large packages: scipy (33.7MiB)',
            '0 of 2 large packages: tensorflow (546.1MiB)',
            '1 of 2 large packages: tensorflow (546.1MiB)',
            '2 of 2 large packages: tensorflow (546.1MiB)',
            '2 of 2 large packages: all fetched, now written to .venv',
        )
    ]
    assert shown[-1].startswith('tf_dpdiff: .venv is ready')


def _run_on_terminal(checkout):
    """Returns the process of bin/train whose standard error is a terminal, and what it said there."""
    outside, inside = os.openpty()
    environment = {'PATH': str(checkout.path), 'CALLS': str(checkout.calls), 'MAKES_ENVIRONMENTS': sys.executable}
    process = subprocess.run(
        [str(checkout.root / 'bin' / 'train')],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=inside,
        timeout=120,
        check=False,
    )
    os.close(inside)
    said = os.read(outside, 1 << 16).decode()
    os.close(outside)
    return process, said


@pytest.fixture
def pauses(fresh):
    """Returns a file with the pauses that were asked for, none of which is made."""
    (fresh.path / 'sleep').unlink()
    fresh.add_program('sleep', '#!/bin/bash\nif [[ $1 != 0 ]]; then echo "$1" >>"$CALLS.pauses"; fi\n')
    path = pathlib.Path(f'{fresh.calls}.pauses')
    path.touch()
    return path


def test_set_up_goes_on_after_a_cut_connection(fresh, pauses):
    pathlib.Path(f'{fresh.calls}.says').write_text(_UV_SAYS)
    pathlib.Path(f'{fresh.calls}.cut').touch()
    process = fresh.run()
    _assert_ran(process)
    assert 'tf_dpdiff: the connection was cut; going on in 5 s\n' in process.err
    assert fresh.installations() == ['one==1'] * 2 and pauses.read_text() == '5\n'
    assert fresh.run().err == ''


def test_connection_that_stays_cut_ends_after_some_attempts_and_a_second_call_goes_on(fresh, pauses):
    pathlib.Path(f'{fresh.calls}.says').write_text(_UV_SAYS)
    offline = pathlib.Path(f'{fresh.calls}.offline')
    offline.touch()
    process = fresh.run()
    assert process.returncode == 1 and process.out == ''
    assert process.err.splitlines()[-1].startswith('tf_dpdiff: no connection to what .venv is made from')
    assert pauses.read_text().split() == ['5', '15', '30', '60']
    assert len(fresh.installations()) == 5
    offline.unlink()
    _assert_ran(fresh.run())


def test_offline_is_one_line_at_once(fresh, pauses):
    pathlib.Path(f'{fresh.calls}.offline').touch()
    process = fresh.run()
    assert process.returncode == 1 and process.out == ''
    making, error = process.err.splitlines()
    assert making.startswith('tf_dpdiff: making .venv')
    assert error.startswith('tf_dpdiff: no connection to what .venv is made from')
    assert pauses.read_text() == '' and fresh.installations() == ['one==1']


def test_what_is_no_matter_of_the_connection_is_not_tried_again(fresh, pauses):
    pathlib.Path(f'{fresh.calls}.says').write_text(_UV_SAYS)
    pathlib.Path(f'{fresh.calls}.fail').touch()
    assert fresh.run().returncode == 1
    assert pauses.read_text() == '' and fresh.installations() == ['one==1']


def test_file_that_old_pip_takes_for_whole_is_fetched_again_but_not_for_ever(fresh, pauses):
    says = pathlib.Path(f'{fresh.calls}.says')
    says.write_text('  Downloading tensorflow.whl (572.9 MB)\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n')
    failure = pathlib.Path(f'{fresh.calls}.fail')
    failure.touch()
    process = fresh.run()
    assert process.returncode == 1 and 'DO NOT MATCH THE HASHES' in process.err
    assert process.err.rstrip().endswith(str(fresh.venv / 'setup.log'))
    assert pauses.read_text().split() == ['5', '15'] and fresh.installations() == ['one==1'] * 3


def _asked_for(checkout):
    return [line for line in checkout.calls.read_text().splitlines() if line.startswith('asked for')]


def test_newest_python_is_taken(fresh):
    for version in ('3.11', '3.12', '3.13'):
        fresh.add_program(f'python{version}', _passing_for(version))
    _assert_ran(fresh.run())
    assert _asked_for(fresh) == [f'asked for {fresh.path}/python3.13']


@pytest.mark.parametrize('version', ['3.11', '3.12', '3.13'])
def test_version_of_python_can_be_chosen(fresh, version):
    for name in ('3.11', '3.12', '3.13'):
        fresh.add_program(f'python{name}', _passing_for(name))
    fresh.run(TF_DPDIFF_PYTHON=version)
    assert _asked_for(fresh) == [f'asked for {fresh.path}/python{version}']


def test_uv_fetches_a_chosen_version_that_is_not_there(fresh):
    fresh.run(TF_DPDIFF_PYTHON=_OTHER_VERSION)
    assert _asked_for(fresh) == [f'asked for {_OTHER_VERSION}']


def test_chosen_python_that_is_at_hand_changes_nothing(ready):
    (ready.root.parent / 'shim').write_text(f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    (ready.root.parent / 'shim').chmod(0o755)
    for python in (_VERSION, os.path.realpath(sys.executable), str(ready.root.parent / 'shim')):
        process = ready.run(TF_DPDIFF_PYTHON=python)
        _assert_ran(process)
        assert process.err == ''
    assert (ready.venv / 'kept').exists() and ready.installations() == []


def test_environment_of_another_python_than_the_chosen_is_made_anew(ready):
    ready.add_program(f'python{_OTHER_VERSION}', _passing_for(_OTHER_VERSION))
    process = ready.run(TF_DPDIFF_PYTHON=_OTHER_VERSION)
    assert process.err.startswith('tf_dpdiff: making .venv')
    assert _asked_for(ready) == [f'asked for {ready.path}/python{_OTHER_VERSION}']
    assert not (ready.venv / 'kept').exists()


@pytest.mark.parametrize('python', ['3.10', '3.14', '2', 'python3.12', './python3', '3.12.1'])
def test_choice_that_is_no_version_and_no_path_is_refused(ready, python):
    process = ready.run(TF_DPDIFF_PYTHON=python)
    assert process.returncode == 1 and process.out == ''
    assert process.err.startswith(f'tf_dpdiff: TF_DPDIFF_PYTHON={python} must be 3.11, 3.12, 3.13 or the absolute path')
    assert len(process.err.splitlines()) == 1
    assert (ready.venv / 'kept').exists()
    _assert_ran(ready.run())


@pytest.mark.parametrize('text', [None, _BROKEN, _TOO_NEW, _TOO_OLD], ids=['none', 'broken', 'too new', 'too old'])
def test_chosen_path_that_is_no_right_python_is_refused(ready, text):
    python = ready.path / 'chosen'
    if text:
        ready.add_program('chosen', text)
    process = ready.run(TF_DPDIFF_PYTHON=str(python))
    assert process.returncode == 1 and process.out == ''
    assert process.err.startswith(f'tf_dpdiff: TF_DPDIFF_PYTHON={python}: found no such Python')
    assert len(process.err.splitlines()) == 1
    assert (ready.venv / 'kept').exists()


def test_chosen_version_that_is_not_there_is_refused_without_uv(tmp_path):
    checkout = _Checkout(tmp_path, uv=False)
    process = checkout.run(TF_DPDIFF_PYTHON=_OTHER_VERSION)
    assert process.returncode == 1
    assert process.err.startswith(f'tf_dpdiff: TF_DPDIFF_PYTHON={_OTHER_VERSION}: found no such Python')
    assert not checkout.venv.exists()


def test_callers_folder_is_kept(ready, tmp_path):
    process = ready.run(cwd=str(tmp_path))
    _assert_ran(process)
    assert process.out.splitlines()[0] == str(tmp_path)


def test_command_is_found_through_links_and_relative_names(ready, tmp_path):
    (tmp_path / 'link').symlink_to(ready.root / 'bin')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'train').symlink_to('../link/train')
    (tmp_path / 'dp-train').symlink_to(tmp_path / 'elsewhere' / 'train')
    for command in ('./dp-train', 'link/train', str(tmp_path / 'elsewhere' / 'train')):
        process = ready.run(command, cwd=str(tmp_path), CDPATH=str(tmp_path))
        _assert_ran(process)
        assert process.err == ''


def test_nothing_the_caller_has_shadows_the_package(ready, tmp_path):
    (tmp_path / 'tf_dpdiff').mkdir()
    (tmp_path / 'tf_dpdiff' / '__init__.py').write_text('raise ImportError("shadowed")')
    _assert_ran(
        ready.run(cwd=str(tmp_path), PYTHONPATH=str(tmp_path), PYTHONHOME='/nonexistent', VIRTUAL_ENV='/nonexistent')
    )


def test_callers_environment_does_not_reach_the_installer(fresh):
    _assert_ran(fresh.run(PYTHONHOME='/nonexistent', VIRTUAL_ENV='/nonexistent'))
    calls = fresh.calls.read_text()
    assert 'pip install PYTHONHOME= VIRTUAL_ENV=\n' in calls


def test_active_environment_does_not_make_itself(ready):
    (ready.venv / 'tf_dpdiff_partial').touch()
    process = ready.run(path=f'{ready.venv / "bin"}:', VIRTUAL_ENV=str(ready.venv))
    _assert_made_anew(ready, process, ready.venv / 'kept')


@pytest.mark.skipif(not shutil.which('flock'), reason='needs flock')
def test_commands_at_once_set_up_once(fresh):
    processes = [fresh.start(INSTALL_SECONDS='1') for _ in range(3)]
    for process in processes:
        process.out, process.err = process.communicate(timeout=120)
        _assert_ran(process)
    assert fresh.installations() == ['one==1']
    errors = [process.err for process in processes]
    assert sum('making .venv' in error for error in errors) == 1


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ([], ['--numprocesses', '2']),
        (['-m', 'long'], ['-m', 'long']),
        (['tests/a b_test.py'], ['tests/a b_test.py']),
        (
            ['--quick', 'data', '-k', 'a b'],
            ['--numprocesses', '2', '--quick', 'tests/data', 'tf_dpdiff/data', '-k', 'a b'],
        ),
        (['--quick'], ['--numprocesses', '2', '--quick', 'tests/', 'tf_dpdiff/']),
    ],
)
def test_whole_suite_and_a_package_are_shared_by_two_processes_and_other_parts_are_not(ready, arguments, expected):
    (ready.root / 'pytest.py').write_text(_COMMAND)
    process = ready.run(ready.root / 'bin' / 'test', *arguments)
    assert process.returncode == 0, process.err
    assert process.out.splitlines()[3:] == expected


def test_every_command_is_short_and_executable():
    commands = [path for path in _BIN.iterdir() if path.suffix != '.sh']
    assert {path.name for path in commands} >= {*_VERBS, 'test'}
    for path in commands:
        assert os.access(path, os.X_OK)
        assert len(path.read_text().splitlines()) <= 15
