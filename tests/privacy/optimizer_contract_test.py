"""Tests that no way to use a DP-Keras optimizer draws noise twice, or trains on gradients that are not private."""

import copy
import pickle

import numpy as np
import pytest
import tensorflow as tf

from tests.privacy import model_check_test as unfit
from tf_dpdiff import keras
from tf_dpdiff.privacy import model_check
from tf_dpdiff.privacy import optimizer as optimizer_lib
from tf_dpdiff.privacy import seeds

layers = keras.layers
SIZE = 2000
VECTOR_LOSS = keras.losses.MeanSquaredError(reduction='none')


def make_optimizer(noise_multiplier=1.0, **options):
    return optimizer_lib.VectorizedDPSGD(1.0, noise_multiplier, **{'expected_batch_size': 1, **options})


def make_variables(count=2):
    return [tf.Variable(tf.zeros([SIZE])) for _ in range(count)]


def noise_of(optimizer, variables):
    """Returns the gradients of a loss that has none: nothing but noise."""
    pairs = optimizer.compute_unit_gradients(
        lambda unit: 0.0 * unit * sum(tf.reduce_sum(v) for v in variables), tf.ones([3]), variables
    )
    return [gradient for gradient, _ in pairs]


def draws_are_all_different(draws):
    """Whether no two of the draws share numbers: the whole of it, or a part of it in another place."""
    draws = [np.ravel(draw) for draw in draws]
    correlations = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    numbers = np.concatenate(draws)
    return np.abs(correlations).max() < 0.2 and len(np.unique(numbers)) > 0.99 * len(numbers)


def accumulate(optimizer, variables, unused_folder):
    return [noise_of(optimizer, variables) for _ in range(3)]


def accumulate_in_a_graph(optimizer, variables, unused_folder):
    compute = tf.function(lambda: noise_of(optimizer, variables))
    return [compute() for _ in range(3)]


def accumulate_by_jacobian(optimizer, variables, unused_folder):
    return [
        [
            gradient
            for gradient, _ in optimizer.compute_gradients(
                lambda: tf.reshape(0.0 * sum(tf.reduce_sum(v) for v in variables), [1]), variables
            )
        ]
        for _ in range(3)
    ]


def apply(optimizer, variables):
    gradients = noise_of(optimizer, variables)
    optimizer.apply_gradients(list(zip(gradients, variables)))
    return gradients


def freeze_and_go_on(optimizer, variables, unused_folder):
    return [apply(optimizer, variables[:count]) for count in (2, 2, 1, 1, 2, 1, 2)]


def set_the_iterations_back(optimizer, variables, unused_folder):
    drawn = [apply(optimizer, variables), apply(optimizer, variables)]
    optimizer.iterations.assign(0)
    return drawn + [apply(optimizer, variables)]


def set_all_variables_back(optimizer, variables, unused_folder):
    drawn = [apply(optimizer, variables), apply(optimizer, variables)]
    for variable in optimizer.variables:
        variable.assign(tf.zeros_like(variable))
    return drawn + [apply(optimizer, variables)]


def restore_in_the_same_process(optimizer, variables, folder):
    checkpoint = tf.train.Checkpoint(optimizer=optimizer)
    drawn = [apply(optimizer, variables)]
    saved = checkpoint.save(str(folder / 'ckpt'))
    drawn.append(apply(optimizer, variables))
    checkpoint.restore(saved)
    return drawn + [apply(optimizer, variables)]


def restore_under_the_same_secret(optimizer, variables, folder):
    drawn = [apply(optimizer, variables), apply(optimizer, variables)]
    saved = tf.train.Checkpoint(optimizer=optimizer).save(str(folder / 'ckpt'))
    other = make_optimizer()
    other._private_seed = optimizer._private_seed
    other.build(variables)
    tf.train.Checkpoint(optimizer=other).restore(saved).assert_existing_objects_matched()
    return drawn + [apply(other, variables)]


