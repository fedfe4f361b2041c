# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a write of a whole folder put there, by which a later one tells what it may replace."""

import hashlib
import json
import stat
from pathlib import Path

from .. import __version__
from .folders import checkpoint_files
from .json_files import read_json
from .names import CARD, NATIVE, OURS, RECIPE, REPORT

MANIFEST = "internvlx_manifest.json"
FORMAT = 1
# Reading all of the weights would take minutes. Training changes values everywhere, so that samples show it.
SAMPLES, SAMPLE_BYTES = 64, 4096
# in the place of a fingerprint, for a folder without a manifest
NOT_RECORDED = object()


def write_manifest(folder: Path, run_id: str) -> None:
    """Record every file of a folder.

    Args:
        run_id: by which [`written_by`] knows the folder again.
    """
    files = {name: _fingerprint(folder / name) for name in _leaves(folder)}
    manifest = {"format": FORMAT, "internvlx_hf": __version__, "run": run_id, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def written_by(folder: Path) -> str | None:
    """The `run_id` of the write that made a folder; None where none of ours did."""
    return _read(folder).get("run")


def is_ours(folder: Path) -> bool:
    """Whether a write of ours made a folder: it has a manifest, or is a conversion's from before there were manifests."""
    return bool(_read(folder)) or _is_conversion(folder)


def files_in_the_way(folder: Path) -> list[str]:
    """Names of what stands in a folder and no write of ours put there, or was changed since.

    The model card may be changed: whoever replaces the folder carries over what a person wrote into it.
    """
    manifest = _read(folder)
    written = manifest.get("files", {}) if manifest else dict.fromkeys(_names_of_conversion(folder), NOT_RECORDED)
    found = [name for name in _leaves(folder) if name != MANIFEST]
    return [_label(name, written) for name in found if not _is_as_written(folder / name, name, written)]


def _label(name: str, written: dict) -> str:
    """A file by its name, a folder's whole content by the folder's."""
    if name in written:
        return f"{name} (changed since)"
    first, slash, _ = name.partition("/")
    return first + slash


def _is_as_written(path: Path, name: str, written: dict) -> bool:
    if name not in written or not stat.S_ISREG(path.lstat().st_mode):
        return False
    return name == CARD or written[name] is NOT_RECORDED or _fingerprint(path) == written[name]


def _leaves(folder: Path) -> list[str]:
    """Paths relative to a folder of all that is no folder, and of empty folders; links are not followed."""
    paths = sorted(folder.rglob("*"))
    parents = {path.parent for path in paths}
    return [path.relative_to(folder).as_posix() for path in paths if path not in parents]


def _fingerprint(path: Path) -> dict:
    """A file's size, and a digest of parts of it at equal distances: of all of it where it is small."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, size, max(size // SAMPLES, SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return {"size": size, "sampled_sha256": digest.hexdigest()}


def _read(folder: Path) -> dict:
    """A folder's manifest; empty where there is none that can be understood."""
    manifest = _json(folder / MANIFEST)
    is_known = manifest.get("format") == FORMAT and isinstance(manifest.get("files"), dict)
    return manifest if is_known else {}


def _is_conversion(folder: Path) -> bool:
    return _json(folder / "config.json").get("model_type") in (NATIVE, OURS) and (folder / REPORT).is_file()


def _names_of_conversion(folder: Path) -> set[str]:
    """The files of a checkpoint that a folder without a manifest holds, if a conversion wrote it.

    A recipe is not among them: it stands beside weights that were trained.
    """
    try:
        return checkpoint_files(folder) - {RECIPE} if _is_conversion(folder) else set()
    except (ValueError, OSError):
        return set()


def _json(path: Path) -> dict:
    try:
        return read_json(path)
    except (ValueError, OSError):
        return {}
