"""SavedModels for TF Serving: the averaged weights and the sampler, and nothing that training used."""

from collections.abc import Callable, Sequence
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.diffusion import candidates
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.networks import denoiser
from tf_dpdiff.serving import compatibility
from tf_dpdiff.serving import version_folders
from tf_dpdiff.serving import warmup

EXTRA = 'assets.extra'  # Where TF Serving lets other files lie beside a model.
STATEMENT_TEXT, STATEMENT_JSON = 'privacy_statement.txt', 'privacy_statement.json'
MODEL = 'model.json'
_STATEMENTS = {'json': STATEMENT_JSON, 'text': STATEMENT_TEXT}
_STEP_COUNTS, _LABELS = 'num_steps.json', 'labels.json'
_IMAGES_AT_A_TIME = 256
# What is written there, besides what the caller lays there.
EXTRA_FILES = (STATEMENT_TEXT, STATEMENT_JSON, _STEP_COUNTS, _LABELS, warmup.FILE)
_INPUTS = (
    tf.TensorSpec([None], tf.int32, name='labels'),
    tf.TensorSpec([None], tf.int64, name='seeds'),
    tf.TensorSpec([None], tf.int32, name='num_steps'),
)

CLASSIFY, LABEL_SAMPLES = 'classify', 'label_samples'

_SampleImages = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# From images, uint8 [images, height, width, channels], to the outputs of a signature by name.
Classify = Callable[[np.ndarray], dict[str, np.ndarray]]


class ImageClassifier(NamedTuple):
    """Tells classes apart, and is exported beside the sampler.

    Attributes:
      logits: Maps images, uint8 [batch, height, width, channels], to float32 [batch, num_classes], without variables.
      sample_bias: Added to the logits where the model's own samples are labelled, one a class; None: these have the
        labels that they were drawn for.
    """

    logits: Callable[[tf.Tensor], tf.Tensor]
    sample_bias: Sequence[float] | None


class ImageSampler(tf.Module):
    """Samples images from labels and seeds; what is exported.

    Labels that the network was not trained on are refused with InvalidArgumentError.

    Args:
      model: The network, with the weights to be released.
      process: What it was trained for.
      config: The sampler; fixed in the exported model.
      score_classes: Of images, where the config says that there are several candidates, see `candidates`; a tf.Module,
        which is exported too.
      step_counts: If several, images are sampled from labels, seeds and num_steps, int32 [batch], each one of these
        counts, instead of in the steps that the config says.
      labels: What the network was trained on: the classes, "no class" (their number), or both; None for both.

    Attributes:
      step_counts: See above.
      labels: See above.
      image_shape: (height, width, channels).

    Raises:
      ValueError: if a step count is named twice, or there is no score where there are several candidates.
    """

    def __init__(
        self,
        model: keras.Model,
        process: process_lib.DiffusionProcess,
        config: samplers.SamplerConfig,
        *,
        score_classes: Callable[[tf.Tensor], tf.Tensor] | None = None,
        step_counts: Sequence[int] = (),
        labels: range | None = None,
    ):
        super().__init__()
        if config.num_candidates > 1 and not score_classes:
            raise ValueError(f'num_candidates={config.num_candidates} of the sampler needs a score to choose by.')
        if len(set(step_counts)) < len(step_counts):
            raise ValueError(f'step_counts of the sampler must differ, got {tuple(step_counts)}.')
        self._variables = model.variables  # And not the model: its optimizer would be exported with it.
        self._score_classes = score_classes if config.num_candidates > 1 else None
        image_shape = self.image_shape = tuple(model.inputs[0].shape[1:])
        num_classes = denoiser.class_embedding(model).num_classes
        self.step_counts = tuple(step_counts)
        self.labels = range(num_classes + 1) if labels is None else labels
        self._with_step_counts = functools.partial(
            ImageSampler, model, process, config, score_classes=score_classes, labels=self.labels
        )

        def make(config: samplers.SamplerConfig) -> _SampleImages:
            sample_images = samplers.make_image_sampler(
                functools.partial(denoiser.denoise, model),
                process=process,
                config=config,
                image_shape=image_shape,
                num_classes=num_classes,
            )
            if self._score_classes is None:
                return sample_images
            return candidates.choose_among_candidates(sample_images, self._score_classes, config.num_candidates)

        by_count = {count: make(dataclasses.replace(config, num_steps=count)) for count in step_counts}
        sample_images = functools.partial(_sample_by_count, by_count, image_shape) if by_count else make(config)

        @tf.function(input_signature=_INPUTS[: 3 if by_count else 2])
        def sample(labels, *others):
            with tf.control_dependencies(_checks(labels, others, self.labels, num_classes)):
                labels = tf.identity(labels)
            return {'images': sample_images(labels, *others)}

        self.sample = sample

    def with_step_counts(self, step_counts: Sequence[int]) -> 'ImageSampler':
        """Returns a sampler of the same network that takes the step count of each image; see `step_counts`."""
        return self._with_step_counts(step_counts=step_counts)


