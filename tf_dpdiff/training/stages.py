"""The three stages of a run: public pre-training, a warm start on what a noisy release tells, DP-SGD fine-tuning."""

from collections.abc import Callable
import dataclasses

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.data import pipelines
from tf_dpdiff.data import public as public_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import ema
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import sampling
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import learning_rate
from tf_dpdiff.training import memory
from tf_dpdiff.training import public_classifier
from tf_dpdiff.training import strategies
from tf_dpdiff.training import train_step
from tf_dpdiff.training import views as views_lib
from tf_dpdiff.training import warm_start as warm_start_lib

PRETRAINING, WARM_START, FINETUNING = 'pretraining', 'warm_start', 'finetuning'
PublicSource = datasets.ImageDataset | public_lib.PublicImages


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """How the weights follow the gradients: Adam with a warm-up and a linear decay.

    Attributes:
      learning_rate: The peak, finite and > 0.
      warmup_steps: Steps of the linear rise, >= 0.
      final_fraction: Share of the peak that is left at the last step, in [0, 1].
      beta_2: Of Adam, in [0, 1).
    """

    learning_rate: float
    warmup_steps: int = 0
    final_fraction: float = 0.1
    beta_2: float = 0.999

    def __post_init__(self):
        if not 0.0 < self.learning_rate < float('inf'):
            raise ValueError(f'learning_rate must be finite and > 0, got {self.learning_rate}.')
        if self.warmup_steps < 0 or not 0.0 <= self.final_fraction <= 1.0 or not 0.0 <= self.beta_2 < 1.0:
            raise ValueError(
                'the optimization needs warmup_steps >= 0, final_fraction in [0, 1] and beta_2 in [0, 1), got '
                f'{self.warmup_steps}, {self.final_fraction} and {self.beta_2}.'
            )

    def make_optimizer(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Returns a new optimizer for num_steps steps."""
        rate = learning_rate.WarmupDecay(
            peak=self.learning_rate,
            num_steps=num_steps,
            warmup_steps=self.warmup_steps,
            final_fraction=self.final_fraction,
        )
        # DP-SGD's updates are small where C is: an epsilon of 1e-7 would slow Adam down, so it is set far below.
        return keras.optimizers.Adam(rate, beta_2=self.beta_2, epsilon=1e-12)


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
    """Plain training on public images.

    Attributes:
      dataset: The public images, or what reads them when they are first asked for.
      num_steps: Steps, >= 1.
      batch_size: Images a step, >= 1.
      optimization: How the weights follow the gradients.
      views: How an image is looked at.
      max_ema_decay: Upper end of the decay of the weights' moving average, in [0, 1): what comes after the stage starts
        from the average. 0: from the last weights.
      images_per_chunk: Images held in memory at a time, a divisor of batch_size; changes speed and memory only. None:
        the whole batch.
      seed: Public.
    """

    dataset: PublicSource
    num_steps: int
    batch_size: int
    optimization: OptimizationConfig
    views: views_lib.ViewsConfig = views_lib.ViewsConfig()
    max_ema_decay: float = 0.0
    images_per_chunk: int | None = None
    seed: int = 0

    def __post_init__(self):
        _check_at_least_one(self, 'num_steps', 'batch_size')
        _check_decay(self)
        _check_source(self.dataset, 'dataset of the public stage')
        if self.images_per_chunk is not None and (self.images_per_chunk < 1 or self.batch_size % self.images_per_chunk):
            raise ValueError(f'images_per_chunk must divide batch_size={self.batch_size}, got {self.images_per_chunk}.')

    @property
    def spec(self) -> datasets.DatasetSpec:
        """What is known of the images without reading them."""
        return self.dataset.spec

    @property
    def images(self) -> datasets.ImageDataset:
        """The images, read where they are not yet."""
        return _read(self.dataset)


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Plain training on variations of noisy class means, or on public images that noisy feature means choose.

    Attributes:
      release: The Gaussian release, charged to the same budget as DP-SGD, which decides between the two.
      num_images: Variations of the noisy means that are drawn, >= 1; for class means.
      num_steps: Steps, >= 1.
      batch_size: Images a step, >= 1.
      optimization: How the weights follow the gradients.
      views: How a variation is looked at.
      sharpening: (low, high) factor by which the contrast of a mean is stretched; for class means.
      threshold: (low, high) grey level about which it is stretched; for class means.
      seed: Public.
      public: The labelled public images, or what reads them when they are first asked for; for feature means.
      images_per_class: How many of them are chosen for a private class at most, >= 1; for feature means.
      classifier: How the classifier is trained on them that gives an image its features; for feature means, where None
        stands for its defaults.
    """

    release: plan_lib.WarmStartRelease
    num_images: int | None
    num_steps: int
    batch_size: int
    optimization: OptimizationConfig
    views: views_lib.ViewsConfig = views_lib.ViewsConfig()
    sharpening: tuple[float, float] = (1.2, 3.0)
    threshold: tuple[float, float] = (0.4, 0.6)
    seed: int = 1
    public: PublicSource | None = None
    images_per_class: int | None = None
    classifier: public_classifier.PublicClassifierConfig | None = None

    def __post_init__(self):
        _check_at_least_one(self, 'num_steps', 'batch_size')
        warm_start_lib.check_kind(self)
        _check_at_least_one(self, 'images_per_class' if self.has_public_images else 'num_images')
        if self.has_public_images:
            _check_source(self.public, 'public of WarmStartConfig')

    @property
    def has_public_images(self) -> bool:
        """Whether it trains on public images."""
        return isinstance(self.release, feature_means.FeatureMeansConfig)

    @property
    def classifier_or_default(self) -> public_classifier.PublicClassifierConfig:
        """How the classifier is trained, for feature means."""
        return self.classifier or public_classifier.PublicClassifierConfig()

    @property
    def images(self) -> datasets.ImageDataset | None:
        """The public images, read where they are not yet; None where there are none."""
        return _read(self.public) if self.has_public_images else None


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

    optimization: OptimizationConfig
    views: views_lib.ViewsConfig
    trainable: tuple[str, ...] = ()
    init_from: str | None = None
    max_ema_decay: float = 0.99
    memory_budget_gib: float = 4.0
    units_per_chunk: int | None = None

    def __post_init__(self):
        if self.units_per_chunk is not None:
            _check_at_least_one(self, 'units_per_chunk')
        if not self.memory_budget_gib > 0.0:
            raise ValueError(f'memory_budget_gib must be > 0, got {self.memory_budget_gib}.')
        _check_decay(self)

    def choose_chunk_sizes(
        self, model: keras.Model, expected_batch_size: int, *, on_accelerator: bool | None = None
    ) -> memory.ChunkSizes:
        """Returns how many units and views of a step are held in memory at a time; see `memory.choose_chunk_sizes`."""
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


@dataclasses.dataclass
class Stage:
    """A stage as the trainer's loop sees it.

    Attributes:
      name: For checkpoints, progress and summaries.
      num_steps: Steps in all.
      optimizer: Saved with the run.
      begin: Called before the first step that this process runs, also after a resume.
      run_step: Runs one step, counted from 0, and returns scalars that may be released.
      end: Called after the last step, before the next stage begins.
    """

    name: str
    num_steps: int
    optimizer: keras.optimizers.Optimizer
    begin: Callable[[], None]
    run_step: Callable[[int], dict[str, float]]
    end: Callable[[], None] = lambda: None


def make_pretraining(
    config: PretrainingConfig,
    model: keras.Model,
    average: keras.Model,
    view_sampler: views_lib.ViewSampler,
    replicas: strategies.Replicas,
) -> Stage:
    """Returns the public pre-training stage; at its end, model and average both hold what was pre-trained."""
    stage = _public_stage(
        PRETRAINING,
        config,
        model,
        average,
        view_sampler,
        replicas,
        lambda: config.images,
        max_ema_decay=config.max_ema_decay,
        images_per_chunk=config.images_per_chunk,
    )

    def end():
        if config.max_ema_decay:
            model.set_weights(average.get_weights())
        else:
            average.set_weights(model.get_weights())

    return dataclasses.replace(stage, end=end)


def make_warm_start(
    config: WarmStartConfig,
    model: keras.Model,
    average: keras.Model,
    view_sampler: views_lib.ViewSampler,
    replicas: strategies.Replicas,
    make_images: Callable[[], datasets.ImageDataset],
) -> Stage:
    """Returns the warm-start stage; `make_images` releases and makes the images, as `warm_start.make_images` does."""
    return _public_stage(WARM_START, config, model, average, view_sampler, replicas, make_images)


def make_finetuning(
    config: FinetuningConfig,
    model: keras.Model,
    average: keras.Model,
    view_sampler: views_lib.ViewSampler,
    replicas: strategies.Replicas,
    plan: plan_lib.DpSgdPlan,
    private: datasets.ImageDataset,
    state: checkpoints.RunState,
    on_diagnostics: Callable[[int, dict], None] | None,
) -> Stage:
    """Returns the DP-SGD stage; `on_diagnostics`, where given, receives PRIVATE numbers of each step."""
    if replicas.is_compiled and plan.config.noise_generator == 'shake256':
        raise ValueError(
            "noise_generator='shake256' runs on CPUs, and a TPU computes whole steps itself: use 'philox', or "
            'another strategy.'
        )
    _check_compiles(FINETUNING, config, replicas)
    optimizer = config.optimization.make_optimizer(plan.config.num_steps)
    num_views = config.views.augmentation_multiplicity
    units_per_replica = -(-plan.config.expected_batch_size // replicas.count)
    chunk_sizes = config.choose_chunk_sizes(model, units_per_replica)
    padded_to = replicas.padded_size(units_per_replica, chunk_sizes.units)
    private_step = train_step.make_private_step(
        model,
        average,
        denoiser.select_variables(model, config.trainable),
        optimizer,
        plan,
        view_sampler,
        state.private_seed,
        images_per_unit=1 if private.owners is None else num_views,
        max_ema_decay=config.max_ema_decay,
        chunk_sizes=chunk_sizes,
        replicas=replicas,
    )
    sampling_seed, owner_seed = (state.private_seed.derive(purpose) for purpose in ('sampling', 'images_of_owners'))

    def begin():
        if state.step == 0:
            average.set_weights(model.get_weights())

    def batches(step: int):
        """Returns the batch of each local replica: of the units of its own shard."""
        drawn = [
            plan.sampler.sample(
                plan.num_units, seed=sampling_seed, step=step, replica=replica, num_replicas=replicas.count
            )
            for replica in replicas.local
        ]
        drawn = sampling.pad_batches(drawn, padded_to, equally=replicas.is_compiled)
        return [
            pipelines.gather_units(private, units, num_views=num_views, seed=owner_seed, step=step) for units in drawn
        ]

    def run_step(step: int) -> dict[str, float]:
        ledger = plan.record_step(state.ledger)  # Refuses to pass the plan before anything is computed.
        diagnostics = private_step(batches(step), tf.constant(step, tf.int64))
        state.ledger = ledger
        if on_diagnostics:
            on_diagnostics(step, {name: float(value) for name, value in diagnostics.items()})
        return {
            'learning_rate': float(optimizer.learning_rate.numpy()),
            'ema_decay': _decay(config.max_ema_decay, step),
        }

    return Stage(FINETUNING, plan.config.num_steps, optimizer, begin, run_step)


def _public_stage(
    name: str,
    config,
    model,
    average,
    view_sampler,
    replicas: strategies.Replicas,
    make_dataset: Callable[[], datasets.ImageDataset],
    *,
    max_ema_decay: float = 0.0,
    images_per_chunk: int | None = None,
) -> Stage:
    """Returns a stage of plain training on the images that make_dataset gives when the stage begins."""
    _check_compiles(name, config, replicas)
    optimizer = config.optimization.make_optimizer(config.num_steps)
    images_per_replica = -(-config.batch_size // replicas.count)
    images_per_chunk = min(images_per_chunk or images_per_replica, images_per_replica)
    public_step = train_step.make_public_step(
        model,
        average,
        optimizer,
        view_sampler,
        max_ema_decay=max_ema_decay,
        batch_size=config.batch_size,
        images_per_chunk=images_per_chunk,
        seed=config.seed,
        replicas=replicas,
    )
    images = {}

    def begin():
        images['dataset'] = make_dataset()

    def batches(step: int):
        """Returns the batch of each local replica: its part of one batch, which is the same for any number of them."""
        dataset = images['dataset']
        indices = pipelines.random_indices(len(dataset), config.batch_size, seed=config.seed, step=step)
        bounds = [sampling.shard_bounds(config.batch_size, replica, replicas.count) for replica in replicas.local]
        places = sampling.pad_batches([np.arange(*bound) for bound in bounds], images_per_chunk, equally=True)
        indices = [np.where(place < 0, sampling.PADDING_INDEX, indices[place]) for place in places]
        return [(*pipelines.gather(dataset, own), place.astype(np.int32)) for own, place in zip(indices, places)]

    def run_step(step: int) -> dict[str, float]:
        loss = public_step(batches(step), tf.constant(step, tf.int64))
        return {
            'loss': float(loss),
            'learning_rate': float(optimizer.learning_rate.numpy()),
            'ema_decay': _decay(max_ema_decay, step),
        }

    return Stage(name, config.num_steps, optimizer, begin, run_step)


def _check_compiles(stage: str, config, replicas: strategies.Replicas) -> None:
    """Refuses augmentation that XLA does not know, before the first step is compiled."""
    augmentation = config.views.augmentation
    wanted = [name for name in ('rotation', 'zoom', 'translation') if getattr(augmentation, name)]
    if replicas.is_compiled and wanted:
        raise ValueError(
            f'{" and ".join(wanted)} of the augmentation in {stage} cannot be compiled for a TPU: leave it '
            'out (pad_and_crop moves images too), or use another strategy.'
        )


def _decay(max_ema_decay: float, step: int) -> float:
    return float(ema.ema_decay(max_ema_decay, step))


def _check_decay(config) -> None:
    if not 0.0 <= config.max_ema_decay < 1.0:
        raise ValueError(f'max_ema_decay of {type(config).__name__} must be in [0, 1), got {config.max_ema_decay}.')


def _check_source(source, what: str) -> None:
    if not isinstance(source, (datasets.ImageDataset, public_lib.PublicImages)):
        raise ValueError(
            f'the {what} is a {type(source).__name__}; turn a source of images into public ones by @public_images().'
        )


def _read(source: PublicSource) -> datasets.ImageDataset:
    return source.images if isinstance(source, public_lib.PublicImages) else source


def _check_at_least_one(config, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f'{name} of {type(config).__name__} must be at least 1, got {getattr(config, name)}.')
