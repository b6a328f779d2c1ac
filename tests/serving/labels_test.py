"""Tests that images of a label that a model was not trained on are refused wherever one asks for them."""

import shutil

import grpc
import numpy as np
import pytest
import tensorflow as tf

from tests.cli import sampling
from tests.cli import verbs
from tests.serving import client_test
from tests.serving import servers
from tests.serving import toy_models
from tf_dpdiff.cli import command
from tf_dpdiff.cli import export as export_verb
from tf_dpdiff.networks import denoiser
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.serving import client
from tf_dpdiff.serving import export
from tf_dpdiff.serving import warmup
from tf_dpdiff.training import checkpoints

_NUM_CLASSES = len(sampling.NAMES)
# What the last stage trained on: changes of the description, the labels it takes, and what is said of others.
_MODELS = {
    'labelled': (
        {'label_drop_probability': 0.0},
        (0, 1, 2),
        'labels must be from 0 to 2 (not 3, no class: the model was never trained without labels), got',
    ),
    'with label drop': (
        {'label_drop_probability': 0.1},
        (0, 1, 2, 3),
        'labels must be from 0 to 2, or 3 for no class, got',
    ),
    'unlabelled': (
        {'label_drop_probability': 0.0, 'labelled': False},
        (3,),
        'labels must be 3, no class (the model was trained without labels), got',
    ),
    'unlabelled with label drop': ({'label_drop_probability': 0.1, 'labelled': False}, (3,), 'labels must be 3,'),
}


@pytest.fixture(name='runs', scope='module')
def fixture_runs(tmp_path_factory, small_network):
    """A finished run of each kind, whose model was exported by bin/export, and its description."""
    del small_network
    folder, found = tmp_path_factory.mktemp('runs'), {}
    plain = sampling.make_run(folder / 'plain')
    for kind, (changes, _, _) in _MODELS.items():
        run = shutil.copytree(plain, folder / kind.replace(' ', '_'), ignore=shutil.ignore_patterns('saved_model'))
        description = folder_lib.read_model(run)._replace(**changes)
        description.write(run)
        flags = [f'--workdir={run}', f'--output={run / toy_models.NAME}', '--warmup_batch_sizes=1,2']
        assert verbs.call(export_verb, *flags) == command.DONE
        found[kind] = run, description
    return found


@pytest.fixture(name='signatures', scope='module')
def fixture_signatures(runs):
    """Those of each kind of model."""
    return {kind: tf.saved_model.load(str(run / toy_models.NAME / '1')).signatures for kind, (run, _) in runs.items()}


def tensors(label):
    return {'labels': tf.constant([label], tf.int32), 'seeds': tf.constant([5], tf.int64)}


@pytest.mark.parametrize('kind', _MODELS)
@pytest.mark.parametrize('label', [-1, 0, 2, 3, 4])
def test_saved_model_draws_trained_labels_alone_and_says_why(signatures, kind, label):
    _, trained, words = _MODELS[kind]
    for name in ('serving_default', 'sample_png'):
        signature = signatures[kind][name]
        if label in trained:
            (output,) = signature(**tensors(label)).values()
            assert len(output) == 1
            continue
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            signature(**tensors(label))
        assert words in error.value.message and f'[{label}]' in error.value.message


@pytest.mark.parametrize('kind', ['labelled', 'unlabelled'])
def test_server_answers_with_a_client_s_error(runs, kind):
    _, trained, words = _MODELS[kind]
    with toy_models.serving(runs[kind][0] / toy_models.NAME) as server:
        predict = toy_models.stubs(server)[0].Predict
        for label in range(_NUM_CLASSES + 1):
            document = {'instances': [{'labels': label, 'seeds': 5}]}
            code, answer = toy_models.post(server, document)
            request = toy_models.predict_request(labels=np.array([label], np.int32), seeds=np.array([5], np.int64))
            if label in trained:
                assert code == 200 and predict(request, 20).outputs
                continue
            assert code == 400 and words in answer['error']
            with pytest.raises(grpc.RpcError) as error:
                predict(request, 20)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT and words in error.value.details()


@pytest.mark.parametrize('kind', _MODELS)
def test_warm_up_asks_for_a_trained_label(runs, kind):
    from tensorflow_serving.apis import prediction_log_pb2

    path = runs[kind][0] / toy_models.NAME / '1' / export.EXTRA / warmup.FILE
    asked = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        if 'labels' in request.inputs:
            asked += tf.make_ndarray(request.inputs['labels']).tolist()
    assert asked and {*asked} <= {*_MODELS[kind][1]}


