"""The folder of a run: what lies where, its lock, what its model is, and whether its files belong together."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from typing import Any, NamedTuple

from tf_dpdiff import files
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import kinds
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.sampling import formats
from tf_dpdiff.sampling import store
from tf_dpdiff.serving import export
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import summaries

# What lies where, besides the checkpoints and what the stages of training release (`training`).
MODEL, OPERATIVE_CONFIG = export.MODEL, 'operative_config.gin'
STATEMENT_TEXT, STATEMENT_JSON = export.STATEMENT_TEXT, export.STATEMENT_JSON
SAMPLES, MATCHED_IMAGES = store.OF_A_RUN
SAMPLES_PICTURE, MATCHED_IMAGES_PICTURE, DENOISING_PICTURE = 'samples.png', 'matched_images.png', 'denoising.png'
CLASS_MEANS_PICTURE, CHOSEN_IMAGES_PICTURE = 'noisy_class_means.png', 'chosen_public_images.png'
REPORT, REPORT_FIELDS, EPSILON_PICTURE = 'report.html', 'report.json', 'epsilon.png'
RELEASED_ACCURACY = 'released_accuracy.json'
AUDIT_SUMMARY, AUDIT_SUMMARY_TEXT = 'audit_summary.json', 'audit_summary.txt'
SAVED_MODEL = 'saved_model'
NON_PRIVATE = summaries.NON_PRIVATE
# What bin/release adds to what goes out.
MODEL_CARD, DATA_SHEET, DEPLOYMENT_RECORD, SHA256SUMS = 'README.md', 'croissant.json', 'deployment.yaml', 'SHA256SUMS'
_LOCK = '.lock'
_OF_A_RUN_ALONE = (*store.OF_A_RUN, REPORT_FIELDS)
_SHOWN_CLASSES = 20


class ModelDescription(NamedTuple):
    """What is needed to rebuild a run's network and sampler; holds nothing private.

    Attributes:
      image_shape: (height, width, channels).
      class_names: One a class.
      network: The network's shape.
      process: The diffusion process.
      sampler: How images are drawn.
      label_drop_probability: Share of the training views that had no label; above 0, samples may be guided.
      labelled: Whether the images that the last stage trained on had labels; if not, samples are of "no class".
      has_feature_means: Whether the run releases feature means, by which a sampler can choose among candidates.
      has_teacher: Whether the run releases a teacher, by which it does so better.
      label_bias: Added to the teacher's logits, one a class, where it labels the run's samples; None: it does not.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    network: denoiser.DenoiserConfig
    process: process_lib.DiffusionProcess
    sampler: samplers.SamplerConfig
    label_drop_probability: float = 0.0
    labelled: bool = True
    has_feature_means: bool = False
    has_teacher: bool = False
    label_bias: tuple[float, ...] | None = None

    @property
    def labels(self) -> range:
        """The labels that the last stage trained on: the classes, "no class" (their number), or both."""
        num_classes = len(self.class_names)
        if not self.labelled:
            return range(num_classes, num_classes + 1)
        return range(num_classes + 1 if self.label_drop_probability else num_classes)

    @property
    def named_labels(self) -> tuple[int, ...]:
        """The labels that are drawn where nobody names any: all classes, or "no class" where there were no labels."""
        num_classes = len(self.class_names)
        return tuple(range(num_classes)) if self.labelled else (num_classes,)

    def labels_of(self, names: Sequence[str]) -> tuple[int, ...]:
        """Returns the labels of classes by name, of which `formats.NO_CLASS` may be one.

        Raises:
          ValueError: if there is no such class, or if the model was never trained on it.
        """
        known, labels = [*self.class_names, formats.NO_CLASS], []
        has_no_class = len(self.class_names) in self.labels
        for name in names:
            if name != formats.NO_CLASS and not self.labelled:
                raise ValueError(
                    f'the model was trained without labels, so it draws only {formats.NO_CLASS}, not {name!r}.'
                )
            if name == formats.NO_CLASS and not has_no_class:
                raise ValueError(
                    'the model was never trained without labels (its label_drop_probability was 0), so it cannot draw '
                    f'{name}.'
                )
            if name not in known:
                num_more = len(self.class_names) - _SHOWN_CLASSES
                more = f', ... ({len(self.class_names)} in all)' if num_more > 0 else ''
                others = f', and {formats.NO_CLASS}' if has_no_class else ''
                raise ValueError(
                    f'there is no class {name!r}; there are {", ".join(self.class_names[:_SHOWN_CLASSES])}{more}'
                    f'{others}.'
                )
            labels.append(known.index(name))
        return tuple(labels)

    def with_sampler(self, sampler: samplers.SamplerConfig) -> 'ModelDescription':
        """Returns the same with another sampler.

        Raises:
          ValueError: if the sampler does not fit the process or the training.
        """
        num_timesteps = self.process.schedule.num_timesteps
        if sampler.num_steps > num_timesteps:
            raise ValueError(
                f'num_steps={sampler.num_steps} of the sampler exceeds the {num_timesteps} timesteps of the schedule.'
            )
        if sampler.guidance_scale != 1.0 and not self.label_drop_probability:
            raise ValueError(
                f'guidance_scale={sampler.guidance_scale:g} of the sampler needs a model that was trained '
                'with label_drop_probability > 0 in its last ViewsConfig, and this one is not.'
            )
        if sampler.num_candidates > 1 and not (self.has_teacher or self.has_feature_means):
            raise ValueError(
                f'num_candidates={sampler.num_candidates} of the sampler needs a run with a teacher to choose by '
                '(train.teacher = @TeacherConfig()), or one whose warm start released feature means '
                '(WarmStartConfig.release = @FeatureMeansConfig()).'
            )
        return self._replace(sampler=sampler)

    def write(self, workdir: pathlib.Path) -> None:
        """Writes model.json."""
        fields = plain_values(self._asdict())
        fields['network'] = kinds.to_json(self.network)
        files.write_text(workdir / MODEL, json.dumps(fields, indent=2) + '\n')


