"""What settings of TensorFlow and of the engine do to a step: each beside the step as it is, in the same rounds.

    .venv/bin/python -I benchmarks/settings.py --output=benchmarks/settings.json
    .venv/bin/python -I benchmarks/settings.py --markdown
    .venv/bin/python -I benchmarks/settings.py --picture=settings.png

A setting is a private step of one network that differs in one thing: number format, XLA, oneDNN, graph optimization,
units held at a time. Layout of channels and the way a norm is written are measured on the layers that they concern,
four of norm, SiLU and 3x3 convolution, forward and backward. Above 1: faster than what a run does if nothing is said.
"""

import argparse
from collections.abc import Mapping
import contextlib
import dataclasses
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measuring
from benchmarks import pictures
from benchmarks import reporting

STEP, LAYOUT, NORM = 'private step', 'convolutions', 'norm, SiLU, convolution'


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured beside the first setting of the same kind.

    Attributes:
      kind: What is measured.
      name: What differs.
      arguments: Of the program.
      environment: Of the process.
    """

    kind: str
    name: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def start(self, flags):
        """Starts it as a case."""
        if self.kind == STEP:
            program = (
                'our_step.py',
                'private',
                f'--network={flags.network}',
                f'--units={flags.units}',
                f'--views={flags.views}',
            )
        else:
            program = ('our_block.py',)
        return measuring.Case(f'{self.kind}, {self.name}', *program, *self.arguments, environment=self.environment)


SETTINGS = (
    Setting(STEP, 'as it is'),
    Setting(STEP, 'bfloat16', ('--compute_dtype=mixed_bfloat16',)),
    Setting(STEP, 'XLA clusters', (), {'TF_XLA_FLAGS': '--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit'}),
    Setting(STEP, 'without oneDNN', (), {'TF_ENABLE_ONEDNN_OPTS': '0'}),
    Setting(STEP, 'one operation at a time', (), {'TF_NUM_INTEROP_THREADS': '1'}),
    Setting(STEP, 'graph not optimized', ('--graph_optimization=off',)),
    Setting(STEP, '1 unit at a time', ('--units_per_chunk=1',)),
    Setting(STEP, '4 units at a time', ('--units_per_chunk=4',)),
    Setting(STEP, '16 units at a time', ('--units_per_chunk=16',)),
    Setting(LAYOUT, 'channels last, as it is', ('--layout=channels_last',)),
    Setting(LAYOUT, 'channels first', ('--layout=channels_first',)),
    Setting(NORM, 'fused, as it is', ('--norm=fused',)),
    Setting(NORM, 'tf.keras.layers.GroupNormalization', ('--norm=keras',)),
)


def measure(flags):
    """Measures each setting in turns with the first of its kind."""
    rows, bases = [], {}
    with contextlib.ExitStack() as stack:
        for setting in SETTINGS:
            print(f'{setting.kind}, {setting.name} ...', file=sys.stderr, flush=True)
            if setting.kind not in bases:
                base = bases[setting.kind] = stack.enter_context(setting.start(flags))
                rows.append(_row(setting, base, [1.0]))
                continue
            base = bases[setting.kind]
            with setting.start(flags) as case:
                seconds = measuring.take_turns(measuring.steps_of([base, case]), flags.rounds)
                rows.append(_row(setting, case, [a / b for a, b in zip(seconds[base.name], seconds[case.name])]))
    return {
        'versions': measuring.versions('tensorflow', 'keras'),
        'network': flags.network,
        'units': flags.units,
        'views': flags.views,
        'rows': rows,
    }


def _row(setting, case, ratios):
    return {
        'kind': setting.kind,
        'name': setting.name,
        'times_as_fast': statistics.median(ratios),
        'ratios': ratios,
        'first_step_secs': case.facts['first_step_secs'],
        'peak_memory_gib': case.peak_memory_gib,
        'chunk': case.facts.get('chunk'),
    }


def tables(results):
    """Returns the table."""
    columns = ['setting', 'times as fast', 'lowest to highest', 'first step, s', 'peak memory, GiB']
    lines = [
        [
            f'{row["kind"]}: {row["name"]}',
            f'{row["times_as_fast"]:.2f}',
            f'{min(row["ratios"]):.2f} to {max(row["ratios"]):.2f}',
            f'{row["first_step_secs"]:.1f}',
            f'{row["peak_memory_gib"]:.2f}',
        ]
        for row in results['rows']
    ]
    title = f'{results["network"]} parameters, {results["units"]} units, K = {results["views"]}'
    return [reporting.Table(title, columns, lines)]


def draw(results, path):
    """Draws how many times as fast each setting is."""
    rows = [row for row in results['rows'] if len(row['ratios']) > 1]
    figure, panels = pictures.new_panels(1, 1, 4.0)
    axes = panels[0][0]
    bars = axes.barh(
        [f'{row["kind"]}: {row["name"]}' for row in rows],
        [row['times_as_fast'] for row in rows],
        color=[pictures.OURS if row['times_as_fast'] >= 1.0 else pictures.OTHER for row in rows],
    )
    axes.bar_label(bars, fmt='%.2f', fontsize=9, padding=3)
    axes.axvline(1.0, color='black', linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel('times as fast as what a run does if nothing is said', fontsize=10)
    pictures.save(figure, path)


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', default='1.1M')
    parser.add_argument('--units', type=int, default=64)
    parser.add_argument('--views', type=int, default=4, help='K')
    parser.add_argument('--rounds', type=int, default=7)

    def measure_checked(flags):
        reporting.check(
            parser.error,
            (min(flags.units, flags.views, flags.rounds) > 0, 'numbers must be at least 1.'),
            (flags.units % 16 == 0, '--units must be a multiple of 16.'),
        )
        return measure(flags)

    reporting.run(parser, measure=measure_checked, tables=tables, draw=draw)


if __name__ == '__main__':
    main()
