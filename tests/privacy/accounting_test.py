"""Tests of the accountant against closed forms, published numbers, and itself."""

import functools
import math
import warnings

import dp_accounting
from dp_accounting import pld
from dp_accounting import rdp
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution
import numpy as np
import pytest
from scipy import fft
from scipy import optimize
from scipy import special
from scipy import stats

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import ledger as ledger_lib


def gaussian_epsilon(noise_multiplier, delta):
    """The exact epsilon of one Gaussian release (Balle and Wang 2018, arXiv:1805.06530, Theorem 8)."""

    def excess(eps):
        a, b = 0.5 / noise_multiplier, eps * noise_multiplier
        return stats.norm.cdf(a - b) - math.exp(eps) * stats.norm.cdf(-a - b) - delta

    return optimize.brentq(excess, 0.0, 200.0)


def log_phi(x):
    return special.log_ndtr(x)


def one_step_epsilon(noise_multiplier, sampling_probability, delta):
    """The exact epsilon of one Poisson-sampled Gaussian step where a unit is removed, in logarithms: for any delta.

    The loss is above epsilon where the noisy sum is above t, so delta = q Phi(1 / s - t / s) - (e^epsilon - 1 + q)
    Phi(-t / s) with e^epsilon - 1 + q = q e^((2 t - 1) / (2 s^2)): Balle and Wang's where q = 1.
    """
    q, s = sampling_probability, noise_multiplier

    def log_delta(t):
        upper, lower = log_phi((1.0 - t) / s), (2.0 * t - 1.0) / (2.0 * s**2) + log_phi(-t / s)
        return math.log(q) + upper + math.log1p(-math.exp(min(lower - upper, -1e-17)))

    t = optimize.brentq(lambda t: log_delta(t) - math.log(delta), -10.0 * s, 1.0 + 45.0 * s)
    return max(math.log1p(q * math.expm1((2.0 * t - 1.0) / (2.0 * s**2))), 0.0)


@pytest.mark.parametrize('noise_multiplier, num_steps', [(3.0, 1), (1.0, 1), (10.0, 50)])
def test_unsampled_gaussian_matches_the_closed_form(noise_multiplier, num_steps):
    event = ledger_lib.dp_event(noise_multiplier, 1.0, num_steps)
    exact = gaussian_epsilon(noise_multiplier / math.sqrt(num_steps), 1e-5)
    spent = accounting.epsilon(event, 1e-5)
    assert exact - 1e-9 <= spent <= exact * 1.001


# Noise multipliers of the paper's three settings, by PLD and Poisson sampling.
RECIPES = [
    (60000, 4096, 4000, 1e-5, 2.282, 10.0),
    (50000, 16384, 200, 1e-5, 2.451, 10.0),
    pytest.param(302436, 16384, 200, 3e-6, 0.763, 10.0, marks=pytest.mark.long),
    (60000, 4096, 4000, 1e-5, 16.222, 1.0),
    (50000, 16384, 200, 1e-5, 17.384, 1.0),
    (302436, 16384, 200, 3e-6, 3.259, 1.0),
]


@pytest.mark.parametrize('num_units, batch_size, num_steps, delta, noise_multiplier, target', RECIPES)
def test_recipes_are_calibrated_to_their_known_noise_and_rdp_bounds_them_from_above(
    num_units, batch_size, num_steps, delta, noise_multiplier, target
):

    def make_event(sigma):
        return ledger_lib.dp_event(sigma, batch_size / num_units, num_steps)

    calibrated = accounting.calibrate_noise_multiplier(make_event, target, delta)
    assert calibrated == pytest.approx(noise_multiplier, rel=5e-3)
    spent = accounting.epsilon(make_event(calibrated), delta)
    assert spent <= target
    assert spent == pytest.approx(target, rel=2e-3)
    assert accounting.epsilon(make_event(calibrated), delta, accountant='rdp') >= spent


def direct_event(noise_multiplier, sampling_probability, num_steps):
    """The steps as dp_accounting's documentation has them, none of our code involved."""
    step = dp_accounting.PoissonSampledDpEvent(sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier))
    return dp_accounting.SelfComposedDpEvent(step, num_steps)


