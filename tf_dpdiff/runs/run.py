"""A run from its recipe to its release, on private or public images: one path, with stages that are there or not."""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from tf_dpdiff import files
from tf_dpdiff import progress
from tf_dpdiff.evaluation import utility as utility_lib
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import cautions
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.runs import budget as budget_file
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import clock as clock_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import forecast
from tf_dpdiff.runs import outcome
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.runs import tensorboard_events
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.sampling import store
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import interruption
from tf_dpdiff.training import pretraining
from tf_dpdiff.training import public_checkpoint
from tf_dpdiff.training import strategies
from tf_dpdiff.training import warm_start as warm_start_lib

Say = Callable[[str], None]  # Tells a person something, in a sentence or two.


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """What came out of a run.

    Attributes:
      workdir: The run's folder.
      statement: What is promised about everything that it releases.
      version: The folder of the exported model.
      num_samples: How many samples were drawn.
      utility: What classifiers trained on the samples are worth, PRIVATE; empty where that was not measured.
      checkpoint: Of a run on public images alone, what private runs start from; else None.
      time: How long it took, over all calls of its command, in words.
    """

    workdir: pathlib.Path
    statement: statement_lib.PrivacyStatement | statement_lib.PublicStatement
    version: pathlib.Path
    num_samples: int
    utility: dict[str, Any]
    checkpoint: public_checkpoint.PublicCheckpoint | None
    time: str


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedRun:
    """A run that its folder and its budget let in.

    Attributes:
      build: What the run is built from.
      utility: What can be measured in the end, or None.
      budget: The budget of the data as it would be with the run, or None where there is none.
    """

    build: build_lib.Build
    utility: utility_lib.UtilityConfig | None
    budget: budget_lib.Budget | None


def prepare(
    recipe: recipe_lib.Recipe,
    workdir: pathlib.Path,
    *,
    say: Say,
    is_first: bool = True,
    dry_run: bool = False,
    one_of_several: build_lib.OneOfSeveral | None = None,
) -> PreparedRun:
    """Builds a run, and refuses what its folder or budget would not let in; reads no image.

    Args:
      recipe: What was chosen.
      workdir: The run's folder.
      say: Tells what a person must know beforehand.
      is_first: Whether this is the first worker, which alone looks into the folder and the budget.
      dry_run: Whether nothing is to be written; otherwise what the run in the folder has released goes on record.
      one_of_several: The choice among runs in which it takes part, or None.

    Raises:
      ValueError: if the run is refused; says what to do.
    """
    if is_first and not dry_run:
        folder.check_free(workdir)
    if recipe.data is None:
        return PreparedRun(build_lib.Build(recipe), None, None)
    utility, left_out = utility_lib.fitting(recipe.utility, recipe.data, recipe.samples.num_images)
    with progress.working('train', 'calibrating the noise'):
        build = build_lib.Build(recipe, one_of_several=one_of_several)
        budget = _planned_budget(recipe, build, workdir, dry_run) if is_first and recipe.budget_file else None
    if is_first:
        for sentence in left_out:
            say(f'{sentence}.')
        assert build.plan is not None  # The run is private.
        of_total = cautions.of_delta(budget.delta, build.plan.num_units) if budget else None
        for caution in build.plan.cautions() + ([f'of the budget file, {of_total}'] if of_total else []):
            say(f'caution: {caution}')
    return PreparedRun(build, utility, budget)


def train(
    recipe: recipe_lib.Recipe,
    workdir: pathlib.Path,
    *,
    replicas: strategies.Replicas = strategies.ONE,
    say: Say = progress.sayer('train'),
    show_chosen: Callable[[warm_start_lib.ChosenImages], None] = lambda unused_chosen: None,
    anyway: bool = False,
    clock: clock_lib.Clock | None = None,
    one_of_several: build_lib.OneOfSeveral | None = None,
) -> TrainedRun | None:
    """Trains, samples, exports and evaluates; resumes where the folder holds an unfinished run.

    Args:
      recipe: What was chosen.
      workdir: The run's folder; held by the caller, see `folder.training_in`.
      replicas: What computes the steps.
      say: Tells a person what is going on.
      show_chosen: Called with the public images that a warm start chose.
      anyway: Whether to go on where the noise would hide all that could be learnt, see `forecast`.
      clock: Measures this call; None: from now on.
      one_of_several: The choice among runs in which it takes part, charged as a whole by who makes it; or None.

    Returns:
      What came out; None at the other workers than the first.

    Raises:
      ValueError: if the recipe, the folder or the budget refuses the run; says what to do.
      interruption.Interrupted: if the run was asked to stop; everything is saved, and the same call goes on.
      FloatingPointError: if the run diverged; what it had released is on record.
    """
    clock = clock or clock_lib.Clock()
    configuration = recipe.to_text()
    released_configuration = outcome.cut_paths(configuration)
    workers = replicas.workers
    if one_of_several and recipe.budget_file:
        raise ValueError('a choice among runs is charged as a whole: none of its runs has a budget file of its own.')
    prepared = prepare(recipe, workdir, say=say, is_first=workers.is_first, one_of_several=one_of_several)

    def on_release(released: warm_start_lib.Released) -> None:
        outcome.draw_released(workdir, released, prepared.build.model.class_names)
        if isinstance(released, warm_start_lib.ChosenImages):
            show_chosen(released)

    done = None
    with contextlib.ExitStack() as kept:
        with replicas.working() as stop:
            shared_work.at_first(workers, lambda: _check_can_work(prepared.build, workdir, anyway))
            with progress.working('train', 'reading and comparing the images, building the network'):
                training = prepared.build.make_training(
                    workdir, recipe.data.train if recipe.data else None, on_release=on_release, replicas=replicas
                )
            account = _Account(recipe, workdir, training, say)
            if workers.is_first:
                kept.enter_context(clock.kept_in(workdir))
                account.reserve()
                files.write_text(workdir / folder.OPERATIVE_CONFIG, configuration)
                _begin(recipe, workdir, training, released_configuration, say)
            released, checkpoint, drawn = _train_and_draw(recipe, workdir, training, account, stop)
        if workers.is_first:
            done = _finish(
                recipe,
                workdir,
                training,
                prepared.utility,
                released_configuration,
                released,
                checkpoint,
                drawn,
                clock,
                say,
            )
    workers.wait_for_all()  # None ends as done while the first one may yet fail.
    return done


