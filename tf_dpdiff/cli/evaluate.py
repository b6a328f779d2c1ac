"""bin/evaluate: what samples are worth, measured on held-out real images. The result is private."""

import json
import pathlib
import sys
import time

import gin
from rich import console as rich_console

from tf_dpdiff import files
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import released_accuracy
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import features as features_lib
from tf_dpdiff.evaluation import metrics
from tf_dpdiff.evaluation import neighbors as neighbors_lib
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.evaluation import report
from tf_dpdiff.evaluation import report_sections
from tf_dpdiff.evaluation import utility as utility_lib
from tf_dpdiff.privacy import accuracy_release as accuracy_release_lib
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import report as report_lib
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.sampling import store
from tf_dpdiff.training import strategies

_WARNING = (
    'PRIVATE: this page holds numbers and pictures made from private images without noise. It is for the owner of '
    'the data and must not be released. The page that may be is report.html of the run.'
)


def evaluate(
    *,
    workdir: pathlib.Path,
    samples_path: pathlib.Path,
    workers: workers_lib.Workers = workers_lib.ALONE,
    budget_file: pathlib.Path | None = None,
    data: datasets.PrivateData = gin.REQUIRED,
    features: features_lib.FeaturesConfig = features_lib.FeaturesConfig(),
    quality: metrics.QualityConfig | None = metrics.QualityConfig(),
    neighbors: neighbors_lib.NeighborsConfig | None = neighbors_lib.NeighborsConfig(),
    utility: utility_lib.UtilityConfig | None = gin.REQUIRED,
    accuracy_release: accuracy_release_lib.AccuracyReleaseConfig | None = None,
) -> int:
    """Measures samples and writes a report to non_private/; releases accuracies with noise where that is bound.

    Args:
      workdir: The run's folder.
      samples_path: The samples, a file or folder that bin/train or bin/sample wrote.
      workers: The processes that share the work; the first one alone writes, charges and releases.
      budget_file: The budget that a released accuracy is charged to, or None.
      data: The private images, and real images held out from them.
      features: What images are compared by.
      quality: How near samples are to real images, or None.
      neighbors: Whether samples are copies of private images, or None.
      utility: What classifiers trained on samples are worth, or None.
      accuracy_release: How the accuracies of those classifiers are released, or None: they are not.

    Returns:
      The exit code.
    """
    samples = shared_work.all_or_none(workers, lambda: _read_samples(workdir, samples_path, data, workers))
    quality, utility, left_out = _fitting(quality, utility, samples, data)
    settings = (features, quality, neighbors, utility, accuracy_release)
    strategy_flags.check_same_inputs(workers, samples, data, settings)
    shared_work.at_first(
        workers, lambda: _check_release(workdir, budget_file, accuracy_release, utility, data, samples.statement_text)
    )
    folder = workdir / 'non_private' / f'evaluation_{folder_lib.samples_name(workdir, samples_path)}'
    shared_work.at_first(workers, lambda: _begin(folder, samples))
    command.say('evaluate', left_out if workers.is_first else ())
    results = {'samples': str(samples_path), 'num_samples': len(samples.images), 'left_out': left_out, 'seconds': {}}
    sections, predictions = [], {}
    if quality or neighbors:
        extractor = features_lib.load(features, data.train, workdir / 'non_private' / 'features', workers)
    if quality:
        sections.append(_measure_quality(results, quality, extractor, samples, data))
    if utility:
        section, predictions = _measure_utility(results, utility, samples, data, folder, workers)
        sections.append(section)
    if neighbors:
        sections.append(_search_neighbors(results, neighbors, extractor, samples, data, folder))

    def finish():
        if accuracy_release:
            released = released_accuracy.release(workdir, budget_file, accuracy_release, data, predictions)
            results['released_accuracy'] = released
        files.write_text(folder / 'evaluation.json', json.dumps(results, indent=2) + '\n')
        _write_report(workdir, folder, samples_path, results, sections)
        _print_results(results, folder, workdir)

    shared_work.at_first(workers, finish)
    return command.DONE


gin_config.root(evaluate, 'evaluate', 'workdir', 'samples_path', 'workers')


def _read_samples(workdir, samples_path, data, workers) -> store.Samples:
    samples = store.read(samples_path)
    samples.check_like(data.spec, samples_path)
    if workers.is_first:  # It looks into the run's folder.
        folder_lib.check_same_data(workdir, data.train)
    return samples


def _fitting(quality, utility, samples, data):
    """Returns what can be measured, and sentences on what is left out: much may be set in another run's file."""
    utility, left_out = utility_lib.fitting(utility, data, len(samples.images))
    too_few = quality and metrics.too_few(
        quality, synthetic=len(samples.images), training=data.spec.num_images, held_out=len(data.held_out)
    )
    return (None, utility, [*left_out, too_few]) if too_few else (quality, utility, left_out)


