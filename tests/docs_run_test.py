"""Runs what the pages tell a person to type: each page in a checkout of its own, its blocks in their order."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

from PIL import Image
import pytest

from tests import pages
import tf_dpdiff

RUNNABLE = ('sh', 'python')
# Commands that are not run, and why not.
LEFT_OUT = {
    r'\b(sbatch|kubectl|docker)\b': 'wants a cluster, or Docker',
    r'\bpip install\b': 'changes the environment',
    r'^bin/test$': 'runs the tests that run this',
    r'gin/(mnist8|digits_from_mnist)\.gin': 'MNIST is not in the repository',
    r'gin/cifar10\.gin(?!.*--dry_run)': 'wants eight GPUs, and CIFAR-10',
}
# Commands that are changed, and why: pattern, what takes its place, reason.
CHANGED = {
    r'(?<=^bin/init scans/ --output=mine\.gin --epsilon=10 )--hours=1\b': ('--hours=0.05', 'an hour is long'),
    r'(?<=--num_images=)100000\b': ('10000', 'takes as long as all others together'),
}
# Commands whose exit code is 1 where all is well, and why.
ENDS_WITH_1 = {}
# Commands that go on until they are stopped, and the port by which they are known to be there.
SERVERS = {'bin/serve': ('--rest_port', 8501), 'bin/tensorboard': ('--port', 6006)}
START_SECS, MOST_SECS = 180.0, 7200.0

_WORKER = """
import json, sys, traceback
names = {'__name__': '__main__'}
for line in sys.stdin:
    try:
        exec(compile(json.loads(line), 'block', 'exec'), names)
        said = ''
    except BaseException:
        said = traceback.format_exc()
    sys.stdout.flush()
    print('DONE ' + json.dumps(said), file=sys.stderr, flush=True)
"""
# Errors of a server end curl, which waits for one that is about to be ready.
_BEFORE = """set -euo pipefail
curl() { command curl --fail-with-body --silent --show-error --retry 30 --retry-delay 1 --retry-all-errors "$@"; }
"""

PAGES = pages.with_blocks(*RUNNABLE)


def all_commands():
    return [command for path in PAGES for block in pages.blocks(path, 'sh') for command in block.commands()]


@pytest.mark.parametrize('pattern', [*LEFT_OUT, *CHANGED, *ENDS_WITH_1])
def test_every_exception_is_of_a_command_that_is_on_a_page(pattern):
    assert any(re.search(pattern, command) for command in all_commands())


def checkout(folder):
    """Copies the files of the checkout as they are now, with an environment whose files are those of ours.

    Returns:
      The root. An environment is known by its root, its lock and its Python: see bin/setup.sh.
    """
    listed = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z'],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split('\0')):
        if (pages.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(pages.ROOT / name, folder / name)
    shutil.copytree(pages.ROOT / '.venv', folder / '.venv', symlinks=True, copy_function=os.link)
    (site,) = (folder / '.venv' / 'lib').glob('python*/site-packages')
    _, *stamp = (pages.ROOT / '.venv' / 'tf_dpdiff_stamp').read_text().splitlines()
    for path, lines in ((site / 'tf_dpdiff.pth', [folder]), (folder / '.venv' / 'tf_dpdiff_stamp', [folder, *stamp])):
        path.unlink()  # A link to ours.
        path.write_text(''.join(f'{line}\n' for line in lines))
    return folder


def digits_in_folders(folder):
    """Writes the digits as a person's own images: class folders of PNG files."""
    digits = tf_dpdiff.digits().train
    for number, (image, label) in enumerate(zip(digits.images_uint8, digits.labels)):
        path = folder / str(label) / f'{number:04d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)


@pytest.fixture(name='workplace', scope='module')
def fixture_workplace():
    """A folder on the file system of .venv, where its files can be linked to."""
    folder = pages.ROOT / 'runs' / f'docs_test-{os.getpid()}'
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(name='digits_run', scope='module')
def fixture_digits_run(workplace):
    """What most pages begin with: a run of the digits."""
    root = checkout(workplace / 'prepared')
    run_shell('bin/train --gin_file=gin/digits.gin --workdir=runs/digits', root)
    yield root / 'runs' / 'digits'


def run_shell(script, root):
    done = subprocess.run(
        ['bash', '-c', _BEFORE + script],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MOST_SECS,
        check=False,
    )
    assert done.returncode == 0, f'{script}\n\nended with exit code {done.returncode}:\n{done.stdout[-4000:]}'


