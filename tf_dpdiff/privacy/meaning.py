"""What a guarantee means: how often an attacker can be right, what several units of one person cost, and mu.

All of it is computed from the composed releases, as epsilon is, and errs on the same side: an attacker can do no better
than is said here.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import dp_accounting
import numpy as np
from scipy import special

from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import noise

# Each pair of an epsilon and a delta is a bound; many are a close one. By Renyi accounting deltas may be tiny.
_NUM_EPSILONS, _LARGEST_EPSILON, _SMALLEST_DELTA_OF_EPSILONS = 400, 700.0, 1e-8
_RENYI_DELTAS = np.concatenate([np.geomspace(1e-30, 0.5, 120), 1.0 - np.geomspace(1e-6, 0.4, 24)])
# Where mu is looked for, if there is no proof.
_MU_RATES = np.geomspace(1e-4, 0.5, 24)
# More than what rounding in float64 takes off a few operations.
_ROUNDING = 1e-12


def right_guesses_bound(false_positive_rate: float, epsilons: np.ndarray, deltas: np.ndarray) -> float:
    """Returns an upper bound on how often an attacker is right, given how often they may be wrong.

    The attacker sees all that is released and says of one unit whether it was used. They are wrong where they say so
    and it was not (a false positive), right where they say so and it was (a true positive).

    Guarantee: no test whose false positive rate is at most the one given has a larger true positive rate, if the
      release is (epsilon, delta)-differentially private for each of the pairs. Each pair gives two bounds, P(S) <=
      e^epsilon Q(S) + delta, and the same of all outputs but those in S with P and Q exchanged; the least of all is
      returned, never rounded downwards, and at most 1.

    Args:
      false_positive_rate: In (0, 1).
      epsilons: float64 [pairs], at least 0; infinity promises nothing.
      deltas: float64 [pairs], in [0, 1].

    Returns:
      In [false_positive_rate, 1].

    Example: of randomised response at epsilon = log 3, the bound is what the attacker reaches.
        >>> round(right_guesses_bound(0.25, np.array([np.log(3.0)]), np.array([0.0])), 9)
        0.75

    References: Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, theorem 2.1; Dong, Roth and Su 2019, arXiv:1905.02383,
      propositions 2.5 and 2.12 (the trade-off function is the supremum of such lines).
    """
    if not 0.0 < false_positive_rate < 1.0:
        raise ValueError(f'false_positive_rate must be in (0, 1), got {false_positive_rate}.')
    with np.errstate(over='ignore'):
        steep = np.exp(epsilons) * false_positive_rate + deltas
        flat = 1.0 - np.exp(-epsilons) * np.maximum(1.0 - false_positive_rate - deltas, 0.0)
    least = min(np.min(steep, initial=1.0), np.min(flat, initial=1.0))
    return float(min(1.0, max(least, false_positive_rate) * (1.0 + _ROUNDING)))


def true_positive_rate(event: dp_accounting.DpEvent, false_positive_rate: float, *, added_delta: float = 0.0) -> float:
    """Returns an upper bound on the true positive rate of any attack on what was released.

    Guarantee: never below the rate of the best test, in either direction of the neighbouring relation that `epsilon` of
      `accounting` is for: it is `right_guesses_bound` of epsilons at many deltas, none of which is below the truth.

    Args:
      event: What is released.
      false_positive_rate: In (0, 1).
      added_delta: What is to be added to each delta, as by the cut tail of the noise (`tail_delta`). It is added to
        both rates too: what is released may differ by so much in total variation from what the event says.

    Returns:
      In [false_positive_rate, 1]; 1 where no guarantee is known.

    Example: one Gaussian release of noise multiplier 1, of which the exact rate is known.
        >>> bound = true_positive_rate(dp_accounting.GaussianDpEvent(1.0), 0.01)
        >>> exact = special.ndtr(special.ndtri(0.01) + 1.0)
        >>> bool(exact <= bound <= 1.01 * exact)
        True
    """
    steps = epsilon_bounds.steps_of(event)
    if not steps:
        epsilons, deltas = np.array([0.0 if steps is not None else math.inf]), np.zeros(1)
    else:
        epsilons, deltas = _curve(steps)
    rate = false_positive_rate + added_delta
    if false_positive_rate < 1.0 <= rate:
        return 1.0
    return min(1.0, right_guesses_bound(rate, epsilons, np.minimum(deltas + added_delta, 1.0)) + added_delta)


def group_epsilon(
    event: dp_accounting.DpEvent,
    num_units: int,
    delta: float,
    *,
    added_delta: Callable[[int], float] = lambda unused_num_units: 0.0,
) -> float:
    """Returns epsilon at delta for data sets that differ in several units, as where one person has several images.

    Guarantee: never below the true epsilon. It is the smaller of two bounds.

      By composition: each of k units takes part in a step with probability q, independently, and moves the sum by at
      most 1 / sigma standard deviations of the noise. So any of them takes part with q' = 1 - (1 - q)^k, and
      then they move it by at most k / sigma. The output is a mixture over which of them do; a hockey-stick divergence
      is jointly convex and grows with the shift, so a step is bounded by that of one unit with probability q' and noise
      multiplier sigma / k, in both directions, whatever was released before. These compose as steps of one unit do, and
      the best of several runs of them costs what the theorem says of such runs. Not where batches are truncated.

      By group privacy: if one unit costs (e, d), k of them cost (k e, d (e^(k e) - 1) / (e^e - 1)); d is chosen so that
      delta is met.

    Args:
      event: What is released.
      num_units: k, at least 1.
      delta: In (0, 1).
      added_delta: From a number of units to what is to be added to delta, as by the cut tail of the noise.

    Returns:
      Infinity where nothing is bounded.

    References: Vadhan 2017, The Complexity of Differential Privacy, lemma 2.2 (group privacy); Ganesh 2024,
      arXiv:2401.10294 (the exact mixture, of which the first bound is a coarser one).
    """
    if num_units < 1 or int(num_units) != num_units:
        raise ValueError(f'num_units must be a whole number of at least 1, got {num_units}.')
    if not 0.0 < delta < 1.0:
        raise ValueError(f'delta must be in (0, 1), got {delta}.')
    steps = epsilon_bounds.steps_of(event)
    if not steps:
        return math.inf if steps is None else 0.0
    return min(
        _by_composition(steps, num_units, delta - added_delta(num_units)),
        _by_group_privacy(steps, num_units, delta, added_delta(1)),
    )


class GaussianMu(NamedTuple):
    """The mu of Gaussian differential privacy.

    Attributes:
      value: Rounded upwards where it is proven.
      is_proven: Whether the releases are mu-GDP. Else mu is about the smallest for which the bound of
        `true_positive_rate` lies below the curve of a Gaussian at false positive rates from 1 in 10,000 to 1 in 2.
    """

    value: float
    is_proven: bool


def gaussian_mu(event: dp_accounting.DpEvent) -> GaussianMu | None:
    """Returns the mu of Gaussian differential privacy, by which guarantees are compared; None where none is known.

    Guarantee: where it is proven, all units take part in each release, and compositions of such Gaussian releases are
      mu-GDP with mu^2 the sum of 1 / noise_multiplier^2. Poisson-sampled releases are mu-GDP for no mu that says
      anything; for them it is an approximation.

    References: Dong, Roth and Su 2019, arXiv:1905.02383, corollary 3.3; Gomez, Kulynych et al. 2025, arXiv:2503.10945
      (mu as the one number to report).
    """
    steps = epsilon_bounds.steps_of(event)
    if steps is None:
        return None
    gaussian = [step for step in steps if isinstance(step, epsilon_bounds.Steps) and step.sampling_probability == 1.0]
    if len(gaussian) == len(steps):
        mu = math.sqrt(math.fsum(step.times / step.noise_multiplier**2 for step in gaussian))
        return GaussianMu(mu * (1.0 + _ROUNDING), True)
    rates = np.array([true_positive_rate(event, rate) for rate in _MU_RATES])
    mu = float(np.max(special.ndtri(rates) - special.ndtri(_MU_RATES)))
    return GaussianMu(mu, False) if math.isfinite(mu) else None


def tail_delta(ledger: ledger_lib.Ledger, num_units: int, *, generator: str) -> float:
    """Bounds what the cut tail of the noise adds to delta, all releases together; see `noise.tail_delta`.

    Where the best of several runs was released, the proof there does not reach beyond a run. It shows that what a run
    gives out differs by so much in total variation from what is as private as the Gaussian's, so that the best of K
    differs by at most E[K] times as much: here that is returned, and (1 + e^epsilon) times as much adds to delta.

    Args:
      ledger: What was released.
      num_units: In how many units neighbouring data sets differ: they move a sum by so many times as much.
      generator: Of the noise.
    """
    if not ledger.releases:
        return 0.0
    least = min(release.noise_multiplier for release in ledger.of_single_runs)
    if not least:
        return 1.0
    return noise.tail_delta(
        least / num_units,
        num_draws=sum(map(_expected_draws, ledger.releases)),
        num_numbers=noise.MOST_PARAMETERS,
        generator=generator,
    )


def _expected_draws(release: ledger_lib.Release | ledger_lib.BestOfRuns) -> float:
    if isinstance(release, ledger_lib.Release):
        return release.count
    # A mean that is drawn from may be above the one given by a rounding.
    return release.count * release.num_runs.mean * (1.0 + 1e-9) * sum(of_a_run.count for of_a_run in release.releases)


@functools.lru_cache(maxsize=8)
def _curve(steps: tuple[epsilon_bounds.Part, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns epsilons and the deltas at which they hold."""
    by_rdp = np.array([epsilon_bounds.by_rdp(steps, float(delta)) for delta in _RENYI_DELTAS])
    largest = epsilon_bounds.by_rdp(steps, _SMALLEST_DELTA_OF_EPSILONS, rough=True)
    epsilons = np.linspace(0.0, min(largest, _LARGEST_EPSILON), _NUM_EPSILONS)
    by_pld = epsilon_bounds.deltas_by_pld(steps, epsilons)
    if by_pld is None:
        return by_rdp, _RENYI_DELTAS
    return np.concatenate([epsilons, by_rdp]), np.concatenate([by_pld, _RENYI_DELTAS])


