"""On which machines a verb computes: its flags and settings, and what these machines must have in common."""

import gin

from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.training import clusters
from tf_dpdiff.training import strategies

# Images are drawn on GPUs and CPUs; a TPU is for training.
_NAMES = (strategies.DEFAULT, strategies.MIRRORED, strategies.MULTI_WORKER)


def add(parser: command.Parser) -> None:
    """Adds to a verb without a configuration the flags that `start` reads."""
    known = strategies.StrategyConfig
    parser.add_argument(
        '--strategy',
        choices=_NAMES,
        default=known.name,
        help='on what to compute: default (this process, on all its GPUs), mirrored (the same, and '
        'refused where there is no GPU) or multi_worker_mirrored (several processes, each started by '
        'this same command, which share the work) (default: %(default)s)',
    )
    parser.add_argument(
        '--cluster',
        choices=clusters.CLUSTERS,
        default=known.cluster,
        help='who tells the processes of one another (default: %(default)s, the environment variable TF_CONFIG)',
    )
    parser.add_argument(
        '--port', type=int, default=known.port, help='first port, with slurm and kubernetes (default: %(default)s)'
    )
    parser.add_argument('--num_workers', type=int, help='pods of the Job, with kubernetes')
    parser.add_argument('--service', help='headless service of the pods, with kubernetes')


def configured(name: str | None) -> strategies.StrategyConfig:
    """Returns the strategy that a configuration asks for; call it after `gin_config.parse`.

    Args:
      name: Of the strategy, which wins over the configuration; None: as the configuration says.

    Raises:
      ValueError: if the strategy is not supported, or its settings do not fit it.
    """
    if name:
        gin.bind_parameter('StrategyConfig.name', name)  # So that the operative configuration has it too.
    return gin_config.make('StrategyConfig')


def check_one_process(config: strategies.StrategyConfig, what: str) -> strategies.StrategyConfig:
    """Returns the strategy where it can be had and is of one process.

    Args:
      config: The strategy.
      what: Wants one process, such as 'an audit'.

    Raises:
      command.UsageError: if it is of several workers; others as `strategies.check`.
    """
    num_workers = strategies.check(config)
    if num_workers > 1:
        raise command.UsageError(
            f"{what} is for one process, got {num_workers} workers: use the strategy 'default' or 'mirrored'."
        )
    return config


def check_evaluates(replicas: strategies.Replicas) -> strategies.Replicas:
    """Returns the replicas where they can evaluate.

    Raises:
      command.UsageError: for those of a TPU, or that look out for notices, which a configuration may have meant for its
        training.
    """
    if replicas.is_compiled:
        raise command.UsageError(
            f"the strategy '{strategies.TPU}' is for training: say --strategy=default, or "
            f'one of {", ".join(_NAMES[1:])}.'
        )
    if replicas.preemption_notice is not None:
        raise command.UsageError(
            f'preemption_notice={replicas.preemption_notice!r} of the strategy is for training, '
            'which saves on the way: set StrategyConfig.preemption_notice = None.'
        )
    return replicas


def start(flags) -> strategies.Replicas:
    """Makes what the verb computes on; call it before anything else of TensorFlow's.

    Raises:
      ValueError: if flags contradict each other, or the machine or cluster has not what they ask for.
    """
    return strategies.start(
        strategies.StrategyConfig(
            name=flags.strategy,
            cluster=flags.cluster,
            port=flags.port,
            num_workers=flags.num_workers,
            service=flags.service,
        )
    )
