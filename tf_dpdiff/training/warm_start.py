"""The warm start: a noisy release tells of the classes, and plain training follows on images that it leads to.

What comes of a release is post-processing, at no further cost.
"""

import collections
from collections.abc import Callable
import dataclasses
import io
import pathlib
from typing import Any, NamedTuple

import numpy as np

from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import matching as matching_lib
from tf_dpdiff.training import optimization as optimization_lib
from tf_dpdiff.training import public_classifier
from tf_dpdiff.training import public_features
from tf_dpdiff.training import released_files
from tf_dpdiff.training import stage as stage_lib
from tf_dpdiff.training import views as views_lib

NAME = 'warm_start'
# Settings that mean something with one kind of release alone.
_OF_CLASS_MEANS = ('num_images', 'sharpening', 'threshold', 'matching')
_OF_PUBLIC_IMAGES = ('public', 'images_per_class', 'classifier')
MEANS_FILE, FEATURE_MEANS_FILE = 'noisy_class_means.npz', 'noisy_feature_means.npz'


class NothingChosenError(ValueError):
    """Noisy feature means are noise alone, so that no public image is near to them."""


class ChosenImages(NamedTuple):
    """Public images that look like those of a private class.

    Attributes:
      images: They, labelled with the private classes that they stand for; class by class, the clearest first.
      origins: Of each private class, how many of its images are of which public class, the most frequent first.
    """

    images: datasets.ImageDataset
    origins: tuple[tuple[tuple[str, int], ...], ...]


