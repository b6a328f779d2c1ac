"""Is the implementation as private as it claims? A run with canaries, and attacks on its model. PRIVATE, all of it."""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from tf_dpdiff import files
from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.evaluation import canaries as canaries_lib
from tf_dpdiff.evaluation import gradient_canaries as gradient_canaries_lib
from tf_dpdiff.evaluation import membership
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.evaluation import sample_attacks as sample_attacks_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import auditing
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.runs import audit_summary
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import clock as clock_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import loop as loop_lib
from tf_dpdiff.training import pretraining as pretraining_lib
from tf_dpdiff.training import strategies
from tf_dpdiff.training import warm_start as warm_start_lib

# What is written to non_private/ of an audit, and of the attack on a run: NAME.json and NAME.png.
AUDIT, MEMBERSHIP = 'audit', 'membership'
_INCLUSIONS = 'canary_inclusions.json'
_NOTE = (
    'Measured on private images without noise: not to be released. The audited model was trained with a privacy '
    'budget of its own; publishing anything made from it would cost that budget on top.'
)
_NOTE_OF_PUBLIC = (
    'An audit of a training run with canaries, on images that say of themselves that they are public: it may be '
    'published.'
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AuditRecipe:
    """What an audit is made of: the private run that is audited, and its canaries.

    Attributes:
      data: The private images, and real images held out from them.
      network: The network's shape.
      process: The diffusion process.
      privacy: The privacy budget and how it is spent.
      finetuning: The DP-SGD stage.
      pretraining: The public stage, or None.
      warm_start: The stage on what a noisy release tells of the classes, or None.
      canaries: Which canaries, and how they are looked for.
      gradient_canaries: Which canaries of an audit by gradients; see `gradient_audit`.
      sample_attacks: How samples are attacked; see `sample_audit`.
      loop: Settings of the loop.
    """

    data: datasets.PrivateData
    network: denoiser.DenoiserConfig
    process: process_lib.DiffusionProcess
    privacy: plan_lib.DpSgdConfig
    finetuning: finetuning_lib.FinetuningConfig
    pretraining: pretraining_lib.PretrainingConfig | None = None
    warm_start: warm_start_lib.WarmStartConfig | None = None
    canaries: canaries_lib.AuditConfig = canaries_lib.AuditConfig()
    gradient_canaries: gradient_canaries_lib.GradientAuditConfig = gradient_canaries_lib.GradientAuditConfig()
    sample_attacks: sample_attacks_lib.SampleAttackConfig = sample_attacks_lib.SampleAttackConfig()
    loop: loop_lib.TrainerConfig = loop_lib.TrainerConfig()

    def __post_init__(self):
        if self.warm_start and self.canaries.kind == 'own_class':
            raise ValueError(
                "kind='own_class' gives each canary a class, which the warm start would release something of: set "
                "audit.warm_start = None, or AuditConfig.kind = 'mislabelled'."
            )
        membership.check_timesteps(self.canaries.timesteps, self.process)

    def build(self, made: canaries_lib.Canaries) -> build_lib.Build:
        """Returns the run on the private images and the canaries, each of which is a unit more, in or out."""
        pretraining = self.pretraining
        if pretraining:
            public = canaries_lib.with_classes(pretraining.images, made.class_names)
            pretraining = dataclasses.replace(pretraining, dataset=public)
        recipe = recipe_lib.Recipe(
            network=self.network,
            process=self.process,
            data=self.data,
            privacy=self.privacy,
            finetuning=self.finetuning,
            pretraining=pretraining,
            warm_start=self.warm_start,
            loop=self.loop,
        )
        num_units = self.data.spec.num_units + len(made)
        spec = dataclasses.replace(self.data.spec, num_units=num_units, class_names=made.class_names)
        return build_lib.Build(recipe, spec)


class PreparedAudit(NamedTuple):
    """An audit that is ready to begin.

    Attributes:
      recipe: What was chosen.
      canaries: They; which of them take part is not drawn yet.
      build: The run that is audited.
      plan: Its privacy plan.
    """

    recipe: AuditRecipe
    canaries: canaries_lib.Canaries
    build: build_lib.Build
    plan: plan_lib.DpSgdPlan


class FinishedAudit(NamedTuple):
    """What came out of an audit: PRIVATE.

    Attributes:
      result: What the canaries tell of epsilon.
      attack: What the losses of real images tell of who took part.
      time: How long it took, in words.
      is_public: Whether the images are public, and a summary that may be shown was written.
    """

    result: auditing.AuditResult
    attack: membership.MembershipAttack
    time: str
    is_public: bool


def prepare(recipe: AuditRecipe, *, say: Callable[[str], None]) -> PreparedAudit:
    """Makes the canaries and calibrates the noise; says what a person must know beforehand.

    Raises:
      ValueError: if the parts do not fit together, or the budget can't be met.
    """
    made = canaries_lib.make_canaries(recipe.canaries, recipe.data)
    with progress.working('audit', 'calibrating the noise'):
        build = recipe.build(made)
    assert build.plan is not None  # What is audited is a private run.
    for caution in build.plan.cautions():
        say(f'caution: {caution}')
    return PreparedAudit(recipe, made, build, build.plan)


def audit(
    recipe: AuditRecipe,
    workdir: pathlib.Path,
    *,
    configuration: str,
    replicas: strategies.Replicas = strategies.ONE,
    say: Callable[[str], None] = progress.sayer('audit'),
    clock: clock_lib.Clock | None = None,
) -> FinishedAudit:
    """Trains a model on the private images and canaries, and bounds its epsilon from below; resumes.

    The model is never released, so there is no statement about it, also where the run diverges.

    Args:
      recipe: What was chosen.
      workdir: The audit's folder; held by the caller, see `folder.training_in`.
      configuration: The recipe as a configuration file has it, for the record.
      replicas: What computes the steps, of one process.
      say: Tells a person what is going on.
      clock: Measures this call; None: from now on.

    Raises:
      ValueError: if the recipe or the folder refuses the audit; says what to do.
      interruption.Interrupted: if it was asked to stop; everything is saved, and the same call goes on.
      FloatingPointError: if the run diverged.
    """
    clock = clock or clock_lib.Clock()
    prepared = prepare(recipe, say=say)
    included = _read_or_draw_inclusions(workdir, len(prepared.canaries))
    private = canaries_lib.insert(recipe.data.train, prepared.canaries, included)
    with contextlib.ExitStack() as kept:
        with replicas.working() as stop:
            with progress.working('audit', 'reading and comparing the images, building the network'):
                training = prepared.build.make_training(workdir, private, make_grid_drawer=None, replicas=replicas)
            trainer = training.trainer
            kept.enter_context(clock.kept_in(workdir))
            files.write_text(workdir / folder.OPERATIVE_CONFIG, configuration)
            if trainer.resumed:
                say(f'the run in {workdir} {trainer.position()}.')
            trainer.run(stop)
        image_loss = _image_loss(trainer.released_model(), recipe.process, recipe.canaries)
        result, attack = _look_for_canaries(
            workdir, prepared, included, image_loss, prepared.plan.epsilon(trainer.state.ledger)
        )
        is_public = recipe.data.is_public
        if is_public:
            audit_summary.write(
                workdir,
                note=_NOTE_OF_PUBLIC,
                what=f'canaries of kind {recipe.canaries.kind!r} in a training run',
                summary=result.to_text(),
                settings={
                    'private_data': prepared.build.spec.name,
                    'num_units': prepared.plan.num_units,
                    'privacy': prepared.plan.fingerprint(),
                    'canaries': dataclasses.asdict(recipe.canaries),
                },
                audit=result.to_dict(),
            )
        return FinishedAudit(result, attack, clock.describe(), is_public)


def attack_run(
    workdir: pathlib.Path, data: datasets.PrivateData, config: canaries_lib.AuditConfig
) -> membership.MembershipAttack:
    """Attacks the model of an existing run by the losses of real images, and writes to non_private/; trains nothing.

    Args:
      workdir: The run's folder.
      data: The images that it was trained on, and real images held out from them.
      config: How losses are computed.

    Returns:
      What the attack tells: PRIVATE.

    Raises:
      FileNotFoundError: if there is no run.
      ValueError: if it was trained on other images, or has diverged.
    """
    described = folder.read_model(workdir)
    if described.image_shape != data.train.image_shape or described.class_names != data.train.class_names:
        raise ValueError(
            f'the model in {workdir} was made for images of {described.image_shape} and '
            f'{len(described.class_names)} classes, not for {data.train.name!r}.'
        )
    folder.check_not_diverged(workdir)
    identity = checkpoints.read_identity(workdir / checkpoints.FOLDER)
    if identity is None:
        raise FileNotFoundError(
            f'no checkpoint in {workdir / checkpoints.FOLDER}; train first, or name another --workdir.'
        )
    if identity.data_fingerprint != data.train.fingerprint():
        raise ValueError(
            f'the run in {workdir} was trained on other images than {data.train.name!r}: who was in it is not known.'
        )
    model = denoiser.build(described.network, described.image_shape, len(described.class_names))
    checkpoints.load_average(workdir / checkpoints.FOLDER, model)
    return _attack(workdir, MEMBERSHIP, _image_loss(model, described.process, config), data.train, data.held_out)


def _read_or_draw_inclusions(workdir: pathlib.Path, num_canaries: int) -> np.ndarray:
    """Returns which canaries are in, as flipped when the audit was begun."""
    path = workdir / folder.NON_PRIVATE / _INCLUSIONS
    if path.exists():
        included = np.array(files.read_json(path).get('included', ()), bool)
        if len(included) != num_canaries:
            raise ValueError(
                f'the audit in {workdir} was begun with {len(included)} canaries, not {num_canaries}: name '
                'another --workdir.'
            )
        return included
    if (workdir / checkpoints.FOLDER).exists():
        raise ValueError(
            f'{workdir} holds a run that is no audit; an audit trains a model of its own: name '
            'another --workdir, or attack this one with --membership.'
        )
    included = canaries_lib.draw_inclusions(num_canaries)
    # On disk before anything is trained: a resumed audit must not flip again.
    files.write_text(path, json.dumps({'note': _NOTE, 'included': included.astype(int).tolist()}) + '\n')
    return included


def _look_for_canaries(
    workdir: pathlib.Path,
    prepared: PreparedAudit,
    included: np.ndarray,
    image_loss: membership.ImageLoss,
    proven_epsilon: float,
) -> tuple[auditing.AuditResult, membership.MembershipAttack]:
    """Scores the canaries, attacks the real images, and writes what was found."""
    config, made = prepared.recipe.canaries, prepared.canaries
    scores = canaries_lib.scores(image_loss, made)
    result = auditing.audit(
        scores,
        included,
        proven_epsilon=proven_epsilon,
        delta=prepared.plan.config.target_delta,
        num_guesses=config.num_guesses,
        confidence=config.confidence,
    )
    attack = _attack(
        workdir,
        AUDIT,
        image_loss,
        prepared.recipe.data.train,
        made.non_members,
        facts={'summary': result.to_text(), 'kind': config.kind, 'audit': result.to_dict()},
        canaries=(scores, included, auditing.guess_membership(scores, config.num_guesses)),
    )
    return result, attack


def _image_loss(model, process: process_lib.DiffusionProcess, config: canaries_lib.AuditConfig) -> membership.ImageLoss:
    return membership.ImageLoss(
        model,
        process,
        config.timesteps,
        draws_per_timestep=config.draws_per_timestep,
        seed=config.seed,
        chunk_size=config.chunk_size,
    )


def _attack(
    workdir: pathlib.Path,
    name: str,
    image_loss: membership.ImageLoss,
    members: datasets.ImageDataset,
    non_members: datasets.ImageDataset,
    *,
    facts: dict[str, Any] | None = None,
    canaries: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> membership.MembershipAttack:
    """Attacks by the losses of real images, and writes NAME.json and NAME.png to non_private/."""
    of_members, of_others = (image_loss(part.images_uint8, part.labels) for part in (members, non_members))
    attack = membership.attack(of_members, of_others)
    fields = {'note': _NOTE, **(facts or {}), 'membership_attack': attack.to_dict()}
    files.write_text(workdir / folder.NON_PRIVATE / f'{name}.json', json.dumps(fields, indent=2) + '\n')
    pictures.draw_audit(
        workdir / folder.NON_PRIVATE / f'{name}.png', attack=attack, losses=(of_members, of_others), canaries=canaries
    )
    return attack
