"""Tests of plans of samples: classes that follow from seeds, shards, what is refused."""

import dataclasses
import fractions
import json

import numpy as np
import pytest

from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import formats

_NAMES = ('cat', 'dog', 'bird')


def make_plan(**changes):
    arguments = {
        'num_images': 25,
        'seed': 0,
        'choice': draw.ClassChoice((0, 1, 2)),
        'image_shape': (2, 2, 1),
        'class_names': _NAMES,
        'shard_size': 10,
        'chunk_size': 7,
        **changes,
    }
    return formats.Spec(**arguments)


@pytest.mark.parametrize('start', [0, 5, 2**40 + 1, 2**62])
def test_uniform_classes_go_round_by_the_seed(start):
    seeds = np.arange(start, start + 100)
    labels = draw.ClassChoice((4, 1, 7)).labels(seeds)
    assert labels.dtype == np.int32
    assert labels.tolist() == [(4, 1, 7)[seed % 3] for seed in seeds.tolist()]


@pytest.mark.parametrize('weights', [('2', '1'), ('1/3', '0.25', '0', '1e-2'), ('0', '1', '0'), ('1', '1', '1', '0')])
@pytest.mark.parametrize('start', [0, 12345, 2**62])
def test_weighted_classes_are_those_of_exact_arithmetic(weights, start):
    weights = tuple(map(fractions.Fraction, weights))
    seeds = np.arange(start, start + 500)
    labels = draw.ClassChoice(tuple(range(len(weights))), weights).labels(seeds)
    for seed, label in zip(seeds.tolist(), labels):
        place = seed * 0x9E3779B97F4A7C15 % 2**64
        ends = [sum(weights[: k + 1]) / sum(weights) * 2**64 for k in range(len(weights))]
        assert label == next(k for k, end in enumerate(ends) if place < int(end))
        assert weights[label] > 0


@pytest.mark.parametrize('start', [0, 999, 2**50])
@pytest.mark.parametrize('size', [10, 100, 1000, 10000])
def test_counts_follow_the_weights_in_every_window(start, size):
    weights = np.array([5, 3, 1, 1])
    choice = draw.ClassChoice((0, 1, 2, 3), tuple(map(fractions.Fraction, weights.tolist())))
    counts = np.bincount(choice.labels(np.arange(start, start + size)), minlength=4)
    assert np.abs(counts - size * weights / weights.sum()).max() <= 4
    # Independent draws would be off by the square root of the size.
    drawn = np.bincount(np.random.default_rng(0).choice(4, 10000, p=weights / 10), minlength=4)
    assert np.abs(drawn - 10000 * weights / 10).max() > 4


def test_shards_hold_each_seed_once():
    plan = make_plan(num_images=25, seed=13, shard_size=10)
    assert plan.num_shards == 3
    assert [plan.seeds_of(shard) for shard in range(3)] == [(13, 23), (23, 33), (33, 38)]


@pytest.mark.parametrize(
    'choice',
    [
        draw.ClassChoice((0, 1, 2)),
        draw.ClassChoice((2, 0), (fractions.Fraction(1, 3), fractions.Fraction(2))),
        draw.ClassChoice((3,)),
    ],
)
def test_plan_comes_back_from_json(choice):
    plan = make_plan(choice=choice, origin={'model': 'abc', 'sampler.num_steps': 3})
    again = formats.Spec.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan


def test_differences_are_named_then_and_now():
    before, now = make_plan(origin={'model': 'a' * 100}).to_json(), make_plan(num_images=30).to_json()
    found = formats.differences(before, now)
    assert 'num_images: 25 then, 30 now' in found
    assert any(line.startswith('model: aaa') and line.endswith('then, None now') for line in found)
    assert len(found) == 2 and not formats.differences(now, now)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'num_images': 0}, 'num_images of the samples must be at least 1, got 0'),
        ({'shard_size': 0}, 'shard_size of the samples must be at least 1, got 0'),
        ({'seed': -1}, 'seeds of the samples must be from 0 .* got seed=-1'),
        ({'seed': 2**63 - 5}, 'seeds of the samples must be from 0'),
        ({'format': 'jpg'}, "format of the samples must be one of .* got 'jpg'"),
        ({'name': 'toy'}, 'a name is what samples of the format tfds have'),
        ({'format': 'tfds'}, 'a name is what samples of the format tfds have'),
        ({'format': 'tfds', 'name': 'mnist'}, "has a data set 'mnist' already"),
        ({'class_names': ('a', 'b')}, None),
        ({'class_names': ('a',)}, 'there is no class 2 among 1'),
        ({'class_names': ('a', 'a', 'b')}, 'classes must have distinct names'),
        ({'class_names': ('a', 'no_class', 'b')}, "none of them 'no_class'"),
        ({'class_names': ('a', 'b/c', 'd'), 'format': 'png'}, "the class 'b/c' can name no folder"),
        ({'class_names': ('a', '..', 'd'), 'format': 'png'}, "the class '..' can name no folder"),
        ({'class_names': ('a', '..', 'd'), 'format': 'npz'}, None),
    ],
)
def test_bad_plans_are_refused_by_name_and_value(changes, message):
    if message is None:
        make_plan(**changes)
        return
    with pytest.raises(ValueError, match=message):
        make_plan(**changes)


@pytest.mark.parametrize(
    'classes, weights, message',
    [
        ((), None, 'at least one'),
        ((1, 1), None, 'distinct labels'),
        ((-1,), None, 'distinct labels from 0'),
        ((0, 1), (1,), '1 weights for 2 classes'),
        ((0, 1), (1, -1), 'must not be negative'),
        ((0, 1), (0, 0), 'at least one must be above 0'),
    ],
)
def test_bad_choices_of_classes_are_refused(classes, weights, message):
    with pytest.raises(ValueError, match=message):
        draw.ClassChoice(classes, weights and tuple(map(fractions.Fraction, weights)))


def test_plans_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_plan().seed = 3
