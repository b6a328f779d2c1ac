"""SavedModels for TF Serving: the averaged weights and the sampler, and nothing that training used."""

import functools
import hashlib
import pathlib
import shutil
from typing import Callable, Sequence

import tensorflow as tf

from tf_dpdiff import files
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.networks import unet

EXTRA = 'assets.extra'  # Where TF Serving lets other files lie beside a model.


class ImageSampler(tf.Module):
    """Samples images from labels and seeds; what is exported.

    Args:
      model: The network, with the weights to be released.
      process: What it was trained for.
      config: The sampler; fixed in the exported model.
    """

    def __init__(self, model: tf.keras.Model, process: process_lib.DiffusionProcess, config: samplers.SamplerConfig):
        super().__init__()
        self._variables = model.variables  # And not the model: its optimizer would be exported with it.
        image_shape = tuple(model.inputs[0].shape[1:])
        sample_images = samplers.make_image_sampler(functools.partial(unet.denoise, model),
                                                    process=process,
                                                    config=config,
                                                    image_shape=image_shape,
                                                    num_classes=model.get_layer('class_embedding').num_classes)

        @tf.function(input_signature=[
            tf.TensorSpec([None], tf.int32, name='labels'),
            tf.TensorSpec([None], tf.int64, name='seeds'),
        ])
        def sample(labels, seeds):
            return {'images': sample_images(labels, seeds)}

        self.sample = sample


def export_saved_model(sampler: ImageSampler, directory: pathlib.Path,
                       released_files: Sequence[pathlib.Path]) -> pathlib.Path:
    """Writes a new version of a servable.

    Args:
      sampler: What to export.
      directory: The servable's folder; versions are numbered sub-folders, as TF Serving expects them.
      released_files: The privacy statement and the description of the model; laid beside it, in `assets.extra/`.

    Returns:
      The folder of the new version. Its signature `serving_default` maps labels, int32 [batch], and seeds, int64
      [batch], to images, uint8 [batch, height, width, channels]; an image depends on its own label and seed alone.
    """
    versions = [int(path.name) for path in directory.glob('*') if path.name.isdigit()]
    version = directory / str(max(versions, default=0) + 1)
    with files.replacing(version) as temporary:
        tf.saved_model.save(sampler, str(temporary), signatures={'serving_default': sampler.sample})
        extra = temporary / EXTRA
        extra.mkdir()
        for path in released_files:
            shutil.copy(path, extra / path.name)
    return version


def find_version(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder of an exported model.

    Args:
      path: A version's folder, or a servable's folder, of which the newest version is taken.

    Raises:
      FileNotFoundError: if there is no SavedModel.
    """
    if (path / 'saved_model.pb').exists():
        return path
    numbered = [found.parent for found in path.glob('*/saved_model.pb') if found.parent.name.isdigit()]
    if not numbered:
        raise FileNotFoundError(f'no SavedModel in {path}; export one, or name another --saved_model.')
    return max(numbered, key=lambda version: int(version.name))


def fingerprint(version: pathlib.Path) -> str:
    """Returns the SHA-256 of an exported model: its files and their names, without what was laid beside them."""
    digest = hashlib.sha256()
    for path in sorted(version.rglob('*')):
        name = path.relative_to(version)
        if path.is_file() and name.parts[0] != EXTRA:
            content = path.read_bytes()
            digest.update(f'{name.as_posix()} {len(content)}\n'.encode())
            digest.update(content)
    return digest.hexdigest()


def load_sample_fn(path: pathlib.Path) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Loads an exported model as a function from labels, int32 [batch], and seeds, int64 [batch], to images, uint8.

    Args:
      path: See `find_version`.

    Raises:
      FileNotFoundError: if there is no SavedModel.
    """
    signature = tf.saved_model.load(str(find_version(path))).signatures['serving_default']
    return lambda labels, seeds: signature(labels=labels, seeds=seeds)['images']
