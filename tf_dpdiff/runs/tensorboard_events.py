"""What TensorBoard shows of a run besides what its loop measures: settings, timesteps, grids of samples. Releasable."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import transfer
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.training import finetuning
from tf_dpdiff.training import loop as loop_lib
from tf_dpdiff.training import summaries as summaries_lib
from tf_dpdiff.training import views as views_lib
from tf_dpdiff.training import warm_start

# A grid while training is a glance: at most 40 images of at most 25 steps.
_GRID_CLASSES, _GRID_COLUMNS, _GRID_STEPS = 10, 4, 25
_NUM_TIMESTEPS_DRAWN = 10_000
_EPSILON = 'privacy/epsilon'


def make_grid_drawer(model: folder.ModelDescription) -> loop_lib.DrawGrid:
    """Returns a function that draws samples of a network, one row per class; each time of the same labels and seeds."""
    num_classes = len(model.class_names)
    rows = np.repeat(np.arange(min(num_classes, _GRID_CLASSES), dtype=np.int32), _GRID_COLUMNS)
    labels = tf.constant(rows if model.labelled else np.full_like(rows, num_classes))
    seeds = tf.range(len(rows), dtype=tf.int64)
    kept: dict[str, Any] = {}  # The network that is sampled and the compiled sampler: made at the first call.

    def draw(average: keras.Model) -> np.ndarray:
        # Networks with adapters are sampled as they are released: merged, into a new network each time.
        released = transfer.merge_adapters(average, model.network)[0] if model.network.adapter_rank else average
        if not kept:
            kept.update(network=released, sample=_make_sampler(released, model))
        elif released is not kept['network']:
            kept['network'].set_weights(released.get_weights())
        with samplers.telling_of_divergence():
            images = kept['sample'](labels, seeds).numpy()
        return pictures.class_grid(images, rows, columns=_GRID_COLUMNS)

    return draw


def _make_sampler(network: keras.Model, model: folder.ModelDescription) -> Callable:
    config = model.sampler
    if config.num_steps > _GRID_STEPS:  # Ancestral sampling wants all of its steps; DDIM does with few.
        name = 'ddim' if config.name == 'ancestral' else config.name
        config = dataclasses.replace(config, name=name, num_steps=_GRID_STEPS)
    return tf.function(
        samplers.make_image_sampler(
            functools.partial(denoiser.denoise, network),
            process=model.process,
            config=config,
            image_shape=model.image_shape,
            num_classes=len(model.class_names),
        )
    )


def write_begin(
    trainer: loop_lib.Trainer,
    model: folder.ModelDescription,
    recipe: recipe_lib.Recipe,
    plan: plan_lib.DpSgdPlan | None,
    configuration: str,
) -> None:
    """Writes what is known before the first step: settings, and the timesteps that each stage will draw.

    Args:
      trainer: What is about to train the run.
      model: The run's model.
      recipe: What was chosen.
      plan: The privacy plan; None: a run on public images alone.
      configuration: As it may be released.
    """
    numbers = key_numbers(model, recipe.stages, plan)
    write_settings(trainer.summaries, configuration, numbers, trainer.state.run_id)
    write_timesteps(trainer.summaries, model.process, {name: config.views for name, config in recipe.stages.items()})


def write_settings(
    summaries: summaries_lib.Summaries, configuration: str, numbers: dict[str, summaries_lib.Number], run_id: str
) -> None:
    """Writes the configuration, as text and as what tells runs of a sweep apart.

    Args:
      summaries: Of the run.
      configuration: As it may be released.
      numbers: See `key_numbers`.
      run_id: The run's public name.
    """
    summaries.text('configuration', _to_markdown(configuration))
    metrics = (
        summaries_lib.Metric('epsilon', _EPSILON),
        summaries_lib.Metric('epsilon so far', f'{finetuning.NAME}/epsilon_spent', finetuning.NAME),
    )
    summaries.hparams(numbers, metrics, run_id)


def _to_markdown(configuration: str) -> str:
    """Returns a configuration with its comments as headings and the rest as code."""
    lines = []
    for line in configuration.splitlines():
        if not line.startswith('#'):
            lines.append(f'    {line}')
        elif not line.startswith('# ===='):
            lines.append(f'#### {line[2:]}' if line.endswith(':') else line[2:])
    return '\n'.join(lines)


def write_timesteps(
    summaries: summaries_lib.Summaries, process: process_lib.DiffusionProcess, views: dict[str, views_lib.ViewsConfig]
) -> None:
    """Writes a histogram of timesteps a stage: draws of what is configured, with a public seed, not those of training.

    Args:
      summaries: Of the run.
      process: The diffusion process.
      views: How a stage looks at its images, by the stage's name.
    """
    uniforms = tf.random.stateless_uniform([2, _NUM_TIMESTEPS_DRAWN], [0, 0], alg='philox')
    for stage, config in views.items():
        summaries.histogram(
            f'timesteps/{stage}', config.timesteps.from_uniforms(uniforms[0], uniforms[1], process.schedule).numpy()
        )


def write_epsilon(summaries: summaries_lib.Summaries, points: Sequence[curves.CurvePoint]) -> None:
    """Writes epsilon over private steps by both accountants, as the statement has it; nothing where none is claimed."""
    above = rounding.float32_not_below
    summaries.curve(_EPSILON, {point.num_steps: above(point.pld) for point in points})
    summaries.curve(f'{_EPSILON}_by_rdp', {point.num_steps: above(point.rdp) for point in points})


def key_numbers(
    model: folder.ModelDescription, of_stages: dict[str, Any], plan: plan_lib.DpSgdPlan | None
) -> dict[str, summaries_lib.Number]:
    """Returns the settings that sweeps are made over; what a run does not have is left out.

    Args:
      model: The run.
      of_stages: The configurations of its stages by name.
      plan: The privacy plan, or None.
    """
    numbers: dict[str, summaries_lib.Number] = {
        **model.network.size,
        'sampler': model.sampler.name,
        'sampler_steps': model.sampler.num_steps,
        'guidance_scale': model.sampler.guidance_scale,
    }
    if plan:
        fields = ('noise_multiplier', 'l2_norm_clip', 'target_delta', 'expected_batch_size', 'num_steps')
        numbers.update({name: getattr(plan.config, name) for name in fields})
        if plan.teacher:
            numbers['teacher_noise_multiplier'] = plan.teacher.noise_multiplier
    for name, config in of_stages.items():
        if name == finetuning.NAME:
            numbers.update(
                learning_rate=config.optimization.learning_rate,
                max_ema_decay=config.max_ema_decay,
                augmentation_multiplicity=config.views.augmentation_multiplicity,
            )
        else:
            numbers.update(
                {
                    f'{name}_steps': config.num_steps,
                    f'{name}_batch_size': config.batch_size,
                    f'{name}_learning_rate': config.optimization.learning_rate,
                }
            )
    if warm_start.NAME in of_stages:
        numbers['warm_start_noise_multiplier'] = of_stages[warm_start.NAME].release.noise_multiplier
    return numbers