def direct_epsilon(noise_multiplier, sampling_probability, num_steps, delta=1e-5):
    event = direct_event(noise_multiplier, sampling_probability, num_steps)
    return pld.PLDAccountant().compose(event).get_epsilon(delta)


@pytest.mark.parametrize('num_units, batch_size, num_steps, delta, noise_multiplier, target', RECIPES)
def test_recipes_cost_what_dp_accounting_says_when_it_is_called_directly(
    num_units, batch_size, num_steps, delta, noise_multiplier, target
):
    arguments = noise_multiplier, batch_size / num_units, num_steps
    event = ledger_lib.dp_event(*arguments)
    spent = accounting.epsilon(event, delta)
    direct = direct_epsilon(*arguments, delta)
    assert direct <= spent <= direct * (1.0 + 1e-7)  # What rounding may have taken off is put on.
    assert spent == pytest.approx(target, rel=6e-3)
    by_rdp = rdp.RdpAccountant().compose(direct_event(*arguments)).get_epsilon(delta)
    assert accounting.epsilon(event, delta, accountant='rdp') == pytest.approx(by_rdp, rel=1e-2)
    assert by_rdp >= spent


@pytest.mark.parametrize(
    'noise_multiplier, target', [(3.0, 2.0), (17.0, 0.5), pytest.param(1.0, 3.0, marks=pytest.mark.long)]
)
def test_most_steps_are_found_and_one_more_would_pass_the_target(noise_multiplier, target):
    found = accounting.solve_num_steps(lambda n: ledger_lib.dp_event(noise_multiplier, 0.05, n), target, 1e-5)
    assert isinstance(found, int) and found > 10
    assert direct_epsilon(noise_multiplier, 0.05, found) <= target < direct_epsilon(noise_multiplier, 0.05, found + 1)


@pytest.mark.parametrize(
    'num_units, target', [(50000, 2.0), pytest.param(300, 2.0, marks=pytest.mark.long), (300, 0.5)]
)
def test_largest_batch_is_found_and_one_unit_more_would_pass_the_target(num_units, target):
    found = accounting.solve_batch_size(lambda n: ledger_lib.dp_event(3.0, n / num_units, 100), target, 1e-5, num_units)
    assert isinstance(found, int) and 1 < found < num_units
    assert direct_epsilon(3.0, found / num_units, 100) <= target < direct_epsilon(3.0, (found + 1) / num_units, 100)


def test_largest_sampling_probability_is_found():
    found = accounting.solve_sampling_probability(lambda q: ledger_lib.dp_event(3.0, q, 100), 2.0, 1e-5)
    assert direct_epsilon(3.0, found, 100) <= 2.0 < direct_epsilon(3.0, 1.002 * found, 100)


def test_batch_never_passes_the_whole_data_set():

    def make_event(q):
        return ledger_lib.dp_event(100.0, q, 2)

    assert accounting.solve_batch_size(lambda units: make_event(units / 300), 3.0, 1e-5, 300) == 300
    assert accounting.solve_sampling_probability(make_event, 3.0, 1e-5) == 1.0


def test_other_releases_leave_less_for_the_steps():

    def make_event(num_steps, others):
        return dp_accounting.ComposedDpEvent([*others, ledger_lib.dp_event(3.0, 0.05, num_steps)])

    alone, beside = (
        accounting.solve_num_steps(lambda n, others=others: make_event(n, others), 2.0, 1e-5)
        for others in ([], [dp_accounting.GaussianDpEvent(3.0)])
    )
    assert 0 < beside < 0.8 * alone


@pytest.mark.parametrize(
    'solve, message',
    [
        (
            lambda: accounting.solve_num_steps(lambda n: ledger_lib.dp_event(4.0, 0.5, n), 0.1, 1e-5),
            'one step already costs',
        ),
        (
            lambda: accounting.solve_num_steps(lambda n: ledger_lib.dp_event(5000.0, 0.01, n), 10.0, 1e-5),
            '1,000,000 steps and more meet',
        ),
        (
            lambda: accounting.solve_batch_size(lambda b: ledger_lib.dp_event(3.0, b / 9, 9), 0.1, 1e-5, 9),
            'an expected batch of one unit already costs',
        ),
        (
            lambda: accounting.solve_sampling_probability(
                lambda q: dp_accounting.ComposedDpEvent(
                    [dp_accounting.GaussianDpEvent(20.0), ledger_lib.dp_event(5.0, q, 9)]
                ),
                0.1,
                1e-5,
            ),
            'a sampling probability of .* already costs',
        ),
    ],
)
def test_target_that_no_value_meets_is_refused_in_one_line(solve, message):
    with pytest.raises(accounting.BudgetError, match=message) as error:
        solve()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('target', [1000.0, pytest.param(100.0, marks=pytest.mark.long)])
