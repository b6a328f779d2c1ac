"""What is handed over: a folder and a zip of it with what a run releases, the papers that go with it, and nothing else.

And the check at the other end, which needs no run.
"""

from collections.abc import Iterator
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from typing import NamedTuple
import zipfile
import zlib

import numpy as np
import tensorflow as tf
import yaml

from tf_dpdiff import files
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.runs import audit_summary
from tf_dpdiff.runs import budget as budget_file
from tf_dpdiff.runs import curator
from tf_dpdiff.runs import data_sheet
from tf_dpdiff.runs import deployment
from tf_dpdiff.runs import facts as facts_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import leaks
from tf_dpdiff.runs import model_card
from tf_dpdiff.runs import outcome
from tf_dpdiff.runs import report
from tf_dpdiff.runs import run as run_lib
from tf_dpdiff.runs import source as source_lib
from tf_dpdiff.sampling import draw as draw_lib
from tf_dpdiff.sampling import store
from tf_dpdiff.serving import export
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import matching

# The files that a SavedModel of ours is made of.
_OF_A_MODEL = re.compile(
    rf'saved_model\.pb|fingerprint\.pb|variables/variables\.(index|data-\d{{5}}-of-\d{{5}})|{export.EXTRA}/.*'
)
_EXTRA_FILES = (*export.EXTRA_FILES, folder.MODEL)
# Of a run's files, those that go out as they are; and what each file is.
_COPIED = (folder.STATEMENT_TEXT, folder.STATEMENT_JSON, folder.MODEL, folder.REPORT)
_FILES = {
    folder.MODEL_CARD: 'this card',
    folder.STATEMENT_TEXT: 'the privacy statement: what is promised, and what it does not cover',
    folder.STATEMENT_JSON: 'the same for programs',
    folder.REPORT: 'one page with samples, statement, what it has cost over time, and configuration',
    folder.SAMPLES: 'the samples, as NumPy arrays',
    folder.SAMPLES_PICTURE: 'a look at them',
    folder.MATCHED_IMAGES: 'images made to match noisy means: train on them together with the samples',
    folder.SAVED_MODEL: 'the generator, for TensorFlow and TensorFlow Serving; with it the teacher, if there is one',
    folder.MODEL: 'its shape and classes',
    folder.RELEASED_ACCURACY: 'accuracies on private images, released with noise',
    folder.AUDIT_SUMMARY: 'an audit of the implementation, on no private image',
    folder.DATA_SHEET: 'the data sheet of the samples, in the Croissant format',
    folder.DEPLOYMENT_RECORD: "the record for OpenDP's registry of deployments",
    folder.SHA256SUMS: 'the digest of each file',
}
_MANY = 5  # Findings that a line can hold.
# Another version of the accountant may find a slightly larger epsilon.
_RECOMPUTED_WITHIN = 1e-3


class HandedOver(NamedTuple):
    """What was written.

    Attributes:
      directory: The folder.
      archive: The zip of it.
      num_samples: How many samples are in it.
      digest: SHA-256 of SHA256SUMS, to be told to the receiver by another channel.
      missing: The questions that the curator has not answered.
      not_checked: What could not be looked for, a sentence each.
      cautions: What its card tells first, a sentence each.
    """

    directory: pathlib.Path
    archive: pathlib.Path
    num_samples: int
    digest: str
    missing: list[curator.Question]
    not_checked: list[str]
    cautions: list[str]


