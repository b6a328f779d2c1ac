"""Tests of attacks on samples: what copies members is found, what knows nothing of them is not, and scores by hand."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import features
from tf_dpdiff.evaluation import membership
from tf_dpdiff.evaluation import sample_attacks

SHAPE = (4, 4, 1)
PIXELS_ALONE = sample_attacks.SampleAttackConfig(features=None)
CLAIM = (1.0, 1e-5)


def draw(count, seed):
    """Smooth images, of which no two are the same: a few factors and some noise."""
    generator = np.random.default_rng(seed)
    factors = np.random.default_rng(99).normal(size=[4, *SHAPE])
    images = np.tensordot(generator.normal(size=[count, 4]), factors, 1) * 20.0 + 128.0
    return np.clip(images + generator.normal(0.0, 4.0, images.shape), 0, 255).astype(np.uint8)


def dataset(images, name='private', **fields):
    labels = (images.reshape(len(images), -1).mean(axis=1) > 128.0).astype(np.int32)
    return datasets.ImageDataset(name, images, labels, ('dark', 'bright'), **fields)


def attack(tmp_path, samples, members, others, config=PIXELS_ALONE, claim=CLAIM):
    return sample_attacks.attack(
        config,
        samples=dataset(samples, 'samples'),
        members=members if isinstance(members, datasets.ImageDataset) else dataset(members),
        non_members=others if isinstance(others, datasets.ImageDataset) else dataset(others, 'held out'),
        claim=claim,
        cache=tmp_path / 'features',
    )


def by_name(found, space='pixels'):
    return {attack.name: attack.found for attack in found.attacks if attack.space == space}


def test_generator_that_copies_members_is_found_and_passes_its_claim(tmp_path):
    members, others = draw(600, 0), draw(1500, 1)
    found = attack(tmp_path, members, members, others)
    attacks = by_name(found)
    assert attacks['distance'].auc == 1.0 and attacks['distance'].true_positive_rates == (1.0, 1.0)
    assert attacks['domias'].auc > 0.5 + 5.0 * attacks['domias'].auc_by_chance
    assert any('nearest sample' in fault for fault in found.faults) and 'MORE THAN THE CLAIM' in found.verdict
    assert sample_attacks.CONTROL in attacks and not any('control' in fault for fault in found.faults)


def test_copies_with_noise_are_found(tmp_path):
    members, others = draw(600, 0), draw(1500, 1)
    noise = np.random.default_rng(2).normal(0.0, 2.0, members.shape)
    attacks = by_name(attack(tmp_path, np.clip(members + noise, 0, 255).astype(np.uint8), members, others))
    assert attacks['distance'].auc > 0.95 and attacks['distance'].true_positive_rates[1] > 0.7


def test_samples_that_know_nothing_of_the_members_tell_nothing_also_by_features(tmp_path):
    config = sample_attacks.SampleAttackConfig(features=features.FeaturesConfig(num_steps=20))
    found = attack(tmp_path, draw(600, 7), draw(800, 0), draw(1500, 1), config)
    names = [(one.name, one.space) for one in found.attacks]
    attacks = ['distance', 'density', 'domias']
    assert names == [(name, 'pixels') for name in (*attacks, 'control')] + [(name, 'features') for name in attacks]
    for one in found.attacks:
        assert abs(one.found.auc - 0.5) < 5.0 * one.found.auc_by_chance, one.title
    assert found.faults == [] and found.verdict.startswith('no more than the claim permits')
    assert "trained on 'samples'" in found.features['features']  # Not on members, which would tell of them.


def test_network_that_was_trained_on_members_is_not_used_for_features(tmp_path):
    # Samples decide what the network is: members have no part in it.
    config = sample_attacks.SampleAttackConfig(features=features.FeaturesConfig(num_steps=3))
    hashes = {
        attack(tmp_path / str(seed), draw(50, 7), draw(60, seed), draw(60, 1), config).features['weights_sha256']
        for seed in (0, 2)
    }
    assert len(hashes) == 1


def test_images_that_differ_by_themselves_are_seen_by_the_control(tmp_path):
    # Control: no sample knows a member, and the attacks take the other brightness for a leak.
    darker = (draw(600, 0) * 0.8).astype(np.uint8)
    found = attack(tmp_path, draw(600, 7), darker, draw(1500, 1))
    control = by_name(found)['control']
    assert abs(control.auc - 0.5) > 5.0 * control.auc_by_chance


def log_density_by_hand(points, target):
    """The logarithm of a mean of Gaussians of Scott's width, by a loop."""
    count, dimensions = points.shape
    width = count ** (-1.0 / (dimensions + 4))
    total = 0.0
    for point in points:
        distance = sum((a - b) ** 2 for a, b in zip(point, target))
        total += np.exp(-distance / (2.0 * width**2)) / (2.0 * np.pi * width**2) ** (dimensions / 2)
    return np.log(total / count)


