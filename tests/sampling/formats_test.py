"""Tests of what a set of samples consists of: shards, JSON, what is refused."""

import dataclasses
import fractions
import json

import pytest

from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import formats

_NAMES = ('cat', 'dog', 'bird')


def make_spec(**changes):
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


def test_shards_hold_each_seed_once():
    spec = make_spec(num_images=25, seed=13, shard_size=10)
    assert spec.num_shards == 3
    assert [spec.seeds_of(shard) for shard in range(3)] == [(13, 23), (23, 33), (33, 38)]


@pytest.mark.parametrize(
    'choice',
    [
        draw.ClassChoice((0, 1, 2)),
        draw.ClassChoice((2, 0), (fractions.Fraction(1, 3), fractions.Fraction(2))),
        draw.ClassChoice((3,)),
    ],
)
def test_spec_comes_back_from_json(choice):
    spec = make_spec(choice=choice, origin={'model': 'abc', 'sampler.num_steps': 3})
    again = formats.Spec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec


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
def test_bad_specs_are_refused_by_name_and_value(changes, message):
    if message is None:
        make_spec(**changes)
        return
    with pytest.raises(ValueError, match=message):
        make_spec(**changes)


def test_specs_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_spec().seed = 3
