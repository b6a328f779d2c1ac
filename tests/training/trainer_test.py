"""Tests of the loop: resuming, refusing, counting, and keeping the secret."""

import dataclasses
import os
import stat

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.data import datasets
from tf_dpdiff.data import procedural
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import interruption
from tf_dpdiff.training import stages
from tf_dpdiff.training import trainer as trainer_lib
from tf_dpdiff.training import views as views_lib

NETWORK = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
OPTIMIZATION = stages.OptimizationConfig(learning_rate=0.01)
PRIVACY = plan_lib.DpSgdConfig(target_delta=1e-4,
                               expected_batch_size=8,
                               num_steps=3,
                               l2_norm_clip=1e-2,
                               noise_multiplier=1.0)
STEPS = {'pretraining': 2, 'warm_start': 2, 'finetuning': 3}


def make_dataset(seed=0):
    generator = np.random.default_rng(seed)
    return datasets.ImageDataset('toy',
                                 generator.integers(0, 256, [20, 4, 4, 1]).astype(np.uint8),
                                 (np.arange(20) % 3).astype(np.int32), ('a', 'b', 'c'))


def make_trainer(workdir, private=None, privacy=PRIVACY, config=trainer_lib.TrainerConfig(), **changes):
    release = class_means.ClassMeansConfig(3.0, 2.0)
    arguments = dict(network=NETWORK,
                     process=process_lib.DiffusionProcess(),
                     plan=plan_lib.make_plan(privacy, 20, release),
                     pretraining=stages.PretrainingConfig(
                         procedural.random_strokes(num_images=30, image_size=4, num_classes=3), STEPS['pretraining'], 4,
                         OPTIMIZATION),
                     warm_start=stages.WarmStartConfig(release, 30, STEPS['warm_start'], 4, OPTIMIZATION),
                     finetuning=stages.FinetuningConfig(OPTIMIZATION,
                                                        views_lib.ViewsConfig(augmentation_multiplicity=2),
                                                        units_per_chunk=4),
                     config=config,
                     on_release=lambda means: None)
    return trainer_lib.Trainer(workdir, private or make_dataset(), **{**arguments, **changes})


class StopAfter:
    """A request to stop that comes after so many steps."""

    def __init__(self, steps):
        self._left = steps

    @property
    def requested(self):
        self._left -= 1
        return self._left < 0


NEVER = StopAfter(10**9)


def weights(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


@pytest.fixture(name='fixed_secret')
def fixture_fixed_secret(monkeypatch):
    """All runs of a test share one secret, so that a broken run can be compared with an unbroken one."""
    monkeypatch.setattr(seeds.PrivateSeed, 'from_os_entropy',
                        lambda: seeds.PrivateSeed(b'secret of the test, 32 bytes lon'))


def test_run_stopped_after_every_step_equals_one_never_stopped(tmp_path, fixed_secret):
    unbroken = make_trainer(tmp_path / 'unbroken')
    unbroken.run(NEVER)
    stops = 0
    while True:
        broken = make_trainer(tmp_path / 'broken')
        try:
            broken.run(StopAfter(1))
            break
        except interruption.Interrupted:
            stops += 1
            assert stops < 20
    assert stops >= 4  # In each of the three stages.
    np.testing.assert_array_equal(weights(broken.average), weights(unbroken.average))
    assert broken.state.ledger == unbroken.state.ledger == make_trainer(tmp_path / 'broken')._plan.planned_ledger()


def test_step_lost_in_a_crash_is_repeated_with_the_same_draws_and_counted_once(tmp_path, fixed_secret):
    unbroken = make_trainer(tmp_path / 'unbroken')
    unbroken.run(NEVER)
    crashing = make_trainer(tmp_path / 'crashed', config=trainer_lib.TrainerConfig(checkpoint_every_secs=1e9))

    def crash(unused_step):
        raise KeyboardInterrupt

    crashing._stages[2].begin = lambda: None
    run_step = crashing._stages[2].run_step
    crashing._stages[2].run_step = lambda step: run_step(step) if step < 2 else crash(step)
    with pytest.raises(KeyboardInterrupt):
        crashing.run(NEVER)
    assert crashing.state.ledger.count(plan_lib.DP_SGD_STEP) == 2  # Two steps that no checkpoint knows of.
    resumed = make_trainer(tmp_path / 'crashed')
    assert resumed.state.ledger.count(plan_lib.DP_SGD_STEP) == 0
    resumed.run(NEVER)
    np.testing.assert_array_equal(weights(resumed.average), weights(unbroken.average))
    assert resumed.state.ledger == unbroken.state.ledger


def test_control_another_secret_gives_other_weights(tmp_path):
    runs = [make_trainer(tmp_path / name) for name in 'ab']
    for run in runs:
        run.run(NEVER)
    assert not np.allclose(weights(runs[0].average), weights(runs[1].average), atol=1e-5)


def test_finished_run_does_nothing_more(tmp_path):
    first = make_trainer(tmp_path)
    first.run(NEVER)
    again = make_trainer(tmp_path)
    assert again.resumed and again.is_done
    again.run(NEVER)
    np.testing.assert_array_equal(weights(again.average), weights(first.average))
    assert again.state.ledger == first.state.ledger


@pytest.mark.parametrize('change, message', [
    ({'expected_batch_size': 9}, 'expected_batch_size'),
    ({'noise_multiplier': 2.0}, 'noise_multiplier'),
    ({'l2_norm_clip': 1.0}, 'l2_norm_clip'),
    ({'target_delta': 1e-5}, 'target_delta'),
    ({'num_steps': 4}, 'num_steps'),
])  # yapf: disable
def test_resuming_with_another_plan_is_refused_naming_the_difference(tmp_path, change, message):
    make_trainer(tmp_path)
    with pytest.raises(checkpoints.CheckpointMismatchError, match=f'begun with another configuration .*{message}'):
        make_trainer(tmp_path, privacy=dataclasses.replace(PRIVACY, **change))


def test_resuming_with_other_data_or_another_network_is_refused(tmp_path):
    make_trainer(tmp_path)
    with pytest.raises(checkpoints.CheckpointMismatchError, match='the private images or labels are not the same'):
        make_trainer(tmp_path, private=make_dataset(seed=1))
    with pytest.raises(checkpoints.CheckpointMismatchError, match='base_channels: 4 then, 8 now'):
        make_trainer(tmp_path, network=dataclasses.replace(NETWORK, base_channels=8))


def test_secret_is_in_the_private_checkpoint_and_nowhere_else(tmp_path, fixed_secret):
    trainer = make_trainer(tmp_path)
    trainer.run(NEVER)
    secret = trainer.state.private_seed
    derived = [secret.derive(purpose) for purpose in ('noise', 'sampling', 'views', 'class_means')]
    traces = [secret.reveal(), secret.reveal().hex().encode()] + [str(d).encode() for d in derived]
    traces += [int(d).to_bytes(8, 'little') for d in derived]
    found = {}
    for folder, _, names in os.walk(tmp_path):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, 'rb') as file:
                content = file.read()
            found[os.path.relpath(path, tmp_path)] = any(trace in content for trace in traces)
    leaks = [path for path, leaked in found.items() if leaked]
    assert leaks and all(path.startswith('checkpoints' + os.sep) for path in leaks)
    assert any(path.startswith('tensorboard') for path in found)
    assert stat.S_IMODE(os.stat(tmp_path / 'checkpoints').st_mode) == 0o700


