"""Tests of the neighbouring relations: every mechanism knows all of them, and refuses others."""

import functools

import dp_accounting
from dp_accounting import pld
from dp_accounting import rdp
import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.data import datasets
from tf_dpdiff.data import pipelines
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import clipping
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import teacher as teacher_lib

SENSITIVITIES = {
    'clipper': clipping.PerUnitClipper(1.0).sensitivity,
    'class means': class_means.ClassMeansConfig(1.0, 2.0).sensitivity,
    'feature means': feature_means.FeatureMeansConfig(1.0).sensitivity,
    'teacher': teacher_lib.TeacherConfig(1.0).sensitivity,
    'mean of the teacher': lambda relation: teacher_lib.TeacherConfig(1.0).sensitivity(relation, is_first=True),
    'accuracy': lambda relation: accuracy_release.AccuracyReleaseConfig(1.0).sensitivity(1, relation),
}
each_mechanism = pytest.mark.parametrize('sensitivity', SENSITIVITIES.values(), ids=list(SENSITIVITIES))


@each_mechanism
def test_replacing_a_unit_changes_at_least_as_much_as_removing_it(sensitivity):
    found = {relation: sensitivity(relation) for relation in relations.RELATIONS}
    assert found['replace_one'] >= found['add_or_remove_one'] == found['replace_with_zero'] > 0.0


@each_mechanism
def test_unknown_relation_is_refused(sensitivity):
    with pytest.raises(ValueError, match="neighboring_relation must be one of .*, got 'bounded'"):
        sensitivity('bounded')


def test_claims_are_made_for_null_records_unless_another_accounted_relation_is_asked_for():
    config = dict(target_delta=1e-5, expected_batch_size=50, num_steps=5, l2_norm_clip=1.0, noise_multiplier=2.0)
    assert plan_lib.DpSgdConfig(**config).neighboring_relation == 'replace_with_zero'
    plans = [
        plan_lib.make_plan(plan_lib.DpSgdConfig(**config, neighboring_relation=relation), 1000)
        for relation in relations.ACCOUNTED
    ]
    assert plans[0].epsilon() == plans[1].epsilon() and plans[0].noise == plans[1].noise
    assert plans[0].fingerprint() != plans[1].fingerprint()
    with pytest.raises(ValueError, match="neighboring_relation must be one of .*, got 'replace_one'"):
        plan_lib.DpSgdConfig(**config, neighboring_relation='replace_one')


def hockey_stick(first, second, epsilon):
    """Integrates max(first - e^epsilon second, 0) over the line, numerically."""
    y = np.linspace(-40.0, 40.0, 800_001)
    return np.sum(np.maximum(first(y) - np.exp(epsilon) * second(y), 0.0)) * (y[1] - y[0])


def delta_between_neighbours(sigma, q, epsilon, shift=1.0):
    """Returns delta of a step whose unit adds `shift` or, as a null record, nothing: the larger of both directions."""

    def null(y):
        return stats.norm.pdf(y, scale=sigma)

    def real(y):
        return (1.0 - q) * null(y) + q * stats.norm.pdf(y, loc=shift, scale=sigma)

    return max(hockey_stick(null, real, epsilon), hockey_stick(real, null, epsilon))


@pytest.mark.parametrize('sigma, q', [(0.7, 0.02), (1.0, 0.3), (2.5, 0.33), (1.5, 1.0)])
@pytest.mark.parametrize('delta', [1e-3, 1e-5])
def test_epsilon_of_a_step_is_that_of_a_unit_and_a_null_record(sigma, q, delta):
    epsilon = accounting.epsilon(ledger_lib.dp_event(sigma, q, 1), delta)
    assert delta_between_neighbours(sigma, q, epsilon) <= delta * (1.0 + 1e-6)
    # As tight as the accountant's grid of privacy losses is fine.
    assert delta_between_neighbours(sigma, q, 0.98 * epsilon - 1e-3) > delta
    # Control: replacing one unit by another, which moves the sum twice as far, costs more than is claimed.
    assert delta_between_neighbours(sigma, q, epsilon, shift=2.0) > 2.0 * delta


@functools.cache  # Composed once for all deltas.
def their_accountant(accountant, relation, event):
    return accountant(neighboring_relation=relation).compose(event)


def by_their_accountant(accountant, relation, event, delta):
    return their_accountant(accountant, relation, event).get_epsilon(delta)


