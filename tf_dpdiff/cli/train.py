"""bin/train: from private images to a private generator, its samples and what they are worth."""

import contextlib
import functools
import json
import pathlib
import sys
import time

import gin
import numpy as np
from rich import console as rich_console

from tf_dpdiff import files
from tf_dpdiff.cli import budget_file as budget_file_lib
from tf_dpdiff.cli import command
from tf_dpdiff.cli import dry_run as dry_run_lib
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import planner_flags
from tf_dpdiff.cli import public_run
from tf_dpdiff.cli import run_files
from tf_dpdiff.cli import run_identity
from tf_dpdiff.cli import run_output
from tf_dpdiff.cli import run_summaries
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.evaluation import utility as utility_lib
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import cautions
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import loop as loop_lib
from tf_dpdiff.training import planner
from tf_dpdiff.training import stages
from tf_dpdiff.training import strategies
from tf_dpdiff.training import trainer as trainer_lib
from tf_dpdiff.training import warm_start as warm_start_lib

_PUBLIC_CLASSES_NAMED = 5


@gin_config.root('workdir', 'replicas', 'dry_run', 'hardware')
def train(
    *,
    workdir: pathlib.Path,
    replicas: strategies.Replicas = strategies.ONE,
    dry_run: bool = False,
    hardware: planner.Hardware | None = None,
    budget_file: str | pathlib.Path | None = None,
    network: unet.UNetConfig = gin.REQUIRED,
    process: process_lib.DiffusionProcess = gin.REQUIRED,
    data: datasets.PrivateData | None = None,
    privacy: plan_lib.DpSgdConfig | None = None,
    finetuning: stages.FinetuningConfig | None = None,
    pretraining: stages.PretrainingConfig | None = None,
    warm_start: stages.WarmStartConfig | None = None,
    sampler: samplers.SamplerConfig = samplers.SamplerConfig(),
    samples: draw.GenerateConfig = draw.GenerateConfig(),
    utility: utility_lib.UtilityConfig | None = None,
    loop: loop_lib.TrainerConfig = loop_lib.TrainerConfig(),
) -> int:
    """Trains, samples, exports and evaluates; resumes where the folder holds an unfinished run.

    Args:
      workdir: The run's folder.
      replicas: What computes the steps.
      dry_run: Print what would be done and what it would cost, and return.
      hardware: What a dry run reckons hours and memory for, or None.
      budget_file: The budget of all runs on these data, which the run is charged to, or None.
      network: The network's shape.
      process: The diffusion process.
      data: The private images, and real images held out from them. None: a run on public images alone, which makes a
        checkpoint for private runs to start from.
      privacy: The privacy budget and how it is spent.
      finetuning: The DP-SGD stage.
      pretraining: The public stage, or None.
      warm_start: The stage on what a noisy release tells of the classes, or None.
      sampler: How images are drawn.
      samples: How many images are drawn at the end.
      utility: The classifiers that tell what the samples are worth, or None. What they measure is written to
        non_private/.
      loop: Settings of the loop.

    Returns:
      The exit code.
    """
    if data is None:
        private_parts = {
            'privacy': privacy,
            'finetuning': finetuning,
            'warm_start': warm_start,
            'utility': utility,
            'budget_file': budget_file,
        }
        return public_run.train_on_public_images(
            workdir, replicas, dry_run, hardware, private_parts, network, process, pretraining, sampler, samples, loop
        )
    _check_complete(privacy, finetuning)
    model = _describe_model(data.spec, network, process, sampler, warm_start, finetuning)
    is_first = replicas.workers.is_first
    if is_first and not dry_run:
        run_identity.check_free(workdir)
    utility = _fitting_utility(utility, data, samples, is_first)
    budget_file = budget_file if is_first else None
    plan, budget = _plan(privacy, warm_start, data, workdir, budget_file, dry_run, is_first)
    if dry_run:
        dry_run_lib.print_private(
            data,
            model,
            plan,
            pretraining,
            warm_start,
            finetuning,
            samples,
            utility,
            _spent(budget) if budget else None,
            hardware,
        )
        return command.DONE

    started = time.monotonic()
    of_stages = {stages.PRETRAINING: pretraining, stages.WARM_START: warm_start, stages.FINETUNING: finetuning}
    with replicas.working() as stop:
        trainer = _make_trainer(workdir, data, model, plan, of_stages, loop, replicas)
        if is_first:
            _tell_of_private_images_that_are_public(trainer)
            _begin(workdir, budget_file, data, model, plan, trainer, of_stages)
        released, drawn = _train_and_draw(workdir, budget_file, trainer, model, samples, stop)
    if is_first:
        _finish(workdir, data, trainer, released, model, drawn, utility, started)
    replicas.workers.wait_for_all()  # None ends as done while the first one may yet fail.
    return command.DONE


