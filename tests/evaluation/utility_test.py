"""Tests of what samples are worth."""

import json

import numpy as np
import pytest
from sklearn import linear_model
from sklearn import neural_network
from sklearn import svm

from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import utility

pytestmark = pytest.mark.filterwarnings('ignore::sklearn.exceptions.ConvergenceWarning')

_DIRECT = {
    'rbf_svm': lambda seed: svm.SVC(),
    'logistic_regression': lambda seed: linear_model.LogisticRegression(max_iter=1000),
    'mlp': lambda seed: neural_network.MLPClassifier(hidden_layer_sizes=(128,), max_iter=100, random_state=seed),
}


@pytest.fixture(scope='module')
def digits():
    return datasets.digits()


def part(dataset, start, stop):
    return dataset.images_uint8[start:stop], dataset.labels[start:stop]


@pytest.mark.parametrize('classifier', utility.CLASSIFIERS)
@pytest.mark.parametrize('seed', [0, 3])
def test_accuracy_is_that_of_scikit_learn(digits, classifier, seed):
    (images, labels), (test_images, test_labels) = part(digits.train, 0, 150), part(digits.held_out, 0, 200)
    direct = _DIRECT[classifier](seed).fit(images.reshape(150, 64) / 255, labels)
    expected = np.mean(direct.predict(test_images.reshape(200, 64) / 255) == test_labels)
    config = utility.UtilityConfig(classifier=classifier, seed=seed)
    actual = utility.accuracy(config, images, labels, test_images, test_labels)
    assert isinstance(actual, float)
    np.testing.assert_allclose(actual, expected)
    assert expected > 0.7


def test_unknown_classifier_is_refused():
    with pytest.raises(ValueError, match="one of .*'rbf_svm', 'logistic_regression', 'mlp'.* got 'random_forest'"):
        utility.UtilityConfig(classifier='random_forest')


def test_comparison_holds_the_accuracy_of_samples_and_of_real_images(digits):
    config = utility.UtilityConfig('logistic_regression')
    images, labels = part(digits.train, 0, 100)
    real = datasets.ImageDataset('real', *part(digits.train, 100, 400), digits.train.class_names)
    results = utility.compare(config, images, labels, real, digits.held_out)
    test = part(digits.held_out, 0, 360)
    assert json.loads(json.dumps(results)) == {
        'classifier': 'logistic_regression',
        'num_synthetic': 100,
        'num_real': 300,
        'num_test': 360,
        'accuracy': {
            'synthetic_images': utility.accuracy(config, images, labels, *test),
            'real_images': utility.accuracy(config, *part(digits.train, 100, 400), *test),
        },
    }
    assert results['accuracy']['synthetic_images'] != results['accuracy']['real_images']


def test_control_samples_with_shuffled_labels_are_worth_nothing(digits):
    images, labels = part(digits.train, 0, 300)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert utility.accuracy(utility.UtilityConfig(), images, shuffled, *part(digits.held_out, 0, 360)) < 0.3
