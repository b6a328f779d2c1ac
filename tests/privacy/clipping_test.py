"""Tests of per-unit clipping: a batch-of-one loop is the oracle, neighbouring batches bound the sensitivity."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.privacy import clipping

layers = keras.layers


@pytest.fixture(autouse=True, scope='module')
def fixture_graphs_are_shared():
    """Most tests look at the same few graphs with other numbers, and it is the tracing that takes time."""
    yield
    for cached in (make_model, compiled_clipped_sum, compiled_clip_and_sum):
        cached.cache_clear()


@functools.cache
def make_model(kind):
    """Returns a model whose weights no test changes."""
    keras.utils.set_random_seed(1)
    if kind == 'dense':
        return keras.Sequential([layers.Dense(5, activation='tanh', input_shape=(3,)), layers.Dense(1)])
    return keras.Sequential(
        [
            layers.Conv2D(4, 3, padding='same', activation='swish', input_shape=(4, 4, 1)),
            layers.GroupNormalization(2),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


def make_batch(model, num_units, views=2, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal([num_units, views, *model.input_shape[1:]]) * scale
    return tf.constant(x, tf.float32), tf.constant(generator.standard_normal([num_units, views, 1]), tf.float32)


def unit_loss(model):
    return lambda unit: tf.reduce_mean(tf.square(model(unit[0], training=True) - unit[1]))


@functools.cache
def compiled_clipped_sum(model, clipper, jit_compile, **options):
    return tf.function(
        lambda batch, is_padding: clipper.clipped_sum(
            unit_loss(model), model.trainable_variables, batch, is_padding, **options
        ),
        jit_compile=jit_compile,
    )


def clipped_sum(
    model,
    batch,
    is_padding=None,
    clip=0.1,
    units_per_chunk=3,
    per_layer=False,
    jit_compile=False,
    cls=clipping.PerUnitClipper,
    **options,
):
    if is_padding is None:
        is_padding = np.zeros([len(batch[0])], bool)
    compute = compiled_clipped_sum(model, cls(clip, per_layer), jit_compile, units_per_chunk=units_per_chunk, **options)
    result = compute(tuple(batch), tf.constant(is_padding))
    return np.concatenate([s.numpy().ravel() for s in result.sums]), result.diagnostics


def looped_sum(model, batch, clip, per_layer=False):
    """The oracle: one unit at a time, in NumPy after the gradient."""
    total = 0.0
    for x, y in zip(*batch):
        with tf.GradientTape() as tape:
            loss = unit_loss(model)((x, y))
        gradients = [g.numpy().astype(np.float64) for g in tape.gradient(loss, model.trainable_variables)]
        # Keras lists the variables layer by layer.
        sizes = [len(layer.trainable_variables) for layer in model.layers if layer.trainable_variables]
        ends = np.cumsum(sizes) if per_layer else [len(gradients)]
        parts = []
        for start, end in zip([0, *ends[:-1]], ends):
            part = np.concatenate([g.ravel() for g in gradients[start:end]])
            parts.append(part * min(1.0, clip / len(ends) ** 0.5 / np.linalg.norm(part)))
        total = total + np.concatenate(parts)
    return total


@pytest.mark.parametrize(
    'kind, clip',
    [
        *(('dense', clip) for clip in (1e-3, 0.5, 1e6, float('inf'))),
        *(('conv', clip) for clip in (0.5, float('inf'))),
        # What a clip norm does is seen on the small model; each trace of this one takes seconds.
        *(pytest.param('conv', clip, marks=pytest.mark.long) for clip in (1e-3, 1e6)),
    ],
)
@pytest.mark.parametrize('per_layer', [False, True])
def test_clipped_sum_equals_a_batch_of_one_loop(kind, clip, per_layer):
    model = make_model(kind)
    batch = make_batch(model, 7)
    np.testing.assert_allclose(
        clipped_sum(model, batch, clip=clip, per_layer=per_layer)[0],
        looped_sum(model, batch, clip, per_layer),
        rtol=2e-4,
        atol=1e-7,
    )


def test_flat_and_per_layer_clipping_differ():
    model = make_model('conv')
    batch = make_batch(model, 7)
    flat, by_layer = (clipped_sum(model, batch, clip=0.5, per_layer=p)[0] for p in (False, True))
    assert np.linalg.norm(flat - by_layer) > 0.1 * np.linalg.norm(flat)


def test_layers_are_told_by_the_names_of_their_variables():
    model = make_model('conv')
    names = clipping.layer_names(model.trainable_variables)
    assert len(names) == 6 and len(set(names)) == 3
    assert clipping.layer_names([tf.Variable(1.0, name='alone')]) == ['alone:0']


@pytest.mark.parametrize('units_per_chunk', [1, 2, 3, 7, 50])
def test_chunk_size_does_not_change_the_sum(units_per_chunk):
    model = make_model('conv')
    batch = make_batch(model, 7)
    expected, _ = clipped_sum(model, batch, units_per_chunk=7)
    np.testing.assert_allclose(
        clipped_sum(model, batch, units_per_chunk=units_per_chunk)[0], expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('views_per_chunk, clip', [(1, 0.1), (2, 1e3), (4, 1.5), (8, 1e3)])
def test_number_of_views_at_a_time_does_not_change_the_sum(views_per_chunk, clip):
    model = make_model('conv')
    batch = make_batch(model, 5, views=8)
    expected, expected_diagnostics = clipped_sum(model, batch, clip=clip)
    total, diagnostics = clipped_sum(model, batch, clip=clip, views_per_chunk=views_per_chunk)
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-6)
    for name, value in expected_diagnostics.items():
        np.testing.assert_allclose(diagnostics[name], value, rtol=1e-4)


def test_views_that_cannot_be_cut_evenly_are_refused():
    model = make_model('dense')
    with pytest.raises(ValueError, match='views_per_chunk=3 does not divide the 8 views'):
        clipped_sum(model, make_batch(model, 2, views=8), views_per_chunk=3)


@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e6])
@pytest.mark.parametrize('clip', [1e-3, 1.0, 30.0])
@pytest.mark.parametrize('per_layer', [False, True])
def test_norm_of_one_unit_never_exceeds_the_clip(clip, scale, per_layer):
    model = make_model('dense')
    total, _ = clipped_sum(model, make_batch(model, 1, scale=scale), clip=clip, per_layer=per_layer)
    assert np.linalg.norm(total.astype(np.float64)) <= clip


def neighbouring_sums(kind, change, adversarial=1.0, **options):
    """Returns the clipped sums of a batch and of its neighbour, in which the last unit is changed."""
    model = make_model(kind)
    x, y = make_batch(model, 6)
    x_other, y_other = (np.array(x), np.array(y))
    is_padding = np.zeros([6], bool)
    if change == 'remove':
        is_padding[-1] = True
    x_other[-1] = adversarial * np.random.default_rng(9).standard_normal(x_other[-1].shape)
    y_other[-1] = -1e3 * adversarial
    if change == 'zero':
        x_other[-1], y_other[-1] = 0.0, 0.0
        is_padding[-1] = True
    before, _ = clipped_sum(model, (x, y), clip=0.05, **options)
    after, _ = clipped_sum(model, (tf.constant(x_other), tf.constant(y_other)), is_padding, clip=0.05, **options)
    return np.linalg.norm((before - after).astype(np.float64)), 0.05


RELATION_OF_CHANGE = {'remove': 'add_or_remove_one', 'zero': 'replace_with_zero', 'replace': 'replace_one'}


@pytest.mark.parametrize('kind', ['dense', 'conv'])
@pytest.mark.parametrize('change', RELATION_OF_CHANGE)
@pytest.mark.parametrize('adversarial', [1.0, 1e5, float('nan'), float('inf')])
@pytest.mark.parametrize('per_layer', [False, True])
def test_neighbours_differ_by_at_most_the_sensitivity(kind, change, adversarial, per_layer):
    difference, clip = neighbouring_sums(kind, change, adversarial=adversarial, per_layer=per_layer)
    sensitivity = clipping.PerUnitClipper(clip, per_layer).sensitivity(RELATION_OF_CHANGE[change])
    assert difference <= sensitivity * (1.0 + 1e-5)  # The subtraction is in float32.
    assert difference > 0.3 * clip  # Or the bound would hold for a clipper that does nothing.


NORMALIZED = functools.partial(clipping.PerUnitClipper, normalized=True)


@pytest.mark.parametrize('kind', ['dense', 'conv'])
@pytest.mark.parametrize('units_per_chunk', [1, 3, 50])
def test_normalized_sum_equals_a_loop_however_it_is_cut(kind, units_per_chunk):
    model = make_model(kind)
    batch = make_batch(model, 7)
    total = 0.0
    for x, y in zip(*batch):
        with tf.GradientTape() as tape:
            loss = unit_loss(model)((x, y))
        gradient = np.concatenate([g.numpy().ravel() for g in tape.gradient(loss, model.trainable_variables)])
        total = total + 0.5 * gradient / (np.linalg.norm(gradient.astype(np.float64)) + 0.01)
    found, diagnostics = clipped_sum(model, batch, clip=0.5, cls=NORMALIZED, units_per_chunk=units_per_chunk)
    np.testing.assert_allclose(found, total, rtol=2e-4, atol=1e-6)
    assert float(diagnostics['num_nonfinite']) == 0.0


@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e6])
@pytest.mark.parametrize('clip', [1e-10, 1e-3, 1.0, 1e10])
def test_normalized_gradient_is_never_longer_than_the_clip_and_a_long_one_is_nearly_as_long(clip, scale):
    generator = np.random.default_rng(0)
    gradient = (scale * generator.standard_normal([1, 30, 7])).astype(np.float32)
    clipped = NORMALIZED(clip).clip_and_sum([gradient], tf.constant([False]))
    norm = np.linalg.norm(clipped.sums[0].numpy().astype(np.float64))
    length = np.linalg.norm(gradient.astype(np.float64))
    assert norm <= clip and norm == pytest.approx(clip * length / (length + 0.01), rel=1e-4)


@pytest.mark.parametrize('kind', ['dense', 'conv'])
@pytest.mark.parametrize('change', RELATION_OF_CHANGE)
@pytest.mark.parametrize('adversarial', [1e-3, 1.0, 1e5, float('nan'), float('inf')])
def test_normalized_neighbours_differ_by_at_most_the_sensitivity(kind, change, adversarial):
    difference, clip = neighbouring_sums(kind, change, adversarial=adversarial, cls=NORMALIZED)
    assert difference <= NORMALIZED(clip).sensitivity(RELATION_OF_CHANGE[change]) * (1.0 + 1e-5)
    assert difference > 0.3 * clip


def test_normalized_gradients_of_zero_and_those_that_are_not_finite_contribute_zero_and_change_no_other():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [1e-30, 0.0], [3e38, 3e38]], np.float32)
    clipped = NORMALIZED(2.0).clip_and_sum([rows], tf.constant([False] * 6))
    np.testing.assert_allclose(clipped.sums[0], 2.0 * np.array([3.0, 4.0]) / 5.01, rtol=1e-5)
    np.testing.assert_array_equal(clipped.is_kept, [True, True, False, False, True, False])
    padded = NORMALIZED(2.0).clip_and_sum([rows], tf.constant([True] * 6))
    np.testing.assert_array_equal(padded.sums[0], 0.0)


def test_control_without_the_constant_a_gradient_of_zero_poisons_the_sum(monkeypatch):
    monkeypatch.setattr(clipping, 'STABILITY', 0.0)
    clipped = NORMALIZED(2.0).clip_and_sum([np.zeros([2, 2], np.float32)], tf.constant([False] * 2))
    assert not np.all(np.isfinite(clipped.sums[0]))


@pytest.mark.parametrize(
    'options, message',
    [
        ({'per_layer': True}, 'layer by layer or normalized, not both'),
        ({'l2_norm_clip': float('inf')}, 'need a finite l2_norm_clip'),
    ],
)
def test_what_cannot_be_normalized_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NORMALIZED(**{'l2_norm_clip': 1.0, **options})


class SkipsLargeUnits(clipping.PerUnitClipper):
    def clip_and_sum(self, gradients, *arguments):
        clipped = super().clip_and_sum(gradients, *arguments)
        unclipped = tf.cast(clipped.norms > 3.0, tf.float32)
        return clipped._replace(sums=[s + tf.tensordot(unclipped, g, axes=1) for s, g in zip(clipped.sums, gradients)])


def test_control_a_clipper_that_skips_a_unit_breaks_the_bound():
    difference, clip = neighbouring_sums('dense', 'replace', adversarial=1e2, cls=SkipsLargeUnits)
    assert difference > 2.0 * clip * (1.0 + 1e-5)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), 1e30])
def test_unit_that_is_not_finite_contributes_zero_and_changes_no_other(bad):
    model = make_model('conv')
    x, y = make_batch(model, 5)
    poisoned = np.array(x)
    poisoned[2] = bad
    total, diagnostics = clipped_sum(
        model, (tf.constant(poisoned), y * tf.constant([1.0, 1, bad, 1, 1])[:, None, None])
    )
    without, _ = clipped_sum(model, (x, y), np.array([False, False, True, False, False]))
    np.testing.assert_allclose(total, without, rtol=1e-5, atol=1e-7)
    assert float(diagnostics['num_nonfinite']) == 1.0
    assert all(np.isfinite(float(v)) for v in diagnostics.values())


@pytest.mark.parametrize('pixels', [0.0, 1e4, float('nan')])
def test_padding_contributes_exactly_zero_whatever_its_pixels_are(pixels):
    model = make_model('conv')
    x, y = make_batch(model, 4)
    padded = (
        tf.concat([x, tf.fill([3, *x.shape[1:]], pixels)], 0),
        tf.concat([y, tf.fill([3, *y.shape[1:]], pixels)], 0),
    )
    total, diagnostics = clipped_sum(model, padded, np.array([False] * 4 + [True] * 3), units_per_chunk=7)
    expected, _ = clipped_sum(model, (x, y), units_per_chunk=7)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-8)
    only_padding, _ = clipped_sum(model, padded, np.array([True] * 7))
    np.testing.assert_array_equal(only_padding, 0.0)
    assert float(diagnostics['num_units']) == 4.0 and float(diagnostics['num_nonfinite']) == 0.0


@pytest.mark.parametrize('per_layer', [False, True])
def test_row_of_padding_is_no_unit(per_layer):
    generator, is_padding = np.random.default_rng(0), np.array([False, True, False, True, True])
    gradients = [generator.standard_normal([5, *shape]).astype(np.float32) for shape in ([3, 2], [2])]
    clipper, layers = clipping.PerUnitClipper(0.1, per_layer), ['a', 'b']
    clipped = clipper.clip_and_sum(gradients, tf.constant(is_padding), layers)
    units = clipper.clip_and_sum([g[~is_padding] for g in gradients], tf.constant([False, False]), layers)
    for found, expected in zip(clipped.sums, units.sums):
        np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_array_equal(clipped.is_kept, ~is_padding)
    np.testing.assert_array_equal(clipped.is_clipped, ~is_padding)
    # Control: taken for units, the rows of padding would be seen.
    counted = clipper.clip_and_sum(gradients, tf.constant([False] * 5), layers)
    assert max(np.abs(found - expected).max() for found, expected in zip(counted.sums, units.sums)) > 1e-3


def test_diagnostics_of_a_batch_are_those_of_its_units_however_it_is_padded():
    model = make_model('dense')
    batch, is_padding = make_batch(model, 9), np.arange(9) % 3 == 1
    _, found = clipped_sum(model, batch, is_padding)
    _, expected = clipped_sum(model, [tf.boolean_mask(x, ~is_padding) for x in batch])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    assert float(expected['num_units']) == float(expected['num_clipped']) == 6.0


def test_empty_batch_gives_zero():
    model = make_model('dense')
    total, diagnostics = clipped_sum(model, make_batch(model, 0))
    np.testing.assert_array_equal(total, 0.0)
    assert float(diagnostics['num_units']) == 0.0


PADDING_OF_EIGHT = {
    'none': ([], 4),
    'behind': ([3, 4, 5, 6, 7], 2),
    'in front': ([0, 1, 2, 3, 4], 4),
    'in the middle': ([1, 2, 3, 4, 5, 7], 4),
    'everywhere': (range(8), 0),
}


@pytest.fixture(name='computed', scope='module')
def fixture_computed():
    """Counts the chunks that are computed."""
    return tf.Variable(0)


@pytest.fixture(name='count', scope='module')
def fixture_count(computed):

    def count(chunk):
        computed.assign_add(1)
        return chunk

    return count


@pytest.mark.parametrize('where', PADDING_OF_EIGHT)
def test_chunks_behind_the_last_unit_are_not_computed(where, computed, count):
    padded, expected = PADDING_OF_EIGHT[where]
    model = make_model('dense')
    batch, is_padding = make_batch(model, 8), np.isin(np.arange(8), padded)
    before = int(computed)
    total, diagnostics = clipped_sum(model, batch, is_padding, units_per_chunk=2, prepare_fn=count)
    assert int(computed) - before == expected
    units = [tf.boolean_mask(x, ~is_padding) for x in batch]
    np.testing.assert_allclose(total, np.zeros_like(total) + looped_sum(model, units, 0.1), rtol=2e-4, atol=1e-7)
    assert float(diagnostics['num_units']) == 8 - len(padded)


@pytest.mark.parametrize(
    'kind, num_units, options',
    [('dense', 0, {}), ('dense', 7, {'per_layer': True}), ('conv', 8, {'views_per_chunk': 1})],
)
def test_xla_gives_the_same_sum(kind, num_units, options):
    model = make_model(kind)
    batch, is_padding = make_batch(model, num_units), np.arange(num_units) >= 4
    expected, expected_diagnostics = clipped_sum(model, batch, is_padding, **options)
    total, diagnostics = clipped_sum(model, batch, is_padding, jit_compile=True, **options)
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-6)
    for name, value in expected_diagnostics.items():
        np.testing.assert_allclose(diagnostics[name], value, rtol=1e-4)
    assert np.any(expected) == (num_units > 0)


def test_views_of_a_unit_are_averaged_before_clipping_so_their_number_changes_no_bound():
    model = make_model('dense')
    for views in (1, 4, 16):
        total, _ = clipped_sum(model, make_batch(model, 1, views=views, scale=10.0), clip=0.05)
        assert np.linalg.norm(total.astype(np.float64)) <= 0.05


def test_variable_that_the_loss_does_not_use_gets_zero():
    model = make_model('dense')
    unused = tf.Variable(tf.ones([3]))
    clipper = clipping.PerUnitClipper(1.0)
    result = clipper.clipped_sum(
        unit_loss(model),
        model.trainable_variables + [unused],
        make_batch(model, 2),
        tf.constant([False, False]),
        units_per_chunk=2,
    )
    np.testing.assert_array_equal(result.sums[-1], 0.0)


def test_diagnostics_count_what_happened():
    model = make_model('dense')
    _, diagnostics = clipped_sum(model, make_batch(model, 5), clip=1e-6)
    assert float(diagnostics['num_clipped']) == 5.0
    _, diagnostics = clipped_sum(model, make_batch(model, 5), clip=1e6)
    assert float(diagnostics['num_clipped']) == 0.0
    assert float(diagnostics['norm_sum']) > 0.0 and float(diagnostics['loss_sum']) > 0.0


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_sums_of_low_precision_gradients_are_float32(dtype):
    gradients = [tf.constant([[3.0, 4.0], [0.3, 0.4]], dtype)]
    clipped = clipping.PerUnitClipper(1.0).clip_and_sum(gradients, tf.constant([False, False]))
    assert clipped.sums[0].dtype == tf.float32 and clipped.norms.dtype == tf.float32
    np.testing.assert_allclose(clipped.sums[0], [0.9, 1.2], rtol=5e-3)


@pytest.mark.parametrize('clip', [0.0, -1.0, float('nan'), 1e-39, 1e-20, 1e20])
def test_clip_that_float32_does_not_carry_is_refused(clip):
    with pytest.raises(ValueError, match=r'l2_norm_clip must be in \[1e-10, 1e\+10\]'):
        clipping.PerUnitClipper(clip)


@functools.cache
def compiled_clip_and_sum(clip, jit_compile):
    return tf.function(
        lambda g: clipping.PerUnitClipper(clip).clip_and_sum([g[None]], tf.constant([False])), jit_compile=jit_compile
    )


def share_of_a_unit(gradient, clip, jit_compile=False):
    """Returns the norm of what a unit of one gradient adds to the sum, in float64."""
    clip_and_sum = compiled_clip_and_sum(clip, jit_compile)
    return np.linalg.norm(clip_and_sum(tf.constant(gradient, tf.float32)).sums[0].numpy().astype(np.float64))


@pytest.mark.parametrize('jit_compile', [False, True])
@pytest.mark.parametrize('shape', [[1], [4096], [3, 3, 64, 128], [4097], [1_000_000], [1000, 1000], [2, 300_000]])
@pytest.mark.parametrize('kind', ['equal', 'random', 'one large'])
def test_no_rounding_lets_a_unit_pass_the_bound(shape, kind, jit_compile):
    generator = np.random.default_rng(0)
    if kind == 'equal':
        gradient = np.full(shape, 0.1)
    elif kind == 'random':
        gradient = generator.standard_normal(shape)
    else:  # Each small square is lost where it is added to the large one.
        gradient = np.full(shape, 2.0**-12.6)
        gradient[..., : min(16, shape[-1])] = 1.0
    for clip in (1e-10, 1e-3, 1.0):
        share = share_of_a_unit(50.0 * clip * gradient / np.linalg.norm(gradient), clip, jit_compile)
        assert (1.0 - 1e-3) * clip <= share <= clip


@pytest.mark.parametrize('length', [64, 1024, 4096])
def test_margin_covers_the_worst_order_of_adding_up(length):
    gradient = np.full([length], 2.0**-12.6, np.float32)
    gradient[0] = 1.0
    norm_found = np.sqrt(np.float64(np.cumsum(gradient**2, dtype=np.float32)[-1]))
    norm = np.linalg.norm(gradient.astype(np.float64))
    assert norm_found < norm and norm / norm_found * (1.0 - clipping.rounding_margin([length])) <= 1.0
    # Control: a margin that does not grow with the number of terms is passed.
    assert length < 1024 or norm / norm_found * (1.0 - 1e-6) > 1.0


def test_control_a_norm_whose_squares_underflow_would_let_a_unit_pass_the_bound(monkeypatch):
    gradient = np.full([10_000], 1e-23)
    monkeypatch.setattr(clipping, 'check_norm', lambda unused_norm: None)
    assert share_of_a_unit(3.2e-18 * gradient / np.linalg.norm(gradient), 1e-22) > 1e-21
    # At the smallest norm that is allowed the same gradient, scaled, is clipped.
    assert share_of_a_unit(3.2 * 1e-10 * gradient / np.linalg.norm(gradient), 1e-10) <= 1e-10


@pytest.mark.parametrize('shape', [[7], [4096], [4097], [1_000_000], [3, 3, 64, 128], [2, 300_000]])
def test_squares_are_added_up_in_float32_along_short_axes_alone(shape):
    spec = tf.TensorSpec([None, *shape])
    graph = tf.function(clipping._sum_of_squares).get_concrete_function(spec).graph
    sums = [operation for operation in graph.get_operations() if operation.type == 'Sum']
    in_float32 = [operation.inputs[0].shape[-1] for operation in sums if operation.inputs[0].dtype == tf.float32]
    assert sums and in_float32 == ([shape[-1]] if shape[-1] <= 4096 else [])
    assert all(terms + 8 <= clipping.rounding_margin(shape) * 2.0**24 for terms in in_float32)
