"""Tests of public runs, their checkpoints, and private runs that start from them."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.training.stops import NEVER
from tests.training.stops import StopAfter
from tf_dpdiff.data import datasets
from tf_dpdiff.data import procedural
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import interruption
from tf_dpdiff.training import optimization
from tf_dpdiff.training import pretraining as pretraining_lib
from tf_dpdiff.training import public_checkpoint
from tf_dpdiff.training import views as views_lib

pytestmark = pytest.mark.usefixtures('small_network')
NETWORK = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
PROCESS = process_lib.DiffusionProcess()
OPTIMIZATION = optimization.OptimizationConfig(learning_rate=0.01)
PUBLIC = procedural.random_strokes(num_images=30, image_size=4, num_classes=5)
PRIVACY = plan_lib.DpSgdConfig(
    target_delta=1e-4, expected_batch_size=8, num_steps=2, l2_norm_clip=1e-2, noise_multiplier=1.0
)


def make_public_training(workdir, public=PUBLIC, network=NETWORK, process=PROCESS, **changes):
    arguments = {'optimization': OPTIMIZATION, 'max_ema_decay': 0.5, **changes}
    stage = pretraining_lib.PretrainingConfig(public, 4, 5, **arguments)
    recipe = recipe_lib.Recipe(network=network, process=process, pretraining=stage)
    return build_lib.Build(recipe).make_training(workdir, None, make_grid_drawer=None)


def make_public(workdir, public=PUBLIC, **changes):
    return make_public_training(workdir, public, **changes).trainer


def checkpoint_of(training):
    recipe = training.build.recipe
    trained = training.trainer.released_model()
    return pretraining_lib.make_checkpoint(recipe.pretraining, recipe.network, recipe.process, trained)


def make_private_training(
    workdir, init_from, images=None, network=NETWORK, process=PROCESS, pretraining=None, **changes
):
    images = images or private_images()
    finetuning = finetuning_lib.FinetuningConfig(
        OPTIMIZATION, views_lib.ViewsConfig(), init_from=init_from and str(init_from), units_per_chunk=4, **changes
    )
    recipe = recipe_lib.Recipe(
        network=network,
        process=process,
        data=datasets.PrivateData(train=images, held_out=images),
        privacy=PRIVACY,
        pretraining=pretraining,
        finetuning=finetuning,
    )
    return build_lib.Build(recipe).make_training(workdir, images, make_grid_drawer=None)


def make_private(*arguments, **changes):
    return make_private_training(*arguments, **changes).trainer


def private_images(num_classes=3):
    images = np.random.default_rng(0).integers(0, 256, [20, 4, 4, 1]).astype(np.uint8)
    names = tuple('abcdefgh'[:num_classes])
    return datasets.ImageDataset('toy', images, (np.arange(20) % num_classes).astype(np.int32), names)


def weights(model):
    return {v.name: v.numpy() for v in model.variables}


@pytest.fixture(name='public', scope='module')
def fixture_public(tmp_path_factory, small_network):
    """A finished public run with its checkpoint: its folder, its trainer, and its weights at first and by step."""
    del small_network
    workdir = tmp_path_factory.mktemp('public')
    training = make_public_training(workdir)
    trainer = training.trainer
    run_step, by_step = trainer._stages[0].run_step, [weights(trainer.model)]

    def run_and_look(step):
        assert step + 1 == len(by_step)
        scalars = run_step(step)
        by_step.append(weights(trainer.model))
        return scalars

    trainer._stages[0].run_step = run_and_look
    trainer.run(NEVER)
    checkpoint_of(training).write(workdir / public_checkpoint.FOLDER)
    return workdir, training, by_step


@pytest.fixture(name='stopped', scope='module')
def fixture_stopped(tmp_path_factory, public):
    """A private run from that checkpoint, stopped after its first step: its folder, its trainer, its weights before."""
    workdir = tmp_path_factory.mktemp('stopped')
    training = make_private_training(workdir, public[0])
    trainer = training.trainer
    before = weights(trainer.model), weights(trainer.average)
    with pytest.raises(interruption.Interrupted):
        trainer.run(StopAfter(0))
    return workdir, training, before


def test_public_run_has_no_secret_and_is_resumed_bit_for_bit(tmp_path, public):
    stops = 0
    while True:
        broken = make_public(tmp_path)
        assert broken.state.private_seed is None
        try:
            broken.run(StopAfter(1))
            break
        except interruption.Interrupted:
            stops += 1
    assert stops == 2
    for name, value in weights(public[1].trainer.average).items():
        np.testing.assert_array_equal(weights(broken.average)[name], value)
    assert 'no secret' in (tmp_path / 'checkpoints' / 'README').read_text()


def test_average_follows_its_formula_and_is_what_comes_out(public):
    _, training, (expected, *by_step) = public
    trainer = training.trainer
    assert len(by_step) == 4
    for step, after in enumerate(by_step):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * after[name] for name, value in expected.items()}
    for name, value in weights(trainer.average).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7)
    # Not the last weights, but what both networks hold at the end.
    assert any(not np.allclose(weights(trainer.average)[name], value) for name, value in by_step[-1].items())
    for name, value in weights(trainer.average).items():
        np.testing.assert_array_equal(weights(trainer.model)[name], value)


def test_batch_in_chunks_takes_the_same_steps_and_no_average_is_the_last_weights(tmp_path, public):
    # A step does not know of the average: one run without, and in chunks, takes the steps of one that has it.
    chunked = make_public(tmp_path, images_per_chunk=1, max_ema_decay=0.0)
    chunked.run(NEVER)
    for name, value in public[2][-1].items():
        np.testing.assert_allclose(weights(chunked.model)[name], value, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(weights(chunked.model)[name], weights(chunked.average)[name])
    with pytest.raises(ValueError, match='images_per_chunk must divide batch_size=5, got 2'):
        make_public(tmp_path, images_per_chunk=2)


def test_resuming_on_other_public_images_is_refused(public):
    with pytest.raises(checkpoints.CheckpointMismatchError, match='begun with another configuration .*dataset'):
        make_public(public[0], public=procedural.random_strokes(num_images=31, image_size=4, num_classes=5))


def test_checkpoint_comes_back_as_it_was_written(public):
    written, read = checkpoint_of(public[1]), public_checkpoint.read(public[0])
    for field in dataclasses.fields(written):
        if field.name not in ('weights', 'image_digests'):
            assert getattr(read, field.name) == getattr(written, field.name)
    assert read.sha256 == written.sha256
    assert read.weights.keys() == written.weights.keys() and len(read.image_digests) == 30
    described = json.loads((public[0] / 'pretrained' / 'pretrained.json').read_text())
    assert described['num_steps'] == 4 and described['num_parameters'] == public[1].trainer.average.count_params()
    assert public_checkpoint.read(public[0] / 'pretrained').sha256 == written.sha256


def test_loss_of_a_checkpoint_is_that_of_its_averaged_network_on_its_images(public):
    training, trainer = public[1], public[1].trainer
    sampler = views_lib.make_view_maker(PROCESS, views_lib.ViewsConfig(), NETWORK, PUBLIC.num_classes)

    def losses_of(network):
        """Returns the mean over views drawn as in training but from another seed, and how far 120 are from it."""
        view_losses, found = views_lib.view_losses_fn(network), []
        for step in range(50):
            views = sampler.draw_for_public(
                tf.tile(PUBLIC.images_uint8, [4, 1, 1, 1]),
                tf.tile(PUBLIC.labels, [4]),
                tf.range(120),
                batch_size=120,
                seed=tf.constant(99, tf.int64),
                step=tf.constant(step, tf.int64),
            )
            found.append(view_losses(views_lib.Views(*(part[:, 0] for part in views))).numpy().mean())
        return np.mean(found), 4.0 * np.std(found)

    loss = checkpoint_of(training).loss
    mean, spread = losses_of(trainer.average)
    assert abs(loss - mean) < spread and loss == checkpoint_of(training).loss
    # Control: of a network that predicts a little more everywhere it would not be.
    other = trainer.released_model()
    other.get_layer('conv_out').bias.assign_add([1.0])
    mean, spread = losses_of(other)
    assert abs(loss - mean) > spread


def test_private_run_starts_from_the_average_with_class_embeddings_of_its_own(tmp_path, public, stopped):
    scratch = weights(make_private(tmp_path, None).model)
    _, training, (of_model, of_average) = stopped
    origin = weights(public[1].trainer.average)
    for name, value in of_model.items():
        if 'class_embedding' in name:
            assert value.shape[0] == 4 and origin[name].shape[0] == 6
            np.testing.assert_array_equal(value[:3], scratch[name][:3])
            np.testing.assert_array_equal(value[3], origin[name][5])  # "No class" means the same in both.
        else:
            np.testing.assert_array_equal(value, origin[name])
    np.testing.assert_array_equal(of_average['conv_in/kernel:0'], origin['conv_in/kernel:0'])
    assert "30 images of 'random strokes'" in training.statement().to_text()
    assert training.trainer.state.ledger.count(ledger_lib.DP_SGD_STEP) == 1


# What is held in memory at a time may be another when a run is resumed.
@pytest.mark.parametrize('changes', [{}, {'memory_budget_gib': 1.0}])
def test_private_run_is_resumed_from_its_own_weights(public, stopped, changes):
    workdir, training, (start, _) = stopped
    resumed = make_private(workdir, public[0], **changes)
    assert resumed.resumed and resumed.state.step == 1
    for name, value in weights(training.trainer.model).items():
        np.testing.assert_array_equal(weights(resumed.model)[name], value)
    assert any(not np.array_equal(v, start[n]) for n, v in weights(resumed.model).items() if 'class' not in n)


def test_resuming_from_another_checkpoint_is_refused_and_from_the_same_elsewhere_is_not(tmp_path, public):
    make_private(tmp_path / 'run', public[0])
    moved = tmp_path / 'moved'
    public_checkpoint.read(public[0]).write(moved)
    assert make_private(tmp_path / 'run', moved).resumed
    public_checkpoint.read(public[0])
    other = dataclasses.replace(public_checkpoint.read(public[0]))
    other.weights['conv_in/bias'] = other.weights['conv_in/bias'] + 1
    other.write(tmp_path / 'other')
    with pytest.raises(checkpoints.CheckpointMismatchError, match='init_from'):
        make_private(tmp_path / 'run', tmp_path / 'other')


def break_file(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    'name, change, message',
    [
        ('weights.npz', lambda b: b[: len(b) // 2], 'is damaged'),
        ('pretrained.json', lambda b: b[: len(b) // 2], 'is damaged'),
        (
            'pretrained.json',
            lambda b: b.replace(b'"sha256": "', b'"sha256": "0'),
            'not the one that pretrained.json names',
        ),
        (
            'pretrained.json',
            lambda b: b.replace(b'random strokes', b'public photos!'),
            'not the one that pretrained.json names',
        ),
        ('image_digests.npy', lambda b: b[:-8] + bytes(8), 'not the one that pretrained.json names'),
        ('image_digests.npy', lambda b: b[:40], 'is damaged'),
        ('pretrained.json', lambda b: b.replace(b'"num_steps"', b'"steps"'), 'is damaged'),
    ],
)
def test_damaged_checkpoint_is_refused(tmp_path, public, name, change, message):
    public_checkpoint.read(public[0]).write(tmp_path)
    break_file(tmp_path, name, change)
    with pytest.raises(ValueError, match=f'public checkpoint in {tmp_path} is damaged.*|{message}') as refused:
        public_checkpoint.read(tmp_path)
    assert message in str(refused.value)


def test_flipped_bit_of_a_weight_is_noticed(tmp_path, public):
    model = public_checkpoint.read(public[0])
    model.write(tmp_path)
    arrays = dict(np.load(tmp_path / 'weights.npz'))
    arrays['conv_in/bias'] = np.nextafter(arrays['conv_in/bias'], np.float32(np.inf))
    np.savez(tmp_path / 'weights.npz', **arrays)
    with pytest.raises(ValueError, match='is damaged: it is not the one'):
        public_checkpoint.read(tmp_path)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda folder: None, 'there is no such folder'),
        (lambda folder: folder.mkdir(), 'pretrained.json is missing'),
        (lambda folder: (folder / 'checkpoints').mkdir(parents=True), 'private, or not finished'),
    ],
)
def test_missing_checkpoint_says_what_is_there(tmp_path, make, message):
    make(tmp_path / 'here')
    with pytest.raises(FileNotFoundError, match=f'no public checkpoint in {tmp_path / "here"}: .*{message}'):
        make_private(tmp_path / 'run', tmp_path / 'here')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'network': dataclasses.replace(NETWORK, base_channels=8)}, 'base_channels is 4 in the checkpoint and 8 here'),
        (
            {'process': process_lib.DiffusionProcess(parameterization='epsilon')},
            "parameterization is 'v' in the checkpoint and 'epsilon' here",
        ),
        (
            {'process': process_lib.DiffusionProcess(schedules.Schedule('linear'))},
            "schedule is 'cosine' in the checkpoint and 'linear' here",
        ),
    ],
)
def test_checkpoint_of_another_model_is_refused_by_name(tmp_path, public, changes, message):
    with pytest.raises(ValueError, match=f'of another model than the configuration: {message}'):
        make_private(tmp_path, public[0], **changes)
    assert not (tmp_path / 'checkpoints').exists()


def test_settings_that_training_alone_knows_may_differ(tmp_path, public):
    started = make_private(tmp_path, public[0], network=dataclasses.replace(NETWORK, compute_dtype='mixed_bfloat16'))
    assert not started.resumed


def test_private_images_are_refused_as_public_ones(tmp_path):
    private = private_images()
    stage = pretraining_lib.PretrainingConfig(private, 2, 4, OPTIMIZATION)
    with pytest.raises(ValueError, match="20 of the 20 different private images .'toy'. are among the public ones"):
        make_private(tmp_path / 'run', None, images=private, pretraining=stage)
    training = make_public_training(tmp_path / 'public', public=private)  # Trained or not, its images are named.
    checkpoint_of(training).write(tmp_path / 'public' / 'pretrained')
    with pytest.raises(ValueError, match='are among the public ones'):
        make_private(tmp_path / 'run', tmp_path / 'public', images=private)


def test_source_that_was_not_made_public_is_refused():
    images = private_images()
    with pytest.raises(
        ValueError, match='is a PrivateData; turn a source of images into public ones by @public_images'
    ):
        pretraining_lib.PretrainingConfig(datasets.PrivateData(train=images, held_out=images), 2, 4, OPTIMIZATION)


def test_checkpoint_and_public_stage_together_are_refused(tmp_path, public):
    stage = pretraining_lib.PretrainingConfig(
        procedural.random_strokes(num_images=9, image_size=4, num_classes=3), 2, 4, OPTIMIZATION
    )
    with pytest.raises(ValueError, match='either has a public stage of its own or starts from a checkpoint'):
        make_private(tmp_path, public[0], pretraining=stage)


def test_public_run_has_no_identity_to_charge_or_attack(public):
    with pytest.raises(checkpoints.CheckpointMismatchError, match='read public images alone'):
        checkpoints.read_identity(public[0] / 'checkpoints')
