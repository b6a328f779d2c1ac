"""Files of a run's folder that more than one verb reads or writes."""

from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from tf_dpdiff import files
from tf_dpdiff.cli import command
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import kinds
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.training import configs_json

MODEL = 'model.json'
_LOCK = '.lock'


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
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    network: denoiser.DenoiserConfig
    process: process_lib.DiffusionProcess
    sampler: samplers.SamplerConfig
    label_drop_probability: float = 0.0
    labelled: bool = True
    has_feature_means: bool = False

    @property
    def labels(self) -> range:
        """The labels that the last stage trained on: the classes, "no class" (their number), or both."""
        num_classes = len(self.class_names)
        if not self.labelled:
            return range(num_classes, num_classes + 1)
        return range(num_classes + 1 if self.label_drop_probability else num_classes)

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
        if sampler.num_candidates > 1 and not self.has_feature_means:
            raise ValueError(
                f'num_candidates={sampler.num_candidates} of the sampler needs a run whose warm start released '
                'feature means to choose by (WarmStartConfig.release = @FeatureMeansConfig()).'
            )
        return self._replace(sampler=sampler)

    def write(self, workdir: pathlib.Path) -> None:
        """Writes model.json."""
        fields = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in self._asdict().items()}
        fields['network'] = kinds.to_json(self.network)
        files.write_text(workdir / MODEL, json.dumps(fields, indent=2) + '\n')


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
            process=configs_json.process_from_json(fields['process']),
            sampler=samplers.SamplerConfig(**fields['sampler']),
        )
        return ModelDescription(**fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is damaged or of another version: {error!r}.') from error


@contextlib.contextmanager
def training_in(path: str) -> Iterator[pathlib.Path]:
    """A context in which no other process trains in a run's folder; yields the folder, which is made if it is missing.

    Two that train there would each remove what the other saves, and count their steps as one.

    Raises:
      command.UsageError: if it cannot be written to.
      OSError: if another process trains there.
    """
    workdir = command.prepare_workdir(path)
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
    return [workdir / 'privacy_statement.txt', workdir / 'privacy_statement.json']


def read_statement(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads the privacy statement.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    return files.read_json(statement_paths(workdir)[1])


def paths_beside_model(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns what is laid beside an exported model: the privacy statement, and what the model is."""
    return statement_paths(workdir) + [workdir / MODEL]


def add_samples_flags(parser: command.Parser) -> None:
    """Adds the flags that `find_samples` reads."""
    parser.add_argument('--workdir', default='runs/latest', help='folder of the run (default: %(default)s)')
    parser.add_argument('--samples', help="what bin/sample wrote, a file or folder (default: the run's samples.npz)")


def find_samples(flags) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the folder of a run, which need not be there, and where the samples are."""
    workdir = pathlib.Path(flags.workdir).expanduser()
    return workdir, pathlib.Path(flags.samples).expanduser() if flags.samples else workdir / 'samples.npz'


def name_of_samples(workdir: pathlib.Path, samples_path: pathlib.Path) -> str:
    """Returns a name of a set of samples in a run's folder; of two sets elsewhere of one name it differs."""
    path = samples_path.resolve()
    name = path.name if path.is_dir() else path.stem
    if path.parent == workdir.resolve():
        return name
    return f'{name}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}'


def write_statement(
    workdir: pathlib.Path, statement: statement_lib.PrivacyStatement | statement_lib.PublicStatement
) -> None:
    """Writes the privacy statement as text and as JSON."""
    text, as_json = statement_paths(workdir)
    files.write_text(text, statement.to_text())
    files.write_text(as_json, statement.to_json())
