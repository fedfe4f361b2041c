# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Where every row comes from at a boundary between two of LVTC's stages. It depends on the input only, not on hidden
states.

Every tile has its own number of tokens before and after the boundary: 1 and 4, 16 and 4, or 4 and none. Both are
squares, of which one side divides the other. Symbols as in `lvtc.py`; R₁ and R₂ are the rows of all tiles before and
after the boundary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Columns:
    """The columns of a prompt before a boundary.

    Args:
        placeholders: (B, L) bool, where the tiles are.
        before, after: (tiles,) tokens of each tile on both sides of the boundary, in reading order.
        tile: (B, L) number of a placeholder's tile.
        place: (B, L) number of a placeholder within its tile.
        width: (B, L), rows that a column becomes: 1 of text, all of a tile for its first placeholder, else 0.
    """

    placeholders: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    tile: torch.Tensor
    place: torch.Tensor
    width: torch.Tensor


def read_columns(
    placeholders: torch.Tensor, visible: torch.Tensor, before: torch.Tensor, after: torch.Tensor
) -> Columns:
    """Number the tiles of (B, L) bool `placeholders`. Columns that (B, L) bool `visible` hides become no rows."""
    number, ends = placeholders.flatten().cumsum(0).view_as(placeholders) - 1, before.cumsum(0)
    tile = torch.bucketize(number, ends, right=True)
    place = number - (ends - before)[tile]
    width = visible * torch.where(placeholders, after[tile] * (place == 0), 1)
    return Columns(placeholders, before, after, tile, place, width)


@dataclass(frozen=True)
class RowMap:
    """Which row before a boundary each row after it comes from.

    Each sample's tokens are contiguous at one side of its row and its padding is dropped, so that L₂ is the longest
    sample's length. Where rows are numbered over the flattened batch, B·L₂ stands for one that does not exist.
    """

    tiles: torch.Tensor  # (R₁,) rows before that hold tiles
    tiles_to: torch.Tensor  # (R₂,) rows after that hold tiles
    index: torch.Tensor  # (B, L₂) row before of text; B·L and on: rows of all tiles, one after another; -1: padding
    is_token: torch.Tensor  # (B, L₂) bool, which rows after hold text or a tile's token, not padding
    sources: torch.Tensor  # (B, L₂) column before: of text its own, of a tile its first placeholder's
    places: torch.Tensor  # (B, L₂) number of a tile's row within its tile, else 0
    parents: torch.Tensor  # (B, L₂) column before that a row was expanded from, or the first that it was merged from
    read_from: torch.Tensor  # (B·L,) row after that each row before reads at the end

    def place(self, rows: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
        """(B·L, ...) rows before the boundary and (R₂, ...) of tiles after it -> (B, L₂, ...), zero for padding."""
        padding = torch.zeros_like(rows[:1])
        return torch.cat([rows, tiles, padding])[self.index.to(rows.device)]

    def count_on(self, numbers: torch.Tensor, keeps: torch.Tensor) -> torch.Tensor:
        """Numbers (B, L) of text and of each tile's first row -> (B, L₂), 0 for padding.

        A tile's rows count on from its first, or have the numbers of their parents where (B, L) bool `keeps` says so.
        """
        is_kept = keeps.gather(1, self.sources)
        counted = numbers.gather(1, torch.where(is_kept, self.parents, self.sources)) + self.places * ~is_kept
        return counted * self.is_token

    def undo(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, L₂, D) -> (B, L, D): text rows are copied, a placeholder reads the last of its tokens.

        A placeholder of a tile that has none reads the row before the tile.
        """
        read_from = self.read_from.to(hidden_states.device)
        return hidden_states.flatten(0, 1)[read_from].unflatten(0, (len(hidden_states), -1))


def take_rows(hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(B, L, ...) -> (R, ...), those rows; any other row for one that does not exist."""
    flat = hidden_states.flatten(0, 1)
    return flat[rows.to(flat.device).clamp(max=len(flat) - 1)]


def add_to_rows(hidden_states: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(B, L, D) plus (R, D) at those rows that exist."""
    flat = F.pad(hidden_states.flatten(0, 1), (0, 0, 0, 1))
    added = flat.index_add(0, rows.to(flat.device), tokens.to(flat.device, flat.dtype))
    return added[:-1].view_as(hidden_states)


def map_rows(columns: Columns, longest: int, tile_rows: tuple[int, int], pads_left: bool = False) -> RowMap:
    """Compute a [`RowMap`] without waiting for the device.

    Args:
        longest: L₂.
        tile_rows: R₁, R₂.
        pads_left: side of the padding after the boundary. Right padding needs no mask in causal attention; left
            padding suits a cache, where decoded tokens follow each row's last token.
    """
    placeholders, after, tile, device = columns.placeholders, columns.after, columns.tile, columns.tile.device
    number = torch.arange(placeholders.numel(), device=device)
    ends = columns.width.cumsum(1)
    padding = (longest - ends[:, -1:]) * pads_left
    row = torch.arange(longest, device=device) - padding
    is_token = (row >= 0) & (row < ends[:, -1:])
    sources = torch.searchsorted(ends, row, right=True).clamp(max=placeholders.shape[1] - 1)
    places = (row - (ends - columns.width).gather(1, sources)) * is_token
    firsts = torch.where(placeholders, len(number) + (after.cumsum(0) - after)[tile], number.view_as(placeholders))
    index = torch.where(is_token, firsts.gather(1, sources) + places, -1)
    tiles_to = index.new_full((len(number) + tile_rows[1] + 1,), index.numel())
    tiles_to[index] = torch.arange(index.numel(), device=device).view_as(index)
    m, n = (tokens.float().sqrt().round().long()[tile] for tokens in (columns.before, after))
    # the last of a placeholder's tokens is the first if both are counted from the ends of their tiles
    last = after[tile] * (columns.place == 0) - 1 - _cell(m * m - 1 - columns.place, m, n)
    read = (ends - columns.width + last * placeholders).clamp(min=0)
    row_starts = padding + number[: len(ends), None] * longest
    return RowMap(
        # in ascending order; `nonzero` would wait for the device
        tiles=placeholders.flatten().int().argsort(descending=True, stable=True)[: tile_rows[0]],
        tiles_to=tiles_to[len(number) : -1],
        index=index,
        is_token=is_token,
        sources=sources,
        places=places,
        parents=sources + _cell(places, n.gather(1, sources), m.gather(1, sources)),
        read_from=(read + row_starts).clamp(max=index.numel() - 1).flatten(),
    )


def _cell(place: torch.Tensor, m: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """The first cell of an n×n grid that a cell of an m×m grid shares."""
    m = m.clamp(min=1)
    return place // m * n // m * n + place % m * n // m
