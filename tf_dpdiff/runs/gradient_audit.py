"""An audit by gradient canaries: the private step of a recipe, attacked with all that its claim lets an attacker see.

Of the private data nothing is read but how many units there are, which is public. So what comes out may be shown.
"""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import NamedTuple

from tf_dpdiff import files
from tf_dpdiff import progress
from tf_dpdiff.evaluation import canaries as canaries_lib
from tf_dpdiff.evaluation import gradient_audit as judging
from tf_dpdiff.evaluation import gradient_canaries
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.runs import audit as audit_lib
from tf_dpdiff.runs import audit_summary
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import interruption
from tf_dpdiff.training import strategies

_NOTE = (
    'An audit of the private steps by gradient canaries. No private image was read for it, and canaries, seeds and '
    'noise were drawn for it alone: it may be published.'
)


class PreparedGradientAudit(NamedTuple):
    """An audit that is ready to begin.

    Attributes:
      recipe: What was chosen.
      canaries: They; which of them take part is not drawn yet.
      build: The run that is audited.
      plan: Its privacy plan.
      judge: Bounds epsilon.
    """

    recipe: audit_lib.AuditRecipe
    canaries: gradient_canaries.GradientCanaries
    build: build_lib.Build
    plan: plan_lib.DpSgdPlan
    judge: judging.Judge


def prepare(recipe: audit_lib.AuditRecipe, *, say: Callable[[str], None]) -> PreparedGradientAudit:
    """Calibrates the noise and finds out how to guess; says what a person must know beforehand.

    What is run are the private steps of the recipe, on as many units more as there are canaries; all others are null
    records. Other releases and stages of the recipe are left out: no gradient of a canary hangs on the weights.

    Raises:
      ValueError: if the parts do not fit together, or the budget can't be met.
    """
    config, spec = recipe.gradient_canaries, recipe.data.spec
    # Named as what it is: the recipe's own data are not read.
    spec = dataclasses.replace(spec, num_units=spec.num_units + config.num_canaries)
    with progress.working('audit', 'calibrating the noise'):
        build = build_lib.Build(
            recipe_lib.Recipe(
                network=recipe.network,
                process=recipe.process,
                data=recipe.data,
                privacy=recipe.privacy,
                finetuning=dataclasses.replace(recipe.finetuning, init_from=None),
                loop=recipe.loop,
            ),
            spec,
        )
    assert build.plan is not None  # What is audited is a private run.
    for caution in build.plan.cautions():
        say(f'caution: {caution}')
    made = gradient_canaries.GradientCanaries(config, build.plan)
    with progress.working('audit', 'finding the best number of guesses'):
        judge = judging.Judge(made, build.plan, config.confidence)
    return PreparedGradientAudit(recipe, made, build, build.plan, judge)


def audit(
    recipe: audit_lib.AuditRecipe,
    workdir: pathlib.Path,
    *,
    configuration: str,
    replicas: strategies.Replicas = strategies.ONE,
    say: Callable[[str], None] = progress.sayer('audit'),
) -> judging.GradientAuditResult:
    """Runs the private steps on canaries, bounds epsilon from below, and writes a summary that may be published.

    An audit that is stopped begins anew, with other canaries in and other noise: nothing of it is kept.

    Args:
      recipe: What was chosen.
      workdir: The audit's folder; held by the caller, see `folder.training_in`.
      configuration: The recipe as a configuration file has it, for the record.
      replicas: What computes the steps, of one process.
      say: Tells a person what is going on.

    Raises:
      ValueError: if the recipe or the folder refuses the audit; says what to do.
      interruption.Interrupted: if it was asked to stop.
    """
    if (workdir / checkpoints.FOLDER).exists():
        raise ValueError(
            f'{workdir} holds a run; an audit by gradients wants a folder of its own: name another --workdir.'
        )
    prepared = prepare(recipe, say=say)
    included = canaries_lib.draw_inclusions(len(prepared.canaries))
    if not included.any():
        raise ValueError('no canary is in, by chance: call it again, or take more canaries.')
    with replicas.working() as stop:
        heard, state = _run(prepared, included, replicas, stop)
    with progress.working('audit', 'bounding epsilon'):
        result = prepared.judge.judge(heard, included, state.ledger)
    files.write_text(workdir / folder.OPERATIVE_CONFIG, configuration)
    settings = {
        'private_data': prepared.build.spec.name,
        'num_units': prepared.plan.num_units,
        'num_replicas': replicas.count,
        'privacy': prepared.plan.fingerprint(),
        'gradient_canaries': dataclasses.asdict(recipe.gradient_canaries),
    }
    audit_summary.write(
        workdir,
        note=_NOTE,
        what='gradient canaries in the private steps',
        summary=result.to_text(),
        settings=settings,
        audit=result.to_dict(),
    )
    return result


def _run(prepared: PreparedGradientAudit, included, replicas: strategies.Replicas, stop: interruption.StopRequest):
    """Runs all private steps; returns what was heard of them and where the run stands."""
    build, finetuning = prepared.build, prepared.recipe.finetuning
    state = checkpoints.RunState(seeds.PrivateSeed.from_os_entropy())
    data = prepared.canaries.make_data(included, build.spec.image_shape, build.spec.class_names)
    training = build.make_networks(None, state, replicas)
    with replicas.scope():
        stage, directions = prepared.canaries.make_stage(
            finetuning, training, denoiser.select_variables(training.model, finetuning.trainable), data, state
        )

    with progress.bar(stage.num_steps, 'gradient audit', 'step') as bar:

        def on_step(unused_step: int) -> None:
            bar.update()
            if stop.requested:
                raise interruption.Interrupted('stopped; an audit by gradients begins anew when it is called again')

        return prepared.canaries.listen(stage, directions, on_step), state
