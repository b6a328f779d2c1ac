"""Tests of what each recipe says that it would cost, with its own network."""

import pathlib
import re

import pytest

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import train

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DIGITS = {'audit_digits.gin', 'digits.gin', 'digits_from_mnist.gin', 'mnist8.gin',
          'select_digits.gin'}  # Not the paper's.


def run(*flags):
    """Runs bin/train in this process and returns its exit code."""
    return verbs.call(train, *flags)


def words(table):
    """Returns what a table says, without its lines and breaks."""
    return ' '.join(table.replace('│', ' ').split())


# Facts of the paper's recipes: parameters, views, noise multiplier at epsilon 10.
FACTS = [
    ('mnist.gin', ('4,239,297', '2,097,152,000 views', '60,000 of 28x28x1'), 2.282),
    pytest.param('fashion_mnist.gin', ('4,239,297', '2,097,152,000 views', '60,000 of 28x28x1'), 2.282,
                 marks=pytest.mark.long),
    pytest.param('cifar10.gin', ('80,391,171', '419,430,400 views', '50,000 of 32x32x3'), 2.451,
                 marks=pytest.mark.long),
    pytest.param('camelyon.gin', ('80,385,027', '419,430,400 views', '302,436 of 32x32x3'), 0.763,
                 marks=pytest.mark.long),
    pytest.param('imagenet32.gin', ('81,151,491', '204,800,000', '1,281,167 of 32x32x3'), None,
                 marks=pytest.mark.long),
    ('mnist_cpu.gin', ('263,729', '61,440 views'), None),
    ('cifar10_cpu.gin', ('264,307', '61,440 views'), None),
    ('imagenet32_cpu.gin', ('327,', '64,000', '1000 classes'), None),
]  # yapf: disable


@pytest.mark.parametrize('name, facts, noise_multiplier', FACTS)
def test_dry_run_says_what_a_recipe_costs_before_its_data_are_there(tmp_path, monkeypatch, capsys, name, facts,
                                                                    noise_multiplier):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'nothing'))
    monkeypatch.chdir(tmp_path)
    assert run(f'--gin_file=gin/{name}', '--dry_run', f'--workdir={tmp_path / "run"}') == command.DONE
    said = words(capsys.readouterr().out)
    for fact in (*facts, 'published sizes', 'memory', 'augmentation'):
        assert fact in said, fact
    if noise_multiplier:
        found = float(re.search(r'noise multiplier ([\d.]+)', said.split('what would be done')[1]).group(1))
        assert found == pytest.approx(noise_multiplier, rel=5e-3)
    assert not (tmp_path / 'run').exists()


def test_every_run_file_is_tried():
    tried = {param.values[0] if hasattr(param, 'values') else param[0] for param in FACTS}
    assert tried | DIGITS == {path.name for path in (ROOT / 'gin').glob('*.gin')}