def test_lax_target_is_met_and_nearly_used_up(target):

    def spent(noise_multiplier, **options):
        return accounting.epsilon(ledger_lib.dp_event(noise_multiplier, 0.1, 100), 1e-5, **options)

    found = accounting.calibrate_noise_multiplier(lambda s: ledger_lib.dp_event(s, 0.1, 100), target, 1e-5)
    assert found < 0.4 and spent(found) <= target < spent(0.99 * found)
    # A discretization ten times finer finds hardly less.
    finer = 1e-4 if target < 300.0 else 1e-3
    assert spent(found) == pytest.approx(spent(found, discretization_interval=finer), rel=1e-4)


def test_target_that_needs_no_noise_gets_some():
    found = accounting.calibrate_noise_multiplier(lambda s: ledger_lib.dp_event(s, 0.1, 100), 1e6, 1e-5)
    assert found == 0.1


def test_epsilon_of_the_same_releases_is_computed_once(monkeypatch):
    made = []
    original = privacy_loss_distribution.from_gaussian_mechanism
    monkeypatch.setattr(
        privacy_loss_distribution,
        'from_gaussian_mechanism',
        lambda *args, **options: made.append(args) or original(*args, **options),
    )

    def spent(noise_multiplier):
        return accounting.epsilon(
            dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(noise_multiplier)]), 1e-5
        )

    assert spent(3.21) == spent(3.21) and len(made) == 1
    assert spent(3.22) < spent(3.21) and len(made) == 2


SMALL_DELTAS = [1e-9, 1e-11, 1e-12, 1e-13, 1e-15, 1e-30, 1e-100, 1e-300]


@pytest.mark.parametrize('accountant', accounting.ACCOUNTANTS)
@pytest.mark.parametrize('delta', SMALL_DELTAS)
@pytest.mark.parametrize(
    'noise_multiplier, sampling_probability',
    [(0.5, 1.0), (3.0, 1.0), (30.0, 1.0), (1.0, 0.5), (0.7, 0.01), (1.0, 1e-6)],
)
def test_epsilon_at_a_tiny_delta_is_finite_and_not_below_the_closed_form(
    noise_multiplier, sampling_probability, delta, accountant
):
    exact = one_step_epsilon(noise_multiplier, sampling_probability, delta)
    if sampling_probability == 1.0 and delta >= 1e-13:
        assert exact == pytest.approx(gaussian_epsilon(noise_multiplier, delta), rel=1e-3)  # The oracle's own control.
    event = ledger_lib.dp_event(noise_multiplier, sampling_probability, 1)
    spent = accounting.epsilon(event, delta, accountant=accountant)
    assert exact * (1.0 - 1e-9) <= spent < math.inf
    if exact > 0.1:
        assert spent <= 1.25 * exact
    # More steps cost more, at any delta.
    more = ledger_lib.dp_event(noise_multiplier, sampling_probability, 1000)
    assert spent <= accounting.epsilon(more, delta, accountant=accountant) < math.inf


@pytest.mark.parametrize('delta, is_resolved', [(1e-9, True), (1e-11, False), (5e-13, False)])
def test_delta_that_the_rounding_of_a_convolution_comes_near_is_left_to_renyi_divergences(delta, is_resolved):
    event = direct_event(1.2, 1.0 / 60.0, 1000)
    assert (accounting.epsilon(event, delta) < accounting.epsilon(event, delta, accountant='rdp')) is is_resolved
    assert direct_epsilon(1.2, 1.0 / 60.0, 1000, delta) < accounting.epsilon(event, delta, accountant='rdp')


