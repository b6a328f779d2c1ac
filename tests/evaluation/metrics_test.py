"""Tests of quality metrics: each number against its definition in NumPy, and the protocol that comes with it."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from scipy import linalg
from scipy import special
import sklearn.metrics
import tensorflow as tf

from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import features
from tf_dpdiff.evaluation import metrics


def make_points(count, dimension, seed=0):
    """Correlated points: a covariance that is not the identity."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=[count, dimension]) @ generator.normal(size=[dimension, dimension]) + seed


def on_line(*positions):
    return np.array(positions, np.float64)[:, None]


def frechet_by_scipy(a, b):
    root = linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)


def frechet_by_nuclear_norm(a, b):
    """Takes singular covariances too: with X'X = (n - 1) S the trace of (S T)^(1/2) is the nuclear norm of X Y'."""
    x, y = ((points - points.mean(0)) / np.sqrt(len(points) - 1) for points in (a, b))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.sum(x**2) + np.sum(y**2) - 2 * np.linalg.norm(x @ y.T, 'nuc')


@pytest.mark.parametrize(
    'oracle, sizes, dimension',
    [
        (frechet_by_scipy, (200, 200), 16),
        (frechet_by_scipy, (90, 300), 7),
        (frechet_by_nuclear_norm, (90, 300), 7),
        (frechet_by_nuclear_norm, (10, 12), 32),
    ],
)
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_frechet_distance_equals_the_equation(oracle, sizes, dimension, dtype):
    a, b = (make_points(size, dimension, seed).astype(dtype) for seed, size in enumerate(sizes))
    expected = oracle(a.astype(np.float64), b.astype(np.float64))
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_shifted_scaled_and_equal_sets_is_known():
    a = make_points(100, 5)
    assert metrics.frechet_distance(a, a + [3.0, 0.0, 0.0, -4.0, 0.0]) == pytest.approx(25.0, rel=1e-9)
    scaled = np.sum(a.mean(0) ** 2) + np.trace(np.cov(a, rowvar=False))  # (2 - 1)^2 of both terms.
    assert metrics.frechet_distance(a, 2.0 * a) == pytest.approx(scaled, rel=1e-9)
    assert 0.0 <= metrics.frechet_distance(a, a) < 1e-9
    assert np.isnan(metrics.frechet_distance(a, np.full_like(a, np.nan)))


def kernel_distance_by_loops(a, b):

    def kernel(x, y):
        return (np.dot(x, y) / a.shape[1] + 1.0) ** 3

    within = [
        sum(kernel(x, y) for i, x in enumerate(c) for j, y in enumerate(c) if i != j) / (len(c) * (len(c) - 1))
        for c in (a, b)
    ]
    return sum(within) - 2.0 * np.mean([[kernel(x, y) for y in b] for x in a])


def test_kernel_distance_equals_the_unbiased_estimate():
    a, b = make_points(30, 8), make_points(20, 8, seed=1)
    value, error = metrics.kernel_distance(a, b)
    assert value == pytest.approx(kernel_distance_by_loops(a, b), rel=1e-9)
    assert np.isnan(error)  # One block.
    assert metrics.kernel_distance(a[:2], b[:2])[0] == pytest.approx(kernel_distance_by_loops(a[:2], b[:2]), rel=1e-9)


def test_kernel_distance_in_blocks_is_their_mean_with_its_standard_error(monkeypatch):
    monkeypatch.setattr(metrics, '_KID_BLOCK_SIZE', 16)
    a, b = make_points(48, 8).astype(np.float32), make_points(48, 8, seed=1).astype(np.float32)
    blocks = [kernel_distance_by_loops(a[i : i + 16].astype(float), b[i : i + 16].astype(float)) for i in (0, 16, 32)]
    value, error = metrics.kernel_distance(a, b)
    assert value == pytest.approx(np.mean(blocks), rel=1e-6)
    assert error == pytest.approx(np.std(blocks, ddof=1) / np.sqrt(3), rel=1e-6)


def test_kernel_distance_is_not_biased_by_few_images():
    generator = np.random.default_rng(0)
    draws = np.array(
        [metrics.kernel_distance(*generator.normal(size=[2, 12, 4]).astype(np.float32))[0] for _ in range(300)]
    )
    error = draws.std() / np.sqrt(len(draws))
    assert abs(draws.mean()) < 4.0 * error and draws.min() < 0.0
    # The control: an estimate with the diagonal would be off by far more.
    assert np.mean([np.sum(x**2) for x in generator.normal(size=[100, 4])]) / 12 > 4.0 * error


