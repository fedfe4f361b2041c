# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Which of a checkpoint's sizes each image of a request takes: `tokens_per_tile`.

A choice is a size ("64", 64, "256:64"), or two joined by a plus, of an image's tiles and of its thumbnail ("256+64").
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .rules import FieldRule
from .rvtc import TilePlan

_SIZE = r"[1-9][0-9]*(:[0-9]+)?"


def _is_choice(value: Any) -> bool:
    is_known = isinstance(value, str | int) and not isinstance(value, bool)
    return is_known and re.fullmatch(rf"{_SIZE}( *\+ *{_SIZE})?", str(value), re.ASCII) is not None


CHOICE_RULE = FieldRule("a size of a tile (64, '64:256', '256:64' or '256:0'), or two of them ('256+64')", _is_choice)


def _are_sizes(value: Any) -> bool:
    sizes = value.split(",") if isinstance(value, str) else value
    return (
        isinstance(sizes, list | tuple)
        and len(sizes) > 0
        and all(_is_choice(size) and "+" not in str(size) for size in sizes)
    )


OFFERS_HELP = "sizes of a tile that the model offers, the source's own first, such as 256,256:64"
SIZES_RULE = FieldRule("a list of sizes of a tile, such as ['256', '64:256', '256:64'] or '256,64:256'", _are_sizes)


class Choice(NamedTuple):
    """Indices of the sizes of an image's tiles and of its thumbnail among those that the checkpoint offers."""

    tiles: int = 0
    thumbnail: int = 0

    def of_plan(self, plan: TilePlan) -> list[int]:
        """The size of each tile of an image that is cut by a plan."""
        return self.of_tiles(plan.num_tiles, plan.has_thumbnail)

    def of_tiles(self, num_tiles: int, has_thumbnail: bool) -> list[int]:
        """The size of each tile of an image of `num_tiles` tiles. A thumbnail comes last; an only tile is none."""
        thumbnails = int(has_thumbnail and num_tiles > 1)
        return [self.tiles] * (num_tiles - thumbnails) + [self.thumbnail] * thumbnails


def tokens_before(size: str) -> int:
    """Placeholders of a tile of this size."""
    return int(size.partition(":")[0])


def size_names(sizes: Sequence[Any]) -> list[str]:
    """The names of sizes as the model's configuration writes them: "64:64" and 64 are "64".

    Raises:
        ValueError: if one is no size.
    """
    names = [re.sub(r"^(\d+):\1$", r"\1", str(size)) for size in sizes]
    for size, name in zip(sizes, names, strict=True):
        if isinstance(size, bool) or re.fullmatch(_SIZE, name, re.ASCII) is None:
            raise ValueError(f"offered_sizes has {size!r}, expected sizes such as '256', '64:256' and '256:64'.")
    return names


def read_choice(choice: Any, offered: Sequence[str]) -> Choice:
    """Find a choice among the sizes that a checkpoint offers.

    Raises:
        ValueError: if the checkpoint does not offer it. The message names those that it does.
    """
    parts = [re.sub(r"^(\d+):\1$", r"\1", part.strip()) for part in str(choice).split("+")]
    if len(parts) > 2 or not all(part in offered for part in parts):
        raise ValueError(
            f"tokens_per_tile={choice!r} is not offered by this checkpoint, expected one of {', '.join(offered)}, or "
            "two of them joined by a plus, for an image's tiles and its thumbnail."
        )
    return Choice(offered.index(parts[0]), offered.index(parts[-1]))


def read_choices(choices: Any, offered: Sequence[str], num_images: int) -> list[Choice]:
    """The choice of each image: one for all, or a list with one for each.

    Raises:
        ValueError: if a list has another length than the images, or the checkpoint does not offer a choice.
    """
    if not isinstance(choices, list | tuple):
        return [read_choice(choices, offered)] * num_images
    if len(choices) != num_images:
        raise ValueError(
            f"tokens_per_tile has {len(choices)} sizes for {num_images} images, expected one for each, or one for all."
        )
    return [read_choice(choice, offered) for choice in choices]


def frame_size(choices: Any, offered: Sequence[str]) -> int:
    """The index of the size of videos' frames: the first if there is none for all images."""
    return 0 if choices is None or isinstance(choices, list | tuple) else read_choice(choices, offered).tiles
