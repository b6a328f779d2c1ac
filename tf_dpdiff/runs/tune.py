"""A private choice among candidates: several runs, of which the best is released, and of the others nothing.

The number of runs is drawn at random and stays secret; see `privacy/best_of_runs.py`. All of it happens in a private
folder in that of the run, tuning/, which is gone in the end: what is left is the folder of a run like any other.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any, NamedTuple

from tf_dpdiff import files
from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import classifiers as classifiers_lib
from tf_dpdiff.evaluation import run_scores
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import best_of_runs
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.runs import budget as budget_file
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import forecast
from tf_dpdiff.runs import outcome
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.runs import run as run_lib
from tf_dpdiff.sampling import store
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import strategies
from tf_dpdiff.training import warm_start

FOLDER = 'tuning'  # In the folder of the run; PRIVATE.
_RUN, _BEST, _STATE, _README = 'run', 'best', 'choice.json', 'README.txt'
_README_TEXT = """PRIVATE. A choice among runs is being made here: how many runs there are, and what the others are
worth, must stay secret. The folder is deleted when the choice is made.
"""
_HELD_OUT, _SAMPLES = 'held_out', 'samples'
SCORES = (_HELD_OUT, _SAMPLES)
# What candidates may differ in of the private part: neither changes what is charged, nor what a statement says of it.
_MAY_DIFFER = ('l2_norm_clip', 'clipping')
_RUNNING, _CHOSEN, _NOTHING = 'running', 'chosen', 'nothing'


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """Which candidates are tried, in how many runs, and by what these are compared.

    Attributes:
      candidates: At least two, each a tuple of bindings, such as ('WarmStartConfig.num_steps = 500',); an empty one
        takes the file as it is. All must cost the same: they may differ in all that changes no private release.
      mean_num_runs: The expected number of runs, in (1, 1000]. Their number is drawn; it may be several times as large.
      eta: The shape of its distribution, 0 or in [0.001, 100]; see `best_of_runs.NumRuns`.
      score: What the largest of is released: 'held_out' (accuracy on held-out private images of a classifier that is
        trained on the run's samples, with noise, which is charged), or 'samples' (accuracy on a fifth of the samples
        after training on the others, which costs nothing, and tells less).
      score_noise_multiplier: Of the score where it is 'held_out', > 0: the noise on the number of held-out units that
        are right has this standard deviation.
      classifier: That classifier: its name in `classifiers.CLASSIFIERS`, (name, options), or a ClassifierConfig.
    """

    candidates: Sequence[Sequence[str]]
    mean_num_runs: float
    eta: float = 1.0
    score: str = _HELD_OUT
    score_noise_multiplier: float | None = None
    classifier: classifiers_lib.ConfigLike = 'rbf_svm'

    def __post_init__(self):
        if isinstance(self.candidates, str) or any(
            isinstance(bindings, str) or not all(isinstance(binding, str) for binding in bindings)
            for bindings in self.candidates
        ):
            raise ValueError(f'candidates of TuneConfig must be tuples of bindings, got {self.candidates!r}.')
        object.__setattr__(self, 'candidates', tuple(tuple(bindings) for bindings in self.candidates))
        if len(self.candidates) < 2 or len(set(self.phrases)) < len(self.candidates):
            raise ValueError(f'candidates of TuneConfig must be at least two, all different, got {self.candidates}.')
        if self.score not in SCORES:
            raise ValueError(f'score of TuneConfig must be one of {SCORES}, got {self.score!r}.')
        if (self.score == _HELD_OUT) != (self.score_noise_multiplier is not None):
            raise ValueError(
                'score_noise_multiplier of TuneConfig is for the score on held-out private images, which needs it: got '
                f'score={self.score!r} and score_noise_multiplier={self.score_noise_multiplier}.'
            )
        object.__setattr__(self, 'classifier', classifiers_lib.as_config(self.classifier))
        self.tuning()  # Which checks the numbers.

    @property
    def phrases(self) -> tuple[str, ...]:
        """What is told of the candidates: their bindings, without paths."""
        return tuple(
            '; '.join(outcome.cut_paths(binding) for binding in bindings) or 'the configuration as it is'
            for bindings in self.candidates
        )

    def tuning(self) -> best_of_runs.Tuning:
        """Returns what is public of the choice."""
        config = classifiers_lib.as_config(self.classifier)
        (title,) = classifiers_lib.titles((config,))
        trained_on, tested_on = "the run's samples", 'held-out private images'
        if self.score == _SAMPLES:
            trained_on, tested_on = "four fifths of the run's samples", 'the others'
        return best_of_runs.Tuning(
            num_runs=best_of_runs.NumRuns(float(self.mean_num_runs), float(self.eta)),
            candidates=self.phrases,
            score=f'accuracy on {tested_on} of a classifier ({title}) trained on {trained_on}',
            score_noise_multiplier=self.score_noise_multiplier,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TuneRecipe:
    """What a choice among runs is made of, besides the configuration of a run.

    Attributes:
      config: Candidates, number of runs and score.
    """

    config: TuneConfig


class PreparedChoice(NamedTuple):
    """A choice that its folder and budget let in.

    Attributes:
      config: Candidates, number of runs and score.
      builds: One a candidate.
      plan: Of any of the runs: what it is charged is that of all.
      budget: The budget of the data as it would be with the choice, or None where there is none.
    """

    config: TuneConfig
    builds: tuple[build_lib.Build, ...]
    plan: plan_lib.DpSgdPlan
    budget: budget_lib.Budget | None

    @property
    def data(self) -> datasets.PrivateData:
        """The private images, the same for all candidates."""
        data = self.builds[0].recipe.data
        assert data is not None  # See `prepare`.
        return data


def prepare(
    config: TuneConfig,
    recipes: Sequence[recipe_lib.Recipe],
    workdir: pathlib.Path,
    *,
    say: run_lib.Say,
    dry_run: bool = False,
    anyway: bool = False,
) -> PreparedChoice:
    """Builds all candidates, and refuses those that do not cost the same, before anything is spent.

    Args:
      config: Candidates, number of runs and score.
      recipes: One a candidate.
      workdir: The folder of the run that will be released.
      say: Tells what a person must know beforehand.
      dry_run: Whether nothing is to be written or decoded.
      anyway: Whether to go on where the noise would hide all that could be learnt.

    Raises:
      ValueError: if the choice is refused; says what to do.
      accounting.BudgetError: if the target cannot be met, or the budget of the data would be passed.
    """
    if len(recipes) != len(config.candidates):
        raise ValueError(f'there are {len(config.candidates)} candidates and {len(recipes)} recipes.')
    if not all(recipe.is_private for recipe in recipes):
        raise ValueError('runs on public images alone cost no privacy: compare them as you like, without bin/tune.')
    tuning = config.tuning()
    with progress.working('tune', 'calibrating the noise'):
        builds = tuple(
            build_lib.Build(recipe, one_of_several=build_lib.OneOfSeveral(tuning, number, None))
            for number, recipe in enumerate(recipes)
        )
    check_same_cost(builds, config.phrases)
    plan = builds[0].plan
    assert plan is not None
    for build in builds:
        build.check()
        model = build.make_network()
        build.check_network(model)
        is_public = build.recipe.data is not None and build.recipe.data.is_public
        if not (dry_run or anyway or is_public):
            forecast.check_can_work(forecast.forecast_of(build, model))
    for caution in plan.cautions():
        say(f'caution: {caution}')
    budget = None
    if builds[0].recipe.budget_file:
        begun = _read_state(workdir)
        run_id = begun['run_id'] if begun else 'not begun yet'
        budget = _reserve(plan, builds[0].recipe, run_id)(budget_file.read(builds[0].recipe.budget_file))
    return PreparedChoice(config, builds, plan, budget)


def check_same_cost(builds: Sequence[build_lib.Build], phrases: Sequence[str]) -> None:
    """Refuses candidates that do not release the same of the same private data.

    Guarantee: where it returns, each of the candidates makes the very releases of the first one, by the same
      mechanisms, noise multipliers, sampling probabilities and numbers, so that one bound is that of all of them.

    Args:
      builds: One a candidate.
      phrases: What is told of each.

    Raises:
      ValueError: names the candidate and what differs.
    """
    first = builds[0]
    assert first.plan is not None
    for build, phrase in zip(builds, phrases):
        assert build.plan is not None
        names = [
            field.name
            for field in dataclasses.fields(plan_lib.DpSgdConfig)
            if field.name not in _MAY_DIFFER
            and getattr(build.plan.config, field.name) != getattr(first.plan.config, field.name)
        ]
        if build.plan.planned_ledger() != first.plan.planned_ledger():
            names.append('what is released of the private images')
        if build.spec != first.spec:
            names.append('the private images')
        if build.recipe.budget_file != first.recipe.budget_file:
            names.append('the budget file')
        if names:
            raise ValueError(
                f'the candidate {phrase!r} differs from {phrases[0]!r} in {", ".join(names)}: all candidates must cost '
                'the same, since one bound has to hold for a run of any of them. Let them differ in what changes no '
                'private release.'
            )


def tune(
    config: TuneConfig,
    recipes: Sequence[recipe_lib.Recipe],
    workdir: pathlib.Path,
    *,
    replicas: strategies.Replicas = strategies.ONE,
    say: run_lib.Say = progress.sayer('tune'),
    anyway: bool = False,
) -> pathlib.Path:
    """Makes the runs, and leaves the best of them; goes on where the folder holds an unfinished choice.

    Nothing that it says tells how many runs there are, or what any of them is worth; how long it takes does.

    Args:
      config: Candidates, number of runs and score.
      recipes: One a candidate.
      workdir: The folder of the run that is released; held by the caller, see `folder.training_in`.
      replicas: What computes the steps, in one process.
      say: Tells a person what is going on.
      anyway: Whether to go on where the noise would hide all that could be learnt.

    Returns:
      The folder.

    Raises:
      ValueError: if the recipes, the folder or the budget refuse the choice; says what to do.
      interruption.Interrupted: if it was asked to stop; everything is saved, and the same call goes on.
      FloatingPointError: if all runs diverged: nothing is released, and what was reserved is spent.
    """
    if replicas.workers.count > 1:
        raise ValueError('a choice among runs is for one process.')
    if _is_made(workdir):
        say(f'the choice in {workdir} is made')
        return workdir
    prepared = prepare(config, recipes, workdir, say=say, anyway=anyway)
    with progress.working('tune', 'reading and comparing the images'):
        fingerprint = _check_data(prepared, say)
    choice = _Choice.resume_or_begin(workdir / FOLDER, fingerprint, prepared.config.tuning())
    path = prepared.builds[0].recipe.budget_file
    if path:
        with progress.working('tune', 'computing what all runs on these data cost together'):
            budget_file.update(path, _reserve(prepared.plan, prepared.builds[0].recipe, choice.run_id))
    while choice.phase == _RUNNING:
        choice.tidy()
        if choice.is_over:
            choice.end()
        else:
            _make_run(choice, prepared, replicas)
    if path:
        # As a whole, however far each of the runs came.
        ledger = prepared.plan.planned_ledger()
        budget_file.update(path, lambda budget: budget.settle(choice.run_id, ledger))
    choice.hand_over(workdir)
    return workdir


def _make_run(choice: '_Choice', prepared: PreparedChoice, replicas: strategies.Replicas) -> None:
    """Makes the run that is next, or goes on with it, and has it judged."""
    number, tuning = choice.candidate(), prepared.plan.tuning
    build, directory = prepared.builds[number], choice.directory / _RUN
    assert tuning is not None
    recipe = dataclasses.replace(build.recipe, budget_file=None, utility=None)
    recipe = recipe.configured_by(build.recipe.to_text())
    directory.mkdir(mode=0o700, exist_ok=True)
    found = checkpoints.read_run(directory / checkpoints.FOLDER)
    if found is not None and found.has_diverged:  # The process was killed before that was judged.
        choice.judge(-math.inf)
        return
    try:
        run_lib.train(
            recipe,
            directory,
            replicas=replicas,
            say=lambda unused_text: None,  # What there is to say was said of all of them.
            anyway=True,  # Likewise.
            one_of_several=build_lib.OneOfSeveral(tuning, number, choice.run_id),
        )
    except (FloatingPointError, warm_start.NothingChosenError):  # Both follow from what the run is charged for.
        choice.judge(-math.inf)
        return
    choice.judge(_score(prepared, directory, choice.score_seed()))


def _score(prepared: PreparedChoice, directory: pathlib.Path, seed: seeds.PrivateSeed) -> float:
    """Returns the score of a finished run: PRIVATE."""
    config, data = prepared.config, prepared.data
    classifier = classifiers_lib.as_config(config.classifier)
    samples = store.read(directory / folder.SAMPLES)
    if config.score == _SAMPLES:
        return run_scores.accuracy_on_samples(classifier, samples.images, samples.labels, data.spec.num_classes)
    assert config.score_noise_multiplier is not None
    held_out = data.held_out
    found = run_scores.predicted_classes(
        classifier, samples.images, samples.labels, held_out.images_uint8, data.spec.num_classes
    )
    return accuracy_release.AccuracyReleaseConfig(config.score_noise_multiplier).score(
        (found == held_out.labels)[:, None],
        seed=seed,
        num_units=held_out.num_units,
        owners=held_out.owners,
        generator=prepared.plan.config.noise_generator,
    )


def _check_data(prepared: PreparedChoice, say: run_lib.Say) -> dict[str, Any]:
    """Refuses candidates on other images than the first one's; returns what a choice that goes on must not change."""
    data, config = prepared.data, prepared.config
    fingerprint, uses_held_out = data.train.fingerprint(), config.score == _HELD_OUT
    held_out = data.held_out.fingerprint() if uses_held_out else None
    # The noise would be for one, the claim is for the other.
    if uses_held_out and data.held_out.unit != data.spec.unit:
        raise ValueError(
            f'the claim protects {data.spec.unit!r}, but the held-out images name no owners, so a score on them would '
            f"protect no more than {data.held_out.unit!r}: name their owners too, or set TuneConfig.score = 'samples'."
        )
    for build, phrase in zip(prepared.builds, config.phrases):
        other = build.recipe.data
        assert other is not None
        if other.train.fingerprint() != fingerprint or (uses_held_out and other.held_out.fingerprint() != held_out):
            raise ValueError(f'the candidate {phrase!r} has other private images: all candidates must have the same.')
        run_lib.tell_overlap(build.count_private_images_that_are_public(build.open_origin(), other.train), say)
    settings = [build.recipe.to_text() for build in prepared.builds]
    return {
        'plans': [build.plan.fingerprint() for build in prepared.builds if build.plan],
        'data_fingerprint': fingerprint,
        'held_out_fingerprint': held_out,
        'classifier': dataclasses.asdict(classifiers_lib.as_config(config.classifier)),
        'configurations': [hashlib.sha256(text.encode()).hexdigest() for text in settings],
    }


