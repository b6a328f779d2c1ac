"""Tests of the best of a random number of runs: how many there are, what it costs, and what is told of it."""

import dataclasses
import json
import math

import dp_accounting
from dp_accounting import dp_event
from dp_accounting import rdp
import numpy as np
import pytest
from scipy import integrate
from scipy import special
from scipy import stats

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import best_of_runs
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import meaning
from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.privacy import statement as statement_lib

ORDERS = np.array([1.05, 1.5, 2.0, 3.5, 5.0, 8.0, 16.0, 32.0, 64.0, 256.0])
DISTRIBUTIONS = [(1.5, 1.0), (4.0, 0.0), (4.0, 0.3), (4.0, 1.0), (25.0, 0.5), (25.0, 3.0), (900.0, 1.0)]
CONFIG = plan_lib.DpSgdConfig(
    target_delta=1e-4, expected_batch_size=200, num_steps=20, l2_norm_clip=0.1, target_epsilon=4.0
)
TUNING = best_of_runs.Tuning(best_of_runs.NumRuns(4.0, 1.0), ('rate 1', 'rate 2'), 'accuracy of something', 20.0)


def seed_of(number):
    return seeds.PrivateSeed(number.to_bytes(32, 'little'))


def probabilities(gamma, eta, most):
    """Returns P[K = k] for k from 1 on, by definition 1 of the paper: by gamma functions, not by a recurrence."""
    k = np.arange(1, most + 1, dtype=np.float64)
    if eta == 0.0:
        return (1.0 - gamma) ** k / (k * math.log(1.0 / gamma))
    log_product = special.gammaln(k + eta) - special.gammaln(eta) - special.gammaln(k + 1.0)
    return np.exp(log_product + k * np.log1p(-gamma)) / (gamma**-eta - 1.0)


@pytest.mark.parametrize('mean, eta', DISTRIBUTIONS)
def test_gamma_gives_the_mean(mean, eta):
    gamma = best_of_runs.NumRuns(mean, eta).gamma
    most = 40 * math.ceil(mean / min(1.0, 1.0 / (1.0 + eta))) * 10
    found = probabilities(gamma, eta, most)
    assert np.sum(found) == pytest.approx(1.0, abs=1e-9)
    assert np.sum(found * np.arange(1, most + 1)) == pytest.approx(mean, rel=1e-7)
    if eta == 1.0:
        assert gamma == pytest.approx(1.0 / mean, rel=1e-12)


def is_drawn_from(drawn, gamma, eta):
    """Tells by a chi-squared test whether numbers of runs come from the distribution."""
    most = 8
    expected = probabilities(gamma, eta, most)
    expected = np.append(expected, 1.0 - expected.sum()) * len(drawn)
    counted = np.bincount(np.minimum(drawn, most + 1), minlength=most + 2)[1:]
    return stats.chisquare(counted, expected).pvalue > 1e-6


@pytest.mark.parametrize('eta', [0.0, 0.5, 1.0, 2.0])
def test_number_of_runs_has_the_law_that_is_accounted_for(eta):
    num_runs = best_of_runs.NumRuns(4.0, eta)
    drawn = [num_runs.draw(seed_of(i)) for i in range(6000)]
    assert min(drawn) >= 1 and is_drawn_from(drawn, num_runs.gamma, eta)
    # Controls: another shape of the same mean, another mean, and a number that is cut.
    other = best_of_runs.NumRuns(4.0, 3.0 * eta + 1.0)
    assert not is_drawn_from(drawn, other.gamma, other.eta)
    assert not is_drawn_from(drawn, 1.25 * num_runs.gamma, eta)
    assert not is_drawn_from(np.minimum(drawn, 6), num_runs.gamma, eta)


def test_number_of_runs_follows_from_the_secret_alone():
    num_runs = best_of_runs.NumRuns(10.0)
    assert num_runs.draw(seed_of(7)) == num_runs.draw(seed_of(7))
    assert len({num_runs.draw(seed_of(i)) for i in range(50)}) > 5
    assert num_runs.quantile(0.5) == next(k for k in range(1, 99) if stats.geom(0.1).cdf(k) >= 0.5)


