"""Measures a step in JAX when asked to; a case of dp_step.py, see measuring.py.

plain: training without privacy. private: jax_privacy's clipped_grad, whose examples are units with their K views, and
its Gaussian noise. Physical batches are calls of one compiled function: XLA's convolutions are more than ten times
slower on a CPU inside of a loop (a scan, or the microbatches of clipped_grad).
"""

import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

import jax
import jax.numpy as jnp
import jax_privacy
from jax_privacy import noise_addition
import optax

from benchmarks.peers import jax_unet
from benchmarks.peers import peer_case


class Step:
    """A step: chunks of units are drawn and added up, then the optimizer takes over."""

    def __init__(self, given, units, views, units_per_chunk, noise_multiplier):
        self.units, self.num_views, self.units_per_chunk = units, views, units_per_chunk
        self._config, self._rates = given.config, (given.signal_rates, given.noise_rates)
        self._weights = {name: jnp.asarray(array) for name, array in given.weights.items()}
        self.parameters = sum(array.size for array in given.weights.values())
        images, labels = given.draw_images(units)
        self._chunks = [
            (images[start : start + units_per_chunk], labels[start : start + units_per_chunk])
            for start in range(0, units, units_per_chunk)
        ]
        self._gradient_sum = self.make_gradient_sum(given.l2_norm_clip)
        optimizer = optax.chain(optax.scale(1.0 / units), optax.adam(peer_case.LEARNING_RATE))
        if self.is_private:
            noise = noise_addition.gaussian_privatizer(stddev=noise_multiplier * given.l2_norm_clip, prng_key=0)
            optimizer = optax.chain(noise, optimizer)
        self._state, self._key = optimizer.init(self._weights), jax.random.key(0)

        @functools.partial(jax.jit, donate_argnums=0)
        def add_chunk(total, weights, chunk, key):
            return jax.tree.map(jnp.add, total, self._gradient_sum(weights, self._draw(*chunk, key)))

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def update(weights, state, total):
            updates, state = optimizer.update(total, state, weights)
            return optax.apply_updates(weights, updates), state

        self._add_chunk, self._update = add_chunk, update

    def step(self):
        """Takes a whole step."""
        self._key, *keys = jax.random.split(self._key, len(self._chunks) + 1)
        total = jax.tree.map(jnp.zeros_like, self._weights)
        for chunk, key in zip(self._chunks, keys):
            total = self._add_chunk(total, self._weights, chunk, key)
        self._weights, self._state = self._update(self._weights, self._state, total)
        jax.block_until_ready((self._weights, self._state))

    def _draw(self, images, labels, key):
        """Returns views [units, K, ...] by name."""
        keys = jax.random.split(key)
        shape = len(images), self.num_views
        x_start = (images.astype(jnp.float32) / 127.5 - 1.0)[:, None]
        noise = jax.random.normal(keys[0], (*shape, *images.shape[1:]))
        t = jax.random.randint(keys[1], shape, 0, len(self._rates[0]))
        signal, spread = (jnp.asarray(rates)[t][..., None, None, None] for rates in self._rates)
        return {
            'x_t': signal * x_start + spread * noise,
            't': t,
            'labels': jnp.broadcast_to(labels[:, None], shape),
            'target': signal * noise - spread * x_start,
        }

    def loss(self, weights, views):
        """Returns the mean loss of views [views, ...]."""
        prediction = jax_unet.apply(weights, self._config, views['x_t'], views['t'], views['labels'])
        return jnp.mean(jnp.square(prediction - views['target']))

    def make_gradient_sum(self, l2_norm_clip):
        """Returns the function of weights and views [units, K, ...] to the sum over units of what is trained by."""
        raise NotImplementedError

    def predict(self, x_t, t, labels):
        """Returns the prediction for arrays of views."""
        return jax_unet.apply(self._weights, self._config, x_t, t, labels)

    def gradient(self, views):
        """Returns the sums over views [units, K, ...], arrays by name."""
        views = {name: jnp.asarray(array) for name, array in views.items()}
        total = jax.jit(self._gradient_sum)(self._weights, views)
        return total if self.is_private else jax.tree.map(lambda x: x / self.units, total)


class Plain(Step):
    """Training without privacy."""

    is_private = False

    def make_gradient_sum(self, l2_norm_clip):

        def gradient_sum(weights, views):
            units = len(views['t'])
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), views)
            return jax.grad(lambda weights: units * self.loss(weights, flat))(weights)

        return gradient_sum


class Private(Step):
    """jax_privacy."""

    is_private = True

    def make_gradient_sum(self, l2_norm_clip):
        return jax_privacy.clipped_grad(self.loss, l2_clip_norm=l2_norm_clip, keep_batch_dim=False)


if __name__ == '__main__':
    peer_case.run(__doc__, {'plain': Plain, 'private': Private})