def test_dp_accounting_itself_finds_no_epsilon_for_many_steps_at_a_tiny_delta():
    # The control of the test above: what takes over there is needed.
    assert direct_epsilon(1.2, 1.0 / 60.0, 1000, 1e-15) == math.inf
    assert accounting.epsilon(direct_event(1.2, 1.0 / 60.0, 1000), 1e-15) < 6.0


def exact_epsilon_on_the_same_grid(noise_multiplier, sampling_probability, num_steps, delta, interval):
    """Epsilon with the privacy loss of a step as dp_accounting has it, composed in numbers of 80 bits."""
    worst = 0.0
    step = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=sampling_probability
    )
    for pmf in (step._pmf_remove.to_dense_pmf(), step._pmf_add.to_dense_pmf()):
        size = fft.next_fast_len(20 * len(pmf._probs))
        factor, power, exponent = fft.fft(pmf._probs.astype(np.longdouble), size), np.longdouble(1.0), num_steps
        while exponent:
            power = power * factor if exponent % 2 else power
            factor, exponent = factor * factor, exponent // 2
        losses = interval * (num_steps * pmf._lower_loss + np.arange(size)).astype(np.longdouble)
        # The composition may wrap around: it is begun where there is least.
        probs = np.real(fft.ifft(power))
        mean = num_steps * float((pmf._probs * interval * (pmf._lower_loss + np.arange(len(pmf._probs)))).sum())
        begin = int((mean - 0.5 * size * interval - float(losses[0])) / interval)
        probs, losses = np.roll(probs, -begin), losses + begin * interval

        def excess(eps, probs=probs, losses=losses):
            above = losses > eps
            return float((probs[above] * -np.expm1(eps - losses[above])).sum()) - delta

        worst = max(worst, optimize.brentq(excess, 0.0, float(losses[-1]), xtol=1e-12))
    return worst


@pytest.mark.parametrize(
    'noise_multiplier, sampling_probability, num_steps',
    [(1.2, 1.0 / 60.0, 1000), (0.8, 0.01, 1000), (2.0, 0.05, 3000), (2.0, 0.01, 30000)],
)
def test_rounding_of_the_convolution_never_takes_off_epsilon(noise_multiplier, sampling_probability, num_steps):
    delta = 1.01 * 2.0**-44 * num_steps  # The smallest that is left to the convolution.
    interval = 1e-3 if num_steps < 10**4 else 1e-4
    event = ledger_lib.dp_event(noise_multiplier, sampling_probability, num_steps)
    spent = accounting.epsilon(event, delta, discretization_interval=interval)
    exact = exact_epsilon_on_the_same_grid(noise_multiplier, sampling_probability, num_steps, delta, interval)
    assert exact <= spent <= exact * (1.0 + 5e-3)
    assert spent < 0.999 * accounting.epsilon(event, delta, accountant='rdp')  # The control: PLD it is.


def optimistic_epsilon(noise_multiplier, sampling_probability, num_steps, delta):
    """A lower bound of epsilon, by dp_accounting."""
    step = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=1e-3,
        sampling_prob=sampling_probability,
    )
    return step.self_compose(num_steps).get_epsilon_for_delta(delta)


EXTREMES = [
    (1e-3, 1.0, 1),
    (1e-3, 0.01, 1000),
    (0.03, 0.5, 10),
    (0.1, 0.01, 10**5),
    pytest.param(0.3, 1e-9, 10**6, marks=pytest.mark.long),  # As large a grid as there is, none larger than asked for.
    (1.0, 0.01, 10**7),
    (1.0, 1e-4, 10**9),
    (5.0, 0.5, 10**7),
    (1e3, 0.5, 1000),
    (1e6, 0.3, 1),
    (1e6, 0.999999, 10**7),
]


