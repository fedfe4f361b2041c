# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Options of commands from the fields of dataclasses, which [`setting`] makes."""

import argparse
import types
from collections.abc import Iterable
from dataclasses import Field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin

_ARGUMENTS = ("nargs", "const", "metavar")  # of argparse, which a field's metadata may have


def option_type(field: Field) -> Any:
    """The type of a field's option: what its metadata says, or the first of a union's."""
    is_union = get_origin(field.type) in (Union, types.UnionType)
    return field.metadata.get("type", get_args(field.type)[0] if is_union else field.type)


def option_help(field: Field, default: str | None = None) -> str:
    """The text of a field's option.

    Args:
        default: what leaving it out means, in words (default: as its metadata says, or its own default).
    """
    shown = field.metadata.get("shown", field.metadata.get("own", field.default)) if default is None else default
    text = field.metadata["help"]
    if not isinstance(shown, bool) or field.metadata.get("own"):
        text += f" (default: {'none' if shown is None else shown})"
    return text.replace("%", "%%")


def add_option(group: argparse._ActionsContainer, field: Field, default: str | None = None) -> argparse.Action:
    """Add the option of a field, whose rule a `CommandParser` checks; `default` as in [`option_help`]."""
    name, kind, rule = f"--{field.name.replace('_', '-')}", option_type(field), field.metadata["rule"]
    given: dict[str, Any] = {"help": option_help(field, default), "default": field.default}
    if kind is bool:
        given["action"] = "store_true" if field.default is False else argparse.BooleanOptionalAction
    else:
        given |= {name: field.metadata[name] for name in _ARGUMENTS if name in field.metadata}
        given |= {"type": kind, "choices": rule.choices or None if rule else None}
    action = group.add_argument(name, **given)
    action.rule = rule  # type: ignore[attr-defined]
    return action


def add_options(group: argparse._ActionsContainer, settings: type, names: Iterable[str] = ()) -> None:
    """Add the options of a dataclass's fields, or of those of `names`, but not those that its parent has."""
    inherited = {each.name for each in fields(settings.__base__)} if is_dataclass(settings.__base__) else set()
    for each in fields(settings):
        if each.name in names or not (names or each.name in inherited):
            add_option(group, each)
