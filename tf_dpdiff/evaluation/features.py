"""The features that quality metrics compare: of a small classifier trained for the data set, or of the Inception graph.

The small classifier is trained on private images without noise: its weights are PRIVATE, and so is what is measured
with it. They are for the owner of the data, and not to be released.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import sys
import zipfile
import zlib

import numpy as np
import tensorflow as tf

from tf_dpdiff import files
from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.networks import feature_network
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.training import classifier_steps

INCEPTION = 'inception'
CLASSIFIER = 'classifier'

_DESCRIPTION, _WEIGHTS = 'classifier.json', 'classifier.npz'
_VERSION = 1  # Of network and training: a cached classifier of another version is trained anew.
_TRAINING_BATCH = 128
_LEARNING_RATE = 3e-3
_SCALING_IMAGES = 1000
_OWN_SCALE = (
    "the scale is this network's own: no values to compare with published FIDs, KIDs and Inception Scores; "
    'images that it was trained on lie a little further from held-out ones than new images would'
)

RunFn = Callable[[np.ndarray], tuple[tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """Where features come from.

    Attributes:
      source: 'classifier' (a small network trained on the private training images, cached), 'inception' (the standard
        graph of TF-GAN, from TF-Hub or its cache, TFHUB_CACHE_DIR), the folder of a SavedModel of that graph, or the
        folder with the cached classifier of another run (WORKDIR/non_private/features), so that both runs are measured
        with the same features.
      seed: Of the classifier's initial weights and the order of its images; public.
      num_steps: Training steps of the classifier, each on 128 images.
    """

    source: str = CLASSIFIER
    seed: int = 0
    num_steps: int = 500

    def __post_init__(self):
        if not self.source:
            raise ValueError("source of the features must be 'classifier', 'inception' or a folder, got ''.")
        if self.seed < 0:
            raise ValueError(f'seed of the features must be at least 0, got {self.seed}.')
        if self.num_steps < 1:
            raise ValueError(f'num_steps of the features must be at least 1, got {self.num_steps}.')


@dataclasses.dataclass(frozen=True, eq=False)
class Activations:
    """The outputs of a network for images.

    Attributes:
      pool: The features, float32 [images, features].
      logits: float32 [images, classes].
    """

    pool: np.ndarray
    logits: np.ndarray

    def __len__(self) -> int:
        return len(self.pool)


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A fixed network that turns images into features.

    Attributes:
      name: For protocols: which network.
      weights_sha256: Tells two networks of the same name apart.
      resize: In words, what is done to the images' size.
      runs: Each maps images, uint8 [batch_size, height, width, channels], to features and logits; one a device, each
        used by one thread at a time.
      batch_size: Images taken at a time. Fixed, since a network's last bits depend on the size of its batch.
      note: For protocols: what is to be kept in mind of numbers that are measured with these features, or nothing.
      workers: The processes that share the work: all of them call the extractor, with the same images.
    """

    name: str
    weights_sha256: str
    resize: str
    runs: Sequence[RunFn]
    batch_size: int
    note: str = ''
    workers: workers_lib.Workers = workers_lib.ALONE

    def __call__(self, images_uint8: np.ndarray, show_progress: bool = True) -> Activations:
        """Returns the features and logits of images; no more than a batch of them is held as floats.

        Args:
          images_uint8: uint8 [images, height, width, 1 or 3], at least one; a memory map does.
          show_progress: Whether to show a bar where it takes more than a moment.

        Returns:
          The activations, in the order of the images, at every worker.
        """

        def run(run_fn: RunFn, start: int) -> tuple[np.ndarray, ...]:
            images = np.asarray(images_uint8[start : start + self.batch_size])
            padding = [(0, self.batch_size - len(images)), (0, 0), (0, 0), (0, 0)]
            return tuple(found.numpy()[: len(images)] for found in run_fn(np.pad(images, padding)))

        starts, workers, found = range(0, len(images_uint8), self.batch_size), self.workers, []
        own = shared_work.run_ahead(self.runs, starts[workers.index :: workers.count], run)
        is_shown = show_progress and workers.is_first
        with (
            contextlib.closing(own),
            progress.bar(len(images_uint8), 'features', 'image', delay_secs=1.0, disable=not is_shown) as bar,
        ):
            for batch in shared_work.spread(workers, len(starts), own):
                found.append(batch)
                bar.update(len(batch[0]))
        return Activations(*map(np.concatenate, zip(*found)))


