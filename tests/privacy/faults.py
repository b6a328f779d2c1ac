"""Faults to put into the private step, each of which an audit and a replay must find."""

import dataclasses
import functools

import tensorflow as tf

from tf_dpdiff.privacy import clipping
from tf_dpdiff.privacy import noise as noise_lib
from tf_dpdiff.privacy import sampling

_ADD_AT = noise_lib.GaussianNoise.add_at
_CLIP_AND_SUM = clipping.PerUnitClipper.clip_and_sum
_SAMPLE = sampling.PoissonSampler.sample


def scaled_noise(monkeypatch, factor):
    """Noise of another standard deviation than the plan says."""

    def add_at(self, sums, *, seed, first_draw):
        return _ADD_AT(dataclasses.replace(self, stddev=factor * self.stddev), sums, seed=seed, first_draw=first_draw)

    monkeypatch.setattr(noise_lib.GaussianNoise, 'add_at', add_at)


def same_noise_in_two_steps(monkeypatch):
    """The draws of a step are those of the one before it, every second time."""

    def add_at(self, sums, *, seed, first_draw):
        step = tf.cast(first_draw, tf.int64) // len(sums)
        return _ADD_AT(self, sums, seed=seed, first_draw=(step - step % 2) * len(sums))

    monkeypatch.setattr(noise_lib.GaussianNoise, 'add_at', add_at)


def no_noise_in_one_variable(monkeypatch):
    """The first variable is released as it is."""

    def add_at(self, sums, *, seed, first_draw):
        return [sums[0], *_ADD_AT(self, sums, seed=seed, first_draw=first_draw)[1:]]

    monkeypatch.setattr(noise_lib.GaussianNoise, 'add_at', add_at)


def each_variable_clipped_alone(monkeypatch):
    """Each variable's gradient is clipped to C: the whole is longer."""

    def clip_and_sum(self, gradients, is_padding, layers=None):
        whole = _CLIP_AND_SUM(self, gradients, is_padding, layers)
        parts = [_CLIP_AND_SUM(self, [g], is_padding, layers and [n]) for g, n in zip(gradients, layers or gradients)]
        return whole._replace(sums=[part.sums[0] for part in parts])

    monkeypatch.setattr(clipping.PerUnitClipper, 'clip_and_sum', clip_and_sum)


def first_unit_of_a_chunk_not_clipped(monkeypatch):
    """The first unit of each chunk is added as it is."""
    _leave_out(monkeypatch, lambda clipped, l2_norm_clip: tf.range(tf.size(clipped.norms)) == 0)


def long_units_not_clipped(monkeypatch, factor):
    """Units that are so many times longer than the clipping norm are added as they are."""
    _leave_out(monkeypatch, lambda clipped, l2_norm_clip: clipped.norms > factor * l2_norm_clip)


def _leave_out(monkeypatch, is_left_out):
    def clip_and_sum(self, gradients, is_padding, layers=None):
        clipped = _CLIP_AND_SUM(self, gradients, is_padding, layers)
        left_out = is_left_out(clipped, self.l2_norm_clip)
        others = _CLIP_AND_SUM(self, gradients, tf.logical_or(is_padding, left_out), layers)
        weights = tf.cast(tf.logical_and(left_out, clipped.is_kept), tf.float32)
        return clipped._replace(sums=[s + tf.tensordot(weights, g, 1) for s, g in zip(others.sums, gradients)])

    monkeypatch.setattr(clipping.PerUnitClipper, 'clip_and_sum', clip_and_sum)


def all_units_in_every_step(monkeypatch):
    """Units are not sampled."""
    monkeypatch.setattr(
        sampling.PoissonSampler,
        'sample',
        lambda self, *arguments, **options: _SAMPLE(sampling.PoissonSampler(1.0), *arguments, **options),
    )


TWO_THIRDS_OF_THE_NOISE = functools.partial(scaled_noise, factor=2 / 3)
HALF_OF_THE_VARIANCE = functools.partial(scaled_noise, factor=0.5**0.5)  # One draw for half of the replicas.
