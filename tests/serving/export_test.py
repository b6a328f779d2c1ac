"""Tests of exported models, in a process that has nothing of this package."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.networks import unet
from tf_dpdiff.serving import export

_LABELS = np.array([0, 1, 2, 3, 1, 1], np.int32)  # 3 is "no class".
_SEEDS = np.array([5, 6, 2**40, -7, 6, 8], np.int64)

# What a user of the model runs: TensorFlow, and the folder.
_CLIENT = """
import sys
sys.modules['tf_dpdiff'] = None  # An installed one could be imported; this one can not.
try:
    import tf_dpdiff.networks.layers
except ImportError:
    pass
else:
    sys.exit('tf_dpdiff was imported')
import numpy as np
import tensorflow as tf
version, given, result = sys.argv[1:]
signature = tf.saved_model.load(version).signatures['serving_default']
given = np.load(given)
labels, seeds = tf.constant(given['labels']), tf.constant(given['seeds'])
order = given['order']
np.savez(result, images=signature(labels=labels, seeds=seeds)['images'],
         reordered=signature(labels=tf.gather(labels, order), seeds=tf.gather(seeds, order))['images'])
"""


@pytest.fixture(scope='module')
def sampler():
    config = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
    model, generator = unet.build_unet(config, (4, 4, 1), 3), np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0.0, 0.3, variable.shape))
    # Leaves an optimizer with momenta behind, as training does.
    model.compile(tf.keras.optimizers.Adam(), 'mse')
    model.optimizer.build(model.trainable_variables)
    process = process_lib.DiffusionProcess(schedules.Schedule('cosine', 50), 'v')
    return model, export.ImageSampler(model, process, samplers.SamplerConfig('ancestral', 3))


@pytest.fixture(scope='module')
def exported(sampler, tmp_path_factory):
    folder = tmp_path_factory.mktemp('servable')
    statements = [folder / 'privacy_statement.txt', folder / 'privacy_statement.json']
    for path in statements:
        path.write_text(f'content of {path.name}')
    return export.export_saved_model(sampler[1], folder / 'digits', statements)


@pytest.fixture(scope='module')
def images(sampler):
    """Images of the sampler before it was exported."""
    return sampler[1].sample(tf.constant(_LABELS), tf.constant(_SEEDS))['images'].numpy()


def test_exported_model_gives_the_same_images_where_this_package_is_missing(exported, images, tmp_path):
    order = np.array([4, 2, 0, 5, 3, 1])
    np.savez(tmp_path / 'given.npz', labels=_LABELS, seeds=_SEEDS, order=order)
    arguments = [str(path) for path in (exported, tmp_path / 'given.npz', tmp_path / 'result.npz')]
    client = subprocess.run([sys.executable, '-I', '-c', _CLIENT, *arguments],
                            cwd=tmp_path,
                            env={
                                **os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'
                            },
                            capture_output=True,
                            text=True,
                            check=False)
    assert client.returncode == 0, client.stderr
    with np.load(tmp_path / 'result.npz') as result:
        np.testing.assert_array_equal(result['images'], images)
        # An image depends on its label and its seed alone.
        np.testing.assert_array_equal(result['reordered'], images[order])


def test_label_and_seed_both_matter(images):
    assert images.dtype == np.uint8 and images.shape == (6, 4, 4, 1)
    np.testing.assert_array_equal(images[1], images[4])  # The same label and seed.
    assert (images[1] != images[5]).any()  # Another seed.
    assert images.std() > 10


def test_same_seed_with_another_label_gives_another_image(exported):
    sample_fn = export.load_sample_fn(exported)
    images = sample_fn(tf.constant([0, 1, 2, 3]), tf.constant([4] * 4, tf.int64)).numpy().reshape(4, -1)
    assert len(np.unique(images, axis=0)) == 4


def test_signature_is_the_documented_one(exported):
    signature = tf.saved_model.load(str(exported)).signatures['serving_default']
    _, inputs = signature.structured_input_signature
    assert {
        name: (spec.dtype, spec.shape.as_list()) for name, spec in inputs.items()
    } == {
        'labels': (tf.int32, [None]),
        'seeds': (tf.int64, [None])
    }
    (name, output), = signature.structured_outputs.items()
    assert name == 'images' and output.dtype == tf.uint8 and output.shape.as_list() == [None, 4, 4, 1]


def test_exported_model_holds_the_weights_of_the_network_and_no_other_variable(exported, sampler):
    model, _ = sampler
    assert len(model.optimizer.variables) > len(model.variables)
    reader = tf.train.load_checkpoint(str(exported / 'variables' / 'variables'))
    saved = [
        reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name != '_CHECKPOINTABLE_OBJECT_GRAPH'
    ]
    assert len(saved) == len(model.variables)

    def as_set(arrays):
        return sorted((array.shape, array.tobytes()) for array in arrays)

    assert as_set(saved) == as_set(variable.numpy() for variable in model.variables)


def test_statement_is_laid_beside_the_model(exported):
    extra = exported / 'assets.extra'
    assert {
        path.name: path.read_text() for path in extra.iterdir()
    } == {
        name: f'content of {name}' for name in ('privacy_statement.txt', 'privacy_statement.json')
    }


class Marked(tf.Module):
    """Something small to export, whose images say which one it is."""

    def __init__(self, mark):
        super().__init__()
        self.mark = tf.Variable(mark)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)])
        def sample(labels, seeds):
            del labels
            return {'images': tf.cast(tf.fill([tf.size(seeds), 1, 1, 1], self.mark), tf.uint8)}

        self.sample = sample


def mark_of(path):
    return export.load_sample_fn(path)(tf.constant([0]), tf.constant([0], tf.int64)).numpy().item()


def test_versions_count_up_and_the_newest_is_loaded(tmp_path):
    servable = tmp_path / 'not' / 'there' / 'yet'
    versions = [export.export_saved_model(Marked(mark), servable, []) for mark in (11, 12)]
    assert versions == [servable / '1', servable / '2']
    # By number, not by name; and past what is no version.
    (servable / '2').rename(servable / '9')
    (servable / 'notes').mkdir()
    versions.append(export.export_saved_model(Marked(13), servable, []))
    assert versions[-1] == servable / '10'
    assert sorted(path.name for path in servable.iterdir()) == ['1', '10', '9', 'notes']
    assert [mark_of(servable / name) for name in ('1', '9', '10')] == [11, 12, 13]
    assert mark_of(servable) == 13


def test_failed_export_leaves_no_version_behind(tmp_path):
    servable = tmp_path / 'servable'
    with pytest.raises(FileNotFoundError):
        export.export_saved_model(Marked(1), servable, [tmp_path / 'missing_statement.txt'])
    assert not list(servable.iterdir())


@pytest.mark.parametrize('make', [
    lambda path: None,
    lambda path: path.mkdir(),
    lambda path: (path / 'notes').mkdir(parents=True),
    lambda path: (path / '1').mkdir(parents=True),
])
def test_folder_without_a_model_is_named(tmp_path, make):
    path = tmp_path / 'servable'
    make(path)
    with pytest.raises(FileNotFoundError, match='no SavedModel in .*servable'):
        export.load_sample_fn(pathlib.Path(path))
