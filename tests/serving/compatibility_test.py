"""Tests that a version which breaks the clients of the one before does not take its place unasked."""

import itertools
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from tests.cli import sampling
from tests.cli import verbs
from tests.serving import toy_models
from tf_dpdiff.cli import command
from tf_dpdiff.cli import export as export_verb
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import outcome
from tf_dpdiff.serving import client
from tf_dpdiff.serving import compatibility
from tf_dpdiff.serving import export
from tf_dpdiff.serving import signatures
from tf_dpdiff.serving import status
from tf_dpdiff.serving import version_folders
from tf_dpdiff.training import summaries

_FIRST = {'x': ([None, 2], tf.int32)}, {'y': ([None, 2], tf.int32)}


def save(folder, **by_name):
    """Saves a model whose signatures map inputs to outputs, each a name, shape and type; returns its SignatureDefs."""
    module, functions = tf.Module(), {}
    for name, (inputs, outputs) in by_name.items():

        def answer(outputs=outputs, **unused_inputs):
            placeholder = tf.compat.v1.placeholder_with_default
            return {
                key: placeholder(tf.zeros([axis or 1 for axis in shape or ()], dtype), shape)
                for key, (shape, dtype) in outputs.items()
            }

        specs = {key: tf.TensorSpec(shape, dtype, key) for key, (shape, dtype) in inputs.items()}
        functions[name] = tf.function(answer).get_concrete_function(**specs)
    tf.saved_model.save(module, str(folder), signatures=functions)
    return version_folders.read_signature_defs(folder)


@pytest.mark.parametrize(
    'inputs, outputs, words',
    [
        ({}, {}, None),
        ({'x': ([None, None], tf.int32)}, {}, None),
        ({'x': (None, tf.int32)}, {}, None),
        ({'new': ([None], tf.int64)}, {}, "s: input 'new' is new"),
        ({'x': None, 'z': ([None, 2], tf.int32)}, {}, "s: input 'x' is gone; s: input 'z' is new"),
        ({'x': ([None, 2], tf.int64)}, {}, "s: input 'x' is int64 and no longer int32"),
        ({'x': ([None, 3], tf.int32)}, {}, "s: input 'x' has shape [?, 3] and no longer [?, 2]"),
        ({'x': ([1, 2], tf.int32)}, {}, "s: input 'x' has shape [1, 2] and no longer [?, 2]"),
        ({'x': ([None, 2, 1], tf.int32)}, {}, "s: input 'x' has shape [?, 2, 1] and no longer [?, 2]"),
        ({'x': ([None], tf.int32)}, {}, "s: input 'x' has shape [?] and no longer [?, 2]"),
        ({}, {'y': ([4, 2], tf.int32)}, None),
        ({}, {'y': None, 'z': ([None, 2], tf.int32)}, "s: output 'y' is gone"),
        ({}, {'y': ([None, 2], tf.uint8)}, "s: output 'y' is uint8 and no longer int32"),
        ({}, {'y': ([None, 8], tf.int32)}, "s: output 'y' has shape [?, 8] and no longer [?, 2]"),
        ({}, {'y': ([None, None], tf.int32)}, "s: output 'y' has shape [?, ?] and no longer [?, 2]"),
        ({}, {'y': (None, tf.int32)}, "s: output 'y' has shape unknown and no longer [?, 2]"),
        (
            {},
            {'z': ([None], tf.int32)},
            "s: output 'y' is no longer the only one, which changes the form of REST answers",
        ),
    ],
)
def test_what_a_client_notices_is_a_difference_and_nothing_else(tmp_path, inputs, outputs, words):
    before = save(tmp_path / 'before', s=_FIRST)
    changed = tuple(
        {name: spec for name, spec in {**old, **new}.items() if spec} for old, new in zip(_FIRST, (inputs, outputs))
    )
    after = save(tmp_path / 'after', s=changed, more=_FIRST)
    assert '; '.join(compatibility.differences(before, after)) == (words or '')


def test_signature_that_is_gone_is_a_difference_and_one_of_initialization_is_none(tmp_path):
    both = save(tmp_path / 'both', s=_FIRST, t=_FIRST)
    one = save(tmp_path / 'one', t=_FIRST)
    assert '__saved_model_init_op' in both
    assert compatibility.differences(both, one) == ['s: is gone']
    assert compatibility.differences(one, both) == []
    del one['__saved_model_init_op']
    one['s'] = type(both['s'])()
    one['s'].CopyFrom(both['s'])
    one['s'].method_name = 'tensorflow/serving/classify'
    assert compatibility.differences(both, one) == [
        's: is of tensorflow/serving/classify and no longer of tensorflow/serving/predict'
    ]