def as_it_is_run(command):
    """Returns a command as it is run here; None: it is not."""
    if any(re.search(pattern, command) for pattern in LEFT_OUT):
        return None
    for pattern, (instead, _) in CHANGED.items():
        command = re.sub(pattern, instead, command)
    ends_with_1 = any(re.search(pattern, command) for pattern in ENDS_WITH_1)
    return f'{command} && exit 9 || [[ $? == 1 ]]' if ends_with_1 else command


class Servers:
    """The commands of a page that go on until they are stopped."""

    def __init__(self, root):
        self._root = root
        self._started = []

    def start(self, command):
        """Starts a server, and waits until it listens."""
        flag, port = SERVERS[command.split()[0]]
        port = int((re.findall(rf'{flag}=(\d+)', command) or [port])[0])
        log = self._root / f'server-{port}.log'
        with log.open('w') as out:
            process = subprocess.Popen(
                ['bash', '-c', f'exec {command}'],
                cwd=self._root,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        for _ in range(int(START_SECS)):
            time.sleep(1.0)
            assert process.poll() is None, f'{command}\n\nended:\n{log.read_text()[-4000:]}'
            with socket.socket() as client:
                if not client.connect_ex(('127.0.0.1', port)):
                    return
        pytest.fail(f'{command} does not listen to port {port}:\n{log.read_text()[-4000:]}')

    def stop(self):
        """Stops all, and what they have started."""
        for process in self._started:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60.0)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Python:
    """An interpreter in which the blocks of a page run one after the other."""

    def __init__(self, root):
        self._process = subprocess.Popen(
            [root / '.venv' / 'bin' / 'python', '-I', '-c', _WORKER],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, text):
        """Runs a block."""
        self._process.stdin.write(json.dumps(text) + '\n')
        self._process.stdin.flush()
        said = []
        for line in self._process.stderr:
            if line.startswith('DONE '):
                error = json.loads(line.removeprefix('DONE '))
                assert not error, f'{text}\n\n{error}'
                return
            said.append(line)
        pytest.fail(f'{text}\n\nPython ended:\n{"".join(said)[-4000:]}')

    def stop(self):
        """Ends it."""
        self._process.communicate()


def run_page(path, root):
    """Runs the blocks of a page."""
    servers, python = Servers(root), Python(root)
    try:
        for block in pages.blocks(path, *RUNNABLE):
            if block.language == 'python':
                python.run(block.text)
                continue
            commands = [run for run in map(as_it_is_run, block.commands()) if run]
            if any(command.split()[0] in SERVERS for command in commands):
                (command,) = commands  # A server stands in a block of its own.
                servers.start(command)
            elif commands:
                run_shell('\n'.join(commands), root)
    finally:
        python.stop()
        servers.stop()


@pytest.mark.long(in_share=False)
@pytest.mark.parametrize('path', PAGES, ids=pages.name_of)
def test_commands_and_code_run_as_they_are_written(path, workplace, digits_run):
    root = checkout(pathlib.Path(workplace, path.stem))
    shutil.copytree(digits_run, root / 'runs' / 'digits')
    digits_in_folders(root / 'scans')
    run_page(path, root)
    shutil.rmtree(root)


@pytest.mark.skipif(sys.platform == 'darwin', reason='its /bin/bash is older')
@pytest.mark.parametrize('text, message', [('false', 'exit code 1'), ('bin/nothing', 'exit code 127')])
def test_command_that_fails_is_noticed(tmp_path, text, message):
    with pytest.raises(AssertionError, match=message):
        run_shell(text, tmp_path)


def test_code_that_fails_is_noticed_and_names_are_kept_from_block_to_block(tmp_path):
    (tmp_path / '.venv' / 'bin').mkdir(parents=True)
    (tmp_path / '.venv' / 'bin' / 'python').symlink_to(sys.executable)
    python = Python(tmp_path)
    python.run('x = 1\nprint(x)')
    python.run('assert x == 1')
    with pytest.raises(AssertionError, match='ZeroDivisionError'):
        python.run('x / 0')
    python.stop()


def test_only_what_has_an_exception_is_changed():
    assert as_it_is_run('sbatch examples/slurm/train.sbatch') is None
    assert as_it_is_run('bin/init scans/ --output=mine.gin --epsilon=10 --hours=1').endswith('--hours=0.05')
    command = 'bin/train --gin_file=gin/digits.gin --workdir=runs/digits'
    assert as_it_is_run(command) == command