def plain_values(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns fields with their configurations, and all in these, as plain values by name."""
    return {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for name, value in fields.items()
    }


def read_model(workdir: pathlib.Path) -> ModelDescription:
    """Reads model.json.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: if it is damaged.
    """
    path = workdir / MODEL
    if not path.exists():
        raise FileNotFoundError(
            f'{workdir} holds no run ({path.name} is missing); train first, or name another --workdir.'
        )
    fields = files.read_json(path)
    try:
        fields.update(
            image_shape=tuple(fields['image_shape']),
            class_names=tuple(fields['class_names']),
            network=kinds.from_json(fields['network']),
            process=process_lib.from_json(fields['process']),
            sampler=samplers.SamplerConfig(**fields['sampler']),
            label_bias=fields.get('label_bias') and tuple(fields['label_bias']),
        )
        return ModelDescription(**fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is damaged or of another version: {error!r}.') from error


def prepare(path: str | os.PathLike) -> pathlib.Path:
    """Makes the run's folder and checks that it can be written to, before any work is done.

    Raises:
      ValueError: if it cannot.
    """
    workdir = pathlib.Path(path).expanduser()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f'.writable.{os.getpid()}'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f'cannot write to --workdir={workdir}: {error.strerror}; name another folder.') from error
    return workdir


@contextlib.contextmanager
def training_in(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A context in which no other process trains in a run's folder; yields the folder, which is made if it is missing.

    Two that train there would each remove what the other saves, and count their steps as one.

    Raises:
      ValueError: if it cannot be written to.
      OSError: if another process trains there.
    """
    workdir = prepare(path)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.holding(workdir / _LOCK))
        except BlockingIOError as error:
            raise OSError(
                f'another process trains in --workdir={workdir}: wait for its end, or name another folder.'
            ) from error
        yield workdir


