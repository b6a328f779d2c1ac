"""Vectorized DP-Keras optimizers: clipping and noise behind the tf.keras optimizer interface.

The interface is TensorFlow Privacy's `make_vectorized_keras_optimizer_class`; what differs is listed in the docstring
of `make_vectorized_dp_optimizer_class`.
"""

from typing import Any, Callable, Optional, Type

import tensorflow as tf

from tf_dpdiff.privacy import clipping
from tf_dpdiff.privacy import noise as noise_lib
from tf_dpdiff.privacy import seeds

# Other names of the classes of tf.distribute than those by which users know them.
_STRATEGY_NAMES = {
    'CollectiveAllReduceStrategy': 'MultiWorkerMirroredStrategy',
    'ParameterServerStrategyV2': 'ParameterServerStrategy',
    'TPUStrategyV2': 'TPUStrategy',
}


def make_vectorized_dp_optimizer_class(cls: Type[tf.keras.optimizers.Optimizer]) -> Type[tf.keras.optimizers.Optimizer]:
    """Returns a DP-SGD subclass of a tf.keras optimizer class (the current ones, not `legacy`).

    Arguments of the returned class: `l2_norm_clip`, `noise_multiplier`, `num_microbatches`, `expected_batch_size`,
    `units_per_chunk`, then those of `cls`. As in TensorFlow Privacy, a batch is laid out as `num_microbatches` units of
    equally many consecutive views, each unit's losses are averaged, its gradient is clipped, and the noisy sum is
    divided; at noise 0 both give the same gradients. Different on purpose:

    - The divisor is `expected_batch_size`, a public number (default: `num_microbatches`; one of them must be given),
      and never the size of the batch at hand.
    - Under `tf.distribute.MirroredStrategy` a step is that of one device with the batches of all replicas together: the
      clipped sums are added over replicas, noise is added once, and every replica makes the same update. There
      `num_microbatches` counts the units of ONE replica's batch (Keras gives each its part of the global batch), and
      the default divisor is `num_microbatches` times the number of replicas. `expected_batch_size` is that of the
      global batch and is taken as it is. Other strategies but `OneDeviceStrategy` are refused: several processes would
      each draw noise of their own, and drift apart. `bin/train` runs on several machines.
    - A unit with a gradient that is not finite contributes zero.
    - Noise has a secret seed from the operating system and a 128-bit seed of its own for each (iteration, variable).
    - `minimize_units` maps a GradientTape over units, a chunk at a time, instead of taking a Jacobian: about ten times
      faster on convolutional networks, with memory chunk x parameters. `DpModel` makes `model.fit` use it. A plain
      `tf.keras.Model` also works in `compile` and `fit` (loss with `reduction='none'`), by the Jacobian of the losses
      that Keras hands over, in memory batch x parameters.

    Guarantee: with units Poisson-sampled at probability expected_batch_size / N, each `minimize` is a Poisson-sampled
      Gaussian mechanism with the given noise multiplier, for adding or removing one unit, on any number of replicas: a
      unit is in the batch of one of them, and the variance of the noise is that of one draw. Whether the batches are so
      sampled is the caller's part: `fit` on a shuffled data set has no such guarantee.

    Example:
        >>> optimizer = VectorizedDPAdam(l2_norm_clip=1.0, noise_multiplier=1.1, num_microbatches=32)
        >>> model = DpModel.sequential([tf.keras.layers.Dense(1, input_shape=(4,))])
        >>> model.compile(optimizer=optimizer, loss=tf.keras.losses.MeanSquaredError(reduction='none'))
        >>> history = model.fit(tf.ones([64, 4]), tf.ones([64, 1]), batch_size=32, verbose=0)
    """

    class VectorizedDPOptimizer(cls):
        """DP-SGD subclass; see `make_vectorized_dp_optimizer_class`."""

        def __init__(self,
                     l2_norm_clip: float,
                     noise_multiplier: float,
                     num_microbatches: Optional[int] = None,
                     *args,
                     expected_batch_size: Optional[float] = None,
                     units_per_chunk: int = 16,
                     **kwargs):
            super().__init__(*args, **kwargs)
            if num_microbatches is None and expected_batch_size is None:
                raise ValueError(
                    'give num_microbatches or expected_batch_size: the noisy sum must be divided by a public '
                    'number, not by the size of the batch at hand.')
            self._dp_config = dict(l2_norm_clip=l2_norm_clip,
                                   noise_multiplier=noise_multiplier,
                                   num_microbatches=num_microbatches,
                                   expected_batch_size=expected_batch_size,
                                   units_per_chunk=units_per_chunk)
            self.num_microbatches = num_microbatches
            self._expected_batch_size = expected_batch_size
            self._units_per_chunk = units_per_chunk
            self._clipper = clipping.PerUnitClipper(l2_norm_clip)
            stddev = noise_multiplier * self._clipper.sensitivity('add_or_remove_one') if noise_multiplier else 0.0
            self._noise = noise_lib.GaussianNoise(stddev)
            self._private_seed = seeds.PrivateSeed.from_os_entropy()

        def compute_gradients(self, loss, var_list, tape=None):
            """Returns noisy (gradient, variable) pairs from a vector of losses; see the class factory.

            Args:
              loss: float [num_microbatches * views], or a callable that returns it.
              var_list: Variables, or a callable that returns them.
              tape: The tape that recorded `loss`; not needed with a callable.

            Raises:
              RuntimeError: under a strategy that is not supported; names it.
            """
            num_replicas = count_replicas()
            if not callable(loss) and tape is None:
                raise ValueError('`tape` is required when a `Tensor` loss is passed.')
            tape = tape or tf.GradientTape()
            with tape:
                losses = tf.convert_to_tensor(loss() if callable(loss) else loss)
                if losses.shape.rank == 0:
                    raise ValueError(
                        "the loss must be a vector with one entry a view; compile with a loss whose reduction is "
                        "'none'.")
                num_units = self.num_microbatches or tf.shape(losses)[0]
                unit_losses = tf.reduce_mean(tf.reshape(losses, [num_units, -1]), axis=1)
            variables = tf.nest.flatten(var_list() if callable(var_list) else var_list)
            jacobian = tape.jacobian(unit_losses, variables, unconnected_gradients='zero')
            clipped = self._clipper.clip_and_sum(jacobian, tf.zeros([tf.shape(unit_losses)[0]], tf.bool))
            return self._privatize(clipped.sums, variables, num_replicas)

        def compute_unit_gradients(self, loss_fn: Callable[[Any], tf.Tensor], batch: Any, var_list, is_padding=None):
            """Returns noisy (gradient, variable) pairs by mapping a tape over units.

            Args:
              loss_fn: Maps one unit (an element of batch) to its scalar loss; must not draw randomness.
              batch: Nested tensors [units, ...].
              var_list: Variables.
              is_padding: bool [units] or None. Padding contributes zero.

            Raises:
              RuntimeError: under a strategy that is not supported; names it.
            """
            num_replicas = count_replicas()
            if is_padding is None:
                is_padding = tf.zeros([tf.shape(tf.nest.flatten(batch)[0])[0]], tf.bool)
            clipped = self._clipper.clipped_sum(loss_fn,
                                                var_list,
                                                batch,
                                                is_padding,
                                                units_per_chunk=self._units_per_chunk)
            return self._privatize(clipped.sums, var_list, num_replicas)

        def minimize_units(self, loss_fn: Callable[[Any], tf.Tensor], batch: Any, var_list, is_padding=None):
            """Applies one noisy update computed by `compute_unit_gradients`."""
            pairs = self.compute_unit_gradients(loss_fn, batch, var_list, is_padding)
            return self.apply_gradients(pairs, skip_gradients_aggregation=True)

        def minimize(self, loss, var_list, tape=None):
            """Applies one noisy update computed by `compute_gradients`."""
            self.apply_gradients(self.compute_gradients(loss, var_list, tape), skip_gradients_aggregation=True)

        def aggregate_gradients(self, grads_and_vars):
            """Refuses to add up gradients over replicas, which would multiply ours by the number of replicas.

            Raises:
              RuntimeError: if there are several replicas.
            """
            if count_replicas() > 1:
                raise RuntimeError(
                    f'{type(self).__name__}.apply_gradients would add up over replicas what compute_gradients and '
                    'compute_unit_gradients have added up already: call it with skip_gradients_aggregation=True, or '
                    'call minimize or minimize_units.')
            return grads_and_vars

        def _privatize(self, sums, variables, num_replicas):
            """Returns the (gradient, variable) pairs of clipped sums: reduced over replicas, with noise, divided."""
            if num_replicas > 1:
                sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
            # Replicas share the seed and the step, so all of them add the same noise to the same sum.
            noisy = self._noise.add(sums, seed=self._private_seed, step=self.iterations)
            divisor = self._expected_batch_size
            if divisor is None:
                divisor = self.num_microbatches * num_replicas
            return [(g / float(divisor), v) for g, v in zip(noisy, variables)]

        def get_config(self):
            """Returns the config with the DP arguments, and without any seed."""
            return {**super().get_config(), **self._dp_config}

    VectorizedDPOptimizer.__name__ = VectorizedDPOptimizer.__qualname__ = 'VectorizedDP' + cls.__name__
    return VectorizedDPOptimizer


