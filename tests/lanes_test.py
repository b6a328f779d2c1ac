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


def chosen(tests, seed, secs=5.0, long_secs=5000.0):
    """Returns the names of the long tests that are chosen, where all take as long, or each as long as is said."""
    taken = secs if isinstance(secs, dict) else {test.nodeid: secs for test in tests}
    option = types.SimpleNamespace(long_secs=long_secs, long_seed=seed)
    return [test.nodeid for test in lanes.choose_long(tests, {'tests': taken}, option)]


def test_part_of_the_long_tests_takes_the_time_that_there_is_at_random_and_the_same_for_a_seed():
    tests = [stand_in(f'test[{i}]') for i in range(10000)]
    first, again, other = (chosen(tests, seed) for seed in (1, 1, 2))
    assert first == again and len(first) == len(other) == 1000
    assert abs(len({*first} & {*other}) - 100) < 5 * 10.0  # As two draws have that know nothing of one another.
    assert {*chosen(tests, 1, long_secs=2500.0)} < {*first}
    assert first == [name for name in (test.nodeid for test in tests) if name in first]  # In the order of the files.


def test_long_tests_that_take_longest_are_chosen_less_often_but_all_are_at_times():
    tests = [stand_in(f'test[{i}]') for i in range(1000)]
    secs = {test.nodeid: (1.0, 4 * lanes.USUAL_LONG_SECS)[i % 2] for i, test in enumerate(tests)}
    found = [chosen(tests, seed, secs, long_secs=600.0) for seed in range(100)]
    assert all(sum(secs[name] for name in names) <= 600.0 for names in found)
    counts = [sum(secs[name] == taken for names in found for name in names) for taken in (1.0, max(secs.values()))]
    # Four times as often, or more: where little time is left a short one still finds a place.
    assert counts[0] > 3 * counts[1] > 100
    some = tests[:20]
    assert {name for seed in range(200) for name in chosen(some, seed, secs, long_secs=100.0)} == {
        test.nodeid for test in some
    }


def test_long_tests_that_the_other_process_would_wait_for_are_never_chosen():
    tests = [stand_in(f'test[{i}]') for i in range(10)]
    assert not chosen(tests, 1, secs=lanes.MOST_LONG_SECS + 1)
    assert len(chosen(tests, 1, secs=lanes.MOST_LONG_SECS)) == 10
    assert not chosen(tests, 1, secs=60.0, long_secs=59.0)  # Nor those that there is no time for.


def test_long_test_that_nobody_has_measured_takes_the_usual_time():
    tests = [stand_in(f'test[{i}]') for i in range(100)]
    assert len(chosen(tests, 1, secs={}, long_secs=10.5 * lanes.USUAL_LONG_SECS)) == 10


def test_what_is_not_long_or_stays_out_of_the_share_is_never_chosen():
    marks = (pytest.mark.long, None, pytest.mark.long(in_share=False))
    assert [len(chosen([stand_in('test', mark=mark)], 0)) for mark in marks] == [1, 0, 0]


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
