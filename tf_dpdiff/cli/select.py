"""bin/select: which classifier is best, chosen on samples alone, and what the choice is worth on real images."""

import dataclasses
import json
import pathlib
import sys

import gin
from rich import console as rich_console

from tf_dpdiff import files
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.evaluation import report
from tf_dpdiff.evaluation import selection as selection_lib
from tf_dpdiff.runs import evaluate as evaluate_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.sampling import store
from tf_dpdiff.training import strategies

_WARNING = (
    'PRIVATE: this page holds numbers and pictures made from private images without noise. It is for the owner of '
    'the data and must not be released. What may be is what bin/select --synthetic_only writes.'
)
_HEADER = ('candidate', 'synthetic', 'samples to real', 'real to real')


def select(
    *,
    workdir: pathlib.Path,
    samples_path: pathlib.Path,
    workers: workers_lib.Workers = workers_lib.ALONE,
    data: datasets.PrivateData | None = gin.REQUIRED,
    selection: selection_lib.SelectionConfig = gin.REQUIRED,
) -> int:
    """Chooses a classifier by samples; writes to non_private/ where private images tell what the choice is worth.

    Args:
      workdir: The run's folder.
      samples_path: The samples, a file or folder that bin/train or bin/sample wrote.
      workers: The processes that share the work; the first one alone writes.
      data: The private images, and real images held out from them; None: no real image is looked at.
      selection: The candidates.

    Returns:
      The exit code.
    """
    if selection is None:
        raise command.UsageError('select.selection must be bound: @SelectionConfig(), with its candidates.')
    if data is None:
        selection = dataclasses.replace(selection, measure_on_real=False)
    is_real = selection.measure_on_real
    samples = shared_work.all_or_none(
        workers, lambda: _read_samples(workdir, samples_path, data if is_real else None, workers)
    )
    selection, left_out = selection_lib.fitting(selection, samples.images.shape[1:])
    command.say('select', left_out if workers.is_first else ())
    evaluate_lib.check_same_inputs(workers, samples, data if is_real else None, selection)
    name = f'selection_{folder.samples_name(workdir, samples_path)}'
    json_path = workdir / folder.NON_PRIVATE / name / 'selection.json' if is_real else workdir / f'{name}.json'
    shared_work.at_first(workers, lambda: json_path.parent.mkdir(parents=True, exist_ok=True))
    found = selection_lib.select(
        selection,
        samples.images,
        samples.labels,
        data.train if data and is_real else None,
        data.held_out if data and is_real else None,
        workers=workers,
    )
    fields = {'samples': str(samples_path) if is_real else samples_path.name, **found.to_dict()}

    def finish():
        pictures.draw_selection(json_path.with_suffix('.png'), fields)
        files.write_text(json_path, json.dumps(fields, indent=2) + '\n')
        if is_real:
            _write_page(json_path.with_name('report.html'), workdir, fields)
        _print_results(fields, json_path, 'used' if data else 'read')

    shared_work.at_first(workers, finish)
    return command.DONE


gin_config.root(select, 'select', 'workdir', 'samples_path', 'workers')


def _read_samples(workdir, samples_path, data, workers) -> store.Samples:
    samples = evaluate_lib.read_samples(workdir, samples_path, data, workers)
    samples.check_classified(samples_path)
    return samples


def _rows(fields: dict) -> list[list[str]]:
    names = ('synthetic_accuracy', 'transfer_accuracy', 'real_accuracy')
    return [
        [candidate['title'], *(f'{candidate[name]:.1%}' for name in names if candidate[name] is not None)]
        for candidate in fields['candidates']
    ]


