"""A finished run's model as a servable, with the sampler that is asked for."""

from collections.abc import Mapping, Sequence
import pathlib
import tempfile
from typing import Any

from tf_dpdiff import progress
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import outcome
from tf_dpdiff.runs import source
from tf_dpdiff.serving import export
from tf_dpdiff.serving import warmup


def export_run(
    workdir: pathlib.Path,
    directory: pathlib.Path,
    *,
    sampler: Mapping[str, Any],
    step_counts: Sequence[int] = (),
    warmup_batch_sizes: Sequence[int] = warmup.BATCH_SIZES,
    allow_incompatible: bool = False,
) -> tuple[pathlib.Path, folder.ModelDescription]:
    """Writes a new version of a servable, with the run's privacy statement in it.

    Args:
      workdir: The run's folder.
      directory: The servable's folder, in which its versions lie.
      sampler: What to change of the run's SamplerConfig, but for its step count.
      step_counts: The sampler's steps; where there are several, each request says which of them it wants. Empty: as the
        run has it.
      warmup_batch_sizes: Of the requests that a server sends itself before it takes any.
      allow_incompatible: Whether to write a version that breaks the clients of the one before.

    Returns:
      The version's folder, and what stands in its description.

    Raises:
      FileNotFoundError: if there is no run.
      ValueError: if it is not complete, or the sampler or the version does not fit; says what to do.
    """
    one_by_one = [{**sampler, 'num_steps': count} for count in step_counts] or [dict(sampler)]
    # Each is checked; the first stands in the description.
    description, *_ = [source.describe_run(workdir, one) for one in one_by_one]
    image_sampler = source.load_run(workdir, description, step_counts)
    folder.prepare(directory)
    with tempfile.TemporaryDirectory() as described:
        # Not the run's own description: the sampler may be another one.
        description.write(pathlib.Path(described))
        with progress.working('export', 'tracing the sampler and writing the model'):
            version = export.export_saved_model(
                image_sampler,
                directory,
                folder.statement_paths(workdir) + [pathlib.Path(described) / folder.MODEL],
                classifier=outcome.read_classifier(description, workdir),
                warmup_batch_sizes=warmup_batch_sizes,
                allow_incompatible=allow_incompatible,
            )
    return version, description
