"""What samples are worth: classifiers trained on them, tested on real images, beside the same trained on real ones."""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import classifiers as classifiers_lib
from tf_dpdiff.sampling import shared_work

Pair = classifiers_lib.Pair

_BAR_DELAY_SECS = 2.0  # What takes less shows no progress bar.


@dataclasses.dataclass(frozen=True)
class UtilityConfig:
    """Which classifiers tell what the samples are worth, and how they are trained.

    Attributes:
      classifiers: Names of `classifiers.CLASSIFIERS`, (name, options), or ClassifierConfigs.
      num_seeds: How often a classifier with random weights is trained; the ensemble averages their probabilities.
      validation_fraction: Share of the training images of each class, in (0, 1), that is set apart for early stopping
        and for choices: of samples where a classifier is trained on samples. Held-out real images decide nothing.
      curve_sizes: Accuracy is also measured after training on as many samples, in random order, each at most as many
        as there are.
      real_images: Whether the same classifiers are trained on the private images, for comparison.
      seed: Of splits and classifiers.
      only_public_data: Measure only where the data say that they are public: a file that others build on does not make
        them measure on their private images.
    """

    classifiers: Sequence[classifiers_lib.ConfigLike] = ('small_cnn', 'logistic_regression', 'gradient_boosting')
    num_seeds: int = 3
    validation_fraction: float = 0.1
    curve_sizes: Sequence[int] = ()
    real_images: bool = True
    seed: int = 0
    only_public_data: bool = False

    def __post_init__(self):
        configs = tuple(classifiers_lib.as_config(value) for value in self.classifiers)
        if not configs:
            raise ValueError('classifiers of the utility must name at least one.')
        classifiers_lib.titles(configs)  # Refuses the same one twice.
        object.__setattr__(self, 'classifiers', configs)
        object.__setattr__(self, 'curve_sizes', tuple(sorted(set(self.curve_sizes))))
        if self.num_seeds < 1:
            raise ValueError(f'num_seeds of the utility must be at least 1, got {self.num_seeds}.')
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(f'validation_fraction must be in (0, 1), got {self.validation_fraction}.')
        if any(size < 2 for size in self.curve_sizes):
            raise ValueError(f'curve_sizes must be at least 2, got {self.curve_sizes}.')
        if self.seed < 0:
            raise ValueError(f'seed of the utility must be at least 0, got {self.seed}.')

    @property
    def configs(self) -> tuple[classifiers_lib.ClassifierConfig, ...]:
        """The classifiers, each as a configuration."""
        return tuple(map(classifiers_lib.as_config, self.classifiers))


def fitting(
    config: UtilityConfig | None, data: datasets.PrivateData, num_samples: int
) -> tuple[UtilityConfig | None, list[str]]:
    """Leaves out what does not fit the samples and images at hand: a configuration may come from another run's file.

    Args:
      config: What is asked for, or None.
      data: The private images, and real images held out from them; neither is read.
      num_samples: How many samples there are.

    Returns:
      What can be measured, or None, and a sentence on each thing that is left out.

    Raises:
      ValueError: if no classifier is left.
    """
    if config is None:
        return None, []
    if data.spec.num_classes < 2:
        return None, [f'no classifier is tested: {data.spec.name!r} has one class, and nothing is to be told apart']
    if config.only_public_data and not data.is_public:
        return None, [
            f'no classifier is tested on the held-out images of {data.spec.name!r}: that is asked for on '
            'public data alone (UtilityConfig.only_public_data)'
        ]
    said = []
    kept, too_large = classifiers_lib.split_by_size(config.configs, data.spec.image_shape)
    size = 'x'.join(map(str, data.spec.image_shape[:2]))
    if not kept:
        raise ValueError(f'no classifier of UtilityConfig.classifiers is for images as small as {size}: name others.')
    if too_large:
        names = ', '.join(dict.fromkeys(other.name for other in too_large))
        said.append(f'left out of UtilityConfig.classifiers, since images of {size} are too small: {names}')
    sizes = [number for number in config.curve_sizes if number <= num_samples]
    if len(sizes) < len(config.curve_sizes):
        above = ', '.join(f'{number:,}' for number in config.curve_sizes if number > num_samples)
        said.append(f'left out of UtilityConfig.curve_sizes, since there are {num_samples:,} samples: {above}')
    return dataclasses.replace(config, classifiers=kept, curve_sizes=tuple(sizes)), said