def statement_paths(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the two files of the privacy statement."""
    return [workdir / STATEMENT_TEXT, workdir / STATEMENT_JSON]


def read_statement(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads the privacy statement.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    return files.read_json(statement_paths(workdir)[1])


def paths_beside_model(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that go with an exported model: the privacy statement, and the description of the model."""
    return statement_paths(workdir) + [workdir / MODEL]


def samples_paths(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns where what a run offers to train on lies: its samples and, if it has any, its matched images."""
    matched = workdir / MATCHED_IMAGES
    return [workdir / SAMPLES, *([matched] if matched.exists() else [])]


def samples_name(workdir: pathlib.Path, paths: Sequence[pathlib.Path]) -> str:
    """Returns the name by which a run's folder tells sets of samples apart, also sets elsewhere of one file name."""
    names = []
    for path in (path.resolve() for path in paths):
        name = path.name if path.is_dir() else path.stem
        if path.parent != workdir.resolve():
            name += f'_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}'
        names.append(name)
    return '+'.join(names)


def write_statement(
    workdir: pathlib.Path, statement: statement_lib.PrivacyStatement | statement_lib.PublicStatement
) -> None:
    """Writes the privacy statement as text and as JSON."""
    text, as_json = statement_paths(workdir)
    files.write_text(text, statement.to_text())
    files.write_text(as_json, statement.to_json())


def check_free(workdir: pathlib.Path) -> None:
    """Checks that a folder holds neither a run that is over nor results of another run than its checkpoints, if any.

    A run that began there would leave its checkpoints beside a statement that says less than they cost. A run that has
    diverged was charged for what it had released, and would release more.

    Raises:
      ValueError: if it does, or if the statement is damaged.
    """
    path, found = statement_paths(workdir)[1], checkpoints.read_run(workdir / checkpoints.FOLDER)
    if found is not None and found.has_diverged:
        raise checkpoints.diverged_error(workdir / checkpoints.FOLDER)
    left = path if path.exists() else None
    if found is None:
        # Without its statement, too: samples that stayed would be taken for those of the new run, under its statement.
        left = left or next((own for own in map(workdir.joinpath, _OF_A_RUN_ALONE) if _is_left(own)), None)
    if left is None:
        return
    if found is None or files.read_json(path).get('run_id', found.run_id) != found.run_id:
        raise ValueError(
            f'{workdir} holds the results of another run than its checkpoints ({left.name} is not '
            'theirs): name another --workdir, or move those files away.'
        )
    statement = files.read_json(path)
    if _count(_releases_of(statement)) > _count(found.ledger):
        raise ValueError(
            f'{path.name} in {workdir} tells of more steps than its newest whole checkpoint: the '
            'model is released, and must not be trained and released anew. Put the checkpoints '
            'back from a copy, or name another --workdir.'
        )


def _is_left(path: pathlib.Path) -> bool:
    """Tells if a file is of a run; samples with a record of their own are of bin/sample."""
    return path.exists() and not store.record_path(path).exists()


def check_not_diverged(workdir: pathlib.Path) -> None:
    """Checks that a run has not diverged: its statement tells what that cost, and there is nothing that it is about.

    Raises:
      ValueError: if it has.
    """
    found = checkpoints.read_run(workdir / checkpoints.FOLDER)
    if found is not None and found.has_diverged:
        raise ValueError(
            f'the run in {workdir} has diverged, and left neither a model nor samples: name the --workdir of another.'
        )


def check_statement(workdir: pathlib.Path) -> None:
    """Checks that a run's statement is about its newest checkpoint.

    Raises:
      ValueError: if it is about another run, about fewer steps, or damaged.
    """
    path = statement_paths(workdir)[1]
    statement, found = files.read_json(path), checkpoints.read_run(workdir / checkpoints.FOLDER)
    if found is None:
        raise ValueError(
            f'{workdir / checkpoints.FOLDER} is missing: without it the run cannot draw anew; draw from its '
            '--saved_model.'
        )
    if (statement.get('run_id', found.run_id), _releases_of(statement)) != (found.run_id, found.ledger):
        raise ValueError(
            f'{path} and {workdir / checkpoints.FOLDER} are not of the same run, or the run goes on: '
            'finish it by its bin/train command, which writes its statement.'
        )


def check_same_data(workdir: pathlib.Path, train: datasets.ImageDataset) -> None:
    """Checks that a run was trained on these images, if its checkpoints tell.

    Raises:
      ValueError: if it was trained on others: held-out images may be among those.
    """
    found = checkpoints.read_run(workdir / checkpoints.FOLDER)
    if found is None:
        print(
            f'{workdir} holds no checkpoints: whether its run was trained on these images, and not on the held-out '
            'ones, is not known.',
            file=sys.stderr,
        )
    elif found.data_fingerprint not in (None, train.fingerprint()):
        raise ValueError(
            f'the run in {workdir} was trained on other images than those of {train.name!r} that are not held out '
            '(another file, split or owners): its training images may be among the held-out ones. Give the data as '
            'the run had them.'
        )


def _releases_of(statement: dict) -> ledger_lib.Ledger:
    """Returns the releases that a statement tells of."""
    return ledger_lib.Ledger.from_json(json.dumps(statement.get('releases', [])))


def _count(ledger: ledger_lib.Ledger) -> int:
    return sum(release.count for release in ledger.of_single_runs)
