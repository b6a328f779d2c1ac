"""Tests of what a run says of its epsilon while it trains: of this step, and never less than has been spent."""

import dataclasses
import io
import json
import re

import pytest

from tests.training import trainer_test as toy
from tests.training.stops import NEVER
from tests.training.stops import StopAfter
from tf_dpdiff import progress
from tf_dpdiff.privacy import rounding
from tf_dpdiff.training import interruption
from tf_dpdiff.training import loop as loop_lib

pytestmark = pytest.mark.usefixtures('small_network')
NUM_STEPS = 10
PRIVACY = dataclasses.replace(toy.PRIVACY, num_steps=NUM_STEPS)


@pytest.fixture(name='screen')
def fixture_screen(monkeypatch):
    """What progress bars write, which show themselves whenever they can."""
    written, tqdm = io.StringIO(), progress.tqdm.tqdm
    monkeypatch.setattr(progress.tqdm, 'tqdm', lambda **options: tqdm(**{**options, 'mininterval': 0.0}, file=written))
    return written


def shown(screen, stage):
    """Returns (step, epsilon as text or None) of each time that the bar of a stage showed itself."""
    found = []
    for line in re.split(r'[\r\n]+', screen.getvalue()):
        step = re.match(rf'{stage} *:.*? (\d+)/\d+ ', line)
        epsilon = re.search(r'epsilon=([\d.]+)', line)
        found += [(int(step.group(1)), epsilon and epsilon.group(1))] if step else []
    return found


def is_bound_of_each_step(found, plan):
    """Tells if each epsilon that was shown is not below what its step has cost, and not by much above."""
    costs = {step: plan.epsilon(plan.planned_ledger(step)) for step in {step for step, _ in found}}
    return all(costs[step] <= float(epsilon) <= 1.01 * costs[step] + 1e-4 for step, epsilon in found)


def run(workdir, stop=NEVER, **config):
    """Runs a trainer whose steps compute nothing: they are recorded, which is all that epsilon hangs on."""
    training = toy.make_training(workdir, privacy=PRIVACY, loop=loop_lib.TrainerConfig(**config))
    toy.without_steps(training.trainer).run(stop)
    return training


def assert_release_of_the_warm_start_is_shown(trainer, screen):
    """Checks that what the warm start has released is shown from its first moment."""
    cost = trainer.plan.epsilon(trainer.plan.planned_ledger(0))
    found = shown(screen, 'warm_start')
    assert {step for step, _ in found} == {0, 1, 2} and len(found) >= 4
    assert all(cost <= float(epsilon) <= 1.01 * cost for _, epsilon in found[1:])


# What is shown could hang on what is logged: of every step, now and then, hardly ever.
@pytest.mark.parametrize(
    'log_every_steps', [pytest.param(1, marks=pytest.mark.long), 7, pytest.param(1000, marks=pytest.mark.long)]
)
def test_bar_shows_the_epsilon_of_each_step_and_ends_with_that_of_the_statement(tmp_path, screen, log_every_steps):
    training = run(tmp_path, log_every_steps=log_every_steps)
    trainer = training.trainer
    assert_release_of_the_warm_start_is_shown(trainer, screen)
    assert not [epsilon for _, epsilon in shown(screen, 'pretraining') if epsilon]
    found = shown(screen, 'finetuning')
    # The bar is there before its first epsilon is.
    assert found[0] == (0, None) and {step for step, _ in found} == set(range(NUM_STEPS + 1))
    assert is_bound_of_each_step(found[1:], trainer.plan)
    fields = json.loads(training.statement().to_json())
    assert found[-1] == (NUM_STEPS, rounding.round_up(fields['epsilon']))
    # Control: an epsilon that is only renewed when a step is logged is too low until then.
    stale = [(step, found[1][1] if step < NUM_STEPS else epsilon) for step, epsilon in found[1:]]
    assert not is_bound_of_each_step(stale, trainer.plan)


def test_warm_start_and_a_resumed_run_show_what_was_spent_before_their_first_step(tmp_path, screen):
    with pytest.raises(interruption.Interrupted):
        run(tmp_path, StopAfter(sum(toy.STEPS.values()) - toy.STEPS['finetuning'] + 4))
    before = shown(screen, 'finetuning')[-1]
    screen.truncate(0)
    trainer = run(tmp_path).trainer
    assert shown(screen, 'finetuning')[1] == before and before[0] == 5
    assert is_bound_of_each_step(shown(screen, 'finetuning')[1:], trainer.plan)
