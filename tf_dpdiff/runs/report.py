"""report.html and report.json of a run: one page about it, made of what may be released."""

from collections.abc import Sequence
import json
import pathlib

from tf_dpdiff import files
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.evaluation import report
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import folder

_NOTE = (
    'This page holds only what the statement covers, and accuracies that were released with noise. Numbers measured on '
    'private images without noise are in the non_private/ folder of the run and must not be released.'
)


def write(
    workdir: pathlib.Path,
    *,
    title: str,
    facts: dict[str, str],
    points: Sequence[curves.CurvePoint],
    delta: float,
    configuration: str,
) -> None:
    """Writes report.json, the picture of epsilon over steps and report.html; the run's other files are there already.

    Args:
      workdir: The run's folder.
      title: Of the page.
      facts: Stand at its head.
      points: Epsilon over steps; empty where none is claimed.
      delta: At which epsilon is meant.
      configuration: The operative configuration, without the paths of this machine.
    """
    fields = {
        'title': title,
        'facts': facts,
        'delta': delta,
        'epsilon_over_steps': [point._asdict() for point in points],
        'configuration': configuration,
    }
    files.write_text(workdir / folder.REPORT_FIELDS, json.dumps(fields, indent=2) + '\n')
    if points:
        pictures.draw_epsilon(workdir / folder.EPSILON_PICTURE, points, title='What the run has cost', delta=delta)
    write_page(workdir)


def write_page(workdir: pathlib.Path) -> None:
    """Writes report.html from the other files of a run, again where one of them has changed."""
    fields = read(workdir)
    grid = report.picture(
        workdir / folder.SAMPLES_PICTURE,
        alt='Samples, one row per class',
        caption='Samples of the released model, one row per class.',
    )
    sections = [
        report.Section('Samples', grid),
        *denoising_sections(workdir),
        *released_accuracy_sections(workdir),
        *privacy_sections(workdir),
        report.Section('What this page holds', report.paragraph(_NOTE)),
    ]
    report.write_page(workdir / folder.REPORT, title=fields['title'], facts=fields['facts'], sections=sections)


def read(workdir: pathlib.Path) -> dict:
    """Reads report.json.

    Raises:
      FileNotFoundError: if the run is not complete.
      ValueError: if it is damaged.
    """
    path = workdir / folder.REPORT_FIELDS
    if not path.exists():
        raise FileNotFoundError(
            f'{workdir} holds no complete run ({path.name} is missing); the same bin/train command '
            'makes it, or name another --workdir.'
        )
    return files.read_json(path)


def shows(page: str, statement_text: str) -> bool:
    """Returns whether a page shows a privacy statement, word for word."""
    return any(report.preformatted(text) in page for text in (flowing(statement_text), statement_text))


def flowing(text: str) -> str:
    """Returns text with one line a paragraph or item, so that a page breaks lines where it is as wide as that.

    Example:
        >>> flowing('All of\\nthis.\\n\\nItems:\\n  - one\\n  - two')
        'All of this.\\n\\nItems:\\n  - one\\n  - two'
    """
    lines: list[str] = []
    for line in text.splitlines():
        if line and lines and lines[-1] and not line.startswith(' '):
            lines[-1] += f' {line}'
        else:
            lines.append(line)
    return '\n'.join(lines)


def denoising_sections(workdir: pathlib.Path) -> list[report.Section]:
    """Returns the look at how a run's samples come about."""
    path = report.picture(
        workdir / folder.DENOISING_PICTURE,
        alt='From noise to image, one row an image',
        caption='From noise (left) to image (right): what the sampler has after evenly spaced steps.',
    )
    return [report.Section('Denoising', path)]


def released_accuracy_sections(workdir: pathlib.Path) -> list[report.Section]:
    """Returns the accuracies that were released with noise, if any."""
    path = workdir / folder.RELEASED_ACCURACY
    if not path.exists():
        return []
    fields, statement = files.read_json(path), folder.read_statement(workdir)
    if fields['model_run_id'] != statement.get('run_id'):
        return []  # Of another model.
    rows = [(name, f'{value:.1%}') for name, value in fields['accuracy'].items()]
    return [
        report.Section(
            'Accuracy on private images, released with noise',
            report.table(('classifier, trained on samples', 'accuracy'), rows) + report.paragraph(fields['text']),
        )
    ]


def privacy_sections(workdir: pathlib.Path) -> list[report.Section]:
    """Returns epsilon over steps, the statement and the configuration."""
    fields = read(workdir)
    sections = []
    if fields['epsilon_over_steps']:
        rows = [
            (f'{point["num_steps"]:,}', rounding.round_up(point['pld']), rounding.round_up(point['rdp']))
            for point in fields['epsilon_over_steps']
        ]
        picture = report.picture(
            workdir / folder.EPSILON_PICTURE,
            alt='Epsilon over steps',
            caption=f'What had been spent after so many steps, at delta = {rounding.exact(fields["delta"])}.',
            pixelated=False,
        )
        sections.append(
            report.Section(
                'Epsilon over steps', picture + report.table(('steps', 'epsilon by PLD', 'epsilon by RDP'), rows)
            )
        )
    statement = flowing((workdir / folder.STATEMENT_TEXT).read_text(encoding='utf-8'))
    sections.append(report.Section('Privacy statement', report.preformatted(statement)))
    sections.append(report.Section('Configuration', report.preformatted(fields['configuration'])))
    return sections
