"""Tests of exported models, in a process that has nothing of this package."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from tests.cli import sampling
from tests.cli import verbs
from tf_dpdiff import keras
from tf_dpdiff.cli import command
from tf_dpdiff.cli import export as export_verb
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.serving import export
from tf_dpdiff.serving import warmup

_LABELS = np.array([0, 1, 2, 3, 1, 1], np.int32)  # 3 is "no class".
_SEEDS = np.array([5, 6, 2**40, -7, 6, 8], np.int64)
_STEPS = np.array([3, 2, 3, 2, 2, 2], np.int32)
_SAMPLES = ('serving_default', 'sample_png')

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
signatures = tf.saved_model.load(version).signatures
signature = signatures['serving_default']
given = np.load(given)
labels, seeds = tf.constant(given['labels']), tf.constant(given['seeds'])
order = given['order']
np.savez(result, images=signature(labels=labels, seeds=seeds)['images'],
         pngs=[tf.io.decode_png(png) for png in signatures['sample_png'](labels=labels, seeds=seeds)['png_bytes']],
         statement=np.array(signatures['privacy_statement'](format=tf.constant(['text', 'json']))['statement'], bytes),
         reordered=signature(labels=tf.gather(labels, order), seeds=tf.gather(seeds, order))['images'])
"""


def make_sampler(build):
    config = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
    model, generator = build(config, (4, 4, 1), 3), np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0.0, 0.3, variable.shape))
    # Leaves an optimizer with momenta behind, as training does.
    model.compile(keras.optimizers.Adam(), 'mse')
    model.optimizer.build(model.trainable_variables)
    process = process_lib.DiffusionProcess(schedules.Schedule('cosine', 50), 'v')
    return model, export.ImageSampler(model, process, samplers.SamplerConfig('ancestral', 3))


@pytest.fixture(scope='module')
def sampler():
    """A network as it is trained, and what samples from it."""
    return make_sampler(denoiser.build)


@pytest.fixture(scope='module')
def small():
    """A network that is traced quickly, and what samples from it, where what is exported does not depend on it."""
    return make_sampler(conftest.build_small_network)


@pytest.fixture(scope='module')
def of_several_counts(small, tmp_path_factory):
    """A model with several step counts, and without a statement."""
    folder = tmp_path_factory.mktemp('counts')
    version = export.export_saved_model(small[1].with_step_counts((3, 2)), folder, [], warmup_batch_sizes=(4,))
    assert export.step_counts_of(version) == (3, 2)
    return version


@pytest.fixture(scope='module')
def counts_signatures(of_several_counts):
    return tf.saved_model.load(str(of_several_counts)).signatures


@pytest.fixture(scope='module')
def signatures(exported):
    return tf.saved_model.load(str(exported)).signatures


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
    client = subprocess.run(
        [sys.executable, '-I', '-c', _CLIENT, *arguments],
        cwd=tmp_path,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert client.returncode == 0, client.stderr
    with np.load(tmp_path / 'result.npz') as result:
        np.testing.assert_array_equal(result['images'], images)
        # An image depends on its label and its seed alone.
        np.testing.assert_array_equal(result['reordered'], images[order])
        np.testing.assert_array_equal(result['pngs'], images)
        assert result['statement'].tolist() == [
            b'content of privacy_statement.txt',
            b'content of privacy_statement.json',
        ]


class Brightness(tf.Module):
    """Scores the first class by how bright an image is, and the others not at all; has a variable."""

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(1.0)

    def __call__(self, images):
        brightness = tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2, 3)) * self.weight
        return tf.stack([brightness, 0.0 * brightness, 0.0 * brightness], axis=1)


def test_choice_among_candidates_is_exported_too(small, tmp_path):
    process, config = (
        process_lib.DiffusionProcess(schedules.Schedule('cosine', 50), 'v'),
        samplers.SamplerConfig('ancestral', 3, num_candidates=3),
    )
    chosen = export.ImageSampler(small[0], process, config, score_classes=Brightness())
    drawn = small[1].sample(tf.constant([0] * 9), tf.constant([15, 16, 17, 18, 19, 20, 15, 16, 17], tf.int64))
    expected = np.stack([max(drawn['images'].numpy()[rows], key=np.mean) for rows in (slice(3), slice(3, 6))])
    inputs = {'labels': tf.constant([0, 0, 3]), 'seeds': tf.constant([5, 6, 5], tf.int64)}
    of_no_class = small[1].sample(tf.constant([3]), tf.constant([15], tf.int64))['images']
    for step_counts in ((), (3,)):
        version = export.export_saved_model(
            chosen.with_step_counts(step_counts), tmp_path / str(len(step_counts)), [], warmup_batch_sizes=()
        )
        more = {'num_steps': tf.constant([3, 3, 3])} if step_counts else {}
        found = tf.saved_model.load(str(version)).signatures['serving_default'](**inputs, **more)['images'].numpy()
        np.testing.assert_array_equal(found[:2], expected)
        np.testing.assert_array_equal(found[2:], of_no_class)
    # Control: the first candidate is not always the brightest.
    assert np.any(expected != drawn['images'].numpy()[[0, 3]])