def make_from_its_config(optimizer, variables, unused_folder):
    again = type(optimizer).from_config(optimizer.get_config())
    return [noise_of(optimizer, variables), noise_of(again, variables)]


WAYS = [
    accumulate,
    accumulate_in_a_graph,
    accumulate_by_jacobian,
    freeze_and_go_on,
    set_the_iterations_back,
    set_all_variables_back,
    restore_in_the_same_process,
    restore_under_the_same_secret,
    make_from_its_config,
]


@pytest.mark.parametrize('way', WAYS, ids=lambda way: way.__name__)
def test_no_draw_of_noise_comes_twice(way, tmp_path):
    drawn = way(make_optimizer(), make_variables(), tmp_path)
    assert draws_are_all_different([gradient for gradients in drawn for gradient in gradients])


@pytest.mark.parametrize('way', [accumulate, freeze_and_go_on, set_the_iterations_back], ids=lambda way: way.__name__)
def test_control_draws_that_are_counted_by_iterations_come_twice(way, tmp_path, monkeypatch):
    optimizer = make_optimizer()

    def add_at(self, sums, *, seed, first_draw):
        del first_draw
        return [
            original(self, [value], seed=seed, first_draw=optimizer.iterations * len(sums) + index)[0]
            for index, value in enumerate(sums)
        ]

    original = optimizer_lib.noise_lib.GaussianNoise.add_at
    monkeypatch.setattr(optimizer_lib.noise_lib.GaussianNoise, 'add_at', add_at)
    drawn = way(optimizer, make_variables(), tmp_path)
    assert not draws_are_all_different([gradient for gradients in drawn for gradient in gradients])


def test_accumulated_noise_grows_with_the_root_of_the_number_of_calls():
    optimizer, variables = make_optimizer(), make_variables(1)
    compute = tf.function(lambda: noise_of(optimizer, variables)[0])
    total = sum(compute() for _ in range(16))
    assert np.std(total) == pytest.approx(4.0, rel=0.1)


def compile_and_fit(model, optimizer, trainable):
    """Compiles and fits a model of which some layers are trained, and returns the numbers of the draws that it took."""
    for layer in model.layers:
        layer.trainable = layer.name in trainable
    model.compile(optimizer, VECTOR_LOSS)
    first = int(optimizer._num_draws)
    model.fit(np.ones([8, 3]), np.ones([8, 2]), batch_size=4, verbose=0)
    return list(range(first, int(optimizer._num_draws)))


@pytest.mark.parametrize('cls', [keras.Model, optimizer_lib.DpModel])
def test_model_that_is_frozen_and_compiled_anew_goes_on_with_new_draws(cls):
    inputs = layers.Input([3])
    model = cls(inputs, layers.Dense(2, name='second')(layers.Dense(4, name='first')(inputs)))
    optimizer = make_optimizer()
    numbers = compile_and_fit(model, optimizer, ['first', 'second'])
    numbers += compile_and_fit(model, model.optimizer, ['second'])
    numbers += compile_and_fit(model, model.optimizer, ['first', 'second'])
    # Two steps each, of four, two and four variables.
    assert numbers == list(range(20))


def test_optimizer_is_neither_copied_nor_pickled_since_the_copy_would_draw_the_same_noise():
    for duplicate in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match='a private seed is neither copied nor pickled'):
            duplicate(make_optimizer()._private_seed)
        with pytest.raises(TypeError, match='VectorizedDPSGD is neither copied nor pickled'):
            duplicate(make_optimizer())
    assert seeds.PrivateSeed(bytes(32)).derive('noise') == seeds.PrivateSeed(bytes(32)).derive('noise')


def raw_gradients(variables):
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_sum(tf.square(v - 1.0)) for v in variables)
    return tape.gradient(loss, variables)


def apply_raw(optimizer, variables):
    optimizer.apply_gradients(zip(raw_gradients(variables), variables))


