"""The networks that benchmarks measure, and our steps on them."""

import dataclasses

import numpy as np
import tensorflow as tf

from tf_dpdiff.diffusion import process
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import dit
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import memory
from tf_dpdiff.training import optimization
from tf_dpdiff.training import planner
from tf_dpdiff.training import strategies
from tf_dpdiff.training import train_step
from tf_dpdiff.training import views

NUM_CLASSES = 10
# Name -> (network, image shape).
NETWORKS = {
    '0.26M': (unet.UNetConfig(base_channels=16, middle_attention=False, groups=8), (28, 28, 1)),
    '0.28M': (unet.UNetConfig(base_channels=16, head_channels=32, groups=8), (28, 28, 1)),
    '1.1M': (unet.UNetConfig(base_channels=32, attention_resolutions=(7,)), (28, 28, 1)),
    '4.24M': (unet.UNetConfig(base_channels=64), (28, 28, 1)),
    'DiT-1.1M': (dit.DiTConfig(hidden_size=96, depth=6, num_heads=3), (28, 28, 1)),
    '80.4M': (
        unet.UNetConfig(
            base_channels=192, channel_multipliers=(1, 2, 2, 2), num_res_blocks=2, attention_resolutions=(16,)
        ),
        (32, 32, 3),
    ),
}


@dataclasses.dataclass(frozen=True)
class OurStep:
    """A compiled step of ours with a batch for it.

    Attributes:
      run: Makes the step number i and returns when it is done.
      parameters: Of the network.
      chunk: (units, views) held in memory at a time.
      planned_bytes: Of memory that the step takes, as the planner says.
    """

    run: object
    parameters: int
    chunk: tuple
    planned_bytes: int


def _make_networks(name, compute_dtype):
    network, image_shape = NETWORKS[name]
    network = dataclasses.replace(network, compute_dtype=compute_dtype)
    model, average = (denoiser.build(network, image_shape, NUM_CLASSES) for _ in range(2))
    return network, image_shape, model, average


def _make_optimizer():
    return optimization.OptimizationConfig(1e-3).make_optimizer(1000)


def make_private_parts(
    name,
    num_units,
    num_views,
    *,
    memory_budget_gib=4.0,
    units_per_chunk=None,
    compute_dtype='float32',
    replicas=strategies.ONE,
):
    """Returns the arguments of `train_step.compile_private_step` as a run of ours has them, by name.

    Args:
      name: Of the network.
      num_units: Units in the batch.
      num_views: K.
      memory_budget_gib: As in FinetuningConfig.
      units_per_chunk: As in FinetuningConfig.
      compute_dtype: As in the network's configuration.
      replicas: What computes it.
    """
    config = finetuning_lib.FinetuningConfig(
        optimization.OptimizationConfig(1e-3),
        views.ViewsConfig(num_views),
        memory_budget_gib=memory_budget_gib,
        units_per_chunk=units_per_chunk,
    )
    plan = plan_lib.make_plan(
        plan_lib.DpSgdConfig(
            target_delta=1e-5, expected_batch_size=num_units, num_steps=1000, l2_norm_clip=1e-3, noise_multiplier=2.0
        ),
        60000,
    )
    with replicas.scope():
        network, _, model, average = _make_networks(name, compute_dtype)
        chunk_sizes = config.choose_chunk_sizes(model, num_units)
        return {
            'model': model,
            'average': average,
            'variables': model.trainable_variables,
            'optimizer': _make_optimizer(),
            'plan': plan,
            'view_maker': views.make_view_maker(process.DiffusionProcess(), config.views, network, NUM_CLASSES),
            'private_seed': seeds.PrivateSeed.from_os_entropy(),
            'images_per_unit': 1,
            'max_ema_decay': 0.99,
            'chunk_sizes': chunk_sizes,
            'replicas': replicas,
        }


def compile_private_step(parts):
    """Returns the private step of `make_private_parts`."""
    with parts['replicas'].scope():
        return train_step.compile_private_step(**parts)


def private_batch(name, num_units, first_unit=0):
    """Returns a batch of units for the private step of a network."""
    images, labels = _draw_images(num_units, NETWORKS[name][1])
    return images[:, None], labels[:, None], first_unit + np.arange(num_units)


def private_step(name, num_units, num_views, *, jit_compile=False, **settings):
    """Returns the private step with a batch of num_units; for the settings see `make_private_parts`.

    jit_compile: whether XLA compiles it whole.
    """
    parts = make_private_parts(name, num_units, num_views, **settings)
    step, batch = _by_xla(compile_private_step(parts), jit_compile), private_batch(name, num_units)

    def run(number):
        diagnostics = step([batch], tf.constant(number, tf.int64))
        if float(diagnostics['num_units']) != num_units or float(diagnostics['num_nonfinite']):
            raise RuntimeError('the step did not take all units')

    model, chunk = parts['model'], parts['chunk_sizes']
    num_parameters = model.count_params()
    planned = planner.private_memory(
        num_parameters=num_parameters,
        num_trained=num_parameters,
        num_optimizer_states=2 * num_parameters,
        chunk=chunk,
        activation_bytes=memory.activation_bytes_per_view(model),
    )
    return OurStep(run, num_parameters, tuple(chunk), planned.total)


def plain_step(name, num_units, num_views, *, views_per_chunk, compute_dtype='float32', jit_compile=False):
    """Returns the step of plain training on as many views, views_per_chunk of them in memory at a time.

    Both are whole numbers of units: views_per_chunk is a multiple of num_views. jit_compile: as in `private_step`.
    """
    network, image_shape, model, average = _make_networks(name, compute_dtype)
    images_per_chunk = views_per_chunk // num_views
    view_maker = views.make_view_maker(process.DiffusionProcess(), views.ViewsConfig(num_views), network, NUM_CLASSES)
    step = train_step.compile_public_step(
        model,
        average,
        _make_optimizer(),
        view_maker,
        max_ema_decay=0.99,
        batch_size=num_units,
        images_per_chunk=images_per_chunk,
        seed=0,
    )
    step = _by_xla(step, jit_compile)
    images, labels = _draw_images(num_units, image_shape)
    batch = images, labels, np.arange(num_units, dtype=np.int32)

    def run(number):
        if not np.isfinite(float(step([batch], tf.constant(number, tf.int64)))):
            raise RuntimeError('the loss is not finite')

    num_parameters = model.count_params()
    planned = planner.public_memory(
        num_parameters=num_parameters,
        num_optimizer_states=2 * num_parameters,
        views_at_a_time=views_per_chunk,
        activation_bytes=memory.activation_bytes_per_view(model),
    )
    return OurStep(run, num_parameters, (images_per_chunk, num_views), planned.total)


def _by_xla(step, jit_compile):
    """Returns the step as it is, or as XLA compiles it."""
    return tf.function(step, jit_compile=True, autograph=False) if jit_compile else step


def _draw_images(count, image_shape):
    generator = np.random.default_rng(0)
    return (
        generator.integers(0, 256, [count, *image_shape]).astype(np.uint8),
        generator.integers(0, NUM_CLASSES, count).astype(np.int32),
    )
