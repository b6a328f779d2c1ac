"""Hyperparameters chosen on samples alone, and whether real images would have chosen the same."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import classifiers as classifiers_lib
from tf_dpdiff.evaluation import utility
from tf_dpdiff.sampling import shared_work

Pair = classifiers_lib.Pair

_STOPPING_FRACTION = 0.1  # Of the images that a network is trained on.
_BAR_DELAY_SECS = 2.0  # What takes less shows no progress bar.


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """Which classifiers are candidates, and by what they are compared.

    Attributes:
      candidates: At least two: names of `classifiers.CLASSIFIERS`, (name, options), or ClassifierConfigs.
      num_seeds: How often a candidate with random weights is trained; its accuracy is the mean.
      validation_fraction: Share of the samples of each class, in (0, 1), that no candidate is trained on and by which
        they are compared.
      measure_on_real: Whether private images may be looked at, to tell what the choice is worth. The choice itself
        never depends on them.
      seed: Of splits and classifiers.
    """

    candidates: Sequence[classifiers_lib.ConfigLike]
    num_seeds: int = 1
    validation_fraction: float = 0.2
    measure_on_real: bool = True
    seed: int = 0

    def __post_init__(self):
        if isinstance(self.candidates, str) or not isinstance(self.candidates, Sequence) or len(self.candidates) < 2:
            raise ValueError(f'candidates of the selection must be at least two classifiers, got {self.candidates!r}.')
        configs = tuple(classifiers_lib.as_config(value) for value in self.candidates)
        classifiers_lib.titles(configs)  # Refuses the same one twice.
        object.__setattr__(self, 'candidates', configs)
        for field, minimum in (('num_seeds', 1), ('seed', 0)):
            value = getattr(self, field)
            if not isinstance(value, int) or value < minimum:
                raise ValueError(f'{field} of the selection must be a whole number, at least {minimum}, got {value!r}.')
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(f'validation_fraction of the selection must be in (0, 1), got {self.validation_fraction}.')

    @property
    def configs(self) -> tuple[classifiers_lib.ClassifierConfig, ...]:
        """The candidates, each as a configuration."""
        return tuple(map(classifiers_lib.as_config, self.candidates))


def fitting(config: SelectionConfig, image_shape: Sequence[int]) -> tuple[SelectionConfig, list[str]]:
    """Returns the selection without candidates that images are too small for, and a sentence where there are such.

    Raises:
      ValueError: if fewer than two candidates are left.
    """
    kept, too_large = classifiers_lib.split_by_size(config.configs, image_shape)
    if not too_large:
        return config, []
    names = ', '.join(dict.fromkeys(other.name for other in too_large))
    size = 'x'.join(map(str, image_shape[:2]))
    said = f'left out of SelectionConfig.candidates, since images of {size} are too small: {names}'
    return dataclasses.replace(config, candidates=kept), [said]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A candidate and its accuracies in [0, 1], each a mean over seeds.

    Attributes:
      title: What tells it from the others.
      classifier: Its name in `classifiers.CLASSIFIERS`.
      settings: All of its options.
      synthetic_accuracy: On synthetic validation images, trained on the other samples: what is chosen by.
      transfer_accuracy: The same classifier on held-out real images; None where real images are not looked at.
      real_accuracy: On held-out real images, trained on the private ones; None where those are not looked at.
    """

    title: str
    classifier: str
    settings: Mapping[str, Any]
    synthetic_accuracy: float
    transfer_accuracy: float | None = None
    real_accuracy: float | None = None


