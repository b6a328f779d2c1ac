"""Tests that XLA compiles the private step of each recipe, and that what it computes is what TensorFlow computes."""

import gin
import numpy as np
import pytest
import tensorflow as tf

from tests.training import random_bits
from tf_dpdiff import keras
from tf_dpdiff.cli import gin_config
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import memory
from tf_dpdiff.training import train_step
from tf_dpdiff.training import views as views_lib

NUM_UNITS, NUM_VIEWS, NUM_CLASSES = 3, 2, 10
# What makes a wide network narrow: XLA's work grows with the number of layers, and not with their width.
NARROW = ('UNetConfig.base_channels = 16', 'UNetConfig.head_channels = 16', 'UNetConfig.groups = 8')
# Recipe -> the shape of its images and what it is told besides. Other recipes train the network of one of these.
RECIPES = {
    'digits': ((8, 8, 1), ()),
    'digits_dit': ((8, 8, 1), ()),
    'mnist': ((28, 28, 1), NARROW),
    'mnist_cpu': ((28, 28, 1), ()),
    'cifar10': ((32, 32, 3), (*NARROW, 'UNetConfig.num_res_blocks = 1')),
    'cifar10_cpu': ((32, 32, 3), ()),
    'camelyon': ((32, 32, 3), (*NARROW, 'UNetConfig.num_res_blocks = 1')),
}


def read_recipe(name, folder):
    """Returns a recipe, on a few images of noise."""
    image_shape, bindings = RECIPES[name]
    images = np.random.default_rng(0).integers(0, 256, [400, *image_shape]).astype(np.uint8)
    np.savez(folder / 'images.npz', images=images, labels=np.arange(400) % NUM_CLASSES)
    gin.clear_config()
    data = ['DATA = @npz_images()', f'npz_images.path = "{folder / "images.npz"}"']
    gin_config.parse([f'gin/{name}.gin'], [*data, f'AUGMENTATION_MULTIPLICITY = {NUM_VIEWS}', *bindings])
    return gin_config.make('train')


def make_step(recipe, image_shape):
    """Returns the private step of a recipe and its network, whose update by SGD is the sum of clipped gradients."""
    keras.utils.set_random_seed(0)
    model, average = (denoiser.build(recipe.network, image_shape, NUM_CLASSES) for _ in range(2))
    for index, variable in enumerate(model.trainable_variables):  # Layers that begin with zeros would hide the others.
        variable.assign_add(0.05 * tf.random.stateless_normal(variable.shape, [1, index]))
    variables = denoiser.select_variables(model, recipe.finetuning.trainable)
    plan = plan_lib.make_plan(
        plan_lib.DpSgdConfig(
            target_delta=1e-4, expected_batch_size=NUM_UNITS, num_steps=2, l2_norm_clip=1e-2, noise_multiplier=0.0
        ),
        400,
    )
    step = train_step.compile_private_step(
        model,
        average,
        variables,
        keras.optimizers.SGD(1.0),
        plan,
        views_lib.make_view_maker(recipe.process, recipe.finetuning.views, recipe.network, NUM_CLASSES),
        seeds.PrivateSeed(bytes(range(32))),
        images_per_unit=1,
        max_ema_decay=0.5,
        chunk_sizes=memory.ChunkSizes(2, NUM_VIEWS),
    )
    return step, variables


def updates(recipe, image_shape):
    """Returns the updates by the step as it is and by the one that XLA compiles, float [2, parameters]."""
    step, variables = make_step(recipe, image_shape)
    generator = np.random.default_rng(1)
    batch = (
        generator.integers(0, 256, [NUM_UNITS + 1, 1, *image_shape]).astype(np.uint8),
        generator.integers(0, NUM_CLASSES, [NUM_UNITS + 1, 1]).astype(np.int32),
        np.array([0, 1, -1, 2], np.int64),
    )
    start, found = [variable.numpy() for variable in variables], []
    for function in (step, tf.function(step, jit_compile=True, autograph=False)):
        for variable, value in zip(variables, start):
            variable.assign(value)
        with random_bits.same_everywhere():
            diagnostics = function([batch], tf.constant(0, tf.int64))
        assert float(diagnostics['num_units']) == NUM_UNITS and not float(diagnostics['num_nonfinite'])
        found.append(np.concatenate([(v.numpy() - value).ravel() for v, value in zip(variables, start)]))
    return found


@pytest.mark.long(in_share=False)
@pytest.mark.parametrize('name', RECIPES)
def test_private_step_of_a_recipe_is_the_same_when_xla_compiles_it(name, tmp_path):
    expected, compiled = updates(read_recipe(name, tmp_path), RECIPES[name][0])
    size = np.linalg.norm(expected)
    # All three units are clipped, so their mean is of about the length of the clip norm or less.
    assert 1e-3 < size < 1.01e-2
    assert np.linalg.norm(compiled - expected) < 1e-3 * size
