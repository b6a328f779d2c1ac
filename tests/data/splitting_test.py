"""Tests that each unit decides for itself whether it is held out, and that each has an owner."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn import model_selection

from tf_dpdiff.data import splitting

NUM_UNITS = 200


def positions_of(units):
    return np.array([splitting.position(unit) for unit in units], np.uint64)


def held_out(units, fraction=0.3):
    """Returns the units that are held out."""
    rows = splitting.split('toy', np.zeros([len(units)], int), positions_of(units), ('a',), fraction)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(units)))
    return {units[row] for row in rows[1]}


def held_out_by_permutation(units, fraction=0.3):
    """The control: a split that is drawn for all units together."""
    return {
        units[row] for row in model_selection.train_test_split(range(len(units)), test_size=fraction, random_state=0)[1]
    }


def num_moved(split):
    """Returns how many units change sides at most when another one is removed or added, or others come in between."""
    units = [f'unit {i}'.encode() for i in range(NUM_UNITS)]
    before, most = split(units), 0
    others = [units[:i] + units[i + 1 :] for i in range(NUM_UNITS)]
    others += [units[:i] + [f'new {i}'.encode()] + units[i:] for i in range(0, NUM_UNITS, 10)] + [units[::-1]]
    for other in others:
        both = set(units) & set(other)
        most = max(most, len((split(other) & both) ^ (before & both)))
    return most


def test_no_unit_moves_when_another_one_is_removed_or_added():
    assert num_moved(held_out) == 0
    assert num_moved(held_out_by_permutation) > 20, 'the control must fail'


@pytest.mark.parametrize('fraction', [0.01, 0.2, 0.5, 0.97])
def test_share_is_that_asked_for_within_the_error_of_independent_units(fraction):
    count = 20000
    positions = positions_of(str(i).encode() for i in range(count))
    rows = splitting.split('toy', np.zeros([count], int), positions, ('a',), fraction)[1]
    deviation = np.sqrt(fraction * (1.0 - fraction) / count)

    def fits(expected):
        return abs(len(rows) / count - expected) < 4.0 * deviation

    assert fits(fraction)
    assert not fits(fraction + 10.0 * deviation) and not fits(fraction - 10.0 * deviation), 'the control must fail'


def test_positions_are_uniform_and_do_not_repeat():
    positions = positions_of(str(i).encode() for i in range(20000))
    counts = np.histogram(positions / 2.0**64, 20, (0.0, 1.0))[0]
    assert counts.sum() == 20000 and np.abs(counts - 1000).max() < 5.0 * np.sqrt(1000)
    assert len(np.unique(positions)) == 20000


def test_position_is_the_hash_of_the_salted_id():
    digest = hashlib.sha256(b'tf_dpdiff: held out or trained on?\0' + b'patient 7').digest()
    assert splitting.position(b'patient 7') == splitting.position(b'patient', b' 7') == int(digest[:8].hex(), 16)
    assert splitting.position(b'patient 7') != int(hashlib.sha256(b'patient 7').hexdigest()[:16], 16)
    label = (3).to_bytes(8, 'big')
    assert splitting.image_position(b'pixels', np.int32(3)) == splitting.position(b'pixels', label)


def test_sides_are_the_same_in_another_process():
    program = 'from tf_dpdiff.data import splitting\nprint(*(splitting.position(str(i).encode()) for i in range(50)))'
    for seed in ('1', '2'):
        printed = subprocess.run(
            [sys.executable, '-c', program], env={'PYTHONHASHSEED': seed}, check=True, capture_output=True, text=True
        ).stdout
        assert list(map(int, printed.split())) == [splitting.position(str(i).encode()) for i in range(50)]


def test_images_of_an_owner_are_together_and_owners_are_known_by_their_text():
    owners = np.array([7, 3, 7, 11, 3])
    positions = splitting.owner_positions(owners)
    assert positions.dtype == np.uint64
    assert positions.tolist() == [splitting.position(str(owner).encode()) for owner in owners]
    for same in (owners.astype(str), owners.astype(bytes), owners.astype(np.uint8)):
        np.testing.assert_array_equal(splitting.owner_positions(same), positions)


@pytest.mark.parametrize(
    'labels, units, fraction, message',
    [
        ([0] * 20 + [1], None, 0.3, "^toy: class 'b' has too few images to hold one out"),
        ([0] * 20, None, 0.3, "^toy: class 'b' has too few images"),
        (
            [0] * 20 + [1] * 5,
            [*range(20)] + [99] * 5,
            0.3,
            "^toy: class 'b' has too few images .* identical images stay",
        ),
        ([0, 1] * 10, [7] * 20, 0.3, "^toy: class 'a' has too few images .* images of one owner .* stay together"),
        (
            [0, 1] * 10,
            None,
            1e-9,
            "^toy: no image of class 'a' would be held out with .*=1e-09; choose another held_out_f",
        ),
        ([0, 1] * 10, None, 1 - 1e-9, "^toy: no image of class 'a' would be trained on .*; choose another held_out_f"),
        ([0, 1] * 10, None, 1.0, r'held_out_fraction must be in \(0, 1\), got 1.0'),
    ],
)
def test_class_without_an_image_on_a_side_is_named(labels, units, fraction, message):
    positions = positions_of(str(unit).encode() for unit in units or range(len(labels)))
    with pytest.raises(ValueError, match=message) as error:
        splitting.split('toy', np.array(labels), positions, ('a', 'b'), fraction)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'owners, named',
    [(['a', 'b', '', ''], "''"), (['a', 'b', ' \t'], r"' \\t'"), ([b'a', b'b', b''], "b''"), ([0, 5, -1, -1], '-1')],
)
def test_images_of_nobody_are_named(owners, named):
    with pytest.raises(ValueError, match=f'^row 2 names no owner: {named}; each image needs a name or a number from 0'):
        splitting.check_owners(np.array(owners), lambda row: f'row {row}')
    splitting.check_owners(np.array(owners[:2]), lambda row: pytest.fail(f'row {row} has an owner'))


def test_numbers_of_any_kind_are_owners():
    for owners in (np.array([0, 2**63 - 1]), np.array([0, 2**64 - 1], np.uint64), np.array(['0', '1'])):
        splitting.check_owners(owners, lambda row: pytest.fail(f'row {row} has an owner'))


@pytest.mark.parametrize('train, other', [([1, 2, 3], [3, 4]), ([1, 2, 3], ['4', '3']), (['3', '1'], [b'3', b'4'])])
def test_owner_on_both_sides_is_named(train, other):
    with pytest.raises(ValueError, match=r"^toy: 1 owner\(s\) have both training and held-out images, such as '3'"):
        splitting.check_owners_apart('toy', np.array(train), np.array(other))
    splitting.check_owners_apart('toy', np.array(train), np.array(['4', '33']))


@pytest.mark.parametrize(
    'train, other, named',
    [
        (['p1', 'p2'], ['P1', 'q'], "'p1', written 'P1' among the held-out ones"),
        (['p1', 'p2'], ['p 1', 'q'], "'p1', written 'p 1'"),
        ([7, 8], ['007', 'q'], "'7', written '007'"),
        ([7, 8], ['7.0', 'q'], "'7', written '7.0'"),
        ([b'p1', b'p2'], ['p1\u200b', 'q'], "'p1', written "),
    ],
)
def test_owner_on_both_sides_is_named_in_whatever_spelling(train, other, named):
    with pytest.raises(ValueError, match=rf'^toy: 1 owner\(s\) have both .* such as {named}'):
        splitting.check_owners_apart('toy', np.array(train), np.array(other))
    splitting.check_owners_apart('toy', np.array(train), np.array(['p3', 'q']))
