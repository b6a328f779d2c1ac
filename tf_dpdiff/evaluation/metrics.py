"""How near samples are to real images: FID, KID and Inception Score through TF-GAN, precision and recall.

All numbers are measured against private images without noise: they are for the owner of the data, and not to be
released.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib
from importlib import machinery
from importlib import metadata
from importlib import util
import math
import pathlib
import socket
import sys
import warnings

import numpy as np
import tensorflow as tf

from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import features as features_lib

_INCEPTION_SIDE = 299
INCEPTION_RESIZE = f'{_INCEPTION_SIDE}x{_INCEPTION_SIDE}, bilinear, half-pixel centres'
_CONNECTION_SECS = 20.0
_KID_BLOCK_SIZE = 1024
_LEAST_LOGIT = -700.0  # exp(-745) is 0 in float64.
_FEW_IMAGES = 10000  # What the authors of FID ask for at least.
_CHUNK_MEBIBYTES = 256


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """How the quality of samples is measured.

    Attributes:
      max_images: Images taken of each set, at most: as many of samples as of real ones.
      neighbors: k of precision and recall: how far the k-th nearest neighbour is says how far a set reaches.
    """

    max_images: int = 10000
    neighbors: int = 3

    def __post_init__(self):
        for name, least in (('neighbors', 1), ('max_images', self.neighbors + 1)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} of the quality metrics must be at least {least}, got {getattr(self, name)}.')


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the Frechet distance of two sets of features, FID where they are Inception's, by TF-GAN.

    It is biased upwards by a term that falls with the number of images: compare only values of equal numbers.

    Args:
      a: float [images, features].
      b: float [other images, features].

    References: Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    distance = _tfgan_eval().frechet_classifier_distance_from_activations(
        tf.constant(a, tf.float64), tf.constant(b, tf.float64)
    )
    return float(np.maximum(distance, 0.0))  # Of equal sets rounding may leave less than nothing.


def kernel_distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Returns the kernel distance of two sets of features, KID where they are Inception's, by TF-GAN.

    It is not biased, and may be below zero.

    Args:
      a: float [images, features], in random order: blocks of up to 1,024 are compared.
      b: float [other images, features], in random order.

    Returns:
      The mean over blocks and its standard error, which is nan where there is one block.

    References: Binkowski et al. 2018, arXiv:1801.01401.
    """
    value, error = _tfgan_eval().kernel_classifier_distance_and_std_from_activations(
        tf.constant(a), tf.constant(b), max_block_size=_KID_BLOCK_SIZE, dtype=tf.float64
    )
    return float(value), float(error)


def inception_score(logits: np.ndarray) -> float:
    """Returns exp(mean KL(p(class | image) || p(class))) over all images as one split, by TF-GAN.

    Args:
      logits: float [images, classes].

    Returns:
      In [1, classes]: high where images look like one class each, and like all of them together. It sees no real
      image.

    References: Salimans et al. 2016, arXiv:1606.03498.
    """
    logits = np.asarray(logits, np.float64)
    # Probabilities that vanish would make log(p(class)) infinite where no image looks like a class.
    logits = np.maximum(logits - logits.max(axis=1, keepdims=True), _LEAST_LOGIT)
    return float(_tfgan_eval().classifier_score_from_logits(tf.constant(logits)))


def precision_recall(real: np.ndarray, synthetic: np.ndarray, *, neighbors: int = 3) -> tuple[float, float]:
    """Returns improved precision and recall.

    A set reaches as far as the balls around its points, each as large as the distance to the point's k-th nearest
    neighbour in the set, itself not counted. Precision is the share of synthetic points that the real set reaches,
    recall the share of real points that the synthetic set reaches. Memory does not grow with the product of the sizes.

    Args:
      real: Features, float [images, features].
      synthetic: Features, float [other images, features]; the two shares mean the same where there are as many.
      neighbors: k, below the size of either set.

    Returns:
      Precision and recall, each in [0, 1].

    Raises:
      ValueError: if a set has no k-th neighbours.

    Example:
        >>> line = lambda *positions: np.array(positions, np.float64)[:, None]
        >>> precision_recall(line(0, 1, 2, 3), line(1.5, 2.5, 8, 9), neighbors=1)
        (0.5, 0.75)

    References: Kynkaanniemi et al. 2019, arXiv:1904.06991, equations 1 and 2.
    """
    # Imported here: scikit-learn takes a second that a dry run need not wait for.
    from sklearn import metrics as sklearn_metrics
    from sklearn import neighbors as sklearn_neighbors

    real, synthetic = np.asarray(real, np.float64), np.asarray(synthetic, np.float64)
    if min(len(real), len(synthetic)) <= neighbors:
        raise ValueError(
            f'precision and recall with {neighbors} neighbours need more than {neighbors} images in each '
            f'set, got {len(real)} real and {len(synthetic)} synthetic ones.'
        )
    # Distances between chunks are taken as |x|^2 - 2xy + |y|^2, which leaves this much where two points are the same.
    rounding = 1e-7 * max(np.linalg.norm(points, axis=1).max() for points in (real, synthetic))

    def share_reached(points, centres):
        index = sklearn_neighbors.NearestNeighbors(n_neighbors=neighbors, algorithm='brute').fit(centres)
        radii = index.kneighbors()[0][:, -1] + rounding
        chunks = sklearn_metrics.pairwise_distances_chunked(
            points,
            centres,
            reduce_func=lambda distances, start: np.any(distances <= radii, axis=1),
            working_memory=_CHUNK_MEBIBYTES,
        )
        return float(np.mean(np.concatenate(list(chunks))))

    return share_reached(synthetic, real), share_reached(real, synthetic)


