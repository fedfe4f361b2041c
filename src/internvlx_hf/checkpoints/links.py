# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Folders that somebody else filled: a symbolic link in one must not lead out of it."""

from pathlib import Path

from huggingface_hub import constants


class LinkError(ValueError):
    """A file of a folder that is a link to nothing or out of the folder, or a pipe, a socket or a device."""


def resolve_inside(folder: str | Path, path: str | Path) -> Path:
    """The real path of a file or folder that lies in `folder`, links followed.

    Links may lead anywhere inside `folder`, and to the files of repositories in the Hub's cache, whose snapshots consist of
    such links.

    Args:
        folder: must exist.
        path: absolute, or relative to `folder`.

    Raises:
        LinkError: the path leads out of the folder, or to nothing, or to what is neither a file nor a folder (a pipe).
    """
    root, path = Path(folder).resolve(), Path(folder, path)
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        kind = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise LinkError(f"{path} {kind}. Remove it, or put the file there.") from error
    if not (target.is_relative_to(root) or _is_blob(target, root)):
        raise LinkError(
            f"{path} leads to {target}, outside of {root}. Replace it by a copy of the file, or remove it."
        )
    if not (target.is_file() or target.is_dir()):
        raise LinkError(f"{path} is not a regular file. Remove it.")
    return target


def _is_blob(target: Path, root: Path) -> bool:
    """Whether `target` is a file of the Hub's cache, or of the same cached repository as the snapshot `root`."""
    blobs = target.parent
    if blobs.name != "blobs":
        return False
    cache = Path(constants.HF_HUB_CACHE).resolve()
    return blobs.parent.parent == cache or (root.parent.name == "snapshots" and blobs.parent == root.parent.parent)
