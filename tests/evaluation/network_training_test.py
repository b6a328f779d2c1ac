"""Tests of the training of networks that classify images: seeds, early stopping, augmentation, divergence."""

import collections
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import network_training
from tf_dpdiff.networks import classifiers

CONFIG = network_training.TrainingConfig(
    optimizer='adam',
    learning_rate=3e-3,
    num_epochs=4,
    min_steps=40,
    batch_size=32,
    weight_decay=1e-4,
    shift=0.125,
    flip=False,
    patience=6,
)
NO_AUGMENTATION = dataclasses.replace(CONFIG, shift=0.0)


@pytest.fixture(name='digits', scope='module')
def fixture_digits():
    """Images and labels to train on, and to validate with."""
    data = datasets.digits()
    return (data.train.images_uint8[:200], data.train.labels[:200]), (
        data.held_out.images_uint8[:100],
        data.held_out.labels[:100],
    )


def small_cnn(num_classes=10, seed=0):
    return classifiers.small_cnn((8, 8, 1), num_classes, width=4, seed=seed)


def train(digits, config=CONFIG, **options):
    model = small_cnn()
    return model, network_training.train(model, config, *digits[0], **options)


def log_validations(monkeypatch, model, scores):
    """Lets validation give certain scores; returns the images that were looked at and the weights at each."""
    seen, weights, left = [], [], iter(scores)

    def score(unused_predict, images, labels):
        seen.append((images, labels))
        weights.append(model.get_weights())
        return next(left), 0.0

    monkeypatch.setattr(network_training, '_score', score)
    return seen, weights


def assert_weights_equal(one, two, equal=True):
    assert all(np.array_equal(a, b) for a, b in zip(one, two)) == equal


@pytest.mark.parametrize('optimizer', ['adam', 'sgd'])
def test_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(digits, optimizer):
    config = dataclasses.replace(CONFIG, optimizer=optimizer, flip=True)
    found = []
    for global_seed, seed in ((1, 3), (2, 3), (1, 4)):
        keras.utils.set_random_seed(global_seed)
        found.append(train(digits, config, seed=seed)[0].get_weights())
    assert_weights_equal(found[0], found[1])
    assert_weights_equal(found[0], found[2], equal=False)


@pytest.mark.parametrize(
    'scores, kept, trained',
    [
        ((0.1, 0.7, 0.3, 0.5, 0.6, 0.2), 1, 6),
        ((0.9, 0.7, 0.3, 0.5, 0.6, 0.2), 0, 6),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 5, 6),
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5), 0, 6),  # The first of equals.
    ],
)
def test_weights_of_the_best_validation_are_kept(digits, monkeypatch, scores, kept, trained):
    model = small_cnn()
    seen, weights = log_validations(monkeypatch, model, scores)
    network_training.train(model, dataclasses.replace(CONFIG, num_epochs=6), *digits[0], validation=digits[1])
    assert len(seen) == trained
    assert_weights_equal(model.get_weights(), weights[kept])
    assert_weights_equal(weights[0], weights[5], equal=False)


@pytest.mark.parametrize('patience, trained', [(1, 3), (2, 4), (3, 8), (9, 8)])
def test_training_ends_after_its_patience(digits, monkeypatch, patience, trained):
    model = small_cnn()
    seen, _ = log_validations(monkeypatch, model, (0.1, 0.5, 0.2, 0.2, 0.6, 0.3, 0.3, 0.2))
    config = dataclasses.replace(CONFIG, num_epochs=8, patience=patience)
    network_training.train(model, config, *digits[0], validation=digits[1])
    assert len(seen) == trained


def test_early_stopping_looks_at_validation_images_only(digits, monkeypatch):
    model = small_cnn()
    seen, _ = log_validations(monkeypatch, model, (0.1,) * CONFIG.num_epochs)
    network_training.train(model, CONFIG, *digits[0], validation=digits[1])
    for images, labels in seen:
        assert images is digits[1][0] and labels is digits[1][1]


def test_validation_images_are_not_trained_on(digits):
    """The same choice of weights gives the same classifier, whatever the validation images show."""
    config = dataclasses.replace(CONFIG, num_epochs=1)
    images, labels = digits[1]
    found = [
        train(digits, config, validation=pair)[0].get_weights()
        for pair in (None, (images, labels), (255 - images, labels), (images, 9 - labels))
    ]
    for weights in found[1:]:
        assert_weights_equal(found[0], weights)


