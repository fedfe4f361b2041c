# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Rules for the values of settings: a rule checks a value, and describes in words what would be right."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from numbers import Integral
from typing import Any


@dataclass(frozen=True)
class FieldRule:
    """A rule for a value.

    Args:
        expected: what is right, in words.
        holds: whether a value is right.
        choices: the right values, if these are few.
    """

    expected: str
    holds: Callable[[Any], bool]
    choices: tuple = ()

    def or_null(self) -> "FieldRule":
        return FieldRule(f"{self.expected}, or null (None)", lambda value: value is None or self.holds(value))

    def check(self, name: str, value: Any) -> None:
        """Raise `ValueError` if a setting's value is not right."""
        if not self.holds(value):
            raise ValueError(f"{name}={value!r:.200}, expected {self.expected}.")


def whole(low: int, high: int | None = None) -> FieldRule:
    """A whole number from `low` to `high`, or to any."""
    expected = f"of at least {low}" if high is None else f"from {low} to {high}"
    return FieldRule(f"a whole number {expected}", lambda value: _is_whole(value) and low <= value <= (high or value))


def number(low: float, high: float, *, above: bool = False) -> FieldRule:
    """A number from `low` to `high`; with `above`, excluding `low` itself."""
    return FieldRule(
        f"a number {'above' if above else 'from'} {low} {'and up ' if above else ''}to {high}",
        lambda value: is_number(value) and (low < value if above else low <= value) and value <= high,
    )


def choice(names: Iterable[str]) -> FieldRule:
    names = tuple(names)
    return FieldRule(
        f"one of {', '.join(map(repr, names))}", lambda value: isinstance(value, str) and value in names, names
    )


def list_of(rule: FieldRule, length: int | None = None) -> FieldRule:
    """A list of `length` values, or of any number; none may be null."""
    size = "" if length is None else f"{length} "
    return FieldRule(
        f"a list of {size}values, each {rule.expected}",
        lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(rule.holds, value)),
    )


def either(first: FieldRule, second: FieldRule) -> FieldRule:
    return FieldRule(
        f"{first.expected}, or {second.expected}", lambda value: first.holds(value) or second.holds(value)
    )


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


# difflib's ratios above which a name resembles a known one, and above which it is taken for a misspelt one where
# unknown names are kept: `slicng` and `slicing` are at 0.92
ALIKE, MISSPELT = 0.4, 0.881


def nearest(name: str, known: Iterable[str], cutoff: float = ALIKE) -> str | None:
    """The known name that a name is most like; None if it is less like any than `cutoff`."""
    return next(iter(get_close_matches(name.lower(), list(known), 1, cutoff)), None)


FLAG = FieldRule("true or false", lambda value: isinstance(value, bool))
TEXT = FieldRule("text", lambda value: isinstance(value, str))
POSITIVE = FieldRule("a positive number", lambda value: is_number(value) and value > 0)
OBJECT = FieldRule("an object", lambda value: isinstance(value, dict))


def setting(default: Any, rule: FieldRule | None, help: str, **more: Any) -> Any:
    """A field of a dataclass whose values `check_settings` checks and commands make an option of, with `help` as its
    text.
    """
    return field(default=default, metadata={"rule": rule, "help": help, **more})


def check_settings(settings: Any) -> None:
    """Raise `ValueError` if a field of a dataclass, made by [`setting`], breaks its rule. The default is always
    right.
    """
    for each in fields(settings):
        value, rule = getattr(settings, each.name), each.metadata.get("rule")
        if rule is not None and value is not each.default:
            rule.check(each.name, value)