def _check_can_work(build: build_lib.Build, workdir: pathlib.Path, anyway: bool) -> None:
    """Refuses to begin a run that would spend its budget for noise; on public images nothing is lost.

    Before it has left anything: the checkpoint with which a run begins would make the next try one that goes on.
    """
    recipe = build.recipe
    if anyway or recipe.data is None or recipe.data.is_public:
        return
    if not checkpoints.read_run(workdir / checkpoints.FOLDER):
        forecast.check_can_work(forecast.forecast_of(build))


class _Account:
    """Charges a run to the budget of its data, where there is one; at the first worker alone."""

    def __init__(self, recipe: recipe_lib.Recipe, workdir: pathlib.Path, training: build_lib.RunTraining, say: Say):
        self._path = recipe.budget_file if training.trainer.replicas.workers.is_first else None
        self._recipe, self._workdir, self._training, self._say = recipe, workdir, training, say

    def reserve(self) -> None:
        """Reserves all that the run may release."""
        if self._path:
            state, plan = self._training.trainer.state, self._training.build.plan
            assert plan is not None and self._recipe.data is not None  # Private runs alone have a budget file.
            self._charge('reserved', _reserve(plan, self._recipe.data.train, state.run_id))

    def settle(self) -> None:
        """Puts in place of that what the run has released."""
        state = self._training.trainer.state
        self._charge('settled', lambda budget: budget.settle(state.run_id, state.ledger))

    def write_down_spent(self) -> None:
        """Writes what a run has cost that ends without a model: its charge, and its statement if it released any."""
        trainer = self._training.trainer
        if trainer.replicas.workers.is_first and trainer.state.ledger.releases:
            folder.write_statement(self._workdir, self._training.statement())
        self.settle()

    def _charge(self, done: str, change: budget_file.Change) -> None:
        if self._path:
            with progress.working('train', 'computing what all runs on these data cost together'):
                budget = budget_file.update(self._path, change)
            self._say(f'{done} in {self._path}: {describe_spent(budget)}.')


def tell_overlap(count: int, say: Say) -> None:
    """Says how many private images are among the public ones, which is private, where there are any."""
    if count:
        say(
            f'{count:,} of the private images are among the public ones too: the guarantee covers what '
            'the private stages do with them, and not what the public stages show. This number is private: do not '
            'release it.'
        )


def _begin(recipe, workdir, training: build_lib.RunTraining, released_configuration: str, say: Say) -> None:
    """Writes what is known before its first step, and says where a resumed run stands."""
    trainer = training.trainer
    tell_overlap(training.num_private_images_that_are_public, say)
    training.model.write(workdir)
    tensorboard_events.write_begin(trainer, training.model, recipe, training.build.plan, released_configuration)
    if trainer.resumed:
        say(f'the run in {workdir} {trainer.position()}.')


def _train_and_draw(
    recipe, workdir, training: build_lib.RunTraining, account: _Account, stop: interruption.StopRequest
) -> tuple[Any, public_checkpoint.PublicCheckpoint | None, tuple[np.ndarray, np.ndarray]]:
    """Runs what is left of the training; returns the released network, a public checkpoint, and samples with labels."""
    trainer, checkpoint = training.trainer, None
    workers = trainer.replicas.workers
    try:
        trainer.run(stop)
    except FloatingPointError:
        account.write_down_spent()
        workers.wait_for_all()  # All of them have diverged; who ends before the first one has written might end it too.
        raise
    account.settle()
    # From here on everything is made from the released weights.
    released = trainer.released_model()
    if not recipe.is_private:
        checkpoint = pretraining.make_checkpoint(recipe.pretraining, recipe.network, recipe.process, released)
        if workers.is_first:
            checkpoint.write(workdir / public_checkpoint.FOLDER)
    try:
        drawn = outcome.draw(
            released, training.model, recipe.samples, workdir=workdir, stop=stop, workers=trainer.replicas.workers
        )
    except FloatingPointError:
        account.write_down_spent()
        raise
    return released, checkpoint, drawn


