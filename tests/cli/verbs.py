"""Calls a verb as its command does, in the process of the test."""

import gin
import pytest

DIGITS = {
    'audit_digits.gin',
    'audit_gradients_digits.gin',
    'digits.gin',
    'digits_dit.gin',
    'digits_from_mnist.gin',
    'mnist8.gin',
    'select_digits.gin',
    'tune_digits.gin',
}  # Run files that are not the paper's.
INCLUDED = {'own_images.gin'}  # Which a person's own file completes.


def call(verb, *flags):
    """Runs a verb's module in this process and returns its exit code."""
    gin.clear_config()
    with pytest.raises(SystemExit) as ended:
        verb.run(list(flags))
    return ended.value.code
