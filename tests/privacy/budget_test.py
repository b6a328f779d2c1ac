"""Tests of the budget of all runs on one data set, against dp_accounting called directly."""

import dataclasses
import json

import dp_accounting
from dp_accounting import pld
from dp_accounting import rdp
import pytest

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import ledger as ledger_lib

DELTA = 1e-5
ABOUT = {'dataset': 'toy', 'data_fingerprint': 'f', 'unit': 'one image', 'time': '2024-01-01 00:00:00 UTC'}


def ledger(noise_multiplier, num_steps=50, sampling_probability=0.1, class_means=None):
    releases = [ledger_lib.Release('dp_sgd_step', noise_multiplier, sampling_probability, num_steps)]
    if class_means:
        releases.insert(0, ledger_lib.Release('noisy_class_means', class_means, 1.0, 1))
    return ledger_lib.Ledger(tuple(releases))


RUNS = (ledger(2.0), ledger(1.5, class_means=3.0), ledger(4.0, num_steps=200))


def direct_epsilon(accountant):
    """The three runs in one accountant, none of our code involved."""
    steps = [(2.0, 50), (1.5, 50), (4.0, 200)]
    accountant.compose(dp_accounting.GaussianDpEvent(3.0))
    for noise_multiplier, count in steps:
        step = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(noise_multiplier))
        accountant.compose(step, count)
    return accountant.get_epsilon(DELTA)


def charged(budget, *ledgers):
    for number, planned in enumerate(ledgers):
        budget = budget.reserve(f'run {number}', planned, **ABOUT)
    return budget


@pytest.fixture(name='budget')
def fixture_budget():
    return budget_lib.Budget(total_epsilon=10.0, delta=DELTA)


def test_runs_are_composed_in_one_accountant_and_not_added_up(budget):
    budget = charged(budget, *RUNS)
    assert budget.epsilon() == pytest.approx(direct_epsilon(pld.PLDAccountant()), rel=1e-6)
    assert budget.epsilon('rdp') == pytest.approx(direct_epsilon(rdp.RdpAccountant()), rel=1e-2)
    alone = [accounting.epsilon(run.dp_event(), DELTA) for run in RUNS]
    assert max(alone) < budget.epsilon() < 0.9 * sum(alone)
    assert charged(dataclasses.replace(budget, entries=(), unit=None, data_fingerprint=None),
                   *RUNS[:2]).epsilon() < 0.99 * budget.epsilon()


def test_nothing_is_spent_at_first(budget):
    assert budget.epsilon() == budget.epsilon('rdp') == 0.0


def test_runs_that_fit_alone_but_not_together_are_refused_naming_what_they_cost():
    cost = accounting.epsilon(RUNS[0].dp_event(), DELTA)
    budget = charged(budget_lib.Budget(total_epsilon=1.01 * cost, delta=DELTA), RUNS[0])
    with pytest.raises(accounting.BudgetError, match='would be passed: the 1 run') as error:
        budget.reserve('other', RUNS[0], **ABOUT)
    both = accounting.epsilon(dp_accounting.ComposedDpEvent([RUNS[0].dp_event()] * 2), DELTA)
    assert accounting.round_up(cost) in str(error.value) and accounting.round_up(both) in str(error.value)
    assert '\n' not in str(error.value)
    # The control: where the total holds both, the same run is let in.
    dataclasses.replace(budget, total_epsilon=1.001 * both).reserve('other', RUNS[0], **ABOUT)
    with pytest.raises(accounting.BudgetError):
        dataclasses.replace(budget, total_epsilon=0.999 * both).reserve('other', RUNS[0], **ABOUT)


def test_resumed_run_is_not_charged_twice_and_another_with_the_same_releases_is(budget):
    once = charged(budget, RUNS[0])
    assert once.reserve('run 0', RUNS[0], **ABOUT) == once
    assert charged(budget, RUNS[0], RUNS[0]).epsilon() > 1.2 * once.epsilon()


def test_run_that_comes_back_with_other_releases_is_refused(budget):
    once = charged(budget, RUNS[0])
    with pytest.raises(ValueError, match='run 0 is in the budget with other releases'):
        once.reserve('run 0', RUNS[1], **ABOUT)


def test_settling_puts_what_was_released_in_place_of_what_was_planned(budget):
    once = charged(budget, *RUNS)
    settled = once.settle('run 1', ledger(1.5, num_steps=20))
    assert settled.entry('run 1').status == budget_lib.SETTLED and settled.entry('run 0').status == budget_lib.RESERVED
    assert settled.epsilon() < once.epsilon()
    assert [entry.run_id for entry in settled.entries] == ['run 0', 'run 1', 'run 2']
    assert settled.settle('run 1', ledger(1.5, num_steps=20)) == settled
    with pytest.raises(ValueError, match='settled in the budget with other releases'):
        settled.settle('run 1', ledger(1.5, num_steps=10))
    with pytest.raises(ValueError, match='run 7 was not reserved'):
        settled.settle('run 7', RUNS[0])


def test_settled_run_that_is_resumed_stays_settled(budget):
    settled = charged(budget, RUNS[0]).settle('run 0', RUNS[0])
    assert settled.reserve('run 0', RUNS[0], **ABOUT) == settled


