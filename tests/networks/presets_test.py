"""Tests of the networks that gin/models/ describes."""

import functools

import gin
import pytest

from tf_dpdiff.cli import gin_config
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet

_PRESETS = {'digits': ((8, 8, 1), 40_841), 'mnist': ((28, 28, 1), 4.24e6), 'imagenet32': ((32, 32, 3), 80.4e6)}


@functools.lru_cache
def config_of(name):
    gin.clear_config()
    gin_config.parse([f'gin/models/{name}.gin'], [])
    config = gin.get_configurable(unet.UNetConfig)()
    gin.clear_config()
    return config


@functools.lru_cache
def variables_of(name):
    """Returns names and shapes of the variables of the network for ten classes; the network itself may be large."""
    model = denoiser.build(config_of(name), _PRESETS[name][0], 10)
    return [(variable.name, variable.shape) for variable in model.variables]


@pytest.mark.parametrize('name', _PRESETS)
def test_network_has_the_number_of_parameters_of_its_paper(name):
    expected = _PRESETS[name][1]
    assert sum(shape.num_elements() for _, shape in variables_of(name)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('name', _PRESETS)
def test_names_of_variables_are_unique(name):
    names = [variable_name for variable_name, _ in variables_of(name)]
    assert len(set(names)) == len(names)


def test_attention_is_where_the_presets_have_it():
    found = {name: {n.split('/')[0] for n, _ in variables_of(name) if 'attention' in n} for name in _PRESETS}
    assert found == {
        'digits': set(),
        'mnist': {'middle_attention'},
        'imagenet32': {
            'middle_attention',
            'down_1_0_attention',
            'down_1_1_attention',
            'up_1_0_attention',
            'up_1_1_attention',
            'up_1_2_attention',
        },
    }
