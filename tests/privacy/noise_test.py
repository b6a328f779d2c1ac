"""Tests of the Gaussian draw."""

import hashlib
import itertools

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import seeds

each_generator = pytest.mark.parametrize('generator', noise.GENERATORS)


def draw(stddev=1.0, seed=5, step=0, shapes=((4000,), (20, 50)), generator='philox'):
    sums = [tf.zeros(shape) for shape in shapes]
    noisy = noise.GaussianNoise(stddev, generator).add(sums, seed=secret(seed), step=tf.constant(step, tf.int64))
    return [value.numpy() for value in noisy]


def secret(number):
    return seeds.PrivateSeed(bytes([number] * 32))


@pytest.mark.parametrize('stddev', [1e-3, 1.0, 40.0])
@each_generator
def test_noise_is_gaussian_with_the_given_stddev(stddev, generator):
    values = np.concatenate([v.ravel() for v in draw(stddev, generator=generator)])
    assert stats.kstest(values / stddev, 'norm').pvalue > 1e-3


@pytest.mark.parametrize('factor', [2 / 3, 3 / 2])
@each_generator
def test_control_noise_of_another_scale_is_noticed(factor, generator):
    values = np.concatenate([v.ravel() for v in draw(factor, generator=generator)])
    assert stats.kstest(values, 'norm').pvalue < 1e-6


def test_noise_is_added_to_the_sum():
    value = tf.constant([1.0, -2.0, 3.0])
    step = tf.constant(2, tf.int64)
    adder = noise.GaussianNoise(0.5)
    difference = (
        adder.add([value], seed=secret(1), step=step)[0] - adder.add([0.0 * value], seed=secret(1), step=step)[0]
    )
    np.testing.assert_allclose(difference, value, rtol=1e-6)


@each_generator
def test_no_number_is_drawn_twice_over_steps_and_variables(generator):
    shapes = ((300,), (300,), (300,))
    draws = [v.ravel() for step in range(20) for v in draw(step=step, shapes=shapes, generator=generator)]
    for first, second in itertools.combinations(draws, 2):
        # Shifted copies would share numbers too: philox counters must not overlap.
        assert np.intersect1d(first, second).size < 5
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


@each_generator
def test_seeds_of_many_steps_do_not_collide(generator):
    firsts = {
        float(draw(step=step, shapes=((1,),), generator=generator)[0][0])
        for step in range(0, 3_000_000_000, 10_000_000)
    }
    assert len(firsts) == 300


@each_generator
def test_same_seed_and_step_repeat_the_draw_in_eager_and_graph(generator):
    adder = noise.GaussianNoise(1.0, generator)
    graph_draw = tf.function(lambda step: adder.add([tf.zeros([50])], seed=secret(5), step=step)[0])
    eager = draw(step=9, shapes=((50,),), generator=generator)[0]
    np.testing.assert_array_equal(eager, draw(step=9, shapes=((50,),), generator=generator)[0])
    np.testing.assert_array_equal(eager, graph_draw(tf.constant(9, tf.int64)))


def compiled_and_eager(function, step):
    """Returns function(step) within XLA and without; the step is given at run time, so that nothing is folded."""
    step = tf.constant(step, tf.int64)
    return tf.function(function, jit_compile=True)(step).numpy(), function(step).numpy()


@pytest.mark.parametrize('shape', [[], [0], [1], [7], [3, 0], [5, 3, 7], [300_001]])
def test_xla_draws_the_same_noise_but_for_rounding(shape):
    adder = noise.GaussianNoise(2.0)
    compiled, eager = compiled_and_eager(lambda step: adder.add([tf.zeros(shape)], seed=secret(5), step=step)[0], 2**40)
    assert eager.shape == compiled.shape == tuple(shape)
    np.testing.assert_allclose(compiled / 2.0, eager / 2.0, rtol=1e-6, atol=1e-6)
    assert np.all(eager != 0.0)


def test_control_xla_draws_other_floats_from_the_same_seed():
    compiled, eager = compiled_and_eager(
        lambda step: tf.random.stateless_normal([1000], tf.stack([tf.constant(5, tf.int64), step]), alg='philox'), 2
    )
    assert not np.allclose(compiled, eager, rtol=1e-6, atol=1e-6)


def test_shape_that_is_known_at_run_time_alone_gives_the_same_noise():
    adder = noise.GaussianNoise(1.0)
    add = tf.function(
        lambda value: adder.add([value], seed=secret(5), step=3)[0], input_signature=[tf.TensorSpec([None, 3])]
    )
    np.testing.assert_array_equal(add(tf.zeros([7, 3])), draw(step=3, shapes=((7, 3),))[0])


