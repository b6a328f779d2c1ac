"""Tests of features: what is cached for whom, and that any network gives the same features in batches."""

import dataclasses
import hashlib
import json
import random
import shutil
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import features
from tf_dpdiff.networks import feature_network

CONFIG = features.FeaturesConfig(num_steps=3)


def make_images(shape=(8, 8, 1), count=150, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, [count, *shape]).astype(np.uint8)
    labels = generator.integers(0, 3, count).astype(np.int32)
    return datasets.ImageDataset('private', images, labels, ('a', 'b', 'c'))


@pytest.fixture(name='trained', scope='module')
def fixture_trained(tmp_path_factory):
    """The extractor of make_images() and its cache, not to be changed."""
    cache = tmp_path_factory.mktemp('features')
    return features.load(CONFIG, make_images(), cache), cache


@pytest.fixture(name='cache')
def fixture_cache(trained, tmp_path):
    """A copy of the cache."""
    return shutil.copytree(trained[1], tmp_path / 'features')


@pytest.fixture(name='trainings')
def fixture_trainings(monkeypatch):
    """Counts how often the classifier is trained."""
    done = []

    def train(config, data):
        done.append(config)
        return feature_network.build_feature_network(data.image_shape, data.num_classes, seed=99)

    monkeypatch.setattr(features, '_train', train)
    return done


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'source': ''}, "source of the features must be .* got ''"),
        ({'seed': -1}, 'seed of the features must be at least 0, got -1'),
        ({'num_steps': 0}, 'num_steps of the features must be at least 1, got 0'),
    ],
)
def test_config_is_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        features.FeaturesConfig(**fields)


def test_training_is_the_same_for_the_same_seed_and_leaves_the_global_random_state_alone(trained, tmp_path):
    states = []
    for draw_first in (True, False):
        np.random.seed(1)
        random.seed(1)
        tf.random.set_seed(1)
        if draw_first:
            again = features.load(CONFIG, make_images(), tmp_path / 'again')
        states.append((np.random.uniform(), random.random(), float(tf.random.uniform([]))))
    assert states[0] == states[1]
    assert again.weights_sha256 == trained[0].weights_sha256
    other = features.load(dataclasses.replace(CONFIG, seed=1), make_images(), tmp_path / 'other')
    assert other.weights_sha256 != again.weights_sha256


def test_cached_classifier_is_used_again(trained, cache, trainings):
    before = sorted((path.name, path.read_bytes()) for path in cache.iterdir())
    extractor = features.load(CONFIG, make_images(), cache)
    assert not trainings
    assert extractor.weights_sha256 == trained[0].weights_sha256 and extractor.name == trained[0].name
    images = make_images(seed=5).images_uint8
    np.testing.assert_array_equal(extractor(images).pool, trained[0](images).pool)
    assert before == sorted((path.name, path.read_bytes()) for path in cache.iterdir())
    assert json.loads((cache / 'classifier.json').read_text())['note'].startswith('PRIVATE')


@pytest.mark.parametrize('change', ['image', 'label', 'seed', 'num_steps'])
def test_cache_of_other_images_or_settings_is_not_used(change, cache, trainings, capsys):
    data, config = make_images(), CONFIG
    if change == 'image':
        data.images_uint8[7, 3, 3, 0] ^= 1
    elif change == 'label':
        data.labels[7] = (data.labels[7] + 1) % 3
    else:
        config = dataclasses.replace(config, **{change: 7})
    features.load(config, data, cache)
    assert len(trainings) == 1
    features.load(config, data, cache)
    assert len(trainings) == 1  # What was trained anew is cached.
    assert not capsys.readouterr().err


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def remove(path):
    path.unlink()


def other_weights(path):
    with np.load(path) as arrays:
        weights = [arrays[name] for name in arrays.files]
    weights[0][0, 0, 0, 0] += 1e-3
    with open(path, 'wb') as file:
        np.savez(file, *weights)


