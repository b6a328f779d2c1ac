"""bin/tune: a private choice among candidates: several runs, of which the best is released, paid for as a whole."""

import contextlib
import pathlib
import sys

import gin
from rich import console as rich_console

from tf_dpdiff import progress
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import forecast as forecast_lib
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.runs import run as run_lib
from tf_dpdiff.runs import tune as tune_lib
from tf_dpdiff.training import strategies

_SHARES = (0.5, 0.95, 0.99)


def _recipes(flags, config: tune_lib.TuneConfig) -> list[recipe_lib.Recipe]:
    """Returns the recipe of each candidate: the configuration with its bindings, which win."""
    recipes = []
    for bindings, phrase in zip(config.candidates, config.phrases):
        try:
            given = gin_config.parse_flags(flags, 'tune', bindings, budget_of='train')
        except command.UsageError as error:
            raise command.UsageError(f'the candidate {phrase!r}: {error}') from error
        gin_config.leave_out('train', 'utility')  # What is measured without noise is no part of a choice.
        recipes.append(gin_config.make('train', **given).configured_by(gin.operative_config_str()))
    return recipes


def _show(prepared: tune_lib.PreparedChoice) -> None:
    """Prints what would be done, and what it would cost."""
    plan, first = prepared.plan, prepared.builds[0]
    tuning = plan.tuning
    assert tuning is not None and first.recipe.finetuning is not None and first.recipe.data is not None
    first.recipe.data.look_at('train')
    with progress.working('tune', 'measuring the speed of this machine'):
        trainable, has_matching = first.recipe.finetuning.trainable, first.recipe.matching is not None
        speed = forecast_lib.measure_speed(first.make_network(), trainable, has_matching=has_matching)
    table = command.facts_table('what would be done')
    table.add_row(
        'privacy',
        f'{rounding.claim(plan.epsilon(), plan.config.target_delta)} for {first.spec.unit}, of '
        f'{first.spec.num_units:,}: of all runs and of the choice among them, by RDP',
    )
    table.add_row(
        'one such run',
        f'epsilon = {rounding.round_up(tune_lib.cost_of_one_run(plan))} by RDP, were it the only one, and without a '
        'score',
    )
    likely = ', '.join(f'at most {tuning.num_runs.quantile(share):,} in {rounding.percent(share)}' for share in _SHARES)
    table.add_row('runs', f'{tuning.num_runs.mean:g} on average; {likely} of all draws; how many stays secret')
    table.add_row('distribution', f'truncated negative binomial, eta {tuning.num_runs.eta:g}')
    for phrase in tuning.candidates:
        table.add_row('candidate', phrase)
    noise = tuning.score_noise_multiplier
    table.add_row('score', tuning.score + (f', noise multiplier {noise:g}' if noise else ', which costs nothing'))
    table.add_row(
        'private steps', f'{plan.config.num_steps:,} in each run, noise multiplier {plan.noise_multiplier:.4f}'
    )
    if speed:
        hours = max(forecast_lib.training_secs(build.recipe, speed) for build in prepared.builds) / 3600.0
        table.add_row(
            'time', f'about {hours * tuning.num_runs.mean:.2g} hours on average on this machine, {hours:.2g} a run'
        )
    if prepared.budget:
        table.add_row('budget file', f'with all of it, {run_lib.describe_spent(prepared.budget)}')
    rich_console.Console().print(table)
    print('\nThe statement would be this, but for which candidate it is:\n')
    print(first.statement(plan.planned_ledger(), first.public_data(first.open_origin())).to_text())


def _print_results(workdir: pathlib.Path) -> None:
    fields = folder.read_statement(workdir)
    table = command.facts_table('what came out')
    table.add_row(
        'privacy',
        f'{rounding.claim(fields["epsilon"], fields["delta"])} for {fields["unit"]}: of all runs and of the choice '
        'among them',
    )
    for caution in fields.get('cautions', ()):
        table.add_row('CAUTION', caution)
    table.add_row('candidate', fields['best_of_runs']['released_candidate'])
    table.add_row('samples', f'{workdir / folder.SAMPLES}; a look: {workdir / folder.SAMPLES_PICTURE}')
    table.add_row('model', str(workdir / folder.SAVED_MODEL))
    table.add_row('statement', str(workdir / folder.STATEMENT_TEXT))
    table.add_row('report', str(workdir / folder.REPORT))
    table.add_row('stays secret', 'how many runs there were, and how long all of it took, which tells of it')
    rich_console.Console().print(table)


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    gin_config.parse_flags(flags, 'tune', budget_of='train')
    config = gin_config.make('tune').config
    strategy = strategy_flags.check_one_process(strategy_flags.configured(flags.strategy), 'a choice among runs')
    say, recipes = progress.sayer('tune'), _recipes(flags, config)
    if flags.dry_run:
        _show(tune_lib.prepare(config, recipes, pathlib.Path(flags.workdir).expanduser(), say=say, dry_run=True))
        return command.DONE
    replicas = strategies.start(strategy)
    with contextlib.ExitStack() as held, command.stopping('tune') as stopped:
        workdir = held.enter_context(folder.training_in(flags.workdir))
        tune_lib.tune(config, recipes, workdir, replicas=replicas, say=say, anyway=flags.anyway)
        _print_results(workdir)
    return command.FAILED if stopped else command.DONE


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/tune."""
    parser = command.Parser('tune', __doc__)
    parser.add_gin_flags(is_one_process=True)
    parser.add_argument(
        '--workdir', default='runs/tuned', help='folder of the run that is released (default: %(default)s)'
    )
    parser.add_argument('--dry_run', action='store_true', help='print what all of it would cost, and exit')
    parser.add_argument(
        '--anyway', action='store_true', help='train even where the noise would hide all that could be learnt'
    )
    parser.add_argument(
        '--budget_file', metavar='FILE', help='budget of all runs on these data, to charge the whole to, once'
    )
    sys.exit(command.run(parser, main, argv))
