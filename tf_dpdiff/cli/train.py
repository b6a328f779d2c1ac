"""bin/train: from private images to a private generator, its samples and what they are worth."""

import json
import pathlib
import sys
import time
from typing import Callable, List, Optional, Union

import numpy as np
from rich import console as rich_console

import gin  # pylint: disable=wrong-import-order
from tf_dpdiff import files
from tf_dpdiff.cli import budget_file as budget_file_lib
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import run_files
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.evaluation import generate
from tf_dpdiff.evaluation import report
from tf_dpdiff.evaluation import utility as utility_lib
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.serving import export
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import interruption
from tf_dpdiff.training import memory
from tf_dpdiff.training import stages
from tf_dpdiff.training import trainer as trainer_lib
from tf_dpdiff.training import views as views_lib


@gin_config.root
def train(
    *,
    workdir: pathlib.Path,
    dry_run: bool = False,
    budget_file: Optional[Union[str, pathlib.Path]] = None,
    data: datasets.PrivateData = gin.REQUIRED,
    network: unet.UNetConfig = gin.REQUIRED,
    process: process_lib.DiffusionProcess = gin.REQUIRED,
    privacy: plan_lib.DpSgdConfig = gin.REQUIRED,
    finetuning: stages.FinetuningConfig = gin.REQUIRED,
    pretraining: Optional[stages.PretrainingConfig] = None,
    warm_start: Optional[stages.WarmStartConfig] = None,
    sampler: samplers.SamplerConfig = samplers.SamplerConfig(),
    samples: generate.GenerateConfig = generate.GenerateConfig(),
    utility: Optional[utility_lib.UtilityConfig] = None,
    loop: trainer_lib.TrainerConfig = trainer_lib.TrainerConfig()
) -> int:
    """Trains, samples, exports and evaluates; resumes where the folder holds an unfinished run.

    Args:
      workdir: The run's folder.
      dry_run: Print what would be done and what it would cost, and return.
      budget_file: The budget of all runs on these data, which the run is charged to, or None.
      data: The private images, and real images held out from them.
      network: The network's shape.
      process: The diffusion process.
      privacy: The privacy budget and how it is spent.
      finetuning: The DP-SGD stage.
      pretraining: The public stage, or None.
      warm_start: The stage on noisy class means, or None.
      sampler: How images are drawn.
      samples: How many images are drawn at the end.
      utility: The classifier that tells what the samples are worth, or None. What it measures is written to
        non_private/.
      loop: Settings of the loop.

    Returns:
      The exit code.
    """
    _check_sampler(process, sampler)
    plan = plan_lib.make_plan(privacy, data.train.num_units, warm_start.release if warm_start else None)
    budget = _planned_budget(budget_file, plan, data.train, workdir)
    if dry_run:
        _print_dry_run(data, network, process, plan, pretraining, warm_start, finetuning, budget)
        return command.DONE

    started = time.monotonic()
    with interruption.StopRequest() as stop:
        trainer = trainer_lib.Trainer(workdir,
                                      data.train,
                                      network=network,
                                      process=process,
                                      plan=plan,
                                      pretraining=pretraining,
                                      warm_start=warm_start,
                                      finetuning=finetuning,
                                      config=loop,
                                      on_release=lambda means: _draw_class_means(workdir, means))
        _charge(budget_file, 'reserved', _reserve(plan, data.train, trainer.state.run_id))
        files.write_text(workdir / 'operative_config.gin', gin.operative_config_str())
        run_files.write_model(workdir, data.train, network, process, sampler)
        trainer.summaries.text('configuration', gin.markdown(gin.operative_config_str()))
        if trainer.resumed:
            print(f'train: the run in {workdir} {trainer.position()}.', file=sys.stderr)
        trainer.run(stop)
        _charge(budget_file, 'settled', lambda budget: budget.settle(trainer.state.run_id, trainer.state.ledger))
        # From here on everything is made from the released weights.
        image_sampler = export.ImageSampler(trainer.average, process, sampler)
        drawn = generate.generate(lambda labels, seeds: image_sampler.sample(labels, seeds)['images'], samples,
                                  data.train.num_classes, lambda: stop.requested)
        if drawn is None:
            raise interruption.Interrupted('stopped while sampling; training is complete and saved')
    statement = _statement(data.train, plan, trainer.state.ledger, finetuning, trainer.state.run_id)
    version = _write_released(workdir, data.train, statement, image_sampler, trainer.summaries, *drawn)
    results = utility_lib.compare(utility, *drawn, data.train, data.held_out) if utility else {}
    if results:
        files.write_text(workdir / 'non_private' / 'utility.json', json.dumps(results, indent=2) + '\n')
        trainer.summaries.non_private_scalars(results['accuracy'], plan.config.num_steps)
    trainer.summaries.flush()
    _print_results(workdir, version, statement, results, len(drawn[0]), time.monotonic() - started)
    return command.DONE


