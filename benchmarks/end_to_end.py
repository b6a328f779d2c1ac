"""Measures where the time of whole runs goes, and what a private step takes besides its gradients.

    .venv/bin/python -I benchmarks/end_to_end.py --output=benchmarks/end_to_end.json
    .venv/bin/python -I benchmarks/end_to_end.py --markdown
    .venv/bin/python -I benchmarks/end_to_end.py --picture=end_to_end.png

Whole runs are those of bin/train, with timers around its parts, which add up to the time from the start of the process
to its end. A run whose data are not there is left out, and said to be. The private step of each run is measured part by
part too, as is that of a network all of which is trained, for several K.
"""

import argparse
import json
import pathlib
import resource
import shlex
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measuring
from benchmarks import pictures
from benchmarks import reporting
from benchmarks import step_parts
from benchmarks import timed_run

GIN_FILES = ('gin/digits.gin', 'gin/mnist_cpu.gin')
GOAL = 0.05  # Of a step, for all but forward and backward.
_NOT_THERE = 'is not prepared in'  # What bin/train says of data that nobody has made ready.


def run_program(name, program, *arguments, flags):
    """Runs a program of this folder; returns its exit code, the last line of its errors, its seconds and those of all
    cores."""
    environment = measuring.environment_with_data(flags.data_dir)
    command = [sys.executable, '-I', str(measuring.ROOT / 'benchmarks' / program), *map(str, arguments)]
    print(f'{name}: {program} ...', file=sys.stderr, flush=True)
    started, used_before = time.perf_counter(), cpu_seconds_of_children()
    try:
        done = subprocess.run(
            command,
            cwd=measuring.ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=flags.timeout_secs,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise measuring.CaseError(f'{name}: {program} took more than {flags.timeout_secs:.0f} s') from error
    secs = time.perf_counter() - started
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    cpu_secs = cpu_seconds_of_children() - used_before
    return done.returncode, said[-1] if said else f'exit code {done.returncode}', secs, cpu_secs


def cpu_seconds_of_children():
    """Returns the processor time of all processes that this one has started and seen end."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_run(gin_file, flags, folder):
    """Returns the seconds of a run by its parts, or the reason why it was left out."""
    name, report = pathlib.Path(gin_file).stem, folder / 'run.json'
    of_run = [f'--gin_file={gin_file}', *(f'--gin_param={binding}' for binding in flags.gin_param)]
    result = {'name': name, 'command': shlex.join(['bin/train', *of_run])}
    code, said, wall_secs, cpu_secs = run_program(
        name,
        'timed_run.py',
        f'--started={time.time()}',
        f'--report={report}',
        f'--workdir={folder / name}',
        *of_run,
        flags=flags,
    )
    if code == 2 and _NOT_THERE in said:
        return {**result, 'skipped': said.split('; prepare it')[0].split('error: ')[-1]}
    if code:
        raise measuring.CaseError(f'{name}: {said}')
    measured = json.loads(report.read_text())
    rows = measured['rows']
    # What is left is the end of the process, after the program has written its report.
    left = {
        name: whole - sum(row[name] for row in rows.values())
        for name, whole in (('secs', wall_secs), ('cpu_secs', cpu_secs))
    }
    rows[timed_run.EXIT] = {**left, 'calls': 1}
    return {**result, 'wall_secs': wall_secs, 'rows': order(rows, wall_secs), 'traces': measured['traces']}


def order(rows, wall_secs):
    """Returns the rows as a list in the order of a run, each with its group and its share."""
    return [
        {'group': group, 'row': row, **values, 'share': values['secs'] / wall_secs}
        for group, names in timed_run.GROUPS.items()
        for name in names
        for row, values in rows.items()
        if row.partition(':')[0] == name
    ]


def measure_step(name, flags, folder, *of_step):
    """Returns the parts of a private step."""
    report = folder / 'step.json'
    code, said, *_ = run_program(
        name, 'step_parts.py', *of_step, f'--rounds={flags.rounds}', f'--output={report}', flags=flags
    )
    if code:
        raise measuring.CaseError(f'{name}, parts of a step: {said}')
    return {'name': name, **json.loads(report.read_text())}


def measure(flags):
    """Measures all runs and steps."""
    runs, steps = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for gin_file in flags.gin_file:
            runs.append(measure_run(gin_file, flags, folder))
            if 'skipped' not in runs[-1]:
                bindings = [f'--gin_param={binding}' for binding in flags.gin_param]
                steps.append(measure_step(runs[-1]['name'], flags, folder, f'--gin_file={gin_file}', *bindings))
        for views in flags.num_views:
            units = flags.views_of_step // views
            steps.append(
                measure_step(
                    f'{flags.network}, K = {views}',
                    flags,
                    folder,
                    f'--network={flags.network}',
                    f'--units={units}',
                    f'--views={views}',
                )
            )
    return {
        'versions': measuring.versions('tensorflow', 'keras', 'numpy', 'dp-accounting'),
        'runs': runs,
        'steps': steps,
    }


def by_group(run):
    """Returns {group: seconds} of a run."""
    groups = dict.fromkeys(timed_run.GROUPS, 0.0)
    for row in run['rows']:
        groups[row['group']] += row['secs']
    return groups


def outside_gradients(step):
    """Returns the share of a step that is not forward and backward."""
    return 1.0 - step['parts'][step_parts.GRADIENTS] / step['whole_secs']


def tables(results):
    """Returns the groups of each run, the rows of each run, and the parts of the steps."""
    runs = [run for run in results['runs'] if 'skipped' not in run]
    found = []
    if runs:
        lines = [
            [group, *(f'{by_group(run)[group]:.1f} s, {by_group(run)[group] / run["wall_secs"]:.1%}' for run in runs)]
            for group in timed_run.GROUPS
        ]
        lines.append(['together', *(f'{run["wall_secs"]:.1f} s' for run in runs)])
        lines.append(
            ['traces of each step', *(', '.join(f'{count}' for count in run['traces'].values()) for run in runs)]
        )
        found.append(reporting.Table('Whole runs', ['', *(run['command'] for run in runs)], lines))
    if results['steps']:
        found.append(table_of_steps(results['steps']))
    return found


def table_of_rows(run):
    """Returns everything that was timed of a run."""
    lines = [[row['row'], f'{row["secs"]:.2f}', f'{row["share"]:.1%}', f'{row["cpu_secs"]:.2f}'] for row in run['rows']]
    lines.append(['together', f'{run["wall_secs"]:.2f}', '', f'{sum(row["cpu_secs"] for row in run["rows"]):.2f}'])
    return reporting.Table(run['command'], ['', 'seconds', 'share', 'seconds of all cores'], lines)


def table_of_steps(steps):
    """Returns the shares of the parts of private steps."""
    lines = [
        ['units x K', *(f'{step["units"]} x {step["views"]}' for step in steps)],
        ['parameters trained', *(f'{step["trained_parameters"]:,} of {step["parameters"]:,}' for step in steps)],
    ]
    lines += [
        [part, *(f'{step["parts"][part] / step["whole_secs"]:.1%}' for step in steps)] for part in step_parts.PARTS
    ]
    lines.append(['all but forward and backward', *(f'{outside_gradients(step):.1%}' for step in steps)])
    lines.append(['the step, s', *(f'{step["whole_secs"]:.3f}' for step in steps)])
    return reporting.Table('Private steps', ['', *(step['name'] for step in steps)], lines)


def draw(results, path):
    """Draws shares of the runs, and of the steps all but forward and backward, as stacked bars."""
    runs = [
        (f'{run["name"]}\n{run["wall_secs"]:.0f} s', by_group(run), run['wall_secs'])
        for run in results['runs']
        if 'skipped' not in run
    ]
    steps = [
        (f'{step["name"]}\n{step["whole_secs"]:.2f} s', step['parts'], step['whole_secs']) for step in results['steps']
    ]
    shown = [bars for bars in (runs, steps) if bars]
    figure, panels = pictures.new_panels(len(shown), 1, sum(1.3 + 0.5 * len(bars) for bars in shown))
    for axes, bars in zip(panels[:, 0], shown):
        names = [name for name in bars[0][1] if name != step_parts.GRADIENTS]
        left = [0.0] * len(bars)
        for index, name in enumerate(names):
            # A difference of two times may fall below zero: it has no width then.
            shares = [100.0 * max(parts[name], 0.0) / whole for _, parts, whole in bars]
            axes.barh([label for label, *_ in bars], shares, left=left, height=0.7, label=name, color=f'C{index}')
            left = [a + b for a, b in zip(left, shares)]
        axes.grid(axis='y', alpha=0.0)
        axes.grid(axis='x', alpha=0.3)
        axes.set_ylim(max(len(bars), 2) - 0.5, -0.5)  # The first on top; one alone fills half.
        if bars is steps:
            axes.axvline(100.0 * GOAL, color='black', linestyle=':', label=f'goal: {GOAL:.0%}')
            axes.set_xlabel('all of a private step but forward and backward, % of the step', fontsize=10)
        else:
            axes.set_xlim(0, 100)
            axes.set_xlabel('% of a run', fontsize=10)
        axes.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0), fontsize=9, frameon=False)
    pictures.save(figure, path)


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gin_file', nargs='*', default=GIN_FILES, help='runs that are measured')
    parser.add_argument('--gin_param', action='append', default=[], help='a binding for all of these runs')
    parser.add_argument('--data_dir', type=pathlib.Path, help='where TensorFlow Datasets has prepared data sets')
    parser.add_argument('--network', default='1.1M', help='of networks.py, for steps that train all of it')
    parser.add_argument('--num_views', type=int, nargs='*', default=[1, 8, 16], help='values of K for that network')
    parser.add_argument('--views_of_step', type=int, default=256, help='of that network, of all units together')
    parser.add_argument('--rounds', type=int, default=7, help='in which the parts of a step take turns')
    parser.add_argument('--timeout_secs', type=float, default=3600.0, help='of each measurement')

    def measure_checked(flags):
        reporting.check(
            parser.error,
            (min([*flags.num_views, flags.rounds]) > 0, 'numbers must be at least 1.'),
            (
                all(1 <= views <= flags.views_of_step for views in flags.num_views),
                '--views_of_step must hold at least one unit of each K.',
            ),
        )
        results = measure(flags)
        for run in results['runs']:
            if 'skipped' in run:
                print(f'{run["name"]}: left out, {run["skipped"]}')
            else:
                table_of_rows(run).print()
        return results

    reporting.run(parser, measure=measure_checked, tables=tables, draw=draw)


if __name__ == '__main__':
    main()
