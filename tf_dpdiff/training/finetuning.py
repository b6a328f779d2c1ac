"""The private stage: DP-SGD on the private images."""

from collections.abc import Callable
import dataclasses

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import losses
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import model_check
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import memory
from tf_dpdiff.training import optimization as optimization_lib
from tf_dpdiff.training import stage as stage_lib
from tf_dpdiff.training import strategies
from tf_dpdiff.training import summaries as summaries_lib
from tf_dpdiff.training import train_step
from tf_dpdiff.training import views as views_lib

NAME = 'finetuning'


@dataclasses.dataclass(frozen=True)
class FinetuningConfig:
    """DP-SGD on the private images; how many steps and how much noise is the privacy plan's.

    Attributes:
      optimization: How the weights follow the noisy gradients.
      views: How a private image is looked at; holds the augmentation multiplicity and the timestep mixture.
      trainable: Substrings of the names of the variables that are trained, e.g. 'norm', 'embedding'; empty for all.
        Fewer parameters mean less noise.
      init_from: Folder of a finished public run, or of its `pretrained/`: where the weights come from; the embeddings
        of the classes are drawn anew. None: from scratch, or from the public stage of this run.
      max_ema_decay: Upper end of the moving average's decay, in [0, 1).
      memory_budget_gib: For per-unit gradients and activations, > 0; weights, optimizer and the sum come on top. It
        decides how many units and views are held in memory at a time, which changes speed and memory only.
      units_per_chunk: Units held at a time; None: from the budget.
    """

    optimization: optimization_lib.OptimizationConfig
    views: views_lib.ViewsConfig
    trainable: tuple[str, ...] = ()
    init_from: str | None = None
    max_ema_decay: float = 0.99
    memory_budget_gib: float = 4.0
    units_per_chunk: int | None = None

    def __post_init__(self):
        if self.units_per_chunk is not None:
            stage_lib.check_at_least_one(self, 'units_per_chunk')
        if not self.memory_budget_gib > 0.0:
            raise ValueError(f'memory_budget_gib must be > 0, got {self.memory_budget_gib}.')
        stage_lib.check_decay(self)

    def choose_chunk_sizes(
        self, model: keras.Model, expected_batch_size: int, *, on_accelerator: bool | None = None
    ) -> memory.ChunkSizes:
        """Returns the units and views of a step that are held in memory at a time; see `memory.choose_chunk_sizes`."""
        num_views = self.views.augmentation_multiplicity
        if self.units_per_chunk is not None:
            return memory.ChunkSizes(self.units_per_chunk, num_views)
        return memory.choose_chunk_sizes(
            model,
            denoiser.select_variables(model, self.trainable),
            num_views=num_views,
            num_units=expected_batch_size,
            memory_budget_bytes=self.memory_budget_gib * 2**30,
            on_accelerator=on_accelerator,
        )


def make_stage(
    config: FinetuningConfig,
    training: stage_lib.Training,
    plan: plan_lib.DpSgdPlan,
    private: datasets.ImageDataset,
    state: checkpoints.RunState,
    on_diagnostics: Callable[[int, dict[str, float]], None] | None = None,
) -> stage_lib.Stage:
    """Returns the DP-SGD stage.

    Args:
      config: The stage.
      training: What the stages of the run share.
      plan: The privacy plan, which says how many steps there are and how much noise is added.
      private: The private images.
      state: Where the run stands; its ledger holds each step that was made.
      on_diagnostics: Receives PRIVATE numbers of each step; None: nobody does.

    Raises:
      ValueError: if the replicas can't compute what the plan or the augmentation asks for.
    """
    model, average, _, replicas = training
    if replicas.is_compiled and plan.config.noise_generator == 'shake256':
        raise ValueError(
            "noise_generator='shake256' runs on CPUs, and a TPU computes whole steps itself: use 'philox', or "
            'another strategy.'
        )
    stage_lib.check_compiles(NAME, config, replicas)
    optimizer = config.optimization.make_optimizer(plan.config.num_steps)
    units_per_replica = -(-plan.config.expected_batch_size // replicas.count)
    chunk_sizes = config.choose_chunk_sizes(model, units_per_replica)
    private_step = train_step.make_private_step(
        model,
        average,
        denoiser.select_variables(model, config.trainable),
        optimizer,
        plan,
        training.make_view_maker(config.views),
        private,
        state,
        max_ema_decay=config.max_ema_decay,
        chunk_sizes=chunk_sizes,
        padded_to=_padded_size(plan, replicas, chunk_sizes.units),
        replicas=replicas,
    )

    def begin(unused_save):
        if state.step == 0:
            average.set_weights(model.get_weights())

    def run_step(step: int) -> dict[str, float]:
        diagnostics = private_step(step)
        if on_diagnostics:
            on_diagnostics(step, {name: float(value) for name, value in diagnostics.items()})
        return {
            'learning_rate': float(optimizer.learning_rate.numpy()),
            'ema_decay': stage_lib.ema_decay(config.max_ema_decay, step),
        }

    return stage_lib.Stage(NAME, plan.config.num_steps, optimizer, begin, run_step)


def _padded_size(plan: plan_lib.DpSgdPlan, replicas: strategies.Replicas, units_per_chunk: int) -> int:
    """Returns the size whose multiples the batches of a replica are padded to: truncated ones all have this size."""
    if not plan.truncation:
        return replicas.padded_size(-(-plan.config.expected_batch_size // replicas.count), units_per_chunk)
    most = -(-min(plan.truncation.truncated_batch_size, plan.num_units) // replicas.count)
    return -(-most // units_per_chunk) * units_per_chunk


def diagnostics_writer(summaries: summaries_lib.Summaries, every_steps: int) -> Callable[[int, dict[str, float]], None]:
    """Returns what writes PRIVATE numbers of a step to non_private/, for `make_stage`, where they are asked for."""

    def write(step: int, diagnostics: dict[str, float]) -> None:
        if step % every_steps == 0:
            units = max(diagnostics['num_units'], 1.0)
            summaries.non_private_scalars(
                {
                    'loss': diagnostics['loss_sum'] / units,
                    'gradient_norm': diagnostics['norm_sum'] / units,
                    'clipped_fraction': diagnostics['num_clipped'] / units,
                    'num_nonfinite': diagnostics['num_nonfinite'],
                    'num_units': diagnostics['num_units'],
                },
                step,
            )

    return write


def check_model(model: keras.Model, image_shape, view_maker: views_lib.ViewMaker) -> None:
    """Refuses a network, or views, that are not fit for per-unit clipping.

    Raises:
      model_check.ModelCheckError: names the layer and the cure.
    """
    model_check.check_layers(model)
    t, labels, dropout_seeds = tf.constant([1, 2, 3]), tf.zeros([3], tf.int32), tf.constant([4, 5, 6])
    model_check.check_independence(model, lambda x: [x, t, labels, dropout_seeds][: len(model.inputs)], image_shape)
    model_check.check_loss(losses.view_losses, image_shape)
    seed, step = tf.constant(0, tf.int64), tf.constant(0, tf.int64)
    model_check.check_views(
        lambda images, units: view_maker.draw_for_units(images, labels[:, None], units, seed=seed, step=step),
        [1, *image_shape],
    )