def _check_sampler(process: process_lib.DiffusionProcess, sampler: samplers.SamplerConfig) -> None:
    if process.schedule.num_timesteps < sampler.num_steps:
        raise ValueError(
            f'num_steps={sampler.num_steps} of the sampler exceeds the {process.schedule.num_timesteps} timesteps '
            'of the schedule.')


def _planned_budget(path, plan, dataset, workdir) -> Optional[budget_lib.Budget]:
    """Returns the budget as it would be with the run; refuses the run before its folder is begun, writes nothing."""
    if not path:
        return None
    identity = checkpoints.read_identity(workdir / 'checkpoints')
    return _reserve(plan, dataset, identity.run_id if identity else 'not begun yet')(budget_file_lib.read(path))


def _reserve(plan, dataset, run_id) -> Callable[[budget_lib.Budget], budget_lib.Budget]:
    """Returns the change of a budget that reserves all that a run may release."""
    return lambda budget: budget.reserve(run_id,
                                         plan.planned_ledger(),
                                         dataset=dataset.name,
                                         data_fingerprint=dataset.fingerprint(),
                                         unit=dataset.unit,
                                         time=budget_file_lib.now())


def _charge(path, done: str, change: Callable[[budget_lib.Budget], budget_lib.Budget]) -> None:
    if path:
        print(f'train: {done} in {path}: {_spent(budget_file_lib.update(path, change))}.', file=sys.stderr)


def _spent(budget: budget_lib.Budget) -> str:
    return (f'{len(budget.entries)} run(s) cost epsilon = {accounting.round_up(budget.epsilon())} of '
            f'{budget.total_epsilon:g} at delta = {budget.delta:g}')


def _statement(dataset, plan, ledger, finetuning, run_id=None) -> statement_lib.PrivacyStatement:
    return statement_lib.PrivacyStatement(unit=dataset.unit,
                                          dataset=dataset.name,
                                          plan=plan,
                                          ledger=ledger,
                                          augmentation_multiplicity=finetuning.views.augmentation_multiplicity,
                                          run_id=run_id)


def _draw_class_means(workdir: pathlib.Path, means: np.ndarray) -> None:
    """Writes a picture of the released class means, float32 [classes, height, width, channels] in [0, 1]."""
    means_uint8 = np.round(means * 255.0).astype(np.uint8)
    picture = generate.class_grid(means_uint8, np.zeros(len(means), int), columns=len(means))
    generate.write_png(workdir / 'noisy_class_means.png', picture)


def _write_released(workdir, dataset, statement, image_sampler, summaries, images, labels) -> pathlib.Path:
    """Writes the statement, the samples, the exported model and the report; returns the model's folder."""
    run_files.write_statement(workdir, statement)
    grid = generate.class_grid(images, labels)
    generate.write_npz(workdir / 'samples.npz', images, labels, dataset.class_names)
    generate.write_png(workdir / 'samples.png', grid)
    summaries.image('samples', grid, 0)
    _write_report(workdir, dataset, statement, len(images))
    return export.export_saved_model(image_sampler, workdir / 'saved_model', run_files.statement_paths(workdir))


