# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A record of the files that a write put into a folder, which tells a later write what it may replace."""

import hashlib
import json
import stat
from collections.abc import Iterable
from pathlib import Path

from .. import __version__
from .json_files import read_json
from .names import CARD

MANIFEST = "internvlx_manifest.json"
FORMAT = 1
# Hashing all weights would take minutes. Training changes values everywhere, so samples detect it.
SAMPLES, SAMPLE_BYTES = 64, 4096


def write_manifest(folder: Path, run_id: str) -> None:
    """Record every file of a folder.

    Args:
        run_id: identifies the write, see [`written_by`].
    """
    files = {name: _fingerprint(folder / name) for name in _leaves(folder)}
    manifest = {"format": FORMAT, "internvlx_hf": __version__, "run": run_id, "files": files}
    (folder / MANIFEST).write_text(_text(manifest), encoding="utf-8")


def renewed_manifest(folder: Path, staged: Path, names: Iterable[str]) -> str | None:
    """The text of a folder's manifest once files of `staged` have replaced those of the same names; None without
    one.
    """
    if not (manifest := _read(folder)):
        return None
    files = {name: found for name, found in manifest["files"].items() if name not in set(names)}
    files |= {name: _fingerprint(staged / name) for name in names if (staged / name).is_file()}
    return _text({**manifest, "files": files})


def _text(manifest: dict) -> str:
    return json.dumps(manifest, indent=2) + "\n"


def written_by(folder: Path) -> str | None:
    """The `run_id` of the write that made a folder; None if this package did not write it."""
    return _read(folder).get("run")


def is_ours(folder: Path) -> bool:
    """Whether this package wrote a folder: it has a manifest."""
    return bool(_read(folder))


def foreign_files(folder: Path) -> list[str]:
    """Names of files in a folder that this package did not write, or that were changed since.

    The model card may have been changed: code that replaces the folder carries over what a person wrote into it.
    """
    written = _read(folder).get("files", {})
    found = [name for name in _leaves(folder) if name != MANIFEST]
    return [_label(name, written) for name in found if not _is_as_written(folder / name, name, written)]


def _label(name: str, written: dict) -> str:
    """A changed file's own name; for other files the name of the top-level folder or file."""
    if name in written:
        return f"{name} (changed since)"
    first, slash, _ = name.partition("/")
    return first + slash


def _is_as_written(path: Path, name: str, written: dict) -> bool:
    if name not in written or not stat.S_ISREG(path.lstat().st_mode):
        return False
    return name == CARD or _fingerprint(path) == written[name]


def _leaves(folder: Path) -> list[str]:
    """Relative paths of all files and empty folders in a folder; links are not followed."""
    paths = sorted(folder.rglob("*"))
    parents = {path.parent for path in paths}
    return [path.relative_to(folder).as_posix() for path in paths if path not in parents]


def _fingerprint(path: Path) -> dict:
    """A file's size, and a digest of evenly spaced parts of it; of the whole file if it is small."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, size, max(size // SAMPLES, SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return {"size": size, "sampled_sha256": digest.hexdigest()}


def _read(folder: Path) -> dict:
    """A folder's manifest; empty if there is none or it cannot be read."""
    try:
        manifest = read_json(folder / MANIFEST)
    except (ValueError, OSError):
        return {}
    is_known = manifest.get("format") == FORMAT and isinstance(manifest.get("files"), dict)
    return manifest if is_known else {}