def test_inception_score_equals_the_equation():
    logits = np.random.default_rng(0).normal(0.0, 3.0, [200, 6])
    p = special.softmax(logits, axis=1)
    expected = np.exp(np.mean(np.sum(p * np.log(p / p.mean(0)), axis=1)))
    assert metrics.inception_score(logits) == pytest.approx(expected, rel=1e-9)
    assert metrics.inception_score(logits.astype(np.float32)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    'logits, expected',
    [
        (1e3 * np.eye(10)[np.arange(200) % 10], 10.0),
        (1e3 * np.eye(10)[np.arange(200) % 2], 2.0),
        (np.tile([3.0, -1.0, 0.5], [50, 1]), 1.0),
        (np.zeros([50, 1]), 1.0),
    ],
)
def test_inception_score_counts_the_classes_that_are_seen_with_certainty(logits, expected):
    assert metrics.inception_score(logits) == pytest.approx(expected, rel=1e-9)


def precision_recall_by_loops(real, synthetic, k):

    def share_reached(points, centres):
        reached = []
        for point in points:
            inside = False
            for i, centre in enumerate(centres):
                others = [np.linalg.norm(centre - other) for j, other in enumerate(centres) if j != i]
                inside |= np.linalg.norm(centre - point) <= sorted(others)[k - 1]
            reached.append(inside)
        return np.mean(reached)

    return share_reached(synthetic, real), share_reached(real, synthetic)


@pytest.mark.parametrize('k', [1, 3, 10])
@pytest.mark.parametrize('kind', ['apart', 'narrow', 'grid'])
def test_precision_and_recall_equal_the_definition(kind, k):
    generator = np.random.default_rng(1)
    real, synthetic = generator.normal(size=[40, 3]), generator.normal(size=[30, 3])
    synthetic = synthetic + 2.0 if kind == 'apart' else 0.4 * synthetic
    if kind == 'grid':  # Points that are the same, and points on the surface of a ball.
        real, synthetic = np.round(2.0 * real), np.round(6.0 * synthetic)
    expected = precision_recall_by_loops(real, synthetic, k)
    assert metrics.precision_recall(real, synthetic, neighbors=k) == expected
    assert metrics.precision_recall(synthetic, real, neighbors=k) == expected[::-1]
    assert metrics.precision_recall(real + 1000.0, synthetic + 1000.0, neighbors=k) == expected
    assert len(set(expected)) == 2  # The control: taking one for the other is noticed.


def test_precision_and_recall_of_a_case_by_hand():
    # Radii of the real points are 0.8, 0.8, 1, 1; of the synthetic ones 0.4, 0.4, 4.1.
    real, synthetic = on_line(0.2, 1.0, 20.0, 21.0), on_line(0.5, 0.9, 5.0)
    assert metrics.precision_recall(real, synthetic, neighbors=1) == pytest.approx((2 / 3, 1 / 2))


def test_precision_and_recall_of_equal_and_of_disjoint_sets():
    a = make_points(50, 4)
    assert metrics.precision_recall(a, np.random.default_rng(0).permutation(a)) == (1.0, 1.0)
    assert metrics.precision_recall(a, a + 1e4) == (0.0, 0.0)
    # Where every image is there twice the radii are nothing, and what rounding leaves of them.
    twice = np.tile(a, [2, 1]) + 100.0
    assert metrics.precision_recall(twice, np.random.default_rng(0).permutation(twice), neighbors=1) == (1.0, 1.0)
    # One real image over and over is precise and recalls nothing but itself.
    assert metrics.precision_recall(a, np.tile(a[:1], [50, 1])) == (1.0, 1 / 50)


def test_precision_and_recall_want_more_images_than_neighbors():
    points = on_line(0.0, 1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match='more than 3 images in each set, got 4 real and 3 synthetic'):
        metrics.precision_recall(points, points[:3])
    assert metrics.precision_recall(points, points) == (1.0, 1.0)


def test_precision_and_recall_in_chunks_are_the_same(monkeypatch):
    chunks = []
    in_chunks = sklearn.metrics.pairwise_distances_chunked

    def count_chunks(*arguments, **options):
        found = list(in_chunks(*arguments, **options))
        chunks.append(len(found))
        return found

    monkeypatch.setattr(sklearn.metrics, 'pairwise_distances_chunked', count_chunks)
    real, synthetic = make_points(200, 4), make_points(150, 4) + 2.0
    whole = metrics.precision_recall(real, synthetic)
    monkeypatch.setattr(metrics, '_CHUNK_MEBIBYTES', 0.01)
    assert metrics.precision_recall(real, synthetic) == whole
    assert chunks[:2] == [1, 1] and min(chunks[2:]) > 20 and 0.0 < min(whole) < max(whole) < 1.0


