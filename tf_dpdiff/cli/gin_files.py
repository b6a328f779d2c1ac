"""Configuration files as they are read: what each line binds, in which order, and which file stands where.

An include is looked for beside the file that names it, and then in the project's gin folder. What comes later wins.
"""

import codecs
from collections.abc import Collection, Iterator, Sequence
import dataclasses
import difflib
import inspect
import io
import os
import pathlib
import re
import tokenize
from typing import Any, NamedTuple

import gin

from tf_dpdiff.cli import command

MACRO = 'gin.macro'
Key = tuple[str, str, str]  # Scope, whole name of what is configured, parameter.

_ERRORS = (SyntaxError, ValueError, TypeError, tokenize.TokenError)


@dataclasses.dataclass(frozen=True, eq=False)
class Binding:
    """What one line of a file, or one flag, binds.

    Attributes:
      scope: Such as 'finetuning', or nothing; of a macro: its name.
      selector: Whole name of what is configured, such as 'tf_dpdiff.privacy.plan.DpSgdConfig', or MACRO.
      parameter: Such as 'target_epsilon'.
      value: Literals and gin's references.
      where: The file and line, or the flag, for errors.
      folder: The folder of the file; None: a flag binds it.
    """

    scope: str
    selector: str
    parameter: str
    value: Any
    where: str
    folder: pathlib.Path | None

    @property
    def key(self) -> Key:
        """What is bound."""
        return self.scope, self.selector, self.parameter

    @property
    def line(self) -> tuple[str, Key]:
        """What tells it from others, and is the same for a line of a file that is included, and so read, twice."""
        return self.where, self.key

    @property
    def name(self) -> str:
        """What is bound, as a file writes it."""
        return name_of(*self.key)

    @property
    def references(self) -> list[gin.config.ConfigurableReference]:
        """gin's references in the value, however deep."""
        return list(_references(self.value))

    def __str__(self) -> str:
        """Returns the binding and where it stands."""
        return f'{self.where}: {self.name} = {shortened(self.value)}' if self.folder else self.where


class Parsed(NamedTuple):
    """What files and flags bind.

    Attributes:
      bindings: In the order in which they are read.
      layers: Which of them a file with all that it includes, or a flag, binds; in the order in which these end.
    """

    bindings: list[Binding]
    layers: list[slice]


def short_name(selector: str) -> str:
    """Returns the last part of a whole name, as files write it, such as 'DpSgdConfig'."""
    return selector.rpartition('.')[2]


def name_of(scope: str, selector: str, parameter: str) -> str:
    """Returns the name that is bound, as in a file, such as 'finetuning/ViewsConfig.timesteps' or 'NUM_STEPS'."""
    if selector == MACRO:
        return scope
    return f'{scope}{"/" if scope else ""}{short_name(selector)}.{parameter}'


def configurable(name: str) -> gin.config.Configurable:
    """Returns what gin knows of a name, such as 'train': its whole name (`selector`) and its function (`wrapped`)."""
    return gin.config.ConfigurableReference(name, False).configurable


def parameters(name: str) -> list[str]:
    """Returns what can be bound of a name."""
    return list(inspect.signature(configurable(name).wrapped).parameters)


def _references(value: Any) -> Iterator[gin.config.ConfigurableReference]:
    if isinstance(value, gin.config.ConfigurableReference):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _references(item)


def with_tuples(value: Any) -> Any:
    """Returns a value with tuples for lists: configurations are compared, and kept, as what cannot change."""
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, (list, tuple)) else value


