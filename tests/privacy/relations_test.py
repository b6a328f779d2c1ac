"""Tests of the neighbouring relations: every mechanism knows all of them, and refuses others."""

import pytest

from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import clipping
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import relations

SENSITIVITIES = {
    'clipper': clipping.PerUnitClipper(1.0).sensitivity,
    'class means': class_means.ClassMeansConfig(1.0, 2.0).sensitivity,
    'feature means': feature_means.FeatureMeansConfig(1.0).sensitivity,
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
