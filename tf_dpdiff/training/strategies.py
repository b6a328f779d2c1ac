"""On which devices and machines a run computes: the strategies of tf.distribute, and what they have in common.

A run is the same run on any of them: the same expected batch, noise and epsilon. Each replica samples its own shard of
the units and adds up their clipped gradients; the sums are reduced over all replicas; then every replica draws the same
noise from the same seed and makes the same update.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpdiff import workers as workers_lib
from tf_dpdiff.training import clusters
from tf_dpdiff.training import interruption
from tf_dpdiff.training import preemption

DEFAULT, MIRRORED, MULTI_WORKER, TPU = 'default', 'mirrored', 'multi_worker_mirrored', 'tpu'
STRATEGIES = (DEFAULT, MIRRORED, MULTI_WORKER, TPU)
COMMUNICATIONS = ('auto', 'ring', 'nccl')
# Settings that mean something with one strategy alone.
_ONLY_WITH = {
    'cluster': MULTI_WORKER,
    'port': MULTI_WORKER,
    'num_workers': MULTI_WORKER,
    'service': MULTI_WORKER,
    'start_timeout_secs': MULTI_WORKER,
    'communication': MULTI_WORKER,
    'tpu': TPU,
    'logical_cpus': MIRRORED,
}
_DRIFTED = (
    'their devices do not compute alike, and nothing must be released; start anew in another --workdir, on '
    'machines of one kind'
)
# Strategies of tf.distribute that are not among them, and why.
_REFUSED = {
    'parameter_server': 'its workers update the weights out of step with one another, each with noise of its own',
    'central_storage': 'its noise was not shown to be added once',
    'one_device': f"'{DEFAULT}' is the same",
}


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
    """Which devices and machines a run computes on; changes neither what is learnt nor what it costs in privacy.

    Attributes:
      name: 'default' (one device), 'mirrored' (all GPUs of this machine), 'multi_worker_mirrored' (all GPUs of several
        machines, or their CPUs; one process a machine) or 'tpu'.
      cluster: With 'multi_worker_mirrored', who names the workers: 'tf_config' (the environment variable
        TF_CONFIG, as Kubeflow and Vertex AI set it), 'slurm' (srun) or 'kubernetes' (an indexed Job).
      port: First port of the workers, with 'slurm' and 'kubernetes', in [1, 65535].
      num_workers: Pods of the Job, with 'kubernetes'; None otherwise.
      service: Name of the headless service by which the pods find one another, with 'kubernetes'; None otherwise.
      start_timeout_secs: Seconds for which a worker waits for the others to be started, > 0.
      communication: Of the workers: 'ring' (over gRPC), 'nccl' (GPUs) or 'auto' (the faster of those that work).
      tpu: With 'tpu': 'local', or the name of a TPU, or the address of its runtime.
      preemption_notice: Who says that this machine will be taken away, besides SIGTERM and SIGUSR1: 'gce' (the metadata
        server of Google Compute Engine) or None.
      logical_cpus: Split the CPU into so many devices, to try 'mirrored' without a GPU. None: one.
    """

    name: str = DEFAULT
    cluster: str = 'tf_config'
    port: int = clusters.DEFAULT_PORT
    num_workers: int | None = None
    service: str | None = None
    start_timeout_secs: float = 1800.0
    communication: str = 'auto'
    tpu: str = 'local'
    preemption_notice: str | None = None
    logical_cpus: int | None = None

    def __post_init__(self):
        if self.name in _REFUSED:
            raise ValueError(
                f'strategy {self.name!r} is not supported: {_REFUSED[self.name]}; use one of {STRATEGIES}.'
            )
        for name, known in (('name', STRATEGIES), ('cluster', clusters.CLUSTERS), ('communication', COMMUNICATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f'{name} of the strategy must be one of {known}, got {getattr(self, name)!r}.')
        for name, owner in _ONLY_WITH.items():
            value = getattr(self, name)
            if self.name != owner and value != getattr(StrategyConfig, name):
                raise ValueError(f"{name}={value!r} is for the strategy '{owner}', not for {self.name!r}.")
        if self.logical_cpus is not None and self.logical_cpus < 1:
            raise ValueError(f'logical_cpus of the strategy must be at least 1, got {self.logical_cpus}.')
        if not self.start_timeout_secs > 0.0:
            raise ValueError(f'start_timeout_secs of the strategy must be > 0, got {self.start_timeout_secs}.')
        clusters.check(self.cluster, self.port, self.num_workers, self.service)
        preemption.check(self.preemption_notice)


def check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Refuses strategies whose steps were not shown to add their noise exactly once.

    Raises:
      ValueError: names the strategy.
    """
    supported = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy, tf.distribute.TPUStrategy)
    # The default strategy has no class of its own in the interface.
    if not isinstance(strategy, supported) and type(strategy).__name__ != '_DefaultDistributionStrategy':
        raise ValueError(
            f'{type(strategy).__name__} is not supported: its noise was not shown to be added once. Use '
            'no strategy, MirroredStrategy, MultiWorkerMirroredStrategy or TPUStrategy.'
        )