def test_candidates_are_equally_likely():
    tuning = dataclasses.replace(TUNING, candidates=('a', 'b', 'c', 'd'))
    drawn = np.array([[tuning.draw_candidate(seed_of(i), run) for run in range(3)] for i in range(3000)])
    for run in range(3):
        assert stats.chisquare(np.bincount(drawn[:, run], minlength=4)).pvalue > 1e-6
    pairs = np.bincount(4 * drawn[:, 0] + drawn[:, 1], minlength=16)
    assert stats.chisquare(pairs).pvalue > 1e-6
    # Control: one that is drawn a little more often is noticed.
    favouring = np.where((drawn[:, 0] == 3) & (np.arange(3000) % 4 == 0), 0, drawn[:, 0])
    assert not stats.chisquare(np.bincount(favouring, minlength=4)).pvalue > 1e-6


@pytest.mark.parametrize('mean, eta', DISTRIBUTIONS)
@pytest.mark.parametrize('rho', [1e-3, 0.05, 2.0])
def test_divergences_are_those_of_dp_accounting_and_never_below(mean, eta, rho):
    accountant = rdp.RdpAccountant(list(ORDERS))
    accountant.compose(dp_event.RepeatAndSelectDpEvent(dp_event.ZCDpEvent(rho), mean, eta))
    found = best_of_runs.NumRuns(mean, eta).renyi_of_best(ORDERS, rho * ORDERS)
    # It knows gamma to 1e-9, and rounds it to the safe side.
    np.testing.assert_allclose(found, accountant.rdp, rtol=1e-7)
    assert np.all(found >= accountant.rdp - 1e-7 * accountant.rdp)


@pytest.mark.parametrize('mean, eta', DISTRIBUTIONS)
def test_divergences_are_the_formula_of_the_theorem(mean, eta):
    num_runs, of_a_run = best_of_runs.NumRuns(mean, eta), 0.2 * ORDERS
    for order, found in zip(ORDERS, num_runs.renyi_of_best(ORDERS, of_a_run)):
        at_orders = [
            epsilon + (1.0 + eta) * (1.0 - 1.0 / hat) * epsilon_hat
            + (1.0 + eta) * math.log(1.0 / num_runs.gamma) / hat
            + math.log(mean) / (larger - 1.0)
            for larger, epsilon in zip(ORDERS, of_a_run) if larger >= order
            for hat, epsilon_hat in zip(ORDERS, of_a_run)
        ]  # fmt: skip
        assert min(at_orders) <= found <= min(at_orders) * (1.0 + 1e-9) + 1e-9


def delta_of_the_largest(sigma, gamma, eta, epsilon):
    """Returns the delta of telling the largest of K numbers, each x + N(0, sigma^2), at x = 0 and 1: by integrals.

    The density of the largest is f(y) G'(F(y)), with the generating function G of K.
    """

    y = np.linspace(-12.0 * sigma, 12.0 * sigma + 1.0, 20_001)

    def density(x):
        rest = 1.0 - (1.0 - gamma) * special.ndtr((y - x) / sigma)  # G'(z) goes with (1 - (1 - gamma) z)^-(1 + eta).
        scale = (1.0 - gamma) / -math.log(gamma) if eta == 0.0 else eta * (1.0 - gamma) / (gamma**-eta - 1.0)
        return np.exp(-0.5 * ((y - x) / sigma) ** 2) / (sigma * math.sqrt(2.0 * math.pi)) * scale / rest ** (1.0 + eta)

    ones = [density(x) for x in (0.0, 1.0)]
    assert all(abs(integrate.simpson(one, x=y) - 1.0) < 1e-9 for one in ones)
    return max(
        integrate.simpson(np.maximum(one - math.exp(epsilon) * other, 0.0), x=y) for one, other in (ones, ones[::-1])
    )


