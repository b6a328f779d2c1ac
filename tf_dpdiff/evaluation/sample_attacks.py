"""Whom do samples give away? Attacks on samples alone: distances to the nearest one, densities, and DOMIAS.

Whoever holds the samples can make them, without the model. They are weak: they can find a fault, and prove nothing.
Where none of them tells who was trained on, a stronger attack may.

All numbers made here come from private images without noise: they are for the owner of the data, not to be released.
"""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import features as features_lib
from tf_dpdiff.evaluation import membership
from tf_dpdiff.evaluation import neighbors
from tf_dpdiff.privacy import rounding
from tf_dpdiff.training import stage as stage_lib

ATTACKS = {
    'distance': 'how near the nearest sample is',
    'density': 'how dense samples are',
    'domias': 'how dense samples are, over how dense a reference is (DOMIAS)',
}
# No sample is looked at, so that it must not tell members from others; by pixels alone, since features are learnt.
CONTROL = 'control'
_CONTROL_WORDS = 'how dense the reference alone is (a control: no sample is looked at)'


@dataclasses.dataclass(frozen=True)
class SampleAttackConfig:
    """How samples are searched for traces of who was trained on.

    Attributes:
      reference: Public images that are like the private ones, or what reads them: DOMIAS divides the density of samples
        by theirs. None: a part of the held-out images takes their place.
      reference_fraction: Which part of the held-out images, or of their owners, in (0, 1). These are no non-members
        of DOMIAS.
      features: What images are compared by besides pixels, or None. 'classifier' is a network that is trained on the
        SAMPLES: one that was trained on members would tell them from others by itself.
      dimensions: Principal components of the samples in which densities are taken, >= 1.
      max_targets: Images of members, and of non-members, that are attacked, at most. Where there are owners, of each
        an equal number at most, and of each at least one.
      max_samples: Samples, and images of the reference, that are looked at, at most.
    """

    reference: stage_lib.PublicSource | None = None
    reference_fraction: float = 0.5
    features: features_lib.FeaturesConfig | None = features_lib.FeaturesConfig()
    dimensions: int = 10
    max_targets: int = 5000
    max_samples: int = 10_000

    def __post_init__(self):
        stage_lib.check_at_least_one(self, 'dimensions', 'max_targets')
        if self.max_samples < 2:
            raise ValueError(f'max_samples of SampleAttackConfig must be at least 2, got {self.max_samples}.')
        if not 0.0 < self.reference_fraction < 1.0:
            raise ValueError(f'reference_fraction must be in (0, 1), got {self.reference_fraction}.')
        if self.reference is not None:
            stage_lib.check_public_source(self.reference, 'reference of the attacks on samples')


class SampleAttack(NamedTuple):
    """What an attack found.

    Attributes:
      name: Of ATTACKS, or CONTROL.
      space: Of neighbors.SPACES.
      found: How well it tells.
    """

    name: str
    space: str
    found: membership.MembershipAttack

    @property
    def title(self) -> str:
        """In words."""
        return f'{ATTACKS.get(self.name, _CONTROL_WORDS)}, by {self.space}'


@dataclasses.dataclass(frozen=True, eq=False)
class SampleAttacks:
    """What attacks on samples found: PRIVATE.

    Attributes:
      attacks: They, and the controls.
      claim: Epsilon and delta of the samples; None where nothing is claimed, or nothing is known of a claim.
      unit: What a target is: 'one image', or an owner with all images.
      num_samples: Samples that were looked at.
      reference: In words, what DOMIAS divides by.
      features: Name and hash of the network that gave the features; empty where there was none.
    """

    attacks: tuple[SampleAttack, ...]
    claim: tuple[float, float] | None
    unit: str
    num_samples: int
    reference: str
    features: dict[str, str]

    @property
    def faults(self) -> list[str]:
        """The attacks that find more than the claim permits, with a confidence of 95% of all of them together."""
        if self.claim is None:
            return []
        attacks = [attack for attack in self.attacks if attack.name != CONTROL]
        num_tests = len(attacks) * len(membership.FALSE_POSITIVE_RATES)
        confidence = 1.0 - (1.0 - membership.CONFIDENCE) / num_tests
        return [attack.title for attack in attacks if attack.found.exceeds(*self.claim, confidence=confidence)]

    @property
    def permitted(self) -> tuple[float, ...]:
        """The true positive rates that the claim permits, at each of membership.FALSE_POSITIVE_RATES."""
        if self.claim is None:
            return (1.0,) * len(membership.FALSE_POSITIVE_RATES)
        return tuple(membership.permitted(*self.claim, rate) for rate in membership.FALSE_POSITIVE_RATES)

    def claim_text(self) -> str:
        """Returns in words what is claimed, and what that permits an attack to find."""
        if self.claim is None:
            return 'none, so that nothing can be held against it'
        most = ', '.join(
            f'{rounding.percent_up(most)} at a false positive rate of {rate:.1%}'
            for rate, most in zip(membership.FALSE_POSITIVE_RATES, self.permitted)
        )
        return f'{rounding.claim(*self.claim)}: permits a true positive rate of {most}'

    @property
    def verdict(self) -> str:
        """One sentence on what was found."""
        if self.faults:
            return (
                f'MORE THAN THE CLAIM PERMITS ({"; ".join(self.faults)}): the implementation or the accounting is '
                'wrong, or held-out images differ from training images by themselves, which the control may tell'
            )
        compared = 'no more than the claim permits' if self.claim else 'nothing is claimed'
        return f'{compared}; these attacks are weak: they can find a fault, and prove nothing'

    def to_dict(self) -> dict:
        """Returns plain JSON values."""
        keys = [f'{rate:g}' for rate in membership.FALSE_POSITIVE_RATES]
        epsilon, delta = self.claim or (None, None)
        return {
            'verdict': self.verdict,
            'faults': self.faults,
            'epsilon': epsilon,
            'delta': delta,
            'permitted_true_positive_rate_at_false_positive_rate': dict(zip(keys, self.permitted)),
            'unit': self.unit,
            'num_samples': self.num_samples,
            'reference': self.reference,
            **self.features,
            'attacks': [
                {'attack': attack.name, 'space': attack.space, 'title': attack.title, **attack.found.to_dict()}
                for attack in self.attacks
            ],
        }


