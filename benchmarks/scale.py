"""What a private step costs a view, and how much memory it takes, against batch, K and size of the network.

    .venv/bin/python -I benchmarks/scale.py --output=benchmarks/scale.json
    .venv/bin/python -I benchmarks/scale.py --markdown
    .venv/bin/python -I benchmarks/scale.py --picture=scale.png

The claims under test: neither batch nor K changes the cost of a view, nor the memory, which is that of a chunk. Private
and plain steps hold as many views at a time (64 if nothing is said), in the same units. Each step is a process of its
own. One more, a plain step, runs in turns with all of them; a cost is the ratio to it in the same round, times its
median: what drifts in the minutes between two cases is in neither. Memory is the peak of a process, of which TensorFlow
and the tracing of the step take about 0.8 (plain) to 1.2 GiB (private), whatever the size of the step.

--large 4 32 measures private steps of the paper's 80.4M-parameter network at 32x32 with K = 8, of 4 and of 32 units,
within the memory budget that a run has if nothing is said: some minutes each, and about 5 GiB.
"""

import argparse
import contextlib
import dataclasses
import functools
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measuring
from benchmarks import pictures
from benchmarks import reporting

KINDS = ('private', 'plain')
LARGE, LARGE_VIEWS = '80.4M', 8
# A step of more views is measured in fewer rounds.
_VIEWS_OF_A_CASE = 2048


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a private and a plain step have in common."""

    network: str
    units: int
    views: int
    units_per_chunk: int

    @property
    def views_in_all(self):
        """Views of a step."""
        return self.units * self.views

    def start(self, kind):
        """Starts the step as a case."""
        return measuring.Case(
            f'{kind} step, {self.network}, {self.units} units, K = {self.views}',
            'our_step.py',
            kind,
            f'--network={self.network}',
            f'--units={self.units}',
            f'--views={self.views}',
            f'--units_per_chunk={self.units_per_chunk}',
            f'--views_per_chunk={self.units_per_chunk * self.views}',
        )


def make_sweeps(flags):
    """Returns {name of the sweep: settings}."""

    def setting(network, units, views):
        return Setting(network, units, views, min(units, max(1, flags.views_at_a_time // views)))

    units = flags.views_in_all // flags.views_of_a_unit
    return {
        'batch': [setting(flags.networks[0], batch, flags.views_of_a_unit) for batch in flags.units],
        'views': [setting(flags.networks[0], flags.views_in_all // views, views) for views in flags.views],
        'network': [setting(network, units, flags.views_of_a_unit) for network in flags.networks],
    }


def measure(flags):
    """Measures every setting once, however many sweeps it is in."""
    sweeps = make_sweeps(flags)
    settings = list(dict.fromkeys(setting for sweep in sweeps.values() for setting in sweep))
    first = sweeps['network'][0]
    found, of_reference = {}, []
    with first.start('plain') as reference:
        for setting in settings:
            print(f'{setting.network}, {setting.units} units, K = {setting.views} ...', file=sys.stderr, flush=True)
            with contextlib.ExitStack() as stack:
                starts = [functools.partial(setting.start, kind) for kind in KINDS]
                cases = reporting.start_all(stack, starts)
                rounds = max(1, min(flags.rounds, _VIEWS_OF_A_CASE // setting.views_in_all))
                seconds = measuring.take_turns(measuring.steps_of([reference, *cases]), rounds)
                of_reference += seconds[reference.name]
                found[setting] = [(case, seconds[case.name], seconds[reference.name]) for case in cases]
    ms_of_reference = 1000.0 * statistics.median(of_reference) / first.views_in_all

    def to_row(setting):
        row = dataclasses.asdict(setting)
        for kind, (case, seconds, beside) in zip(KINDS, found[setting]):
            ratio = measuring.median_ratio(seconds, beside) * first.views_in_all / setting.views_in_all
            row[kind] = {
                'ms_per_view': ratio * ms_of_reference,
                'peak_memory_gib': case.peak_memory_gib,
                'seconds': seconds,
                **case.facts,
            }
        row['private_over_plain'] = measuring.median_ratio(*(seconds for _, seconds, _ in found[setting]))
        return row

    return {
        'versions': measuring.versions('tensorflow', 'keras'),
        'sweeps': {name: [to_row(setting) for setting in sweep] for name, sweep in sweeps.items()},
        'large': [measure_large(units) for units in flags.large],
    }


def measure_large(units):
    """Measures one private step of the large network, its first one."""
    print(f'{LARGE}, {units} units, K = {LARGE_VIEWS} ...', file=sys.stderr, flush=True)
    with measuring.Case(
        f'{LARGE}, {units} units',
        'our_step.py',
        'private',
        f'--network={LARGE}',
        f'--units={units}',
        f'--views={LARGE_VIEWS}',
        timeout_secs=3600.0,
    ) as case:
        return {'units': units, 'views': LARGE_VIEWS, 'peak_memory_gib': case.peak_memory_gib, **case.facts}


_TITLES = {
    'batch': ('units per step', lambda row: f'{row["units"]:,}'),
    'views': ('K', lambda row: str(row['views'])),
    'network': ('parameters', lambda row: row['network']),
}


def _describe(name, rows):
    """Returns the settings that stay the same in a sweep."""
    first, last = rows[0], rows[-1]
    held = first['units_per_chunk'] * first['views']
    what = {
        'batch': f'{first["network"]} parameters, K = {first["views"]}',
        'views': f'{first["network"]} parameters, {first["units"] * first["views"]} views per step',
        'network': f'{last["units"]} units per step, K = {last["views"]}',
    }[name]
    return f'{what}; {held} views in memory at a time'


def tables(results):
    """Returns a table a sweep."""
    found = []
    for name, rows in results['sweeps'].items():
        head, label = _TITLES[name]
        lines = [[f'{kind} step, ms a view', *(f'{row[kind]["ms_per_view"]:.2f}' for row in rows)] for kind in KINDS]
        lines.append(['private / plain', *(f'{row["private_over_plain"]:.2f}' for row in rows)])
        lines += [
            [f'{kind} step, peak memory, GiB', *(f'{row[kind]["peak_memory_gib"]:.2f}' for row in rows)]
            for kind in KINDS
        ]
        found.append(reporting.Table(_describe(name, rows), [head, *map(label, rows)], lines))
    if results['large']:
        rows = results['large']
        lines = [
            ['units x views in memory at a time', *('x'.join(map(str, row['chunk'])) for row in rows)],
            ['peak memory, GiB', *(f'{row["peak_memory_gib"]:.2f}' for row in rows)],
            ['first step with tracing, s', *(f'{row["first_step_secs"]:.0f}' for row in rows)],
        ]
        title = f'{rows[0]["parameters"]:,} parameters, 32x32, K = {rows[0]["views"]}'
        found.append(reporting.Table(title, ['units per step', *(f'{row["units"]:,}' for row in rows)], lines))
    return found


def draw(results, path):
    """Draws cost and memory over each sweep."""
    colors = dict(zip(KINDS, (pictures.OURS, pictures.OTHER)))
    figure, panels = pictures.new_panels(2, len(results['sweeps']), 4.6)
    for column, (name, rows) in enumerate(results['sweeps'].items()):
        xlabel, label = _TITLES[name]
        labels, positions = list(map(label, rows)), range(len(rows))
        for axes, field, ylabel in (
            (panels[0][column], 'ms_per_view', 'ms a view'),
            (panels[1][column], 'peak_memory_gib', 'peak memory, GiB'),
        ):
            series = {f'{kind} step': (colors[kind], [row[kind][field] for row in rows]) for kind in KINDS}
            pictures.draw_lines(
                axes,
                positions,
                labels,
                series,
                xlabel=xlabel if axes is panels[1][column] else '',
                ylabel='' if column else ylabel,
            )
    panels[0][0].legend(fontsize=9, frameon=False, loc='lower left')
    pictures.save(figure, path)


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--networks', nargs='+', default=['0.26M', '1.1M', '4.24M'], help='the first is that of the rest'
    )
    parser.add_argument('--units', type=int, nargs='+', default=[16, 64, 256, 1024], help='a step')
    parser.add_argument('--views_of_a_unit', type=int, default=4, help='K where batch or network change')
    parser.add_argument('--views', type=int, nargs='+', default=[1, 2, 4, 8, 16, 32, 64], help='K')
    parser.add_argument('--views_in_all', type=int, default=256, help='a step, where K or network change')
    parser.add_argument('--views_at_a_time', type=int, default=64, help='held in memory')
    parser.add_argument('--rounds', type=int, default=3, help='fewer for steps of many views')
    parser.add_argument('--large', type=int, nargs='+', default=[], help=f'units of steps of the {LARGE} network')

    def measure_checked(flags):
        whole = [*flags.views, flags.views_of_a_unit]
        settings = [setting for sweep in make_sweeps(flags).values() for setting in sweep] if min(whole) > 0 else []
        reporting.check(
            parser.error,
            (
                min([*whole, *flags.units, *flags.large, flags.views_in_all, flags.views_at_a_time, flags.rounds]) > 0,
                'numbers must be at least 1.',
            ),
            (all(flags.views_in_all % views == 0 for views in whole), '--views_in_all must be whole units of each K.'),
            (
                all(s.units % s.units_per_chunk == 0 for s in settings),
                'a step must be whole chunks: its views a multiple of --views_at_a_time, or fewer.',
            ),
        )
        return measure(flags)

    reporting.run(parser, measure=measure_checked, tables=tables, draw=draw)


if __name__ == '__main__':
    main()
