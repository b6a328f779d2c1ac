"""Canaries: units made for an audit, each put into the private data with probability 1/2."""

import dataclasses
import secrets

import numpy as np

from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import membership

KINDS = ('own_class', 'mislabelled')
# Bright noise is unlike what else the model sees, so all steps pull the class of a canary the same way. With noise from
# 0 to 255, whose mean is near that of real images, the steps pulled it to and fro.
_DARKEST = 192


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Which canaries, and how they are looked for.

    Attributes:
      num_canaries: m >= 2. About ln(0.8 m / 3) is the largest epsilon that m of them can show.
      kind: 'own_class' (bright random noise with a class of its own: the strongest, since the embedding of that class
        moves only if the canary is trained on) or 'mislabelled' (a held-out image with a wrong label: the model keeps
        its classes).
      timesteps: At which the losses are taken.
      draws_per_timestep: Noise draws at each, the same for all images, >= 1.
      guess_fraction: Share of the canaries that are guessed about, in (0, 1].
      confidence: Of the lower bound, in (0, 1).
      chunk_size: Images whose losses are taken at a time; changes speed and memory only.
      seed: Of the canaries' images and labels and of the noise draws: public. The inclusions have none.
    """

    num_canaries: int = 500
    kind: str = 'own_class'
    timesteps: tuple[int, ...] = (500, 700, 900)
    draws_per_timestep: int = 8
    guess_fraction: float = 0.8
    confidence: float = 0.95
    chunk_size: int = 50
    seed: int = 0

    def __post_init__(self):
        if self.num_canaries < 2:
            raise ValueError(f'num_canaries must be at least 2, got {self.num_canaries}.')
        if self.kind not in KINDS:
            raise ValueError(f'kind of the canaries must be one of {KINDS}, got {self.kind!r}.')
        if not self.timesteps or min(self.timesteps) < 0:
            raise ValueError(f'timesteps of the audit must be one or more, each at least 0, got {self.timesteps}.')
        for name in ('draws_per_timestep', 'chunk_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the audit must be at least 1, got {getattr(self, name)}.')
        if not 0.0 < self.guess_fraction <= 1.0:
            raise ValueError(f'guess_fraction must be in (0, 1], got {self.guess_fraction}.')
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f'confidence must be in (0, 1), got {self.confidence}.')

    @property
    def num_guesses(self) -> int:
        """How many canaries are guessed about."""
        return int(self.guess_fraction * self.num_canaries)


@dataclasses.dataclass(frozen=True, eq=False)
class Canaries:
    """All canaries of an audit, whether in or out.

    Attributes:
      images_uint8: uint8 [canaries, height, width, channels].
      labels: int32 [canaries].
      class_names: Of the audited model.
      non_members: Real images that are neither trained on nor canaries.
    """

    images_uint8: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    non_members: datasets.ImageDataset

    def __len__(self) -> int:
        return len(self.labels)


def draw_inclusions(num_canaries: int) -> np.ndarray:
    """Returns fair and independent coin flips of the operating system's entropy, bool [num_canaries]: PRIVATE."""
    random_bytes = np.frombuffer(secrets.token_bytes(-(-num_canaries // 8)), np.uint8)
    return np.unpackbits(random_bytes)[:num_canaries].astype(bool)


def make_canaries(config: AuditConfig, data: datasets.PrivateData) -> Canaries:
    """Makes the canaries; reads held-out images only.

    Raises:
      ValueError: if more mislabelled canaries are asked for than images are held out.
    """
    generator = np.random.default_rng(config.seed)
    names, held_out = data.spec.class_names, data.held_out
    if config.kind == 'own_class':
        shape = [config.num_canaries, *data.spec.image_shape]
        images = generator.integers(_DARKEST, 256, shape).astype(np.uint8)
        labels = np.arange(config.num_canaries, dtype=np.int32) + len(names)
        names += tuple(f'canary {i}' for i in range(config.num_canaries))
        return Canaries(images, labels, names, with_classes(held_out, names))
    if len(names) < 2:
        raise ValueError(f'mislabelled canaries need two classes, {data.spec.name!r} has one.')
    if config.num_canaries >= len(held_out):
        raise ValueError(
            f'num_canaries={config.num_canaries} mislabelled canaries are made of held-out images, of '
            f"which {held_out.name!r} has {len(held_out)}: take fewer, or kind 'own_class'."
        )
    order = generator.permutation(len(held_out))
    chosen, rest = order[: config.num_canaries], np.sort(order[config.num_canaries :])
    shifts = generator.integers(1, len(names), config.num_canaries)
    labels = ((held_out.labels[chosen] + shifts) % len(names)).astype(np.int32)
    non_members = dataclasses.replace(
        held_out, images_uint8=held_out.images_uint8[rest], labels=held_out.labels[rest], owners=None, num_owners=None
    )
    return Canaries(held_out.images_uint8[chosen], labels, names, non_members)


def insert(train: datasets.ImageDataset, canaries: Canaries, included: np.ndarray) -> datasets.ImageDataset:
    """Returns the private images with the canaries that are in.

    Each canary, in or out, is one unit more: the number of units, which is public and sets the sampling probability,
    does not depend on the inclusions, and a canary that is out is a unit without images, which contributes zero where
    it is drawn.

    Args:
      train: The private images.
      canaries: All canaries.
      included: bool [canaries].

    Returns:
      A data set of train.num_units + len(canaries) units; those of the canaries follow those of train.
    """
    owners = np.arange(len(train)) if train.owners is None else train.owners
    slots = train.num_units + np.flatnonzero(included)
    return dataclasses.replace(
        train,
        name=f'{train.name} with canaries',
        images_uint8=np.concatenate([train.images_uint8, canaries.images_uint8[included]]),
        labels=np.concatenate([train.labels, canaries.labels[included]]).astype(np.int32),
        class_names=canaries.class_names,
        owners=np.concatenate([owners, slots]),
        num_owners=train.num_units + len(canaries),
    )


def scores(image_loss: membership.ImageLoss, canaries: Canaries) -> np.ndarray:
    """Returns the gain in loss of each canary under its label over "no class", float32 [canaries].

    The reference takes out how hard an image is, and what the weights that all classes share have learnt.

    References: Watson et al. 2022, arXiv:2111.08440, for calibrating by difficulty.
    """
    no_class = np.full(len(canaries), len(canaries.class_names), np.int32)
    images = canaries.images_uint8
    return image_loss(images, no_class) - image_loss(images, canaries.labels)


def with_classes(dataset: datasets.ImageDataset, class_names: tuple[str, ...]) -> datasets.ImageDataset:
    """Returns a data set for a model of more classes; its images without a class stay without one."""
    labels = np.where(dataset.labels == dataset.num_classes, len(class_names), dataset.labels).astype(np.int32)
    return dataclasses.replace(dataset, labels=labels, class_names=class_names)
