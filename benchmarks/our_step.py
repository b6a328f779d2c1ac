"""Measures a step of ours when asked to; a case of the benchmarks, see measuring.py."""

import argparse
import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


def main():
    """Makes the step and serves it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('kind', choices=('private', 'plain'))
    parser.add_argument('--network', default='1.1M')
    parser.add_argument('--units', type=int, required=True)
    parser.add_argument('--views', type=int, required=True)
    parser.add_argument('--units_per_chunk', type=int)
    parser.add_argument('--views_per_chunk', type=int, default=256)
    parser.add_argument('--memory_budget_gib', type=float, default=4.0)
    parser.add_argument('--compute_dtype', default='float32')
    parser.add_argument('--graph_optimization', choices=('on', 'off'), default='on')
    flags = parser.parse_args()
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
        )
    else:
        step = networks.plain_step(
            flags.network,
            flags.units,
            flags.views,
            views_per_chunk=max(flags.views, min(flags.views_per_chunk, flags.units * flags.views)),
            compute_dtype=flags.compute_dtype,
        )
    numbers = itertools.count()
    measuring.serve(lambda: step.run(next(numbers)), parameters=step.parameters, chunk=step.chunk)


if __name__ == '__main__':
    main()
