"""The reference of configurations: what gin can bind, from signatures and docstrings."""

from collections.abc import Mapping, Sequence
import dataclasses
import inspect
import pathlib
import re
import types
import typing

import griffe

from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import gin_usage

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# What bin/init writes: bindings, and settings of whichever source reads the images.
_BINDINGS, _SETTINGS = (_ROOT / 'tf_dpdiff' / name for name in ('cli/configure.py', 'runs/init_source.py'))
PAGE = pathlib.Path('docs/reference/configuration.md')

# In the order of the page.
GROUPS = {
    'Run': ('train', 'evaluate', 'select', 'tune', 'audit', 'TuneConfig', 'TrainerConfig', 'StrategyConfig'),
    'Data': (
        'image_folder',
        'csv_images',
        'npz_images',
        'npy_images',
        'dicom_folder',
        'tfds_images',
        'tfrecord_images',
        'wilds_camelyon17',
        'digits',
        'public_images',
        'random_shapes',
        'random_strokes',
        'AugmentationConfig',
    ),
    'Privacy': ('DpSgdConfig', 'ClassMeansConfig', 'FeatureMeansConfig', 'TeacherConfig', 'AccuracyReleaseConfig'),
    'Network': ('UNetConfig', 'DiTConfig', 'DiffusionProcess', 'Schedule'),
    'Stages': (
        'PretrainingConfig',
        'WarmStartConfig',
        'MatchingConfig',
        'PublicClassifierConfig',
        'FinetuningConfig',
        'OptimizationConfig',
        'ViewsConfig',
        'TimestepMixture',
        'LogNormalSigma',
    ),
    'Sampling': ('SamplerConfig', 'GenerateConfig'),
    'Evaluation': (
        'FeaturesConfig',
        'QualityConfig',
        'NeighborsConfig',
        'UtilityConfig',
        'ClassifierConfig',
        'SelectionConfig',
        'AuditConfig',
        'GradientAuditConfig',
        'SampleAttackConfig',
    ),
}

_HEAD = """\
<!-- Made by docs/generate.py from signatures and docstrings. Do not edit it: edit these. -->

# Everything that a configuration can say

A configuration file binds parameters by name: `DpSgdConfig.num_steps = 100`. So does a flag:
`--gin_param='DpSgdConfig.num_steps = 100'`. [Configuration](../configuration.md) explains files, macros and scopes.
Python has the same names with the same parameters, such as `tf_dpdiff.DpSgdConfig(num_steps=100, ...)`. Below,
`train`, `evaluate`, `select`, `tune` and `audit` stand for what the commands of these names take.

*Must be given* marks a parameter without a default. *Often changed* marks one that a run file of `gin/` binds, that a
macro sets, or that `bin/init` writes.

## Macros

A macro is a value with a name in capitals, which several parameters may refer to. Files of `gin/base/` refer to these,
and a configuration that includes such a file gives them a value: `TARGET_EPSILON = 10.0`.

"""


def page() -> str:
    """Returns the page.

    Raises:
      ValueError: if something that can be bound is in no group, or a parameter is not described.
    """
    known = gin_config.configurables()
    grouped = [name for names in GROUPS.values() for name in names]
    if sorted(grouped) != sorted(known):
        raise ValueError(f'GROUPS of {__name__} names too much or too little: {sorted({*grouped} ^ {*known})}.')
    parsed = {path: _parse(path, known) for path in sorted((_ROOT / 'gin').glob('**/*.gin'))}
    often = _often_changed(parsed, known)
    parts = [_HEAD + _macros(parsed)]
    for title, names in GROUPS.items():
        parts.append(f'## {title}')
        parts += [_section(name, known, often) for name in names]
    return '\n\n'.join(parts) + '\n'


def _parse(path: pathlib.Path, known) -> list[gin_files.Binding]:
    """Returns what a file itself binds, without what it includes."""
    text = re.sub(r'^include .*$', '', path.read_text(), flags=re.M)
    return gin_files.read([], [text], known).bindings


def _often_changed(parsed, known) -> set[tuple[str, str]]:
    """Returns (name, parameter) of what files of whole runs bind, of what macros set, and of what bin/init writes."""
    often = set()
    for path, bindings in parsed.items():
        for binding in bindings:
            if path.parent == _ROOT / 'gin' or gin_usage.is_macro(binding.value):
                often.add((gin_files.short_name(binding.selector), binding.parameter))
    written = re.findall(r"'(?:\w+/)?(\w+)\.(\w+)(?: = |',)", _BINDINGS.read_text())
    settings = re.findall(r"Setting\(\s*'(\w+)'", _SETTINGS.read_text())
    of_sources = {(name, parameter) for name in GROUPS['Data'] for parameter in settings}
    return often | {
        (name, parameter)
        for name, parameter in {*written, *of_sources}
        if parameter in inspect.signature(known[name]).parameters
    }