@pytest.mark.parametrize('delta', [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize(
    'sigma, q, num_steps',
    [(0.7, 0.02, 1), (1.2, 1.0 / 60.0, 1000), (2.282, 0.0683, 400), (3.0, 0.3, 50), (20.0, 0.5, 300), (5.0, 1.0, 10)],
)
def test_epsilon_is_that_of_dp_accounting_for_a_null_record(sigma, q, num_steps, delta):
    event = ledger_lib.dp_event(sigma, q, num_steps)
    if q == 1.0:  # Which dp_accounting composes in closed form where no sampling is spoken of.
        event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(sigma), num_steps)
    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    ours, theirs = accounting.epsilon(event, delta), by_their_accountant(pld.PLDAccountant, relation, event, delta)
    assert theirs <= ours <= theirs * (1.0 + 1e-4) + 1e-9  # What rounding may have taken off is put on.
    # By fewer orders and, at fractional ones, looser bounds than ours.
    by_rdp = by_their_accountant(rdp.RdpAccountant, relation, event, delta)
    assert ours <= accounting.epsilon(event, delta, accountant='rdp') <= by_rdp * (1.0 + 1e-9)
    # Control: replacing one unit by another is another relation, and costs more.
    other = dp_accounting.NeighboringRelation.REPLACE_ONE
    assert by_their_accountant(pld.PLDAccountant, other, event, delta) > ours + 0.01


OWNERS = np.repeat(np.arange(5), 4)
IMAGES = np.random.default_rng(0).integers(0, 256, [20, 3, 3, 1]).astype(np.uint8)
LABELS = (np.arange(20) % 2).astype(np.int32)


def vector_of(mechanism, rows):
    """Returns what noise is added to, of the images in some rows."""
    images, labels, owners = IMAGES[rows], LABELS[rows], OWNERS[rows]
    if mechanism == 'class means':
        return class_means.ClassMeansConfig(1.0, 2.0).exact_vector(images, labels, 2, owners)
    if mechanism == 'feature means':
        flat = images.reshape([len(images), -1]).astype(np.float64)
        return feature_means.FeatureMeansConfig(1.0).exact_vector(flat, labels, 2, owners)
    if mechanism == 'teacher':
        inputs = teacher_lib.make_inputs(images.reshape([len(images), -1]), np.full([9], 0.1)).astype(np.float64)
        return teacher_lib.TeacherConfig(1.0).exact_gradient(inputs, labels, np.zeros([2, 10]), owners)
    return accuracy_release.AccuracyReleaseConfig(1.0).exact_vector(labels[:, None] == 1, owners)


@pytest.mark.parametrize('mechanism', ['class means', 'feature means', 'teacher', 'accuracy'])
@pytest.mark.parametrize('owner', range(5))
def test_null_record_takes_part_in_no_release_and_moves_none_by_more_than_the_sensitivity(mechanism, owner):
    rows = np.flatnonzero(OWNERS != owner)
    without, alone = vector_of(mechanism, rows), vector_of(mechanism, np.flatnonzero(OWNERS == owner))
    moved = vector_of(mechanism, np.arange(20)) - without
    # What the owner adds is the same whoever is beside them, and a null record adds nothing of it.
    np.testing.assert_allclose(moved, alone, atol=1e-9)
    assert np.linalg.norm(moved) <= SENSITIVITIES[mechanism]('replace_with_zero') * (1.0 + 1e-9)


def test_null_record_keeps_its_place_among_the_units_and_is_padding_in_every_step():
    rows = np.flatnonzero(OWNERS != 2)
    whole, null = (
        datasets.ImageDataset('toy', IMAGES[r], LABELS[r], ('a', 'b'), 'one patient', OWNERS[r], 5)
        for r in (np.arange(20), rows)
    )
    assert whole.num_units == null.num_units == 5
    units = np.arange(5)
    drawn = [pipelines.gather_units(data, units, num_views=3, seed=1, step=0) for data in (whole, null)]
    np.testing.assert_array_equal(drawn[1][2], [0, 1, -1, 3, 4])
    for part in (0, 1):  # Images and labels of all others are what they were.
        np.testing.assert_array_equal(np.delete(drawn[0][part], 2, axis=0), np.delete(drawn[1][part], 2, axis=0))
