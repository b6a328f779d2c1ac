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
from tf_dpdiff.privacy import rounding

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
    assert (
        charged(dataclasses.replace(budget, entries=(), unit=None, data_fingerprint=None), *RUNS[:2]).epsilon()
        < 0.99 * budget.epsilon()
    )


def test_nothing_is_spent_at_first(budget):
    assert budget.epsilon() == budget.epsilon('rdp') == 0.0


def test_runs_that_fit_alone_but_not_together_are_refused_naming_what_they_cost():
    cost = accounting.epsilon(RUNS[0].dp_event(), DELTA)
    budget = charged(budget_lib.Budget(total_epsilon=1.01 * cost, delta=DELTA), RUNS[0])
    with pytest.raises(accounting.BudgetError, match='would be passed: the 1 run') as error:
        budget.reserve('other', RUNS[0], **ABOUT)
    both = accounting.epsilon(dp_accounting.ComposedDpEvent([RUNS[0].dp_event()] * 2), DELTA)
    assert rounding.round_up(cost) in str(error.value) and rounding.round_up(both) in str(error.value)
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
    with pytest.raises(ValueError, match='run 7 was not reserved'):
        settled.settle('run 7', RUNS[0])


@pytest.mark.parametrize(
    'released, kept',
    [
        (ledger(2.0, num_steps=20), ledger(2.0, num_steps=50)),
        (ledger(2.0, num_steps=80), ledger(2.0, num_steps=80)),
        (ledger(2.0, num_steps=80, class_means=3.0), ledger(2.0, num_steps=80, class_means=3.0)),
    ],
)
def test_run_that_is_settled_twice_keeps_the_larger_truth(budget, released, kept):
    twice = charged(budget, RUNS[0]).settle('run 0', RUNS[0]).settle('run 0', released)
    assert twice.entry('run 0').ledger == kept and twice.entry('run 0').status == budget_lib.SETTLED
    assert twice.epsilon() == accounting.epsilon(kept.dp_event(), DELTA)


def test_two_tales_of_one_run_that_differ_are_both_believed(budget):
    twice = charged(budget, RUNS[0]).settle('run 0', RUNS[0]).settle('run 0', RUNS[2])
    both = dp_accounting.ComposedDpEvent([RUNS[0].dp_event(), RUNS[2].dp_event()])
    assert twice.epsilon() == pytest.approx(accounting.epsilon(both, DELTA), rel=1e-9)


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
    assert settled.settle('run 0', nothing) == settled


SMALL = ledger(100.0, num_steps=1)


def overdrawn_by(kind, total):
    """A budget that is overdrawn by a run that was made with more than planned, or without the budget."""
    budget = charged(budget_lib.Budget(total_epsilon=total, delta=DELTA), RUNS[0])
    if kind == 'settled':
        return budget.settle('run 0', ledger(2.0, num_steps=100))
    if kind == 'finished':
        return budget.record_finished('other', RUNS[0], **ABOUT)
    if kind == 'begun':
        return budget.record_begun('other', RUNS[0], **ABOUT)
    assert kind == 'noiseless'
    return budget.record_finished('other', ledger(0.0), **ABOUT)


@pytest.mark.parametrize('kind', ['settled', 'finished', 'begun', 'noiseless'])
def test_what_has_happened_is_recorded_and_an_overdrawn_budget_lets_nothing_in(kind):
    cost = accounting.epsilon(RUNS[0].dp_event(), DELTA)
    passed = overdrawn_by(kind, 1.01 * cost)
    assert passed.epsilon() > passed.total_epsilon and passed.overdrawn_by() == passed.epsilon() - passed.total_epsilon
    passed = budget_lib.Budget.from_json(passed.to_json())  # On file.
    assert json.loads(passed.to_json(), parse_constant=pytest.fail)  # Infinity is no JSON.
    for run_id, planned in (
        ('new', SMALL),
        ('not begun yet', ledger_lib.Ledger()),
        *([('run 0', RUNS[0])] if kind != 'settled' else []),
    ):
        with pytest.raises(accounting.BudgetError, match='overdrawn') as error:
            passed.reserve(run_id, planned, **ABOUT)
        assert '\n' not in str(error.value) and 'nothing more is let in' in str(error.value)
    if kind == 'noiseless':
        assert 'overdrawn for good' in str(error.value)
    else:
        assert f'overdrawn by epsilon={rounding.round_up(passed.overdrawn_by())}' in str(error.value)
    # The control: with a total that holds all of it, the next run is let in; but never after a run without noise.
    if kind != 'noiseless':
        wider = dataclasses.replace(passed, total_epsilon=1.1 * passed.epsilon())
        assert wider.overdrawn_by() == 0.0 and wider.reserve('new', SMALL, **ABOUT).entry('new')
    else:
        with pytest.raises(accounting.BudgetError, match='overdrawn for good'):
            dataclasses.replace(passed, total_epsilon=1e300).reserve('new', SMALL, **ABOUT)


