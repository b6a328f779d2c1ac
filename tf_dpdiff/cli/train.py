"""bin/train: from private images to a private generator, its samples and what they are worth."""

import contextlib
import pathlib
import sys

import gin
from rich import console as rich_console

from tf_dpdiff import progress
from tf_dpdiff.cli import command
from tf_dpdiff.cli import dry_run as dry_run_lib
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import planner_flags
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.evaluation import utility
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import clock as clock_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import run as run_lib
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.training import public_checkpoint
from tf_dpdiff.training import strategies
from tf_dpdiff.training import warm_start

_PUBLIC_CLASSES_NAMED = 5


def _show_chosen(workdir: pathlib.Path, chosen: warm_start.ChosenImages) -> None:
    table = command.facts_table('public images that noisy feature means chose')
    for name, origins in zip(chosen.images.class_names, chosen.origins):
        most_frequent = ', '.join(
            f'{public_name} ({count:,})' for public_name, count in origins[:_PUBLIC_CLASSES_NAMED]
        )
        table.add_row(name, f'{sum(count for _, count in origins):,}: {most_frequent}' if origins else 'none')
    table.add_row('the means', str(workdir / warm_start.FEATURE_MEANS_FILE))
    rich_console.Console().print(table)


def _print_results(done: run_lib.TrainedRun) -> None:
    fields, workdir = done.statement.to_dict(), done.workdir
    table = command.facts_table('what came out')
    if done.checkpoint:
        table.add_row(
            'checkpoint',
            f'{workdir / public_checkpoint.FOLDER}, SHA-256 {done.checkpoint.sha256[:16]}: private '
            f"runs start from it by FinetuningConfig.init_from = '{workdir.absolute()}'",
        )
    elif fields['guarantee_claimed']:
        table.add_row('privacy', f'{rounding.claim(fields["epsilon"], fields["delta"])} for {fields["unit"]}')
    else:
        table.add_row('privacy', 'NO GUARANTEE IS CLAIMED')
    for caution in fields.get('cautions', ()):
        table.add_row('CAUTION', caution)
    for classifier, source, value in utility.accuracies(done.utility):
        table.add_row(
            f'{classifier} on {source.replace("_", " ")}',
            f'{value:.1%} of {done.utility["num_test"]:,} held-out real images ({command.NOT_TO_BE_RELEASED})',
        )
    samples, picture = workdir / folder.SAMPLES, workdir / folder.SAMPLES_PICTURE
    table.add_row('samples', f'{done.num_samples:,} in {samples}; a look: {picture}')
    matched = workdir / folder.MATCHED_IMAGES
    if matched.exists():
        table.add_row('matched', f'images that match the noisy features of each class, to train on as well: {matched}')
    with_teacher = ', with the teacher (signature classify)' if folder.read_model(workdir).has_teacher else ''
    table.add_row('model', f'{done.version}{with_teacher}')
    table.add_row('statement', str(workdir / folder.STATEMENT_TEXT))
    table.add_row('report', str(workdir / folder.REPORT))
    table.add_row('time', done.time)
    if not done.checkpoint:
        table.add_row(
            'next',
            f'look at {picture}; bin/evaluate measures what samples are worth; bin/release --workdir={workdir} '
            'puts together what may be handed over',
        )
    rich_console.Console().print(table)


def main(flags) -> int:
    """Runs the verb."""
    clock = clock_lib.Clock()
    command.quieten_libraries()
    given = gin_config.parse_flags(flags, 'train')
    hardware = planner_flags.read(flags)
    workdir = pathlib.Path(flags.workdir).expanduser()
    strategy = strategy_flags.configured(flags.strategy)
    if flags.dry_run:
        strategies.check(strategy)
        recipe = gin_config.make('train', **given)
        dry_run_lib.show(recipe, workdir, hardware, show_config=flags.show_config)
        return command.DONE
    replicas = strategies.start(strategy)
    with contextlib.ExitStack() as held:
        shared_work.at_first(replicas.workers, lambda: held.enter_context(folder.training_in(flags.workdir)))
        recipe = gin_config.make('train', **given).configured_by(gin.operative_config_str())
        with command.stopping('train') as stopped:
            done = run_lib.train(
                recipe,
                workdir,
                replicas=replicas,
                say=progress.sayer('train'),
                show_chosen=lambda chosen: _show_chosen(workdir, chosen),
                anyway=flags.anyway,
                clock=clock,
            )
            if done:
                _print_results(done)
    return command.FAILED if stopped else command.DONE


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/train."""
    parser = command.Parser('train', __doc__)
    parser.add_gin_flags()
    parser.add_argument('--workdir', default='runs/latest', help='folder of the run (default: %(default)s)')
    parser.add_argument(
        '--dry_run', action='store_true', help='print whether it can work, cost and statement, and exit'
    )
    parser.add_argument('--show_config', action='store_true', help='with --dry_run: print the whole configuration too')
    parser.add_argument(
        '--anyway', action='store_true', help='train even where the noise would hide all that could be learnt'
    )
    parser.add_argument(
        '--budget_file',
        metavar='FILE',
        help='budget of all runs on these data, to charge the run to (bin/account makes one)',
    )
    planner_flags.add(parser)
    sys.exit(command.run(parser, main, argv))
