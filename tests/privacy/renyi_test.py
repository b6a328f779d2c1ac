"""Tests of the Renyi divergence of a step against quadrature, a closed form, and dp_accounting's own."""

import warnings

import dp_accounting
from dp_accounting import rdp
import numpy as np
import pytest

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import renyi

ORDERS = (1.02, 1.05, 1.1, 1.3, 1.5, 1.9, 2.0, 2.3, 4.7, 9.9, 10.9, 17.0)
SETTINGS = [
    (s, q)
    for s in (0.1, 0.3, 0.763, 2.282, 16.222, 100.0)
    for q in (1e-9, 1e-4, 0.0683, 0.328, 0.499, 0.5, 0.6, 0.9, 0.999)
]
each_setting = pytest.mark.parametrize('noise_multiplier, q', SETTINGS)


def by_quadrature(noise_multiplier, q, order):
    """The logarithm of E (1 + u)^order for u = p / q - 1, of mean 0: that of 1 + E((1 + u)^order - 1 - order u).

    The integrand is analytic and falls off on both sides, so that a sum over equal steps is exact to rounding.
    """
    s, q, order = (np.longdouble(value) for value in (noise_multiplier, q, order))
    step = min(s / 20.0, s * s / 10.0)
    x = np.arange(-13.0 * s - 1.0, order + 13.0 * s + 1.0, step, dtype=np.longdouble)
    u = q * np.expm1((2.0 * x - 1.0) / (2.0 * s * s))
    log_density = -x * x / (2.0 * s * s) - np.log(s * np.sqrt(2.0 * np.longdouble(np.pi)))
    power = order * np.log1p(u)
    with np.errstate(all='ignore'):
        log_value = np.where(
            power > 50.0,
            power + np.log1p(-(1.0 + order * u) * np.exp(-power)),
            np.log(np.expm1(np.minimum(power, 50.0)) - order * u),
        )
    is_small = np.abs(u) < 1e-3  # The difference cancels: its power series.
    term = order * u[is_small]
    series = np.zeros_like(term)
    for k in range(2, 9):
        term = term * u[is_small] * (order - k + 1.0) / k
        series = series + term
    log_value[is_small] = np.log(np.maximum(series, np.finfo(np.longdouble).tiny))
    log_terms = log_value + log_density
    largest = log_terms.max()
    excess = largest + np.log(np.exp(log_terms - largest).sum() * step)
    return float(np.logaddexp(np.longdouble(0.0), excess) if excess > 0.0 else np.log1p(np.exp(excess)))


@each_setting
def test_moments_are_those_of_a_quadrature_at_whole_and_fractional_orders(noise_multiplier, q):
    truth = np.array([by_quadrature(noise_multiplier, q, order) for order in ORDERS])
    found = renyi.log_moments(noise_multiplier, q, ORDERS)
    # Never below, but for the rounding of numbers, of which the accountant adds five times as much.
    assert np.all(found >= truth - 2e-13 * np.maximum(truth, 1.0))
    np.testing.assert_array_less(found, truth * (1.0 + 1e-3) + 1e-8)
    # The control: an order that is 0.1% off is seen.
    if truth[3] > 1e-4:
        assert by_quadrature(noise_multiplier, q, 1.001 * ORDERS[3]) > found[3] + 2e-13


def of_dp_accounting(noise_multiplier, q, orders=ORDERS):
    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise_multiplier))
    return rdp.RdpAccountant(orders).compose(event).rdp * (np.array(orders) - 1.0)


@each_setting
def test_moments_are_at_most_what_dp_accounting_bounds_them_by_and_the_same_at_whole_orders(noise_multiplier, q):
    found, theirs = renyi.log_moments(noise_multiplier, q, ORDERS), of_dp_accounting(noise_multiplier, q)
    assert np.all(found <= theirs * (1.0 + 1e-12) + 1e-12)
    is_whole = np.mod(ORDERS, 1.0) == 0.0
    np.testing.assert_allclose(found[is_whole], theirs[is_whole], rtol=1e-12, atol=1e-12)


def test_dp_accounting_itself_gives_up_orders_or_bounds_them_by_far_too_much(caplog):
    # The control of the tests above and below: the series with signs is needed.
    assert np.isinf(of_dp_accounting(2.451, 0.32768, (1.5,))).all()
    assert 'failed to converge' in caplog.text
    assert of_dp_accounting(100.0, 0.328, (1.02,)) > 1000.0 * by_quadrature(100.0, 0.328, 1.02)


@pytest.mark.parametrize(
    'setting',
    [
        (2.451, 0.32768, 200),
        (0.763, 0.0542, 200),
        (20.0, 0.5, 10**5),
        (1e-3, 0.5, 1),
        (1e6, 0.5, 10**7),
        (0.3, 1e-9, 10**6),
        (1.0, 0.999999, 10),
    ],
)
def test_nothing_is_logged_or_warned_of(setting, caplog):
    for cached in (epsilon_bounds._step_log_moments, epsilon_bounds._rdp_epsilon):
        cached.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for accountant in accounting.ACCOUNTANTS:
            accounting.epsilon(ledger_lib.dp_event(*setting), 1e-5, accountant=accountant)
    assert not caplog.records


@pytest.mark.parametrize('noise_multiplier', [1e3, 1e4])
def test_chord_takes_over_where_the_series_leaves_too_much_open(noise_multiplier):
    orders = (1.02, 1.5, 2.0, 2.5, 3.0)
    found = renyi.log_moments(noise_multiplier, 0.5, orders)
    truth = np.array([by_quadrature(noise_multiplier, 0.5, order) for order in orders])
    assert np.all(found >= truth - 2e-13)
    chord = found[2] * 0.02
    assert found[0] <= chord + 1e-18
    if noise_multiplier == 1e4:  # The control: the series alone is above the chord.
        assert renyi._of_a_fractional_order(noise_multiplier, 0.5, 1.02) > 1.5 * chord


def test_moments_are_convex_in_the_order_and_finite():
    for noise_multiplier, q in [*SETTINGS, (1e-3, 0.5), (1e6, 0.5), (1e6, 1e-9), (0.5, 1.0)]:
        found = renyi.log_moments(noise_multiplier, q, epsilon_bounds._RDP_ORDERS)
        assert np.isfinite(found).all() and np.all(found >= 0.0)
        slopes = np.diff(found, prepend=0.0) / np.diff(epsilon_bounds._RDP_ORDERS, prepend=1.0)
        assert np.all(np.diff(slopes) >= -1e-9 * np.maximum(slopes[1:], 1e-9))


def test_release_of_all_units_has_the_closed_form():
    np.testing.assert_allclose(renyi.log_moments(2.0, 1.0, ORDERS), [a * (a - 1.0) / 8.0 for a in ORDERS], rtol=1e-14)
    np.testing.assert_allclose(
        renyi.log_moments(2.0, 1.0 - 1e-12, ORDERS), [a * (a - 1.0) / 8.0 for a in ORDERS], rtol=1e-9
    )