def test_scores_are_those_of_hand_computations():
    generator = np.random.default_rng(0)
    samples, reference = generator.normal(size=[40, 2]) * [3.0, 0.5], generator.normal(size=[25, 2])
    targets = generator.normal(size=[7, 2])
    found = sample_attacks.scores(samples, targets, reference, dimensions=2)
    # Two whitened principal components of two numbers: a rotation and a scale, which no Gaussian of one width minds.
    mean, (values, axes) = samples.mean(axis=0), np.linalg.eigh(np.cov(samples.T))
    in_space = [((points - mean) @ axes) / np.sqrt(values) for points in (samples, reference, targets)]
    of_samples = np.array([log_density_by_hand(in_space[0], target) for target in in_space[2]])
    of_reference = np.array([log_density_by_hand(in_space[1], target) for target in in_space[2]])
    nearest = [min(np.linalg.norm(target - sample) for sample in samples) for target in targets]
    np.testing.assert_allclose(found['distance'], nearest)
    np.testing.assert_allclose(found['density'], -of_samples, rtol=1e-6)
    np.testing.assert_allclose(found['domias'], -(of_samples - of_reference), rtol=1e-5, atol=1e-6)
    # The control sees the reference alone, its principal components too.
    mean, (values, axes) = reference.mean(axis=0), np.linalg.eigh(np.cov(reference.T))
    of_itself, at = (((points - mean) @ axes) / np.sqrt(values) for points in (reference, targets))
    by_hand = [-log_density_by_hand(of_itself, target) for target in at]
    np.testing.assert_allclose(sample_attacks.control_scores(targets, reference, dimensions=2), by_hand, rtol=1e-6)


def test_domias_finds_what_density_alone_does_not():
    # The generator has overfitted to rare members; elsewhere it is as dense as the reference.
    generator = np.random.default_rng(0)
    reference, others = generator.normal(size=[2000, 1]), generator.normal(size=[400, 1])
    members = generator.uniform(2.0, 2.5, [100, 1])
    samples = np.concatenate([generator.normal(size=[2000, 1]), members + generator.normal(0.0, 0.05, members.shape)])
    aucs = {}
    scored = [sample_attacks.scores(samples, part, reference, dimensions=1) for part in (members, others)]
    for name in ('density', 'domias'):
        aucs[name] = membership.attack(scored[0][name], scored[1][name]).auc
    assert aucs['domias'] > 0.9 and aucs['density'] < 0.5


