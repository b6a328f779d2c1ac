"""What a run releases at its end: its model with a sampler, samples of it, and what is written beside them.

It stays in the folder of the run, beside what is private. `handover` puts it together for others.
"""

import ast
from collections.abc import Sequence
import functools
import io
import itertools
import pathlib
import re
import tokenize

import numpy as np
import tensorflow as tf

from tf_dpdiff import workers as workers_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import transfer
from tf_dpdiff.privacy import class_means
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import report
from tf_dpdiff.runs import tensorboard_events
from tf_dpdiff.sampling import draw as draw_lib
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.sampling import store
from tf_dpdiff.serving import export
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import divergence
from tf_dpdiff.training import interruption
from tf_dpdiff.training import teacher
from tf_dpdiff.training import warm_start

# Rows and columns of the denoising picture: few, since each evaluation of the network is called on its own.
_DENOISING_ROWS, _DENOISING_FRAMES = 6, 10


def cut_paths(configuration: str) -> str:
    """Returns a configuration in which each string with a slash or backslash is cut down to what follows the last one.

    Args:
      configuration: As gin writes it. A long string may stand in parts, one after the other.

    Example:
        >>> cut_paths("image_folder.path = '/data/ward 3/scans/'")
        "image_folder.path = '.../scans'"
    """
    lines = configuration.splitlines(keepends=True)
    for (first, begin), (last, end), value in reversed(_strings(configuration)):
        parts = [part for part in re.split(r'[/\\]', value) if part]
        if len(parts) > 1 or value[:1] in ('/', '\\'):
            cut = repr(f'.../{parts[-1] if parts else ""}')
            lines[first - 1 : last] = [lines[first - 1][:begin] + cut + lines[last - 1][end:]]
    return ''.join(lines)


def absolute_paths(configuration: str) -> list[str]:
    """Returns the strings of a configuration that are absolute paths, here or on another kind of machine.

    Example:
        >>> absolute_paths("a.path = '/data/ward 3/scans/'\\nb.name = 'digits'")
        ['/data/ward 3/scans']
    """
    values = [value for _, _, value in _strings(configuration)]
    return [value.rstrip('/\\') for value in values if re.match(r'/.|[A-Za-z]:[/\\].|\\\\', value)]


def _strings(configuration: str) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    """Returns the strings of a configuration: where each begins and ends (line, column), and its value."""
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
    return strings


def make_image_sampler(average, model: folder.ModelDescription, workdir: pathlib.Path) -> export.ImageSampler:
    """Returns the model that is released: the averaged network, its low-rank adapters merged, and a sampler.

    Args:
      average: The averaged network.
      model: The run.
      workdir: The run's folder, where that is by which a sampler chooses among candidates.

    Raises:
      divergence.DivergedError: if the network is of no use.
    """
    divergence.check_released(average, model.image_shape, len(model.class_names))
    if model.network.adapter_rank:
        average, _ = transfer.merge_adapters(average, model.network)
    score = None
    if model.sampler.num_candidates > 1:
        read_scorer = teacher.read_scorer if model.has_teacher else warm_start.read_scorer
        score = read_scorer(workdir, _run_id(workdir), model.image_shape)
    return export.ImageSampler(average, model.process, model.sampler, score_classes=score, labels=model.labels)


def read_labeller(model: folder.ModelDescription, workdir: pathlib.Path) -> teacher.Labeller | None:
    """Returns what labels the samples of a run anew; None where they have the labels that they were drawn for."""
    if model.label_bias is None:
        return None
    return teacher.read_labeller(workdir, _run_id(workdir), model.image_shape, model.label_bias)


def read_classifier(model: folder.ModelDescription, workdir: pathlib.Path) -> export.ImageClassifier | None:
    """Returns the teacher of a run as it is exported; None where the run has none."""
    if not model.has_teacher:
        return None
    scorer = teacher.read_scorer(workdir, _run_id(workdir), model.image_shape)
    return export.ImageClassifier(scorer, model.label_bias)


def _run_id(workdir: pathlib.Path) -> str:
    run = checkpoints.read_run(workdir / checkpoints.FOLDER)
    assert run is not None
    return run.run_id


def choose_labels(
    model: folder.ModelDescription, workdir: pathlib.Path, images: np.ndarray, asked: np.ndarray, *, how: str
) -> tuple[folder.ModelDescription, np.ndarray, str]:
    """Lets the teacher of a run label its samples; see `teacher.choose_labels`.

    Args:
      model: The run.
      workdir: The run's folder.
      images: uint8 [images, height, width, channels], its samples.
      asked: int32 [images], the labels that they were drawn for.
      how: 'teacher', or 'auto'.

    Returns:
      The run with what was chosen, the labels, and a sentence on what was chosen and why.
    """
    scorer = teacher.read_scorer(workdir, _run_id(workdir), model.image_shape)
    chosen = teacher.choose_labels(scorer, images, asked, how=how)
    return model._replace(label_bias=chosen.bias), chosen.labels, f'samples: {chosen.found}'


