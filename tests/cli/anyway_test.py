"""Tests that a run that would only buy noise is refused before it leaves or costs anything, and --anyway lets it in."""

import numpy as np
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import train
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.runs import budget as budget_file
from tf_dpdiff.training import interruption
from tf_dpdiff.training import loop


@pytest.fixture(name='flags')
def fixture_flags(tmp_path):
    """The flags of a run that cannot work: ten owners, one a class."""
    folder, generator = tmp_path / 'scans', np.random.default_rng(0)
    folder.mkdir()
    for part in ('train', 'held_out'):
        np.save(folder / f'{part}_images.npy', generator.integers(0, 256, [40, 8, 8, 1]).astype(np.uint8))
        np.save(folder / f'{part}_labels.npy', np.arange(40) % 10)
    np.save(folder / 'train_owners.npy', np.arange(40) % 10)
    budget_file.create(tmp_path / 'budget.json', budget_lib.Budget(50.0, 1e-4))
    return [
        '--gin_file=tests/cli/tiny_digits.gin',
        '--gin_param=DATA = @npy_images()',
        f"--gin_param=npy_images.path = '{folder}'",
        '--gin_param=EXPECTED_BATCH_SIZE = 5',
        '--gin_param=GenerateConfig.num_images = 10',
        f'--budget_file={tmp_path / "budget.json"}',
        f'--workdir={tmp_path / "run"}',
    ]


def test_run_that_cannot_work_costs_nothing_and_leaves_nothing(flags, tmp_path, capsys):
    before = (tmp_path / 'budget.json').read_bytes()
    for _ in range(2):  # What a refused run left would let the second one in.
        assert verbs.call(train, *flags) == command.WRONG_USE
        said = capsys.readouterr().err
        assert 'This cannot work' in said and '--anyway' in said
    assert (tmp_path / 'budget.json').read_bytes() == before
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['.lock']


def test_run_that_was_begun_anyway_goes_on_without_saying_so_again(flags, tmp_path, monkeypatch, capsys):
    def stop_at_once(trainer, stop):
        raise interruption.Interrupted('stopped by a test')

    monkeypatch.setattr(loop.Trainer, 'run', stop_at_once)
    assert verbs.call(train, *flags, '--anyway') == command.FAILED
    assert (tmp_path / 'run' / 'checkpoints').is_dir()
    assert verbs.call(train, *flags) == command.FAILED  # Stopped again, and not refused.
    assert 'cannot work' not in capsys.readouterr().err
    assert len(budget_file.read(tmp_path / 'budget.json').entries) == 1
