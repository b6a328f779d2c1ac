"""Tests of what TensorBoard shows of a run: once, no more than is released, and without changing what is learnt."""

import dataclasses
import functools
import os
import pathlib
import shutil
import time
from typing import NamedTuple

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.backend.event_processing import plugin_event_multiplexer
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util import tensor_util
import tensorflow as tf

from tests.training import trainer_test as toy
from tests.training.stops import NEVER
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import loop as loop_lib
from tf_dpdiff.training import summaries as summaries_lib

pytestmark = pytest.mark.usefixtures('small_network')
EVERY_STEP = loop_lib.TrainerConfig(log_every_steps=1)


def shown(folder):
    """Returns a folder as TensorBoard's own loader reads it: {(run, tag): [(step, value)]}."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return {
        (run, tag): [
            (event.step, tensor_util.make_ndarray(event.tensor_proto).tolist())
            for event in multiplexer.Tensors(run, tag)
        ]
        for run, content in multiplexer.Runs().items()
        for tag in content['tensors']
    }


def steps(folder):
    """Returns {tag: steps} of what TensorBoard shows."""
    return {tag: [step for step, _ in events] for (_, tag), events in shown(folder).items()}


def write(workdir, numbers):
    summaries = summaries_lib.Summaries(workdir)
    for number in numbers:
        summaries.scalars('stage', {'a': number}, number)
        summaries.non_private_scalars({'b': number}, number)
        summaries.flush()
    return summaries


@pytest.mark.parametrize(
    'processes',
    [
        [range(1, 6)],
        [range(1, 6), range(6, 9)],
        [range(1, 6), range(3, 9)],
        [range(1, 6), range(1, 9)],
        [range(1, 6), range(5, 7), range(3, 5), range(5, 9)],
    ],
)
def test_steps_that_a_resumed_run_repeats_are_shown_once_and_none_is_lost(tmp_path, processes):
    for numbers in processes:
        write(tmp_path, numbers)
    expected = list(range(1, processes[-1][-1] + 1))
    assert steps(tmp_path) == {'stage/a': expected, 'non_private/b': expected}


def test_control_writers_of_tensorflow_show_repeated_steps_twice(tmp_path):
    for numbers in (range(1, 6), range(3, 9)):
        with tf.summary.create_file_writer(str(tmp_path)).as_default():
            for number in numbers:
                tf.summary.scalar('a', number, step=number)
    assert sorted(steps(tmp_path)['a']) == [1, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8]


def test_what_describes_the_whole_run_is_shown_as_it_was_written_last(tmp_path):
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for value in (1.0, 2.0):
        summaries = summaries_lib.Summaries(tmp_path)
        summaries.text('words', f'words {value}')
        summaries.hparams({'rate': value}, [summaries_lib.Metric('rate', 'stage/a', 'stage')], 'run')
        summaries.histogram('numbers', np.full([10], value))
        summaries.image('picture', image)
        summaries.curve('curve', {step: value * step for step in range(3)})
        summaries.flush()
    found = {tag: events for (_, tag), events in shown(tmp_path).items()}
    assert {tag: [step for step, _ in events] for tag, events in found.items() if not tag.startswith('_hparams_')} == {
        'words': [0],
        'numbers': [0],
        'picture': [0],
        'curve': [0, 1, 2],
    }
    assert found['words'] == [(0, b'words 2.0')] and found['curve'] == [(0, 0.0), (1, 2.0), (2, 4.0)]
    width, height, png = found['picture'][0][1]
    assert (width, height) == (b'5', b'4')
    np.testing.assert_array_equal(tf.io.decode_png(png).numpy(), image)


def test_settings_are_shown_beside_their_metrics(tmp_path):
    summaries = summaries_lib.Summaries(tmp_path)
    summaries.hparams({'rate': 0.5, 'name': 'x'}, [summaries_lib.Metric('so far', 'stage/a', 'stage')], 'run')
    summaries.flush()
    contents = {}
    for path in tmp_path.glob('tensorboard/events*'):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            contents.update({value.tag: value.metadata.plugin_data.content for value in event.summary.value})
    experiment = hparams_metadata.parse_experiment_plugin_data(contents['_hparams_/experiment'])
    assert [(m.name.group, m.name.tag, m.display_name) for m in experiment.metric_infos] == [
        ('stage', 'stage/a', 'so far')
    ]
    session = hparams_metadata.parse_session_start_info_plugin_data(contents['_hparams_/session_start_info'])
    assert session.hparams['rate'].number_value == 0.5 and session.hparams['name'].string_value == 'x'


def test_neither_times_of_steps_and_restarts_nor_the_machine_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr('socket.gethostname', lambda: 'ward-3-workstation')
    for first in (1, 3):
        write(tmp_path, range(first, first + 3))
        now = time.time()
        monkeypatch.setattr('time.time', lambda later=now + 1000.0: later)
    files = list(tmp_path.glob('**/events*'))
    assert len(files) > 1 and not [path for path in files if 'ward' in path.name or b'ward' in path.read_bytes()]
    assert not [path for path in files if str(os.getpid()) in path.name.split('.')]
    times = {
        event.wall_time
        for path in tmp_path.glob('**/events*')
        for event in event_file_loader.EventFileLoader(str(path)).Load()
    }
    assert len(times) == 1
    seconds = sorted(int(path.name.split('.')[3]) for path in files)
    assert seconds[-1] - seconds[0] <= 1


class GridDrawer:
    """Samples 3 images in 2 steps; also uses TensorFlow's global generator, which training must not depend on."""

    def __init__(self):
        self._sample = None

    def __call__(self, average):
        tf.random.normal([5])
        self._sample = self._sample or samplers.make_image_sampler(
            functools.partial(denoiser.denoise, average),
            process=process_lib.DiffusionProcess(),
            config=samplers.SamplerConfig(num_steps=2),
            image_shape=(4, 4, 1),
            num_classes=3,
        )
        return np.concatenate(list(self._sample(tf.range(3), tf.range(3, dtype=tf.int64)).numpy()))


