"""Per-unit gradients -> clipped sum."""

import dataclasses
from typing import Any, Callable, List, NamedTuple, Sequence

import tensorflow as tf

# Clipping aims this far below the norm, since the norm itself is a float32 sum of squares with a relative error of a
# few 1e-7 times the depth of the summation tree. It costs nothing and makes the bound strict.
_ROUNDING_MARGIN = 1e-5

RELATIONS = ('add_or_remove_one', 'replace_one', 'replace_with_zero')


class ClippedSum(NamedTuple):
    """What `PerUnitClipper.clipped_sum` returns.

    Attributes:
      sums: float32 tensors, one a variable: the sum of the clipped per-unit gradients, of known sensitivity.
      diagnostics: float32 scalars computed from private data WITHOUT noise (num_units, num_nonfinite, num_clipped,
        loss_sum, norm_sum); never to be released.
    """
    sums: List[tf.Tensor]
    diagnostics: dict


@dataclasses.dataclass(frozen=True)
class PerUnitClipper:
    """Clips the gradient of each unit to an L2 norm, over all variables together, and adds up.

    Guarantee: adding or removing one unit changes `sums` by at most `l2_norm_clip` in L2 norm, whatever its pixels are.
      A unit whose gradient is not finite contributes zero and changes no other unit's contribution. Padding contributes
      zero. An empty batch gives zero.

    Attributes:
      l2_norm_clip: The bound C, > 0. Infinity switches clipping off (and the sensitivity is then infinite).

    References: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1, "Clip gradient"; De et al. 2022, arXiv:2204.13650,
      section 3.2, for averaging a unit's augmentations before clipping.
    """
    l2_norm_clip: float

    def __post_init__(self):
        if not self.l2_norm_clip > 0.0:
            raise ValueError(f'l2_norm_clip must be > 0, got {self.l2_norm_clip}.')

    def sensitivity(self, neighboring_relation: str) -> float:
        """Returns how much `sums` can change between neighbouring data sets, in L2 norm.

        Args:
          neighboring_relation: 'add_or_remove_one' or 'replace_with_zero' (C), or 'replace_one' (2 C).

        Raises:
          ValueError: for another relation.
        """
        if neighboring_relation not in RELATIONS:
            raise ValueError(f'neighboring_relation must be one of {RELATIONS}, got {neighboring_relation!r}.')
        return self.l2_norm_clip * (2.0 if neighboring_relation == 'replace_one' else 1.0)

    def clip_and_sum(self, gradients: Sequence[tf.Tensor], is_padding: tf.Tensor):
        """Clips the gradient of each unit of a chunk and adds up.

        Args:
          gradients: One tensor a variable, [units, ...] of any float dtype.
          is_padding: bool [units].

        Returns:
          The sums (float32, the variables' shapes), the norms before clipping (float32 [units]), and which units count
          (bool [units]: they are not padding and their gradient is finite).
        """
        # The norm is taken in float32 even where the network computes in bfloat16.
        gradients = [tf.cast(g, tf.float32) for g in gradients]
        squares = [tf.reduce_sum(tf.square(g), axis=list(range(1, g.shape.rank))) for g in gradients]
        norms = tf.sqrt(tf.add_n(squares))
        keep = tf.logical_and(tf.math.is_finite(norms), tf.logical_not(is_padding))
        bound = self.l2_norm_clip * (1.0 - _ROUNDING_MARGIN)
        scale = tf.where(keep, tf.where(norms > bound, bound / norms, 1.0), 0.0)
        sums = []
        for g in gradients:
            # What does not count is selected away first: zero times NaN is NaN.
            kept = tf.where(tf.reshape(keep, [-1] + [1] * (g.shape.rank - 1)), g, tf.zeros_like(g))
            sums.append(tf.tensordot(scale, kept, axes=1))
        return sums, norms, keep

    def clipped_sum(self,
                    loss_fn: Callable[[Any], tf.Tensor],
                    variables: Sequence[tf.Variable],
                    batch: Any,
                    is_padding: tf.Tensor,
                    *,
                    units_per_chunk: int,
                    prepare_fn: Callable[[Any], Any] = lambda chunk: chunk) -> ClippedSum:
        """Returns the sum of the clipped per-unit gradients of a batch, a chunk of units at a time.

        A GradientTape is mapped over the units of a chunk with `tf.vectorized_map`, so memory is chunk x parameters and
        the work is that of a plain backward pass over the same views. The chunk size changes speed and memory only.

        Args:
          loss_fn: Maps one unit (an element of `batch`, or of what `prepare_fn` makes of it, without the leading axis)
            to the scalar loss of that unit, e.g. the mean over its K views. Must not draw randomness.
          variables: The trained variables.
          batch: Nested tensors [units, ...].
          is_padding: bool [units].
          units_per_chunk: Units mapped at a time, at least 1.
          prepare_fn: Maps a chunk, nested tensors [units_per_chunk, ...], to nested tensors [units_per_chunk, ...],
            outside of the mapped region: draws the views. Must treat units independently of one another.

        Returns:
          The sums and the (private) diagnostics.
        """

        def unit_gradient(unit):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss = loss_fn(unit)
            gradients = tape.gradient(loss, variables, unconnected_gradients='zero')
            return [tf.convert_to_tensor(g) for g in gradients], tf.cast(loss, tf.float32)

        num_units = tf.reduce_sum(1.0 - tf.cast(is_padding, tf.float32))
        batch, is_padding, num_chunks = _split_into_chunks((batch, is_padding), units_per_chunk)
        names = ('loss_sum', 'norm_sum', 'num_clipped', 'num_nonfinite')

        def add_chunk(i, sums, totals):
            chunk = tf.nest.map_structure(lambda x: x[i], batch)
            gradients, losses = tf.vectorized_map(unit_gradient, prepare_fn(chunk))
            chunk_sums, norms, keep = self.clip_and_sum(gradients, is_padding[i])
            is_nonfinite = tf.logical_not(tf.logical_or(keep, is_padding[i]))
            private = [
                tf.where(keep, losses, 0.0),
                tf.where(keep, norms, 0.0),
                tf.cast(tf.logical_and(keep, norms > self.l2_norm_clip), tf.float32),
                tf.cast(is_nonfinite, tf.float32)
            ]
            sums = [s + c for s, c in zip(sums, chunk_sums)]
            totals = [t + tf.reduce_sum(p) for t, p in zip(totals, private)]
            return i + 1, sums, totals

        # One chunk at a time: the point is to hold the gradients of one chunk only.
        zeros = [tf.zeros(v.shape, tf.float32) for v in variables], [tf.zeros([]) for _ in names]
        _, sums, totals = tf.while_loop(lambda i, *_: i < num_chunks,
                                        add_chunk, (tf.constant(0), *zeros),
                                        parallel_iterations=1)
        diagnostics = dict(zip(names, totals))
        diagnostics['num_units'] = num_units
        return ClippedSum(sums, diagnostics)


def _split_into_chunks(batch_and_padding, units_per_chunk: int):
    """Pads [units, ...] with zeros to whole chunks and reshapes to [chunks, units_per_chunk, ...]."""
    batch, is_padding = batch_and_padding
    num_units = tf.shape(is_padding)[0]
    num_chunks = -(-num_units // units_per_chunk)
    missing = num_chunks * units_per_chunk - num_units

    def split(x, fill=0):
        paddings = [[0, missing]] + [[0, 0]] * (x.shape.rank - 1)
        x_padded = tf.pad(x, paddings, constant_values=fill)
        return tf.reshape(x_padded, tf.concat([[num_chunks, units_per_chunk], tf.shape(x)[1:]], axis=0))

    def with_static_shape(x, chunks):
        chunks.set_shape([None, units_per_chunk] + x.shape[1:].as_list())
        return chunks

    chunks = tf.nest.map_structure(lambda x: with_static_shape(x, split(x)), batch)
    return chunks, split(is_padding, fill=True), num_chunks