def attack(
    config: SampleAttackConfig,
    *,
    samples: datasets.ImageDataset,
    members: datasets.ImageDataset,
    non_members: datasets.ImageDataset,
    claim: tuple[float, float] | None,
    cache: pathlib.Path,
) -> SampleAttacks:
    """Attacks samples: tells from them alone which images, or owners, their model was trained on.

    Principal components and, by default, features are learnt from the samples, so that nothing but the samples knows
    who the members are. An owner is as suspicious as the most suspicious one of the owner's images.

    Args:
      config: How.
      samples: What was drawn from the model, with labels.
      members: The images that it was trained on.
      non_members: Real images never trained on, of the same kind: what tells the two apart by itself, such as a year or
        a scanner, would be taken for a leak.
      claim: Epsilon and delta that are claimed of the samples, or None.
      cache: The folder that keeps the network of the features.

    Returns:
      What each attack found: PRIVATE.

    Raises:
      ValueError: if there are too few images, or only one of the two parts names owners.

    References: van Breugel, Sun, Qian and van der Schaar 2023, arXiv:2302.12580 (DOMIAS); Chen et al. 2020,
      arXiv:1909.03935 (distances to the nearest sample); Hilprecht et al. 2019 (densities of samples).
    """
    if (members.owners is None) != (non_members.owners is None):
        raise ValueError(
            f'{members.name!r} and {non_members.name!r} must both name owners, or neither: a target is one of them.'
        )
    if len(samples) < 2:
        raise ValueError(f'attacks on samples need at least 2 samples, got {len(samples)}.')
    generator = np.random.default_rng(0)
    drawn = [_Targets.draw(part, config.max_targets, generator) for part in (members, non_members)]
    reference, is_reference, reference_name = _set_reference(config, drawn[1], non_members.name, generator)
    sample_images, reference = (
        images[np.sort(generator.permutation(len(images))[: config.max_samples])]
        for images in (samples.images_uint8, reference)
    )
    spaces: dict[str, Callable[[np.ndarray], np.ndarray]] = {'pixels': neighbors.pixels}
    described = {}
    if config.features:
        extractor = features_lib.load(config.features, samples, cache)
        spaces['features'] = lambda images: extractor(images).pool
        described = {'features': extractor.name, 'weights_sha256': extractor.weights_sha256}
    attacks = []
    for space, to_points in spaces.items():
        points = [to_points(images) for images in (sample_images, *(part.images_uint8 for part in drawn), reference)]
        scored = [scores(points[0], part, points[3], dimensions=config.dimensions) for part in points[1:3]]
        if space == 'pixels':
            for part, found in zip(points[1:3], scored):
                found[CONTROL] = control_scores(part, points[3], dimensions=config.dimensions)
        for name in scored[0]:
            of_members, of_others = (part.join(found[name]) for part, found in zip(drawn, scored))
            if name in ('domias', CONTROL):
                of_others = of_others[~is_reference]
            attacks.append(SampleAttack(name, space, membership.attack(of_members, of_others)))
    return SampleAttacks(tuple(attacks), claim, members.unit, len(sample_images), reference_name, described)


