"""The seam to gin: what a configuration file may name, and strict parsing."""

import difflib
import importlib
import inspect
import logging
import pathlib
import re
import sys
import tokenize
from typing import Callable, Dict, List, Sequence

import gin
from tf_dpdiff.cli import command
from tf_dpdiff.data import augmentation
from tf_dpdiff.data import camelyon17
from tf_dpdiff.data import datasets
from tf_dpdiff.data import folders
from tf_dpdiff.data import npy
from tf_dpdiff.data import procedural
from tf_dpdiff.data import public
from tf_dpdiff.data import tfds_images
from tf_dpdiff.data import tfrecords
from tf_dpdiff.diffusion import process
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.diffusion import timesteps
from tf_dpdiff.evaluation import canaries
from tf_dpdiff.evaluation import classifiers
from tf_dpdiff.evaluation import features
from tf_dpdiff.evaluation import generate
from tf_dpdiff.evaluation import metrics
from tf_dpdiff.evaluation import neighbors
from tf_dpdiff.evaluation import selection
from tf_dpdiff.evaluation import utility
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import plan
from tf_dpdiff.training import interruption
from tf_dpdiff.training import loop
from tf_dpdiff.training import public_classifier
from tf_dpdiff.training import stages
from tf_dpdiff.training import strategies
from tf_dpdiff.training import views

# Only frozen configurations and sources of images: no function of the privacy core can be rebound from a file, and no
# seed that must stay secret has a name here.
_REGISTERED = (
    datasets.digits,
    datasets.npz_images,
    npy.npy_images,
    folders.image_folder,
    tfds_images.tfds_images,
    tfrecords.tfrecord_images,
    camelyon17.wilds_camelyon17,
    public.public_images,
    procedural.random_strokes,
    augmentation.AugmentationConfig,
    unet.UNetConfig,
    schedules.Schedule,
    timesteps.TimestepMixture,
    timesteps.LogNormalSigma,
    process.DiffusionProcess,
    samplers.SamplerConfig,
    class_means.ClassMeansConfig,
    feature_means.FeatureMeansConfig,
    accuracy_release.AccuracyReleaseConfig,
    plan.DpSgdConfig,
    views.ViewsConfig,
    stages.OptimizationConfig,
    stages.PretrainingConfig,
    public_classifier.PublicClassifierConfig,
    stages.WarmStartConfig,
    stages.FinetuningConfig,
    loop.TrainerConfig,
    strategies.StrategyConfig,
    generate.GenerateConfig,
    features.FeaturesConfig,
    metrics.QualityConfig,
    neighbors.NeighborsConfig,
    classifiers.ClassifierConfig,
    utility.UtilityConfig,
    selection.SelectionConfig,
    canaries.AuditConfig,
)

for _registered in _REGISTERED:
    gin.register(_registered)

_VERBS_WITH_ROOTS = ('train', 'evaluate', 'select', 'audit')
_roots: List[Callable] = []


def root(function: Callable) -> Callable:
    """Registers a verb's function: its arguments are what a file binds."""
    _roots.append(function)
    return gin.configurable(function)


def gin_folder() -> pathlib.Path:
    """Returns the folder of gin files: inside the installed package, or at the top of a checkout."""
    package = pathlib.Path(__file__).resolve().parent.parent
    return package / 'gin' if (package / 'gin').is_dir() else package.parent / 'gin'


def parse(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Parses configuration files and bindings, strictly.

    Args:
      files: Paths, looked up in the current folder and then in the project's gin folder (with or without `gin/` in
        front).
      bindings: Such as 'DpSgdConfig.num_steps = 10'.

    Raises:
      command.UsageError: one line: what is wrong, where, and the nearest known name.
    """
    if not files:
        raise command.UsageError('give a configuration, for instance --gin_file=gin/digits.gin.')
    for verb in _VERBS_WITH_ROOTS:  # One file may configure several verbs.
        importlib.import_module(f'tf_dpdiff.cli.{verb}')
    gin.clear_config()
    gin.add_config_file_search_path(str(gin_folder()))
    paths = [str(_find(name)) for name in files]
    logging.disable(logging.ERROR)  # gin reports each folder in which an included file is not.
    try:
        gin.parse_config_files_and_bindings(paths, list(bindings), skip_unknown=False)
    except (ValueError, SyntaxError, AttributeError, OSError, tokenize.TokenError) as error:
        raise command.UsageError(_explain(error)) from error
    finally:
        logging.disable(logging.NOTSET)


def call(function: Callable, **arguments):
    """Calls a root; a value that is missing in the configuration becomes one clear line.

    Raises:
      command.UsageError: if a value without a default is missing.
    """
    try:
        return function(**arguments)
    except RuntimeError as error:
        missing = re.search(r'Required bindings for `(\w+)` not provided in config: \[(.*)\]', str(error))
        if missing:
            raise command.UsageError(f'the configuration is incomplete: {missing.group(1)} needs '
                                     f'{missing.group(2)}.') from error
        raise
    except TypeError as error:
        text = str(error)
        missing = re.search(r'(?:(\w+)\.__init__|(\w+))\(\) missing \d+ required [^:]*: (.*)', text)
        if missing and 'In call to configurable' in text:
            name = missing.group(1) or missing.group(2)
            raise command.UsageError(f'the configuration is incomplete: {name} needs {missing.group(3)}.') from error
        raise


def call_resumable(verb: str, function: Callable, **arguments) -> int:
    """Calls a root that trains; where it is asked to stop, says so in one line.

    Returns:
      The exit code.
    """
    try:
        return call(function, **arguments)
    except interruption.Interrupted as stopped:
        # gin adds lines of its own to the message.
        print(f'{verb}: {str(stopped).splitlines()[0]}. The same command goes on from there.', file=sys.stderr)
        return command.FAILED


def _find(name: str) -> pathlib.Path:
    path = pathlib.Path(name).expanduser()
    relative = pathlib.Path(*path.parts[1:]) if path.parts and path.parts[0] == 'gin' else path
    for candidate in (path, gin_folder() / relative):
        if candidate.is_file():
            return candidate
    known = sorted(p.relative_to(gin_folder()).as_posix() for p in gin_folder().glob('*.gin'))
    raise command.UsageError(f'no such configuration: {name}; the project has {", ".join(known)}.')


def _explain(error: Exception) -> str:
    """Returns gin's error as one line that names the nearest known name."""
    text = ' '.join(line.strip() for line in str(error).splitlines() if line.strip().strip('^'))
    known = _known_names()
    macro = re.search(r"No bindings specified for '(\w+)/gin.macro'", text)
    if macro:
        return f'the configuration uses %{macro.group(1)}, which it does not define.'
    near = []
    parameter = re.search(r"onfigurable '(?:[\w.]*\.)?(\w+)' doesn't have a parameter named '(\w+)'", text)
    name = re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", text)
    if parameter:
        near = difflib.get_close_matches(parameter.group(2), known.get(parameter.group(1), []), 1, 0.5)
        near = [f'{parameter.group(1)}.{match}' for match in near]
    elif name:
        near = difflib.get_close_matches(re.split(r'[./]', name.group(1))[-1], list(known), 1, 0.5)
    return f'{text.rstrip(".")}.' + (f' Did you mean {near[0]}?' if near else '')


def _known_names() -> Dict[str, List[str]]:
    """Returns the parameters of each name that a file may bind."""
    return {function.__name__: list(inspect.signature(function).parameters) for function in (*_REGISTERED, *_roots)}
