# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The parser of all commands, and options from the fields of dataclasses, which [`setting`] makes."""

import argparse
import types
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin

from ..processing.rules import nearest

Settings = TypeVar("Settings")

_ARGUMENTS = ("nargs", "const", "metavar")  # of argparse, which a field's metadata may have


class CommandParser(argparse.ArgumentParser):
    """Options cannot be abbreviated; the error for an unknown one names the nearest. Each keeps its rule."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog=prog, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        self._refuse_unknown(args)
        return self._checked(*super().parse_known_args(args, namespace))

    def parse_known_intermixed_args(self, args=None, namespace=None):
        self._refuse_unknown(args)
        return self._checked(*super().parse_known_intermixed_args(args, namespace))

    def _checked(self, options: argparse.Namespace, rest: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """The options, each of which keeps its rule. Raises: ValueError: if one does not."""
        for action in self._actions:
            value, rule = getattr(options, action.dest, None), getattr(action, "rule", None)
            if rule is not None and value is not None:
                rule.check(action.option_strings[0], value)
        return options, rest

    def _refuse_unknown(self, arguments: list[str]) -> None:
        for argument in arguments[: arguments.index("--") if "--" in arguments else None]:
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions:
                self.error(self.unknown(name))

    def unknown(self, name: str) -> str:
        """The error for an option that there is not."""
        meant = nearest(name, self._option_string_actions)
        return f"there is no option {name}." + f" Did you mean {meant}?" * bool(meant)


def option_type(field: Field) -> Any:
    """The type of a field's option: what its metadata says, or the first of a union's."""
    is_union = get_origin(field.type) in (Union, types.UnionType)
    return field.metadata.get("type", get_args(field.type)[0] if is_union else field.type)


def option_help(field: Field, default: Any = None) -> str:
    """The text of a field's option.

    Args:
        default: what leaving it out means, in words (default: as its metadata says, or its own default).
    """
    shown = field.metadata.get("shown", field.default) if default is None else default
    text = field.metadata["help"]
    if shown is not False and shown not in ("", MISSING):
        text += f" (default: {'none' if shown is None else shown})"
    return text.replace("%", "%%")


def add_option(group: argparse._ActionsContainer, field: Field, default: Any = None) -> None:
    """Add the option of a field, whose rule a [`CommandParser`] checks; `default` as in [`option_help`]."""
    name, kind, rule = f"--{field.name.replace('_', '-')}", option_type(field), field.metadata["rule"]
    given: dict[str, Any] = {"help": option_help(field, default), "default": field.default}
    if kind is bool:
        given["action"] = "store_true" if field.default is False else argparse.BooleanOptionalAction
    else:
        given |= {name: field.metadata[name] for name in _ARGUMENTS if name in field.metadata}
        given |= {"type": kind, "choices": rule.choices or None if rule else None}
    group.add_argument(name, **given).rule = rule  # type: ignore[attr-defined]


def add_options(
    group: argparse._ActionsContainer, settings: type, names: Iterable[str] = (), default: Any = None
) -> None:
    """Add the options of a dataclass's fields, or of those of `names`, but not those that its parent has; `default`
    as in [`option_help`].
    """
    inherited = {each.name for each in fields(settings.__base__)} if is_dataclass(settings.__base__) else set()
    for each in fields(settings):
        if each.name in names or not (names or each.name in inherited):
            add_option(group, each, default)


def settings_from(options: argparse.Namespace, settings: type[Settings]) -> Settings:
    """A dataclass with the values of its fields' options, and its defaults where a command has none of them."""
    names = [each.name for each in fields(settings) if each.name in options]  # type: ignore[arg-type]
    return settings(**{name: getattr(options, name) for name in names})
