"""The seam to gin: what a configuration file may name, and strict parsing.

`gin_files` says where files are found and what they bind in which order, `gin_usage` that all of it is used,
`gin_types` that it is of the right type, `gin_paths` what a relative path means.
"""

from collections.abc import Callable, Sequence
import importlib
import inspect
import re
from typing import Any

import gin

import tf_dpdiff
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import gin_paths
from tf_dpdiff.cli import gin_types
from tf_dpdiff.cli import gin_usage
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.training import strategies

# Only frozen configurations and sources of images: no function of the privacy core can be rebound from a file, and no
# seed that must stay secret has a name here. All of it can be used from Python too, under the same names.
_NOT_CONFIGURED = {
    '__version__',
    'Generator',
    'EvaluationRecipe',
    'Interrupted',
    'Recipe',
    'Run',
    'Statement',
    'configure',
    'load',
    'recipe',
    'train',
}
_REGISTERED = tuple(getattr(tf_dpdiff, name) for name in dir(tf_dpdiff) if name not in _NOT_CONFIGURED)

for _registered in _REGISTERED:
    gin.register(_registered)

_VERBS_WITH_ROOTS = ('train', 'evaluate', 'select', 'audit', 'tune')
_ALSO_READS = {'tune': ('train',)}  # Verbs that are configured by what another one is too.
_roots: dict[str, type] = {}


def root(recipe_class: type, verb: str) -> None:
    """Registers what a verb is configured by: its fields are what a file binds."""
    _roots[verb] = recipe_class
    gin.register(verb, module='tf_dpdiff')(recipe_class)


def configurables() -> dict[str, Callable]:
    """Returns what a configuration file may bind, by name: configurations, sources of images, and roots of verbs."""
    for name in _VERBS_WITH_ROOTS:  # One file may configure several verbs.
        importlib.import_module(f'tf_dpdiff.cli.{name}')
    return {**{function.__name__: function for function in _REGISTERED}, **_roots}


def make(verb: str, **arguments):
    """Calls what a verb is configured by, with what `parse` has read and with `arguments`.

    Raises:
      command.UsageError: if a value without a default is missing.
    """
    return call(gin.get_configurable(verb), **arguments)


def recipe(*paths: str, bindings: Sequence[str] = (), **macros: Any) -> recipe_lib.Recipe:
    """Returns the recipe that configuration files make, as `bin/train --gin_file=...` has it.

    Args:
      *paths: Paths, looked up in the current folder and then in the project's gin folder; later ones win.
      bindings: Such as 'DpSgdConfig.num_steps = 10'; they win over the files.
      **macros: Values of macros, such as TARGET_EPSILON=3.0.

    Raises:
      ValueError: one line: what is wrong, where, and the nearest known name.

    Example:
        >>> recipe('gin/digits.gin', TARGET_EPSILON=3.0).privacy.target_epsilon
        3.0
    """
    parse(paths, [*bindings, *(f'{name} = {value!r}' for name, value in macros.items())], 'train')
    return make('train').configured_by(gin.operative_config_str())


def parse(files: Sequence[str], bindings: Sequence[str], verb: str | None = None, *, given: Sequence[str] = ()) -> None:
    """Parses configuration files and bindings, strictly.

    Args:
      files: Paths, looked up in the current folder and then in the project's gin folder (with or without `gin/` in
        front).
      bindings: Such as 'DpSgdConfig.num_steps = 10'.
      verb: What is run: it has to read what `bindings` bind. None: any.
      given: What flags of their own give, such as 'train.budget_file': no binding of it is read.

    Raises:
      command.UsageError: one line: what is wrong, where, and the nearest known name.
    """
    if not files:
        raise command.UsageError('give a configuration, for instance --gin_file=gin/digits.gin.')
    known = configurables()
    gin.clear_config()
    parsed = gin_files.read(
        files, bindings, {name: list(inspect.signature(function).parameters) for name, function in known.items()}
    )
    configuration = gin_usage.Configuration(parsed.bindings)
    verbs = [gin_files.whole_name(name) for name in _VERBS_WITH_ROOTS]
    paths = {}
    # What binds nothing of any verb is a part of a configuration: there is nothing yet that could read it.
    if any(binding.selector in verbs for binding in parsed.bindings):
        paths = _check(parsed, configuration, verbs, verb, given)
    for key, binding in configuration.values.items():
        gin.bind_parameter(key, paths.get(key, gin_files.with_tuples(binding.value)))


def leave_out(verb: str, *arguments: str) -> None:
    """Binds arguments of a verb to None after `parse`, so that what a file binds to them is not even built."""
    for name in arguments:
        gin.bind_parameter(f'{verb}.{name}', None)


def _check(
    parsed: gin_files.Parsed,
    configuration: gin_usage.Configuration,
    verbs: Sequence[str],
    verb: str | None,
    given: Sequence[str],
) -> dict[gin_files.Key, str]:
    """Refuses what is not used, missing, of a wrong type or ambiguous; returns the relative paths as absolute ones."""
    strategy = gin_files.whole_name(strategies.StrategyConfig.__name__)  # All verbs read it.
    gin_usage.check_no_commands(parsed.bindings, verbs)
    by_all = gin_usage.Reached(configuration, [*verbs, strategy])
    read = [gin_files.whole_name(name) for name in (verb, *_ALSO_READS.get(verb, ()))] if verb else verbs
    now = gin_usage.Reached(configuration, [*read, strategy], given)
    gin_usage.check_used(parsed, by_all, now, verb)
    gin_usage.check_scopes(by_all)
    gin_usage.check_complete(now)
    gin_types.check(configuration, by_all.bindings, _REGISTERED)
    return gin_paths.absolute(now)


def call(function: Callable, **arguments):
    """Calls what is configured; a value that is missing in the configuration becomes one clear line.

    Raises:
      command.UsageError: if a value without a default is missing.
    """
    try:
        return function(**arguments)
    except TypeError as error:
        text = str(error)
        missing = re.search(r'(?:(\w+)\.__init__|(\w+))\(\) missing \d+ required [^:]*: (.*)', text)
        if missing and 'In call to configurable' in text:
            name = missing.group(1) or missing.group(2)
            name = {function.__name__: verb for verb, function in _roots.items()}.get(name, name)
            raise command.UsageError(f'the configuration is incomplete: {name} needs {missing.group(3)}.') from error
        raise
