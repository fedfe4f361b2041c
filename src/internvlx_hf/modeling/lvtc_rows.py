# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Where every row goes at a boundary between two of LVTC's stages. It depends on the input only, not on hidden states.

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
    number = placeholders.flatten().cumsum(0).view_as(placeholders) - 1
    ends = before.cumsum(0)
    tile = torch.bucketize(number.clamp(min=0), ends, right=True).clamp(max=len(ends) - 1)
    place = number - (ends - before)[tile]
    return Columns(
        placeholders, before, after, tile, place, visible * torch.where(placeholders, after[tile] * (place == 0), 1)
    )


@dataclass(frozen=True)
class RowMap:
    """Which rows after a boundary each row before it becomes.

    Rows are numbered over the flattened batch; row B·L₂ after the boundary does not exist and takes the padding. Each
    sample's tokens are contiguous at one side of its row and its padding is dropped, so that L₂ is the longest
    sample's length.
    """

    tiles: torch.Tensor  # (R₁,) rows before that hold tiles
    text_to: torch.Tensor  # (B·L,) rows after; B·L₂ for placeholders and padding
    tiles_to: torch.Tensor  # (R₂,) rows after
    firsts: torch.Tensor  # (R₂,) row before of the first placeholder of a tile's row
    parents: torch.Tensor  # (R₂,) row before that a tile's row was expanded from, or the first that it was merged from
    places: torch.Tensor  # (R₂,) number of a tile's row within its tile
    read_from: torch.Tensor  # (B·L,) row after that each row before reads at the end
    shape: tuple[int, int]  # B, L₂

    def place(self, rows: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
        """(B·L, ...) rows before the boundary and (R₂, ...) of tiles after it -> (B, L₂, ...), zero for padding."""
        placed = rows.new_zeros(self.shape[0] * self.shape[1] + 1, *rows.shape[1:])
        placed = placed.index_copy(0, self.text_to.to(rows.device), rows)
        return placed.index_copy(0, self.tiles_to.to(rows.device), tiles)[:-1].unflatten(0, self.shape)

    def was_token(self) -> torch.Tensor:
        """(B, L) bool: which rows before the boundary hold text or a tile's token, not padding."""
        is_text = self.text_to < self.shape[0] * self.shape[1]
        return is_text.index_fill(0, self.tiles, True).view(self.shape[0], -1)

    def is_token(self) -> torch.Tensor:
        """(B, L₂) bool: which rows after the boundary hold text or a tile's token, not padding."""
        text, tiles = (torch.ones_like(rows, dtype=torch.bool) for rows in (self.text_to, self.tiles_to))
        return self.place(text, tiles)

    def undo(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, L₂, D) -> (B, L, D): text rows are copied, a placeholder reads the last of its tokens.

        A placeholder of a tile that has none reads the row before the tile.
        """
        read_from = self.read_from.to(hidden_states.device)
        return hidden_states.flatten(0, 1)[read_from].unflatten(0, (len(hidden_states), -1))


def take_rows(hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(B, L, ...) -> (R, ...), those rows; any other row for one that does not exist."""
    flat = hidden_states.flatten(0, 1)
    return flat[rows.to(flat.device).clamp(max=flat.shape[0] - 1)]


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
    placeholders, before, after = columns.placeholders, columns.before, columns.after
    batch, device = len(placeholders), placeholders.device
    nowhere = batch * longest
    ends = columns.width.cumsum(1)
    row_starts = torch.arange(batch, device=device)[:, None] * longest
    if pads_left:
        row_starts = row_starts + longest - ends[:, -1:]
    starts = row_starts + ends - columns.width
    starts_or_nowhere = torch.where(columns.width > 0, starts, nowhere)
    # in ascending order; `nonzero` would wait for the device
    tiles = placeholders.flatten().int().argsort(descending=True, stable=True)[: tile_rows[0]]
    tile = torch.repeat_interleave(after, output_size=tile_rows[1])
    first = (before.cumsum(0) - before)[tile]
    places = torch.arange(tile_rows[1], device=device) - (after.cumsum(0) - after)[tile]
    tiles_to = starts_or_nowhere.flatten()[tiles[first]] + places
    sides = torch.stack([before, after]).float().sqrt().round().long()
    m, n = sides[:, tile]
    parents = tiles[first + places // n * m // n * m + places % n * m // n]
    m, n = sides[:, columns.tile]
    m = m.clamp(min=1)
    last_row, last_column = (((line + 1) * n - 1) // m for line in (columns.place // m, columns.place % m))
    # rows after a tile's first placeholder start where the tile ends
    last = last_row * n + last_column - after[columns.tile] * (columns.place > 0)
    return RowMap(
        tiles=tiles,
        text_to=torch.where(placeholders, nowhere, starts_or_nowhere).flatten(),
        tiles_to=tiles_to.clamp(max=nowhere),
        firsts=tiles[first],
        parents=parents,
        places=places,
        read_from=(starts + last * placeholders).maximum(row_starts).clamp(max=nowhere - 1).flatten(),
        shape=(batch, longest),
    )
