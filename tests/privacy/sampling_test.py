"""Tests of which units take part in a step."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.privacy import sampling
from tf_dpdiff.privacy import truncation


def participation(sampler, num_units=400, num_steps=500, seed=3):
    """Returns who took part in which step, bool [steps, units]."""
    taken = np.zeros([num_steps, num_units], bool)
    for step in range(num_steps):
        taken[step, sampler.sample(num_units, seed=seed, step=step)] = True
    return taken


def looks_poisson(taken, probability):
    """Tests for independent coin tosses: number of participations, batch sizes, overlap of successive steps."""
    num_steps, num_units = taken.shape
    total = stats.binomtest(int(taken.sum()), taken.size, probability).pvalue
    # The variance of the batch size tells Poisson sampling from batches of fixed size.
    spread = taken.sum(1).var(ddof=1) / (num_units * probability * (1 - probability)) * (num_steps - 1)
    spread = 2 * min(stats.chi2.cdf(spread, num_steps - 1), stats.chi2.sf(spread, num_steps - 1))
    overlap = stats.binomtest(int((taken[:-1] & taken[1:]).sum()), taken[1:].size, probability**2).pvalue
    return min(total, spread, overlap) > 1e-4


@pytest.mark.parametrize('probability', [0.02, 0.3, 0.9])
def test_poisson_sampler_tosses_a_coin_for_each_unit(probability):
    assert looks_poisson(participation(sampling.PoissonSampler(probability)), probability)


def test_control_another_probability_is_noticed():
    taken = participation(sampling.PoissonSampler(0.3))
    assert not looks_poisson(taken, 0.3 * 2 / 3)
    assert not looks_poisson(taken, 0.3 * 3 / 2)


def test_control_shuffled_batches_are_not_poisson():
    assert not looks_poisson(participation(sampling.ShuffledBatches(120)), 0.3)


def test_control_sampling_that_repeats_itself_is_noticed():
    taken = participation(sampling.PoissonSampler(0.3))
    assert not looks_poisson(np.repeat(taken[::2], 2, axis=0), 0.3)


def test_sample_is_a_function_of_seed_and_step():
    sampler = sampling.PoissonSampler(0.5)
    first = sampler.sample(1000, seed=7, step=4)
    np.testing.assert_array_equal(first, sampler.sample(1000, seed=7, step=4))
    assert not np.array_equal(first, sampler.sample(1000, seed=7, step=5))
    assert not np.array_equal(first, sampler.sample(1000, seed=8, step=4))
    # Neither is (seed, step) mixed up with (step, seed).
    assert not np.array_equal(sampler.sample(1000, seed=4, step=7), first)


def test_participation_of_a_unit_does_not_depend_on_those_after_it():
    sampler = sampling.PoissonSampler(0.5)
    small, large = sampler.sample(500, seed=1, step=1), sampler.sample(501, seed=1, step=1)
    np.testing.assert_array_equal(small, large[large < 500])


@pytest.mark.parametrize('num_replicas', [1, 2, 3, 7, 50])
@pytest.mark.parametrize('sampler', [sampling.PoissonSampler(0.4), sampling.ShuffledBatches(17)])
def test_replicas_draw_disjoint_shards_and_together_what_one_replica_draws(sampler, num_replicas):
    whole = sampler.sample(45, seed=2, step=3)
    parts = [sampler.sample(45, seed=2, step=3, replica=r, num_replicas=num_replicas) for r in range(num_replicas)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    for replica, part in enumerate(parts):
        first, end = sampling.shard_bounds(45, replica, num_replicas)
        assert ((part >= first) & (part < end)).all()
    assert 5 < len(whole) < 40


def test_each_replica_samples_its_shard_at_the_same_probability():
    taken = np.zeros([500, 400], bool)
    for step in range(500):
        for replica in range(3):
            part = sampling.PoissonSampler(0.3).sample(400, seed=3, step=step, replica=replica, num_replicas=3)
            taken[step, part] = True
    for replica in range(3):
        first, end = sampling.shard_bounds(400, replica, 3)
        assert looks_poisson(taken[:, first:end], 0.3)
    # Shards are independent of one another.
    sizes = np.stack([taken[:, slice(*sampling.shard_bounds(400, replica, 3))].sum(1) for replica in range(3)])
    assert np.abs(np.corrcoef(sizes)[np.triu_indices(3, 1)]).max() < 0.2


def kept_subsets(sample, num_steps=6000):
    """Returns how often each pair of five units that are all drawn is what is kept, int [pairs]."""
    counts = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    for step in range(num_steps):
        counts[tuple(sample(5, seed=3, step=step).tolist())] += 1
    return list(counts.values())


def test_kept_units_are_any_subset_of_those_drawn_with_the_same_probability():
    counts = kept_subsets(sampling.TruncatedPoissonSampler(1.0, 2).sample)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_control_subsets_that_are_not_equally_likely_are_noticed():
    def first_or_any(num_units, *, seed, step):
        sampler = sampling.TruncatedPoissonSampler(1.0, 2)
        return np.array([0, 1]) if step % 20 == 0 else sampler.sample(num_units, seed=seed, step=step)

    assert stats.chisquare(kept_subsets(first_or_any)).pvalue < 1e-4


def test_truncated_batch_is_a_part_of_what_is_drawn_and_as_large_as_the_bound_allows():
    plain, truncated = sampling.PoissonSampler(0.3), sampling.TruncatedPoissonSampler(0.3, 31)
    sizes = set()
    for step in range(300):
        drawn, kept = (sampler.sample(100, seed=5, step=step) for sampler in (plain, truncated))
        assert set(kept) <= set(drawn) and len(kept) == min(len(drawn), 31) and np.all(np.diff(kept) > 0)
        sizes.add(len(drawn) > 31)
    assert sizes == {False, True}


def test_unit_pushes_out_at_most_one_other_one_as_often_as_the_accountant_has_it():
    num_units, q, bound, num_steps = 12, 0.5, 6, 4000
    sampler, met, kept = sampling.TruncatedPoissonSampler(q, bound), [], []
    for step in range(num_steps):
        # The other units get the same numbers where the last one is not among them.
        without, beside = (sampler.sample(n, seed=4, step=step) for n in (num_units - 1, num_units))
        others = sampling.PoissonSampler(q).sample(num_units - 1, seed=4, step=step)
        gone, come = set(without) - set(beside), set(beside) - set(without)
        assert come <= {num_units - 1} and len(gone) <= len(come)
        assert len(gone) == (len(come) if len(others) >= bound else 0)
        met.append(len(others) >= bound)
        kept.append(met[-1] and bool(come))
    expected = truncation.Truncation(num_units, bound).probabilities(q)
    for counted, probability in zip((met, kept), expected):
        assert stats.binomtest(sum(counted), num_steps, probability).pvalue > 1e-4
    # The control: of a unit that is kept whenever it is drawn.
    assert stats.binomtest(sum(kept), num_steps, q * expected[0]).pvalue < 1e-4


def test_bound_that_is_never_met_changes_nothing():
    plain, truncated = sampling.PoissonSampler(0.3), sampling.TruncatedPoissonSampler(0.3, 100)
    for step in range(50):
        drawn, kept = (sampler.sample(100, seed=5, step=step) for sampler in (plain, truncated))
        np.testing.assert_array_equal(drawn, kept)


@pytest.mark.parametrize('num_replicas', [1, 2, 3, 7, 50])
@pytest.mark.parametrize('bound', [15, 40])
def test_replicas_take_equal_parts_of_the_truncated_batch_of_one_replica(num_replicas, bound):
    sampler = sampling.TruncatedPoissonSampler(0.4, bound)
    for step in range(5):
        whole = sampler.sample(45, seed=2, step=step)
        parts = [
            sampler.sample(45, seed=2, step=step, replica=r, num_replicas=num_replicas) for r in range(num_replicas)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        np.testing.assert_array_equal(whole, sampler.sample(45, seed=2, step=step))
        assert max(map(len, parts)) <= min(-(-bound // num_replicas), min(map(len, parts)) + 1)
    assert not np.array_equal(whole, sampler.sample(45, seed=3, step=step))


@pytest.mark.parametrize('probability, bound', [(0.0, 3), (0.5, 0), (0.5, -1)])
def test_impossible_truncation_is_refused(probability, bound):
    with pytest.raises(ValueError, match='(sampling_probability|truncated_batch_size) must be'):
        sampling.TruncatedPoissonSampler(probability, bound)


@pytest.mark.parametrize('replica, num_replicas', [(-1, 2), (2, 2), (0, 0)])
def test_replica_outside_of_its_range_is_refused(replica, num_replicas):
    with pytest.raises(ValueError, match='replica must be in'):
        sampling.PoissonSampler(0.5).sample(10, seed=0, step=0, replica=replica, num_replicas=num_replicas)


def test_probability_one_takes_everybody():
    np.testing.assert_array_equal(sampling.PoissonSampler(1.0).sample(5, seed=0, step=0), np.arange(5))


@pytest.mark.parametrize('probability', [0.0, -0.1, 1.1, float('nan')])
def test_probability_outside_of_its_range_is_refused(probability):
    with pytest.raises(ValueError, match='sampling_probability must be in'):
        sampling.PoissonSampler(probability)


def test_shuffled_batches_visit_each_unit_once_an_epoch():
    taken = participation(sampling.ShuffledBatches(100), num_units=400, num_steps=8)
    np.testing.assert_array_equal(taken[:4].sum(0), 1)
    np.testing.assert_array_equal(taken[4:].sum(0), 1)
    assert not np.array_equal(taken[:4], taken[4:])


@pytest.mark.parametrize('num_sampled, multiple, padded', [(0, 4, 4), (1, 4, 4), (4, 4, 4), (5, 4, 8), (5, 1, 5)])
def test_padding_fills_whole_chunks_and_keeps_every_index(num_sampled, multiple, padded):
    indices, is_padding = sampling.pad_indices(np.arange(10, 10 + num_sampled), multiple)
    assert len(indices) == len(is_padding) == padded
    np.testing.assert_array_equal(indices[~is_padding], np.arange(10, 10 + num_sampled))
    assert (indices[is_padding] == sampling.PADDING_INDEX).all()
