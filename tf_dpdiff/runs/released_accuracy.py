"""Accuracy on private held-out images, released with noise and charged to the budget of the data set."""

import json
import pathlib
import secrets

import numpy as np

from tf_dpdiff import files
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import seeds
from tf_dpdiff.runs import budget as budget_file
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import report


def check(
    workdir: pathlib.Path,
    budget_path: str | pathlib.Path | None,
    config: accuracy_release.AccuracyReleaseConfig,
    data: datasets.PrivateData,
    statement_text: str | None,
) -> None:
    """Checks that a release may be made, before what it releases is measured.

    Args:
      workdir: The run's folder.
      budget_path: The budget file.
      config: The release.
      data: The private images.
      statement_text: What came with the samples that the classifiers are trained on.

    Raises:
      ValueError: if it may not; names the reason and the cure.
      accounting.BudgetError: if the budget would be passed.
    """
    if budget_path is None:
        raise ValueError(
            'a released accuracy costs privacy: name the budget of the data set, --budget_file=FILE '
            '(bin/account makes one), or leave evaluate.accuracy_release unbound.'
        )
    if data.held_out.unit != data.spec.unit:  # The noise would be for one, the budget is for the other.
        raise ValueError(
            f'the budget protects {data.spec.unit!r}, but the held-out images name no owners, so an accuracy on them '
            f'would protect no more than {data.held_out.unit!r}: name their owners too.'
        )
    report.read(workdir)  # The page that the accuracy becomes part of.
    _check_not_released(workdir)
    text = workdir / folder.STATEMENT_TEXT
    statement = folder.read_statement(workdir)
    if not statement['guarantee_claimed'] and _is_private(statement):
        raise ValueError(
            f'the run in {workdir} claims no guarantee: classifiers trained on its samples are not '
            'private, and no noise on their accuracy changes that.'
        )
    if statement_text != text.read_text(encoding='utf-8'):
        raise ValueError(
            f'the samples did not come with the statement of the run in {workdir}: it is not known '
            'what they, and classifiers trained on them, reveal. Make them with bin/sample.'
        )
    _charge('not drawn yet', workdir, budget_path, config, data)(budget_file.read(budget_path))


def release(
    workdir: pathlib.Path,
    budget_path: str | pathlib.Path,
    config: accuracy_release.AccuracyReleaseConfig,
    data: datasets.PrivateData,
    predictions: dict[str, np.ndarray],
) -> dict:
    """Charges the budget, draws the noise and writes released_accuracy.json: in this order, so that a crash costs
    budget and never the guarantee.

    Args:
      workdir: The run's folder.
      budget_path: The budget file.
      config: The release.
      data: The private images.
      predictions: Of each classifier that was trained on samples: classes of the held-out images, int [images].

    Returns:
      What was written: what may be released.
    """
    held_out = data.held_out
    run_id = f'accuracy {secrets.token_hex(4)}'
    correct = np.stack([predicted == held_out.labels for predicted in predictions.values()], axis=1)
    with budget_file.held(budget_path) as update:  # Another process must not release in between.
        _check_not_released(workdir)
        budget = update(_charge(run_id, workdir, budget_path, config, data))
        released = config.release(
            correct, seed=seeds.PrivateSeed.from_os_entropy(), num_units=held_out.num_units, owners=held_out.owners
        )
        fields = _describe(workdir, config, held_out, dict(zip(predictions, released.tolist())), run_id, budget)
        files.write_text(workdir / folder.RELEASED_ACCURACY, json.dumps(fields, indent=2) + '\n')
    report.write_page(workdir)
    return fields


def _check_not_released(workdir: pathlib.Path) -> None:
    path = workdir / folder.RELEASED_ACCURACY
    if path.exists():
        report.write_page(workdir)  # Where a crash came between.
        raise ValueError(
            f'{path} holds accuracies that were released before; each release costs anew. Move it '
            'away to release again, or leave evaluate.accuracy_release unbound.'
        )


def _is_private(statement: dict) -> bool:
    return statement.get('private_data', 'some') is not None


def _charge(
    run_id: str,
    workdir: pathlib.Path,
    budget_path: str | pathlib.Path,
    config: accuracy_release.AccuracyReleaseConfig,
    data: datasets.PrivateData,
) -> budget_file.Change:
    """Returns the change of a budget: as if held-out units were training units, which costs more than it need.

    The run itself must be in the budget: then the budget has seen that data and unit are those of the run, and its
    total covers both.
    """
    statement, cost = folder.read_statement(workdir), config.record(ledger_lib.Ledger())

    def charge(budget: budget_lib.Budget) -> budget_lib.Budget:
        if _is_private(statement):
            budget_file.check_holds(budget, budget_path, workdir, statement)
        reserved = budget.reserve(run_id, cost, **budget_file.about(data.train))
        return reserved.settle(run_id, cost)

    return charge


def _describe(workdir, config, held_out, accuracy, run_id, budget) -> dict:
    delta, ledger = budget.delta, config.record(ledger_lib.Ledger())
    epsilon, epsilon_together = accounting.epsilon(ledger.dp_event(), delta), budget.epsilon()
    stddev = config.stddev(held_out.num_units, len(accuracy))
    text = (
        f'Measured on {held_out.num_units:,} held-out private units ({held_out.unit}) and released by one Gaussian '
        f'mechanism with noise multiplier {config.noise_multiplier:g}: each accuracy has noise of standard deviation '
        f'{stddev:.2%}. The release costs epsilon = {rounding.round_up(epsilon)} at delta = '
        f'{rounding.exact(delta)}; together with all that was released from these data before, the model '
        f'among it, epsilon = {rounding.round_up(epsilon_together)}. The number of units counts as public. Not '
        'covered: a choice of the classifiers, or of the run, by looking at these images.'
    )
    return {
        'accuracy': accuracy,
        'noise_stddev': stddev,
        'noise_multiplier': config.noise_multiplier,
        'num_units': held_out.num_units,
        'unit': held_out.unit,
        'epsilon': epsilon,
        'epsilon_of_all_releases': epsilon_together,
        'delta': delta,
        'releases': json.loads(ledger.to_json()),
        'run_id': run_id,
        'model_run_id': folder.read_statement(workdir).get('run_id'),
        'text': text,
    }
