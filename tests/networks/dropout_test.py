"""Tests of dropout from seeds: the law of its masks, with controls, and what per-unit gradients ask of it."""

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import dropout
from tf_dpdiff.networks import layers
from tf_dpdiff.networks import unet

_SHAPE = (8, 8, 16)
_SEEDS = np.concatenate([np.arange(-100, 100), np.random.default_rng(0).integers(-(2**31), 2**31, 300)]).astype(
    np.int32
)


def masks(seeds=_SEEDS, rate=0.3, salt=0, shape=_SHAPE):
    """Returns what is kept, bool [seeds, *shape]."""
    layer = dropout.SeededDropout(rate, salt)
    return layer([tf.ones([len(seeds), *shape]), tf.constant(seeds, tf.int32)], training=True).numpy() > 0


def z_of_rate(kept, rate):
    """Returns by how many standard errors the share that is dropped is off."""
    return (np.mean(~kept) - rate) / np.sqrt(rate * (1.0 - rate) / kept.size)


# The law of the masks.


@pytest.mark.parametrize('rate', [0.01, 0.1, 0.3, 0.5, 0.9])
def test_share_that_is_dropped_is_the_rate(rate):
    assert abs(z_of_rate(masks(rate=rate), rate)) < 4.5
    # Control: another rate is noticed.
    assert z_of_rate(masks(rate=1.1 * rate), rate) > 4.5


def worst_share(kept, axes, rate):
    """Returns the smallest p-value, corrected for their number, of the shares dropped along some axes."""
    dropped = np.sum(~kept, axis=axes)
    trials = kept.size // dropped.size
    low, high = stats.binom.cdf(dropped, trials, rate), stats.binom.sf(dropped - 1, trials, rate)
    return 2.0 * dropped.size * np.minimum(low, high).min()


@pytest.mark.parametrize('axes', [(1, 2, 3), (0,), (0, 2, 3), (0, 1, 2)])
def test_rate_holds_for_every_seed_place_row_and_channel(axes):
    kept = masks()
    assert worst_share(kept, axes, 0.3) > 1e-4
    # Control: one row that keeps everything, for every fourth seed.
    kept[::4, 0] = True
    kept[:2] = True
    assert worst_share(kept, axes, 0.3) < 1e-4


def largest_correlation(kept, other=None):
    """Returns the largest correlation of neighbours, in standard errors; along seeds, rows, columns, channels and the
    diagonal of seeds and channels; or of two sets of masks."""
    x = kept - kept.mean()
    if other is not None:
        pairs = [(x, other - other.mean())]
    else:
        pairs = [
            (x[1:], x[:-1]),
            (x[:, 1:], x[:, :-1]),
            (x[:, :, 1:], x[:, :, :-1]),
            (x[..., 1:], x[..., :-1]),
            (x[1:, ..., :-1], x[:-1, ..., 1:]),
        ]
    return max(abs(np.mean(a * b)) / x.var() * np.sqrt(a.size) for a, b in pairs)


def test_neighbouring_seeds_and_places_are_uncorrelated():
    assert largest_correlation(masks().astype(float)) < 4.5


def test_control_a_mask_of_the_sum_of_seed_and_place_is_noticed():
    bits = np.random.default_rng(0).uniform(size=500 + np.prod(_SHAPE)) > 0.3
    windows = np.lib.stride_tricks.sliding_window_view(bits, np.prod(_SHAPE))[:500].reshape(-1, *_SHAPE)
    assert largest_correlation(windows.astype(float)) > 4.5


@pytest.mark.parametrize('salt', [1, 2, 7, 2**20])
def test_layers_of_other_salts_are_uncorrelated(salt):
    first, second = masks().astype(float), masks(salt=salt).astype(float)
    assert largest_correlation(first, second) < 4.5
    # Also where one layer has the seeds that the other has moved by the difference of the salts.
    assert largest_correlation(first, masks(_SEEDS + salt).astype(float)) < 4.5
    assert largest_correlation(first, masks(_SEEDS - salt, salt=salt).astype(float)) < 4.5


def test_no_two_masks_of_many_are_correlated():
    x = masks().reshape(len(_SEEDS), -1).astype(float)
    correlations = np.corrcoef(x)[np.triu_indices(len(x), 1)] * np.sqrt(x.shape[1])
    assert np.abs(correlations).max() < 6.0 and 0.95 < correlations.std() < 1.05


def test_mask_of_a_seed_is_its_own_and_always_the_same():
    alone = np.stack([masks([seed])[0] for seed in _SEEDS[:5]])
    np.testing.assert_array_equal(masks()[:5], alone)
    assert len(np.unique(masks().reshape(len(_SEEDS), -1), axis=0)) == len(_SEEDS)


def z_of_mean(outputs, inputs):
    """Returns by how many standard errors the mean over the seeds is off, over all places."""
    z = (outputs.mean(0) - inputs) / (outputs.std(0) / np.sqrt(len(outputs)))
    return np.mean(z) * np.sqrt(z.size)


def test_expectation_is_kept():
    inputs = np.random.default_rng(1).uniform(1.0, 2.0, _SHAPE).astype(np.float32)
    outputs = dropout.SeededDropout(0.3)(
        [tf.constant(np.broadcast_to(inputs, [len(_SEEDS), *_SHAPE])), tf.constant(_SEEDS)], training=True
    ).numpy()
    assert abs(z_of_mean(outputs, inputs)) < 4.5
    # Control: 1% more would be noticed.
    assert abs(z_of_mean(1.01 * outputs, inputs)) > 4.5


# The layer.


