"""Tests that private images are found among public ones."""

import numpy as np
import pytest

from tf_dpdiff.data import overlap

IMAGES = np.random.default_rng(0).integers(0, 256, [400, 4, 4, 1]).astype(np.uint8)
PRIVATE = overlap.image_digests(IMAGES[:200])


@pytest.mark.parametrize('public', [IMAGES[:200], IMAGES[199::-1], IMAGES, IMAGES[:199], IMAGES[190:]],
                         ids=['the same', 'in another order', 'among others', 'all but one', 'a few'])  # yapf: disable
def test_private_images_are_found_among_public_ones(public):
    with pytest.raises(ValueError, match="of the 200 different private images .'scans'. are among the public ones"):
        overlap.check_is_not_private(overlap.image_digests(public), PRIVATE, 'scans')


def test_other_images_pass_and_so_do_a_few_that_are_the_same_by_chance():
    overlap.check_is_not_private(overlap.image_digests(IMAGES[200:]), PRIVATE, 'scans')
    overlap.check_is_not_private(overlap.image_digests(IMAGES[198:]), PRIVATE, 'scans')  # One in a hundred.
    changed = IMAGES[:200].copy()
    changed[:, 0, 0] ^= 1
    overlap.check_is_not_private(overlap.image_digests(changed), PRIVATE, 'scans')


def test_each_different_image_has_a_digest_of_its_own():
    assert len(overlap.image_digests(IMAGES)) == 400
    assert len(overlap.image_digests(np.concatenate([IMAGES, IMAGES]))) == 400
    np.testing.assert_array_equal(overlap.image_digests(IMAGES), overlap.image_digests(np.asfortranarray(IMAGES)))