def draw(
    released,
    model: folder.ModelDescription,
    samples: draw_lib.GenerateConfig,
    *,
    workdir: pathlib.Path,
    stop: interruption.StopRequest,
    workers: workers_lib.Workers = workers_lib.ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the samples of a run on all GPUs of all workers; see `draw.at_once`.

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
        network = denoiser.build(model.network, model.image_shape, num_classes)
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


def draw_released(workdir: pathlib.Path, released: warm_start.Released, class_names: Sequence[str]) -> None:
    """Draws what a warm start has released, chosen by it, or made to match it, one row per class.

    Images that were made are written too, in the form of samples.
    """
    if isinstance(released, class_means.NoisyMeans):
        _draw_class_means(workdir, released, class_names)
        return
    if isinstance(released, warm_start.ChosenImages):
        images, name = released.images, folder.CHOSEN_IMAGES_PICTURE
    else:
        images, name = released, folder.MATCHED_IMAGES_PICTURE
        store.write_file(workdir / folder.MATCHED_IMAGES, images.images_uint8, images.labels, class_names)
    picture = pictures.class_grid(images.images_uint8, images.labels, names=class_names)
    pictures.write_png(workdir / name, picture)


def _draw_class_means(workdir: pathlib.Path, means: class_means.NoisyMeans, class_names: Sequence[str]) -> None:
    """Draws released means, one row per class where a class has several; black: those without images."""
    num_classes, num_means = means.counts.shape
    rows, columns = (num_classes, num_means) if num_means > 1 else (1, num_classes)
    drawn = np.where(means.counts[..., None, None, None] > 0.0, np.clip(means.images, 0.0, 1.0), 0.0)
    means_uint8 = np.round(drawn * 255.0).astype(np.uint8)
    flat = means_uint8.reshape([-1, *means_uint8.shape[2:]])
    names = class_names if num_means > 1 else ()
    picture = pictures.class_grid(flat, np.repeat(np.arange(rows), columns), names=names, columns=columns)
    pictures.write_png(workdir / folder.CLASS_MEANS_PICTURE, picture)


def _draw_denoising(workdir: pathlib.Path, average, model: folder.ModelDescription, labels: np.ndarray) -> np.ndarray:
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
        functools.partial(denoiser.denoise, average),
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
    pictures.write_png(workdir / folder.DENOISING_PICTURE, grid)
    return grid


def write_samples(
    directory: pathlib.Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    """Writes samples, and a look at them.

    Args:
      directory: Where to.
      images: uint8 [images, height, width, channels].
      labels: int32 [images]; the number of classes stands for "no class".
      class_names: One a class.

    Returns:
      The picture, uint8 [height, width, channels].
    """
    store.write_file(directory / folder.SAMPLES, images, labels, class_names)
    # One row per class, of no more columns than a class has samples; rows mean nothing where there are no classes.
    rows, names = (labels, class_names) if labels.max() < len(class_names) else (np.arange(len(labels)) % 10, ())
    grid = pictures.class_grid(images, rows, names=names, columns=min(12, int(np.bincount(rows).max())))
    pictures.write_png(directory / folder.SAMPLES_PICTURE, grid)
    return grid


def write(
    workdir: pathlib.Path,
    title: str,
    facts: dict[str, str],
    statement,
    model: folder.ModelDescription,
    average,
    summaries,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    configuration: str,
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
      configuration: The run's configuration, without the paths of this machine.

    Returns:
      The folder of the exported model.
    """
    folder.write_statement(workdir, statement)
    grid = write_samples(workdir, images, labels, model.class_names)
    summaries.image('samples', grid)
    summaries.image('denoising', _draw_denoising(workdir, average, model, labels))
    points = statement.epsilon_over_steps()
    tensorboard_events.write_epsilon(summaries, points)
    report.write(
        workdir,
        title=title,
        facts={**facts, 'samples drawn': f'{len(images):,}'},
        points=points,
        delta=statement.to_dict().get('delta'),
        configuration=configuration,
    )
    image_sampler = make_image_sampler(average, model, workdir)
    return export.export_saved_model(
        image_sampler,
        workdir / folder.SAVED_MODEL,
        folder.paths_beside_model(workdir),
        classifier=read_classifier(model, workdir),
    )