def too_few(config: QualityConfig, *, synthetic: int, training: int, held_out: int) -> str:
    """Returns a sentence where so many images are too few to be measured, or nothing."""
    if min(config.max_images, synthetic, training, held_out) > config.neighbors:
        return ''
    return (
        f'quality metrics with neighbors={config.neighbors} need at least {config.neighbors + 1} images of each '
        f'kind, got {synthetic} synthetic, {training} training, {held_out} held-out ones'
    )


def measure(
    config: QualityConfig,
    extractor: features_lib.Extractor,
    *,
    synthetic: np.ndarray,
    train: datasets.ImageDataset,
    held_out: datasets.ImageDataset,
) -> dict | None:
    """Measures samples against held-out real images, beside a floor and a ceiling of each number.

    Of each set the same number of images is taken, by a fixed draw: numbers of one table are comparable, and real
    training images show what the best generator would reach. Not to be released.

    Args:
      config: How.
      extractor: From `features.load`; all of its workers call this.
      synthetic: Samples, uint8 [images, height, width, channels].
      train: The private training images.
      held_out: Real images never trained on: the reference.

    Returns:
      JSON-able: `protocol`, how it was measured, and `rows`, each with `images`, `fid`, `kid`, `kid_std` (the standard
      error), `inception_score`, `precision` and `recall`; None where a number is not defined. At the other workers than
      the first, which only share the work of the features, None.

    Raises:
      ValueError: if a set holds too few images.
    """
    sizes = {'synthetic': len(synthetic), 'training': len(train), 'held-out': len(held_out)}
    count = min(config.max_images, *sizes.values())
    reason = too_few(config, synthetic=len(synthetic), training=len(train), held_out=len(held_out))
    if reason:
        raise ValueError(f'{reason}.')

    def activations(images_uint8):
        # Kernel distances want a random order.
        return extractor(images_uint8[np.random.default_rng(0).permutation(len(images_uint8))[:count]])

    noise = np.random.default_rng(0).integers(0, 256, [count, *train.image_shape], np.uint8)
    reference = activations(held_out.images_uint8)
    compared = (('synthetic', synthetic), ('real training images', train.images_uint8), ('uniform noise', noise))
    found = [(name, activations(images)) for name, images in compared]
    if not extractor.workers.is_first:
        return None
    with progress.working('quality', 'computing FID, KID, Inception Score, precision and recall'):
        rows = [_row(config, name, reference, of_images) for name, of_images in found]
    return {'protocol': _protocol(config, extractor, sizes, reference, held_out), 'rows': rows}


def protocol_line(result: dict) -> str:
    """Returns the protocol of `measure` as one line."""
    protocol = result['protocol']
    return (
        f'features: {protocol["features"]} ({protocol["feature_dimension"]}-d, weights sha256 '
        f'{protocol["weights_sha256"][:16]}..., resize: {protocol["resize"]}); {protocol["num_synthetic"]:,} images '
        f'a row against {protocol["num_reference"]:,} of {protocol["reference"]!r}; KID in blocks of up to '
        f'{protocol["kid_block_size"]:,}; Inception Score of one split; precision and recall with '
        f'{protocol["neighbors"]} neighbours; TF-GAN {protocol["tfgan_version"]}'
        + ''.join(f'; {note}' for note in protocol['notes'])
        + '.'
    )


def _row(
    config: QualityConfig, name: str, reference: features_lib.Activations, compared: features_lib.Activations
) -> dict:
    kid, kid_error = kernel_distance(reference.pool, compared.pool)
    precision, recall = precision_recall(reference.pool, compared.pool, neighbors=config.neighbors)
    numbers = {
        'fid': frechet_distance(reference.pool, compared.pool),
        'kid': kid,
        'kid_std': kid_error,
        'inception_score': inception_score(compared.logits),
        'precision': precision,
        'recall': recall,
    }
    # JSON knows no nan.
    return {'images': name, **{key: value if math.isfinite(value) else None for key, value in numbers.items()}}