def load(
    config: FeaturesConfig,
    train: datasets.ImageDataset,
    cache: pathlib.Path,
    workers: workers_lib.Workers = workers_lib.ALONE,
) -> Extractor:
    """Loads the network that the configuration names; trains the small classifier where it is not cached.

    Training is the same for the same seed on the CPU of one machine, bit for bit.

    Args:
      config: Which network.
      train: The private training images, which the small classifier is trained on.
      cache: The folder that keeps the small classifier: PRIVATE, WORKDIR/non_private/features. The first worker alone
        looks into it, trains and writes.
      workers: All of them call this, and share the work of the extractor.

    Returns:
      The extractor.

    Raises:
      ValueError: if the source cannot be loaded, or is made for images of another shape; one line that says what to do.
      workers_lib.WorkersDisagreeError: if the workers have loaded different networks.
    """
    if config.source == CLASSIFIER:
        found = shared_work.at_first(workers, lambda: _own_classifier(config, train, cache)) or ({}, [])
        description = json.loads(workers.broadcast(json.dumps(found[0]).encode()))
        weights = shared_work.from_bytes(workers.broadcast(shared_work.to_bytes(found[1])))
        extractor = _small_extractor(description, weights)
    else:
        extractor = shared_work.all_or_none(workers, lambda: _load_source(config, train))
    workers.check_same(extractor.weights_sha256, 'the network that gives the features (FeaturesConfig.source)')
    return dataclasses.replace(extractor, workers=workers)


def _load_source(config: FeaturesConfig, train: datasets.ImageDataset) -> Extractor:
    if config.source == INCEPTION:
        return _inception(None)
    folder = pathlib.Path(config.source).expanduser()
    if (folder / _DESCRIPTION).is_file():
        return _classifier_of_another_run(folder, train)
    if (folder / tf.saved_model.SAVED_MODEL_FILENAME_PB).is_file():
        return _inception(folder)
    raise ValueError(
        f"source {config.source!r} of the features is neither '{CLASSIFIER}' nor '{INCEPTION}', nor a "
        f'folder with a SavedModel ({tf.saved_model.SAVED_MODEL_FILENAME_PB}) or with the cached '
        f'classifier of a run ({_DESCRIPTION}, in WORKDIR/non_private/features).'
    )


def _inception(folder: pathlib.Path | None) -> Extractor:
    # Imported here: metrics, the one module that knows TF-GAN, imports this one.
    from tf_dpdiff.evaluation import metrics

    folders = []

    def load_run() -> RunFn:
        found, run = metrics.load_inception(folder)
        folders.append(found)
        return run

    runs, digest = shared_work.on_each_device(load_run), hashlib.sha256()
    found = folders[0]
    for path in sorted(found.rglob('*')):
        if path.name == tf.saved_model.SAVED_MODEL_FILENAME_PB or path.parent.name == 'variables':
            digest.update(path.relative_to(found).as_posix().encode())
            digest.update(path.read_bytes())
    name = f'SavedModel {folder.resolve().name!r}' if folder else 'Inception graph of TF-GAN, from TF-Hub'
    return Extractor(name, digest.hexdigest(), metrics.INCEPTION_RESIZE, runs, batch_size=50)


def _classifier_of_another_run(folder: pathlib.Path, train: datasets.ImageDataset) -> Extractor:
    try:
        description = _read_description(folder)
        if description['version'] != _VERSION:
            raise ValueError('it was made by another version of tf_dpdiff')
        if tuple(description['image_shape']) != train.image_shape:
            raise ValueError(
                f'it is made for images of shape {tuple(description["image_shape"])}, not {train.image_shape}'
            )
        weights = _read_weights(folder, description)
    except _DAMAGE as error:
        raise ValueError(
            f'the classifier in {folder} cannot give features: {error}; name the folder of another run, '
            f"or '{CLASSIFIER}' to train one here."
        ) from error
    return _small_extractor(description, weights)


