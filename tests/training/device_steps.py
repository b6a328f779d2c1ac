"""Private steps of a small UNet on a device: what `devices_test.py` compares, and a program that writes some down.

python -m tests.training.device_steps DEVICE OUTPUT.npz takes the same steps twice, each time from the same weights.
"""

import functools
import sys

import numpy as np
import tensorflow as tf

from tests.training import random_bits
from tf_dpdiff import keras
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import memory
from tf_dpdiff.training import train_step
from tf_dpdiff.training import views as views_lib

# As few layers as hold every kind: convolutions of two resolutions, norms, attention, dense layers.
FIELDS = {'base_channels': 8, 'channel_multipliers': (1, 2), 'head_channels': 8, 'groups': 4}
IMAGE_SHAPE, NUM_CLASSES, NUM_VIEWS = (8, 8, 1), 3, 2
CLIP_NORM, EXPECTED_BATCH_SIZE, NOISE_MULTIPLIER = 1e-2, 4, 2.0
UNITS, NO_UNITS = (0, 3, 4, -1, 7, 8), (-1,) * 6
IMAGES = np.random.default_rng(0).integers(0, 256, [12, *IMAGE_SHAPE]).astype(np.uint8)
LABELS = (np.arange(12) % NUM_CLASSES).astype(np.int32)
SECRET = seeds.PrivateSeed(bytes(range(32)))


def make_networks(compute_dtype):
    """Returns a network and its average, with the same weights on every device."""
    models = [
        denoiser.build(unet.UNetConfig(**FIELDS, compute_dtype=compute_dtype), IMAGE_SHAPE, NUM_CLASSES)
        for _ in range(2)
    ]
    generator = np.random.default_rng(1)
    weights = [
        weight + generator.normal(0.0, max(1, np.prod(weight.shape[:-1])) ** -0.5, weight.shape).astype(np.float32)
        if weight.ndim > 1
        else weight + generator.normal(0.0, 0.1, weight.shape).astype(np.float32)
        for weight in (np.zeros(v.shape) if v.shape.rank > 1 else v.numpy() for v in models[0].variables)
    ]
    for model in models:
        model.set_weights(weights)
    return models


@functools.lru_cache  # Tracing takes seconds, and compiling more.
def make_step(device, jit_compile, noise_multiplier, compute_dtype, tf32):
    """Returns the private step on a device, the trained variables and their first values; tf32: as it is set."""
    del tf32  # What is compiled with it is another step.
    plan = plan_lib.make_plan(
        plan_lib.DpSgdConfig(
            target_delta=1e-4,
            expected_batch_size=EXPECTED_BATCH_SIZE,
            num_steps=10,
            l2_norm_clip=CLIP_NORM,
            noise_multiplier=noise_multiplier,
        ),
        12,
    )
    with tf.device(device):
        model, average = make_networks(compute_dtype)
        step = train_step.compile_private_step(
            model,
            average,
            model.trainable_variables,
            keras.optimizers.SGD(1.0, jit_compile=False),
            plan,
            views_lib.ViewMaker(
                process_lib.DiffusionProcess(), views_lib.ViewsConfig(NUM_VIEWS), num_classes=NUM_CLASSES
            ),
            SECRET,
            images_per_unit=1,
            max_ema_decay=0.5,
            chunk_sizes=memory.ChunkSizes(3, NUM_VIEWS),
        )
    if jit_compile:
        step = tf.function(step, jit_compile=True, autograph=False)
    return step, model.trainable_variables, [variable.numpy() for variable in model.trainable_variables]


def clipped_sum(device, units=UNITS, *, step=0, jit_compile=False, noise_multiplier=0.0, compute_dtype='float32'):
    """Returns the sum that a step descends by, with its noise, in units of the clip norm, float64 [parameters]."""
    tf32 = device.startswith('GPU') and tf.config.experimental.tensor_float_32_execution_enabled()
    take, variables, start = make_step(device, jit_compile, noise_multiplier, compute_dtype, tf32)
    for variable, value in zip(variables, start):
        variable.assign(value)
    units = np.array(units, np.int64)
    with tf.device(device), random_bits.same_everywhere():
        diagnostics = take([(IMAGES[units][:, None], LABELS[units][:, None], units)], tf.constant(step, tf.int64))
    assert float(diagnostics['num_units']) == np.sum(units >= 0) and not float(diagnostics['num_nonfinite'])
    update = np.concatenate([(value - v.numpy()).ravel() for v, value in zip(variables, start)])
    return update.astype(np.float64) * EXPECTED_BATCH_SIZE / CLIP_NORM


def main(device, output):
    taken = [
        clipped_sum(device, step=step, noise_multiplier=NOISE_MULTIPLIER, jit_compile=jit_compile)
        for jit_compile in (False, True)
        for _ in range(2)
        for step in range(2)
    ]
    np.savez(output, sums=np.reshape(taken, [2, 2, 2, -1]))


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2])