@each_generator
def test_graph_holds_the_draw_once_and_calls_it_without_constants(generator):
    # Called with one constant, it would be optimized anew for each variable, which takes longer than a step.
    adder = noise.GaussianNoise(1.0, generator)
    add = tf.function(
        lambda step: adder.add([tf.zeros([size]) for size in (3, 4, 5)], seed=secret(5), step=step),
        input_signature=[tf.TensorSpec([], tf.int64)],
    )
    operations = add.get_concrete_function().graph.get_operations()
    calls = [operation for operation in operations if operation.type.endswith('PartitionedCall')]
    assert len(calls) == 3 and len({call.get_attr('f').name for call in calls}) == 1
    assert not [call for call in calls if any(tensor.op.type == 'Const' for tensor in call.inputs)]


def test_cryptographic_noise_within_xla_is_refused():
    adder = noise.GaussianNoise(1.0, 'shake256')
    with pytest.raises(tf.errors.InvalidArgumentError, match='PyFunc'):
        compiled_and_eager(lambda step: adder.add([tf.zeros([3])], seed=secret(5), step=step)[0], 0)


def uniform_words(num_pairs, seed=0):
    words = np.random.default_rng(seed).integers(0, 2**32, [3, num_pairs]).astype(np.uint32)
    # Extremes and powers of two, where rounding and shifts go wrong.
    special = np.array([0, 1, 0xFF, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 256, 2**32 - 1], np.uint32)
    return np.concatenate([words, np.array(list(itertools.product(special, repeat=3)), np.uint32).T], axis=1)


def test_normal_numbers_are_the_box_muller_transform_of_the_bits():
    high, low, of_angle = words = uniform_words(20000)
    uniforms = (high * 2.0**-32 + (low + 0.5) * 2.0**-64).astype(np.float32).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log(np.minimum(uniforms, 1.0 - 2.0**-24)))
    angle = ((of_angle >> 8) - 2.0**23 + 0.5) * np.pi * 2.0**-23
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    np.testing.assert_allclose(noise.normal_from_bits(tf.constant(words)), expected, rtol=1e-6, atol=2e-6)


def test_tail_goes_to_nine_and_a_half_and_no_bits_give_zero_or_infinity():
    numbers = noise.normal_from_bits(tf.constant(uniform_words(10))).numpy()
    assert np.all(np.isfinite(numbers)) and np.all(numbers != 0.0)
    largest = np.sqrt(2.0 * 65.0 * np.log(2.0))
    np.testing.assert_allclose(np.abs(numbers).max(), largest, rtol=1e-6)


