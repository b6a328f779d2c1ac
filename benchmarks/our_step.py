"""Measures a step of ours when asked to; a case of the benchmarks, see measuring.py."""

import argparse
import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


def main():
    """Makes the step and serves it, or ends with the words of one line where memory does not hold it."""
    flags = _parse()
    import tensorflow as tf

    try:
        _serve(flags)
    except tf.errors.ResourceExhaustedError:
        sys.exit('out of memory')


def _parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('kind', choices=('private', 'plain'))
    parser.add_argument('--network', default='1.1M')
    parser.add_argument('--units', type=int, required=True)
    parser.add_argument('--views', type=int, required=True)
    parser.add_argument('--units_per_chunk', type=int)
    parser.add_argument('--views_per_chunk', type=int, default=256)
    parser.add_argument('--memory_budget_gib', type=float, default=4.0)
    parser.add_argument('--compute_dtype', default='float32')
    parser.add_argument('--jit_compile', action='store_true', help='by XLA')
    parser.add_argument('--graph_optimization', choices=('on', 'off'), default='on')
    return parser.parse_args()


def _serve(flags):
    import tensorflow as tf

    from benchmarks import measuring
    from benchmarks import networks

    if flags.graph_optimization == 'off':
        tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})
    if flags.kind == 'private':
        step = networks.private_step(
            flags.network,
            flags.units,
            flags.views,
            memory_budget_gib=flags.memory_budget_gib,
            units_per_chunk=flags.units_per_chunk,
            compute_dtype=flags.compute_dtype,
            jit_compile=flags.jit_compile,
        )
    else:
        step = networks.plain_step(
            flags.network,
            flags.units,
            flags.views,
            views_per_chunk=max(flags.views, min(flags.views_per_chunk, flags.units * flags.views)),
            compute_dtype=flags.compute_dtype,
            jit_compile=flags.jit_compile,
        )
    numbers = itertools.count()
    measuring.serve(
        lambda: step.run(next(numbers)),
        peak_device_memory=peak_device_memory,
        parameters=step.parameters,
        chunk=step.chunk,
        planned_memory_gib=step.planned_bytes / 2**30,
    )


def peak_device_memory():
    """Returns the most that TensorFlow held on the first GPU so far, GiB; None where there is none."""
    import tensorflow as tf

    if not tf.config.list_physical_devices('GPU'):
        return None
    return tf.config.experimental.get_memory_info('GPU:0')['peak'] / 2**30


if __name__ == '__main__':
    main()
