"""bin/select: which classifier is best, chosen on samples alone, and what the choice is worth on real images."""

import pathlib
import sys

from rich import console as rich_console

from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.runs import select as select_lib
from tf_dpdiff.training import strategies


def choose(
    recipe: select_lib.SelectionRecipe,
    workdir: pathlib.Path,
    samples_paths: list[pathlib.Path],
    workers: workers_lib.Workers,
) -> None:
    """Chooses, and prints what came out at the first worker; arguments as `select.select` has them."""
    chosen = select_lib.select(recipe, workdir, samples_paths, workers=workers, say=progress.sayer('select'))
    if workers.is_first:
        _print_results(chosen, 'used' if recipe.data else 'read')


def _print_results(chosen: select_lib.Selected, not_done: str) -> None:
    fields, path = chosen
    rows, (columns, choice, *others) = select_lib.rows(fields), select_lib.sentences(fields)
    console = rich_console.Console()
    title = 'accuracy, best on synthetic validation images first'
    if fields['num_real_test'] is None:
        last = (
            f'Written to {path} and .png. No private image was {not_done}: they may be released wherever the '
            'samples may.'
        )
    else:
        title += f' ({command.NOT_TO_BE_RELEASED})'
        others = [f'{sentence} ({command.NOT_TO_BE_RELEASED})' for sentence in others]
        last = (
            f'Written to {path.parent}: report.html, selection.json; measured on private images, so not to be released.'
        )
    console.print(command.numbers_table(title, select_lib.HEADER[: len(rows[0])], rows))
    for sentence in (columns, choice, *others, last):
        console.print(sentence, highlight=False, soft_wrap=True)


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    gin_config.parse_flags(flags, 'select')
    if flags.synthetic_only:
        gin_config.leave_out('select', 'data')  # A source of images is opened when it is built.
    replicas = strategies.start(strategy_flags.configured(flags.strategy))
    workers = strategy_flags.check_evaluates(replicas).workers
    workdir, samples_paths = command.find_samples(flags)
    choose(gin_config.make('select'), workdir, samples_paths, workers)
    return command.DONE


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/select."""
    parser = command.Parser('select', __doc__)
    parser.add_gin_flags()
    command.add_samples_flags(parser)
    parser.add_argument(
        '--synthetic_only',
        action='store_true',
        help='read no private image; what is written may then be released like the samples',
    )
    sys.exit(command.run(parser, main, argv))
