"""The environments that peers' programs run in: one a requirements file of peers/, made where they are missing."""

import json
import pathlib
import subprocess
import sys

from benchmarks import measuring

FOLDER = measuring.ROOT / '.environments'
_PEERS = measuring.ROOT / 'benchmarks' / 'peers'
_MADE_OF = 'made_of.txt'


def make(name, folder=FOLDER):
    """Returns the Python of an environment, which is made first where it is missing or has other requirements.

    Args:
      name: Of a file NAME.txt in peers/.
      folder: Below which environments are.

    Raises:
      CaseError: if it can't be made, for instance without a network.
    """
    place, requirements = pathlib.Path(folder) / name, _PEERS / f'{name}.txt'
    python = place / 'bin' / 'python'
    if is_made(name, folder):
        return python
    print(f'making {place} of {requirements.name} ...', file=sys.stderr, flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, '-I', '-m', 'venv', '--clear', str(place)],
        [
            str(python),
            '-I',
            '-m',
            'pip',
            'install',
            '--quiet',
            '--disable-pip-version-check',
            '--requirement',
            str(requirements),
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise measuring.CaseError(f'no environment {name!r}: {said[-1][:200] if said else done.returncode}')
    (place / _MADE_OF).write_text(requirements.read_text())
    return python


def is_made(name, folder=FOLDER):
    """Tells if an environment is there, of the requirements of today."""
    made_of = pathlib.Path(folder) / name / _MADE_OF
    return made_of.exists() and made_of.read_text() == (_PEERS / f'{name}.txt').read_text()


def versions(python):
    """Returns the versions of what is installed beside a Python, by name, and its own."""
    program = (
        'import importlib.metadata as m, json, platform; print(json.dumps({"python": platform.python_version(), '
        '**{d.metadata["Name"]: d.version for d in m.distributions()}}))'
    )
    done = subprocess.run([str(python), '-I', '-c', program], capture_output=True, text=True, check=True)
    return dict(sorted(json.loads(done.stdout).items()))
