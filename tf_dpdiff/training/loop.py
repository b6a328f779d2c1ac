"""The loop over stages and steps: progress, checkpoints, clean stops."""

from collections.abc import Callable, Sequence
import dataclasses
import math
import pathlib
import time

import numpy as np
import tqdm

from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import divergence
from tf_dpdiff.training import finetuning
from tf_dpdiff.training import interruption
from tf_dpdiff.training import pretraining
from tf_dpdiff.training import profiling
from tf_dpdiff.training import stage as stage_lib
from tf_dpdiff.training import summaries as summaries_lib

_DONE = 'done'
_NOT_FINITE = 'the weights are not finite'

# Draws a picture of samples of a network: uint8 [height, width, channels].
DrawGrid = Callable[[keras.Model], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """Settings of the loop; none of them changes what is learnt or what it costs.

    Attributes:
      checkpoint_every_secs: Seconds between checkpoints, besides those at the end of a stage, at a stop and with each
        grid.
      log_every_steps: Steps between TensorBoard entries and, in a private stage, between looks at whether the network
        still predicts finite numbers.
      log_non_private: Whether to write training loss, gradient norms and clipped share, computed from private data
        without noise, to non_private/. Never release that folder.
      grids_per_stage: How often samples are drawn for TensorBoard in the course of a stage, evenly spaced, the last
        time at its end; 0: never.
      checkpoints_to_keep: How many of the newest checkpoints are kept, >= 1; where the newest is damaged, the last good
        one of them is used.
      profile_steps: (start, stop): the steps of the last stage that are traced for TensorBoard's profiler (which is a
        plugin of its own, tensorboard-plugin-profile); a few are enough. The trace of a private run tells how long its
        steps take, and so how many units are in them: it goes to non_private/. None: no trace.
    """

    checkpoint_every_secs: float = 60.0
    log_every_steps: int = 20
    log_non_private: bool = False
    grids_per_stage: int = 5
    checkpoints_to_keep: int = 2
    profile_steps: tuple[int, int] | None = None

    def __post_init__(self):
        if self.log_every_steps < 1:
            raise ValueError(f'log_every_steps must be at least 1, got {self.log_every_steps}.')
        if self.grids_per_stage < 0:
            raise ValueError(f'grids_per_stage must be at least 0, got {self.grids_per_stage}.')
        if self.checkpoints_to_keep < 1:
            raise ValueError(f'checkpoints_to_keep must be at least 1, got {self.checkpoints_to_keep}.')
        if self.profile_steps is not None:
            if len(self.profile_steps) != 2 or not 0 <= self.profile_steps[0] < self.profile_steps[1]:
                raise ValueError(
                    f'profile_steps must be (start, stop) with 0 <= start < stop, got {self.profile_steps}.'
                )


class Trainer:
    """Runs the stages of one model, from wherever its folder says that it stands.

    Of several workers all run the same loop. The first one alone reads and writes the folder: the others get from it
    where the run stands. So they hold the same weights, the same secret and the same ledger at every step, and what the
    first one saves is what any of them would.

    Args:
      workdir: The run's folder.
      configuration: JSON-able values that must be the same when the run is resumed.
      config: Settings of the loop.
      state: Where the run stands, by `checkpoints.resume_or_begin` with the same configuration.
      training: What the stages share: networks that are as they are when a run begins.
      stages: The stages of the run in order, made of what they share and of the state.
      summaries: The run's TensorBoard events; written to at the first worker only.
      build_network: Returns a new network like those that are trained.
      num_classes: Of the network.
      plan: The privacy plan of a run that reads private images, which so has a secret seed; None: it reads none.
      draw_grid: Draws the samples of `average` that TensorBoard shows, the same numbers each time; None: it shows none.

    Attributes:
      model: The network being trained.
      average: The network with the moving average of the weights.
      plan: The privacy plan, or None.
      replicas: What computes the steps.
      state: Where the run stands.
      resumed: Whether the folder held a run.
      summaries: Its TensorBoard events.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        configuration: dict,
        config: TrainerConfig,
        *,
        state: checkpoints.RunState,
        training: stage_lib.Training,
        stages: Sequence[stage_lib.Stage],
        summaries: summaries_lib.Summaries,
        build_network: Callable[[], keras.Model],
        num_classes: int,
        plan: plan_lib.DpSgdPlan | None = None,
        draw_grid: DrawGrid | None = None,
    ):
        self.plan, self.state, self.resumed, self.summaries = plan, state, state.has_begun, summaries
        self.model, self.average, _, self.replicas = training
        self._config, self._draw_grid, self._build_network, self._stages = config, draw_grid, build_network, stages
        self._directory = workdir / checkpoints.FOLDER
        self._profile_folder = summaries.released_folder if plan is None else summaries.private_folder
        self._check = divergence.NetworkCheck(
            (self.model, self.average), self.model.inputs[0].shape[1:].as_list(), num_classes
        )
        self._checkpoint = checkpoints.RunCheckpoint(
            self._directory,
            configuration,
            max_to_keep=config.checkpoints_to_keep,
            model=self.model,
            average=self.average,
            **{f'{stage.name}_optimizer': stage.optimizer for stage in stages if stage.optimizer is not None},
        )
        if not self.resumed:
            self.state.stage = stages[0].name
            self._write_checkpoint()  # The seed is on disk before anything is drawn from it.
        elif self.replicas.workers.is_first:
            self._checkpoint.restore(self.state)
        self.replicas.copy_from_first_worker(self._checkpoint.variables)

    def released_model(self) -> keras.Model:
        """Returns a copy of the averaged network that belongs to no strategy: what is released."""
        model = self._build_network()
        model.set_weights(self.average.get_weights())
        return model

    @property
    def is_done(self) -> bool:
        """Whether all stages have ended."""
        return self.state.stage == _DONE

    def position(self) -> str:
        """Returns the position of the run, in words."""
        return 'is complete' if self.is_done else f'goes on in {self.state.stage} at step {self.state.step}'

    def run(self, stop: interruption.StopRequest) -> None:
        """Runs what is left of the run.

        Raises:
          interruption.Interrupted: after a request to stop, with everything saved.
          divergence.DivergedError: if the run has diverged. The last good weights stand, saved together with the ledger
            of all that was released; the run is over, at all workers.
        """
        names = [stage.name for stage in self._stages] + [_DONE]
        while not self.is_done:
            index = names.index(self.state.stage)
            self._run_stage(self._stages[index], stop)
            self._stop_if_diverged(self._find_problem())
            self.state.stage, self.state.step = names[index + 1], 0
            self.save()

    def save(self) -> None:
        """Saves what all replicas hold alike; called by all workers after the same step."""
        self.replicas.check_in_step(self._checkpoint.variables)
        self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        if self.replicas.workers.is_first:
            # Events first: a resumed run repeats what is after the checkpoint, and nothing before it.
            self.summaries.flush()
            self._checkpoint.save(self.state)

    def _run_stage(self, stage: stage_lib.Stage, stop: interruption.StopRequest) -> None:
        workers = self.replicas.workers
        self._stop_if_diverged(self._find_problem())  # Before a stage releases anything.
        stage.begin(self.save)
        last_saved = time.monotonic()
        grid_steps = _evenly_spaced(stage.num_steps, self._config.grids_per_stage) if self._draw_grid else set()
        profile_steps = self._config.profile_steps if stage is self._stages[-1] and workers.is_first else None
        with (
            progress.bar(
                stage.num_steps,
                stage.name,
                'step',
                initial=self.state.step,
                disable=not workers.is_first or stage.num_steps == 0,
            ) as bar,
            profiling.StepProfiler(self._profile_folder, profile_steps) as profiler,
        ):
            self._show(bar, {})
            bar.refresh()
            while self.state.step < stage.num_steps:
                profiler.before(self.state.step)
                # Where a worker is lost this raises and nothing is saved: the run goes on from its last checkpoint.
                scalars = stage.run_step(self.state.step)
                profiler.after(self.state.step)
                self.state.step += 1
                problem = self._find_problem_of_step(stage, scalars)
                self._show(bar, scalars)  # Before the bar moves: it may show itself when it does.
                bar.update()
                if workers.is_first and self._is_logged(stage):
                    self._log(stage, scalars)
                shows = workers.is_first and self.state.step in grid_steps
                is_due = time.monotonic() - last_saved > self._config.checkpoint_every_secs
                # When to save, and so to compare the weights, the first worker decides by its clock for all of them.
                stops, saves, diverged = workers.any_of(
                    [stop.requested, shows or workers.is_first and is_due, problem is not None]
                )
                if diverged:
                    raise self._diverge(problem)
                if stops or saves:
                    self._save_if_sound(stage, shows)
                if stops:
                    workers.wait_for_all()  # Who ends before the first one has saved might have it killed.
                    raise interruption.Interrupted(
                        f'stopped in {stage.name} after step {self.state.step} of {stage.num_steps} '
                        f'({stop.reason or "by another worker"}); everything is saved'
                    )
                if saves:
                    last_saved = time.monotonic()
        stage.end()

    def _save_if_sound(self, stage: stage_lib.Stage, shows: bool) -> None:
        """Saves, unless the run has diverged, and shows samples of the weights that were just saved, at one worker.

        A step that is repeated on other replicas has the same noise, but its sum is rounded otherwise: pictures of both
        would tell more than one step does. So nothing is shown of weights that a crash could lose.
        """
        # Drawn before: little is left to do between saving and showing, where a crash would leave the step no picture.
        grid, problem = self._draw(stage) if shows else (None, None)
        self._stop_if_diverged(problem or self._find_problem())
        self.save()
        if grid is not None:
            self.summaries.stage_image(stage.name, 'samples', grid, self.state.step)
            self.summaries.flush()

    def _draw(self, stage: stage_lib.Stage) -> tuple[np.ndarray | None, str | None]:
        """Returns a picture of samples, None where none may be shown, and in words why there can be none."""
        try:
            if self._draw_grid is None or not self._is_released(stage):
                return None, None
            return self._draw_grid(self.average), None
        except FloatingPointError:
            return None, 'its samples are not finite'

    def _is_logged(self, stage: stage_lib.Stage) -> bool:
        return self.state.step % self._config.log_every_steps == 0 or self.state.step in (1, stage.num_steps)

    def _log(self, stage: stage_lib.Stage, scalars: dict) -> None:
        epsilon = self._epsilon_spent()
        if epsilon is not None:
            scalars = {**scalars, 'epsilon_spent': rounding.float32_not_below(epsilon)}
        self.summaries.scalars(stage.name, scalars, self.state.step)
        self.summaries.flush()

    def _show(self, bar: tqdm.tqdm, scalars: dict) -> None:
        """Sets what stands beside a progress bar: of this step, and epsilon never below what has been spent."""
        if bar.disable:
            return
        shown, epsilon = {}, self._epsilon_spent()
        if 'loss' in scalars:
            shown['loss'] = f'{scalars["loss"]:.3f}'
        if epsilon is not None:
            shown['epsilon'] = rounding.round_up(epsilon)
        bar.set_postfix(shown, refresh=False)

    def _find_problem(self) -> str | None:
        """Returns in words why the networks are of no use; None: they are. See `divergence` for what is looked at."""
        if not self._check.weights_are_finite():
            return _NOT_FINITE
        if not self._check.predictions_are_finite():
            return 'the network predicts numbers that are not finite'
        return None

    def _find_problem_of_step(self, stage: stage_lib.Stage, scalars: dict) -> str | None:
        """Returns as `_find_problem` does, by what is cheap: the loss where a stage tells it, else now and then."""
        if 'loss' in scalars and not math.isfinite(scalars['loss']):
            return f'the loss is {scalars["loss"]}'
        if 'loss' not in scalars and self._is_logged(stage):
            return self._find_problem()
        return None if self._check.weights_are_finite() else _NOT_FINITE

    def _stop_if_diverged(self, problem: str | None) -> None:
        """Stops all workers where one has found a problem; called by all of them."""
        if self.replicas.workers.any(problem is not None):
            raise self._diverge(problem)

    def _diverge(self, problem: str | None) -> divergence.DivergedError:
        """Ends the run: saves the last good weights with the ledger as it is now; returns what is to be raised."""
        name, step = self.state.stage, self.state.step
        num_steps = {stage.name: stage.num_steps for stage in self._stages}[name]
        if self.replicas.workers.is_first:
            self._checkpoint.restore()
        self.state.stage = checkpoints.DIVERGED
        self._write_checkpoint()
        self.replicas.workers.wait_for_all()  # Who ends before the first one has saved might have it killed.
        return divergence.DivergedError(
            f'{name} diverged by step {step} of {num_steps}: {problem or "so another worker found"}. {self._spent()} '
            f"Lower learning_rate of the stage's OptimizationConfig, and start anew in another --workdir; "
            f'{self._directory} keeps the last good weights.'
        )

    def _is_released(self, stage: stage_lib.Stage) -> bool:
        """Returns whether samples of the averaged weights may be shown as they are now.

        In a private run: whether the ledger holds everything private that these weights were computed from.

        What the accountant composes is the whole sequence of noisy sums (and the releases before them), each chosen
        knowing those before it: epsilon covers someone who sees all of them, not the last weights alone. The averaged
        weights after s steps are a function of public things and of the first s sums; a grid is a function of these
        weights and of public seeds. So all grids and the final model together are post-processing of what the ledger
        holds, and a grid at step s costs what the ledger says at step s. A step repeated after a crash makes the same
        sum with the same noise, so it shows the same grid and releases nothing twice.

        This would not hold for accounting that hides the weights on the way (amplification by iteration), for weights
        that are ahead of the ledger, or for noiseless training: then nothing is shown.
        """
        if self.plan is None or stage.name == pretraining.NAME:
            return True
        ledger = self.state.ledger
        steps = self.state.step if stage.name == finetuning.NAME else 0
        recorded = ledger.count(ledger_lib.DP_SGD_STEP) == steps and all(
            ledger.count(release.mechanism) == release.num_rounds for release in self.plan.other_releases
        )
        return recorded and math.isfinite(self._epsilon_spent() or 0.0)

    def _epsilon_spent(self) -> float | None:
        """Returns a bound of what the run has spent; None where nothing private was released."""
        ledger = self.state.ledger
        if self.plan is None or not ledger.releases:
            return None
        config = self.plan.config
        return curves.epsilon_bound(
            self.plan.dp_event, config.num_steps, config.target_delta, ledger.count(ledger_lib.DP_SGD_STEP)
        )

    def _spent(self) -> str:
        """Returns a sentence on what the run has spent."""
        if self.plan is None:
            return 'No private image was read.'
        ledger = self.state.ledger
        if not ledger.releases:
            return 'Nothing was released of the private images, and no privacy is spent.'
        return (
            f'What was released of the private images cost epsilon = {rounding.round_up(self.plan.epsilon(ledger))}'
            f' at delta = {rounding.exact(self.plan.config.target_delta)}, and stays spent.'
        )


def _evenly_spaced(num_steps: int, count: int) -> set[int]:
    """Returns up to count steps, the last one among them; none for a count of 0."""
    return {math.ceil(num_steps * i / count) for i in range(1, count + 1)}
