"""Gradient canaries: units whose gradient is a direction of their own, looked for in the noisy sum of every step.

The strongest attack that a claim allows for. The claim speaks of someone who sees each noisy sum, for whatever data: so
the canaries take the place of images as the run's own private step samples, clips, adds up and makes noisy; only the
loss of a unit is another one, whose gradient is a direction that no other canary shares. All units that are no canaries
are null records. What the step hands to its optimizer is what is seen. No image of the private data is read.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import optimization
from tf_dpdiff.training import stage as stage_lib
from tf_dpdiff.training import views as views_lib

# The first numbers of each variable are no canary's: draws of noise can be held against one another where they begin.
_NUM_FIRST = 16
# Share of the other numbers that is no canary's either, and how many of them are kept of a step.
_FREE_SHARE, _MOST_FREE = 0.2, 20_000
_MOST_DRAWS = 4000  # Of noise that are held against one another: the first ones.
_LEAST_NOISE = 1e-3  # Noise multiplier that scores are computed for: with less they would be infinite.


@dataclasses.dataclass(frozen=True)
class GradientAuditConfig:
    """Which gradient canaries, and how sure a bound must be.

    Attributes:
      num_canaries: m, at least 2: what can be shown of a small epsilon grows with it. Each takes at least one of the
        trained parameters.
      lengths: Of their gradients before clipping, in clipping norms, each at least 1: canaries take them in turn.
      confidence: Of each lower bound, in (0, 1). Since the bound comes close to the truth, a correct program is accused
        nearly as often as this allows.
      seed: Of the directions and of which units are canaries: public. The inclusions have none.
    """

    num_canaries: int = 8000
    lengths: tuple[float, ...] = (1.0, 10.0, 1000.0)
    confidence: float = 0.99
    seed: int = 0

    def __post_init__(self):
        if self.num_canaries < 2:
            raise ValueError(f'num_canaries of the gradient audit must be at least 2, got {self.num_canaries}.')
        if not self.lengths or not all(1.0 <= length <= 1e6 for length in self.lengths):
            raise ValueError(
                f'lengths of gradient canaries must be in [1, 1e6] clipping norms, got {self.lengths}: a shorter one '
                'shows less than a unit may.'
            )
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f'confidence must be in (0, 1), got {self.confidence}.')


class Directions(NamedTuple):
    """Orthogonal directions of canaries, each of length 1: they share no coordinate.

    Attributes:
      owners: int32, of the variables' shapes: whose coordinate each is; -1: no canary's.
      values: float32, of the variables' shapes: the direction's number there.
      free: int64 [free]: coordinates of all variables in a row that are no canary's.
      variables: int64 [free]: the variable of each of them.
      firsts: By the size of variables, the coordinates in a row, int64 [variables, 16], with which each of them begins.
    """

    owners: list[np.ndarray]
    values: list[np.ndarray]
    free: np.ndarray
    variables: np.ndarray
    firsts: dict[int, np.ndarray]


def make_directions(shapes: Sequence[Sequence[int]], num_canaries: int, seed: int) -> Directions:
    """Returns directions for canaries, of coordinates of as many variables as there are to have.

    Args:
      shapes: Of the trained variables.
      num_canaries: At least 1.
      seed: Public.

    Raises:
      ValueError: if there are too few coordinates; says how many canaries there can be.
    """
    generator = np.random.default_rng(seed)
    sizes = [int(np.prod(shape)) for shape in shapes]
    starts = np.cumsum([0, *sizes])
    is_first = np.zeros(starts[-1], bool)
    firsts: dict[int, list[np.ndarray]] = {}
    for start, size in zip(starts, sizes):
        if size >= 2 * _NUM_FIRST:
            first = np.arange(start, start + _NUM_FIRST)
            is_first[first] = True
            firsts.setdefault(size, []).append(first)
    # In order of the variables: those that are dealt to one canary are far from one another, so of different ones.
    others = np.flatnonzero(~is_first)
    is_dealt = np.zeros(len(others), bool)
    most = int((1.0 - _FREE_SHARE) * len(others))
    per_canary = most // num_canaries
    if per_canary < 1:
        raise ValueError(
            f'{num_canaries} gradient canaries need more parameters than the {starts[-1]:,} that are trained: take at '
            f'most {most:,}, or train more of the network (FinetuningConfig.trainable).'
        )
    is_dealt[generator.permutation(len(others))[: per_canary * num_canaries]] = True
    dealt = others[is_dealt]
    owners, values = np.full(starts[-1], -1, np.int32), np.zeros(starts[-1], np.float32)
    owners[dealt] = np.tile(generator.permutation(num_canaries), per_canary)
    values[dealt] = generator.choice([-1.0, 1.0], len(dealt)) / per_canary**0.5
    parts = [slice(start, end) for start, end in zip(starts, starts[1:])]
    free = np.flatnonzero(owners < 0)[:: max(1, int(np.sum(owners < 0)) // _MOST_FREE)]
    return Directions(
        owners=[owners[part].reshape(shape) for part, shape in zip(parts, shapes)],
        values=[values[part].reshape(shape) for part, shape in zip(parts, shapes)],
        free=free,
        variables=np.searchsorted(starts, free, side='right') - 1,
        firsts={size: np.stack(of_size) for size, of_size in firsts.items()},
    )


class CanaryViews(views_lib.ViewMaker):
    """Takes the place of the maker of views: a unit is seen as the number of its canary, and its loss is linear.

    Args:
      directions: Of the canaries.
      slots: int64 [canaries], which unit each canary is.
      num_units: Of the plan.
      lengths: float32 [canaries], of the gradients.
      variables: The trained variables.
      num_views: K, the views of a unit; all are the same.
    """

    def __init__(
        self,
        directions: Directions,
        slots: np.ndarray,
        num_units: int,
        lengths: np.ndarray,
        variables: Sequence[tf.Variable],
        num_views: int,
    ):
        # Nothing is drawn, so what the other sampler is made of is not needed.
        self._num_views = num_views
        numbers = np.full(num_units, -1, np.int32)
        numbers[slots] = np.arange(len(slots))
        self._numbers, self._lengths = tf.constant(numbers), tf.constant(lengths, tf.float32)
        self._owners = [tf.constant(owners) for owners in directions.owners]
        self._values = [tf.constant(values) for values in directions.values]
        self._variables = list(variables)

    @property
    def num_views(self) -> int:
        """K, the views of a unit."""
        return self._num_views

    def draw_for_units(
        self, images_uint8: tf.Tensor, labels: tf.Tensor, units: tf.Tensor, *, seed: tf.Tensor, step: tf.Tensor
    ) -> Any:
        """Returns the number of each unit's canary, int32, and its length, float32 [units, K]; see `ViewMaker`."""
        del images_uint8, labels, seed, step
        numbers = tf.where(units < 0, -1, tf.gather(self._numbers, tf.maximum(units, 0)))
        lengths = tf.gather(self._lengths, tf.maximum(numbers, 0))
        return tuple(tf.repeat(values[:, None], self.num_views, axis=1) for values in (numbers, lengths))

    def draw_for_public(self, *unused_arguments, **unused_options) -> Any:
        """Refuses: canaries are private.

        Raises:
          TypeError: always.
        """
        raise TypeError('gradient canaries are units of private steps, not public images.')

    def unit_loss_fn(self, model: keras.Model) -> Callable[[Any], tf.Tensor]:
        """Returns the function from the views of ONE canary to its loss, whose gradient is its direction."""
        del model

        def unit_loss(views) -> tf.Tensor:
            number, length = views[0][0], views[1][0]
            parts = [
                tf.reduce_sum(tf.where(tf.equal(owners, number), length * values, 0.0) * variable)
                for owners, values, variable in zip(self._owners, self._values, self._variables)
            ]
            return tf.add_n(parts)

        return unit_loss


