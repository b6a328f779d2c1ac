"""Private training: public pre-training, a warm start and DP-SGD in one run, or DP-SGD from a public checkpoint."""

import dataclasses
import functools
import math
import pathlib

import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.data import overlap
from tf_dpdiff.diffusion import losses
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import model_check
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.training import loop
from tf_dpdiff.training import pretrained as pretrained_lib
from tf_dpdiff.training import stages as stages_lib
from tf_dpdiff.training import strategies
from tf_dpdiff.training import views as views_lib
from tf_dpdiff.training import warm_start as warm_start_lib


class Trainer(loop.StageLoop):
    """Trains one model privately, from wherever its folder says that it stands.

    Args:
      workdir: The run's folder.
      private: The private images.
      network: The network's shape.
      process: The diffusion process.
      plan: The privacy plan.
      pretraining: The public stage, or None.
      warm_start: The stage on what a noisy release tells of the classes, or None.
      finetuning: The DP-SGD stage.
      config: Settings of the loop.
      on_release: Called with the noisy class means, or with the public images that noisy feature means have chosen.
      draw_grid: Draws the samples of the averaged network that TensorBoard shows, with public seeds; None: no grids.
      replicas: What computes the steps.

    Attributes:
      average: The network with the moving average of the weights.
      state: Where the run stands.
      resumed: Whether the folder held a run.
      summaries: Its TensorBoard events.
      num_private_images_that_are_public: How many private images are among the public ones: PRIVATE.

    Raises:
      ValueError: if the parts do not fit together; names what differs.
      model_check.ModelCheckError: if the network is not fit for per-unit clipping.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        private: datasets.ImageDataset,
        *,
        network: unet.UNetConfig,
        process: process_lib.DiffusionProcess,
        plan: plan_lib.DpSgdPlan,
        pretraining: stages_lib.PretrainingConfig | None,
        warm_start: stages_lib.WarmStartConfig | None,
        finetuning: stages_lib.FinetuningConfig,
        config: loop.TrainerConfig,
        on_release: warm_start_lib.OnRelease,
        draw_grid: loop.DrawGrid | None = None,
        replicas: strategies.Replicas = strategies.ONE,
    ):
        self._plan, self._spec, self._num_views = plan, private.spec, finetuning.views.augmentation_multiplicity
        if plan.num_units != private.num_units:
            raise ValueError(
                f'the plan is for {plan.num_units} units, data set {private.name!r} has {private.num_units}.'
            )
        if warm_start and warm_start.release != plan.warm_start_release:
            raise ValueError(
                f'the warm start makes another release, {warm_start.release}, than the plan accounts for: '
                f'{plan.warm_start_release}.'
            )
        origin = open_origin(finetuning, pretraining, network, process)
        check_warm_start(warm_start, private.spec, plan.config.neighboring_relation, replicas.workers.count)
        self.num_private_images_that_are_public = _check_public_images(pretraining, warm_start, origin, private)
        self._public_data = describe_public_data(pretraining, origin, warm_start)
        self._workdir = workdir
        configuration = {
            'privacy': plan.fingerprint(),
            'data_fingerprint': private.fingerprint(),
            'network': dataclasses.asdict(network),
            'process': dataclasses.asdict(process),
            'pretraining': loop.describe(pretraining),
            'warm_start': loop.describe(warm_start),
            # The weights and not the place where they lie decide what is learnt.
            'finetuning': {**loop.describe(finetuning), 'init_from': origin and origin.sha256},
        }
        super().__init__(
            workdir,
            configuration,
            config,
            network=network,
            image_shape=private.image_shape,
            num_classes=private.num_classes,
            is_private=True,
            draw_grid=draw_grid,
            replicas=replicas,
        )
        if origin and not self.resumed:
            origin.carry_over_to(self.model)
            self.average.set_weights(self.model.get_weights())

        def view_sampler(views: views_lib.ViewsConfig) -> views_lib.ViewSampler:
            return views_lib.make_view_sampler(process, views, network, private.num_classes)

        check_model(self.model, private.image_shape, view_sampler(finetuning.views))
        with replicas.scope():
            stages = self._make_stages(pretraining, warm_start, finetuning, private, view_sampler, on_release)
        self._open(stages)

    def _make_stages(self, pretraining, warm_start, finetuning, private, view_sampler, on_release):
        """Returns the stages of the run, in order."""
        is_first, stages = self.replicas.workers.is_first, []
        networks = self.model, self.average
        if pretraining:
            views = view_sampler(pretraining.views)
            stages.append(stages_lib.make_pretraining(pretraining, *networks, views, self.replicas))
        if warm_start:
            views = view_sampler(warm_start.views)
            make_images = functools.partial(
                warm_start_lib.make_images,
                warm_start,
                self._plan,
                private,
                self.state,
                workdir=self._workdir,
                save=self._save,
                on_release=on_release if is_first else lambda unused_release: None,
                workers=self.replicas.workers,
            )
            stages.append(stages_lib.make_warm_start(warm_start, *networks, views, self.replicas, make_images))
        log = self._log_diagnostics if self._config.log_non_private and is_first else None
        views = view_sampler(finetuning.views)
        stages.append(
            stages_lib.make_finetuning(
                finetuning, *networks, views, self.replicas, self._plan, private, self.state, log
            )
        )
        return stages

    def statement(self) -> statement_lib.PrivacyStatement:
        """Returns what is promised about the weights, made from what the run has released."""
        return make_statement(
            self._spec, self._plan, self.state.ledger, self._num_views, self._public_data, self.state.run_id
        )

    def _epsilon_spent(self) -> float | None:
        ledger, config = self.state.ledger, self._plan.config
        if not ledger.releases:
            return None
        return curves.epsilon_bound(
            self._plan.dp_event, config.num_steps, config.target_delta, ledger.count(ledger_lib.DP_SGD_STEP)
        )

    def _spent(self) -> str:
        ledger = self.state.ledger
        if not ledger.releases:
            return 'Nothing was released of the private images, and no privacy is spent.'
        return (
            f'What was released of the private images cost epsilon = {rounding.round_up(self._plan.epsilon(ledger))}'
            f' at delta = {rounding.exact(self._plan.config.target_delta)}, and stays spent.'
        )

    def _is_released(self, stage: stages_lib.Stage) -> bool:
        """Returns whether the ledger holds everything private that the averaged weights were computed from.

        What the accountant composes is the whole sequence of noisy sums (and the warm start's release), each chosen
        knowing those before it: epsilon covers someone who sees all of them, not the last weights alone. The averaged
        weights after s steps are a function of public things and of the first s sums; a grid is a function of these
        weights and of public seeds. So all grids and the final model together are post-processing of what the ledger
        holds, and a grid at step s costs what the ledger says at step s. A step repeated after a crash makes the same
        sum with the same noise, so it shows the same grid and releases nothing twice.

        This would not hold for accounting that hides the weights on the way (amplification by iteration), for weights
        that are ahead of the ledger, or for noiseless training: then nothing is shown.
        """
        if stage.name == stages_lib.PRETRAINING:
            return True
        ledger = self.state.ledger
        steps = self.state.step if stage.name == stages_lib.FINETUNING else 0
        release = self._plan.warm_start_release
        recorded = ledger.count(ledger_lib.DP_SGD_STEP) == steps and (
            release is None or ledger.count(release.mechanism) == release.num_rounds
        )
        return recorded and math.isfinite(self._epsilon_spent() or 0.0)

    def _log_diagnostics(self, step: int, diagnostics: dict) -> None:
        if step % self._config.log_every_steps == 0:
            units = max(diagnostics['num_units'], 1.0)
            self.summaries.non_private_scalars(
                {
                    'loss': diagnostics['loss_sum'] / units,
                    'gradient_norm': diagnostics['norm_sum'] / units,
                    'clipped_fraction': diagnostics['num_clipped'] / units,
                    'num_nonfinite': diagnostics['num_nonfinite'],
                    'num_units': diagnostics['num_units'],
                },
                step,
            )


def make_statement(
    spec: datasets.DatasetSpec,
    plan: plan_lib.DpSgdPlan,
    ledger: ledger_lib.Ledger,
    num_views: int,
    public_data: tuple[str, ...],
    run_id: str | None = None,
) -> statement_lib.PrivacyStatement:
    """Returns the statement of a run on a data set; arguments as `statement.PrivacyStatement` has them."""
    return statement_lib.PrivacyStatement(
        unit=spec.unit,
        dataset=spec.name,
        plan=plan,
        ledger=ledger,
        augmentation_multiplicity=num_views,
        run_id=run_id,
        public_data=public_data,
        has_owners=spec.has_owners,
    )


def open_origin(
    finetuning: stages_lib.FinetuningConfig,
    pretraining: stages_lib.PretrainingConfig | None,
    network: unet.UNetConfig,
    process: process_lib.DiffusionProcess,
) -> pretrained_lib.PretrainedModel | None:
    """Returns the public checkpoint that a run starts from, or None where it starts from none.

    Raises:
      FileNotFoundError: if there is none where one is said to be.
      ValueError: if it does not fit the network or the process, or if the run has a public stage of its own.
    """
    if finetuning.init_from is None:
        return None
    if pretraining:
        raise ValueError(
            'a run either has a public stage of its own or starts from a checkpoint: set pretraining = None '
            "(of 'train' or 'audit'), or FinetuningConfig.init_from = None."
        )
    origin = pretrained_lib.read(pathlib.Path(finetuning.init_from).expanduser())
    origin.check_fits(network, process)
    return origin


def describe_public_data(
    pretraining: stages_lib.PretrainingConfig | None,
    origin: pretrained_lib.PretrainedModel | None,
    warm_start: stages_lib.WarmStartConfig | None = None,
) -> tuple[str, ...]:
    """Returns the public images that a run's weights see, one phrase a source."""
    phrases = [origin.to_phrase()] if origin else []
    phrases += [pretraining.spec.to_phrase()] if pretraining else []
    phrases += [warm_start.public.spec.to_phrase()] if warm_start and warm_start.has_public_images else []
    return tuple(dict.fromkeys(phrases))


def check_model(model: keras.Model, image_shape, view_sampler: views_lib.ViewSampler) -> None:
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
        lambda images, units: view_sampler.draw_for_units(images, labels[:, None], units, seed=seed, step=step),
        [1, *image_shape],
    )


