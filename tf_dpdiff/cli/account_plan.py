"""What bin/account computes: the setting of a run that is missing, from the others."""

from collections.abc import Callable, Iterator
import dataclasses
import itertools
import math

import dp_accounting

from tf_dpdiff.cli import command
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import cautions
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import rounding

# Name of a flag: its type and its help.
FLAGS = {
    'delta': (float, 'delta, in (0, 1)'),
    'epsilon': (float, 'what the run may cost at most'),
    'noise_multiplier': (float, "noise's standard deviation / sensitivity"),
    'num_steps': (int, 'private steps'),
    'num_units': (int, "the private data set's size"),
    'expected_batch_size': (int, 'expected units a step; needs --num_units'),
    'sampling_probability': (float, 'of each unit in each step; in place of --expected_batch_size'),
    'warm_start_noise_multiplier': (float, 'a release for a warm start, composed with the steps'),
    'warm_start_num_rounds': (int, 'rounds of that release, each with this noise (default: 1)'),
}

_MOST = 10**12  # Of steps, units and rounds.


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The settings of a run, complete.

    Attributes:
      delta: At which epsilon is meant.
      noise_multiplier: Of each step, > 0.
      num_steps: Steps, at least 1.
      sampling_probability: Of each unit in each step, in (0, 1].
      num_units: Size of the data set, or None where only the probability is known.
      warm_start_noise_multiplier: Of each round of the other release, > 0, or None.
      warm_start_num_rounds: Its rounds.
      target_epsilon: What was asked for, or None.
      solved: Name of the setting that was computed; None where all were given.
    """

    delta: float
    noise_multiplier: float
    num_steps: int
    sampling_probability: float
    num_units: int | None
    warm_start_noise_multiplier: float | None
    warm_start_num_rounds: int
    target_epsilon: float | None
    solved: str | None

    @property
    def expected_batch_size(self) -> float | None:
        """Expected units a step, where the data set's size is known."""
        return self.num_units and self.sampling_probability * self.num_units

    def epsilon(self, accountant: str = 'pld') -> float:
        """Returns what the whole run costs."""
        return accounting.epsilon(self._event(self.num_steps), self.delta, accountant=accountant)

    def cautions(self) -> list[str]:
        """Returns what a lay person must be told of the claim, one sentence or two each."""
        if self.num_units:
            return cautions.of_claim(self.epsilon(), self.delta, self.num_units)
        return list(
            filter(
                None,
                (
                    cautions.of_epsilon(self.epsilon()),
                    cautions.of_delta_without_num_units(self.delta, self.sampling_probability),
                ),
            )
        )

    def curve(self, num_points: int = curves.NUM_POINTS) -> list[curves.CurvePoint]:
        """Returns the cost over steps, evenly spaced, the whole run last; begins at 0 where there is a warm start."""
        return curves.epsilon_over_steps(self._event, self.num_steps, self.delta, num_points=num_points)

    def _event(self, num_steps: int) -> dp_accounting.DpEvent:
        return _dp_event(
            self.noise_multiplier,
            num_steps,
            self.sampling_probability,
            self.warm_start_noise_multiplier,
            self.warm_start_num_rounds,
        )


def make_plan(flags) -> RunPlan:
    """Completes the settings that were given and checks the cost once more.

    Args:
      flags: Has an attribute for each of FLAGS, None where the flag was not given.

    Raises:
      command.UsageError: if a setting is impossible, or none or more than one is missing.
      accounting.BudgetError: if the target cannot be met.
    """
    _check_ranges(flags)
    probability = flags.sampling_probability
    if flags.expected_batch_size is not None:
        probability = flags.expected_batch_size / flags.num_units
    given = {
        'noise_multiplier': flags.noise_multiplier,
        'num_steps': flags.num_steps,
        'batch': probability,
        'epsilon': flags.epsilon,
    }
    missing = [name for name, value in given.items() if value is None]
    if flags.delta is None or len(missing) > 1:
        raise command.UsageError(_explain_missing(flags, missing))
    solved = missing[0] if missing else None

    rounds = flags.warm_start_num_rounds or 1

    def event(noise_multiplier=flags.noise_multiplier, num_steps=flags.num_steps, q=probability):
        return _dp_event(noise_multiplier, num_steps, q, flags.warm_start_noise_multiplier, rounds)

    noise_multiplier, num_steps, target = flags.noise_multiplier, flags.num_steps, (flags.epsilon, flags.delta)
    if solved == 'noise_multiplier':
        exact = accounting.calibrate_noise_multiplier(lambda sigma: event(noise_multiplier=sigma), *target)
        noise_multiplier = _first_that_fits(
            (ticks / 1e4 for ticks in itertools.count(math.ceil(exact * 1e4))),
            lambda sigma: event(noise_multiplier=sigma),
            *target,
        )
    elif solved == 'num_steps':
        num_steps = accounting.solve_num_steps(lambda count: event(num_steps=count), *target)
    elif solved == 'batch' and flags.num_units:
        batch_size = accounting.solve_batch_size(
            lambda units: event(q=units / flags.num_units), *target, flags.num_units
        )
        probability = batch_size / flags.num_units
    elif solved == 'batch':
        exact = accounting.solve_sampling_probability(lambda q: event(q=q), *target)
        probability = _first_that_fits(
            (_round_down(exact * (1.0 - i * 1e-5), 6) for i in itertools.count()), lambda q: event(q=q), *target
        )
    plan = RunPlan(
        flags.delta,
        noise_multiplier,
        num_steps,
        probability,
        flags.num_units,
        flags.warm_start_noise_multiplier,
        rounds,
        flags.epsilon,
        solved,
    )
    if flags.epsilon is not None and plan.epsilon() > flags.epsilon:
        raise accounting.BudgetError(
            f'these settings cost epsilon={rounding.round_up(plan.epsilon())} at '
            f'delta={rounding.exact(flags.delta)}, more than --epsilon={rounding.exact(flags.epsilon)}; leave one '
            'of the four out to have it computed.'
        )
    return plan


