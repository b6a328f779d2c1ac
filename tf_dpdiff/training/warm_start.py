"""Class-conditional training images of a warm start: what comes of a release is post-processing, at no further cost."""

import io
import json
import pathlib
from typing import Callable, NamedTuple, Optional, Tuple, Union
import zipfile

import numpy as np

from tf_dpdiff import files
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import public_classes
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import public_classifier

# Settings that mean something with one kind of release alone.
_OF_CLASS_MEANS, _OF_PUBLIC_CLASSES = ('num_images', 'sharpening', 'threshold'), ('public', 'classifier')
VOTES_FILE, MEANS_FILE = 'noisy_public_classes.json', 'noisy_class_means.npz'
_NOTE = ('A private release, made once and paid for; it may be shown. A run that is resumed reads it, and is refused '
         'where it is missing.')
_CURE = (
    'it must not be made again. Put the file back from a copy, or name another --workdir; the privacy that the run '
    'has spent stays spent.')


class ChosenClasses(NamedTuple):
    """Which public classes stand for each private one.

    Attributes:
      numbers: Of each private class the numbers of its public ones, the best first.
      names: Of each private class its name, and those of its public ones.
    """
    numbers: Tuple[Tuple[int, ...], ...]
    names: Tuple[Tuple[str, Tuple[str, ...]], ...]


OnRelease = Callable[[Union[class_means.NoisyMeans, ChosenClasses]], None]


def check_kind(config) -> None:
    """Refuses settings of a warm start that mean nothing with its kind of release, and the lack of those that it needs.

    Args:
      config: A `stages.WarmStartConfig`.

    Raises:
      ValueError: names the field.
    """
    kind = type(config.release).__name__
    for name in _OF_CLASS_MEANS if config.has_public_classes else _OF_PUBLIC_CLASSES:
        # Of what has no default, None stands for nothing.
        if getattr(config, name) != getattr(type(config), name, None):
            raise ValueError(f'{name} of WarmStartConfig means nothing where release is a {kind}: leave it out'
                             f'{" (None)" if name == "num_images" else ""}.')
    needed = 'public' if config.has_public_classes else 'num_images'
    if getattr(config, needed) is None:
        raise ValueError(f'{needed} of WarmStartConfig is needed where release is a {kind}.')


def make_images(config, plan: plan_lib.DpSgdPlan, private: datasets.ImageDataset, state: checkpoints.RunState, *,
                workdir: pathlib.Path, save: Callable[[], None], on_release: OnRelease,
                workers: workers_lib.Workers) -> datasets.ImageDataset:
    """Makes a warm start's release, or reads it where the run was resumed, and the images that are trained on.

    Args:
      config: A `stages.WarmStartConfig`.
      plan: The privacy plan, which the release is part of.
      private: The private images.
      state: Where the run stands; its ledger holds the release in the end.
      workdir: The run's folder.
      save: Saves where the run stands.
      on_release: Called with what was released, or what was chosen by it.
      workers: The processes of the run, all of which call this.
    """
    if config.has_public_classes:
        public = with_classes_that_have_images(config.images)
        classifier = config.classifier or public_classifier.PublicClassifierConfig()
        chosen = release_public_classes(config.release,
                                        classifier,
                                        public,
                                        plan,
                                        private,
                                        state,
                                        workdir=workdir,
                                        save=save)
        on_release(chosen)
        return images_of_chosen_classes(public, chosen, private.class_names)
    means = release_class_means(config.release, plan, private, state, workdir=workdir, save=save, workers=workers)
    on_release(means)
    return images_from_class_means(means,
                                   num_images=config.num_images,
                                   sharpening=config.sharpening,
                                   threshold=config.threshold,
                                   seed=config.seed)


