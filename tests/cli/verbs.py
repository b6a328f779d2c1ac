"""Calls a verb as its command does, in the process of the test."""

import gin
import pytest


def call(verb, *flags):
    """Runs a verb's module in this process and returns its exit code."""
    gin.clear_config()
    with pytest.raises(SystemExit) as ended:
        verb.run(list(flags))
    return ended.value.code
