# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A folder that is to be pushed: which of its files travel, and whether they make a whole checkpoint."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import is_jinja_available

from .card_text import CardError, is_generated, validate_card, writing
from .model_card import CARD, model_card, read_card

# What a training leaves beside the model: states to resume from, logs, and settings that name the machine. A pattern is
# matched with a file's path in the folder and with each folder that it is in.
LEFT_BEHIND = (
    "checkpoint-*",
    "runs",
    "wandb",
    "*.tfevents.*",
    "optimizer*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "training_args.bin",
    "trainer_state.json",
    "global_step*",
    "zero_to_fp32.py",
    "latest",
    "pytorch_model_fsdp_*",
    "__pycache__",
    "*.log",
    "*.tmp",
    "*.incomplete",
    ".*",
)
TRAVELS_ANYWAY = (".gitattributes",)

# as `transformers.utils.hub.create_and_tag_model_card` has it
TEMPLATE_DESCRIPTION = (
    "This is the model card of a \U0001f917 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)


class FolderError(ValueError):
    """A folder that is not fit to be pushed; the message lists everything that is wrong with it."""


@dataclass(frozen=True)
class PushedFile:
    """A file as it will be in the repository.

    Args:
        name: path in the repository.
        content: where it is, or what it holds.
    """

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def files_to_push(folder: Path, include: Sequence[str] = ()) -> list[PushedFile]:
    """The files of a checkpoint folder that travel, by name; the model card is not among them.

    Args:
        include: patterns of files or folders that would be left behind, `checkpoint-*` or `*.tfevents.*`.

    Raises:
        FolderError: a pattern of `include` matches nothing.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for pattern in include:
        if not any(_matches(name, [pattern]) for name in names):
            raise FolderError(f"--include {pattern!r} matches no file in {folder}.")
    asked = (*TRAVELS_ANYWAY, *include)
    return [
        PushedFile(name, folder / name)
        for name in names
        if name != CARD and (_matches(name, asked) or not _matches(name, LEFT_BEHIND))
    ]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    parts = name.split("/")
    places = {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)} | set(parts)
    return any(fnmatchcase(place, pattern) for pattern in patterns for place in places)


def card_to_push(folder: Path, repo_id: str, on_hub: str = "", keep: str | None = None) -> PushedFile:
    """The model card as it will be in the repository, with what a person wrote into it here or there.

    A card without generated parts is a person's own and goes as it is; else the generated parts are renewed.

    Args:
        folder: the checkpoint.
        repo_id: the repository, which the card's example loads.
        on_hub: the card that the repository has.
        keep: whose writing stays where both cards have some that differs: "folder" or "hub".

    Raises:
        CardError: a mark is damaged, or the metadata is not valid; both cards have writing, and `keep` is not set.
    """
    here = read_card(folder)
    if on_hub and not _is_template(on_hub) and keep != "folder":
        written_there, written_here = writing(on_hub), writing(here)
        if keep == "hub" or (written_there and not written_here):
            here = on_hub
        elif not written_there.is_in(written_here):
            raise CardError(
                f"The model card of {repo_id} says something that {folder / CARD} does not, and the other way round. Choose "
                "whose writing stays, by --card hub or --card folder; or put both into the folder's and pass --card folder."
            )
    if here and not is_generated(here):
        validate_card(here)
    else:
        here = model_card(folder, repo_id, here).text
    return PushedFile(CARD, here.encode())


def _is_template(text: str) -> bool:
    """Whether it is the card full of gaps that transformers' own `push_to_hub` puts into a new repository."""
    if not is_jinja_available():
        return False
    template = ModelCard.from_template(ModelCardData(), model_description=TEMPLATE_DESCRIPTION)
    return ModelCard(text).text.split() == template.text.split()