def test_candidates_without_a_score_are_refused(small):
    process = process_lib.DiffusionProcess(schedules.Schedule('cosine', 50), 'v')
    with pytest.raises(ValueError, match='num_candidates=2 of the sampler needs a score'):
        export.ImageSampler(small[0], process, samplers.SamplerConfig('ancestral', 3, num_candidates=2))


def test_label_and_seed_both_matter(images):
    assert images.dtype == np.uint8 and images.shape == (6, 4, 4, 1)
    np.testing.assert_array_equal(images[1], images[4])  # The same label and seed.
    assert (images[1] != images[5]).any()  # Another seed.
    assert images.std() > 10


def test_same_seed_with_another_label_gives_another_image(exported):
    sample_fn = export.load_sample_fn(exported)
    images = sample_fn(tf.constant([0, 1, 2, 3]), tf.constant([4] * 4, tf.int64)).numpy().reshape(4, -1)
    assert len(np.unique(images, axis=0)) == 4


def test_signature_is_the_documented_one(signatures):
    signature = signatures['serving_default']
    _, inputs = signature.structured_input_signature
    assert {name: (spec.dtype, spec.shape.as_list()) for name, spec in inputs.items()} == {
        'labels': (tf.int32, [None]),
        'seeds': (tf.int64, [None]),
    }
    ((name, output),) = signature.structured_outputs.items()
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
        path.name: path.read_text() for path in extra.iterdir() if path.name not in (warmup.FILE, 'labels.json')
    } == {name: f'content of {name}' for name in ('privacy_statement.txt', 'privacy_statement.json')}


def test_model_without_a_statement_has_no_signature_for_it(counts_signatures):
    assert set(counts_signatures) == set(_SAMPLES)


@pytest.mark.parametrize(
    'formats, refused',
    [
        (['json'], None),
        (['text', 'json', 'text'], None),
        ([], None),
        (['json', 'xml'], '[xml]|[json xml]'),
        (['JSON'], 'JSON'),
    ],
)
def test_statement_comes_in_the_formats_there_are(signatures, formats, refused):
    signature = signatures['privacy_statement']
    arguments = {'format': tf.constant(formats, tf.string)}
    if refused:
        with pytest.raises(tf.errors.InvalidArgumentError, match=f'format must be json or text, got.*({refused})'):
            signature(**arguments)
    else:
        endings = {'json': b'json', 'text': b'txt'}
        assert signature(**arguments)['statement'].numpy().tolist() == [
            b'content of privacy_statement.' + endings[name] for name in formats
        ]


@pytest.mark.parametrize('signature', _SAMPLES)
@pytest.mark.parametrize(
    'labels, seeds, words',
    [
        ([0, -1], [0, 1], 'labels must be from 0 to 2, or 3 for no class, got.*0 -1'),
        ([4], [0], 'labels must be from 0 to 2, or 3 for no class, got.*4'),
        ([2**31 - 1, -(2**31)], [0, 1], 'labels must be from 0 to 2'),
        ([1], [0, 1], 'as many seeds as labels'),
        ([1, 2], [0], 'as many seeds as labels'),
        ([], [], 'at least one label'),
        ([3, 0], [0, 1], None),
    ],
)
def test_what_cannot_be_sampled_is_refused(signatures, signature, labels, seeds, words):
    arguments = {'labels': tf.constant(labels, tf.int32), 'seeds': tf.constant(seeds, tf.int64)}
    if words is None:
        assert len(next(iter(signatures[signature](**arguments).values()))) == len(labels)
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        signatures[signature](**arguments)


def draw_counts(signature, rows, steps):
    return signature(labels=tf.constant(_LABELS[rows]), seeds=tf.constant(_SEEDS[rows]), num_steps=tf.constant(steps))


