"""Where images come from: a run's checkpoint, an exported model, a server; and the statement that goes with them."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import kinds
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import outcome
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.serving import client
from tf_dpdiff.serving import export
from tf_dpdiff.training import checkpoints


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that images are drawn from.

    Attributes:
      description: Its classes and the shape of its images.
      statements: Its privacy statement, as text and as JSON.
      origin: What identifies it and its sampler, as plain JSON values.
      load: Returns functions for `draw.in_pieces`.
      label_images: Labels the images anew; None: their labels are those that they were drawn for.
      classify: Tells real images apart; None: the model was exported without a classifier.
    """

    description: folder_lib.ModelDescription
    statements: Sequence[pathlib.Path]
    origin: dict[str, Any]
    load: Callable[[], list[draw.SampleFn]]
    label_images: draw.LabelFn | None = None
    classify: export.Classify | None = None


def find(
    workdir: pathlib.Path | None,
    saved_model: pathlib.Path | None,
    endpoint: str | None = None,
    sampler: Mapping[str, Any] | None = None,
) -> Source:
    """Finds a model by the flags of a command.

    Args:
      workdir: A run's folder, or None.
      saved_model: An exported model, or None; one of the two is given.
      endpoint: The address of a server that serves it. That it does is checked by drawing a few images.
      sampler: What to change of the run's SamplerConfig; an exported model's is fixed, but for the step count where it
        was exported with several, and then one of them must be named.

    Raises:
      ValueError: if flags contradict each other, or if the statement cannot be told.
      FileNotFoundError: if the model is not there.
    """
    if sampler and not saved_model and endpoint is None:
        assert workdir is not None
        return _checkpoint(workdir, describe_run(workdir, sampler))
    if saved_model is None:
        assert workdir is not None  # One of the two is given.
        saved_model = check_complete(workdir) / folder_lib.SAVED_MODEL
    version = export.find_version(saved_model)
    num_steps = _choose_num_steps(version, dict(sampler or {}))
    local = _exported(workdir, version, num_steps)
    if endpoint is None:
        return local
    return _served(local, client.Endpoint(endpoint, num_steps=num_steps, labels=local.description.labels))


def _choose_num_steps(version: pathlib.Path, sampler: dict[str, Any]) -> int | None:
    """Returns the step count to ask an exported model for; None if it is fixed."""
    counts = export.step_counts_of(version)
    num_steps = sampler.pop('num_steps', None) if counts else None
    if sampler:
        raise ValueError(
            f'the sampler of an exported model is fixed; draw from a run (--workdir alone) or drop --'
            f'{", --".join("sampler" if name == "name" else name for name in sampler)}.'
        )
    if counts and num_steps not in counts:
        given = '' if num_steps is None else f', and not for {num_steps}'
        raise ValueError(
            f'{version} was exported for several step counts{given}; say --num_steps={" or ".join(map(str, counts))}.'
        )
    return num_steps


def describe_run(workdir: pathlib.Path, sampler: Mapping[str, Any]) -> folder_lib.ModelDescription:
    """Returns the description of a complete run, with changes of its SamplerConfig.

    Raises:
      ValueError: if the run has no privacy statement yet, or one of another run than its checkpoints.
    """
    description = folder_lib.read_model(check_complete(workdir))
    folder_lib.check_statement(workdir)
    return description.with_sampler(dataclasses.replace(description.sampler, **sampler))


def load_run(
    workdir: pathlib.Path, description: folder_lib.ModelDescription, step_counts: Sequence[int] = ()
) -> export.ImageSampler:
    """Returns the newest averaged weights of a run with the sampler of the description.

    Args:
      workdir: The run's folder.
      description: The run's description, perhaps with another sampler.
      step_counts: Where there are several, each image may have one of them.
    """
    model = denoiser.build(description.network, description.image_shape, len(description.class_names))
    checkpoints.load_average(workdir / checkpoints.FOLDER, model)
    sampler = outcome.make_image_sampler(model, description, workdir)
    return sampler.with_step_counts(step_counts) if len(step_counts) > 1 else sampler


