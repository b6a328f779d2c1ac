"""Tests of the choice among candidates, against one that is made by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import candidates

_NUM_CLASSES = 3
_LABELS = np.array([0, 1, 2, 3, 0, 1, 2], np.int32)  # 3 is "no class".
_SEEDS = np.array([5, -6, 7, 8, 2**40, 5, 0], np.int64)


def sample_images(labels, seeds):
    """Images of two pixels: noise of the seed, and the label."""
    noise = tf.map_fn(
        lambda seed: tf.random.stateless_uniform([2, 1, 1], [seed, 1], 0, 256, tf.int32),
        seeds,
        fn_output_signature=tf.int32,
    )
    return tf.cast(noise + tf.cast(labels, tf.int32)[:, None, None, None], tf.uint8)


def score_classes(images):
    """The first class likes a bright first pixel, the second one a bright second one, the third one none of both."""
    first, second = (tf.cast(images[:, number, 0, 0], tf.float32) for number in range(2))
    return tf.stack([first, second, 200.0 - first - second], axis=1)


def sample_best(num_candidates):
    return tf.function(candidates.choose_among_candidates(sample_images, score_classes, num_candidates))


def expected_images(num_candidates):
    images = []
    for label, seed in zip(_LABELS, _SEEDS):
        seeds = tf.constant(seed * num_candidates + np.arange(num_candidates))
        drawn = sample_images(tf.fill([num_candidates], int(label)), seeds)
        scores, best = score_classes(drawn).numpy(), 0
        if label < _NUM_CLASSES:
            best = np.argmax(scores[:, label] - np.delete(scores, label, axis=1).max(axis=1))
        images.append(drawn.numpy()[best])
    return np.stack(images)


@pytest.mark.parametrize('num_candidates', [1, 2, 5])
def test_best_candidate_is_taken(num_candidates):
    images = sample_best(num_candidates)(tf.constant(_LABELS), tf.constant(_SEEDS))
    assert images.dtype == tf.uint8
    np.testing.assert_array_equal(images, expected_images(num_candidates))


def test_one_candidate_is_the_image_itself_and_several_are_not():
    labels, seeds = tf.constant(_LABELS), tf.constant(_SEEDS)
    np.testing.assert_array_equal(sample_best(1)(labels, seeds), sample_images(labels, seeds))
    assert np.any(sample_best(4)(labels, seeds) != sample_images(labels, seeds))


def test_image_does_not_depend_on_the_others():
    sample, order = sample_best(4), np.array([6, 2, 0, 5])
    whole = sample(tf.constant(_LABELS), tf.constant(_SEEDS)).numpy()
    np.testing.assert_array_equal(sample(tf.constant(_LABELS[order]), tf.constant(_SEEDS[order])), whole[order])


def test_more_candidates_are_more_clearly_of_their_class():
    labels, seeds = tf.constant(np.arange(300, dtype=np.int32) % 3), tf.range(300, dtype=tf.int64)
    accuracies = []
    for num_candidates in (1, 4, 16):
        scores = score_classes(sample_best(num_candidates)(labels, seeds))
        accuracies.append(np.mean(np.argmax(scores, axis=1) == labels))
    assert accuracies[0] < 0.5 and accuracies == sorted(accuracies) and accuracies[-1] > 0.9


def test_class_without_a_score_takes_a_candidate_all_the_same():

    def score(images):
        return tf.where([True, False, True], score_classes(images), tf.float32.min)

    sample = candidates.choose_among_candidates(sample_images, score, 3)
    images = sample(tf.constant(_LABELS), tf.constant(_SEEDS)).numpy()
    drawn = [sample_images(tf.constant(_LABELS), tf.constant(_SEEDS * 3 + number)).numpy() for number in range(3)]
    for row, image in enumerate(images):
        assert any(np.array_equal(image, candidate[row]) for candidate in drawn)
