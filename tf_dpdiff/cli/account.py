"""bin/account: plans a run (noise, steps, batch or epsilon) and keeps the privacy budget of a data set."""

import argparse
from collections.abc import Iterable
import json
import math
import pathlib
import sys

from rich import console as rich_console

from tf_dpdiff import progress
from tf_dpdiff.cli import account_tables
from tf_dpdiff.cli import command
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import cautions
from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import settings as settings_lib
from tf_dpdiff.runs import account as account_lib
from tf_dpdiff.runs import budget as budget_file

# What a run is planned from; name of a flag: its type and its help.
_SETTINGS = {
    'delta': (float, 'delta, in (0, 1)'),
    'epsilon': (float, 'what the run may cost at most'),
    'noise_multiplier': (float, "noise's standard deviation / sensitivity"),
    'num_steps': (int, 'private steps'),
    'num_units': (int, "the private data set's size"),
    'expected_batch_size': (int, 'expected units per step; needs --num_units'),
    'sampling_probability': (float, 'of each unit in each step; in place of --expected_batch_size'),
    'truncated_batch_size': (int, 'the most units of a step, of which the rest is left out; needs --num_units'),
    'warm_start_noise_multiplier': (float, 'a release for a warm start, composed with the steps'),
    'warm_start_num_rounds': (int, 'rounds of that release, each with this noise (default: 1)'),
}

_MOST = 10**12  # Of steps, units and rounds.

_EPILOG = """
plan a run:            give --delta and all but one of --noise_multiplier, --num_steps, --epsilon and the batch
                       (--num_units with --expected_batch_size, or --sampling_probability); the missing one is computed
make a budget file:    --budget_file=FILE --create --epsilon=10 --delta=1e-5
look into it:          --budget_file=FILE
charge a finished run: --budget_file=FILE --workdir=RUN   (bin/train --budget_file=FILE does so by itself)

What a run has released is put on record even where it does not fit: the file is then overdrawn, lets no further run in,
and the exit code is 1 whenever it is shown.
"""


def main(flags) -> int:
    """Runs the verb."""
    planning = [f'--{name}' for name in _SETTINGS if getattr(flags, name) is not None]
    if flags.budget_file is None:
        if flags.create or flags.workdir:
            raise command.UsageError(f'{"--create" if flags.create else "--workdir"} needs a --budget_file.')
        return _plan(flags)
    if flags.create:
        if flags.workdir or set(planning) != {'--epsilon', '--delta'}:
            raise command.UsageError(
                '--create takes --epsilon and --delta, the total that all runs may cost, and no other setting.'
            )
        budget = budget_lib.Budget(total_epsilon=flags.epsilon, delta=flags.delta)
        budget_file.create(flags.budget_file, budget)
        # At most all units take part in a step, so nothing is known of how many there are.
        return _show_budget(flags, budget, cautions.of_delta_without_num_units(flags.delta, 1.0))
    if planning:
        raise command.UsageError(
            f'--budget_file does not go with {planning[0]}: plan a run without --budget_file, or '
            'give --create to make a new file.'
        )
    if flags.workdir:
        command.quieten_libraries()
        record, num_units = account_lib.finished_run(pathlib.Path(flags.workdir).expanduser())
        with progress.working('account', 'computing what all runs cost together'):
            budget = budget_file.update(flags.budget_file, record)
        return _show_budget(flags, budget, cautions.of_delta(budget.delta, num_units))
    return _show_budget(flags, budget_file.read(flags.budget_file))


def _plan(flags) -> int:
    if flags.plot and not flags.plot.lower().endswith('.png'):
        raise command.UsageError(f'--plot={flags.plot}: the name must end in .png.')
    with progress.working('account', 'computing'):
        settings, solved = _complete_settings(flags)
        if flags.plot:
            account_lib.draw_run(settings, pathlib.Path(flags.plot).expanduser())
        show = account_lib.run_fields if flags.json else account_tables.run_tables
        shown = show(settings, solved)
    _print_cautions(settings.cautions())
    if flags.json:
        print(json.dumps(shown, indent=2))
        return command.DONE
    for table in shown:
        rich_console.Console().print(table)
    if flags.plot:
        print(f'The plot is in {flags.plot}')
    return command.DONE


