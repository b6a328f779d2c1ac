"""Tests of classifier-free guidance."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.diffusion import guidance

_NUM_CLASSES = 4
_X_T = tf.constant(np.random.default_rng(0).normal(size=[3, 2, 2, 1]), tf.float32)
_LABELS = tf.constant([2, 0, 3])


def network(x_t, t, labels):
    """Stands in for a network: its answer depends on all it is given."""
    each = (0.1 * tf.cast(t, tf.float32) + tf.cast(labels, tf.float32))[:, None, None, None]
    return tf.sin(x_t + each)


class Recorder:
    """The network, and what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, labels):
        assert t.dtype == labels.dtype == tf.int32
        self.calls.append((x_t.shape[0], t.numpy().tolist(), labels.numpy().tolist()))
        return network(x_t, t, labels)


def predictions():
    """Returns the conditional and the unconditional prediction at timestep 7."""
    t = tf.fill([3], 7)
    return network(_X_T, t, _LABELS).numpy(), network(_X_T, t, tf.fill([3], _NUM_CLASSES)).numpy()


@pytest.mark.parametrize('scale', [0.0, 0.5, 3.0])
def test_guided_prediction_follows_its_formula_in_one_evaluation_of_twice_the_batch(scale):
    denoiser = Recorder()
    actual = guidance.guide(denoiser, _LABELS, scale=scale, num_classes=_NUM_CLASSES)(_X_T, tf.constant(7))
    conditional, unconditional = predictions()
    # With w = scale - 1, equation 6 of Ho and Salimans 2022.
    np.testing.assert_allclose(actual, scale * conditional - (scale - 1) * unconditional, atol=1e-6)
    assert denoiser.calls == [(6, [7] * 6, [2, 0, 3, 4, 4, 4])]
    # Control: the roles the other way round.
    assert np.abs(actual - (scale * unconditional - (scale - 1) * conditional)).max() > 0.1 or scale == 0.5


def test_scale_one_is_the_conditional_prediction_in_one_evaluation_of_the_batch():
    denoiser = Recorder()
    actual = guidance.guide(denoiser, _LABELS, scale=1.0, num_classes=_NUM_CLASSES)(_X_T, tf.constant(7))
    np.testing.assert_array_equal(actual, predictions()[0])
    assert denoiser.calls == [(3, [7] * 3, [2, 0, 3])]


def test_scale_zero_is_the_unconditional_prediction():
    actual = guidance.guide(network, _LABELS, scale=0.0, num_classes=_NUM_CLASSES)(_X_T, tf.constant(7))
    np.testing.assert_allclose(actual, predictions()[1], atol=1e-7)


@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_prediction_of_a_network_in_half_precision_is_guided_in_float32(scale):
    guided = guidance.guide(
        lambda x_t, t, labels: tf.cast(network(x_t, t, labels), tf.bfloat16),
        _LABELS,
        scale=scale,
        num_classes=_NUM_CLASSES,
    )(_X_T, tf.constant(7))
    assert guided.dtype == tf.float32
    rounded = [tf.cast(tf.cast(p, tf.bfloat16), tf.float32).numpy() for p in predictions()]
    np.testing.assert_allclose(guided, rounded[1] + scale * (rounded[0] - rounded[1]), atol=1e-6)


@pytest.mark.parametrize('scale', [-0.5, float('inf'), float('nan')])
def test_bad_scale_is_refused(scale):
    with pytest.raises(ValueError, match=f'guidance_scale must be a finite number, at least 0, got {scale}'):
        guidance.guide(network, _LABELS, scale=scale, num_classes=_NUM_CLASSES)
