"""The steps in which all networks that classify images are trained.

There is no privacy in them: they are for public images, for samples, and for what stays with the owner of the data.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras


def rows_in_random_order(num_images: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields rows of batches without end, int64 [batch_size]; each image comes once before any comes again."""
    waiting = np.zeros([0], np.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(num_images)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def train(
    model: keras.Model,
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    num_steps: int,
    *,
    learning_rate: float,
    optimizer: str = 'adam',
    weight_decay: float = 0.0,
    logits_of: Callable[[Any], tf.Tensor] = lambda outputs: outputs,
    tells_loss: bool = False,
) -> Iterator[tf.Tensor | None]:
    """Takes one step after the other, each when it is asked for.

    Touches no global random state. On CPUs the same calls give the same weights, bit for bit.

    Args:
      model: From images, uint8 [batch, height, width, channels], to outputs.
      batches: Images, uint8 [batch, height, width, channels], and labels, int [batch]; one is drawn for each step.
      num_steps: Steps.
      learning_rate: The first one; it falls to 0 along half a cosine.
      optimizer: 'adam', or 'sgd' with Nesterov momentum of 0.9.
      weight_decay: Times half the squared norm of all kernels, added to the loss.
      logits_of: Maps the outputs to logits, float32 [batch, classes].
      tells_loss: Whether the losses are asked for. Where they are, TensorFlow joins other operations to one, and the
        weights differ in their last bits.

    Yields:
      The loss of a step, a float32 scalar, if it is asked for.
    """
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
    updates = (
        keras.optimizers.Adam(schedule)
        if optimizer == 'adam'
        else keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
    )
    updates.build(model.trainable_variables)
    kernels = [variable for variable in model.trainable_variables if variable.shape.rank > 1]

    @tf.function(
        input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8), tf.TensorSpec([None], tf.int32)]
    )
    def step(images, labels):
        with tf.GradientTape() as tape:
            logits = logits_of(model(images, training=True))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
            if weight_decay:
                loss += weight_decay * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])
        updates.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss if tells_loss else None

    for _ in range(num_steps):
        images, labels = next(batches)
        yield step(tf.constant(images), tf.constant(labels, tf.int32))