def _protocol(
    config: QualityConfig,
    extractor: features_lib.Extractor,
    sizes: dict,
    reference: features_lib.Activations,
    held_out: datasets.ImageDataset,
) -> dict:
    count, dimension = reference.pool.shape
    return {
        'features': extractor.name,
        'weights_sha256': extractor.weights_sha256,
        'resize': extractor.resize,
        'feature_dimension': dimension,
        'reference': held_out.name,
        'num_synthetic': count,
        'num_reference': count,
        'available': sizes,
        'neighbors': config.neighbors,
        'kid_block_size': _KID_BLOCK_SIZE,
        'inception_score_splits': 1,
        'notes': _notes(extractor, count, dimension, sizes),
        'tfgan_version': metadata.version('tensorflow-gan'),
    }


def _notes(extractor: features_lib.Extractor, count: int, dimension: int, sizes: dict) -> list[str]:
    notes = [extractor.note] if extractor.note else []
    if max(sizes.values()) > count:
        available = ', '.join(f'{size:,} {name}' for name, size in sizes.items())
        notes.append(f'of {available} images, {count:,} of each are drawn')
    if count <= dimension:
        notes.append(f'no more images than features ({dimension:,}): covariances are singular, FID is far too high')
    if count < _FEW_IMAGES:
        notes.append(f'FID grows as images become fewer: compare it with FIDs of {count:,} images only')
    return notes


def load_inception(folder: pathlib.Path | None) -> tuple[pathlib.Path, Callable]:
    """Loads TF-GAN's Inception graph.

    Args:
      folder: Of a SavedModel with the outputs `logits` and `pool_3`; None for the one of TF-Hub, which is looked for
        in TFHUB_CACHE_DIR before it is downloaded.

    Returns:
      The folder of the SavedModel, and a function from images, uint8 [batch, height, width, 1 or 3], to features,
      float32 [batch, features], and logits, float32 [batch, classes].

    Raises:
      ValueError: if it cannot be had or is another graph.
    """
    evaluation = _tfgan_eval()
    source = evaluation.INCEPTION_TFHUB if folder is None else str(folder)
    fields = [evaluation.INCEPTION_FINAL_POOL, evaluation.INCEPTION_OUTPUT]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECTION_SECS)  # TF-Hub sets none: where packets vanish it would wait forever.
    try:
        with progress.working('features', f'looking for the Inception graph, {source}'):
            found = evaluation.inception_metrics.tfhub.resolve(source)
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f'the Inception graph cannot be had from {source} ({error}): unpack it in a folder and give '
            'that as FeaturesConfig.source, set TFHUB_CACHE_DIR to a cache that holds it, or use the '
            "source 'classifier'."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    classifier_fn = evaluation.classifier_fn_from_tfhub(found, fields)

    def run(images_uint8):
        images_pm1 = tf.cast(images_uint8, tf.float32) / 127.5 - 1.0
        if images_pm1.shape[-1] == 1:
            images_pm1 = tf.image.grayscale_to_rgb(images_pm1)
        resized = tf.image.resize(images_pm1, [_INCEPTION_SIDE, _INCEPTION_SIDE], method='bilinear')
        outputs = evaluation.run_classifier_fn(resized, classifier_fn, dtypes={name: tf.float32 for name in fields})
        return tuple(outputs[name] for name in fields)

    run = tf.function(run, autograph=False)  # Traced once: TF-GAN loads the graph whenever it is called.
    try:
        run(np.zeros([1, 8, 8, 3], np.uint8))
    except (OSError, TypeError, KeyError, ValueError, AttributeError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f'the SavedModel in {found} is not the Inception graph of TF-GAN, which maps images '
            f'[batch, {_INCEPTION_SIDE}, {_INCEPTION_SIDE}, 3] to {" and ".join(fields)}: {reason}.'
        ) from error
    return pathlib.Path(found), run


@functools.cache
def _tfgan_eval():
    """Imports TF-GAN's metrics, late: they take seconds that a dry run need not wait for.

    The packages above them are put in place without running them: they import Estimator, which TensorFlow has given up.
    """
    path = None
    for name in ('tensorflow_gan', 'tensorflow_gan.python'):
        spec = machinery.PathFinder.find_spec(name, path)
        if spec is None:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
        path = spec.submodule_search_locations
        sys.modules.setdefault(name, util.module_from_spec(spec))
    with warnings.catch_warnings():
        # Of TF-Hub, under it: it warns of pkg_resources, which the pinned setuptools still has.
        warnings.simplefilter('ignore')
        return importlib.import_module('tensorflow_gan.python.eval')
