"""Tests of classifiers by name: what they are, what they depend on, and what is said of a wrong option."""

import random
import warnings

import numpy as np
import pytest
from sklearn import ensemble
from sklearn import linear_model
from sklearn import neural_network
from sklearn import svm
import tensorflow as tf

from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import classifiers

QUICK_CNN = {'width': 4, 'num_epochs': 4, 'min_steps': 60, 'batch_size': 32}
QUICK = {
    'small_cnn': QUICK_CNN,
    'logistic_regression': {'max_iter': 50},
    'gradient_boosting': {'max_iter': 10},
    'rbf_svm': {},
    'mlp': {'num_epochs': 30},
}
# Of scikit-learn itself: options of ours, the class, its options.
DIRECT = [
    ('rbf_svm', {}, lambda seed: svm.SVC()),
    ('rbf_svm', {'C': 30.0, 'gamma': 0.1}, lambda seed: svm.SVC(C=30.0, gamma=0.1)),
    ('logistic_regression', {'C': 0.1}, lambda seed: linear_model.LogisticRegression(C=0.1, max_iter=1000)),
    (
        'gradient_boosting',
        {'learning_rate': 0.3, 'max_iter': 8, 'max_leaf_nodes': 5, 'l2_regularization': 0.5},
        lambda seed: ensemble.HistGradientBoostingClassifier(
            learning_rate=0.3, max_iter=8, max_leaf_nodes=5, l2_regularization=0.5, early_stopping=False
        ),
    ),
    (
        'mlp',
        {'width': 20, 'learning_rate': 0.01, 'num_epochs': 20, 'weight_decay': 0.3},
        lambda seed: neural_network.MLPClassifier(
            (20,), learning_rate_init=0.01, max_iter=20, alpha=0.3, random_state=seed
        ),
    ),
]


@pytest.fixture(name='digits', scope='module')
def fixture_digits():
    """Images and labels to train on, and to test on."""
    data = datasets.digits()
    return (data.train.images_uint8[:300], data.train.labels[:300]), (data.held_out.images_uint8, data.held_out.labels)


def config_of(name):
    return classifiers.ClassifierConfig(name, QUICK[name])


def accuracy(predict, images, labels):
    return np.mean(predict(images).argmax(axis=-1) == labels)


def test_small_network_learns_in_bfloat16_as_in_float32(digits):
    train, test = digits

    def fit(dtype):
        config = classifiers.ClassifierConfig('small_cnn', {**QUICK_CNN, 'compute_dtype': dtype})
        return classifiers.fit(config, *train, 10)

    exact, rounded = fit('float32'), fit('mixed_bfloat16')
    assert rounded(test[0]).dtype == np.float32 and not np.array_equal(exact(test[0]), rounded(test[0]))
    assert accuracy(rounded, *test) > accuracy(exact, *test) - 0.1 > 0.6


@pytest.mark.filterwarnings('ignore::sklearn.exceptions.ConvergenceWarning')
@pytest.mark.parametrize('name, options, direct', DIRECT)
@pytest.mark.parametrize('seed', [0, 3])
def test_fit_is_that_of_scikit_learn(digits, name, options, direct, seed):
    (images, labels), (test_images, test_labels) = digits
    expected = direct(seed).fit(images.reshape(300, 64) / np.float32(255), labels)
    features = test_images.reshape(360, 64) / np.float32(255)
    predict = classifiers.fit(classifiers.ClassifierConfig(name, options), images, labels, 10, seed=seed)
    probabilities = predict(test_images)
    if name == 'rbf_svm':  # Its scores are no probabilities.
        np.testing.assert_array_equal(probabilities.argmax(axis=-1), expected.predict(features))
    else:
        np.testing.assert_allclose(probabilities, expected.predict_proba(features), atol=1e-5)
    assert accuracy(predict, test_images, test_labels) > 0.7


@pytest.mark.parametrize('name', QUICK)
def test_result_is_one_distribution_an_image(digits, name):
    (images, labels), (test_images, _) = digits
    probabilities = classifiers.fit(config_of(name), images, labels, 12)(test_images[:7])
    assert probabilities.dtype == np.float32 and probabilities.shape == (7, 12)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, atol=1e-5)
    assert probabilities.min() >= 0.0