def _fitting_utility(utility, data, samples, is_first) -> utility_lib.UtilityConfig | None:
    """Returns what can be measured in the end; says what is left out."""
    utility, left_out = utility_lib.fitting(utility, data, samples.num_images)
    command.say('train', left_out if is_first else ())
    return utility


def _check_complete(*of_private_runs) -> None:
    if not all(of_private_runs):
        raise command.UsageError(
            'the configuration is incomplete: train.data is private, so train.privacy and '
            'train.finetuning must be bound too.'
        )


def _plan(
    privacy, warm_start, data, workdir, budget_file, dry_run, is_first
) -> tuple[plan_lib.DpSgdPlan, budget_lib.Budget | None]:
    """Returns the plan, and the budget as it would be with the run; says what a person must be told beforehand."""
    with command.working('train', 'calibrating the noise'):
        plan = plan_lib.make_plan(privacy, data.spec.num_units, warm_start.release if warm_start else None)
        budget = _planned_budget(budget_file, plan, data, workdir, dry_run)
    if is_first:
        of_total = cautions.of_delta(budget.delta, plan.num_units) if budget else None
        command.print_cautions('train', plan.cautions() + ([f'of the budget file, {of_total}'] if of_total else []))
    return plan, budget


def _make_trainer(workdir, data, model, plan, of_stages, config, replicas) -> trainer_lib.Trainer:
    return trainer_lib.Trainer(
        workdir,
        data.train,
        **of_stages,
        network=model.network,
        process=model.process,
        plan=plan,
        config=config,
        on_release=functools.partial(_show_release, workdir),
        draw_grid=run_summaries.make_grid_drawer(model),
        replicas=replicas,
    )


def _begin(workdir, budget_file, data, model, plan, trainer, of_stages) -> None:
    """Charges the run, and writes what is known before its first step."""
    _charge(budget_file, 'reserved', _reserve(plan, data.train, trainer.state.run_id))
    run_output.begin(workdir, model, trainer, of_stages, plan)


def _train_and_draw(workdir, budget_file, trainer, model, samples, stop):
    """Runs what is left of the training; returns the network that is released, and samples of it with their labels."""
    workers = trainer.replicas.workers
    try:
        trainer.run(stop)
    except FloatingPointError:
        _write_down_spent(workdir, budget_file, trainer)
        workers.wait_for_all()  # All of them have diverged; who ends before the first one has written might end it too.
        raise
    _settle(budget_file, trainer)
    # From here on everything is made from the released weights.
    released = trainer.released_model()
    try:
        return released, run_output.draw(released, model, samples, workdir=workdir, stop=stop, workers=workers)
    except FloatingPointError:
        _write_down_spent(workdir, budget_file, trainer)
        raise


def _settle(budget_file, trainer) -> None:
    _charge(budget_file, 'settled', lambda budget: budget.settle(trainer.state.run_id, trainer.state.ledger))


def _write_down_spent(workdir, budget_file, trainer) -> None:
    """Writes what a run has cost that ends without a model: its charge, and its statement if it released anything."""
    if trainer.replicas.workers.is_first and trainer.state.ledger.releases:
        run_files.write_statement(workdir, trainer.statement())
    _settle(budget_file, trainer)


def _tell_of_private_images_that_are_public(trainer) -> None:
    count = trainer.num_private_images_that_are_public
    if count:
        print(
            f'train: {count:,} of the private images are among the public ones too: the guarantee covers what '
            'the private stages do with them, and not what the public stages show. This number is private: do not '
            'release it.',
            file=sys.stderr,
        )


