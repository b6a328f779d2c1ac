"""What a run would do and claim, before it does: `bin/train --dry_run`."""

import gin
from rich import console as rich_console

from tf_dpdiff.cli import command
from tf_dpdiff.cli import planner_rows
from tf_dpdiff.cli import run_files
from tf_dpdiff.data import augmentation
from tf_dpdiff.data import public as public_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.training import memory
from tf_dpdiff.training import planner
from tf_dpdiff.training import trainer as trainer_lib
from tf_dpdiff.training import views as views_lib


def print_private(
    data,
    description: run_files.ModelDescription,
    plan,
    pretraining,
    warm_start,
    finetuning,
    samples,
    utility,
    spent: str | None,
    hardware: planner.Hardware | None = None,
) -> None:
    """Prints configuration, cost and statement of a private run.

    Args:
      data: The private images; what is known without decoding them, and no more.
      description: Of the model.
      plan: The privacy plan.
      pretraining: The public stage, or None.
      warm_start: The stage on what a noisy release tells of the classes, or None.
      finetuning: The DP-SGD stage.
      samples: How many images are drawn at the end.
      utility: The classifiers that would be tested on held-out images, or None.
      spent: What a budget file would hold with this run, in words, or None.
      hardware: The devices that the run is planned for, or None.

    Raises:
      ValueError: if the run would be refused, also for images of several sizes, or that are none.
      FileNotFoundError: if an image is missing; if the checkpoint that the run starts from is, after all else is
        printed, and not where the run is planned for other devices.
    """
    planner_rows.check(hardware, has_private_stage=True, has_public_stage=bool(pretraining or warm_start))
    for part in ('train', 'held_out') if utility else ('train',):
        data.look_at(part)
    _look_at_public_images(pretraining and pretraining.dataset, warm_start and warm_start.public)
    spec = data.spec
    network, process = description.network, description.process
    model = denoiser.build(network, spec.image_shape, spec.num_classes)
    _check_views((pretraining, warm_start), process, network, spec)
    trainer_lib.check_model(
        model, spec.image_shape, views_lib.make_view_sampler(process, finetuning.views, network, spec.num_classes)
    )
    if pretraining:
        trainer_lib.check_public_shape(pretraining.spec, spec)
    trainer_lib.check_warm_start(warm_start, spec, plan.config.neighboring_relation)
    origin_data, missing = _check_origin(finetuning, pretraining, network, process, model)
    public_data = tuple(dict.fromkeys(origin_data + trainer_lib.describe_public_data(None, None, warm_start)))
    num_trained = planner_rows.count_parameters(denoiser.select_variables(model, finetuning.trainable))
    num_views = finetuning.views.augmentation_multiplicity
    views = plan.config.num_steps * plan.config.expected_batch_size * num_views
    table = command.facts_table('what would be done')
    table.add_row('private images', _describe_images(spec))
    table.add_row('parameters', f'{model.count_params():,}, of which {num_trained:,} are trained privately')
    table.add_row('compute type', network.compute_dtype)
    for phrase in origin_data:
        table.add_row('starts from', phrase)
    if pretraining:
        table.add_row('pre-training', f'{pretraining.num_steps:,} steps of {pretraining.batch_size:,} of them')
    if warm_start:
        _add_rows(table, _warm_start_rows(warm_start))
    table.add_row(
        'private steps',
        f'{plan.config.num_steps:,} of {plan.config.expected_batch_size:,} expected units x '
        f'{num_views} views = {views:,} views',
    )
    table.add_row('noise multiplier', f'{plan.config.noise_multiplier:.4f}')
    table.add_row('augmentation', augmentation.Augmenter(finetuning.views.augmentation).describe())
    table.add_row('samples', _describe_samples(description.sampler, samples))
    if hardware:
        _add_rows(table, planner_rows.of_private_run(hardware, model, plan, pretraining, warm_start, finetuning))
    else:
        table.add_row('memory', _describe_memory(model, num_trained, plan.config.expected_batch_size, finetuning))
    if spent:
        table.add_row('budget file', f'with this run, {spent}')
    _print(table, trainer_lib.make_statement(spec, plan, plan.planned_ledger(), num_views, public_data))
    if missing and not hardware:
        raise FileNotFoundError(f'the run would stop at its start: {missing}')


def _look_at_public_images(*sources) -> None:
    for source in sources:
        if isinstance(source, public_lib.PublicImages):
            source.look_at()


def _check_views(public_stages, process, network, spec) -> None:
    """Checks timesteps and augmentation as each stage does when it begins."""
    for stage in filter(None, public_stages):
        views_lib.make_view_sampler(process, stage.views, network, spec.num_classes)
        stage.views.augmentation.check(spec.image_shape)


