"""What a run would do, cost and promise, in words, before it does: rows of a name and a fact, for tables."""

from collections.abc import Sequence
import math

from tf_dpdiff import keras
from tf_dpdiff.data import augmentation
from tf_dpdiff.data import public as public_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import meaning
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import device_plan
from tf_dpdiff.runs import facts
from tf_dpdiff.runs import forecast as forecast_lib
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.training import memory
from tf_dpdiff.training import planner


def look_at_images(recipe: recipe_lib.Recipe, *, looks_at_held_out: bool) -> None:
    """Refuses images that are missing, of several sizes, or none, as far as their headers tell; decodes nothing."""
    if recipe.data is not None:
        recipe.data.look_at('train')
        if looks_at_held_out:
            recipe.data.look_at('held_out')
    for source in (recipe.pretraining and recipe.pretraining.dataset, recipe.warm_start and recipe.warm_start.public):
        if isinstance(source, public_lib.PublicImages):
            source.look_at()


def check_origin(build: build_lib.Build, model: keras.Model) -> tuple[tuple[str, ...], str]:
    """Returns phrases for what a private run starts from, and the error text of a missing checkpoint, or ''.

    A plan can be made before the public run. Variables of a checkpoint that is there are carried over to the model.
    """
    recipe = build.recipe
    try:
        origin = build.open_origin()
    except FileNotFoundError as error:
        assert recipe.finetuning is not None  # It names the checkpoint.
        return (f'{recipe.finetuning.init_from} ({error})',), str(error)
    if origin:
        origin.carry_over_to(model)
        return (origin.to_phrase(),), ''
    return (recipe.pretraining.spec.to_phrase(),) if recipe.pretraining else (), ''


def describe_time(recipe: recipe_lib.Recipe, speed: forecast_lib.Speed | None) -> str:
    """Returns what a private run takes on this machine, in words; speed: None where it was not measured."""
    if speed is None:
        return 'not measured: so large a network is for accelerators; give --views_per_second or --device_tflops'
    hours = forecast_lib.training_secs(recipe, speed) / 3600.0
    return f'about {hours:.2g} hours on this machine, as fast as it is now, samples included'


def in_short(
    build: build_lib.Build, model: keras.Model, told: forecast_lib.Forecast, time: str | None
) -> device_plan.Rows:
    """Returns the claim of a private run, its cost, and what the noise leaves to be learnt.

    Args:
      build: The run.
      model: Its network.
      told: Whether it can work.
      time: What it takes, in words, or None.
    """
    recipe, plan = build.recipe, build.plan
    assert plan is not None and recipe.finetuning is not None
    epsilon, config = plan.epsilon(), plan.config
    claim = 'NO GUARANTEE WOULD BE CLAIMED'
    if math.isfinite(epsilon):
        claim = rounding.claim(epsilon, config.target_delta)
        claim = f'{claim} for {build.spec.unit}, of {build.spec.num_units:,}'
    memory_needed = _describe_memory(model, _num_trained(build, model), config.expected_batch_size, recipe.finetuning)
    return [
        ('privacy', claim),
        ('protects', _describe_unit(build) if math.isfinite(epsilon) else 'nobody'),
        *([('time', time)] if time else []),
        ('memory', memory_needed),
        *told.numbers(),
        ('VERDICT' if told.is_hopeless else 'verdict', told.verdict()),
    ]


def of_private_run(
    build: build_lib.Build, model: keras.Model, starts_from: Sequence[str], hardware: planner.Hardware | None
) -> device_plan.Rows:
    """Returns what a private run would do.

    Args:
      build: The run.
      model: Its network.
      starts_from: Phrases of `check_origin`.
      hardware: The devices that the run is planned for, or None.
    """
    recipe, plan = build.recipe, build.plan
    pretraining, finetuning = recipe.pretraining, recipe.finetuning
    assert plan is not None and finetuning is not None
    num_trained = _num_trained(build, model)
    num_steps, batch_size = plan.config.num_steps, plan.config.expected_batch_size
    num_views = finetuning.views.augmentation_multiplicity
    bound = f'; at most {plan.truncation.truncated_batch_size:,} units a step' if plan.truncation else ''
    rows = [
        ('private images', _describe_images(build.spec)),
        ('parameters', f'{model.count_params():,}, of which {num_trained:,} are trained privately'),
        ('compute type', recipe.network.compute_dtype),
        *(('starts from', phrase) for phrase in starts_from),
    ]
    if pretraining:
        rows.append(('pre-training', f'{pretraining.num_steps:,} steps of {pretraining.batch_size:,} of them'))
    if recipe.teacher:
        rows.append(
            ('teacher', f'{recipe.teacher.num_rounds:,} noisy releases of all units, to choose and label samples')
        )
    if recipe.warm_start:
        rows += _warm_start_rows(recipe.warm_start)
    rows += [
        (
            'private steps',
            f'{num_steps:,} of {batch_size:,} expected units x {num_views} views = '
            f'{num_steps * batch_size * num_views:,} views{bound}',
        ),
        ('noise multiplier', f'{plan.config.noise_multiplier:.4f}'),
        ('augmentation', augmentation.Augmenter(finetuning.views.augmentation).describe()),
        ('samples', _describe_samples(recipe.sampler, recipe.samples)),
    ]
    if hardware:
        rows += device_plan.of_private_run(hardware, model, plan, pretraining, recipe.warm_start, finetuning)
    return rows