def test_owner_is_as_suspicious_as_the_most_suspicious_image(tmp_path):
    members, others = draw(300, 0), draw(400, 1)
    owners = np.arange(300) // 3
    samples = np.concatenate([members[::3], draw(200, 7)])  # Of each owner one image is copied.
    of_members = dataset(members, unit='one patient', owners=owners, num_owners=120)  # 20 of them own no image.
    of_others = dataset(others, 'held out', unit='one patient', owners=np.arange(400) // 2)
    found = attack(tmp_path, samples, of_members, of_others)
    distance = by_name(found)['distance']
    assert found.unit == 'one patient' and (distance.num_members, distance.num_non_members) == (100, 200)
    assert by_name(found)['domias'].num_non_members == 100  # The other owners are the reference.
    assert distance.auc == 1.0
    by_image = by_name(attack(tmp_path, samples, members, others))['distance']
    assert by_image.num_members == 300 and by_image.auc < 0.9  # Control: two of three images are not copied.


def test_fewer_targets_are_images_of_all_owners(tmp_path):
    config = dataclasses.replace(PIXELS_ALONE, max_targets=40)
    of_members = dataset(draw(300, 0), unit='one patient', owners=np.arange(300) // 10)
    of_others = dataset(draw(300, 1), 'held out', unit='one patient', owners=np.arange(300) // 10)
    found = by_name(attack(tmp_path, draw(50, 7), of_members, of_others, config))['distance']
    assert (found.num_members, found.num_non_members) == (30, 30)
    found = by_name(attack(tmp_path, draw(50, 7), draw(300, 0), draw(300, 1), config))['distance']
    assert (found.num_members, found.num_non_members) == (40, 40)


def test_public_reference_leaves_all_held_out_images_to_domias(tmp_path):
    config = dataclasses.replace(PIXELS_ALONE, reference=dataset(draw(100, 5), 'other images'))
    found = attack(tmp_path, draw(50, 7), draw(60, 0), draw(80, 1), config)
    assert by_name(found)['domias'].num_non_members == 80 and 'other images' in found.reference
    config = dataclasses.replace(config, reference=dataset(np.zeros([9, 8, 8, 1], np.uint8), 'larger images'))
    with pytest.raises(
        ValueError, match=r"'larger images' holds images of shape \(8, 8, 1\), 'held out' of \(4, 4, 1\)"
    ):
        attack(tmp_path, draw(50, 7), draw(60, 0), draw(80, 1), config)


def test_rates_are_held_against_what_the_claim_permits(tmp_path):
    members, others = draw(60, 0), draw(80, 1)
    found = attack(tmp_path, draw(50, 7), members, others, claim=(1.0, 1e-3))
    assert found.permitted == pytest.approx((np.e * 0.001 + 1e-3, np.e * 0.01 + 1e-3))
    assert 'epsilon = 1.0000 at delta = 0.001: permits a true positive rate of 0.38%' in found.claim_text()
    large = attack(tmp_path, members, members, others, claim=(30.0, 1e-3))
    assert large.permitted == pytest.approx((1.0, 1.0)) and large.faults == []  # It permits to find everyone.
    none = attack(tmp_path, members, members, others, claim=None)
    assert none.permitted == (1.0, 1.0) and none.faults == [] and 'nothing is claimed' in none.verdict
    assert none.to_dict()['epsilon'] is None and none.claim_text().startswith('none')


def test_chance_alone_passes_no_claim():
    generator = np.random.default_rng(0)
    passed = 0
    for _ in range(200):
        found = membership.attack(generator.normal(size=200), generator.normal(size=200))
        passed += found.exceeds(0.0, 0.0, confidence=0.95)
    # Each of two rates with a probability of a fortieth at most: about (1/40)^2 where both ends must be missed.
    assert passed <= 200 * 0.05 + 5.0 * np.sqrt(200 * 0.05)
    leak = membership.attack(generator.normal(-3.0, 1.0, 200), generator.normal(size=200))
    assert leak.exceeds(0.0, 0.0, confidence=0.95)  # Control.
    assert not leak.exceeds(20.0, 0.0, confidence=0.95)


@pytest.mark.parametrize('count, total', [(0, 20), (3, 20), (20, 20), (17, 360)])
def test_interval_is_that_of_clopper_and_pearson(count, total):
    low, high = membership.binomial_interval(count, total, 0.95)
    found = stats.binomtest(count, total).proportion_ci(0.95, method='exact')
    assert (low, high) == (found.low, found.high)
    # By its definition: at its ends, so many or more, so few or fewer, have a probability of a fortieth.
    if count:
        assert stats.binom.sf(count - 1, total, low) == pytest.approx(0.025)
    if count < total:
        assert stats.binom.cdf(count, total, high) == pytest.approx(0.025)


def test_what_does_not_fit_is_one_clear_line(tmp_path):
    images = draw(20, 0)
    owned = dataset(images, unit='one patient', owners=np.arange(20) // 2)
    with pytest.raises(ValueError, match="'private' and 'held out' must both name owners, or neither"):
        attack(tmp_path, images, owned, images)
    with pytest.raises(ValueError, match='need at least 2 samples, got 1'):
        attack(tmp_path, images[:1], images, images)
    with pytest.raises(ValueError, match="2 of 'held out' are too few to set reference_fraction=0.5"):
        attack(tmp_path, images, images, images[:2])
    config = dataclasses.replace(PIXELS_ALONE, reference=dataset(images[:1], 'one image'))
    with pytest.raises(ValueError, match="the reference 'one image' must hold at least 2 images, got 1"):
        attack(tmp_path, images, images, images, config)


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'dimensions': 0}, 'dimensions of SampleAttackConfig must be at least 1, got 0'),
        ({'max_targets': 0}, 'max_targets of SampleAttackConfig must be at least 1, got 0'),
        ({'max_samples': 1}, 'max_samples of SampleAttackConfig must be at least 2, got 1'),
        ({'reference_fraction': 1.0}, r'reference_fraction must be in \(0, 1\), got 1.0'),
        ({'reference': 'digits'}, 'reference of the attacks on samples'),
    ],
)
def test_config_is_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        sample_attacks.SampleAttackConfig(**fields)