def tags(folder):
    """Returns the tags of all TensorBoard events below a folder."""
    found = set()
    for path in folder.glob('**/events*'):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found.update(value.tag for value in event.summary.value)
    return found


def test_private_numbers_are_written_only_when_asked_for_and_apart(tmp_path):
    make_trainer(tmp_path / 'default').run(NEVER)
    assert not (tmp_path / 'default' / 'non_private').exists()
    assert {tag.split('/')[0] for tag in tags(tmp_path / 'default')} == {'pretraining', 'warm_start', 'finetuning'}
    assert tags(tmp_path / 'default') & {'finetuning/loss'} == set()
    asked = make_trainer(tmp_path / 'asked', config=trainer_lib.TrainerConfig(log_non_private=True))
    asked.run(NEVER)
    asked.summaries.flush()
    assert all(tag.startswith('non_private/') for tag in tags(tmp_path / 'asked' / 'non_private'))
    assert 'non_private/clipped_fraction' in tags(tmp_path / 'asked' / 'non_private')
    assert not any('non_private' in tag for tag in tags(tmp_path / 'asked' / 'tensorboard'))


def test_stages_are_optional(tmp_path):
    trainer = make_trainer(tmp_path, pretraining=None, warm_start=None, plan=plan_lib.make_plan(PRIVACY, 20))
    trainer.run(NEVER)
    assert [release.mechanism for release in trainer.state.ledger.releases] == [plan_lib.DP_SGD_STEP]


def test_only_chosen_variables_are_trained_privately(tmp_path):
    finetuning = stages.FinetuningConfig(OPTIMIZATION, views_lib.ViewsConfig(), trainable=('norm',), units_per_chunk=4)
    trainer = make_trainer(tmp_path,
                           pretraining=None,
                           warm_start=None,
                           plan=plan_lib.make_plan(PRIVACY, 20),
                           finetuning=finetuning)
    before = {v.name: v.numpy() for v in trainer.average.variables}
    trainer.run(NEVER)
    changed = {v.name for v in trainer.average.variables if not np.array_equal(before[v.name], v.numpy())}
    assert changed and all('norm' in name for name in changed)


def test_network_that_mixes_examples_is_refused_before_anything_is_trained(tmp_path, monkeypatch):

    def build_with_batch_norm(*arguments):
        model = real_build(*arguments)
        return tf.keras.Model(model.inputs, tf.keras.layers.BatchNormalization(name='mixer')(model.outputs[0]))

    real_build = unet.build_unet
    monkeypatch.setattr(unet, 'build_unet', build_with_batch_norm)
    with pytest.raises(ValueError, match="'mixer' .BatchNormalization.: it mixes"):
        make_trainer(tmp_path)
    assert not (tmp_path / 'checkpoints').exists()
