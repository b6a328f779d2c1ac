"""bin/account: plans a run (noise, steps, batch or epsilon) and keeps the privacy budget of a data set."""

import argparse
import json
import pathlib
import sys

from rich import console as rich_console

from tf_dpdiff import files
from tf_dpdiff import progress
from tf_dpdiff.cli import account_plan
from tf_dpdiff.cli import account_tables
from tf_dpdiff.cli import command
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import cautions
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.runs import budget as budget_file

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
    planning = [f'--{name}' for name in account_plan.FLAGS if getattr(flags, name) is not None]
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
        record, num_units = _finished_run(pathlib.Path(flags.workdir).expanduser())
        with progress.working('account', 'computing what all runs cost together'):
            budget = budget_file.update(flags.budget_file, record)
        return _show_budget(flags, budget, cautions.of_delta(budget.delta, num_units))
    return _show_budget(flags, budget_file.read(flags.budget_file))


def _plan(flags) -> int:
    if flags.plot and not flags.plot.lower().endswith('.png'):
        raise command.UsageError(f'--plot={flags.plot}: the name must end in .png.')
    with progress.working('account', 'computing'):
        plan = account_plan.make_plan(flags)
        if flags.plot:
            account_tables.draw_plan(plan, pathlib.Path(flags.plot).expanduser())
        shown = account_tables.plan_fields(plan) if flags.json else account_tables.plan_tables(plan)
    command.print_cautions('account', plan.cautions())
    if flags.json:
        print(json.dumps(shown, indent=2))
        return command.DONE
    for table in shown:
        rich_console.Console().print(table)
    if flags.plot:
        print(f'The plot is in {flags.plot}')
    return command.DONE


def _show_budget(flags, budget: budget_lib.Budget, about_delta: str | None = None) -> int:
    with progress.working('account', 'computing what all runs cost together'):
        shown = (
            account_tables.budget_fields(budget)
            if flags.json
            else account_tables.budget_tables(budget, flags.budget_file)
        )
        is_overdrawn = budget.overdrawn_by() > 0.0
    if flags.json:
        print(json.dumps(shown, indent=2))
    else:
        for table in shown:
            rich_console.Console().print(table)
    command.print_cautions('account', filter(None, (cautions.of_epsilon(budget.total_epsilon), about_delta)))
    if is_overdrawn:
        print(f'account: {budget.describe_overdraft()}. No further run is let in.', file=sys.stderr)
    return command.FAILED if is_overdrawn else command.DONE


def _finished_run(workdir: pathlib.Path) -> tuple[budget_file.Change, int]:
    """Returns the change of a budget that charges a finished run to it, and how many units the run was on."""
    path = workdir / 'privacy_statement.json'
    if not path.exists():
        raise FileNotFoundError(
            f'{workdir} holds no finished run ({path.name} is missing). Name another --workdir, or '
            'finish the run by its bin/train command, with --budget_file: what it has released so '
            'far goes on record first.'
        )
    statement = files.read_json(path)
    if statement.get('private_data', 'some') is None:
        raise command.UsageError(f'the run in {workdir} read public images alone: it costs no privacy budget.')
    try:
        released = ledger_lib.Ledger.from_json(json.dumps(statement['releases']))
        run_id, num_units = statement['run_id'], int(statement['num_units_treated_as_public'])
        about = {'dataset': statement['dataset'], 'unit': statement['unit']}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise command.UsageError(f'{path} is damaged or of another version: {error!r}.') from error
    # Imported here: TensorFlow takes seconds that a plan need not wait for.
    from tf_dpdiff.training import checkpoints

    command.quieten_libraries()
    identity = checkpoints.read_identity(workdir / 'checkpoints')
    if identity is None:
        raise command.UsageError(
            f'{workdir / "checkpoints"} is missing: only the private checkpoint says which data the run is on.'
        )
    if (identity.run_id, identity.ledger) != (run_id, released):
        raise command.UsageError(f'{path} and {workdir / "checkpoints"} are not of the same run, or the run goes on.')
    about.update(data_fingerprint=identity.data_fingerprint, time=budget_file.now())
    return lambda budget: budget.record_finished(run_id, released, **about), num_units


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/account."""
    parser = command.Parser('account', __doc__)
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    for name, (kind, text) in account_plan.FLAGS.items():
        parser.add_argument(f'--{name}', type=kind, metavar='N' if kind is int else 'X', help=text)
    parser.add_argument('--plot', metavar='FILE.png', help='draw epsilon over steps')
    parser.add_argument('--budget_file', metavar='FILE', help='the private record of what runs on a data set cost')
    parser.add_argument(
        '--create', action='store_true', help='make the budget file, with --epsilon and --delta as total'
    )
    parser.add_argument('--workdir', metavar='RUN', help='a finished run, to be charged to the budget file')
    parser.add_argument('--json', action='store_true', help='print JSON in place of tables')
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
