"""How near to the limit of the machine a step is: its operations and memory traffic, beside the peaks measured with it.

    .venv/bin/python -I benchmarks/limit.py --output=benchmarks/limit.json
    .venv/bin/python -I benchmarks/limit.py --output=benchmarks/limit.json --add
    .venv/bin/python -I benchmarks/limit.py --markdown
    .venv/bin/python -I benchmarks/limit.py --picture=limit.png

The peaks: a product of matrices and a 3x3 convolution, each of the size that is fastest, and memory, all on all cores.
The limit of a step: all layers of the network, forward and backward, each at the peak of its kind of operation, or as
fast as memory brings what it reads and writes (counting.py); nothing else, neither the drawing of views nor clipping,
noise and optimizer. A share is the time of the limit over the time of the step, in the same rounds. It can't reach 100%
where layers are narrow, and memory's part of the limit can be beaten where a layer finds in the cache what the one
before has left there.

Engines are those of dp_step.py: ours, plain and private, and the peers whose environments are there (--engines makes
the others). Then each layer is measured alone. What is measured is written to --output after each cell; --add goes on
where an interrupted run ended, on the same machine. --count_only writes what is counted and measures nothing.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import dp_step
from benchmarks import engines as engines_lib
from benchmarks import environments
from benchmarks import measuring
from benchmarks import our_peak
from benchmarks import pictures
from benchmarks import reporting

ENGINES = engines_lib.ENGINES
# Counted too, for what accelerators may reach; too large to be measured on a CPU.
LARGE = '80.4M'
DTYPES = ('float32', 'bfloat16')
_PEAK_ROUNDS = 5
# A size whose call takes longer is the last that is tried.
_LONGEST_CALL_SECS = 2.0
_COLORS = {
    'ours_plain': pictures.THIRD,
    'ours': pictures.OURS,
    'tf_privacy': '#e69f00',
    'opacus': pictures.OTHER,
    'torch_by_hand': '#cc79a7',
    'jax_privacy': '#56b4e9',
    'torch_plain': '#999999',
    'jax_plain': '#666666',
}


def limit_secs(layers, *, views, views_at_a_time, per_sec, value_bytes=4):
    """Returns the least seconds of a step: each layer as fast as the peaks let it be.

    Args:
      layers: What counting.py counts of each.
      views: Of a step.
      views_at_a_time: In memory; weights are read anew for each so many.
      per_sec: The peaks by kind: operations, and of memory bytes.
      value_bytes: Of a number.

    Example:
        >>> layer = {'bound': 'product', 'calls': 2, 'training_flops': 10, 'values_moved': 3, 'parameters': 4}
        >>> limit_secs([layer], views=8, views_at_a_time=4, per_sec={'product': 1.0, 'memory': 1e6})
        160.0
        >>> limit_secs([layer], views=8, views_at_a_time=4, per_sec={'product': 1e6, 'memory': 1.0})
        384.0
    """
    total = 0.0
    for layer in layers:
        values = views_at_a_time * layer['values_moved'] + 3 * layer['parameters']
        secs = values * value_bytes / per_sec[our_peak.MEMORY]
        if layer['bound'] != our_peak.MEMORY:
            secs = max(secs, views_at_a_time * layer['training_flops'] / per_sec[layer['bound']])
        total += layer['calls'] * secs
    return total * views / views_at_a_time


def run_layers(network, *arguments):
    """Returns what our_layers.py counts and measures."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / 'layers.json'
        done = subprocess.run(
            [
                sys.executable,
                '-I',
                str(measuring.ROOT / 'benchmarks' / 'our_layers.py'),
                f'--network={network}',
                f'--output={output}',
                *arguments,
            ],
            env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
            check=False,
        )
        if done.returncode:
            raise measuring.CaseError(f'our_layers.py: failed at {network}; what it said is above')
        return json.loads(output.read_text())


def start_peak(kind, dtype, size=None):
    """Starts a peak as a case."""
    sizes = [f'--size={size}'] if size else []
    return measuring.Case(kind, 'our_peak.py', kind, f'--dtype={dtype}', *sizes)


def measure_peak(kind, dtype, sizes):
    """Returns the peak of a kind: of the sizes that were tried the one with the highest rate."""
    found = []
    for size in sizes:
        try:
            with start_peak(kind, dtype, size) as case:
                seconds = [case.step() for _ in range(_PEAK_ROUNDS)]
                work, size = case.facts['work'], case.facts['size']
        except measuring.CaseError as error:
            found.append({'reason': str(error).partition(': ')[2]})
            break
        found.append({'size': size, 'work': work, 'seconds': seconds, 'per_sec': work / statistics.median(seconds)})
        if statistics.median(seconds) > _LONGEST_CALL_SECS:
            break
    return max(found, key=lambda peak: peak.get('per_sec', 0.0))