def _dp_event(
    noise_multiplier, num_steps, sampling_probability, warm_start_noise_multiplier, warm_start_num_rounds
) -> dp_accounting.DpEvent:
    """Composes as the ledger of a run does."""
    releases = []
    if warm_start_noise_multiplier is not None:
        releases.append(
            ledger_lib.Release('warm_start_release', warm_start_noise_multiplier, 1.0, warm_start_num_rounds)
        )
    if num_steps:
        releases.append(ledger_lib.Release('dp_sgd_step', noise_multiplier, sampling_probability, num_steps))
    return ledger_lib.Ledger(tuple(releases)).dp_event()


def _check_ranges(flags) -> None:
    for name, (kind, _) in FLAGS.items():
        value = getattr(flags, name)
        if value is None:
            continue
        if name in ('delta', 'sampling_probability'):
            if not 0.0 < value < 1.0 and (name == 'delta' or value != 1.0):
                raise command.UsageError(f'--{name} must be in (0, 1{")" if name == "delta" else "]"}, got {value}.')
        elif not (value >= 1 if kind is int else 0.0 < value < math.inf):
            raise command.UsageError(
                f'--{name} must be {"at least 1" if kind is int else "finite and > 0"}, got {value}.'
            )
        elif kind is int and value > _MOST:
            raise command.UsageError(f'--{name} must be at most {_MOST:,}, got {value:,}.')
        elif name.endswith('noise_multiplier') and value < epsilon_bounds.SMALLEST_NOISE_MULTIPLIER:
            raise command.UsageError(
                f'--{name} must be at least {epsilon_bounds.SMALLEST_NOISE_MULTIPLIER}, got '
                f'{value}: less noise hides nothing, and no epsilon is known for it.'
            )
    if flags.warm_start_num_rounds is not None and flags.warm_start_noise_multiplier is None:
        raise command.UsageError('--warm_start_num_rounds needs --warm_start_noise_multiplier, the noise of each.')
    if flags.expected_batch_size is not None:
        if flags.sampling_probability is not None:
            raise command.UsageError('--expected_batch_size and --sampling_probability say the same: give one of them.')
        if flags.num_units is None:
            raise command.UsageError("--expected_batch_size needs --num_units, the private data set's size.")
        if flags.expected_batch_size > flags.num_units:
            raise command.UsageError(
                f'--expected_batch_size={flags.expected_batch_size} is larger than the data set of '
                f'{flags.num_units} units.'
            )


def _explain_missing(flags, missing: list[str]) -> str:
    names = {'batch': 'the batch (--sampling_probability, or --expected_batch_size and --num_units)'}
    lacking = ['--delta'] if flags.delta is None else []
    if len(missing) > 1:
        lacking.append(f'all but one of {", ".join(names.get(name, f"--{name}") for name in missing)}')
    return f'give {" and ".join(lacking)}; --help shows what can be computed.'


def _first_that_fits(
    values: Iterator[float],
    make_event: Callable[[float], dp_accounting.DpEvent],
    target_epsilon: float,
    target_delta: float,
) -> float:
    """Returns the first of a few values, as they are shown, that meets the target: what a person copies does so too."""
    values = list(itertools.islice(values, 10))
    return next(
        (value for value in values if accounting.epsilon(make_event(value), target_delta) <= target_epsilon), values[-1]
    )


def _round_down(value: float, digits: int) -> float:
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    return min(math.floor(value * scale) / scale, 1.0)
