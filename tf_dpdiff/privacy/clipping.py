"""Per-unit gradients -> clipped sum."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from tf_dpdiff.privacy import relations

# A gradient's squares must neither underflow nor overflow float32. What underflows is below 1.2e-38 a coordinate, so
# for 10^10 of them and the smallest norm it is a share of 1e-8 of the squared norm.
SMALLEST_NORM, LARGEST_NORM = 1e-10, 1e10
_FLOAT32_ROUNDING = 2.0**-24  # Relative error of one operation.
# Added to the norm that a gradient is divided by: gradients well above it all come out with the same norm.
STABILITY = 0.01
# Squares are added up in float32 along the innermost axis up to this size, and in float64 beyond it and along all
# others.
_MOST_FLOAT32_TERMS = 4096


class ClippedSum(NamedTuple):
    """The result of `PerUnitClipper.clipped_sum`.

    Attributes:
      sums: float32 tensors, one a variable: the sum of the clipped per-unit gradients, of known sensitivity.
      diagnostics: float32 scalars computed from private data WITHOUT noise (num_units, num_nonfinite, num_clipped,
        loss_sum, norm_sum); never to be released.
    """

    sums: list[tf.Tensor]
    diagnostics: dict


class ClippedChunk(NamedTuple):
    """The result of `PerUnitClipper.clip_and_sum`.

    Attributes:
      sums: float32 tensors of the variables' shapes.
      norms: float32 [units], of the whole gradients before clipping.
      is_kept: bool [units], which units count: they are not padding and their gradient is finite.
      is_clipped: bool [units], whose gradient was scaled down.
    """

    sums: list[tf.Tensor]
    norms: tf.Tensor
    is_kept: tf.Tensor
    is_clipped: tf.Tensor


@dataclasses.dataclass(frozen=True)
class PerUnitClipper:
    """Clips the gradient of each unit to an L2 norm and adds up.

    Guarantee: adding or removing one unit changes `sums` by at most `l2_norm_clip` in L2 norm, whatever its pixels are.
      A unit whose gradient is not finite contributes zero and changes no other unit's contribution. Padding contributes
      zero, whether it is computed or passed over. An empty batch gives zero. The bound holds for what is added in
      float32, not only for real numbers: see `rounding_margin`.

    Attributes:
      l2_norm_clip: The bound C, in [1e-10, 1e10], where float32 carries its squares. Infinity switches clipping off
        (and the sensitivity is then infinite).
      per_layer: False: flat clipping, the gradient over all variables together to C. True: the gradient of each of L
        layers to C / sqrt(L), so that the whole is bounded by C too; useful where a few layers hold most of the norm.
      normalized: Whether a gradient g becomes C g / (|g| + STABILITY), of norm below C, also where it is shorter than
        C (automatic clipping): C is then no more than a factor of the learning rate, and is not searched for. Not
        together with per_layer.

    References: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1, "Clip gradient"; McMahan et al. 2018,
      arXiv:1710.06963, section 3.2, for flat and per-layer clipping; De et al. 2022, arXiv:2204.13650, section 3.2, for
      averaging a unit's augmentations before clipping; Bu et al. 2022, arXiv:2206.07136, equation 3.2, for automatic
      clipping (AUTO-S).
    """

    l2_norm_clip: float
    per_layer: bool = False
    normalized: bool = False

    def __post_init__(self):
        check_norm(self.l2_norm_clip)
        if self.normalized and self.per_layer:
            raise ValueError('gradients are clipped layer by layer or normalized, not both.')
        if self.normalized and self.l2_norm_clip == float('inf'):
            raise ValueError('normalized gradients need a finite l2_norm_clip, which they are brought to.')

    def sensitivity(self, neighboring_relation: str) -> float:
        """Returns the largest change of `sums` between neighbouring data sets, in L2 norm.

        Args:
          neighboring_relation: 'add_or_remove_one' or 'replace_with_zero' (C), or 'replace_one' (2 C).

        Raises:
          ValueError: for another relation.
        """
        relations.check(neighboring_relation)
        return self.l2_norm_clip * (2.0 if neighboring_relation == 'replace_one' else 1.0)

    def clip_and_sum(
        self, gradients: Sequence[tf.Tensor], is_padding: tf.Tensor, layers: Sequence[str] | None = None
    ) -> ClippedChunk:
        """Clips the gradient of each unit of a chunk and adds up.

        Args:
          gradients: One tensor a variable, [units, ...] of any float dtype.
          is_padding: bool [units].
          layers: The layer of each variable; see `layer_names`. Needed for per-layer clipping alone.

        Returns:
          The sums, and what happened to each unit.
        """
        names = [''] * len(gradients)
        if self.per_layer:
            assert layers is not None
            names = list(layers)
        # The norm is taken in float32 even where the gradients are of another type.
        gradients = [tf.cast(g, tf.float32) for g in gradients]
        margin = max(rounding_margin(g.shape[1:]) for g in gradients)
        bound = tf.constant(self.l2_norm_clip * (1.0 - margin) / len(set(names)) ** 0.5, tf.float64)
        squares = [_sum_of_squares(g) for g in gradients]
        norms = _total_norms(squares)
        is_kept = tf.logical_and(tf.math.is_finite(norms), tf.logical_not(is_padding))
        scales = {}
        for name in dict.fromkeys(names):
            layer_norms = _total_norms([s for s, n in zip(squares, names) if n == name])
            if self.normalized:
                scale = bound / (layer_norms + STABILITY)
            else:
                scale = tf.where(layer_norms > bound, bound / layer_norms, tf.ones_like(layer_norms))
            scales[name] = tf.where(is_kept, tf.cast(scale, tf.float32), 0.0)
        # A unit that does not count adds zero, even if its gradient is NaN. No product of matrices, which accelerators
        # round to 10 or 7 bits (TF32, bfloat16): a unit's share of the sum would be longer than the bound.
        sums = [
            tf.reduce_sum(tf.math.multiply_no_nan(gradient, _along_units(scales[name], gradient)), axis=0)
            for gradient, name in zip(gradients, names)
        ]
        is_clipped = tf.logical_and(is_kept, tf.reduce_min(list(scales.values()), axis=0) < 1.0)
        return ClippedChunk(sums, tf.cast(norms, tf.float32), is_kept, is_clipped)

    def clipped_sum(
        self,
        loss_fn: Callable[[Any], tf.Tensor],
        variables: Sequence[tf.Variable],
        batch: Any,
        is_padding: tf.Tensor,
        *,
        units_per_chunk: int,
        views_per_chunk: int | None = None,
        prepare_fn: Callable[[Any], Any] = lambda chunk: chunk,
    ) -> ClippedSum:
        """Returns the sum of the clipped per-unit gradients of a batch, a chunk of units at a time.

        A GradientTape is mapped over the units of a chunk with `tf.vectorized_map`, so memory is chunk x parameters and
        the work is that of a plain backward pass over the same views. Chunk sizes change speed and memory only.
        It ends with the last chunk that holds a unit: chunks of padding alone behind it cost nothing, so batches can be
        padded to one size for XLA, by which it can be compiled (`jit_compile=True`) where shapes are static.

        Args:
          loss_fn: Maps one unit (an element of `batch`, or of what `prepare_fn` makes of it, without the leading axis)
            to the scalar loss of that unit, e.g. the mean over its K views. Must not draw randomness.
          variables: The trained variables.
          batch: Nested tensors [units, ...].
          is_padding: bool [units]; padding may stand anywhere.
          units_per_chunk: Units mapped at a time, at least 1.
          views_per_chunk: Views of a unit whose activations are held at a time, a divisor of K, where `loss_fn` is the
            mean over the K views of tensors [K, ...]; None: all of them.
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
            return [tf.cast(tf.convert_to_tensor(g), tf.float32) for g in gradients], tf.cast(loss, tf.float32)

        num_units = tf.reduce_sum(1.0 - tf.cast(is_padding, tf.float32))
        batch, is_padding = _split_into_chunks((batch, is_padding), units_per_chunk)
        num_chunks = _count_to_last_unit(is_padding)
        layers = layer_names(variables)

        def add_chunk(i, sums, totals):
            chunk = tf.nest.map_structure(lambda x: x[i], batch)
            gradients, losses = _map_units(unit_gradient, prepare_fn(chunk), variables, views_per_chunk)
            clipped = self.clip_and_sum(gradients, is_padding[i], layers)
            sums = [s + c for s, c in zip(sums, clipped.sums)]
            return i + 1, sums, [t + d for t, d in zip(totals, _diagnose(clipped, losses, is_padding[i]))]

        # One chunk at a time: the point is to hold the gradients of one chunk only.
        zeros = [tf.zeros(v.shape, tf.float32) for v in variables], [tf.zeros([]) for _ in _DIAGNOSTICS]
        _, sums, totals = tf.while_loop(
            lambda i, *_: i < num_chunks, add_chunk, (tf.constant(0), *zeros), parallel_iterations=1
        )
        return ClippedSum(sums, {'num_units': num_units, **dict(zip(_DIAGNOSTICS, totals))})


