"""Tests of the lanes: which tests are quick, and which of the long ones a seed chooses."""

import types

import pytest

from tests import lanes


def stand_in(name, *, shares='', scope='module', mark=pytest.mark.long):
    """Returns a collected test that takes a fixture."""
    fixture = types.SimpleNamespace(argname=shares, baseid='a_test.py', scope=scope)
    return types.SimpleNamespace(
        nodeid=f'a_test.py::{name}',
        get_closest_marker=lambda unused: mark and mark.mark,
        _fixtureinfo=types.SimpleNamespace(name2fixturedefs={shares: [fixture]}),
    )


DURATIONS = {'tests': {'a_test.py::slow': 2.5, 'a_test.py::fair': 1.5}, 'fixtures': {'a_test.py::run': 30.0}}


@pytest.mark.parametrize(
    'test, quick',
    [
        (stand_in('slow'), False),
        (stand_in('fair'), True),
        (stand_in('unknown'), True),
        (stand_in('fair', shares='run'), False),
        (stand_in('fair', shares='run', scope='function'), True),
        (stand_in('fair', shares='other'), True),
    ],
)
def test_quick_lane_leaves_out_what_is_slow_or_waits_for_a_slow_fixture(test, quick):
    assert lanes.is_quick(test, DURATIONS) == quick


def chosen(tests, seed, secs=5.0, share=0.1):
    durations = {'tests': {test.nodeid: secs for test in tests}}
    option = types.SimpleNamespace(long_share=share, long_seed=seed)
    return [test.nodeid for test in tests if lanes.is_chosen(test, durations, option)]


def test_share_of_the_long_tests_is_random_and_the_same_for_a_seed():
    tests = [stand_in(f'test[{i}]') for i in range(10000)]
    first, again, other = (chosen(tests, seed) for seed in (1, 1, 2))
    assert first == again and abs(len(first) - 1000) < 5 * 30.0
    assert abs(len({*first} & {*other}) - 100) < 5 * 10.0  # As two draws have that know nothing of one another.
    assert {*chosen(tests, 1, share=0.05)} < {*first}


def test_long_tests_that_take_longest_are_chosen_less_often_or_never():
    tests = [stand_in(f'test[{i}]') for i in range(10000)]
    assert len(chosen(tests, 1, secs=1.0)) == len(chosen(tests, 1, secs=lanes.USUAL_LONG_SECS))
    assert abs(len(chosen(tests, 1, secs=4 * lanes.USUAL_LONG_SECS)) - 250) < 5 * 16.0
    assert not chosen(tests, 1, secs=lanes.MOST_LONG_SECS + 1, share=1.0)


def test_what_is_not_long_or_stays_out_of_the_share_is_never_chosen():
    marks = (pytest.mark.long, None, pytest.mark.long(in_share=False))
    assert [len(chosen([stand_in('test', mark=mark)], 0, share=1.0)) for mark in marks] == [1, 0, 0]


def test_file_of_durations_holds_what_is_read():
    assert set(lanes.read_durations()) == {'files', 'tests', 'fixtures'}


@pytest.mark.parametrize('marked, has_gpu, skipped', [(True, False, True), (True, True, False), (False, False, False)])
def test_tests_of_a_gpu_are_skipped_with_a_reason_where_there_is_none(marked, has_gpu, skipped, monkeypatch):
    monkeypatch.setattr(lanes, 'has_gpu', lambda: has_gpu)
    item = stand_in('test', mark=pytest.mark.gpu if marked else None)
    if not skipped:
        return lanes.pytest_runtest_setup(item)
    with pytest.raises(pytest.skip.Exception, match='TensorFlow sees no GPU'):
        lanes.pytest_runtest_setup(item)


def test_neither_long_tests_nor_those_of_a_gpu_run_if_nothing_is_said(pytestconfig):
    assert f'-m "{lanes.USUAL}"' in (pytestconfig.rootpath / 'setup.cfg').read_text()
