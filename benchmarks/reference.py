"""Writes what engines are checked by: a network, weights, views, and what ours computes of them; a part of dp_step.py.

An .npz file: `description` (JSON: config, image_shape, parameters), `alphas_cumprod`, `l2_norm_clip`, the weights by
name as 'weights/...', the views of a few units as 'views/...', and of them `prediction`, the sum of the clipped
gradients of the units as 'clipped_sum/...' and the mean gradient of plain training as 'mean/...'.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

_UNITS, _VIEWS = 4, 2


def main():
    """Computes and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('path')
    parser.add_argument('--network', default='1.1M')
    flags = parser.parse_args()
    import numpy as np
    import tensorflow as tf

    from benchmarks import networks
    from tf_dpdiff.diffusion import process
    from tf_dpdiff.networks import denoiser
    from tf_dpdiff.networks import kinds
    from tf_dpdiff.privacy import clipping
    from tf_dpdiff.training import views as views_lib

    config, image_shape = networks.NETWORKS[flags.network]
    model = denoiser.build(config, image_shape, networks.NUM_CLASSES)
    generator = np.random.default_rng(0)
    # Layers that begin with zeros would hide those before them.
    for variable in model.trainable_variables:
        variable.assign_add(generator.normal(0.0, 0.05, variable.shape))
    diffusion = process.DiffusionProcess()
    sampler = views_lib.make_view_maker(diffusion, views_lib.ViewsConfig(_VIEWS), config, networks.NUM_CLASSES)
    images = tf.constant(generator.integers(0, 256, [_UNITS, *image_shape]), tf.uint8)
    labels = tf.constant(generator.integers(0, networks.NUM_CLASSES, _UNITS), tf.int32)
    views = sampler.draw_for_public(
        images,
        labels,
        tf.range(_UNITS),
        batch_size=_UNITS,
        seed=tf.constant(0, tf.int64),
        step=tf.constant(0, tf.int64),
    )
    flat = tf.nest.map_structure(lambda x: tf.reshape(x, [_UNITS * _VIEWS, *x.shape[2:]]), views)
    unit_loss, variables = views_lib.unit_loss_fn(model), model.trainable_variables
    with tf.GradientTape() as tape:
        loss = unit_loss(flat)
    mean = tape.gradient(loss, variables)
    norms = []
    for unit in range(_UNITS):
        with tf.GradientTape() as tape:
            loss = unit_loss(tf.nest.map_structure(lambda x: x[unit], views))
        norms.append(float(tf.linalg.global_norm(tape.gradient(loss, variables))))
    l2_norm_clip = float(np.median(norms))  # Some are clipped, some are not.
    clipped = clipping.PerUnitClipper(l2_norm_clip).clipped_sum(
        unit_loss, variables, views, tf.zeros([_UNITS], tf.bool), units_per_chunk=_UNITS
    )
    names = [variable.name.split(':')[0] for variable in variables]
    description = {'config': kinds.to_json(config), 'image_shape': image_shape, 'parameters': model.count_params()}
    np.savez(
        flags.path,
        description=json.dumps(description),
        alphas_cumprod=diffusion.schedule.alphas_cumprod,
        l2_norm_clip=l2_norm_clip,
        prediction=denoiser.denoise(model, flat.x_t, flat.t, flat.labels),
        **{f'weights/{name}': variable.numpy() for name, variable in zip(names, variables)},
        **{f'views/{name}': getattr(views, name).numpy() for name in ('x_t', 't', 'labels', 'target')},
        **{f'clipped_sum/{name}': gradient.numpy() for name, gradient in zip(names, clipped.sums)},
        **{f'mean/{name}': gradient.numpy() for name, gradient in zip(names, mean)},
    )


if __name__ == '__main__':
    main()