def count_replicas() -> int:
    """Returns how many replicas compute a private step together, 1 without a strategy.

    Raises:
      RuntimeError: under a strategy whose replicas were not shown to add their noise once, or outside of a replica.
    """
    strategy = tf.distribute.get_strategy()
    # The default strategy has no class of its own in the interface.
    if isinstance(strategy, tf.distribute.OneDeviceStrategy) or not tf.distribute.has_strategy():
        return 1
    if not isinstance(strategy, tf.distribute.MirroredStrategy):
        name = type(strategy).__name__
        raise RuntimeError(f'{_STRATEGY_NAMES.get(name, name)} is not supported by the VectorizedDP optimizers: its '
                           'noise was not shown to be added once. Use MirroredStrategy, or bin/train.')
    if tf.distribute.in_cross_replica_context():
        raise RuntimeError('a private step under MirroredStrategy is taken by each replica: call it by strategy.run.')
    return strategy.num_replicas_in_sync


VectorizedDPAdam = make_vectorized_dp_optimizer_class(tf.keras.optimizers.Adam)
VectorizedDPSGD = make_vectorized_dp_optimizer_class(tf.keras.optimizers.SGD)


class DpModel(tf.keras.Model):
    """A Keras model whose `fit` maps a tape over units instead of taking a Jacobian.

    Compile it with a `VectorizedDP...` optimizer and a loss with `reduction='none'`. Losses added by layers
    (`add_loss`) couple examples and are refused.
    """

    @classmethod
    def sequential(cls, layers) -> 'DpModel':
        """Returns a DpModel of layers applied in order, the first of which names its input shape."""
        stack = tf.keras.Sequential(layers)
        return cls(stack.inputs, stack.outputs)

    def train_step(self, data):
        """One private update on a batch of (x, y) or (x, y, sample_weight)."""
        x, y, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(data)
        if self.losses:
            raise ValueError(
                'losses added by layers (add_loss, regularizers) are not attributed to a unit; remove them.')
        num_replicas = count_replicas()
        num_rows = tf.shape(tf.nest.flatten(x)[0])[0]
        num_units = self.optimizer.num_microbatches or num_rows

        def by_unit(t):
            return tf.reshape(t, tf.concat([[num_units, -1], tf.shape(t)[1:]], axis=0))

        def unit_loss(unit):
            unit_x, unit_y, unit_weight = unit
            losses = self.compute_loss(unit_x, unit_y, self(unit_x, training=True), unit_weight)
            if num_replicas > 1 and losses.shape.rank == 0:
                raise ValueError("Keras divides the loss by the number of replicas unless its reduction is 'none': "
                                 "compile with a loss whose reduction is 'none'.")
            return tf.reduce_mean(losses)

        batch = tf.nest.map_structure(by_unit, (x, y, tf.ones([num_rows]) if sample_weight is None else sample_weight))
        self.optimizer.minimize_units(unit_loss, batch, self.trainable_variables)
        return self.compute_metrics(x, y, self(x, training=False), sample_weight)
