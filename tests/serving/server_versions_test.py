"""Tests of versions: a new one takes over without a lost request, a bad one takes over nothing."""

import json
import pathlib
import shutil
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import prediction_log_pb2

from tests.serving import toy_models
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.serving import export
from tf_dpdiff.serving import servables
from tf_dpdiff.serving import signatures
from tf_dpdiff.serving import status
from tf_dpdiff.serving import versions as versions_lib

_State = get_model_status_pb2.ModelVersionStatus
_ROW = {'inputs': {'labels': [1], 'seeds': [2]}}


@pytest.fixture(name='versions', scope='module')
def fixture_versions(tmp_path_factory):
    """Versions 1 to 3, to be copied; their marks are 10, 20, 30."""
    folder = tmp_path_factory.mktemp('exported') / toy_models.NAME
    for version in (1, 2, 3):
        toy_models.export(folder, version, 10 * version)
    return folder


@pytest.fixture(name='folder')
def fixture_folder(versions, tmp_path):
    """A model's folder with version 1."""
    folder = tmp_path / toy_models.NAME
    shutil.copytree(versions / '1', folder / '1')
    return folder


def add(versions, folder, version):
    """A version appears whole, as by bin/export."""
    shutil.copytree(versions / str(version), folder / f'.{version}')
    (folder / f'.{version}').rename(folder / str(version))


def served(server):
    """Returns the mark of the version that answers."""
    code, answer = toy_models.post(server, _ROW)
    assert code == 200, answer
    mark = (answer['outputs'][0][0][0][0] - 7) % 256
    assert answer['outputs'] == toy_models.images_of([1], [2], mark).tolist()
    return mark


def states(server):
    code, answer = toy_models.call(server.rest_port)
    assert code == 200
    return {int(entry['version']): entry['state'] for entry in answer['model_version_status']}


def test_newest_version_is_served_and_takes_over_when_it_comes(versions, folder):
    with toy_models.serving(folder) as server:
        assert served(server) == 10 and states(server) == {1: 'AVAILABLE'}
        add(versions, folder, 3)
        toy_models.wait_until(lambda: states(server) == {3: 'AVAILABLE', 1: 'END'})
        assert served(server) == 30
        assert toy_models.post(server, _ROW, '/versions/1:predict')[0] == 404
        add(versions, folder, 2)  # Older than what is served.
        shutil.rmtree(folder / '3')  # Taken back.
        toy_models.wait_until(lambda: served(server) == 20)
        shutil.rmtree(folder)  # What is in memory stays.
        assert served(server) == 20


def test_versions_swapped_under_load_lose_no_request(versions, folder):
    stop, marks, errors = threading.Event(), [], []

    def load(server, use_rest):
        predict, _ = toy_models.stubs(server)
        request = toy_models.predict_request(labels=np.array([1], np.int32), seeds=np.array([2], np.int64))
        while not stop.is_set():
            try:
                if use_rest:
                    marks.append(served(server))
                else:
                    images = tf.make_ndarray(predict.Predict(request, 20).outputs['images'])
                    marks.append(int(images[0, 0, 0, 0]) - 7)
            except (AssertionError, OSError, grpc.RpcError) as error:
                errors.append(error)

    with toy_models.serving(folder) as server:
        threads = [threading.Thread(target=load, args=(server, i % 2 == 0)) for i in range(4)]
        for thread in threads:
            thread.start()
        for version in (2, 3):
            toy_models.wait_until(lambda: len(marks) > 50)
            add(versions, folder, version)
            toy_models.wait_until(lambda version=version: marks[-1] == 10 * version, 20)
            toy_models.wait_until(lambda version=version: states(server)[version - 1] == 'END', 20)
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors and {10, 20, 30} == set(marks)


def test_request_that_has_begun_keeps_its_version(versions, folder, monkeypatch):
    gate, run, ran = threading.Event(), signatures.Signature.run, threading.Event()

    def wait_and_run(self, inputs):
        ran.set()
        gate.wait(10)
        return run(self, inputs)

    with toy_models.serving(folder) as server:
        with monkeypatch.context() as patch:
            patch.setattr(signatures.Signature, 'run', wait_and_run)
            answers = []
            slow = threading.Thread(target=lambda: answers.append(served(server)))
            slow.start()
            assert ran.wait(10)
        add(versions, folder, 2)
        toy_models.wait_until(lambda: states(server) == {2: 'AVAILABLE', 1: 'UNLOADING'})
        assert served(server) == 20 and not answers
        gate.set()
        slow.join()
        assert answers == [10]
        toy_models.wait_until(lambda: states(server)[1] == 'END')


