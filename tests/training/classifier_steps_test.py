"""Tests of the steps in which networks that classify images are trained; those of whole trainings are in evaluation."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.training import classifier_steps


@pytest.mark.parametrize('num_images, batch_size', [(10, 10), (10, 4), (7, 3), (1, 1), (3, 7)])
def test_every_image_comes_once_before_any_comes_again(num_images, batch_size):
    batches = classifier_steps.rows_in_random_order(num_images, batch_size, np.random.default_rng(0))
    rows = np.concatenate([next(batches) for _ in range(5 * num_images)])
    for start in range(0, len(rows) - num_images + 1, num_images):
        assert sorted(rows[start : start + num_images]) == list(range(num_images))


def make_model():
    images = keras.layers.Input([2, 2, 1], dtype=tf.uint8)
    hidden = keras.layers.Flatten()(tf.cast(images, tf.float32) / 255.0)
    return keras.Model(images, [hidden, keras.layers.Dense(3, kernel_initializer='zeros')(hidden)])


def make_batches(drawn):
    rng = np.random.default_rng(0)
    while True:
        drawn.append((rng.integers(0, 256, [5, 2, 2, 1]).astype(np.uint8), rng.integers(0, 3, [5])))
        yield drawn[-1]


@pytest.mark.parametrize('optimizer', ['adam', 'sgd'])
def test_steps_are_those_of_keras_at_a_rate_that_falls_along_half_a_cosine(optimizer):
    ours, theirs, drawn = make_model(), make_model(), []
    options = {
        'learning_rate': 0.1,
        'optimizer': optimizer,
        'logits_of': lambda outputs: outputs[1],
        'tells_loss': True,
    }
    losses = [float(loss) for loss in classifier_steps.train(ours, make_batches(drawn), 4, **options)]
    assert len(losses) == len(drawn) == 4  # No batch more than is used, which would move a caller's generator.
    classifier = keras.Model(theirs.inputs, theirs.outputs[1])
    plain = keras.optimizers.Adam() if optimizer == 'adam' else keras.optimizers.SGD(momentum=0.9, nesterov=True)
    classifier.compile(plain, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for number, (images, labels) in enumerate(drawn):
        plain.learning_rate = 0.1 * 0.5 * (1.0 + np.cos(np.pi * number / 4))
        assert classifier.train_on_batch(images, labels) == pytest.approx(losses[number], rel=1e-5)
    for mine, their in zip(ours.get_weights(), theirs.get_weights()):
        np.testing.assert_allclose(mine, their, rtol=1e-4, atol=1e-6)
