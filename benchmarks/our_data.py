"""Draws batches, or views of them, when asked to; a case of data.py, see measuring.py."""

import argparse
import itertools
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

SOURCES = ('digits', 'memory', 'npy', 'owners')
AUGMENTATIONS = {
    'none': {},
    'flip': {'horizontal_flip': True},
    'pad_and_crop': {'pad_and_crop': 4},
    'rotation': {'rotation': 0.05},
}
IMAGES_OF_OWNER, _IMAGE_SHAPE, _NUM_CLASSES = 10, (28, 28, 1), 10


def open_source(name, num_images, folder):
    """Returns a data set: of num_images images, but for the digits, which are 1,437."""
    import numpy as np

    from tf_dpdiff.data import datasets
    from tf_dpdiff.data import npy

    if name == 'digits':
        return datasets.digits().train
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, [num_images, *_IMAGE_SHAPE], dtype=np.uint8)
    labels = (np.arange(num_images) % _NUM_CLASSES).astype(np.int32)
    if name == 'npy':
        for part, end in (('train', num_images), ('held_out', 1)):
            np.save(folder / f'{part}_images.npy', images[:end])
            np.save(folder / f'{part}_labels.npy', labels[:end])
        return npy.npy_images(str(folder)).train
    owners = generator.permutation(num_images) // IMAGES_OF_OWNER if name == 'owners' else None
    unit = 'one owner' if name == 'owners' else datasets.ONE_IMAGE
    return datasets.ImageDataset(name, images, labels, tuple(map(str, range(_NUM_CLASSES))), unit, owners)


def make_gather(flags, folder):
    """Returns a function that draws a batch as train_step.make_private_step does, and facts of it."""
    from tf_dpdiff.data import pipelines
    from tf_dpdiff.privacy import sampling

    dataset = open_source(flags.source, flags.num_images, folder)
    sampler = sampling.PoissonSampler(flags.units / dataset.num_units)

    def draw(step):
        units = sampler.sample(dataset.num_units, seed=1, step=step)
        (padded,) = sampling.pad_batches([units], flags.units_per_chunk, equally=False)
        pipelines.gather_units(dataset, padded, num_views=flags.views, seed=2, step=step)

    return draw, {'images': len(dataset), 'units': dataset.num_units}


def make_views(flags):
    """Returns a function that draws the views of a batch, a chunk at a time, and facts of it."""
    import numpy as np
    import tensorflow as tf

    from tf_dpdiff.data import augmentation
    from tf_dpdiff.diffusion import process
    from tf_dpdiff.training import views

    config = views.ViewsConfig(
        flags.views, augmentation=augmentation.AugmentationConfig(**AUGMENTATIONS[flags.augmentation])
    )
    view_maker = views.ViewMaker(process.DiffusionProcess(), config, num_classes=_NUM_CLASSES)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, [flags.units, 1, *_IMAGE_SHAPE], dtype=np.uint8))
    labels, units = tf.zeros([flags.units, 1], tf.int32), tf.range(flags.units, dtype=tf.int64)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 1, *_IMAGE_SHAPE], tf.uint8),
            tf.TensorSpec([None, 1], tf.int32),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([], tf.int64),
        ]
    )
    def draw_chunk(images_uint8, labels, units, step):
        return view_maker.draw_for_units(images_uint8, labels, units, seed=tf.constant(1, tf.int64), step=step)

    def draw(step):
        for first in range(0, flags.units, flags.units_per_chunk):
            rows = slice(first, first + flags.units_per_chunk)
            draw_chunk(images[rows], labels[rows], units[rows], tf.constant(step, tf.int64))

    return draw, {'describes': augmentation.Augmenter(config.augmentation).describe()}


def main():
    """Opens the source and serves it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('kind', choices=('batches', 'views'))
    parser.add_argument('--source', choices=SOURCES)
    parser.add_argument('--augmentation', choices=AUGMENTATIONS)
    parser.add_argument('--num_images', type=int, default=60000)
    parser.add_argument('--units', type=int, required=True)
    parser.add_argument('--views', type=int, required=True)
    parser.add_argument('--units_per_chunk', type=int, required=True)
    parser.add_argument('--batches', type=int, required=True)
    flags = parser.parse_args()
    from benchmarks import measuring

    with tempfile.TemporaryDirectory() as folder:
        draw, facts = make_gather(flags, pathlib.Path(folder)) if flags.kind == 'batches' else make_views(flags)
        steps = itertools.count()

        def draw_batches():
            for _ in range(flags.batches):
                draw(next(steps))

        measuring.serve(draw_batches, **facts)


if __name__ == '__main__':
    main()
