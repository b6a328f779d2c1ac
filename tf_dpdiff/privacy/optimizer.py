"""Vectorized DP-Keras optimizers: clipping and noise behind the keras optimizer interface.

The interface is TensorFlow Privacy's `make_vectorized_keras_optimizer_class`; what differs is listed in the docstring
of `make_vectorized_dp_optimizer_class`.
"""

from collections.abc import Callable, Hashable, Sequence
import functools
from typing import Any
import weakref

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.privacy import clipping
from tf_dpdiff.privacy import model_check
from tf_dpdiff.privacy import noise as noise_lib
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import seeds

# Other names of the classes of tf.distribute than those by which users know them.
_STRATEGY_NAMES = {
    'CollectiveAllReduceStrategy': 'MultiWorkerMirroredStrategy',
    'ParameterServerStrategyV2': 'ParameterServerStrategy',
    'TPUStrategyV2': 'TPUStrategy',
}


class NotPrivateError(RuntimeError, AssertionError):
    """Gradients that were not made private are not applied. (TensorFlow Privacy raises an AssertionError there.)"""

    __init__ = Exception.__init__  # AutoGraph then raises the same kind of error out of a tf.function.


def make_vectorized_dp_optimizer_class(cls: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """Returns a DP-SGD subclass of a Keras optimizer class (the current ones, not `legacy`).

    Arguments of the returned class: `l2_norm_clip`, `noise_multiplier`, `num_microbatches`, `expected_batch_size`,
    `units_per_chunk`, then those of `cls`. As in TensorFlow Privacy, a batch is laid out as `num_microbatches` units of
    equally many consecutive views, each unit's losses are averaged, its gradient is clipped, and the noisy sum is
    divided; at noise 0 both give the same gradients. Different on purpose:

    - The divisor is `expected_batch_size`, a public number (default: `num_microbatches`; one of them must be given),
      and never the size of the batch at hand. Without `num_microbatches` each row of a batch is a unit.
    - Under `tf.distribute.MirroredStrategy` a step is that of one device with the batches of all replicas together: the
      clipped sums are added over replicas, noise is added once, and every replica makes the same update. There
      `num_microbatches` counts the units of ONE replica's batch (Keras gives each its part of the global batch), and
      the default divisor is `num_microbatches` times the number of replicas. `expected_batch_size` is that of the
      global batch and is taken as it is. Other strategies but `OneDeviceStrategy` are refused: several processes would
      each draw noise of their own, and drift apart. `bin/train` runs on several machines.
    - A unit with a gradient that is not finite contributes zero.
    - Noise has a secret seed from the operating system, and every draw a number of its own from a counter that only
      grows: whatever is accumulated, frozen, recompiled, restored or set back in between, no draw serves two sums. An
      optimizer is not copied or pickled, since the copy would draw the same noise.
    - `apply_gradients` takes what `compute_gradients` and `compute_unit_gradients` returned, and nothing else. Who adds
      up or averages several of these says so by `declare_private`.
    - Layers with running statistics or statistics of the batch (BatchNormalization) are refused, and so is
      `mixed_float16`, whose loss scaling would move the clipping norm; `mixed_bfloat16` needs none.
    - `minimize_units` maps a GradientTape over units, a chunk at a time, instead of taking a Jacobian: about ten times
      faster on convolutional networks, with memory chunk x parameters. `DpModel` makes `model.fit` use it. A plain
      `keras.Model` also works in `compile` and `fit` (loss with `reduction='none'`), by the Jacobian of the losses
      that Keras hands over, in memory batch x parameters. There the loss of a view must not depend on other views: that
      is checked for the Keras models that hold the variables as far as `model_check` can see into them, and a loss
      that couples examples is not seen.

    Guarantee: with units Poisson-sampled at probability expected_batch_size / N, each `minimize` is a Poisson-sampled
      Gaussian mechanism with the given noise multiplier, for replacing one unit with a null record (see `relations`),
      on any number of replicas: a unit is in the batch of one of them, and the variance of the noise is that of one
      draw. Whether the batches are so sampled is the caller's part: `fit` on a shuffled data set has no such guarantee.

    Example:
        >>> optimizer = VectorizedDPAdam(l2_norm_clip=1.0, noise_multiplier=1.1, num_microbatches=32)
        >>> model = DpModel.sequential([keras.layers.Dense(1, input_shape=(4,))])
        >>> model.compile(optimizer=optimizer, loss=keras.losses.MeanSquaredError(reduction='none'))
        >>> history = model.fit(tf.ones([64, 4]), tf.ones([64, 1]), batch_size=32, verbose=0)
    """

    documentation = {'__doc__': 'DP-SGD subclass; see `make_vectorized_dp_optimizer_class`.'}
    return type('VectorizedDP' + cls.__name__, (_PrivateOptimizer, cls), documentation)


# What this has from Keras comes from the class beside it.
_Optimizer: Any = object


class _PrivateOptimizer(_Optimizer):
    """The part of a DP optimizer class that it does not have from Keras.

    In the order of a step: losses or units -> clipped sums -> noise -> gradients that are remembered as private -> the
    update, which takes no others.
    """

    def __init__(
        self,
        l2_norm_clip: float,
        noise_multiplier: float,
        num_microbatches: int | None = None,
        *args,
        expected_batch_size: float | None = None,
        units_per_chunk: int = 16,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        _check_divisors(num_microbatches, expected_batch_size)
        self._dp_config = dict(
            l2_norm_clip=l2_norm_clip,
            noise_multiplier=noise_multiplier,
            num_microbatches=num_microbatches,
            expected_batch_size=expected_batch_size,
            units_per_chunk=units_per_chunk,
        )
        self.num_microbatches = num_microbatches
        self._expected_batch_size = expected_batch_size
        self._units_per_chunk = units_per_chunk
        self._clipper = clipping.PerUnitClipper(l2_norm_clip)
        divisor = expected_batch_size or num_microbatches
        assert divisor is not None  # `_check_divisors` has seen that one of them is given.
        noise_lib.check_is_not_lost(noise_multiplier, divisor)
        sensitivity = self._clipper.sensitivity(relations.REPLACE_WITH_ZERO)
        self._noise = noise_lib.GaussianNoise(noise_multiplier * sensitivity if noise_multiplier else 0.0)
        self._private_seed = seeds.PrivateSeed.from_os_entropy()
        # The number of the next draw is the larger of the two. The first one is part of every checkpoint; the second
        # one is not, so that a checkpoint that is restored in the same process cannot set it back.
        self._num_draws, least_draw = _make_counter('num_draws'), _make_counter('least_draw')
        object.__setattr__(self, '_least_draw', least_draw)  # Not tracked.
        self._variables.append(self._num_draws)
        # Gradients, by their id.
        self._made_private: weakref.WeakValueDictionary[int, tf.Tensor] = weakref.WeakValueDictionary()
        self._checked: set[Hashable] = set()  # References of the variables whose models were checked.

    def split_into_units(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns rows [units * views, ...] as [units, views, ...].

        Raises:
          ValueError: if their number is no multiple of num_microbatches. Where it is known at run time alone:
            tf.errors.InvalidArgumentError.
        """
        num_rows, num_units = rows.shape[0], self.num_microbatches
        if num_units is None:
            return rows[:, None]
        message = (
            f'a batch is no multiple of num_microbatches={num_units}: leave the last, smaller batch of an epoch '
            'out (drop_remainder=True), or give expected_batch_size in place of num_microbatches, and each row '
            'is a unit.'
        )
        if num_rows is not None and num_rows % num_units:
            raise ValueError(f'{num_rows} rows in {message}')
        is_whole = tf.debugging.assert_equal(tf.shape(rows)[0] % num_units, 0, message=message)
        with tf.control_dependencies([is_whole] if is_whole is not None else []):
            return tf.reshape(rows, tf.concat([[num_units, -1], tf.shape(rows)[1:]], axis=0))

    def compute_gradients(self, loss, var_list, tape=None):
        """Returns noisy (gradient, variable) pairs from a vector of losses; see the class factory.

        Args:
          loss: float [units * views], or a callable that returns it.
          var_list: Variables, or a callable that returns them.
          tape: The tape that recorded `loss`; not needed with a callable.

        Raises:
          RuntimeError: under a strategy that is not supported; names it.
          ValueError: if the losses are no vector of whole units. Where their number is known at run time alone:
            tf.errors.InvalidArgumentError.
          model_check.ModelCheckError: if a layer mixes the examples of a batch or keeps statistics of them.
        """
        num_replicas = count_replicas()
        if not callable(loss) and tape is None:
            raise ValueError('`tape` is required when a `Tensor` loss is passed.')
        if callable(loss):
            model_check.check_keeps_no_state(loss)
        tape = tape or tf.GradientTape()
        with tape:
            losses = tf.convert_to_tensor(loss() if callable(loss) else loss)
            if losses.shape.rank == 0:
                raise ValueError(
                    "the loss must be a vector with one entry a view; compile with a loss whose reduction is 'none'."
                )
            unit_losses = tf.reduce_mean(self.split_into_units(losses), axis=1)
        variables = tf.nest.flatten(var_list() if callable(var_list) else var_list)
        self._check_models(variables, num_replicas)
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
          model_check.ModelCheckError: if loss_fn keeps statistics of the unit.
        """
        count_replicas()  # Refuses strategies before anything is traced.
        batch = tf.nest.map_structure(tf.convert_to_tensor, batch)
        model_check.check_keeps_no_state(loss_fn, _spec_of_unit(batch))
        return self._compute_unit_gradients(loss_fn, batch, var_list, is_padding)

    def _compute_unit_gradients(self, loss_fn, batch, var_list, is_padding=None):
        """Does the same as `compute_unit_gradients`, without the check of loss_fn."""
        num_replicas = count_replicas()
        if is_padding is None:
            is_padding = tf.zeros([tf.shape(tf.nest.flatten(batch)[0])[0]], tf.bool)
        clipped = self._clipper.clipped_sum(loss_fn, var_list, batch, is_padding, units_per_chunk=self._units_per_chunk)
        return self._privatize(clipped.sums, var_list, num_replicas)

    @tf.autograph.experimental.do_not_convert
    def _check_models(self, variables, num_replicas) -> None:
        """Checks, once, the models that hold the variables: of a loss, Keras hands over the tensor alone."""
        references = {variable.ref() for variable in variables}
        if not references <= self._checked:
            model_check.check_models_with(variables, runs_them=num_replicas == 1)
            self._checked |= references

    def _privatize(self, sums, variables, num_replicas):
        """Returns the (gradient, variable) pairs of clipped sums: reduced over replicas, with noise, divided."""
        if num_replicas > 1:
            if not isinstance(self._num_draws, tf.distribute.DistributedValues):
                raise RuntimeError(
                    f'make {type(self).__name__} in the scope of the strategy: its counter of draws must be '
                    'the same on all replicas.'
                )
            sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
        divisor = self._expected_batch_size
        if divisor is None:
            divisor = self.num_microbatches * num_replicas
        gradients = self.declare_private([gradient / float(divisor) for gradient in self._add_noise(sums)])
        return list(zip(gradients, variables))

    def _add_noise(self, sums):
        """Returns sums with noise whose draws have numbers of their own; counts them."""
        # Replicas share the seed and the counter, so all of them add the same noise to the same sum.
        first_draw = tf.maximum(self._num_draws.read_value(), self._least_draw.read_value())
        noisy = self._noise.add_at(sums, seed=self._private_seed, first_draw=first_draw)
        for counter in (self._num_draws, self._least_draw):
            counter.assign(first_draw + len(sums))
        return noisy

    def minimize_units(self, loss_fn: Callable[[Any], tf.Tensor], batch: Any, var_list, is_padding=None):
        """Applies one noisy update computed by `compute_unit_gradients`."""
        pairs = self.compute_unit_gradients(loss_fn, batch, var_list, is_padding)
        return self.apply_gradients(pairs, skip_gradients_aggregation=True)

    def minimize(self, loss, var_list, tape=None):
        """Applies one noisy update computed by `compute_gradients`."""
        self.apply_gradients(self.compute_gradients(loss, var_list, tape), skip_gradients_aggregation=True)

    @tf.autograph.experimental.do_not_convert
    def apply_gradients(self, grads_and_vars, *args, **kwargs):
        """Applies gradients that this optimizer has made private; arguments as in Keras.

        Raises:
          NotPrivateError: for any others, eagerly and in a graph.
        """
        pairs = list(grads_and_vars) if self._made_private else None
        if pairs is None or not all(self._is_private(gradient) for gradient, _ in pairs):
            raise NotPrivateError(
                f'{type(self).__name__}.apply_gradients was given gradients that it has not made private: the model '
                'would be trained without differential privacy. Apply what compute_gradients or compute_unit_gradients '
                'of this optimizer returned, call minimize or minimize_units, or pass sums and averages of such '
                'gradients through declare_private.'
            )
        return super().apply_gradients(pairs, *args, **kwargs)

    def declare_private(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Declares that gradients were computed from private ones alone, and returns them to be applied.

        Use it for what this optimizer can't see: gradients of several calls that were added up or averaged, or that
        went through a compiled function. What has seen the data in any other way must not pass through it.

        Args:
          gradients: Tensors.
        """
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        self._made_private.update({id(gradient): gradient for gradient in gradients})
        return gradients

    def aggregate_gradients(self, grads_and_vars):
        """Refuses to add up gradients over replicas, which would multiply ours by the number of replicas.

        Raises:
          RuntimeError: if there are several replicas.
        """
        if count_replicas() > 1:
            raise RuntimeError(
                f'{type(self).__name__}.apply_gradients would add up over replicas what compute_gradients and '
                'compute_unit_gradients have added up already: call it with skip_gradients_aggregation=True, or '
                'call minimize or minimize_units.'
            )
        return grads_and_vars

    def _is_private(self, gradient) -> bool:
        return gradient is not None and self._made_private.get(id(gradient)) is gradient

    @property
    def _is_wrapped_by_loss_scale_optimizer(self) -> bool:
        """A flag that Keras's LossScaleOptimizer sets on the optimizer inside it."""
        return False

    @_is_wrapped_by_loss_scale_optimizer.setter
    def _is_wrapped_by_loss_scale_optimizer(self, value):
        del value
        raise ValueError(
            'mixed_float16 (a LossScaleOptimizer) scales the loss before the gradients are clipped, so that '
            "l2_norm_clip means another norm in each step: use the policy 'mixed_bfloat16', which needs no "
            'loss scaling.'
        )

    def get_config(self):
        """Returns the config with the DP arguments, and without any seed."""
        return {**super().get_config(), **self._dp_config}

    def __reduce__(self):
        raise TypeError(
            f'{type(self).__name__} is neither copied nor pickled, since the copy would draw the same noise: '
            'make another one by from_config(optimizer.get_config()).'
        )


def _check_divisors(num_microbatches: int | None, expected_batch_size: float | None) -> None:
    """Refuses arguments by which the noisy sum would be divided by a number that is not public, or is none."""
    if num_microbatches is None and expected_batch_size is None:
        raise ValueError(
            'give num_microbatches or expected_batch_size: the noisy sum must be divided by a public '
            'number, not by the size of the batch at hand.'
        )
    for name, value in (('num_microbatches', num_microbatches), ('expected_batch_size', expected_batch_size)):
        if value is not None and not 0 < value < float('inf'):
            raise ValueError(f'{name} must be finite and > 0, got {value}.')


def _make_counter(name: str) -> tf.Variable:
    """Returns a counter that is the same on all replicas."""
    with tf.init_scope():
        return tf.Variable(
            0, trainable=False, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, name=name
        )


def _spec_of_unit(batch):
    """Returns the tf.TensorSpecs of an element of nested tensors [units, ...]."""
    return tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), batch)


def count_replicas() -> int:
    """Returns the number of replicas that compute a private step together, 1 without a strategy.

    Raises:
      RuntimeError: under a strategy whose replicas were not shown to add their noise once, or outside of a replica.
    """
    strategy = tf.distribute.get_strategy()
    # The default strategy has no class of its own in the interface.
    if isinstance(strategy, tf.distribute.OneDeviceStrategy) or not tf.distribute.has_strategy():
        return 1
    if not isinstance(strategy, tf.distribute.MirroredStrategy):
        name = type(strategy).__name__
        raise RuntimeError(
            f'{_STRATEGY_NAMES.get(name, name)} is not supported by the VectorizedDP optimizers: its '
            'noise was not shown to be added once. Use MirroredStrategy, or bin/train.'
        )
    if tf.distribute.in_cross_replica_context():
        raise RuntimeError('a private step under MirroredStrategy is taken by each replica: call it by strategy.run.')
    return strategy.num_replicas_in_sync


VectorizedDPAdam = make_vectorized_dp_optimizer_class(keras.optimizers.Adam)
VectorizedDPSGD = make_vectorized_dp_optimizer_class(keras.optimizers.SGD)


class DpModel(keras.Model):
    """A Keras model whose `fit` maps a tape over units instead of taking a Jacobian.

    Compile it with a `VectorizedDP...` optimizer and a loss with `reduction='none'`. Losses added by layers
    (`add_loss`) couple examples and are refused, and so are layers with running statistics.
    """

    @classmethod
    def sequential(cls, layers) -> 'DpModel':
        """Returns a DpModel of layers applied in order, the first of which names its input shape."""
        stack = keras.Sequential(layers)
        return cls(stack.inputs, stack.outputs)

    def train_step(self, data):
        """One private update on a batch of (x, y) or (x, y, sample_weight)."""
        if not isinstance(self.optimizer, _PrivateOptimizer):
            raise ValueError(
                f'a DpModel trains by a VectorizedDP optimizer, got {type(self.optimizer).__name__}: '
                'compile it with VectorizedDPAdam, say.'
            )
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self.losses:
            raise ValueError(
                'losses added by layers (add_loss, regularizers) are not attributed to a unit; remove them.'
            )
        num_replicas = count_replicas()

        def unit_loss(unit):
            unit_x, unit_y, unit_weight = unit
            losses = self.compute_loss(unit_x, unit_y, self(unit_x, training=True), unit_weight)
            if num_replicas > 1 and losses.shape.rank == 0:
                raise ValueError(
                    "Keras divides the loss by the number of replicas unless its reduction is 'none': "
                    "compile with a loss whose reduction is 'none'."
                )
            return tf.reduce_mean(losses)

        num_rows = tf.shape(tf.nest.flatten(x)[0])[0]
        batch = tf.nest.map_structure(
            self.optimizer.split_into_units, (x, y, tf.ones([num_rows]) if sample_weight is None else sample_weight)
        )
        # Not of unit_loss: Keras counts the loss itself in a metric.
        in_training = functools.partial(self, training=True)  # type: ignore[misc]  # Keras models can be called.
        model_check.check_keeps_no_state(in_training, _spec_of_unit(batch[0]))
        pairs = self.optimizer._compute_unit_gradients(unit_loss, batch, self.trainable_variables)
        self.optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)
        return self.compute_metrics(x, y, self(x, training=False), sample_weight)