def _check_release(workdir, budget_file, accuracy_release, utility, data, statement_text) -> None:
    if accuracy_release:
        if not utility:
            raise command.UsageError(
                'evaluate.accuracy_release needs evaluate.utility: it releases what that measures.'
            )
        released_accuracy.check(workdir, budget_file, accuracy_release, data, statement_text)
    elif budget_file:
        raise command.UsageError(
            '--budget_file is for evaluate.accuracy_release, which is not bound: nothing would be released or charged.'
        )


def _begin(folder: pathlib.Path, samples: store.Samples) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob('*.png'):
        path.unlink()  # Of parts that are now switched off.
    pictures.write_png(folder / 'samples.png', pictures.class_grid(samples.images, samples.labels))


def _measure_quality(results, config, extractor, samples, data) -> report.Section | None:
    """Returns a section; None at the other workers than the first."""
    started = time.monotonic()
    measured = metrics.measure(config, extractor, synthetic=samples.images, train=data.train, held_out=data.held_out)
    if measured is None:
        return None
    results['quality'] = measured
    results['seconds']['quality'] = round(time.monotonic() - started, 1)
    return report_sections.quality(measured)


def _measure_utility(results, config, samples, data, folder, workers):
    """Returns a section, None at the other workers than the first, and what the classifiers trained on samples take
    the held-out images for."""
    started = time.monotonic()
    measured = utility_lib.measure(config, samples.images, samples.labels, data.train, data.held_out, workers=workers)
    if not workers.is_first:
        return None, measured.predictions
    fields = results['utility'] = measured.fields
    results['seconds']['utility'] = round(time.monotonic() - started, 1)
    pictures.draw_confusion(folder / 'confusion.png', fields, report_sections.chosen_classifier(fields))
    curve_png = None
    if fields['curve']:
        curve_png = folder / 'curve.png'
        pictures.draw_utility_curve(curve_png, fields)
    section = report_sections.utility(fields, confusion_png=folder / 'confusion.png', curve_png=curve_png)
    return section, measured.predictions


def _search_neighbors(results, config, extractor, samples, data, folder) -> report.Section | None:
    """Returns a section; None at the other workers than the first."""
    started = time.monotonic()
    found = neighbors_lib.find(config, extractor, synthetic=samples.images, train=data.train, held_out=data.held_out)
    if found is None:
        return None
    results['neighbors'] = found.to_dict()
    results['seconds']['neighbors'] = round(time.monotonic() - started, 1)
    pictures.write_png(folder / 'neighbors.png', found.picture)
    return report_sections.neighbors(results['neighbors'], folder / 'neighbors.png')


def _write_report(workdir, folder, samples_path, results, sections) -> None:
    """Writes the private page: what the run's own page holds, if there is one, and what was measured."""
    facts = {'samples': f'{results["num_samples"]:,} in {samples_path}'}
    grid = report.picture(
        folder / 'samples.png', alt='Samples, one row a class', caption='The first samples of each class.'
    )
    before, after = [report.Section('Samples', grid)], []
    if (workdir / 'report.json').exists():
        facts = {**report_lib.read(workdir)['facts'], **facts}
        before += report_lib.denoising_sections(workdir) + report_lib.released_accuracy_sections(workdir)
        after = report_lib.privacy_sections(workdir)
    report.write_page(
        folder / 'report.html',
        title=f'tf_dpdiff: what samples of {workdir.resolve().name} are worth',
        facts=facts,
        sections=[*before, *sections, *after],
        warning=_WARNING,
    )


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


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    given = {'budget_file': pathlib.Path(flags.budget_file)} if flags.budget_file else {}
    given_names = [*(f'evaluate.{name}' for name in given), *strategy_flags.given(flags)]
    gin_config.parse(flags.gin_file, flags.gin_param, 'evaluate', given=given_names)
    replicas = strategies.start(strategy_flags.configured(flags.strategy))
    workers = strategy_flags.check_evaluates(replicas).workers
    workdir, samples_path = command.find_samples(flags)
    return gin_config.make('evaluate', workdir=workdir, samples_path=samples_path, workers=workers, **given)


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/evaluate."""
    parser = command.Parser('evaluate', __doc__)
    parser.add_gin_flags()
    parser.add_strategy_flag()
    command.add_samples_flags(parser)
    parser.add_argument(
        '--budget_file',
        metavar='FILE',
        help='budget that evaluate.accuracy_release is charged to (bin/account makes one)',
    )
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