def _describe(labels: range, num_classes: int) -> str:
    """Says which labels a model takes, and why no others."""
    if labels[0] == num_classes:
        return f'labels must be {num_classes}, no class (the model was trained without labels)'
    if labels[-1] == num_classes:
        return f'labels must be from 0 to {num_classes - 1}, or {num_classes} for no class'
    return (
        f'labels must be from 0 to {num_classes - 1} (not {num_classes}, no class: the model was never trained '
        'without labels)'
    )


def _checks(labels: tf.Tensor, others: Sequence[tf.Tensor], trained: range, num_classes: int) -> Sequence[tf.Operation]:
    """Returns assertions, which stop a request before the network is evaluated."""
    in_range = tf.reduce_all((labels >= trained[0]) & (labels <= trained[-1]))
    any_asked = tf.size(labels) > 0
    as_many = tf.reduce_all([tf.size(other) == tf.size(labels) for other in others])
    return [
        tf.debugging.Assert(any_asked, ['there must be at least one label.']),
        tf.debugging.Assert(in_range, [f'{_describe(trained, num_classes)}, got', labels]),
        tf.debugging.Assert(as_many, ['there must be as many seeds as labels, and as many of any other input.']),
    ]


def _sample_by_count(
    by_count: dict[int, _SampleImages], image_shape, labels: tf.Tensor, seeds: tf.Tensor, num_steps: tf.Tensor
) -> tf.Tensor:
    """Samples the images of each step count together, and puts them in the order of the request."""
    is_count = [num_steps == count for count in by_count]
    listed = ', '.join(map(str, by_count))
    known = tf.debugging.Assert(
        tf.reduce_all(tf.reduce_any(is_count, axis=0)), [f'num_steps must be one of {listed}, got', num_steps]
    )
    with tf.control_dependencies([known]):
        rows = [tf.cast(tf.where(chosen)[:, 0], tf.int32) for chosen in is_count]

    def sample(sample_images: _SampleImages, rows: tf.Tensor) -> tf.Tensor:
        # A loop over no images costs time, too.
        return tf.cond(
            tf.size(rows) > 0,
            lambda: sample_images(tf.gather(labels, rows), tf.gather(seeds, rows)),
            lambda: tf.zeros([0, *image_shape], tf.uint8),
        )

    return tf.dynamic_stitch(rows, [sample(*pair) for pair in zip(by_count.values(), rows)])


def export_saved_model(
    sampler: ImageSampler,
    directory: pathlib.Path,
    released_files: Sequence[pathlib.Path],
    *,
    classifier: ImageClassifier | None = None,
    warmup_batch_sizes: Sequence[int] = warmup.BATCH_SIZES,
    allow_incompatible: bool = False,
) -> pathlib.Path:
    """Writes a new version of a servable, which a server that watches the folder turns to.

    Its signatures: `serving_default` maps labels, int32 [batch], seeds, int64 [batch], and, if the sampler has step
    counts, num_steps, int32 [batch], to images, uint8 [batch, height, width, channels]; an image depends on its own
    inputs alone. `sample_png` maps the same to png_bytes, string [batch]. `privacy_statement` maps format, string
    [batch], each 'json' or 'text', to statement, string [batch], and `model_description` maps format, each 'json', to
    description: the names of the classes, the labels and step counts that a request may name, the shape of the images
    and the sampler. Each of these two is missing where the released files do not hold what it tells.

    With a classifier there is `classify`, which maps images, uint8 [batch, height, width, channels], to probabilities,
    float32 [batch, num_classes], and labels, int32 [batch], the likeliest class of each. Where it labels the samples of
    the run too, `label_samples` maps images that this model has drawn to the labels that they have there.

    Args:
      sampler: What to export.
      directory: The servable's folder; versions are numbered sub-folders, as TF Serving expects them.
      released_files: The privacy statement and the description of the model; laid beside it, in `assets.extra/`.
      classifier: Released with the model; None: there is none.
      warmup_batch_sizes: Of the requests that a server sends itself before it takes any, in
        `assets.extra/tf_serving_warmup_requests`; none for no such file.
      allow_incompatible: Whether it may take the place of a version whose clients it breaks.

    Returns:
      The folder of the new version.

    Raises:
      ValueError: if it breaks the clients of the newest version, and must not; the folder is left as it was.
    """
    step_counts = sampler.step_counts
    signatures = {'serving_default': sampler.sample, 'sample_png': _png_signature(sampler)}
    if classifier:
        signatures.update(_classifier_signatures(classifier, sampler.image_shape))
    statements = {path.name: path for path in released_files if path.name in _STATEMENTS.values()}
    if len(statements) == len(_STATEMENTS):
        texts = {kind: statements[name].read_text(encoding='utf-8') for kind, name in _STATEMENTS.items()}
        signatures['privacy_statement'] = _text_signature('statement', texts)
    for path in released_files:
        if path.name == MODEL:
            signatures['model_description'] = _text_signature('description', {'json': _describe_model(sampler, path)})
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.export.', dir=directory) as folder:
        temporary = pathlib.Path(folder) / 'version'
        tf.saved_model.save(sampler, str(temporary), signatures=signatures)
        extra = temporary / EXTRA
        extra.mkdir()
        for path in released_files:
            shutil.copy(path, extra / path.name)
        (extra / _LABELS).write_text(json.dumps(list(sampler.labels)) + '\n')
        if step_counts:
            (extra / _STEP_COUNTS).write_text(json.dumps(step_counts) + '\n')
        label, num_steps = sampler.labels[0], min(step_counts, default=None)
        if warmup_batch_sizes and not warmup.write(
            extra, signatures, warmup_batch_sizes, label=label, num_steps=num_steps
        ):
            print(
                f'{directory}: written without warm-up requests, since tensorflow-serving-api is not installed; a '
                "server's first answers take longer.",
                file=sys.stderr,
            )
        return _add_version(temporary, directory, allow_incompatible)


