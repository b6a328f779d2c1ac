"""What a lay person would take for protection and is none: said in plain words, or refused."""

import math

from tf_dpdiff.privacy import rounding

LARGE_EPSILON = 10.0
# No data set has more units than one in so many.
_SMALLEST_DELTA_IN_DOUBT = 1e-10


def is_large_delta(delta: float, num_units: int) -> bool:
    """Returns True from 1 / num_units on: releasing one unit in the clear, drawn at random, would meet such a delta."""
    return delta >= 1.0 / num_units


def of_delta(delta: float, num_units: int) -> str | None:
    """Returns a sentence on what a delta of 1 / num_units or more permits; None where delta is smaller."""
    if not is_large_delta(delta, num_units):
        return None
    count = math.ceil(delta * num_units - 1e-9)
    people = '1 person' if count == 1 else f'{count:,} people'
    return (
        f'delta = {rounding.exact(delta)} is not below 1 / {num_units:,} units: with probability up to delta anything '
        f'may be released, which over {num_units:,} units may mean whole images of about {people}.'
    )


def of_delta_without_num_units(delta: float, sampling_probability: float) -> str | None:
    """Returns a sentence on a delta where the number of units is not known, or None.

    Args:
      delta: In (0, 1).
      sampling_probability: Of each unit in each step: a batch of at least one unit is expected, so there are at least
        1 / sampling_probability units.
    """
    if delta >= sampling_probability:
        return of_delta(delta, max(math.ceil(1.0 / sampling_probability), math.ceil(1.0 / delta)))
    if delta < _SMALLEST_DELTA_IN_DOUBT:
        return None
    too_many = math.ceil((1.0 - 1e-12) / delta)  # 1 / 1e-5 is a little above 100,000.
    return (
        f'delta = {rounding.exact(delta)} must be below 1 / the number of units, which is not known here: it is '
        f'for fewer than {too_many:,} units.'
    )


def of_epsilon(epsilon: float) -> str | None:
    """Returns a sentence on what an epsilon above 10 permits; None where it is smaller or nothing is claimed."""
    if not LARGE_EPSILON < epsilon < math.inf:
        return None
    exponent = math.ceil(epsilon / math.log(10.0))
    odds = format(math.ceil(math.exp(epsilon)), ',') if epsilon < 30.0 else f'10^{exponent:,}'
    return (
        f'epsilon = {rounding.round_up(epsilon)} is above {rounding.exact(LARGE_EPSILON)}: hardly any protection is '
        'proven. Someone who sees what is released, and thinks it as likely as not that a given person is in the data, '
        f'may then know it at odds of up to {odds} to 1.'
    )


def of_claim(epsilon: float, delta: float, num_units: int) -> list[str]:
    """Returns the cautions that a claim needs, one sentence or two each; none where it is a good one."""
    return [caution for caution in (of_epsilon(epsilon), of_delta(delta, num_units)) if caution]


def check_delta(name: str, delta: float, num_units: int, *, accepted: bool) -> None:
    """Refuses a delta of 1 / num_units or more that nobody has accepted.

    Guarantee: where it returns, delta is below 1 / num_units, or a person has accepted that it is not.

    Args:
      name: Of the setting, for the message.
      delta: In (0, 1).
      num_units: Of the private data set.
      accepted: Whether it was accepted in so many words.

    Raises:
      ValueError: says what such a delta permits, and what to do.
    """
    caution = of_delta(delta, num_units)
    if caution and not accepted:
        raise ValueError(
            f'{name} is too large: {caution} Choose one below 1 / {num_units:,}, or accept this by '
            'accept_large_delta = True of DpSgdConfig.'
        )
