"""Privacy numbers as people see them: never rounded to the side on which they would promise more than is true."""

import decimal
import math

import numpy as np


def round_up(value: float) -> str:
    """Returns four decimals that are never below the value: a printed epsilon must not be smaller than the true one.

    Guarantee: the decimals, read as a number, are never below the value.

    Args:
      value: Any number; infinity is 'infinite'.

    Raises:
      ValueError: if it is no number: nothing bounds that.

    Example:
        >>> round_up(9.99991), round_up(1.0), round_up(1.1)
        ('10.0000', '1.0000', '1.1000')
    """
    return _to_four_decimals(value, decimal.ROUND_CEILING)


def round_down(value: float) -> str:
    """Returns four decimals that are never above the value, for lower bounds of epsilon and for what is left of it.

    Guarantee: the decimals, read as a number, are never above the value.

    Args:
      value: Any number; infinity is 'infinite'.

    Raises:
      ValueError: if it is no number.

    Example:
        >>> round_down(0.89099), round_down(1.1)
        ('0.8909', '1.1000')
    """
    return _to_four_decimals(value, decimal.ROUND_FLOOR)


def exact(value: float) -> str:
    """Returns a given number, such as a target or delta, as it was given: rounded, it could seem to promise more.

    Example:
        >>> exact(10.0), exact(1e-5), exact(9.99999999)
        ('10', '1e-05', '9.99999999')
    """
    short = f'{value:g}'
    return short if float(short) == value else repr(float(value))


def claim(epsilon: float, delta: float) -> str:
    """Returns what is claimed, epsilon rounded upwards and delta as it was given.

    Example:
        >>> claim(2.99991, 1e-5)
        'epsilon = 3.0000 at delta = 1e-05'
    """
    return f'epsilon = {round_up(epsilon)} at delta = {exact(delta)}'


def percent(share: float) -> str:
    """Returns a share, such as a confidence, in percent with all of its digits: 99.9% must not be shown as certainty.

    Example:
        >>> percent(0.95), percent(0.999)
        ('95%', '99.9%')
    """
    return f'{(100 * decimal.Decimal(repr(float(share)))).normalize():f}%'


def percent_up(share: float) -> str:
    """Returns a share in percent to two decimals, never below it: how often an attacker can be right.

    Guarantee: the percentage, read as a number, is never below the share.

    Args:
      share: In [0, 1].

    Example:
        >>> percent_up(0.12340001), percent_up(0.25), percent_up(1.0)
        ('12.35%', '25.00%', '100.00%')
    """
    shortest = 100 * decimal.Decimal(repr(float(share)))
    return f'{shortest.quantize(decimal.Decimal("1e-2"), decimal.ROUND_UP)}%'  # Away from 0.


def one_digit_up(value: float) -> str:
    """Returns a small number to one digit, never below it.

    Args:
      value: At least 0.

    Example:
        >>> one_digit_up(2.1e-13), one_digit_up(9.5e-13), one_digit_up(0.0)
        ('3e-13', '1e-12', '0')
    """
    if value == 0.0:
        return '0'
    exponent = math.floor(math.log10(value))
    digit = math.ceil(value / 10.0**exponent)
    return f'{digit}e{exponent}' if digit < 10 else f'1e{exponent + 1}'


def float32_not_below(value: float) -> float:
    """Returns the smallest float32 that is not below the value, for files that hold no other type.

    Example:
        >>> float32_not_below(0.5), float32_not_below(0.1) > 0.1
        (0.5, True)
    """
    with np.errstate(over='ignore'):  # Infinity bounds what is too large.
        rounded = np.float32(value)
    return float(np.nextafter(rounded, np.float32(np.inf)) if float(rounded) < value else rounded)


def _to_four_decimals(value: float, rounding: str) -> str:
    if math.isnan(value):
        raise ValueError('an epsilon that is no number (nan) has no bound to be shown.')
    if math.isinf(value):
        return 'infinite' if value > 0.0 else '-infinite'
    # By the shortest decimals that stand for the number, and not by a product that is itself rounded. The largest has
    # 309 digits before the point.
    shortest = decimal.Decimal(repr(float(value)))
    return str(shortest.quantize(decimal.Decimal('1e-4'), rounding, decimal.Context(prec=400)))
