# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Which rows of a prompt each stage has, and their positions there. Nothing here needs vLLM.

The long sequence, the one that vLLM knows, has for each tile as many rows as the tile has tokens in the stage where it
has most. A tile that grows has late rows, which are there only after its boundary; one that shrinks has early rows,
only before it. vLLM carries one number for each row, as all of M-RoPE's positions: the row's own number less the late
rows before it, and less `radix` times the early ones. It continues to count them while it decodes, so that each step
has both numbers of all its rows.

The sizes of an image's tiles end its name in vLLM's caches: the scheduler does not see more of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from ..modeling import InternVLXConfig
from ..modeling.lvtc_rows import RowMap, map_rows, read_columns
from ..modeling.tile_sizes import TileSize
from ..modeling.tile_tokens import ImageTokens
from ..processing.size_choices import Choice

# M-RoPE's positions may have 32 bits. With both kinds of rows, a request has less than `LONGEST`.
RADIX, LONGEST = 2**16, 2**15


def long_rows(size: TileSize) -> int:
    """Rows of a tile in the long sequence."""
    return max(size.before, size.after)


def named_with_sizes(name: str, choice: Choice) -> str:
    """An image's name in vLLM's caches with the sizes of its tiles."""
    return f"{name}-{choice.tiles}+{choice.thumbnail}"