def _reserve(plan: plan_lib.DpSgdPlan, recipe: recipe_lib.Recipe, run_id: str) -> budget_file.Change:
    """Returns the change of a budget that reserves the whole choice; one that goes on is not charged again."""
    assert recipe.data is not None
    about = budget_file.about(recipe.data.train)
    return lambda budget: budget.reserve(run_id, plan.planned_ledger(), **about)


def _is_made(workdir: pathlib.Path) -> bool:
    """Returns whether a folder holds the run that a choice has left.

    Raises:
      ValueError: if it holds another run.
    """
    directory = workdir / FOLDER
    if (directory / _STATE).exists():
        return False
    if directory.exists():
        # A file that was being written has a name that begins with a dot. Runs are begun once the state is there.
        if any(path.name != _README and not path.name.startswith('.') for path in directory.iterdir()):
            raise ValueError(
                f'{directory / _STATE} is missing: without it the choice cannot go on. Put it back from a copy, or '
                'name another --workdir; the privacy that was spent stays spent.'
            )
        shutil.rmtree(directory)
    statement, found = folder.statement_paths(workdir)[1], checkpoints.read_run(workdir / checkpoints.FOLDER)
    if found is None and not statement.exists():
        return False
    if statement.exists() and files.read_json(statement).get('best_of_runs'):
        folder.check_statement(workdir)
        return True
    raise ValueError(f'{workdir} holds another run: name another --workdir.')