@dataclasses.dataclass(frozen=True)
class SelectionResult:
    """What was measured.

    Attributes:
      candidates: By synthetic accuracy, the best first; equals in the order in which they were given. The first one is
        chosen.
      num_synthetic: How many samples were trained on, and how many compared by.
      num_real: How many private images were trained on, and how many held-out ones tested with; None where real images
        were not looked at.
      num_seeds: Trainings of a candidate with random weights.
    """

    candidates: tuple[Candidate, ...]
    num_synthetic: tuple[int, int]
    num_real: tuple[int, int] | None
    num_seeds: int

    @property
    def chosen(self) -> Candidate:
        """The candidate that does best on synthetic images; the one given first of several equal ones."""
        return self.candidates[0]

    @property
    def tied_with(self) -> tuple[str, ...]:
        """Titles of candidates given later that are as good on synthetic images as the chosen one."""
        return tuple(
            other.title for other in self.candidates[1:] if other.synthetic_accuracy == self.chosen.synthetic_accuracy
        )

    def to_dict(self) -> dict:
        """Returns JSON-able fields; PRIVATE where real images were looked at.

        Returns:
          What is held here; where real images were looked at, also `rank_correlation` of each two of the three
          accuracies and, for either way to train what is deployed, `regret`: which candidate is best on real images and
          what the choice loses against it.
        """
        fields = {
            'chosen': self.chosen.title,
            'tied_with': list(self.tied_with),
            'num_synthetic_train': self.num_synthetic[0],
            'num_synthetic_validation': self.num_synthetic[1],
            'num_real_train': None if self.num_real is None else self.num_real[0],
            'num_real_test': None if self.num_real is None else self.num_real[1],
            'num_seeds': self.num_seeds,
            'candidates': [dataclasses.asdict(candidate) for candidate in self.candidates],
            'rank_correlation': None,
            'regret': None,
        }
        if self.num_real is not None:
            pairs = (('synthetic', 'transfer'), ('synthetic', 'real'), ('transfer', 'real'))
            fields['rank_correlation'] = {
                f'{first}_and_{second}': rank_correlation(self._column(first), self._column(second))
                for first, second in pairs
            }
            fields['regret'] = {name: self._regret(name) for name in ('transfer', 'real')}
        return fields

    def _column(self, name: str) -> list[float]:
        return [getattr(candidate, f'{name}_accuracy') for candidate in self.candidates]

    def _regret(self, name: str) -> dict:
        accuracies = self._column(name)
        best = int(np.argmax(accuracies))
        return {
            'best': self.candidates[best].title,
            'best_accuracy': accuracies[best],
            'chosen_accuracy': accuracies[0],
            'regret': accuracies[best] - accuracies[0],
        }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> dict[str, float | None]:
    """Returns in how far two measures rank candidates alike.

    Args:
      first: A number a candidate.
      second: A number a candidate.

    Returns:
      'spearman' and 'kendall' (tau-b), in [-1, 1]; None where one of the measures is the same for all candidates.

    Example:
        >>> rank_correlation([0.1, 0.2, 0.3], [0.5, 0.6, 0.9])['kendall']
        1.0
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return {'spearman': None, 'kendall': None}
    # Imported here: it takes a second that a dry run need not wait for.
    from scipy import stats

    return {
        'spearman': float(stats.spearmanr(first, second).statistic),
        'kendall': float(stats.kendalltau(first, second).statistic),
    }


class _Trial(NamedTuple):
    """What candidates are trained on and tested with."""

    pair: Pair
    num_classes: int
    tests: Sequence[Pair]


def select(
    config: SelectionConfig,
    images: np.ndarray,
    labels: np.ndarray,
    train: datasets.ImageDataset | None,
    held_out: datasets.ImageDataset | None,
    *,
    workers: workers_lib.Workers = workers_lib.ALONE,
) -> SelectionResult:
    """Chooses a classifier by samples alone and, where allowed, tells what the choice is worth on real images.

    Guarantee: the order of the candidates depends on the samples and on nothing else, so it costs no privacy beyond
    theirs. The other numbers come from private images without noise: they are for the owner of the data.

    Args:
      config: The candidates.
      images: Samples, uint8 [images, height, width, channels].
      labels: Their labels, int32 [images], at least 0.
      train: The private training images; not touched unless config.measure_on_real.
      held_out: Real images never trained on; not touched unless config.measure_on_real.
      workers: All of them call this with the same data, and each makes its share of the trainings.

    Returns:
      The result, at every worker.

    Raises:
      ValueError: if there are too few samples.
      workers_lib.WorkerLostError: if another worker is gone or failed.

    References: Ghalebikesabi et al. 2023, arXiv:2302.13861, figure 4.
    """
    kept, apart = utility.stratified_split(labels, config.validation_fraction, config.seed)
    synthetic, validation = (images[kept], labels[kept]), (images[apart], labels[apart])
    trials = [_Trial(synthetic, int(labels.max()) + 1, [validation])]
    num_real: tuple[int, int] | None = None
    if config.measure_on_real:
        assert train is not None and held_out is not None
        test = held_out.images_uint8, held_out.labels
        trials = [
            trials[0]._replace(tests=[validation, test]),
            _Trial((train.images_uint8, train.labels), train.num_classes, [test]),
        ]
        num_real = len(train), len(held_out)
    tasks = [
        (candidate, of, seed) for candidate in config.configs for of in trials for seed in _seeds(config, candidate)
    ]
    own = (_num_right(config, *task) for task in tasks[workers.index :: workers.count])
    results, found = shared_work.spread(workers, len(tasks), own), []
    with progress.bar(
        len(config.candidates),
        'selection',
        'candidate',
        delay_secs=_BAR_DELAY_SECS,
        leave=False,
        disable=not workers.is_first,
    ) as bar:
        for title, candidate in zip(classifiers_lib.titles(config.configs), config.configs):
            bar.set_description(title, refresh=False)
            accuracies, num_seeds = [], len(_seeds(config, candidate))
            for of in trials:
                num_right = np.sum([next(results)[0] for _ in range(num_seeds)], axis=0)
                accuracies += [
                    float(right / (num_seeds * len(truth))) for right, (_, truth) in zip(num_right, of.tests)
                ]
            found.append(Candidate(title, candidate.name, candidate.settings, *accuracies))
            bar.update()
    found.sort(key=lambda candidate: -candidate.synthetic_accuracy)  # Stable: equals stay in the order given.
    return SelectionResult(tuple(found), (len(kept), len(apart)), num_real, config.num_seeds)


def _seeds(config: SelectionConfig, candidate: classifiers_lib.ClassifierConfig) -> Sequence[int]:
    return range(config.seed, config.seed + (config.num_seeds if candidate.is_seeded else 1))


def _num_right(
    config: SelectionConfig, candidate: classifiers_lib.ClassifierConfig, of: _Trial, seed: int
) -> tuple[np.ndarray]:
    """Trains a candidate once; returns how many of each set of test images it classifies right.

    They are whole numbers, so that the mean accuracies of equal candidates are exactly equal.
    """
    (images, labels), stopping = of.pair, None
    if candidate.stops_early:  # By a part of its own images: neither by what candidates are compared by nor by a test.
        kept, apart = utility.stratified_split(labels, _STOPPING_FRACTION, config.seed)
        images, labels, stopping = images[kept], labels[kept], (images[apart], labels[apart])
    predict = classifiers_lib.fit(candidate, images, labels, of.num_classes, validation=stopping, seed=seed)
    return (np.array([np.sum(predict(test).argmax(axis=-1) == truth) for test, truth in of.tests], np.int64),)
