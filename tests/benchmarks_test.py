"""Test that the benchmarks run."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.long
def test_private_step_of_the_large_network_is_measured(tmp_path):
    program = ROOT / 'benchmarks' / 'private_step_memory.py'
    subprocess.run([sys.executable, '-I',
                    str(program), '--units', '1', '--output',
                    str(tmp_path / 'measured.json')],
                   check=True)
    assert '80391171' in json.dumps(json.loads((tmp_path / 'measured.json').read_text()))
