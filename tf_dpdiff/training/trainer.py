"""The loop over stages and steps: progress, checkpoints, clean stops."""

import dataclasses
import pathlib
import sys
import time
from typing import Callable, List, Optional

import numpy as np
import tensorflow as tf
import tqdm

from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import losses
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import model_check
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import interruption
from tf_dpdiff.training import stages as stages_lib
from tf_dpdiff.training import summaries as summaries_lib
from tf_dpdiff.training import views as views_lib

_DONE = 'done'


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """Settings of the loop; none of them changes what is learnt or what it costs.

    Attributes:
      checkpoint_every_secs: Seconds between checkpoints, besides those at the end of a stage and at a stop.
      log_every_steps: Steps between TensorBoard entries.
      log_non_private: Whether to write training loss, gradient norms and clipped share, computed from private data
        without noise, to non_private/. Never release that folder.
    """
    checkpoint_every_secs: float = 60.0
    log_every_steps: int = 20
    log_non_private: bool = False


class Trainer:
    """Trains one model through its stages, from wherever its folder says that it stands.

    Args:
      workdir: The run's folder.
      private: The private images.
      network: The network's shape.
      process: The diffusion process.
      plan: The privacy plan.
      pretraining: The public stage, or None.
      warm_start: The stage on noisy class means, or None.
      finetuning: The DP-SGD stage.
      config: Settings of the loop.
      on_release: Called with the noisy class means, float32 [classes, height, width, channels] in [0, 1].

    Attributes:
      average: The network with the moving average of the weights: what is released.
      state: Where the run stands.
      summaries: Its TensorBoard events.

    Raises:
      checkpoints.CheckpointMismatchError: if the folder holds a run of another configuration.
    """

    def __init__(self, workdir: pathlib.Path, private: datasets.ImageDataset, *, network: unet.UNetConfig,
                 process: process_lib.DiffusionProcess, plan: plan_lib.DpSgdPlan,
                 pretraining: Optional[stages_lib.PretrainingConfig], warm_start: Optional[stages_lib.WarmStartConfig],
                 finetuning: stages_lib.FinetuningConfig, config: TrainerConfig, on_release: Callable[[np.ndarray],
                                                                                                      None]):
        self._config = config
        self._plan = plan
        if pretraining:
            _check_public_images(pretraining.dataset, private)
        if plan.num_units != private.num_units:
            raise ValueError(
                f'the plan is for {plan.num_units} units, data set {private.name!r} has {private.num_units}.')
        directory = workdir / 'checkpoints'
        configuration = {
            'privacy': plan.fingerprint(),
            'data_fingerprint': private.fingerprint(),
            'network': dataclasses.asdict(network),
            'process': dataclasses.asdict(process),
            'pretraining': _describe(pretraining),
            'warm_start': _describe(warm_start),
            'finetuning': _describe(finetuning),
        }
        state = checkpoints.read_state(directory, configuration)
        self.resumed = state is not None
        self.state = state or checkpoints.RunState(seeds.PrivateSeed.from_os_entropy())
        self.summaries = summaries_lib.Summaries(workdir)
        tf.keras.utils.set_random_seed(0)  # Initial weights are public.
        model, self.average = (unet.build_unet(network, private.image_shape, private.num_classes) for _ in range(2))
        check_model(model, private.image_shape, views_lib.ViewSampler(process, finetuning.views))
        self._stages = self._make_stages(model, process, private, pretraining, warm_start, finetuning, on_release)
        self._checkpoint = checkpoints.RunCheckpoint(
            directory,
            configuration,
            model=model,
            average=self.average,
            **{f'{stage.name}_optimizer': stage.optimizer for stage in self._stages})
        if self.resumed:
            self._checkpoint.restore()
        else:
            self.state.stage = self._stages[0].name
            self._checkpoint.save(self.state)  # The seed is on disk before anything is drawn from it.

    def _make_stages(self, model, process, private, pretraining, warm_start, finetuning,
                     on_release) -> List[stages_lib.Stage]:
        stages = []
        if pretraining:
            stages.append(stages_lib.make_pretraining(pretraining, model, process))
        if warm_start:
            stages.append(
                stages_lib.make_warm_start(warm_start, model, process, self._plan, private, self.state, on_release))
        on_diagnostics = self._log_diagnostics if self._config.log_non_private else None
        stages.append(
            stages_lib.make_finetuning(finetuning, model, self.average, process, self._plan, private, self.state,
                                       on_diagnostics))
        return stages

    @property
    def is_done(self) -> bool:
        """Whether all stages have ended."""
        return self.state.stage == _DONE

    def position(self) -> str:
        """Returns where the run stands, in words."""
        return 'is complete' if self.is_done else f'goes on in {self.state.stage} at step {self.state.step}'

    def run(self, stop: interruption.StopRequest) -> None:
        """Runs what is left of the run.

        Raises:
          interruption.Interrupted: after a request to stop, with everything saved.
        """
        names = [stage.name for stage in self._stages] + [_DONE]
        while not self.is_done:
            index = names.index(self.state.stage)
            self._run_stage(self._stages[index], stop)
            self.state.stage, self.state.step = names[index + 1], 0
            self._checkpoint.save(self.state)
            self.summaries.flush()

    def _run_stage(self, stage: stages_lib.Stage, stop: interruption.StopRequest) -> None:
        stage.begin()
        last_saved = time.monotonic()
        with tqdm.tqdm(total=stage.num_steps,
                       initial=self.state.step,
                       desc=stage.name.ljust(11),
                       unit='step',
                       dynamic_ncols=True,
                       mininterval=0.2 if sys.stderr.isatty() else 30.0) as progress:
            while self.state.step < stage.num_steps:
                scalars = stage.run_step(self.state.step)
                self.state.step += 1
                progress.update()
                if self.state.step % self._config.log_every_steps == 0 or self.state.step == stage.num_steps:
                    self._log(stage, scalars, progress)
                if stop.requested:
                    self._checkpoint.save(self.state)
                    self.summaries.flush()
                    raise interruption.Interrupted(f'stopped in {stage.name} after step {self.state.step} of '
                                                   f'{stage.num_steps}; everything is saved')
                if time.monotonic() - last_saved > self._config.checkpoint_every_secs:
                    self._checkpoint.save(self.state)
                    last_saved = time.monotonic()

    def _log(self, stage: stages_lib.Stage, scalars: dict, progress: tqdm.tqdm) -> None:
        scalars = dict(scalars)
        if self.state.ledger.releases:
            # A coarser discretization than the statement's: quicker, and an upper bound all the same.
            scalars['epsilon_spent'] = self._plan.epsilon(self.state.ledger, discretization_interval=1e-3)
        self.summaries.scalars(stage.name, scalars, self.state.step)
        shown = {'loss': 'loss', 'epsilon_spent': 'epsilon'}
        progress.set_postfix({shown[k]: f'{v:.3f}' for k, v in scalars.items() if k in shown}, refresh=False)

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
                }, step)


