"""bin/evaluate: what samples are worth, measured on held-out real images. The result is private."""

import pathlib
import sys

from rich import console as rich_console

from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.evaluation import metrics
from tf_dpdiff.evaluation import report_sections
from tf_dpdiff.evaluation import utility
from tf_dpdiff.runs import clock as clock_lib
from tf_dpdiff.runs import evaluate as evaluate_lib
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.training import strategies


def _print_results(results, folder, workdir) -> None:
    console = rich_console.Console()
    if 'quality' in results:
        rows = report_sections.quality_rows(results['quality'])
        title = f'against held-out real images ({command.NOT_TO_BE_RELEASED})'
        console.print(command.numbers_table(title, report_sections.QUALITY_HEADER, rows))
        console.print(f'Protocol: {metrics.protocol_line(results["quality"])}', highlight=False, soft_wrap=True)
    if 'utility' in results:
        title = (
            f'accuracy on {results["utility"]["num_test"]:,} held-out real images, by what was trained on '
            f'({command.NOT_TO_BE_RELEASED})'
        )
        rows = report_sections.utility_rows(results['utility'])
        console.print(command.numbers_table(title, report_sections.UTILITY_HEADER, rows))
        if line := report_sections.teacher_line(results['utility']):
            console.print(f'{line} ({command.NOT_TO_BE_RELEASED})', highlight=False, soft_wrap=True)
        if guessing := utility.no_better_than_guessing(results['utility']):
            console.print(
                f'Trained on samples, {", ".join(guessing)} did no better than naming the most frequent class for all '
                f'images: the samples do not tell the classes apart ({command.NOT_TO_BE_RELEASED}).',
                highlight=False,
                soft_wrap=True,
            )
    if 'neighbors' in results:
        console.print(
            f'Nearest neighbours ({command.NOT_TO_BE_RELEASED}): {results["neighbors"]["verdict"]}',
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f'Written to {folder}: report.html, evaluation.json; measured on private images, so not to be released.',
        highlight=False,
        soft_wrap=True,
    )
    if 'released_accuracy' in results:
        fields = results['released_accuracy']
        accuracies = ', '.join(f'{name} {value:.1%}' for name, value in fields['accuracy'].items())
        console.print(
            f'RELEASED in {workdir / folder_lib.RELEASED_ACCURACY} and report.html: {accuracies}. {fields["text"]}',
            highlight=False,
            soft_wrap=True,
        )


def measure(
    recipe: evaluate_lib.EvaluationRecipe,
    workdir: pathlib.Path,
    samples_paths: list[pathlib.Path],
    workers: workers_lib.Workers,
) -> None:
    """Measures samples, and prints what came out at the first worker; arguments as `evaluate.evaluate` has them."""
    say = progress.sayer('evaluate')
    results, folder = evaluate_lib.evaluate(recipe, workdir, samples_paths, workers=workers, say=say)
    if workers.is_first:
        _print_results(results, folder, workdir)


def main(flags) -> int:
    """Runs the verb."""
    clock = clock_lib.Clock()
    command.quieten_libraries()
    given = gin_config.parse_flags(flags, 'evaluate')
    replicas = strategies.start(strategy_flags.configured(flags.strategy))
    workers = strategy_flags.check_evaluates(replicas).workers
    workdir, samples_paths = command.find_samples(flags)
    measure(gin_config.make('evaluate', **given), workdir, samples_paths, workers)
    if workers.is_first:
        print(f'It took {clock.describe()}.')
    return command.DONE


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/evaluate."""
    parser = command.Parser('evaluate', __doc__)
    parser.add_gin_flags()
    command.add_samples_flags(parser)
    parser.add_argument(
        '--budget_file',
        metavar='FILE',
        help='budget that evaluate.accuracy_release is charged to (bin/account makes one)',
    )
    sys.exit(command.run(parser, main, argv))
