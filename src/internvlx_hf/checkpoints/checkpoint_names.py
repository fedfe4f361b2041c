# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Which files of a folder belong to a checkpoint: the names that are known, and those that its files lead to."""

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports

from .companions import LICENCES
from .json_files import read_json, read_weight_map

# the model types of transformers' own InternVL and of ours
NATIVE, OURS = "internvl", "internvl_x"
CARD = "README.md"
REPORT = "conversion_report.json"
RECIPE = "training_recipe.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# whose `auto_map` may name code
CODE_MAPS = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
# matched with the whole path in the folder; a star does not cross a slash
KNOWN = (
    *CODE_MAPS,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "adapter_config.json",
    "adapter_model.safetensors",
    REPORT,
    RECIPE,
    CARD,
    *LICENCES,
    "LICENSES/*",
    ".gitattributes",
)


def checkpoint_file_names(folder: str | Path) -> set[str]:
    """The files of a folder that belong to a checkpoint, as paths in it with forward slashes. Runs none of its code.

    These are the weights that the index names, or the one file that holds them all; known configurations, tokenizers,
    templates, reports, card and licences; and the code that an `auto_map` names or that such code imports. Folders that
    are links are not entered. A file that is a link counts, wherever it leads.

    Raises:
        ValueError: an index, a configuration or a module is damaged, naming it.
    """
    folder = Path(folder)
    names = set(walk_files(folder))
    known = {name for name in names if any(_is_match(name, pattern) for pattern in KNOWN)}
    return known | names & {SINGLE, INDEX, *weight_map(folder).values(), *code_names(folder)}


def walk_files(folder: Path) -> Iterator[str]:
    """Paths in a folder of all that is no folder and no link to one. Links are not entered."""
    for place, _, files in os.walk(folder):
        yield from (Path(place, name).relative_to(folder).as_posix() for name in files)


def linked_folders(folder: Path) -> list[str]:
    """Paths in a folder of the links to folders."""
    found = (Path(place, name) for place, folders, _ in os.walk(folder) for name in folders)
    return [path.relative_to(folder).as_posix() for path in found if path.is_symlink()]


def _is_match(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def weight_map(folder: Path) -> dict[str, str]:
    """The index's names of files by tensor; empty where there is no index.

    Raises:
        ValueError: the index is damaged, or leads out of the folder.
    """
    return read_weight_map(folder / INDEX) if (folder / INDEX).is_file() else {}


def code_names(folder: Path) -> set[str]:
    """The modules that an `auto_map` of the folder names, and those that they import, whether they are there or not."""
    waiting = {_module(reference) for file in CODE_MAPS for reference in auto_map(folder / file).values()}
    found: set[str] = set()
    while waiting := {module for module in waiting if module.isidentifier()} - found:
        found |= waiting
        waiting = set().union(*(relative_imports(folder / f"{module}.py") for module in waiting))
    return {f"{module}.py" for module in found}


def _module(reference: str) -> str:
    return reference.rpartition(".")[0]


def relative_imports(path: Path) -> set[str]:
    """The modules beside it that a module imports, by transformers' own rule; none where there is no such file.

    Raises:
        ValueError: it is no text.
    """
    try:
        return set(get_relative_imports(path)) if path.is_file() else set()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def auto_map(path: Path) -> dict[str, str]:
    """The classes that a saved configuration names by auto class, those of its image and video processor included.

    A tokenizer's second class has the key `<auto class>[1]`.

    Raises:
        ValueError: it is damaged.
    """
    saved = read_json(path)
    found = {}
    for part in (saved, *(saved.get(name) or {} for name in ("image_processor", "video_processor"))):
        entries = part.get("auto_map") if isinstance(part, dict) else part
        if not isinstance(entries or {}, dict):
            raise ValueError(f"{path}: auto_map={entries!r}, expected classes by the names of auto classes.")
        for name, references in (entries or {}).items():
            for number, reference in enumerate(_listed(references)):
                if not isinstance(reference, str):
                    raise ValueError(f"{path}: auto_map names {reference!r} for {name}, expected 'module.Class'.")
                found[name if not number else f"{name}[{number}]"] = reference
    return found


def _listed(references) -> Iterable:
    return filter(None, references) if isinstance(references, list | tuple) else [references]
