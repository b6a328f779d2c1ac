"""Which operations `tf.vectorized_map` cannot map and runs in a loop, a unit at a time, when gradients are per unit."""

import logging
import re

import tensorflow as tf

from tf_dpdiff.privacy import clipping


def find(loss_fn, variables, batch, caplog):
    """Returns the operations that TensorFlow's warnings say to be run in a loop when per-unit gradients are traced."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger='tensorflow'):
        tf.function(
            lambda: (
                clipping.PerUnitClipper(1.0)
                .clipped_sum(loss_fn, variables, batch, tf.zeros([2], tf.bool), units_per_chunk=2)
                .sums
            )
        ).get_concrete_function()
    messages = [record.getMessage() for record in caplog.records if 'while_loop' in record.getMessage()]
    found = [re.match(r'(?:Using a while_loop for converting )?(\w+)', message) for message in messages]
    assert all(found)
    return {match.group(1) for match in found}
