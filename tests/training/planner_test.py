"""Tests of how long a run is said to take and of what memory it is said to need."""

import math

import numpy as np
import pytest

from tests import conftest
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import dit
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import sampling
from tf_dpdiff.training import flops
from tf_dpdiff.training import memory
from tf_dpdiff.training import planner

PIXELS, CHANNELS, EMBEDDED = 64, 4, 16


@pytest.fixture(name='model', scope='module')
def fixture_model():
    return denoiser.build(
        unet.UNetConfig(base_channels=CHANNELS, channel_multipliers=(1,), head_channels=CHANNELS, groups=2),
        (8, 8, 1),
        3,
    )


@pytest.fixture(name='small', scope='module')
def fixture_small():
    return conftest.build_small_network(unet.UNetConfig(base_channels=4, groups=2), (8, 8, 1), 3)


def products_by_hand():
    """Returns the multiplications of the forward pass, and of them those whose input needs no gradient."""
    conv_in, conv_out = 9 * PIXELS * CHANNELS, 9 * PIXELS * CHANNELS
    narrow = 2 * 9 * PIXELS * CHANNELS**2 + EMBEDDED * CHANNELS  # Down, and two in the middle.
    wide = narrow + 9 * PIXELS * CHANNELS**2 + PIXELS * 2 * CHANNELS * CHANNELS  # Two on the way up.
    attention = PIXELS * CHANNELS * 3 * CHANNELS + 2 * PIXELS**2 * CHANNELS + PIXELS * CHANNELS**2
    of_sinusoids, of_label = CHANNELS * EMBEDDED, 4 * EMBEDDED
    embedding = of_sinusoids + EMBEDDED**2 + of_label
    return (conv_in + 3 * narrow + 2 * wide + attention + embedding + conv_out, conv_in + of_sinusoids + of_label)


def test_flops_are_those_counted_by_hand(model):
    products, without_gradient = products_by_hand()
    counted = flops.flops_per_view(model, model.trainable_variables)
    assert counted.forward == 2 * products
    assert counted.training == 2 * (3 * products - without_gradient)


def test_flops_of_a_transformer_are_those_counted_by_hand():
    hidden, tokens, pixels = 8, 16, 2 * 2
    model = denoiser.build(dit.DiTConfig(hidden_size=hidden, depth=1, num_heads=2), (8, 8, 1), 3)
    of_sinusoids, of_label, of_pixels = hidden**2, 4 * hidden, tokens * pixels * hidden
    embedding = of_sinusoids + hidden**2 + of_label
    modulation = (6 + 2) * hidden**2
    attention = tokens * hidden * (3 + 1) * hidden + 2 * tokens**2 * hidden
    perceptron = 2 * tokens * hidden * 4 * hidden
    products = of_pixels + embedding + modulation + attention + perceptron + tokens * hidden * pixels
    counted = flops.flops_per_view(model, model.trainable_variables)
    assert counted.forward == 2 * products
    assert counted.training == 2 * (3 * products - of_pixels - of_sinusoids - of_label)


def test_gradients_of_filters_that_are_not_trained_do_not_count(model):
    all_trained = flops.flops_per_view(model, model.trainable_variables)
    last = flops.flops_per_view(model, denoiser.select_variables(model, ('out_norm',)))
    # Of the gradient, only what the last convolution hands back.
    assert last == (all_trained.forward, all_trained.forward + 2 * 9 * PIXELS * CHANNELS)


@pytest.mark.parametrize('units_per_chunk', [1, 8])
def test_largest_share_is_that_of_sampled_shards(units_per_chunk):
    num_units, batch_size, devices, steps = 1003, 200, 4, 400
    sampler = sampling.PoissonSampler(batch_size / num_units)
    longest = []
    for step in range(steps):
        shards = [
            sampler.sample(num_units, seed=1, step=step, replica=replica, num_replicas=devices)
            for replica in range(devices)
        ]
        longest.append(max(map(len, sampling.pad_batches(shards, units_per_chunk, equally=False))))
    expected = planner.largest_sampled_share(num_units, batch_size, devices, units_per_chunk)
    error = np.std(longest) / math.sqrt(steps)
    assert np.mean(longest) == pytest.approx(expected, abs=4.0 * error)
    assert np.mean(longest) > batch_size / devices + 8.0 * error  # Equal parts are told from it.


def test_one_device_has_all_units():
    assert planner.largest_sampled_share(500, 100, 1) == pytest.approx(100.0)
    assert planner.largest_sampled_share(500, 100, 1, 16, is_poisson=False) == pytest.approx(112.0)
    assert planner.largest_sampled_share(500, 1, 4, 8) == pytest.approx(8.0, abs=1e-6)  # A chunk of padding at least.


def test_imbalance_grows_with_the_number_of_devices():
    shares = [planner.largest_sampled_share(1437, 700, n) * n / 700 for n in (1, 2, 8, 32)]
    assert shares == sorted(shares) and shares[0] == pytest.approx(1.0) and shares[-1] > 1.25


