"""Which timesteps training visits: a mixture of uniform distributions."""

import dataclasses
from typing import Tuple

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class TimestepMixture:
    """A mixture of uniform distributions over timesteps.

    DP-SGD affords few updates, so they are spent on the timesteps at which images take shape. No importance weight
    corrects the bias: the loss is reweighted on purpose.

    Attributes:
      components: (weight, low, high) triples; t is uniform on {low, ..., high - 1}. The weights add up to 1.

    Example:
        >>> mixture = TimestepMixture(((0.015, 0, 30), (0.785, 30, 600), (0.2, 600, 1000)))
        >>> mixture.probabilities(1000).sum().round(6)
        1.0

    References: Ghalebikesabi et al. 2023, arXiv:2302.13861, "timestep sampling".
    """
    components: Tuple[Tuple[float, int, int], ...] = ((1.0, 0, 1000),)

    def __post_init__(self):
        if not self.components:
            raise ValueError('components of a timestep mixture must not be empty.')
        for component in self.components:
            if len(component) != 3:
                raise ValueError(f'a component of a timestep mixture is (weight, low, high), got {component!r}.')
            weight, low, high = component
            if not 0.0 < weight <= 1.0:
                raise ValueError(f'the weight of a timestep component must be in (0, 1], got {component!r}.')
            if low % 1 or high % 1 or not 0 <= low < high:
                raise ValueError(f'a timestep component needs whole numbers with 0 <= low < high, got {component!r}.')
        total = sum(c[0] for c in self.components)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f'the weights of a timestep mixture must add up to 1, got {total:g}.')

    def check(self, num_timesteps: int) -> None:
        """Raises ValueError if a component reaches beyond the schedule."""
        highest = max(c[2] for c in self.components)
        if highest > num_timesteps:
            raise ValueError(
                f'a timestep component ends at {highest}, beyond the schedule\'s {num_timesteps} timesteps.')

    def probabilities(self, num_timesteps: int) -> np.ndarray:
        """Returns the probability of each timestep, float64 [num_timesteps]."""
        self.check(num_timesteps)
        result = np.zeros([num_timesteps])
        for weight, low, high in self.components:
            result[int(low):int(high)] += weight / (high - low)
        return result

    def from_uniforms(self, component_uniforms: tf.Tensor, position_uniforms: tf.Tensor) -> tf.Tensor:
        """Maps independent uniforms to timesteps, element by element.

        Args:
          component_uniforms: float32, in [0, 1), any shape: chooses the component.
          position_uniforms: float32, in [0, 1), same shape: chooses the timestep in it.

        Returns:
          int32 timesteps of the same shape. Independent where the uniforms are: no antithetic pairs, which would make
          one unit's timestep depend on another unit.
        """
        weights, lows, highs = (np.array(column) for column in zip(*self.components))
        edges = tf.constant(np.cumsum(weights)[:-1], tf.float32)
        index = tf.searchsorted(edges, tf.reshape(component_uniforms, [-1]), side='right')
        index = tf.reshape(index, tf.shape(component_uniforms))
        low = tf.cast(tf.gather(lows, index), tf.float32)
        high = tf.cast(tf.gather(highs, index), tf.float32)
        t = tf.floor(low + position_uniforms * (high - low))
        return tf.cast(tf.minimum(t, high - 1.0), tf.int32)  # low + u * (high - low) may round up to high.
