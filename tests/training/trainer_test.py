"""Tests of the loop: resuming, refusing, counting, and keeping the secret."""

import dataclasses
import os
import pathlib
import shutil
import stat
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tests.training.stops import NEVER
from tests.training.stops import StopAfter
from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.data import pipelines
from tf_dpdiff.data import procedural
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import interruption
from tf_dpdiff.training import loop as loop_lib
from tf_dpdiff.training import optimization
from tf_dpdiff.training import pretraining as pretraining_lib
from tf_dpdiff.training import strategies
from tf_dpdiff.training import train_step
from tf_dpdiff.training import views as views_lib
from tf_dpdiff.training import warm_start as warm_start_lib

pytestmark = pytest.mark.usefixtures('small_network')
NETWORK = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
OPTIMIZATION = optimization.OptimizationConfig(learning_rate=0.01)
PRIVACY = plan_lib.DpSgdConfig(
    target_delta=1e-4, expected_batch_size=8, num_steps=3, l2_norm_clip=1e-2, noise_multiplier=1.0
)
STEPS = {'pretraining': 2, 'warm_start': 2, 'finetuning': 3}


def make_dataset(seed=0):
    generator = np.random.default_rng(seed)
    return datasets.ImageDataset(
        'toy',
        generator.integers(0, 256, [20, 4, 4, 1]).astype(np.uint8),
        (np.arange(20) % 3).astype(np.int32),
        ('a', 'b', 'c'),
    )


def make_training(
    workdir,
    private=None,
    *,
    plan=None,
    draw_grid=None,
    on_release=lambda released: None,
    replicas=strategies.ONE,
    **changes,
):
    """Returns what trains a toy run, whose recipe is changed; a plan takes the place of the one that it asks for."""
    private = private or make_dataset()
    release = class_means.ClassMeansConfig(3.0, 2.0)
    arguments = dict(
        network=NETWORK,
        process=process_lib.DiffusionProcess(),
        data=datasets.PrivateData(train=private, held_out=private),
        privacy=plan.config if plan else PRIVACY,
        pretraining=pretraining_lib.PretrainingConfig(
            procedural.random_strokes(num_images=30, image_size=4, num_classes=3), STEPS['pretraining'], 4, OPTIMIZATION
        ),
        warm_start=warm_start_lib.WarmStartConfig(release, 30, STEPS['warm_start'], 4, OPTIMIZATION),
        finetuning=finetuning_lib.FinetuningConfig(
            OPTIMIZATION, views_lib.ViewsConfig(augmentation_multiplicity=2), units_per_chunk=4
        ),
    )
    build = build_lib.Build(recipe_lib.Recipe(**{**arguments, **changes}))
    build.plan = plan or build.plan
    return build.make_training(
        workdir,
        private,
        on_release=on_release,
        make_grid_drawer=(lambda model: draw_grid) if draw_grid else None,
        replicas=replicas,
    )


def make_trainer(workdir, private=None, **changes):
    return make_training(workdir, private, **changes).trainer


def without_steps(trainer):
    """Makes the steps of a run compute nothing: private ones are recorded, which is all that its ledger knows of them.

    Returns:
      The trainer.
    """
    *public, private = trainer._stages

    def record_step(unused_step):
        trainer.state.ledger = trainer.plan.record_step(trainer.state.ledger)
        return {}

    private.run_step = record_step
    for stage in public:
        stage.run_step = lambda unused_step: {'loss': 1.0}
    return trainer


def record_releases(monkeypatch, config_class):
    """Returns a list that grows by what is released each time by configurations of a class."""
    released, release = [], config_class.release

    def recorded(self, *arguments, **options):
        released.append(release(self, *arguments, **options))
        return released[-1]

    monkeypatch.setattr(config_class, 'release', recorded)
    return released


def run_and_copy(trainer, workdir, at_finetuning):
    """Runs a whole run; copies its folder as it is when the private stage begins, to go on from there."""
    private = trainer._stages[2]
    begin = private.begin

    def copy_and_begin(save):
        shutil.copytree(workdir, at_finetuning)
        begin(save)

    private.begin = copy_and_begin
    trainer.run(NEVER)


