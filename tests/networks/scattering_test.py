"""Tests of the scattering features: against wavelets in space, one image at a time, and what they are blind to."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.networks import scattering


def compute(images_uint8):
    return scattering.Scattering(images_uint8.shape[1:])(tf.constant(images_uint8)).numpy()


def make_images(shape, num_images=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [num_images, *shape], np.uint8)


def wavelet_in_space(side, sigma, angle, frequency):
    """Returns a Morlet wavelet on a torus, complex [side, side], and the Gaussian of the same width across as along."""
    wavelet, gaussian = np.zeros([side, side], complex), np.zeros([side, side])
    for down in range(-2, 3):
        for right in range(-2, 3):
            y, x = np.mgrid[:side, :side] + np.array([down, right]).reshape(2, 1, 1) * side
            u = math.cos(angle) * y + math.sin(angle) * x
            v = math.cos(angle) * x - math.sin(angle) * y
            envelope = np.exp(-(u**2 + (v / 2.0) ** 2) / (2.0 * sigma**2)) / (4.0 * math.pi * sigma**2)
            gaussian += envelope
            wavelet += envelope * np.exp(1j * frequency * u)
    return wavelet - wavelet.sum() / gaussian.sum() * gaussian


def low_pass_in_space(side, sigma):
    rows = np.arange(-2 * side, 3 * side)
    line = (np.exp(-(rows**2) / (2.0 * sigma**2)) / math.sqrt(2.0 * math.pi) / sigma).reshape(5, side).sum(axis=0)
    return np.outer(line, line)


def convolve(first, second):
    return np.fft.ifft2(np.fft.fft2(first) * np.fft.fft2(second))


def features_of(image):
    """Returns the features of an image [32, 32, channels], computed at full resolution and by the definition."""
    maps = []
    for channel in range(image.shape[-1]):
        padded = np.pad(image[..., channel] / 255.0, 4, mode='reflect')
        orders = [[padded], [], []]
        wavelets = [
            [wavelet_in_space(40, 0.8 * 2**j, math.pi * k / 8, 0.75 * math.pi / 2**j) for k in range(8)]
            for j in range(2)
        ]
        for scale in range(2):
            orders[1] += [np.abs(convolve(padded, wavelet)) for wavelet in wavelets[scale]]
        orders[2] = [np.abs(convolve(first, wavelet)) for first in orders[1][:8] for wavelet in wavelets[1]]
        for order in orders:
            averages = np.array([convolve(m, low_pass_in_space(40, 1.6)).real[4:36:4, 4:36:4] for m in order])
            maps += list((averages - averages.mean()) / averages.std())
    rows = []
    for m in maps:
        parts = m.reshape(4, 2, 4, 2).mean(axis=(1, 3)).ravel()
        rows.append([*parts, m.mean(), m.max(), m.min(), m.std()])
    return np.array(rows).ravel()


def test_features_agree_with_the_definition_in_space():
    images = make_images((32, 32, 2), 2)
    for image, found in zip(images, compute(images)):
        expected = features_of(image)
        # Maps of the second order are computed at half the resolution, which leaves out little.
        assert np.corrcoef(found, expected)[0, 1] > 0.999
    # Control: of another image they differ.
    assert np.corrcoef(compute(images)[0], features_of(images[1]))[0, 1] < 0.99


@pytest.mark.parametrize('shape', [(8, 8, 1), (28, 28, 1), (32, 32, 3), (64, 48, 3), (9, 13, 1), (16, 31, 3)])
def test_features_of_an_image_are_finite_and_its_own_alone(shape):
    images = make_images(shape, 5)
    images[0], images[1] = 0, 255
    found = compute(images)
    assert found.shape == (5, scattering.Scattering(shape).num_features) and np.isfinite(found).all()
    np.testing.assert_allclose(compute(images[2:3])[0], found[2], atol=1e-4)
    assert np.abs(found[3] - found[4]).max() > 0.1


def test_brightness_and_contrast_of_the_whole_image_do_not_count():
    images = make_images((32, 32, 1), 2) // 3
    np.testing.assert_allclose(compute(images), compute(images * 2 + 40), atol=0.05)


def test_small_spot_shows_wherever_it_lies():
    images = np.full([2, 32, 32, 1], 120, np.uint8)
    images += make_images(images.shape[1:], 2) // 16
    images[0, 10:13, 8:11], images[1, 18:21, 20:23] = 250, 250
    plain = np.full([1, 32, 32, 1], 120, np.uint8) + make_images((32, 32, 1), 1, seed=1) // 16
    first, second, without = (compute(image).reshape(81, 20)[:, 16:] for image in (images[:1], images[1:], plain))
    assert np.linalg.norm(first - second) < 0.5 * np.linalg.norm(first - without)
