"""Tests of the timesteps that training visits."""

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff.diffusion import timesteps

_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))

_MIXTURES = (
    timesteps.TimestepMixture(((1.0, 0, 50),)),
    timesteps.TimestepMixture(((0.1, 0, 5), (0.7, 5, 30), (0.2, 30, 50))),
    # Components that overlap, leave a gap, and are not in order.
    timesteps.TimestepMixture(((0.25, 20, 40), (0.5, 30, 50), (0.25, 0, 10))),
    timesteps.TimestepMixture(((0.5, 7, 8), (0.5, 49, 50))),
)


def draw(mixture, shape, seed=0):
    generator = np.random.default_rng(seed)
    uniforms = [tf.constant(generator.random(shape, np.float32)) for _ in range(2)]
    return mixture.from_uniforms(*uniforms)


def fits(t, probabilities):
    """Tests with chi-square that timesteps have these probabilities."""
    counts = np.bincount(t, minlength=len(probabilities))
    if counts[probabilities == 0].any():
        return False
    expected = probabilities[probabilities > 0] * counts.sum()
    return stats.chisquare(counts[probabilities > 0], expected).pvalue > 1e-4


@pytest.mark.parametrize('mixture', _MIXTURES)
def test_probabilities_are_the_mixture_of_uniform_distributions(mixture):
    probabilities = mixture.probabilities(60)
    assert probabilities.shape == (60,)
    np.testing.assert_allclose(probabilities.sum(), 1.0, rtol=1e-12)
    by_hand = [sum(w / (high - low) for w, low, high in mixture.components if low <= t < high) for t in range(60)]
    np.testing.assert_allclose(probabilities, by_hand, rtol=1e-12)


@pytest.mark.parametrize('mixture', _MIXTURES)
def test_drawn_timesteps_have_the_stated_probabilities(mixture):
    assert fits(draw(mixture, [100_000]).numpy(), mixture.probabilities(60))


@pytest.mark.parametrize(
    'control',
    [
        ((0.11, 0, 5), (0.69, 5, 30), (0.2, 30, 50)),  # Other weights.
        ((0.1, 0, 5), (0.7, 5, 31), (0.2, 31, 50)),  # Another edge.
        ((0.7, 0, 5), (0.1, 5, 30), (0.2, 30, 50)),  # The weights in another order.
        ((1.0, 0, 50),),
    ])
def test_control_another_mixture_is_noticed(control):
    drawn = draw(timesteps.TimestepMixture(control), [100_000]).numpy()
    assert not fits(drawn, _MIXTURES[1].probabilities(60))


@pytest.mark.parametrize('mixture', _MIXTURES)
@pytest.mark.parametrize('component_uniform', [0.0, _BELOW_ONE])
@pytest.mark.parametrize('position_uniform', [0.0, _BELOW_ONE])
def test_extreme_uniforms_give_the_ends_of_a_component(mixture, component_uniform, position_uniform):
    _, low, high = mixture.components[-1 if component_uniform else 0]
    t = mixture.from_uniforms(tf.constant([component_uniform]), tf.constant([position_uniform]))
    assert t.dtype == tf.int32
    assert t.numpy().tolist() == [high - 1 if position_uniform else low]


@pytest.mark.parametrize('low, high', [(0, 1000), (600, 1000), (999, 1000), (900_000, 1_000_000)])
def test_rounding_never_leaves_a_component(low, high):
    # In float32, low + u * (high - low) rounds to high for the largest u.
    positions = np.float32(1) - np.arange(1, 100, dtype=np.float32) * np.float32(2**-24)
    t = timesteps.TimestepMixture(((1.0, low, high),)).from_uniforms(tf.zeros([99]), tf.constant(positions)).numpy()
    assert t.min() >= low and t.max() == high - 1


def test_component_begins_where_the_weights_before_it_end():
    mixture = timesteps.TimestepMixture(((0.25, 0, 1), (0.5, 1, 2), (0.25, 2, 3)))
    uniforms = np.array([0.25, 0.75], np.float32)
    uniforms = np.stack([np.nextafter(uniforms, np.float32(0)), uniforms])
    assert mixture.from_uniforms(tf.constant(uniforms), tf.zeros([2, 2])).numpy().tolist() == [[0, 1], [1, 2]]


def test_each_timestep_depends_on_its_own_uniforms_alone():
    mixture = _MIXTURES[2]
    whole = draw(mixture, [4, 3, 5]).numpy()
    generator = np.random.default_rng(0)
    components, positions = (generator.random([4, 3, 5], np.float32) for _ in range(2))
    one_by_one = [
        int(mixture.from_uniforms(tf.constant(c), tf.constant(p))) for c, p in zip(components.flat, positions.flat)
    ]
    assert whole.reshape(-1).tolist() == one_by_one
    assert len(set(one_by_one)) > 10


@pytest.mark.parametrize('components, message', [
    ((), 'must not be empty'),
    (((1.0, 0),), r'\(weight, low, high\), got \(1.0, 0\)'),
    (((0.0, 0, 10), (1.0, 0, 10)), r'must be in \(0, 1\], got \(0.0, 0, 10\)'),
    (((1.5, 0, 10), (-0.5, 0, 10)), r'must be in \(0, 1\], got \(1.5, 0, 10\)'),
    (((float('nan'), 0, 10),), r'must be in \(0, 1\], got \(nan, 0, 10\)'),
    (((1.0, 10, 10),), r'0 <= low < high, got \(1.0, 10, 10\)'),
    (((1.0, -1, 10),), r'0 <= low < high, got \(1.0, -1, 10\)'),
    (((1.0, 0, 9.5),), r'whole numbers.* got \(1.0, 0, 9.5\)'),
    (((1.0, 0, float('inf')),), r'whole numbers.* got \(1.0, 0, inf\)'),
    (((0.5, 0, 10), (0.4, 10, 20)), 'add up to 1, got 0.9'),
])
def test_bad_components_are_refused(components, message):
    with pytest.raises(ValueError, match=message):
        timesteps.TimestepMixture(components)


def test_whole_numbers_may_be_written_as_floats():
    written = timesteps.TimestepMixture(((0.5, 0.0, 5e1), (0.5, 5e1, 1e2)))
    expected = timesteps.TimestepMixture(((0.5, 0, 50), (0.5, 50, 100)))
    np.testing.assert_array_equal(written.probabilities(100), expected.probabilities(100))
    np.testing.assert_array_equal(draw(written, [50]), draw(expected, [50]))


def test_component_beyond_the_schedule_is_refused():
    mixture = timesteps.TimestepMixture(((0.5, 0, 100), (0.5, 100, 1000)))
    mixture.check(1000)
    with pytest.raises(ValueError, match='ends at 1000, beyond the schedule\'s 999 timesteps'):
        mixture.check(999)
    with pytest.raises(ValueError, match='beyond the schedule'):
        mixture.probabilities(999)