@pytest.mark.parametrize('noise_multiplier, sampling_probability, num_steps', EXTREMES)
def test_extreme_settings_are_answered_with_bounded_work(
    monkeypatch, noise_multiplier, sampling_probability, num_steps
):
    sizes = []

    def recorded(original, *args, **options):
        made = original(*args, **options)
        sizes.append(made.size)
        return made

    for cached in (epsilon_bounds._step_pld, epsilon_bounds._pld_epsilon):
        cached.cache_clear()
    for name in ('self_compose', 'compose'):
        original = getattr(pld_pmf.DensePLDPmf, name)
        monkeypatch.setattr(
            pld_pmf.DensePLDPmf, name, functools.partialmethod(lambda *a, o: recorded(o, *a), o=original)
        )
    event = ledger_lib.dp_event(noise_multiplier, sampling_probability, num_steps)
    for delta in (1e-30, 1e-9, 1e-5, 0.5):
        by_pld, by_rdp = (accounting.epsilon(event, delta, accountant=name) for name in accounting.ACCOUNTANTS)
        assert 0.0 <= by_pld <= by_rdp < math.inf
        assert by_pld == accounting.epsilon(event, delta)
    assert max(sizes, default=0) < 30 * epsilon_bounds.MAX_POINTS


@pytest.mark.parametrize(
    'noise_multiplier, sampling_probability, num_steps, delta',
    [(0.7, 0.01, 100, 1e-5), (1.2, 1.0 / 60.0, 1000, 1e-8), (3.0, 1e-3, 10**5, 1e-5), (30.0, 0.5, 10**4, 1e-6)],
)
def test_epsilon_is_not_below_a_lower_bound_and_close_to_it(noise_multiplier, sampling_probability, num_steps, delta):
    event = ledger_lib.dp_event(noise_multiplier, sampling_probability, num_steps)
    below = optimistic_epsilon(noise_multiplier, sampling_probability, num_steps, delta)
    assert below <= accounting.epsilon(event, delta) <= accounting.epsilon(event, delta, accountant='rdp')


@pytest.mark.parametrize(
    'axis, values, sign',
    [
        (0, (1e-3, 0.02, 0.3, 1.0, 5.0, 1e3, 1e6), -1),
        (1, (1e-9, 1e-5, 1e-3, 0.1, 0.5, 0.9), 1),
        (2, (1, 10, 1000, 10**5, 10**7, 10**9), 1),
        (3, (1e-300, 1e-15, 1e-12, 1e-10, 1e-7, 1e-4, 0.1, 0.999), -1),
    ],
)
@pytest.mark.parametrize(
    'others',
    [
        (1.0, 0.01, 1000, 1e-5),
        *(pytest.param(other, marks=pytest.mark.long) for other in ((30.0, 0.3, 1000, 1e-9), (0.4, 1e-3, 100, 1e-11))),
    ],
)
def test_epsilon_is_monotone_over_extremes(axis, values, sign, others):
    spent = []
    for value in values:
        *setting, delta = (value if i == axis else other for i, other in enumerate(others))
        spent.append(sign * accounting.epsilon(ledger_lib.dp_event(*setting), delta))
    assert spent == sorted(spent) and len(set(spent)) > 2


@pytest.mark.parametrize('noise_multiplier, sampling_probability', [(1e6, 1e-3), (1e4, 1e-5), (100.0, 1e-6)])
def test_divergence_that_rounding_hides_is_counted(noise_multiplier, sampling_probability):
    # Together the steps are as one Gaussian release of noise 1000 or less, whose epsilon is not zero.
    num_steps = round((noise_multiplier / sampling_probability / 1000.0) ** 2)
    event = ledger_lib.dp_event(noise_multiplier, sampling_probability, num_steps)
    truth = gaussian_epsilon(1000.0, 1e-6)
    assert truth > 1e-3
    assert truth < accounting.epsilon(event, 1e-6, accountant='rdp') < math.inf
    assert truth < accounting.epsilon(event, 1e-6) < math.inf


@pytest.mark.parametrize('noise_multiplier', [1e-300, 1e-10, 0.99e-3])
def test_noise_that_hides_nothing_counts_as_none(noise_multiplier):
    event = ledger_lib.dp_event(noise_multiplier, 0.1, 10)
    assert accounting.epsilon(event, 1e-5) == accounting.epsilon(event, 1e-5, accountant='rdp') == math.inf
    assert accounting.epsilon(ledger_lib.dp_event(1e-3, 0.1, 10), 1e-5) < math.inf


def test_release_that_no_accountant_covers_is_refused_by_name():
    with pytest.raises(ValueError, match='only Gaussian releases .* LaplaceDpEvent'):
        accounting.epsilon(dp_accounting.LaplaceDpEvent(1.0), 1e-5)