def check_complete(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the folder if it is that of a complete run.

    Raises:
      FileNotFoundError: if it holds no run.
      ValueError: if the run is not complete, or has diverged.
    """
    folder_lib.read_model(workdir)
    if not all(path.exists() for path in folder_lib.statement_paths(workdir)):
        raise ValueError(
            f'the run in {workdir} is not complete: it has no privacy statement yet; finish bin/train first.'
        )
    if not (workdir / folder_lib.SAVED_MODEL).exists():
        folder_lib.check_not_diverged(workdir)
    return workdir


def _checkpoint(workdir: pathlib.Path, description: folder_lib.ModelDescription) -> Source:
    digest = hashlib.sha256()
    for variable in load_run(workdir, description).variables:
        digest.update(f'{variable.name} {variable.dtype.name} {variable.shape}\n'.encode())
        digest.update(variable.numpy().tobytes())
    settings = [kinds.to_json(description.network), dataclasses.asdict(description.process)]
    digest.update(json.dumps(settings, sort_keys=True).encode())

    def load() -> draw.SampleFn:
        image_sampler = load_run(workdir, description)
        return lambda labels, seeds: image_sampler.sample(labels, seeds)['images']

    statements = folder_lib.statement_paths(workdir)
    origin = _origin('a checkpoint', digest.hexdigest(), statements, description)
    source = Source(description, statements, origin, functools.partial(shared_work.on_each_device, load))
    return _labelled_by_run(source, workdir)


def _labelled_by_run(source: Source, workdir: pathlib.Path) -> Source:
    """Returns the source of a run, whose teacher labels the images where it does so in the run."""
    labeller = outcome.read_labeller(source.description, workdir)
    return source if labeller is None else _labelled(source, labeller)


def _labelled(source: Source, label_images: draw.LabelFn) -> Source:
    return dataclasses.replace(source, origin={**source.origin, 'labels': 'teacher'}, label_images=label_images)


def _exported(workdir: pathlib.Path | None, version: pathlib.Path, num_steps: int | None = None) -> Source:
    extra = version / export.EXTRA
    statements = folder_lib.statement_paths(extra)
    if not all(path.exists() for path in statements):
        raise ValueError(
            f'{version} carries no privacy statement, so none could go with its images; export it '
            'anew with bin/export --workdir=RUN.'
        )
    described = (extra / folder_lib.MODEL).exists()
    if workdir is not None:
        for path, of_run in zip(statements, folder_lib.statement_paths(check_complete(workdir))):
            if path.read_bytes() != of_run.read_bytes():
                raise ValueError(
                    f'{version} carries another privacy statement than the run in {workdir}; name '
                    'the run that it comes from.'
                )
    elif not described:
        raise ValueError(
            f'{version} does not say what its classes are ({export.EXTRA}/{folder_lib.MODEL} is '
            'missing); name the run that it comes from by --workdir.'
        )
    described_in = extra if described else workdir
    assert described_in is not None  # Otherwise it was refused above.
    description = folder_lib.read_model(described_in)
    load_sample_fn = functools.partial(export.load_sample_fn, version)
    if num_steps is not None:
        description = description.with_sampler(dataclasses.replace(description.sampler, num_steps=num_steps))
        load_sample_fn = functools.partial(load_sample_fn, num_steps=num_steps)
    origin = _origin('an exported model', export.fingerprint(version), statements, description if described else None)
    load = functools.partial(shared_work.on_each_device, load_sample_fn)
    classifiers = export.load_classifiers(version)
    source = Source(description, statements, origin, load, classify=classifiers.get(export.CLASSIFY))
    if export.LABEL_SAMPLES in classifiers:
        return _labelled(source, lambda images: classifiers[export.LABEL_SAMPLES](images)['labels'])
    return source if workdir is None else _labelled_by_run(source, workdir)  # Exported by an earlier version.


def _served(local: Source, endpoint: client.Endpoint) -> Source:
    # Without "no class" where there are classes: another model, which is to be told apart, may not take it.
    labels = local.description.labels[: len(local.description.class_names)]
    check = client.ModelCheck(endpoint, local.load()[0], labels)
    check()

    def sample(labels, seeds):
        images = endpoint.sample(labels, seeds)
        check(num_images=1)  # A server may turn to another version at any time.
        return images

    return dataclasses.replace(local, origin={**local.origin, 'drawn_by': 'a server'}, load=lambda: [sample])


def _origin(drawn_by: str, model_sha256: str, statements, description) -> dict[str, Any]:
    """Returns the `origin` of a source, with the sampler as far as it is known."""
    sampler = dataclasses.asdict(description.sampler) if description else {}
    return {
        'drawn_by': drawn_by,
        'model_sha256': model_sha256,
        'privacy_statement_sha256': hashlib.sha256(statements[1].read_bytes()).hexdigest(),
        **{f'sampler.{key}': value for key, value in sampler.items()},
    }
