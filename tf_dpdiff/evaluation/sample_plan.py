"""Which images are sampled: their seeds, their classes, and in which files they go."""

from collections.abc import Mapping, Sequence
import dataclasses
import fractions
from typing import Any

import numpy as np

from tf_dpdiff.data import classes as classes_lib
from tf_dpdiff.data import tfds_writer

FORMATS = ('tfds', 'png', 'npz')
# Images sampled at a time. Fixed, since the last bits of a network depend on the size of its batch.
CHUNK_SIZE = 250
NO_CLASS = classes_lib.NO_CLASS

# 2**64 divided by the golden ratio, and odd: its multiples, modulo 2**64, fill the numbers evenly in every window.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class ClassChoice:
    """Which class an image is of: a function of its seed alone, so that any part of a set knows its own.

    Example:
        >>> ClassChoice((3, 7)).labels(np.arange(4))
        array([3, 7, 3, 7], dtype=int32)

    Attributes:
      classes: Labels; the number of classes stands for "no class".
      weights: How often each is drawn against the others, or None for equal parts. In any window of consecutive seeds
        the counts follow the weights within a few images.
    """

    classes: tuple[int, ...]
    weights: tuple[fractions.Fraction, ...] | None = None

    def __post_init__(self):
        if not self.classes or len(set(self.classes)) != len(self.classes) or min(self.classes) < 0:
            raise ValueError(f'classes must be distinct labels from 0, and at least one; got {self.classes}.')
        if self.weights is None:
            return
        if len(self.weights) != len(self.classes):
            raise ValueError(f'there are {len(self.weights)} weights for {len(self.classes)} classes.')
        if min(self.weights) < 0 or not sum(self.weights):
            raise ValueError(
                'weights of classes must not be negative, and at least one must be above 0; got '
                f'{", ".join(map(str, self.weights))}.'
            )

    def labels(self, seeds: np.ndarray) -> np.ndarray:
        """Returns labels, int32 [images], of seeds, int64 [images], none of them negative."""
        if self.weights is None:
            return np.array(self.classes, np.int32)[seeds % len(self.classes)]
        drawn = [(label, weight) for label, weight in zip(self.classes, self.weights) if weight]
        total, passed, thresholds = sum(weight for _, weight in drawn), fractions.Fraction(0), []
        for _, weight in drawn[:-1]:
            passed += weight
            thresholds.append(int(passed / total * 2**64))  # Exact, and below 2**64: the last weight is above 0.
        places = np.searchsorted(np.array(thresholds, np.uint64), seeds.astype(np.uint64) * _GOLDEN, side='right')
        return np.array([label for label, _ in drawn], np.int32)[places]


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """All that a set of samples follows from; two runs of the same plan make the same files.

    Attributes:
      num_images: How many.
      seed: Image i has the seed seed + i.
      choice: The class of each.
      image_shape: (height, width, channels).
      class_names: One a class.
      format: 'tfds', a data set of TensorFlow Datasets; 'png', a folder a class; 'npz', arrays.
      name: Of the data set, where the format is 'tfds'.
      origin: What identifies the model and its sampler, as plain JSON values.
      shard_size: Images that are written, or lost by a kill, together.
      chunk_size: Images that are sampled together: seeds from a multiple of it to the next.
    """

    num_images: int
    seed: int
    choice: ClassChoice
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    format: str = 'npz'
    name: str | None = None
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shard_size: int = 10000
    chunk_size: int = CHUNK_SIZE

    def __post_init__(self):
        for name in ('num_images', 'shard_size', 'chunk_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the samples must be at least 1, got {getattr(self, name)}.')
        check_seeds(self.seed, self.num_images, self.chunk_size)
        if len(set(self.class_names)) != len(self.class_names) or NO_CLASS in self.class_names:
            raise ValueError(
                f'classes must have distinct names, none of them {NO_CLASS!r}; got {", ".join(self.class_names)}.'
            )
        if max(self.choice.classes) > len(self.class_names):
            raise ValueError(f'there is no class {max(self.choice.classes)} among {len(self.class_names)}.')
        if self.format not in FORMATS:
            raise ValueError(f'format of the samples must be one of {FORMATS}, got {self.format!r}.')
        if (self.name is not None) != (self.format == 'tfds'):
            raise ValueError(
                f'a name is what samples of the format tfds have, got name={self.name!r} and format={self.format!r}.'
            )
        if self.format == 'tfds':
            tfds_writer.check_name(self.name)
        if self.format == 'png':
            for label in self.choice.classes:
                _check_folder_name(self.name_of(label))

    @property
    def num_shards(self) -> int:
        """How many files, or groups of files, the images are written in."""
        return -(-self.num_images // self.shard_size)

    def seeds_of(self, shard: int) -> tuple[int, int]:
        """Returns the first seed of a shard and the one after its last."""
        first = shard * self.shard_size
        return self.seed + first, self.seed + min(first + self.shard_size, self.num_images)

    def name_of(self, label: int) -> str:
        """Returns the name of a class, or of "no class"."""
        return self.class_names[label] if label < len(self.class_names) else NO_CLASS

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as plain JSON values."""
        names = [self.name_of(label) for label in self.choice.classes]
        weights = self.choice.weights and dict(zip(names, map(str, self.choice.weights)))
        return {
            **self.origin,
            'num_images': self.num_images,
            'seed': self.seed,
            'classes': names,
            'class_weights': weights,
            'image_shape': list(self.image_shape),
            'class_names': list(self.class_names),
            'format': self.format,
            'name': self.name,
            'shard_size': self.shard_size,
            'chunk_size': self.chunk_size,
        }


def from_json(fields: Mapping[str, Any]) -> SamplePlan:
    """Returns the plan that `SamplePlan.to_json` returned as JSON.

    Raises:
      ValueError: if there is no such plan.
    """
    fields = dict(fields)
    try:
        names, chosen, weights = (fields.pop(key) for key in ('class_names', 'classes', 'class_weights'))
        weights = weights and tuple(fractions.Fraction(weights[name]) for name in chosen)
        choice = ClassChoice(tuple(len(names) if name == NO_CLASS else names.index(name) for name in chosen), weights)
        known = {field.name for field in dataclasses.fields(SamplePlan)}
        given = {key: fields.pop(key) for key in list(fields) if key in known}
        given['image_shape'] = tuple(given['image_shape'])
        return SamplePlan(choice=choice, class_names=tuple(names), origin=fields, **given)
    except (KeyError, TypeError) as error:
        raise ValueError(f'this is no plan of samples: {error}.') from error


def check_seeds(seed: int, num_images: int, chunk_size: int) -> None:
    """Checks that all seeds are int64 and not negative, those of the last chunk too.

    Raises:
      ValueError: if not.
    """
    if seed < 0 or seed + num_images + chunk_size > 2**63:
        raise ValueError(
            f'seeds of the samples must be from 0 to 2**63 - 1, got seed={seed} and num_images={num_images}.'
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns 'name: before then, now now' for each value in which two plans, as JSON, differ."""
    return [
        f'{key}: {_short(before.get(key))} then, {_short(now.get(key))} now'
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    text = ', '.join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + '...'


def _check_folder_name(name: str) -> None:
    if not name or name.startswith('.') or set(name) & set('/\\\0'):
        raise ValueError(f'the class {name!r} can name no folder; choose the format tfds or npz.')
