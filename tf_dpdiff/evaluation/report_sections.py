"""Sections of a report about samples: quality, downstream accuracy, nearest neighbours. PRIVATE, as what they show."""

import pathlib

from tf_dpdiff.evaluation import metrics
from tf_dpdiff.evaluation import report

QUALITY_HEADER = ('images', 'FID', 'KID', 'IS', 'precision', 'recall')
UTILITY_HEADER = ('classifier', 'on samples', 'ensemble', 'on real images', 'ensemble')
_MAX_CLASSES_SHOWN = 50


def quality(result: dict) -> report.Section:
    """Returns FID, KID, Inception Score, precision and recall.

    Args:
      result: From `metrics.measure`.
    """
    return report.Section(
        'Quality',
        report.table(QUALITY_HEADER, quality_rows(result))
        + report.paragraph(f'Protocol: {metrics.protocol_line(result)}'),
    )


def quality_rows(result: dict) -> list[tuple[str, ...]]:
    """Returns the rows below QUALITY_HEADER."""
    rows: list[tuple[str, ...]] = []
    for row in result['rows']:
        kid = _number(row['kid'], '.5f')
        if row['kid_std'] is not None:
            kid += f' ± {row["kid_std"]:.5f}'
        rows.append(
            (
                row['images'],
                _number(row['fid'], '.2f'),
                kid,
                _number(row['inception_score'], '.2f'),
                _number(row['precision'], '.3f'),
                _number(row['recall'], '.3f'),
            )
        )
    return rows


def utility(result: dict, *, confusion_png: pathlib.Path, curve_png: pathlib.Path | None = None) -> report.Section:
    """Returns the section on classifiers: trained on samples, beside the same ones trained on real images.

    Args:
      result: From `utility.measure`: its fields; 'teacher', where the run has one, is its accuracy.
      confusion_png: The picture of the confusion matrix of the classifier that `chosen` names.
      curve_png: The picture of accuracy over the number of samples, where that was measured.
    """
    body = report.table(UTILITY_HEADER, utility_rows(result))
    real = '' if result['num_real'] is None else f' or {result["num_real"]:,} real images'
    body += report.paragraph(
        f'Accuracy on {result["num_test"]:,} held-out real images, after training on '
        f'{result["num_synthetic"]:,} samples{real}; mean and standard deviation over seeds, and '
        'the ensemble of the seeds. ' + result['validation']
    )
    if teacher_line(result):
        body += report.paragraph(teacher_line(result))
    if curve_png:
        body += report.heading('Accuracy against the number of samples') + report.picture(
            curve_png,
            alt='Accuracy over the number of samples, one line per classifier',
            caption='More samples cost no privacy.'
            + (' Dashed: the same classifier trained on the real images.' if real else ''),
            pixelated=False,
        )
    chosen = chosen_classifier(result)
    rows = [
        (row['class'], f'{row["images"]:,}', f'{row["recall"]:.1%}', f'{row["precision"]:.1%}', f'{row["f1"]:.3f}')
        for row in chosen['synthetic_images']['per_class'][:_MAX_CLASSES_SHOWN]
    ]
    body += report.heading(f'Class by class: {chosen["classifier"]}, trained on samples')
    body += report.table(('class', 'real images', 'recall', 'precision', 'F1'), rows)
    body += report.picture(
        confusion_png,
        alt='Confusion matrix',
        caption='Held-out real images by class, and what they were taken for.',
        pixelated=False,
    )
    return report.Section('Downstream accuracy', body)


def teacher_line(result: dict) -> str:
    """Returns a sentence on the classifier that the run releases beside its generator; empty where there is none."""
    if result.get('teacher') is None:
        return ''
    return (
        f'The private teacher of the run, which is released with the generator, by itself: {result["teacher"]:.1%} of '
        f'the {result["num_test"]:,} held-out real images.'
    )


def chosen_classifier(result: dict) -> dict:
    """Returns the entry of the classifier that does best on synthetic validation images: chosen without real ones."""
    return max(result['classifiers'], key=lambda entry: entry['synthetic_images']['validation_accuracy'])


def neighbors(result: dict, picture_png: pathlib.Path) -> report.Section:
    """Returns the section on neighbours: how near samples, and held-out images, come to private training images.

    Args:
      result: From `neighbors.NeighborsResult.to_dict`.
      picture_png: Its picture.
    """
    body = report.paragraph(result['verdict'])
    for name, space in result['spaces'].items():
        levels = list(space['quantiles']['synthetic'])
        rows = [
            (kind.replace('_', ' '), *(f'{space["quantiles"][kind][level]:.4g}' for level in levels))
            for kind in ('synthetic', 'held_out')
        ]
        body += report.heading(f'Distance to the nearest training image, in {name} ({space["distance"]})')
        body += report.table(('images', *levels), rows)
    body += report.picture(
        picture_png,
        alt='Samples beside their nearest training images',
        caption='Left: the samples that are nearest to a training image, then their nearest training '
        'images. Beyond the grey field the same for held-out real images.',
    )
    return report.Section('Nearest private images', body)


def utility_rows(result: dict) -> list[tuple[str, ...]]:
    """Returns the rows below UTILITY_HEADER."""
    return [_utility_row(entry) for entry in result['classifiers']]


def _utility_row(entry: dict) -> tuple[str, ...]:
    cells = []
    for source in ('synthetic_images', 'real_images'):
        found = entry[source]
        if found is None:
            cells += ['-', '-']
            continue
        std = '' if found['accuracy_std'] is None else f' ± {found["accuracy_std"]:.1%}'
        cells += [f'{found["accuracy_mean"]:.1%}{std}', f'{found["accuracy"]:.1%}']
    return (entry['classifier'], *cells)


def _number(value: float | None, form: str) -> str:
    return '-' if value is None else format(value, form)