def release_class_means(config: class_means.ClassMeansConfig, plan: plan_lib.DpSgdPlan, private: datasets.ImageDataset,
                        state: checkpoints.RunState, *, workdir: pathlib.Path, save: Callable[[], None],
                        workers: workers_lib.Workers) -> class_means.NoisyMeans:
    """Releases noisy class means, once in the life of a run and at one worker, or returns those released before.

    On another machine sums may be rounded otherwise, and an image as near to one mean as to another may join the other
    one: that would be one more release, and the ledger holds one. So the first worker makes it, writes it to a file
    before anything is made from it, and tells the others; whoever resumes reads the file.

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
            _check_not_released(config.mechanism, state, f'the noisy class means of this run are not in {path}')
            means = config.release(private.images_uint8,
                                   private.labels,
                                   private.num_classes,
                                   seed=state.private_seed,
                                   neighboring_relation=plan.config.neighboring_relation,
                                   generator=plan.config.noise_generator,
                                   owners=private.owners)
            written = _means_to_bytes(means, state.run_id)
            with files.replacing(path) as temporary:
                temporary.write_bytes(written)
    means, _ = _means_from_bytes(workers.broadcast(written))
    _record_once(plan, state, save)
    return means


def _check_not_released(mechanism: str, state: checkpoints.RunState, what_is_missing: str) -> None:
    """Refuses to make a release that the ledger holds."""
    if state.ledger.count(mechanism):
        raise FileNotFoundError(f'{what_is_missing}: {_CURE}')


def _record_once(plan: plan_lib.DpSgdPlan, state: checkpoints.RunState, save: Callable[[], None]) -> None:
    """Puts a release whose file is written into the ledger, where it is not yet."""
    if not state.ledger.count(plan.warm_start_release.mechanism):
        # Saved at once: from here on a run without the file is refused, and not before it has it.
        state.ledger = plan.record_warm_start_release(state.ledger)
        save()


def _means_to_bytes(means: class_means.NoisyMeans, run_id: str) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=means.images, counts=means.counts, run_id=run_id)
    return buffer.getvalue()


def _means_from_bytes(written: bytes) -> Tuple[class_means.NoisyMeans, str]:
    """Returns what was written, and the run that it belongs to."""
    with np.load(io.BytesIO(written), allow_pickle=False) as arrays:
        return class_means.NoisyMeans(arrays['images'], arrays['counts']), str(arrays['run_id'])


def _read_means(path: pathlib.Path, run_id: str, shape: Tuple[int, ...]) -> Optional[bytes]:
    """Returns the file of a run's noisy means, of that shape; None where there is none of this run."""
    if not path.exists():
        return None
    try:
        written = path.read_bytes()
        means, of_run = _means_from_bytes(written)
        if of_run != run_id:
            return None
        if means.images.shape != shape or means.counts.shape != shape[:2]:
            raise ValueError(f'the means have the shape {means.images.shape}, not {shape}')
        return written
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} is not as it was written ({error}), and holds a release: {_CURE}') from error


def images_from_class_means(means: class_means.NoisyMeans, *, num_images: int, sharpening, threshold,
                            seed: int) -> datasets.ImageDataset:
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
        return generator.uniform(*bounds, [num_images, 1, 1, 1])

    drawn = np.clip(means.images[labels, numbers], 0.0, 1.0)
    images = np.clip((drawn - draw(threshold)) * draw(sharpening) + 0.5, 0.0, 1.0)
    names = tuple(str(i) for i in range(num_classes))
    return datasets.ImageDataset('noisy class means', np.round(images * 255.0).astype(np.uint8), labels, names)


def with_classes_that_have_images(public: datasets.ImageDataset) -> datasets.ImageDataset:
    """Returns public images without the classes that have none, for which nobody can vote.

    Raises:
      ValueError: if there are images of no class.
    """
    if public.labels.max() == public.num_classes:
        raise ValueError(f'public of WarmStartConfig ({public.name!r}) has images without a label, and it is by their '
                         "classes that they are chosen: give labelled ones, with labels = 'keep'.")
    present, labels = np.unique(public.labels, return_inverse=True)
    names = tuple(public.class_names[number] for number in present)
    return datasets.ImageDataset(public.name, public.images_uint8, labels.astype(np.int32), names)


