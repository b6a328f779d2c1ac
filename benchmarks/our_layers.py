"""Counts what the layers of a network compute and move, and measures each of them; a program of limit.py.

Every layer, forward alone, forward and backward, and the same with a gradient for each unit, is a function of its own,
compiled at the shape that the network has it at. They run in turns with the peaks and with the whole network (loss and
gradients of all views at once), in one process. The sum of the layers is less than the whole: what lies between them,
additions, concatenations and repeated pixels, is in the whole alone.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measuring
from benchmarks import our_peak

WHOLE, FORWARD, BOTH, PER_UNIT = 'whole', 'forward', 'both', 'per unit'


def make_layer(layer, units, views):
    """Returns {FORWARD, BOTH or PER_UNIT: function} of a layer at units x views."""
    import tensorflow as tf

    function, variables = layer.make()
    x = tf.random.stateless_normal([units * views, *layer.input_shape], (0, 0))
    dy = tf.random.stateless_normal([units * views, *layer.output_shape], (0, 1))

    def forward(x):
        return function(x)

    def both(x, dy):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([x, *variables])
            y = function(x)
        return y, tape.gradient(y, [x, *variables], output_gradients=dy)

    def per_unit(x, dy):
        by_unit = [tf.reshape(value, [units, views, *value.shape[1:]]) for value in (x, dy)]
        return tf.vectorized_map(lambda unit: both(*unit), by_unit)

    compiled = {
        name: tf.function(of, autograph=False) for name, of in ((FORWARD, forward), (BOTH, both), (PER_UNIT, per_unit))
    }
    calls = {
        FORWARD: lambda: compiled[FORWARD](x),
        BOTH: lambda: compiled[BOTH](x, dy),
        PER_UNIT: lambda: compiled[PER_UNIT](x, dy),
    }
    return {name: _waiting(call) for name, call in calls.items()}


def make_whole(model, views):
    """Returns the function that computes loss and gradients of a batch of views."""
    import tensorflow as tf

    from tf_dpdiff.training import views as views_lib

    image = model.inputs[0].shape[1:]
    numbers = tf.random.stateless_normal([views, *image], (0, 0))
    integers = tf.zeros([views], tf.int32)
    batch = views_lib.Views(numbers, integers, integers, numbers, integers)
    unit_loss, variables = views_lib.unit_loss_fn(model), model.trainable_variables

    @tf.function(autograph=False)
    def gradients(batch):
        with tf.GradientTape() as tape:
            loss = unit_loss(batch)
        return tape.gradient(loss, variables)

    return _waiting(lambda: gradients(batch))


def _waiting(function):
    """Returns a function that ends when the result is there."""
    import tensorflow as tf

    return lambda: tf.nest.flatten(function())[-1].numpy()


def count(name):
    """Returns the network of that name, its layers, and what is counted, JSON-able."""
    from benchmarks import counting
    from benchmarks import networks
    from tf_dpdiff.networks import denoiser
    from tf_dpdiff.training import flops

    config, image_shape = networks.NETWORKS[name]
    model = denoiser.build(config, image_shape, networks.NUM_CLASSES)
    layers = counting.count_layers(model)
    counted = flops.flops_per_view(model, model.trainable_variables)
    of_layers = sum(layer.calls * layer.training_flops for layer in layers)
    if of_layers != counted.training:
        raise RuntimeError(f'the layers take {of_layers} operations a view, the network {counted.training}')
    return (
        model,
        layers,
        {
            'parameters': model.count_params(),
            'image_shape': list(image_shape),
            'forward_flops': counted.forward,
            'training_flops': counted.training,
            'layers': [layer.to_json() for layer in layers],
        },
    )


def measure(model, layers, flags):
    """Returns seconds of each round: of the whole, of the peaks, and of each layer."""
    import tensorflow as tf

    tf.get_logger().setLevel('ERROR')  # Functions are traced for each layer anew, and TensorFlow takes it for a fault.
    views = flags.units * flags.views
    functions = {WHOLE: make_whole(model, views)}
    work = {}
    for kind, size in (
        (our_peak.PRODUCT, flags.product_size),
        (our_peak.CONVOLUTION, flags.convolution_size),
        (our_peak.MEMORY, flags.memory_size),
    ):
        functions[kind], work[kind] = our_peak.make_peak(kind, 'float32', size)
    for index, layer in enumerate(layers):
        made = make_layer(layer, flags.units, flags.views)
        functions.update({f'{index} {name}': function for name, function in made.items()})
        print(f'  {index + 1} of {len(layers)}: {layer.label}', file=sys.stderr, flush=True)
    for function in functions.values():
        function()
    seconds = measuring.take_turns(
        {name: measuring.timed(function) for name, function in functions.items()}, flags.rounds
    )
    return {
        'units': flags.units,
        'views': flags.views,
        'peaks': {kind: {'work': work[kind], 'seconds': seconds[kind]} for kind in work},
        'whole': seconds[WHOLE],
        'layers': [
            {name: seconds[f'{index} {name}'] for name in (FORWARD, BOTH, PER_UNIT)} for index in range(len(layers))
        ],
    }


def main():
    """Counts, and measures if there are rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', default='1.1M')
    parser.add_argument('--units', type=int, default=16)
    parser.add_argument('--views', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=0)
    for kind, sizes in (*our_peak.SIZES.items(), (our_peak.MEMORY, (our_peak.array_mib(),))):
        parser.add_argument(f'--{kind}_size', type=int, default=sizes[-1])
    parser.add_argument('--output', type=pathlib.Path, required=True)
    flags = parser.parse_args()
    model, layers, counted = count(flags.network)
    measured = measure(model, layers, flags) if flags.rounds else None
    flags.output.write_text(json.dumps({'counted': counted, 'measured': measured}))


if __name__ == '__main__':
    main()
