"""Tests of how chunk sizes follow from a memory budget."""

import pytest
import tensorflow as tf

from tests import conftest
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import dit
from tf_dpdiff.networks import unet
from tf_dpdiff.training import memory

CONFIG = unet.UNetConfig(base_channels=4, groups=2)


@pytest.fixture(name='model', scope='module')
def fixture_model(small_network):
    return denoiser.build(CONFIG, (8, 8, 1), 3)


def choose(model, budget, **changes):
    arguments = {**dict(num_views=6, num_units=100), **changes}
    return memory.choose_chunk_sizes(model, model.trainable_variables, memory_budget_bytes=budget, **arguments)


def test_activations_are_at_least_the_maps_that_the_backward_pass_needs(model):
    # conv_in, and in the block two normalizations, two activations and two convolutions, each of 8x8x4 float32.
    assert 7 * 8 * 8 * 4 * 4 < memory.activation_bytes_per_view(model) < 60 * 8 * 8 * 4 * 4


def test_activations_of_a_transformer_are_at_least_its_tokens_and_attention():
    with conftest.whole_network():
        model = denoiser.build(dit.DiTConfig(hidden_size=8, depth=1, num_heads=2, patch_size=1), (8, 8, 1), 3)
    # Logits and softmax of two heads; normalized tokens, queries to values, and hidden units and their tanh.
    at_least = 4 * (2 * 2 * 64**2 + 64 * 8 * (2 + 3 + 2 * 4))
    assert at_least < memory.activation_bytes_per_view(model) < 6 * at_least


def test_activations_grow_with_the_image(model):
    larger = denoiser.build(CONFIG, (16, 16, 1), 3)
    assert 3.0 < memory.activation_bytes_per_view(larger) / memory.activation_bytes_per_view(model) < 4.0


def test_chunk_fills_the_budget_and_does_not_pass_it(model):
    gradient = 3 * 4 * model.count_params()
    unit = gradient + 6 * memory.activation_bytes_per_view(model)
    for units in (1, 2, 7):
        assert choose(model, units * unit) == (units, 6)
        assert choose(model, (units + 1) * unit - 1) == (units, 6)


def test_unit_that_does_not_fit_is_cut_into_views(model):
    gradient, view = 3 * 4 * model.count_params(), memory.activation_bytes_per_view(model)
    assert choose(model, gradient + 6 * view - 1) == (1, 3)
    assert choose(model, gradient + 3 * view - 1) == (1, 2)
    assert choose(model, 1.0) == (1, 1)  # Less is not possible.


def test_chunk_is_not_larger_than_the_batch(model):
    assert choose(model, 1e12, num_units=5) == (5, 6)


@pytest.mark.parametrize('num_units, units', [(64, 64), (65, 33), (100, 50), (129, 43), (10000, 64)])
def test_chunks_have_equal_sizes_so_that_little_is_padded(model, num_units, units):
    assert choose(model, 1e12, num_units=num_units).units == units


def test_chunk_on_a_cpu_is_no_larger_than_what_is_quick(model):
    large = 10 * 2**31 // memory.activation_bytes_per_view(model)
    assert choose(model, 1e12, num_views=large) == (1, large)
    assert choose(model, 1e12, num_views=large // 100, num_units=20) == (10, large // 100)
    assert choose(model, 1e12, num_views=large // 100, num_units=20, on_accelerator=True) == (20, large // 100)


def test_trained_variables_alone_count(model):
    few = [v for v in model.trainable_variables if 'norm' in v.name]
    budget = 3 * (3 * 4 * sum(int(tf.size(v)) for v in few) + memory.activation_bytes_per_view(model))
    arguments = dict(num_views=1, num_units=100, memory_budget_bytes=budget)
    assert memory.choose_chunk_sizes(model, few, **arguments).units == 3
    assert memory.choose_chunk_sizes(model, model.trainable_variables, **arguments).units < 3