def release_public_classes(config: public_classes.PublicClassesConfig,
                           classifier: public_classifier.PublicClassifierConfig, public: datasets.ImageDataset,
                           plan: plan_lib.DpSgdPlan, private: datasets.ImageDataset, state: checkpoints.RunState, *,
                           workdir: pathlib.Path, save: Callable[[], None]) -> ChosenClasses:
    """Chooses public classes by noisy votes of the private images, which are released once in the life of a run.

    A classifier that is trained anew, perhaps on another machine, may change a few votes: that would be one more
    release, and the ledger holds one. So the noisy votes are in a file before anything is made from them, and whoever
    resumes reads them there. The file of another run is not read, since this one's statement would not cover it.

    Args:
      config: The release.
      classifier: How the classifier of public images is trained.
      public: Labelled public images, some of each class.
      plan: The privacy plan, which the release is part of.
      private: The private images.
      state: Where the run stands; its ledger holds the release in the end.
      workdir: The run's folder.
      save: Saves where the run stands.

    Raises:
      FileNotFoundError: if the ledger holds the release and its file is missing.
      ValueError: if the file is not as it was written.
    """
    path = workdir / VOTES_FILE
    noisy_votes = _read_votes(path, state.run_id, (private.num_classes, public.num_classes))
    is_new = noisy_votes is None
    if is_new:
        _check_not_released(config.mechanism, state,
                            f'the noisy votes of this run for public classes are not in {path}')
        votes = public_classifier.vote(public_classifier.train(classifier, public), private.images_uint8)
        noisy_votes = config.release(votes,
                                     private.labels,
                                     private.num_classes,
                                     public.num_classes,
                                     seed=state.private_seed,
                                     neighboring_relation=plan.config.neighboring_relation,
                                     generator=plan.config.noise_generator,
                                     owners=private.owners)
    numbers = public_classes.choose_classes(noisy_votes, config.classes_per_class)
    names = [tuple(public.class_names[number] for number in of_class) for of_class in numbers]
    chosen = ChosenClasses(tuple(map(tuple, numbers)), tuple(zip(private.class_names, names)))
    if is_new:
        _write_votes(path, state.run_id, noisy_votes, chosen, public)
    _record_once(plan, state, save)
    return chosen


def images_of_chosen_classes(public: datasets.ImageDataset, chosen: ChosenClasses,
                             class_names: Tuple[str, ...]) -> datasets.ImageDataset:
    """Returns the public images of the chosen classes, labelled with the private classes that they stand for.

    Args:
      public: Labelled public images, some of each class.
      chosen: No public class stands for two private ones.
      class_names: Of the private classes.
    """
    label_of = np.full([public.num_classes], -1, np.int32)
    for label, numbers in enumerate(chosen.numbers):
        label_of[list(numbers)] = label
    labels = label_of[public.labels]
    rows = np.flatnonzero(labels >= 0)
    return datasets.ImageDataset(f'{public.name}, chosen classes', public.images_uint8[rows], labels[rows], class_names)


def _read_votes(path: pathlib.Path, run_id: str, shape: Tuple[int, int]) -> Optional[np.ndarray]:
    """Returns the noisy votes of a run, float64 of that shape; None where there are none of this run."""
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text(encoding='utf-8'))
        if fields['run_id'] != run_id:
            return None
        noisy_votes = np.array(fields['noisy_votes'], np.float64)
        if noisy_votes.shape != shape or not np.isfinite(noisy_votes).all():
            raise ValueError(f'the votes have the shape {noisy_votes.shape}, not {shape}')
        return noisy_votes
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is not as it was written ({error}), and holds a release: {_CURE}') from error


def _write_votes(path: pathlib.Path, run_id: str, noisy_votes: np.ndarray, chosen: ChosenClasses,
                 public: datasets.ImageDataset) -> None:
    fields = {
        'note': _NOTE,
        'run_id': run_id,
        'chosen': [{
            'private_class': name,
            'public_classes': list(names)
        } for name, names in chosen.names],
        'public_classes': list(public.class_names),
        'noisy_votes': noisy_votes.tolist(),  # JSON keeps float64 as they are.
    }
    files.write_text(path, json.dumps(fields, indent=2) + '\n')
