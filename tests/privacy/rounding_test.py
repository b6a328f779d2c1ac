"""Tests that no privacy number is shown rounded to the side on which it would promise more than is true."""

import ast
import dataclasses
import decimal
import math
import pathlib
import re

import dp_accounting
import numpy as np
import pytest

from tf_dpdiff.cli import account_tables
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import auditing
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import tensorboard_events

PACKAGE = pathlib.Path(accounting.__file__).resolve().parent.parent
GENERATOR = np.random.default_rng(0)
VALUES = [
    0.0,
    1.0,
    1.1,
    0.1 + 0.2,
    2.675,
    9.99991,
    9.99996,
    9.9999999999,
    10.0 - 1e-15,
    1e-12,
    5e-324,
    123456.00005,
    2.0**53,
    1e15 + 0.3,
    1e22,
    1.7976931348623157e308,
    np.float64(1.1),
    np.float32(0.7),
]
RANDOM = [*GENERATOR.uniform(0.0, 30.0, 500), *np.round(GENERATOR.uniform(0.0, 30.0, 500), 4)]


def exact_decimals(value):
    return decimal.Decimal(repr(float(value)))


def is_tight_bound(text, value, sign):
    """Returns whether a text has four decimals, lies on one side of a number, and is the nearest such."""
    with decimal.localcontext() as context:
        context.prec = 400
        distance = sign * (decimal.Decimal(text) - exact_decimals(value))
        return bool(re.fullmatch(r'\d+\.\d{4}', text)) and 0 <= distance < decimal.Decimal('1e-4')


@pytest.mark.parametrize('value', [*VALUES, *RANDOM[::10]])
def test_bounds_have_four_decimals_and_lie_on_their_side_of_the_number_as_near_as_can_be(value):
    up, down = rounding.round_up(value), rounding.round_down(value)
    assert is_tight_bound(up, value, 1) and is_tight_bound(down, value, -1)
    assert float(down) <= value <= float(up)
    # Who reads a shown number and shows it again shows the same.
    assert rounding.round_up(float(up)) == up and rounding.round_down(float(down)) == down


@pytest.mark.parametrize('show', [lambda x: f'{x:.4f}', lambda x: f'{math.ceil(x * 1e4) / 1e4:.4f}'])
def test_control_rounding_to_nearest_and_by_a_rounded_product_are_noticed(show):
    assert not all(is_tight_bound(show(value), value, 1) for value in RANDOM)


@pytest.mark.parametrize('show', [rounding.round_up, rounding.round_down])
def test_infinity_is_shown_as_it_is_and_what_is_no_number_is_refused(show):
    assert show(math.inf) == 'infinite'
    with pytest.raises(ValueError, match='no number'):
        show(math.nan)


@pytest.mark.parametrize('value', [value for value in VALUES if 0.0 < value < 3e38])
def test_given_numbers_are_shown_exactly(value):
    assert float(rounding.exact(value)) == value


@pytest.mark.parametrize(
    'value, text',
    [(10.0, '10'), (1e-5, '1e-05'), (0.0001, '0.0001'), (9.9999999, '9.9999999'), (1.2345678e-5, '1.2345678e-05')],
)
def test_given_numbers_are_shown_in_as_few_digits_as_they_have(value, text):
    assert rounding.exact(value) == text


@pytest.mark.parametrize('value', [*VALUES, math.inf])
def test_float32_is_the_next_one_that_is_not_below(value):
    above = rounding.float32_not_below(value)
    assert above >= value and np.float32(above) == above
    assert value == above or float(np.nextafter(np.float32(above), np.float32(-np.inf))) < value


def test_control_float32_by_itself_may_be_below():
    assert any(float(np.float32(value)) < value for value in RANDOM)


def test_curves_of_tensorboard_are_not_below_what_was_spent():
    written, spent = {}, [0.7, 0.1, 9.99999999, 2.3]

    class Summaries:
        """Keeps what is written, as the type in which it is written."""

        def curve(self, name, points):
            written[name] = {step: float(np.float32(value)) for step, value in points.items()}

    points = [curves.CurvePoint(step, epsilon, 1.1 * epsilon) for step, epsilon in enumerate(spent)]
    tensorboard_events.write_epsilon(Summaries(), points)
    for point in points:
        assert written['privacy/epsilon'][point.num_steps] >= point.pld
        assert written['privacy/epsilon_by_rdp'][point.num_steps] >= point.rdp


