"""Tests of what samples are worth."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn import linear_model

from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import classifiers
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.evaluation import utility

LINEAR = utility.UtilityConfig(('logistic_regression',))


@pytest.fixture(scope='module')
def digits():
    return datasets.digits()


def part(dataset, start, stop):
    return dataset.images_uint8[start:stop], dataset.labels[start:stop]


def as_dataset(images, labels, class_names):
    return datasets.ImageDataset('real', images, labels, class_names)


@pytest.fixture(name='measured', scope='module')
def fixture_measured(digits):
    config = utility.UtilityConfig(
        ('logistic_regression', ('small_cnn', {'num_epochs': 2, 'min_steps': 40})), num_seeds=2, curve_sizes=(60, 200)
    )
    real = as_dataset(*part(digits.train, 400, 800), digits.train.class_names)
    return utility.measure(config, *part(digits.train, 0, 400), real, digits.held_out)


def test_accuracies_are_those_of_scikit_learn_on_the_same_split(digits, measured):
    (entry,) = [entry for entry in measured.fields['classifiers'] if entry['classifier'] == 'logistic_regression']
    test_images, test_labels = part(digits.held_out, 0, 360)
    for source, start in (('synthetic_images', 0), ('real_images', 400)):
        images, labels = part(digits.train, start, start + 400)
        kept, apart = utility.stratified_split(labels, 0.1, 0)
        direct = linear_model.LogisticRegression(max_iter=1000).fit(images[kept].reshape(-1, 64) / 255, labels[kept])
        right = direct.predict(test_images.reshape(-1, 64) / 255) == test_labels
        found = entry[source]
        assert found['accuracy'] == found['accuracy_mean'] == pytest.approx(np.mean(right))
        assert found['accuracy_std'] is None
        assert found['validation_accuracy'] == pytest.approx(
            direct.score(images[apart].reshape(-1, 64) / 255, labels[apart])
        )
        assert [row['recall'] for row in found['per_class']] == pytest.approx(
            [right[test_labels == label].mean() for label in range(10)]
        )
        assert np.trace(found['confusion']) == right.sum() and np.sum(found['confusion']) == 360
    assert entry['synthetic_images'] != entry['real_images']


def test_result_is_json_and_names_what_was_compared(measured):
    fields = json.loads(json.dumps(measured.fields))
    assert fields == measured.fields
    assert [fields[name] for name in ('num_synthetic', 'num_real', 'num_test', 'num_seeds')] == [400, 400, 360, 2]
    assert [(point['classifier'], point['num_synthetic']) for point in fields['curve']] == [
        (name, size) for name in ('logistic_regression', 'small_cnn') for size in (60, 200)
    ]
    for entry in fields['classifiers']:
        assert entry['synthetic_images']['accuracy'] == np.mean(
            measured.predictions[entry['classifier']] == datasets.digits().held_out.labels
        )
    # Parts of samples differ from seed to seed, also where the classifier itself does not.
    assert all(point['accuracy_std'] > 0.0 for point in fields['curve'] if point['num_synthetic'] == 60)


def test_more_samples_make_a_better_classifier(measured):
    points = {
        point['num_synthetic']: point
        for point in measured.fields['curve']
        if point['classifier'] == 'logistic_regression'
    }
    assert points[200]['accuracy_mean'] > points[60]['accuracy_mean'] + 0.02


class Recorder:
    """Stands in for `classifiers.fit`: classifiers with probabilities made up from their seed."""

    def __init__(self, probabilities):
        self.calls = []
        self._probabilities = probabilities

    def __call__(self, config, images, labels, num_classes, *, validation=None, seed=0):
        self.calls.append((config, images, labels, validation, seed))
        return lambda test: np.tile(self._probabilities[seed], [len(test), 1])


def constant_images(value, count, num_classes=2):
    return np.full([count, 8, 8, 1], value, np.uint8), np.arange(count, dtype=np.int32) % num_classes


def test_ensemble_averages_probabilities_over_seeds(monkeypatch):
    # By majority the ensemble would say 1; by the mean of probabilities it says 0.
    monkeypatch.setattr(classifiers, 'fit', Recorder({4: [1.0, 0.0], 5: [0.4, 0.6], 6: [0.45, 0.55]}))
    config = utility.UtilityConfig(('small_cnn',), num_seeds=3, seed=4)
    held_out = as_dataset(np.zeros([4, 8, 8, 1], np.uint8), np.array([0, 0, 0, 1], np.int32), ('a', 'b'))
    result = utility.measure(config, *constant_images(1, 20), as_dataset(*constant_images(2, 20), ('a', 'b')), held_out)
    found = result.fields['classifiers'][0]['synthetic_images']
    np.testing.assert_array_equal(result.predictions['small_cnn'], [0, 0, 0, 0])
    assert (found['accuracy'], found['accuracy_of_seeds']) == (0.75, [0.75, 0.25, 0.25])
    assert found['accuracy_mean'] == pytest.approx(1.25 / 3)
    assert found['accuracy_std'] == pytest.approx(np.std([0.75, 0.25, 0.25], ddof=1))
    assert found['confusion'] == [[3, 0], [1, 0]]
    assert found['per_class'][0] == {
        'class': 'a',
        'images': 3,
        'recall': 1.0,
        'precision': 0.75,
        'f1': pytest.approx(6 / 7),
    }
    assert found['per_class'][1]['precision'] == found['per_class'][1]['recall'] == 0.0


def test_training_and_early_stopping_see_one_source_and_never_held_out_images(monkeypatch):
    recorder = Recorder({0: [1.0, 0.0], 1: [1.0, 0.0]})
    monkeypatch.setattr(classifiers, 'fit', recorder)
    config = utility.UtilityConfig(('small_cnn', 'rbf_svm'), num_seeds=2, curve_sizes=(10,), validation_fraction=0.2)
    data = [as_dataset(*constant_images(value, 30), ('a', 'b')) for value in (2, 3)]
    utility.measure(config, *constant_images(1, 40), *data)
    seen = [
        (config.name, len(images), set(images.ravel()) | set(validation[0].ravel()), seed)
        for config, images, _, validation, seed in recorder.calls
    ]
    assert seen == [
        ('small_cnn', 32, {1}, 0),
        ('small_cnn', 32, {1}, 1),
        ('small_cnn', 24, {2}, 0),
        ('small_cnn', 24, {2}, 1),
        ('small_cnn', 8, {1}, 0),
        ('small_cnn', 8, {1}, 1),
        ('rbf_svm', 32, {1}, 0),
        ('rbf_svm', 24, {2}, 0),
        ('rbf_svm', 8, {1}, 0),
        ('rbf_svm', 8, {1}, 1),
    ]


class Unreadable(datasets.ImageDataset):
    """Private images that must not be trained on."""

    def __getattribute__(self, name):
        assert name != 'images_uint8', 'private training images were read'
        return super().__getattribute__(name)


def test_without_comparison_private_training_images_are_not_read(digits):
    train = object.__new__(Unreadable)
    train.__dict__.update(digits.train.__dict__)
    config = utility.UtilityConfig(('logistic_regression',), real_images=False)
    samples = part(digits.train, 0, 200)
    fields = utility.measure(config, *samples, train, digits.held_out).fields
    assert fields['num_real'] is None and fields['classifiers'][0]['real_images'] is None
    with pytest.raises(AssertionError, match='were read'):  # Control.
        utility.measure(LINEAR, *samples, train, digits.held_out)


def test_control_samples_with_shuffled_labels_are_worth_nothing(digits):
    images, labels = part(digits.train, 0, 300)
    shuffled = np.random.default_rng(0).permutation(labels)
    fields = utility.measure(LINEAR, images, shuffled, digits.train, digits.held_out).fields
    assert fields['classifiers'][0]['synthetic_images']['accuracy'] < 0.3


@pytest.mark.parametrize('fraction', [0.1, 0.25, 0.5])
def test_split_keeps_the_proportions_of_classes_and_loses_nothing(fraction):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 5], [100, 40, 4])).astype(np.int32)
    kept, apart = utility.stratified_split(labels, fraction, 3)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, apart])), np.arange(144))
    assert [np.sum(labels[apart] == label) for label in (0, 1, 5)] == [int(n * fraction + 0.5) for n in (100, 40, 4)]
    for seed, same in ((3, True), (4, False)):
        assert np.array_equal(utility.stratified_split(labels, fraction, seed)[1], apart) == same


def test_split_of_few_images_sets_one_apart_and_of_one_is_refused():
    kept, apart = utility.stratified_split(np.arange(3), 0.1, 0)
    assert (len(kept), len(apart)) == (2, 1)
    with pytest.raises(ValueError, match='1 images are too few'):
        utility.stratified_split(np.zeros([1]), 0.1, 0)


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'classifiers': ()}, 'must name at least one'),
        ({'classifiers': ('random_forest',)}, "got 'random_forest'"),
        ({'classifiers': ('rbf_svm', 'rbf_svm')}, "'rbf_svm' is given twice"),
        ({'num_seeds': 0}, 'num_seeds .* got 0'),
        ({'validation_fraction': 1.0}, 'validation_fraction .* got 1.0'),
        ({'curve_sizes': (100, 1)}, r'curve_sizes .* got \(1, 100\)'),
        ({'seed': -1}, 'seed .* got -1'),
    ],
)
def test_config_is_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        utility.UtilityConfig(**fields)


def test_curve_of_more_samples_than_there_are_is_refused(digits):
    config = utility.UtilityConfig(('logistic_regression',), curve_sizes=(100, 1001))
    with pytest.raises(ValueError, match='asks for 1,001 samples, there are 200: make more with bin/sample'):
        utility.measure(config, *part(digits.train, 0, 200), digits.train, digits.held_out)


def of_shape(shape, *, is_public=False, class_names=('a', 'b')):
    """Returns data of a shape that cannot be read."""
    spec = datasets.DatasetSpec('own', shape, class_names, 100, 100)
    return datasets.PrivateData(train=no_images, held_out=no_images, spec=spec, is_public=is_public)


def no_images():
    raise AssertionError('images were read')


@pytest.mark.parametrize(
    'num_samples, kept, left_out',
    [
        (2000, (100, 200, 2000), None),
        (1999, (100, 200), ': 2,000'),
        (150, (100,), ': 200, 2,000'),
        (99, (), ': 100, 200, 2,000'),
    ],
)
def test_sizes_of_a_curve_beyond_the_samples_at_hand_are_left_out_in_one_line(num_samples, kept, left_out):
    config = utility.UtilityConfig(('rbf_svm',), curve_sizes=(2000, 100, 200))
    fitting, said = utility.fitting(config, of_shape((8, 8, 1)), num_samples)
    assert fitting == dataclasses.replace(config, curve_sizes=kept)
    assert [left_out in sentence and f'there are {num_samples:,} samples' in sentence for sentence in said] == [
        True
    ] * bool(left_out)


@pytest.mark.parametrize('shape, kept', [((8, 8, 1), 3), ((28, 20, 3), 3), ((7, 8, 1), 1), ((20, 4, 1), 1)])
def test_networks_that_images_are_too_small_for_are_left_out_and_the_rest_is_measured(shape, kept):
    config = utility.UtilityConfig(('wrn_40_4', 'small_cnn', 'rbf_svm'))
    fitting, said = utility.fitting(config, of_shape(shape), 100)
    assert len(fitting.classifiers) == kept and len(said) == (kept < 3)
    assert kept == 3 or 'left out of UtilityConfig.classifiers' in said[0] and ': wrn_40_4, small_cnn' in said[0]
    images = np.random.default_rng(0).integers(0, 256, [8, *shape]).astype(np.uint8)
    for classifier in fitting.classifiers[1:]:  # The wide network is as the small one in this, and slow to build.
        quick = classifiers.ClassifierConfig(
            classifier.name, {'num_epochs': 1, 'min_steps': 1} if classifier.name == 'small_cnn' else {}
        )
        assert classifiers.fit(quick, images, np.arange(8) % 2, 2)(images).shape == (8, 2)


def test_images_that_no_classifier_is_for_are_refused():
    with pytest.raises(ValueError, match='no classifier .* as small as 4x4: name others'):
        utility.fitting(utility.UtilityConfig(('small_cnn',)), of_shape((4, 4, 1)), 100)


@pytest.mark.parametrize(
    'only_public_data, is_public, measures',
    [(True, True, True), (True, False, False), (False, False, True), (False, True, True)],
)
def test_what_is_for_public_data_alone_measures_nothing_on_private_ones(only_public_data, is_public, measures):
    config = utility.UtilityConfig(('rbf_svm',), only_public_data=only_public_data)
    fitting, said = utility.fitting(config, of_shape((8, 8, 1), is_public=is_public), 100)
    assert (fitting == config) == measures and len(said) == (not measures) and (fitting is None) == (not measures)


def test_images_of_one_class_test_no_classifier():
    data = of_shape((8, 8, 1), class_names=('all',))
    fitting, (said,) = utility.fitting(utility.UtilityConfig(('rbf_svm',)), data, 100)
    assert fitting is None and 'has one class' in said


def test_nothing_asked_for_is_nothing_left_out():
    assert utility.fitting(None, of_shape((8, 8, 1)), 3) == (None, [])


@pytest.mark.parametrize('real_images', [True, False])
def test_pictures_follow_the_numbers(measured, tmp_path, real_images):
    fields = json.loads(json.dumps(measured.fields))
    if not real_images:
        fields['num_real'] = None
        for entry in fields['classifiers']:
            entry['real_images'] = None
    drawn = []
    for _ in range(2):
        pictures.draw_utility_curve(tmp_path / 'curve.png', fields)
        pictures.draw_confusion(tmp_path / 'confusion.png', fields, fields['classifiers'][0])
        drawn.append([(tmp_path / name).read_bytes() for name in ('curve.png', 'confusion.png')])
        fields['curve'][1]['accuracy_mean'] -= 0.1
        fields['classifiers'][0]['synthetic_images']['confusion'][2][3] += 5
    for before, after in zip(*drawn):
        assert before.startswith(b'\x89PNG') and before != after
    assert sorted(path.name for path in tmp_path.iterdir()) == ['confusion.png', 'curve.png']