def _complete_settings(flags) -> tuple[settings_lib.RunSettings, str | None]:
    """Completes the settings that were given and checks the cost once more.

    Returns:
      The settings, and the name of what was computed; None where all were given.

    Raises:
      command.UsageError: if a setting is impossible, or none or more than one is missing.
      accounting.BudgetError: if the target cannot be met.
    """
    _check_ranges(flags)
    probability = flags.sampling_probability
    if flags.expected_batch_size is not None:
        probability = flags.expected_batch_size / flags.num_units
    given = {
        'noise_multiplier': flags.noise_multiplier,
        'num_steps': flags.num_steps,
        'batch': probability,
        'epsilon': flags.epsilon,
    }
    missing = [name for name, value in given.items() if value is None]
    if flags.delta is None or len(missing) > 1:
        raise command.UsageError(_explain_missing(flags, missing))
    settings = settings_lib.RunSettings(
        delta=flags.delta,
        noise_multiplier=flags.noise_multiplier,
        num_steps=flags.num_steps,
        sampling_probability=probability,
        target_epsilon=flags.epsilon,
        num_units=flags.num_units,
        warm_start_noise_multiplier=flags.warm_start_noise_multiplier,
        warm_start_num_rounds=flags.warm_start_num_rounds or 1,
        truncated_batch_size=flags.truncated_batch_size,
    )
    if missing and flags.epsilon is not None:
        settings = settings_lib.complete(settings)
    if flags.epsilon is not None and settings.epsilon() > flags.epsilon:
        raise accounting.BudgetError(
            f'these settings cost epsilon={rounding.round_up(settings.epsilon())} at '
            f'delta={rounding.exact(flags.delta)}, more than --epsilon={rounding.exact(flags.epsilon)}; leave one '
            'of the four out to have it computed.'
        )
    return settings, missing[0] if missing else None


def _check_ranges(flags) -> None:
    for name, (kind, _) in _SETTINGS.items():
        value = getattr(flags, name)
        if value is None:
            continue
        if name in ('delta', 'sampling_probability'):
            if not 0.0 < value < 1.0 and (name == 'delta' or value != 1.0):
                raise command.UsageError(f'--{name} must be in (0, 1{")" if name == "delta" else "]"}, got {value}.')
        elif not (value >= 1 if kind is int else 0.0 < value < math.inf):
            raise command.UsageError(
                f'--{name} must be {"at least 1" if kind is int else "finite and > 0"}, got {value}.'
            )
        elif kind is int and value > _MOST:
            raise command.UsageError(f'--{name} must be at most {_MOST:,}, got {value:,}.')
        elif name.endswith('noise_multiplier') and value < epsilon_bounds.SMALLEST_NOISE_MULTIPLIER:
            raise command.UsageError(
                f'--{name} must be at least {epsilon_bounds.SMALLEST_NOISE_MULTIPLIER}, got '
                f'{value}: less noise hides nothing, and no epsilon is known for it.'
            )
    if flags.warm_start_num_rounds is not None and flags.warm_start_noise_multiplier is None:
        raise command.UsageError('--warm_start_num_rounds needs --warm_start_noise_multiplier, the noise of each.')
    if flags.truncated_batch_size is not None and flags.num_units is None:
        raise command.UsageError("--truncated_batch_size needs --num_units, the private data set's size.")
    if flags.expected_batch_size is not None:
        if flags.sampling_probability is not None:
            raise command.UsageError('--expected_batch_size and --sampling_probability say the same: give one of them.')
        if flags.num_units is None:
            raise command.UsageError("--expected_batch_size needs --num_units, the private data set's size.")
        if flags.expected_batch_size > flags.num_units:
            raise command.UsageError(
                f'--expected_batch_size={flags.expected_batch_size} is larger than the data set of '
                f'{flags.num_units} units.'
            )


def _explain_missing(flags, missing: list[str]) -> str:
    names = {'batch': 'the batch (--sampling_probability, or --expected_batch_size and --num_units)'}
    lacking = ['--delta'] if flags.delta is None else []
    if len(missing) > 1:
        lacking.append(f'all but one of {", ".join(names.get(name, f"--{name}") for name in missing)}')
    return f'give {" and ".join(lacking)}; --help shows what can be computed.'


def _show_budget(flags, budget: budget_lib.Budget, about_delta: str | None = None) -> int:
    with progress.working('account', 'computing what all runs cost together'):
        shown = (
            account_lib.budget_fields(budget) if flags.json else account_tables.budget_tables(budget, flags.budget_file)
        )
        is_overdrawn = budget.overdrawn_by() > 0.0
    if flags.json:
        print(json.dumps(shown, indent=2))
    else:
        for table in shown:
            rich_console.Console().print(table)
    _print_cautions(filter(None, (cautions.of_epsilon(budget.total_epsilon), about_delta)))
    if is_overdrawn:
        print(f'account: {budget.describe_overdraft()}. No further run is let in.', file=sys.stderr)
    return command.FAILED if is_overdrawn else command.DONE


def _print_cautions(sentences: Iterable[str]) -> None:
    for caution in sentences:
        print(f'account: caution: {caution}', file=sys.stderr)


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/account."""
    parser = command.Parser('account', __doc__)
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    for name, (kind, text) in _SETTINGS.items():
        parser.add_argument(f'--{name}', type=kind, metavar='N' if kind is int else 'X', help=text)
    parser.add_argument('--plot', metavar='FILE.png', help='draw epsilon over steps')
    parser.add_argument('--budget_file', metavar='FILE', help='the private record of what runs on a data set cost')
    parser.add_argument(
        '--create', action='store_true', help='make the budget file, with --epsilon and --delta as total'
    )
    parser.add_argument('--workdir', metavar='RUN', help='a finished run, to be charged to the budget file')
    parser.add_argument('--json', action='store_true', help='print JSON in place of tables')
    sys.exit(command.run(parser, main, argv))
