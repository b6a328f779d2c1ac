"""What a run would do and claim, before it does: `bin/train --dry_run`."""

import pathlib

import gin
from rich import console as rich_console

from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff.cli import command
from tf_dpdiff.cli import planner_flags
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import device_plan
from tf_dpdiff.runs import forecast as forecast_lib
from tf_dpdiff.runs import outlook
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.runs import run as run_lib
from tf_dpdiff.training import planner


def show(
    recipe: recipe_lib.Recipe,
    workdir: pathlib.Path,
    hardware: planner.Hardware | None = None,
    *,
    show_config: bool = False,
) -> None:
    """Prints configuration, cost and statement of a run.

    Args:
      recipe: What was chosen; of its images nothing is decoded.
      workdir: The run's folder, which need not be there.
      hardware: The devices that the run is planned for, or None.
      show_config: Whether the whole configuration is printed too.

    Raises:
      ValueError: if the run would be refused, also for images of several sizes, or that are none.
      FileNotFoundError: if an image is missing; if the checkpoint that the run starts from is, after all else is
        printed, and not where the run is planned for other devices.
    """
    prepared = run_lib.prepare(recipe, workdir, dry_run=True, say=progress.sayer('train'))
    build, public_stages = prepared.build, recipe.pretraining or recipe.warm_start
    planner_flags.check(hardware, has_private_stage=recipe.is_private, has_public_stage=bool(public_stages))
    outlook.look_at_images(recipe, looks_at_held_out=prepared.utility is not None)
    build.check()
    model = build.make_network()
    if show_config:
        print(gin.operative_config_str())
    if build.plan is None:
        _print(
            outlook.of_public_run(build, model, hardware), build.statement(ledger_lib.Ledger(), build.public_data(None))
        )
        return
    assert recipe.finetuning is not None
    time, told = None, forecast_lib.forecast_of(build, model)
    if hardware is None:  # Else the planner reckons for its devices.
        with progress.working('train', 'measuring the speed of this machine'):
            trainable, has_matching = recipe.finetuning.trainable, recipe.matching is not None
            speed = forecast_lib.measure_speed(model, trainable, has_matching=has_matching)
            time = outlook.describe_time(recipe, speed)
    show_in_short(build, model, told, time)
    build.check_network(model)
    starts_from, missing = outlook.check_origin(build, model)
    rows = outlook.of_private_run(build, model, starts_from, hardware)
    if prepared.budget:
        rows.append(('budget file', f'with this run, {run_lib.describe_spent(prepared.budget)}'))
    public_data = tuple(dict.fromkeys((*starts_from, *build.public_data(None))))
    _print(rows, build.statement(build.plan.planned_ledger(), public_data))
    if missing and not hardware:
        raise FileNotFoundError(f'the run would stop at its start: {missing}')


def show_in_short(build: build_lib.Build, model: keras.Model, told: forecast_lib.Forecast, time: str | None) -> None:
    """Prints what a private run would promise and cost, and whether it can work; arguments as of `outlook.in_short`."""
    rich_console.Console().print(command.facts_table('in short', outlook.in_short(build, model, told, time)))


def _print(rows: device_plan.Rows, statement: statement_lib.PrivacyStatement | statement_lib.PublicStatement) -> None:
    rich_console.Console().print(command.facts_table('what would be done', rows))
    print('\nThe statement that the run would end with:\n\n' + statement.to_text())