def apply_raw_after_a_private_step(optimizer, variables):
    apply(optimizer, variables)
    apply_raw(optimizer, variables)


def apply_raw_beside_a_private_one(optimizer, variables):
    optimizer.apply_gradients(zip([noise_of(optimizer, variables)[0], raw_gradients(variables)[1]], variables))


def apply_what_another_optimizer_made(optimizer, variables):
    optimizer.apply_gradients(zip(noise_of(make_optimizer(), variables), variables))


def apply_private_plus_raw(optimizer, variables):
    sums = [g + r for g, r in zip(noise_of(optimizer, variables), raw_gradients(variables))]
    optimizer.apply_gradients(zip(sums, variables))


def apply_to_nothing_that_can_be_unpacked(optimizer, variables):
    optimizer.apply_gradients(variables[0])


@pytest.mark.parametrize('in_graph', [False, True])
@pytest.mark.parametrize(
    'way',
    [
        apply_raw,
        apply_raw_after_a_private_step,
        apply_raw_beside_a_private_one,
        apply_what_another_optimizer_made,
        apply_private_plus_raw,
        apply_to_nothing_that_can_be_unpacked,
    ],
    ids=lambda way: way.__name__,
)
def test_gradients_that_were_never_made_private_are_refused(way, in_graph):
    optimizer, variables = make_optimizer(), make_variables()
    optimizer.build(variables)
    if way is not apply_raw_after_a_private_step:
        before = [v.numpy() for v in variables]
    call = tf.function(lambda: way(optimizer, variables)) if in_graph else lambda: way(optimizer, variables)
    with pytest.raises(optimizer_lib.NotPrivateError, match='has not made private'):
        call()
    if way is not apply_raw_after_a_private_step:
        np.testing.assert_array_equal([v.numpy() for v in variables], before)
    # TensorFlow Privacy's optimizers raise this one.
    assert issubclass(optimizer_lib.NotPrivateError, AssertionError)


@pytest.mark.parametrize('in_graph', [False, True])
def test_control_private_gradients_and_declared_sums_of_them_are_applied(in_graph):
    optimizer, variables = make_optimizer(learning_rate=1.0), make_variables()
    optimizer.build(variables)

    def steps():
        apply(optimizer, variables)
        sums = [a + b for a, b in zip(noise_of(optimizer, variables), noise_of(optimizer, variables))]
        optimizer.apply_gradients(zip(optimizer.declare_private(sums), variables))

    (tf.function(steps) if in_graph else steps)()
    assert np.std(variables[0]) == pytest.approx(3.0**0.5, rel=0.1)


@pytest.fixture(name='fitted', scope='module')
def fixture_fitted():
    """A model that was trained."""
    model = optimizer_lib.DpModel.sequential([layers.Dense(2, input_shape=(3,))])
    model.compile(make_optimizer(), VECTOR_LOSS)
    model.fit(np.ones([8, 3]), np.ones([8, 2]), batch_size=4, verbose=0)
    return model


@pytest.mark.parametrize('name', ['model', 'model.keras', 'model.h5'])
def test_loaded_model_refuses_raw_gradients_and_trains_privately(fitted, tmp_path, name):
    fitted.save(tmp_path / name)
    names = {'DpModel': optimizer_lib.DpModel, 'VectorizedDPSGD': optimizer_lib.VectorizedDPSGD}
    loaded = keras.models.load_model(tmp_path / name, custom_objects=names)
    assert isinstance(loaded.optimizer, optimizer_lib.VectorizedDPSGD)
    assert loaded.optimizer._private_seed.reveal() != fitted.optimizer._private_seed.reveal()
    with pytest.raises(optimizer_lib.NotPrivateError):
        apply_raw(loaded.optimizer, loaded.trainable_variables)
    before = int(loaded.optimizer._num_draws)
    loaded.fit(np.ones([8, 3]), np.ones([8, 2]), batch_size=4, verbose=0)
    assert int(loaded.optimizer._num_draws) == before + 4