def make(
    workdir: pathlib.Path,
    output: pathlib.Path,
    *,
    answers: curator.Answers | None = None,
    num_images: int | None = None,
    budget_path: str | os.PathLike | None = None,
    without_guarantee: bool = False,
    audit_path: pathlib.Path | None = None,
    private_data: datasets.PrivateData | None = None,
) -> HandedOver:
    """Writes what is handed over, to a new folder and a zip of it; each appears whole or not at all.

    It is searched for what must stay before it appears: the run's secret, files of checkpoints/ and non_private/, paths
    of this machine and, where they are known, private images.

    Args:
      workdir: The folder of a finished run.
      output: The folder; the zip is called the same and .zip.
      answers: Of the curator.
      num_images: How many samples to draw from the released model, with seeds from 0; None: the run's own samples.
      budget_path: The budget file of the data, of which the total is told.
      without_guarantee: Whether a run without a guarantee may go out; its card says so first.
      audit_path: The summary of an audit that goes out too, public by its own words; None: none does.
      private_data: The run's private images, read only to look for them; None: they are not looked for.

    Raises:
      FileExistsError: if there is something in its place.
      FileNotFoundError: if there is no run.
      ValueError: if the run is not finished, has no guarantee, or would let out what must stay; says what to do.
    """
    archive = _check_output(output)
    audit = audit_summary.read(audit_path) if audit_path is not None else None
    source, accuracy, budget = _check_run(workdir, budget_path, without_guarantee)
    images, labels = _samples(workdir, source, num_images)
    answers = answers or curator.Answers()
    facts = facts_lib.Facts(
        statement=folder.read_statement(workdir),
        description=source.description,
        answers=answers,
        num_samples=len(images),
        accuracy=accuracy,
        budget=budget,
        statement_sha256=_sha256(workdir / folder.STATEMENT_JSON),
        date=answers.given.get('publication_date', datetime.datetime.now(datetime.UTC).date().isoformat()),
    )
    pixels, not_checked = _private_pixels(workdir, private_data) if facts.is_private else (None, [])
    forbidden = leaks.collect(workdir, pixels)
    with files.replacing(archive) as temporary_archive, files.replacing(output) as temporary:
        temporary.mkdir()
        for name in [*_COPIED, *([folder.RELEASED_ACCURACY] if accuracy else [])]:
            shutil.copyfile(workdir / name, temporary / name)
        if audit is not None:
            files.write_text(temporary / folder.AUDIT_SUMMARY, audit)
        _copy_model(export.find_version(workdir / folder.SAVED_MODEL), temporary / folder.SAVED_MODEL / '1')
        outcome.write_samples(temporary, images, labels, facts.description.class_names)
        made = matching.read_images(workdir, facts.statement['run_id']) if facts.is_private else None
        if made is not None:
            store.write_file(temporary / folder.MATCHED_IMAGES, *made, facts.description.class_names)
        _write_papers(temporary, facts)
        _refuse_leaks(temporary, forbidden.but_for(temporary / folder.SAMPLES_PICTURE))
        files.write_text(temporary / folder.SHA256SUMS, _sums(temporary))
        _write_archive(temporary, temporary_archive, output.name)
    missing = answers.missing(is_private=facts.is_private)
    digest = _sha256(output / folder.SHA256SUMS)
    return HandedOver(output, archive, len(images), digest, missing, not_checked, facts.cautions)


def _check_output(output: pathlib.Path) -> pathlib.Path:
    """Returns the path of the zip; refuses what is there already."""
    if output.suffix == '.zip':
        raise ValueError(f'{output}: name the folder; the zip of it is written too, and called the same and .zip.')
    archive = output.with_name(f'{output.name}.zip')
    for path in (output, archive):
        if os.path.lexists(path):
            raise FileExistsError(f'{path} exists; name a new folder.')
    return archive