def test_precision_and_recall_hold_no_matrix_of_all_distances(monkeypatch):
    monkeypatch.setattr(metrics, '_CHUNK_MEBIBYTES', 8)
    real, synthetic = make_points(4000, 2), make_points(4000, 2)
    tracemalloc.start()
    try:
        metrics.precision_recall(real, synthetic)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4000 * 4000 * 8 / 3


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'neighbors': 0}, 'neighbors of the quality metrics must be at least 1, got 0'),
        ({'max_images': 3}, 'max_images of the quality metrics must be at least 4, got 3'),
        ({'max_images': 10, 'neighbors': 10}, 'max_images of the quality metrics must be at least 11, got 10'),
    ],
)
def test_config_is_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        metrics.QualityConfig(**fields)


@pytest.fixture(name='digits', scope='module')
def fixture_digits():
    return datasets.digits()


@pytest.fixture(name='extractor', scope='module')
def fixture_extractor(digits, tmp_path_factory):
    """The small classifier, trained on half of the digits."""
    config = features.FeaturesConfig(num_steps=150)
    return features.load(config, take(digits.train, slice(0, 700)), tmp_path_factory.mktemp('features'))


def take(data, rows):
    return dataclasses.replace(data, images_uint8=data.images_uint8[rows], labels=data.labels[rows])


@pytest.fixture(name='measured', scope='module')
def fixture_measured(digits, extractor):
    """Digits with noise, measured."""
    noise = np.random.default_rng(0).normal(0.0, 60.0, [400, 8, 8, 1])
    noisy = np.clip(digits.train.images_uint8[:400] + noise, 0, 255).astype(np.uint8)
    return measure(digits, extractor, noisy)


def measure(data, extractor, synthetic, **fields):
    return metrics.measure(
        metrics.QualityConfig(**fields), extractor, synthetic=synthetic, train=data.train, held_out=data.held_out
    )


def raw_pixels(images_uint8):
    return images_uint8.reshape(len(images_uint8), -1) / 255.0


@pytest.mark.parametrize('kind', ['pixels', 'classifier'])
def test_halves_of_the_digits_are_near_and_noise_is_far(kind, digits, extractor):
    # Not those that the classifier was trained on.
    halves = digits.train.images_uint8[700:1060], digits.train.images_uint8[1060:1420]
    noise = np.random.default_rng(0).integers(0, 256, halves[0].shape, np.uint8)
    points = raw_pixels if kind == 'pixels' else lambda images: extractor(images).pool
    a, b, far = points(halves[0]), points(halves[1]), points(noise)
    assert 0.0 < metrics.frechet_distance(a, b) < 0.1 * metrics.frechet_distance(a, far)
    assert abs(metrics.kernel_distance(a, b)[0]) < 0.05 * metrics.kernel_distance(a, far)[0]
    assert min(metrics.precision_recall(a, b)) > 0.7 > 0.1 > max(metrics.precision_recall(a, far))


def test_samples_are_measured_between_a_floor_and_a_ceiling(measured):
    rows = {row['images']: row for row in measured['rows']}
    assert list(rows) == ['synthetic', 'real training images', 'uniform noise']
    for name in ('fid', 'kid'):
        assert rows['real training images'][name] < rows['synthetic'][name] < rows['uniform noise'][name]
    for name in ('precision', 'recall'):
        assert rows['real training images'][name] > rows['synthetic'][name] > rows['uniform noise'][name]
    assert 1.0 < rows['uniform noise']['inception_score'] < rows['real training images']['inception_score'] < 10.0


def test_rows_are_the_numbers_of_the_images_that_were_drawn(digits, extractor, measured):
    permutations = [np.random.default_rng(0).permutation(size)[:360] for size in (len(digits.train), 360)]
    train = extractor(digits.train.images_uint8[permutations[0]])
    reference = extractor(digits.held_out.images_uint8[permutations[1]]).pool
    row = measured['rows'][1]
    assert row['fid'] == pytest.approx(metrics.frechet_distance(reference, train.pool), rel=1e-6)
    assert row['kid'] == pytest.approx(metrics.kernel_distance(reference, train.pool)[0], rel=1e-6)
    assert row['inception_score'] == pytest.approx(metrics.inception_score(train.logits), rel=1e-6)
    # Precision is of the samples, recall of the reference.
    assert (row['precision'], row['recall']) == metrics.precision_recall(reference, train.pool, neighbors=3)
    row = measure(digits, extractor, digits.train.images_uint8, neighbors=1)['rows'][1]
    assert (row['precision'], row['recall']) == metrics.precision_recall(reference, train.pool, neighbors=1)