@pytest.mark.parametrize(
    'batch_size, devices, chunk, share', [(128, 1, None, 128), (128, 3, None, 43), (128, 4, 64, 32), (1024, 8, 48, 144)]
)
def test_equal_shares_are_whole_chunks(batch_size, devices, chunk, share):
    assert planner.largest_equal_share(batch_size, devices, chunk) == share


def test_step_takes_its_views_and_its_reduction():
    work = planner.StageWork('private steps', 10, 100, 8, 30.0, 1_000_000)
    assert work.views == 8000 and work.imbalance(4) == pytest.approx(1.2)
    hardware = planner.Hardware(devices=4, views_per_second=60.0, scaling_efficiency=0.5, network_gbps=0.1)
    seconds = planner.step_seconds(work, hardware, planner.rate(hardware, 0.0, is_public=False))
    assert seconds == pytest.approx(30 * 8 / 60.0 / 0.5 + 6e6 * 8 / 1e8)
    # Summing over a ring by hand: N - 1 rounds of one part each, twice.
    assert planner.ring_bytes(1_000_000, 4) == 2 * 3 * 4 * 1_000_000 / 4


def test_rates_are_measured_or_estimated_each_for_its_kind_of_stage():
    measured = planner.Hardware(views_per_second=10.0, public_views_per_second=30.0)
    assert [planner.rate(measured, 1.0, is_public=kind) for kind in (False, True)] == [10.0, 30.0]
    assert planner.rate(planner.Hardware(views_per_second=10.0), 1.0, is_public=True) == 10.0
    assert planner.rate(planner.Hardware(device_tflops=100.0), 1e9, is_public=True) == pytest.approx(30e3)
    assert planner.rate(planner.Hardware(device_tflops=100.0, utilization=0.5), 1e9, is_public=True) == 50e3


@pytest.mark.parametrize(
    'wrong, said',
    [
        (dict(devices=0), 'devices must be at least 1, got 0'),
        (dict(views_per_second=0.0), 'views_per_second must be a number > 0, got 0'),
        (dict(views_per_second=math.nan), 'got nan'),
        (dict(device_memory_gib=-1.0), 'device_memory_gib .* got -1'),
        (dict(device_tflops=math.inf), 'device_tflops .* got inf'),
        (dict(device_tflops=1.0, utilization=1.5), 'utilization must be in .* got 1.5'),
        (dict(devices=2, scaling_efficiency=0.0), 'scaling_efficiency must be in .* got 0'),
        (dict(views_per_second=5.0, device_tflops=7.0), 'views_per_second=5 .* device_tflops=7'),
        (dict(utilization=0.4), 'utilization=0.4'),
        (dict(public_views_per_second=4.0, device_tflops=1.0), 'public_views_per_second=4'),
        (dict(price_per_device_hour=2.0), 'price_per_device_hour=2 needs a rate'),
        (dict(devices=2, network_gbps=9.0), 'network_gbps=9 needs a rate'),
        (dict(views_per_second=1.0, network_gbps=9.0), 'devices=1'),
    ],
)
def test_hardware_that_means_nothing_is_refused_by_name_and_value(wrong, said):
    with pytest.raises(ValueError, match=said):
        planner.Hardware(**wrong)


def test_memory_budget_fills_a_device_and_does_not_pass_it(small):
    num_views = 8
    count, activation_bytes = small.count_params(), memory.activation_bytes_per_view(small)

    def held(chunk):
        return planner.private_memory(
            num_parameters=count,
            num_trained=count,
            num_optimizer_states=4 * count,
            chunk=chunk,
            activation_bytes=activation_bytes,
        )

    device_gib = 0.5
    budget = planner.memory_budget_gib(held(memory.ChunkSizes(1, 1)), device_gib)
    assert budget == pytest.approx(0.4)
    chunk = memory.choose_chunk_sizes(
        small, small.trainable_variables, num_views=num_views, num_units=10**6, memory_budget_bytes=budget * 2**30
    )
    assert held(chunk).total <= planner.SHARE_OF_MEMORY * device_gib * 2**30
    assert held(chunk).gradients + held(chunk).activations <= budget * 2**30
    more = held(memory.ChunkSizes(1 + int(device_gib * 2**30 / (num_views * activation_bytes)), num_views))
    assert more.total > planner.SHARE_OF_MEMORY * device_gib * 2**30
    assert planner.memory_budget_gib(held(chunk), held(chunk).least / 2**30) == 0.0


def test_gradients_are_counted_as_chunks_are_chosen(small):
    count, activation_bytes = small.count_params(), memory.activation_bytes_per_view(small)
    for units in (1, 3):
        held = planner.private_memory(
            num_parameters=count,
            num_trained=count,
            num_optimizer_states=2 * count,
            chunk=memory.ChunkSizes(units, 2),
            activation_bytes=activation_bytes,
        )
        arguments = dict(num_views=2, num_units=100)
        needed = held.gradients + held.activations
        for budget, found in ((needed, (units, 2)), (needed - 1, (units - 1, 2) if units > 1 else (1, 1))):
            assert (
                memory.choose_chunk_sizes(small, small.trainable_variables, memory_budget_bytes=budget, **arguments)
                == found
            )