def _map_units(unit_gradient: Callable, units: Any, variables: Sequence[tf.Variable], views_per_chunk: int | None):
    """Maps unit_gradient over units [units, K, ...], a chunk of views at a time, and averages over those chunks."""
    num_units, num_views = (tf.nest.flatten(units)[0].shape + [None])[:2]
    if views_per_chunk in (None, num_views):
        return tf.vectorized_map(unit_gradient, units)
    if num_views % views_per_chunk:
        raise ValueError(f'views_per_chunk={views_per_chunk} does not divide the {num_views} views of a unit.')
    num_chunks = num_views // views_per_chunk
    units = tf.nest.map_structure(
        lambda x: tf.reshape(x, [num_units, num_chunks, views_per_chunk, *x.shape[2:]]), units
    )

    def add_chunk(i, totals):
        parts = tf.vectorized_map(unit_gradient, tf.nest.map_structure(lambda x: x[:, i], units))
        return i + 1, tf.nest.map_structure(lambda total, part: total + part / num_chunks, totals, parts)

    zeros = [tf.zeros([num_units, *v.shape]) for v in variables], tf.zeros([num_units])
    return tf.while_loop(lambda i, _: i < num_chunks, add_chunk, (tf.constant(0), zeros), parallel_iterations=1)[1]


