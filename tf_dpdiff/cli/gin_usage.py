"""What a configuration binds is what is used: bindings, macros and scopes that nothing reads are refused.

What is read is found without running anything: by following the references from the function of each verb, in the scope
in which gin will call what they name. One file configures several verbs, so what it binds must be read by one of them;
what a flag binds must be read by the verb that is run.

A file may build on another and drop a part of it: `train.pretraining = None` leaves unread what the other file says of
that stage. So each file is judged as it stands by itself. At the end of a file, and of each file that includes it, and
at the end of all, that is looked at which has been read until then; what a line binds must be the value that is read at
one of these ends. It follows that

- a misspelt macro, scope or part that nothing refers to is refused, wherever it stands;
- so is what the same file binds again further down, itself or by an include, and what it binds of a part that it drops;
- what an included file binds may be bound again, or dropped, by the file that includes it.

Of flags, each is judged as it stands behind those before it: of two that bind the same, the last one wins.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import gin

from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_files

_CONSTANT = 'gin.constant'

Scope = tuple[str, ...]
Call = tuple[Scope, str]  # In which scope what is called, by its whole name; of a macro, its name is the scope.


class Configuration:
    """What bindings say in the end: the last one of a parameter wins.

    Args:
      bindings: In the order in which they are read.
    """

    def __init__(self, bindings: Sequence[gin_files.Binding]):
        self._of: dict[tuple[str, str], dict[str, gin_files.Binding]] = {}
        for binding in bindings:
            self._of.setdefault((binding.scope, binding.selector), {})[binding.parameter] = binding

    def __iter__(self) -> Iterator[gin_files.Binding]:
        """Yields the binding of each parameter that is bound."""
        for bindings in self._of.values():
            yield from bindings.values()

    def in_scope(self, scope: Scope, selector: str) -> dict[str, gin_files.Binding]:
        """Returns the bindings that a call in a scope reads, by parameter: as in gin, the narrower scope wins."""
        found: dict[str, gin_files.Binding] = {}
        for depth in range(len(scope) + 1):
            found.update(self._of.get(('/'.join(scope[:depth]), selector), {}))
        return found

    def macro(self, value: Any) -> gin_files.Binding | None:
        """Returns the binding of the macro that a value refers to; None where there is none, or it is no macro."""
        return self._of.get(value.config_key, {}).get('value') if is_macro(value) else None

    def source(self, binding: gin_files.Binding) -> gin_files.Binding:
        """Returns the binding that says the value of one: that of the last macro it leads to, or the same."""
        while macro := self.macro(binding.value):
            binding = macro
        return binding


class Reached:
    """What calls of functions read.

    Args:
      configuration: What is bound.
      roots: Names of the functions that are called, in no scope.
      given: Parameters of theirs that flags give, so that no binding of them is read, such as 'train.budget_file'.

    Attributes:
      configuration: What is bound.
      bindings: Those that are read, in an order that does not change from run to run.
      calls: Scope and whole name of everything that is called, macros among them.

    Raises:
      command.UsageError: if a value needs itself.
    """

    def __init__(self, configuration: Configuration, roots: Sequence[str], given: Sequence[str] = ()):
        self.configuration, self._roots, self._given = configuration, roots, given
        self.calls: set[Call] = set()
        self._read: set[gin_files.Binding] = set()
        for root in roots:
            self._visit(((), gin_files.configurable(root).selector), ())
        self.bindings = dict.fromkeys(sorted(self._read, key=lambda binding: binding.line))

    def of(self, configuration: Configuration) -> 'Reached':
        """Returns what the same calls read of another configuration."""
        return Reached(configuration, self._roots, self._given)

    def _visit(self, call: Call, path: tuple[Call, ...]) -> None:
        if call in self.calls:
            return
        self.calls.add(call)
        path = (*path, call)
        for binding in self.configuration.in_scope(*call).values():
            if binding.name in self._given:
                continue
            self._read.add(binding)
            for reference in binding.references:
                # gin calls what is named without a scope in the scope of what it is for.
                called = tuple(reference.scopes) or call[0], reference.configurable.selector
                if reference.evaluate and called in path:
                    circle = ' -> '.join(map(_name_of_call, (*path[path.index(called) :], called)))
                    raise command.UsageError(f'{binding} goes round in a circle: {circle}.')
                self._visit(called, path)


def is_macro(value: Any) -> bool:
    """Returns whether a value is a reference to a macro."""
    return isinstance(value, gin.config.ConfigurableReference) and value.configurable.selector == gin_files.MACRO


def is_left_open(value: Any) -> bool:
    """Returns whether a value is %gin.REQUIRED."""
    return isinstance(value, gin.config.ConfigurableReference) and value.config_key == ('gin.REQUIRED', _CONSTANT)


def _name_of_call(call: Call) -> str:
    scope, selector = call
    return '/'.join(scope if selector == gin_files.MACRO else (*scope, gin_files.short_name(selector)))


def check_no_commands(bindings: Sequence[gin_files.Binding], verbs: Sequence[str]) -> None:
    """Refuses references to the functions of verbs: gin would run them to learn a value.

    Raises:
      command.UsageError: names the reference.
    """
    for binding in bindings:
        for reference in binding.references:
            if reference.configurable.selector in verbs:
                raise command.UsageError(f'{binding}: {reference!r} is a command, not a value.')


def check(parsed: gin_files.Parsed, by_all: Reached, now: Reached, verb: str | None) -> None:
    """Refuses what is bound in vain, and references to what is not bound.

    Args:
      parsed: What files and flags bind.
      by_all: What all verbs read in the end.
      now: What the verb that is run reads in the end.
      verb: Its name, or None.

    Raises:
      command.UsageError: names the binding, says what is wrong with it, and names the nearest one that is in use.
    """
    _check_used(parsed, by_all, now, verb)
    _check_scopes(by_all)
    _check_complete(now)


def _check_used(parsed: gin_files.Parsed, by_all: Reached, now: Reached, verb: str | None) -> None:
    """Refuses what is bound and not read; see the head of this module."""
    bindings = parsed.bindings
    # A file may configure several verbs; of a flag, what counts is what this one reads.
    read = {binding.line for binding in by_all.bindings if binding.folder} | {binding.line for binding in now.bindings}
    for layer in parsed.layers:
        is_flag = any(binding.folder is None for binding in bindings[layer])
        reached = (now if is_flag else by_all).of(Configuration(bindings[: layer.stop]))
        read |= {binding.line for binding in bindings[layer] if binding in reached.bindings}
    unread = [binding for binding in bindings if binding.line not in read]
    if unread:
        first, more = unread[0], len({binding.line for binding in unread}) - 1
        is_for_others = first in by_all.bindings
        reason = f'bin/{verb} does not read it.' if is_for_others else _why_unread(first, bindings, by_all)
        raise command.UsageError(f'{first} is not used: {reason}{f" {more} more are not used." if more else ""}')


def _why_unread(binding: gin_files.Binding, bindings: Sequence[gin_files.Binding], reached: Reached) -> str:
    """Returns a sentence, and the question whether the nearest name in use was meant."""
    later = [other for other in bindings[bindings.index(binding) + 1 :] if other.key == binding.key]
    if later and later[-1] in reached.bindings:
        return f'{later[-1].where} binds it to {gin_files.shortened(later[-1].value)}, and what comes later wins.'
    name = gin_files.short_name(binding.selector)
    scopes = ['/'.join(scope) for scope, selector in reached.calls if selector == binding.selector]
    if binding.selector == gin_files.MACRO:
        reason = f'nothing reads %{binding.name}'
    elif not scopes:
        reason = f'nothing calls @{name}()'
    elif not any(f'{scope}/'.startswith(f'{binding.scope}/') or not binding.scope for scope in scopes):
        reason = f"nothing calls @{name}() in the scope '{binding.scope}'"
    else:
        reason = f'wherever @{name}() is called, a narrower scope binds {binding.parameter}'
    return f'{reason}.{gin_files.nearest(binding.name, _names_in_use(binding, reached))}'


def _names_in_use(binding: gin_files.Binding, reached: Reached) -> list[str]:
    """Returns the names that could have been meant: macros for a macro, parameters of what is called for others."""
    if binding.selector == gin_files.MACRO:
        return sorted('/'.join(scope) for scope, selector in reached.calls if selector == gin_files.MACRO)
    names = {
        gin_files.name_of('/'.join(scope[:depth]), selector, parameter)
        for scope, selector in reached.calls
        if selector not in (gin_files.MACRO, _CONSTANT)
        for depth in range(len(scope) + 1)
        for parameter in gin_files.parameters(selector)
    }
    return sorted(names - {binding.name})


def _check_scopes(reached: Reached) -> None:
    """Refuses references to a scope in which nothing is bound that is read."""
    scopes = {binding.scope for binding in reached.bindings if binding.selector != gin_files.MACRO and binding.scope}
    for binding in reached.bindings:
        for reference in binding.references:
            scope, selector = reference.config_key
            if scope and scope not in scopes and selector not in (gin_files.MACRO, _CONSTANT):
                raise command.UsageError(
                    f"{binding}: nothing is bound in the scope '{scope}'.{gin_files.nearest(scope, sorted(scopes))}"
                )


def _check_complete(reached: Reached) -> None:
    """Refuses macros that are read and not bound, and what a file leaves to others by %gin.REQUIRED."""
    for binding in reached.bindings:
        for reference in binding.references:
            if is_left_open(reference):
                raise command.UsageError(
                    f'the configuration is incomplete: {binding.name} must be bound; it is left '
                    f'open by %gin.REQUIRED ({binding.where}).'
                )
            if is_macro(reference) and reached.configuration.macro(reference) is None:
                name, _ = reference.config_key
                known = sorted(other.scope for other in reached.configuration if other.selector == gin_files.MACRO)
                raise command.UsageError(
                    f'{binding}: the configuration uses %{name}, which it does not define.'
                    f'{gin_files.nearest(name, known)}'
                )