def test_each_image_takes_its_own_step_count_as_in_a_model_of_that_count_alone(small, counts_signatures):
    signature = counts_signatures['serving_default']
    _, inputs = signature.structured_input_signature
    assert (inputs['num_steps'].dtype, inputs['num_steps'].shape.as_list()) == (tf.int32, [None])
    assert signature.structured_outputs['images'].shape.as_list() == [None, 4, 4, 1]
    everything = slice(None)
    mixed, alone = draw_counts(signature, everything, _STEPS)['images'].numpy(), {}
    process = process_lib.DiffusionProcess(schedules.Schedule('cosine', 50), 'v')
    of_two = export.ImageSampler(small[0], process, samplers.SamplerConfig('ancestral', 2))
    for count, sample in ((2, of_two.sample), (3, small[1].sample)):
        rows = _STEPS == count
        images = sample(tf.constant(_LABELS[rows]), tf.constant(_SEEDS[rows]))['images'].numpy()
        np.testing.assert_array_equal(mixed[rows], images)
        uniform = draw_counts(signature, everything, np.full_like(_STEPS, count))['images'].numpy()
        alone[count] = sample(tf.constant(_LABELS), tf.constant(_SEEDS))['images'].numpy()
        np.testing.assert_array_equal(uniform, alone[count])
    # The counts make different images, or else nothing was shown.
    assert (alone[2] != alone[3]).any(axis=(1, 2, 3)).all()
    pngs = draw_counts(counts_signatures['sample_png'], everything, _STEPS)['png_bytes']
    np.testing.assert_array_equal([tf.io.decode_png(png) for png in pngs], mixed)


@pytest.mark.parametrize(
    'steps, words',
    [
        ([3, 4], 'num_steps must be one of 3, 2, got.*3 4'),
        ([0, 0], 'one of'),
        ([-3, 3], 'one of'),
        ([3], 'as many of any other input'),
    ],
)
def test_step_count_that_was_not_exported_is_refused(counts_signatures, steps, words):
    for name in _SAMPLES:
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            draw_counts(counts_signatures[name], slice(2), np.array(steps, np.int32))


def test_step_counts_must_differ(small):
    with pytest.raises(ValueError, match=r'step_counts of the sampler must differ, got \(2, 2\)'):
        small[1].with_step_counts((2, 2))


def read_warmup(version):
    """Returns the requests by signature and batch size."""
    from tensorflow_serving.apis import prediction_log_pb2

    requests = {}
    for record in tf.data.TFRecordDataset(str(version / export.EXTRA / warmup.FILE)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        (size,) = {len(value) for value in inputs.values()}
        requests[request.model_spec.signature_name, size] = inputs
    return requests


def test_warm_up_asks_each_signature_for_each_batch_size(exported, signatures):
    requests = read_warmup(exported)
    assert set(requests) == set(itertools.product([*_SAMPLES, 'privacy_statement'], warmup.BATCH_SIZES))
    for (name, size), inputs in requests.items():
        (output,) = signatures[name](**inputs).values()
        assert len(output) == size


def test_warm_up_names_a_step_count_where_there_are_several(of_several_counts, counts_signatures):
    requests = read_warmup(of_several_counts)
    assert set(requests) == {(name, 4) for name in _SAMPLES}
    for (name, _), inputs in requests.items():
        assert inputs['num_steps'].numpy().tolist() == [2] * 4
        counts_signatures[name](**inputs)


def test_warm_up_does_not_change_which_model_it_is(tmp_path):
    version = export.export_saved_model(Marked(1), tmp_path, [])
    before = export.fingerprint(version)
    (version / export.EXTRA / warmup.FILE).unlink()
    assert export.fingerprint(version) == before
    (version / 'saved_model.pb').write_bytes(b'other')
    assert export.fingerprint(version) != before


def test_export_without_the_protocol_says_that_there_is_no_warm_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tensorflow_serving.apis', None)
    version = export.export_saved_model(Marked(7), tmp_path / 'one', [])
    assert mark_of(version) == 7 and not (version / export.EXTRA / warmup.FILE).exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert 'without warm-up requests' in line and 'tensorflow-serving-api is not installed' in line
    export.export_saved_model(Marked(7), tmp_path / 'two', [], warmup_batch_sizes=())  # None were asked for.
    assert not capsys.readouterr().err


class Marked(tf.Module):
    """Something small to export, whose images say which one it is."""

    def __init__(self, mark):
        super().__init__()
        self.mark = tf.Variable(mark)
        self.step_counts, self.labels = (), range(1)

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


@pytest.mark.parametrize(
    'make',
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: (path / 'notes').mkdir(parents=True),
        lambda path: (path / '1').mkdir(parents=True),
    ],
)
def test_folder_without_a_model_is_named(tmp_path, make):
    path = tmp_path / 'servable'
    make(path)
    with pytest.raises(FileNotFoundError, match='no SavedModel in .*servable'):
        export.load_sample_fn(pathlib.Path(path))


