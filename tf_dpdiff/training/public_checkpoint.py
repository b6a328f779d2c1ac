"""The public checkpoint: a network trained on public images alone, as private runs start from it."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any
import zipfile

import numpy as np

from tf_dpdiff import files
from tf_dpdiff import keras
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import kinds
from tf_dpdiff.networks import transfer

FOLDER = 'pretrained'
_DESCRIPTION, _WEIGHTS, _DIGESTS = 'pretrained.json', 'weights.npz', 'image_digests.npy'
_ARRAYS = ('weights', 'image_digests')  # The other fields are in the description.


@dataclasses.dataclass(frozen=True, eq=False)
class PublicCheckpoint:
    """What is known of a network that was trained on public images alone.

    Attributes:
      image_shape: (height, width, channels) of the public images.
      class_names: Their classes.
      network: The network's shape.
      process: The diffusion process that it learnt.
      dataset: Name of the public data set.
      num_images: How many it holds.
      num_steps: Steps of training.
      batch_size: Images a step.
      label_drop_probability: Share of the views that had no label.
      loss: Of the averaged network on its own images, the mean over views as training draws them.
      weights: The moving average of the weights, by the variable's name.
      image_digests: Of the public images, by which private ones among them are found; see `overlap.image_digests`.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    network: denoiser.DenoiserConfig
    process: process_lib.DiffusionProcess
    dataset: str
    num_images: int
    num_steps: int
    batch_size: int
    label_drop_probability: float
    loss: float
    weights: dict[str, np.ndarray]
    image_digests: np.ndarray

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of all that is above: the checkpoint's identity."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name in sorted(self.weights):
            value = np.ascontiguousarray(self.weights[name], '<f4')
            digest.update(f'{name} {value.shape}\n'.encode())
            digest.update(value.data)
        digest.update(np.ascontiguousarray(self.image_digests, '<u8').data)
        return digest.hexdigest()

    def _description(self) -> dict:
        """Returns the fields that are no arrays, as JSON values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _ARRAYS}
        return {**fields, 'network': kinds.to_json(self.network), 'process': dataclasses.asdict(self.process)}

    def to_phrase(self) -> str:
        """Returns a phrase that names its origin, for statements."""
        return f'{self.num_images:,} images of {self.dataset!r}, by the checkpoint with SHA-256 {self.sha256[:16]}'

    def check_fits(
        self, network: denoiser.DenoiserConfig, process: process_lib.DiffusionProcess, image_shape: tuple[int, int, int]
    ) -> None:
        """Refuses another architecture or another diffusion process.

        Args:
          network: Whose weights these are to be.
          process: What it is to reverse.
          image_shape: (height, width, channels) of its images, which may be others than those of the checkpoint.

        Raises:
          ValueError: one line that names what differs.
        """
        differing = transfer.architecture_differences(self.network.resized(self.image_shape, image_shape), network)
        for name, there, here in (
            ('parameterization', self.process.parameterization, process.parameterization),
            ('schedule', self.process.schedule.name, process.schedule.name),
            ('num_timesteps', self.process.schedule.num_timesteps, process.schedule.num_timesteps),
        ):
            if there != here:
                differing.append(f'{name} is {there!r} in the checkpoint and {here!r} here')
        if differing:
            raise ValueError(
                f'the public checkpoint ({self.dataset!r}) is of another model than the configuration: '
                f'{"; ".join(differing)}.'
            )

    def carry_over_to(self, model: keras.Model) -> None:
        """Puts the weights into a network; the embeddings of its classes stay as they were drawn.

        Raises:
          ValueError: names the first variable that does not fit.
        """
        transfer.carry_over_weights(self.weights, model)

    def write(self, folder: pathlib.Path) -> None:
        """Writes the checkpoint as a folder of three files: a description, the weights and the images' digests."""
        with files.replacing(folder / _WEIGHTS) as temporary:
            weights: dict[str, Any] = self.weights  # None of them is called allow_pickle.
            np.savez(temporary, **weights)
        with files.replacing(folder / _DIGESTS) as temporary:
            np.save(temporary, self.image_digests)
        num_parameters = sum(value.size for value in self.weights.values())
        fields = {**self._description(), 'num_parameters': num_parameters, 'sha256': self.sha256}
        # Written last: where it is, the rest is whole.
        files.write_text(folder / _DESCRIPTION, json.dumps(fields, indent=2) + '\n')


def weights_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns a network's weights by the names of its variables."""
    return {variable.name.split(':')[0]: variable.numpy() for variable in model.variables}


def read(folder: pathlib.Path) -> PublicCheckpoint:
    """Reads a checkpoint.

    Args:
      folder: Of the checkpoint, or of the finished public run that wrote it.

    Raises:
      FileNotFoundError: if there is none; says what is there.
      ValueError: if it is damaged.
    """
    where = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    description = where / _DESCRIPTION
    if not description.exists():
        found = 'there is no such folder'
        if (folder / 'checkpoints').is_dir():
            found = 'the run there is private, or not finished: finish it with the same command'
        elif folder.is_dir():
            found = f'{_DESCRIPTION} is missing'
        raise FileNotFoundError(f'no public checkpoint in {folder}: {found}.')
    try:
        fields = json.loads(description.read_text())
        with np.load(where / _WEIGHTS, allow_pickle=False) as arrays:
            weights = {name: arrays[name] for name in arrays.files}
        image_digests = np.load(where / _DIGESTS, allow_pickle=False)
        expected = fields.pop('sha256')
        del fields['num_parameters']
        fields.update(
            image_shape=tuple(fields['image_shape']),
            class_names=tuple(fields['class_names']),
            network=kinds.from_json(fields['network']),
            process=process_lib.from_json(fields['process']),
        )
        model = PublicCheckpoint(weights=weights, image_digests=image_digests, **fields)
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f'the public checkpoint in {where} is damaged: {error}.') from error
    if model.sha256 != expected:
        raise ValueError(
            f'the public checkpoint in {where} is damaged: it is not the one that {_DESCRIPTION} names; '
            'fetch or make it again.'
        )
    return model