@pytest.mark.parametrize('mean, eta', [(4.0, 0.0), (4.0, 1.0), (30.0, 0.5), (30.0, 2.0)])
@pytest.mark.parametrize('sigma', [1.0, 4.0])
def test_epsilon_is_not_below_that_of_a_real_choice(mean, eta, sigma):
    delta, num_runs = 1e-4, best_of_runs.NumRuns(mean, eta)
    of_a_run = ledger_lib.Ledger().record('number', sigma, 1.0)
    epsilon = accounting.epsilon(of_a_run.best_of(num_runs).dp_event(), delta)
    assert delta_of_the_largest(sigma, num_runs.gamma, eta, epsilon) <= delta
    # Control: the epsilon of one run is passed by the choice.
    alone = accounting.epsilon(of_a_run.dp_event(), delta)
    assert delta_of_the_largest(sigma, num_runs.gamma, eta, alone) > 1.5 * delta


def epsilon_of_gaussians(sigma, count, num_runs, delta):
    """Returns the bound of theorem 2 over a fine grid of orders, turned into epsilon by proposition 12 of CKS 2020."""
    orders = np.concatenate([np.geomspace(1.001, 2.0, 500), np.geomspace(2.0, 2000.0, 1500)])
    of_a_run = count * orders / (2.0 * sigma**2)
    hat = np.min((1.0 - 1.0 / orders) * of_a_run + math.log(1.0 / num_runs.gamma) / orders)
    best = of_a_run + (1.0 + num_runs.eta) * hat + math.log(num_runs.mean) / (orders - 1.0)
    return np.min(best + np.log1p(-1.0 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1.0))


@pytest.mark.parametrize('mean, eta', [(2.0, 1.0), (10.0, 0.0), (10.0, 1.0)])
@pytest.mark.parametrize('sigma, count', [(2.0, 1), (8.0, 20), (30.0, 3)])
def test_epsilon_is_that_of_the_closed_formula(mean, eta, sigma, count):
    num_runs = best_of_runs.NumRuns(mean, eta)
    event = ledger_lib.Ledger().record('number', sigma, 1.0, count=count).best_of(num_runs).dp_event()
    expected = epsilon_of_gaussians(sigma, count, num_runs, 1e-5)
    for accountant in accounting.ACCOUNTANTS:
        found = accounting.epsilon(event, 1e-5, accountant=accountant)
        assert 0.9999 * expected <= found <= 1.02 * expected


def test_choices_and_releases_add_up():
    of_a_run, num_runs = ledger_lib.Ledger().record('number', 8.0, 1.0), best_of_runs.NumRuns(4.0)
    best = of_a_run.best_of(num_runs)
    other = ledger_lib.Ledger().record('other', 6.0, 1.0)
    together = ledger_lib.Ledger(best.releases + other.releases)
    accountant = rdp.RdpAccountant()
    found = accounting.epsilon(together.dp_event(), 1e-5)
    assert found == pytest.approx(accountant.compose(together.dp_event()).get_epsilon(1e-5), rel=2e-2)
    assert found > max(accounting.epsilon(part.dp_event(), 1e-5) for part in (best, other))
    twice = ledger_lib.Ledger(best.releases + best.releases)
    (part,) = epsilon_bounds.steps_of(twice.dp_event())
    assert part.times == 2 and accounting.epsilon(twice.dp_event(), 1e-5) > accounting.epsilon(best.dp_event(), 1e-5)


@pytest.mark.parametrize(
    'arguments',
    [
        {'mean': 1.0},
        {'mean': 0.5},
        {'mean': 1001.0},
        {'mean': math.nan},
        {'mean': math.inf},
        {'mean': 4.0, 'eta': -0.5},
        {'mean': 4.0, 'eta': 1e-6},
        {'mean': 4.0, 'eta': math.inf},
        {'mean': 4.0, 'eta': math.nan},
    ],
)
def test_other_distributions_are_refused(arguments):
    with pytest.raises(ValueError, match='of the number of runs'):
        best_of_runs.NumRuns(**arguments)


@pytest.mark.parametrize(
    'orders, of_a_run',
    [
        ([1.0, 2.0], [0.1, 0.2]),
        ([0.5, 2.0], [0.1, 0.2]),
        ([3.0, 2.0], [0.1, 0.2]),
        ([2.0, math.inf], [0.1, 0.2]),
        ([2.0, 3.0], [-0.1, 0.2]),
        ([2.0, 3.0], [math.nan, 0.2]),
        ([2.0, 3.0], [0.2]),
        ([], []),
    ],
)
def test_what_the_theorem_is_not_about_is_refused(orders, of_a_run):
    with pytest.raises(ValueError):
        best_of_runs.NumRuns(4.0).renyi_of_best(np.array(orders), np.array(of_a_run))
    assert np.all(np.isfinite(best_of_runs.NumRuns(4.0).renyi_of_best(np.array([2.0, 3.0]), np.array([0.1, 0.2]))))


