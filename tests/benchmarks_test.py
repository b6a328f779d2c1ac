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


@pytest.mark.long
def test_server_under_load_loses_nothing(tmp_path):
    program = ROOT / 'benchmarks' / 'serving_load.py'
    subprocess.run([sys.executable, '-I', str(program), '--requests', '10', '--concurrency', '1', '16',
                    '--checked', '500', '--output', str(tmp_path / 'measured.json')],
                   check=True)  # yapf: disable
    measured = json.loads((tmp_path / 'measured.json').read_text())
    checked = measured['checked']
    assert [checked[name] for name in ('requests', 'lost', 'repeated', 'wrong')] == [500, 0, 0, 0]
    assert [row['errors'] for rows in measured['batching'].values() for row in rows] == [0] * 4


@pytest.mark.long
def test_strategies_are_measured(tmp_path):
    program = ROOT / 'benchmarks' / 'scaling.py'
    subprocess.run([sys.executable, '-I', str(program), '--output', str(tmp_path / 'measured.json')], check=True)
    measured = json.loads((tmp_path / 'measured.json').read_text())
    assert set(measured['overhead_at_one_replica']) == {'default', 'mirrored', 'multi_worker_mirrored'}
    assert set(measured['weak_scaling']) == {'two devices', 'two processes'}
    assert measured['strong_scaling']['one replica'] == 1.0
