"""What every run leaves in its folder, whether it read private images or public ones alone."""

import ast
import functools
import io
import itertools
import pathlib
import re
import sys
import tokenize
from typing import Any

import gin
import numpy as np
import tensorflow as tf

from tf_dpdiff import files
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.cli import run_files
from tf_dpdiff.cli import run_report
from tf_dpdiff.cli import run_summaries
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.networks import transfer
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.sampling import draw as draw_lib
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.sampling import store
from tf_dpdiff.serving import export
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import divergence
from tf_dpdiff.training import interruption
from tf_dpdiff.training import loop
from tf_dpdiff.training import warm_start

# Rows and columns of the denoising picture: few, since each evaluation of the network is called on its own.
_DENOISING_ROWS, _DENOISING_FRAMES = 6, 10


def released_configuration() -> str:
    """Returns the configuration of the run with paths cut down to their last part: what may be sent on."""
    return cut_paths(gin.operative_config_str())


def cut_paths(configuration: str) -> str:
    """Returns a configuration in which each string with a slash or backslash is cut down to what follows the last one.

    Args:
      configuration: As gin writes it. A long string may stand in parts, one after the other.

    Example:
        >>> cut_paths("image_folder.path = '/data/ward 3/scans/'")
        "image_folder.path = '.../scans'"
    """
    lines = configuration.splitlines(keepends=True)
    strings: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    last_is_string = False
    for token in tokenize.generate_tokens(io.StringIO(configuration).readline):
        if token.type == tokenize.STRING:  # Of text: gin writes no bytes.
            value, start = ast.literal_eval(token.string), token.start
            if last_is_string:
                start, _, before = strings.pop()
                value = before + value
            strings.append((start, token.end, value))
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            last_is_string = token.type == tokenize.STRING
    for (first, begin), (last, end), value in reversed(strings):
        parts = [part for part in re.split(r'[/\\]', value) if part]
        if len(parts) > 1 or value[:1] in ('/', '\\'):
            cut = repr(f'.../{parts[-1] if parts else ""}')
            lines[first - 1 : last] = [lines[first - 1][:begin] + cut + lines[last - 1][end:]]
    return ''.join(lines)


def begin(
    workdir: pathlib.Path,
    model: run_files.ModelDescription,
    trainer: loop.StageLoop,
    of_stages: dict[str, Any],
    plan: plan_lib.DpSgdPlan | None = None,
) -> None:
    """Writes what is known before the first step, and says where a resumed run stands.

    Args:
      workdir: The run's folder.
      model: The run.
      trainer: What is about to train it.
      of_stages: The configurations of its stages by name; None: no such stage.
      plan: The privacy plan; None: a run on public images alone.
    """
    of_stages = {name: stage for name, stage in of_stages.items() if stage}
    files.write_text(workdir / 'operative_config.gin', gin.operative_config_str())
    model.write(workdir)
    numbers = run_summaries.key_numbers(model, of_stages, plan)
    run_summaries.write_settings(trainer.summaries, released_configuration(), numbers, trainer.state.run_id)
    views = {name: stage.views for name, stage in of_stages.items()}
    run_summaries.write_timesteps(trainer.summaries, model.process, views)
    if trainer.resumed:
        print(f'train: the run in {workdir} {trainer.position()}.', file=sys.stderr)


def make_image_sampler(average, model: run_files.ModelDescription, workdir: pathlib.Path) -> export.ImageSampler:
    """Returns what is released: the averaged network, its low-rank adapters merged into their layers, and a sampler.

    Args:
      average: The averaged network.
      model: The run.
      workdir: The run's folder, where the feature means are by which a sampler chooses among candidates.

    Raises:
      divergence.DivergedError: if the network is of no use.
    """
    divergence.check_released(average, model.image_shape, len(model.class_names))
    if model.network.adapter_rank:
        average, _ = transfer.merge_adapters(average, model.network)
    score = None
    if model.sampler.num_candidates > 1:
        run_id = checkpoints.read_run(workdir / 'checkpoints').run_id
        score = warm_start.read_scorer(workdir, run_id, model.image_shape)
    return export.ImageSampler(average, model.process, model.sampler, score_classes=score, labels=model.labels)


