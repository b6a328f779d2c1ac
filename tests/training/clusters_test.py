"""Tests of who the workers of a run are, and of which strategies are taken; the environment of clusters is faked."""

import json
import os
import socket
import urllib.error

import pytest
import tensorflow as tf

from tf_dpdiff.training import clusters
from tf_dpdiff.training import strategies

ALONE = ('default', 'mirrored', 'tpu')


@pytest.fixture(autouse=True)
def fixture_no_cluster(monkeypatch):
    for name in [*os.environ]:
        if name.startswith('SLURM_') or name in ('TF_CONFIG', 'JOB_COMPLETION_INDEX'):
            monkeypatch.delenv(name)


def set_tf_config(monkeypatch, cluster, task):
    monkeypatch.setenv('TF_CONFIG', json.dumps({'cluster': cluster, 'task': task}))


def set_slurm(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(f'SLURM_{name}', str(value))


def set_kubernetes(monkeypatch, index, hostname):
    monkeypatch.setenv('JOB_COMPLETION_INDEX', index)
    monkeypatch.setenv('HOSTNAME', hostname)


def found(cluster, port=2222, num_workers=None, service=None):
    resolver = clusters.resolve(cluster, port, num_workers, service)
    # TensorFlow, too, must be told the address of this process.
    own = resolver.cluster_spec().task_address(resolver.task_type, int(resolver.task_id))
    addresses, index = clusters.addresses(resolver), clusters.index(resolver)
    assert addresses[index] == own
    return addresses, index


@pytest.mark.parametrize(
    'cluster, task, expected',
    [
        ({'worker': ['a:1', 'b:1']}, ('worker', 1), (['a:1', 'b:1'], 1)),
        ({'chief': ['c:1'], 'worker': ['a:1', 'b:1']}, ('chief', 0), (['c:1', 'a:1', 'b:1'], 0)),
        ({'worker': ['a:1', 'b:1'], 'chief': ['c:1']}, ('worker', 1), (['c:1', 'a:1', 'b:1'], 2)),
        ({'worker': ['a:1', 'b:1'], 'evaluator': ['e:1']}, ('worker', '0'), (['a:1', 'b:1'], 0)),
        ({'worker': ['a:1']}, ('worker', 0), (['a:1'], 0)),
    ],
)
def test_tf_config(monkeypatch, cluster, task, expected):
    set_tf_config(monkeypatch, cluster, {'type': task[0], 'index': task[1]})
    assert found('tf_config') == expected


@pytest.mark.parametrize(
    'task', [('ps', 0), ('evaluator', 0), ('worker', 2), ('chief', 0), ('worker', -1), (None, None), ('worker', None)]
)
def test_task_that_takes_no_part_is_refused(monkeypatch, task):
    set_tf_config(monkeypatch, {'worker': ['a:1', 'b:1'], 'ps': ['p:1']}, {'type': task[0], 'index': task[1]})
    with pytest.raises(ValueError, match='only the types chief and worker'):
        found('tf_config')


@pytest.mark.parametrize(
    'text, said',
    [
        (None, 'needs TF_CONFIG='),
        ('', 'needs TF_CONFIG='),
        ('{}', 'needs TF_CONFIG='),
        ('{broken', 'not the JSON'),
        ('[]', 'not the JSON'),
        ('{"cluster": []}', 'not the JSON'),
        ('{"cluster": null}', 'not the JSON'),
        ('{"cluster": {"worker": null}}', 'TF_CONFIG'),
        ('{"cluster": {"worker": ["a:1"]}}', 'only the types'),
        ('{"cluster": {"worker": ["a:1"]}, "task": null}', 'TF_CONFIG'),
    ],
)
def test_broken_tf_config_is_one_clear_line(monkeypatch, text, said):
    if text is not None:
        monkeypatch.setenv('TF_CONFIG', text)
    with pytest.raises(ValueError, match=said) as raised:
        found('tf_config')
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('address', ['b', 'b:', ':1', 'b:grpc', 1])
def test_address_without_a_port_is_named(monkeypatch, address):
    set_tf_config(monkeypatch, {'worker': ['a:1', address]}, {'type': 'worker', 'index': 0})
    with pytest.raises(ValueError, match=f'TF_CONFIG names the worker {address!r}, which is not HOST:PORT') as raised:
        found('tf_config')
    assert '\n' not in str(raised.value)
    set_tf_config(monkeypatch, {'worker': ['a:1', '[::1]:65535']}, {'type': 'worker', 'index': 0})  # Control.
    assert found('tf_config')[0] == ['a:1', '[::1]:65535']


@pytest.mark.parametrize('host', ['127.0.0.1', ''])
def test_port_that_is_taken_is_one_clear_line(monkeypatch, host):
    with socket.socket() as other:
        other.bind((host, 0))
        other.listen()
        port = other.getsockname()[1]
        set_tf_config(monkeypatch, {'worker': [f'localhost:{port}']}, {'type': 'worker', 'index': 0})
        config = strategies.StrategyConfig(name='multi_worker_mirrored')
        with pytest.raises(OSError, match=f'cannot listen at port {port} .Address already in use.') as raised:
            strategies.start(config)
        assert '\n' not in str(raised.value) and strategies.check(config) == 1  # Which opens no port.
    clusters.check_port(clusters.resolve('tf_config', 2222, None, None))  # Control.


@pytest.mark.parametrize(
    'nodes, tasks, expected',
    [
        ('node[9-10]', '1(x2)', ['node9:2222', 'node10:2222']),
        ('node[9-10]', '2,1', ['node9:2222', 'node9:2223', 'node10:2222']),
        ('b1,a[07-08]', '1(x3)', ['b1:2222', 'a07:2222', 'a08:2222']),
        ('one', '3', ['one:2222', 'one:2223', 'one:2224']),
        ('one', '1', ['one:2222']),
    ],
)
def test_slurm_in_the_order_of_its_own_list(monkeypatch, nodes, tasks, expected):
    hosts = [address.split(':')[0] for address in expected]
    for index, host in enumerate(hosts):
        set_slurm(
            monkeypatch,
            PROCID=index,
            STEP_NUM_TASKS=len(expected),
            STEP_NODELIST=nodes,
            STEP_TASKS_PER_NODE=tasks,
            NODEID=list(dict.fromkeys(hosts)).index(host),
        )
        assert found('slurm') == (expected, index)
    assert found('slurm', port=5000)[0][0] == f'{hosts[0]}:5000'


def test_tasks_that_go_round_the_nodes_are_refused_by_name(monkeypatch):
    refused = 0
    for index, node in enumerate([0, 1, 0, 1]):  # As --distribution=cyclic has them.
        set_slurm(
            monkeypatch,
            PROCID=index,
            STEP_NUM_TASKS=4,
            STEP_NODELIST='n[1-2]',
            STEP_TASKS_PER_NODE='2(x2)',
            NODEID=node,
        )
        try:
            found('slurm')
        except ValueError as error:
            assert '--distribution=block' in str(error)
            refused += 1
    assert refused == 2


@pytest.mark.parametrize(
    'changed, said',
    [
        ({'PROCID': None}, 'SLURM_PROCID is not set'),
        ({'STEP_NODELIST': 'n[1-'}, "cluster='slurm'"),
        ({'STEP_TASKS_PER_NODE': 'many'}, "cluster='slurm'"),
        ({'STEP_NUM_TASKS': 3}, "cluster='slurm'"),
    ],
)
def test_broken_environment_of_slurm_is_named(monkeypatch, changed, said):
    set_slurm(monkeypatch, PROCID=0, STEP_NUM_TASKS=2, STEP_NODELIST='n[1-2]', STEP_TASKS_PER_NODE='1(x2)')
    assert found('slurm')[1] == 0  # The control.
    for name, value in changed.items():
        monkeypatch.delenv(f'SLURM_{name}')
        set_slurm(monkeypatch, **({name: value} if value is not None else {}))
    with pytest.raises(ValueError, match=said):
        found('slurm')


def test_kubernetes(monkeypatch):
    set_kubernetes(monkeypatch, '2', 'my-job-2')
    expected = ['my-job-0.peers:2222', 'my-job-1.peers:2222', 'my-job-2.peers:2222']
    assert found('kubernetes', num_workers=3, service='peers') == (expected, 2)


@pytest.mark.parametrize(
    'index, hostname, said',
    [
        ('2', 'my-job-2', 'StrategyConfig.num_workers is 2'),
        ('1', 'my-job-0', 'completionMode: Indexed'),
        ('', 'my-job', 'completionMode: Indexed'),
        ('.*', 'my-job-1', 'completionMode: Indexed'),
    ],
)
def test_other_pods_are_refused(monkeypatch, index, hostname, said):
    set_kubernetes(monkeypatch, index, hostname)
    with pytest.raises(ValueError, match=said):
        found('kubernetes', num_workers=2, service='peers')


@pytest.mark.parametrize('name', ALONE)
@pytest.mark.parametrize('which', ['tf_config', 'slurm'])
def test_running_alone_among_several_workers_is_refused(monkeypatch, name, which):
    if which == 'tf_config':
        set_tf_config(monkeypatch, {'chief': ['c:1'], 'worker': ['a:1']}, {'type': 'worker', 'index': 0})
    else:
        set_slurm(monkeypatch, PROCID=0, STEP_NUM_TASKS=2)
    with pytest.raises(ValueError, match='--strategy=multi_worker_mirrored'):
        strategies.start(strategies.StrategyConfig(name=name))


def test_check_finds_what_is_wrong_without_starting_or_waiting(monkeypatch):
    config = strategies.StrategyConfig(name='multi_worker_mirrored')
    with pytest.raises(ValueError, match='needs TF_CONFIG='):
        strategies.check(config)
    set_tf_config(monkeypatch, {'worker': ['a:1', 'b:1']}, {'type': 'worker', 'index': 0})
    assert strategies.check(config) == 2
    with pytest.raises(ValueError, match='--strategy=multi_worker_mirrored'):
        strategies.check(strategies.StrategyConfig())


def test_running_alone_where_nobody_else_is_named_is_fine(monkeypatch):
    assert strategies.start(strategies.StrategyConfig()).count == 1
    set_tf_config(monkeypatch, {'worker': ['a:1']}, {'type': 'worker', 'index': 0})
    set_slurm(monkeypatch, PROCID=0, STEP_NUM_TASKS=1)
    assert strategies.start(strategies.StrategyConfig()).workers.count == 1
    # In the script of sbatch, outside any srun.
    monkeypatch.delenv('SLURM_STEP_NUM_TASKS')
    set_slurm(monkeypatch, NTASKS=4)
    assert strategies.start(strategies.StrategyConfig()).workers.count == 1


@pytest.mark.parametrize(
    'settings, said',
    [
        ({'name': 'parameter_server'}, "'parameter_server' is not supported: its workers"),
        ({'name': 'central_storage'}, "'central_storage' is not supported"),
        ({'name': 'one_device'}, "'default' is the same"),
        ({'name': 'horovod'}, "name .* got 'horovod'"),
        ({'name': 'multi_worker_mirrored', 'cluster': 'pbs'}, "cluster .* got 'pbs'"),
        ({'name': 'multi_worker_mirrored', 'communication': 'mpi'}, "communication .* got 'mpi'"),
        (
            {'name': 'mirrored', 'cluster': 'slurm'},
            "cluster='slurm' is for .* 'multi_worker_mirrored', not for 'mirrored'",
        ),
        ({'name': 'mirrored', 'port': 2223}, "port=2223 is for .* 'multi_worker_mirrored', not for 'mirrored'"),
        (
            {'name': 'tpu', 'communication': 'nccl'},
            "communication='nccl' is for .* 'multi_worker_mirrored', not for 'tpu'",
        ),
        ({'start_timeout_secs': 60.0}, "start_timeout_secs=60.0 is for .* 'multi_worker_mirrored', not for 'default'"),
        ({'service': 's'}, "service='s' is for .* 'multi_worker_mirrored', not for 'default'"),
        (
            {'name': 'multi_worker_mirrored', 'tpu': 'mine'},
            "tpu='mine' is for the strategy 'tpu', not for 'multi_worker",
        ),
        ({'name': 'multi_worker_mirrored', 'port': 2223}, "port=2223 .* is for cluster='slurm' and 'kubernetes'"),
        ({'name': 'mirrored', 'logical_cpus': 0}, 'logical_cpus .* got 0'),
        ({'logical_cpus': 2}, "logical_cpus=2 is for the strategy 'mirrored', not for 'default'"),
        ({'name': 'multi_worker_mirrored', 'cluster': 'slurm', 'port': 0}, 'port .* got 0'),
        ({'name': 'multi_worker_mirrored', 'cluster': 'slurm', 'num_workers': 2}, "not for 'slurm'"),
        ({'name': 'multi_worker_mirrored', 'cluster': 'kubernetes', 'num_workers': 2}, 'StrategyConfig.service'),
        ({'name': 'multi_worker_mirrored', 'cluster': 'kubernetes', 'service': 's'}, 'StrategyConfig.num_workers'),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        strategies.StrategyConfig(**settings)


@pytest.mark.parametrize(
    'make',
    [
        lambda: tf.distribute.OneDeviceStrategy('CPU:0'),
        lambda: tf.distribute.experimental.CentralStorageStrategy(['CPU:0'], 'CPU:0'),
        # Made without its servers: what counts is its class.
        lambda: object.__new__(tf.distribute.experimental.ParameterServerStrategy),
    ],
    ids=['one device', 'central storage', 'parameter server'],
)
def test_strategies_whose_noise_was_not_shown_to_be_added_once_are_refused(make):
    strategy = make()
    with pytest.raises(ValueError, match=f'{type(strategy).__name__} is not supported'):
        strategies.check_strategy(strategy)
    with pytest.raises(ValueError, match='is not supported'):
        strategies.Replicas(strategy)


def test_supported_strategies_pass():
    strategies.check_strategy(tf.distribute.get_strategy())
    strategies.check_strategy(tf.distribute.MirroredStrategy(['CPU:0']))


@pytest.mark.parametrize(
    'error',
    [
        ValueError('Could not lookup TPU metadata'),
        urllib.error.URLError('Name or service not known'),
        ImportError('googleapiclient and oauth2client must be installed'),
        RuntimeError('TPU is PREEMPTED\nmore'),
        tf.errors.NotFoundError(None, None, 'TPU not found\nmore'),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_tpu_is_one_clear_line(monkeypatch, error):

    def raise_error(**unused_arguments):
        raise error

    monkeypatch.setattr(tf.distribute.cluster_resolver, 'TPUClusterResolver', raise_error)
    with pytest.raises(ValueError, match="there is no TPU 'mine' here") as raised:
        strategies.start(strategies.StrategyConfig(name='tpu', tpu='mine'))
    assert '\n' not in str(raised.value)
