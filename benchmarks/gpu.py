"""What a GPU makes of a step: views a second and memory, plain and private, with and without XLA, in two types.

    .venv/bin/python -I benchmarks/gpu.py --output=gpu.json
    .venv/bin/python -I benchmarks/gpu.py --output=gpu.json --add
    .venv/bin/python -I benchmarks/gpu.py --output=gpu.json --markdown

A ladder a network, type, kind of step and compiler: steps of more and more units of K views, all of them in memory at a
time, up to what the GPU holds. A ladder ends at its first step that fails, with the reason. Each step is a process of
its own, alone on the first GPU. The first step, in which TensorFlow traces and XLA compiles, is timed apart. Memory is
the most that TensorFlow held on the GPU; beside it stands what the memory plan of the step (`--dry_run`) says.

All of it takes an hour or two; what is measured is written after each step, and --add goes on where an interrupted run
ended. Without a GPU it refuses to begin, unless --device=cpu says that it shall measure the CPU in the same way.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measuring
from benchmarks import pictures
from benchmarks import reporting

KINDS = ('plain', 'private')
DTYPES = ('float32', 'mixed_bfloat16')
COMPILERS = {'TensorFlow': (), 'XLA': ('--jit_compile',)}
NETWORKS = ('1.1M', '4.24M', '80.4M')
# TensorFlow takes what it needs, so that the most it held can be told from what it reserved.
_ENVIRONMENTS = {'gpu': {'TF_FORCE_GPU_ALLOW_GROWTH': 'true'}, 'cpu': {'CUDA_VISIBLE_DEVICES': '-1'}}
_COLORS = dict(zip(itertools.product(KINDS, COMPILERS), ('#999999', pictures.THIRD, pictures.OURS, pictures.OTHER)))


@dataclasses.dataclass(frozen=True)
class Ladder:
    """What all steps of a ladder have in common.

    Attributes:
      network: Of networks.py.
      compute_dtype: Of DTYPES.
      kind: Of KINDS.
      compiler: Of COMPILERS.
    """

    network: str
    compute_dtype: str
    kind: str
    compiler: str

    def start(self, units, flags):
        """Starts a step as a case."""
        return measuring.Case(
            f'{self}, {units} x {flags.views}',
            'our_step.py',
            self.kind,
            f'--network={self.network}',
            f'--units={units}',
            f'--views={flags.views}',
            f'--units_per_chunk={units}',
            f'--views_per_chunk={units * flags.views}',
            f'--compute_dtype={self.compute_dtype}',
            *COMPILERS[self.compiler],
            timeout_secs=flags.timeout_secs,
            environment=_ENVIRONMENTS[flags.device],
        )

    def __str__(self):
        return f'{self.network}, {self.compute_dtype}, {self.kind} step by {self.compiler}'


def describe_gpus():
    """Returns name, memory and driver of the GPUs, as nvidia-smi tells them; none where there is no such program."""
    query = ['nvidia-smi', '--query-gpu=name,memory.total,driver_version', '--format=csv,noheader']
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [
        dict(zip(('name', 'memory', 'driver'), map(str.strip, line.split(',')))) for line in said.strip().splitlines()
    ]


def devices_of_tensorflow():
    """Returns what TensorFlow says of its GPUs, asked in a process of its own: this one holds no GPU."""
    program = (
        'import json, tensorflow as tf; '
        'gpus = tf.config.list_physical_devices("GPU"); '
        'said = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]; '
        'build = tf.sysconfig.get_build_info(); '
        'build = {k: str(build[k]) for k in ("cuda_version", "cudnn_version") if k in build}; '
        'print(json.dumps({"gpus": [{k: str(v) for k, v in of.items()} for of in said], **build}))'
    )
    done = subprocess.run(
        [sys.executable, '-I', '-c', program],
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise measuring.CaseError(f'TensorFlow: {(done.stderr.strip() or "failed").splitlines()[-1]}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def start_results(flags):
    """Returns results without rows, or with those of --output where --add is given."""
    device = devices_of_tensorflow()
    if flags.device == 'gpu' and not device['gpus']:
        raise measuring.CaseError(
            'TensorFlow sees no GPU here: install its CUDA libraries (docs/accelerators.md), or say --device=cpu'
        )
    results = {
        'versions': measuring.versions('tensorflow', 'tf-keras', 'numpy'),
        'device': flags.device,
        'gpus': describe_gpus(),
        'tensorflow_says': device,
        'views': flags.views,
        'rounds': flags.rounds,
        'rows': [],
    }
    if flags.add and flags.output.exists():
        before = json.loads(flags.output.read_text())
        for name in ('versions', 'device', 'gpus', 'views', 'rounds'):
            if before[name] != results[name]:
                raise measuring.CaseError(
                    f'{name} of {flags.output} is {before[name]}, and {results[name]} here: measure it whole, without '
                    '--add'
                )
        results['rows'] = before['rows']
    return results


def measure(flags):
    """Climbs all ladders, and writes what there is after each step."""
    results = start_results(flags)
    ladders = [
        Ladder(*of) for of in itertools.product(flags.networks, flags.compute_dtypes, flags.kinds, flags.compilers)
    ]
    for number, ladder in enumerate(ladders, start=1):
        measured = {row['units']: row for row in results['rows'] if _is_of(row, ladder)}
        for units in sorted(flags.units):
            if units not in measured:
                print(f'[{number} of {len(ladders)}] {ladder}, {units} units ...', file=sys.stderr, flush=True)
                measured[units] = measure_step(ladder, units, flags)
                results['rows'].append({**dataclasses.asdict(ladder), 'units': units, **measured[units]})
                if flags.output:
                    measuring.write_results(flags.output, **results)
            if 'reason' in measured[units]:
                break
    return results


def _is_of(row, ladder):
    return all(row[name] == value for name, value in dataclasses.asdict(ladder).items())


def measure_step(ladder, units, flags):
    """Returns what a step takes, or the reason why it can't be made."""
    try:
        with ladder.start(units, flags) as case:
            seconds = [case.step() for _ in range(flags.rounds)]
            return {
                'views_per_sec': units * flags.views / statistics.median(seconds),
                'seconds': seconds,
                'first_step_secs': case.facts['first_step_secs'],
                'parameters': case.facts['parameters'],
                'peak_memory_gib': case.peak_memory_gib,
                'peak_device_memory_gib': case.peak_device_memory_gib,
                'planned_memory_gib': case.facts['planned_memory_gib'],
            }
    except measuring.CaseError as error:
        return {'reason': str(error).partition(': ')[2] or str(error)}


