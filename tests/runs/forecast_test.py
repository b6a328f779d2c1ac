"""Tests of what a run is told beforehand: its two numbers against what they stand for, its verdict and its cures."""

import math
import types

import numpy as np
import pytest

from tf_dpdiff.data import datasets
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.runs import forecast
from tf_dpdiff.training import matching as matching_lib

RELATION = 'replace_with_zero'


def planned(
    *,
    num_units=1000,
    release=None,
    matching=None,
    warm_start_steps=1000,
    noise_multiplier=1.0,
    owners=False,
    trainable=(),
    **config,
):
    """Returns as much of a build as a forecast reads."""
    settings = {'target_delta': 1e-9, 'expected_batch_size': 10, 'num_steps': 100, 'l2_norm_clip': 1.0, **config}
    settings['noise_multiplier'] = noise_multiplier
    plan = plan_lib.make_plan(
        plan_lib.DpSgdConfig(**settings), num_units, release, matching=matching and matching.release
    )
    unit = 'one patient' if owners else datasets.ONE_IMAGE
    spec = datasets.DatasetSpec('scans', (16, 16, 1), ('a', 'b'), num_units, num_units, unit, owners)
    warm_start = types.SimpleNamespace(num_steps=warm_start_steps, matching=matching) if release else None
    recipe = types.SimpleNamespace(finetuning=types.SimpleNamespace(trainable=trainable), warm_start=warm_start)
    return types.SimpleNamespace(plan=plan, spec=spec, recipe=recipe)


