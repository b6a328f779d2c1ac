"""Tests of the choice of hyperparameters on samples: by what it is made, and what is said of it."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import classifiers
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.evaluation import selection

CNN = ('small_cnn', {'width': 2, 'num_epochs': 2, 'min_steps': 4})
CANDIDATES = ('logistic_regression', ('rbf_svm', {'C': 1e-3}), ('rbf_svm', {'C': 10.0}))


class Untouchable:
    """Stands in for private images: whoever looks at it fails."""

    def __getattr__(self, name):
        raise AssertionError(f'private images were asked for {name}')

    def __len__(self):
        raise AssertionError('private images were counted')


@pytest.fixture(name='digits', scope='module')
def fixture_digits():
    return datasets.digits()


@pytest.fixture(name='samples', scope='module')
def fixture_samples(digits):
    """Images and labels: digits with noise, as many of each class as of any other."""
    rows = np.concatenate([np.flatnonzero(digits.train.labels == digit)[:30] for digit in range(10)])
    noise = np.random.default_rng(0).normal(0.0, 40.0, [len(rows), 8, 8, 1])
    return (np.clip(digits.train.images_uint8[rows] + noise, 0, 255).astype(np.uint8), digits.train.labels[rows])


def candidate(title, synthetic, transfer=None, real=None):
    return selection.Candidate(title, 'rbf_svm', {'C': 1.0}, synthetic, transfer, real)


def result(*candidates, num_real=(50, 20)):
    return selection.SelectionResult(candidates, (80, 20), num_real, 1)


@pytest.fixture(name='fits')
def fixture_fits(monkeypatch):
    """Records every training and lets it give one score a classifier on each set of images, instead of a training."""
    calls = []

    def fit(config, images, labels, num_classes, *, validation=None, seed=0):
        calls.append(
            {
                'config': config,
                'images': images,
                'labels': labels,
                'num_classes': num_classes,
                'validation': validation,
                'seed': seed,
                'tested': [],
            }
        )
        tested = calls[-1]['tested']

        def predict(test):
            tested.append(test)
            return np.tile(np.eye(num_classes)[config.settings.get('width', 1) % num_classes], [len(test), 1])

        return predict

    monkeypatch.setattr(classifiers, 'fit', fit)
    return calls


def keys(images):
    return {image.tobytes() for image in images}


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'candidates': ('rbf_svm',)}, "candidates of the selection must be at least two classifiers, got .'rbf_svm',"),
        ({'candidates': 'rbf_svm'}, "at least two classifiers, got 'rbf_svm'"),
        ({'candidates': None}, 'got None'),
        ({'candidates': ('mlp', 'rbf_svm', 'mlp')}, "classifier 'mlp' is given twice"),
        ({'candidates': ('mlp', 'rbf_svn')}, "did you mean 'rbf_svm'"),
        ({'num_seeds': 0}, 'num_seeds of the selection must be a whole number, at least 1, got 0'),
        ({'num_seeds': 1.5}, 'got 1.5'),
        ({'validation_fraction': 0.0}, r'validation_fraction of the selection must be in \(0, 1\), got 0.0'),
        ({'validation_fraction': 1.0}, 'got 1.0'),
        ({'seed': -1}, 'seed of the selection must be a whole number, at least 0, got -1'),
    ],
)
def test_config_is_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        selection.SelectionConfig(**{'candidates': CANDIDATES, **fields})


@pytest.mark.parametrize('seed', range(5))
def test_rank_correlation_is_that_of_scipy_and_of_a_count_by_hand(seed):
    generator = np.random.default_rng(seed)
    first, second = generator.normal(size=9), generator.normal(size=9)
    found = selection.rank_correlation(list(first), list(second))
    assert found['spearman'] == pytest.approx(stats.spearmanr(first, second)[0])
    assert found['kendall'] == pytest.approx(stats.kendalltau(first, second)[0])
    ranks = np.argsort(np.argsort(first)), np.argsort(np.argsort(second))
    assert found['spearman'] == pytest.approx(1 - 6 * np.sum((ranks[0] - ranks[1]) ** 2) / (9 * (81 - 1)))
    signs = [np.sign((first[i] - first[j]) * (second[i] - second[j])) for i in range(9) for j in range(i)]
    assert found['kendall'] == pytest.approx(np.mean(signs))


@pytest.mark.parametrize(
    'first, second, spearman, kendall',
    [
        ([1, 2, 3], [4, 5, 6], 1.0, 1.0),
        ([1, 2, 3], [6, 5, 4], -1.0, -1.0),
        ([1, 2, 3, 4], [2, 1, 3, 4], 0.8, 4 / 6),
        ([1, 1, 2], [1, 2, 3], np.sqrt(3) / 2, 2 / np.sqrt(6)),  # With ties: tau-b.
        ([1, 1, 1], [1, 2, 3], None, None),
        ([1, 2, 3], [5, 5, 5], None, None),
    ],
)
def test_rank_correlation_of_hand_made_numbers(first, second, spearman, kendall):
    found = selection.rank_correlation(first, second)
    assert found == {'spearman': spearman and pytest.approx(spearman), 'kendall': kendall and pytest.approx(kendall)}


def test_regret_is_what_the_choice_loses_either_way_it_is_trained():
    found = result(candidate('a', 0.9, 0.7, 0.80), candidate('b', 0.8, 0.6, 0.95), candidate('c', 0.1, 0.75, 0.95))
    regret = found.to_dict()['regret']
    assert regret['transfer'] == {
        'best': 'c',
        'best_accuracy': 0.75,
        'chosen_accuracy': 0.7,
        'regret': pytest.approx(0.05),
    }
    assert regret['real'] == {  # The first of equals.
        'best': 'b',
        'best_accuracy': 0.95,
        'chosen_accuracy': 0.80,
        'regret': pytest.approx(0.15),
    }


def test_choice_that_is_best_on_real_images_has_no_regret():
    found = result(candidate('a', 0.9, 0.7, 0.9), candidate('b', 0.8, 0.7, 0.5)).to_dict()
    assert found['regret']['transfer'] == {'best': 'a', 'best_accuracy': 0.7, 'chosen_accuracy': 0.7, 'regret': 0.0}
    assert found['regret']['real']['regret'] == 0.0
    assert found['rank_correlation'] == {
        'synthetic_and_transfer': {'spearman': None, 'kendall': None},
        'synthetic_and_real': {'spearman': pytest.approx(1.0), 'kendall': pytest.approx(1.0)},
        'transfer_and_real': {'spearman': None, 'kendall': None},
    }


def test_ties_are_broken_by_the_order_given_and_named(samples, fits):
    """The stand-in of a classifier always says the class of its width, which is a tenth of the samples."""
    names = ['a', 'b', 'c']
    for order in (names, names[::-1]):
        widths = {'a': 3, 'b': 7, 'c': 5}
        config = selection.SelectionConfig(
            tuple(('mlp', {'width': widths[name]}) for name in order), measure_on_real=False
        )
        found = selection.select(config, *samples, None, None)
        assert [entry.settings['width'] for entry in found.candidates] == [widths[name] for name in order]
        assert found.chosen.settings['width'] == widths[order[0]] and len(found.tied_with) == 2
        fields = found.to_dict()
        assert fields['tied_with'] == [f'mlp width={widths[name]}' for name in order[1:]]
    assert len(fits) == 6


def test_samples_that_compare_are_stratified_and_never_trained_on(samples, fits):
    config = selection.SelectionConfig((*CANDIDATES, CNN), validation_fraction=0.2, measure_on_real=False)
    found = selection.select(config, *samples, None, None)
    assert found.num_synthetic == (240, 60) and found.num_real is None
    images, labels = samples
    label_of = {image.tobytes(): label for image, label in zip(images, labels)}
    assert len(fits) == 4
    for call in fits:
        (tested,) = call['tested']
        trained = keys(call['images']) | (keys(call['validation'][0]) if call['validation'] else set())
        assert keys(tested).isdisjoint(trained) and keys(tested) | trained == keys(images)
        assert keys(tested) == keys(fits[0]['tested'][0])  # All candidates are compared by the same images.
        np.testing.assert_array_equal(np.bincount([label_of[image.tobytes()] for image in tested]), [6] * 10)
        np.testing.assert_array_equal(call['labels'], [label_of[image.tobytes()] for image in call['images']])


def test_networks_stop_by_a_part_of_what_they_are_trained_on_and_never_by_what_tests_them(digits, samples, fits):
    config = selection.SelectionConfig(('logistic_regression', CNN))
    selection.select(config, *samples, digits.train, digits.held_out)
    on_samples, on_real = [call for call in fits if call['config'].name == 'small_cnn']
    assert all(call['validation'] is None for call in fits if call['config'].name != 'small_cnn')
    np.testing.assert_array_equal(np.bincount(on_samples['validation'][1]), [2] * 10)  # A tenth of 24.
    stopping = keys(on_samples['validation'][0])
    assert stopping.isdisjoint(keys(on_samples['images'])) and stopping < keys(samples[0])
    assert stopping.isdisjoint(keys(np.concatenate(on_samples['tested'])))
    stopping = keys(on_real['validation'][0])
    assert stopping < keys(digits.train.images_uint8) and stopping.isdisjoint(keys(digits.held_out.images_uint8))
    assert len(on_real['validation'][1]) + len(on_real['images']) == len(digits.train)


def test_another_seed_compares_by_other_samples_and_the_same_by_the_same(samples, fits):
    for seed in (0, 1, 0):
        config = selection.SelectionConfig(('rbf_svm', 'logistic_regression'), seed=seed, measure_on_real=False)
        selection.select(config, *samples, None, None)
    first, other, again = (keys(call['tested'][0]) for call in fits[::2])
    assert first == again != other


def test_candidates_with_random_weights_are_trained_once_a_seed(samples, fits):
    config = selection.SelectionConfig(('rbf_svm', 'mlp'), num_seeds=3, seed=5, measure_on_real=False)
    selection.select(config, *samples, None, None)
    assert [(call['config'].name, call['seed']) for call in fits] == [
        ('rbf_svm', 5),
        ('mlp', 5),
        ('mlp', 6),
        ('mlp', 7),
    ]


def test_private_images_are_not_touched_unless_allowed(samples):
    config = selection.SelectionConfig(CANDIDATES, measure_on_real=False)
    found = selection.select(config, *samples, Untouchable(), Untouchable())
    fields = found.to_dict()
    assert fields['regret'] is fields['rank_correlation'] is fields['num_real_test'] is None
    assert all(entry['real_accuracy'] is entry['transfer_accuracy'] is None for entry in fields['candidates'])
    allowed = dataclasses.replace(config, measure_on_real=True)
    with pytest.raises(AssertionError, match='private images were asked for'):  # Else this shows nothing.
        selection.select(allowed, *samples, Untouchable(), Untouchable())


def test_choice_does_not_depend_on_private_images(digits, samples):
    config = selection.SelectionConfig((*CANDIDATES, CNN))
    right = dataclasses.replace(
        digits.train, images_uint8=digits.train.images_uint8[:400], labels=digits.train.labels[:400]
    )
    wrong = dataclasses.replace(right, labels=9 - right.labels)
    found = [
        selection.select(dataclasses.replace(config, measure_on_real=is_real), *samples, train, digits.held_out)
        for is_real, train in ((True, right), (True, wrong), (False, None))
    ]
    for other in found[1:]:
        assert [(entry.title, entry.synthetic_accuracy) for entry in found[0].candidates] == [
            (entry.title, entry.synthetic_accuracy) for entry in other.candidates
        ]
    assert found[0].candidates[0].real_accuracy > 0.9 > 0.2 > found[1].candidates[0].real_accuracy


def test_accuracies_are_those_of_classifiers_trained_directly(digits, samples):
    config = selection.SelectionConfig(CANDIDATES)
    found = selection.select(config, *samples, digits.train, digits.held_out)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert [entry.synthetic_accuracy for entry in found.candidates] == sorted(
        (entry.synthetic_accuracy for entry in found.candidates), reverse=True
    )
    test, truth = digits.held_out.images_uint8, digits.held_out.labels
    for entry in found.candidates:
        predict = classifiers.fit(
            classifiers.ClassifierConfig(entry.classifier, entry.settings),
            digits.train.images_uint8,
            digits.train.labels,
            10,
        )
        assert entry.real_accuracy == np.mean(predict(test).argmax(axis=-1) == truth)
        assert entry.transfer_accuracy > 0.7 or entry.title == 'rbf_svm C=0.001 gamma=scale'
    assert found.chosen.title != 'rbf_svm C=0.001 gamma=scale'


def test_control_samples_with_shuffled_labels_rank_nothing(digits, samples):
    shuffled = np.random.default_rng(1).permutation(samples[1])
    config = selection.SelectionConfig(CANDIDATES)
    found = selection.select(config, samples[0], shuffled, digits.train, digits.held_out)
    assert max(entry.synthetic_accuracy for entry in found.candidates) < 0.35
    assert max(entry.transfer_accuracy for entry in found.candidates) < 0.35


def test_candidates_that_images_are_too_small_for_are_left_out_unless_one_is_left():
    config = selection.SelectionConfig(('small_cnn', 'rbf_svm', 'mlp'))
    assert selection.fitting(config, (8, 8, 1)) == (config, [])
    fitting, said = selection.fitting(config, (6, 9, 1))
    assert [candidate.name for candidate in fitting.candidates] == ['rbf_svm', 'mlp']
    assert said == ['left out of SelectionConfig.candidates, since images of 6x9 are too small: small_cnn']
    with pytest.raises(ValueError, match='at least two classifiers'):
        selection.fitting(selection.SelectionConfig(('small_cnn', 'rbf_svm')), (6, 9, 1))


def test_too_few_samples_are_refused(samples):
    config = selection.SelectionConfig(CANDIDATES, measure_on_real=False)
    with pytest.raises(ValueError, match='images are too few'):
        selection.select(config, samples[0][:1], samples[1][:1], None, None)


@pytest.mark.parametrize('num_real', [(50, 20), None])
@pytest.mark.parametrize('synthetic', [(1.0, 0.9, 0.1), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_picture_is_drawn_of_any_accuracies(tmp_path, synthetic, num_real):
    real = (0.5, 0.99, 0.1) if num_real else (None,) * 3
    found = result(
        *(candidate(str(row), *values, values[1]) for row, values in enumerate(zip(synthetic, real))), num_real=num_real
    )
    pictures.draw_selection(tmp_path / 'picture.png', found.to_dict())
    assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')
    assert [path.name for path in tmp_path.iterdir()] == ['picture.png']
