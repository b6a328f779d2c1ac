"""Tests of the search for copies: what is nearest, what is a sign of copies and what is not, and the picture of it."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats
import sklearn.neighbors
import tensorflow as tf

from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import features
from tf_dpdiff.evaluation import neighbors

SHAPE = (4, 4, 1)


def run(images_uint8):
    """Features of which some weigh more than others."""
    flat = tf.reshape(tf.cast(images_uint8, tf.float32), [len(images_uint8), -1])
    return flat * tf.linspace(0.5, 2.0, flat.shape[1]), flat[:, :2]


EXTRACTOR = features.Extractor('weighted pixels', 'abc', 'none', [run], batch_size=50)


def make_dataset(images, name='private'):
    return datasets.ImageDataset(name, images, np.zeros(len(images), np.int32), ('a',))


def make_images(count, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, [count, *shape], np.uint8)


def find(synthetic, train, held_out, **fields):
    return neighbors.find(
        neighbors.NeighborsConfig(**fields),
        EXTRACTOR,
        synthetic=synthetic,
        train=make_dataset(train),
        held_out=make_dataset(held_out, 'held out'),
    )


def nearest_by_loops(queries, references, count):
    distances = np.array([[np.sqrt(np.sum((q - r) ** 2)) for r in references] for q in queries])
    rows = np.argsort(distances, axis=1, kind='stable')[:, :count]
    return np.take_along_axis(distances, rows, axis=1), rows


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('count', [1, 3])
@pytest.mark.parametrize('chunk_values', [2**24, 7 * 5, 1])
def test_nearest_equals_all_distances_in_chunks_of_any_size(dtype, count, chunk_values, monkeypatch):
    chunks = []
    fit = sklearn.neighbors.NearestNeighbors.fit
    monkeypatch.setattr(
        sklearn.neighbors.NearestNeighbors, 'fit', lambda self, x: chunks.append(len(x)) or fit(self, x)
    )
    monkeypatch.setattr(neighbors, '_CHUNK_VALUES', chunk_values)
    generator = np.random.default_rng(0)
    queries, references = (generator.normal(size=[size, 5]).astype(dtype) for size in (9, 40))
    distances, rows = neighbors.nearest(queries, references, count)
    expected = nearest_by_loops(queries.astype(np.float64), references.astype(np.float64), count)
    np.testing.assert_allclose(distances, expected[0], rtol=1e-12)
    np.testing.assert_array_equal(rows, expected[1])
    assert sum(chunks) == 40 and max(chunks) == {2**24: 40, 35: 7, 1: count}[chunk_values]


def test_nearest_of_a_copy_is_at_no_distance_whatever_the_other_dimensions():
    references = make_images(300, shape=(32, 32, 3))
    distances, rows = neighbors.nearest(references[50:60], references, 2, to_points=lambda x: x.reshape(-1, 3072) / 255)
    assert np.all(distances[:, 0] == 0.0) and np.all(distances[:, 1] > 1.0)
    np.testing.assert_array_equal(rows[:, 0], np.arange(50, 60))


def test_nearest_reads_no_more_than_a_chunk_of_a_file_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbors, '_CHUNK_VALUES', 20 * 16)
    np.save(tmp_path / 'images.npy', make_images(100))
    read = []

    def to_points(images):
        read.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32)

    mapped = np.load(tmp_path / 'images.npy', mmap_mode='r')
    found = neighbors.nearest(make_images(5, 1), mapped, 3, to_points=to_points)
    assert max(read) == 20
    expected = nearest_by_loops(
        make_images(5, 1).reshape(5, -1).astype(float), mapped.reshape(100, -1).astype(float), 3
    )
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.fixture(name='digits', scope='module')
def fixture_digits():
    data = datasets.digits()
    return data.train.images_uint8, data.held_out.images_uint8


def cells_of(picture, result, shape):
    """Returns the images of a picture, [rows, columns, height, width, channels]."""
    columns = 2 * (min(3, result.num_train) + 1) + 1
    factor = picture.shape[1] // (columns * (shape[1] + 1))
    grid = picture[::factor, ::factor]
    cells = grid.reshape(-1, shape[0] + 1, columns, shape[1] + 1, shape[2]).transpose(0, 2, 1, 3, 4)
    return cells[:, :, :-1, :-1]


@pytest.mark.parametrize('space', ['features', 'pixels'])
@pytest.mark.parametrize('max_samples', [1000, 20])
def test_planted_copy_is_found_and_shown(space, max_samples, digits):
    train, held_out = digits
    synthetic = held_out[:180].copy()
    control = find(synthetic, train, held_out[180:], space=space, max_samples=max_samples, shown=2)
    synthetic[77] = train[1234]
    result = find(synthetic, train, held_out[180:], space=space, max_samples=max_samples, shown=2)
    assert result.exact_copies == {'synthetic': 1, 'held_out': 0}
    assert result.verdict.startswith('Copies among the samples: 1 of the different ones')
    cells = cells_of(result.picture, result, (8, 8, 1))
    np.testing.assert_array_equal(cells[0, 0], train[1234])
    np.testing.assert_array_equal(cells[0, 1], train[1234])
    assert control.exact_copies == {'synthetic': 0, 'held_out': 0} and control.verdict.startswith('No sign of copies')
    assert not np.array_equal(*cells_of(control.picture, control, (8, 8, 1))[0, :2])
    if max_samples > 180:
        assert result.to_dict()['spaces']['pixels']['quantiles']['synthetic']['min'] == 0.0
        assert control.to_dict()['spaces']['pixels']['quantiles']['synthetic']['min'] > 0.0
    else:  # It was not drawn, so the distances are without it.
        assert result.to_dict()['num_synthetic'] == 20
        np.testing.assert_array_equal(result.distances['pixels'].synthetic, control.distances['pixels'].synthetic)


def test_copies_are_counted_once_and_held_out_ones_beside_them(digits):
    train, held_out = digits
    synthetic = np.concatenate([held_out[:100], train[[5, 5, 5, 6]]])
    result = find(synthetic, train, np.concatenate([held_out[100:], train[7:8]]))
    assert result.exact_copies == {'synthetic': 2, 'held_out': 1}
    assert '2 of the different ones equal' in result.verdict and '1 of the different held-out' in result.verdict


def with_noise(images, stddev=8.0):
    return np.clip(images + np.random.default_rng(0).normal(0.0, stddev, images.shape), 0, 255).astype(np.uint8)


def test_copies_with_noise_raise_the_alarm_and_fresh_images_with_noise_do_not(digits):
    train, held_out = digits
    alarm = find(with_noise(train[:180]), train, held_out[180:])
    assert alarm.exact_copies['synthetic'] == 0
    assert alarm.verdict.startswith('Samples lie nearer to private training images than held-out images do')
    assert find(with_noise(held_out[:180]), train, held_out[180:]).verdict.startswith('No sign of copies')


def test_a_few_copies_with_noise_among_many_fresh_images_raise_the_alarm(digits):
    train, held_out = digits
    few = np.concatenate([held_out[:162], with_noise(train[:18])])
    assert find(few, train, held_out[180:]).verdict.startswith('Samples lie nearer')


@pytest.mark.parametrize('seed', range(5))
def test_samples_as_fresh_as_held_out_images_raise_no_alarm(seed, digits):
    order = np.random.default_rng(seed).permutation(360)
    train, held_out = digits
    assert find(held_out[order[:180]], train, held_out[order[180:]]).verdict.startswith('No sign of copies')


@pytest.mark.parametrize('num_nearer', [0, 1, 3, 10])
@pytest.mark.parametrize('num_held_out, level', [(1, 0.5), (40, 0.01), (40, 0.5), (700, 0.01)])
def test_chance_of_near_samples_is_exact(num_nearer, num_held_out, level):
    rank = max(1, round(level * num_held_out))
    held_out = np.random.default_rng(0).permutation(np.arange(num_held_out) + 10.0)
    threshold = np.sort(held_out)[rank - 1]
    synthetic = np.concatenate([np.full(num_nearer, threshold - 0.5), np.full(10 - num_nearer, threshold)])
    share = neighbors.Distances(synthetic, held_out).near_share(level)
    # So many samples are below the r-th held-out image where, of all in order, fewer than r of the first
    # num_nearer + r - 1 are held out: every order is as likely.
    law = stats.hypergeom(10 + num_held_out, num_held_out, num_nearer + rank - 1)
    assert share.probability_by_chance == pytest.approx(law.cdf(rank - 1), rel=1e-9)
    assert share.share == num_nearer / 10 and share.expected == pytest.approx(rank / (num_held_out + 1))


def test_quantiles_are_those_of_all_distances():
    synthetic, train, held_out = make_images(50, 1), make_images(70, 2), make_images(40, 3)
    result = find(synthetic, train, held_out)
    fields = result.to_dict()
    weights = np.linspace(0.5, 2.0, 16)
    for name, to_points in (
        ('pixels', lambda x: x.reshape(-1, 16) / 255.0),
        ('features', lambda x: x.reshape(-1, 16) * weights),
    ):
        for kind, images in (('synthetic', synthetic), ('held_out', held_out)):
            distances = nearest_by_loops(to_points(images), to_points(train), 1)[0][:, 0]
            found = fields['spaces'][name]['quantiles'][kind]
            assert list(found) == ['min', '1%', '5%', '25%', '50%', '75%']
            expected = np.quantile(distances, [0.0, 0.01, 0.05, 0.25, 0.5, 0.75], method='inverted_cdf')
            np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5)
        assert set(fields['spaces'][name]['nearer_than_held_out']) == {'1%', '50%'}


def test_result_says_what_was_searched_and_is_json():
    fields = find(make_images(50, 1), make_images(70, 2), make_images(40, 3), max_samples=30).to_dict()
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields
    assert (fields['features'], fields['weights_sha256']) == ('weighted pixels', 'abc')
    assert (fields['num_synthetic'], fields['num_held_out'], fields['num_train']) == (30, 30, 70)
    assert [space['distance'] for space in fields['spaces'].values()] == [
        'Euclidean, of features',
        'Euclidean, of pixels in [0, 1]',
    ]
    assert 'a heuristic, not a proof' in fields['verdict'] and '\n' not in fields['verdict']


@pytest.mark.parametrize('space', ['features', 'pixels'])
@pytest.mark.parametrize('sizes', [(50, 70, 40), (1, 2, 1), (3, 1, 50)])
@pytest.mark.parametrize('shape', [(4, 6, 3), (8, 8, 1)])
def test_picture_shows_the_nearest_samples_beside_held_out_images(space, sizes, shape):
    synthetic, train, held_out = (make_images(size, seed, shape) for seed, size in enumerate(sizes))
    result = find(synthetic, train, held_out, space=space, shown=4)
    cells = cells_of(result.picture, result, shape)
    count, num_rows = min(3, len(train)), min(4, max(len(synthetic), len(held_out)))
    assert result.picture.dtype == np.uint8 and result.picture.shape[-1] == shape[-1]
    assert cells.shape[:2] == (num_rows, 2 * (count + 1) + 1)
    assert np.all(cells[:, count + 1] == cells[0, count + 1, 0, 0, 0])  # The grey field.
    to_points = {
        'pixels': lambda images: images.reshape(len(images), -1).astype(np.float64),
        'features': lambda images: run(images)[0].numpy().astype(np.float64),
    }[space]
    for first, images in ((0, synthetic), (count + 2, held_out)):
        distances, rows = nearest_by_loops(to_points(images), to_points(train), count)
        order = np.argsort(distances[:, 0])[:4]
        np.testing.assert_array_equal(cells[: len(order), first], images[order])
        np.testing.assert_array_equal(cells[: len(order), first + 1 : first + 1 + count], train[rows[order]])
        assert not cells[len(order) :, first : first + 1 + count].any()  # No such sample.


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'max_samples': 0}, 'max_samples of the nearest neighbours must be at least 1, got 0'),
        ({'shown': 0}, 'shown of the nearest neighbours must be at least 1, got 0'),
        ({'space': 'pixel'}, r"space of the nearest neighbours must be one of \('features', 'pixels'\), got 'pixel'"),
    ],
)
def test_config_is_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        neighbors.NeighborsConfig(**fields)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        neighbors.NeighborsConfig().shown = 3