def test_reference_is_held_out_and_reaches_the_best_of_each_number(digits, extractor):
    rows = measure(digits, extractor, digits.held_out.images_uint8)['rows']
    assert rows[0]['fid'] < 1e-6 and rows[0]['precision'] == rows[0]['recall'] == 1.0
    # The control: training images as samples are not the reference.
    assert measure(digits, extractor, digits.train.images_uint8)['rows'][0] == {**rows[1], 'images': 'synthetic'}
    assert rows[1]['fid'] > 1e-3


def test_protocol_holds_what_a_number_depends_on(digits, extractor, measured):
    assert measured['protocol'] == {
        'features': "tf_dpdiff small CNN, trained on 'digits'",
        'weights_sha256': extractor.weights_sha256,
        'resize': 'none',
        'feature_dimension': 64,
        'reference': 'digits held out',
        'num_synthetic': 360,
        'num_reference': 360,
        'available': {'synthetic': 400, 'training': 1437, 'held-out': 360},
        'neighbors': 3,
        'kid_block_size': 1024,
        'inception_score_splits': 1,
        'notes': measured['protocol']['notes'],
        'tfgan_version': '2.1.0',
    }
    line = metrics.protocol_line(measured)
    assert '\n' not in line
    for words in (
        'small CNN',
        '64-d',
        extractor.weights_sha256[:16],
        'resize: none',
        "360 of 'digits held out'",
        'blocks of up to 1,024',
        'one split',
        '3 neighbours',
        'TF-GAN 2.1.0',
        'no values to compare with',
        'of 400 synthetic, 1,437 training, 360 held-out images, 360 of each are drawn',
        'FIDs of 360 images',
    ):
        assert words in line
    again = measure(digits, extractor, digits.train.images_uint8[:200], max_images=100, neighbors=5)['protocol']
    assert (again['num_synthetic'], again['num_reference'], again['neighbors']) == (100, 100, 5)


def make_extractor(dimension=3):

    def run(images_uint8):
        flat = tf.reshape(tf.cast(images_uint8, tf.float32), [len(images_uint8), -1])
        return flat[:, :dimension], flat[:, :1]

    return features.Extractor('first pixels', 'abc', '5x5', [run], batch_size=7)


def make_data(num_train, num_held_out):
    """Images of a single class."""
    parts = {}
    for seed, (name, count) in enumerate((('train', num_train), ('held_out', num_held_out))):
        images = np.random.default_rng(seed).integers(0, 256, [count, 4, 4, 3], np.uint8)
        parts[name] = datasets.ImageDataset(name, images, np.zeros(count, np.int32), ('a',))
    return datasets.PrivateData(**parts)


@pytest.mark.parametrize('sizes', [(4, 100, 100), (100, 4, 100), (100, 100, 4)])
def test_four_images_of_one_class_suffice_and_are_noted(sizes):
    synthetic = make_data(sizes[0], 1).train.images_uint8
    result = measure(make_data(*sizes[1:]), make_extractor(dimension=5), synthetic)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for row in result['rows']:
        assert row['inception_score'] == pytest.approx(1.0) and row['kid_std'] is None
        assert all(np.isfinite(row[name]) for name in ('fid', 'kid', 'precision', 'recall'))
    notes = '; '.join(result['protocol']['notes'])
    assert 'no more images than features (5): covariances are singular, FID is far too high' in notes
    assert 'published' not in notes  # Which is said of the small classifier only.


@pytest.mark.parametrize(
    'sizes, counts',
    [((3, 9, 8), '3 synthetic, 9 training, 8 held-out ones'), ((9, 8, 1), '9 synthetic, 8 training, 1 held-out ones')],
)
def test_too_few_images_are_refused_in_one_line(sizes, counts):
    synthetic = make_data(sizes[0], 1).train.images_uint8
    with pytest.raises(ValueError, match=f'need at least 4 images of each kind, got {counts}') as caught:
        measure(make_data(*sizes[1:]), make_extractor(), synthetic)
    assert '\n' not in str(caught.value)


def test_many_blocks_have_a_standard_error_and_sorted_images_no_influence(monkeypatch):
    monkeypatch.setattr(metrics, '_KID_BLOCK_SIZE', 50)
    data = make_data(200, 200)
    order = np.argsort(data.train.images_uint8[:, 0, 0, 0])
    ordered = datasets.PrivateData(train=take(data.train, order), held_out=data.held_out)
    rows = measure(ordered, make_extractor(), data.train.images_uint8)['rows']
    for row in rows[:2]:  # Both of one distribution, the second one in order.
        assert abs(row['kid']) < 4.0 * row['kid_std']
