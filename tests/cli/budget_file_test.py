"""Tests that a budget file is whole, private, and changed by one process at a time."""

import multiprocessing
import stat

import pytest

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.runs import budget as budget_file


def _ledger():
    return ledger_lib.Ledger((ledger_lib.Release('dp_sgd_step', 3.0, 0.2, 50),))


def _reserve(path, run_id, barrier=None):
    if barrier:
        barrier.wait()
    try:
        budget_file.update(
            path,
            lambda budget: budget.reserve(run_id, _ledger(), dataset='toy', data_fingerprint='f', unit='u', time='now'),
        )
        return 'reserved'
    except accounting.BudgetError:
        return 'refused'


def _reserve_in_process(path, run_id, barrier, results):
    results.put(_reserve(path, run_id, barrier))


def test_of_two_runs_that_start_at_once_and_do_not_both_fit_one_is_refused(tmp_path):
    cost = accounting.epsilon(_ledger().dp_event(), 1e-5)
    path = tmp_path / 'budget.json'
    budget_file.create(path, budget_lib.Budget(1.1 * cost, 1e-5))
    processes = multiprocessing.get_context('spawn')
    barrier, results = processes.Barrier(2), processes.Queue()
    runs = [
        processes.Process(target=_reserve_in_process, args=(path, f'run {number}', barrier, results))
        for number in range(2)
    ]
    for run in runs:
        run.start()
    outcomes = sorted(results.get(timeout=120) for _ in runs)
    for run in runs:
        run.join()
    assert outcomes == ['refused', 'reserved']
    before = path.read_text()
    assert len(budget_file.read(path).entries) == 1
    assert _reserve(path, 'run 3') == 'refused' and path.read_text() == before


def test_links_to_a_budget_share_it(tmp_path):
    budget_path = tmp_path / 'budget.json'
    budget_file.create(budget_path, budget_lib.Budget(10.0, 1e-5))
    link = tmp_path / 'link.json'
    link.symlink_to(budget_path)
    assert _reserve(link, 'run') == 'reserved'
    assert link.is_symlink() and len(budget_file.read(budget_path).entries) == 1


def test_change_that_fails_leaves_the_file_and_its_neighbours_as_they_were(tmp_path):
    path = tmp_path / 'budget.json'
    budget_file.create(path, budget_lib.Budget(10.0, 1e-5))
    before = path.read_text()

    def fail(unused_budget):
        raise RuntimeError('stopped')

    with pytest.raises(RuntimeError):
        budget_file.update(path, fail)
    assert path.read_text() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ['.budget.json.lock', 'budget.json']
    assert _reserve(path, 'run') == 'reserved' and path.read_text() != before  # The lock was given back.
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_second_budget_in_the_same_place_is_refused(tmp_path):
    path = tmp_path / 'budget.json'
    budget_file.create(path, budget_lib.Budget(10.0, 1e-5))
    with pytest.raises(ValueError, match='exists'):
        budget_file.create(path, budget_lib.Budget(20.0, 1e-5))
    assert budget_file.read(path).total_epsilon == 10.0


def test_missing_file_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match='no budget file at'):
        budget_file.update(tmp_path / 'budget.json', lambda budget: budget)
    assert not list(tmp_path.iterdir())
