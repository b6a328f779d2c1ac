"""What a planned run would cost, what a finished one has cost, and a budget: as plain values, and drawn."""

import json
import math
import pathlib
from typing import Any

from tf_dpdiff import files
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import settings as settings_lib
from tf_dpdiff.runs import budget as budget_file

_PLOT_POINTS = 16  # Twice those of the table, which so are computed once.


def run_fields(run: settings_lib.RunSettings, solved: str | None) -> dict[str, Any]:
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
        **({'truncated_batch_size': run.truncated_batch_size} if run.truncated_batch_size else {}),
        'warm_start_noise_multiplier': run.warm_start_noise_multiplier,
        'warm_start_num_rounds': run.warm_start_num_rounds,
        'epsilon_over_steps': [point._asdict() for point in run.curve()],
    }


def draw_run(run: settings_lib.RunSettings, path: pathlib.Path) -> None:
    """Draws epsilon over steps into a PNG file."""
    batch = (
        f'expected batch {run.expected_batch_size:,.10g} of {run.num_units:,}'
        if run.num_units
        else f'sampling probability {run.sampling_probability:.6g}'
    )
    bound = f', at most {run.truncated_batch_size:,}' if run.truncated_batch_size else ''
    title = f'noise multiplier {run.noise_multiplier:.6g}, {batch}{bound}'
    if run.warm_start_noise_multiplier is not None:
        rounds = f' in {run.warm_start_num_rounds} rounds' if run.warm_start_num_rounds > 1 else ''
        title += f',\nwarm start with noise multiplier {run.warm_start_noise_multiplier:g}{rounds} before'
    pictures.draw_epsilon(
        path, run.curve(_PLOT_POINTS), title=title, delta=run.delta, target_epsilon=run.target_epsilon
    )


def budget_fields(budget: budget_lib.Budget) -> dict[str, Any]:
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
                'releases': json.loads(entry.ledger.to_json()),
                'epsilon_by_accountant': _finite(epsilons(entry.ledger, budget.delta)),
            }
            for entry in budget.entries
        ],
    }


def epsilons(ledger: ledger_lib.Ledger, delta: float) -> dict[str, float]:
    """Returns what a ledger costs, by each accountant."""
    return {name: accounting.epsilon(ledger.dp_event(), delta, accountant=name) for name in accounting.ACCOUNTANTS}


def finished_run(workdir: pathlib.Path) -> tuple[budget_file.Change, int]:
    """Returns the change of a budget that charges a finished run to it, and how many units the run was on.

    Raises:
      FileNotFoundError: if the run is not finished.
      ValueError: if it read no private image, or if its statement is not that of its checkpoints.
    """
    path = workdir / 'privacy_statement.json'
    if not path.exists():
        raise FileNotFoundError(
            f'{workdir} holds no finished run ({path.name} is missing). Name another --workdir, or '
            'finish the run by its bin/train command, with --budget_file: what it has released so '
            'far goes on record first.'
        )
    statement = files.read_json(path)
    if statement.get('private_data', 'some') is None:
        raise ValueError(f'the run in {workdir} read public images alone: it costs no privacy budget.')
    try:
        released = ledger_lib.Ledger.from_json(json.dumps(statement['releases']))
        run_id, num_units = statement['run_id'], int(statement['num_units_treated_as_public'])
        about = {'dataset': statement['dataset'], 'unit': statement['unit']}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is damaged or of another version: {error!r}.') from error
    # Imported here: TensorFlow takes seconds that a plan need not wait for.
    from tf_dpdiff.training import checkpoints

    identity = checkpoints.read_identity(workdir / 'checkpoints')
    if identity is None:
        raise ValueError(
            f'{workdir / "checkpoints"} is missing: only the private checkpoint says which data the run is on.'
        )
    if (identity.run_id, identity.ledger) != (run_id, released):
        raise ValueError(f'{path} and {workdir / "checkpoints"} are not of the same run, or the run goes on.')
    about.update(data_fingerprint=identity.data_fingerprint, time=budget_file.now())
    return lambda budget: budget.record_finished(run_id, released, **about), num_units


def _finite(by_accountant: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in by_accountant.items()}
