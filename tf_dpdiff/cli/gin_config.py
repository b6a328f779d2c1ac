"""The seam to gin: what a configuration file may name, and strict parsing.

`gin_files` says where files are found and what they bind in which order, `gin_usage` that all of it is used,
`gin_types` that it is of the right type, `gin_paths` what a relative path means.
"""

from collections.abc import Callable, Sequence
import pathlib
import re
from typing import Any

import gin

import tf_dpdiff
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import gin_paths
from tf_dpdiff.cli import gin_types
from tf_dpdiff.cli import gin_usage
from tf_dpdiff.runs import audit as audit_lib
from tf_dpdiff.runs import evaluate as evaluate_lib
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.runs import select as select_lib
from tf_dpdiff.runs import tune as tune_lib

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

# What verbs are configured by: its fields are what a file binds. One file may configure several verbs.
_ROOTS = {
    'train': recipe_lib.Recipe,
    'evaluate': evaluate_lib.EvaluationRecipe,
    'select': select_lib.SelectionRecipe,
    'audit': audit_lib.AuditRecipe,
    'tune': tune_lib.TuneRecipe,
}
_ALSO_READS = {'tune': ('train',)}  # Verbs that are configured by what another one is too.
_OF_ALL = 'StrategyConfig'  # Which every verb reads.

for _registered in _REGISTERED:
    gin.register(_registered)
for _verb, _recipe_class in _ROOTS.items():
    gin.register(_verb, module='tf_dpdiff')(_recipe_class)


def configurables() -> dict[str, Callable]:
    """Returns what a configuration file may bind, by name: configurations, sources of images, and roots of verbs."""
    return {**{function.__name__: function for function in _REGISTERED}, **_ROOTS}


def make(name: str, **arguments):
    """Calls a configuration, or what a verb is configured by, with what `parse` has read and with `arguments`.

    Raises:
      command.UsageError: if a value without a default is missing.
    """
    try:
        return gin.get_configurable(name)(**arguments)
    except TypeError as error:
        missing = re.search(r'(?:(\w+)\.__init__|(\w+))\(\) missing \d+ required [^:]*: (.*)', str(error))
        if missing and 'In call to configurable' in str(error):
            called = missing.group(1) or missing.group(2)
            called = {root.__name__: verb for verb, root in _ROOTS.items()}.get(called, called)
            raise command.UsageError(f'the configuration is incomplete: {called} needs {missing.group(3)}.') from error
        raise


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
        raise command.UsageError(
            'give a configuration, that of the run: --gin_file=FILE, such as gin/digits.gin or what bin/init wrote.'
        )
    gin.clear_config()
    parsed = gin_files.read(files, bindings, configurables())
    configuration = gin_usage.Configuration(parsed.bindings)
    paths = _check(parsed, configuration, verb, given)
    for binding in configuration:
        gin.bind_parameter(binding.key, paths.get(binding.key, gin_files.with_tuples(binding.value)))


def parse_flags(
    flags, verb: str, bindings: Sequence[str] = (), *, budget_of: str | None = None
) -> dict[str, pathlib.Path]:
    """Parses what --gin_file and --gin_param say, and that what --budget_file and --strategy say is not bound too.

    Args:
      flags: Of `command.Parser.add_gin_flags`, perhaps with --budget_file.
      verb: What is run.
      bindings: That win over those of the flags.
      budget_of: The verb whose budget file --budget_file is; None: `verb`.

    Returns:
      What --budget_file gives, for `make`; empty without it, so that a file may bind it.
    """
    path = getattr(flags, 'budget_file', None)
    given = [f'{budget_of or verb}.budget_file'] if path else []
    if flags.strategy:
        given.append('StrategyConfig.name')
    parse(flags.gin_file, [*flags.gin_param, *bindings], verb, given=given)
    return {'budget_file': pathlib.Path(path)} if path else {}


def leave_out(verb: str, *arguments: str) -> None:
    """Binds arguments of a verb to None after `parse`, so that what a file binds to them is not even built."""
    for name in arguments:
        gin.bind_parameter(f'{verb}.{name}', None)


def _check(
    parsed: gin_files.Parsed, configuration: gin_usage.Configuration, verb: str | None, given: Sequence[str]
) -> dict[gin_files.Key, str]:
    """Refuses what is not used, missing, of a wrong type or ambiguous; returns the relative paths as absolute ones."""
    verbs = [gin_files.configurable(name).selector for name in _ROOTS]
    if not any(binding.selector in verbs for binding in parsed.bindings):
        return {}  # A part of a configuration: there is nothing yet that could read it.
    gin_usage.check_no_commands(parsed.bindings, verbs)
    by_all = gin_usage.Reached(configuration, [*_ROOTS, _OF_ALL])
    read = [verb, *_ALSO_READS.get(verb, ())] if verb else _ROOTS
    now = gin_usage.Reached(configuration, [*read, _OF_ALL], given)
    gin_usage.check(parsed, by_all, now, verb)
    gin_types.check(configuration, by_all.bindings, _REGISTERED)
    return gin_paths.absolute(now)