def check_model(model: tf.keras.Model, image_shape, view_sampler: views_lib.ViewSampler) -> None:
    """Refuses a network, or views, that are not fit for per-unit clipping.

    Raises:
      model_check.ModelCheckError: names the layer and the cure.
    """
    model_check.check_layers(model)
    t, labels = tf.constant([1, 2, 3]), tf.zeros([3], tf.int32)
    model_check.check_independence(model, lambda x: [x, t, labels], image_shape)
    model_check.check_loss(losses.view_losses, image_shape)
    seed, step = tf.constant(0, tf.int64), tf.constant(0, tf.int64)
    model_check.check_views(
        lambda images, units: view_sampler.draw_for_units(images, labels[:, None], units, seed=seed, step=step),
        [1, *image_shape])


def _check_public_images(public: datasets.ImageDataset, private: datasets.ImageDataset) -> None:
    if public.image_shape != private.image_shape or public.num_classes != private.num_classes:
        raise ValueError(
            f'the public images ({public.name!r}: {public.image_shape}, {public.num_classes} classes) must have '
            f'the shape and the number of classes of the private ones ({private.name!r}: '
            f'{private.image_shape}, {private.num_classes} classes).')


def _describe(config) -> Optional[dict]:
    """Returns a stage's configuration as plain values, its data set by name and fingerprint."""
    if config is None:
        return None
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name, value in fields.items():
        if isinstance(value, datasets.ImageDataset):
            fields[name] = [value.name, value.fingerprint()]
        elif dataclasses.is_dataclass(value):
            fields[name] = dataclasses.asdict(value)
    return fields
