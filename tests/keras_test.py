"""Tests of which Keras the project runs on, each in a process of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(program, **environment):
    given = {name: value for name, value in os.environ.items() if name != 'TF_USE_LEGACY_KERAS'}
    return subprocess.run(
        [sys.executable, '-c', program],
        cwd=ROOT,
        env={**given, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    'program, environment',
    [
        ('import tensorflow as tf; tf.keras.layers', {}),
        pytest.param('from tensorflow.keras import layers', {}, marks=pytest.mark.long),
        pytest.param('pass', {'TF_USE_LEGACY_KERAS': '0'}, marks=pytest.mark.long),
    ],
)
def test_whoever_uses_keras_3_before_us_is_told_what_to_do(program, environment):
    ended = run(f'{program}\nfrom tf_dpdiff.privacy import optimizer', **environment)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        'ImportError: tf_dpdiff works with Keras 2, and this program uses tf.keras as Keras 3: import tf_dpdiff before '
        'anything that uses tf.keras, or start the program with TF_USE_LEGACY_KERAS=1.'
    )


VARY = """
import tensorflow as tf
from tf_dpdiff.data import augmentation
augmenter = augmentation.Augmenter(augmentation.AugmentationConfig(brightness=0.2))
assert augmenter(tf.ones([1, 4, 4, 1]), tf.fill([1, augmenter.num_uniforms], 0.9)).shape == (1, 4, 4, 1)
"""


@pytest.mark.parametrize(
    'first',
    [
        VARY,  # Who varies images names no Keras.
        *(pytest.param(f'import {first}', marks=pytest.mark.long) for first in ('tensorflow', 'tf_keras', 'tf_dpdiff')),
    ],
)
def test_keras_2_is_that_of_tensorflow_and_of_keras_cv_in_any_order_of_imports(first):
    ended = run(
        f'{first}\nfrom tf_dpdiff import keras\nimport tensorflow as tf\n'
        'from tensorflow.keras import layers\nimport keras_cv\n'
        'assert issubclass(keras_cv.layers.RandomBrightness, keras.layers.Layer)\n'
        'print(tf.keras.layers.Dense is layers.Dense is keras.layers.Dense)'
    )
    said = 'True\n' if first == VARY else 'Using TensorFlow backend\nTrue\n'
    assert ended.returncode == 0 and ended.stdout == said, ended.stderr
