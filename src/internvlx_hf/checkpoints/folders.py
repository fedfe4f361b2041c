# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint folders to read: finding them, and which of their files belong to the checkpoint.

Their content is not trusted: a symbolic link must not lead out of the folder, and none of their code is run.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeGuard

from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import CHAT_TEMPLATE_DIR

from .errors import CheckpointError, LinkError
from .json_files import read_json, read_weight_map
from .names import CARD, CODE_MAPS, FILES, LICENCES, SAFE_WEIGHTS, is_known, is_weights

# added tokens are read one by one, some of them in quadratic time
MAX_ADDED_TOKENS = 50_000
TOKEN_LISTS = {
    "tokenizer.json": ("added_tokens",),
    "tokenizer_config.json": ("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"),
    "special_tokens_map.json": ("extra_special_tokens", "additional_special_tokens"),
}
# files of a repository that are downloaded
DOCUMENTS = (CARD, *LICENCES)
HUB_PATTERNS = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja", *DOCUMENTS)


def find_source(source: str | Path, revision: str | None = None, patterns: Iterable[str] = HUB_PATTERNS) -> Path:
    """The folder of a checkpoint. If `source` is not a folder, it is read as a Hub id and downloaded.

    Args:
        revision: branch, tag or commit on the Hub.
        patterns: files to download.

    Raises:
        FileNotFoundError: if there is no such folder and no such repository on the Hub.
        ValueError: if a revision of a folder is given, or [`check_files`] refuses a file.
    """
    refuse_revision_of_folder(source, revision)
    folder = Path(source).expanduser()
    if folder.is_dir():
        check_files(folder)
        return folder
    if not is_hub_id(str(source)):
        raise FileNotFoundError(
            f"{source} is not a folder, expected a checkpoint's folder or a Hub id like 'owner/name'."
        )
    try:
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        raise FileNotFoundError(
            f"{source} is not a local folder, and downloading it from the Hub failed: {error}"
        ) from error
    check_files(folder)
    return folder


def refuse_revision_of_folder(source: str | Path, revision: str | None) -> None:
    """
    Raises:
        ValueError: if a revision of a folder is given.
    """
    if revision is not None and Path(source).expanduser().is_dir():
        raise ValueError(
            f"revision={revision!r} is one of a repository on the Hub, but {source} is a folder here. Leave it out."
        )


