# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a JSON file must hold, checked before anything is made of it.

A kind is a type or a tuple of them; `[kind]`, a list; `{str: kind}`, an object of any names; or an object of known names,
`{"name": kind, "other?": kind}`, where a question mark says that the name may be missing. Other names are let be.
"""

from types import NoneType

WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def check_fields(value, kind, file, field: str = "") -> None:
    """Check a value read from JSON.

    Args:
        kind: see the module.
        file: where it was read, for the message.
        field: what it is called there.

    Raises:
        ValueError: naming the file, the field, what it is, and what would be right.
    """
    problem = f"{file}: {field or 'its content'} is {_shown(value)}, expected {_in_words(kind)}."
    if isinstance(kind, list | dict):
        if not isinstance(value, type(kind)):
            raise ValueError(problem)
        for name, part, part_kind in _parts(value, kind, file, field):
            check_fields(part, part_kind, file, name)
    elif not any(_is(value, one) for one in (kind if isinstance(kind, tuple) else (kind,))):
        raise ValueError(problem)


def _parts(value, kind, file, field: str):
    """Name, value and kind of each part that is to be checked."""
    if isinstance(kind, list):
        yield from ((f"{field}[{number}]", part, kind[0]) for number, part in enumerate(value))
    elif str in kind:
        yield from ((f"{field}[{name!r}]", part, kind[str]) for name, part in value.items())
    else:
        for name, part_kind in kind.items():
            known = name.rstrip("?")
            path = f"{field}.{known}" if field else known
            if known in value:
                yield path, value[known], part_kind
            elif known == name:
                raise ValueError(f"{file}: {path} is missing, expected {_in_words(part_kind)}.")


def _is(value, kind) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is(part, kind[0]) for part in value)
    return type(value) is kind or (kind is float and type(value) is int)


def _in_words(kind) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(_in_words, kind))
    if isinstance(kind, list):
        return f"a list, each {_in_words(kind[0])}"
    if isinstance(kind, dict):
        return f"an object, each value {_in_words(kind[str])}" if str in kind else "an object"
    return WORDS[kind]


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
