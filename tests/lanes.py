"""Which tests run and in which order: a pytest plugin, which setup.cfg loads.

durations.json holds what files, tests and shared fixtures took, where it was a second or more; `bin/test
--record_durations` writes it anew. From it follow

* the order of files: the longest first, so that no process is left with a long file at the end;
* `--quick`: tests that take less than two seconds, and whose shared fixtures do;
* `--long_secs=240 --long_seed=N`: a random part of the long tests that takes about 240 seconds, the same for the same
  seed. Those marked `long(in_share=False)` are never among them: they measure, take minutes, or repeat what the quick
  ones do.

Tests marked `gpu` are skipped, with the reason, where TensorFlow sees no GPU.
"""

import collections
import gc
import hashlib
import json
import math
import os
import pathlib
import time

import pytest

USUAL = 'not long and not gpu'  # The mark expression of setup.cfg.
DURATIONS = pathlib.Path(__file__).with_name('durations.json')
RECORDED_SECS = 1.0  # What took less is not in the file.
QUICK_SECS = 2.0
# What a long test is taken to take that nobody has measured: most are mutants, which import TensorFlow. One that takes
# longer is chosen less often, so that a few of them do not use up all the time ...
USUAL_LONG_SECS = 15.0
# ... and one that takes longer than this never: the other process would wait for it.
MOST_LONG_SECS = 120.0


def pytest_addoption(parser):
    """Adds the options of the lanes."""
    group = parser.getgroup('lanes')
    group.addoption('--quick', action='store_true', help=f'leave out tests that take {QUICK_SECS:g} s and more')
    group.addoption('--long_secs', type=float, metavar='SECS', help='run long tests of so many seconds, at random')
    group.addoption('--long_seed', type=int, default=0, metavar='N', help='which of them; the same for the same number')
    group.addoption('--record_durations', action='store_true', help=f'write what tests take to {DURATIONS.name}')


def pytest_configure(config):
    """Starts to record what tests take; lets garbage be, which a traced graph makes much of, for longer than usual."""
    gc.set_threshold(100_000, 20, 20)
    # A process takes of a GPU what it needs, and not all: several take part in a test.
    os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')
    if config.option.record_durations:
        config.pluginmanager.register(Recorder(config))


def pytest_runtest_setup(item):
    """Skips the tests of a GPU where there is none."""
    if item.get_closest_marker('gpu') and not has_gpu():
        pytest.skip('TensorFlow sees no GPU on this machine')


def has_gpu():
    """Tells if TensorFlow sees a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices('GPU'))


def read_durations():
    """Returns {'files', 'tests' or 'fixtures': {name: seconds}}."""
    return json.loads(DURATIONS.read_text())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Orders the tests and leaves out those that are not in the lane."""
    durations = read_durations()
    items.sort(key=lambda item: -durations['files'].get(item.nodeid.partition('::')[0], 0.0))
    kept = items
    if config.option.quick:
        kept = [item for item in items if is_quick(item, durations)]
    if config.option.long_secs is not None:
        kept = choose_long(kept, durations, config.option)
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def pytest_report_collectionfinish(config, items):
    """Says which long tests were chosen, and how to choose them again."""
    if config.option.long_secs is None:
        return []
    secs, seed = config.option.long_secs, config.option.long_seed
    return [
        f'--long_secs={secs:g} --long_seed={seed} chose {len(items)} long tests, as many as take {secs:g} s in all,',
        f'fewer of those known to take more than {USUAL_LONG_SECS:g} s and none of more than {MOST_LONG_SECS:g} s:',
        *(f'  {item.nodeid}' for item in items),
    ]


def is_quick(item, durations):
    """Tells if a test and each fixture that it shares with others take less than QUICK_SECS."""
    shared = [
        name_of(definitions[-1])
        for definitions in item._fixtureinfo.name2fixturedefs.values()
        if definitions[-1].scope != 'function'
    ]
    taken = [durations['tests'].get(item.nodeid, 0.0), *(durations['fixtures'].get(name, 0.0) for name in shared)]
    return max(taken) < QUICK_SECS


def choose_long(items, durations, option):
    """Returns the long tests that the seed stands for: in a random order, those that the time is enough for.

    Each comes first with a chance that is in proportion to its weight (Efraimidis and Spirakis 2006), which is less for
    what takes long: all have a chance, and the order of one does not depend on what other tests there are.
    """
    left, chosen, drawn = option.long_secs, set(), []
    for item in items:
        secs = durations['tests'].get(item.nodeid, USUAL_LONG_SECS)
        mark = item.get_closest_marker('long')
        if mark and mark.kwargs.get('in_share', True) and secs <= MOST_LONG_SECS:
            digest = hashlib.sha256(f'{option.long_seed} {item.nodeid}'.encode()).digest()
            uniform = (int.from_bytes(digest[:6], 'big') + 0.5) / 2**48
            drawn.append((math.log(uniform) / min(1.0, USUAL_LONG_SECS / secs), item.nodeid, secs))
    for _, nodeid, secs in sorted(drawn, reverse=True):
        if secs <= left:
            left -= secs
            chosen.add(nodeid)
    return [item for item in items if item.nodeid in chosen]


def name_of(fixturedef):
    """Returns the name of a fixture with that of the file or folder that defines it."""
    return f'{fixturedef.baseid}::{fixturedef.argname}'


class Recorder:
    """Adds up what tests, shared fixtures and files take, in each process, and writes it down in the first."""

    def __init__(self, config):
        self._config = config
        self._shared_secs = 0.0
        self._found = {kind: collections.Counter() for kind in ('files', 'tests', 'fixtures')}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        """Times a fixture without the ones that it asks for."""
        inner, started = self._shared_secs, time.perf_counter()
        try:
            return (yield)
        finally:
            if fixturedef.scope != 'function':
                secs = time.perf_counter() - started - (self._shared_secs - inner)
                fixtures = self._found['fixtures']
                fixtures[name_of(fixturedef)] = max(fixtures[name_of(fixturedef)], secs)
                self._shared_secs += secs

    def pytest_runtest_logreport(self, report):
        """Times a test without the fixtures that it shares."""
        if self._is_controller_of_others():
            return
        self._found['files'][report.nodeid.partition('::')[0]] += report.duration
        if report.when != 'teardown':
            self._found['tests'][report.nodeid] += report.duration - self._shared_secs
        self._shared_secs = 0.0

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """Adds what another process found."""
        for kind, found in getattr(node, 'workeroutput', {}).get('durations', {}).items():
            self._found[kind].update(found)

    def pytest_sessionfinish(self):
        """Hands on or writes what was found."""
        if hasattr(self._config, 'workeroutput'):
            self._config.workeroutput['durations'] = {kind: dict(found) for kind, found in self._found.items()}
            return
        durations = read_durations() if DURATIONS.exists() else {kind: {} for kind in self._found}
        if self._config.args_source != self._config.ArgsSource.TESTPATHS or self._config.option.markexpr != USUAL:
            self._found['files'] = {}  # Of a part of the tests.
        for kind, found in self._found.items():
            known = {
                name: secs
                for name, secs in durations[kind].items()
                if name not in found and (DURATIONS.parents[1] / name.partition('::')[0]).exists()
            }
            known.update((name, round(secs, 1)) for name, secs in found.items() if secs >= RECORDED_SECS)
            durations[kind] = dict(sorted(known.items()))
        DURATIONS.write_text(json.dumps(durations, indent=1) + '\n')

    def _is_controller_of_others(self):
        return not hasattr(self._config, 'workerinput') and getattr(self._config.option, 'numprocesses', None)