def _check_run(
    workdir: pathlib.Path, budget_path: str | os.PathLike | None, without_guarantee: bool
) -> tuple[source_lib.Source, dict | None, str | None]:
    """Returns a run's model, its released accuracies and what its budget says; refuses a run that must not go out."""
    source_lib.check_complete(workdir)
    if (workdir / checkpoints.FOLDER).exists():
        folder.check_statement(workdir)
    report.read(workdir)  # Which a run writes last but for its model.
    statement = folder.read_statement(workdir)
    is_private = statement.get('dataset') is not None
    if is_private and not statement['guarantee_claimed'] and not without_guarantee:
        raise ValueError(
            f'the run in {workdir} has no privacy guarantee: what it releases may show private images. Train it with '
            'noise and Poisson sampling, or say --without_guarantee where all who get it may see those images.'
        )
    page, text = ((workdir / name).read_text(encoding='utf-8') for name in (folder.REPORT, folder.STATEMENT_TEXT))
    if not report.shows(page, text):
        raise ValueError(f'{workdir / folder.REPORT} shows another privacy statement; finish bin/train first.')
    accuracy, budget = None, None
    if (workdir / folder.RELEASED_ACCURACY).exists():
        found = files.read_json(workdir / folder.RELEASED_ACCURACY)
        accuracy = found if found.get('model_run_id') == statement.get('run_id') else None
    if budget_path is not None:
        if not is_private:
            raise ValueError(f'the run in {workdir} read public images alone: no budget file is charged with it.')
        held = budget_file.read(budget_path)
        budget_file.check_holds(held, budget_path, workdir, statement)
        budget = run_lib.describe_spent(held)
    return source_lib.find(workdir, None), accuracy, budget