@pytest.mark.parametrize('num_means', [1, 2])
def test_noise_on_means_is_that_of_released_means(num_means):
    num_units, num_classes = 20000, 2
    images = np.full([num_units, 6, 6, 1], 0.5)
    images[::2] = 0.4
    labels = (np.arange(num_units) // 2 % num_classes).astype(np.int32)
    config = class_means.ClassMeansConfig(3.0, 2.0, count_weight=0.2)
    told = forecast.noise_on_means(config, num_units, num_classes, RELATION)
    released = config.release(
        images, labels, num_classes, seed=seeds.PrivateSeed(bytes(32)), neighboring_relation=RELATION
    )
    # The clip does not bite at 2 of images whose norm is 2.4 to 3 but for their length: only the spread counts.
    means = released.images[:, 0].reshape(num_classes, -1)
    assert np.std(means - means.mean(axis=1, keepdims=True)) == pytest.approx(told, rel=0.25)
    # With several means per class, each has as many images fewer.
    several = class_means.ClassMeansConfig(3.0, 2.0, num_means, 1 if num_means == 1 else 2, count_weight=0.2)
    assert forecast.noise_on_means(several, num_units, num_classes, RELATION) == pytest.approx(num_means * told)


def make_matching(noise_multiplier):
    release = feature_means.FeatureMeansConfig(noise_multiplier, 0.2)
    return matching_lib.MatchingConfig(release, 100, num_networks=3)


def test_noise_on_features_is_that_of_released_ones():
    config, image_shape = make_matching(2.0), (8, 8, 1)
    images = np.random.default_rng(0).integers(0, 256, [400, *image_shape]).astype(np.uint8)
    labels = (np.arange(400) % 2).astype(np.int32)
    blocks = list(matching_lib.RandomFeatures(images, 3, seed=0).blocks(images))
    noisy = config.release.release(blocks, labels, 2, seed=seeds.PrivateSeed(bytes(32)), neighboring_relation=RELATION)
    exact = config.release.exact_vector(blocks, labels, 2)
    # Of the sums over 200 images of a class; that of the counts is not looked at.
    weight = math.sqrt(1.0 - 0.2**2)
    lengths = np.linalg.norm((noisy - exact)[:, :-1], axis=1) / (200 * weight)
    np.testing.assert_allclose(lengths, forecast.noise_on_features(config, 400, 2, image_shape), rtol=0.1)


def test_details_are_told_of_where_noise_leaves_them():
    release = class_means.ClassMeansConfig(1.0, 8.0, smooth=True)
    verdicts = []
    for noise_multiplier in (1.0, 2000.0):
        matching = make_matching(noise_multiplier)
        told = forecast.forecast(planned(num_units=100000, release=release, matching=matching), 100)
        verdicts.append(told.verdict())
        hidden = 'HIDES THE DETAILS' in dict(told.numbers())['noise on the features']
        assert hidden != ('details of each class' in told.verdict())
    assert 'details of each class' in verdicts[0] and 'one blurred average' in verdicts[1]


def test_gradient_share_is_the_length_of_parallel_gradients_beside_that_of_the_noise():
    generator = np.random.default_rng(0)
    num_steps, batch_size, num_trained, noise_multiplier, clip = 40, 30, 500, 2.0, 0.1
    direction = np.ones([num_trained]) / math.sqrt(num_trained)
    gradients = num_steps * batch_size * clip * direction
    noise = noise_multiplier * clip * generator.normal(size=[num_steps, num_trained]).sum(axis=0)
    expected = np.linalg.norm(gradients) / np.linalg.norm(noise)
    told = forecast.gradient_share(noise_multiplier, num_steps, batch_size, num_trained)
    assert told == pytest.approx(expected, rel=0.1)
    assert math.isinf(forecast.gradient_share(0.0, num_steps, batch_size, num_trained))


@pytest.mark.parametrize('smooth', [False, True])
def test_more_noise_never_makes_a_better_verdict(smooth):
    seen = []
    for noise_multiplier in (1.0, 10.0, 100.0, 1000.0):
        release = class_means.ClassMeansConfig(noise_multiplier, 8.0, smooth=smooth)
        told = forecast.forecast(planned(release=release), 10)
        seen.append((told.means_clear, not told.means_hidden))
    assert seen == sorted(seen, reverse=True) and seen[0] == (True, True) and seen[-1] == (False, False)


def test_few_owners_of_large_images_are_told_that_nothing_shows():
    """Which is what a run on 43 owners has shown: noise of more than 2 a pixel."""
    release = class_means.ClassMeansConfig(1.5, 63.0)
    told = forecast.forecast(planned(num_units=86, release=release, owners=True), 5000)
    assert told.mean_noise > 2.0 and told.is_hopeless
    with pytest.raises(ValueError, match='cannot work.*costs nothing.*--anyway') as error:
        forecast.check_can_work(told)
    assert '\n' not in str(error.value)
    assert any('One image as the unit in place of one patient' in cure for cure in told.cures)


@pytest.mark.parametrize(
    'settings, num_trained, cure',
    [
        ({'noise_multiplier': 50.0}, 10**6, 'Train fewer weights'),
        ({'noise_multiplier': 50.0, 'trainable': ('norm',)}, 10**6, 'times as many units'),
        ({'noise_multiplier': 50.0, 'trainable': ('norm',), 'owners': True}, 10**6, 'times as many units'),
        ({'release': class_means.ClassMeansConfig(12.0, 8.0, smooth=True)}, 10, 'Make the images smaller'),
    ],
)
def test_the_cheapest_cure_comes_first(settings, num_trained, cure):
    told = forecast.forecast(planned(**settings), num_trained)
    assert cure in told.cures[0] and told.cures[0] in told.verdict()


def test_short_warm_start_is_told_and_wants_more_time():
    release = class_means.ClassMeansConfig(1.0, 8.0, smooth=True)
    build = planned(num_units=100000, release=release, warm_start_steps=200, expected_batch_size=5000)
    told = forecast.forecast(build, 100)
    assert 'hardly told apart, since a warm start of 200 steps' in told.verdict() and 'more time' in told.cures[0]
    assert not told.is_hopeless


def test_more_epsilon_is_a_cure_only_below_ten():
    for target, offered in ((1.0, True), (10.0, False)):
        build = planned(noise_multiplier=None, target_epsilon=target, expected_batch_size=100, num_steps=50)
        told = forecast.forecast(build, 10**9)
        assert told.steps_hidden and any('larger epsilon' in cure for cure in told.cures) == offered


def test_where_nothing_is_wrong_there_is_no_cure():
    release = class_means.ClassMeansConfig(1.0, 8.0, smooth=True)
    told = forecast.forecast(planned(num_units=100000, release=release, expected_batch_size=5000), 100)
    assert told.cures == () and not told.is_hopeless
    forecast.check_can_work(told)
    without_noise = forecast.forecast(planned(noise_multiplier=0.0), 10**6)
    assert not without_noise.is_hopeless and without_noise.cures == ()


def test_speed_is_measured_but_of_a_network_too_large_to_try(monkeypatch):
    config = unet.UNetConfig(
        base_channels=4, channel_multipliers=(1,), num_res_blocks=1, groups=2, middle_attention=False
    )
    model = denoiser.build(config, (8, 8, 1), 2)
    monkeypatch.setattr(forecast, '_MEASURED_SECS', 0.0)
    speed = forecast.measure_speed(model, ('norm',))
    assert speed.public > 0.0 and speed.private > 0.0 and speed.changed_pixels == 6e6
    measured = forecast.measure_speed(model, ('norm',), has_matching=True).changed_pixels
    assert 0.0 < measured != 6e6
    monkeypatch.setattr(forecast, '_LARGEST_MEASURED', 10)
    assert forecast.measure_speed(model, ('norm',)) is None