def _describe_model(spec, network, process, sampler, warm_start, finetuning) -> run_files.ModelDescription:
    has_feature_means = bool(warm_start and warm_start.has_public_images)
    model = run_files.ModelDescription(
        spec.image_shape,
        spec.class_names,
        network,
        process,
        sampler,
        finetuning.views.label_drop_probability,
        has_feature_means=has_feature_means,
    )
    return model.with_sampler(sampler)


def _finish(workdir, data, trainer, released, model, drawn, utility, started) -> None:
    """Writes what may be released and, apart from it, what was measured on private images; prints where it lies."""
    statement = trainer.statement()
    version = run_output.write(
        workdir,
        f'tf_dpdiff: a private generator of {data.spec.name}',
        _facts(statement),
        statement,
        model,
        released,
        trainer.summaries,
        *drawn,
    )
    results = utility_lib.measure(utility, *drawn, data.train, data.held_out).fields if utility else {}
    if results:
        files.write_text(workdir / 'non_private' / 'utility.json', json.dumps(results, indent=2) + '\n')
        accuracies = {f'{classifier}/{source}': value for classifier, source, value in _accuracies(results)}
        trainer.summaries.non_private_scalars(accuracies, statement.plan.config.num_steps)
    trainer.summaries.flush()
    _print_results(workdir, version, statement, results, len(drawn[0]), time.monotonic() - started)


def _planned_budget(path, plan, data, workdir, dry_run) -> budget_lib.Budget | None:
    """Returns the budget as it would be with the run; refuses the run before its folder is begun, or goes on.

    What the run in the folder has released already goes on record first, even where the rest is then refused: it may
    have begun without the budget file, or have been killed before it was settled. A dry run writes nothing.
    """
    if not path:
        return None
    identity, run_id = checkpoints.read_identity(workdir / 'checkpoints'), 'not begun yet'
    budget = budget_file_lib.read(path)
    if identity and identity.data_fingerprint == data.train.fingerprint():
        run_id = identity.run_id
        record = _record_begun(identity, data.train)
        budget = record(budget) if dry_run else budget_file_lib.update(path, record)
    return _reserve(plan, data.train, run_id)(budget)


def _record_begun(identity, dataset) -> budget_file_lib.Change:
    """Returns the change of a budget that records what a run has released so far."""
    return lambda budget: budget.record_begun(identity.run_id, identity.ledger, **_about(dataset))


def _reserve(plan, dataset, run_id) -> budget_file_lib.Change:
    """Returns the change of a budget that reserves all that a run may release."""
    return lambda budget: budget.reserve(run_id, plan.planned_ledger(), **_about(dataset))


def _about(dataset) -> dict:
    return {
        'dataset': dataset.name,
        'data_fingerprint': dataset.fingerprint(),
        'unit': dataset.unit,
        'time': budget_file_lib.now(),
    }


def _charge(path, done: str, change: budget_file_lib.Change) -> None:
    if path:
        print(f'train: {done} in {path}: {_spent(budget_file_lib.update(path, change))}.', file=sys.stderr)


def _spent(budget: budget_lib.Budget) -> str:
    if budget.overdrawn_by():
        return f'{budget.describe_overdraft()}; no further run is let in'
    return (
        f'{len(budget.entries)} run(s) cost epsilon = {accounting.round_up(budget.epsilon())} of '
        f'{rounding.exact(budget.total_epsilon)} at delta = {rounding.exact(budget.delta)}'
    )


def _show_release(workdir: pathlib.Path, released: class_means.NoisyMeans | warm_start_lib.ChosenImages) -> None:
    if isinstance(released, class_means.NoisyMeans):
        _draw_class_means(workdir, released)
        return
    chosen = released.images
    pictures.write_png(workdir / 'chosen_public_images.png', pictures.class_grid(chosen.images_uint8, chosen.labels))
    table = command.facts_table('public images that noisy feature means chose')
    for name, origins in zip(chosen.class_names, released.origins):
        most_frequent = ', '.join(
            f'{public_name} ({count:,})' for public_name, count in origins[:_PUBLIC_CLASSES_NAMED]
        )
        table.add_row(name, f'{sum(count for _, count in origins):,}: {most_frequent}' if origins else 'none')
    table.add_row('the means', str(workdir / warm_start_lib.FEATURE_MEANS_FILE))
    rich_console.Console().print(table)


