"""Flags of `bin/train --dry_run` that say for which devices a run is planned."""

from tf_dpdiff.cli import command
from tf_dpdiff.training import planner

_FLAGS = (
    ('devices', int, 'N', 'GPUs, or replicas of a TPU (default: 1)'),
    ('device_memory_gib', float, 'G', 'memory of each device'),
    (
        'views_per_second',
        float,
        'R',
        'measured, of one device in private training: expected batch x views per unit x '
        'steps a second / devices, with the steps a second of the progress bar',
    ),
    ('public_views_per_second', float, 'R', 'the same in pre-training and warm start (default: as private training)'),
    (
        'device_tflops',
        float,
        'T',
        'peak of a device for the compute type, as its maker says: estimates the rate where none is measured',
    ),
    ('utilization', float, 'U', f'share of that peak that is assumed (default: {planner.DEFAULT_UTILIZATION})'),
    (
        'scaling_efficiency',
        float,
        'E',
        'share of the rate that several devices keep, besides what is computed: uneven '
        'shards, and the all-reduce with --network_gbps (default: 1)',
    ),
    ('network_gbps', float, 'B', 'gigabits a second that each device sends in the all-reduce'),
    ('price_per_device_hour', float, 'P', 'in any currency'),
)


def add(parser: command.Parser) -> None:
    """Adds the flags."""
    group = parser.add_argument_group('planning, with --dry_run', 'hours, cost and memory of the run on given devices')
    for name, kind, letter, text in _FLAGS:
        group.add_argument(f'--{name}', type=kind, metavar=letter, help=text)


def read(flags) -> planner.Hardware | None:
    """Returns the devices that flags describe, or None where no flag is given.

    Raises:
      command.UsageError: if flags are given without --dry_run, out of their range, or not together; names them.
    """
    given = {name: getattr(flags, name) for name, *_ in _FLAGS if getattr(flags, name) is not None}
    if not given:
        return None
    if not flags.dry_run:
        raise command.UsageError(
            f'--{next(iter(given))} plans a run and goes with --dry_run: a run itself computes on what --strategy says.'
        )
    try:
        return planner.Hardware(**given)
    except ValueError as error:
        raise command.UsageError(f'--{error}') from error


def check(hardware: planner.Hardware | None, *, has_private_stage: bool, has_public_stage: bool) -> None:
    """Refuses a rate for a kind of stage that the run has not.

    Raises:
      command.UsageError: names the flag and its value.
    """
    if hardware and hardware.public_views_per_second is not None and not (has_private_stage and has_public_stage):
        cure = 'drop it' if has_private_stage else 'give its rate as --views_per_second alone'
        raise command.UsageError(
            f'--public_views_per_second={hardware.public_views_per_second:g} is for a run with '
            f'both public and private stages, which this is not: {cure}.'
        )
