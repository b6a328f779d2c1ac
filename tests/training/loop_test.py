"""Tests of when the loop saves, and of what it shows and compares: a stage that only counts, by one worker or two."""

import numpy as np
import pytest
import tensorflow as tf

from tests import fake_workers
from tests.training.stops import NEVER
from tests.training.stops import StopAfter
from tf_dpdiff import keras
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.training import checkpoint_folders
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import interruption
from tf_dpdiff.training import loop as loop_lib
from tf_dpdiff.training import stage as stage_lib
from tf_dpdiff.training import strategies
from tf_dpdiff.training import summaries as summaries_lib

pytestmark = pytest.mark.usefixtures('small_network')
NUM_STEPS, NEVER_SECS = 4, 1e9


def make_loop(workdir, workers=workers_lib.ALONE, *, every_secs=NEVER_SECS, grids=0, drifts_at=None):
    """Returns a loop of one stage, each step of which adds 1 to a weight of the average; one step may add more."""
    config = loop_lib.TrainerConfig(checkpoint_every_secs=every_secs, grids_per_stage=grids)
    state = checkpoints.resume_or_begin(workdir / checkpoints.FOLDER, {}, is_private=False, workers=workers)
    keras.utils.set_random_seed(0)
    model, average = build_network(), build_network()
    average.set_weights(model.get_weights())
    optimizer, bias = keras.optimizers.SGD(), average.get_layer('conv_out').bias
    optimizer.build(model.trainable_variables)

    def run_step(step):
        bias.assign_add([1.0 + (1e-6 if step + 1 == drifts_at else 0.0)])
        return {}

    replicas = strategies.Replicas(tf.distribute.get_strategy(), workers)
    return loop_lib.Trainer(
        workdir,
        {},
        config,
        state=state,
        training=stage_lib.Training(model, average, None, replicas),
        stages=[stage_lib.Stage('counting', NUM_STEPS, optimizer, lambda save: None, run_step)],
        summaries=summaries_lib.Summaries(workdir),
        build_network=build_network,
        num_classes=2,
        draw_grid=lambda average: np.full([1, 1, 1], count(average), np.uint8),
    )


def build_network():
    return denoiser.build(unet.UNetConfig(base_channels=2), (2, 2, 1), 2)


def count(network):
    return int(round(float(network.get_layer('conv_out').bias.numpy()[0])))


def saved_step(workdir):
    """Returns at which step the newest checkpoint of a run stands; at the end of the run that is NUM_STEPS too."""
    state = checkpoints.read_state(workdir / 'checkpoints', {})
    return state.step if state.stage == 'counting' else NUM_STEPS


def test_grid_is_shown_of_weights_that_are_saved(tmp_path, monkeypatch):
    shown = []

    def look(unused_summaries, stage, name, image, step):
        restored = make_loop(tmp_path)  # What a resumed run goes on from.
        shown.append((stage, name, step, int(image.max()), saved_step(tmp_path), count(restored.average)))

    monkeypatch.setattr(summaries_lib.Summaries, 'stage_image', look)
    make_loop(tmp_path, grids=2).run(NEVER)
    assert shown == [('counting', 'samples', step, step, step, step) for step in (2, 4)]


def test_grid_that_cannot_be_drawn_or_saved_is_not_shown(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(summaries_lib.Summaries, 'stage_image', lambda *arguments: shown.append(arguments))
    trainer = make_loop(tmp_path, grids=NUM_STEPS)
    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(checkpoint_folders, 'write', lambda *unused, **unused_too: (_ for _ in ()).throw(OSError(28)))
        trainer.run(NEVER)
    assert not shown
    make_loop(tmp_path, grids=NUM_STEPS).run(NEVER)  # Control.
    assert len(shown) == NUM_STEPS


# The clock of the first worker decides: where that of another one alone has it that time is over, none saves.
@pytest.mark.parametrize(
    'every_secs, grids, expected',
    [
        ((0.0, NEVER_SECS), (0, 0), 2),
        ((NEVER_SECS, 0.0), (0, 0), 0),
        ((0.0, 0.0), (0, 0), 2),
        ((NEVER_SECS, NEVER_SECS), (2, 0), 2),
        ((NEVER_SECS, NEVER_SECS), (0, 2), 0),
    ],
)
def test_workers_that_drift_apart_save_nothing_from_that_step_on(tmp_path, every_secs, grids, expected):

    def run(workers):
        drifts_at = 3 if workers.index else None
        own = {'every_secs': every_secs[workers.index], 'grids': grids[workers.index], 'drifts_at': drifts_at}
        make_loop(tmp_path, workers, **own).run(NEVER)

    for error in fake_workers.play(run):
        assert isinstance(error, workers_lib.WorkersDisagreeError)
        assert 'worker 1 and worker 0 differ in the weights: their devices do not compute alike' in str(error)
    assert saved_step(tmp_path) == expected


def test_workers_that_do_not_drift_apart_save_all_along_and_stop_together(tmp_path):

    def run(workers):
        make_loop(tmp_path, workers, every_secs=0.0).run(StopAfter(2) if workers.index else NEVER)

    for error in fake_workers.play(run):
        assert isinstance(error, interruption.Interrupted) and 'after step 3 of 4' in str(error)
    assert saved_step(tmp_path) == 3
    assert fake_workers.play(lambda workers: make_loop(tmp_path, workers).run(NEVER)) == [None, None]
    assert saved_step(tmp_path) == NUM_STEPS