@pytest.mark.parametrize(
    'name, damage',
    [
        ('classifier.json', cut),
        ('classifier.npz', cut),
        ('classifier.npz', remove),
        ('classifier.npz', other_weights),
        ('classifier.json', lambda path: path.write_text('[]')),
    ],
)
def test_damaged_cache_is_trained_anew_with_one_line(name, damage, cache, trainings, capsys):
    damage(cache / name)
    features.load(CONFIG, make_images(), cache)
    assert len(trainings) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and f'The cached classifier in {cache} is damaged' in error
    features.load(CONFIG, make_images(), cache)
    assert len(trainings) == 1


def test_classifier_of_another_run_gives_the_same_features(trained, tmp_path, trainings):
    own = make_images(seed=3)
    extractor = features.load(features.FeaturesConfig(str(trained[1])), own, tmp_path / 'unused')
    assert not trainings and not (tmp_path / 'unused').exists()
    assert (extractor.name, extractor.weights_sha256) == (trained[0].name, trained[0].weights_sha256)
    np.testing.assert_array_equal(extractor(own.images_uint8).pool, trained[0](own.images_uint8).pool)


def test_classifier_of_another_run_is_refused_where_it_does_not_fit_or_is_damaged(cache, tmp_path):
    config = features.FeaturesConfig(str(cache))
    with pytest.raises(ValueError, match=r'images of shape \(8, 8, 1\), not \(8, 8, 3\); name the folder'):
        features.load(config, make_images((8, 8, 3)), tmp_path)
    cut(cache / 'classifier.npz')
    with pytest.raises(ValueError, match=f'the classifier in {cache} cannot give features: .*train one here'):
        features.load(config, make_images(), tmp_path)


