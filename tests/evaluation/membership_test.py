"""Tests of membership attacks: losses against a plain loop, rates against counting."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.evaluation import membership
from tf_dpdiff.evaluation import pictures

PROCESS = process_lib.DiffusionProcess(schedules.Schedule(num_timesteps=100), 'v')


def make_model():
    """A network whose output depends on image, timestep and label."""
    x_t = keras.layers.Input([4, 4, 1])
    t, labels = (keras.layers.Input([], dtype=tf.int32) for _ in range(2))
    shift = tf.cast(labels, tf.float32) * 0.1 - tf.cast(t, tf.float32) * 0.01
    return keras.Model([x_t, t, labels], 0.5 * x_t + shift[:, None, None, None])


def make_images(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, [count, 4, 4, 1]).astype(np.uint8), generator.integers(0, 4, count).astype(
        np.int32
    )


def make_loss(chunk_size=3, timesteps=(10, 60), **options):
    options = {'draws_per_timestep': 2, 'seed': 5, **options}
    return membership.ImageLoss(make_model(), PROCESS, timesteps, chunk_size=chunk_size, **options)


def test_loss_is_the_mean_over_timesteps_and_draws_that_all_images_share():
    images, labels = make_images(7)
    alphas = PROCESS.schedule.alphas_cumprod
    noise = np.random.default_rng(5).standard_normal([4, 4, 4, 1]).astype(np.float32)
    expected = []
    for image, label in zip(images, labels):
        x_start, found = image / 127.5 - 1.0, []
        for draw, t in enumerate((10, 10, 60, 60)):
            signal, rate = np.sqrt(alphas[t]), np.sqrt(1.0 - alphas[t])
            prediction = 0.5 * (signal * x_start + rate * noise[draw]) + 0.1 * label - 0.01 * t
            found.append(np.mean((prediction - (signal * noise[draw] - rate * x_start)) ** 2))
        expected.append(np.mean(found))
    np.testing.assert_allclose(make_loss()(images, labels), expected, rtol=1e-4)


def test_loss_does_not_depend_on_the_chunk_size():
    images, labels = make_images(7)
    np.testing.assert_allclose(
        make_loss(chunk_size=3)(images, labels), make_loss(chunk_size=7)(images, labels), rtol=1e-5
    )


def test_timestep_beyond_the_schedule_is_refused():
    with pytest.raises(ValueError, match='timestep 100 are asked for; the schedule has 100 timesteps, counted from 0'):
        make_loss(timesteps=(10, 100))


def test_rates_are_those_of_counting():
    generator = np.random.default_rng(0)
    members, non_members = generator.normal(0.0, 1.0, 300), generator.normal(1.0, 1.0, 2000)
    attack = membership.attack(members, non_members)
    pairs = members[:, None] < non_members[None]
    assert attack.auc == pytest.approx(pairs.mean())
    for rate, found in zip(membership.FALSE_POSITIVE_RATES, attack.true_positive_rates):
        allowed = np.sort(non_members)[int(rate * 2000)]  # So many non-members may lie below the threshold.
        assert found == pytest.approx(np.mean(members < allowed))
    assert (attack.num_members, attack.num_non_members, attack.caveats()) == (300, 2000, [])


def test_attack_that_knows_everything_and_attack_that_knows_nothing():
    generator = np.random.default_rng(0)
    losses = generator.uniform(size=4000)
    perfect = membership.attack(losses[:2000], losses[2000:] + 2.0)
    assert perfect.auc == 1.0 and perfect.true_positive_rates == (1.0, 1.0)
    blind = membership.attack(losses[:2000], losses[2000:])
    assert abs(blind.auc - 0.5) < 0.05 and max(blind.true_positive_rates) < 0.03
    backwards = membership.attack(losses[:2000] + 2.0, losses[2000:])
    assert backwards.auc == 0.0 and backwards.true_positive_rates == (0.0, 0.0)


@pytest.mark.parametrize('count, num_caveats', [(50, 2), (360, 1), (999, 1), (1000, 0)])
def test_rates_that_too_few_non_members_cannot_resolve_are_named(count, num_caveats):
    attack = membership.attack(np.zeros(10), np.arange(1.0, count + 1.0))
    assert len(attack.caveats()) == num_caveats
    if num_caveats:
        assert f'0.1% needs at least 1,000 non-members to mean something; here are {count}' in attack.caveats()[0]
    assert attack.to_dict()['num_non_members'] == count


def test_picture_is_drawn_with_and_without_canaries(tmp_path):
    generator = np.random.default_rng(0)
    losses = generator.uniform(size=50), generator.uniform(size=30)
    attack = membership.attack(*losses)
    canaries = generator.uniform(size=20), generator.uniform(size=20) < 0.5, generator.integers(-1, 2, 20)
    sizes = []
    for given in (None, canaries):
        pictures.draw_audit(tmp_path / 'a.png', attack=attack, losses=losses, canaries=given)
        picture = (tmp_path / 'a.png').read_bytes()
        assert picture.startswith(b'\x89PNG')
        sizes.append(len(picture))
    assert sizes[0] != sizes[1] and [path.name for path in tmp_path.iterdir()] == ['a.png']
