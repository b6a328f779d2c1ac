"""Tests of configurations of networks in files."""

import dataclasses
import json

import pytest

from tf_dpdiff.networks import dit
from tf_dpdiff.networks import kinds
from tf_dpdiff.networks import unet

_UNET = unet.UNetConfig(base_channels=8, channel_multipliers=(1, 3), attention_resolutions=(), adapter_rank=2)
_DIT = dit.DiTConfig(hidden_size=8, num_heads=2, mlp_ratio=2.5)


@pytest.mark.parametrize('config', [_UNET, _DIT])
def test_configuration_is_the_same_after_a_way_through_json(config):
    assert kinds.from_json(kinds.to_json(config)) == config
    assert kinds.from_json(json.loads(json.dumps(kinds.to_json(config)))) == config


def test_file_without_a_kind_is_of_a_unet_and_stays_as_it_was():
    # Public checkpoints are known by the digest of this.
    assert kinds.to_json(_UNET) == dataclasses.asdict(_UNET)
    assert kinds.to_json(_DIT) == {'kind': 'dit', **dataclasses.asdict(_DIT)}
    assert kinds.from_json({'kind': 'unet', **dataclasses.asdict(_UNET)}) == _UNET


def test_kinds_have_names_of_their_own():
    assert len({config.kind for config in kinds.CONFIGS}) == len(kinds.CONFIGS)


def test_kind_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="there is no network of kind 'mlp': there are unet, dit"):
        kinds.from_json({'kind': 'mlp', 'depth': 3})


def test_fields_of_another_kind_are_refused():
    with pytest.raises(TypeError, match='base_channels'):
        kinds.from_json({'kind': 'dit', 'base_channels': 8})