def scores(
    samples: np.ndarray, targets: np.ndarray, reference: np.ndarray, *, dimensions: int
) -> dict[str, np.ndarray]:
    """Returns the score of each target by each attack; low ones speak for "trained on".

    Densities are sums of Gaussians, one around each point, in the first principal components of the samples, each
    scaled to a variance of 1; their width is that of Scott's rule.

    Args:
      samples: float [samples, features], at least two.
      targets: float [targets, features].
      reference: float [images, features], at least one.
      dimensions: Principal components, at most.

    Returns:
      By name, float64 [targets]: the distance to the nearest sample, the negative logarithm of the samples' density,
      and that of its ratio to the density of the reference.
    """
    components = _components(samples, dimensions)
    at = components.transform(targets)
    of_samples, of_reference = (log_density(components.transform(points), at) for points in (samples, reference))
    return {
        'distance': neighbors.nearest(targets, samples, 1)[0][:, 0],
        'density': -of_samples,
        'domias': of_reference - of_samples,
    }


def control_scores(targets: np.ndarray, reference: np.ndarray, *, dimensions: int) -> np.ndarray:
    """Returns the negative logarithm of the density of a reference at targets, float64 [targets]; sees no sample.

    Args:
      targets: float [targets, features].
      reference: float [images, features], at least two.
      dimensions: Principal components of the reference, at most.
    """
    components = _components(reference, dimensions)
    return -log_density(components.transform(reference), components.transform(targets))


def _set_reference(
    config: SampleAttackConfig, others: '_Targets', others_name: str, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns the images of the reference, which of the non-members are in it, bool [non-members], and its name."""
    is_reference = np.zeros(others.num_units, bool)
    if config.reference is not None:
        public = stage_lib.read_public(config.reference)
        if public.image_shape != others.images_uint8.shape[1:]:
            raise ValueError(
                f'the reference {public.name!r} holds images of shape {public.image_shape}, {others_name!r} of '
                f'{tuple(others.images_uint8.shape[1:])}.'
            )
        if len(public) < 2:
            raise ValueError(f'the reference {public.name!r} must hold at least 2 images, got {len(public)}.')
        return public.images_uint8, is_reference, f'public images of {public.name!r}'
    count = round(config.reference_fraction * others.num_units)
    if not 2 <= count < others.num_units:
        raise ValueError(
            f'{others.num_units} of {others_name!r} are too few to set reference_fraction={config.reference_fraction} '
            'of them apart: hold out more, or name a SampleAttackConfig.reference.'
        )
    is_reference[generator.permutation(others.num_units)[:count]] = True
    name = f'{count:,} of {others_name!r}, which then are no non-members of DOMIAS'
    return others.images_uint8[is_reference[others.units]], is_reference, name


def _components(points: np.ndarray, dimensions: int):
    """Returns the first principal components of points, each scaled to a variance of 1."""
    from sklearn import decomposition

    num_components = min(dimensions, len(points) - 1, points.shape[1])
    return decomposition.PCA(num_components, whiten=True, random_state=0).fit(points)


def log_density(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the logarithm of the density of points, float [points, dimensions], at targets, float64 [targets]."""
    from sklearn import neighbors as sklearn_neighbors

    density = sklearn_neighbors.KernelDensity(bandwidth='scott').fit(points.astype(np.float64))
    return density.score_samples(targets.astype(np.float64))


class _Targets(NamedTuple):
    """Images to be attacked, and whose they are.

    Attributes:
      images_uint8: uint8 [images, height, width, channels].
      units: int64 [images], each in [0, num_units): which target an image is of.
      num_units: Targets.
    """

    images_uint8: np.ndarray
    units: np.ndarray
    num_units: int

    @classmethod
    def draw(cls, dataset: datasets.ImageDataset, max_images: int, generator: np.random.Generator) -> '_Targets':
        """Returns images of units, in random order: of each unit an equal number at most."""
        order, starts = dataset.images_by_unit
        owning = np.flatnonzero(np.diff(starts))  # Some may own no image here.
        chosen = owning[generator.permutation(len(owning))[:max_images]]
        most = max(1, max_images // len(chosen))
        rows = [order[starts[unit] + generator.permutation(starts[unit + 1] - starts[unit])[:most]] for unit in chosen]
        units = np.repeat(np.arange(len(chosen)), [len(of_unit) for of_unit in rows])
        return cls(np.asarray(dataset.images_uint8[np.concatenate(rows)]), units, len(chosen))

    def join(self, values: np.ndarray) -> np.ndarray:
        """Returns the lowest value of each target's images: the most suspicious one."""
        joined = np.full(self.num_units, np.inf)
        np.minimum.at(joined, self.units, values)
        return joined
