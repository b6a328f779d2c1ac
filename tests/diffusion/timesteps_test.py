"""Tests of the timesteps that training visits."""

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff.diffusion import schedules
from tf_dpdiff.diffusion import timesteps

_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))

_MIXTURES = (
    timesteps.TimestepMixture(((1.0, 0, 50),)),
    timesteps.TimestepMixture(((0.1, 0, 5), (0.7, 5, 30), (0.2, 30, 50))),
    # Components that overlap, leave a gap, and are not in order.
    timesteps.TimestepMixture(((0.25, 20, 40), (0.5, 30, 50), (0.25, 0, 10))),
    timesteps.TimestepMixture(((0.5, 7, 8), (0.5, 49, 50))),
)

_LOG_NORMALS = (
    (timesteps.LogNormalSigma(), schedules.Schedule('cosine', 60)),
    (timesteps.LogNormalSigma(), schedules.Schedule('linear', 1000)),
    (timesteps.LogNormalSigma(0.5, 0.4), schedules.Schedule('cosine', 1000)),
    # Much of it falls on the last timestep.
    (timesteps.LogNormalSigma(1.0, 3.0), schedules.Schedule('linear', 12)),
)


def draw(distribution, shape, schedule=None, seed=0):
    generator = np.random.default_rng(seed)
    uniforms = [tf.constant(generator.random(shape, np.float32)) for _ in range(2)]
    return distribution.from_uniforms(*uniforms, schedule)


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
    ],
)
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


@pytest.mark.parametrize(
    'components, message',
    [
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
    ],
)
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
    with pytest.raises(ValueError, match="ends at 1000, beyond the schedule's 999 timesteps"):
        mixture.check(999)
    with pytest.raises(ValueError, match='beyond the schedule'):
        mixture.probabilities(999)


def test_all_distributions_are_called_alike():
    schedule = schedules.Schedule('cosine', 1000)
    for make in timesteps.TIMESTEP_DISTRIBUTIONS:
        distribution = make()
        distribution.check(schedule)
        t = distribution.from_uniforms(tf.constant([[0.2, 0.9]]), tf.constant([[0.7, 0.1]]), schedule)
        assert t.dtype == tf.int32 and t.shape == (1, 2)
        np.testing.assert_allclose(distribution.probabilities(schedule).sum(), 1.0, rtol=1e-9)


def test_mixture_needs_no_more_of_a_schedule_than_its_number_of_timesteps():
    mixture, schedule = _MIXTURES[2], schedules.Schedule('linear', 60)
    np.testing.assert_array_equal(mixture.probabilities(schedule), mixture.probabilities(60))
    uniforms = tf.constant([0.1, 0.4, 0.9]), tf.constant([0.3, 0.8, 0.6])
    np.testing.assert_array_equal(mixture.from_uniforms(*uniforms, schedule), mixture.from_uniforms(*uniforms))
    with pytest.raises(ValueError, match="ends at 50, beyond the schedule's 40 timesteps"):
        mixture.check(schedules.Schedule('linear', 40))


def nearest_timesteps(log_sigmas, schedule):
    """Returns the timestep of each ln sigma, by looking at all of them."""
    of_schedule = 0.5 * np.log(1 / schedule.alphas_cumprod - 1)
    return np.abs(log_sigmas[:, None] - of_schedule).argmin(1)


@pytest.mark.parametrize('log_normal, schedule', _LOG_NORMALS)
def test_log_normal_sigma_is_the_nearest_timestep_to_normal_log_sigma(log_normal, schedule):
    uniforms = np.random.default_rng(1).random(3000, np.float32)
    actual = log_normal.from_uniforms(tf.constant(uniforms), tf.zeros([3000]), schedule).numpy()
    log_sigmas = log_normal.mean + log_normal.stddev * stats.norm.ppf(uniforms.astype(np.float64))
    # On the edge between two timesteps, float32 may take the other one.
    assert (actual == nearest_timesteps(log_sigmas, schedule)).mean() > 0.999
    # Control: shifted by half a step between two timesteps, it is another one.
    shift = np.diff(np.log(schedule.sigmas)).min() / 2
    assert (actual == nearest_timesteps(log_sigmas + shift, schedule)).mean() < 0.99