_SHAPES = [None, (), (None,), (2,), (3,), (None, None), (None, 2), (2, 2), (2, None)]


@pytest.mark.parametrize('old, new', list(itertools.product(_SHAPES, _SHAPES)))
def test_an_input_is_compatible_where_the_server_takes_whatever_it_took(old, new):

    def definition(shape):
        result = meta_graph_pb2.SignatureDef(method_name='tensorflow/serving/predict')
        result.inputs['x'].dtype = tf.int32.as_datatype_enum
        result.inputs['x'].tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
        return result

    def takes(shape, sent):
        try:
            signatures.TensorSpec(tf.int32, shape).check_shape('x', sent)
        except status.ServingError:
            return False
        return True

    sent = [shape for rank in range(4) for shape in itertools.product((1, 2, 3), repeat=rank)]
    breaks = any(takes(old, shape) and not takes(new, shape) for shape in sent)
    assert bool(compatibility.differences({'s': definition(old)}, {'s': definition(new)})) == breaks


@pytest.fixture(name='toy_run', scope='module')
def fixture_toy_run(tmp_path_factory, small_network):
    del small_network
    return sampling.make_run(tmp_path_factory.mktemp('runs') / 'toys')


def export_run(run, folder, *flags):
    return verbs.call(export_verb, f'--workdir={run}', f'--output={folder}', '--warmup_batch_sizes=none', *flags)


@pytest.fixture(name='put', scope='module')
def fixture_put(toy_run, tmp_path_factory):
    """Returns a function that puts what bin/export makes of step counts at a path, as a version; made once for all."""
    folder = tmp_path_factory.mktemp('exported')

    def put(steps, version):
        if not (folder / steps).exists():
            assert export_run(toy_run, folder / steps, f'--num_steps={steps}') == command.DONE
        # Of a sudden, as by bin/export: a server may be watching.
        version.parent.mkdir(exist_ok=True)
        shutil.copytree(folder / steps / '1', version.with_name('writing')).rename(version)

    return put


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.mark.parametrize(
    'before, now, words',
    [
        ('1', '1,2', "sample_png, serving_default: input 'num_steps' is new"),
        pytest.param('1,2', '1', "sample_png, serving_default: input 'num_steps' is gone", marks=pytest.mark.long),
        pytest.param('1,2,3', '3,4', 'num_steps is no longer 1 or 2', marks=pytest.mark.long),
    ],
)
def test_command_refuses_what_breaks_clients_in_one_line_and_does_it_if_told_so(
    toy_run, put, tmp_path, capsys, before, now, words
):
    folder = tmp_path / 'served'
    put(before, folder / '1')
    here = contents(folder)
    capsys.readouterr()
    assert export_run(toy_run, folder, f'--num_steps={now}') == command.WRONG_USE
    message = capsys.readouterr().err
    assert message.count('\n') == 1 and message.startswith(f'export: error: clients of {folder / "1"} could not use')
    assert words in message and '--allow_incompatible' in message
    assert contents(folder) == here  # Nor is anything left of the new one.
    assert export_run(toy_run, folder, f'--num_steps={now}', '--allow_incompatible') == command.DONE
    assert export_run(toy_run, folder, f'--num_steps={now}') == command.DONE  # Compared with the newest alone.
    assert version_folders.numbers(folder) == [3, 2, 1]


def test_compatible_version_needs_no_flag(toy_run, put, tmp_path):
    put('1,2', tmp_path / 'served' / '1')
    assert export_run(toy_run, tmp_path / 'served', '--num_steps=3,2,1') == command.DONE
    put('1', tmp_path / 'one' / '1')
    assert export_run(toy_run, tmp_path / 'one', '--sampler=ancestral') == command.DONE


def test_live_client_is_answered_as_before_after_a_refused_export(toy_run, put, tmp_path):
    folder = tmp_path / toy_models.NAME
    put('1', folder / '1')
    with toy_models.serving(folder) as server:
        endpoint = client.Endpoint(f'grpc://127.0.0.1:{server.grpc_port}/{toy_models.NAME}', attempts=1)

        def draw():
            return endpoint.sample(np.array([0, 2], np.int32), np.array([5, 6], np.int64)).numpy()

        images = draw()
        assert export_run(toy_run, folder, '--num_steps=1,2') == command.WRONG_USE
        server._manager.refresh()
        np.testing.assert_array_equal(draw(), images)
        put('1,2', folder / '2')
        toy_models.wait_until(lambda: server.newest_version() == 2)
        with pytest.raises(client.EndpointError, match='num_steps'):  # Control: this is what the check is for.
            draw()