class UtilityResult(NamedTuple):
    """What was measured.

    Attributes:
      fields: JSON-able numbers and names.
      predictions: Of each classifier, by its title: what its ensemble trained on samples takes the held-out images
        for, int32 [held-out images].
    """

    fields: dict
    predictions: dict[str, np.ndarray]


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits images at random into two parts, each class in the same proportion.

    Args:
      labels: int [images], at least two.
      fraction: Share of the second part, in (0, 1), rounded for each class; it gets at least one image.
      seed: At least 0.

    Returns:
      The rows of each part, int64, sorted.

    Raises:
      ValueError: if one of the parts would be empty.
    """
    generator = np.random.default_rng([seed, len(labels)])
    order = generator.permutation(len(labels))
    second = [
        rows[: int(len(rows) * fraction + 0.5)]
        for rows in (order[labels[order] == label] for label in np.unique(labels))
    ]
    rows = np.concatenate(second) if any(map(len, second)) else order[:1]
    if len(rows) >= len(labels):
        raise ValueError(f'{len(labels)} images are too few to set {fraction:.0%} of them apart.')
    return np.setdiff1d(order, rows), np.sort(rows)


def measure(
    config: UtilityConfig,
    images: np.ndarray,
    labels: np.ndarray,
    train: datasets.ImageDataset,
    held_out: datasets.ImageDataset,
    *,
    workers: workers_lib.Workers = workers_lib.ALONE,
) -> UtilityResult:
    """Trains classifiers on samples, and the same on the private images, and tests all on held-out real images.

    The numbers come from private data without noise: they are for the owner of the data, and not to be released.

    Args:
      config: Which classifiers.
      images: Samples, uint8 [images, height, width, channels].
      labels: Their labels, int32 [images].
      train: The private training images.
      held_out: Real images never trained on.
      workers: All of them call this with the same data, and each makes its share of the trainings.

    Returns:
      The result, at every worker.

    Raises:
      ValueError: if there are fewer samples than a curve asks for, or too few for a validation part.
      workers_lib.WorkerLostError: if another worker is gone or failed.
    """
    if config.curve_sizes and config.curve_sizes[-1] > len(images):
        raise ValueError(
            f'curve_sizes asks for {config.curve_sizes[-1]:,} samples, there are {len(images):,}: make '
            'more with bin/sample, or ask for less.'
        )
    sets = {'synthetic_images': (images, labels)}
    if config.real_images:
        sets['real_images'] = train.images_uint8, train.labels
    trained = _train_all(
        _jobs(config), sets, held_out.images_uint8, train.num_classes, config.validation_fraction, workers
    )
    entries, curve, predictions = [], [], {}
    for title, classifier in zip(classifiers_lib.titles(config.configs), config.configs):
        predictions[title] = trained[title, 'synthetic_images', None].predicted
        described = {
            source: trained[title, source, None].describe(held_out.labels, train.class_names) for source in sets
        }
        entries.append({'classifier': title, 'options': classifier.settings, 'real_images': None, **described})
        curve += [
            {
                'classifier': title,
                'num_synthetic': size,
                **trained[title, 'synthetic_images', size].accuracies(held_out.labels),
            }
            for size in config.curve_sizes
        ]
    fields = {
        'num_synthetic': len(images),
        'num_real': len(train) if config.real_images else None,
        'num_test': len(held_out),
        'class_names': list(train.class_names),
        'num_seeds': config.num_seeds,
        'validation': f'Early stopping and choices: by {config.validation_fraction:.0%} of the images that a '
        'classifier is trained on, set apart; never by held-out images.',
        'classifiers': entries,
        'curve': curve,
    }
    return UtilityResult(fields, predictions)


class _Job(NamedTuple):
    """A classifier to be trained, once a seed, on a set of images, or on `size` of them: a part of its own a seed."""

    title: str
    source: str
    size: int | None
    classifier: classifiers_lib.ClassifierConfig
    seeds: Sequence[int]


def _jobs(config: UtilityConfig) -> list[_Job]:
    jobs = []
    for title, classifier in zip(classifiers_lib.titles(config.configs), config.configs):
        seeds = range(config.seed, config.seed + config.num_seeds)
        once = seeds if classifier.is_seeded else seeds[:1]
        jobs.append(_Job(title, 'synthetic_images', None, classifier, once))
        if config.real_images:
            jobs.append(_Job(title, 'real_images', None, classifier, once))
        jobs += [_Job(title, 'synthetic_images', size, classifier, seeds) for size in config.curve_sizes]
    return jobs


class _Trained(NamedTuple):
    """What a classifier, trained once a seed, makes of the held-out images."""

    of_seeds: list[np.ndarray]  # int [images] a seed.
    predicted: np.ndarray  # By the ensemble, int32 [images].
    validation_accuracy: float

    def accuracies(self, labels: np.ndarray) -> dict:
        of_seeds = [float(np.mean(predicted == labels)) for predicted in self.of_seeds]
        return {
            'accuracy': float(np.mean(self.predicted == labels)),
            'accuracy_mean': float(np.mean(of_seeds)),
            'accuracy_std': float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else None,
            'accuracy_of_seeds': of_seeds,
        }

    def describe(self, labels: np.ndarray, class_names: Sequence[str]) -> dict:
        from sklearn import metrics

        known = range(len(class_names))
        scores = metrics.precision_recall_fscore_support(labels, self.predicted, labels=known, zero_division=0.0)
        per_class = [
            {
                'class': name,
                'images': int(count),
                'recall': float(recall),
                'precision': float(precision),
                'f1': float(f1),
            }
            for name, precision, recall, f1, count in zip(class_names, *scores)
        ]
        return {
            **self.accuracies(labels),
            'validation_accuracy': self.validation_accuracy,
            'per_class': per_class,
            'confusion': metrics.confusion_matrix(labels, self.predicted, labels=known).tolist(),
        }


def _train_all(
    jobs: Sequence[_Job],
    sets: dict[str, Pair],
    test_images: np.ndarray,
    num_classes: int,
    validation_fraction: float,
    workers: workers_lib.Workers,
) -> dict[tuple, _Trained]:
    """Returns the result of each job, by its first three fields."""
    tasks = [(job, seed) for job in jobs for seed in job.seeds]
    own = (
        _train(job, seed, sets[job.source], test_images, num_classes, validation_fraction)
        for job, seed in tasks[workers.index :: workers.count]
    )
    results, trained = shared_work.spread(workers, len(tasks), own), {}
    with progress.bar(
        len(tasks), 'utility', 'training', delay_secs=_BAR_DELAY_SECS, disable=not workers.is_first
    ) as bar:
        for job in jobs:
            bar.set_description(job.title, refresh=False)
            tested, validated = [], []
            for _ in job.seeds:
                probabilities, validation_accuracy = next(results)
                tested.append(probabilities)
                validated.append(validation_accuracy)
                bar.update()
            trained[job[:3]] = _Trained(
                [probabilities.argmax(axis=-1) for probabilities in tested],
                np.mean(tested, axis=0).argmax(axis=-1).astype(np.int32),
                float(np.mean(validated)),
            )
    return trained


def _train(
    job: _Job, seed: int, pair: Pair, test_images: np.ndarray, num_classes: int, validation_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Trains a classifier once; returns its probabilities of the test images, and its validation accuracy."""
    images, labels = pair
    if job.size:
        rows = np.sort(np.random.default_rng([seed, len(labels)]).permutation(len(labels))[: job.size])
        images, labels = images[rows], labels[rows]
    kept, apart = stratified_split(labels, validation_fraction, seed)
    validation = images[apart], labels[apart]
    predict = classifiers_lib.fit(
        job.classifier, images[kept], labels[kept], num_classes, validation=validation, seed=seed
    )
    return predict(test_images), np.mean(predict(validation[0]).argmax(axis=-1) == validation[1])


def no_better_than_guessing(fields: dict) -> list[str]:
    """Returns the classifiers that, trained on samples, are no better than naming the most frequent class always."""
    found = []
    for entry in fields.get('classifiers', []):
        counts = [of_class['images'] for of_class in entry['synthetic_images']['per_class']]
        if len(counts) > 1 and entry['synthetic_images']['accuracy_mean'] <= max(counts) / sum(counts):
            found.append(entry['classifier'])
    return found


def accuracies(fields: dict) -> list[tuple[str, str, float]]:
    """Returns (classifier, what it was trained on, its accuracy) of what `measure` has written down."""
    return [
        (entry['classifier'], source, entry[source]['accuracy'])
        for entry in fields.get('classifiers', [])
        for source in ('synthetic_images', 'real_images')
        if entry[source]
    ]