def test_poisson_numbers_and_choices_among_choices_are_refused():
    gaussian = dp_accounting.GaussianDpEvent(3.0)
    with pytest.raises(ValueError, match='eta'):
        accounting.epsilon(dp_event.RepeatAndSelectDpEvent(gaussian, 4.0, math.inf), 1e-5)
    once = dp_event.RepeatAndSelectDpEvent(gaussian, 4.0, 1.0)
    with pytest.raises(ValueError, match='no choices of their own'):
        accounting.epsilon(dp_event.RepeatAndSelectDpEvent(once, 4.0, 1.0), 1e-5)
    with pytest.raises(ValueError, match='Gaussian'):
        accounting.epsilon(dp_event.RepeatAndSelectDpEvent(dp_accounting.LaplaceDpEvent(1.0), 4.0, 1.0), 1e-5)


def test_choice_among_runs_without_noise_has_no_epsilon():
    without = ledger_lib.Ledger().record('number', 0.0, 1.0).best_of(best_of_runs.NumRuns(4.0))
    assert math.isinf(accounting.epsilon(without.dp_event(), 1e-5))


def test_ledger_of_a_choice_is_read_as_it_was_written():
    ledger = make_plan().planned_ledger()
    text = ledger.to_json()
    assert ledger_lib.Ledger.from_json(text) == ledger and ledger.count(ledger_lib.DP_SGD_STEP) == 20
    assert ledger.contains(ledger) and not ledger_lib.Ledger(ledger.of_single_runs).contains(ledger)
    # Control: whoever knows of single releases alone does not take it for them.
    with pytest.raises(TypeError):
        [ledger_lib.Release(**fields) for fields in json.loads(text)]
    for damaged in (text.replace('"mean": 4.0', '"mean": 0.5'), text.replace('"releases"', '"relaxes"')):
        with pytest.raises((TypeError, ValueError, KeyError)):
            ledger_lib.Ledger.from_json(damaged)


def make_plan(tuning=TUNING, **changes):
    return plan_lib.make_plan(dataclasses.replace(CONFIG, **changes), 1000, tuning=tuning)


def test_noise_is_calibrated_for_the_whole():
    plan, alone = make_plan(), make_plan(tuning=None)
    (choice,) = plan.planned_ledger().releases
    assert [r.mechanism for r in choice.releases] == [accuracy_release.HELD_OUT_ACCURACY, ledger_lib.DP_SGD_STEP]
    accountant = rdp.RdpAccountant([*range(2, 64), 128, 256])
    of_a_run = dp_accounting.ComposedDpEvent(
        [
            dp_accounting.GaussianDpEvent(20.0),
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(0.2, dp_accounting.GaussianDpEvent(plan.noise_multiplier)), 20
            ),
        ]
    )
    accountant.compose(dp_event.RepeatAndSelectDpEvent(of_a_run, 4.0, 1.0))
    assert 0.98 * accountant.get_epsilon(1e-4) <= plan.epsilon() <= 4.0
    assert plan.epsilon() <= accountant.get_epsilon(1e-4) * (1.0 + 1e-6)  # Which has fewer orders.
    assert plan.epsilon() > 3.99 and plan.noise_multiplier > 1.2 * alone.noise_multiplier
    # Controls: a hundredth less noise passes the target, and so does the noise of one run.
    for noise_multiplier in (0.99 * plan.noise_multiplier, alone.noise_multiplier):
        with pytest.raises(accounting.BudgetError):
            make_plan(noise_multiplier=noise_multiplier)


def test_score_is_paid_for():
    free = dataclasses.replace(TUNING, score_noise_multiplier=None)
    dear = dataclasses.replace(TUNING, score_noise_multiplier=2.0)
    noises = [make_plan(tuning=tuning).noise_multiplier for tuning in (free, TUNING, dear)]
    assert noises == sorted(noises) and len(set(noises)) == 3
    sensitivity = accuracy_release.AccuracyReleaseConfig(20.0).sensitivity(1)
    assert sensitivity == 1.0


