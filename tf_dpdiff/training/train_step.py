"""One step of training: Algorithm 1 of Abadi et al. (2016, arXiv:1607.00133), and its public counterpart."""

from typing import Callable, Sequence

import tensorflow as tf

from tf_dpdiff.networks import ema
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import memory
from tf_dpdiff.training import views as views_lib


def make_private_step(model: tf.keras.Model, average: tf.keras.Model, variables: Sequence[tf.Variable],
                      optimizer: tf.keras.optimizers.Optimizer, plan: plan_lib.DpSgdPlan,
                      view_sampler: views_lib.ViewSampler, private_seed: seeds.PrivateSeed, *, images_per_unit: int,
                      max_ema_decay: float, chunk_sizes: memory.ChunkSizes) -> Callable:
    """Returns the compiled private step.

    Args:
      model: The network being trained.
      average: A network of the same shape that holds the moving average of its weights.
      variables: Those of the model's variables that are trained.
      optimizer: Any tf.keras optimizer; built on `variables`.
      plan: The privacy plan.
      view_sampler: Draws the K views of a unit.
      private_seed: The run's secret.
      images_per_unit: V, how many images of a unit its views look at: K where units own several, else 1.
      max_ema_decay: Upper end of the moving average's decay.
      chunk_sizes: How many units and views are held in memory at a time.

    Returns:
      A function of images_uint8 [padded, V, height, width, channels], labels int32 [padded, V] (see
      `pipelines.gather_units`), units int64 [padded] (-1: padding) and step int64, which updates model, average and
      optimizer, and returns diagnostics: private, not to be released.
    """
    image_shape = model.inputs[0].shape[1:].as_list()
    unit_loss = views_lib.unit_loss_fn(model)
    view_seed = tf.constant(private_seed.derive('views'), tf.int64)
    optimizer.build(variables)

    @tf.function(autograph=False,
                 input_signature=[
                     tf.TensorSpec([None, images_per_unit, *image_shape], tf.uint8),
                     tf.TensorSpec([None, images_per_unit], tf.int32),
                     tf.TensorSpec([None], tf.int64),
                     tf.TensorSpec([], tf.int64)
                 ])
    def private_step(images_uint8, labels, units, step):

        def draw_views(chunk):
            return view_sampler.draw_for_units(*chunk, seed=view_seed, step=step)

        # Compute and clip the gradient of each unit, and add up.
        clipped = plan.clipper.clipped_sum(unit_loss,
                                           variables, (images_uint8, labels, units),
                                           units < 0,
                                           units_per_chunk=chunk_sizes.units,
                                           views_per_chunk=chunk_sizes.views,
                                           prepare_fn=draw_views)
        # Add noise, once.
        noisy_sums = plan.noise.add(clipped.sums, seed=private_seed, step=step)
        # Descend. The divisor is the expected batch size, which is public.
        gradients = [s / plan.config.expected_batch_size for s in noisy_sums]
        optimizer.apply_gradients(zip(gradients, variables))
        ema.update_ema(average.variables, model.variables, ema.ema_decay(max_ema_decay, step))
        return clipped.diagnostics

    return private_step


def make_public_step(model: tf.keras.Model, average: tf.keras.Model, optimizer: tf.keras.optimizers.Optimizer,
                     view_sampler: views_lib.ViewSampler, *, max_ema_decay: float, num_chunks: int,
                     seed: int) -> Callable:
    """Returns the compiled step of plain training, for public images and for what is computed from noisy releases.

    Args:
      model: The network being trained.
      average: A network of the same shape that holds the moving average of its weights.
      optimizer: Any tf.keras optimizer; built on all trainable variables.
      view_sampler: Draws the views.
      max_ema_decay: Upper end of the moving average's decay; 0: the average is the weights themselves.
      num_chunks: In how many equal parts a batch is worked through, to save memory; divides the batch size.
      seed: Public.

    Returns:
      A function of images_uint8 [batch, height, width, channels], labels int32 [batch] and step int64 that updates
      model, average and optimizer, and returns the loss, float32.
    """
    image_shape = model.inputs[0].shape[1:].as_list()
    unit_loss = views_lib.unit_loss_fn(model)
    variables = model.trainable_variables
    optimizer.build(variables)

    def loss_and_gradients(views):
        with tf.GradientTape() as tape:
            loss = unit_loss(views)
        return loss, tape.gradient(loss, variables)

    @tf.function(autograph=False,
                 input_signature=[
                     tf.TensorSpec([None, *image_shape], tf.uint8),
                     tf.TensorSpec([None], tf.int32),
                     tf.TensorSpec([], tf.int64)
                 ])
    def public_step(images_uint8, labels, step):
        views = view_sampler.draw_for_public(images_uint8, labels, seed=tf.constant(seed, tf.int64), step=step)
        views = tf.nest.map_structure(lambda x: tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], axis=0)), views)
        loss, gradients = _mean_over_chunks(loss_and_gradients, views, num_chunks)
        optimizer.apply_gradients(zip(gradients, variables))
        ema.update_ema(average.variables, model.variables, ema.ema_decay(max_ema_decay, step))
        return loss

    return public_step


def _mean_over_chunks(function: Callable, views: views_lib.Views, num_chunks: int):
    """Returns the mean of function(views) over equal chunks of the views, one chunk in memory at a time."""
    if num_chunks == 1:
        return function(views)
    chunks = tf.nest.map_structure(
        lambda x: tf.reshape(x, tf.concat([[num_chunks, -1], tf.shape(x)[1:]], axis=0)), views)

    def add_chunk(index, total):
        part = function(tf.nest.map_structure(lambda x: x[index], chunks))
        return index + 1, tf.nest.map_structure(lambda t, p: t + p / num_chunks, total, part)

    first = tf.nest.map_structure(lambda p: p / num_chunks, function(tf.nest.map_structure(lambda x: x[0], chunks)))
    return tf.while_loop(lambda index, _: index < num_chunks, add_chunk, (1, first), parallel_iterations=1)[1]