def test_dropout_is_off_unless_training():
    inputs = [tf.ones([3, 5]), tf.range(3)]
    layer = dropout.SeededDropout(0.5)
    for arguments in ({}, {'training': False}):
        np.testing.assert_array_equal(layer(inputs, **arguments), inputs[0])
    assert (layer(inputs, training=True).numpy() == 0).any()


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
def test_dropout_keeps_the_type_of_the_activations(dtype):
    outputs = dropout.SeededDropout(0.5, dtype=dtype.name)([tf.ones([3, 5], dtype), tf.range(3)], training=True)
    assert outputs.dtype == dtype and set(np.unique(tf.cast(outputs, tf.float32))) == {0.0, 2.0}


@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=rf'rate of a dropout must be in \[0, 1\), got {rate}'):
        dropout.SeededDropout(rate)


def test_dropout_comes_back_from_its_configuration():
    layer = dropout.SeededDropout(0.3, 5)
    again = dropout.SeededDropout.from_config(layer.get_config())
    assert (again.rate, again.salt) == (0.3, 5)


def test_dropout_in_a_residual_block_is_before_its_last_convolution():
    generator = np.random.default_rng(0)
    x, embedding = (tf.constant(generator.normal(size=s), tf.float32) for s in ([2, 4, 4, 6], [2, 5]))
    seeds = tf.constant([3, 4])
    block = layers.ResidualBlock(6, 2, dropout_rate=0.4, dropout_salt=9)
    block([x, embedding, seeds])
    block.conv_out.kernel.assign(generator.normal(size=[3, 3, 6, 6]))
    h = block.conv_in(tf.nn.silu(block.norm_in(x))) + block.dense(embedding)[:, None, None]
    h = tf.nn.silu(block.norm_out(h))
    expected = x + block.conv_out(h * masks(seeds, 0.4, 9, (4, 4, 6)) / 0.6)
    np.testing.assert_allclose(block([x, embedding, seeds], training=True), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(block([x, embedding, seeds]), x + block.conv_out(h), rtol=1e-5, atol=1e-5)


# The network.

_CONFIG = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2, dropout=0.3)


@pytest.fixture(name='model', scope='module')
def fixture_model():
    model, generator = denoiser.build(_CONFIG, (4, 4, 1), 10), np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0.0, 0.3, variable.shape))
    return model


def views_of(units, views=2, seed=0):
    """Returns x_t, t, labels and seeds of units."""
    generator = np.random.default_rng(seed)
    whole = [tf.constant(generator.integers(0, 10, [units, views]), tf.int32) for _ in range(2)]
    seeds = tf.constant(generator.integers(-(2**31), 2**31, [units, views]), tf.int32)
    return [tf.constant(generator.normal(size=[units, views, 4, 4, 1]), tf.float32), *whole, seeds]


def denoise(model, x_t, t, labels, seeds, training=True):
    return denoiser.denoise(model, x_t, t, labels, dropout_seeds=seeds, training=training)


def test_network_drops_by_the_seed_of_each_view_in_training_and_not_at_all_otherwise(model):
    inputs = [x[0] for x in views_of(1, 4)]
    inputs = [tf.repeat(x[:1], 3, axis=0) for x in inputs[:3]] + [tf.constant([1, 2, 1])]
    outputs = denoise(model, *inputs).numpy()
    np.testing.assert_allclose(outputs[0], outputs[2], atol=1e-6)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    still = denoise(model, *inputs, training=False).numpy()
    np.testing.assert_allclose(still, np.broadcast_to(still[:1], still.shape), atol=1e-6)
    np.testing.assert_array_equal(denoiser.denoise(model, *inputs[:3]), still)
    np.testing.assert_allclose(model.predict(inputs, verbose=0), still, atol=1e-6)


def test_training_with_dropout_and_without_seeds_is_refused(model):
    inputs = [x[0] for x in views_of(1)[:3]]
    with pytest.raises(ValueError, match='a network with dropout is trained with dropout_seeds, one a view'):
        denoiser.denoise(model, *inputs, training=True)


def test_every_block_has_another_salt(model):
    salts = [layer.dropout.salt for layer in model.layers if isinstance(layer, layers.ResidualBlock)]
    assert len(set(salts)) == len(salts) == 5


def test_dropout_adds_an_input_and_no_variable(model):
    plain = denoiser.build(
        unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2), (4, 4, 1), 10
    )
    assert model.input_names == plain.input_names + ['dropout_seeds']
    assert [v.name for v in model.variables] == [v.name for v in plain.variables]
    plain.set_weights(model.get_weights())
    inputs = [x[0] for x in views_of(1)[:3]]
    np.testing.assert_array_equal(denoiser.denoise(model, *inputs), denoiser.denoise(plain, *inputs))


def test_mapped_gradients_of_a_unit_are_its_own_whatever_the_other_units_are(model):
    variables = denoiser.select_variables(model, ['norm', 'embedding'])

    def gradients(unit):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = tf.reduce_mean(tf.square(denoise(model, *unit)))
        return tape.gradient(loss, variables)

    @tf.function
    def mapped(units):
        return tf.vectorized_map(gradients, units, fallback_to_while_loop=False)

    units, others = views_of(3), views_of(3, seed=1)
    mixed = [tf.concat([x[:1], y[1:]], axis=0) for x, y in zip(units, others)]
    reseeded = [*units[:3], others[3]]
    before, after, control = mapped(units), mapped(mixed), mapped(reseeded)
    for index, by_loop in enumerate(gradients([x[0] for x in units])):
        np.testing.assert_allclose(before[index][0], by_loop, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(before[index][0], after[index][0], rtol=1e-3, atol=1e-5)
    # Control: other seeds make other gradients.
    assert max(np.abs(x[0] - y[0]).max() for x, y in zip(before, control)) > 1e-2
