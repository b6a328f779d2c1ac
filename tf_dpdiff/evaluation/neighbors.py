"""Are samples copies of private images? Distances to the nearest training image, beside those of held-out images.

Pictures and numbers come from private images without noise: they are for the owner of the data, and not to be released.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.data import overlap
from tf_dpdiff.evaluation import features as features_lib
from tf_dpdiff.evaluation import pictures

SPACES = {'features': 'Euclidean, of features', 'pixels': 'Euclidean, of pixels in [0, 1]'}
QUANTILES = {'min': 0.0, '1%': 0.01, '5%': 0.05, '25%': 0.25, '50%': 0.5, '75%': 0.75}
# The nearest held-out images tell of exact copies, the nearer half of them of copies with noise.
NEAR = ('1%', '50%')

_NEIGHBORS_SHOWN = 3
_UNLIKELY = 0.001
_CHUNK_VALUES = 2**24


@dataclasses.dataclass(frozen=True)
class NeighborsConfig:
    """How samples are searched for copies.

    Attributes:
      max_samples: Samples, and held-out images, whose nearest training image is looked for, at most: among all
        training images.
      shown: Samples in the picture, and as many held-out images: those that are nearest to a training image.
      space: Which distance chooses what is shown, 'features' or 'pixels'; numbers are of both.
    """

    max_samples: int = 1000
    shown: int = 8
    space: str = 'features'

    def __post_init__(self):
        for name in ('max_samples', 'shown'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the nearest neighbours must be at least 1, got {getattr(self, name)}.')
        if self.space not in SPACES:
            raise ValueError(f'space of the nearest neighbours must be one of {tuple(SPACES)}, got {self.space!r}.')


@dataclasses.dataclass(frozen=True)
class NearShare:
    """How many samples are nearer to training images than a part of the held-out images is.

    Attributes:
      share: The part of the samples that is nearer.
      expected: The share to expect where samples keep as far from training images as held-out images do.
      probability_by_chance: How likely so many near samples, or more, then are. Exact for independent draws of one
        continuous distribution: the number of samples below an order statistic of others is beta-binomial.
    """

    share: float
    expected: float
    probability_by_chance: float


@dataclasses.dataclass(frozen=True, eq=False)
class Distances:
    """Distances to the nearest training image, in one space.

    Attributes:
      synthetic: Those of samples, float64 [samples].
      held_out: Those of held-out real images, float64 [held-out images].
    """

    synthetic: np.ndarray
    held_out: np.ndarray

    def near_share(self, level: float) -> NearShare:
        """Returns the number of samples that are nearer than the quantile at `level`, in (0, 1), of held-out images."""
        from scipy import stats

        num_nearer = int(np.sum(self.synthetic < _quantile(self.held_out, level)))
        rank = _rank(level, len(self.held_out))
        law = stats.betabinom(len(self.synthetic), rank, len(self.held_out) + 1 - rank)
        return NearShare(
            num_nearer / len(self.synthetic),
            rank / (len(self.held_out) + 1),
            float(np.clip(law.sf(num_nearer - 1), 0.0, 1.0)),
        )

    def to_dict(self) -> dict:
        """Returns JSON-able quantiles of both, and how many samples are near."""
        groups = {'synthetic': self.synthetic, 'held_out': self.held_out}
        return {
            'quantiles': {
                name: {key: _quantile(group, level) for key, level in QUANTILES.items()}
                for name, group in groups.items()
            },
            'nearer_than_held_out': {key: dataclasses.asdict(self.near_share(QUANTILES[key])) for key in NEAR},
        }


@dataclasses.dataclass(frozen=True, eq=False)
class NeighborsResult:
    """What the search found: PRIVATE.

    Attributes:
      features: Name and hash of the network that gave the features.
      distances: By space.
      exact_copies: How many different images are pixel by pixel the same as a training image, of all 'synthetic' and
        all 'held_out' images.
      num_train: Training images searched.
      picture: uint8 [height, width, channels]. A row for each of the samples that are nearest to a training image: the
        sample and its nearest training images; then, beyond a grey field, the same for the held-out images. Exact
        copies are among them even where `max_samples` left them out of the distances.
    """

    features: dict[str, str]
    distances: dict[str, Distances]
    exact_copies: dict[str, int]
    num_train: int
    picture: np.ndarray

    @property
    def verdict(self) -> str:
        """One sentence on what was found."""
        copies = self.exact_copies
        heuristic = 'a heuristic, not a proof: the guarantee is that of the privacy statement'
        if copies['synthetic']:
            return (
                f'Copies among the samples: {copies["synthetic"]:,} of the different ones equal a private training '
                f'image pixel by pixel, {copies["held_out"]:,} of the different held-out images do ({heuristic}).'
            )
        found = {
            (name, key): distances.near_share(QUANTILES[key])
            for name, distances in self.distances.items()
            for key in NEAR
        }
        (name, key), most = min(found.items(), key=lambda item: item[1].probability_by_chance)
        share = (
            f'{most.share:.1%} are nearer by {name} than the nearest {key} of held-out images, where '
            f'{most.expected:.1%} are expected'
        )
        if most.probability_by_chance < _UNLIKELY:
            return (
                f'Samples lie nearer to private training images than held-out images do ({share}): copies do, and '
                f'so do smooth or typical samples, so look at the picture ({heuristic}).'
            )
        return (
            f'No sign of copies: samples lie no nearer to private training images than held-out images do ({share}'
            f'; {heuristic}).'
        )

    def to_dict(self) -> dict:
        """Returns all but the picture, JSON-able."""
        compared = next(iter(self.distances.values()))
        return {
            **self.features,
            'num_synthetic': len(compared.synthetic),
            'num_held_out': len(compared.held_out),
            'num_train': self.num_train,
            'exact_copies': self.exact_copies,
            'spaces': {name: {'distance': SPACES[name], **found.to_dict()} for name, found in self.distances.items()},
            'verdict': self.verdict,
        }


def find(
    config: NeighborsConfig,
    extractor: features_lib.Extractor,
    *,
    synthetic: np.ndarray,
    train: datasets.ImageDataset,
    held_out: datasets.ImageDataset,
) -> NeighborsResult | None:
    """Finds the nearest private training images of samples and, to compare with, of held-out real images.

    A model that has memorised gives samples nearer to training images than new real images are. Not to be released.

    Args:
      config: How many.
      extractor: From `features.load`; all of its workers call this.
      synthetic: Samples, uint8 [images, height, width, channels].
      train: The private training images, all of which are searched.
      held_out: Real images never trained on.

    Returns:
      Distances, copies and a picture; at the other workers than the first, which only share the work of the features,
      None.
    """
    digests = overlap.image_digests(train.images_uint8)
    queries, num_drawn, copies = [], [], {}
    for name, images in (('synthetic', synthetic), ('held_out', held_out.images_uint8)):
        own_digests = np.concatenate([overlap.image_digests(image[None]) for image in images])
        is_copy = np.isin(own_digests, digests)
        copies[name] = len(np.unique(own_digests[is_copy]))
        rows = _draw(len(images), config.max_samples)
        num_drawn.append(len(rows))
        # To be shown: distances are those of the images that were drawn.
        more = np.setdiff1d(np.flatnonzero(is_copy), rows)[: config.shown]
        queries.append(images[np.concatenate([rows, more])])
    count = min(_NEIGHBORS_SHOWN, len(train))
    points: dict[str, tuple[list[np.ndarray], np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
        'features': ([extractor(images).pool for images in queries], extractor(train.images_uint8).pool, np.asarray),
        'pixels': (queries, train.images_uint8, pixels),
    }
    if not extractor.workers.is_first:
        return None
    found = {
        name: [nearest(group, references, count, to_points=to_points) for group in groups]
        for name, (groups, references, to_points) in points.items()
    }
    shown = [_most_alike(images, *group, config.shown) for images, group in zip(queries, found[config.space])]
    return NeighborsResult(
        features={'features': extractor.name, 'weights_sha256': extractor.weights_sha256},
        distances={
            name: Distances(*(distances[:drawn, 0] for (distances, _), drawn in zip(groups, num_drawn)))
            for name, groups in found.items()
        },
        exact_copies=copies,
        num_train=len(train),
        picture=_draw_picture(train.images_uint8, *shown),
    )


def pixels(images_uint8: np.ndarray) -> np.ndarray:
    """Returns the pixels of images, uint8 [images, ...], as points, float32 [images, pixels], in [0, 1]."""
    return images_uint8.reshape(len(images_uint8), -1).astype(np.float32) / np.float32(255.0)


def nearest(
    queries: np.ndarray,
    references: np.ndarray,
    count: int,
    *,
    to_points: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest of many points, of which no more than a chunk is held in memory.

    Args:
      queries: [queries, ...].
      references: [references, ...], at least `count`; a memory map does.
      count: How many of the nearest, >= 1.
      to_points: Turns a chunk of either into float [chunk, dimensions].

    Returns:
      Distances, float64 [queries, count], from the nearest on, and rows of the references, int64 [queries, count].
    """
    # Imported here: scikit-learn takes a second that a dry run need not wait for.
    from sklearn import neighbors as sklearn_neighbors

    query_points = to_points(queries)
    distances = np.full([len(queries), count], np.inf)
    rows = np.zeros([len(queries), count], np.int64)
    step = max(count, _CHUNK_VALUES // query_points.shape[1])
    with progress.bar(len(references), 'neighbours', 'image', delay_secs=1.0) as bar:
        for start in range(0, len(references), step):
            chunk = to_points(references[start : start + step])
            index = sklearn_neighbors.NearestNeighbors(n_neighbors=min(count, len(chunk)), algorithm='brute').fit(chunk)
            found = index.kneighbors(query_points)
            distances, rows = np.hstack([distances, found[0]]), np.hstack([rows, found[1] + start])
            order = np.argsort(distances, axis=1, kind='stable')[:, :count]
            distances, rows = (np.take_along_axis(a, order, axis=1) for a in (distances, rows))
            bar.update(len(chunk))
    # They were found by |x|^2 - 2xy + |y|^2, which leaves a copy a little off.
    for row, point in enumerate(query_points):
        found = to_points(references[rows[row]]).astype(np.float64)
        distances[row] = np.linalg.norm(found - point, axis=1)
    order = np.argsort(distances, axis=1, kind='stable')
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _draw(num_images: int, max_images: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(num_images)[:max_images])


def _rank(level: float, count: int) -> int:
    """Returns which of so many values, from the smallest on and counted from 1, is the quantile."""
    return max(1, int(np.ceil(level * count)))


def _quantile(values: np.ndarray, level: float) -> float:
    return float(np.sort(values)[_rank(level, len(values)) - 1])


def _most_alike(
    images: np.ndarray, distances: np.ndarray, rows: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images that are nearest to a training image, and which ones are near."""
    order = np.argsort(distances[:, 0], kind='stable')[:count]
    return images[order], rows[order]


def _draw_picture(train_images: np.ndarray, *groups: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Draws a grid with a row a sample: the first group and its neighbours, a grey field, the second group."""
    num_rows = max(len(images) for images, _ in groups)
    cells: list[np.ndarray] = []
    cell_rows: list[int] = []
    for row in range(num_rows):
        for group, (images, rows) in enumerate(groups):
            if group:
                cells.append(np.full_like(train_images[0], pictures.GREY))
            blank = np.zeros_like(train_images[0])
            found = row < len(images)
            cells.append(images[row] if found else blank)
            cells.extend(train_images[neighbor] if found else blank for neighbor in rows[min(row, len(rows) - 1)])
        cell_rows.extend([row] * (len(cells) - len(cell_rows)))
    return pictures.class_grid(np.stack(cells), np.array(cell_rows), columns=len(cells) // num_rows, max_rows=num_rows)