@pytest.mark.parametrize('name', QUICK)
def test_same_seed_gives_the_same_classifier_and_leaves_the_global_random_state_alone(digits, name):
    (images, labels), (test_images, _) = digits
    config, states, found = config_of(name), [], []
    for fitted in (True, True, False):
        np.random.seed(1)
        random.seed(1)
        tf.random.set_seed(1)
        if fitted:
            found.append(classifiers.fit(config, images, labels, 10, seed=5)(test_images))
        states.append((np.random.uniform(), random.random(), float(tf.random.uniform([]))))
    assert states[0] == states[1] == states[2]
    tf.random.set_seed(2)
    np.random.seed(2)
    found.append(classifiers.fit(config, images, labels, 10, seed=5)(test_images))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    other = classifiers.fit(config, images, labels, 10, seed=6)(test_images)
    assert np.array_equal(found[0], other) != config.is_seeded


@pytest.mark.parametrize('name', QUICK)
def test_classifier_of_labels_learns_and_control_of_shuffled_labels_does_not(digits, name):
    (images, labels), test = digits
    shuffled = np.random.default_rng(0).permutation(labels)
    assert accuracy(classifiers.fit(config_of(name), images, labels, 10), *test) > 0.7
    assert accuracy(classifiers.fit(config_of(name), images, shuffled, 10), *test) < 0.3


@pytest.mark.parametrize('missing', [0, 4, 9])
@pytest.mark.parametrize('name', QUICK)
def test_class_without_a_training_image_is_never_found_and_shifts_no_other(digits, name, missing):
    (images, labels), (test_images, test_labels) = digits
    kept = labels != missing
    probabilities = classifiers.fit(config_of(name), images[kept], labels[kept], 10)(test_images)
    assert probabilities.shape == (360, 10)
    rest = test_labels != missing
    found = probabilities.argmax(axis=-1)
    assert np.mean(found[rest] == test_labels[rest]) > 0.7
    assert np.mean(found == missing) < 0.02


@pytest.mark.parametrize('name', QUICK)
@pytest.mark.parametrize('present', [[6], [2, 7]])
def test_one_and_two_classes_of_many_work(digits, name, present):
    (images, labels), (test_images, test_labels) = digits
    kept, tested = np.isin(labels, present), np.isin(test_labels, present)
    predict = classifiers.fit(config_of(name), images[kept], labels[kept], 10)
    assert accuracy(predict, test_images[tested], test_labels[tested]) > 0.9


@pytest.mark.parametrize('name', ['logistic_regression', 'gradient_boosting', 'rbf_svm', 'mlp'])
def test_validation_images_change_nothing_where_they_are_not_looked_at(digits, name):
    (images, labels), test = digits
    config = config_of(name)
    assert not config.stops_early
    found = [classifiers.fit(config, images, labels, 10, validation=pair)(test[0]) for pair in (None, test)]
    np.testing.assert_array_equal(*found)


def test_few_images_raise_no_warning(digits):
    (images, labels), _ = digits
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for name in ('logistic_regression', 'gradient_boosting', 'rbf_svm', 'mlp'):
            config = classifiers.ClassifierConfig(name, {'num_epochs': 2} if name == 'mlp' else {})
            assert len(classifiers.fit(config, images[:40], labels[:40], 10)(images[:3])) == 3


@pytest.mark.parametrize(
    'images, labels, validation, message',
    [
        (0, [], None, 'a classifier needs images and a label of each, got 0 and 0'),
        (3, [0, 1], None, 'got 3 and 2'),
        (2, [0, 3], None, r'labels of a classifier must be in \[0, 3\), got 0 to 3'),
        (2, [-1, 2], None, 'got -1 to 2'),
        (2, [0, 1], (0, []), 'validation of a classifier needs images and a label of each, got 0 and 0'),
        (2, [0, 1], (1, [3]), r'labels of validation of a classifier must be in \[0, 3\), got 3 to 3'),
    ],
)
def test_images_that_cannot_be_learned_from_are_refused(images, labels, validation, message):

    def pair(count, labels):
        return np.zeros([count, 8, 8, 1], np.uint8), np.array(labels, np.int32)

    with pytest.raises(ValueError, match=message):
        classifiers.fit(
            classifiers.ClassifierConfig('small_cnn'),
            *pair(images, labels),
            3,
            validation=validation and pair(*validation),
        )