def damage_graph(version):
    (version / 'saved_model.pb').write_bytes(b'not a graph')


def damage_variables(version):
    (path,) = (version / 'variables').glob('*.data*')
    path.write_bytes(b'')


def damage_warmup(version):
    log = prediction_log_pb2.PredictionLog()
    request = toy_models.predict_request(labels=np.array([-1], np.int32), seeds=np.array([2], np.int64))
    log.predict_log.request.CopyFrom(request)
    write_warmup(version, log.SerializeToString())


def write_warmup(version, *records):
    path = version / servables.WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


DAMAGES = [
    damage_graph,
    damage_variables,
    damage_warmup,
    lambda version: write_warmup(version, b'\xff no record'),
    lambda version: shutil.rmtree(version / 'variables'),
]


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_new_version_is_told_and_the_old_one_stays(versions, folder, caplog, damage):
    shutil.copytree(versions / '2', folder / '.2')
    damage(folder / '.2')
    with toy_models.serving(folder) as server:
        (folder / '.2').rename(folder / '2')
        toy_models.wait_until(lambda: states(server).get(2) == 'END')
        assert served(server) == 10 and states(server)[1] == 'AVAILABLE'
        _, answer = toy_models.call(server.rest_port, path='/versions/2')
        told = answer['model_version_status'][0]['status']
        assert told['error_code'] == 'UNKNOWN' and f'{toy_models.NAME}/2' in told['error_message']
        assert str(folder.parent) not in json.dumps(answer)
        errors = [record for record in caplog.records if record.levelname == 'ERROR']
        assert len(errors) == 1 and f'version 2 cannot be loaded, 1 stays: {folder}/2: ' in errors[0].getMessage()


def test_stop_does_not_wait_for_a_version_that_is_being_loaded(versions, folder, monkeypatch):
    gate, loading, load = threading.Event(), threading.Event(), tf.saved_model.load
    closed = []

    def wait_and_load(path):
        loading.set()
        gate.wait(60)
        return load(path)

    def close(self, function=servables.Servable.close):
        function(self)
        closed.append(self.version)

    with toy_models.serving(folder) as server:
        monkeypatch.setattr(tf.saved_model, 'load', wait_and_load)
        monkeypatch.setattr(servables.Servable, 'close', close)
        add(versions, folder, 2)
        assert loading.wait(10)
        assert server.stop(30.0) and closed == [1]  # The second would be among them, had it been waited for.
        gate.set()
        toy_models.wait_until(lambda: closed == [1, 2])  # Loaded too late, it is given up.
        assert server.newest_version() == 0


def test_only_numbers_of_the_protocol_are_versions(tmp_path):
    tried = []

    def load(folder):
        tried.append(folder.name)
        raise servables.LoadError('no model')

    for name in ('3', '0', '007', '\u00b2', '\u0663', '-1', '1.0', str(2**63 - 1), str(2**63), '9' * 200):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'saved_model.pb').touch()
    with pytest.raises(servables.LoadError):
        versions_lib.VersionManager(tmp_path, toy_models.NAME, load).load_first()
    assert tried == [str(2**63 - 1), '3', '0']


@pytest.mark.parametrize(
    'message, told',
    [
        ('/srv/my models/toys/2: no /srv/my models/toys/2/variables', 'toys/2: no toys/2/variables'),
        (
            'cannot open \'/etc/a/b.pem\', "/opt/x"; see https://a.b/c/d',
            'cannot open \'b.pem\', "x"; see https://a.b/c/d',
        ),
        ('shape [2]/[3] and 1/2', 'shape [2]/[3] and 1/2'),
    ],
)
def test_messages_to_clients_do_not_say_where_files_lie(message, told):
    assert status.without_paths(message, pathlib.Path('/srv/my models')) == told