def _finish(
    recipe,
    workdir,
    training: build_lib.RunTraining,
    utility,
    released_configuration: str,
    released,
    checkpoint,
    drawn: tuple[np.ndarray, np.ndarray],
    clock: clock_lib.Clock,
    say: Say,
) -> TrainedRun:
    """Writes what may be released and, apart from it, what was measured on private images."""
    statement, summaries = training.statement(), training.trainer.summaries
    model = training.model
    if recipe.samples.labels != 'asked':
        images, asked = drawn
        model, labels, chosen = outcome.choose_labels(model, workdir, images, asked, how=recipe.samples.labels)
        model.write(workdir)
        drawn = images, labels
        say(f'{chosen}.')
    kind = 'private generator' if recipe.is_private else 'public model'
    with progress.working('train', 'writing statement, report and exported model'):
        version = outcome.write(
            workdir,
            f'tf_dpdiff: a {kind} of {training.build.spec.name}',
            _facts(statement, recipe),
            statement,
            model,
            released,
            summaries,
            *drawn,
            configuration=released_configuration,
        )
    measured = {}
    if utility:
        offered = store.join({path: store.read(path) for path in folder.samples_paths(workdir)})
        measured = utility_lib.measure(
            utility, offered.images, offered.labels, recipe.data.train, recipe.data.held_out
        ).fields
        files.write_text(workdir / folder.NON_PRIVATE / 'utility.json', json.dumps(measured, indent=2) + '\n')
        accuracies = {f'{classifier}/{source}': value for classifier, source, value in utility_lib.accuracies(measured)}
        assert isinstance(statement, statement_lib.PrivacyStatement)  # Private runs alone have a utility.
        summaries.non_private_scalars(accuracies, statement.plan.config.num_steps)
    summaries.flush()
    return TrainedRun(workdir, statement, version, len(drawn[0]), measured, checkpoint, time=clock.describe())


def _facts(statement, recipe: recipe_lib.Recipe) -> dict[str, str]:
    """Returns the facts at the head of the report."""
    fields = statement.to_dict()
    if not recipe.is_private:
        assert recipe.pretraining is not None
        return {
            'epsilon': 'no private images',
            'public images': f'{recipe.pretraining.spec.num_images:,}',
            'steps': str(recipe.pretraining.num_steps),
        }
    return {
        'epsilon': rounding.round_up(fields['epsilon']) if fields['guarantee_claimed'] else 'none claimed',
        'delta': rounding.exact(fields['delta']),
        'protected unit': fields['unit'],
        'steps': str(fields['steps_run']),
        **({'caution': ' '.join(fields['cautions'])} if fields['cautions'] else {}),
    }


def _planned_budget(recipe, build: build_lib.Build, workdir: pathlib.Path, dry_run: bool) -> budget_lib.Budget:
    """Returns the budget as it would be with the run; refuses the run before its folder is begun, or goes on.

    What the run in the folder has released already goes on record first, even where the rest is then refused: it may
    have begun without the budget file, or have been killed before it was settled. A dry run writes nothing.
    """
    data = recipe.data
    identity, run_id = checkpoints.read_identity(workdir / checkpoints.FOLDER), 'not begun yet'
    budget = budget_file.read(recipe.budget_file)
    if identity and identity.data_fingerprint == data.train.fingerprint():
        run_id = identity.run_id

        def record(budget: budget_lib.Budget) -> budget_lib.Budget:
            return budget.record_begun(run_id, identity.ledger, **budget_file.about(data.train))

        budget = record(budget) if dry_run else budget_file.update(recipe.budget_file, record)
    assert build.plan is not None
    return _reserve(build.plan, data.train, run_id)(budget)


def _reserve(plan: plan_lib.DpSgdPlan, dataset, run_id: str) -> budget_file.Change:
    """Returns the change of a budget that reserves all that a run may release."""
    return lambda budget: budget.reserve(run_id, plan.planned_ledger(), **budget_file.about(dataset))


def describe_spent(budget: budget_lib.Budget) -> str:
    """Returns in words what the runs of a budget have cost, or by how much it is overdrawn."""
    if budget.overdrawn_by():
        return f'{budget.describe_overdraft()}; no further run is let in'
    return (
        f'{len(budget.entries)} run(s) cost epsilon = {rounding.round_up(budget.epsilon())} of '
        f'{rounding.exact(budget.total_epsilon)} at delta = {rounding.exact(budget.delta)}'
    )