def test_a_run_that_is_exported_again_by_training_goes_through_the_same_check(toy_run, put, tmp_path):
    run = shutil.copytree(toy_run, tmp_path / 'run')
    put('1,2', run / 'saved_model' / '2')
    description = folder_lib.read_model(run)
    network = denoiser.build(description.network, description.image_shape, len(sampling.NAMES))
    statement = statement_lib.PublicStatement(('toys',), 10)
    images, labels = np.zeros([3, 4, 4, 1], np.uint8), np.arange(3, dtype=np.int32)
    with pytest.raises(ValueError, match="clients of .*saved_model/2 could.*'num_steps' is gone.*bin/export --allow"):
        outcome.write(
            run, 'toys', {}, statement, description, network, summaries.Summaries(run), images, labels, configuration=''
        )
    assert version_folders.numbers(run / 'saved_model') == [2, 1]
    assert (run / 'samples.npz').exists() and (run / 'report.html').exists()


@pytest.fixture(name='fixed', scope='module')
def fixture_fixed(toy_run):
    """A sampler of one step count."""
    description = folder_lib.read_model(toy_run)
    network = denoiser.build(description.network, description.image_shape, len(sampling.NAMES))
    return export.ImageSampler(network, description.process, samplers.SamplerConfig('ddim', 1))


@pytest.fixture(name='of_two', scope='module')
def fixture_of_two(fixed):
    """The same with two step counts, which breaks the clients of the one."""
    return fixed.with_step_counts((1, 2))


def write(sampler, folder):
    return export.export_saved_model(sampler, folder, [], warmup_batch_sizes=())


@pytest.fixture(name='version', scope='module')
def fixture_version(fixed, tmp_path_factory):
    """The sampler as it is exported; to be copied."""
    return write(fixed, tmp_path_factory.mktemp('fixed'))


def test_what_no_server_can_have_loaded_is_not_compared_with(fixed, of_two, version, tmp_path):
    version = shutil.copytree(version, tmp_path / '1')
    shutil.copytree(version, tmp_path / '2')
    (tmp_path / '2' / 'saved_model.pb').write_bytes(b'damaged')
    shutil.copytree(version, tmp_path / '3', ignore=shutil.ignore_patterns('variables.index'))  # Is being copied.
    assert write(fixed, tmp_path).name == '4'
    shutil.rmtree(tmp_path / '4')
    with pytest.raises(ValueError, match=f'clients of {version} could not use'):
        write(of_two, tmp_path)


def test_version_that_appears_while_another_is_written_is_compared_with_too(fixed, of_two, tmp_path, monkeypatch):
    write(of_two, tmp_path / 'other')
    rename, served = os.rename, tmp_path / 'served'

    def rename_after_another(source, target):
        if not list(served.glob('1')):  # Another process is quicker by a moment.
            shutil.copytree(tmp_path / 'other' / '1', served / '1')
        rename(source, target)

    monkeypatch.setattr(os, 'rename', rename_after_another)
    with pytest.raises(ValueError, match="clients of .*served/1 could not use .*input 'num_steps' is gone"):
        write(fixed, served)
    assert [path.name for path in served.iterdir()] == ['1']


@pytest.mark.parametrize(
    'newest', [0, pytest.param(10**18, marks=pytest.mark.long), pytest.param(17 * 10**17, marks=pytest.mark.long)]
)
def test_a_new_version_is_newer_than_any_that_a_server_knows(fixed, of_two, version, tmp_path, newest):
    shutil.copytree(version, tmp_path / str(newest))
    assert write(fixed, tmp_path).name == str(newest + 1)
    assert export.find_version(tmp_path).name == str(newest + 1)
    with pytest.raises(ValueError, match='could not use'):
        write(of_two, tmp_path)


def test_there_is_nothing_behind_the_largest_version(fixed, version, tmp_path):
    shutil.copytree(version, tmp_path / str(2**63 - 1))
    with pytest.raises(ValueError, match=f'holds the largest version there can be, {2**63 - 1}: export elsewhere'):
        write(fixed, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [str(2**63 - 1)]