def shortened(value: Any) -> str:
    """Returns a value as a file writes it, in one line of moderate length."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def nearest(name: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """Returns the question whether the nearest known name was meant, or nothing where none is near."""
    folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), list(folded), 1, cutoff)
    return f' Did you mean {folded[near[0]]}?' if near else ''


def gin_folder() -> pathlib.Path:
    """Returns the folder of gin files: inside the installed package, or at the top of a checkout."""
    package = pathlib.Path(__file__).resolve().parent.parent
    return package / 'gin' if (package / 'gin').is_dir() else package.parent / 'gin'


def root() -> pathlib.Path:
    """Returns the folder above gin/, where saved_models/ lies; for an installed package the working folder."""
    folder = gin_folder().parent
    return pathlib.Path.cwd() if folder == pathlib.Path(__file__).resolve().parent.parent else folder


def read(names: Sequence[str], flags: Sequence[str], known: Collection[str]) -> Parsed:
    """Reads configuration files and flags.

    Args:
      names: Of files, looked up in the current folder and then in the project's gin folder (with or without `gin/` in
        front).
      flags: Bindings, such as 'DpSgdConfig.num_steps = 10'.
      known: The names of which parameters may be bound, for errors.

    Raises:
      command.UsageError: one line: what is wrong, in which file and line.
    """
    reader = _Reader(known)
    for name in names:
        reader.read_file(_find(name))
    for flag in flags:
        reader.read(flag, f'--gin_param={flag!r}', None)
    return reader.parsed


class _Reader:
    """Collects bindings."""

    def __init__(self, known: Collection[str]):
        self.parsed = Parsed([], [])
        self._known = known
        self._open: list[pathlib.Path] = []  # The files that are being read, each included by the one before.

    def read_file(self, path: pathlib.Path) -> None:
        shown = _shown(path)
        text = _read_text(path, shown)
        self._open.append(path.resolve())
        self.read(text, shown, pathlib.Path(os.path.abspath(path)).parent)
        self._open.pop()

    def read(self, text: str, shown: str, folder: pathlib.Path | None) -> None:
        def where() -> str:
            return f'{shown}, line {line}' if folder else shown

        first, line = len(self.parsed.bindings), 1
        try:
            parser = _Parser(io.StringIO(text, newline=None))
            line = 0  # Wherever the parser is.
            for statement in parser:
                line = statement.location.line_num
                self._add(statement, where(), folder)
                line = 0
        except command.UsageError:
            raise
        except _ERRORS as error:
            line = line or parser.current_token.start[0]
            raise command.UsageError(f'{where()}: {_explain(error, self._known)}') from error
        self.parsed.layers.append(slice(first, len(self.parsed.bindings)))

    def _add(self, statement: Any, where: str, folder: pathlib.Path | None) -> None:
        if isinstance(statement, gin.config_parser.IncludeStatement):
            self._include(statement.filename, where, folder)
        elif isinstance(statement, gin.config_parser.ImportStatement):
            _import(statement, where)
        elif isinstance(statement, gin.config_parser.BindingStatement):
            scope, selector, parameter, value, _ = statement
            if parameter:
                key: Key = gin.config.ParsedBindingKey.parse((scope, selector, parameter)).scope_selector_arg
            else:
                key = f'{scope}/{selector}' if scope else selector, MACRO, 'value'
            self.parsed.bindings.append(Binding(*key, value, where, folder))

    def _include(self, name: str, where: str, folder: pathlib.Path | None) -> None:
        candidates = _candidates(name, folder or pathlib.Path.cwd())
        found = next((candidate for candidate in candidates if candidate.exists()), None)
        if found is None:
            looked_in = ' and '.join(dict.fromkeys(str(candidate.parent) for candidate in candidates))
            raise command.UsageError(
                f'{where}: there is no {name!r} to include, neither beside this file nor in the '
                f"project's gin folder (looked in {looked_in})."
            )
        if found.resolve() in self._open:
            circle = [*self._open[self._open.index(found.resolve()) :], found.resolve()]
            raise command.UsageError(
                f'{where}: the include goes round in a circle: {" -> ".join(map(_shown, circle))}.'
            )
        self.read_file(found)


class _Parser(gin.config_parser.ConfigParser):
    """gin's parser, which does not take the last of two values of one key of a dictionary unseen."""

    def __init__(self, stream: io.StringIO):
        self._keys: list[Any] = []
        super().__init__(stream, gin.config.ParserDelegate())

    def _maybe_parse_container(self):
        outer, self._keys = self._keys, []
        found = super()._maybe_parse_container()
        self._keys = outer
        return found

    def _parse_dict_item(self):
        key, value = super()._parse_dict_item()
        if key in self._keys:
            raise ValueError(f'the key {key!r} is given twice')
        self._keys.append(key)
        return key, value