@pytest.mark.parametrize(
    'kind, flags, words',
    [
        (
            'labelled',
            {'classes': 'no_class'},
            '--classes: the model was never trained without labels (its '
            'label_drop_probability was 0), so it cannot draw no_class.',
        ),
        ('labelled', {'classes': 'cat, no_class'}, 'so it cannot draw no_class'),
        (
            'labelled',
            {'class_weights': 'cat=1,no_class=2'},
            '--class_weights: the model was never trained without labels',
        ),
        ('labelled', {'classes': 'cow'}, "there is no class 'cow'; there are cat, öwl, dog."),
        (
            'unlabelled',
            {'classes': 'cat'},
            "--classes: the model was trained without labels, so it draws only no_class, not 'cat'",
        ),
        ('unlabelled', {'class_weights': 'dog=1'}, "it draws only no_class, not 'dog'"),
        ('unlabelled with label drop', {'classes': 'no_class,dog'}, "it draws only no_class, not 'dog'"),
    ],
)
@pytest.mark.parametrize('source', ['checkpoint', 'export'])
def test_command_refuses_them_in_one_line_and_writes_nothing(runs, tmp_path, capsys, kind, flags, words, source):
    run = runs[kind][0]
    where = {'num_steps': 1} if source == 'checkpoint' else {'saved_model': run / toy_models.NAME, 'workdir': None}
    assert sampling.call(run, tmp_path / 'set', **{**where, **flags}) == command.WRONG_USE
    assert words in sampling.error_of(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'kind, labels', [('labelled', [0, 1, 2, 0]), ('with label drop', [0, 1, 2, 0]), ('unlabelled', [3, 3, 3, 3])]
)
def test_command_draws_the_classes_or_no_class_by_itself(runs, tmp_path, kind, labels):
    run = runs[kind][0]
    exported = {'saved_model': run / toy_models.NAME, 'workdir': None}
    for place, where in {'checkpoint': {'num_steps': 1}, 'export': exported}.items():
        drawn = sampling.draw(run, tmp_path / place, num_images=4, **where)
        assert drawn.labels.tolist() == labels
    asked = 'no_class' if 3 in _MODELS[kind][1] else 'dog'
    drawn = sampling.draw(run, tmp_path / 'asked', num_images=4, classes=asked, **exported)
    assert {*drawn.labels} == {3 if asked == 'no_class' else 2}


def make_old_export(run, description, folder):
    """What was exported before models refused labels: the same, but for the assertion."""
    network = denoiser.build(description.network, description.image_shape, _NUM_CLASSES)
    checkpoints.load_average(run / 'checkpoints', network)
    sampler = export.ImageSampler(network, description.process, description.sampler)
    return export.export_saved_model(sampler, folder, folder_lib.paths_beside_model(run), warmup_batch_sizes=())


def test_older_export_is_loaded_and_not_asked_for_what_it_was_not_trained_on(runs, tmp_path, capsys):
    run, description = runs['labelled']
    old = make_old_export(run, description, tmp_path / 'old')
    export.load_sample_fn(old)(**{'labels': tf.constant([3]), 'seeds': tf.constant([5], tf.int64)})  # It answers.
    given = {'saved_model': old, 'workdir': None}
    assert sampling.draw(run, tmp_path / 'set', num_images=4, **given).labels.tolist() == [0, 1, 2, 0]
    assert sampling.call(run, tmp_path / 'none', **given, classes='no_class') == command.WRONG_USE
    assert 'so it cannot draw no_class' in sampling.error_of(capsys)


@pytest.mark.parametrize(
    'before, now, words',
    [
        ('labelled', 'with label drop', None),
        pytest.param('with label drop', 'with label drop', None, marks=pytest.mark.long),
        ('with label drop', 'labelled', 'a label is no longer 3'),
        pytest.param('unlabelled', 'labelled', 'a label is no longer 3', marks=pytest.mark.long),
        pytest.param('unlabelled', 'with label drop', None, marks=pytest.mark.long),
        pytest.param('with label drop', 'unlabelled', 'a label is no longer 0 or 1 or 2', marks=pytest.mark.long),
    ],
)
def test_version_that_takes_fewer_labels_is_refused_in_place_of_one_that_took_more(
    runs, tmp_path, capsys, before, now, words
):
    served = shutil.copytree(runs[before][0] / toy_models.NAME, tmp_path / 'served')
    arguments = [export_verb, f'--workdir={runs[now][0]}', f'--output={served}', '--warmup_batch_sizes=none']
    code = verbs.call(*arguments)
    assert code == (command.WRONG_USE if words else command.DONE)
    if words:
        assert f'could not use the new version: {words}. Export it' in capsys.readouterr().err
        assert verbs.call(*arguments, '--allow_incompatible') == command.DONE


def test_client_sends_no_label_that_the_model_was_not_trained_on():
    seeds = np.zeros(2, np.int64)
    with servers.Server(client_test.good) as server:
        for labels, refused in ((range(3), 3), (range(3, 4), 0)):
            endpoint = client.Endpoint(server.url, labels=labels)
            words = f'not trained on the label {refused}, but on {labels[0]} to {labels[-1]}'
            with pytest.raises(ValueError, match=words):
                endpoint.sample(np.array([refused, labels[0]], np.int32), seeds)
            assert not server.requests
        assert client.Endpoint(server.url, labels=range(3)).sample(np.array([0, 2], np.int32), seeds).shape[0] == 2


def test_command_draws_from_a_server_of_an_unlabelled_model(runs, tmp_path):
    run = shutil.copytree(runs['unlabelled'][0], tmp_path / 'run')
    with toy_models.serving(run / toy_models.NAME, limits=toy_models.quick_limits(max_batch_size=250)) as server:
        url = f'grpc://127.0.0.1:{server.grpc_port}/{toy_models.NAME}'
        drawn = sampling.draw(
            run, tmp_path / 'set', num_images=4, saved_model=run / toy_models.NAME, workdir=None, endpoint=url
        )
    assert drawn.labels.tolist() == [3] * 4
