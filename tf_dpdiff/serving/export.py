"""SavedModels for TF Serving: the averaged weights and the sampler, and nothing that training used."""

import functools
import pathlib
import shutil
from typing import Callable, Sequence

import tensorflow as tf

from tf_dpdiff import files
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.networks import unet


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
                       privacy_statement: Sequence[pathlib.Path]) -> pathlib.Path:
    """Writes a new version of a servable.

    Args:
      sampler: What to export.
      directory: The servable's folder; versions are numbered sub-folders, as TF Serving expects them.
      privacy_statement: Files that are laid beside the model, in `assets.extra/`.

    Returns:
      The folder of the new version. Its signature `serving_default` maps labels, int32 [batch], and seeds, int64
      [batch], to images, uint8 [batch, height, width, channels]; an image depends on its own label and seed alone.
    """
    versions = [int(path.name) for path in directory.glob('*') if path.name.isdigit()]
    version = directory / str(max(versions, default=0) + 1)
    with files.replacing(version) as temporary:
        tf.saved_model.save(sampler, str(temporary), signatures={'serving_default': sampler.sample})
        extra = temporary / 'assets.extra'
        extra.mkdir()
        for path in privacy_statement:
            shutil.copy(path, extra / path.name)
    return version


def load_sample_fn(version: pathlib.Path) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Loads an exported model as a function from labels, int32 [batch], and seeds, int64 [batch], to images, uint8.

    Args:
      version: A version's folder, or a servable's folder, of which the newest version is taken.

    Raises:
      FileNotFoundError: if there is no SavedModel.
    """
    if not (version / 'saved_model.pb').exists():
        numbered = [path.parent for path in version.glob('*/saved_model.pb') if path.parent.name.isdigit()]
        if not numbered:
            raise FileNotFoundError(f'no SavedModel in {version}; export one, or name another --saved_model.')
        version = max(numbered, key=lambda path: int(path.name))
    signature = tf.saved_model.load(str(version)).signatures['serving_default']
    return lambda labels, seeds: signature(labels=labels, seeds=seeds)['images']
