"""The stage that teaches a private classifier, and what that classifier says of images."""

from collections.abc import Sequence
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.data import procedural
from tf_dpdiff.networks import scattering
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import teacher as teacher_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import public_features
from tf_dpdiff.training import released_files
from tf_dpdiff.training import stage as stage_lib

NAME = 'teacher'
FILE = 'teacher.npz'
_NUM_REFERENCE_IMAGES = 1024
# Beside the spread of a typical feature over the reference images: there are some in which these hardly vary.
_LEAST_SPREAD = 0.1
_BALANCING_STEPS = 1000
# Cohen's kappa of two labellings: 0 by chance, 1 where they agree. What a classifier gains that is trained with the
# labels of the teacher: 18 and 9 points for blood cells at 0.0 and 37 at 0.2; for clothes -1 at 0.4, in a run without
# matched images, and 5 at 0.65 in one with them.
_SMALLEST_KAPPA = 0.7
_LARGEST = 5.0  # A standardized feature is cut there: private images may lie far from the reference.


class TeacherFeatures(tf.Module):
    """Scattering features, each on the scale on which it varies among images that are drawn by a procedure.

    They depend on their own image and on public things alone, and need no public images at hand.

    Args:
      image_shape: (height, width, channels).
      mean: float [features], of the scattering features of the reference images.
      spread: float [features], > 0, their standard deviations.
    """

    def __init__(self, image_shape: tuple[int, int, int], mean: np.ndarray, spread: np.ndarray):
        super().__init__()
        self._scattering = scattering.Scattering(image_shape)
        if not mean.shape == spread.shape == (self._scattering.num_features,):
            raise ValueError(f'there are {self._scattering.num_features} features of {image_shape}, got {mean.shape}.')
        self._mean, self._spread = np.asarray(mean, np.float32), np.asarray(spread, np.float32)

    def compute(self, images_uint8: tf.Tensor) -> tf.Tensor:
        """Returns the features, float32 [images, features], of images, uint8 [images, height, width, channels]."""
        features = (self._scattering(images_uint8) - self._mean) / self._spread
        return tf.clip_by_value(features, -_LARGEST, _LARGEST)

    def __call__(self, images_uint8: np.ndarray) -> np.ndarray:
        """Returns the features of any number of images, float32 [images, features]: PRIVATE where the images are.

        All batches have one size, the last one padded: of another size an image's might be rounded in another way.
        """
        return public_features.in_batches(self.compute, images_uint8, len(self._mean))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that they consist of, by name."""
        return {'mean': self._mean, 'spread': self._spread}


def make_features(image_shape: tuple[int, int, int]) -> TeacherFeatures:
    """Returns the features of images of a shape; takes seconds."""
    height, width, channels = image_shape
    drawn = procedural.random_shapes(
        num_images=_NUM_REFERENCE_IMAGES, image_size=(height, width), channels=channels, num_classes=1
    )
    transform = scattering.Scattering(image_shape)
    features = public_features.in_batches(transform, drawn.images_uint8, transform.num_features).astype(np.float64)
    spread = np.std(features, axis=0)
    spread = np.hypot(spread, _LEAST_SPREAD * np.median(spread))
    return TeacherFeatures(image_shape, np.mean(features, axis=0), spread)


class TeacherScorer(tf.Module):
    """Scores images by what a released teacher takes them for; a ClassScorer's place in a sampler.

    Args:
      features: Of images.
      teacher: As released; nothing else that is known here depends on private images.

    Attributes:
      num_classes: That it tells apart.
    """

    def __init__(self, features: TeacherFeatures, teacher: teacher_lib.Teacher):
        super().__init__()
        self._features = features
        self._center = teacher.center.astype(np.float32)
        self._kernel = teacher.weights[:, :-1].T.astype(np.float32) * np.sqrt(1.0 - teacher_lib.INTERCEPT**2)
        self._bias = teacher.weights[:, -1].astype(np.float32) * teacher_lib.INTERCEPT
        self.num_classes = len(teacher.weights)

    def __call__(self, images_uint8: tf.Tensor) -> tf.Tensor:
        """Returns the logits of images, float32 [images, num_classes].

        Args:
          images_uint8: uint8 [images, height, width, channels].
        """
        directions = tf.math.l2_normalize(self._features.compute(images_uint8), axis=-1)
        inputs = tf.math.l2_normalize(directions - self._center, axis=-1)
        return inputs @ tf.constant(self._kernel, tf.float32) + self._bias


def make_stage(
    config: teacher_lib.TeacherConfig,
    plan: plan_lib.DpSgdPlan,
    private: datasets.ImageDataset,
    state: checkpoints.RunState,
    *,
    workdir: pathlib.Path,
) -> stage_lib.Stage:
    """Returns the stage that makes the release as it begins, where the run has not made it yet; it has no steps.

    Args:
      config: The release.
      plan: The privacy plan, which the release is part of.
      private: The private images.
      state: Where the run stands; its ledger holds the release in the end.
      workdir: The run's folder.
    """

    def begin(save: stage_lib.Save) -> None:
        path = workdir / FILE
        if _read(path, state.run_id, private.image_shape, f', and holds a release: {released_files.CURE}') is None:
            what = f'the teacher of this run is not in {path}'
            released_files.check_not_released(config.mechanism, state, what)
            features = make_features(private.image_shape)
            seen = features(private.images_uint8)
            with progress.working(NAME, 'learning to tell the classes apart'):
                teacher = config.release(seen, num_units=plan.num_units, **released_files.given(plan, private, state))
            arrays: dict[str, Any] = {**teacher._asdict(), **features.to_arrays(), 'run_id': state.run_id}
            with released_files.replacing(path) as temporary:
                np.savez(temporary, **arrays)
        released_files.record_once(plan, config, state, save)

    return stage_lib.Stage(NAME, 0, None, begin, run_step=lambda unused_step: {})


def read_scorer(workdir: pathlib.Path, run_id: str, image_shape: tuple[int, int, int]) -> TeacherScorer:
    """Returns what the teacher of a run says of images.

    Args:
      workdir: The run's folder.
      run_id: Of the run: what another one released is not covered by this one's statement.
      image_shape: (height, width, channels).

    Raises:
      FileNotFoundError: if the run has released no teacher.
      ValueError: if the file is not as it was written.
    """
    path = workdir / FILE
    scorer = _read(path, run_id, image_shape, ': put it back from a copy.')
    if scorer is None:
        raise FileNotFoundError(
            f'{path}, the teacher of the run, is missing or of another run: put it back from a copy.'
        )
    return scorer


class Labeller:
    """Labels images by the teacher of a run.

    Args:
      scorer: The teacher.
      bias: Added to its logits, one a class; see `balance`.
    """

    def __init__(self, scorer: TeacherScorer, bias: Sequence[float]):
        self._scorer, self._bias = scorer, np.asarray(bias, np.float32)

    def logits(self, images_uint8: np.ndarray) -> np.ndarray:
        """Returns the logits of images, uint8 [images, height, width, channels], as float32 [images, num_classes]."""
        return public_features.in_batches(self._scorer, images_uint8, self._scorer.num_classes, delay_secs=math.inf)

    def __call__(self, images_uint8: np.ndarray) -> np.ndarray:
        """Returns the labels of images, int32 [images]."""
        return np.argmax(self.logits(images_uint8) + self._bias, axis=1).astype(np.int32)


def read_labeller(
    workdir: pathlib.Path, run_id: str, image_shape: tuple[int, int, int], bias: Sequence[float]
) -> Labeller:
    """Returns what labels images by the teacher of a run.

    Args, Raises: as of `read_scorer` and `Labeller`.
    """
    return Labeller(read_scorer(workdir, run_id, image_shape), bias)


class Labels(NamedTuple):
    """Labels of images that a run has made.

    Attributes:
      labels: int32 [images].
      bias: Added to the teacher's logits for them, one a class; None: they are not the teacher's.
      found: A sentence on what was chosen and why.
    """

    labels: np.ndarray
    bias: tuple[float, ...] | None
    found: str


def choose_labels(scorer: TeacherScorer, images_uint8: np.ndarray, asked: np.ndarray, *, how: str) -> Labels:
    """Lets a teacher label images that a run has made: each class as often as it was asked for.

    Post-processing: the images and the teacher have been released.

    Args:
      scorer: The teacher.
      images_uint8: uint8 [images, height, width, channels].
      asked: int32 [images], the labels that they were made for.
      how: 'teacher', or 'auto': only where it often sees another one than they were made for.
    """
    from sklearn import metrics

    logits = Labeller(scorer, [0.0] * scorer.num_classes).logits(images_uint8)
    bias = balance(logits, np.bincount(asked, minlength=logits.shape[1])).astype(np.float32)
    told = np.argmax(logits + bias, axis=1).astype(np.int32)
    found = f'the teacher takes {np.mean(asked == told):.0%} of them for what they were made for'
    if how == 'teacher' or metrics.cohen_kappa_score(asked, told) < _SMALLEST_KAPPA:
        return Labels(told, tuple(map(float, bias)), f'{found}, and labels them anew')
    return Labels(asked, None, f'{found}, which is enough: they keep these labels')


def balance(logits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns what to add to logits so that each class is the likeliest as often as it should be, nearly.

    Samples have a texture of their own, by which a teacher of real images takes too many of them for one class.

    Args:
      logits: float [images, num_classes].
      counts: How often each class should be, [num_classes]; they add up to the number of images.

    Returns:
      float64 [num_classes], of mean 0.
    """
    wanted = np.asarray(counts) / len(logits)
    bias, step = np.zeros(len(wanted)), 2.0 * np.std(logits)
    for number in range(_BALANCING_STEPS):
        found = np.bincount(np.argmax(logits + bias, axis=1), minlength=len(wanted)) / len(logits)
        bias -= step * (1.0 - number / _BALANCING_STEPS) * (found - wanted)
    return bias - np.mean(bias)


def _read(path: pathlib.Path, run_id: str, image_shape: tuple[int, int, int], then: str) -> TeacherScorer | None:
    """Returns the scorer in a file; None where there is none of this run."""
    if not path.exists():
        return None
    with released_files.telling_of_damage(path, then), np.load(path, allow_pickle=False) as stored:
        if str(stored['run_id']) != run_id:
            return None
        features = TeacherFeatures(image_shape, stored['mean'], stored['spread'])
        teacher = teacher_lib.Teacher(stored['center'], stored['weights'])
        if teacher.center.shape != stored['mean'].shape or teacher.weights.shape[1] != len(teacher.center) + 1:
            raise ValueError(f'the weights have the shape {teacher.weights.shape} for {len(teacher.center)} features')
        return TeacherScorer(features, teacher)