@pytest.mark.parametrize(
    'target, delta, sampling_probability, num_steps',
    [
        (5.0, 1e-12, 1000 / 60000, 1000),
        (5.0, 1e-15, 1000 / 60000, 1000),
        (1.0, 1e-300, 0.1, 10),
        (1e-3, 1e-5, 1e-6, 10),
        (3.0, 1e-5, 0.01, 10**7),
        pytest.param(1e6, 1e-5, 0.5, 10**7, marks=pytest.mark.long),  # A target of 1000 is met above.
        pytest.param(1.0, 1e-6, 1e-3, 10**4, marks=pytest.mark.long),
        (0.5, 0.999, 0.3, 10),
    ],
)
def test_calibration_meets_extreme_targets_without_tolerance(target, delta, sampling_probability, num_steps):

    def spent(noise_multiplier):
        return accounting.epsilon(ledger_lib.dp_event(noise_multiplier, sampling_probability, num_steps), delta)

    found = accounting.calibrate_noise_multiplier(
        lambda s: ledger_lib.dp_event(s, sampling_probability, num_steps), target, delta
    )
    assert spent(found) <= target
    assert found == 0.1 or spent(0.99 * found) > target or spent(0.99 * found) == 0.0


SLOW_SEARCHES = [
    lambda: accounting.calibrate_noise_multiplier(lambda s: ledger_lib.dp_event(s, 1e-9, 10**6), 1e-3, 1e-5),
    lambda: accounting.calibrate_noise_multiplier(lambda s: ledger_lib.dp_event(s, 1e-6, 1000), 1e-3, 1e-5),
    lambda: accounting.solve_num_steps(lambda n: ledger_lib.dp_event(0.4, 1e-6, n), 0.1, 1e-5),
    lambda: accounting.solve_sampling_probability(lambda q: ledger_lib.dp_event(1e-3, q, 1000), 10.0, 1e-5),
]


def less_slow_search():
    return accounting.solve_batch_size(lambda b: ledger_lib.dp_event(0.4, b / 10**6, 10**4), 0.1, 1e-5, 10**6)


def points_of_grids(monkeypatch, solve):
    """Returns how many points a search has looked at: those of the steps' grids, and a fifth of the compositions'."""
    sizes = []
    make, compose = privacy_loss_distribution.from_gaussian_mechanism, pld_pmf.DensePLDPmf.self_compose

    def made(*args, **options):
        found = make(*args, **options)
        sizes.append(found._pmf_remove.size)
        return found

    def composed(self, *args):
        found = compose(self, *args)
        sizes.append(found.size / 10.0)  # Of a step there are two: units are added or removed.
        return found

    for cached in (epsilon_bounds._step_pld, epsilon_bounds._pld_epsilon):
        cached.cache_clear()
    monkeypatch.setattr(privacy_loss_distribution, 'from_gaussian_mechanism', made)
    monkeypatch.setattr(pld_pmf.DensePLDPmf, 'self_compose', composed)
    assert solve() > 0.0
    return sum(sizes)


@pytest.mark.parametrize(
    'solve', [less_slow_search, *(pytest.param(solve, marks=pytest.mark.long) for solve in SLOW_SEARCHES)]
)
def test_search_among_extremes_ends_with_bounded_work(monkeypatch, solve):
    assert points_of_grids(monkeypatch, solve) < 2_500_000


@pytest.mark.long
def test_work_of_a_search_is_bounded_by_what_it_counts(monkeypatch):
    # The control of the test above: without a limit the first takes five million points, and with none left few.
    usual = points_of_grids(monkeypatch, SLOW_SEARCHES[0])
    monkeypatch.setattr(accounting, '_MAX_POINTS_OF_EXACT_TRIES', 0)
    assert points_of_grids(monkeypatch, SLOW_SEARCHES[0]) < 0.6 * usual


