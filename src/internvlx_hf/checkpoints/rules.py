# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Rules for the values of settings: a rule checks a value, and describes in words what would be right."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FieldRule:
    """A rule for a value.

    Args:
        expected: what is right, in words.
        holds: whether a value is right.
    """

    expected: str
    holds: Callable[[Any], bool]

    def or_null(self) -> "FieldRule":
        return FieldRule(f"{self.expected}, or null (None)", lambda value: value is None or self.holds(value))

    def check(self, name: str, value: Any) -> None:
        """Raise `ValueError` if a setting's value is not right."""
        if not self.holds(value):
            raise ValueError(f"{name}={value!r:.200}, expected {self.expected}.")


def whole(low: int, high: int) -> FieldRule:
    return FieldRule(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float, *, above: bool = False) -> FieldRule:
    """A number from `low` to `high`; with `above`, excluding `low` itself."""
    return FieldRule(
        f"a number {'above' if above else 'from'} {low} {'and up ' if above else ''}to {high}",
        lambda value: is_number(value) and (low < value if above else low <= value) and value <= high,
    )


def choice(names: Iterable[str]) -> FieldRule:
    names = tuple(names)
    return FieldRule(f"one of {', '.join(map(repr, names))}", lambda value: isinstance(value, str) and value in names)


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


FLAG = FieldRule("true or false", lambda value: isinstance(value, bool))
TEXT = FieldRule("text", lambda value: isinstance(value, str))
OBJECT = FieldRule("an object", lambda value: isinstance(value, dict))
