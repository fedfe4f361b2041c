# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Renews the code that a checkpoint carries, which an earlier version saved. Weights and settings stay as they are."""

import os
import shutil
import tempfile
from pathlib import Path

from ..checkpoints.folders import auto_map, code_files
from ..checkpoints.json_files import read_json
from ..checkpoints.manifest import MANIFEST, renewed_manifest
from ..checkpoints.names import CODE_MAPS
from ..modeling import InternVLXConfig
from ..processing import InternVLXProcessor

STAGED = ".renewing-"


def renew_code(folder: str | Path, dry_run: bool = False) -> dict[str, str]:
    """Replace the code in a checkpoint's folder by this version's.

    All files are replaced, or none if that fails. After a killed run, call it again.

    Args:
        dry_run: change nothing.

    Returns:
        What happens to each file that differs, by its name: "added", "replaced" or "removed".

    Raises:
        ValueError: if the folder has no checkpoint of this package, or names other code than this package's.
        OSError: if it cannot be written.
    """
    folder = Path(folder)
    _require_ours(folder)
    for left in [] if dry_run else folder.glob(f"{STAGED}*"):
        shutil.rmtree(left)  # of a killed run
    with tempfile.TemporaryDirectory(prefix=STAGED, dir=None if dry_run else folder) as staged_name:
        staged = Path(staged_name)
        new = _save_code(folder, staged)
        changes = {name: "removed" for name in code_files(folder) - new if (folder / name).is_file()}
        for name in new:
            if not (folder / name).is_file():
                changes[name] = "added"
            elif (folder / name).read_bytes() != (staged / name).read_bytes():
                changes[name] = "replaced"
        changes = dict(sorted(changes.items()))
        if changes and not dry_run:
            names = list(changes)
            if manifest := renewed_manifest(folder, staged, names):
                (staged / MANIFEST).write_text(manifest, encoding="utf-8")
                names.append(MANIFEST)
            _exchange(folder, staged, names)
    return changes


def _require_ours(folder: Path) -> None:
    found = read_json(folder / "config.json")
    if found.get("model_type") != InternVLXConfig.model_type:
        kind = f"its config.json has model_type={found.get('model_type')!r}" if found else "it has no config.json"
        raise ValueError(f"{folder} is not a checkpoint of internvlx-hf: {kind}. Its code is not renewed.")
    for file in CODE_MAPS:
        for reference in auto_map(folder / file).values():
            module, _, name = reference.rpartition(".")
            if not (name.startswith("InternVLX") and module.endswith("_internvlx") and module.isidentifier()):
                raise ValueError(
                    f"{folder / file} loads {reference!r}, which is not code of internvlx-hf. It is not renewed."
                )


def _save_code(folder: Path, staged: Path) -> set[str]:
    """Save this version's code for the checkpoint into `staged`, and return the names of its files."""
    parts: list[InternVLXConfig | InternVLXProcessor] = [InternVLXConfig.from_pretrained(folder)]
    if (folder / "processor_config.json").is_file():
        parts.append(InternVLXProcessor.from_pretrained(folder))
    for part in parts:
        part.save_pretrained(staged)
    return {path.name for path in staged.glob("*.py")}


def _exchange(folder: Path, staged: Path, names: list[str]) -> None:
    """Put the files of `staged` in the place of those in `folder`, and remove those that it lacks. Undone on any
    error.
    """
    kept = staged / "kept"
    kept.mkdir()
    done = []
    try:
        for name in names:
            if (folder / name).exists():
                shutil.copy2(folder / name, kept / name)
        for name in names:
            done.append(name)
            if (staged / name).exists():
                os.replace(staged / name, folder / name)
            else:
                (folder / name).unlink()
    except BaseException:
        for name in done:
            if (kept / name).exists():
                shutil.copy2(kept / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        raise