@pytest.mark.parametrize('shape', [(8, 8, 1), (9, 20, 3), (33, 33, 1)])
def test_features_of_any_image_size_do_not_depend_on_the_rest_of_the_batch(shape):
    network = feature_network.build_feature_network(shape, 3, seed=0)
    extractor = features.Extractor('network', '', 'none', [tf.function(network)], batch_size=16)
    images = make_images(shape, 37).images_uint8
    found = extractor(images, show_progress=False)
    assert found.pool.shape == (37, feature_network.FEATURE_DIMENSION) and found.logits.shape == (37, 3)
    assert found.pool.dtype == found.logits.dtype == np.float32 and len(found) == 37
    np.testing.assert_array_equal(extractor(images[16:21]).pool, found.pool[16:21])
    for actual, expected in zip((found.pool, found.logits), network(images)):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_trained_features_have_a_mean_square_of_one_and_their_scale_leaves_the_logits_alone(trained):
    data = make_images()
    assert np.mean(trained[0](data.images_uint8).pool ** 2) == pytest.approx(1.0, rel=1e-4)
    network = feature_network.build_feature_network((8, 8, 1), 3, seed=0)
    pool, logits = network(data.images_uint8)
    feature_network.scale_features(network, 5.0)
    np.testing.assert_allclose(network(data.images_uint8)[0], 5.0 * pool, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(network(data.images_uint8)[1], logits, rtol=1e-4, atol=1e-5)


class FakeInception(tf.Module):
    """Has the outputs of TF-GAN's Inception graph."""

    def __init__(self, side=299):
        super().__init__()
        self.offset = tf.Variable([0.5, 0.0, 0.0])
        signature = [tf.TensorSpec([None, side, side, 3], tf.float32)]
        self.__call__ = tf.function(self._call, input_signature=signature)

    def _call(self, images):
        pool = tf.reduce_mean(images, [1, 2], keepdims=True)
        return {'logits': pool[:, 0, 0] + self.offset, 'pool_3': tf.concat([pool, images[:, :1, :1]], -1)}


@pytest.fixture(name='inception', scope='module')
def fixture_inception(tmp_path_factory):
    folder = tmp_path_factory.mktemp('inception') / 'graph'
    tf.saved_model.save(FakeInception(), str(folder))
    return folder


@pytest.mark.parametrize('channels', [1, 3])
def test_inception_graph_of_a_folder_runs_through_tf_gan(channels, inception, tmp_path):
    images = make_images((8, 8, channels), 53).images_uint8
    images[0], images[1] = 0, 255
    extractor = features.load(features.FeaturesConfig(str(inception)), make_images(), tmp_path)
    found = extractor(images)
    pm1 = np.broadcast_to(images / 127.5 - 1.0, [53, 8, 8, 3])
    # Bilinear resizing by a whole number of pixels keeps the corner; the mean of a constant image is its value.
    np.testing.assert_allclose(found.pool[:, 3:], pm1[:, 0, 0], atol=1e-5)
    np.testing.assert_allclose(found.pool[:2, :3], [[-1.0] * 3, [1.0] * 3], atol=1e-5)
    np.testing.assert_allclose(found.logits, found.pool[:, :3] + [0.5, 0.0, 0.0], atol=1e-5)
    assert (extractor.name, extractor.resize) == ("SavedModel 'graph'", '299x299, bilinear, half-pixel centres')
    other = shutil.copytree(inception, tmp_path / 'graph')
    config = features.FeaturesConfig(str(other))
    assert features.load(config, make_images(), tmp_path).weights_sha256 == extractor.weights_sha256
    module = FakeInception()
    module.offset.assign([0.25, 0.0, 0.0])
    tf.saved_model.save(module, str(other))
    assert features.load(config, make_images(), tmp_path).weights_sha256 != extractor.weights_sha256


def test_standard_inception_graph_is_found_in_the_cache_of_tf_hub(inception, tmp_path, monkeypatch):
    monkeypatch.setenv('TFHUB_CACHE_DIR', str(tmp_path))
    url = b'https://tfhub.dev/tensorflow/tfgan/eval/inception/1'
    shutil.copytree(inception, tmp_path / hashlib.sha1(url).hexdigest())
    extractor = features.load(features.FeaturesConfig('inception'), make_images(), tmp_path)
    assert extractor(make_images().images_uint8[:3]).pool.shape == (3, 6)
    assert extractor.name == 'Inception graph of TF-GAN, from TF-Hub'


def test_offline_inception_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv('TFHUB_CACHE_DIR', str(tmp_path))

    def fail(*unused_arguments, **unused_options):
        raise urllib.error.URLError('Name or service not known')

    monkeypatch.setattr(urllib.request, 'urlopen', fail)
    with pytest.raises(ValueError, match='had from https://tfhub.dev/.*not known.*FeaturesConfig.source') as caught:
        features.load(features.FeaturesConfig('inception'), make_images(), tmp_path)
    assert '\n' not in str(caught.value) and 'TFHUB_CACHE_DIR' in str(caught.value)


def test_another_saved_model_is_refused_in_one_line(tmp_path):
    tf.saved_model.save(FakeInception(side=32), str(tmp_path / 'size'))
    module = tf.Module()
    module.__call__ = tf.function(
        lambda images: {'logits': images[:, 0, 0]}, input_signature=[tf.TensorSpec([None, 299, 299, 3], tf.float32)]
    )
    tf.saved_model.save(module, str(tmp_path / 'outputs'))
    (tmp_path / 'damaged').mkdir()
    (tmp_path / 'damaged' / 'saved_model.pb').write_bytes(b'no graph')
    for name in ('size', 'outputs', 'damaged'):
        with pytest.raises(ValueError, match=f'the SavedModel in .*{name} is not the Inception graph') as caught:
            features.load(features.FeaturesConfig(str(tmp_path / name)), make_images(), tmp_path)
        assert '\n' not in str(caught.value)


def test_unknown_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="source 'clasifier' of the features is neither 'classifier' nor 'inception'"):
        features.load(features.FeaturesConfig('clasifier'), make_images(), tmp_path)