# What was released, chosen by it, or made to match it.
Released = class_means.NoisyMeans | ChosenImages | datasets.ImageDataset
OnRelease = Callable[[Released], None]


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Plain training on variations of noisy class means, or on public images that noisy feature means choose.

    Attributes:
      release: The Gaussian release, charged to the same budget as DP-SGD, which decides between the two.
      num_images: Variations of the noisy means that are drawn, >= 1; for class means.
      num_steps: Steps, >= 1.
      batch_size: Images a step, >= 1.
      optimization: How the weights follow the gradients.
      views: How a variation is looked at.
      sharpening: (low, high) factor by which the contrast of a mean is stretched; for class means.
      threshold: (low, high) grey level about which it is stretched; for class means.
      matching: How images are made of the variations that match a second release, and are trained on in their place;
        for class means, where None trains on the variations.
      seed: Public.
      public: The labelled public images, or what reads them when they are first asked for; for feature means.
      images_per_class: How many of them are chosen for a private class at most, >= 1; for feature means.
      classifier: How the classifier is trained on them that gives an image its features; for feature means, where None
        stands for its defaults.
    """

    release: plan_lib.WarmStartRelease
    num_images: int | None
    num_steps: int
    batch_size: int
    optimization: optimization_lib.OptimizationConfig
    views: views_lib.ViewsConfig = views_lib.ViewsConfig()
    sharpening: tuple[float, float] = (1.2, 3.0)
    threshold: tuple[float, float] = (0.4, 0.6)
    matching: matching_lib.MatchingConfig | None = None
    seed: int = 1
    public: stage_lib.PublicSource | None = None
    images_per_class: int | None = None
    classifier: public_classifier.PublicClassifierConfig | None = None

    def __post_init__(self):
        stage_lib.check_at_least_one(self, 'num_steps', 'batch_size')
        _check_kind(self)
        stage_lib.check_at_least_one(self, 'images_per_class' if self.has_public_images else 'num_images')
        if self.has_public_images:
            stage_lib.check_public_source(self.public, 'public of WarmStartConfig')

    @property
    def has_public_images(self) -> bool:
        """Whether it trains on public images."""
        return isinstance(self.release, feature_means.FeatureMeansConfig)

    @property
    def classifier_or_default(self) -> public_classifier.PublicClassifierConfig:
        """How the classifier is trained, for feature means."""
        return self.classifier or public_classifier.PublicClassifierConfig()

    @property
    def images(self) -> datasets.ImageDataset:
        """The public images, read where they are not yet; for feature means."""
        assert self.public is not None
        return stage_lib.read_public(self.public)


def _check_kind(config: WarmStartConfig) -> None:
    """Refuses settings of a warm start that mean nothing with its kind of release, and the lack of those that it needs.

    Raises:
      ValueError: names the field.
    """
    kind = type(config.release).__name__
    for name in _OF_CLASS_MEANS if config.has_public_images else _OF_PUBLIC_IMAGES:
        # Of what has no default, None stands for nothing.
        if getattr(config, name) != getattr(type(config), name, None):
            raise ValueError(
                f'{name} of WarmStartConfig means nothing where release is a {kind}: leave it out'
                f'{" (None)" if name == "num_images" else ""}.'
            )
    for needed in ('public', 'images_per_class') if config.has_public_images else ('num_images',):
        if getattr(config, needed) is None:
            raise ValueError(f'{needed} of WarmStartConfig is needed where release is a {kind}.')


def make_stage(
    config: WarmStartConfig,
    training: stage_lib.Training,
    plan: plan_lib.DpSgdPlan,
    private: datasets.ImageDataset,
    state: checkpoints.RunState,
    *,
    workdir: pathlib.Path,
    on_release: OnRelease,
    label_images: matching_lib.LabelFn | None = None,
) -> stage_lib.Stage:
    """Returns the warm-start stage, which makes its release as it begins, or reads it where the run was resumed.

    Args:
      config: The stage.
      training: What the stages of the run share.
      plan: The privacy plan, which the release is part of.
      private: The private images.
      state: Where the run stands; its ledger holds the release in the end.
      workdir: The run's folder.
      on_release: Called with what was released, chosen by it, or made to match it.
      label_images: Labels the images that were made anew; None: their labels are the classes that they match.
    """

    def make_images(save: stage_lib.Save) -> datasets.ImageDataset:
        if config.has_public_images:
            chosen = choose_public_images(config, plan, private, state, workdir=workdir, save=save)
            on_release(chosen)
            return chosen.images
        assert isinstance(config.release, class_means.ClassMeansConfig) and config.num_images is not None
        workers = training.replicas.workers
        means = release_class_means(config.release, plan, private, state, workdir=workdir, save=save, workers=workers)
        on_release(means)
        variations = images_from_class_means(
            means,
            num_images=config.num_images,
            sharpening=config.sharpening,
            threshold=config.threshold,
            seed=config.seed,
        )
        if config.matching is None:
            return variations
        made = matching_lib.make_images(
            config.matching, plan, private, variations, state, workdir=workdir, save=save, label_images=label_images
        )
        on_release(made)
        return made

    return stage_lib.make_public_stage(NAME, config, training, make_images)


def release_class_means(
    config: class_means.ClassMeansConfig,
    plan: plan_lib.DpSgdPlan,
    private: datasets.ImageDataset,
    state: checkpoints.RunState,
    *,
    workdir: pathlib.Path,
    save: stage_lib.Save,
    workers: workers_lib.Workers,
) -> class_means.NoisyMeans:
    """Releases noisy class means, once in the life of a run and at one worker, or returns those released before.

    The first worker makes it, writes it to a file before anything is made from it, and tells the others: on another
    machine an image as near to one mean as to another may join the other one. See `released_files`.

    Args:
      config: The release.
      plan: The privacy plan, which the release is part of.
      private: The private images.
      state: Where the run stands; its ledger holds the release in the end.
      workdir: The run's folder.
      save: Saves where the run stands.
      workers: The processes of the run, all of which call this.

    Raises:
      FileNotFoundError: if the ledger holds the release and its file is missing.
      ValueError: if the file is not as it was written.
    """
    path, written = workdir / MEANS_FILE, None
    if workers.is_first:
        shape = (private.num_classes, config.means_per_class, *private.image_shape)
        written = _read_means(path, state.run_id, shape)
        if written is None:
            released_files.check_not_released(
                config.mechanism, state, f'the noisy class means of this run are not in {path}'
            )
            with progress.working(NAME, 'releasing noisy means of each class'):
                means = config.release(private.images_uint8, **released_files.given(plan, private, state))
            written = _means_to_bytes(means, state.run_id)
            with released_files.replacing(path) as temporary:
                temporary.write_bytes(written)
    means, _ = _means_from_bytes(workers.broadcast(written))
    released_files.record_once(plan, config, state, save)
    return means


def _means_to_bytes(means: class_means.NoisyMeans, run_id: str) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=means.images, counts=means.counts, run_id=run_id)
    return buffer.getvalue()


def _means_from_bytes(written: bytes) -> tuple[class_means.NoisyMeans, str]:
    """Returns the means that were written, and the run that they belong to."""
    with np.load(io.BytesIO(written), allow_pickle=False) as arrays:
        return class_means.NoisyMeans(arrays['images'], arrays['counts']), str(arrays['run_id'])


def _read_means(path: pathlib.Path, run_id: str, shape: tuple[int, ...]) -> bytes | None:
    """Returns the file of a run's noisy means, of that shape; None where there is none of this run."""
    if not path.exists():
        return None
    with released_files.telling_of_damage(path, f', and holds a release: {released_files.CURE}'):
        written = path.read_bytes()
        means, of_run = _means_from_bytes(written)
        if of_run != run_id:
            return None
        if means.images.shape != shape or means.counts.shape != shape[:2]:
            raise ValueError(f'the means have the shape {means.images.shape}, not {shape}')
        return written


