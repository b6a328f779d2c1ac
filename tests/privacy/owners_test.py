"""Tests of the shares of owners' images."""

import numpy as np
import pytest

from tf_dpdiff.privacy import owners as owners_lib

OWNERS = np.array([2, 0, 2, 4, 2, 0])


def test_an_image_without_an_owner_counts_as_one():
    np.testing.assert_array_equal(owners_lib.shares(3, None), [1.0, 1.0, 1.0])


def test_shares_of_an_owner_add_up_to_one_and_others_do_not_matter():
    shares = owners_lib.shares(len(OWNERS), OWNERS)
    np.testing.assert_allclose(np.bincount(OWNERS, shares), [1.0, 0.0, 1.0, 0.0, 1.0])
    kept = OWNERS != 2
    np.testing.assert_array_equal(owners_lib.shares(int(kept.sum()), OWNERS[kept]), shares[kept])


def test_no_images_have_no_shares():
    assert owners_lib.shares(0, np.zeros([0], np.int64)).shape == (0,)


@pytest.mark.parametrize('owners', [OWNERS[:-1], OWNERS - 1, OWNERS[:, None], OWNERS[:1]])
def test_owners_that_fit_no_images_are_refused(owners):
    with pytest.raises(ValueError, match='one for each of 6 images'):
        owners_lib.shares(len(OWNERS), owners)