def _print_dry_run(data, network, process, plan, pretraining, warm_start, finetuning, budget) -> None:
    model = unet.build_unet(network, data.train.image_shape, data.train.num_classes)
    trainer_lib.check_model(model, data.train.image_shape, views_lib.ViewSampler(process, finetuning.views))
    num_trained = sum(int(np.prod(v.shape)) for v in unet.select_variables(model, finetuning.trainable))
    statement = _statement(data.train, plan, plan.planned_ledger(), finetuning)
    views = plan.config.num_steps * plan.config.expected_batch_size * finetuning.views.augmentation_multiplicity
    table = command.facts_table('what would be done')
    owned = '' if data.train.owners is None else f', of {data.train.num_units:,} owners'
    table.add_row(
        'private images', f'{len(data.train):,} of {"x".join(map(str, data.train.image_shape))}, '
        f'{data.train.num_classes} classes{owned}')
    table.add_row('parameters', f'{model.count_params():,}, of which {num_trained:,} are trained privately')
    if pretraining:
        table.add_row('pre-training', f'{pretraining.num_steps:,} steps of {pretraining.batch_size} public images')
    if warm_start:
        table.add_row('warm start',
                      f'{warm_start.num_steps:,} steps of {warm_start.batch_size} images from noisy class means')
    table.add_row(
        'private steps', f'{plan.config.num_steps:,} of {plan.config.expected_batch_size:,} expected units x '
        f'{finetuning.views.augmentation_multiplicity} views = {views:,} views')
    chunk = finetuning.choose_chunk_sizes(model, plan.config.expected_batch_size)
    views_at_a_time = chunk.units * chunk.views
    gradients, activations = 4 * chunk.units * num_trained, views_at_a_time * memory.activation_bytes_per_view(model)
    table.add_row(
        'memory', f'about {_mebibytes(16 * model.count_params())} for weights, average and optimizer, '
        f'{_mebibytes(gradients)} for the gradients of {chunk.units} unit(s) and {_mebibytes(activations)} for the '
        f'activations of {views_at_a_time} view(s) at a time')
    print(gin.operative_config_str())
    if budget:
        table.add_row('budget file', f'with this run, {_spent(budget)}')
    rich_console.Console().print(table)
    print('\nThe statement that the run would end with:\n\n' + statement.to_text())


def _mebibytes(num_bytes: float) -> str:
    return f'{num_bytes / 2**20:,.0f} MiB'


def _write_report(workdir, dataset, statement, num_samples) -> None:
    fields = statement.to_dict()
    epsilon = statement_lib.round_up(fields['epsilon']) if fields['guarantee_claimed'] else 'none claimed'
    report.write_report(workdir / 'report.html',
                        title=f'tf_dpdiff: a private generator of {dataset.name}',
                        facts={
                            'epsilon': epsilon,
                            'delta': f"{fields['delta']:g}",
                            'protected unit': fields['unit'],
                            'steps': str(fields['steps_run']),
                            'samples drawn': str(num_samples),
                        },
                        grid_png=workdir / 'samples.png',
                        statement=statement.to_text(),
                        configuration=gin.operative_config_str())


def _print_results(workdir, version, statement, results, num_samples, seconds) -> None:
    fields = statement.to_dict()
    table = command.facts_table('what came out')
    if fields['guarantee_claimed']:
        table.add_row(
            'privacy',
            f"epsilon = {statement_lib.round_up(fields['epsilon'])} at delta = {fields['delta']:g} for {fields['unit']}"
        )
    else:
        table.add_row('privacy', 'NO GUARANTEE IS CLAIMED')
    if results:
        for source, value in results['accuracy'].items():
            table.add_row(f"{results['classifier']} on {source.replace('_', ' ')}",
                          f'{value:.1%} of {results["num_test"]} held-out '
                          'real images')
    table.add_row('samples', f'{num_samples:,} in {workdir / "samples.npz"}; a look: {workdir / "samples.png"}')
    table.add_row('model', str(version))
    table.add_row('statement', str(workdir / 'privacy_statement.txt'))
    table.add_row('report', str(workdir / 'report.html'))
    table.add_row('time', f'{seconds / 60.0:.1f} minutes')
    rich_console.Console().print(table)


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    gin_config.parse(flags.gin_file, flags.gin_param)
    # Not passed on where it is not given, so that a file may bind it.
    given = {'budget_file': pathlib.Path(flags.budget_file)} if flags.budget_file else {}
    if flags.dry_run:
        return gin_config.call(train, workdir=pathlib.Path(flags.workdir).expanduser(), dry_run=True, **given)
    workdir = command.prepare_workdir(flags.workdir)
    return gin_config.call_resumable('train', train, workdir=workdir, **given)


def run(argv: Optional[List[str]] = None) -> None:
    """Entry point of bin/train."""
    parser = command.Parser('train', __doc__)
    parser.add_gin_flags()
    parser.add_argument('--workdir', default='runs/latest', help='folder of the run (default: %(default)s)')
    parser.add_argument('--dry_run', action='store_true', help='print configuration, cost and statement, and exit')
    parser.add_argument('--budget_file',
                        metavar='FILE',
                        help='budget of all runs on these data, to charge the run to (bin/account makes one)')
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