def draw(
    released,
    model: run_files.ModelDescription,
    samples: draw_lib.GenerateConfig,
    *,
    workdir: pathlib.Path,
    stop: interruption.StopRequest,
    workers: workers_lib.Workers = workers_lib.ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the samples of a run on all GPUs of all workers; see `sampling.draw.at_once`.

    Args:
      released: The averaged network, which belongs to no strategy.
      model: The run. Of one that is not labelled, all samples are of "no class".
      samples: How many.
      workdir: The run's folder.
      stop: Looked at before each round of chunks, and in the end.
      workers: All of them call this.

    Raises:
      samplers.NotFiniteError: if the network predicts numbers that are not finite.
      interruption.Interrupted: if one of the workers was asked to stop on the way.
      workers_lib.WorkerLostError: if another worker is gone or failed.
    """
    workers.check_same(repr((model, samples)), 'the settings of the samples')
    num_classes = len(model.class_names)

    def make_copy():
        network = unet.build_unet(model.network, model.image_shape, num_classes)
        network.set_weights(released.get_weights())
        return network

    networks = itertools.chain([released], iter(make_copy, None))  # The network itself does for the first device.

    def load() -> draw_lib.SampleFn:
        image_sampler = make_image_sampler(next(networks), model, workdir)
        return lambda labels, seeds: image_sampler.sample(labels, seeds)['images']

    # Where one of the workers has no memory for it, none waits for its samples.
    drawn = draw_lib.at_once(
        shared_work.all_or_none(workers, lambda: shared_work.on_each_device(load)),
        samples,
        choice=draw_lib.ClassChoice(tuple(range(num_classes)) if model.labelled else (num_classes,)),
        should_stop=lambda: stop.requested,
        workers=workers,
    )
    if drawn is None:
        raise interruption.Interrupted('stopped while sampling; training is complete and saved')
    return drawn


def _draw_denoising(
    workdir: pathlib.Path, average, model: run_files.ModelDescription, labels: np.ndarray
) -> np.ndarray:
    """Draws a few images and what they looked like on the way: denoising.png, one row an image; returns the picture.

    Args:
      workdir: The run's folder.
      average: The averaged network.
      model: The run.
      labels: int32 [images], of the run's samples: the first few with different labels are drawn, if they differ.
    """
    if model.network.adapter_rank:
        average, _ = transfer.merge_adapters(average, model.network)
    chosen = np.sort(np.unique(labels, return_index=True)[1])
    chosen = (chosen if len(chosen) > 1 else np.arange(len(labels)))[:_DENOISING_ROWS]
    path = samplers.denoising_path(
        functools.partial(unet.denoise, average),
        tf.constant(labels[chosen]),
        tf.constant(chosen, tf.int64),
        num_frames=_DENOISING_FRAMES,
        process=model.process,
        config=model.sampler,
        image_shape=model.image_shape,
        num_classes=len(model.class_names),
    )
    rows = np.tile(np.arange(len(chosen)), len(path))
    grid = pictures.class_grid(path.reshape(-1, *model.image_shape), rows, columns=len(path))
    pictures.write_png(workdir / 'denoising.png', grid)
    return grid


def write(
    workdir: pathlib.Path,
    title: str,
    facts: dict[str, str],
    statement,
    model: run_files.ModelDescription,
    average,
    summaries,
    images: np.ndarray,
    labels: np.ndarray,
) -> pathlib.Path:
    """Writes statement, samples, report and exported model.

    Args:
      workdir: The run's folder.
      title: Of the report.
      facts: Stand at the head of the report.
      statement: The privacy statement, or what is said of a public model.
      model: The run.
      average: The averaged network, which is exported.
      summaries: Of the run.
      images: The samples, uint8 [images, height, width, channels].
      labels: int32 [images]; the number of classes stands for "no class".

    Returns:
      The folder of the exported model.
    """
    run_files.write_statement(workdir, statement)
    store.write_file(workdir / 'samples.npz', images, labels, model.class_names)
    # A row a class, of no more columns than a class has samples; rows mean nothing where there are no classes.
    rows = labels if labels.max() < len(model.class_names) else np.arange(len(labels)) % 10
    grid = pictures.class_grid(images, rows, columns=min(12, int(np.bincount(rows).max())))
    pictures.write_png(workdir / 'samples.png', grid)
    summaries.image('samples', grid)
    summaries.image('denoising', _draw_denoising(workdir, average, model, labels))
    points = statement.epsilon_over_steps()
    run_summaries.write_epsilon(summaries, points)
    run_report.write(
        workdir,
        title=title,
        facts={**facts, 'samples drawn': f'{len(images):,}'},
        points=points,
        delta=statement.to_dict().get('delta'),
        configuration=released_configuration(),
    )
    image_sampler = make_image_sampler(average, model, workdir)
    return export.export_saved_model(image_sampler, workdir / 'saved_model', run_files.paths_beside_model(workdir))


def add_files(table, workdir: pathlib.Path, version: pathlib.Path, num_samples: int, seconds: float) -> None:
    """Adds to a table where everything lies, and how long it took."""
    table.add_row('samples', f'{num_samples:,} in {workdir / "samples.npz"}; a look: {workdir / "samples.png"}')
    table.add_row('model', str(version))
    table.add_row('statement', str(workdir / 'privacy_statement.txt'))
    table.add_row('report', str(workdir / 'report.html'))
    table.add_row('time', f'{seconds / 60.0:.1f} minutes')