def _sentences(fields: dict) -> list[str]:
    """Says what the columns are, what was chosen, whether real images rank alike, and what the choice loses."""
    columns = (
        f'Accuracy on {fields["num_synthetic_validation"]:,} synthetic images after training on '
        f'{fields["num_synthetic_train"]:,} others'
    )
    chosen = f'Chosen by samples alone: {fields["chosen"]}.'
    if fields['tied_with']:
        chosen += f' As good on synthetic images, but given later: {", ".join(fields["tied_with"])}.'
    if fields['num_real_test'] is None:
        return [f'{columns}.', chosen]
    columns += (
        f'; of the same classifier on {fields["num_real_test"]:,} held-out real images; and on those after '
        f'training on {fields["num_real_train"]:,} private images.'
    )
    said = [columns, chosen]
    for key, what in (
        ('synthetic_and_real', "'synthetic' and 'real to real'"),
        ('synthetic_and_transfer', "'synthetic' and 'samples to real'"),
        ('transfer_and_real', "'samples to real' and 'real to real'"),
    ):
        found = fields['rank_correlation'][key]
        values = 'undefined, since one of them is the same for all.'
        if found['spearman'] is not None:
            values = f'Spearman {found["spearman"]:.2f}, Kendall {found["kendall"]:.2f}.'
        said.append(f'Rank correlation of {what}: {values}')
    for key, what in (('transfer', 'samples'), ('real', 'private images')):
        found = fields['regret'][key]
        said.append(
            f'Deployed after training on {what}, the choice reaches {found["chosen_accuracy"]:.1%} on real '
            f'images and the best, {found["best"]}, {found["best_accuracy"]:.1%}: a regret of '
            f'{100.0 * found["regret"]:.1f} points.'
        )
    return said


def _write_page(path: pathlib.Path, workdir: pathlib.Path, fields: dict) -> None:
    body = report.table(_HEADER, _rows(fields)) + ''.join(report.paragraph(sentence) for sentence in _sentences(fields))
    body += report.picture(
        path.with_name('selection.png'),
        alt='Accuracy on real images over accuracy on synthetic ones, a point a candidate',
        caption='Candidates by samples and by real images; axes are logarithmic in the error.',
        pixelated=False,
    )
    num_synthetic = fields['num_synthetic_train'] + fields['num_synthetic_validation']
    facts = {
        'samples': f'{num_synthetic:,} in {fields["samples"]}',
        'private images': f'{fields["num_real_train"]:,}, and {fields["num_real_test"]:,} held out',
        'trainings of a candidate with random weights': str(fields['num_seeds']),
    }
    report.write_page(
        path,
        title=f'tf_dpdiff: classifiers chosen on samples of {workdir.resolve().name}',
        facts=facts,
        sections=[report.Section('Selection', body)],
        warning=_WARNING,
    )


def _print_results(fields: dict, json_path: pathlib.Path, not_done: str) -> None:
    rows, (columns, chosen, *others) = _rows(fields), _sentences(fields)
    console = rich_console.Console()
    title = 'accuracy, best on synthetic validation images first'
    if fields['num_real_test'] is not None:
        title += f' ({command.NOT_TO_BE_RELEASED})'
        others = [f'{sentence} ({command.NOT_TO_BE_RELEASED})' for sentence in others]
    console.print(command.numbers_table(title, _HEADER[: len(rows[0])], rows))
    if fields['num_real_test'] is None:
        last = (
            f'Written to {json_path} and .png. No private image was {not_done}: they may be released wherever the '
            'samples may.'
        )
    else:
        last = (
            f'Written to {json_path.parent}: report.html, selection.json; measured on private images, so not to be '
            'released.'
        )
    for sentence in (columns, chosen, *others, last):
        console.print(sentence, highlight=False, soft_wrap=True)


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    gin_config.parse(flags.gin_file, flags.gin_param, 'select', given=strategy_flags.given(flags))
    if flags.synthetic_only:
        gin_config.leave_out('select', 'data')  # A source of images is opened when it is built.
    replicas = strategies.start(strategy_flags.configured(flags.strategy))
    workers = strategy_flags.check_evaluates(replicas).workers
    workdir, samples_path = command.find_samples(flags)
    return gin_config.make('select', workdir=workdir, samples_path=samples_path, workers=workers)


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/select."""
    parser = command.Parser('select', __doc__)
    parser.add_gin_flags()
    parser.add_strategy_flag()
    command.add_samples_flags(parser)
    parser.add_argument(
        '--synthetic_only',
        action='store_true',
        help='read no private image; what is written may then be released like the samples',
    )
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