def read_sizes(config: InternVLXConfig, image: Any) -> list[TileSize]:
    """The size of each tile of one of a prompt's images, a multimodal feature of vLLM."""
    tiles = thumbnail = config.sizes[0]
    if len(config.sizes) > 1:
        tiles, thumbnail = (config.sizes[int(index)] for index in image.identifier.rpartition("-")[2].split("+"))
    length = image.mm_position.length
    if tiles == thumbnail or length == long_rows(tiles):
        return [tiles] * (length // long_rows(tiles))
    return [tiles] * ((length - long_rows(thumbnail)) // long_rows(tiles)) + [thumbnail]


@dataclass(frozen=True)
class Stage:
    """The layers between two boundaries.

    Args:
        is_expanded, is_merged: whether they have the late rows, and whether they lack the early ones.
        counts_late: whether their positions count late rows.
        radix: see above.
    """

    is_expanded: bool
    is_merged: bool
    counts_late: bool
    radix: int

    @property
    def is_long(self) -> bool:
        """Whether it has all rows of the long sequence."""
        return self.is_expanded and not self.is_merged

    def places(self, rows: torch.Tensor, carried: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n,) numbers in the long sequence and what vLLM carries -> numbers in the stage and positions, (n,) each."""
        before = rows - carried
        late, early = before % self.radix, before // self.radix
        own = rows - late * (not self.is_expanded) - early * self.is_merged
        return own.clamp(min=0), (rows if self.counts_late else rows - late).clamp(min=0)


def find_stages(config: InternVLXConfig) -> list[Stage]:
    """The stages of a model, one more than boundaries."""
    growing = [size.boundary for size in config.sizes if size.after > size.before]
    shrinking = [size.boundary for size in config.sizes if size.after < size.before]
    radix = (RADIX if growing else 1) if shrinking else 2**31
    keeps = any(size.keeps_positions for size in config.sizes if size.after > size.before)
    stages = []
    for start in (0, *config.boundaries):
        is_expanded = all(boundary <= start for boundary in growing)  # type: ignore[operator]
        is_merged = any(boundary <= start for boundary in shrinking)  # type: ignore[operator]
        stages.append(Stage(is_expanded, is_merged, is_expanded and not keeps, radix))
    return stages


@dataclass(frozen=True)
class PromptRows:
    """A prompt of `length` rows in the long sequence.

    Args:
        late, early: (length + 1,), how many of its first rows are late, and early.
        images: the rows of those images whose tokens change between stages.
    """

    late: torch.Tensor
    early: torch.Tensor
    images: Sequence[range]

    def count(self, tokens: int, is_expanded: bool, is_merged: bool) -> int:
        """How many of the first `tokens` rows, some of them decoded, a stage has."""
        prompt = min(tokens, len(self.late) - 1)
        return tokens - int(self.late[prompt]) * (not is_expanded) - int(self.early[prompt]) * is_merged

    def carried(self, radix: int) -> tuple[torch.Tensor, int]:
        """(length,) what vLLM carries for each row, and for a decoded row the difference to its number."""
        gaps = self.late + radix * self.early
        return torch.arange(len(gaps) - 1) - gaps[:-1], -int(gaps[-1])


def read_prompt(length: int, images: Sequence[Any], config: InternVLXConfig) -> PromptRows:
    """The rows of a prompt whose images are multimodal features of vLLM."""
    is_late, is_early = torch.zeros(2, length, dtype=torch.long)
    changing = []
    for image in images:
        place, sizes = image.mm_position, read_sizes(config, image)
        if any(size.boundary is not None for size in sizes):
            changing.append(range(place.offset, place.offset + place.length))
        start = place.offset
        for size in sizes:
            is_late[start + size.before : start + size.after] = 1
            is_early[start + size.after : start + size.before] = 1
            start += long_rows(size)
    late, early = (F.pad(rows.cumsum(0), (1, 0)) for rows in (is_late, is_early))
    return PromptRows(late, early, changing)


@dataclass(frozen=True)
class StepTiles:
    """The tiles of a step whose tokens change between stages.

    Args:
        is_tile: (n,) bool, which rows of the step are theirs.
        tokens: what they hold.
    """

    is_tile: torch.Tensor
    tokens: ImageTokens


@dataclass(frozen=True)
class Rows:
    """The rows of a step in a stage.

    Args:
        index: (m,) their indices among the step's n rows; None for all rows.
        numbers: (m,) their numbers in the stage, which are those of their keys and values.
        positions: (m,) what the rotary embedding takes.
    """

    index: torch.Tensor | None
    numbers: torch.Tensor
    positions: torch.Tensor

    def take(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Select the stage's rows: (n, D) -> (m, D)."""
        return hidden_states if self.index is None else hidden_states[self.index]

    def spread(self, hidden_states: torch.Tensor, length: int) -> torch.Tensor:
        """(m, D) -> (n, D), n = `length`: a row that the stage lacks reads the last one before it."""
        if self.index is None:
            return hidden_states
        if not len(self.index):
            return hidden_states.new_zeros(length, hidden_states.shape[1])
        row = torch.arange(length, device=self.index.device)
        return hidden_states[(torch.searchsorted(self.index, row, right=True) - 1).clamp(min=0)]


def read_rows(
    stages: Sequence[Stage],
    boundaries: Sequence[int],
    rows: torch.Tensor,
    carried: torch.Tensor,
    tiles: StepTiles | None,
) -> tuple[list[Rows], list[RowMap]]:
    """Find the rows of a step in each stage, and how a stage's rows become the next one's, each as a batch of one.

    Args:
        rows, carried: (n,) numbers in the long sequence, and what vLLM carries.
        tiles: None without tiles whose tokens change; nothing is copied from the device then, and there are no maps.
    """
    places = [stage.places(rows, carried) for stage in stages]
    if tiles is None:
        return [Rows(None, *own) for own in places], []
    sizes, device = tiles.tokens.of_tiles, rows.device
    as_tensor = partial(torch.tensor, device=device)
    longest = as_tensor([long_rows(size) for size in sizes])
    first = longest.cumsum(0) - longest
    tile = torch.repeat_interleave(torch.arange(len(sizes), device=device), longest)
    place, of_tiles = torch.arange(len(tile), device=device) - first[tile], tiles.is_tile.nonzero().squeeze(1)
    tokens = list(zip(*(size.in_stages(boundaries) for size in sizes), strict=True))
    keeps = as_tensor([size.keeps_positions for size in sizes])[tile]
    before, found = as_tensor(tokens[0])[tile], []
    for (numbers, positions), counts in zip(places, tokens, strict=True):
        own = as_tensor(counts)[tile]
        is_here = place < own
        parents = of_tiles[first[tile] + _parents(place, before, own).where(is_here, 0)]
        positions = positions.index_copy(0, of_tiles, positions[torch.where(keeps, parents, of_tiles)])
        index = torch.ones_like(rows, dtype=torch.bool).index_copy(0, of_tiles, is_here).nonzero().squeeze(1)
        found.append(Rows(index, numbers[index], positions[index]))
    maps = []
    for (here, there), (counts, later) in zip(pairwise(found), pairwise(tokens), strict=True):
        is_tile = tiles.is_tile[here.index][None]
        columns = read_columns(is_tile, torch.ones_like(is_tile), as_tensor(counts), as_tensor(later))
        maps.append(map_rows(columns, len(there.numbers), (sum(counts), sum(later))))
    return found, maps


def _parents(place: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The place in its tile of the first token that a token after the boundary is made of; anything where there is
    none.
    """
    m, n = (tokens.float().sqrt().round().long().clamp(min=1) for tokens in (before, after))
    return place // n * m // n * m + place % n * m // n
