"""Tests of sets of samples, of pictures of them and of the files that hold them."""

import os
import re

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import store


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


def test_first_images_are_those_of_a_longer_run():
    few, few_labels = run(10)
    many, many_labels = run(25)
    np.testing.assert_array_equal(few, many[:10])
    np.testing.assert_array_equal(few_labels, many_labels[:10])


def test_request_to_stop_ends_it_after_the_chunk():
    answers = iter([False, True, False])
    assert run(100, should_stop=lambda: next(answers)) is None
    assert list(answers) == [False]


@pytest.mark.parametrize('name', ['num_images', 'chunk_size'])
def test_bad_configuration_is_refused(name):
    with pytest.raises(ValueError, match=f'{name} of the samples must be at least 1, got 0'):
        draw.GenerateConfig(**{name: 0})


def test_grid_has_a_row_a_class_and_its_images_in_order():
    generator = np.random.default_rng(0)
    images = generator.integers(1, 256, [9, 2, 3, 1]).astype(np.uint8)
    labels = np.array([2, 0, 2, 3, 0, 2, 2, 0, 2])  # None of class 1; more of class 2 than there are columns.
    grid = pictures.class_grid(images, labels, columns=4, pixels=12)
    assert grid.shape == (4 * 3, 4 * 4, 1) and grid.dtype == np.uint8
    cells = {(0, 0): 1, (0, 1): 4, (0, 2): 7, (2, 0): 0, (2, 1): 2, (2, 2): 5, (2, 3): 6, (3, 0): 3}
    for row in range(4):
        for column in range(4):
            cell = grid[row * 3 : row * 3 + 2, column * 4 : column * 4 + 3]
            expected = images[cells[row, column]] if (row, column) in cells else 0
            np.testing.assert_array_equal(cell, np.broadcast_to(expected, cell.shape))
    lines = np.concatenate([grid[2::3].ravel(), grid[:, 3::4].ravel()])
    assert len(np.unique(lines)) == 1 and lines[0] > 0


@pytest.mark.parametrize('columns, pixels, factor', [(4, 16, 1), (4, 1, 1), (4, 32, 2), (4, 47, 2), (2, 48, 6)])
def test_grid_is_enlarged_by_whole_pixels(columns, pixels, factor):
    images = np.random.default_rng(0).integers(0, 256, [6, 2, 3, 3]).astype(np.uint8)
    labels = np.arange(6) % 2
    small = pictures.class_grid(images, labels, columns=columns, pixels=1)
    assert small.shape == (2 * 3, columns * 4, 3)
    large = pictures.class_grid(images, labels, columns=columns, pixels=pixels)
    np.testing.assert_array_equal(large, np.kron(small, np.ones([factor, factor, 1], np.uint8)))


@pytest.mark.parametrize('channels', [1, 3])
def test_png_holds_the_pixels(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, [4, 5, channels]).astype(np.uint8)
    pictures.write_png(tmp_path / 'a.png', image)
    with Image.open(tmp_path / 'a.png') as picture:
        assert picture.format == 'PNG'
        np.testing.assert_array_equal(np.array(picture).reshape(image.shape), image)


def write_some(path, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, [20, 4, 4, 1]).astype(np.uint8)
    labels = (np.arange(20) % 3).astype(np.int32)
    store.write_file(path, images, labels, ('zero', 'öne', 'two'))
    return images, labels


def test_samples_come_back_from_their_file(tmp_path):
    images, labels = write_some(tmp_path / 'a.npz')
    images_again, labels_again = store.read(tmp_path / 'a.npz')
    assert images_again.dtype == np.uint8 and labels_again.dtype == np.int32
    np.testing.assert_array_equal(images_again, images)
    np.testing.assert_array_equal(labels_again, labels)
    with np.load(tmp_path / 'a.npz', allow_pickle=False) as arrays:
        assert arrays['class_names'].tolist() == ['zero', 'öne', 'two']


class Unwritable:
    """An array that cannot be read, as when memory or the disk gives out half way."""

    def __array__(self, dtype=None):
        raise OSError(28, 'No space left on device')


def test_failed_writing_leaves_what_was_there(tmp_path):
    write_some(tmp_path / 'a.npz')
    before = (tmp_path / 'a.npz').read_bytes()
    with pytest.raises(OSError, match='No space left'):
        store.write_file(tmp_path / 'a.npz', np.zeros([2, 4, 4, 1], np.uint8), Unwritable(), ('a',))
    assert (tmp_path / 'a.npz').read_bytes() == before
    with pytest.raises(Exception, match='data type'):
        pictures.write_png(tmp_path / 'a.png', np.zeros([2, 2, 3], np.complex128))
    assert os.listdir(tmp_path) == ['a.npz']


def test_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f'no samples at {re.escape(str(tmp_path))}/a.npz; make some with bin/sample'
    ):
        store.read(tmp_path / 'a.npz')


def _truncated(path):
    write_some(path)
    path.write_bytes(path.read_bytes()[:-40])


def _corrupt(path):
    write_some(path)
    content = bytearray(path.read_bytes())
    content[60:90] = b'\xff' * 30
    path.write_bytes(content)


def _npy(path):
    with open(path, 'wb') as file:
        np.save(file, np.zeros([2, 4, 4, 1], np.uint8))


_IMAGES, _LABELS = np.zeros([2, 4, 4, 1], np.uint8), np.zeros([2], np.int32)

_NOT_SAMPLES = {
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('hello'),
    'truncated': _truncated,
    'corrupt': _corrupt,
    'npy': _npy,
    'folder': lambda path: path.mkdir(),
    'no labels': lambda path: np.savez(path, images=_IMAGES),
    'pickled': lambda path: np.savez(path, images=np.array([{}]), labels=_LABELS),
    'float images': lambda path: np.savez(path, images=_IMAGES.astype(np.float32), labels=_LABELS),
    'flat images': lambda path: np.savez(path, images=_IMAGES.reshape(2, -1), labels=_LABELS),
    'more labels': lambda path: np.savez(path, images=_IMAGES, labels=np.zeros([3], np.int32)),
    'float labels': lambda path: np.savez(path, images=_IMAGES, labels=np.zeros([2])),
}


@pytest.mark.parametrize('make', _NOT_SAMPLES.values(), ids=_NOT_SAMPLES.keys())
def test_file_of_another_kind_is_refused_by_name(tmp_path, make):
    make(tmp_path / 'a.npz')
    with pytest.raises(ValueError, match=f'{re.escape(str(tmp_path))}/a.npz does not hold samples'):
        store.read(tmp_path / 'a.npz')


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
