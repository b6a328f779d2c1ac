"""Which timesteps training visits.

The distributions in TIMESTEP_DISTRIBUTIONS are called alike: `check(schedule)`, `probabilities(schedule)` and
`from_uniforms(u, v, schedule)`. Each timestep is a function of its own pair of uniform numbers: one that depended on
losses, or on what the rest of the batch drew (antithetic pairs), would be outside of the privacy guarantee.
"""

import dataclasses
import math

import numpy as np
from scipy import special
import tensorflow as tf

from tf_dpdiff.diffusion.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class TimestepMixture:
    """A mixture of uniform distributions over timesteps.

    DP-SGD affords few updates, so they are spent on the timesteps at which images take shape. No importance weight
    corrects the bias: the loss is reweighted on purpose.

    Attributes:
      components: (weight, low, high) triples; t is uniform on {low, ..., high - 1}. The weights add up to 1.

    Example:
        >>> mixture = TimestepMixture(((0.015, 0, 30), (0.785, 30, 600), (0.2, 600, 1000)))
        >>> round(float(mixture.probabilities(1000).sum()), 6)
        1.0

    References: Ghalebikesabi et al. 2023, arXiv:2302.13861, "timestep sampling".
    """

    components: tuple[tuple[float, int, int], ...] = ((1.0, 0, 1000),)

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

    def check(self, schedule: Schedule | int) -> None:
        """Raises ValueError if a component reaches beyond the schedule, of which the number of timesteps is enough."""
        num_timesteps = _num_timesteps(schedule)
        highest = max(c[2] for c in self.components)
        if highest > num_timesteps:
            raise ValueError(
                f"a timestep component ends at {highest}, beyond the schedule's {num_timesteps} timesteps."
            )

    def probabilities(self, schedule: Schedule | int) -> np.ndarray:
        """Returns the probability of each timestep, float64 [num_timesteps]."""
        self.check(schedule)
        result = np.zeros([_num_timesteps(schedule)])
        for weight, low, high in self.components:
            result[int(low) : int(high)] += weight / (high - low)
        return result

    def from_uniforms(
        self, component_uniforms: tf.Tensor, position_uniforms: tf.Tensor, schedule: Schedule | None = None
    ) -> tf.Tensor:
        """Maps independent uniforms to timesteps, element by element.

        Args:
          component_uniforms: float32, in [0, 1), any shape: chooses the component.
          position_uniforms: float32, in [0, 1), same shape: chooses the timestep in it.
          schedule: Not needed: a mixture is one of timesteps, whatever noise they stand for.

        Returns:
          int32 timesteps of the same shape. Independent where the uniforms are: no antithetic pairs, which would make
          one unit's timestep depend on another unit.
        """
        del schedule
        weights, lows, highs = (np.array(column) for column in zip(*self.components))
        edges = tf.constant(np.cumsum(weights)[:-1], tf.float32)
        index = tf.searchsorted(edges, tf.reshape(component_uniforms, [-1]), side='right')
        index = tf.reshape(index, tf.shape(component_uniforms))
        low = tf.cast(tf.gather(lows, index), tf.float32)
        high = tf.cast(tf.gather(highs, index), tf.float32)
        t = tf.floor(low + position_uniforms * (high - low))
        return tf.cast(tf.minimum(t, high - 1.0), tf.int32)  # low + u * (high - low) may round up to high.


@dataclasses.dataclass(frozen=True)
class LogNormalSigma:
    """Timesteps whose sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod) is log-normal, as in EDM.

    ln sigma ~ N(mean, stddev^2), and the timestep is the one of the schedule whose ln sigma is nearest. What would lie
    beyond the schedule falls on its first or last timestep.

    Attributes:
      mean: Of ln sigma, within what the schedule has.
      stddev: Of ln sigma, positive.

    Example:
        >>> median = int(LogNormalSigma().from_uniforms(tf.constant(0.5), tf.constant(0.0), Schedule()))
        >>> round(float(Schedule().sigmas[median]), 2), round(math.exp(-1.2), 2)
        (0.3, 0.3)

    References: Karras et al. 2022, arXiv:2206.00364, section 5 and Table 1.
    """

    mean: float = -1.2
    stddev: float = 1.2

    def __post_init__(self):
        if not math.isfinite(self.mean):
            raise ValueError(f'the mean of ln sigma must be finite, got {self.mean}.')
        if not 0.0 < self.stddev < math.inf:
            raise ValueError(f'the stddev of ln sigma must be positive and finite, got {self.stddev}.')

    def check(self, schedule: Schedule) -> None:
        """Raises ValueError if the mean is beyond the schedule: its first or last timestep would be most of what is
        drawn."""
        lowest, highest = np.log(schedule.sigmas[[0, -1]])
        if not lowest <= self.mean <= highest:
            raise ValueError(
                f"the mean of ln sigma, {self.mean:g}, lies outside of the schedule's [{lowest:.3g}, {highest:.3g}]."
            )

    def probabilities(self, schedule: Schedule) -> np.ndarray:
        """Returns the probability of each timestep, float64 [num_timesteps]."""
        return np.diff(self._edges(schedule), prepend=0.0, append=1.0)

    def from_uniforms(self, uniforms: tf.Tensor, unused_uniforms: tf.Tensor, schedule: Schedule) -> tf.Tensor:
        """Maps uniforms to timesteps by the inverse of their distribution function, element by element.

        Args:
          uniforms: float32, in [0, 1), any shape.
          unused_uniforms: Not needed: one number chooses the timestep.
          schedule: The noise schedule.

        Returns:
          int32 timesteps of the same shape, growing with the uniforms.
        """
        del unused_uniforms
        edges = tf.constant(self._edges(schedule), tf.float32)
        t = tf.searchsorted(edges, tf.reshape(uniforms, [-1]), side='right')
        return tf.reshape(t, tf.shape(uniforms))

    def _edges(self, schedule):
        """Returns the probability of all timesteps up to each but the last one, float64 [num_timesteps - 1]."""
        self.check(schedule)
        log_sigmas = np.log(schedule.sigmas)
        half_way = (log_sigmas[1:] + log_sigmas[:-1]) / 2.0
        return special.ndtr((half_way - self.mean) / self.stddev)


TIMESTEP_DISTRIBUTIONS = (TimestepMixture, LogNormalSigma)


def _num_timesteps(schedule: Schedule | int) -> int:
    return schedule.num_timesteps if isinstance(schedule, Schedule) else schedule