def check_public_shape(public: datasets.DatasetSpec, private: datasets.DatasetSpec) -> None:
    """Refuses public images of another shape or number of classes than the private ones.

    Raises:
      ValueError: names both.
    """
    if public.image_shape != private.image_shape or public.num_classes != private.num_classes:
        raise ValueError(
            f'the public images ({public.name!r}: {public.image_shape}, {public.num_classes} classes) must have '
            f'the shape and the number of classes of the private ones ({private.name!r}: '
            f'{private.image_shape}, {private.num_classes} classes).'
        )


def check_warm_start(
    warm_start: stages_lib.WarmStartConfig | None,
    private: datasets.DatasetSpec,
    neighboring_relation: str,
    num_workers: int = 1,
) -> None:
    """Refuses a warm start on public images that do not fit the private ones, in noise or in several processes.

    Raises:
      ValueError: says what does not fit.
    """
    if not warm_start or not warm_start.has_public_images:
        return
    if num_workers > 1:
        # Each would train a classifier of its own: other features, the same noise, and other images to train on.
        raise ValueError(
            f'a warm start on public images is for one process, got {num_workers} workers: use the '
            "strategy 'default' or 'mirrored'."
        )
    public = warm_start.public.spec
    if public.image_shape != private.image_shape:
        raise ValueError(
            f'public of WarmStartConfig ({public.name!r}: {public.image_shape}) must have the shape of the '
            f'private images ({private.name!r}: {private.image_shape}): see image_shape of '
            'public_images.'
        )
    warm_start.release.check_enough(private.num_units, private.num_classes, neighboring_relation)


def _check_public_images(pretraining, warm_start, origin, private: datasets.ImageDataset) -> int:
    """Refuses public images that do not fit the private ones, or are the private ones; counts those: PRIVATE."""
    digests = [origin.image_digests] if origin else []
    if pretraining:
        check_public_shape(pretraining.spec, private.spec)
        digests.append(overlap.image_digests(pretraining.images.images_uint8))
    if warm_start and warm_start.has_public_images:
        labelled = warm_start_lib.with_classes_that_have_images(warm_start.images)
        digests.append(overlap.image_digests(labelled.images_uint8))
    if not digests:
        return 0
    return overlap.check_is_not_private(digests, overlap.image_digests(private.images_uint8), private.name)