def _warm_start_rows(warm_start) -> planner_rows.Rows:
    steps = f'{warm_start.num_steps:,} steps of {warm_start.batch_size} images'
    if not warm_start.has_public_images:
        return [('warm start', f'{steps} from noisy class means')]
    public, num_epochs = warm_start.public.spec, warm_start.classifier_or_default.num_epochs
    return [
        ('public classifier', f'{num_epochs} epochs of {public.num_images:,} images'),
        (
            'warm start',
            f'{steps} that noisy feature means choose, at most {warm_start.images_per_class:,} a class, '
            f'among {public.to_phrase()}',
        ),
    ]


def _describe_samples(sampler, samples) -> str:
    candidates = f', the best of {sampler.num_candidates} candidates' if sampler.num_candidates > 1 else ''
    return (
        f'{samples.num_images:,}, {sampler.num_steps} steps of {sampler.name}{candidates}: '
        f'{samples.num_images * sampler.evaluations_per_image:,} forward passes of one image'
    )


def _describe_memory(model, num_trained: int, expected_batch_size: int, finetuning) -> str:
    chunk = finetuning.choose_chunk_sizes(model, expected_batch_size)
    views_at_a_time = chunk.units * chunk.views
    gradients, activations = 4 * chunk.units * num_trained, views_at_a_time * memory.activation_bytes_per_view(model)
    return (
        f'about {_mebibytes(16 * model.count_params())} for weights, average and optimizer, '
        f'{_mebibytes(gradients)} for the gradients of {chunk.units} unit(s) and {_mebibytes(activations)} for the '
        f'activations of {views_at_a_time} view(s) at a time'
    )


def _check_origin(finetuning, pretraining, network, process, model) -> tuple[tuple[str, ...], str]:
    """Returns what the run starts from, in phrases, and what is said of a checkpoint that is not there, or nothing: a
    plan can be made before the public run."""
    try:
        origin = trainer_lib.open_origin(finetuning, pretraining, network, process)
    except FileNotFoundError as error:
        return (f'{finetuning.init_from} ({error})',), str(error)
    if origin:
        origin.carry_over_to(model)
    return trainer_lib.describe_public_data(pretraining, origin), ''


def print_public(
    description: run_files.ModelDescription,
    pretraining,
    samples,
    statement: statement_lib.PublicStatement,
    *,
    hardware: planner.Hardware | None = None,
) -> None:
    """Prints configuration and cost of a run on public images alone.

    Args:
      description: Of the model.
      pretraining: The public stage.
      samples: How many images are drawn at the end.
      statement: What would be said of the model.
      hardware: The devices that the run is planned for, or None.
    """
    planner_rows.check(hardware, has_private_stage=False, has_public_stage=True)
    _look_at_public_images(pretraining.dataset)
    public = pretraining.spec
    model = denoiser.build(description.network, public.image_shape, public.num_classes)
    _check_views((pretraining,), description.process, description.network, public)
    table = command.facts_table('what would be done')
    table.add_row('private images', 'none: a run on public images alone')
    of_classes = denoiser.class_embedding(model).count_params()
    table.add_row('parameters', f'{model.count_params():,}, of which {of_classes:,} embed the classes')
    table.add_row('compute type', description.network.compute_dtype)
    table.add_row('public images', _describe_images(public))
    table.add_row('pre-training', f'{pretraining.num_steps:,} steps of {pretraining.batch_size:,} images')
    num_views = pretraining.views.augmentation_multiplicity
    views_at_a_time = (pretraining.images_per_chunk or pretraining.batch_size) * num_views
    table.add_row('views', f'{pretraining.num_steps * pretraining.batch_size * num_views:,}')
    table.add_row('augmentation', augmentation.Augmenter(pretraining.views.augmentation).describe())
    table.add_row('samples', _describe_samples(description.sampler, samples))
    if hardware:
        _add_rows(table, planner_rows.of_public_run(hardware, model, pretraining))
    else:
        table.add_row(
            'memory',
            f'about {_mebibytes(16 * model.count_params())} for weights, average and optimizer, and '
            f'{_mebibytes(views_at_a_time * memory.activation_bytes_per_view(model))} for the activations of '
            f'{views_at_a_time:,} views at a time',
        )
    _print(table, statement)


def _add_rows(table, rows: planner_rows.Rows) -> None:
    for row in rows:
        table.add_row(*row)


def _describe_images(spec) -> str:
    # Of data with owners their number is public, and how many images they have is not.
    owned = f', of {spec.num_units:,} owners (the number of images is not to be released)' if spec.has_owners else ''
    note = f' ({spec.note})' if spec.note else ''
    return f'{spec.num_images:,} of {"x".join(map(str, spec.image_shape))}, {spec.num_classes} classes{owned}{note}'


def _print(table, statement) -> None:
    print(gin.operative_config_str())
    rich_console.Console().print(table)
    print('\nThe statement that the run would end with:\n\n' + statement.to_text())


def _mebibytes(num_bytes: float) -> str:
    return f'{num_bytes / 2**20:,.0f} MiB'
