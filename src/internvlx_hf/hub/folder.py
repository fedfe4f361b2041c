# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A folder to push: which of its files are uploaded, which are not, and the text of its card."""

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import ModelCard, ModelCardData

from ..checkpoints.errors import LinkError
from ..checkpoints.folders import checkpoint_files, linked_folders, resolve_inside, walk_files
from ..checkpoints.names import CARD, LICENCES
from .card_text import CardError, is_generated, manual_content, validate_card
from .model_card import model_card, read_card

# Why a file is not uploaded: the first reason with a pattern that the file's path, one of its folders or its name
# matches. The patterns only explain: a file that is not on the list to upload is left out in any case.
SECRET, HIDDEN, UNKNOWN = "may hold a secret", "is hidden", "is not part of a checkpoint"
REASONS = {
    SECRET: (
        "id_rsa*",
        "id_dsa*",
        "id_ecdsa*",
        "id_ed25519*",
        "*.pem",
        "*.key",
        "*.p12",
        "*.env",
        ".env*",
        "*secret*",
        "*credential*",
        "*password*",
        "*_token",
        "*token.*",
        "token",
        ".netrc",
        # a pickle that holds the Hub token
        "training_args.bin",
    ),
    HIDDEN: (".*",),
    "is training state": (
        "checkpoint-*",
        "tmp-checkpoint-*",
        "optimizer*",
        "scheduler.pt",
        "scaler.pt",
        "rng_state*.pth",
        "random_states_*.pkl",
        "trainer_state.json",
        "global_step*",
        "zero_to_fp32.py",
        "latest",
        "pytorch_model_fsdp_*",
    ),
    "is a log": ("runs", "wandb", "mlruns", "*.tfevents.*", "*.log", "slurm-*"),
    "is a memory dump": ("core.[0-9]*",),
    "is a cache": ("__pycache__",),
    "is incomplete": ("*.tmp", "*.incomplete"),
    "is the manifest of the last write": ("internvlx_manifest.json",),
    "holds weights that the index does not name": ("*.safetensors", "*.bin"),
    "is code that no auto_map names": ("*.py",),
}
# uploaded only if `include` has their full path
GUARDED = (SECRET, HIDDEN)
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg")
# the target of a Markdown link or image, or the source of an HTML one
SHOWN = re.compile(r"""\]\(\s*(?:<([^>\n]+)>|([^)\s]+))|<img\b[^>]*?\bsrc\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)
# smaller files are read during the checks and uploaded as they were then
READ_AT_ONCE = 2**24

# as in `transformers.utils.hub.create_and_tag_model_card`
TEMPLATE_DESCRIPTION = (
    "This is the model card of a \U0001f917 transformers model that has been pushed on the Hub. This model card has "
    "been automatically generated."
)


class FolderError(ValueError):
    """A folder cannot be pushed. The message lists every problem."""


@dataclass(frozen=True)
class PushedFile:
    """A file as it will be in the repository.

    Args:
        name: path in the repository.
        content: its real path, or its bytes.
        stamp: shows whether the file at `content` has changed since it was listed.
    """

    name: str
    content: Path | bytes
    stamp: tuple | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was listed."""
        return isinstance(self.content, bytes) or self.stamp == file_stamp(self.content)


@dataclass(frozen=True)
class LeftFile:
    """A file that is not uploaded, or a folder of such files.

    Args:
        name: relative path; a folder's ends with a slash.
        reason: why, as the rest of a sentence: "is hidden".
        num_files: number of files that it stands for.
    """

    name: str
    reason: str
    num_files: int = 1

    @property
    def is_guarded(self) -> bool:
        """Whether `include` must have its full path, not just a matching pattern."""
        return self.reason in GUARDED


def file_stamp(path: Path) -> tuple | None:
    """A value that changes when a file does: its identity, size and modification time; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def folder_stamps(folder: Path) -> dict[str, tuple | None]:
    """The stamps of all files in a folder, by relative path."""
    return {name: file_stamp(folder / name) for name in walk_files(folder)}


def files_to_push(folder: Path, card: str, include: Sequence[str] = ()) -> list[PushedFile]:
    """The files of a checkpoint folder to upload, except the model card.

    These are the checkpoint's files, the images in the folder that the card shows, and the files that `include`
    matches.

    Args:
        card: text of the model card.
        include: patterns of other files or folders: `checkpoint-*`, `*.tfevents.*` (default: none). A file that may
            hold a secret or is hidden is uploaded only if its full path is given.

    Raises:
        FolderError: if a pattern of `include` matches nothing to upload, or a file is a link out of the folder.
        ValueError: if an index or a configuration is damaged.
    """
    names = names_to_push(folder, card) - {CARD}
    for pattern in include:
        names |= _included(folder, pattern)
    targets, problems = real_files(folder, names)
    if problems:
        raise FolderError("\n  ".join([f"{folder} cannot be pushed:", *problems]))
    return [PushedFile(name, _content(target), file_stamp(target)) for name, target in targets.items()]


def names_to_push(folder: Path, card: str) -> set[str]:
    """Relative paths of the files that are uploaded by default: the checkpoint's, and the images that the card shows.

    `LICENSE.key` is not uploaded, since it may be a key.

    Raises:
        ValueError: if an index or a configuration is damaged.
    """
    names = checkpoint_files(folder)
    keys = {name for name in names if _matches(name, LICENCES) and _reason(name) in GUARDED}
    return names - keys | _shown(card) & set(walk_files(folder))


def real_files(folder: Path, names: Iterable[str]) -> tuple[dict[str, Path], list[str]]:
    """Real paths of files by relative path, and the problems of those that lead out of the folder."""
    found, problems = {}, []
    for name in sorted(names):
        if name.encode(errors="replace").decode() != name:
            problems.append(f"{name!a} in {folder} is not UTF-8, which the Hub requires of names. Rename it.")
            continue
        try:
            found[name] = resolve_inside(folder, name)
        except LinkError as error:
            problems.append(str(error))
    return found, problems


def _content(path: Path) -> Path | bytes:
    is_large = path.suffix == ".safetensors" or path.stat().st_size > READ_AT_ONCE
    return path if is_large else path.read_bytes()


def _included(folder: Path, pattern: str) -> set[str]:
    """The files that a pattern of `include` matches and that may be uploaded."""
    if links := [name for name in linked_folders(folder) if _matches(name, [pattern])]:
        raise FolderError(
            f"--include {pattern!r}: {folder / links[0]} is a link to a folder, which is not followed. Put a copy "
            "there."
        )
    found = {name for name in walk_files(folder) if _matches(name, [pattern])}
    if not found:
        raise FolderError(f"--include {pattern!r} matches no file in {folder}.")
    if allowed := {name for name in found if name == pattern or _reason(name) not in GUARDED}:
        return allowed
    name = min(found)
    raise FolderError(f"--include {pattern!r}: {name} {_reason(name)}. To upload it, give its full path: {name}")


def _shown(card: str) -> set[str]:
    """Relative paths of the images that a card shows."""
    links = (unquote(re.split("[?#]", next(filter(None, groups)))[0]) for groups in SHOWN.findall(card))
    return {posixpath.normpath(link) for link in links if link.lower().endswith(IMAGES)}


def files_left(folder: Path, sent: Iterable[str]) -> list[LeftFile]:
    """The files that are not uploaded, and why. A folder from which nothing is uploaded is one entry."""
    sent = {*sent, CARD}
    open_folders = {parent for name in sent for parent in _folders(name)}
    grouped: dict[str, int] = {}
    for name in (*walk_files(folder), *linked_folders(folder)):
        if name not in sent:
            closed = [parent for parent in _folders(name) if parent not in open_folders]
            place = f"{closed[0]}/" if closed else name
            grouped[place] = grouped.get(place, 0) + 1
    return [LeftFile(name, _reason_here(folder, name), count) for name, count in sorted(grouped.items())]


def _folders(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _reason_here(folder: Path, name: str) -> str:
    if (folder / name).is_dir() and (folder / name).is_symlink():
        return "is a link to a folder"
    try:
        resolve_inside(folder, name)
    except LinkError:
        return "is a link out of the folder, a broken link or no regular file"
    return _reason(name)


def _reason(name: str) -> str:
    name = name.rstrip("/")
    return next((reason for reason, patterns in REASONS.items() if _matches(name.lower(), patterns)), UNKNOWN)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    places = {name, *_folders(name), *name.split("/")}
    return any(fnmatchcase(place, pattern.rstrip("/")) for pattern in patterns for place in places)


def card_to_push(folder: Path, repo_id: str, on_hub: str = "", keep: str | None = None) -> str:
    """The text of the model card for the repository, with the manual content of the folder's or the repository's card.

    A card without generated parts is uploaded unchanged; otherwise the generated parts are renewed.

    Args:
        folder: the checkpoint.
        repo_id: the repository, which the card's example loads.
        on_hub: the repository's current card (default: none).
        keep: whose manual content to keep if both cards have different content: "folder" or "hub" (default: raise).

    Raises:
        CardError: if a mark is damaged or the metadata is not valid, or if both cards have manual content and `keep`
            is not set.
    """
    here = read_card(folder)
    if on_hub and not _is_template(on_hub) and keep != "folder":
        manual_there, manual_here = manual_content(on_hub), manual_content(here)
        if keep == "hub" or (manual_there and not manual_here):
            here = on_hub
        elif not manual_there <= manual_here:
            raise CardError(
                f"The model cards of {repo_id} and {folder / CARD} were both edited. Choose which edits to keep with "
                "--card hub or --card folder, or merge them into the folder's card and pass --card folder."
            )
    if here and not is_generated(here):
        validate_card(here)
        return here
    return model_card(folder, repo_id, here).text


def _is_template(text: str) -> bool:
    """Whether a card is the unfilled template that transformers' own `push_to_hub` puts into a new repository."""
    template = ModelCard.from_template(ModelCardData(), model_description=TEMPLATE_DESCRIPTION)
    return ModelCard(text).text.split() == template.text.split()