# All texts that hold an epsilon that was computed: what it is in truth, what was asked for, and who says so.
EVENT = dp_accounting.GaussianDpEvent(1.0)
LEDGER = ledger_lib.Ledger((ledger_lib.Release('a', 3.0, 1.0, 1),))
ABOUT = {'dataset': 'toy', 'data_fingerprint': 'f', 'unit': 'one image', 'time': 'now'}
CONFIG = plan_lib.DpSgdConfig(
    target_delta=1.2345678e-5, expected_batch_size=50, num_steps=7, l2_norm_clip=1.0, noise_multiplier=3.0
)


def plan_that_misses_its_target(excess):
    cost = plan_lib.make_plan(CONFIG, 1000).epsilon()
    config = dataclasses.replace(CONFIG, target_epsilon=cost * (1.0 - excess))
    return cost, config.target_epsilon, lambda: plan_lib.make_plan(config, 1000)


def run_that_passes_a_budget():
    cost = accounting.epsilon(LEDGER.dp_event(), 1e-5)
    budget = budget_lib.Budget(0.999999 * cost, 1e-5)
    return cost, budget.total_epsilon, lambda: budget.reserve('run', LEDGER, **ABOUT)


def search_that_finds_nothing(solve, *arguments):
    cost = accounting.epsilon(EVENT, 1e-5)
    return cost, 0.99999 * cost, lambda: solve(lambda unused: EVENT, 0.99999 * cost, 1e-5, *arguments)


REFUSALS = {
    'plan': lambda: plan_that_misses_its_target(1e-3),
    'plan that misses its target by little': lambda: plan_that_misses_its_target(1e-7),
    'budget': run_that_passes_a_budget,
    'steps': lambda: search_that_finds_nothing(accounting.solve_num_steps),
    'batch': lambda: search_that_finds_nothing(accounting.solve_batch_size, 10),
    'probability': lambda: search_that_finds_nothing(accounting.solve_sampling_probability),
    'noise': lambda: search_that_finds_nothing(accounting.calibrate_noise_multiplier),
}


@pytest.mark.parametrize('name', REFUSALS)
def test_refusals_tell_a_cost_that_is_not_below_the_true_one_and_above_what_was_asked_for(name):
    cost, target, refused = REFUSALS[name]()
    with pytest.raises(accounting.BudgetError) as error:
        refused()
    said = re.findall(r'(?:costs?|alone|together) (?:epsilon=)?(\d+\.\d+)', str(error.value))
    told = [float(text) for text in said if float(text)]  # What a budget had cost so far is nothing.
    assert told and all(cost <= epsilon < 1.001 * cost + 1e-4 for epsilon in told), str(error.value)
    assert rounding.exact(target) in str(error.value) and min(told) > target


def test_what_is_left_of_a_budget_is_never_above_it():
    budget = budget_lib.Budget(2.500049, 1e-5).reserve('run', LEDGER, **ABOUT)
    cells = [list(column.cells) for column in account_tables.budget_tables(budget, 'b.json')[1].columns]
    shown = dict(zip(*cells))
    assert shown['allowed'] == '2.500049'
    assert float(shown['left']) <= 2.500049 - budget.epsilon() < float(shown['left']) + 1e-4


def test_lower_bound_of_an_audit_is_rounded_down_and_its_confidence_is_not_rounded():
    included = np.random.default_rng(0).integers(0, 2, 300).astype(bool)
    found = auditing.audit(included.astype(float), included, proven_epsilon=1.23456, delta=1e-5, confidence=0.999)
    text = found.to_text()
    assert f'epsilon >= {rounding.round_down(found.epsilon_lower_bound)} at 99.9% confidence' in text
    assert 'epsilon = 1.2346 at delta = 1e-05' in text


def formats_of_privacy_numbers(source):
    """Returns the pieces of f-strings that round an epsilon, a delta or a confidence in their own way."""
    pieces = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FormattedValue) and node.format_spec]
    names = re.compile(r'epsilon|(?<!time)delta|confidence', re.IGNORECASE)
    return [ast.unparse(node.value) for node in pieces if names.search(ast.unparse(node.value))]


@pytest.mark.parametrize('path', sorted(PACKAGE.glob('**/*.py')), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_text_rounds_a_privacy_number_in_its_own_way(path):
    assert not formats_of_privacy_numbers(path.read_text(encoding='utf-8'))


@pytest.mark.parametrize(
    'source',
    ["f'{epsilon:.3f}'", "f'{plan.epsilon():.4f} at'", 'f\'{fields["delta"]:g}\'', "f'{result.confidence:.0%}'"],
)
def test_control_text_that_rounds_in_its_own_way_is_noticed(source):
    assert formats_of_privacy_numbers(source)
    assert not formats_of_privacy_numbers("f'{round_up(epsilon)} of {size:.3f}'")