def _draw_class_means(workdir: pathlib.Path, means: class_means.NoisyMeans) -> None:
    """Writes a picture of the released means, a row a class where a class has several; black: those without images."""
    num_classes, num_means = means.counts.shape
    rows, columns = (num_classes, num_means) if num_means > 1 else (1, num_classes)
    drawn = np.where(means.counts[..., None, None, None] > 0.0, np.clip(means.images, 0.0, 1.0), 0.0)
    means_uint8 = np.round(drawn * 255.0).astype(np.uint8)
    flat = means_uint8.reshape([-1, *means_uint8.shape[2:]])
    picture = pictures.class_grid(flat, np.repeat(np.arange(rows), columns), columns=columns)
    pictures.write_png(workdir / 'noisy_class_means.png', picture)


def _facts(statement: statement_lib.PrivacyStatement) -> dict:
    """Returns what stands at the head of the report."""
    fields = statement.to_dict()
    return {
        'epsilon': statement_lib.round_up(fields['epsilon']) if fields['guarantee_claimed'] else 'none claimed',
        'delta': rounding.exact(fields['delta']),
        'protected unit': fields['unit'],
        'steps': str(fields['steps_run']),
        **({'caution': ' '.join(fields['cautions'])} if fields['cautions'] else {}),
    }


def _print_results(workdir, version, statement, results, num_samples, seconds) -> None:
    fields = statement.to_dict()
    table = command.facts_table('what came out')
    if fields['guarantee_claimed']:
        table.add_row(
            'privacy',
            f'epsilon = {statement_lib.round_up(fields["epsilon"])} at delta = {rounding.exact(fields["delta"])} for '
            f'{fields["unit"]}',
        )
    else:
        table.add_row('privacy', 'NO GUARANTEE IS CLAIMED')
    for caution in fields['cautions']:
        table.add_row('CAUTION', caution)
    for classifier, source, value in _accuracies(results):
        table.add_row(
            f'{classifier} on {source.replace("_", " ")}',
            f'{value:.1%} of {results["num_test"]:,} held-out real images ({command.NOT_TO_BE_RELEASED})',
        )
    run_output.add_files(table, workdir, version, num_samples, seconds)
    rich_console.Console().print(table)


def _accuracies(results: dict) -> list[tuple[str, str, float]]:
    return [
        (entry['classifier'], source, entry[source]['accuracy'])
        for entry in results.get('classifiers', [])
        for source in ('synthetic_images', 'real_images')
        if entry[source]
    ]


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    # Not passed on where it is not given, so that a file may bind it.
    given = {'budget_file': pathlib.Path(flags.budget_file)} if flags.budget_file else {}
    given_names = [*(f'train.{name}' for name in given), *strategy_flags.given(flags)]
    gin_config.parse(flags.gin_file, flags.gin_param, 'train', given=given_names)
    hardware = planner_flags.read(flags)
    workdir = pathlib.Path(flags.workdir).expanduser()
    strategy = strategy_flags.configured(flags.strategy)
    if flags.dry_run:
        strategies.check(strategy)
        return gin_config.call(train, workdir=workdir, dry_run=True, hardware=hardware, **given)
    replicas = strategies.start(strategy)
    with contextlib.ExitStack() as held:
        shared_work.at_first(replicas.workers, lambda: held.enter_context(run_files.training_in(flags.workdir)))
        return gin_config.call_resumable('train', train, workdir=workdir, replicas=replicas, **given)


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/train."""
    parser = command.Parser('train', __doc__)
    parser.add_gin_flags()
    parser.add_strategy_flag()
    parser.add_argument('--workdir', default='runs/latest', help='folder of the run (default: %(default)s)')
    parser.add_argument('--dry_run', action='store_true', help='print configuration, cost and statement, and exit')
    parser.add_argument(
        '--budget_file',
        metavar='FILE',
        help='budget of all runs on these data, to charge the run to (bin/account makes one)',
    )
    planner_flags.add(parser)
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