def _find(name: str) -> pathlib.Path:
    candidates = _candidates(name, pathlib.Path())
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if candidates[0].is_dir():
        raise command.UsageError(f'{name} is a folder: --gin_file wants a file in it.')
    known = sorted(p.name for p in gin_folder().glob('*.gin'))
    raise command.UsageError(f'no such configuration: {name}; the project has {", ".join(known)}.')


def _candidates(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns where a file may be: below a folder, or in the project's gin folder, with or without gin/ in front."""
    path = pathlib.Path(name).expanduser()
    below_gin = pathlib.Path(*path.parts[1:]) if path.parts and path.parts[0] == 'gin' else path
    return [folder / path, gin_folder() / below_gin]


def _shown(path: pathlib.Path) -> str:
    """Returns a path for messages: as short as the working folder allows."""
    path = pathlib.Path(os.path.abspath(path))
    return str(path.relative_to(pathlib.Path.cwd()) if pathlib.Path.cwd() in path.parents else path)


def _read_text(path: pathlib.Path, shown: str) -> str:
    if path.is_dir():
        raise command.UsageError(f'{shown} is a folder, not a configuration file.')
    try:
        content = path.read_bytes()
    except OSError as error:
        raise command.UsageError(f'{shown} cannot be read: {error.strerror}.') from error
    if content.startswith(codecs.BOM_UTF8):
        raise command.UsageError(f'{shown} begins with a byte-order mark: save it as UTF-8 without one.')
    try:
        text = content.decode('utf-8')
    except UnicodeDecodeError as error:
        line = content.count(b'\n', 0, error.start) + 1
        raise command.UsageError(f'{shown}, line {line}: this is no text in UTF-8: save the file as UTF-8.') from error
    if '\0' in text:
        raise command.UsageError(f'{shown} holds zero bytes, as text in UTF-16 does: save it as UTF-8.')
    return text


def _import(statement, where: str) -> None:
    if statement.module.startswith('__gin__'):
        raise command.UsageError(f'{where}: {statement.format()!r} is not for configurations of this project.')
    try:
        gin.parse_config(statement.format())
    except ImportError as error:
        raise command.UsageError(f'{where}: {str(error).splitlines()[0]}.') from error


def _explain(error: Exception, known: Collection[str]) -> str:
    """Returns an error of gin's as one sentence that names the nearest known name."""
    if isinstance(error, tokenize.TokenError):
        return f'a bracket or a quote is left open ({error.args[0]}).'
    text = (getattr(error, 'msg', None) or str(error)).splitlines()
    unread = re.search(r"Failed to parse token '(.*)'", text[-1])
    if unread:
        return (
            f"{unread.group(1)} is no value: a text stands in quotes, '{unread.group(1)}', a reference begins with "
            '@ and a macro with %.'
        )
    sentence = text[0].rstrip('.')
    parameter = re.search(r"onfigurable '(?:[\w.]*\.)?(\w+)' doesn't have a parameter named '(\w+)'", sentence)
    name = re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", sentence)
    if parameter:
        configured, given = parameter.groups()
        names = [f'{configured}.{other}' for other in parameters(configured)] if configured in known else []
        return f'{sentence}.{nearest(f"{configured}.{given}", names)}'
    return f'{sentence}.' + (nearest(re.split(r'[./]', name.group(1))[-1], list(known), 0.5) if name else '')