def _own_classifier(
    config: FeaturesConfig, train: datasets.ImageDataset, cache: pathlib.Path
) -> tuple[dict, list[np.ndarray]]:
    """Returns the description of the small classifier and its weights."""
    wanted = {
        'version': _VERSION,
        'name': train.name,
        'image_shape': list(train.image_shape),
        'num_classes': train.num_classes,
        'data_fingerprint': train.fingerprint(),
        'seed': config.seed,
        'num_steps': config.num_steps,
        'batch_size': _TRAINING_BATCH,
        'learning_rate': _LEARNING_RATE,
    }
    if (cache / _DESCRIPTION).exists():
        try:
            description = _read_description(cache)
            if {name: description.get(name) for name in wanted} == wanted:
                return description, _read_weights(cache, description)
        except _DAMAGE as error:
            print(f'The cached classifier in {cache} is damaged ({error}): it is trained anew.', file=sys.stderr)
    weights = _train(config, train).get_weights()
    description = {
        'note': 'PRIVATE: trained on private images without noise.',
        **wanted,
        'weights_sha256': _hash(weights),
    }
    with files.replacing(cache / _WEIGHTS) as temporary:
        np.savez(temporary, *weights)
    # Last: a description whose weights are missing or older is found out by their hash.
    files.write_text(cache / _DESCRIPTION, json.dumps(description, indent=2) + '\n')
    return description, weights


# What reading a file raises that was cut, overwritten or edited.
_DAMAGE = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


def _read_description(folder: pathlib.Path) -> dict:
    description = json.loads((folder / _DESCRIPTION).read_text(encoding='utf-8'))
    if not isinstance(description, dict):
        raise ValueError(f'{_DESCRIPTION} holds no description')
    return description


def _read_weights(folder: pathlib.Path, description: dict) -> list[np.ndarray]:
    with np.load(folder / _WEIGHTS) as arrays:
        weights = [arrays[name] for name in arrays.files]
    if _hash(weights) != description['weights_sha256']:
        raise ValueError(f'{_WEIGHTS} does not hold the weights that {_DESCRIPTION} names')
    return weights


def _hash(weights: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(str((weight.shape, weight.dtype.str)).encode())
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def _small_extractor(description: dict, weights: Sequence[np.ndarray]) -> Extractor:

    def load_run() -> RunFn:
        network = feature_network.build_feature_network(
            tuple(description['image_shape']), description['num_classes'], seed=0
        )
        network.set_weights(weights)
        return tf.function(network, autograph=False, reduce_retracing=True)

    name = f'tf_dpdiff small CNN, trained on {description["name"]!r}'
    runs = shared_work.on_each_device(load_run)
    return Extractor(name, description['weights_sha256'], 'none', runs, batch_size=250, note=_OWN_SCALE)


def _train(config: FeaturesConfig, train: datasets.ImageDataset) -> keras.Model:
    """Trains the small classifier; nothing is drawn from, or left in, the global random state."""
    network = feature_network.build_feature_network(train.image_shape, train.num_classes, seed=config.seed)
    generator = np.random.default_rng(config.seed)
    rows = map(np.sort, classifier_steps.rows_in_random_order(len(train), _TRAINING_BATCH, generator))
    training = classifier_steps.train(
        network,
        ((train.images_uint8[chosen], train.labels[chosen]) for chosen in rows),
        config.num_steps,
        learning_rate=_LEARNING_RATE,
        logits_of=lambda outputs: outputs[1],
    )
    with progress.bar(config.num_steps, 'classifier', 'step', delay_secs=1.0) as bar:
        for _ in training:
            bar.update()
    # Kernel distances are not blind to scale: as it is left, the features of training images have a mean square of 1.
    pool = network(train.images_uint8[np.sort(generator.permutation(len(train))[:_SCALING_IMAGES])])[0]
    mean_square = float(tf.reduce_mean(tf.square(pool)))
    if mean_square > 0.0:
        feature_network.scale_features(network, mean_square**-0.5)
    return network