def test_steps_of_a_run_lead_to_the_planned_ledger():
    plan, ledger = make_plan(), ledger_lib.Ledger()
    for step in range(20):
        ledger = plan.record_step(ledger)
        assert ledger.count(ledger_lib.DP_SGD_STEP) == step + 1
        assert ledger.count(accuracy_release.HELD_OUT_ACCURACY) == 1
        # However far a run is, the choice costs what the whole of it costs.
        assert plan.epsilon(ledger) == plan.epsilon() == accounting.epsilon(plan.dp_event(1), 1e-4)
    assert ledger == plan.planned_ledger()
    with pytest.raises(accounting.BudgetError):
        plan.record_step(ledger)
    for foreign in (make_plan(tuning=None).planned_ledger(3), make_plan(other_mean()).planned_ledger(3)):
        with pytest.raises(ValueError, match='not that of a run of this choice'):
            plan.record_step(foreign)


def other_mean():
    return dataclasses.replace(TUNING, num_runs=best_of_runs.NumRuns(3.0))


@pytest.mark.parametrize(
    'changes',
    [
        {'noise_multiplier': 0.0, 'target_epsilon': None},
        {'noise_multiplier': 2.0, 'target_epsilon': None, 'sampling': 'shuffled_batches'},
    ],
)
def test_runs_without_a_guarantee_are_not_chosen_among(changes):
    with pytest.raises(ValueError, match='has a guarantee'):
        make_plan(**changes)
    make_plan(tuning=None, **changes)  # Control.


def test_going_on_with_another_choice_is_told_apart():
    begun = make_plan().fingerprint()
    for other in (None, other_mean(), dataclasses.replace(TUNING, candidates=('rate 1', 'rate 3'))):
        assert make_plan(tuning=other).fingerprint() != begun
    assert 'tuning' not in make_plan(tuning=None).fingerprint()  # Runs that were begun before go on.


def make_statement(plan=None, **options):
    plan = plan or make_plan()
    return statement_lib.PrivacyStatement('one image', 'toy', plan, plan.planned_ledger(), 8, candidate=1, **options)


def test_statement_tells_the_choice_and_nothing_of_the_draw():
    made = make_statement()
    fields, text = made.to_dict(), ' '.join(made.to_text().split())
    assert fields['epsilon'] == make_plan().epsilon() == fields['epsilon_by_accountant']['rdp']
    assert fields['best_of_runs'] == {
        'distribution_of_number_of_runs': 'truncated negative binomial',
        'mean': 4.0,
        'eta': 1.0,
        'gamma': pytest.approx(0.25),
        'score': 'accuracy of something',
        'score_noise_multiplier': 20.0,
        'candidates': ['rate 1', 'rate 2'],
        'released_candidate': 'rate 2',
        'accounting': 'Papernot and Steinke 2022, arXiv:2110.03620, theorem 2',
    }
    for words in (
        'truncated negative binomial distribution with mean 4, eta 1 and gamma 0.25',
        'no privacy loss distribution (PLD) is known',
        'rate 2 (this one)',
        'largest accuracy of something',
        'noise multiplier 20',
        'stays secret',
        'other than that among the candidates (tuning)',
    ):
        assert words in text, words
    assert 'RepeatAndSelect' in fields['dp_event'] and made.epsilon_over_steps() == []
    recomputed = ledger_lib.Ledger.from_json(json.dumps(fields['releases']))
    assert accounting.epsilon(recomputed.dp_event(), 1e-4) == fields['epsilon']
    plain = statement_lib.PrivacyStatement('one image', 'toy', make_plan(None), make_plan(None).planned_ledger(), 8)
    assert 'best_of_runs' not in plain.to_dict() and 'candidate' not in plain.to_text()


@pytest.mark.parametrize('tuning, candidate', [(None, 0), (TUNING, None), (TUNING, 2), (TUNING, -1)])
def test_statement_of_no_candidate_is_refused(tuning, candidate):
    plan = make_plan(tuning)
    with pytest.raises(ValueError, match='candidate'):
        statement_lib.PrivacyStatement('one image', 'toy', plan, plan.planned_ledger(), 8, candidate=candidate)


