"""One step of training: Algorithm 1 of Abadi et al. (2016, arXiv:1607.00133), and its public counterpart."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.data import pipelines
from tf_dpdiff.networks import ema
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import sampling
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import memory
from tf_dpdiff.training import strategies
from tf_dpdiff.training import views as views_lib


def make_private_step(
    model: keras.Model,
    average: keras.Model,
    variables: Sequence[tf.Variable],
    optimizer: keras.optimizers.Optimizer,
    plan: plan_lib.DpSgdPlan,
    view_maker: views_lib.ViewMaker,
    private: datasets.ImageDataset,
    state: checkpoints.RunState,
    *,
    max_ema_decay: float,
    chunk_sizes: memory.ChunkSizes,
    padded_to: int,
    replicas: strategies.Replicas = strategies.ONE,
) -> Callable[[int], dict[str, tf.Tensor]]:
    """Returns a function that makes one step of Algorithm 1, from the private images to new weights.

    Args:
      model: The network being trained.
      average: A network of the same shape that holds the moving average of its weights.
      variables: The variables of the model that are trained.
      optimizer: Any keras optimizer; built on `variables`.
      plan: The privacy plan.
      view_maker: Draws the K views of a unit.
      private: The private images.
      state: Holds the secret of the run, and the ledger that each step is recorded in.
      max_ema_decay: Upper end of the moving average's decay.
      chunk_sizes: How many units and views are held in memory at a time.
      padded_to: The size of a replica's batch is a multiple of this.
      replicas: What computes the step; the networks and the optimizer were made in their scope.

    Returns:
      A function of the step's number, counted from 0. It updates model, average, optimizer and ledger, and returns
      diagnostics: private, not to be released.
    """
    num_views = view_maker.num_views
    assert state.private_seed is not None  # Private images are there.
    sampling_seed, owner_seed = (state.private_seed.derive(purpose) for purpose in ('sampling', 'images_of_owners'))
    clip_and_descend = compile_private_step(
        model,
        average,
        variables,
        optimizer,
        plan,
        view_maker,
        state.private_seed,
        images_per_unit=1 if private.owners is None else num_views,
        max_ema_decay=max_ema_decay,
        chunk_sizes=chunk_sizes,
        replicas=replicas,
    )

    def private_step(step: int) -> dict[str, tf.Tensor]:
        # Record the step: this refuses to pass the plan before anything is computed.
        ledger = plan.record_step(state.ledger)
        # Sample units, each replica those of its own shard, or of its part of a truncated batch.
        sampled = [
            plan.sampler.sample(
                plan.num_units, seed=sampling_seed, step=step, replica=replica, num_replicas=replicas.count
            )
            for replica in replicas.local
        ]
        sampled = sampling.pad_batches(sampled, padded_to, equally=replicas.is_compiled)
        batches = [
            pipelines.gather_units(private, units, num_views=num_views, seed=owner_seed, step=step) for units in sampled
        ]
        # Clip, add noise and descend: `replica_step` below.
        diagnostics = clip_and_descend(batches, tf.constant(step, tf.int64))
        state.ledger = ledger
        return diagnostics

    return private_step


def compile_private_step(
    model: keras.Model,
    average: keras.Model,
    variables: Sequence[tf.Variable],
    optimizer: keras.optimizers.Optimizer,
    plan: plan_lib.DpSgdPlan,
    view_maker: views_lib.ViewMaker,
    private_seed: seeds.PrivateSeed,
    *,
    images_per_unit: int,
    max_ema_decay: float,
    chunk_sizes: memory.ChunkSizes,
    replicas: strategies.Replicas = strategies.ONE,
) -> Callable:
    """Returns the compiled part of a private step, from the sampled units on.

    Args, besides those of `make_private_step`:
      private_seed: The run's secret.
      images_per_unit: V, how many images of a unit its views look at: K where units own several, else 1.

    Returns:
      A function of a list of batches, one a local replica, each of images_uint8 [padded, V, height, width, channels],
      labels int32 [padded, V] (see `pipelines.gather_units`) and units int64 [padded] (-1: padding), and of step int64,
      which updates model, average and optimizer, and returns diagnostics: private, not to be released.
    """
    image_shape = model.inputs[0].shape[1:].as_list()
    unit_loss = view_maker.unit_loss_fn(model)
    view_seed = tf.constant(private_seed.derive('views'), tf.int64)
    optimizer.build(variables)

    def replica_step(batch, step):
        images_uint8, labels, units = batch

        def draw_views(chunk):
            return view_maker.draw_for_units(*chunk, seed=view_seed, step=step)

        # Compute and clip the gradient of each unit, and add up: here, then over all replicas.
        clipped = plan.clipper.clipped_sum(
            unit_loss,
            variables,
            (images_uint8, labels, units),
            units < 0,
            units_per_chunk=chunk_sizes.units,
            views_per_chunk=chunk_sizes.views,
            prepare_fn=draw_views,
        )
        sums, diagnostics = strategies.sum_over_replicas(tuple(clipped))
        # Add noise, once: every replica adds the same to the same sum.
        noisy_sums = plan.noise.add(sums, seed=private_seed, step=step)
        # Descend. The divisor is the expected batch size, which is public.
        gradients = [s / plan.config.expected_batch_size for s in noisy_sums]
        optimizer.apply_gradients(zip(gradients, variables), skip_gradients_aggregation=True)
        return diagnostics

    batch_spec = (
        tf.TensorSpec([None, images_per_unit, *image_shape], tf.uint8),
        tf.TensorSpec([None, images_per_unit], tf.int32),
        tf.TensorSpec([None], tf.int64),
    )

    return _compile_step(replica_step, batch_spec, replicas, average, model, max_ema_decay)


def compile_public_step(
    model: keras.Model,
    average: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    view_maker: views_lib.ViewMaker,
    *,
    max_ema_decay: float,
    batch_size: int,
    images_per_chunk: int,
    seed: int,
    replicas: strategies.Replicas = strategies.ONE,
) -> Callable:
    """Returns the compiled step of plain training, for public images and for what is computed from noisy releases.

    Args:
      model: The network being trained.
      average: A network of the same shape that holds the moving average of its weights.
      optimizer: Any keras optimizer; built on all trainable variables.
      view_maker: Draws the views.
      max_ema_decay: Upper end of the moving average's decay; 0: the average is the weights themselves.
      batch_size: Images a step, of all replicas together.
      images_per_chunk: Images whose views are held in memory at a time.
      seed: Public.
      replicas: What computes the step; the networks and the optimizer were made in their scope.

    Returns:
      A function of a list of batches, one a local replica, each of images_uint8 [padded, height, width, channels],
      labels int32 [padded] and places int32 [padded] in the batch of all replicas (-1: padding), and of step int64,
      that updates model, average and optimizer, and returns the loss, float32. Padded to whole chunks.
    """
    image_shape = model.inputs[0].shape[1:].as_list()
    view_losses = views_lib.view_losses_fn(model)
    variables = model.trainable_variables
    optimizer.build(variables)

    def loss_and_gradients(views, weights):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weights * view_losses(views))
        return loss, tape.gradient(loss, variables)

    def replica_step(batch, step):
        images_uint8, labels, places = batch
        views = view_maker.draw_for_public(
            images_uint8, labels, places, batch_size=batch_size, seed=tf.constant(seed, tf.int64), step=step
        )
        num_views = views.t.shape[1]
        weights = tf.where(places < 0, 0.0, 1.0 / (batch_size * num_views))
        weights = tf.repeat(weights[:, None], num_views, axis=1)
        zeros = tf.zeros([]), [tf.zeros(variable.shape) for variable in variables]
        loss, gradients = _sum_over_chunks(loss_and_gradients, zeros, (views, weights), images_per_chunk, num_views)
        loss, gradients = strategies.sum_over_replicas((loss, gradients))
        optimizer.apply_gradients(zip(gradients, variables), skip_gradients_aggregation=True)
        return loss

    batch_spec = (
        tf.TensorSpec([None, *image_shape], tf.uint8),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None], tf.int32),
    )

    return _compile_step(replica_step, batch_spec, replicas, average, model, max_ema_decay)


def _compile_step(
    replica_step: Callable, batch_spec, replicas: strategies.Replicas, average, model, max_ema_decay: float
) -> Callable:
    """Returns the compiled function of batches, one a local replica, and step: the replicas' part, then the average."""

    @tf.function(autograph=False, input_signature=[[batch_spec] * len(replicas.local), tf.TensorSpec([], tf.int64)])
    def compiled_step(batches, step):
        result = replicas.run(replica_step, batches, step)
        decay = ema.ema_decay(max_ema_decay, step)
        replicas.update(ema.update_average, average.variables, model.variables, decay)
        return result

    return compiled_step


def _sum_over_chunks(function: Callable, zeros, values, images_per_chunk: int, num_views: int):
    """Returns zeros and function over whole chunks of [images, K, ...] as [views, ...] added up, one in memory at a
    time."""

    def add_chunk(index, total):
        first = index * images_per_chunk
        chunk = tf.nest.map_structure(
            lambda x: tf.reshape(x[first : first + images_per_chunk], [images_per_chunk * num_views, *x.shape[2:]]),
            values,
        )
        return index + 1, tf.nest.map_structure(tf.add, total, function(*chunk))

    num_chunks = tf.shape(tf.nest.flatten(values)[0])[0] // images_per_chunk
    return tf.while_loop(lambda index, _: index < num_chunks, add_chunk, (0, zeros), parallel_iterations=1)[1]
