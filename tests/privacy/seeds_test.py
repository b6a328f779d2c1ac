"""Tests of the secret seed."""

import hashlib
import hmac

import pytest

from tf_dpdiff.privacy import seeds


def test_secret_comes_back_from_its_bytes_and_is_not_shown():
    seed = seeds.PrivateSeed.from_os_entropy()
    again = seeds.PrivateSeed(seed.reveal())
    assert again.derive('noise') == seed.derive('noise')
    assert seed.reveal().hex() not in repr(seed) + str(seed) + f'{seed}'


def test_derived_seeds_differ_by_purpose_and_by_secret_and_fit_int64():
    first, second = seeds.PrivateSeed(bytes(32)), seeds.PrivateSeed(bytes(31) + b'\x01')
    derived = [seed.derive(purpose) for seed in (first, second) for purpose in ('noise', 'sampling', 'views')]
    assert len(set(derived)) == len(derived)
    assert all(0 <= value < 2**63 for value in derived)
    # All but a few of the 63 bits are used.
    assert max(derived).bit_length() > 56


def test_keys_are_those_of_hmac_and_differ_by_purpose():
    seed = seeds.PrivateSeed(bytes(range(32)))
    assert seed.derive_key('noise') == hmac.new(bytes(range(32)), b'noise', hashlib.sha256).digest()
    assert seed.derive_key('noise') != seed.derive_key('class_means')


def test_two_runs_have_different_secrets():
    assert seeds.PrivateSeed.from_os_entropy().reveal() != seeds.PrivateSeed.from_os_entropy().reveal()


def test_secret_of_another_length_is_refused():
    with pytest.raises(ValueError, match='32 bytes'):
        seeds.PrivateSeed(b'short')
