"""What bin/account shows: tables, JSON and the plot of epsilon over steps."""

from collections.abc import Callable
import dataclasses
import functools
import math
import pathlib

from rich import table as rich_table

from tf_dpdiff.evaluation import pictures
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import settings as settings_lib

_PLOT_POINTS = 16  # Twice those of the table, which so are computed once.


def run_fields(run: settings_lib.RunSettings, solved: str | None) -> dict:
    """Returns the settings of a run and its cost as plain JSON values; `solved` is what was computed."""
    return {
        'epsilon': run.epsilon(),
        'delta': run.delta,
        'epsilon_by_accountant': {name: run.epsilon(name) for name in accounting.ACCOUNTANTS},
        'target_epsilon': run.target_epsilon,
        'solved': solved,
        'noise_multiplier': run.noise_multiplier,
        'num_steps': run.num_steps,
        'sampling_probability': run.sampling_probability,
        'num_units': run.num_units,
        'expected_batch_size': run.expected_batch_size,
        'warm_start_noise_multiplier': run.warm_start_noise_multiplier,
        'warm_start_num_rounds': run.warm_start_num_rounds,
        'epsilon_over_steps': [point._asdict() for point in run.curve()],
    }


def run_tables(run: settings_lib.RunSettings, solved: str | None) -> list[rich_table.Table]:
    """Returns the settings with their cost, and the cost over steps."""

    def marked(name: str, text: str) -> str:
        return f'{text}  (computed)' if solved == name else text

    settings = rich_table.Table(title='the run', title_justify='left', show_header=False)
    settings.add_row('noise multiplier', marked('noise_multiplier', f'{run.noise_multiplier:.10g}'))
    settings.add_row('steps', marked('num_steps', f'{run.num_steps:,}'))
    batch = f'probability {run.sampling_probability:.6g} of each unit'
    if run.num_units:
        batch = f'{run.expected_batch_size:,.10g} of {run.num_units:,} units, {batch}'
    settings.add_row('expected batch', marked('batch', batch))
    if run.warm_start_noise_multiplier is not None:
        rounds = f', {run.warm_start_num_rounds} rounds' if run.warm_start_num_rounds > 1 else ''
        settings.add_row('warm start', f'noise multiplier {run.warm_start_noise_multiplier:.10g}{rounds}')
    settings.add_row('delta', rounding.exact(run.delta))
    if run.target_epsilon is not None:
        settings.add_row('epsilon allowed', rounding.exact(run.target_epsilon))
    settings.add_row(marked('epsilon', 'epsilon'), '{} by PLD    {} by RDP'.format(*_shown(run.epsilon)))
    over_steps = _table('epsilon over steps', 'steps', 'by PLD', 'by RDP')
    for point in run.curve():
        over_steps.add_row(f'{point.num_steps:,}', *_shown(functools.partial(getattr, point)))
    return [settings, over_steps]


def draw_run(run: settings_lib.RunSettings, path: pathlib.Path) -> None:
    """Draws epsilon over steps into a PNG file."""
    batch = (
        f'expected batch {run.expected_batch_size:,.10g} of {run.num_units:,}'
        if run.num_units
        else f'sampling probability {run.sampling_probability:.6g}'
    )
    title = f'noise multiplier {run.noise_multiplier:.6g}, {batch}'
    if run.warm_start_noise_multiplier is not None:
        rounds = f' in {run.warm_start_num_rounds} rounds' if run.warm_start_num_rounds > 1 else ''
        title += f',\nwarm start with noise multiplier {run.warm_start_noise_multiplier:g}{rounds} before'
    pictures.draw_epsilon(
        path, run.curve(_PLOT_POINTS), title=title, delta=run.delta, target_epsilon=run.target_epsilon
    )


def budget_fields(budget: budget_lib.Budget) -> dict:
    """Returns a budget as plain JSON values, without the data set's fingerprint; an epsilon of None is infinite."""
    spent, overdraft = {name: budget.epsilon(name) for name in accounting.ACCOUNTANTS}, budget.overdrawn_by()
    return {
        'total_epsilon': budget.total_epsilon,
        'delta': budget.delta,
        'epsilon_by_accountant': _finite(spent),
        'epsilon_left': max(budget.total_epsilon - spent['pld'], 0.0),
        'is_overdrawn': overdraft > 0.0,
        'overdrawn_by': overdraft if math.isfinite(overdraft) else None,
        'unit': budget.unit,
        'runs': [
            {
                'run_id': entry.run_id,
                'dataset': entry.dataset,
                'time': entry.time,
                'status': entry.status,
                'releases': [dataclasses.asdict(release) for release in entry.ledger.releases],
                'epsilon_by_accountant': _finite(_epsilons(entry.ledger, budget.delta)),
            }
            for entry in budget.entries
        ],
    }


def budget_tables(budget: budget_lib.Budget, path: str) -> list[rich_table.Table]:
    """Returns the runs with their cost, and what they cost together."""
    runs = _table(f'runs in {path}', 'run', 'releases', 'PLD', 'RDP')
    for entry in budget.entries:
        releases = '\n'.join(_describe(release) for release in entry.ledger.releases)
        runs.add_row(
            f'{entry.run_id}\n{entry.dataset}\n{entry.time}\n{entry.status}',
            releases,
            *_shown(_epsilons(entry.ledger, budget.delta).__getitem__),
        )
    together = rich_table.Table(
        title=f'epsilon at delta = {rounding.exact(budget.delta)}', title_justify='left', show_header=False
    )
    spent = budget.epsilon()
    together.add_row('allowed', rounding.exact(budget.total_epsilon))
    together.add_row(f'{len(budget.entries)} run(s) composed', '{} by PLD    {} by RDP'.format(*_shown(budget.epsilon)))
    together.add_row('left', rounding.round_down(max(budget.total_epsilon - spent, 0.0)))
    if budget.overdrawn_by():
        together.add_row('OVERDRAWN', f'by {rounding.round_up(budget.overdrawn_by())}: no further run is let in')
    if budget.unit is not None:
        together.add_row('protected unit', budget.unit)
    return ([runs] if budget.entries else []) + [together]


def _shown(epsilon: Callable[[str], float]) -> tuple[str, str]:
    """Returns epsilon by PLD and by RDP as text; a dash for the former where the latter stands in for it."""
    pld, rdp = (epsilon(name) for name in accounting.ACCOUNTANTS)
    stands_in = pld == rdp and 0.0 < rdp < math.inf
    return '–' if stands_in else rounding.round_up(pld), rounding.round_up(rdp)


def _finite(epsilons: dict) -> dict:
    return {name: value if math.isfinite(value) else None for name, value in epsilons.items()}


def _epsilons(ledger: ledger_lib.Ledger, delta: float) -> dict:
    return {name: accounting.epsilon(ledger.dp_event(), delta, accountant=name) for name in accounting.ACCOUNTANTS}


def _describe(release: ledger_lib.Release) -> str:
    times = '' if release.count == 1 else f'{release.count:,} x '
    q = release.sampling_probability
    drawn = ', not Poisson-sampled' if q is None else '' if q == 1.0 else f', q {q:.4g}'
    return f'{times}{release.mechanism.replace("_", " ")}, noise {release.noise_multiplier:.5g}{drawn}'


def _table(title: str, *columns: str) -> rich_table.Table:
    table = rich_table.Table(title=title, title_justify='left')
    for column in columns:
        table.add_column(column, justify='right' if column.startswith(('by', 'steps', 'PLD', 'RDP')) else 'left')
    return table
