"""A program that takes private steps with Keras on one replica and on two devices, and writes down what they did.

python -m tests.privacy.replica_updates OUTPUT.npz
"""

import sys

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.privacy import optimizer as optimizer_lib

NUM_UNITS, NUM_VIEWS, CLIP_NORM, NOISE_MULTIPLIER = 8, 2, 0.5, 3.0
NUM_NOISY = 4000
WAYS = ('fit of DpModel', 'fit of a plain model', 'minimize_units', 'minimize', 'fit with an expected batch size')
MEAN_SQUARED_ERROR = keras.losses.MeanSquaredError(reduction='none')


def make_optimizer(num_replicas, noise_multiplier=0.0, expected_batch_size=None):
    # Each replica sees its own part of the units.
    return optimizer_lib.VectorizedDPSGD(
        CLIP_NORM,
        noise_multiplier,
        num_microbatches=NUM_UNITS // num_replicas,
        expected_batch_size=expected_batch_size,
        units_per_chunk=3,
        learning_rate=1.0,
    )


def make_model(cls, units=2):
    keras.utils.set_random_seed(3)
    inputs = keras.layers.Input([3])
    h = keras.layers.Dense(4, activation='tanh')(inputs)
    return cls(inputs, keras.layers.Dense(units)(h))


def make_data():
    generator = np.random.default_rng(0)
    size = NUM_UNITS * NUM_VIEWS
    # Norms differ, so that some units are clipped and others are not.
    x = generator.standard_normal([size, 3]) * np.linspace(0.1, 3.0, size)[:, None]
    return x.astype(np.float32), generator.standard_normal([size, 2]).astype(np.float32)


def flat(weights):
    return np.concatenate([np.ravel(weight) for weight in weights])


def take_step(way, strategy, noise_multiplier=0.0, optimizer=None):
    """Returns by how much one step on the whole batch changes the weights, one copy of them a replica."""
    num_replicas = strategy.num_replicas_in_sync
    x, y = make_data()
    with strategy.scope():
        model = make_model(keras.Model if way in ('fit of a plain model', 'minimize') else optimizer_lib.DpModel)
        # The expected batch size is that of all replicas.
        expected = 10.0 if way == 'fit with an expected batch size' else None
        optimizer = optimizer or make_optimizer(num_replicas, noise_multiplier, expected)
        optimizer.build(model.trainable_variables)
    before = flat(model.get_weights())
    if way.startswith('fit'):
        with strategy.scope():
            model.compile(optimizer, MEAN_SQUARED_ERROR)
        model.fit(x, y, batch_size=len(x), shuffle=False, verbose=0)
    else:
        run_step(way, strategy, model, optimizer, (x, y))
    copies = zip(*(strategy.experimental_local_results(v) for v in model.trainable_variables))
    return np.stack([flat(copy) - before for copy in copies])


def run_step(way, strategy, model, optimizer, data):
    """Takes one step by the optimizer's own methods."""

    def step(x, y):

        def loss(unit):
            return tf.reduce_mean(MEAN_SQUARED_ERROR(unit[1], model(unit[0])))

        if way == 'minimize':
            return optimizer.minimize(lambda: MEAN_SQUARED_ERROR(y, model(x)), model.trainable_variables)
        batch = tf.reshape(x, [-1, NUM_VIEWS, 3]), tf.reshape(y, [-1, NUM_VIEWS, 2])
        if way == 'apply_gradients':
            return optimizer.apply_gradients(optimizer.compute_unit_gradients(loss, batch, model.trainable_variables))
        return optimizer.minimize_units(loss, batch, model.trainable_variables)

    parts = [np.split(part, strategy.num_replicas_in_sync) for part in data]
    values = [
        strategy.experimental_distribute_values_from_function(
            lambda context, part=part: tf.constant(part[context.replica_id_in_sync_group])
        )
        for part in parts
    ]

    @tf.function
    def run():
        strategy.run(step, args=values)

    run()


def take_noise(strategy, num_steps=2):
    """Returns updates of a variable without gradients [steps, replicas, NUM_NOISY], in units of one draw."""
    with strategy.scope():
        variable = tf.Variable(tf.zeros([NUM_NOISY]))
        optimizer = make_optimizer(strategy.num_replicas_in_sync, NOISE_MULTIPLIER)
        optimizer.build([variable])

    @tf.function
    def run():
        strategy.run(
            lambda: optimizer.minimize_units(
                lambda unit: tf.reduce_sum(variable * 0.0) * unit, tf.ones([4]), [variable]
            )
        )

    values = [np.zeros([strategy.num_replicas_in_sync, NUM_NOISY])]
    for _ in range(num_steps):
        run()
        values.append(np.stack([v.numpy() for v in strategy.experimental_local_results(variable)]))
    return np.diff(values, axis=0) * NUM_UNITS / (NOISE_MULTIPLIER * CLIP_NORM)


def message_of(function, *args):
    """Returns kind and words of the error that a call ends with."""
    try:
        function(*args)
    except (RuntimeError, ValueError) as error:
        return f'{type(error).__name__}: {error}'
    return 'no error'


def fit_with_mean_loss(strategy):
    with strategy.scope():
        model = make_model(optimizer_lib.DpModel)
        model.compile(make_optimizer(strategy.num_replicas_in_sync), 'mse')
    model.fit(*make_data(), batch_size=NUM_UNITS * NUM_VIEWS, verbose=0)


def outside_of_a_replica(strategy):
    with strategy.scope():
        variable = tf.Variable([1.0])
        make_optimizer(2).compute_unit_gradients(lambda unit: variable[0] * unit, tf.ones([4]), [variable])


def main(output):
    (cpu,) = tf.config.list_physical_devices('CPU')
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    multi_worker = tf.distribute.MultiWorkerMirroredStrategy()  # It wants to be the first.
    one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
    central = tf.distribute.experimental.CentralStorageStrategy(['CPU:0', 'CPU:1'])
    found = {'noise of one': take_noise(one), 'noise of two': take_noise(two)}
    for way in WAYS:
        found[f'{way}, one'], found[f'{way}, two'] = take_step(way, one), take_step(way, two)
    for name, strategy in (('MultiWorkerMirroredStrategy', multi_worker), ('CentralStorageStrategy', central)):
        for way in ('fit of DpModel', 'fit of a plain model'):
            found[f'{name}, {way}'] = message_of(take_step, way, strategy)
    found['apply_gradients'] = message_of(take_step, 'apply_gradients', two)
    found['mean loss'] = message_of(fit_with_mean_loss, two)
    found['mean loss on one'] = message_of(fit_with_mean_loss, one)
    found['made outside of the scope'] = message_of(take_step, 'minimize_units', two, 0.0, make_optimizer(2))
    found['outside'] = message_of(outside_of_a_replica, two)
    np.savez(output, **found)


if __name__ == '__main__':
    main(sys.argv[1])
