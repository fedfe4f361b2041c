# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""JSON objects in files that somebody else wrote."""

import json
import os
import stat
from pathlib import Path


def read_json(path: str | Path) -> dict:
    """The JSON object in a file; empty where there is no such file.

    Raises:
        ValueError: the file is not UTF-8 or no JSON, gives a name two values, or holds something else than an object.
        OSError: it cannot be opened: a folder, a pipe, a link to nothing, not permitted.
    """
    if not os.path.lexists(path):
        return {}
    if stat.S_ISFIFO(os.stat(path).st_mode):
        raise OSError(f"{path} is a pipe, expected a file.")  # to open it would wait for ever
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected an object.")
    return found


def read_weight_map(path: str | Path) -> dict[str, str]:
    """File names by tensor, out of an index of shards: bare names of files of the index's own kind.

    Raises:
        ValueError: the index is damaged, or names a file elsewhere.
        OSError: it cannot be opened.
    """
    index = read_json(path)
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(
            f"{path} has weight_map={found!r:.80}, expected an object of file names by tensor; it holds "
            f"{', '.join(list(index)[:12]) or 'nothing'}."
        )
    suffix = ".safetensors" if ".safetensors." in Path(path).name else ".bin"
    for tensor, name in found.items():
        if not isinstance(name, str) or set(name) & {"/", "\\", "\0"} or not name.endswith(suffix):
            raise ValueError(
                f"{path} has the tensor {tensor} in {name!r:.200}, expected the bare name of a {suffix} file beside it."
            )
    return found


def _unambiguous(pairs: list[tuple[str, object]]) -> dict:
    found = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise ValueError(f"{name!r} stands there twice, as {found[name]!r:.80} and as {value!r:.80}")
        found[name] = value
    return found