def test_cut_tail_counts_for_each_of_the_runs_and_on_both_sides():
    ledger = make_plan().planned_ledger()
    (choice,) = ledger.releases
    of_a_run = meaning.tail_delta(ledger_lib.Ledger(choice.releases), 1, generator='philox')
    assert meaning.tail_delta(ledger, 1, generator='philox') == pytest.approx(4.0 * of_a_run, rel=1e-8)
    stated = make_statement().to_dict()['noise_tail_adds_to_delta_at_most']
    assert stated == pytest.approx(4.0 * of_a_run * (1.0 + math.exp(make_plan().epsilon())), rel=1e-6)
    assert of_a_run > noise.tail_delta(20.0, num_draws=21, num_numbers=10, generator='philox')


def test_attacks_and_groups_are_bounded_by_the_whole():
    whole, alone = make_plan().dp_event(), make_plan(tuning=None, **noise_of(make_plan())).dp_event()
    for rate in (0.001, 0.1):
        assert meaning.true_positive_rate(whole, rate) > meaning.true_positive_rate(alone, rate)
    assert not meaning.gaussian_mu(whole).is_proven
    assert meaning.group_epsilon(whole, 1, 1e-4) == pytest.approx(make_plan().epsilon(), rel=1e-6)
    # Two units of Gaussian releases move them twice as far: half the noise.
    num_runs = best_of_runs.NumRuns(4.0)
    best, of_two = (
        ledger_lib.Ledger().record('number', sigma, 1.0).best_of(num_runs).dp_event() for sigma in (16.0, 8.0)
    )
    assert meaning.group_epsilon(best, 2, 1e-4) == pytest.approx(accounting.epsilon(of_two, 1e-4), rel=1e-6)
    # All units take part, but a choice of Gaussian releases is no Gaussian one.
    assert not meaning.gaussian_mu(best).is_proven


def noise_of(plan):
    return {'noise_multiplier': plan.noise_multiplier}


def test_budget_holds_a_choice_as_a_whole():
    planned = make_plan().planned_ledger()
    about = {'dataset': 'toy', 'data_fingerprint': 'f', 'unit': 'one image', 'time': 'now'}
    budget = budget_lib.Budget(5.0, 1e-4).reserve('a', planned, **about)
    assert budget.epsilon() == make_plan().epsilon() and budget.reserve('a', planned, **about) is budget
    assert budget_lib.Budget.from_json(budget.to_json()) == budget
    settled = budget.settle('a', planned)
    assert settled.reserve('a', planned, **about) is settled and settled.epsilon() == budget.epsilon()
    with pytest.raises(accounting.BudgetError):
        budget.reserve('b', planned, **about)


@pytest.mark.parametrize('owners', [None, np.array([0, 0, 1, 1, 1, 2])])
def test_score_is_the_accuracy_with_the_noise_that_is_charged(owners):
    config = accuracy_release.AccuracyReleaseConfig(3.0)
    correct = np.array([True, False, True, True, False, True])[:, None]
    exact = config.exact_vector(correct, owners)[0]

    def noises(scale=1.0):
        scores = np.array(
            [
                config.score(correct, seed=seed_of(i), num_units=10, owners=owners, generator='philox')
                for i in range(3000)
            ]
        )
        return (10.0 * scores - exact) / (scale * 3.0)

    assert stats.kstest(noises(), 'norm').pvalue > 1e-6 and noises().max() > 2.0  # It is not clipped.
    for wrong in (2 / 3, 3 / 2):  # Controls.
        assert stats.kstest(noises(wrong), 'norm').pvalue < 1e-6
    again = config.score(~correct, seed=seed_of(1), num_units=10, owners=owners, generator='philox')
    difference = (config.exact_vector(~correct, owners)[0] - exact) / 10.0
    first = config.score(correct, seed=seed_of(1), num_units=10, owners=owners, generator='philox')
    assert abs(again - first - difference) > 1e-6  # Other right answers get other noise.
    with pytest.raises(ValueError, match='one classifier'):
        config.score(np.hstack([correct, correct]), seed=seed_of(1), num_units=10, owners=owners, generator='philox')