def _along_units(values: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """Returns values [units] with as many axes as the gradient [units, ...]."""
    return tf.reshape(values, [-1] + [1] * (gradient.shape.rank - 1))


def check_norm(l2_norm_clip: float) -> None:
    """Refuses a clipping norm that float32 cannot carry.

    Raises:
      ValueError: gives the value and the range.
    """
    if not (SMALLEST_NORM <= l2_norm_clip <= LARGEST_NORM or l2_norm_clip == float('inf')):
        raise ValueError(
            f'l2_norm_clip must be in [{SMALLEST_NORM:g}, {LARGEST_NORM:g}], where float32 carries its '
            f'squares, got {l2_norm_clip}.'
        )


def rounding_margin(shape: Sequence[int]) -> float:
    """Returns the share of the norm by which a gradient is clipped further, so that rounding passes no bound.

    n terms of one sign that are rounded and added up in float32, in whatever order, have a relative error of at most
    n u / (1 - n u) with u = 2^-24. Here n is the size of the innermost axis or, where that is long, 1: the rest is
    added up in float64, to a type that keeps a compiler from joining the two sums. The norm has half that error. The
    scale and the product with it are rounded once each; (n + 8) u covers all of it, also in the sum over a layer's
    variables.

    Args:
      shape: Of the variable.

    References: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 4.2.

    Example:
        >>> rounding_margin([3, 3, 64, 128]) == 136 * 2.0**-24
        True
    """
    return (_float32_terms(shape) + 8) * _FLOAT32_ROUNDING


def _float32_terms(shape: Sequence[int]) -> int:
    """Returns the number of squares that are added up in float32."""
    innermost = int(shape[-1]) if len(shape) else 1
    return innermost if innermost <= _MOST_FLOAT32_TERMS else 1


def _sum_of_squares(gradient: tf.Tensor) -> tf.Tensor:
    """Returns the squared norms, float64 [units], of a gradient, float32 [units, ...]; see `rounding_margin`."""
    squares = tf.square(gradient)
    if gradient.shape.rank > 1 and _float32_terms(gradient.shape[1:]) == gradient.shape[-1]:
        squares = tf.reduce_sum(squares, axis=-1)
    squares = tf.cast(squares, tf.float64)
    return tf.reduce_sum(squares, axis=list(range(1, squares.shape.rank)))


def _total_norms(squares: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the norms [units] of gradients whose parts have these squared norms [units]."""
    return tf.sqrt(tf.reduce_sum(tf.stack(squares), axis=0))


def layer_names(variables: Sequence[tf.Variable]) -> list[str]:
    """Returns the layer of each variable, its name without the last part: 'block/conv' of 'block/conv/kernel:0'."""
    return [variable.name.rpartition('/')[0] or variable.name for variable in variables]


_DIAGNOSTICS = ('loss_sum', 'norm_sum', 'num_clipped', 'num_nonfinite')


def _diagnose(clipped: ClippedChunk, losses: tf.Tensor, is_padding: tf.Tensor) -> list[tf.Tensor]:
    """Returns the diagnostics of a chunk, in the order of _DIAGNOSTICS."""
    is_nonfinite = tf.logical_not(tf.logical_or(clipped.is_kept, is_padding))
    losses, norms = (tf.where(clipped.is_kept, x, 0.0) for x in (losses, clipped.norms))
    return [tf.reduce_sum(tf.cast(x, tf.float32)) for x in (losses, norms, clipped.is_clipped, is_nonfinite)]


def _split_into_chunks(batch_and_padding, units_per_chunk: int):
    """Pads [units, ...] with zeros to whole chunks, at least one, and reshapes to [chunks, units_per_chunk, ...]."""
    batch, is_padding = tf.nest.map_structure(tf.convert_to_tensor, batch_and_padding)
    num_units = tf.shape(is_padding)[0]
    # XLA compiles the work on a chunk even where there is none.
    num_chunks = tf.maximum(1, -(-num_units // units_per_chunk))
    missing = num_chunks * units_per_chunk - num_units

    def split(x, fill=0):
        paddings = [[0, missing]] + [[0, 0]] * (x.shape.rank - 1)
        x_padded = tf.pad(x, paddings, constant_values=fill)
        return tf.reshape(x_padded, tf.concat([[num_chunks, units_per_chunk], tf.shape(x)[1:]], axis=0))

    def with_static_shape(x, chunks):
        chunks.set_shape([None, units_per_chunk] + x.shape[1:].as_list())
        return chunks

    chunks = tf.nest.map_structure(lambda x: with_static_shape(x, split(x)), batch)
    return chunks, split(is_padding, fill=True)


def _count_to_last_unit(is_padding: tf.Tensor) -> tf.Tensor:
    """Returns the number of chunks [chunks, units] up to the last one that holds a unit; 0 if there is none."""
    holds_unit = tf.logical_not(tf.reduce_all(is_padding, axis=1))
    return tf.reduce_max(tf.where(holds_unit, tf.range(1, tf.shape(is_padding)[0] + 1), 0))