def _add_version(folder: pathlib.Path, directory: pathlib.Path, allow_incompatible: bool) -> pathlib.Path:
    """Moves a folder to the next free number."""
    while True:
        taken = version_folders.numbers(directory)
        if taken and taken[0] == version_folders.LARGEST:
            raise ValueError(f'{directory} holds the largest version there can be, {taken[0]}: export elsewhere.')
        if not allow_incompatible:  # Again, where another process has just added a version.
            _check_compatible(folder, [directory / str(number) for number in taken])
        version = directory / str(max(taken, default=0) + 1)
        try:
            os.rename(folder, version)
            return version
        except OSError as error:  # Another process has just taken the number.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _check_compatible(new: pathlib.Path, versions: Sequence[pathlib.Path]) -> None:
    """Compares a version with the newest that a server can have loaded.

    Args:
      new: Its folder.
      versions: Of those there are, the newest first.

    Raises:
      ValueError: if the clients of that version could not use the new one.
    """
    for version in filter(version_folders.is_whole, versions):
        try:
            before = version_folders.read_signature_defs(version)
        except (OSError, ValueError):
            continue  # No server could load it either.
        found = compatibility.differences(before, version_folders.read_signature_defs(new))
        if step_counts_of(new):
            found += _no_longer('num_steps', step_counts_of(version), step_counts_of(new))
        found += _no_longer('a label', _labels_of(version), _labels_of(new))
        if found:
            raise ValueError(
                f'clients of {version} could not use the new version: {"; ".join(found)}. Export it to '
                'another folder, or there all the same with bin/export --allow_incompatible.'
            )
        return


def _no_longer(what: str, before: Sequence[int], now: Sequence[int]) -> Sequence[str]:
    """Says which values a request could name and can no longer."""
    missing = [str(value) for value in before if value not in now]
    return [f'{what} is no longer {" or ".join(missing)}'] if missing else []


def _labels_of(version: pathlib.Path) -> Sequence[int]:
    """Returns the labels that an exported model takes; none where that is not known, as of older exports."""
    path = version / EXTRA / _LABELS
    return json.loads(path.read_text()) if path.exists() else ()


def _png_signature(sampler: ImageSampler) -> tf.types.experimental.GenericFunction:
    specs = [
        tf.TensorSpec(spec.shape, spec.dtype, of.name) for spec, of in zip(sampler.sample.input_signature, _INPUTS)
    ]

    # The name's end tells TensorFlow Serving's REST interface to encode bytes, which would be no JSON.
    @tf.function(input_signature=specs)
    def sample_png(*inputs):
        return {'png_bytes': tf.io.encode_png(sampler.sample(*inputs)['images'])}

    return sample_png