@pytest.mark.parametrize(
    'name, options, message',
    [
        ('rbf_svn', {}, "one of .*'wrn_40_4', .* got 'rbf_svn' .did you mean 'rbf_svm'"),
        ('zebra', {}, "got 'zebra'[.]"),
        (7, {}, 'got 7[.]'),
        (['rbf_svm'], {}, r"got \['rbf_svm'\]"),
        ('rbf_svm', {'gama': 1.0}, "'rbf_svm' has no option 'gama' .did you mean 'gamma'.*; it has C, gamma"),
        ('rbf_svm', {'width': 1.0}, "has no option 'width'; it has C, gamma"),
        ('rbf_svm', {'C': 0.0}, "C of 'rbf_svm' must be a number above 0, got 0.0"),
        ('rbf_svm', {'C': True}, 'got True'),
        ('rbf_svm', {'C': '1'}, "got '1'"),
        ('rbf_svm', {'C': float('nan')}, 'got nan'),
        ('rbf_svm', {'gamma': 'auto'}, "'scale' or a number above 0, got 'auto'"),
        ('rbf_svm', {'gamma': float('inf')}, 'got inf'),
        ('mlp', (('width', 2), ('width', 3)), "options of 'mlp' must be named once each"),
        ('rbf_svm', 'C', "options of 'rbf_svm' must be names with values, got 'C'"),
        ('rbf_svm', ('C', 1.0), 'must be names with values'),
        ('rbf_svm', 3, 'must be names with values, got 3'),
        ('mlp', {'width': 2.0}, 'a whole number, at least 1, got 2.0'),
        ('gradient_boosting', {'max_leaf_nodes': 1}, 'a whole number, at least 2, got 1'),
        ('gradient_boosting', {'max_depth': True}, 'None or a whole number, at least 1, got True'),
        ('small_cnn', {'shift': 1.0}, r'a number in \[0, 1\), got 1.0'),
        ('small_cnn', {'flip': 1}, 'True or False, got 1'),
        ('wrn_40_4', {'weight_decay': -1.0}, 'a number, at least 0, got -1.0'),
        ('small_cnn', {'compute_dtype': 'float16'}, "one of .'float32', 'mixed_bfloat16'., got 'float16'"),
    ],
)
def test_unknown_name_or_wrong_option_is_one_clear_line(name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        classifiers.ClassifierConfig(name, options)
    assert '\n' not in str(caught.value)


def test_configurations_are_equal_where_they_say_the_same():
    config = classifiers.ClassifierConfig('mlp', {'width': 4, 'num_epochs': 3})
    assert config == classifiers.ClassifierConfig('mlp', (('num_epochs', 3), ('width', 4)))
    assert hash(config) == hash(classifiers.ClassifierConfig('mlp', [('num_epochs', 3), ('width', 4)]))
    assert config.settings['width'] == 4 and config.settings['batch_size'] == 200


def test_configuration_may_be_written_as_a_name_or_a_pair():
    config = classifiers.ClassifierConfig('rbf_svm', {'C': 2.0})
    assert classifiers.as_config(config) is config
    assert classifiers.as_config(('rbf_svm', {'C': 2.0})) == config == classifiers.as_config(['rbf_svm', {'C': 2.0}])
    assert classifiers.as_config('rbf_svm') == classifiers.ClassifierConfig('rbf_svm')
    for value in (None, 3, (), ('rbf_svm',), ('rbf_svm', {}, 1)):
        with pytest.raises(ValueError, match='a classifier is a name, or .name, options., got'):
            classifiers.as_config(value)


def test_titles_tell_apart_what_differs_and_nothing_else():
    configs = [
        ('rbf_svm', {'C': 10.0}),
        ('rbf_svm', {'C': 1.0, 'gamma': 0.5}),
        'mlp',
        ('logistic_regression', {'C': 0.1, 'max_iter': 50}),
        ('logistic_regression', {'C': 0.10000001, 'max_iter': 50}),
    ]
    assert classifiers.titles([classifiers.as_config(config) for config in configs]) == (
        'rbf_svm C=10 gamma=scale',
        'rbf_svm C=1 gamma=0.5',
        'mlp',
        'logistic_regression C=0.1',
        'logistic_regression C=0.10000001',
    )


@pytest.mark.parametrize(
    'configs',
    [
        ('mlp', 'rbf_svm', 'mlp'),
        (('rbf_svm', {'C': 1.0}), 'rbf_svm'),
        (('rbf_svm', {'C': 1}), ('rbf_svm', {'C': 1.0}), ('rbf_svm', {'C': 2.0})),
    ],
)
def test_two_equal_classifiers_are_refused(configs):
    with pytest.raises(ValueError, match='is given twice'):
        classifiers.titles([classifiers.as_config(config) for config in configs])