def _by_composition(steps: tuple[epsilon_bounds.Part, ...], num_units: int, delta: float) -> float:
    if delta <= 0.0:
        return math.inf
    grouped = _grouped(steps, num_units)
    return math.inf if grouped is None else epsilon_bounds.by_pld(grouped, delta)


def _grouped(steps: tuple[epsilon_bounds.Part, ...], num_units: int) -> tuple[epsilon_bounds.Part, ...] | None:
    """Returns what bounds the same releases for data sets that differ in several units; None: nothing that is known."""
    grouped: list[epsilon_bounds.Part] = []
    for step in steps:
        if isinstance(step, epsilon_bounds.BestOf):
            of_a_run = _grouped_steps(step.of_a_run, num_units)
            if of_a_run is None:
                return None
            grouped.append(step._replace(of_a_run=of_a_run))
        else:
            # The units of truncated batches are not drawn independently of one another.
            single = _grouped_steps((step,), num_units) if isinstance(step, epsilon_bounds.Steps) else None
            if single is None:
                return None
            grouped += single
    return tuple(grouped)


def _grouped_steps(steps: tuple[epsilon_bounds.Steps, ...], num_units: int) -> tuple[epsilon_bounds.Steps, ...] | None:
    grouped = []
    for noise_multiplier, probability, times in steps:
        noise_multiplier *= (1.0 - _ROUNDING) / num_units
        if noise_multiplier < epsilon_bounds.SMALLEST_NOISE_MULTIPLIER:
            return None
        if probability < 1.0:
            probability = min(1.0, -math.expm1(num_units * math.log1p(-probability)) * (1.0 + _ROUNDING))
        grouped.append(epsilon_bounds.Steps(noise_multiplier, probability, times))
    return tuple(grouped)


def _by_group_privacy(
    steps: tuple[epsilon_bounds.Part, ...], num_units: int, delta: float, added_delta: float
) -> float:
    epsilons, deltas = _curve(steps)
    # In logarithms: the factor may be beyond float64. It is the sum of e^(j epsilon) over j below the number of units.
    log_factors = np.logaddexp.reduce(np.outer(np.arange(num_units), epsilons), axis=0)
    log_deltas = np.log(deltas + added_delta) + log_factors
    fits = log_deltas <= math.log(delta) - _ROUNDING * (1.0 + np.abs(log_deltas) + log_factors)
    return float(np.min(epsilons[fits], initial=math.inf)) * num_units * (1.0 + _ROUNDING)
