# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Reading JSON files that are not trusted, and checking their content before it is used.

A kind is a type or a tuple of types; `[kind]`, a list; `{str: kind}`, an object with any names; or `{"name": kind,
"other?": kind}`, an object with known names, where a question mark means that the name is optional. Other names are
ignored.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from .errors import CheckpointError, listed
from .names import SAFE_WEIGHTS

WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def read_json(path: str | Path) -> dict:
    """The JSON object in a file; empty if the file does not exist.

    Raises:
        CheckpointError: if the file is not UTF-8 or not JSON, gives a name two values, or does not hold an object.
        OSError: if it cannot be opened: a folder, a pipe, a device, a broken link, no permission.
    """
    if not os.path.lexists(path):
        return {}
    if not (stat.S_ISREG(mode := os.stat(path).st_mode) or stat.S_ISDIR(mode)):
        raise OSError(f"{path} is not a regular file.")  # a pipe blocks forever, a device may never end
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected an object.")
    return found


def read_weight_map(path: str | Path) -> dict[str, str]:
    """File names by tensor from an index of shards. They must be bare names of files of the index's own format.

    Raises:
        CheckpointError: if the index is damaged or names a file in another folder.
        OSError: if it cannot be opened.
    """
    index = read_json(path)
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(
            f"{path} has weight_map={found!r:.80}, expected an object of file names by tensor; it holds "
            f"{listed(index) or 'nothing'}."
        )
    suffix = ".safetensors" if Path(path).name in SAFE_WEIGHTS else ".bin"
    for tensor, name in found.items():
        if not isinstance(name, str) or set(name) & {"/", "\\", "\0"} or not name.endswith(suffix):
            raise CheckpointError(
                f"{path} has the tensor {tensor} in {name!r:.200}, expected the bare name of a {suffix} file beside "
                "it."
            )
    return found


def _unambiguous(pairs: list[tuple[str, object]]) -> dict:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise ValueError(f"{name!r} appears twice, as {found[name]!r:.80} and as {value!r:.80}")
        found[name] = value
    return found


def check_fields(value: Any, kind: Any, file: str | Path, field: str = "") -> None:
    """Check a value read from JSON.

    Args:
        kind: see the module's docstring.
        file: the file it comes from, for messages.
        field: its name in the file.

    Raises:
        CheckpointError: if the value is wrong; the message gives the file, the field, the value and what would be
            right.
    """
    problem = f"{file}: {field or 'its content'} is {_shown(value)}, expected {_in_words(kind)}."
    if isinstance(kind, list | dict):
        if not isinstance(value, type(kind)):
            raise CheckpointError(problem)
        for name, part, part_kind in _parts(value, kind, file, field):
            check_fields(part, part_kind, file, name)
    elif not any(_is(value, one) for one in (kind if isinstance(kind, tuple) else (kind,))):
        raise CheckpointError(problem)


def _parts(value: Any, kind: Any, file: str | Path, field: str) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and kind of each part to check."""
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
                raise CheckpointError(f"{file}: {path} is missing, expected {_in_words(part_kind)}.")


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is(part, kind[0]) for part in value)
    return type(value) is kind or (kind is float and type(value) is int)


def _in_words(kind: Any) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(_in_words, kind))
    if isinstance(kind, list):
        return f"a list, each {_in_words(kind[0])}"
    if isinstance(kind, dict):
        return f"an object, each value {_in_words(kind[str])}" if str in kind else "an object"
    return WORDS[kind]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