class Progress:
    """Says what is measured, and how much of all."""

    def __init__(self, total):
        self._done, self._total = 0, total

    def say(self, what):
        """Says what begins now."""
        self._done += 1
        print(f'[{self._done} of {self._total}] {what} ...', file=sys.stderr, flush=True)


def start_results(flags, pythons):
    """Returns results without measurements, or with those of --output where --add is given."""
    results = {
        'versions': measuring.versions('tensorflow', 'numpy'),
        'versions_of_peers': {
            name: environments.versions(python)
            for name, python in pythons.items()
            if name and not isinstance(python, measuring.CaseError)
        },
        'last_level_cache_mib': our_peak.last_level_cache_mib(),
        'rounds': flags.rounds,
        'counts': {},
        'peaks': {},
        'rows': [],
        'layers': {},
    }
    if flags.add and flags.output.exists():
        before = json.loads(flags.output.read_text())
        here = {'machine': measuring.describe_machine(), **results}
        has_measurements = before['peaks'] or before['rows'] or before['layers']
        for name in ('machine', 'versions', 'rounds') if has_measurements else ('versions',):
            if before[name] != here[name]:
                raise measuring.CaseError(
                    f'{name} of {flags.output} is {before[name]}, and {here[name]} here: measure it whole, without '
                    '--add'
                )
        results['versions_of_peers'] = {**before['versions_of_peers'], **results['versions_of_peers']}
        for name in ('counts', 'peaks', 'rows', 'layers'):
            results[name] = before[name]
    return results


def measure(flags):
    """Counts and measures, and writes what there is after each piece."""
    pythons = {None: sys.executable} if flags.count_only else dp_step.make_environments(flags)
    results = start_results(flags, pythons)
    done = {(row['network'], row['units'], row['views']) for row in results['rows']}
    cells = {
        network: sorted(
            (
                engines_lib.Cell(network, *size)
                for size in itertools.product(flags.units, flags.views)
                if size[0] * size[1] <= flags.max_views and (network, *size) not in done
            ),
            key=lambda cell: (cell.units**2 * cell.views, cell.units),
        )
        for network in flags.networks
    }
    networks = [name for name in (*flags.networks, *flags.count) if name not in results['counts']]
    peaks = [
        (kind, dtype)
        for kind in (*our_peak.SIZES, our_peak.MEMORY)
        for dtype in (DTYPES if kind in our_peak.SIZES else DTYPES[:1])
        if dtype not in results['peaks'].get(kind, {})
    ]
    layers = [name for name in flags.networks if name not in results['layers']]
    pieces = len(networks)
    if not flags.count_only:
        pieces += len(peaks) + len(layers) + sum(map(len, cells.values()))
    progress = Progress(pieces)

    def write():
        if flags.output:
            measuring.write_results(flags.output, **results)

    for name in networks:
        progress.say(f'{name}: count')
        results['counts'][name] = run_layers(name)['counted']
        write()
    if flags.count_only:
        return results
    for kind, dtype in peaks:
        progress.say(f'peak: {kind}, {dtype}')
        sizes = our_peak.SIZES.get(kind, (None,))
        results['peaks'].setdefault(kind, {})[dtype] = measure_peak(kind, dtype, flags.peak_sizes or sizes)
        write()
    for name in layers:
        progress.say(f'{name}: layers')
        results['layers'][name] = run_layers(
            name,
            f'--units={flags.layer_units}',
            f'--views={flags.layer_views}',
            f'--rounds={flags.rounds}',
            *(f'--{kind}_size={results["peaks"][kind]["float32"]["size"]}' for kind in results['peaks']),
        )['measured']
        write()
    for network in flags.networks:
        if cells[network]:
            for rows in measure_network(flags, network, cells[network], pythons, results, progress):
                results['rows'] += rows
                write()
    return results


