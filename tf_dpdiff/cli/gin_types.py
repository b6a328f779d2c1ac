"""Values of a configuration have the types that the functions and classes which they configure ask for."""

import collections.abc
from collections.abc import Callable, Iterable, Sequence
import inspect
import pathlib
import types
import typing
from typing import Any

import gin

from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import gin_usage

_WORDS = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'a text',
    type(None): 'None',
    pathlib.Path: 'a text',
}
_UNKNOWN = object()  # A value that another check looks at.


def check(
    configuration: gin_usage.Configuration, bindings: Iterable[gin_files.Binding], makers: Sequence[Callable]
) -> None:
    """Refuses values of a wrong type.

    Args:
      configuration: What is bound, by which macros are looked up.
      bindings: Those that are checked.
      makers: The functions and classes that a file may refer to.

    Raises:
      command.UsageError: names the binding, the type wanted and the value given.
    """
    for binding in bindings:
        wanted = _annotations(gin_files.configurable(binding.selector).wrapped).get(binding.parameter, Any)
        source = configuration.source(binding)  # A macro is what a person has to change.
        value = _resolve(configuration, source.value)
        if not _fits(value, wanted):
            raise command.UsageError(
                f'{source}: {binding.name} wants {_describe(wanted, makers)}, got '
                f'{_describe_value(value)}{_hint(value, wanted)}.'
            )


def _annotations(function: Callable) -> dict:
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (AttributeError, NameError, TypeError):  # Of a function that a person has registered.
        return {}


def _resolve(configuration: gin_usage.Configuration, value: Any) -> Any:
    """Returns a value with those of macros in their places."""
    if gin_usage.is_macro(value):
        macro = configuration.macro(value)
        return _resolve(configuration, macro.value) if macro else _UNKNOWN
    if gin_usage.is_left_open(value):
        return _UNKNOWN
    if isinstance(value, dict):
        return {key: _resolve(configuration, item) for key, item in value.items()}
    return type(value)(_resolve(configuration, item) for item in value) if isinstance(value, (list, tuple)) else value


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is Any or value is _UNKNOWN:
        return True
    kind, of = typing.get_origin(wanted), typing.get_args(wanted)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, other) for other in of)
    if isinstance(value, gin.config.ConfigurableReference):
        made = _made_by(value.configurable.wrapped)
        return value.evaluate and (made is None or _is_kind_of(made, wanted))
    if kind is tuple and Ellipsis not in of:
        return isinstance(value, (list, tuple)) and len(value) == len(of) and all(map(_fits, value, of))
    if kind in (tuple, collections.abc.Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(item, of[0]) for item in value)
    if kind is collections.abc.Mapping:
        return isinstance(value, dict) and all(_fits(key, of[0]) and _fits(item, of[1]) for key, item in value.items())
    if wanted in (int, float):
        return isinstance(value, (int, wanted)) and not isinstance(value, bool)
    return isinstance(value, str if wanted is pathlib.Path else wanted) if inspect.isclass(wanted) else True


def _made_by(function: Callable) -> type | None:
    """Returns the class of what a reference stands for, if that is known."""
    made = function if inspect.isclass(function) else _annotations(function).get('return')
    return made if inspect.isclass(made) else None


def _describe(wanted: Any, makers: Sequence[Callable]) -> str:
    kind, of = typing.get_origin(wanted), typing.get_args(wanted)
    if kind in (typing.Union, types.UnionType):
        return ' or '.join(dict.fromkeys(_describe(other, makers) for other in of))
    if kind is tuple and Ellipsis not in of:
        return f'a tuple ({", ".join(_describe(item, makers) for item in of)})'
    if kind in (tuple, collections.abc.Sequence):
        return f'a tuple, each item {_describe(of[0], makers)}'
    if kind is collections.abc.Mapping:
        return 'a dictionary'
    if wanted in _WORDS:
        return _WORDS[wanted]
    names = sorted(
        f'@{maker.__name__}()' for maker in makers if (made := _made_by(maker)) and _is_kind_of(made, wanted)
    )
    return f'what is made by {" or ".join(names)}' if names else getattr(wanted, '__name__', str(wanted))


def _is_kind_of(made: type, wanted: Any) -> bool:
    return inspect.isclass(wanted) and issubclass(made, wanted)


def _describe_value(value: Any) -> str:
    if isinstance(value, gin.config.ConfigurableReference):
        return f'{value!r}' if value.evaluate else f'{value!r}, which is not called'
    words = {int: 'the whole number ', float: 'the number ', str: 'the text ', tuple: 'the tuple ', list: 'the list '}
    return words.get(type(value), '') + gin_files.shortened(value)


def _hint(value: Any, wanted: Any) -> str:
    """Returns a hint on how to write the value, where one can be guessed."""
    if isinstance(value, gin.config.ConfigurableReference):
        guess = f'{value!r}()' if not value.evaluate else None
    elif isinstance(value, str) and _fits((value,), wanted):
        guess = repr((value,))
    elif isinstance(value, str):
        guess = _number_in(value, wanted)
    else:
        guess = (
            str(int(value)) if isinstance(value, float) and value.is_integer() and _fits(int(value), wanted) else None
        )
    return f': write {guess}' if guess else ''


def _number_in(text: str, wanted: Any) -> str | None:
    try:
        value = gin.config.parse_value(text)
    except (SyntaxError, ValueError):
        return None
    return text if _fits(value, wanted) else None