def make_trainer(workdir, config=EVERY_STEP, **changes):
    """A run with a fixed secret."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(seeds.PrivateSeed, 'from_os_entropy', lambda: seeds.PrivateSeed(toy.SECRET))
        return toy.make_trainer(workdir, loop=config, **{'draw_grid': GridDrawer(), **changes})


class Whole(NamedTuple):
    """A whole run with grids at every step.

    Attributes:
      workdir: Its folder.
      trainer: Its trainer.
      at_finetuning: A copy of its folder as it was when the private stage began.
    """

    workdir: pathlib.Path
    trainer: loop_lib.Trainer
    at_finetuning: pathlib.Path


@pytest.fixture(name='unbroken', scope='module')
def fixture_unbroken(tmp_path_factory, small_network):
    """A whole run with grids at every step."""
    del small_network
    folder = tmp_path_factory.mktemp('unbroken')
    trainer = make_trainer(folder / 'run')
    toy.run_and_copy(trainer, folder / 'run', folder / 'at_finetuning')
    return Whole(folder / 'run', trainer, folder / 'at_finetuning')


def test_neither_grids_nor_a_trace_change_what_is_learnt_and_the_trace_is_private(tmp_path, unbroken):
    # One run that is traced and draws nothing beside one that draws grids and is not traced.
    traced = make_trainer(tmp_path, dataclasses.replace(EVERY_STEP, profile_steps=(1, 2)), draw_grid=None)
    traced.run(NEVER)
    assert not any(tag.endswith('/samples') for tag in steps(tmp_path))
    np.testing.assert_array_equal(toy.weights(traced.average), toy.weights(unbroken.trainer.average))
    np.testing.assert_array_equal(toy.weights(traced.model), toy.weights(unbroken.trainer.model))
    (trace,) = tmp_path.rglob('*.xplane.pb')
    assert trace.is_relative_to(tmp_path / 'non_private' / 'tensorboard' / 'plugins' / 'profile')
    assert not (unbroken.workdir / 'non_private').exists()  # Control: not asked for, not there.


def test_run_that_crashed_shows_the_same_as_one_that_did_not(tmp_path, unbroken):
    workdir = tmp_path / 'run'
    shutil.copytree(unbroken.at_finetuning, workdir)  # Goes on from there.
    crashing = make_trainer(workdir, dataclasses.replace(EVERY_STEP, checkpoint_every_secs=1e9))
    toy.crash_at_the_last_step(crashing)
    assert steps(workdir)['finetuning/samples'] == [1, 2]  # Shown already, and lost with the weights.
    make_trainer(workdir).run(NEVER)
    assert shown(workdir) == shown(unbroken.workdir)


def test_stages_show_what_they_are_to_show(unbroken):
    found = shown(unbroken.workdir / 'tensorboard')
    for stage, num_steps in toy.STEPS.items():
        names = {tag.split('/')[1] for run, tag in found if run == stage}
        expected = {'learning_rate', 'ema_decay', 'samples'}
        expected |= {'loss'} if stage != 'finetuning' else set()
        expected |= {'epsilon_spent'} if stage != 'pretraining' else set()
        assert names == expected
        assert all(
            [step for step, _ in found[stage, f'{stage}/{name}']] == list(range(1, num_steps + 1)) for name in names
        )
    decays = [value for _, value in found['finetuning', 'finetuning/ema_decay']]
    np.testing.assert_allclose(decays, [(1 + n) / (10 + n) for n in range(3)], rtol=1e-6)
    plan = unbroken.trainer.plan
    for step, epsilon in found[
        'finetuning', 'finetuning/epsilon_spent'
    ]:  # An upper bound of the exact cost, and not by much.
        exact = plan.epsilon(plan.planned_ledger(step))
        assert exact <= epsilon <= exact * 1.01


@pytest.mark.parametrize(
    'num_steps, count, expected', [(100, 5, {20, 40, 60, 80, 100}), (100, 0, set()), (3, 5, {1, 2, 3}), (7, 2, {4, 7})]
)
def test_grids_are_few_evenly_spaced_and_the_last_is_at_the_end(num_steps, count, expected):
    assert loop_lib._evenly_spaced(num_steps, count) == expected


def make_trainer_without_steps(workdir, **changes):
    """A run whose steps compute nothing and whose grids are empty: whether they are shown hangs on the ledger alone."""
    return toy.without_steps(
        make_trainer(workdir, draw_grid=lambda unused_average: np.zeros([4, 4, 1], np.uint8), **changes)
    )


@pytest.mark.parametrize(
    'forgotten, hidden', [('record_step', {'finetuning'}), ('record_release', {'warm_start', 'finetuning'})]
)
def test_no_grid_is_shown_of_weights_that_the_ledger_does_not_hold(tmp_path, monkeypatch, forgotten, hidden):
    trainer = make_trainer_without_steps(tmp_path)
    planned = [trainer.plan.planned_ledger(number) for number in range(toy.STEPS['finetuning'] + 1)]
    monkeypatch.setattr(plan_lib.DpSgdPlan, 'planned_ledger', lambda unused_plan, number: planned[number])
    monkeypatch.setattr(plan_lib.DpSgdPlan, forgotten, lambda unused_plan, ledger, *unused_release: ledger)
    trainer.run(NEVER)
    grids = {tag.split('/')[0] for tag in steps(tmp_path) if tag.endswith('/samples')}
    assert grids == set(toy.STEPS) - hidden


def test_no_grid_is_shown_of_private_training_without_noise(tmp_path):
    plan = plan_lib.make_plan(dataclasses.replace(toy.PRIVACY, noise_multiplier=0.0), 20)
    make_trainer_without_steps(tmp_path, plan=plan, warm_start=None).run(NEVER)
    assert {tag.split('/')[0] for tag in steps(tmp_path) if tag.endswith('/samples')} == {'pretraining'}


@pytest.mark.parametrize(
    'field, value',
    [
        ('log_every_steps', 0),
        ('grids_per_stage', -1),
        ('profile_steps', (3, 3)),
        ('profile_steps', (-1, 2)),
        ('profile_steps', (1, 2, 3)),
    ],
)
def test_bad_settings_are_refused_by_name_and_value(field, value):
    with pytest.raises(ValueError, match=field) as refused:
        loop_lib.TrainerConfig(**{field: value})
    assert str(value) in str(refused.value)