def measure_network(flags, network, cells, pythons, results, progress):
    """Yields the rows of each cell of a network."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        reference = pathlib.Path(folder) / 'reference.npz'
        if any(ENGINES[key].program != engines_lib.OUR_PROGRAM for key in flags.engines):
            dp_step.write_reference(network, reference)
        peaks = [
            stack.enter_context(start_peak(kind, 'float32', of_dtype['float32']['size']))
            for kind, of_dtype in results['peaks'].items()
        ]
        benchmark = dp_step.NetworkBenchmark(flags, cells, pythons, reference, beside=peaks)
        benchmark.check(network)
        for cell in cells:
            progress.say(str(cell))
            rows = benchmark.measure(cell)
            for row in rows:
                if 'seconds' in row:
                    work = {peak.name: peak.facts['work'] for peak in peaks}
                    row.update(compare(row, results['counts'][network], work))
            yield rows


def compare(row, counts, work):
    """Returns what a measured step is beside the limit: medians over the rounds.

    Args:
      row: Of a step, with its seconds and those of the peaks beside it.
      counts: Of its network.
      work: Of a call of each peak.
    """
    views = row['units'] * row['views']
    limits = []
    for index in range(len(row['seconds'])):
        per_sec = {kind: amount / row['beside'][kind][index] for kind, amount in work.items()}
        limits.append(
            limit_secs(counts['layers'], views=views, views_at_a_time=row['views_at_a_time'], per_sec=per_sec)
        )
    flops = views * counts['training_flops']
    of_peak = [
        flops / secs / (work[our_peak.CONVOLUTION] / peak)
        for secs, peak in zip(row['seconds'], row['beside'][our_peak.CONVOLUTION])
    ]
    return {
        'limit_views_per_sec': views / statistics.median(limits),
        'share_of_limit': statistics.median(limit / secs for limit, secs in zip(limits, row['seconds'])),
        'share_of_peak': statistics.median(of_peak),
        'gflops_per_sec': flops / statistics.median(row['seconds']) / 1e9,
    }


def by_label(network, results):
    """Returns what was measured of the layers of a network, added up by kind: the slowest first, the rest last."""
    measured, counted = results['layers'][network], results['counts'][network]['layers']
    views = measured['units'] * measured['views']
    per_sec = {kind: peak['work'] / statistics.median(peak['seconds']) for kind, peak in measured['peaks'].items()}
    whole, found = statistics.median(measured['whole']), {}
    for layer, seconds in zip(counted, measured['layers']):
        own = found.setdefault(
            layer['label'].partition(', heads')[0],
            {'calls': 0, 'secs': 0.0, 'forward_secs': 0.0, 'per_unit_secs': 0.0, 'limit_secs': 0.0, 'flops': 0},
        )
        calls = layer['calls']
        own['calls'] += calls
        for name, of in (('secs', 'both'), ('forward_secs', 'forward'), ('per_unit_secs', 'per unit')):
            own[name] += calls * statistics.median(seconds[of])
        own['limit_secs'] += limit_secs([layer], views=views, views_at_a_time=views, per_sec=per_sec)
        own['flops'] += calls * views * layer['training_flops']
        own['bound'] = layer['bound']
    rows = [
        {
            'label': label,
            **own,
            'share_of_time': own['secs'] / whole,
            'share_of_limit': own['limit_secs'] / own['secs'],
            'share_of_peak': own['flops'] / own['secs'] / per_sec[own['bound']] if own['flops'] else None,
            'per_unit_times_as_long': own['per_unit_secs'] / own['secs'],
        }
        for label, own in sorted(found.items(), key=lambda item: -item[1]['secs'])
    ]
    return rows, 1.0 - sum(row['share_of_time'] for row in rows)


def tables(results):
    """Returns the tables: what is counted, the peaks, the steps of each network and its layers."""
    found = [_counts_table(results['counts'])]
    if results['peaks']:
        found.append(_peaks_table(results['peaks']))
    for network in dict.fromkeys(row['network'] for row in results['rows']):
        found.append(_steps_table(network, [row for row in results['rows'] if row['network'] == network]))
    for network in results['layers']:
        found.append(_layers_table(network, results))
    return found


def _counts_table(counts):
    lines = []
    for network, counted in counts.items():
        moved = sum(layer['calls'] * layer['values_moved'] for layer in counted['layers'])
        flops = counted['training_flops']
        lines.append([network, f'{flops / 1e9:.3g}', f'{4 * moved / 1e6:.3g}', f'{flops / (4 * moved):.3g}'])
    columns = ['parameters', 'GFLOP a view', 'MB moved a view', 'FLOP a byte']
    return reporting.Table('Forward and backward, counted, float32', columns, lines)


def _peaks_table(peaks):
    lines = [
        [
            f'{kind}, {dtype}',
            *(
                ['-', peak['reason']]
                if 'reason' in peak
                else [f'{peak["size"]}', f'{peak["per_sec"] / 1e9:.4g} G{"B" if kind == our_peak.MEMORY else "FLOP"}/s']
            ),
        ]
        for kind, of_dtype in peaks.items()
        for dtype, peak in of_dtype.items()
    ]
    return reporting.Table('Peaks', ['what', 'size', 'a second'], lines)


def _steps_table(network, rows):
    cells = {}
    for row in rows:
        cells.setdefault((row['units'], row['views']), {})[row['engine']] = row
    keys = [key for key in ENGINES if any(key in of_cell for of_cell in cells.values())]
    lines = []
    for (units, views), of_cell in sorted(cells.items()):
        limits = [row['limit_views_per_sec'] for row in of_cell.values() if 'limit_views_per_sec' in row]
        shares = [of_cell.get(key, {'reason': 'not measured'}) for key in keys]
        lines.append(
            [
                f'{units} x {views}',
                f'{max(limits):.3g}' if limits else '-',
                *(row['reason'] if 'reason' in row else f'{row["share_of_limit"]:.0%}' for row in shares),
            ]
        )
    columns = ['units x views', 'limit, views a second', *(ENGINES[key].label for key in keys)]
    return reporting.Table(f'{network}: shares of the limit', columns, lines)


def _layers_table(network, results):
    rows, rest = by_label(network, results)
    lines = [
        [
            row['label'],
            f'{row["calls"]}',
            f'{row["share_of_time"]:.1%}',
            f'{row["forward_secs"] / row["secs"]:.0%}',
            f'{row["share_of_limit"]:.0%}',
            '-' if row['share_of_peak'] is None else f'{row["share_of_peak"]:.0%}',
            f'{row["per_unit_times_as_long"]:.2f}',
        ]
        for row in rows
    ]
    lines.append(['between the layers', '', f'{rest:.1%}', '', '', '', ''])
    measured = results['layers'][network]
    columns = [
        'layer',
        'calls',
        'share of the time',
        'of it forward',
        'share of the limit',
        'share of the peak',
        'with gradients of units, times as long',
    ]
    return reporting.Table(
        f'{network}: layers, {measured["units"]} units x {measured["views"]} views at a time', columns, lines
    )


def draw(results, path):
    """Draws the shares of the limit by K, a panel a network, at the units of which most was measured."""
    rows = [row for row in results['rows'] if 'share_of_limit' in row]
    networks = list(dict.fromkeys(row['network'] for row in rows))
    figure, panels = pictures.new_panels(max(1, len(networks)), 1, 0.4 + 3.2 * max(1, len(networks)))
    for network, axes in zip(networks, panels[:, 0]):
        own = [row for row in rows if row['network'] == network]
        units = statistics.mode(sorted((row['units'] for row in own), reverse=True))
        shares = {(row['views'], row['engine']): row['share_of_limit'] for row in own if row['units'] == units}
        views = sorted({count for count, _ in shares})
        series = {
            ENGINES[key].label: (color, [shares.get((count, key)) for count in views])
            for key, color in _COLORS.items()
            if any(engine == key for _, engine in shares)
        }
        pictures.draw_bars(axes, [f'K = {count}' for count in views], series, 'share of the limit', '%.2f')
        axes.set_title(f'A step of {units} units x K views, network of {network} parameters', fontsize=11)
        axes.legend(fontsize=9, ncols=4, loc='upper center', bbox_to_anchor=(0.5, -0.1), frameon=False)
    pictures.save(figure, path)


def default_engines(folder):
    """Returns ours, plain and private, and the peers whose environments are there."""
    return [
        key
        for key, engine in ENGINES.items()
        if engine.program == engines_lib.OUR_PROGRAM
        or (engine.environment is not None and environments.is_made(engine.environment, folder))
    ]


def main():
    """Measures, prints and writes; or shows what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=engines_lib.UNETS, default=list(engines_lib.UNETS))
    parser.add_argument('--count', nargs='*', default=[LARGE], help='networks that are counted besides')
    parser.add_argument('--units', type=int, nargs='+', default=[16, 64, 256], help='in a batch (default: 16 64 256)')
    parser.add_argument('--views', type=int, nargs='+', default=[1, 4, 16, 64], help='K (default: 1 4 16 64)')
    parser.add_argument('--max_views', type=int, default=1024, help='of a step (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='of one step of each (default: %(default)s)')
    parser.add_argument('--layer_units', type=int, default=16, help='where layers are measured (default: %(default)s)')
    parser.add_argument('--layer_views', type=int, default=4, help='K, there (default: %(default)s)')
    parser.add_argument('--peak_sizes', type=int, nargs='+', help='of matrices, channels and MiB, for a quick look')
    parser.add_argument(
        '--engines', nargs='+', choices=ENGINES, metavar='ENGINE', help='of dp_step.py (default: those that are there)'
    )
    parser.add_argument('--add', action='store_true', help='keep what --output holds, measure what is missing')
    parser.add_argument('--count_only', action='store_true', help='count, and measure nothing')
    parser.add_argument('--environments', type=pathlib.Path, default=environments.FOLDER, help='of peers')
    parser.add_argument('--timeout_secs', type=float, default=1800.0, help='of a step (default: %(default)s)')

    def checked_measure(flags):
        numbers = [*flags.units, *flags.views, flags.max_views, flags.rounds, flags.layer_units, flags.layer_views]
        reporting.check(
            parser.error,
            (min(numbers) >= 1, 'numbers must be at least 1'),
            (flags.output or not flags.add, '--add needs --output'),
        )
        flags.engines = flags.engines or default_engines(flags.environments)
        return measure(flags)

    reporting.run(parser, measure=checked_measure, tables=tables, draw=draw)


if __name__ == '__main__':
    main()