def images_from_class_means(
    means: class_means.NoisyMeans, *, num_images: int, sharpening, threshold, seed: int
) -> datasets.ImageDataset:
    """Draws variations of noisy class means that look more like single images than their mean does.

    A mean is blurred and the release's noise lies on it as grey: stretching the contrast about a threshold undoes some
    of both. The threshold and the stretch are drawn at random for each image.

    Args:
      means: As released. Of the means of a class, each is taken as often as the images near it are many.
      num_images: How many, in equal parts of each class up to one.
      sharpening: (low, high), the factor by which contrast is stretched.
      threshold: (low, high), the grey level that becomes mid-grey.
      seed: Public.

    Returns:
      The images with the labels of their classes.
    """
    generator = np.random.default_rng(seed)
    num_classes = len(means.counts)
    labels = (np.arange(num_images) % num_classes).astype(np.int32)
    shares = np.cumsum(means.counts, axis=1) / np.sum(means.counts, axis=1, keepdims=True)
    # The first mean whose cumulative share is not below a uniform number.
    numbers = np.sum(shares[labels] < generator.uniform(size=[num_images, 1]), axis=1)

    def draw(bounds):
        low, high = bounds
        return generator.uniform(low, high, [num_images, 1, 1, 1])

    drawn = np.clip(means.images[labels, numbers], 0.0, 1.0)
    images = np.clip((drawn - draw(threshold)) * draw(sharpening) + 0.5, 0.0, 1.0)
    names = tuple(str(i) for i in range(num_classes))
    return datasets.ImageDataset('noisy class means', np.round(images * 255.0).astype(np.uint8), labels, names)


def with_classes_that_have_images(public: datasets.ImageDataset) -> datasets.ImageDataset:
    """Returns public images without the classes that have none, which no classifier can learn.

    Raises:
      ValueError: if there are images of no class.
    """
    if public.labels.max() == public.num_classes:
        raise ValueError(
            f'public of WarmStartConfig ({public.name!r}) has images without a label, and a classifier is '
            "trained to name their classes: give labelled ones, with labels = 'keep'."
        )
    present, labels = np.unique(public.labels, return_inverse=True)
    names = tuple(public.class_names[number] for number in present)
    return datasets.ImageDataset(public.name, public.images_uint8, labels.astype(np.int32), names)