class Replicas:
    """The replicas of a run: what computes its steps together.

    Args:
      strategy: Of tf.distribute; a supported one.
      workers: The processes of the run.
      preemption_notice: As in StrategyConfig.

    Attributes:
      strategy: Of tf.distribute.
      workers: The processes of the run.
      preemption_notice: As in StrategyConfig.
      count: Replicas of all workers together.
      local: The numbers of those that belong to this worker.
      is_compiled: Whether a step is compiled by XLA, and so wants batches of few different sizes.

    Raises:
      ValueError: for a strategy that is not supported; names it.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        workers: workers_lib.Workers = workers_lib.ALONE,
        preemption_notice: str | None = None,
    ):
        check_strategy(strategy)
        self.preemption_notice = preemption_notice
        self.strategy, self.workers, self.count = strategy, workers, strategy.num_replicas_in_sync
        num_local = self.count // workers.count
        self.local = range(workers.index * num_local, (workers.index + 1) * num_local)
        self.is_compiled = isinstance(strategy, tf.distribute.TPUStrategy)

    def scope(self):
        """Returns the context in which networks and optimizers are made."""
        return self.strategy.scope()

    @contextlib.contextmanager
    def working(self) -> Iterator[interruption.StopRequest]:
        """A context for what all replicas compute together, and what asks for a stop of it.

        Raises:
          workers_lib.WorkerLostError: where a worker is lost.
          ValueError: if notices of preemption cannot be had here.
        """
        with (
            self.workers.together(),
            interruption.StopRequest() as stop,
            preemption.watching(self.preemption_notice, stop),
        ):
            yield stop

    def padded_size(self, expected_units: int, units_per_chunk: int) -> int:
        """Returns the size whose multiples the batches of one replica are padded to.

        XLA compiles a step anew for each size of its batches. Six standard deviations above the expected number hold
        nearly all Poisson samples; chunks of padding alone are not computed.

        Args:
          expected_units: Of one replica.
          units_per_chunk: How many are held in memory at a time.
        """
        size = expected_units + 6.0 * math.sqrt(expected_units) if self.is_compiled else 1.0
        return math.ceil(size / units_per_chunk) * units_per_chunk

    def run(self, function: Callable, of_replicas: Sequence[Any], *args) -> Any:
        """Calls a function in each replica, within a tf.function; returns what the first local one returns.

        Args:
          function: Called with the value of its replica and with `args`.
          of_replicas: A nested value for each local replica.
          *args: The same for all.
        """
        if self.count == 1:
            return self.strategy.run(function, args=(of_replicas[0], *args))
        parts = [
            self.strategy.experimental_distribute_values_from_function(
                lambda context, parts=parts: parts[context.replica_id_in_sync_group - self.local[0]]
            )
            for parts in zip(*map(tf.nest.flatten, of_replicas))
        ]
        value = tf.nest.pack_sequence_as(of_replicas[0], parts)
        results = self.strategy.run(function, args=(value, *args))
        return tf.nest.map_structure(lambda x: self.strategy.experimental_local_results(x)[0], results)

    def update(
        self, function: Callable, variables: Sequence[tf.Variable], others: Sequence[tf.Variable], *args
    ) -> None:
        """Calls function(variable, other, *args) on each replica's copy of pairs of variables, within a tf.function."""
        for variable, other in zip(variables, others):
            self.strategy.extended.update(variable, function, args=(other, *args))

    def copy_from_first_worker(self, variables: Sequence[tf.Variable]) -> None:
        """Gives all workers the values that variables have at the first one, bit for bit."""
        for variable in variables if self.workers.count > 1 else ():
            value = variable.numpy()
            received = np.frombuffer(self.workers.broadcast(value.tobytes()), value.dtype)
            variable.assign(received.reshape(value.shape))

    def check_in_step(self, variables: Sequence[tf.Variable]) -> None:
        """Checks that all replicas hold the same values, bit for bit: what one draw of noise a step rests on.

        Args:
          variables: All workers name the same ones, and call this.

        Raises:
          workers_lib.WorkersDisagreeError: in all workers, if not.
        """
        digest = hashlib.sha256()
        drifted: set[int] = set()
        for variable in variables if max(self.count, self.workers.count) > 1 else ():
            first, *others = [copy.numpy().tobytes() for copy in self.strategy.experimental_local_results(variable)]
            drifted.update(self.local[1 + i] for i, other in enumerate(others) if other != first)
            if self.workers.count > 1:
                digest.update(first)
        if self.workers.any(bool(drifted)):
            where = (
                f'replica {", ".join(map(str, sorted(drifted)))} and replica {self.local[0]}'
                if drifted
                else ('replicas of another worker')
            )
            raise workers_lib.WorkersDisagreeError(f'{where} differ in the weights: {_DRIFTED}.')
        self.workers.check_same(digest.hexdigest(), 'the weights', cure=_DRIFTED)