def is_hub_id(name: str | None, needs_owner: bool = True) -> TypeGuard[str]:
    """Whether a name is a valid repository id on the Hub."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return name is not None and (name.count("/") == 1 or not needs_owner)


def source_name(source: str | Path) -> str:
    """A Hub id, or a folder's or file's name without its path, which may be private."""
    path = Path(source).expanduser()
    return path.absolute().name if path.exists() else str(source)


def require_apart(out: Path, source: str | Path) -> None:
    """Raise `FileExistsError` if an output folder is, or contains, its own source."""
    folder = Path(source).expanduser().resolve()
    if folder.is_dir() and out in (folder, *folder.parents):
        raise FileExistsError(f"{out} contains the source {source}. Choose another folder.")


def resolve_inside(folder: str | Path, path: str | Path) -> Path:
    """The real path of a file or folder inside `folder`, with links followed.

    Links may lead anywhere inside `folder`, and to files of repositories in the Hub's cache, whose snapshots consist
    of such links.

    Args:
        folder: must exist.
        path: absolute, or relative to `folder`.

    Raises:
        LinkError: if the path leads out of the folder, does not exist, or is neither a file nor a folder (a pipe).
    """
    root, path = Path(folder).resolve(), Path(folder, path)
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        kind = "is a broken link" if path.is_symlink() else "does not exist"
        raise LinkError(f"{path} {kind}. Remove it, or put the file there.") from error
    if not (target.is_relative_to(root) or _is_blob(target, root)):
        raise LinkError(
            f"{path} leads to {target}, outside of {root}. Replace it with a copy of the file, or remove it."
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


def check_links(folder: Path) -> None:
    """Check that no file that a checkpoint is read from, apart from weights, is a link out of its folder.

    Raises:
        LinkError: if one is; the message names the link and its target.
    """
    templates = folder / CHAT_TEMPLATE_DIR
    for path in (*(folder / name for name in FILES), templates, *templates.glob("*.jinja")):
        if os.path.lexists(path):
            resolve_inside(folder, path.relative_to(folder))


def check_files(folder: Path) -> None:
    """Check a stranger's checkpoint before transformers reads it: its links, and how many tokens it adds.

    Raises:
        LinkError: see [`check_links`]; also for weights.
        CheckpointError: if a file adds more than `MAX_ADDED_TOKENS` tokens.
    """
    check_links(folder)
    for path in folder.iterdir():
        if is_weights(path.name):
            resolve_inside(folder, path.name)
    counts = {"added_tokens.json": len(read_json(folder / "added_tokens.json"))}
    for name, fields in TOKEN_LISTS.items():
        found = read_json(folder / name)
        counts[name] = sum(len(found[field]) for field in fields if isinstance(found.get(field), list | dict))
    for name, count in counts.items():
        if count > MAX_ADDED_TOKENS:
            raise CheckpointError(f"{folder / name} adds {count} tokens, expected at most {MAX_ADDED_TOKENS}.")


def find_companions(source: str | Path, patterns: Iterable[str] = LICENCES) -> dict[str, Path]:
    """Real paths, by name, of the files that also apply to checkpoints derived from this one, such as its licence.

    Call this before heavy work: a file that cannot be copied raises here. A source that is not a folder has none.

    Raises:
        LinkError: if a file is a broken link, a link out of the folder, or neither a file nor a folder.
    """
    folder = Path(source).expanduser()
    paths = [path for pattern in patterns for place in sorted(folder.glob(pattern)) for path in _files(place)]
    return {path.relative_to(folder).as_posix(): _regular(folder, path) for path in paths}


def copy_companions(files: dict[str, Path], out: Path) -> None:
    """Copy the files that [`find_companions`] found into another folder, under the same names."""
    for name, file in files.items():
        target = out / name
        target.parent.mkdir(exist_ok=True, parents=True)
        if not (target.exists() and target.samefile(file)):
            shutil.copyfile(file, target)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from (file for file in sorted(path.rglob("*")) if file.is_symlink() or not file.is_dir())
    else:
        yield path


def _regular(folder: Path, path: Path) -> Path:
    target = resolve_inside(folder, path.relative_to(folder))
    if not target.is_file():
        raise LinkError(f"{path} is not a file. Put the file itself there, or remove it.")
    return target


def checkpoint_files(folder: str | Path) -> set[str]:
    """The files of a folder that belong to a checkpoint, as relative paths with forward slashes.

    These are the weights that the index names, or the single weight file; known configurations, tokenizers, templates,
    reports, the model card and licences; and the code that an `auto_map` names, with its imports. Links to folders are
    not entered. A link to a file counts, wherever it leads.

    Raises:
        CheckpointError: if an index, a configuration or a module is damaged; the message names it.
    """
    folder = Path(folder)
    names = set(walk_files(folder))
    return {name for name in names if is_known(name)} | names & {
        *SAFE_WEIGHTS,
        *weight_map(folder).values(),
        *code_files(folder),
    }


def walk_files(folder: Path) -> Iterator[str]:
    """Relative paths of everything in a folder except folders and links to folders. Links are not entered."""
    for place, _, files in os.walk(folder):
        yield from (Path(place, name).relative_to(folder).as_posix() for name in files)


def linked_folders(folder: Path) -> list[str]:
    """Relative paths of the links to folders in a folder."""
    found = (Path(place, name) for place, folders, _ in os.walk(folder) for name in folders)
    return [path.relative_to(folder).as_posix() for path in found if path.is_symlink()]


def weight_map(folder: Path) -> dict[str, str]:
    """File names by tensor, from the safetensors index; empty without an index.

    Raises:
        CheckpointError: if the index is damaged or leads out of the folder.
    """
    index = folder / SAFE_WEIGHTS[1]
    return read_weight_map(index) if index.is_file() else {}


def code_files(folder: Path) -> set[str]:
    """The modules that an `auto_map` of the folder names, and the modules that these import, whether they exist or
    not.
    """
    waiting = {_module(reference) for file in CODE_MAPS for reference in auto_map(folder / file).values()}
    found: set[str] = set()
    while waiting := {module for module in waiting if module.isidentifier()} - found:
        found |= waiting
        waiting = set().union(*(relative_imports(folder / f"{module}.py") for module in waiting))
    return {f"{module}.py" for module in found}


def _module(reference: str) -> str:
    return reference.rpartition(".")[0]


def relative_imports(path: Path) -> set[str]:
    """The sibling modules that a module imports, by transformers' own rule; none if the file does not exist.

    Raises:
        CheckpointError: if the file is not UTF-8 text.
    """
    try:
        return set(get_relative_imports(path)) if path.is_file() else set()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error}") from error


def auto_map(path: Path) -> dict[str, str]:
    """The classes that a saved configuration names, by auto class, including those of its image and video processor.

    A tokenizer's second class has the key `<auto class>[1]`.

    Raises:
        CheckpointError: if the configuration is damaged.
    """
    saved = read_json(path)
    found = {}
    for part in (saved, *(saved.get(name) or {} for name in ("image_processor", "video_processor"))):
        entries = part.get("auto_map") if isinstance(part, dict) else part
        if not isinstance(entries or {}, dict):
            raise CheckpointError(f"{path}: auto_map={entries!r}, expected classes by the names of auto classes.")
        for name, references in (entries or {}).items():
            for number, reference in enumerate(_references(references)):
                if not isinstance(reference, str):
                    raise CheckpointError(f"{path}: auto_map names {reference!r} for {name}, expected 'module.Class'.")
                found[name if not number else f"{name}[{number}]"] = reference
    return found


def _references(entry) -> Iterable:
    return filter(None, entry) if isinstance(entry, list | tuple) else [entry]