def of_public_run(build: build_lib.Build, model: keras.Model, hardware: planner.Hardware | None) -> device_plan.Rows:
    """Returns what a run on public images alone would do; arguments as of `of_private_run`."""
    recipe, pretraining = build.recipe, build.recipe.pretraining
    assert pretraining is not None
    of_classes = denoiser.class_embedding(model).count_params()
    num_views = pretraining.views.augmentation_multiplicity
    rows = [
        ('private images', 'none: a run on public images alone'),
        ('parameters', f'{model.count_params():,}, of which {of_classes:,} embed the classes'),
        ('compute type', recipe.network.compute_dtype),
        ('public images', _describe_images(build.spec)),
        ('pre-training', f'{pretraining.num_steps:,} steps of {pretraining.batch_size:,} images'),
        ('views', f'{pretraining.num_steps * pretraining.batch_size * num_views:,}'),
        ('augmentation', augmentation.Augmenter(pretraining.views.augmentation).describe()),
        ('samples', _describe_samples(recipe.sampler, recipe.samples)),
    ]
    if hardware:
        return rows + device_plan.of_public_run(hardware, model, pretraining)
    views_at_a_time = (pretraining.images_per_chunk or pretraining.batch_size) * num_views
    held = (
        f'about {_mebibytes(16 * model.count_params())} for weights, average and optimizer, and '
        f'{_mebibytes(views_at_a_time * memory.activation_bytes_per_view(model))} for the activations of '
        f'{views_at_a_time:,} views at a time'
    )
    return [*rows, ('memory', held)]


def _num_trained(build: build_lib.Build, model) -> int:
    assert build.recipe.finetuning is not None
    return forecast_lib.count_parameters(denoiser.select_variables(model, build.recipe.finetuning.trainable))


def _describe_unit(build: build_lib.Build) -> str:
    """Returns whom the claim is about, and what it says of a person with several images."""
    assert build.plan is not None
    if build.spec.has_owners:
        return f'{build.spec.unit}, with all of their images'
    epsilon = meaning.group_epsilon(build.plan.dp_event(), 2, build.plan.config.target_delta)
    of_two = f'of someone with two of them epsilon = {rounding.round_up(epsilon)}'
    if epsilon > facts.LARGEST_EPSILON_OF_GROUPS:
        of_two = 'of someone with two of them or more NOTHING USEFUL IS PROVEN'
    return f'single images; {of_two}. To protect people, name the owner of each image (bin/init: --unit=patient)'


def _warm_start_rows(warm_start) -> device_plan.Rows:
    steps = f'{warm_start.num_steps:,} steps of {warm_start.batch_size} images'
    if not warm_start.has_public_images:
        if not warm_start.matching:
            return [('warm start', f'{steps} from noisy class means')]
        made, number = warm_start.matching.num_images, warm_start.matching.num_networks
        return [
            ('warm start', f'{steps}, from {made:,} that match noisy means of features of {number} random networks')
        ]
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


def _describe_images(spec) -> str:
    # Of data with owners their number is public, and how many images they have is not.
    owned = f', of {spec.num_units:,} owners (the number of images is not to be released)' if spec.has_owners else ''
    note = f' ({spec.note})' if spec.note else ''
    prepared = f', {spec.preparation}' if spec.preparation else ''
    shape = 'x'.join(map(str, spec.image_shape))
    classes = facts.describe_classes(spec.num_classes)
    return f'{spec.num_images:,} of {shape}, {classes}{prepared}{owned}{note}'


def _mebibytes(num_bytes: float) -> str:
    return f'{num_bytes / 2**20:,.0f} MiB'