def test_run_that_has_released_all_that_it_will_is_not_stopped_by_an_overdrawn_budget():
    budget = charged(budget_lib.Budget(3.0, DELTA), RUNS[0]).settle('run 0', RUNS[0])
    passed = budget.record_finished('other', RUNS[1], **ABOUT)
    assert passed.overdrawn_by() > 0.0
    assert passed.reserve('run 0', RUNS[0], **ABOUT) == passed


def test_what_a_run_released_without_the_budget_is_on_record_before_the_rest_is_refused():
    begun, planned = ledger(2.0, num_steps=30), ledger(2.0, num_steps=300)
    budget = budget_lib.Budget(3.0, DELTA).record_begun('run 0', begun, **ABOUT)
    assert budget.entry('run 0').ledger == begun and budget.epsilon() == accounting.epsilon(begun.dp_event(), DELTA)
    with pytest.raises(accounting.BudgetError, match='would be passed'):
        budget.reserve('run 0', planned, **ABOUT)
    # Where the rest fits, the whole run takes the place of its beginning.
    wide = dataclasses.replace(budget, total_epsilon=10.0).reserve('run 0', planned, **ABOUT)
    assert [(entry.status, entry.ledger) for entry in wide.entries] == [(budget_lib.RESERVED, planned)]
    with pytest.raises(ValueError, match='with other releases'):
        dataclasses.replace(budget, total_epsilon=10.0).reserve('run 0', ledger(3.0, num_steps=300), **ABOUT)


def test_run_in_progress_keeps_its_reservation_and_one_at_its_end_is_settled(budget):
    reserved = charged(budget, RUNS[1])
    part = ledger(1.5, num_steps=20, class_means=3.0)
    assert reserved.record_begun('run 0', part, **ABOUT) == reserved
    assert reserved.record_begun('run 0', ledger_lib.Ledger(), **ABOUT) == reserved
    ended = reserved.record_begun('run 0', RUNS[1], **ABOUT)
    assert ended.entry('run 0').status == budget_lib.SETTLED and ended.epsilon() == reserved.epsilon()
    assert ended.record_begun('run 0', RUNS[1], **ABOUT) == ended
    assert budget.record_begun('run 0', ledger_lib.Ledger(), **ABOUT) == budget


def test_finished_run_is_recorded_once(budget):
    recorded = budget.record_finished('run 0', RUNS[0], **ABOUT)
    assert recorded.entry('run 0').status == budget_lib.SETTLED
    with pytest.raises(ValueError, match='run 0 is in the budget already'):
        recorded.record_finished('run 0', RUNS[0], **ABOUT)
    # One that was reserved, and ended without the budget, is settled and not charged again.
    assert charged(budget, RUNS[0]).record_finished('run 0', RUNS[0], **ABOUT) == recorded


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'data_fingerprint': 'g'}, 'belongs to other data'),
        ({'unit': 'one patient'}, "protects 'one image', this run 'one patient'"),
    ],
)
def test_other_data_and_another_unit_are_refused(budget, changes, message):
    one = charged(budget, RUNS[0])
    for charge in (one.reserve, one.record_finished, one.record_begun):
        with pytest.raises(ValueError, match=message):
            charge('other', RUNS[1], **{**ABOUT, **changes})


@pytest.mark.parametrize('released', [ledger(0.0), ledger(1e-4), ledger(2.0, sampling_probability=None)])
def test_run_without_a_guarantee_is_refused_and_recorded_once_it_was_made(budget, released):
    with pytest.raises(accounting.BudgetError, match='no privacy budget can hold it'):
        budget.reserve('run 0', released, **ABOUT)
    made = budget.record_finished('run 0', released, **ABOUT)
    assert budget_lib.Budget.from_json(made.to_json()) == made
    assert made.entry('run 0').ledger == released and made.overdrawn_by() == float('inf')


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


@pytest.mark.parametrize(
    'fields', [{'total_epsilon': 0.0}, {'total_epsilon': float('inf')}, {'delta': 1.0}, {'delta': float('nan')}]
)
def test_impossible_totals_are_refused(fields):
    with pytest.raises(ValueError, match=f'{next(iter(fields))} must be'):
        budget_lib.Budget(**{'total_epsilon': 1.0, 'delta': DELTA, **fields})