def make_model(cls, *hidden):
    inputs = layers.Input([3])
    h = layers.Dense(4)(inputs)
    for layer in hidden:
        h = layer(h)
    return cls(inputs, layers.Dense(2)(h))


def fit(model, optimizer, x, y):
    model.compile(optimizer, VECTOR_LOSS)
    model.fit(x, y, batch_size=4, verbose=0)


def take_eager_step(model, optimizer, x, y):
    optimizer.minimize(lambda: VECTOR_LOSS(y, model(x, training=True)), model.trainable_variables)


def take_step_by_tape(model, optimizer, x, y):
    with tf.GradientTape(persistent=True) as tape:
        losses = VECTOR_LOSS(y, model(x, training=True))
    optimizer.minimize(losses, model.trainable_variables, tape=tape)


def take_graph_step(model, optimizer, x, y):
    optimizer.build(model.trainable_variables)
    tf.function(lambda: take_step_by_tape(model, optimizer, x, y))()


def map_over_units(model, optimizer, x, y):

    def loss(unit):
        return tf.reduce_mean(VECTOR_LOSS(unit[1], model(unit[0], training=True)))

    optimizer.minimize_units(loss, (x[:, None], y[:, None]), model.trainable_variables)


STATEFUL = {
    'BatchNormalization': layers.BatchNormalization,
    'without weights': lambda: layers.BatchNormalization(center=False, scale=False),
    'SyncBatchNormalization': layers.experimental.SyncBatchNormalization,
    "of one's own": unfit.RemembersTheMean,
}


# The two that the others resemble, in every way to train; all of them, in the ways of fit.
@pytest.mark.parametrize('kind', STATEFUL)
@pytest.mark.parametrize('cls, train', [(optimizer_lib.DpModel, fit), (keras.Model, fit)])
def test_layers_that_keep_statistics_of_the_private_data_are_refused_by_fit(kind, cls, train):
    check_that_statistics_are_refused(kind, cls, train)


@pytest.mark.parametrize('kind', ['BatchNormalization', "of one's own"])
@pytest.mark.parametrize('train', [take_eager_step, take_step_by_tape, take_graph_step, map_over_units])
def test_layers_that_keep_statistics_of_the_private_data_are_refused_in_every_way_to_train(kind, train):
    check_that_statistics_are_refused(kind, keras.Model, train)


def check_that_statistics_are_refused(kind, cls, train):
    model = make_model(cls, STATEFUL[kind]())
    x, y = np.ones([4, 3], np.float32), np.ones([4, 2], np.float32)
    before = model.get_weights()
    with pytest.raises(model_check.ModelCheckError, match='mixes the examples|keeps statistics|changed .* while'):
        train(model, make_optimizer(), x, y)
    if train is not take_step_by_tape:  # There the loss is computed before the optimizer is asked.
        for weight, old in zip(model.get_weights(), before):
            np.testing.assert_array_equal(weight, old)


@pytest.mark.parametrize('train', [fit, take_eager_step, take_graph_step], ids=lambda way: way.__name__)
def test_layers_that_mix_the_batch_are_refused_where_the_batch_is_seen_whole(train):
    model = make_model(keras.Model, unfit.CentresOverTheBatch())
    with pytest.raises(model_check.ModelCheckError, match='depends on another one in the batch'):
        train(model, make_optimizer(), np.ones([4, 3], np.float32), np.ones([4, 2], np.float32))


@pytest.mark.parametrize('cls', [keras.Model, optimizer_lib.DpModel])
def test_control_layers_that_keep_examples_apart_are_trained(cls):
    model = make_model(
        cls, layers.LayerNormalization(), layers.Dropout(0.5), layers.BatchNormalization(trainable=False)
    )
    before = model.get_weights()
    fit(model, make_optimizer(), np.ones([4, 3], np.float32), np.ones([4, 2], np.float32))
    assert not np.array_equal(model.get_weights()[0], before[0])