def _samples(workdir: pathlib.Path, source: source_lib.Source, num_images: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the run's samples, or as many as are asked for, drawn from its exported model."""
    model = source.description
    if num_images is None:
        samples = store.read(workdir / folder.SAMPLES)
        if (samples.images.shape[1:], samples.class_names) != (model.image_shape, model.class_names):
            raise ValueError(
                f'{workdir / folder.SAMPLES} holds other images or classes than the model draws; draw anew with '
                '--num_images.'
            )
        return samples.images, samples.labels
    classes = tuple(range(len(model.class_names))) if model.labelled else (len(model.class_names),)
    drawn = draw_lib.at_once(
        source.load(),
        draw_lib.GenerateConfig(num_images=num_images),
        choice=draw_lib.ClassChoice(classes),
        label_images=source.label_images,
    )
    assert drawn is not None  # Nobody asks it to stop.
    return drawn


def _private_pixels(
    workdir: pathlib.Path, data: datasets.PrivateData | None
) -> tuple[list[np.ndarray] | None, list[str]]:
    """Returns the private images where they are known, and what cannot be looked for."""
    not_checked = []
    if not (workdir / checkpoints.FOLDER).exists():
        not_checked.append('checkpoints/ is missing, so the secret seed of the run was not looked for')
    if data is None:
        not_checked.append('private images were not at hand, so they were not looked for')
        return None, not_checked
    try:
        folder.check_same_data(workdir, data.train)
    except ValueError as error:
        return None, [*not_checked, f'private images were not looked for: {str(error).rstrip(".")}']
    return [data.train.images_uint8, data.held_out.images_uint8], not_checked


def _copy_model(version: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a SavedModel, and nothing that does not belong to it."""
    for name in _names(version):
        is_extra = name.startswith(f'{export.EXTRA}/')
        if not _OF_A_MODEL.fullmatch(name) or (is_extra and name.partition('/')[2] not in _EXTRA_FILES):
            raise ValueError(f'{version / name} is no part of an exported model; take it away, or export anew.')
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(version / name, target / name)


def _write_papers(directory: pathlib.Path, facts: facts_lib.Facts) -> None:
    """Writes card, data sheet and, of a release with a guarantee, the record of the deployment."""
    samples = directory / folder.SAMPLES
    sheet = data_sheet.write(facts, _sha256(samples), samples.stat().st_size)
    files.write_text(directory / folder.DATA_SHEET, sheet)
    if facts.has_guarantee:
        files.write_text(directory / folder.DEPLOYMENT_RECORD, deployment.write(facts))
    there = {path.name for path in directory.iterdir()} | {folder.MODEL_CARD, folder.SHA256SUMS}
    listed = [(name, what) for name, what in _FILES.items() if name in there]
    files.write_text(directory / folder.MODEL_CARD, model_card.write(facts, listed))


def _refuse_leaks(directory: pathlib.Path, forbidden: leaks.Forbidden) -> None:
    found = leaks.find(directory, forbidden)
    if found:
        more = f'; and {len(found) - _MANY} more' if len(found) > _MANY else ''
        raise ValueError(f'nothing is released: {"; ".join(found[:_MANY])}{more}. Take it out of the run first.')


def _sums(directory: pathlib.Path) -> str:
    """Returns the digests of all files below a folder, as sha256sum writes them."""
    return ''.join(f'{_sha256(directory / name)}  {name}\n' for name in _names(directory))


def _names(directory: pathlib.Path) -> list[str]:
    """Returns the files below a folder but for SHA256SUMS, links among them."""
    paths = (path for path in directory.rglob('*') if path.is_symlink() or not path.is_dir())
    names = sorted(path.relative_to(directory).as_posix() for path in paths)
    return [name for name in names if name != folder.SHA256SUMS]


def _sha256(path: pathlib.Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _write_archive(directory: pathlib.Path, archive: pathlib.Path, name: str) -> None:
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as written:
        for path in [*_names(directory), folder.SHA256SUMS]:
            written.write(directory / path, f'{name}/{path}')


class Check(NamedTuple):
    """What was found of a release that has arrived.

    Attributes:
      is_good: Whether it is as it should be.
      text: In a sentence.
    """

    is_good: bool
    text: str


def verify(path: pathlib.Path) -> list[Check]:
    """Checks a release that has arrived: its files, and that model, folder and papers tell of one guarantee.

    It tells damage, and papers that do not belong together. It does not tell who made the release: whoever changes a
    file can change SHA256SUMS too, so compare that file's own digest with what the sender says. The model is loaded
    only where all files are as listed.

    Args:
      path: The folder, or the zip of it.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it is neither a folder nor a zip.
    """
    with _opened(path) as directory:
        found = list(_check_files(directory))
        if all(check.is_good for check in found):
            found += _check_statements(directory)
        else:
            found.append(Check(False, 'statement, model and papers were not compared'))
        return found


def digest_of(path: pathlib.Path) -> str | None:
    """Returns the SHA-256 of SHA256SUMS of a release, by which two copies are compared; None where it has none."""
    with _opened(path) as directory:
        sums = directory / folder.SHA256SUMS
        return _sha256(sums) if sums.is_file() else None


def claim_of(path: pathlib.Path) -> str:
    """Returns in a sentence what the statement of a release claims."""
    with _opened(path) as directory:
        return store.describe(directory / folder.STATEMENT_JSON)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A context with the folder of a release, unpacked elsewhere where it is a zip."""
    if not path.exists():
        raise FileNotFoundError(f'no release at {path}: name its folder, or the zip of it.')
    if path.is_dir():
        yield path
        return
    if not zipfile.is_zipfile(path):
        raise ValueError(f'{path} is neither a folder nor a zip, or the zip is damaged; get it anew.')
    with tempfile.TemporaryDirectory() as unpacked:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(unpacked)  # Which keeps every name below the folder.
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f'{path} is damaged ({error}); get it anew.') from error
        inside = list(pathlib.Path(unpacked).iterdir())
        yield inside[0] if len(inside) == 1 and inside[0].is_dir() else pathlib.Path(unpacked)


def _check_files(directory: pathlib.Path) -> Iterator[Check]:
    """Compares the files with SHA256SUMS."""
    sums = directory / folder.SHA256SUMS
    if not sums.is_file():
        yield Check(False, f'{folder.SHA256SUMS} is missing: what the files should be is not known')
        return
    listed: dict[str, str] = {}
    for line in sums.read_text(encoding='utf-8', errors='replace').splitlines():
        entry = re.fullmatch(r'([0-9a-f]{64}) [ *](.+)', line)
        if not entry or entry.group(2) in listed:
            yield Check(False, f'{folder.SHA256SUMS} is damaged: {line!r}')
            return
        listed[entry.group(2)] = entry.group(1)
    there = _names(directory)
    problems = [f'{name} is missing' for name in listed if name not in there]
    problems += [f'{name} is not listed' for name in there if name not in listed]
    for name in sorted(set(there) & set(listed)):
        if (directory / name).is_symlink():
            problems.append(f'{name} is a link')
        elif _sha256(directory / name) != listed[name]:
            problems.append(f'{name} has changed')
    yield from (Check(False, problem) for problem in problems)
    if not problems:
        yield Check(True, f'{len(listed)} files, all as listed in {folder.SHA256SUMS}, and no others')


def _check_statements(directory: pathlib.Path) -> Iterator[Check]:
    """Compares what the model, the folder and the papers say of the guarantee."""
    try:
        texts = [(directory / name).read_text(encoding='utf-8') for name in store.STATEMENTS]
        statement = json.loads(texts[1])
        card = (directory / folder.MODEL_CARD).read_text(encoding='utf-8')
        page = (directory / folder.REPORT).read_text(encoding='utf-8')
        sheet = files.read_json(directory / folder.DATA_SHEET)
        version = export.find_version(directory / folder.SAVED_MODEL)
        beside = [(version / export.EXTRA / name).read_text(encoding='utf-8') for name in store.STATEMENTS]
        epsilon, delta = statement['epsilon'], statement.get('delta')
        ledger = ledger_lib.Ledger.from_json(json.dumps(statement.get('releases', [])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Check(False, f'it is not complete: {" ".join(str(error).replace(f"{directory}/", "").split())}')
        return
    yield Check(
        _told_by(version) == texts == beside, 'the statement in the model, beside the model and in the folder are one'
    )
    yield Check(report.shows(page, texts[0]), f'{folder.REPORT} shows that statement')
    yield Check(model_card.says(card, epsilon), f'{folder.MODEL_CARD} tells the epsilon of the statement')
    sampled = [entry.get('sha256') for entry in sheet.get('distribution', [])]
    yield Check(
        sampled == [_sha256(directory / folder.SAMPLES)], f'{folder.DATA_SHEET} is about the {folder.SAMPLES} beside it'
    )
    if epsilon is None:
        if statement.get('dataset') is not None:
            yield Check(facts_lib.NO_GUARANTEE in card, f'{folder.MODEL_CARD} says that there is no guarantee')
        return
    yield Check(
        _in_record(directory / folder.DEPLOYMENT_RECORD)
        == (epsilon, delta, _sha256(directory / folder.STATEMENT_JSON)),
        f'{folder.DEPLOYMENT_RECORD} tells epsilon and delta of the statement, and its digest',
    )
    yield Check(
        accounting.epsilon(ledger.dp_event(), delta) <= epsilon * (1.0 + _RECOMPUTED_WITHIN),
        'computed anew from the releases that the statement lists, epsilon is no larger than it says',
    )


def _told_by(version: pathlib.Path) -> list[str]:
    """Returns the statement, as text and as JSON, that a model answers with."""
    try:
        signature = tf.saved_model.load(str(version)).signatures['privacy_statement']
    except (OSError, ValueError, KeyError, tf.errors.OpError):
        return []
    return [text.decode() for text in signature(format=tf.constant(['text', 'json']))['statement'].numpy()]


def _in_record(path: pathlib.Path) -> tuple | None:
    """Returns epsilon, delta and the digest of the statement, as a record of a deployment tells them."""
    try:
        fields = yaml.safe_load(path.read_text(encoding='utf-8'))['deployment']
        parameters = fields['privacy_loss']['privacy_parameters']
        digest = re.findall(r'[0-9a-f]{64}', fields['administrative']['notes'])
        return parameters['epsilon'], parameters['delta'], digest[0] if digest else None
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
