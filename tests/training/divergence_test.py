"""Tests that a run which diverges stops at once, keeps what was good, and tells what it has spent."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf

from tests import fake_workers
from tests.training import loop_test
from tests.training import pretraining_test
from tests.training import public_images_test
from tests.training import trainer_test as toy
from tests.training.stops import NEVER
from tf_dpdiff.data import procedural
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import divergence
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import optimization
from tf_dpdiff.training import pretraining as pretraining_lib
from tf_dpdiff.training import views as views_lib
from tf_dpdiff.training import warm_start as warm_start_lib

pytestmark = pytest.mark.usefixtures('small_network')
HUGE = optimization.OptimizationConfig(learning_rate=1e30)


def make_networks():
    return [denoiser.build(toy.NETWORK, (4, 4, 1), 3) for _ in range(2)]


def set_bias(network, value):
    network.get_layer('conv_out').bias.assign([value])


@pytest.fixture(name='checked', scope='module')
def fixture_checked(small_network):
    """Two networks, their check, which is traced once, and the weights that they were made with."""
    del small_network
    networks = make_networks()
    return networks, divergence.NetworkCheck(networks, (4, 4, 1), 3), [n.get_weights() for n in networks]


@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize('value, of_weights', [(np.nan, True), (np.inf, True), (-np.inf, True), (3.4e38, False)])
def test_check_finds_weights_and_predictions_that_are_not_finite(checked, which, value, of_weights):
    networks, check, start = checked
    for network, weights in zip(networks, start):
        network.set_weights(weights)
    assert check.weights_are_finite() and check.predictions_are_finite()  # Control.
    for weight in networks[which].get_layer('conv_out').weights:
        weight.assign(tf.fill(weight.shape, value))
    assert check.weights_are_finite() != of_weights
    assert not check.predictions_are_finite()
    with pytest.raises(divergence.DivergedError, match='nothing to release'):
        divergence.check_released(networks[which], (4, 4, 1), 3)
    divergence.check_released(networks[1 - which], (4, 4, 1), 3)


# What goes wrong at the third of four steps, and how that is put in words.
FAULTS = {
    'loss': (lambda loop: float('nan'), 'the loss is nan'),
    'weights': (lambda loop: set_bias(loop.model, np.inf), 'the weights are not finite'),
    'average': (lambda loop: set_bias(loop.average, np.nan), 'the weights are not finite'),
}


def make_failing_loop(workdir, fault, *arguments, fails=True, **options):
    """Returns a loop that counts its steps, as `loop_test` has it, and goes wrong at the third."""
    loop = loop_test.make_loop(workdir, *arguments, **options)
    (stage,) = loop._stages
    run_step = stage.run_step

    def run_or_fail(step):
        run_step(step)
        found = FAULTS[fault][0](loop) if fails and step == 2 else None
        return {'loss': 1.0 if found is None else found}

    stage.run_step = run_or_fail
    return loop


def read_checkpoint(workdir):
    """Returns the newest checkpoint: what it says of the run, and its averaged weights."""
    network = denoiser.build(unet.UNetConfig(base_channels=2), (2, 2, 1), 2)
    checkpoints.load_average(workdir / 'checkpoints', network)
    return checkpoints.read_run(workdir / 'checkpoints'), network


@pytest.mark.parametrize(
    'fault, every_secs, last_good',
    [
        *((fault, 0.0, 2) for fault in FAULTS),
        ('loss', 1e9, 0),
        *(pytest.param(fault, 1e9, 0, marks=pytest.mark.long) for fault in ('weights', 'average')),
    ],
)
def test_diverged_run_stops_at_that_step_and_keeps_the_last_good_weights(tmp_path, fault, every_secs, last_good):
    with pytest.raises(divergence.DivergedError) as error:
        make_failing_loop(tmp_path, fault, every_secs=every_secs).run(NEVER)
    assert str(error.value).startswith(f'counting diverged by step 3 of 4: {FAULTS[fault][1]}. ')
    assert 'Lower learning_rate' in str(error.value) and '\n' not in str(error.value)
    found, network = read_checkpoint(tmp_path)
    assert found.has_diverged and loop_test.count(network) == last_good
    with pytest.raises(ValueError, match='has diverged, and is over'):
        loop_test.make_loop(tmp_path)


def test_control_run_that_does_not_diverge_goes_on_to_its_end(tmp_path):
    make_failing_loop(tmp_path, 'loss', fails=False).run(NEVER)
    found, network = read_checkpoint(tmp_path)
    assert not found.has_diverged and loop_test.count(network) == 4


@pytest.mark.parametrize(
    'fault, failing',
    [
        ('loss', 0),
        ('loss', 1),
        ('weights', 0),
        ('average', 1),
        *(pytest.param(*others, marks=pytest.mark.long) for others in (('weights', 1), ('average', 0))),
    ],
)
def test_all_workers_stop_where_one_finds_that_the_run_has_diverged(tmp_path, fault, failing):

    def run(workers):
        make_failing_loop(tmp_path, fault, workers, every_secs=0.0, fails=workers.index == failing).run(NEVER)

    said = fake_workers.play(run)
    assert all(isinstance(error, divergence.DivergedError) for error in said), said
    assert FAULTS[fault][1] in str(said[failing]) and 'by step 3 of 4' in str(said[1 - failing])
    found, network = read_checkpoint(tmp_path)
    assert found.has_diverged and loop_test.count(network) == 2


def test_samples_that_cannot_be_drawn_end_the_run(tmp_path):

    def run(workers):
        loop = loop_test.make_loop(tmp_path, workers, grids=2)

        def draw(average):
            if loop_test.count(average) == 4:
                raise samplers.NotFiniteError
            return np.zeros([1, 1, 1], np.uint8)

        loop._draw_grid = draw
        loop.run(NEVER)

    first, second = fake_workers.play(run)
    assert 'by step 4 of 4: its samples are not finite' in str(first)
    assert isinstance(second, divergence.DivergedError)
    assert loop_test.count(read_checkpoint(tmp_path)[1]) == 2


def refuse(*unused_arguments, **unused_options):
    raise AssertionError('released, though the run had diverged before')


@pytest.mark.parametrize('where', ['pretraining', 'before the warm start'])
def test_run_that_diverges_before_its_first_release_releases_nothing(tmp_path, monkeypatch, where):
    monkeypatch.setattr(class_means.ClassMeansConfig, 'release', refuse)
    strokes = procedural.random_strokes(num_images=30, image_size=4, num_classes=3)
    pretraining = pretraining_lib.PretrainingConfig(strokes, 3, 4, HUGE) if where == 'pretraining' else None
    trainer = toy.make_trainer(tmp_path, pretraining=pretraining)
    if pretraining is None:
        set_bias(trainer.model, np.nan)
    stage = 'pretraining' if pretraining else 'warm_start'
    with pytest.raises(divergence.DivergedError, match=rf'{stage} diverged by step \d of \d.*no privacy is spent'):
        trainer.run(NEVER)
    assert not trainer.state.ledger.releases and not (tmp_path / warm_start_lib.MEANS_FILE).exists()


def test_private_stage_that_diverges_tells_what_it_has_spent(tmp_path):
    finetuning = finetuning_lib.FinetuningConfig(HUGE, views_lib.ViewsConfig(), units_per_chunk=4)
    trainer = toy.make_trainer(tmp_path, pretraining=None, finetuning=finetuning)
    with pytest.raises(divergence.DivergedError, match='finetuning diverged by step 1 of 3') as error:
        trainer.run(NEVER)
    ledger, plan = trainer.state.ledger, trainer.plan
    assert ledger == plan.planned_ledger(1)  # The release of the warm start, and the step that went wrong.
    told = re.search(r'epsilon = ([\d.]+) at delta = 0.0001, and stays spent', str(error.value)).group(1)
    assert told == rounding.round_up(plan.epsilon(ledger))
    found = checkpoints.read_run(tmp_path / 'checkpoints')
    assert found.ledger == ledger and found.has_diverged
    network = trainer.released_model()
    checkpoints.load_average(tmp_path / 'checkpoints', network)
    assert divergence.NetworkCheck([network], (4, 4, 1), 3).predictions_are_finite()


def test_private_loss_that_is_not_finite_is_not_looked_at(tmp_path, monkeypatch):
    """That a run stops is seen by everyone: it must not hang on private images but by the noisy sums."""
    unit_loss_fn, asked = views_lib.unit_loss_fn, []

    def make_broken(model):
        unit_loss = unit_loss_fn(model)
        asked.append(model)
        return lambda views: float('nan') * unit_loss(views)

    monkeypatch.setattr(views_lib, 'unit_loss_fn', make_broken)
    trainer = toy.make_trainer(tmp_path, pretraining=None, warm_start=None, plan=plan_lib.make_plan(toy.PRIVACY, 20))
    trainer.run(NEVER)
    assert asked and trainer.is_done and trainer.state.ledger == trainer.plan.planned_ledger()


@pytest.mark.parametrize(
    'changes, where', [({}, r'by step [2-9] of 80: the loss is'), ({'num_epochs': 1, 'batch_size': 140}, 'at its end')]
)
def test_public_classifier_that_diverges_releases_nothing(tmp_path, monkeypatch, changes, where):
    monkeypatch.setattr(feature_means.FeatureMeansConfig, 'release', refuse)
    classifier = dataclasses.replace(public_images_test.QUICK, learning_rate=1e38, **changes)
    warm_start = dataclasses.replace(public_images_test.WARM_START, classifier=classifier)
    trainer = public_images_test.make_trainer(tmp_path, warm_start=warm_start)
    with pytest.raises(
        divergence.DivergedError, match=f'the public classifier diverged {where}.*of PublicClassifierConfig'
    ):
        trainer.run(NEVER)
    assert not trainer.state.ledger.releases and not (tmp_path / warm_start_lib.FEATURE_MEANS_FILE).exists()


def test_public_run_that_diverges_leaves_no_checkpoint_to_start_from(tmp_path):
    trainer = pretraining_test.make_public(tmp_path, optimization=HUGE)
    with pytest.raises(divergence.DivergedError, match='pretraining diverged .* No private image was read'):
        trainer.run(NEVER)
    sound = pretraining_test.make_public_training(tmp_path / 'other')
    assert np.isfinite(pretraining_test.checkpoint_of(sound).loss)  # Control.
    for weight in sound.trainer.average.get_layer('conv_out').weights:
        weight.assign(tf.fill(weight.shape, 3.4e38))
    with pytest.raises(divergence.DivergedError, match='the loss of what came out is'):
        pretraining_test.checkpoint_of(sound)


@pytest.mark.parametrize('rate', [float('inf'), float('nan')])
def test_learning_rate_that_is_no_number_is_refused_before_anything_is_done(rate):
    with pytest.raises(ValueError, match='learning_rate must be finite and > 0'):
        optimization.OptimizationConfig(learning_rate=rate)
    with pytest.raises(ValueError, match='learning_rate of the public classifier must be finite and > 0'):
        dataclasses.replace(public_images_test.QUICK, learning_rate=rate)
