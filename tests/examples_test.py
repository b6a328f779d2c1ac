"""Tests that the files of examples/ are what TensorFlow Serving and Docker read, and agree with each other."""

import pathlib
import re
import shlex
import subprocess

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory
from google.protobuf import text_format
from google.protobuf import wrappers_pb2  # Registers the types that are named below.
import pytest
from tensorflow_serving.config import model_server_config_pb2
import yaml

from tf_dpdiff.cli import command
from tf_dpdiff.cli import export
from tf_dpdiff.cli import sample
from tf_dpdiff.sampling import draw
from tf_dpdiff.serving import client
from tf_dpdiff.serving import warmup

SERVING = pathlib.Path(__file__).resolve().parent.parent / 'examples' / 'serving'
_INT64 = f'.{wrappers_pb2.Int64Value.DESCRIPTOR.full_name}'
_FIELD = descriptor_pb2.FieldDescriptorProto
# Fields of messages that tensorflow-serving-api leaves out: number, type, name of a message's type.
_MESSAGES = {
    'PrometheusConfig': {'enable': (1, _FIELD.TYPE_BOOL, None), 'path': (2, _FIELD.TYPE_STRING, None)},
    'MonitoringConfig': {'prometheus_config': (1, _FIELD.TYPE_MESSAGE, '.examples.PrometheusConfig')},
    'BatchingParameters': {
        'max_batch_size': (1, _FIELD.TYPE_MESSAGE, _INT64),
        'batch_timeout_micros': (2, _FIELD.TYPE_MESSAGE, _INT64),
        'max_enqueued_batches': (3, _FIELD.TYPE_MESSAGE, _INT64),
        'num_batch_threads': (4, _FIELD.TYPE_MESSAGE, _INT64),
        'allowed_batch_sizes': (6, _FIELD.TYPE_INT64, None),
    },
}


def message(name):
    """Returns an empty message of TensorFlow Serving's configuration."""
    file = descriptor_pb2.FileDescriptorProto(
        name='examples.proto', package='examples', syntax='proto3', dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    for message_name, fields in _MESSAGES.items():
        described = file.message_type.add(name=message_name)
        for field, (number, kind, type_name) in fields.items():
            label = _FIELD.LABEL_REPEATED if field == 'allowed_batch_sizes' else _FIELD.LABEL_OPTIONAL
            described.field.add(name=field, number=number, type=kind, type_name=type_name, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'examples.{name}'))()


def read(name, empty):
    return text_format.Parse((SERVING / name).read_text(), empty)


@pytest.fixture(name='compose')
def fixture_compose():
    return yaml.safe_load((SERVING / 'docker-compose.yml').read_text())


def test_batches_are_those_of_the_warm_up_and_of_the_command():
    parameters = read('batching_parameters.txt', message('BatchingParameters'))
    sizes = list(parameters.allowed_batch_sizes)
    assert tuple(sizes) == warmup.BATCH_SIZES and sizes == sorted(set(sizes))
    assert sizes[-1] == parameters.max_batch_size.value == draw.CHUNK_SIZE
    for field in ('batch_timeout_micros', 'max_enqueued_batches', 'num_batch_threads'):
        assert getattr(parameters, field).value > 0


def test_metrics_are_where_prometheus_looks(compose):
    monitoring = read('monitoring.config', message('MonitoringConfig')).prometheus_config
    (job,) = yaml.safe_load((SERVING / 'prometheus.yml').read_text())['scrape_configs']
    assert monitoring.enable and monitoring.path == job['metrics_path']
    ((target,),) = [static['targets'] for static in job['static_configs']]
    host, port = target.split(':')
    assert host in compose['services'] and f'--rest_api_port={port}' in compose['services'][host]['command']


def test_models_lie_in_the_mounted_folder_and_are_asked_for_by_the_health_check(compose):
    (config,) = read('models.config', model_server_config_pb2.ModelServerConfig()).model_config_list.config
    serving = compose['services']['serving']
    (mount,) = [volume for volume in serving['volumes'] if volume['target'] == '/models']
    assert mount['read_only'] and mount['source'].endswith('saved_models}')
    assert config.base_path == f'/models/{config.name}' and config.model_platform == 'tensorflow'
    assert f'GET /v1/models/{config.name} HTTP' in serving['healthcheck']['test'][-1]


def test_container_reads_files_that_exist_and_listens_to_this_machine_alone(compose):
    for service in compose['services'].values():
        assert re.fullmatch(r'[\w/]+:v?\d+[.]\d+[.]\d+', service['image'])  # A release, and not the latest.
        assert service['mem_limit']
        assert all(re.fullmatch(r'127[.]0[.]0[.]1:(\d+):\1', port) for port in service['ports'])
        assert all(volume['read_only'] for volume in service['volumes'])
    named = [part for part in compose['services']['serving']['command'] if '/etc/serving/' in part]
    assert len(named) == 3
    for part in named:
        assert (SERVING / part.split('/etc/serving/')[1]).is_file(), part


def test_compose_accepts_its_file():
    try:
        if subprocess.run(['docker', 'compose', 'version'], capture_output=True, check=False).returncode:
            pytest.skip('docker has no compose')
    except FileNotFoundError:
        pytest.skip('docker is not installed')
    checked = subprocess.run(
        ['docker', 'compose', '--profile', 'monitoring', '--file', SERVING / 'docker-compose.yml', 'config', '--quiet'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_commands_use_flags_and_addresses_that_exist(monkeypatch):
    seen = []
    monkeypatch.setattr(command, 'run', lambda parser, unused_main, argv: seen.append(parser.parse_args(argv)))
    lines = re.findall(r'^bin/(export|sample) (.*)$', (SERVING / 'README.md').read_text(), re.M)
    assert {verb for verb, _ in lines} == {'export', 'sample'}
    for verb, flags in lines:
        with pytest.raises(SystemExit) as ended:
            {'export': export, 'sample': sample}[verb].run(shlex.split(flags))
        assert ended.value.code is None, flags  # What stands in for the verb returned nothing.
    endpoints = [flags.endpoint for flags in seen if 'endpoint' in flags]
    assert {str(client.Endpoint(endpoint)).split(':')[0] for endpoint in endpoints} == {'grpc', 'http'}