def test_run_that_ended_and_released_nothing_leaves_the_budget_as_it_was(budget):
    nothing = ledger_lib.Ledger()
    assert charged(budget, RUNS[0]).settle('run 0', nothing) == budget
    assert charged(budget, *RUNS[:2]).settle('run 1', nothing) == charged(budget, RUNS[0])
    # Control: what has released something, if only once, stays.
    assert charged(budget, RUNS[0]).settle('run 0', ledger(2.0, num_steps=1)).entries
    settled = charged(budget, RUNS[0]).settle('run 0', RUNS[0])
    with pytest.raises(ValueError, match='settled in the budget with other releases'):
        settled.settle('run 0', nothing)


def test_what_has_happened_is_recorded_even_where_it_passes_the_total():
    cost = accounting.epsilon(RUNS[0].dp_event(), DELTA)
    budget = charged(budget_lib.Budget(total_epsilon=1.01 * cost, delta=DELTA), RUNS[0])
    passed = budget.settle('run 0', ledger(2.0, num_steps=100))
    assert passed.epsilon() > budget.total_epsilon
    with pytest.raises(accounting.BudgetError):
        passed.reserve('other', ledger(100.0, num_steps=1), **ABOUT)


def test_finished_run_is_recorded_once(budget):
    recorded = budget.record_finished('run 0', RUNS[0], **ABOUT)
    assert recorded.entry('run 0').status == budget_lib.SETTLED
    with pytest.raises(ValueError, match='run 0 is in the budget already'):
        recorded.record_finished('run 0', RUNS[0], **ABOUT)
    # One that was reserved, and ended without the budget, is settled and not charged again.
    assert charged(budget, RUNS[0]).record_finished('run 0', RUNS[0], **ABOUT) == recorded


@pytest.mark.parametrize('changes, message', [({'data_fingerprint': 'g'}, 'belongs to other data'),
                                              ({'unit': 'one patient'}, "protects 'one image', this run 'one patient'"),
                                             ])  # yapf: disable
def test_other_data_and_another_unit_are_refused(budget, changes, message):
    with pytest.raises(ValueError, match=message):
        charged(budget, RUNS[0]).reserve('other', RUNS[1], **{**ABOUT, **changes})


@pytest.mark.parametrize('released', [ledger(0.0), ledger(2.0, sampling_probability=None)])
def test_run_without_a_guarantee_is_refused(budget, released):
    with pytest.raises(accounting.BudgetError, match='no privacy budget can hold it'):
        budget.reserve('run 0', released, **ABOUT)


def test_json_keeps_everything(budget):
    budget = charged(budget, *RUNS).settle('run 1', RUNS[1])
    assert budget_lib.Budget.from_json(budget.to_json()) == budget
    assert budget_lib.Budget.from_json(budget_lib.Budget(2.0, 1e-6).to_json()) == budget_lib.Budget(2.0, 1e-6)


DAMAGES = {
    'format': lambda fields: fields.update(format='another'),
    'no total': lambda fields: fields.pop('total_epsilon'),
    'total as text': lambda fields: fields.update(total_epsilon='10'),
    'delta': lambda fields: fields.update(delta=0.0),
    'more': lambda fields: fields.update(more=1),
    'no fingerprint': lambda fields: fields.update(data_fingerprint=None),
    'fingerprint of no run': lambda fields: fields.update(entries=[]),
    'twice': lambda fields: fields.update(entries=2 * fields['entries']),
    'status': lambda fields: fields['entries'][0].update(status='lost'),
    'run without a name': lambda fields: fields['entries'][0].update(run_id=''),
    'negative noise': lambda fields: fields['entries'][0]['releases'][0].update(noise_multiplier=-1.0),
    'no steps': lambda fields: fields['entries'][0]['releases'][0].update(count=0),
    'half a step': lambda fields: fields['entries'][0]['releases'][0].update(count=1.5),
    'probability': lambda fields: fields['entries'][0]['releases'][0].update(sampling_probability=1.5),
    'entries': lambda fields: fields.update(entries=['run']),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_json_is_refused(budget, damage):
    fields = json.loads(charged(budget, RUNS[0]).to_json())
    budget_lib.Budget.from_json(json.dumps(fields))  # The control.
    DAMAGES[damage](fields)
    with pytest.raises(ValueError):
        budget_lib.Budget.from_json(json.dumps(fields))


@pytest.mark.parametrize('text', ['', '{', '[]', '3', 'null'])
def test_text_that_is_no_budget_is_refused(text):
    with pytest.raises(ValueError):
        budget_lib.Budget.from_json(text)


@pytest.mark.parametrize('fields', [{'total_epsilon': 0.0}, {'total_epsilon': float('inf')}, {'delta': 1.0},
                                    {'delta': float('nan')}])  # yapf: disable
def test_impossible_totals_are_refused(fields):
    with pytest.raises(ValueError, match=f'{next(iter(fields))} must be'):
        budget_lib.Budget(**{'total_epsilon': 1.0, 'delta': DELTA, **fields})