def crash_at_the_last_step(trainer):
    """Runs a whole run up to the last step of its private stage, where it ends without saving."""
    private = trainer._stages[2]
    run_step = private.run_step

    def run_or_crash(step):
        if step == STEPS['finetuning'] - 1:
            raise KeyboardInterrupt
        return run_step(step)

    private.run_step = run_or_crash
    with pytest.raises(KeyboardInterrupt):
        trainer.run(NEVER)


def weights(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


SECRET = b'secret of the test, 32 bytes lon'


@pytest.fixture(name='fixed_secret')
def fixture_fixed_secret(monkeypatch):
    """Runs share one secret, so that a broken run can be compared with an unbroken one."""
    monkeypatch.setattr(seeds.PrivateSeed, 'from_os_entropy', lambda: seeds.PrivateSeed(SECRET))


class Whole(NamedTuple):
    """A whole run with the fixed secret.

    Attributes:
      workdir: Its folder.
      training: Its trainer.
      at_finetuning: A copy of its folder as it was when the private stage began.
      steps: Its private steps as they were made, compiled.
      sizes: How many rows the batches of its private steps had.
    """

    workdir: pathlib.Path
    training: build_lib.RunTraining
    at_finetuning: pathlib.Path
    steps: list
    sizes: set

    @property
    def trainer(self):
        return self.training.trainer


@pytest.fixture(name='unbroken', scope='module')
def fixture_unbroken(tmp_path_factory, small_network):
    """A whole run with the fixed secret."""
    del small_network
    folder, made, sizes = tmp_path_factory.mktemp('unbroken'), [], set()
    compile_private_step, gather_units = train_step.compile_private_step, pipelines.gather_units

    def recorded_make(*args, **kwargs):
        made.append(compile_private_step(*args, **kwargs))
        return made[-1]

    def recorded_gather(dataset, units, **kwargs):
        sizes.add(len(units))
        return gather_units(dataset, units, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(seeds.PrivateSeed, 'from_os_entropy', lambda: seeds.PrivateSeed(SECRET))
        monkeypatch.setattr(train_step, 'compile_private_step', recorded_make)
        monkeypatch.setattr(pipelines, 'gather_units', recorded_gather)
        training = make_training(folder / 'run')
        run_and_copy(training.trainer, folder / 'run', folder / 'at_finetuning')
    return Whole(folder / 'run', training, folder / 'at_finetuning', made, sizes)


def test_run_stopped_after_every_other_step_equals_one_never_stopped(tmp_path, fixed_secret, unbroken):
    stopped_in = []
    while True:
        broken = make_trainer(tmp_path)
        try:
            broken.run(StopAfter(1))
            break
        except interruption.Interrupted:
            stopped_in.append(broken.state.stage)
            assert len(stopped_in) < 10
    assert set(stopped_in) == set(STEPS)
    np.testing.assert_array_equal(weights(broken.average), weights(unbroken.trainer.average))
    assert broken.state.ledger == unbroken.trainer.state.ledger == broken.plan.planned_ledger()


def test_run_with_truncated_batches_that_was_stopped_equals_one_never_stopped(tmp_path, fixed_secret):
    def make(name):
        privacy = dataclasses.replace(PRIVACY, truncated_batch_size=8)
        return make_trainer(tmp_path / name, pretraining=None, warm_start=None, privacy=privacy)

    whole = make('whole')
    whole.run(NEVER)
    with pytest.raises(interruption.Interrupted):
        make('stopped').run(StopAfter(1))
    resumed = make('stopped')
    assert resumed.resumed and 0 < resumed.state.ledger.count(ledger_lib.DP_SGD_STEP) < 3
    resumed.run(NEVER)
    np.testing.assert_array_equal(weights(resumed.average), weights(whole.average))
    assert resumed.state.ledger == whole.state.ledger == whole.plan.planned_ledger()
    (release,) = whole.state.ledger.releases
    assert release.truncation == whole.plan.truncation


def test_step_lost_in_a_crash_is_repeated_with_the_same_draws_and_counted_once(tmp_path, unbroken):
    workdir = tmp_path / 'run'
    shutil.copytree(unbroken.at_finetuning, workdir)  # Goes on from there.
    crashing = make_trainer(workdir, loop=loop_lib.TrainerConfig(checkpoint_every_secs=1e9))
    crash_at_the_last_step(crashing)
    assert crashing.state.ledger.count(ledger_lib.DP_SGD_STEP) == 2  # Two steps that no checkpoint knows of.
    resumed = make_trainer(workdir)
    assert resumed.state.ledger.count(ledger_lib.DP_SGD_STEP) == 0
    resumed.run(NEVER)
    np.testing.assert_array_equal(weights(resumed.average), weights(unbroken.trainer.average))
    assert resumed.state.ledger == unbroken.trainer.state.ledger


@pytest.mark.long  # The control of contract_test's line 7 is the same.
def test_control_another_secret_gives_other_weights(tmp_path, unbroken):
    other = make_trainer(tmp_path)
    other.run(NEVER)
    assert not np.allclose(weights(other.average), weights(unbroken.trainer.average), atol=1e-5)


def test_finished_run_does_nothing_more(unbroken):
    first = unbroken.trainer
    again = make_trainer(unbroken.workdir)
    assert again.resumed and again.is_done
    again.run(NEVER)
    np.testing.assert_array_equal(weights(again.average), weights(first.average))
    assert again.state.ledger == first.state.ledger


@pytest.mark.parametrize(
    'change, message',
    [
        ({'expected_batch_size': 9}, 'expected_batch_size'),
        ({'noise_multiplier': 2.0}, 'noise_multiplier'),
        ({'l2_norm_clip': 1.0}, 'l2_norm_clip'),
        ({'target_delta': 1e-5}, 'target_delta'),
        ({'num_steps': 4}, 'num_steps'),
        ({'truncated_batch_size': 12}, 'truncated_batch_size'),
    ],
)
def test_resuming_with_another_plan_is_refused_naming_the_difference(unbroken, change, message):
    with pytest.raises(checkpoints.CheckpointMismatchError, match=f'begun with another configuration .*{message}'):
        make_trainer(unbroken.workdir, privacy=dataclasses.replace(PRIVACY, **change))


def test_resuming_with_other_data_or_another_network_is_refused(unbroken):
    with pytest.raises(checkpoints.CheckpointMismatchError, match='the private images or labels are not the same'):
        make_trainer(unbroken.workdir, private=make_dataset(seed=1))
    with pytest.raises(checkpoints.CheckpointMismatchError, match='base_channels: 4 then, 8 now'):
        make_trainer(unbroken.workdir, network=dataclasses.replace(NETWORK, base_channels=8))


def test_secret_is_in_the_private_checkpoint_and_nowhere_else(unbroken):
    workdir, trainer = unbroken.workdir, unbroken.trainer
    secret = trainer.state.private_seed
    purposes = ('noise', 'sampling', 'views', 'class_means', 'images_of_owners')
    derived = [secret.derive(purpose) for purpose in purposes]
    keys = [secret.reveal(), *(secret.derive_key(purpose) for purpose in purposes)]
    traces = keys + [key.hex().encode() for key in keys] + [str(d).encode() for d in derived]
    traces += [int(d).to_bytes(8, 'little') for d in derived]
    found = {}
    for folder, _, names in os.walk(workdir):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, 'rb') as file:
                content = file.read()
            found[os.path.relpath(path, workdir)] = any(trace in content for trace in traces)
    leaks = [path for path, leaked in found.items() if leaked]
    assert leaks and all(path.startswith('checkpoints' + os.sep) for path in leaks)
    assert any(path.startswith('tensorboard') for path in found)
    assert stat.S_IMODE(os.stat(workdir / 'checkpoints').st_mode) == 0o700


def tags(folder):
    """Returns the tags of all TensorBoard events below a folder."""
    found = set()
    for path in folder.glob('**/events*'):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found.update(value.tag for value in event.summary.value)
    return found


def test_private_numbers_are_not_written_by_default(unbroken):
    workdir = unbroken.workdir
    assert not (workdir / 'non_private').exists()
    assert {tag.split('/')[0] for tag in tags(workdir)} == {'pretraining', 'warm_start', 'finetuning'}
    assert 'pretraining/loss' in tags(workdir) and 'finetuning/loss' not in tags(workdir)


def test_single_stage_trains_the_chosen_variables_and_keeps_private_numbers_apart(tmp_path):
    finetuning = finetuning_lib.FinetuningConfig(
        OPTIMIZATION, views_lib.ViewsConfig(), trainable=('norm',), units_per_chunk=4
    )
    trainer = make_trainer(
        tmp_path,
        pretraining=None,
        warm_start=None,
        plan=plan_lib.make_plan(PRIVACY, 20),
        finetuning=finetuning,
        loop=loop_lib.TrainerConfig(log_non_private=True),
    )
    trainer._stages[0].begin(trainer.save)
    before = {v.name: v.numpy() for v in trainer.average.variables}
    trainer.run(NEVER)
    changed = {v.name for v in trainer.average.variables if not np.array_equal(before[v.name], v.numpy())}
    assert changed and all('norm' in name for name in changed)
    assert [release.mechanism for release in trainer.state.ledger.releases] == [ledger_lib.DP_SGD_STEP]
    trainer.summaries.flush()
    private_tags = tags(tmp_path / 'non_private')
    assert 'non_private/clipped_fraction' in private_tags and all(t.startswith('non_private/') for t in private_tags)
    assert not any('non_private' in tag for tag in tags(tmp_path / 'tensorboard'))


def test_step_is_traced_once_in_a_run_whose_batches_differ_in_size(unbroken):
    assert len(unbroken.sizes) > 1
    assert [step.experimental_get_tracing_count() for step in unbroken.steps] == [1]


def test_public_images_of_another_shape_are_refused(tmp_path):
    strokes = procedural.random_strokes(num_images=30, image_size=8, num_classes=3)
    with pytest.raises(ValueError, match="the public images .'random strokes': .8, 8, 1., 3 classes. must have"):
        make_trainer(tmp_path, pretraining=pretraining_lib.PretrainingConfig(strokes, 2, 4, OPTIMIZATION))


def test_network_that_mixes_examples_is_refused_before_anything_is_trained(tmp_path, monkeypatch):

    def build_with_batch_norm(*arguments):
        model = real_build(*arguments)
        return keras.Model(model.inputs, keras.layers.BatchNormalization(name='mixer')(model.outputs[0]))

    real_build = denoiser.build
    monkeypatch.setattr(denoiser, 'build', build_with_batch_norm)
    with pytest.raises(ValueError, match="'mixer' .BatchNormalization.: it mixes"):
        make_trainer(tmp_path)
    assert not (tmp_path / 'checkpoints').exists()


def test_owners_are_the_units_of_a_run(tmp_path, unbroken):
    images = make_dataset()
    owned = dataclasses.replace(images, owners=np.arange(20) % 5, unit='one patient')
    release = class_means.ClassMeansConfig(3.0, 2.0)
    plan = plan_lib.make_plan(dataclasses.replace(PRIVACY, expected_batch_size=3), 5, release)
    training = make_training(tmp_path, private=owned, plan=plan, pretraining=None)
    training.trainer.run(NEVER)
    assert training.trainer.state.ledger == plan.planned_ledger() and plan.sampling_probability == 0.6
    assert 'Protected unit: one patient (an owner with all of its images)' in training.statement().to_text()
    assert '(each single image)' in unbroken.training.statement().to_text()  # Control.
    with pytest.raises(ValueError, match="the plan is for 5 units, data set 'toy' has 20"):
        make_trainer(tmp_path / 'other', private=images, plan=plan)
