"""Measures the parts of a private step beside the whole; a program of end_to_end.py.

The parts are functions of their own, compiled at the shapes that the step works on and run in turns with it, in one
process. The sum of the parts need not be the whole: what the whole takes beyond them is a row too, and may be negative.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measuring

UNITS_OF_DATA_SET = 60000  # As networks.py plans for.
DATA, VIEWS, GRADIENTS, CLIPPING, NOISE, OPTIMIZER, AVERAGE, REST = (
    'data: Poisson draw, gather, pad',
    'views: augmentation, timestep, noise',
    'forward and backward',
    'clip and sum',
    'Gaussian noise',
    'optimizer',
    'moving average',
    'rest',
)
PARTS = (DATA, VIEWS, GRADIENTS, CLIPPING, NOISE, OPTIMIZER, AVERAGE, REST)
_CLIPPED, _WHOLE = 'gradients, clipped and summed', 'whole step'


@dataclasses.dataclass(frozen=True)
class MadeStep:
    """A private step, and what it was made of.

    Attributes:
      run: The compiled step.
      of: The arguments of train_step.compile_private_step, by name.
      dataset: The private images.
      num_views: K.
    """

    run: Any
    of: dict
    dataset: Any
    num_views: int


def step_of_run(flags):
    """Returns the private step of the run that a configuration describes, built as bin/train builds it."""
    from tf_dpdiff.cli import gin_config
    from tf_dpdiff.networks import denoiser
    from tf_dpdiff.runs import build as build_lib
    from tf_dpdiff.training import strategies
    from tf_dpdiff.training import train_step

    gin_config.parse([flags.gin_file], flags.gin_param, 'train')
    recipe = gin_config.make('train')
    build, config, private = build_lib.Build(recipe), recipe.finetuning, recipe.data.train
    with tempfile.TemporaryDirectory() as workdir:
        trainer = build.make_training(pathlib.Path(workdir), private, make_grid_drawer=None).trainer
    num_views, plan = config.views.augmentation_multiplicity, build.plan
    parts = {
        'model': trainer.model,
        'average': trainer.average,
        'variables': denoiser.select_variables(trainer.model, config.trainable),
        'optimizer': config.optimization.make_optimizer(plan.config.num_steps),
        'plan': plan,
        'view_maker': build.make_view_maker(config.views),
        'private_seed': trainer.state.private_seed,
        'images_per_unit': 1 if private.owners is None else num_views,
        'max_ema_decay': config.max_ema_decay,
        'chunk_sizes': config.choose_chunk_sizes(trainer.model, plan.config.expected_batch_size),
        'replicas': strategies.ONE,
    }
    return MadeStep(train_step.compile_private_step(**parts), parts, private, num_views)


def step_of_network(flags):
    """Returns the private step of a network of networks.py, all of which is trained, on images of the right shape."""
    import numpy as np

    from benchmarks import networks
    from tf_dpdiff.data import datasets

    parts = networks.make_private_parts(flags.network, flags.units, flags.views)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, [UNITS_OF_DATA_SET, *networks.NETWORKS[flags.network][1]], np.uint8)
    labels = generator.integers(0, networks.NUM_CLASSES, UNITS_OF_DATA_SET, np.int32)
    dataset = datasets.ImageDataset('random images', images, labels, tuple(map(str, range(networks.NUM_CLASSES))))
    return MadeStep(networks.compile_private_step(parts), parts, dataset, flags.views)


def make_data(made):
    """Returns a batch of as many units as are expected, and the function that draws and gathers one."""
    import numpy as np

    from tf_dpdiff.data import pipelines
    from tf_dpdiff.privacy import sampling

    plan, chunk_units = made.of['plan'], made.of['chunk_sizes'].units

    def gather(units):
        (padded,) = sampling.pad_batches([units], chunk_units, equally=False)
        return pipelines.gather_units(made.dataset, padded, num_views=made.num_views, seed=0, step=0)

    def draw():
        gather(plan.sampler.sample(plan.num_units, seed=0, step=0))

    return gather(np.arange(plan.config.expected_batch_size)), draw


def _loop_over_chunks(function, batch, units):
    """Calls function(chunk) for each chunk of a batch, as the step does, for what it takes alone."""
    import tensorflow as tf

    def do_chunk(index, done):
        chunk = tf.nest.map_structure(lambda x: x[index * units : (index + 1) * units], batch)
        for tensor in tf.nest.flatten(chunk):
            tensor.set_shape([units, *tensor.shape[1:]])
        with tf.control_dependencies(tf.nest.flatten(function(chunk))):
            return index + 1, done + 1

    count = tf.shape(tf.nest.flatten(batch)[0])[0] // units
    return tf.while_loop(lambda index, _: index < count, do_chunk, (0, 0), parallel_iterations=1)[1]


def make_gradients(made, batch):
    """Returns functions for the gradients of the units of a batch without clipping, and clipped and summed."""
    import tensorflow as tf

    from tf_dpdiff.privacy import clipping
    from tf_dpdiff.training import views as views_lib

    of = made.of
    traced = []

    class Unclipped(clipping.PerUnitClipper):
        """Takes the gradients of all units and hands on those of the first one: nothing is read but them."""

        def clip_and_sum(self, gradients, is_padding, layers=None):
            traced.append(layers)
            zeros = tf.zeros_like(is_padding, tf.float32)
            return clipping.ClippedChunk(
                [tf.cast(g[0], tf.float32) for g in gradients],
                zeros,
                tf.logical_not(is_padding),
                tf.zeros_like(is_padding),
            )

    clipper, unit_loss = of['plan'].clipper, views_lib.unit_loss_fn(of['model'])
    zero = tf.constant(0, tf.int64)
    views = of['view_maker'].draw_for_units(*map(tf.convert_to_tensor, batch), seed=zero, step=zero)
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), views)

    def compiled(used_clipper):

        @tf.function(autograph=False, input_signature=[specs, tf.TensorSpec([None], tf.bool)])
        def gradients(views, is_padding):
            return used_clipper.clipped_sum(
                unit_loss,
                of['variables'],
                views,
                is_padding,
                units_per_chunk=of['chunk_sizes'].units,
                views_per_chunk=of['chunk_sizes'].views,
            )

        is_padding = tf.constant(batch[2] < 0)
        return lambda: float(gradients(views, is_padding).diagnostics['loss_sum'])

    alone = compiled(Unclipped(clipper.l2_norm_clip, per_layer=clipper.per_layer))
    alone()
    if not traced:
        raise RuntimeError('the clipper no longer calls clip_and_sum: clipping cannot be left out.')
    return alone, compiled(clipper)


def make_updates(made):
    """Returns functions for the noise, the optimizer and the moving average, each alone."""
    import tensorflow as tf

    from tf_dpdiff.networks import ema

    of = made.of
    sums = [tf.zeros(variable.shape) for variable in of['variables']]
    step = tf.constant(0, tf.int64)

    @tf.function(autograph=False)
    def add_noise(step):
        return of['plan'].noise.add(sums, seed=of['private_seed'], step=step)

    @tf.function(autograph=False)
    def optimize(gradients):
        of['optimizer'].apply_gradients(zip(gradients, of['variables']), skip_gradients_aggregation=True)

    @tf.function(autograph=False)
    def move_average(step):
        decay = ema.ema_decay(of['max_ema_decay'], step)
        of['replicas'].update(ema.update_average, of['average'].variables, of['model'].variables, decay)

    return {
        NOISE: lambda: add_noise(step)[0].numpy(),
        OPTIMIZER: lambda: optimize(sums),
        AVERAGE: lambda: move_average(step),
    }


def make_parts(made):
    """Returns the functions that are timed, by name."""
    import tensorflow as tf

    batch, draw_batch = make_data(made)
    chunk_units, view_maker = made.of['chunk_sizes'].units, made.of['view_maker']
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), batch)

    @tf.function(autograph=False, input_signature=[specs, tf.TensorSpec([], tf.int64)])
    def draw_views(batch, step):

        def draw(chunk):
            return view_maker.draw_for_units(*chunk, seed=tf.constant(0, tf.int64), step=step)

        return _loop_over_chunks(draw, batch, chunk_units)

    step = tf.constant(0, tf.int64)
    alone, clipped = make_gradients(made, batch)
    return {
        DATA: draw_batch,
        VIEWS: lambda: draw_views(batch, step).numpy(),
        GRADIENTS: alone,
        _CLIPPED: clipped,
        **make_updates(made),
        _WHOLE: lambda: float(made.run([batch], step)['num_units']),
    }


def measure(parts, rounds):
    """Runs the parts in turns; returns {name: seconds of each round}."""
    for function in parts.values():
        function()
    return measuring.take_turns({name: measuring.timed(function) for name, function in parts.items()}, rounds)


def attribute(seconds):
    """Returns {part: seconds} and the seconds of the whole step, data included: medians over rounds."""

    def median(function):
        rounds = [dict(zip(seconds, values)) for values in zip(*seconds.values())]
        return statistics.median(map(function, rounds))

    def rest(of):
        return of[_WHOLE] - sum(of[name] for name in (VIEWS, _CLIPPED, NOISE, OPTIMIZER, AVERAGE))

    parts = {name: median(lambda of, name=name: of[name]) for name in PARTS if name in seconds}
    parts[CLIPPING] = median(lambda of: of[_CLIPPED] - of[GRADIENTS])
    parts[REST] = median(rest)
    return {name: parts[name] for name in PARTS}, median(lambda of: of[_WHOLE] + of[DATA])


def describe(made):
    """Returns the shape of the step as JSON-able values."""
    of = made.of
    return {
        'parameters': of['model'].count_params(),
        'trained_parameters': sum(v.shape.num_elements() for v in of['variables']),
        'units': of['plan'].config.expected_batch_size,
        'views': made.num_views,
        'chunk': list(of['chunk_sizes']),
    }


def main():
    """Measures the step of a run or of a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--gin_file')
    parser.add_argument('--gin_param', action='append', default=[])
    parser.add_argument('--network')
    parser.add_argument('--units', type=int)
    parser.add_argument('--views', type=int)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--output', type=pathlib.Path, required=True)
    flags = parser.parse_args()
    made = step_of_run(flags) if flags.gin_file else step_of_network(flags)
    seconds = measure(make_parts(made), flags.rounds)
    parts, whole = attribute(seconds)
    flags.output.write_text(json.dumps({**describe(made), 'whole_secs': whole, 'parts': parts, 'rounds': seconds}))


if __name__ == '__main__':
    main()