def follows(t, probabilities):
    """Tests with the inequality of Dvoretzky, Kiefer and Wolfowitz that timesteps have these probabilities."""
    shares = np.bincount(t, minlength=len(probabilities)) / len(t)
    return np.abs(np.cumsum(shares - probabilities)).max() < np.sqrt(np.log(2 / 1e-4) / (2 * len(t)))


@pytest.mark.parametrize('log_normal, schedule', _LOG_NORMALS)
def test_drawn_timesteps_of_log_normal_sigma_have_the_stated_probabilities(log_normal, schedule):
    drawn = draw(log_normal, [100_000], schedule).numpy()
    probabilities = log_normal.probabilities(schedule)
    assert probabilities.shape == (schedule.num_timesteps,)
    np.testing.assert_allclose(probabilities.sum(), 1.0, rtol=1e-12)
    assert follows(drawn, probabilities)
    # Controls.
    mean, stddev = log_normal.mean, log_normal.stddev
    for other in (timesteps.LogNormalSigma(mean + 0.1 * stddev, stddev), timesteps.LogNormalSigma(mean, 1.1 * stddev)):
        assert not follows(drawn, other.probabilities(schedule))


@pytest.mark.parametrize('log_normal, schedule', _LOG_NORMALS)
def test_extreme_uniforms_stay_within_the_schedule(log_normal, schedule):
    t = log_normal.from_uniforms(tf.constant([0.0, _BELOW_ONE]), tf.zeros([2]), schedule).numpy()
    probable = np.flatnonzero(log_normal.probabilities(schedule) > 1e-6)
    assert 0 <= t[0] <= probable[0] and probable[-1] <= t[1] < schedule.num_timesteps


def test_timestep_of_log_normal_sigma_depends_on_one_uniform_alone():
    log_normal, schedule = _LOG_NORMALS[1]
    uniforms = np.random.default_rng(2).random([4, 3, 5], np.float32)
    others = np.random.default_rng(3).random([4, 3, 5], np.float32)
    whole = log_normal.from_uniforms(tf.constant(uniforms), tf.constant(others), schedule).numpy()
    one_by_one = [int(log_normal.from_uniforms(tf.constant(u), tf.constant(0.0), schedule)) for u in uniforms.flat]
    assert whole.reshape(-1).tolist() == one_by_one
    assert (np.diff(whole.reshape(-1)[np.argsort(uniforms.reshape(-1))]) >= 0).all() and len(set(one_by_one)) > 10


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'mean': float('nan')}, 'the mean of ln sigma must be finite, got nan'),
        ({'mean': -float('inf')}, 'the mean of ln sigma must be finite, got -inf'),
        ({'stddev': 0.0}, 'the stddev of ln sigma must be positive and finite, got 0.0'),
        ({'stddev': -1.0}, 'the stddev of ln sigma must be positive and finite, got -1.0'),
        ({'stddev': float('inf')}, 'the stddev of ln sigma must be positive and finite, got inf'),
    ],
)
def test_bad_log_normal_sigma_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        timesteps.LogNormalSigma(**arguments)


@pytest.mark.parametrize('mean', [-6.0, 6.0])
def test_mean_of_log_sigma_beyond_the_schedule_is_refused(mean):
    schedule = schedules.Schedule('linear', 1000)
    log_normal = timesteps.LogNormalSigma(mean)
    message = rf'the mean of ln sigma, {mean:g}, lies outside of the schedule\'s \[-4.61, 5.06\]'
    for call in (log_normal.check, log_normal.probabilities, lambda s: log_normal.from_uniforms(0.5, 0.5, s)):
        with pytest.raises(ValueError, match=message):
            call(schedule)