ONE = Replicas(tf.distribute.get_strategy())


def check(config: StrategyConfig) -> int:
    """Checks that the environment names workers where the configuration wants them; starts nothing and waits for none.

    Returns:
      How many workers there are.

    Raises:
      ValueError: says what does not fit.
    """
    clusters.check_environment(is_multi_worker=config.name == MULTI_WORKER)
    return len(clusters.addresses(_resolve(config))) if config.name == MULTI_WORKER else 1


def start(config: StrategyConfig) -> Replicas:
    """Makes what a run computes on; call it before anything else of TensorFlow's.

    Raises:
      ValueError: if the machine or the cluster has not what the configuration asks for; says what is missing.
      OSError: if the port of this worker is taken.
    """
    check(config)
    workers = workers_lib.ALONE
    if config.name == DEFAULT:
        strategy = tf.distribute.get_strategy()
    elif config.name == MIRRORED:
        strategy = _make_mirrored(config.logical_cpus)
    elif config.name == TPU:
        strategy = _make_tpu(config.tpu)
    else:
        strategy, workers = _make_multi_worker(config)
    return Replicas(strategy, workers, config.preemption_notice)


def _resolve(config: StrategyConfig) -> clusters.Resolver:
    return clusters.resolve(config.cluster, config.port, config.num_workers, config.service)


def _make_multi_worker(config: StrategyConfig) -> tuple[tf.distribute.Strategy, workers_lib.Workers]:
    resolver = _resolve(config)
    clusters.check_port(resolver)
    implementation = tf.distribute.experimental.CommunicationImplementation[config.communication.upper()]
    options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
    count = len(clusters.addresses(resolver))
    with workers_lib.together(), clusters.waiting_for_all(count, config.start_timeout_secs):
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    sum_vectors = workers_lib.make_sum_vectors(strategy, count)
    return strategy, workers_lib.Workers(clusters.index(resolver), count, sum_vectors)


def _make_mirrored(logical_cpus: int | None) -> tf.distribute.Strategy:
    if logical_cpus is not None:
        (cpu,) = tf.config.list_physical_devices('CPU')
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * logical_cpus)
        return tf.distribute.MirroredStrategy([f'CPU:{i}' for i in range(logical_cpus)])
    if not tf.config.list_physical_devices('GPU'):
        raise ValueError(
            f"strategy '{MIRRORED}' is for the GPUs of one machine, and TensorFlow sees none here; to try "
            'it on the CPU, bind StrategyConfig.logical_cpus = 2.'
        )
    return tf.distribute.MirroredStrategy()


def _make_tpu(name: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, ImportError, RuntimeError, tf.errors.OpError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].split('. ')[0]
        raise ValueError(f"strategy '{TPU}': there is no TPU {name!r} here ({said}).") from error
    return tf.distribute.TPUStrategy(resolver)


def sum_over_replicas(values: Any) -> Any:
    """Returns the sums of nested float32 tensors over all replicas; called in each of them.

    All tensors are reduced by one collective operation, so either all sums are there or, where a worker is gone, none
    is: no part of an update can be made.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)
