"""Tests that private images are found among public ones."""

import numpy as np
import pytest

from tf_dpdiff.data import overlap

IMAGES = np.random.default_rng(0).integers(0, 256, [400, 4, 4, 1]).astype(np.uint8)
PRIVATE = overlap.image_digests(IMAGES[:200])


@pytest.mark.parametrize(
    'public',
    [IMAGES[:200], IMAGES[199::-1], IMAGES, IMAGES[:199], IMAGES[190:]],
    ids=['the same', 'in another order', 'among others', 'all but one', 'a few'],
)
def test_private_images_are_found_among_public_ones(public):
    with pytest.raises(ValueError, match="of the 200 different private images .'scans'. are among the public ones"):
        overlap.check_is_not_private([overlap.image_digests(public)], PRIVATE, 'scans')


def test_few_images_that_are_the_same_pass_and_are_counted():
    others, two_shared = overlap.image_digests(IMAGES[200:]), overlap.image_digests(IMAGES[198:])
    changed = IMAGES[:200].copy()
    changed[:, 0, 0] ^= 1
    for sources, expected in (
        ([], 0),
        ([others], 0),
        ([two_shared], 2),
        ([others, two_shared, two_shared], 2),
        ([overlap.image_digests(changed)], 0),
    ):
        assert overlap.check_is_not_private(sources, PRIVATE, 'scans') == expected


def test_sources_that_share_a_few_each_are_refused_where_they_share_many_together():
    sources = [overlap.image_digests(IMAGES[start : start + 2]) for start in (0, 50, 100)]
    with pytest.raises(ValueError, match='6 of the 200 different private images'):
        overlap.check_is_not_private(sources, PRIVATE, 'scans')


def test_each_different_image_has_a_digest_of_its_own():
    assert len(overlap.image_digests(IMAGES)) == 400
    assert len(overlap.image_digests(np.concatenate([IMAGES, IMAGES]))) == 400
    np.testing.assert_array_equal(overlap.image_digests(IMAGES), overlap.image_digests(np.asfortranarray(IMAGES)))
