"""The tables of bin/account."""

from collections.abc import Callable
import functools
import math

from rich import table as rich_table

from tf_dpdiff.cli import command
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import settings as settings_lib
from tf_dpdiff.runs import account as account_lib


def run_tables(run: settings_lib.RunSettings, solved: str | None) -> list[rich_table.Table]:
    """Returns the settings with their cost, and the cost over steps."""

    def marked(name: str, text: str) -> str:
        return f'{text}  (computed)' if solved == name else text

    settings = command.facts_table('the run')
    settings.add_row('noise multiplier', marked('noise_multiplier', f'{run.noise_multiplier:.10g}'))
    settings.add_row('steps', marked('num_steps', f'{run.num_steps:,}'))
    batch = f'probability {run.sampling_probability:.6g} of each unit'
    if run.num_units:
        batch = f'{run.expected_batch_size:,.10g} of {run.num_units:,} units, {batch}'
    if run.truncated_batch_size:
        batch += f', at most {run.truncated_batch_size:,}'
    settings.add_row('expected batch', marked('batch', batch))
    if run.warm_start_noise_multiplier is not None:
        rounds = f', {run.warm_start_num_rounds} rounds' if run.warm_start_num_rounds > 1 else ''
        settings.add_row('warm start', f'noise multiplier {run.warm_start_noise_multiplier:.10g}{rounds}')
    settings.add_row('delta', rounding.exact(run.delta))
    if run.target_epsilon is not None:
        settings.add_row('epsilon allowed', rounding.exact(run.target_epsilon))
    settings.add_row(marked('epsilon', 'epsilon'), '{} by PLD    {} by RDP'.format(*_shown(run.epsilon)))
    over_steps = ((f'{point.num_steps:,}', *_shown(functools.partial(getattr, point))) for point in run.curve())
    header = ('steps', 'by PLD', 'by RDP')
    return [settings, command.numbers_table('epsilon over steps', header, over_steps, num_names=0)]


def budget_tables(budget: budget_lib.Budget, path: str) -> list[rich_table.Table]:
    """Returns the runs with their cost, and what they cost together."""
    runs = [
        (
            f'{entry.run_id}\n{entry.dataset}\n{entry.time}\n{entry.status}',
            '\n'.join(map(_describe, entry.ledger.releases)),
            *_shown(account_lib.epsilons(entry.ledger, budget.delta).__getitem__),
        )
        for entry in budget.entries
    ]
    together = command.facts_table(f'epsilon at delta = {rounding.exact(budget.delta)}')
    spent = budget.epsilon()
    together.add_row('allowed', rounding.exact(budget.total_epsilon))
    together.add_row(f'{len(budget.entries)} run(s) composed', '{} by PLD    {} by RDP'.format(*_shown(budget.epsilon)))
    together.add_row('left', rounding.round_down(max(budget.total_epsilon - spent, 0.0)))
    if budget.overdrawn_by():
        together.add_row('OVERDRAWN', f'by {rounding.round_up(budget.overdrawn_by())}: no further run is let in')
    if budget.unit is not None:
        together.add_row('protected unit', budget.unit)
    header = ('run', 'releases', 'PLD', 'RDP')
    of_runs = command.numbers_table(f'runs in {path}', header, runs, num_names=2)
    return [of_runs, together] if runs else [together]


def _shown(epsilon: Callable[[str], float]) -> tuple[str, str]:
    """Returns epsilon by PLD and by RDP as text; a dash for the former where the latter stands in for it."""
    pld, rdp = (epsilon(name) for name in accounting.ACCOUNTANTS)
    stands_in = pld == rdp and 0.0 < rdp < math.inf
    return '–' if stands_in else rounding.round_up(pld), rounding.round_up(rdp)


def _describe(release: ledger_lib.Release | ledger_lib.BestOfRuns) -> str:
    if isinstance(release, ledger_lib.BestOfRuns):
        lines = '\n  '.join(map(_describe, release.releases))
        return f'the best of {release.num_runs.mean:g} runs on average, each\n  {lines}'
    times = '' if release.count == 1 else f'{release.count:,} x '
    q = release.sampling_probability
    drawn = ', not Poisson-sampled' if q is None else '' if q == 1.0 else f', q {q:.4g}'
    if release.truncation:
        drawn += f', at most {release.truncation.truncated_batch_size:,} units'
    return f'{times}{release.mechanism.replace("_", " ")}, noise {release.noise_multiplier:.5g}{drawn}'
