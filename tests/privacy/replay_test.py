"""Tests by replay: what one unit adds to each release is no more than the release is charged for.

A program is run twice on data sets that differ in one unit, with the same noise. The difference of what it releases is
the unit's contribution. The noise is measured too, and over the noise multiplier that the ledger charges it is the
sensitivity that was paid for.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.privacy import faults
from tests.privacy import replay
from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import noise as noise_lib
from tf_dpdiff.privacy import optimizer as optimizer_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import sampling
from tf_dpdiff.privacy import seeds
from tf_dpdiff.privacy import sum_checks
from tf_dpdiff.privacy import teacher as teacher_lib
from tf_dpdiff.privacy import truncation
from tf_dpdiff.training import train_step

pytestmark = pytest.mark.usefixtures('small_network')
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SECRET = seeds.PrivateSeed(bytes(range(32)))
ROUNDING = 1e-4  # Of differences of float32 sums.


def find_faults(noise, contributions, charged):
    """Returns what is wrong with a release: units that add too much, or noise that is used twice.

    Args:
      noise: float [releases, numbers].
      contributions: float [units], in L2 norm.
      charged: The noise multiplier that the ledger has.
    """
    wrong = set()
    # Five standard deviations of what is measured.
    paid_for = np.sqrt(np.mean(noise**2)) / charged * (1.0 + 5.0 / np.sqrt(2.0 * noise.size))
    if np.max(contributions) > paid_for + ROUNDING * np.max(contributions):
        wrong.add('too much')
    if sum_checks.repeated_noise(noise) < 1e-6:
        wrong.add('noise used twice')
    # Of each number over all releases: one that is never moved has none.
    if np.any(np.all(noise == 0.0, axis=0)):
        wrong.add('no noise')
    return wrong


@pytest.mark.parametrize(
    'clipping, images_per_unit', [*((clipping, 1) for clipping in plan_lib.CLIPPINGS), ('flat', 3), ('normalized', 3)]
)
def test_step_releases_no_more_of_a_unit_than_the_ledger_charges(clipping, images_per_unit):
    noise, contributions, charged = replay.replay(replay.Steps(clipping, images_per_unit))
    assert find_faults(noise, contributions, charged) == set()
    # And no less than a good part: gradients are longer than the clipping norm.
    assert np.all(contributions > 0.5 * replay.CLIP_NORM) and charged == replay.NOISE_MULTIPLIER


def test_truncated_step_releases_no_more_of_a_unit_than_the_ledger_charges(monkeypatch):
    bound, sizes = 6, []
    gather = train_step.pipelines.gather_units

    def gather_units(private, units, **options):
        sizes.append(len(units))
        return gather(private, units, **options)

    monkeypatch.setattr(train_step.pipelines, 'gather_units', gather_units)
    plain, steps = replay.Steps(), replay.Steps(truncated_batch_size=bound)
    drawn, kept = plain.drawn(), steps.drawn()
    # The bound is met, and the batches have one shape all the same.
    assert max(map(len, drawn)) > bound >= max(map(len, kept)) and min(map(len, kept)) < bound
    noise, contributions, charged = replay.replay(steps)
    assert set(sizes) == {bound}
    # A null record keeps its place in the draw: of two data sets with the same secret one unit's gradient differs.
    assert find_faults(noise, contributions, charged) == set()
    assert np.all(contributions > 0.5 * replay.CLIP_NORM)
    assert steps.charged.truncation == truncation.Truncation(replay.NUM_UNITS, bound)
    # Where the last unit is not drawn, another one may take its place: two change, and the sum by what both add.
    everybody = np.ones([replay.NUM_UNITS], bool)
    whole, sample = steps.released(everybody), sampling.TruncatedPoissonSampler.sample
    monkeypatch.setattr(
        sampling.TruncatedPoissonSampler, 'sample', lambda self, num_units, **draw: sample(self, num_units - 1, **draw)
    )
    moved = np.linalg.norm(whole - steps.released(everybody), axis=1)
    num_changed = np.array([len(set(units) ^ set(others)) for units, others in zip(kept, steps.drawn())])
    assert set(num_changed) == {0, 1, 2}
    assert np.all(moved <= num_changed * replay.CLIP_NORM * (1.0 + ROUNDING) + 1e-9)
    # The control: two units that change move the sum by more than the one of a plain step may.
    assert np.all(moved[num_changed == 2] > 1.05 * replay.CLIP_NORM)


FAULTS = {
    'two thirds of the noise': (faults.TWO_THIRDS_OF_THE_NOISE, 'too much'),
    'half of the variance': (faults.HALF_OF_THE_VARIANCE, 'too much'),
    'the same noise in two steps': (faults.same_noise_in_two_steps, 'noise used twice'),
    'no noise in one variable': (faults.no_noise_in_one_variable, 'no noise'),
    'each variable clipped alone': (faults.each_variable_clipped_alone, 'too much'),
    'first unit of a chunk not clipped': (faults.first_unit_of_a_chunk_not_clipped, 'too much'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_control_fault_in_the_step_is_found(monkeypatch, name):
    fault, expected = FAULTS[name]
    fault(monkeypatch)
    assert expected in find_faults(*replay.replay(replay.Steps()))


# How a unit is clipped has nothing to do with the devices, and each way takes seconds to trace.
@pytest.mark.parametrize('names', [['flat', 'truncated'], pytest.param(list(replay.CASES), marks=pytest.mark.long)])
def test_steps_on_two_devices_release_no_more_of_a_unit_than_the_ledger_charges(tmp_path, names):
    output = tmp_path / 'replayed.npz'
    # A program of its own, since the number of devices is chosen before anything else.
    subprocess.run(
        [sys.executable, '-m', 'tests.privacy.replay', str(output), *names],
        check=True,
        cwd=ROOT,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
    )
    found = np.load(output)
    assert found['num_replicas'] == 2
    for name in names:
        noise, contributions = (found[f'{what} {name}'] for what in ('noise', 'contributions'))
        assert find_faults(noise, contributions, float(found['charged'])) == set()
        assert np.all(contributions > 0.5 * replay.CLIP_NORM)
        # Control: noise of half of the replicas' sums.
        assert 'too much' in find_faults(0.5**0.5 * noise, contributions, float(found['charged']))
    # Two devices share the units that one device would keep.
    on_one, contributions, _ = replay.replay(replay.Steps(**replay.CASES['truncated']))
    np.testing.assert_allclose(found['contributions truncated'], contributions, rtol=1e-3)
    np.testing.assert_allclose(found['noise truncated'], on_one, rtol=1e-4, atol=1e-8)


NUM_IMAGES, NUM_CLASSES = 12, 2
LABELS = np.arange(NUM_IMAGES) % NUM_CLASSES
OWNERS = {'images': None, 'owners': np.array([0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5])}


def replay_releases(monkeypatch, release, num_images, owners):
    """Replays releases that are made by `noise.add_to_release`, for each unit that may be a null record.

    The noise of each release is the one of the whole data set; those after it follow what was released of that.

    Args:
      monkeypatch: Of the test.
      release: Makes the releases of the images that are kept, bool [images].
      num_images: Of all units.
      owners: int [images], or None.

    Returns:
      For each release its noise, [1, numbers], and the contribution of each unit to it, [units].
    """
    exact, noises, number = [], [], 0

    def add_to_release(vector, stddev, **options):
        del options
        nonlocal number
        if number == len(exact):
            generator = np.random.default_rng(number)
            exact.append(vector)
            noises.append(stddev * generator.standard_normal(vector.shape))
        differences.append(np.linalg.norm(vector - exact[number]))
        number += 1
        return exact[number - 1] + noises[number - 1]

    monkeypatch.setattr(noise_lib, 'add_to_release', add_to_release)
    units, contributions = np.arange(num_images) if owners is None else owners, []
    for unit in [-1, *np.unique(units)]:
        number, differences = 0, []
        release(units != unit)
        contributions.append(differences)
    assert not np.any(contributions[0])
    return [(noise.reshape([1, -1]), of_units) for noise, of_units in zip(noises, np.transpose(contributions[1:]))]


def make_images():
    return np.random.default_rng(0).uniform(size=[NUM_IMAGES, 4, 4, 1])


def kept(arrays, is_kept):
    return [None if array is None else array[is_kept] for array in arrays]


CLASS_MEANS = {
    'one round': {},
    'three rounds': {'means_per_class': 2, 'num_rounds': 3},
    'a light count, from grey': {'count_weight': 0.3, 'center': 0.5, 'smooth': True},
}


@pytest.mark.parametrize('relation', relations.ACCOUNTED)
@pytest.mark.parametrize('unit', OWNERS)
@pytest.mark.parametrize('kind', CLASS_MEANS)
def test_class_means_release_no_more_of_a_unit_than_the_ledger_charges_in_any_round(monkeypatch, kind, unit, relation):
    # Longer than the norm that they are clipped to.
    config = class_means.ClassMeansConfig(noise_multiplier=1.5, l2_norm_clip=0.5, **CLASS_MEANS[kind])

    def release(is_kept):
        images, labels, owners = kept([make_images(), LABELS, OWNERS[unit]], is_kept)
        config.release(images, labels, NUM_CLASSES, seed=SECRET, neighboring_relation=relation, owners=owners)

    rounds = replay_releases(monkeypatch, release, NUM_IMAGES, OWNERS[unit])
    (charged,) = config.record(ledger_lib.Ledger()).releases
    assert charged.count == len(rounds) == config.num_rounds
    for noise, contributions in rounds:
        assert find_faults(noise, contributions, charged.noise_multiplier) == set()
        assert np.max(contributions) > 0.9 * config.sensitivity(relation)
        # Control: units that add twice as much.
        assert 'too much' in find_faults(noise, 2.0 * contributions, charged.noise_multiplier)


@pytest.mark.parametrize('unit', OWNERS)
def test_feature_means_release_no_more_of_a_unit_than_the_ledger_charges(monkeypatch, unit):
    config = feature_means.FeatureMeansConfig(noise_multiplier=2.0)
    features = 100.0 * np.random.default_rng(0).standard_normal([NUM_IMAGES, 200])

    def release(is_kept):
        seen, labels, owners = kept([features, LABELS, OWNERS[unit]], is_kept)
        relation = relations.REPLACE_WITH_ZERO
        config.release(seen, labels, NUM_CLASSES, seed=SECRET, neighboring_relation=relation, owners=owners)

    ((noise, contributions),) = replay_releases(monkeypatch, release, NUM_IMAGES, OWNERS[unit])
    (charged,) = config.record(ledger_lib.Ledger()).releases
    assert find_faults(noise, contributions, charged.noise_multiplier) == set() and np.max(contributions) > 0.99
    assert 'too much' in find_faults(noise / 1.5, contributions, charged.noise_multiplier)


@pytest.mark.parametrize('unit', OWNERS)
def test_teacher_releases_no_more_of_a_unit_in_any_round_than_the_ledger_charges(monkeypatch, unit):
    config = teacher_lib.TeacherConfig(noise_multiplier=2.0, num_rounds=3, l2_norm_clip=0.2)
    features = 100.0 * np.random.default_rng(0).standard_normal([NUM_IMAGES, 200])
    relation = relations.REPLACE_WITH_ZERO

    def release(is_kept):
        seen, labels, owners = kept([features, LABELS, OWNERS[unit]], is_kept)
        config.release(
            seen, labels, NUM_CLASSES, num_units=20, seed=SECRET, neighboring_relation=relation, owners=owners
        )

    (charged,) = config.record(ledger_lib.Ledger()).releases
    rounds = replay_releases(monkeypatch, release, NUM_IMAGES, OWNERS[unit])
    assert len(rounds) == charged.count == 3
    for number, (noise, contributions) in enumerate(rounds):
        assert find_faults(noise, contributions, charged.noise_multiplier) == set()
        assert np.max(contributions) > 0.5 * config.sensitivity(relation, is_first=number == 0)
        assert 'too much' in find_faults(noise, 3.0 * contributions, charged.noise_multiplier)


@pytest.mark.parametrize('unit', OWNERS)
def test_accuracies_release_no_more_of_a_unit_than_the_ledger_charges(monkeypatch, unit):
    config, num_classifiers = accuracy_release.AccuracyReleaseConfig(noise_multiplier=2.0), 300
    correct = np.random.default_rng(0).random([NUM_IMAGES, num_classifiers]) < 0.95

    def release(is_kept):
        seen, owners = kept([correct, OWNERS[unit]], is_kept)
        monkeypatch.setattr(np, 'clip', lambda values, *unused_limits: values)  # Post-processing.
        try:
            return config.release(seen, seed=SECRET, num_units=20, owners=owners) * 20
        finally:
            monkeypatch.undo()

    whole = release(np.ones([NUM_IMAGES], bool))
    noise = whole - config.exact_vector(correct, OWNERS[unit])
    units = np.arange(NUM_IMAGES) if OWNERS[unit] is None else OWNERS[unit]
    contributions = [np.linalg.norm(whole - release(units != one)) for one in np.unique(units)]
    (charged,) = config.record(ledger_lib.Ledger()).releases
    assert find_faults(noise[None], contributions, charged.noise_multiplier) == set()
    assert np.max(contributions) > 0.9 * num_classifiers**0.5
    assert 'too much' in find_faults(noise[None] / 1.5, contributions, charged.noise_multiplier)


# A linear model: the gradient of a unit is the unit itself.
UNITS = np.random.default_rng(0).standard_normal([4, 3000]).astype(np.float32)


def replay_optimizer(cls):
    """Returns noise, contributions of two units and noise multiplier of two steps of an optimizer."""

    def released(is_padding):
        variables = [tf.Variable(tf.zeros([1000])), tf.Variable(tf.zeros([2000]))]
        optimizer = cls(0.5, 2.0, expected_batch_size=4, units_per_chunk=2, learning_rate=0.1)
        optimizer.build(variables)

        def loss(unit):
            return tf.tensordot(unit[:1000], variables[0], 1) + tf.tensordot(unit[1000:], variables[1], 1)

        def take_step():
            pairs = optimizer.compute_unit_gradients(loss, tf.constant(UNITS), variables, tf.constant(is_padding))
            optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)
            return 4.0 * np.concatenate([gradient.numpy().astype(np.float64) for gradient, _ in pairs])

        return np.array([take_step() for _ in range(2)])

    noise, whole = released([True] * 4), released([False] * 4)
    # The first of a chunk, and the last one of another: each optimizer is traced anew.
    contributions = [np.linalg.norm(whole - released(np.arange(4) == unit), axis=1).max() for unit in (0, 3)]
    return noise, np.array(contributions), 2.0


@pytest.mark.parametrize('cls', [optimizer_lib.VectorizedDPSGD, optimizer_lib.VectorizedDPAdam])
def test_optimizer_releases_no_more_of_a_unit_than_its_noise_is_for(monkeypatch, cls):
    monkeypatch.setattr(seeds.PrivateSeed, 'from_os_entropy', lambda: SECRET)
    noise, contributions, charged = replay_optimizer(cls)
    assert find_faults(noise, contributions, charged) == set() and np.all(contributions > 0.49)


@pytest.mark.parametrize('name', FAULTS)
def test_control_fault_in_the_optimizer_is_found(monkeypatch, name):
    monkeypatch.setattr(seeds.PrivateSeed, 'from_os_entropy', lambda: SECRET)
    fault, expected = FAULTS[name]
    fault(monkeypatch)
    assert expected in find_faults(*replay_optimizer(optimizer_lib.VectorizedDPSGD))