def choose_public_images(
    config: WarmStartConfig,
    plan: plan_lib.DpSgdPlan,
    private: datasets.ImageDataset,
    state: checkpoints.RunState,
    *,
    workdir: pathlib.Path,
    save: stage_lib.Save,
) -> ChosenImages:
    """Chooses public images by noisy means of the private images' features, released once in the life of a run.

    The file holds what it chose too: a classifier that is trained anew gives other features. See `released_files`.

    Args:
      config: The stage.
      plan: The privacy plan, which the release is part of.
      private: The private images.
      state: Where the run stands; its ledger holds the release in the end.
      workdir: The run's folder.
      save: Saves where the run stands.

    Raises:
      FileNotFoundError: if the ledger holds the release and its file is missing.
      ValueError: if the file is not as it was written, or no public image is like a private class.
    """
    release = config.release
    assert isinstance(release, feature_means.FeatureMeansConfig) and config.images_per_class is not None
    public = with_classes_that_have_images(config.images)
    path = workdir / FEATURE_MEANS_FILE
    arrays = _read_feature_means(path, state.run_id, private.num_classes, public)
    if arrays is None:
        released_files.check_not_released(
            release.mechanism, state, f'the noisy feature means of this run are not in {path}'
        )
        model = public_classifier.train(config.classifier_or_default, public)
        features = public_features.fit(model, public)
        noisy_sums = release.release(features(private.images_uint8), **released_files.given(plan, private, state))
        means = release.means(noisy_sums, plan.config.neighboring_relation)
        rows, labels = feature_means.choose_images(means, features(public.images_uint8), config.images_per_class)
        arrays = {'noisy_sums': noisy_sums, 'rows': rows, 'labels': labels}
        with released_files.replacing(path) as temporary:
            saved: dict[str, Any] = {**arrays, **public_features.to_arrays(features, means)}
            np.savez(temporary, run_id=state.run_id, **saved)
    released_files.record_once(plan, release, state, save)
    return _gather_chosen(arrays['rows'], arrays['labels'], public, private.class_names)


def read_scorer(workdir: pathlib.Path, run_id: str, image_shape: tuple[int, int, int]) -> public_features.ClassScorer:
    """Returns the scorer of how much an image looks like each private class, from what a run has released.

    Args:
      workdir: The run's folder.
      run_id: Of the run: what another one released is not covered by this one's statement.
      image_shape: (height, width, channels).

    Raises:
      FileNotFoundError: if the run has released no feature means.
      ValueError: if the file is another run's, or not as it was written.
    """
    path = workdir / FEATURE_MEANS_FILE
    if not path.exists():
        raise FileNotFoundError(
            f'{path} is missing, by which a run chooses among candidates: put it back from a copy, '
            'or sample with num_candidates = 1.'
        )
    with released_files.telling_of_damage(path, ': put it back from a copy.'):
        with np.load(path, allow_pickle=False) as stored:
            if str(stored['run_id']) != run_id:
                raise ValueError('it is of another run')
            return public_features.scorer_from_arrays(stored, image_shape)


def _gather_chosen(
    rows: np.ndarray, labels: np.ndarray, public: datasets.ImageDataset, class_names: tuple[str, ...]
) -> ChosenImages:
    if not len(rows):
        raise NothingChosenError(
            'no public image is nearest to a private class: the noisy feature means are noise alone. Give '
            'them less noise, in another --workdir; what the run has spent stays spent.'
        )
    origins = []
    for label in range(len(class_names)):
        counts = collections.Counter(public.labels[rows[labels == label]].tolist())
        origins.append(tuple((public.class_names[number], count) for number, count in counts.most_common()))
    name = f'{public.name}, those like the private classes'
    images = datasets.ImageDataset(name, public.images_uint8[rows], labels, class_names)
    return ChosenImages(images, tuple(origins))


def _read_feature_means(
    path: pathlib.Path, run_id: str, num_classes: int, public: datasets.ImageDataset
) -> dict[str, np.ndarray] | None:
    """Returns the noisy sums of a run, rows and labels of what they chose; None where there are none of this run."""
    if not path.exists():
        return None
    with released_files.telling_of_damage(path, f', and holds a release: {released_files.CURE}'):
        with np.load(path, allow_pickle=False) as stored:
            if str(stored['run_id']) != run_id:
                return None
            arrays = {name: stored[name] for name in ('noisy_sums', 'rows', 'labels')}
        shape = (num_classes, public.num_classes + 1)
        if arrays['noisy_sums'].shape != shape:
            raise ValueError(f'the sums have the shape {arrays["noisy_sums"].shape}, not {shape}')
        if arrays['rows'].shape != arrays['labels'].shape:
            raise ValueError('there are not as many labels as images')
        for name, bound in (('rows', len(public)), ('labels', num_classes)):
            if np.any(arrays[name] < 0) or np.any(arrays[name] >= bound):
                raise ValueError(f'{name} are not in [0, {bound})')
        return arrays
