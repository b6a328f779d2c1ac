"""A run on public images alone: `bin/train` with a configuration that binds no private data."""

import dataclasses
import pathlib
import time

from rich import console as rich_console

from tf_dpdiff.cli import command
from tf_dpdiff.cli import dry_run as dry_run_lib
from tf_dpdiff.cli import run_files
from tf_dpdiff.cli import run_identity
from tf_dpdiff.cli import run_output
from tf_dpdiff.cli import run_summaries
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.training import planner
from tf_dpdiff.training import pretrained
from tf_dpdiff.training import pretrainer
from tf_dpdiff.training import stages
from tf_dpdiff.training import strategies


def train_on_public_images(
    workdir: pathlib.Path,
    replicas: strategies.Replicas,
    dry_run: bool,
    hardware: planner.Hardware | None,
    parts: dict,
    network,
    process,
    pretraining,
    sampler,
    samples,
    loop,
) -> int:
    """Pre-trains, writes the public checkpoint, samples and exports; resumes where the folder holds such a run.

    Args:
      workdir: The run's folder.
      replicas: What computes the steps.
      dry_run: Print what would be done, and return.
      hardware: What a dry run reckons hours and memory for, or None.
      parts: What only a private run has, by name; all must be None.
      network: The network's shape.
      process: The diffusion process.
      pretraining: The public stage.
      sampler: How images are drawn.
      samples: How many images are drawn at the end.
      loop: Settings of the loop.

    Returns:
      The exit code.

    Raises:
      command.UsageError: if something belongs to a private run, or if there is nothing to train on.
    """
    given = [name for name, part in parts.items() if part is not None]
    if given or pretraining is None:
        raise command.UsageError(
            'the configuration is incomplete: it binds no private images (train.data), '
            + (
                f'but what belongs to them (train.{", train.".join(given)}).'
                if given
                else 'and no public ones either (train.pretraining).'
            )
        )
    if loop.log_non_private:
        raise command.UsageError(
            'TrainerConfig.log_non_private is for private runs: a run on public images alone writes '
            'its loss to tensorboard/.'
        )
    spec = pretraining.spec
    model = run_files.ModelDescription(
        spec.image_shape, spec.class_names, network, process, sampler, pretraining.views.label_drop_probability
    ).with_sampler(sampler)
    statement = statement_lib.PublicStatement((spec.to_phrase(),), pretraining.num_steps)
    if dry_run:
        dry_run_lib.print_public(model, pretraining, samples, statement, hardware=hardware)
        return command.DONE
    is_first = replicas.workers.is_first
    if is_first:
        run_identity.check_free(workdir)
    started = time.monotonic()
    model = model._replace(labelled=not _is_unlabelled(pretraining.images))
    with replicas.working() as stop:
        trainer = pretrainer.PublicTrainer(
            workdir,
            network=network,
            process=process,
            pretraining=pretraining,
            config=loop,
            draw_grid=run_summaries.make_grid_drawer(model),
            replicas=replicas,
        )
        if is_first:
            run_output.begin(workdir, model, trainer, {stages.PRETRAINING: pretraining})
        trainer.run(stop)
        checkpoint, released = trainer.to_pretrained(), trainer.released_model()
        if is_first:
            checkpoint.write(workdir / pretrained.FOLDER)
        drawn = run_output.draw(released, model, samples, workdir=workdir, stop=stop, workers=replicas.workers)
    if is_first:
        statement = dataclasses.replace(statement, run_id=trainer.state.run_id)
        _finish(workdir, pretraining, trainer, released, model, statement, checkpoint, drawn, started)
    replicas.workers.wait_for_all()  # So that none ends as done while the first one may yet fail.
    return command.DONE


def _finish(workdir, pretraining, trainer, released, model, statement, checkpoint, drawn, started) -> None:
    """Writes what may be sent on, and prints where it lies."""
    spec = pretraining.spec
    facts = {
        'epsilon': 'no private images',
        'public images': f'{spec.num_images:,}',
        'steps': str(pretraining.num_steps),
    }
    version = run_output.write(
        workdir,
        f'tf_dpdiff: a public model of {spec.name}',
        facts,
        statement,
        model,
        released,
        trainer.summaries,
        *drawn,
    )
    trainer.summaries.flush()
    table = command.facts_table('what came out')
    table.add_row(
        'checkpoint',
        f'{workdir / pretrained.FOLDER}, SHA-256 {checkpoint.sha256[:16]}: private '
        f"runs start from it by FinetuningConfig.init_from = '{workdir.absolute()}'",
    )
    run_output.add_files(table, workdir, version, len(drawn[0]), time.monotonic() - started)
    rich_console.Console().print(table)


def _is_unlabelled(public: datasets.ImageDataset) -> bool:
    return bool((public.labels == public.num_classes).all())