@pytest.mark.parametrize('target', [700.0, 709.5, 730.0, 745.5, 760.0])
def test_losses_whose_exponentials_have_few_digits_are_counted_from_above(target):

    def log_delta(noise_multiplier):  # The closed form of one release, in logarithms.
        a, b = 0.5 / noise_multiplier, target * noise_multiplier
        upper, lower = log_phi(a - b), target + log_phi(-a - b)
        return upper + math.log1p(-math.exp(min(lower - upper, -1e-17)))

    noise_multiplier = optimize.brentq(lambda s: log_delta(s) - math.log(1e-5), 0.02, 0.1)
    event = ledger_lib.dp_event(noise_multiplier, 1.0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert target * (1.0 - 1e-9) <= accounting.epsilon(event, 1e-5) < 1.1 * target


def test_budget_that_only_a_tiny_delta_makes_hard_is_met_with_little_more_noise():
    # By the convolution alone, which at this delta is noise, 1.2 costs 4.22.
    found = accounting.calibrate_noise_multiplier(lambda s: ledger_lib.dp_event(s, 1000 / 60000, 1000), 5.0, 1e-12)
    assert 1.09 < found < 1.15


@pytest.mark.parametrize(
    'solve',
    [
        lambda delta: accounting.solve_num_steps(lambda n: ledger_lib.dp_event(4.0, 0.02, n), 3.0, delta),
        pytest.param(
            lambda delta: accounting.solve_batch_size(
                lambda b: ledger_lib.dp_event(4.0, b / 1000, 100), 3.0, delta, 1000
            ),
            marks=pytest.mark.long,  # A whole number is searched for as in the first.
        ),
        lambda delta: accounting.solve_sampling_probability(lambda q: ledger_lib.dp_event(4.0, q, 100), 3.0, delta),
    ],
)
def test_smaller_delta_leaves_less(solve):
    found = [solve(delta) for delta in (1e-5, 1e-12, 1e-15, 1e-30)]
    assert found == sorted(found, reverse=True) and found[-1] > 0 and len(set(found)) == 4


def test_calibration_off_by_one_percent_would_be_noticed():

    def make_event(sigma):
        return ledger_lib.dp_event(sigma, 0.3, 200)

    calibrated = accounting.calibrate_noise_multiplier(make_event, 10.0, 1e-5)
    assert accounting.epsilon(make_event(calibrated), 1e-5) <= 10.0
    assert accounting.epsilon(make_event(0.99 * calibrated), 1e-5) > 10.0


def test_coarser_discretization_is_a_looser_upper_bound():
    event = ledger_lib.dp_event(2.0, 0.1, 100)
    assert accounting.epsilon(event, 1e-5) <= accounting.epsilon(event, 1e-5, discretization_interval=1e-2)


@pytest.mark.parametrize('accountant', accounting.ACCOUNTANTS)
def test_no_noise_is_no_guarantee_and_nothing_released_costs_nothing(accountant):
    no_noise = ledger_lib.dp_event(0.0, 0.1, 10)
    assert accounting.epsilon(no_noise, 1e-5, accountant=accountant) == math.inf
    nothing = ledger_lib.dp_event(1.0, 0.1, 0)
    assert accounting.epsilon(nothing, 1e-5, accountant=accountant) == 0.0


def test_target_that_another_release_already_passes_is_refused_in_one_line():
    release = dp_accounting.GaussianDpEvent(3.0)

    def make_event(sigma):
        return dp_accounting.ComposedDpEvent([release, ledger_lib.dp_event(sigma, 0.5, 100)])

    with pytest.raises(
        accounting.BudgetError, match='target_epsilon=0.001 at target_delta=0.0001 cannot be met'
    ) as error:
        accounting.calibrate_noise_multiplier(make_event, 0.001, 1e-4)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('delta', [0.0, 1.0, -1e-5, float('nan')])
def test_impossible_delta_is_refused(delta):
    with pytest.raises(ValueError, match='delta must be in'):
        accounting.epsilon(ledger_lib.dp_event(1.0, 0.1, 10), delta)


@pytest.mark.parametrize('target', [0.0, -1.0, float('inf'), float('nan')])
def test_impossible_target_is_refused(target):
    with pytest.raises(ValueError, match='target_epsilon must be finite'):
        accounting.calibrate_noise_multiplier(lambda s: dp_accounting.GaussianDpEvent(s), target, 1e-5)


def test_unknown_accountant_is_refused():
    with pytest.raises(ValueError, match='accountant must be one of'):
        accounting.epsilon(dp_accounting.GaussianDpEvent(1.0), 1e-5, accountant='moments')
