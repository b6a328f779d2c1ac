"""Tests of labels and of the names of classes."""

import tracemalloc

import numpy as np
import pytest

from tf_dpdiff.data import classes
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import formats


def test_classes_are_named_by_their_numbers_or_as_given():
    for kind in (np.uint8, np.int8, np.int64, np.uint64):
        labels = np.array([2, 0, 1, 1], kind)
        assert classes.names_of('toy', labels) == ('0', '1', '2')
        assert classes.names_of('toy', labels, ['a', 'b', 'c']) == ('a', 'b', 'c')
    assert len(classes.names_of('toy', np.arange(256, dtype=np.uint8))) == 256


@pytest.mark.parametrize(
    'labels, names, message',
    [
        ([], None, '^toy holds no images'),
        ([0, 1, -1], None, '^toy: image 2 has label -1, which is no class'),
        ([0, 1, -1], 'ab', '^toy: image 2 has label -1, which is no class'),
        ([1, 2, 3], None, r'^toy: the labels count from 1 \(to 3\) .* subtract 1'),
        ([1, 1], None, r'^toy: the labels count from 1 \(to 1\)'),
        ([1, 2, 3], 'abc', r'^toy: image 2 has label 3, which is not in \[0, 3\); the labels count from 1: subtract 1'),
        ([1, 2, 3], 'ab', r'^toy: image 1 has label 2, which is not in \[0, 2\); there are 2 classes'),
        ([1, 2, 3], 'abcd', r"^toy: class 'a' has no training image \(none has the label 0\)"),
        ([0, 1, 3], None, '^toy: the labels have gaps: 3 different ones, the largest 3, and no image has the label 2'),
        ([2, 3], None, '^toy: the labels have gaps: .* the label 0'),
        ([0, 1], 'abc', "^toy: class 'c' has no training image"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, names, message):
    with pytest.raises(ValueError, match=message):
        classes.names_of('toy', np.array(labels, np.int64), names)


@pytest.mark.parametrize('kind', [np.int64, np.uint64])
@pytest.mark.parametrize('names', [None, ('a', 'b')])
def test_huge_labels_take_no_memory(kind, names):
    labels = np.array([0, 1, 10**9, np.iinfo(kind).max], kind)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match='largest|not in'):
            classes.names_of('toy', labels, names)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        np.zeros([10**8], np.uint8)
        assert tracemalloc.get_traced_memory()[1] > 2**20, 'the control must fail'
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    'names, message',
    [
        (('a', ''), "neither empty nor begin or end with white space, got ''"),
        (('a', ' b'), "white space, got ' b'"),
        (('a', 'b\n'), r"must be Unicode text without control characters, .* got 'b\\n'"),
        (('a', 'b\0'), 'must be Unicode text without control characters'),
        (('a', 'caf\udce9'), r"must be Unicode text .* got 'caf\\udce9'"),
        (('a', 'b\u2028c'), 'must be Unicode text'),
        (('a', 'no_class'), "no class can be called 'no_class'"),
        (('a', 'b', 'a'), "two classes are called 'a'"),
    ],
)
def test_names_that_samples_could_not_be_written_under_are_refused(names, message):
    with pytest.raises(ValueError, match=f'^toy: .*{message}') as error:
        classes.check_names('toy', names)
    assert '\n' not in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize(
    'names', [('0', '1'), ('cat', 'Cat'), ('öl', '猫'), ('a b', 'a, b'), ('a/b', '.'), ('می\u200cخواهم', 'b')]
)
def test_samples_can_be_planned_of_all_classes_whose_names_are_taken(names):
    classes.check_names('toy', names)
    choice = draw.ClassChoice(tuple(range(len(names))))
    plan = formats.Spec(10, 0, choice, (4, 4, 1), names)
    assert formats.Spec.from_json(plan.to_json()).class_names == names
