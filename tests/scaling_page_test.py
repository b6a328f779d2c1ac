"""Tests that the page on hours and cost shows what the planner says."""

import pathlib
import re
import shlex

import pytest

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import train
from tf_dpdiff.training import planner

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / 'examples' / 'scaling' / 'README.md').read_text()
SHOWN = re.findall(r'```sh\nbin/train (.*?)```\n\n```\n(.*?)```', PAGE, re.S)
COMMANDS = [shlex.split(flags.replace('\\\n', ' ')) for flags, _ in SHOWN]
MACHINES = {'8 x A100 80 GB': (8, 1, 128), '8 x H100 SXM 80 GB': (8, 1, 128), 'TPU v4-32, 16 chips': (16, 1, 64)}


def words(text):
    return ' '.join(text.replace('│', ' ').split())


def test_commands_use_flags_that_exist_and_bind_what_fits(monkeypatch):
    seen = []
    monkeypatch.setattr(command, 'run', lambda parser, unused_main, argv: seen.append(parser.parse_args(argv)))
    assert len(COMMANDS) == 3
    for flags in COMMANDS:
        with pytest.raises(SystemExit):
            train.run(flags)
    assert all(flags.dry_run and flags.devices > 1 for flags in seen)


@pytest.mark.long
@pytest.mark.parametrize('number', range(len(COMMANDS)))
def test_commands_print_what_the_page_shows(number, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'nothing'))
    assert verbs.call(train, *COMMANDS[number]) == command.DONE
    printed = words(capsys.readouterr().out)
    for line in SHOWN[number][1].splitlines():
        assert words(line) in printed, line


def work_of_page(devices, units_per_chunk, images_per_chunk):
    """Returns the two stages of the paper's CIFAR-10."""
    largest = planner.largest_sampled_share(50000, 16384, devices, units_per_chunk)
    images = planner.largest_equal_share(1024, devices, images_per_chunk)
    return (
        planner.StageWork('pre-training', 200000, 1024, 1, images, 81151491),
        planner.StageWork('private steps', 200, 16384, 128, largest, 80391171),
    )


def gigaflops():
    """Returns the GFLOP of one view that the page names."""
    return float(re.search(r'([\d.]+) GFLOP a view', PAGE).group(1))


@pytest.mark.parametrize('machine', MACHINES)
def test_table_by_utilization_is_that_of_the_planner(machine):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f'| {machine} |')]
    _, _, peak, *cells, _ = [cell.strip() for cell in row.split('|')]
    works = work_of_page(*MACHINES[machine])
    assert len(cells) == 3
    for utilization, cell in zip((0.15, 0.3, 0.45), cells):
        hardware = planner.Hardware(devices=MACHINES[machine][0], device_tflops=float(peak), utilization=utilization)
        rate = planner.rate(hardware, gigaflops() * 1e9, is_public=False)
        hours = [work.num_steps * planner.step_seconds(work, hardware, rate) / 3600.0 for work in works]
        assert cell == f'{hours[0]:.1f} + {hours[1]:.1f} h, {sum(hours) * hardware.devices:.0f}'


def test_shown_hours_shares_and_reductions_are_those_of_the_planner():
    public, private = work_of_page(8, 1, 128)
    hardware = planner.Hardware(devices=8, device_tflops=312.0, network_gbps=100.0, price_per_device_hour=2.0)
    rate = planner.rate(hardware, gigaflops() * 1e9, is_public=False)
    for work, shown in zip((public, private), SHOWN[:2]):
        hours = work.num_steps * planner.step_seconds(work, hardware, rate) / 3600.0
        assert f'{work.views:,} views in {hours:.1f} hours' in words(shown[1])
        cost = float(re.search(r'cost ([\d.]+) at 2 each', shown[1]).group(1))
        assert cost == pytest.approx(hours * 8 * 2.0, rel=1e-3)
        sent = planner.ring_bytes(work.num_reduced, 8)
        assert f'{4 * work.num_reduced / 2**20:.2f} MiB a step, {sent / 2**20:.2f} MiB sent' in shown[1]
    assert f'largest of 8 has {private.largest_share:,.1f}' in shown[1]
    imbalances = [work_of_page(*MACHINES[name])[1].imbalance(MACHINES[name][0]) for name in MACHINES]
    assert f'+{imbalances[0] - 1.0:.1%} on 8 devices, +{imbalances[2] - 1.0:.1%} on 16' in PAGE
    small = [planner.largest_sampled_share(1437, 700, 4, chunk) * 4 / 700 - 1.0 for chunk in (1, 16)]
    assert f'about +{small[0]:.0%},\n  +{small[1]:.0%} in chunks of 16' in PAGE