def _read_state(workdir: pathlib.Path) -> dict[str, Any] | None:
    path = workdir / FOLDER / _STATE
    return files.read_json(path) if path.exists() else None


class _Choice:
    """Where a choice stands, in its private folder: PRIVATE, all of it.

    How many runs there are is not written down: it follows from the secret.
    """

    def __init__(self, directory: pathlib.Path, state: dict[str, Any], tuning: best_of_runs.Tuning):
        self.directory, self._state, self._tuning = directory, state, tuning
        secret = state['secret']
        self._seed = seeds.PrivateSeed(bytes.fromhex(secret)) if secret else None

    @classmethod
    def resume_or_begin(
        cls, directory: pathlib.Path, fingerprint: dict[str, Any], tuning: best_of_runs.Tuning
    ) -> '_Choice':
        """Returns the choice in a folder, or a new one, whose secret is on disk before anything is drawn from it.

        Raises:
          ValueError: if the choice was begun with another configuration or other images.
        """
        path, fingerprint = directory / _STATE, json.loads(json.dumps(fingerprint))
        if path.exists():
            state = files.read_json(path)
            if state['fingerprint'] != fingerprint:
                raise ValueError(
                    f'the choice in {directory.parent} was begun with another configuration or other images: going on '
                    'would break its accounting. Use the same, or name another --workdir.'
                )
            return cls(directory, state, tuning)
        others = [path.name for path in directory.parent.iterdir() if not path.name.startswith('.')]
        if others:
            raise ValueError(
                f'{directory.parent} is not empty ({others[0]}): name another --workdir for the run that is released.'
            )
        directory.mkdir(mode=0o700)
        files.write_text(directory / _README, _README_TEXT)
        state = {
            'secret': seeds.PrivateSeed.from_os_entropy().reveal().hex(),
            'run_id': checkpoints.new_run_id(),
            'fingerprint': fingerprint,
            'phase': _RUNNING,
            'num_judged': 0,
            'best': None,
            'judged_is_better': None,
        }
        choice = cls(directory, state, tuning)
        choice._save()
        return choice

    @property
    def run_id(self) -> str:
        """The public name of the run that is released."""
        return self._state['run_id']

    @property
    def phase(self) -> str:
        """Whether runs are being made, the best is chosen, or there is none."""
        return self._state['phase']

    @property
    def is_over(self) -> bool:
        """Whether all runs were made."""
        return self._state['num_judged'] >= self._tuning.num_runs.draw(self._secret)

    @property
    def _secret(self) -> seeds.PrivateSeed:
        assert self._seed is not None  # While runs are made.
        return self._seed

    def candidate(self) -> int:
        """Returns the candidate of the next run."""
        return self._tuning.draw_candidate(self._secret, self._state['num_judged'])

    def score_seed(self) -> seeds.PrivateSeed:
        """Returns the secret of the score of the next run."""
        return seeds.PrivateSeed(self._secret.derive_key(f'score of run {self._state["num_judged"]}'))

    def judge(self, score: float) -> None:
        """Keeps the run that was made where it is the best so far, else deletes it.

        Runs are in a total order: of equal scores a number decides that each run draws. A run that has diverged is
        below all others, and never kept.
        """
        if math.isnan(score):
            raise ValueError('a score that is no number orders nothing.')
        tie = self._secret.derive_key(f'order of run {self._state["num_judged"]}').hex()
        best = self._state['best']
        is_better = score > -math.inf and (best is None or (score, tie) > (best['score'], best['tie']))
        if is_better:
            self._state['best'] = {'score': score, 'tie': tie}
        self._state.update(num_judged=self._state['num_judged'] + 1, judged_is_better=is_better)
        self._save()  # From here on it is decided, also where the process is killed.
        self.tidy()

    def tidy(self) -> None:
        """Deletes what lost, where a run was judged."""
        run, best = self.directory / _RUN, self.directory / _BEST
        if self._state['judged_is_better'] is None:
            return
        if self._state['judged_is_better'] and run.exists():
            _delete(best)
            os.rename(run, best)
        _delete(run)
        self._state['judged_is_better'] = None
        self._save()

    def end(self) -> None:
        """Ends the choice, and forgets the secret from which the number of runs follows."""
        phase = _CHOSEN if self._state['best'] else _NOTHING
        self._state.update(phase=phase, secret=None, num_judged=None, best=None)
        self._seed = None
        self._save()

    def hand_over(self, workdir: pathlib.Path) -> None:
        """Moves the best run to where it is looked for, and deletes the folder of the choice.

        Raises:
          FloatingPointError: if there is no best run.
        """
        best = self.directory / _BEST
        if self.phase == _NOTHING:
            raise FloatingPointError(
                'all runs diverged, or chose no public image: nothing is released, and what the choice costs is spent. '
                'Lower the learning rates of the candidates or the noise on feature means, and name another --workdir.'
            )
        for path in sorted(best.iterdir()) if best.exists() else ():
            os.rename(path, workdir / path.name)
        _delete(best)
        (self.directory / _STATE).unlink()
        _delete(self.directory)

    def _save(self) -> None:
        with files.replacing(self.directory / _STATE) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, 'w', encoding='utf-8') as file:
                file.write(json.dumps(self._state))
                file.flush()
                os.fsync(file.fileno())


def _delete(directory: pathlib.Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


def cost_of_one_run(plan: plan_lib.DpSgdPlan) -> float:
    """Returns the epsilon of one run by the plan of a choice, were it the only one, without a score, by RDP."""
    alone = dataclasses.replace(plan, tuning=None)
    return accounting.epsilon(alone.planned_ledger().dp_event(), plan.config.target_delta, accountant='rdp')
