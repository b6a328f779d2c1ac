"""Who the workers of a run are: read from TF_CONFIG, from Slurm, or from an indexed Job of Kubernetes."""

from collections.abc import Iterator
import contextlib
import json
import os
import re
import socket
import sys
import threading
from typing import TypeAlias

import tensorflow as tf

TF_CONFIG, SLURM, KUBERNETES = CLUSTERS = ('tf_config', 'slurm', 'kubernetes')

DEFAULT_PORT = 2222
_QUIET_SECS = 15.0  # What takes less is not worth a word.

Resolver: TypeAlias = tf.distribute.cluster_resolver.ClusterResolver


def check(cluster: str, port: int, num_workers: int | None, service: str | None) -> None:
    """Checks the settings of a cluster; arguments as `resolve` has them.

    Raises:
      ValueError: names the setting.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f'port of the strategy must be in [1, 65535], got {port}.')
    if cluster == TF_CONFIG and port != DEFAULT_PORT:
        raise ValueError(
            f"port={port} of the strategy is for cluster='{SLURM}' and '{KUBERNETES}': TF_CONFIG names "
            'the ports itself.'
        )
    if cluster == KUBERNETES:
        if not service or num_workers is None or num_workers < 1:
            raise ValueError(
                f"cluster='{KUBERNETES}' needs StrategyConfig.service, the name of the headless service, and "
                f'StrategyConfig.num_workers, the pods of the Job; got {service!r} and {num_workers}.'
            )
    elif service is not None or num_workers is not None:
        raise ValueError(
            f"service and num_workers of the strategy are for cluster='{KUBERNETES}', not for {cluster!r}."
        )


def check_environment(is_multi_worker: bool) -> None:
    """Refuses to run alone where the environment says that there are several workers: they would all do the same.

    Raises:
      ValueError: says what to do.
    """
    if is_multi_worker:
        return
    named = len(_addresses_of_tf_config() or [])
    if named > 1:
        raise ValueError(f'TF_CONFIG names {named} workers: say --strategy=multi_worker_mirrored, or unset TF_CONFIG.')
    tasks = os.environ.get('SLURM_STEP_NUM_TASKS', '1')
    if 'SLURM_PROCID' in os.environ and tasks not in ('', '1'):
        raise ValueError(
            f'srun started {tasks} tasks: say --strategy=multi_worker_mirrored with StrategyConfig.cluster = '
            "'slurm' (bin/sample: --cluster=slurm), or start one task."
        )


def resolve(cluster: str, port: int, num_workers: int | None, service: str | None) -> Resolver:
    """Returns who the workers are and which of them this is.

    Args:
      cluster: One of CLUSTERS.
      port: First port of the workers, where the environment does not say; those on one machine count up from it.
      num_workers: With 'kubernetes', how many pods the Job has.
      service: With 'kubernetes', the name of the headless service.

    Raises:
      ValueError: if the environment is not that of such a cluster; says what is missing.
    """
    if cluster == TF_CONFIG:
        return _from_tf_config()
    if cluster == SLURM:
        found, own = _from_slurm(port)
    else:
        assert num_workers is not None and service is not None  # See `check`.
        found, own = _from_kubernetes(port, num_workers, service)
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({'worker': found}), task_type='worker', task_id=own, rpc_layer='grpc'
    )


@contextlib.contextmanager
def waiting_for_all(num_workers: int, timeout_secs: float) -> Iterator[None]:
    """A context for the call that returns when all workers are there; it says what is waited for, and ends the process.

    The call waits within TensorFlow for ever, where no exception reaches it: where the time is over, the process says
    so and ends with exit code 1.

    Args:
      num_workers: All of them.
      timeout_secs: How long to wait.
    """
    arrived = threading.Event()

    def watch():
        if arrived.wait(min(_QUIET_SECS, timeout_secs)):
            return
        print(f'waiting for the others of {num_workers} workers to be started', file=sys.stderr, flush=True)
        if not arrived.wait(max(0.0, timeout_secs - _QUIET_SECS)):
            print(
                f'error: not all of {num_workers} workers were there within {timeout_secs:g} s '
                '(StrategyConfig.start_timeout_secs); start all of them, and see that they reach one another.',
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)

    thread = threading.Thread(target=watch, name='start of the workers', daemon=True)
    thread.start()
    try:
        yield
    finally:
        arrived.set()
        thread.join()


def check_port(resolver: Resolver) -> None:
    """Checks that this worker can listen at its port.

    Raises:
      OSError: if not; says why.
    """
    port = int(addresses(resolver)[index(resolver)].rsplit(':', 1)[1])
    # As gRPC listens, which itself does not say in words that the port is taken: on all addresses of this machine.
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # Connections that have ended take no port.
        try:
            listener.bind(('', port))
        except OSError as error:
            raise OSError(
                f'this worker cannot listen at port {port} ({error.strerror}): end what does, or give the '
                'worker another one.'
            ) from error


def addresses(resolver: Resolver) -> list[str]:
    """Returns the addresses of all workers, the first one first."""
    spec = resolver.cluster_spec().as_dict()
    return [*spec.get('chief', []), *spec.get('worker', [])]


def index(resolver: Resolver) -> int:
    """Returns which of the addresses is this process."""
    has_chief = 'chief' in resolver.cluster_spec().as_dict()
    return resolver.task_id + (has_chief and resolver.task_type == 'worker')


def _addresses_of_tf_config() -> list[str] | None:
    """Returns the training processes that TF_CONFIG names; None where it is not set."""
    text = os.environ.get('TF_CONFIG')
    if not text:
        return None
    try:
        parsed = json.loads(text)
        cluster, _ = parsed.get('cluster', {}), parsed.get('task', {}).get
        return [address for kind in ('chief', 'worker') for address in cluster.get(kind, [])]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f'TF_CONFIG is not the JSON of a cluster: {error}.') from error


def _from_tf_config() -> Resolver:
    form = """TF_CONFIG='{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'"""
    found = _addresses_of_tf_config()
    if not found:
        raise ValueError(f'multi_worker_mirrored needs {form}, or StrategyConfig.cluster.')
    for address in found:
        if not re.fullmatch(r'.+:\d{1,5}', str(address)):
            raise ValueError(f'TF_CONFIG names the worker {address!r}, which is not HOST:PORT; the form is {form}.')
    parsed = json.loads(os.environ['TF_CONFIG'])
    kind, task = (parsed.get('task', {}).get(name) for name in ('type', 'index'))
    if kind not in ('chief', 'worker') or not str(task).isdigit() or int(task) >= len(parsed['cluster'].get(kind, [])):
        raise ValueError(
            f'TF_CONFIG gives this process the task {kind!r}, {task}: only the types chief and worker take '
            f'part, each with an index within its list; the form is {form}.'
        )
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def _from_slurm(port: int) -> tuple[list[str], int]:
    names = ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_STEP_NODELIST', 'SLURM_STEP_TASKS_PER_NODE')
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(f"cluster='{SLURM}' is for tasks started by srun: {', '.join(missing)} is not set.")
    own, count = int(os.environ['SLURM_PROCID']), int(os.environ['SLURM_STEP_NUM_TASKS'])
    try:
        # Which GPUs a task sees is left to Slurm: the numbers of GPUs are there to be accepted.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=count, gpus_per_task=1, auto_set_gpu=False
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"cluster='{SLURM}': {error}.") from error
    # In the order of Slurm's own list, which that of the tasks follows; the resolver's cluster_spec sorts nodes by name
    # and so puts node10 before node9.
    tasks_of_nodes = resolver._task_configuration
    nodes = [node for node, (_, tasks) in enumerate(tasks_of_nodes.items()) for _ in range(tasks)]
    if 'SLURM_NODEID' in os.environ and nodes[own] != int(os.environ['SLURM_NODEID']):
        raise ValueError(
            f"cluster='{SLURM}' needs tasks that fill one node after the other, and task {own} is on node "
            f'{os.environ["SLURM_NODEID"]}: give srun --distribution=block.'
        )
    return [f'{node}:{port + i}' for node, tasks in tasks_of_nodes.items() for i in range(tasks)], own


def _from_kubernetes(port: int, num_workers: int, service: str) -> tuple[list[str], int]:
    own, hostname = os.environ.get('JOB_COMPLETION_INDEX', ''), os.environ.get('HOSTNAME', '')
    job = re.fullmatch(rf'(.+)-{own}', hostname)
    if not own.isdigit() or not job:
        raise ValueError(
            f"cluster='{KUBERNETES}' is for the pods of a Job with completionMode: Indexed, whose "
            f'JOB_COMPLETION_INDEX ends their HOSTNAME; got {own!r} and {hostname!r}.'
        )
    if int(own) >= num_workers:
        raise ValueError(
            f'this is pod {own} of the Job, and StrategyConfig.num_workers is {num_workers}: set it to the '
            'completions of the Job.'
        )
    return [f'{job.group(1)}-{i}.{service}:{port}' for i in range(num_workers)], int(own)