def looks_standard_normal(values):
    """Whether moments, tails and the two numbers of each pair are as they should be, to five standard deviations."""
    size = len(values)
    first, second = values[: size // 2], values[size // 2 : 2 * (size // 2)]
    moments = [
        (values.mean(), 1.0),
        ((values**2).mean() - 1.0, 2.0),
        ((values**3).mean(), 15.0),
        ((values**4).mean() - 3.0, 96.0),
        ((first * second).mean(), 2.0),
        (((first**2 - 1.0) * (second**2 - 1.0)).mean(), 8.0),
    ]
    tails = [
        (np.mean(np.abs(values) > bound) - 2.0 * stats.norm.sf(bound), 2.0 * stats.norm.sf(bound))
        for bound in (2.0, 3.0, 4.0)
    ]
    return all(abs(error) < 5.0 * np.sqrt(variance / size) for error, variance in moments + tails)


def test_moments_and_tails_are_those_of_normal_numbers():
    values = draw(shapes=((400_000,),))[0].astype(np.float64)
    assert looks_standard_normal(values) and stats.kstest(values, 'norm').pvalue > 1e-3
    # Controls: a heavier tail, a wrong scale, and pairs that share their radius.
    assert not looks_standard_normal(np.where(np.abs(values) > 3.0, 1.1 * values, values))
    assert not looks_standard_normal(1.02 * values)
    paired = values.copy()
    paired[200_000:] = np.sign(paired[200_000:]) * np.abs(paired[:200_000])
    assert not looks_standard_normal(paired)


@each_generator
def test_zero_stddev_adds_nothing(generator):
    assert not any(v.any() for v in draw(0.0, generator=generator))


def test_generators_and_secrets_give_different_draws():
    draws = [
        draw(seed=seed, shapes=((3000,),), generator=generator)[0] for seed in (1, 2) for generator in noise.GENERATORS
    ]
    assert np.abs(np.corrcoef(draws)[np.triu_indices(4, 1)]).max() < 0.1


def test_cryptographic_numbers_come_from_shake256_of_key_and_counter():
    key = bytes(range(32))
    stream = hashlib.shake_256(key + (7).to_bytes(8, 'little')).digest(48)
    uniforms = [(int.from_bytes(stream[i : i + 8], 'little') // 2**11 + 0.5) / 2**53 for i in range(0, 48, 8)]
    expected = [np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v) for u, v in zip(uniforms[:3], uniforms[3:])]
    np.testing.assert_allclose(noise.cryptographic_normal(key, 7, [5])[:3], expected, rtol=1e-12)
    assert noise.cryptographic_normal(key, 7, [3, 0]).shape == (3, 0)


@each_generator
def test_noise_of_a_single_release_is_standard_normal_and_repeats_by_its_purpose(generator):
    drawn = noise.standard_normal(secret(3), 'one', [50, 40], generator)
    assert stats.kstest(drawn.ravel(), 'norm').pvalue > 1e-3
    np.testing.assert_array_equal(drawn, noise.standard_normal(secret(3), 'one', [50, 40], generator))
    other = noise.standard_normal(secret(3), 'other', [50, 40], generator)
    assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.1


def test_unknown_generator_is_refused():
    with pytest.raises(ValueError, match="noise generator must be one of .* got 'mersenne'"):
        noise.GaussianNoise(1.0, 'mersenne')
    with pytest.raises(ValueError, match='noise generator must be one of'):
        noise.standard_normal(secret(3), 'one', [5], 'mersenne')


@pytest.mark.parametrize('stddev', [-1.0, float('inf'), float('nan')])
def test_impossible_stddev_is_refused(stddev):
    with pytest.raises(ValueError, match='stddev must be finite'):
        noise.GaussianNoise(stddev)


@pytest.mark.parametrize('stddev', [1e-39, 1e-21, 1e21])
def test_stddev_that_float32_does_not_carry_is_refused(stddev):
    with pytest.raises(ValueError, match='stddev must be 0 or in .* which float32 carries'):
        noise.GaussianNoise(stddev)


@pytest.mark.parametrize(
    'noise_multiplier, batch, is_lost',
    [
        (0.0, 2**40, False),
        (1.0, 16384, False),
        (0.763, 16384, False),
        (17.384, 16384, False),
        (0.1, 100_000, False),
        (1e-3, 16384, True),
        (1e-9, 1, True),
        (0.1, 2**20, True),
    ],
)
def test_noise_that_drowns_in_the_rounding_of_the_sum_is_refused(noise_multiplier, batch, is_lost):
    largest = np.float32(batch)  # The largest coordinate of a sum, with a clipping norm of 1.
    steps = noise_multiplier / float(np.spacing(largest))
    if is_lost:
        assert steps < 4.0
        with pytest.raises(ValueError, match=f'noise_multiplier={noise_multiplier:g} is lost in float32 .* at least'):
            noise.check_is_not_lost(noise_multiplier, batch)
    else:
        assert steps == 0.0 or steps >= 4.0
        noise.check_is_not_lost(noise_multiplier, batch)


def delta_of_cut_noise(epsilon, shift, radius=np.inf):
    """Integrates, over the plane, by how much a pair of numbers within a radius and its shifted copy differ."""
    x, y = np.meshgrid(np.arange(-7.0, 8.0, 0.02), np.arange(-7.0, 7.0, 0.02))

    def density(x):
        inside = x**2 + y**2 <= radius**2
        return np.exp(-(x**2 + y**2) / 2.0) / (2.0 * np.pi) * inside / (1.0 - np.exp(-(radius**2) / 2.0))

    return np.sum(np.maximum(density(x) - np.exp(epsilon) * density(x - shift), 0.0)) * 0.02**2


@pytest.mark.parametrize('log2_of_tail', [-6, -12])
@pytest.mark.parametrize('shift', [0.25, 1.0])
@pytest.mark.parametrize('epsilon', [0.5, 3.0, 8.0])
def test_cut_tail_adds_no_more_to_delta_than_its_bound(monkeypatch, log2_of_tail, shift, epsilon):
    monkeypatch.setitem(noise._LOG2_OF_TAIL, 'philox', log2_of_tail)
    share_within = 1.0 - 2.0**log2_of_tail
    cut = delta_of_cut_noise(epsilon, shift, np.sqrt(-2.0 * log2_of_tail * np.log(2.0)))
    added = noise.tail_delta(1.0 / shift, num_draws=1, num_numbers=2)
    assert cut <= delta_of_cut_noise(epsilon, shift) / share_within + added + 1e-7
    # Control: the tail is felt, and without its bound delta would be too small, where epsilon leaves little of it.
    assert epsilon < 8.0 or cut > delta_of_cut_noise(epsilon, shift) / share_within


def test_bound_on_the_tail_is_far_below_any_delta_at_the_recipes_settings_and_grows_with_what_it_depends_on():
    for generator, largest in (('philox', 1e-11), ('shake256', 1e-8)):
        for noise_multiplier, num_steps in ((2.282, 4000), (2.451, 200), (0.763, 200), (16.222, 4000)):
            assert (
                0.0
                < noise.tail_delta(noise_multiplier, num_draws=num_steps, num_numbers=80e6, generator=generator)
                < largest
            )
    assert noise.tail_delta(0.05, num_draws=1, num_numbers=2) == 1.0
    base = dict(noise_multiplier=1.0, num_draws=10, num_numbers=1e6)
    for change in ({'noise_multiplier': 0.5}, {'num_draws': 20}, {'num_numbers': 1e8}, {'generator': 'shake256'}):
        assert noise.tail_delta(**{**base, **change}) > noise.tail_delta(**base)