class Listener:
    """An optimizer that keeps what it is given before it passes it on: what an attacker sees of a step.

    Args:
      optimizer: What follows the gradients.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self._optimizer = optimizer
        self.heard: list[tf.Variable] = []

    @property
    def learning_rate(self):
        """Of the optimizer."""
        return self._optimizer.learning_rate

    def build(self, variables: Sequence[tf.Variable]) -> None:
        """Builds the optimizer; in the scope of the strategy."""
        self._optimizer.build(variables)
        self.heard = [
            tf.Variable(
                tf.zeros(variable.shape), trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
            )
            for variable in variables
        ]

    def apply_gradients(self, grads_and_vars, **options) -> Any:
        """Keeps the gradients, then follows them."""
        pairs = list(grads_and_vars)
        for kept, (gradient, _) in zip(self.heard, pairs, strict=True):
            kept.assign(gradient)
        return self._optimizer.apply_gradients(pairs, **options)


@dataclasses.dataclass(frozen=True)
class Listening(optimization.OptimizationConfig):
    """As the optimization of a run, but listened to."""

    def make_optimizer(self, num_steps: int) -> Any:
        """Returns a new optimizer for num_steps steps, within a Listener."""
        return Listener(super().make_optimizer(num_steps))


class Heard(NamedTuple):
    """What an attacker makes of all steps; in clipping norms.

    Attributes:
      scores: float64 [canaries], above 0 for "in": the log-likelihood ratios of all steps, added up.
      totals: float64 [canaries], the inner products of each canary's direction with the noisy sums, added up.
      num_steps: How many there were.
      noise: float32 [steps, free], the noisy sums where no unit moves them, of the first 4,000 steps.
      variables: int64 [free], the variable of each of these numbers.
      firsts: By the size of variables, float32 [steps * variables, 16], what the noisy sums begin with, of the first
        steps too.
    """

    scores: np.ndarray
    totals: np.ndarray
    num_steps: int
    noise: np.ndarray
    variables: np.ndarray
    firsts: dict[int, np.ndarray]


class GradientCanaries:
    """The canaries of an audit, before it is drawn which of them are in.

    Args:
      config: Which canaries.
      plan: Of the run that is audited; its units are canaries and null records.

    Attributes:
      slots: int64 [canaries], which unit each is.
      lengths: float32 [canaries], of the gradients before clipping, in clipping norms.

    Raises:
      ValueError: if there are fewer units than canaries, if the plan does not clip, if it does not sample units by
        Poisson's law, so that it claims nothing that could be tested, or if it truncates batches.
    """

    def __init__(self, config: GradientAuditConfig, plan: plan_lib.DpSgdPlan):
        if config.num_canaries > plan.num_units:
            raise ValueError(f'{config.num_canaries} canaries are more than the {plan.num_units} units of the plan.')
        if not np.isfinite(plan.config.l2_norm_clip):
            raise ValueError('an audit by gradients needs a clipping norm: l2_norm_clip is infinite.')
        if plan.sampling_probability is None:
            raise ValueError(
                f'sampling={plan.config.sampling!r} claims nothing, so there is nothing for gradient canaries to test.'
            )
        if plan.truncation:
            raise ValueError(
                f'truncated_batch_size={plan.config.truncated_batch_size} does not go with an audit by gradients, '
                'which takes each canary as drawn whatever the others are: audit with truncated_batch_size=None.'
            )
        self._config, self._plan = config, plan
        # Scattered, so that each replica has its share of them.
        generator = np.random.default_rng([config.seed, 1])
        self.slots = np.sort(generator.permutation(plan.num_units)[: config.num_canaries])
        self.lengths = np.resize(np.array(config.lengths, np.float32), config.num_canaries)

    def __len__(self) -> int:
        return len(self.slots)

    def make_data(
        self, included: np.ndarray, image_shape: Sequence[int], class_names: tuple[str, ...]
    ) -> datasets.ImageDataset:
        """Returns the data set of the canaries that are in, one black image each; all other units are null records."""
        slots = self.slots[included]
        return datasets.ImageDataset(
            'gradient canaries',
            np.zeros([len(slots), *image_shape], np.uint8),
            np.zeros([len(slots)], np.int32),
            class_names,
            unit='one canary',
            owners=slots,
            num_owners=self._plan.num_units,
        )

    def make_stage(
        self,
        finetuning: finetuning_lib.FinetuningConfig,
        training: stage_lib.Training,
        variables: Sequence[tf.Variable],
        data: datasets.ImageDataset,
        state,
    ) -> tuple[stage_lib.Stage, Directions]:
        """Returns the stage of DP-SGD of a run, with canaries for images and an optimizer that is listened to.

        Args:
          finetuning: The stage of the run.
          training: What its stages share.
          variables: Those that it trains.
          data: Of `make_data`.
          state: Of a new run.
        """
        directions = make_directions([v.shape for v in variables], len(self), self._config.seed)
        views = CanaryViews(
            directions,
            self.slots,
            self._plan.num_units,
            self.lengths * self._plan.config.l2_norm_clip,
            variables,
            finetuning.views.augmentation_multiplicity,
        )
        listening = Listening(**dataclasses.asdict(finetuning.optimization))
        finetuning = dataclasses.replace(finetuning, optimization=listening)
        training = training._replace(make_view_maker=lambda unused_views: views)
        return finetuning_lib.make_stage(finetuning, training, self._plan, data, state), directions

    def listen(self, stage: stage_lib.Stage, directions: Directions, on_step: Callable[[int], None]) -> Heard:
        """Runs all steps of a stage, and returns what they release.

        Args:
          stage: Of `make_stage`.
          directions: As well.
          on_step: Called after each step, with the number of steps made.

        Raises:
          FloatingPointError: if a step releases numbers that are not finite, of which no test could tell anything.
        """
        owners, values = (np.concatenate([np.ravel(part) for part in parts]) for parts in directions[:2])
        owned = np.flatnonzero(owners >= 0)
        scale = self._plan.config.expected_batch_size / self._plan.config.l2_norm_clip
        probability = self._plan.sampling_probability
        assert probability is not None  # See __init__.
        scores, totals = np.zeros(len(self)), np.zeros(len(self))
        noise: list[np.ndarray] = []
        firsts: dict[int, list[np.ndarray]] = {size: [] for size in directions.firsts}
        stage.begin(lambda: None)
        assert stage.optimizer is not None  # A private stage has one.
        for step in range(stage.num_steps):
            stage.run_step(step)
            flat = np.concatenate([np.ravel(kept.numpy()) for kept in stage.optimizer.heard]) * np.float32(scale)
            if not np.all(np.isfinite(flat)):
                raise FloatingPointError(f'private step {step} of the audit released numbers that are not finite.')
            weighted = values[owned].astype(np.float64) * flat[owned]
            products = np.bincount(owners[owned], weighted, minlength=len(self))
            # By the noise as it is, and not as it is said to be: of less noise than that a better score is to be had.
            # It is seen where no canary is, so scores stay as independent of one another as they were.
            of_step = flat[directions.free]
            scale_of_noise = float(np.sqrt(np.mean(np.square(of_step, dtype=np.float64))))
            scores += log_likelihood_ratios(products, scale_of_noise, probability)
            totals += products
            if step < _MOST_DRAWS:
                noise.append(of_step)
            for size, first in directions.firsts.items():
                if step * len(first) < _MOST_DRAWS:
                    firsts[size].append(flat[first])
            on_step(step + 1)
        return Heard(
            scores=scores,
            totals=totals,
            num_steps=stage.num_steps,
            noise=np.stack(noise),
            variables=directions.variables,
            firsts={size: np.concatenate(parts) for size, parts in firsts.items()},
        )

    def imagine(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores and inclusions as they are of a program that does what it claims; it is not run."""
        probability, config = self._plan.sampling_probability, self._plan.config
        assert probability is not None  # See __init__.
        included = generator.integers(0, 2, len(self)) == 1
        scores = np.zeros(len(self))
        for _ in range(config.num_steps):
            took_part = included & (generator.random(len(self)) < probability)
            products = took_part + self._plan.noise_multiplier * generator.standard_normal(len(self))
            scores += log_likelihood_ratios(products, self._plan.noise_multiplier, probability)
        return scores, included


def log_likelihood_ratios(products: np.ndarray, noise_multiplier: float, sampling_probability: float) -> np.ndarray:
    """Returns how much likelier each inner product is of a canary that is in, as a logarithm.

    Its density is (1 - q) N(0, sigma^2) + q N(1, sigma^2) where the canary is in and N(0, sigma^2) where it is out. No
    test on it is stronger, by the lemma of Neyman and Pearson. Without noise it is taken as of very little.

    Args:
      products: float [...], in clipping norms.
      noise_multiplier: sigma, at least 0.
      sampling_probability: q, in (0, 1].

    Example:
        >>> log_likelihood_ratios(np.array([0.5, 1.5]), 1.0, 1.0)
        array([0., 1.])
    """
    of_part = (np.asarray(products, np.float64) - 0.5) / max(noise_multiplier, _LEAST_NOISE) ** 2
    if sampling_probability == 1.0:
        return of_part
    return np.logaddexp(np.log1p(-sampling_probability), np.log(sampling_probability) + of_part)