def test_validation_chooses_between_epochs_and_control_of_wrong_labels_chooses_otherwise(digits):
    config = dataclasses.replace(CONFIG, num_epochs=6, min_steps=120)
    images, labels = digits[1]
    accuracies = [
        np.mean(train(digits, config, validation=pair)[1](images).argmax(axis=-1) == labels)
        for pair in ((images, labels), (images, (labels + 1) % 10))
    ]
    assert accuracies[0] > accuracies[1] + 0.1


def test_score_is_accuracy_and_then_likelihood():
    probabilities = np.array([[0.6, 0.4], [0.3, 0.7], [0.8, 0.2]], np.float32)
    score = network_training._score(lambda unused_images: probabilities, np.zeros([3]), np.array([0, 1, 1]))
    assert score == pytest.approx((2 / 3, np.mean(np.log([0.6, 0.7, 0.2]))), abs=1e-6)


@pytest.mark.parametrize(
    'num_images, epochs, min_steps, batch_size, steps',
    [
        (200, 3, 1, 32, 3 * 7),
        (200, 3, 60, 32, 60),  # A small set is gone through more often.
        (10, 2, 1, 32, 2),
        (33, 4, 10, 32, 12),
    ],
)
def test_number_of_steps_is_what_was_said(digits, monkeypatch, num_images, epochs, min_steps, batch_size, steps):
    images, labels = (part[:num_images] for part in digits[0])
    batches = []
    monkeypatch.setattr(network_training, 'augment', lambda chosen, *unused: batches.append(len(chosen)) or chosen)
    config = dataclasses.replace(CONFIG, num_epochs=epochs, min_steps=min_steps, batch_size=batch_size)
    network_training.train(small_cnn(), config, images, labels)
    assert batches == [min(batch_size, num_images)] * steps


@pytest.mark.parametrize(
    'shift, flip, expected', [(0.0, False, 1), (0.125, False, 9), (0.0, True, 2), (0.25, True, 50)]
)
def test_augmentation_moves_and_mirrors_evenly_with_black_at_the_edges(shift, flip, expected):
    image = np.arange(1, 65, dtype=np.uint8).reshape(8, 8, 1)
    config = dataclasses.replace(CONFIG, shift=shift, flip=flip)
    count = 200 * expected
    found = network_training.augment(np.tile(image, [count, 1, 1, 1]), config, np.random.default_rng(0))
    assert found.shape == (count, 8, 8, 1) and found.dtype == np.uint8
    most = int(8 * shift)
    views = set()
    for down in range(-most, most + 1):
        for right in range(-most, most + 1):
            padded = np.pad(image, ((most, most), (most, most), (0, 0)))
            moved = padded[most + down : most + down + 8, most + right : most + right + 8]
            views |= {moved.tobytes()} | ({moved[:, ::-1].tobytes()} if flip else set())
    tally = collections.Counter(view.tobytes() for view in found)
    assert set(tally) == views and len(views) == expected
    # Each as often as any other: 200 on average, at most six standard deviations off.
    assert max(abs(times - 200) for times in tally.values()) < 6 * np.sqrt(200) + (expected == 1)


def test_weight_decay_shrinks_kernels(digits):
    norms = [
        sum(
            np.sum(w**2)
            for w in train(digits, dataclasses.replace(NO_AUGMENTATION, weight_decay=decay))[0].get_weights()
            if w.ndim > 1
        )
        for decay in (0.0, 0.1)
    ]
    assert norms[1] < 0.9 * norms[0]


def test_prediction_in_parts_is_that_of_the_network(digits, monkeypatch):
    model, predict = train(digits, dataclasses.replace(CONFIG, num_epochs=1))
    images = digits[1][0]
    expected = tf.nn.softmax(model(images, training=False))
    monkeypatch.setattr(network_training, '_PREDICTED_AT_A_TIME', 33)
    np.testing.assert_allclose(predict(images), expected, atol=1e-5)


def test_network_that_diverged_knows_nothing(digits):
    config = dataclasses.replace(CONFIG, optimizer='sgd', learning_rate=1e30)
    model, predict = train(digits, config, validation=digits[1])
    assert not np.all(np.isfinite(model(digits[1][0])))  # Else this shows nothing.
    np.testing.assert_allclose(predict(digits[1][0]), 0.1)
