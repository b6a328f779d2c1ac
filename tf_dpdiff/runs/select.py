"""Which classifier is best, chosen on the samples of a run alone, and what the choice is worth on real images."""

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

from tf_dpdiff import files
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.evaluation import report
from tf_dpdiff.evaluation import selection as selection_lib
from tf_dpdiff.runs import evaluate as evaluate_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.sampling import shared_work

HEADER = ('candidate', 'synthetic', 'samples to real', 'real to real')  # Of what `rows` returns.
_WARNING = (
    'PRIVATE: this page holds numbers and pictures made from private images without noise. It is for the owner of '
    'the data and must not be released. What may be is what bin/select --synthetic_only writes.'
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SelectionRecipe:
    """What a classifier is chosen among, and on which images the choice is measured.

    Attributes:
      data: The private images, and real images held out from them; None: no real image is looked at.
      selection: The candidates.
    """

    data: datasets.PrivateData | None
    selection: selection_lib.SelectionConfig

    def __post_init__(self):
        if self.selection is None:
            raise ValueError('select.selection must be bound: @SelectionConfig(), with its candidates.')

    @property
    def measured_on(self) -> datasets.PrivateData | None:
        """The images that the choice is measured on; None: samples alone are looked at."""
        return self.data if self.selection.measure_on_real else None


class Selected(NamedTuple):
    """What came out of a selection.

    Attributes:
      fields: All of it, as plain JSON values; PRIVATE where the choice was measured on real images.
      path: Where they were written; the picture has the same name with .png, and a private page lies beside them.
    """

    fields: dict[str, Any]
    path: pathlib.Path


def select(
    recipe: SelectionRecipe,
    workdir: pathlib.Path,
    samples_paths: Sequence[pathlib.Path],
    *,
    workers: workers_lib.Workers = workers_lib.ALONE,
    say: Callable[[str], None] = lambda unused_text: None,
) -> Selected:
    """Chooses a classifier by samples; writes to non_private/ where private images tell what the choice is worth.

    Args:
      recipe: What is chosen among.
      workdir: The run's folder.
      samples_paths: The samples, files or folders that bin/train or bin/sample wrote; several sets are joined; none:
        the run's, and its matched images with them where it has any.
      workers: The processes that share the work; the first one alone writes.
      say: Tells what is left out.

    Raises:
      ValueError: if the samples or the data do not fit; says what to do.
    """
    data, samples_paths = recipe.measured_on, samples_paths or folder.samples_paths(workdir)
    samples = shared_work.all_or_none(workers, lambda: evaluate_lib.read_samples(workdir, samples_paths, data, workers))
    config = dataclasses.replace(recipe.selection, measure_on_real=data is not None)
    config, left_out = selection_lib.fitting(config, samples.images.shape[1:])
    for sentence in left_out if workers.is_first else ():
        say(f'{sentence}.')
    evaluate_lib.check_same_inputs(workers, samples, data, config)
    name = f'selection_{folder.samples_name(workdir, samples_paths)}'
    path = workdir / folder.NON_PRIVATE / name / 'selection.json' if data else workdir / f'{name}.json'
    shared_work.at_first(workers, lambda: path.parent.mkdir(parents=True, exist_ok=True))
    found = selection_lib.select(
        config,
        samples.images,
        samples.labels,
        data.train if data else None,
        data.held_out if data else None,
        workers=workers,
    )
    named = ' and '.join(str(path) if data else path.name for path in samples_paths)
    fields = {'samples': named, **found.to_dict()}

    def finish():
        pictures.draw_selection(path.with_suffix('.png'), fields)
        files.write_text(path, json.dumps(fields, indent=2) + '\n')
        if data:
            _write_page(path.with_name('report.html'), workdir, fields)

    shared_work.at_first(workers, finish)
    return Selected(fields, path)


def rows(fields: dict[str, Any]) -> list[list[str]]:
    """Returns the rows below HEADER, or below its first columns where no real image was looked at."""
    names = ('synthetic_accuracy', 'transfer_accuracy', 'real_accuracy')
    return [
        [candidate['title'], *(f'{candidate[name]:.1%}' for name in names if candidate[name] is not None)]
        for candidate in fields['candidates']
    ]


def sentences(fields: dict[str, Any]) -> list[str]:
    """Returns what the columns are, what was chosen, whether real images rank alike, and what the choice loses."""
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
    body = report.table(HEADER, rows(fields)) + ''.join(report.paragraph(sentence) for sentence in sentences(fields))
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
