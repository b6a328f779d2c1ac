"""Tests of how images are drawn: classes that follow from seeds, chunks, requests to stop."""

import fractions

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.sampling import draw


def traceable_samples(labels, seeds):
    """Stands in for a sampler: the pixels of an image say its label, its seed and the size of its batch."""
    assert labels.dtype == tf.int32 and seeds.dtype == tf.int64
    size = tf.fill(tf.shape(seeds), tf.size(seeds, tf.int64))
    pixels = tf.stack([tf.cast(labels, tf.int64), seeds % 256, seeds // 256 % 256, size], axis=-1)
    return tf.cast(tf.reshape(pixels, [-1, 2, 2, 1]), tf.uint8)


def run(num_images, seed=0, chunk_size=7, num_classes=3, **arguments):
    config = draw.GenerateConfig(num_images=num_images, seed=seed, chunk_size=chunk_size)
    choice = draw.ClassChoice(tuple(range(num_classes)))
    return draw.at_once([traceable_samples], config, choice=choice, **arguments)


@pytest.mark.parametrize('num_images', [1, 6, 7, 8, 14, 100])
@pytest.mark.parametrize('seed', [0, 1000])
def test_labels_go_round_and_seeds_count_up(num_images, seed):
    images, labels = run(num_images, seed)
    assert images.shape == (num_images, 2, 2, 1) and images.dtype == np.uint8
    assert labels.dtype == np.int32
    label, low, high, _ = images.reshape(num_images, 4).astype(int).T
    np.testing.assert_array_equal(label, labels)
    # A label follows from the seed alone.
    np.testing.assert_array_equal(labels, (seed + np.arange(num_images)) % 3)
    np.testing.assert_array_equal(low + 256 * high, seed + np.arange(num_images))
    counts = np.bincount(labels, minlength=3)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize('num_images', [1, 6, 8, 100])
def test_every_image_is_sampled_in_a_batch_of_the_same_size(num_images):
    images, _ = run(num_images)
    np.testing.assert_array_equal(images.reshape(num_images, 4)[:, 3], 7)


def test_request_to_stop_ends_it_after_the_chunk():
    answers = iter([False, True, False])
    assert run(100, should_stop=lambda: next(answers)) is None
    assert list(answers) == [False]


@pytest.mark.parametrize('name', ['num_images', 'chunk_size'])
def test_bad_configuration_is_refused(name):
    with pytest.raises(ValueError, match=f'{name} of the samples must be at least 1, got 0'):
        draw.GenerateConfig(**{name: 0})


@pytest.mark.parametrize('start', [0, 5, 2**40 + 1, 2**62])
def test_uniform_classes_go_round_by_the_seed(start):
    seeds = np.arange(start, start + 100)
    labels = draw.ClassChoice((4, 1, 7)).labels(seeds)
    assert labels.dtype == np.int32
    assert labels.tolist() == [(4, 1, 7)[seed % 3] for seed in seeds.tolist()]


@pytest.mark.parametrize('weights', [('2', '1'), ('1/3', '0.25', '0', '1e-2'), ('0', '1', '0'), ('1', '1', '1', '0')])
@pytest.mark.parametrize('start', [0, 12345, 2**62])
def test_weighted_classes_are_those_of_exact_arithmetic(weights, start):
    weights = tuple(map(fractions.Fraction, weights))
    seeds = np.arange(start, start + 500)
    labels = draw.ClassChoice(tuple(range(len(weights))), weights).labels(seeds)
    for seed, label in zip(seeds.tolist(), labels):
        place = seed * 0x9E3779B97F4A7C15 % 2**64
        ends = [sum(weights[: k + 1]) / sum(weights) * 2**64 for k in range(len(weights))]
        assert label == next(k for k, end in enumerate(ends) if place < int(end))
        assert weights[label] > 0


@pytest.mark.parametrize('start', [0, 999, 2**50])
@pytest.mark.parametrize('size', [10, 100, 1000, 10000])
def test_counts_follow_the_weights_in_every_window(start, size):
    weights = np.array([5, 3, 1, 1])
    choice = draw.ClassChoice((0, 1, 2, 3), tuple(map(fractions.Fraction, weights.tolist())))
    counts = np.bincount(choice.labels(np.arange(start, start + size)), minlength=4)
    assert np.abs(counts - size * weights / weights.sum()).max() <= 4
    # Independent draws would be off by the square root of the size.
    drawn = np.bincount(np.random.default_rng(0).choice(4, 10000, p=weights / 10), minlength=4)
    assert np.abs(drawn - 10000 * weights / 10).max() > 4


@pytest.mark.parametrize(
    'classes, weights, message',
    [
        ((), None, 'at least one'),
        ((1, 1), None, 'distinct labels'),
        ((-1,), None, 'distinct labels from 0'),
        ((0, 1), (1,), '1 weights for 2 classes'),
        ((0, 1), (1, -1), 'must not be negative'),
        ((0, 1), (0, 0), 'at least one must be above 0'),
    ],
)
def test_bad_choices_of_classes_are_refused(classes, weights, message):
    with pytest.raises(ValueError, match=message):
        draw.ClassChoice(classes, weights and tuple(map(fractions.Fraction, weights)))


@pytest.mark.parametrize('num_functions', [1, 2])
def test_network_that_predicts_no_numbers_gives_a_clear_error_and_no_images(num_functions):

    @tf.function
    def sample(labels, seeds):
        process = process_lib.DiffusionProcess(schedules.Schedule('cosine', 10), 'v')
        broken = samplers.make_image_sampler(
            lambda x_t, t, labels: x_t * np.inf,
            process=process,
            config=samplers.SamplerConfig('ddim', 2),
            image_shape=(2, 2, 1),
            num_classes=3,
        )
        return broken(labels, seeds)

    config = draw.GenerateConfig(num_images=8, chunk_size=4)
    with pytest.raises(FloatingPointError, match='nothing can be sampled: its training has diverged'):
        draw.at_once([sample] * num_functions, config, choice=draw.ClassChoice((0, 1, 2)))
