"""Classifiers of images by name: networks and those of scikit-learn, behind one call."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
from typing import Any, NamedTuple
import warnings

import numpy as np

from tf_dpdiff.evaluation import network_training
from tf_dpdiff.networks import classifiers as networks
from tf_dpdiff.networks import precision

Predict = network_training.Predict
Pair = network_training.Pair

# Below this number of values, threads cost more than they bring: where others use the cores, fifty times.
_ONE_THREAD_BELOW = 2**24


class _Option(NamedTuple):
    """What an option is if nothing is said, and what it may be."""

    default: Any
    is_right: Callable[[Any], bool]
    what: str


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(default, minimum: int = 1) -> _Option:
    return _Option(
        default,
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= minimum,
        f'a whole number, at least {minimum}',
    )


def _positive(default) -> _Option:
    return _Option(default, lambda value: _is_number(value) and 0.0 < value < float('inf'), 'a number above 0')


def _not_negative(default) -> _Option:
    return _Option(default, lambda value: _is_number(value) and 0.0 <= value < float('inf'), 'a number, at least 0')


_SHIFT = _Option(0.125, lambda value: _is_number(value) and 0.0 <= value < 1.0, 'a number in [0, 1)')
_FLIP = _Option(False, lambda value: isinstance(value, bool), 'True or False')
_GAMMA = _Option(
    'scale', lambda value: value == 'scale' or _positive(1.0).is_right(value), "'scale' or a number above 0"
)
_DTYPE = _Option('float32', lambda value: value in precision.COMPUTE_DTYPES, f'one of {precision.COMPUTE_DTYPES}')
_DEPTH = _Option(None, lambda value: value is None or _whole(1).is_right(value), 'None or a whole number, at least 1')

# Of each classifier: its options.
CLASSIFIERS: dict[str, dict[str, _Option]] = {
    'wrn_40_4': {
        'learning_rate': _positive(0.1),
        'num_epochs': _whole(100),
        'min_steps': _whole(2000),
        'batch_size': _whole(128),
        'weight_decay': _not_negative(5e-4),
        'shift': _SHIFT,
        'flip': _FLIP,
        'patience': _whole(30),
        'compute_dtype': _DTYPE,
    },
    'small_cnn': {
        'width': _whole(16),
        'learning_rate': _positive(3e-3),
        'num_epochs': _whole(12),
        'min_steps': _whole(200),
        'batch_size': _whole(128),
        'weight_decay': _not_negative(1e-4),
        'shift': _SHIFT,
        'flip': _FLIP,
        'patience': _whole(6),
        'compute_dtype': _DTYPE,
    },
    'logistic_regression': {'C': _positive(1.0), 'max_iter': _whole(1000)},
    'gradient_boosting': {
        'learning_rate': _positive(0.1),
        'max_iter': _whole(60),
        'max_leaf_nodes': _whole(15, 2),
        'max_depth': _DEPTH,
        'l2_regularization': _not_negative(0.0),
    },
    'rbf_svm': {'C': _positive(1.0), 'gamma': _GAMMA},
    'mlp': {
        'width': _whole(128),
        'learning_rate': _positive(1e-3),
        'num_epochs': _whole(100),
        'batch_size': _whole(200),
        'weight_decay': _not_negative(1e-4),
    },
}
# Of each that is a network: what builds it, and the optimizer.
_NETWORKS = {'wrn_40_4': (networks.wide_resnet, 'sgd'), 'small_cnn': (networks.small_cnn, 'adam')}
_SEEDED = (*_NETWORKS, 'mlp')


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """A classifier and what is set of it.

    Attributes:
      name: 'wrn_40_4' (the paper's: a wide residual network of 8.9 million parameters), 'small_cnn' (a few
        convolutions), 'logistic_regression', 'gradient_boosting' (of histograms), 'rbf_svm' or 'mlp' (these four by
        scikit-learn).
      options: A mapping, or pairs, of what is not left at its default; see CLASSIFIERS. Kept as pairs, sorted.

    Example:
        >>> ClassifierConfig('rbf_svm', {'C': 10.0}).settings
        {'C': 10.0, 'gamma': 'scale'}
    """

    name: str
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        if not isinstance(self.name, str) or self.name not in CLASSIFIERS:
            raise ValueError(
                f'classifier must be one of {tuple(CLASSIFIERS)}, got {self.name!r}'
                f'{_nearest(str(self.name), CLASSIFIERS)}.'
            )
        try:
            given = dict(self.options)
        except (TypeError, ValueError) as error:
            raise ValueError(f'options of {self.name!r} must be names with values, got {self.options!r}.') from error
        known = CLASSIFIERS[self.name]
        if len(given) < len(self.options):
            raise ValueError(f'options of {self.name!r} must be named once each, got {self.options!r}.')
        for option, value in given.items():
            if option not in known:
                raise ValueError(
                    f'{self.name!r} has no option {option!r}{_nearest(str(option), known)}; it has {", ".join(known)}.'
                )
            if not known[option].is_right(value):
                raise ValueError(f'{option} of {self.name!r} must be {known[option].what}, got {value!r}.')
        object.__setattr__(self, 'options', tuple(sorted(given.items())))

    @property
    def settings(self) -> dict[str, Any]:
        """All options with their values."""
        return {**{name: option.default for name, option in CLASSIFIERS[self.name].items()}, **dict(self.options)}

    @property
    def is_seeded(self) -> bool:
        """Whether two seeds give two classifiers; if not, an ensemble of seeds is one classifier."""
        return self.name in _SEEDED

    @property
    def stops_early(self) -> bool:
        """Whether it looks at validation images while it is trained; the others can have all images to train on."""
        return self.name in _NETWORKS


def split_by_size(
    configs: Sequence[ClassifierConfig], image_shape: Sequence[int]
) -> tuple[tuple[ClassifierConfig, ...], tuple[ClassifierConfig, ...]]:
    """Returns the classifiers that images of a shape are large enough for, and the others."""
    is_large = min(image_shape[:2]) >= networks.MIN_IMAGE_SIDE
    kept = tuple(config for config in configs if is_large or config.name not in _NETWORKS)
    return kept, tuple(config for config in configs if config not in kept)


ConfigLike = ClassifierConfig | str | tuple[str, Mapping[str, Any]]


def as_config(value: ConfigLike) -> ClassifierConfig:
    """Returns a configuration for itself, for a name, or for a name with options, as configuration files write them."""
    if isinstance(value, ClassifierConfig):
        return value
    if isinstance(value, str):
        return ClassifierConfig(value)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return ClassifierConfig(*value)
    raise ValueError(f'a classifier is a name, or (name, options), got {value!r}.')


def titles(configs: Sequence[ClassifierConfig]) -> tuple[str, ...]:
    """Returns a short title of each: its name and, where several share it, the options that tell them apart.

    Raises:
      ValueError: if two are equal.
    """
    found = []
    for config in configs:
        rivals = [other.settings for other in configs if other.name == config.name]
        telling = [option for option in config.settings if len({str(rival[option]) for rival in rivals}) > 1]
        found.append(' '.join([config.name, *(f'{option}={_short(config.settings[option])}' for option in telling)]))
    twice = [title for title in found if found.count(title) > 1]
    if twice:
        raise ValueError(f'classifier {twice[0]!r} is given twice.')
    return tuple(found)


def fit(
    config: ClassifierConfig,
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    validation: Pair | None = None,
    seed: int = 0,
) -> Predict:
    """Trains a classifier.

    Touches no global random state. On CPUs the same call gives the same classifier.

    Args:
      config: Which.
      images: uint8 [images, height, width, channels].
      labels: int32 [images], each in [0, num_classes); not every class needs an image.
      num_classes: How many classes there are.
      validation: Images and labels by which networks stop early and choose their weights; others do not look at them.
      seed: Of initial weights, batches, augmentation.

    Returns:
      Maps images, uint8 [n, height, width, channels], to probabilities, float32 [n, num_classes]; those of 'rbf_svm'
      say which class is likelier, and not how likely it is.

    Raises:
      ValueError: if there are no images, or a label is out of range, also of the validation images.
    """
    for what, pair in (('a classifier', (images, labels)), ('validation of a classifier', validation)):
        if pair is not None:
            _check(what, *pair, num_classes)
    settings = config.settings
    if config.name in _NETWORKS:
        build, optimizer = _NETWORKS[config.name]
        of_network = {name: settings.pop(name) for name in ('width', 'compute_dtype') if name in settings}
        model = build(images.shape[1:], num_classes, **of_network, seed=seed)
        training = network_training.TrainingConfig(optimizer, **settings)
        return network_training.train(
            model, training, images, labels, validation=validation, seed=seed, name=config.name
        )
    return _fit_scikit_learn(config, images, labels, num_classes, seed)


def _check(what: str, images, labels, num_classes: int) -> None:
    if not len(images) or len(images) != len(labels):
        raise ValueError(f'{what} needs images and a label of each, got {len(images)} and {len(labels)}.')
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f'labels of {what} must be in [0, {num_classes}), got {labels.min()} to {labels.max()}.')


def _fit_scikit_learn(config: ClassifierConfig, images, labels, num_classes: int, seed: int) -> Predict:
    present = np.unique(labels)
    if len(present) == 1:  # Refused by some of them.
        return lambda test: np.tile(np.eye(num_classes, dtype=np.float32)[present[0]], [len(test), 1])
    # Imported here: scikit-learn takes a second that a dry run need not wait for.
    from sklearn import exceptions
    import threadpoolctl

    def limited(values):
        return threadpoolctl.threadpool_limits(1 if values.size < _ONE_THREAD_BELOW else None)

    classifier, features = _make_scikit_learn(config, len(images), seed), _features(images)
    with limited(features), warnings.catch_warnings():
        warnings.simplefilter('ignore', exceptions.ConvergenceWarning)  # Ending at max_iter is meant.
        classifier.fit(features, labels)

    def predict(test):
        features = _features(test)
        with limited(features):
            if config.name == 'rbf_svm':
                # Its own probabilities are of another classifier, which takes five times as long.
                found = _softmax(classifier.decision_function(features))
            else:
                found = classifier.predict_proba(features)
        probabilities = np.zeros([len(test), num_classes], np.float32)
        probabilities[:, classifier.classes_] = found
        return probabilities

    return predict


def _make_scikit_learn(config: ClassifierConfig, num_images: int, seed: int):

    settings = config.settings
    if config.name == 'logistic_regression':
        from sklearn import linear_model

        return linear_model.LogisticRegression(**settings)
    if config.name == 'gradient_boosting':
        from sklearn import ensemble

        return ensemble.HistGradientBoostingClassifier(**settings, early_stopping=False, random_state=0)
    if config.name == 'rbf_svm':
        from sklearn import svm

        # It draws a number from the global generator unless it is given a seed, though it has no use for one.
        return svm.SVC(**settings, kernel='rbf', break_ties=True, random_state=0)
    from sklearn import neural_network

    return neural_network.MLPClassifier(
        (settings['width'],),
        learning_rate_init=settings['learning_rate'],
        max_iter=settings['num_epochs'],
        batch_size=min(settings['batch_size'], num_images),
        alpha=settings['weight_decay'],
        random_state=seed,
    )


def _features(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / np.float32(255.0)


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Maps scores a class, or one score of two classes, to numbers that add up to 1."""
    if scores.ndim == 1:
        scores = np.stack([-scores, scores], axis=-1) / 2.0
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _short(value) -> str:
    return f'{value:g}' if _is_number(value) and float(f'{value:g}') == value else str(value)


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f' (did you mean {near[0]!r}?)' if near else ''
