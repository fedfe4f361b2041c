# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Options of commands from the fields of dataclasses, which [`setting`] makes."""

import argparse
import types
from dataclasses import Field
from typing import Any, Union, get_args, get_origin


def option_type(field: Field) -> Any:
    """The type of a field's option: the first of a union's."""
    is_union = get_origin(field.type) in (Union, types.UnionType)
    return get_args(field.type)[0] if is_union else field.type


def option_help(field: Field, default: str | None = None) -> str:
    """The text of a field's option. `default` says in words what leaving it out means (default: the field's own default)."""
    shown = field.metadata.get("own", field.default) if default is None else default
    return f"{field.metadata['help']} (default: {'none' if shown is None else shown})".replace("%", "%%")


def add_option(group: argparse._ActionsContainer, field: Field, default: str | None = None) -> argparse.Action:
    """Add the option of a field, whose rule a `CommandParser` checks."""
    name, kind, help = f"--{field.name.replace('_', '-')}", option_type(field), option_help(field, default)
    if kind is bool:
        action = group.add_argument(name, action=argparse.BooleanOptionalAction, help=help)
    else:
        action = group.add_argument(name, type=kind, choices=field.metadata["rule"].choices or None, help=help)
    action.rule = field.metadata["rule"]  # type: ignore[attr-defined]
    return action
