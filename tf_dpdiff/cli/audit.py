"""bin/audit: is the implementation as private as it claims? A run with canaries, and attacks on its model."""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys

import gin
import numpy as np
from rich import console as rich_console

from tf_dpdiff import files
from tf_dpdiff import progress
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.evaluation import canaries as canaries_lib
from tf_dpdiff.evaluation import membership
from tf_dpdiff.evaluation import pictures
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import auditing
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import rounding
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

_NOTE = (
    'Measured on private images without noise: not to be released. The audited model was trained with a privacy '
    'budget of its own; publishing anything made from it would cost that budget on top.'
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


gin_config.root(AuditRecipe, 'audit')


def _audit(recipe: AuditRecipe, workdir: pathlib.Path, replicas: strategies.Replicas, clock: clock_lib.Clock) -> int:
    """Trains a model on the private images and canaries, and bounds its epsilon from below; resumes.

    Returns:
      The exit code: failed where the lower bound refutes the proven epsilon.
    """
    made, build = _build(recipe)
    included = _read_or_draw_inclusions(workdir, len(made))
    private = canaries_lib.insert(recipe.data.train, made, included)
    with contextlib.ExitStack() as kept:
        with replicas.working() as stop:
            with progress.working('audit', 'reading and comparing the images, building the network'):
                trainer = build.make_training(workdir, private, make_grid_drawer=None, replicas=replicas).trainer
            kept.enter_context(clock.kept_in(workdir))
            files.write_text(workdir / folder.OPERATIVE_CONFIG, gin.operative_config_str())
            if trainer.resumed:
                print(f'audit: the run in {workdir} {trainer.position()}.', file=sys.stderr)
            trainer.run(stop)
        result = _look_for_canaries(
            workdir, recipe.data, recipe.canaries, made, included, build.plan, recipe.process, trainer, clock
        )
    return command.FAILED if result.is_violation else command.DONE


def _build(recipe: AuditRecipe) -> tuple[canaries_lib.Canaries, build_lib.Build]:
    made = canaries_lib.make_canaries(recipe.canaries, recipe.data)
    with progress.working('audit', 'calibrating the noise'):
        build = recipe.build(made)
    assert build.plan is not None  # What is audited is a private run.
    command.print_cautions('audit', build.plan.cautions())
    return made, build


def _show(recipe: AuditRecipe) -> int:
    """Prints what would be done."""
    _, build = _build(recipe)
    recipe.data.look_at('train')
    build.open_origin()  # Which the audit would start from.
    _print_dry_run(recipe.data, recipe.canaries, build.plan, recipe.finetuning)
    return command.DONE


def _look_for_canaries(workdir, data, config, made, included, plan, process, trainer, clock) -> auditing.AuditResult:
    """Scores the canaries, attacks the real images, and says and writes what was found."""
    image_loss = _image_loss(trainer.released_model(), process, config)
    scores = canaries_lib.scores(image_loss, made)
    result = auditing.audit(
        scores,
        included,
        proven_epsilon=plan.epsilon(trainer.state.ledger),
        delta=plan.config.target_delta,
        num_guesses=config.num_guesses,
        confidence=config.confidence,
    )
    attack = _attack(
        workdir,
        'audit',
        image_loss,
        data.train,
        made.non_members,
        facts={'summary': result.to_text(), 'kind': config.kind, 'audit': result.to_dict()},
        canaries=(scores, included, auditing.guess_membership(scores, config.num_guesses)),
    )
    _print_results(workdir, result, config.kind, attack, clock.describe())
    return result


def _image_loss(model, process, config: canaries_lib.AuditConfig) -> membership.ImageLoss:
    return membership.ImageLoss(
        model,
        process,
        config.timesteps,
        draws_per_timestep=config.draws_per_timestep,
        seed=config.seed,
        chunk_size=config.chunk_size,
    )


def _read_or_draw_inclusions(workdir: pathlib.Path, num_canaries: int) -> np.ndarray:
    """Returns which canaries are in, as flipped when the audit was begun."""
    path = workdir / folder.NON_PRIVATE / 'canary_inclusions.json'
    if path.exists():
        included = np.array(files.read_json(path).get('included', ()), bool)
        if len(included) != num_canaries:
            raise ValueError(
                f'the audit in {workdir} was begun with {len(included)} canaries, not {num_canaries}: name '
                'another --workdir.'
            )
        return included
    if (workdir / checkpoints.FOLDER).exists():
        raise command.UsageError(
            f'{workdir} holds a run that is no audit; an audit trains a model of its own: name '
            'another --workdir, or attack this one with --membership.'
        )
    included = canaries_lib.draw_inclusions(num_canaries)
    # On disk before anything is trained: a resumed audit must not flip again.
    files.write_text(path, json.dumps({'note': _NOTE, 'included': included.astype(int).tolist()}) + '\n')
    return included


def _attack_run(workdir: pathlib.Path, data: datasets.PrivateData, config: canaries_lib.AuditConfig) -> int:
    """Attacks the model of an existing run by the losses of real images."""
    described = folder.read_model(workdir)
    if described.image_shape != data.train.image_shape or described.class_names != data.train.class_names:
        raise ValueError(
            f'the model in {workdir} was made for images of {described.image_shape} and '
            f'{len(described.class_names)} classes, not for {data.train.name!r}.'
        )
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
    attack = _attack(workdir, 'membership', _image_loss(model, described.process, config), data.train, data.held_out)
    table = command.facts_table(f'membership attack ({command.NOT_TO_BE_RELEASED})')
    _add_attack(table, attack)
    _add_files(table, workdir, 'membership')
    rich_console.Console().print(table)
    return command.DONE


def _attack(workdir, name, image_loss, members, non_members, *, facts=None, canaries=None):
    """Attacks by the losses of real images, and writes NAME.json and NAME.png to non_private/."""
    losses = [image_loss(part.images_uint8, part.labels) for part in (members, non_members)]
    attack = membership.attack(*losses)
    fields = {'note': _NOTE, **(facts or {}), 'membership_attack': attack.to_dict()}
    files.write_text(workdir / folder.NON_PRIVATE / f'{name}.json', json.dumps(fields, indent=2) + '\n')
    pictures.draw_audit(
        workdir / folder.NON_PRIVATE / f'{name}.png', attack=attack, losses=tuple(losses), canaries=canaries
    )
    return attack


def _print_dry_run(data, config, plan, finetuning) -> None:
    most = auditing.epsilon_lower_bound(
        config.num_canaries,
        config.num_guesses,
        num_correct=config.num_guesses,
        delta=plan.config.target_delta,
        confidence=config.confidence,
    )
    table = command.facts_table('what would be done')
    table.add_row('units', f'{data.spec.num_units:,} and {config.num_canaries:,} canaries of kind {config.kind!r}')
    table.add_row(
        'private steps',
        f'{plan.config.num_steps:,} of {plan.config.expected_batch_size:,} expected units x '
        f'{finetuning.views.augmentation_multiplicity} views',
    )
    table.add_row('proven epsilon', _claim(plan.epsilon(), plan.config.target_delta))
    table.add_row(
        'most that can be shown',
        f'epsilon >= {rounding.round_down(most)} at {rounding.percent(config.confidence)} confidence',
    )
    print(gin.operative_config_str())
    rich_console.Console().print(table)


def _print_results(workdir, result, kind, attack, time: str) -> None:
    table = command.facts_table(f'audit ({command.NOT_TO_BE_RELEASED})')
    table.add_row('proven epsilon', _claim(result.proven_epsilon, result.delta))
    table.add_row(
        'lower bound',
        f'epsilon >= {rounding.round_down(result.epsilon_lower_bound)} at {rounding.percent(result.confidence)} '
        'confidence',
    )
    table.add_row('most that can be shown', f'epsilon >= {rounding.round_down(result.most_that_can_be_shown)}')
    table.add_row(
        'canaries',
        f'{result.num_canaries} of kind {kind!r}; {result.num_correct} of {result.num_guesses} guesses were correct',
    )
    verdict = 'no fault was found'
    if result.is_violation:
        verdict = 'THE IMPLEMENTATION OR THE ACCOUNTING IS WRONG; DO NOT RELEASE'
    elif not math.isfinite(result.proven_epsilon):
        verdict = 'nothing is claimed'
    table.add_row('verdict', verdict)
    _add_attack(table, attack)
    _add_files(table, workdir, 'audit')
    table.add_row('time', time)
    rich_console.Console().print(table)
    if result.is_violation:
        print(
            f'audit: the lower bound {rounding.round_down(result.epsilon_lower_bound)} exceeds the proven epsilon '
            f'{rounding.round_up(result.proven_epsilon)}: the implementation or the accounting is wrong; do not '
            f'release. (At {rounding.percent(result.confidence)} confidence a correct one may be accused by chance: a '
            'second audit tells.)',
            file=sys.stderr,
        )


def _claim(epsilon: float, delta: float) -> str:
    if not math.isfinite(epsilon):
        return 'none claimed'
    return f'{rounding.round_up(epsilon)} at delta = {rounding.exact(delta)}'


def _add_attack(table, attack: membership.MembershipAttack) -> None:
    table.add_row(
        'attack on real images',
        f'AUC {attack.auc:.3f} (0.5 is guessing), {attack.num_members:,} members and '
        f'{attack.num_non_members:,} non-members',
    )
    for rate, value in zip(membership.FALSE_POSITIVE_RATES, attack.true_positive_rates):
        table.add_row('', f'true positive rate {value:.2%} at a false positive rate of {rate:.1%}')
    for caveat in attack.caveats():
        table.add_row('', f'({caveat})')


def _add_files(table, workdir: pathlib.Path, name: str) -> None:
    table.add_row('not to be released', f'{workdir / folder.NON_PRIVATE / name}.json, .png')


def main(flags) -> int:
    """Runs the verb."""
    clock = clock_lib.Clock()
    command.quieten_libraries()
    gin_config.parse(flags.gin_file, flags.gin_param, 'audit', given=strategy_flags.given(flags))
    if flags.membership and flags.dry_run:
        raise command.UsageError('--membership trains nothing, so it has no --dry_run.')
    strategy = strategy_flags.configured(flags.strategy)
    num_workers = strategies.check(strategy)
    if num_workers > 1:
        raise command.UsageError(
            f"an audit is for one process, got {num_workers} workers: use the strategy 'default' or 'mirrored'."
        )
    if flags.dry_run:
        return _show(gin_config.make('audit'))
    if flags.membership:
        recipe = gin_config.make('audit')
        return _attack_run(pathlib.Path(flags.workdir).expanduser(), recipe.data, recipe.canaries)
    replicas = strategies.start(strategy)
    with folder.training_in(flags.workdir) as workdir, command.stopping('audit'):
        return _audit(gin_config.make('audit'), workdir, replicas, clock)
    return command.FAILED  # It was asked to stop.


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/audit."""
    parser = command.Parser('audit', __doc__)
    parser.add_gin_flags()
    parser.add_strategy_flag()
    parser.add_argument('--workdir', default='runs/audit', help='folder of the audit (default: %(default)s)')
    parser.add_argument(
        '--membership', action='store_true', help='only attack the model of the run in --workdir; trains nothing'
    )
    parser.add_argument('--dry_run', action='store_true', help='print configuration and claim, and exit')
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
