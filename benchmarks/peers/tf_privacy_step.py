"""Measures a step of TensorFlow Privacy's vectorized optimizer when asked to; a case of dp_step.py, see measuring.py.

It runs in our environment, on our Keras network. The K views of a unit are one of its microbatches; it holds the
gradients of the whole batch.
"""

import importlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

from benchmarks.peers import peer_case


class Vectorized:
    """VectorizedDPKerasAdamOptimizer, in a tf.function."""

    is_private = True

    def __init__(self, given, units, views, units_per_chunk, noise_multiplier):
        del units_per_chunk  # It has none.
        import tensorflow as tf

        importlib.import_module('tf_dpdiff.keras')  # Keras 2, before TensorFlow Privacy asks for one.
        sys.skip_tf_privacy_import = True  # The package, as a whole, no longer works with today's TensorFlow.
        from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized

        from tf_dpdiff.diffusion import process
        from tf_dpdiff.networks import denoiser
        from tf_dpdiff.networks import kinds
        from tf_dpdiff.training import views as views_lib

        tf.get_logger().setLevel('ERROR')
        self._units = units
        network = kinds.from_json(given.config)
        self._model = denoiser.build(network, given.image_shape, 10)
        self.parameters = self._model.count_params()
        for variable in self._model.trainable_variables:
            variable.assign(given.weights[variable.name.split(':')[0]])
        self._optimizer = dp_optimizer_keras_vectorized.VectorizedDPKerasAdamOptimizer(
            l2_norm_clip=given.l2_norm_clip,
            noise_multiplier=noise_multiplier,
            num_microbatches=units,
            learning_rate=peer_case.LEARNING_RATE,
        )
        self._view_losses = views_lib.view_losses_fn(self._model)
        self._views = views_lib.Views
        sampler = views_lib.make_view_maker(process.DiffusionProcess(), views_lib.ViewsConfig(views), network, 10)
        images, labels = map(tf.constant, given.draw_images(units))
        self._steps_taken = tf.Variable(0, dtype=tf.int64)

        @tf.function
        def compiled_step():
            drawn = sampler.draw_for_public(
                images,
                labels,
                tf.range(units),
                batch_size=units,
                seed=tf.constant(0, tf.int64),
                step=self._steps_taken.assign_add(1),
            )
            self._optimizer.apply_gradients(self._compute(drawn))
            return tf.constant(0)

        self._compiled_step, self._compute_compiled = compiled_step, tf.function(self._compute)

    def step(self):
        """Takes a whole step."""
        self._compiled_step().numpy()

    def _compute(self, views):
        """Returns the (gradient, variable) pairs that the optimizer computes from views [units, K, ...]."""
        import tensorflow as tf

        flat = tf.nest.map_structure(lambda x: tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0)), views)
        variables = self._model.trainable_variables
        return self._optimizer._compute_gradients(lambda: self._view_losses(flat), variables)

    def predict(self, x_t, t, labels):
        """Returns the prediction for arrays of views."""
        return self._model([x_t, t, labels]).numpy()

    def gradient(self, views):
        """Returns the sum of clipped gradients of views [units, K, ...], arrays by name: it gives their mean."""
        views = self._views(**views, dropout_seeds=0 * views['t'])
        sums = [gradient.numpy() * self._units for gradient, _ in self._compute_compiled(views)]
        return dict(zip((variable.name.split(':')[0] for variable in self._model.trainable_variables), sums))


if __name__ == '__main__':
    peer_case.run(__doc__, {'vectorized': Vectorized})
