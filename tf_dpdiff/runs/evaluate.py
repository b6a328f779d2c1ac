"""What samples of a run are worth, measured on held-out real images; the result is private."""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import json
import pathlib
import time
from typing import Any

import numpy as np

from tf_dpdiff import files
from tf_dpdiff import workers as workers_lib
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
from tf_dpdiff.runs import released_accuracy
from tf_dpdiff.runs import report as run_report
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.sampling import store
from tf_dpdiff.serving import export

_WARNING = (
    'PRIVATE: this page holds numbers and pictures made from private images without noise. It is for the owner of '
    'the data and must not be released. The page that may be is report.html of the run.'
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationRecipe:
    """What is measured of samples.

    Attributes:
      data: The private images, and real images held out from them.
      utility: What classifiers trained on samples are worth, or None.
      features: What images are compared by.
      quality: How near samples are to real images, or None.
      neighbors: Whether samples are copies of private images, or None.
      accuracy_release: How the accuracies of those classifiers are released, or None: they are not.
      budget_file: The budget that a released accuracy is charged to, or None.
    """

    data: datasets.PrivateData
    utility: utility_lib.UtilityConfig | None
    features: features_lib.FeaturesConfig = features_lib.FeaturesConfig()
    quality: metrics.QualityConfig | None = metrics.QualityConfig()
    neighbors: neighbors_lib.NeighborsConfig | None = neighbors_lib.NeighborsConfig()
    accuracy_release: accuracy_release_lib.AccuracyReleaseConfig | None = None
    budget_file: str | pathlib.Path | None = None


def evaluate(
    recipe: EvaluationRecipe,
    workdir: pathlib.Path,
    samples_paths: Sequence[pathlib.Path] = (),
    *,
    workers: workers_lib.Workers = workers_lib.ALONE,
    say: Callable[[str], None] = lambda unused_text: None,
) -> tuple[dict[str, Any], pathlib.Path]:
    """Measures samples and writes a report to non_private/; releases accuracies with noise where that is asked for.

    Args:
      recipe: What is measured.
      workdir: The run's folder.
      samples_paths: The samples, files or folders that bin/train or bin/sample wrote; several sets are joined; none:
        the run's, and its matched images with them where it has any.
      workers: The processes that share the work; the first one alone writes, charges and releases.
      say: Tells what is left out.

    Returns:
      What was measured, as plain JSON values, PRIVATE and complete at the first worker alone; and the folder of the
      report.

    Raises:
      ValueError: if the samples or the data do not fit, or if a release is refused; says what to do.
    """
    data, samples_paths = recipe.data, samples_paths or folder_lib.samples_paths(workdir)
    samples = shared_work.all_or_none(workers, lambda: read_samples(workdir, samples_paths, data, workers))
    quality, utility, left_out = _fitting(recipe.quality, recipe.utility, samples, data)
    settings = (recipe.features, quality, recipe.neighbors, utility, recipe.accuracy_release)
    check_same_inputs(workers, samples, data, settings)
    shared_work.at_first(workers, lambda: _check_release(recipe, workdir, utility, samples.statement_text))
    folder = workdir / folder_lib.NON_PRIVATE / f'evaluation_{folder_lib.samples_name(workdir, samples_paths)}'
    shared_work.at_first(workers, lambda: _begin(folder, samples))
    for sentence in left_out if workers.is_first else ():
        say(f'{sentence}.')
    named = ' and '.join(map(str, samples_paths))
    results = {'samples': named, 'num_samples': len(samples.images), 'left_out': left_out, 'seconds': {}}
    sections, predictions = [], {}
    if quality or recipe.neighbors:
        features_folder = workdir / folder_lib.NON_PRIVATE / 'features'
        extractor = features_lib.load(recipe.features, data.train, features_folder, workers)
    if quality:
        sections.append(_measure_quality(results, quality, extractor, samples, data))
    if utility:
        section, predictions = _measure_utility(results, utility, samples, data, workdir, folder, workers)
        sections.append(section)
    if recipe.neighbors:
        sections.append(_search_neighbors(results, recipe.neighbors, extractor, samples, data, folder))

    def finish():
        if recipe.accuracy_release:
            assert recipe.budget_file is not None  # See `_check_release`.
            results['released_accuracy'] = released_accuracy.release(
                workdir, recipe.budget_file, recipe.accuracy_release, data, predictions
            )
        files.write_text(folder / 'evaluation.json', json.dumps(results, indent=2) + '\n')
        _write_report(workdir, folder, results, sections)

    shared_work.at_first(workers, finish)
    return results, folder


def read_samples(
    workdir: pathlib.Path,
    samples_paths: Sequence[pathlib.Path],
    data: datasets.PrivateData | None,
    workers: workers_lib.Workers = workers_lib.ALONE,
) -> store.Samples:
    """Reads samples of a run, and compares them with the private images where these may be looked at.

    Raises:
      ValueError: if they differ in shape or classes, from the images or one set from another, if sets came with
        different privacy statements or hold the same images, if the run was trained on other images than these, or if
        there are none since it has diverged.
    """
    if len({path.resolve() for path in samples_paths}) < len(samples_paths):
        raise ValueError(f'a set of samples is named twice: {", ".join(map(str, samples_paths))}.')
    sets = {}
    for path in samples_paths:
        if workers.is_first and not path.exists():
            folder_lib.check_not_diverged(workdir)
        sets[path] = store.read(path)
        if data:
            sets[path].check_like(data.spec, path)
        else:
            sets[path].check_classified(path)
    if data and workers.is_first:  # It looks into the run's folder.
        folder_lib.check_same_data(workdir, data.train)
    if list(samples_paths) != folder_lib.samples_paths(workdir):  # Those of a run may be of few grey levels.
        store.check_differ(sets)
    return store.join(sets)


def check_same_inputs(
    workers: workers_lib.Workers, samples: store.Samples, data: datasets.PrivateData | None, settings: Any
) -> None:
    """Checks that all workers would measure the same.

    Args:
      workers: All of them call this.
      samples: What is measured.
      data: The private images, or None.
      settings: Frozen dataclasses.

    Raises:
      workers_lib.WorkersDisagreeError: if not.
    """
    if workers.count == 1:
        return
    digest = hashlib.sha256(samples.images.tobytes())
    digest.update(samples.labels.tobytes())
    of_data = [data.train.fingerprint(), data.held_out.fingerprint()] if data else []
    workers.check_same(
        ' '.join([digest.hexdigest(), *of_data, repr(settings)]), 'the configuration, the samples or the data'
    )


def _fitting(quality, utility, samples, data):
    """Returns the parts that can be measured, and sentences on the others: much may be set in another run's file."""
    utility, left_out = utility_lib.fitting(utility, data, len(samples.images))
    too_few = quality and metrics.too_few(
        quality, synthetic=len(samples.images), training=data.spec.num_images, held_out=len(data.held_out)
    )
    return (None, utility, [*left_out, too_few]) if too_few else (quality, utility, left_out)


def _check_release(recipe: EvaluationRecipe, workdir, utility, statement_text) -> None:
    if recipe.accuracy_release:
        if not utility:
            raise ValueError('evaluate.accuracy_release needs evaluate.utility: it releases what that measures.')
        released_accuracy.check(workdir, recipe.budget_file, recipe.accuracy_release, recipe.data, statement_text)
    elif recipe.budget_file:
        raise ValueError(
            '--budget_file is for evaluate.accuracy_release, which is not bound: nothing would be released or charged.'
        )


def _begin(folder: pathlib.Path, samples: store.Samples) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob('*.png'):
        path.unlink()  # Of parts that are now switched off.
    names = samples.class_names if samples.labels.max() < len(samples.class_names) else ()
    pictures.write_png(folder / 'samples.png', pictures.class_grid(samples.images, samples.labels, names=names))


def _measure_quality(results, config, extractor, samples, data) -> report.Section | None:
    """Returns a section; None at the other workers than the first."""
    started = time.monotonic()
    measured = metrics.measure(config, extractor, synthetic=samples.images, train=data.train, held_out=data.held_out)
    if measured is None:
        return None
    results['quality'] = measured
    results['seconds']['quality'] = round(time.monotonic() - started, 1)
    return report_sections.quality(measured)


def _measure_utility(results, config, samples, data, workdir, folder, workers):
    """Returns a section, None at the other workers than the first, and what the classifiers trained on samples take
    the held-out images for."""
    started = time.monotonic()
    measured = utility_lib.measure(config, samples.images, samples.labels, data.train, data.held_out, workers=workers)
    if not workers.is_first:
        return None, measured.predictions
    fields = results['utility'] = measured.fields
    fields['teacher'] = _test_teacher(workdir, data.held_out)
    results['seconds']['utility'] = round(time.monotonic() - started, 1)
    pictures.draw_confusion(folder / 'confusion.png', fields, report_sections.chosen_classifier(fields))
    curve_png = None
    if fields['curve']:
        curve_png = folder / 'curve.png'
        pictures.draw_utility_curve(curve_png, fields)
    section = report_sections.utility(fields, confusion_png=folder / 'confusion.png', curve_png=curve_png)
    return section, measured.predictions


def _test_teacher(workdir: pathlib.Path, held_out: datasets.ImageDataset) -> float | None:
    """Returns the accuracy of the classifier that a run releases with its generator; None where there is none."""
    saved_model = workdir / folder_lib.SAVED_MODEL
    if not saved_model.exists():
        return None
    classify = export.load_classifiers(export.find_version(saved_model)).get(export.CLASSIFY)
    return float(np.mean(classify(held_out.images_uint8)['labels'] == held_out.labels)) if classify else None


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


def _write_report(workdir, folder, results, sections) -> None:
    """Writes the private page: what the run's own page holds, if there is one, and what was measured."""
    facts = {'samples': f'{results["num_samples"]:,} in {results["samples"]}'}
    grid = report.picture(
        folder / 'samples.png', alt='Samples, one row per class', caption='The first samples of each class.'
    )
    before, after = [report.Section('Samples', grid)], []
    if (workdir / folder_lib.REPORT_FIELDS).exists():
        facts = {**run_report.read(workdir)['facts'], **facts}
        before += run_report.denoising_sections(workdir) + run_report.released_accuracy_sections(workdir)
        after = run_report.privacy_sections(workdir)
    report.write_page(
        folder / 'report.html',
        title=f'tf_dpdiff: what samples of {workdir.resolve().name} are worth',
        facts=facts,
        sections=[*before, *sections, *after],
        warning=_WARNING,
    )