def test_version_that_is_still_being_copied_is_tried_again(versions, folder):
    with toy_models.serving(folder) as server:
        (folder / '2').mkdir()
        shutil.copy(versions / '2' / 'saved_model.pb', folder / '2')
        toy_models.wait_until(lambda: states(server).get(2) == 'END')
        shutil.copytree(versions / '2', folder / '2', dirs_exist_ok=True)
        toy_models.wait_until(lambda: states(server).get(2) == 'AVAILABLE')
        assert served(server) == 20


def test_first_version_that_works_is_served_at_the_start(versions, folder):
    add(versions, folder, 2)
    damage_graph(folder / '2')
    with toy_models.serving(folder) as server:
        assert served(server) == 10
    damage_graph(folder / '1')
    with pytest.raises(servables.LoadError, match='2: '):
        with toy_models.serving(folder):
            pass


@pytest.mark.parametrize(
    'make',
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: (path / '1').mkdir(parents=True),
        lambda path: (path / 'one').mkdir(parents=True),
    ],
)
def test_folder_without_a_version_is_refused(tmp_path, make):
    make(tmp_path / 'none')
    with pytest.raises(FileNotFoundError, match='no SavedModel in .*none'):
        with toy_models.serving(tmp_path / 'none'):
            pass


def test_folder_of_a_run_is_told_where_its_model_lies(tmp_path):
    (tmp_path / 'run' / 'saved_model').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='no SavedModel in .*run: .*; name .*run/saved_model'):
        with toy_models.serving(tmp_path / 'run'):
            pass


def test_warmup_requests_are_replayed_before_a_version_is_served(folder, monkeypatch):
    logs, max_rows = [], toy_models.quick_limits().batching.max_batch_size
    for labels in ([3], [5] * (max_rows + 1), [4] * max_rows):  # The second is more than any client may ask for.
        log = prediction_log_pb2.PredictionLog()
        request = toy_models.predict_request(labels=np.array(labels, np.int32), seeds=np.arange(len(labels)))
        log.predict_log.request.CopyFrom(request)
        logs.append(log.SerializeToString())
    logs.append(prediction_log_pb2.PredictionLog(classify_log={}).SerializeToString())  # Not served, so passed over.
    write_warmup(folder / '1', *logs)
    seen, run = [], signatures.Signature.run

    def record(self, inputs):
        seen.append(inputs['labels'].tolist())
        return run(self, inputs)

    monkeypatch.setattr(signatures.Signature, 'run', record)
    with toy_models.serving(folder) as server:
        assert seen == [[3], [4] * max_rows]
        assert served(server) == 10


def test_exported_sampler_is_served_and_joining_changes_no_image(tmp_path):
    config = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
    model, generator = denoiser.build(config, (4, 4, 1), 3), np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0.0, 0.3, variable.shape))
    process = process_lib.DiffusionProcess(schedules.Schedule('cosine', 50), 'v')
    sampler = export.ImageSampler(model, process, samplers.SamplerConfig('ddim', 3))
    folder = tmp_path / toy_models.NAME
    version = export.export_saved_model(sampler, folder, [])
    sample_fn = export.load_sample_fn(version)
    labels, seeds = np.arange(24) % 3, np.arange(24)
    expected = sample_fn(tf.constant(labels, tf.int32), tf.constant(seeds, tf.int64)).numpy().astype(int)

    def images(limits):
        with toy_models.serving(folder, limits=limits) as server:
            predict, _ = toy_models.stubs(server)
            calls = [
                predict.Predict.future(
                    toy_models.predict_request(labels=labels[i : i + 1].astype(np.int32), seeds=seeds[i : i + 1]), 20
                )
                for i in range(24)
            ]
            return np.concatenate([tf.make_ndarray(call.result().outputs['images']) for call in calls])

    joined = images(toy_models.quick_limits(batch_timeout_secs=0.2))
    assert expected.std() > 10
    assert np.abs(joined - expected).max() <= 1
    one_size = {'max_batch_size': 8, 'allowed_batch_sizes': (8,)}
    np.testing.assert_array_equal(
        images(toy_models.quick_limits(**one_size)), images(toy_models.quick_limits(**one_size, batch_timeout_secs=0.0))
    )
