"""A program that takes private and public steps on one, two or several replicas, and writes down what they did.

python -m tests.training.replica_steps STRATEGY OUTPUT [gpus], with TF_CONFIG where there are several workers. The
strategy 'mirrored' splits the CPU into two devices, or takes all GPUs.
"""

import itertools
import sys
from unittest import mock

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import layers
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import optimization
from tf_dpdiff.training import pretraining as pretraining_lib
from tf_dpdiff.training import stage as stage_lib
from tf_dpdiff.training import strategies
from tf_dpdiff.training import train_step
from tf_dpdiff.training import views as views_lib

NETWORK = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
NUM_UNITS, NUM_CLASSES, NUM_STEPS = 40, 3, 3
CLIP_NORM, NOISE_MULTIPLIER, EXPECTED_BATCH_SIZE = 0.05, 2.0, 10
GPUS = 'gpus'
SECRET = seeds.PrivateSeed(bytes(range(32)))


class _Sgd(optimization.OptimizationConfig):
    """Plain SGD with learning rate 1: an update is the noisy sum over the expected batch size."""

    def make_optimizer(self, num_steps):
        del num_steps
        return keras.optimizers.SGD(1.0)


SGD, ADAM = _Sgd(1.0), optimization.OptimizationConfig(learning_rate=0.01)
VIEWS = views_lib.ViewsConfig(augmentation_multiplicity=2)


def make_private_images():
    generator = np.random.default_rng(0)
    return datasets.ImageDataset(
        'toy',
        generator.integers(0, 256, [NUM_UNITS, 4, 4, 1]).astype(np.uint8),
        (np.arange(NUM_UNITS) % NUM_CLASSES).astype(np.int32),
        ('a', 'b', 'c'),
    )


def build_network():
    """Returns a network of three convolutions: replicas trace it twice each, and what they add up is any gradients."""
    x_t = keras.layers.Input((4, 4, 1))
    t, labels = (keras.layers.Input([], dtype=tf.int32) for _ in range(2))
    embedding = keras.layers.Add()(
        [
            layers.TimestepEmbedding(4, 8, name='timestep_embedding')(t),
            layers.ClassEmbedding(NUM_CLASSES, 8, name='class_embedding')(labels),
        ]
    )
    h = keras.layers.Conv2D(8, 3, padding='same', name='conv_in')(x_t)
    h = keras.layers.Add()([h, keras.layers.Reshape((1, 1, 8))(embedding)])
    h = keras.layers.Conv2D(8, 3, padding='same', activation='relu', name='conv')(h)
    return keras.Model([x_t, t, labels], keras.layers.Conv2D(1, 1, name='conv_out')(h))


def make_networks(replicas):
    """Returns a network and its average, with the same weights whatever the replicas."""
    with replicas.scope():
        model, average = (build_network() for _ in range(2))
    weights = [
        0.3 * np.random.default_rng(i).standard_normal(weight.shape) for i, weight in enumerate(model.get_weights())
    ]
    for network in (model, average):
        network.set_weights(weights)
    return model, average


def run_private(replicas, noise_multiplier):
    """Takes NUM_STEPS private steps, each from the same weights.

    Returns:
      The changes of the weights, [steps, parameters], that of their average, [parameters], the numbers of units, and
      how many collective operations are in the step, all local replicas together.
    """
    model, average = make_networks(replicas)
    plan = plan_lib.make_plan(
        plan_lib.DpSgdConfig(
            target_delta=1e-4,
            expected_batch_size=EXPECTED_BATCH_SIZE,
            num_steps=NUM_STEPS,
            l2_norm_clip=CLIP_NORM,
            noise_multiplier=noise_multiplier,
        ),
        NUM_UNITS,
    )
    state = checkpoints.RunState(SECRET)
    num_units, changes = [], []
    compile_private_step, made = train_step.compile_private_step, []

    def make_and_keep(*arguments, **options):
        made.append(compile_private_step(*arguments, **options))
        return made[-1]

    with replicas.scope(), mock.patch.object(train_step, 'compile_private_step', make_and_keep):
        stage = finetuning_lib.make_stage(
            finetuning_lib.FinetuningConfig(SGD, VIEWS, units_per_chunk=4),
            stage_lib.Training(model, average, make_view_maker, replicas),
            plan,
            make_private_images(),
            state,
            lambda step, numbers: num_units.append(numbers['num_units']),
        )
    start = model.get_weights()
    for step in range(NUM_STEPS):
        stage.run_step(step)
        changes.append(flat(model.get_weights()) - flat(start))
        model.set_weights(start)
    assert state.ledger == plan.planned_ledger()
    (private_step,) = made
    return (
        np.stack(changes),
        flat(average.get_weights()) - flat(start),
        np.array(num_units),
        count_collectives(private_step),
    )


def make_view_maker(views):
    return views_lib.make_view_maker(process_lib.DiffusionProcess(), views, NETWORK, NUM_CLASSES)


def run_public(replicas):
    """Returns the changes of the weights, and the losses, of NUM_STEPS public steps of batches that do not divide."""
    model, average = make_networks(replicas)
    config = pretraining_lib.PretrainingConfig(make_private_images(), NUM_STEPS, 7, ADAM, images_per_chunk=7)
    with replicas.scope():
        training = stage_lib.Training(model, average, make_view_maker, replicas)
        stage = pretraining_lib.make_stage(config, training)
    start = model.get_weights()
    stage.begin(lambda: None)
    losses = [stage.run_step(step)['loss'] for step in range(NUM_STEPS)]
    return flat(model.get_weights()) - flat(start), np.array(losses)


def count_collectives(step):
    """Returns how many collective operations are in the graph of a compiled step and in the functions it calls."""
    graph = step.get_concrete_function().graph.as_graph_def()
    nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
    return sum(node.op.startswith('Collective') for node in nodes)


def find_drift(replicas):
    """Returns the verdicts on weights that are the same everywhere, and where those of the last replica drift."""
    with replicas.scope():
        variables = [tf.Variable(np.full([3], 0.1, np.float32)), tf.Variable(0.5)]
    said = []
    for drift in (0.0, 1e-7):
        if replicas.count - 1 in replicas.local:
            replicas.strategy.experimental_local_results(variables[1])[-1].assign_add(drift)
        try:
            said.append(replicas.check_in_step(variables) or '')
        except workers_lib.WorkersDisagreeError as error:
            said.append(str(error))
    return np.array(said)


def flat(weights):
    return np.concatenate([weight.ravel() for weight in weights]).astype(np.float64)


def measure(replicas):
    """Returns the results of the steps, by name."""
    sums, average, num_units, _ = run_private(replicas, 0.0)
    noisy, _, _, num_collectives = run_private(replicas, NOISE_MULTIPLIER)
    public, losses = run_public(replicas)
    scale = -EXPECTED_BATCH_SIZE / CLIP_NORM
    return {
        'clipped_sums': scale * sums,
        'noise': scale * (noisy - sums),
        'num_units': num_units,
        'average': average,
        'num_collectives': num_collectives / len(replicas.local),
        'drift': find_drift(replicas),
        'public': public,
        'losses': losses,
    }


def main(strategy, output, devices=None):
    logical_cpus = 2 if strategy == strategies.MIRRORED and devices != GPUS else None
    replicas = strategies.start(strategies.StrategyConfig(strategy, logical_cpus=logical_cpus))
    measured = measure(replicas)
    np.savez(f'{output}.{replicas.workers.index}.npz', num_replicas=replicas.count, **measured)


if __name__ == '__main__':
    main(*sys.argv[1:])
