"""Files of a run's folder that more than one verb reads or writes."""

import dataclasses
import json
import pathlib
from typing import List, NamedTuple, Tuple

from tf_dpdiff import files
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import statement as statement_lib


class ModelDescription(NamedTuple):
    """What is needed to rebuild a run's network and sampler; holds nothing private.

    Attributes:
      image_shape: (height, width, channels).
      class_names: One a class.
      network: The network's shape.
      process: The diffusion process.
      sampler: How images are drawn.
    """
    image_shape: Tuple[int, int, int]
    class_names: Tuple[str, ...]
    network: unet.UNetConfig
    process: process_lib.DiffusionProcess
    sampler: samplers.SamplerConfig


def write_model(workdir: pathlib.Path, dataset: datasets.ImageDataset, network: unet.UNetConfig,
                process: process_lib.DiffusionProcess, sampler: samplers.SamplerConfig) -> None:
    """Writes model.json."""
    fields = {
        'image_shape': dataset.image_shape,
        'class_names': dataset.class_names,
        'network': dataclasses.asdict(network),
        'process': dataclasses.asdict(process),
        'sampler': dataclasses.asdict(sampler)
    }
    files.write_text(workdir / 'model.json', json.dumps(fields, indent=2) + '\n')


def read_model(workdir: pathlib.Path) -> ModelDescription:
    """Reads model.json.

    Raises:
      FileNotFoundError: if the folder holds no run.
    """
    path = workdir / 'model.json'
    if not path.exists():
        raise FileNotFoundError(
            f'{workdir} holds no run ({path.name} is missing); train first, or name another --workdir.')
    fields = json.loads(path.read_text())
    network = {k: tuple(v) if isinstance(v, list) else v for k, v in fields['network'].items()}
    schedule = schedules.Schedule(**fields['process'].pop('schedule'))
    return ModelDescription(tuple(fields['image_shape']), tuple(fields['class_names']), unet.UNetConfig(**network),
                            process_lib.DiffusionProcess(schedule=schedule, **fields['process']),
                            samplers.SamplerConfig(**fields['sampler']))


def statement_paths(workdir: pathlib.Path) -> List[pathlib.Path]:
    """Returns the two files of the privacy statement."""
    return [workdir / 'privacy_statement.txt', workdir / 'privacy_statement.json']


def write_statement(workdir: pathlib.Path, statement: statement_lib.PrivacyStatement) -> None:
    """Writes the privacy statement as text and as JSON."""
    text, as_json = statement_paths(workdir)
    files.write_text(text, statement.to_text())
    files.write_text(as_json, statement.to_json())