def _macros(parsed) -> str:
    """Returns the table of the macros that files of gin/base/ refer to."""
    sets: dict[str, list[str]] = {}
    for path, bindings in parsed.items():
        for binding in bindings:
            if path.parent == _ROOT / 'gin' / 'base' and gin_usage.is_macro(binding.value):
                sets.setdefault('/'.join(binding.value.scopes), []).append(binding.name)
    lines = ['| Macro | Sets |', '|---|---|']
    return '\n'.join([*lines, *(f'| `{macro}` | {", ".join(map(_code, names))} |' for macro, names in sets.items())])


def _code(text: str) -> str:
    return f'`{text}`'


def _section(name: str, known, often) -> str:
    function = known[name]
    parsed = griffe.Docstring(inspect.getdoc(function) or '', parser='google').parse(warnings=False)
    described = {
        item.name: item.description
        for section in parsed
        if section.kind.value in ('parameters', 'attributes')
        for item in section.value
    }
    parameters = list(inspect.signature(function).parameters.values())
    missing = [parameter.name for parameter in parameters if not described.get(parameter.name)]
    if missing:
        raise ValueError(f'the docstring of {name} does not describe {", ".join(missing)}.')
    summary = _text((inspect.getdoc(function) or '').split('\n\n')[0])
    lines = [f'### `{name}`', '', summary]
    if not parameters:
        return '\n'.join([*lines, '', 'It has no parameters.'])
    lines += ['', '| Parameter | Type | Default | Meaning |', '|---|---|---|---|']
    annotations = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    for parameter in parameters:
        default = '*must be given*' if parameter.default is parameter.empty else _default(parameter.default, known)
        mark = '*Often changed.* ' if (name, parameter.name) in often else ''
        kind = _type(annotations[parameter.name], known)
        lines.append(f'| `{parameter.name}` | {kind} | {default} | {mark}{_text(described[parameter.name])} |')
    return '\n'.join(lines)


def _text(text: str) -> str:
    """Returns a docstring's words as a cell of a table: outside of code nothing is taken for markup."""
    parts = re.split(r'(`[^`]*`)', ' '.join(text.split()))
    return ''.join(
        part.replace('|', '\\|') if index % 2 else re.sub(r'([*|<\[\]])', r'\\\1', part)
        for index, part in enumerate(parts)
    )


def _default(value, known) -> str:
    """Returns a default as a configuration file writes it."""
    if dataclasses.is_dataclass(value):
        name = type(value).__name__
        assert name in known and value == type(value)(), value
        return _link(name)
    return f'`{value!r}`'


def _link(name: str) -> str:
    return f'[`@{name}()`](#{name.lower()})'


def _type(wanted, known) -> str:
    """Returns the type of a parameter, as one would write a value of it in a file."""
    kind, of = typing.get_origin(wanted), typing.get_args(wanted)
    if kind in (typing.Union, types.UnionType):
        return ' or '.join(dict.fromkeys(_type(other, known) for other in of))
    if inspect.isclass(wanted) and wanted.__module__.startswith('tf_dpdiff.'):
        made = [name for name, function in known.items() if _makes(function, wanted)]
        return ' or '.join(map(_link, made)) if len(made) <= 3 else '[a source of images](#data)'
    return f'`{_plain(wanted)}`'


def _makes(function, wanted: type) -> bool:
    made = function if inspect.isclass(function) else typing.get_type_hints(function).get('return')
    return inspect.isclass(made) and issubclass(made, wanted)


def _plain(wanted) -> str:
    kind, of = typing.get_origin(wanted), typing.get_args(wanted)
    if kind in (typing.Union, types.UnionType):
        return ' or '.join(map(_plain, of))
    if kind is tuple and Ellipsis not in of:
        return f'({", ".join(map(_plain, of))})'
    if kind in (tuple, Sequence):
        return f'({_plain(of[0])}, ...)'
    if kind is Mapping:
        return 'dict'
    if wanted is pathlib.Path:
        return 'str'
    return 'None' if wanted is type(None) else getattr(wanted, '__name__', str(wanted))
