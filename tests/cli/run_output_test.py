"""Tests of the samples that a run ends with: the same by any number of devices and workers."""

import dataclasses
import pathlib
import threading
import types

import numpy as np
import pytest
import tensorflow as tf

from tests import fake_workers
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import outcome
from tf_dpdiff.sampling import draw as draw_lib
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.training import interruption

SAMPLES = draw_lib.GenerateConfig(num_images=23, seed=5, chunk_size=6)
NOWHERE = pathlib.Path('nowhere')
GO_ON, STOP = (types.SimpleNamespace(requested=requested) for requested in (False, True))


@pytest.fixture(name='model', scope='module')
def fixture_model(small_network):
    """The description of a run, and its averaged network, with weights that were drawn and not trained."""
    del small_network
    process = process_lib.DiffusionProcess(schedules.Schedule('cosine', 50), 'v')
    description = folder_lib.ModelDescription(
        (4, 4, 1), ('a', 'b', 'c'), unet.UNetConfig(base_channels=4), process, samplers.SamplerConfig('ddim', 2)
    )
    network, generator = denoiser.build(description.network, (4, 4, 1), 3), np.random.default_rng(0)
    network.set_weights([generator.normal(0.0, 0.3, weight.shape) for weight in network.get_weights()])
    return description, network


def draw(model, workers, stop=GO_ON, samples=SAMPLES, **changes):
    description, network = model
    return outcome.draw(network, description._replace(**changes), samples, workdir=NOWHERE, stop=stop, workers=workers)


@pytest.mark.parametrize('labelled', [True, False])
@pytest.mark.parametrize('num_devices', [1, 2])
def test_samples_are_those_of_the_network_on_any_devices_and_workers(model, monkeypatch, num_devices, labelled):
    monkeypatch.setattr(shared_work, '_own_devices', lambda kind: ['CPU:0'] * num_devices)
    description, network = model
    sampler = outcome.make_image_sampler(network, description._replace(labelled=labelled), NOWHERE)
    seeds = np.arange(30)
    labels = (seeds % 3 if labelled else np.full(30, 3)).astype(np.int32)
    expected = np.concatenate(
        [sampler.sample(tf.constant(labels[rows]), tf.constant(seeds[rows]))['images'] for rows in seeds.reshape(-1, 6)]
    )
    for count in (1, 2):
        for images, found in fake_workers.play(lambda workers: draw(model, workers, labelled=labelled), count):
            np.testing.assert_array_equal(found, labels[5:28])
            np.testing.assert_array_equal(images, expected[5:28])
    assert images.std() > 10


def test_stop_of_one_worker_interrupts_all(model):
    for error in fake_workers.play(lambda workers: draw(model, workers, STOP if workers.index else GO_ON)):
        assert isinstance(error, interruption.Interrupted) and 'stopped while sampling' in str(error)


@pytest.mark.parametrize(
    'at_second',
    [
        {'samples': dataclasses.replace(SAMPLES, num_images=24)},
        {'samples': dataclasses.replace(SAMPLES, seed=1000)},
        {'sampler': samplers.SamplerConfig('ddim', 3)},
    ],
)
def test_workers_of_other_settings_draw_nothing_together(model, at_second):
    for error in fake_workers.play(lambda workers: draw(model, workers, **(at_second if workers.index else {}))):
        assert isinstance(error, workers_lib.WorkersDisagreeError) and 'the settings of the samples' in str(error)


def test_worker_that_cannot_load_the_network_leaves_none_waiting(model, monkeypatch):
    make, failing = outcome.make_image_sampler, threading.local()

    def make_or_fail(*arguments):
        if getattr(failing, 'here', False):
            raise MemoryError('no room on the device')
        return make(*arguments)

    def draw_or_fail(workers):
        failing.here = workers.index == 1
        return draw(model, workers)

    monkeypatch.setattr(outcome, 'make_image_sampler', make_or_fail)
    first, second = fake_workers.play(draw_or_fail)
    assert isinstance(second, MemoryError) and isinstance(first, workers_lib.WorkerLostError)
    assert 'another worker failed, and says itself why' in str(first)