def test_batch_normalization_would_let_one_unit_move_the_clipped_sum_beyond_the_bound(monkeypatch):
    # Control: what is refused is worth refusing.
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal([8, 3]).astype(np.float32), np.zeros([8, 2], np.float32)
    x[0] *= 100.0
    keras.utils.set_random_seed(0)
    model = make_model(keras.Model, layers.BatchNormalization())

    def clipped_sum(rows):
        optimizer = make_optimizer(0.0)
        monkeypatch.setattr(model_check, 'check_models_with', lambda *unused, **options: None)
        monkeypatch.setattr(model_check, 'check_keeps_no_state', lambda *unused: None)
        pairs = optimizer.compute_gradients(
            lambda: VECTOR_LOSS(y[rows], model(x[rows], training=True)), model.trainable_variables
        )
        return np.concatenate([np.ravel(gradient) for gradient, _ in pairs])

    assert np.linalg.norm(clipped_sum(slice(0, 8)) - clipped_sum(slice(1, 8))) > 1.5


@pytest.mark.parametrize('cls', [keras.Model, optimizer_lib.DpModel])
def test_loss_scaling_is_refused_and_bfloat16_named_as_the_cure(cls):
    with pytest.raises(ValueError, match="mixed_float16 .* use the policy 'mixed_bfloat16'"):
        keras.mixed_precision.LossScaleOptimizer(make_optimizer())
    keras.mixed_precision.set_global_policy('mixed_float16')
    try:
        half = make_model(cls)
        with pytest.raises(ValueError, match="mixed_float16 .* use the policy 'mixed_bfloat16'"):
            half.compile(make_optimizer(), VECTOR_LOSS)
        keras.mixed_precision.set_global_policy('mixed_bfloat16')
        model = make_model(cls)
    finally:
        keras.mixed_precision.set_global_policy('float32')
    # Control: the cure works.
    fit(model, make_optimizer(), np.ones([4, 3], np.float32), np.ones([4, 2], np.float32))


@pytest.mark.parametrize('cls', [keras.Model, optimizer_lib.DpModel])
def test_batch_that_is_no_whole_number_of_units_is_refused_in_words(cls):
    x, y = np.ones([10, 3], np.float32), np.ones([10, 2], np.float32)
    model = make_model(cls)
    model.compile(make_optimizer(num_microbatches=4, expected_batch_size=None), VECTOR_LOSS)
    model.fit(x[:8], y[:8], batch_size=4, verbose=0)  # Control: whole numbers of units will do.
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError),
        match=r'no multiple of num_microbatches=4: .*drop_remainder=True.*expected_batch_size',
    ):
        model.fit(x, y, batch_size=4, verbose=0)
    with pytest.raises(ValueError, match='10 rows in a batch is no multiple of num_microbatches=4'):
        model.optimizer.split_into_units(tf.ones([10, 3]))
    # Control: with each row as a unit any batch will do.
    model.compile(make_optimizer(expected_batch_size=4), VECTOR_LOSS)
    model.fit(x, y, batch_size=4, verbose=0)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'num_microbatches': 0}, 'num_microbatches must be finite and > 0'),
        ({'expected_batch_size': -3}, 'expected_batch_size must be finite and > 0'),
        ({'expected_batch_size': float('nan')}, 'expected_batch_size must be finite and > 0'),
        ({'expected_batch_size': 2**22}, 'noise_multiplier=1 is lost in float32'),
    ],
)
def test_impossible_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**options)


def test_dp_model_without_a_dp_optimizer_is_refused():
    model = make_model(optimizer_lib.DpModel, layers.LayerNormalization())
    model.compile('sgd', VECTOR_LOSS)
    with pytest.raises(ValueError, match='a DpModel trains by a VectorizedDP optimizer, got SGD'):
        model.fit(np.ones([4, 3]), np.ones([4, 2]), verbose=0)