@pytest.fixture(scope='module')
def toy_run(tmp_path_factory):
    """A run of a small network, which not all of this module's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser, 'build', conftest.build_small_network)
        return sampling.make_run(tmp_path_factory.mktemp('runs') / 'toys')


def test_command_exports_several_step_counts_and_one(toy_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(denoiser, 'build', conftest.build_small_network)
    arguments = [export_verb, f'--workdir={toy_run}', '--warmup_batch_sizes=1,2']
    assert verbs.call(*arguments, f'--output={tmp_path / "several"}', '--num_steps=1,3') == command.DONE
    assert '(ddim, 1 or 3 steps)' in capsys.readouterr().out
    assert verbs.call(*arguments, f'--output={tmp_path / "one"}', '--num_steps=3') == command.DONE
    assert '(ddim, 3 steps)' in capsys.readouterr().out
    assert export.step_counts_of(tmp_path / 'one' / '1') == ()
    labels, seeds = tf.constant([0, 2]), tf.constant([4, 5], tf.int64)
    chosen = export.load_sample_fn(tmp_path / 'several', num_steps=3)(labels, seeds)
    np.testing.assert_array_equal(chosen, export.load_sample_fn(tmp_path / 'one')(labels, seeds))
    assert {size for _, size in read_warmup(tmp_path / 'one' / '1')} == {1, 2}


@pytest.mark.parametrize(
    'flag, message',
    [
        ('--num_steps=10,x', "'10,x' is no whole number, nor several as in 10,20,40"),
        ('--num_steps=', "'' is no whole number"),
        ('--num_steps=3,2,3', "'3,2,3' names a count twice"),
        ('--num_steps=3,0', 'num_steps of the sampler must be at least 1, got 0'),
        ('--num_steps=3,51', 'num_steps=51 of the sampler exceeds the 50 timesteps'),
        ('--warmup_batch_sizes=0', "'0' is neither none nor whole numbers of at least 1"),
        ('--warmup_batch_sizes=a', "'a' is neither none nor whole numbers of at least 1"),
    ],
)
def test_wrong_flags_are_one_clear_line_and_export_nothing(toy_run, tmp_path, capsys, flag, message):
    assert verbs.call(export_verb, f'--workdir={toy_run}', f'--output={tmp_path / "toys"}', flag) == command.WRONG_USE
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_statement_in_the_model_is_that_of_the_run(toy_run):
    signature = tf.saved_model.load(str(toy_run / 'saved_model' / '1')).signatures['privacy_statement']
    text, as_json = signature(format=tf.constant(['text', 'json']))['statement'].numpy()
    assert text == (toy_run / 'privacy_statement.txt').read_bytes()
    assert as_json == (toy_run / 'privacy_statement.json').read_bytes()


def test_description_in_the_model_says_what_a_client_may_ask_for_and_gets(small, toy_run, tmp_path):
    beside = folder_lib.paths_beside_model(toy_run)
    version = export.export_saved_model(
        small[1].with_step_counts((3, 2)), tmp_path / 'toys', beside, warmup_batch_sizes=(2,)
    )
    signatures = tf.saved_model.load(str(version)).signatures
    (text,) = signatures['model_description'](format=tf.constant(['json']))['description'].numpy()
    described = folder_lib.read_model(toy_run)
    assert json.loads(text) == {
        'class_names': list(described.class_names),
        'image_shape': list(described.image_shape),
        'sampler': dataclasses.asdict(described.sampler),
        'labels': [0, 1, 2, 3],
        'step_counts': [3, 2],
    }
    with pytest.raises(tf.errors.InvalidArgumentError, match='format must be json, got.*text'):
        signatures['model_description'](format=tf.constant(['text']))
    assert ('model_description', 2) in read_warmup(version)


def test_exports_at_the_same_time_are_versions_of_their_own(small, tmp_path, monkeypatch):
    taken, rename = [], os.rename

    def rename_after_another(source, target):
        if not taken:  # Another process is quicker by a moment.
            taken.append(shutil.copytree(source, target))
        rename(source, target)

    monkeypatch.setattr(os, 'rename', rename_after_another)
    version = export.export_saved_model(small[1], tmp_path / 'toys', [], warmup_batch_sizes=())
    assert (version.name, [path.name for path in taken]) == ('2', ['1'])
    assert sorted(path.name for path in (tmp_path / 'toys').iterdir()) == ['1', '2']


def test_newest_whole_version_is_found(tmp_path):
    for name in ('2', '10', '11', '012', '²', 'x'):
        (tmp_path / name / 'variables').mkdir(parents=True)
        (tmp_path / name / 'saved_model.pb').write_text('')
        if name != '11':  # Its copy is still under way.
            (tmp_path / name / 'variables' / 'variables.index').write_text('')
    assert export.find_version(tmp_path) == tmp_path / '10'
