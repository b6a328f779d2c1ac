"""What a private step costs, beside plain training and beside other libraries, on the same network and the same work.

    .venv/bin/python -I benchmarks/dp_step.py --output=benchmarks/dp_step.json
    .venv/bin/python -I benchmarks/dp_step.py --output=benchmarks/dp_step.json --add \\
        --networks 1.1M 4.24M --max_views=16384
    .venv/bin/python -I benchmarks/dp_step.py --markdown
    .venv/bin/python -I benchmarks/dp_step.py --picture=dp_step.png

A step draws the K views of each unit, computes the gradient of each unit's mean loss, clips, adds up, adds noise and
lets Adam follow, in float32 on all cores; plain steps neither clip nor add noise. Ours also keeps the moving average
of the weights. Each engine is a process of its own, in turns with the others; each takes the physical batch (and mode)
that is fastest at this K, tried first. Before that, every peer has to give the prediction and the clipped sum of
gradients that ours gives, on the same weights and views. Environments of peers are made where they are missing
(environments.py).

Run it on a quiet machine: PyTorch's threads wait for each other at every layer, and lose much where they share cores
with other work. All of it takes hours; --units, --views and --engines choose, and --add measures what is not there yet.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import dp_step_report
from benchmarks import engines as engines_lib
from benchmarks import environments
from benchmarks import measuring
from benchmarks import reporting

ENGINES = engines_lib.ENGINES
_TOLERANCE = 1e-4
# At most so many rounds above so many views of a step, which take minutes each.
_ROUNDS_ABOVE_VIEWS = {2048: 2, 8192: 1}
# The choice of a physical batch: rounds, and the views of a step that it is made at, where there are so many units.
_CHOICE_ROUNDS, _CHOICE_VIEWS = 3, 256
_SHARE_OF_MEMORY = 0.9
_NOT_MEASURED = 'not measured'


class NetworkBenchmark:
    """Measures all cells of a network.

    Args:
      flags: Of the program.
      cells: What is measured, of one network.
      pythons: Of each environment, by its name; or the CaseError that says why it is not there.
      reference: What reference.py wrote.
      beside: Cases that take part in each round, and are no engines.
    """

    def __init__(self, flags, cells, pythons, reference, beside=()):
        self._flags, self._cells = flags, cells
        self._pythons, self._reference, self._beside = pythons, reference, beside
        self._budget_gib = _SHARE_OF_MEMORY * engines_lib.available_memory_gib()
        self._memory = {key: {} for key in flags.engines}  # GiB by size, see engines.size.
        self._choices = {}
        self._failures = {}  # Why an engine is not measured at all, by key.
        self.differences = {}

    def remember_rows(self, rows):
        """Takes over memory and choices of rows of this network that were measured before."""
        for row in sorted(rows, key=lambda row: row['units'] * row['views']):
            key, cell = row['engine'], engines_lib.Cell(row['network'], row['units'], row['views'])
            if key in self._memory:
                choice = engines_lib.Choice(row['mode'], row['views_at_a_time'])
                self._memory[key][engines_lib.size(key, choice, cell)] = row['peak_memory_gib']
                if ENGINES[key].views_at_a_time is not None:
                    self._choices[key, cell.views] = choice  # The step of most views has the last word.

    def check(self, network):
        """Compares the peers with ours, on the network."""
        for key in self._flags.engines:
            engine = ENGINES[key]
            if isinstance(self._python(key), measuring.CaseError):
                self._failures[key] = str(self._python(key))
            elif engine.environment and network not in engines_lib.UNETS:
                self._failures[key] = 'has no such network'
            elif engine.program != engines_lib.OUR_PROGRAM:
                for mode in engine.modes:
                    self._check(key, mode)
        for key, reason in self._failures.items():
            _say(f'{key}: {reason}')

    def _check(self, key, mode):
        _say(f'{key} {mode}: check')
        try:
            found = engines_lib.check(key, mode, reference=self._reference, python=self._python(key))
        except measuring.CaseError as error:
            self._failures[key] = _reason(error)
            return
        self.differences[f'{key} {mode}'] = found
        if not max(found.values()) <= _TOLERANCE:
            self._failures[key] = f'computes something else than ours: {found}'

    def _python(self, key):
        return self._pythons[ENGINES[key].environment]

    def _start(self, stack, key, choice, cell):
        _say(f'{cell}: {key} {choice}')
        case = engines_lib.start(
            key,
            choice,
            cell,
            reference=self._reference,
            python=self._python(key),
            timeout_secs=self._flags.timeout_secs,
        )
        return stack.enter_context(contextlib.closing(case))

    def _predict(self, key, choice, cell):
        return engines_lib.predict_memory_gib(self._memory[key], engines_lib.size(key, choice, cell))

    def _remember(self, case, choice, cell):
        self._memory[case.name][engines_lib.size(case.name, choice, cell)] = case.peak_memory_gib

    def _choose(self, key, cell):
        """Returns the fastest way to run an engine at the K of a cell.

        Raises:
          measuring.CaseError: if none runs.
        """
        if (key, cell.views) not in self._choices:
            most_units = max(other.units for other in self._cells if other.views == cell.views)
            place = dataclasses.replace(cell, units=min(most_units, max(1, _CHOICE_VIEWS // cell.views)))
            seconds, reasons = {}, []
            possible = engines_lib.choices(ENGINES[key], place)
            for choice in possible if len(possible) > 1 else []:
                predicted = self._predict(key, choice, place)
                if predicted and predicted > self._budget_gib:
                    continue
                try:
                    with contextlib.ExitStack() as stack:
                        case = self._start(stack, key, choice, place)
                        seconds[choice] = statistics.median(case.step() for _ in range(_CHOICE_ROUNDS))
                        self._remember(case, choice, place)
                except measuring.CaseError as error:
                    reasons.append(error)
            if len(possible) > 1 and not seconds:
                raise reasons[0] if reasons else measuring.CaseError(f'{key}: out of memory')
            self._choices[key, cell.views] = min(seconds, key=seconds.get) if seconds else possible[0]
        return self._choices[key, cell.views]

    def measure(self, cell):
        """Returns the rows of a cell, one an engine."""
        rows, waiting = {}, []
        for key in self._flags.engines:
            if key in self._failures:
                rows[key] = {'reason': self._failures[key]}
                continue
            try:
                choice = self._choose(key, cell)
            except measuring.CaseError as error:
                rows[key] = {'reason': _reason(error)}
                continue
            predicted, beside = self._predict(key, choice, cell), 0.0
            if key != 'ours' and ('ours', cell.views) in self._choices:
                beside = self._predict('ours', self._choices['ours', cell.views], cell) or 0.0
            if predicted and predicted + beside > self._budget_gib:
                rows[key] = {'reason': f'out of memory (predicted {predicted:.0f} GiB)'}
            else:
                waiting.append((key, choice))
        while waiting:
            waiting = self._measure_group(cell, waiting, rows)
        _complete_shares(rows)
        common = {'network': cell.network, 'units': cell.units, 'views': cell.views}
        return [{**common, 'engine': key, **rows[key]} for key in self._flags.engines]

    def _measure_group(self, cell, waiting, rows):
        """Measures, in turns, as many engines as memory holds; returns those that are left.

        Ours takes part in each group: ratios are of neighbours in time.
        """
        ours = [(key, choice) for key, choice in [('ours', self._choices.get(('ours', cell.views)))] if choice]
        left, live = [], []
        with contextlib.ExitStack() as stack:
            for key, choice in dict.fromkeys([*(ours if 'reason' not in rows.get('ours', {}) else []), *waiting]):
                needed = self._predict(key, choice, cell) or 0.0
                held = sum(case.peak_memory_gib for case, _ in live)
                if held + needed > self._budget_gib and len(live) > len(ours):
                    left.append((key, choice))
                    continue
                try:
                    live.append((self._start(stack, key, choice, cell), choice))
                    self._remember(*live[-1], cell)
                except measuring.CaseError as error:
                    rows.setdefault(key, {'reason': _reason(error)})
            seconds = self._take_turns(live, cell, rows)
            for case, choice in live:
                if case.name in seconds:
                    self._remember(case, choice, cell)
        for case, choice in live:
            if case.name in seconds and 'seconds' not in rows.get(case.name, {}):
                rows[case.name] = self._describe(case, choice, cell, seconds)
        return left

    def _take_turns(self, live, cell, rows):
        """Returns {engine: seconds of each round}; one that fails says so in its row, and the others begin again."""
        cases = [case for case, _ in live]
        limits = [most for views, most in _ROUNDS_ABOVE_VIEWS.items() if cell.views_of_step > views]
        rounds = min([self._flags.rounds, *limits])
        while True:
            try:
                return measuring.take_turns(measuring.steps_of([*cases, *self._beside]), rounds)
            except measuring.CaseError as error:
                failed = str(error).partition(':')[0]
                if failed not in [case.name for case in cases]:
                    raise
                rows.setdefault(failed, {'reason': _reason(error)})
                cases = [case for case in cases if case.name != failed]

    def _describe(self, case, choice, cell, seconds):
        """Returns the row of an engine that was measured."""
        engine, own = ENGINES[case.name], seconds[case.name]
        row = {
            'mode': choice.mode,
            'views_at_a_time': None,
            'seconds': own,
            'views_per_sec': cell.views_of_step / statistics.median(own),
            'first_step_secs': case.facts['first_step_secs'],
            'peak_memory_gib': case.peak_memory_gib,
        }
        if 'chunk' in case.facts:
            row['views_at_a_time'] = case.facts['chunk'][0] * case.facts['chunk'][1]
        elif choice.mode == 'loop':
            row['views_at_a_time'] = cell.views
        else:
            row['views_at_a_time'] = choice.units_per_chunk(cell) * cell.views
        if self._beside:
            row['beside'] = {other.name: seconds[other.name] for other in self._beside}
        if 'ours' in seconds:
            row['ours_times_as_fast'] = measuring.median_ratio(own, seconds['ours'])
        plain = engines_lib.PLAIN_OF[engine.framework]
        if plain in seconds:
            row['share_of_plain'] = measuring.median_ratio(seconds[plain], own)
        return row


def _complete_shares(rows):
    """Gives the rows of a cell their shares of a plain step that ran in another group."""
    for key, row in rows.items():
        plain = rows.get(engines_lib.PLAIN_OF[ENGINES[key].framework], {})
        if 'seconds' in row and 'seconds' in plain and 'share_of_plain' not in row:
            # Ours took part in the group of the plain step too: there they were neighbours in time.
            row['share_of_plain'] = (
                plain['ours_times_as_fast']
                if key == 'ours'
                else statistics.median(plain['seconds']) / statistics.median(row['seconds'])
            )


def _reason(error):
    return str(error).partition(': ')[2] or str(error)


def _say(text):
    print(text, file=sys.stderr, flush=True)


def make_environments(flags):
    """Returns the Python of each environment, or the CaseError that says why it is not there."""
    pythons = {None: sys.executable}
    for name in sorted({ENGINES[key].environment for key in flags.engines} - {None}):
        try:
            pythons[name] = environments.make(name, flags.environments)
        except measuring.CaseError as error:
            pythons[name] = error
    return pythons


def write_reference(network, path):
    """Runs reference.py."""
    _say(f'{network}: reference')
    done = subprocess.run(
        [sys.executable, '-I', str(measuring.ROOT / 'benchmarks' / 'reference.py'), str(path), f'--network={network}'],
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise measuring.CaseError(f'reference.py: {(done.stderr.strip() or "failed").splitlines()[-1]}')


def _start_results(flags, pythons):
    """Returns results without rows, or with those of --output that were measured, where --add is given."""
    results = {
        'versions': measuring.versions('tensorflow', 'tensorflow-privacy', 'numpy'),
        'versions_of_peers': {
            name: environments.versions(python)
            for name, python in pythons.items()
            if name and not isinstance(python, measuring.CaseError)
        },
        'load_before': os.getloadavg()[0],
        'rounds': flags.rounds,
        'differences_from_ours': {},
        'rows': [],
    }
    if flags.add and flags.output.exists():
        before = json.loads(flags.output.read_text())
        # Environments of engines that are not asked for are taken as they were.
        results['versions_of_peers'] = {**before['versions_of_peers'], **results['versions_of_peers']}
        for name in ('versions', 'versions_of_peers', 'rounds'):
            if before[name] != results[name]:
                raise measuring.CaseError(
                    f'{name} of {flags.output} are {before[name]}, and {results[name]} here: '
                    'measure it whole, without --add.'
                )
        results['differences_from_ours'] = before['differences_from_ours']
        results['rows'] = [row for row in before['rows'] if not _is_wanted(row, flags)]
        results['load_before'] = max(before['load_before'], results['load_before'])
    return results


def _is_wanted(row, flags):
    """Tells if a row stands for a cell that nobody has measured and that the flags ask for."""
    return (
        row.get('reason') == _NOT_MEASURED
        and row['network'] in flags.networks
        and row['units'] in flags.units
        and row['views'] in flags.views
    )


def measure(flags):
    """Measures all cells, and writes what there is after each."""
    pythons = make_environments(flags)
    results = _start_results(flags, pythons)
    for network in flags.networks:
        kept = {(row['units'], row['views']) for row in results['rows'] if row['network'] == network}
        cells = [
            engines_lib.Cell(network, *size) for size in itertools.product(flags.units, flags.views) if size not in kept
        ]
        # The largest memory comes last: it is predicted from what came before.
        cells.sort(key=lambda cell: (cell.units**2 * cell.views, cell.units))
        measured = [cell for cell in cells if cell.views_of_step <= flags.max_views]
        if measured:
            _measure_network(flags, network, measured, pythons, results)
        results['rows'] += [
            {'network': network, 'units': cell.units, 'views': cell.views, 'engine': key, 'reason': _NOT_MEASURED}
            for cell in cells
            if cell not in measured
            for key in flags.engines
        ]
    return results


def _measure_network(flags, network, cells, pythons, results):
    """Adds the rows of cells of a network to results, and writes what there is after each."""
    with tempfile.TemporaryDirectory() as folder:
        reference = pathlib.Path(folder) / 'reference.npz'
        write_reference(network, reference)
        benchmark = NetworkBenchmark(flags, cells, pythons, reference)
        benchmark.remember_rows([row for row in results['rows'] if row['network'] == network and 'seconds' in row])
        benchmark.check(network)
        # Those of engines that are not asked for now stand beside the cells that they were measured in.
        results['differences_from_ours'].setdefault(network, {}).update(benchmark.differences)
        for cell in cells:
            results['rows'] += benchmark.measure(cell)
            if flags.output:
                measuring.write_results(flags.output, **results)


def main():
    """Measures, prints and writes; or shows what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', default=['1.1M'], help='of networks.py (default: 1.1M)')
    parser.add_argument('--units', type=int, nargs='+', default=[16, 64, 256], help='in a batch (default: 16 64 256)')
    parser.add_argument('--views', type=int, nargs='+', default=[1, 4, 16, 64], help='K (default: 1 4 16 64)')
    parser.add_argument('--max_views', type=int, default=1024, help='of a step (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='of one step of each (default: %(default)s)')
    parser.add_argument(
        '--engines',
        nargs='+',
        choices=ENGINES,
        default=list(ENGINES),
        metavar='ENGINE',
        help=f'of {", ".join(ENGINES)} (default: all)',
    )
    parser.add_argument('--add', action='store_true', help='keep the cells that --output holds, measure the others')
    parser.add_argument(
        '--environments',
        type=pathlib.Path,
        default=environments.FOLDER,
        help='folder below which those of peers are made (default: %(default)s)',
    )
    parser.add_argument('--timeout_secs', type=float, default=1800.0, help='of a step (default: %(default)s)')

    def checked_measure(flags):
        reporting.check(
            parser.error,
            (min(flags.units + flags.views + [flags.rounds, flags.max_views]) >= 1, 'numbers must be at least 1'),
            (flags.output or not flags.add, '--add needs --output'),
            (min(flags.units) * min(flags.views) <= flags.max_views, '--max_views leaves nothing'),
            (
                set(flags.networks) <= set(engines_lib.NETWORKS),
                f'--networks must be of {", ".join(engines_lib.NETWORKS)}',
            ),
        )
        return measure(flags)

    reporting.run(parser, measure=checked_measure, tables=dp_step_report.tables, draw=dp_step_report.draw)


if __name__ == '__main__':
    main()
