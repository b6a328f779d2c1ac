"""How the weights follow the gradients: Adam, with a learning rate that warms up and decays."""

import dataclasses

import tensorflow as tf

from tf_dpdiff import keras


class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to `peak` over `warmup_steps`, then falls linearly to `final_fraction * peak` at `num_steps`.

    Example:
        >>> rate = WarmupDecay(peak=1.0, num_steps=100, warmup_steps=10, final_fraction=0.5)
        >>> [round(float(rate(step)), 2) for step in (0, 9, 100)]
        [0.1, 1.0, 0.5]
    """

    def __init__(self, *, peak: float, num_steps: int, warmup_steps: int = 0, final_fraction: float = 0.1):
        self.peak = peak
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.final_fraction = final_fraction

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        rise = tf.minimum(1.0, (step + 1.0) / (self.warmup_steps + 1e-9))
        progress = tf.clip_by_value((step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps), 0.0, 1.0)
        return self.peak * tf.minimum(rise, 1.0 - (1.0 - self.final_fraction) * progress)

    def get_config(self):
        return {
            'peak': self.peak,
            'num_steps': self.num_steps,
            'warmup_steps': self.warmup_steps,
            'final_fraction': self.final_fraction,
        }


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """How the weights follow the gradients: Adam with a warm-up and a linear decay.

    Attributes:
      learning_rate: The peak, finite and > 0.
      warmup_steps: Steps of the linear rise, >= 0.
      final_fraction: Share of the peak that is left at the last step, in [0, 1].
      beta_2: Of Adam, in [0, 1).
    """

    learning_rate: float
    warmup_steps: int = 0
    final_fraction: float = 0.1
    beta_2: float = 0.999

    def __post_init__(self):
        if not 0.0 < self.learning_rate < float('inf'):
            raise ValueError(f'learning_rate must be finite and > 0, got {self.learning_rate}.')
        if self.warmup_steps < 0 or not 0.0 <= self.final_fraction <= 1.0 or not 0.0 <= self.beta_2 < 1.0:
            raise ValueError(
                'the optimization needs warmup_steps >= 0, final_fraction in [0, 1] and beta_2 in [0, 1), got '
                f'{self.warmup_steps}, {self.final_fraction} and {self.beta_2}.'
            )

    def make_optimizer(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Returns a new optimizer for num_steps steps."""
        rate = WarmupDecay(
            peak=self.learning_rate,
            num_steps=num_steps,
            warmup_steps=self.warmup_steps,
            final_fraction=self.final_fraction,
        )
        # DP-SGD's updates are small where C is: an epsilon of 1e-7 would slow Adam down, so it is set far below.
        return keras.optimizers.Adam(rate, beta_2=self.beta_2, epsilon=1e-12)