def tables(results):
    """Returns a table of views a second and one of memory, a network and type."""
    found = []
    for network, dtype in dict.fromkeys((row['network'], row['compute_dtype']) for row in results['rows']):
        rows = [row for row in results['rows'] if (row['network'], row['compute_dtype']) == (network, dtype)]
        for what, text in (('views a second', _rate), ('memory, GiB (planned); seconds of the first step', _memory)):
            units = sorted({row['units'] for row in rows})
            lines = []
            for kind, compiler in dict.fromkeys((row['kind'], row['compiler']) for row in rows):
                own = {row['units']: row for row in rows if (row['kind'], row['compiler']) == (kind, compiler)}
                lines.append([f'{kind}, {compiler}', *(text(own[count]) if count in own else '-' for count in units)])
            title = f'{network}, {dtype}, K = {results["views"]}: {what}'
            found.append(reporting.Table(title, ['units at a time', *map(str, units)], lines))
    return found


def _rate(row):
    return row['reason'] if 'reason' in row else f'{row["views_per_sec"]:.3g}'


def _memory(row):
    if 'reason' in row:
        return row['reason']
    held = row['peak_device_memory_gib']
    held = row['peak_memory_gib'] if held is None else held
    return f'{held:.2f} ({row["planned_memory_gib"]:.2f}); {row["first_step_secs"]:.0f}'


def draw(results, path):
    """Draws views a second over units, a panel a network and type."""
    places = list(dict.fromkeys((row['network'], row['compute_dtype']) for row in results['rows']))
    figure, panels = pictures.new_panels(max(1, len(places)), 1, 0.4 + 2.6 * max(1, len(places)))
    for (network, dtype), axes in zip(places, panels[:, 0]):
        rows = [
            row
            for row in results['rows']
            if (row['network'], row['compute_dtype']) == (network, dtype) and 'seconds' in row
        ]
        units = sorted({row['units'] for row in rows})
        rates = {(row['kind'], row['compiler'], row['units']): row['views_per_sec'] for row in rows}
        series = {
            f'{kind}, {compiler}': (color, [rates.get((kind, compiler, count)) for count in units])
            for (kind, compiler), color in _COLORS.items()
            if any(key[:2] == (kind, compiler) for key in rates)
        }
        if series:
            pictures.draw_bars(axes, [f'{count} units' for count in units], series, 'views a second', '%.0f')
            axes.legend(fontsize=8, frameon=False, loc='upper left')
        axes.set_title(f'{network} parameters, {dtype}, K = {results["views"]}', fontsize=11)
    pictures.save(figure, path)


def main():
    """Measures, prints and writes; or shows what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('gpu', 'cpu'), default='gpu', help='what there must be')
    parser.add_argument('--networks', nargs='+', default=list(NETWORKS), help='of networks.py (default: %(default)s)')
    parser.add_argument('--compute_dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS))
    parser.add_argument('--compilers', nargs='+', choices=COMPILERS, default=list(COMPILERS))
    parser.add_argument(
        '--units', type=int, nargs='+', default=[1, 4, 16, 64, 256], help='rungs (default: %(default)s)'
    )
    parser.add_argument('--views', type=int, default=16, help='K (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='steps that are timed (default: %(default)s)')
    parser.add_argument('--add', action='store_true', help='keep what --output holds, measure what is missing')
    parser.add_argument('--timeout_secs', type=float, default=1200.0, help='of a step (default: %(default)s)')

    def checked_measure(flags):
        reporting.check(
            parser.error,
            (min([*flags.units, flags.views, flags.rounds]) >= 1, 'numbers must be at least 1'),
            (flags.output or not flags.add, '--add needs --output'),
        )
        return measure(flags)

    reporting.run(parser, measure=checked_measure, tables=tables, draw=draw)


if __name__ == '__main__':
    main()