def _classifier_signatures(
    classifier: ImageClassifier, image_shape: tuple[int, int, int]
) -> dict[str, tf.types.experimental.GenericFunction]:
    """Returns the signatures of a classifier by name."""
    images_spec = tf.TensorSpec([None, *image_shape], tf.uint8, name='images')

    @tf.function(input_signature=[images_spec])
    def classify(images):
        probabilities = tf.nn.softmax(classifier.logits(images))
        return {'probabilities': probabilities, 'labels': tf.argmax(probabilities, axis=1, output_type=tf.int32)}

    if classifier.sample_bias is None:
        return {CLASSIFY: classify}
    bias = tf.constant(classifier.sample_bias, tf.float32)

    @tf.function(input_signature=[images_spec])
    def label_samples(images):
        return {'labels': tf.argmax(classifier.logits(images) + bias, axis=1, output_type=tf.int32)}

    return {CLASSIFY: classify, LABEL_SAMPLES: label_samples}


def _describe_model(sampler: ImageSampler, path: pathlib.Path) -> str:
    """Returns as JSON what a client must know to ask for images and to name what it gets."""
    fields = json.loads(path.read_text(encoding='utf-8'))
    told = {name: fields[name] for name in ('class_names', 'image_shape', 'sampler')}
    return json.dumps({**told, 'labels': list(sampler.labels), 'step_counts': sampler.step_counts}, indent=2) + '\n'


def _text_signature(output: str, texts: dict[str, str]) -> tf.types.experimental.GenericFunction:
    """Returns a signature from formats, string [batch], to the text of each, string [batch]."""
    kinds = ' or '.join(texts)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name='format')])
    def text(format):
        is_kind = tf.stack([format == kind for kind in texts], axis=1)
        known = tf.debugging.Assert(
            tf.reduce_all(tf.reduce_any(is_kind, axis=1)), [f'format must be {kinds}, got', format]
        )
        with tf.control_dependencies([known]):
            chosen = tf.argmax(is_kind, axis=1)
        return {output: tf.gather(tf.constant(list(texts.values())), chosen)}

    return text


def step_counts_of(version: pathlib.Path) -> tuple[int, ...]:
    """Returns the step counts that an exported model lets a request choose from; none if its count is fixed."""
    path = version / EXTRA / _STEP_COUNTS
    return tuple(json.loads(path.read_text())) if path.exists() else ()


def find_version(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder of an exported model.

    Args:
      path: A version's folder, or a servable's folder, of which the newest version is taken.

    Raises:
      FileNotFoundError: if there is no SavedModel.
    """
    candidates = [path, *(path / str(number) for number in version_folders.numbers(path))]
    found = next(filter(version_folders.is_whole, candidates), None)
    if found is None:
        raise FileNotFoundError(
            f'no SavedModel in {path}, or none that is whole; export one by bin/export, or name another folder.'
        )
    return found


def fingerprint(version: pathlib.Path) -> str:
    """Returns the SHA-256 of an exported model: its files and their names, without what was laid beside them."""
    digest = hashlib.sha256()
    for path in sorted(version.rglob('*')):
        name = path.relative_to(version)
        if path.is_file() and name.parts[0] != EXTRA:
            content = path.read_bytes()
            digest.update(f'{name.as_posix()} {len(content)}\n'.encode())
            digest.update(content)
    return digest.hexdigest()


def load_sample_fn(path: pathlib.Path, num_steps: int | None = None) -> _SampleImages:
    """Loads an exported model as a function from labels, int32 [batch], and seeds, int64 [batch], to images, uint8.

    Args:
      path: See `find_version`.
      num_steps: For a model that was exported with several step counts, one of them.

    Raises:
      FileNotFoundError: if there is no SavedModel.
    """
    signature = tf.saved_model.load(str(find_version(path))).signatures['serving_default']
    if num_steps is None:
        return lambda labels, seeds: signature(labels=labels, seeds=seeds)['images']
    return lambda labels, seeds: signature(labels=labels, seeds=seeds, num_steps=tf.fill(tf.shape(labels), num_steps))[
        'images'
    ]


def load_classifiers(version: pathlib.Path) -> dict[str, Classify]:
    """Returns what an exported model says of images: CLASSIFY and LABEL_SAMPLES, as far as it has these signatures.

    Args:
      version: The version's folder; the model is loaded at the first call of one of them.
    """
    load = functools.cache(lambda: tf.saved_model.load(str(version)).signatures)

    def call(signature: str, images_uint8: np.ndarray) -> dict[str, np.ndarray]:
        starts = range(0, len(images_uint8), _IMAGES_AT_A_TIME)
        parts = (tf.constant(images_uint8[start : start + _IMAGES_AT_A_TIME], tf.uint8) for start in starts)
        found = [load()[signature](images=part) for part in parts]
        return {name: np.concatenate([outputs[name].numpy() for outputs in found]) for name in found[0]}

    there = version_folders.read_signature_defs(version)
    return {name: functools.partial(call, name) for name in (CLASSIFY, LABEL_SAMPLES) if name in there}
