"""Learning rates: a warm-up, then a decay."""

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
