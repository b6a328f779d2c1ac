"""Measures what strategies cost and bring: time of the private step on one, two devices and two processes.

    .venv/bin/python -I benchmarks/scaling.py --output=benchmarks/scaling.json

Overhead: the step of one replica under each strategy, taken in turns in one process. Scaling: replicas of one core each
(one thread for each operation, processes pinned to cores), on the same batch (strong scaling) and on as many units for
each replica (weak scaling). Each case is a process of its own; rounds of all cases follow one another, and a ratio
compares cases of one round. The batches are full: what Poisson samples of unequal size cost is not in it.
"""

import argparse
import json
import os
import pathlib
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measuring

NETWORK, NUM_VIEWS, UNITS = '0.28M', 4, 32
ROUNDS, STEPS = 5, 3


def make_step(replicas):
    """Returns the private step of a network of 0.28M parameters at 28x28, on the replicas."""
    from benchmarks import networks

    return networks.compile_private_step(
        networks.make_private_parts(NETWORK, UNITS, NUM_VIEWS, units_per_chunk=8, replicas=replicas)
    )


def make_batches(replicas, num_units):
    """Returns the batch of each local replica, of its part of num_units units."""
    from benchmarks import networks

    share = num_units // replicas.count
    return [networks.private_batch(NETWORK, share, first_unit=replica * share) for replica in replicas.local]


def seconds_of_step(step, batches, number):
    """Returns how long a step takes."""
    import tensorflow as tf

    started = time.perf_counter()
    diagnostics = step(batches, tf.constant(number, tf.int64))
    float(diagnostics['num_units'])  # Waits for its end.
    return time.perf_counter() - started


def measure_overhead(output):
    """Takes the step of one replica under each strategy in turns; TF_CONFIG names this process alone."""
    import tensorflow as tf

    from tf_dpdiff.training import strategies

    places = {'multi_worker_mirrored': strategies.Replicas(tf.distribute.MultiWorkerMirroredStrategy())}
    places['mirrored'] = strategies.Replicas(tf.distribute.MirroredStrategy(['CPU:0']))
    places['default'] = strategies.ONE
    steps = {name: (make_step(replicas), make_batches(replicas, UNITS)) for name, replicas in places.items()}
    seconds = {name: [] for name in steps}
    for number in range(ROUNDS * STEPS + 1):
        for name, (step, batches) in steps.items():
            taken = seconds_of_step(step, batches, number)
            if number:  # The first one is traced.
                seconds[name].append(taken)
    ratios = {name: measuring.median_ratio(seconds[name], seconds['default']) for name in seconds}
    output.write_text(json.dumps({'seconds': seconds, 'ratios': ratios}))


def measure_case(strategy, cores, units, rounds_folder):
    """Takes steps of full batches when told to: one round for each file that appears in the folder."""
    os.sched_setaffinity(0, cores)
    import tensorflow as tf

    from tf_dpdiff.training import strategies

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(4)
    logical_cpus = 2 if strategy == strategies.MIRRORED else None
    replicas = strategies.start(strategies.StrategyConfig(strategy, logical_cpus=logical_cpus))
    step = make_step(replicas)
    batches = [make_batches(replicas, count) for count in units]
    number = 0
    for batch in batches:  # Traced by the first step.
        seconds_of_step(step, batch, number)
        number += 1
    worker = replicas.workers.index
    (rounds_folder / f'ready.{worker}').touch()
    for index in range(ROUNDS):
        while not (rounds_folder / f'start.{index}').exists():
            time.sleep(0.01)
        replicas.workers.wait_for_all()
        found = []
        for batch in batches:
            found.append([])
            for _ in range(STEPS):
                found[-1].append(seconds_of_step(step, batch, number))
                number += 1
        (rounds_folder / f'done.{index}.{worker}.tmp').write_text(json.dumps(found))
        os.rename(rounds_folder / f'done.{index}.{worker}.tmp', rounds_folder / f'done.{index}.{worker}')


def start(*arguments, tf_config=None):
    """Starts this program in a process of its own."""
    environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'}
    if tf_config:
        environment['TF_CONFIG'] = json.dumps(tf_config)
    return subprocess.Popen([sys.executable, '-I', __file__, *map(str, arguments)], env=environment)


def free_ports(count):
    """Returns ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for found in sockets:
        found.bind(('127.0.0.1', 0))
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def cluster_of(count):
    """Returns TF_CONFIG of each of several workers on this machine."""
    workers = [f'127.0.0.1:{port}' for port in free_ports(count)]
    return [{'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': i}} for i in range(count)]


def wait_for(paths, processes):
    """Waits until files are there, or raises where a process has ended."""
    while not all(path.exists() for path in paths):
        if any(process.poll() for process in processes):
            raise RuntimeError('a measured process has failed; what it said is above.')
        time.sleep(0.01)


def measure_scaling(folder):
    """Returns seconds of a step by case, batch and round."""
    one, two = UNITS, 2 * UNITS
    cases = {
        'one replica': [('default', '0', None)],
        'two devices': [('mirrored', '0,1', None)],
        'two processes': [('multi_worker_mirrored', str(i), config) for i, config in enumerate(cluster_of(2))],
    }
    running = {}
    for name, programs in cases.items():
        place = folder / name.replace(' ', '_')
        place.mkdir()
        running[name] = (
            place,
            [
                start('--case', strategy, '--cores', cores, '--units', one, two, '--folder', place, tf_config=config)
                for strategy, cores, config in programs
            ],
        )
        wait_for([place / f'ready.{i}' for i in range(len(programs))], running[name][1])
    seconds = {name: {one: [], two: []} for name in cases}
    for index in range(ROUNDS):
        for name, (place, processes) in running.items():
            (place / f'start.{index}').touch()
            done = [place / f'done.{index}.{i}' for i in range(len(processes))]
            wait_for(done, processes)
            for units, found in zip((one, two), json.loads(done[0].read_text())):
                seconds[name][units].append(statistics.median(found))
    for _, processes in running.values():
        for process in processes:
            assert process.wait() == 0
    return seconds


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=pathlib.Path)
    for name in ('--case', '--cores', '--folder', '--overhead'):  # Of the processes that it starts.
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument('--units', type=int, nargs='+', help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.overhead:
        return measure_overhead(pathlib.Path(flags.overhead))
    if flags.case:
        cores = {int(core) for core in flags.cores.split(',')}
        return measure_case(flags.case, cores, flags.units, pathlib.Path(flags.folder))
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        process = start('--overhead', folder / 'overhead.json', tf_config=cluster_of(1)[0])
        assert process.wait() == 0
        overhead = json.loads((folder / 'overhead.json').read_text())
        seconds = measure_scaling(folder)
    one = seconds['one replica']
    result = {
        'machine': f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}',
        'versions': f'Python {platform.python_version()}, TensorFlow {tf.__version__}',
        'views_of_a_step': UNITS * NUM_VIEWS,
        'overhead_at_one_replica': {name: round(ratio, 3) for name, ratio in overhead['ratios'].items()},
        'strong_scaling': {
            name: round(measuring.median_ratio(one[UNITS], seconds[name][UNITS]), 3) for name in seconds
        },
        'weak_scaling': {
            name: round(measuring.median_ratio(one[UNITS], seconds[name][2 * UNITS]), 3)
            for name in seconds
            if name != 'one replica'
        },
        'median_seconds_of_a_step': {
            name: {f'{units} units': round(statistics.median(found), 3) for units, found in of_case.items()}
            for name, of_case in seconds.items()
        },
    }
    print(json.dumps(result, indent=2))
    if flags.output:
        flags.output.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    sys.exit(main())
