# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Where everything goes at LVTC's expansion: the plan that a forward makes once, from its input alone.

Symbols as in `lvtc.py`: B samples, L and L₂ their padded length in stages one and two, N₁² and N₂² tokens a tile, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .configuration_internvlx import InternVLXConfig


@dataclass
class Expansion:
    """Where every row of stage one goes at layer k: computed once a forward, from the input alone.

    Rows are counted over the flattened batch; row B·L₂ of stage two is nowhere, for padding. Each sample's tokens stand
    at the right of its row, without what was padding, so that L₂ is the longest sample's length.
    """

    tile_length: int  # N₁²
    tile_rows: torch.Tensor  # (tiles·N₁²,) rows of stage one that hold tiles
    text_to: torch.Tensor  # (B·L,) rows of stage two; nowhere for placeholders and padding
    tiles_to: torch.Tensor  # (tiles·N₂²,) rows of stage two
    read_from: torch.Tensor  # (B·L,) rows of stage two that answer for the rows of stage one
    position_ids: torch.Tensor  # (B, L₂)
    mask: torch.Tensor | None  # (B, L₂) bool
    growth: torch.Tensor  # (B, 1) tokens that each sample gains
    tiles_before: torch.Tensor  # (B, L + 1) tiles that start before a column of stage one, masked-out ones excluded
    trailing_text: int  # columns at the end that are text in every sample, padding excluded
    last_position: int  # the highest of `position_ids`

    def add_to_tiles(self, hidden_states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, D) of stage one plus (tiles, N₁², D) -> (B, L, D)."""
        rows = hidden_states.flatten(0, 1)
        added = rows.index_add(0, self.tile_rows.to(rows.device), tokens.flatten(0, 1).to(rows.device, rows.dtype))
        return added.view_as(hidden_states)

    def take_tiles(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, L, D) of stage one -> (tiles, N₁², D)."""
        rows = hidden_states.flatten(0, 1)[self.tile_rows.to(hidden_states.device)]
        return rows.unflatten(0, (-1, self.tile_length))

    def place(self, hidden_states: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
        """(B, L, D) of stage one and (tiles, N₂², D) -> (B, L₂, D) of stage two: text rows and tiles in their places."""
        rows, (batch, length) = hidden_states.flatten(0, 1), self.position_ids.shape
        text_to, tiles_to = self.text_to.to(rows.device), self.tiles_to.to(rows.device)
        expanded = rows.new_zeros(batch * length + 1, rows.shape[-1])
        expanded = expanded.index_copy(0, text_to, rows).index_copy(0, tiles_to, tiles.flatten(0, 1))
        return expanded[:-1].unflatten(0, (batch, length))

    def undo(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, L₂, D) -> (B, L, D): text rows as they are, placeholders read the last of their expanded children."""
        read_from = self.read_from.to(hidden_states.device)
        return hidden_states.flatten(0, 1)[read_from].unflatten(0, (len(hidden_states), -1))


def plan_expansion(
    config: InternVLXConfig,
    placeholders: torch.Tensor,
    visible: torch.Tensor | None,
    position_ids: torch.Tensor,
    past_growth: torch.Tensor | int = 0,
) -> Expansion:
    """Work out an [`Expansion`].

    Args:
        placeholders: (B, L) bool, where the tiles are.
        visible: (B, L) bool, False for padding; None for none.
        position_ids: (B, L) of stage one. Without `visible`, a row may hold several samples, each starting where the
            positions do not go on by one.
        past_growth: (B, 1), what the samples have grown by in earlier forwards on the same cache.

    Raises:
        ValueError: if the placeholders of a tile do not stand together.
    """
    before, after = config.image_seq_length, config.expanded_image_seq_length
    order = placeholders.cumsum(1) - 1
    first = placeholders & (order % before == 0)  # of its tile
    is_text, is_tile = ~placeholders, first  # what becomes 1 and N₂² rows of stage two
    if visible is not None:
        is_text, is_tile = is_text & visible, is_tile & visible
    width = is_text + after * is_tile
    lengths = width.sum(1, keepdim=True)
    tiles_before = F.pad(is_tile.cumsum(1), (1, 0))
    sample_starts = F.pad(position_ids.diff(dim=1) != 1, (1, 0), value=True)
    # Tiles of other samples packed into the same row do not count.
    earlier = _count_since(sample_starts, tiles_before[:, :-1]) if visible is None else tiles_before[:, :-1]
    # of what becomes text, or a tile's first token
    positions = position_ids + (after - before) * earlier + past_growth
    continues_tile = F.pad(placeholders[:, :-1], (1, 0))
    # All that the host has to know of the input, read from the device at once.
    shortest, longest, trailing_text, last_position, is_packed, is_interrupted = _to_host(
        lengths.min(),
        lengths.max(),
        is_text.flip(1).long().cumprod(1).sum(1).min(),
        torch.where(width > 0, positions + width - 1, 0).max(),
        sample_starts[:, 1:].any(),
        (placeholders & ~first & ~continues_tile).any(),
    )
    if is_interrupted:
        raise ValueError(
            f"The {before} image placeholders of a tile must stand together, but text comes between them."
        )
    mask = None
    if visible is not None or (shortest < longest and not is_packed):
        mask = torch.arange(longest, device=placeholders.device) >= longest - lengths
    return Expansion(
        tile_length=before,
        mask=mask,
        growth=(after - before) * tiles_before[:, -1:] + past_growth,
        tiles_before=tiles_before,
        trailing_text=trailing_text,
        last_position=last_position,
        **_place_rows(config, placeholders, order, is_text, is_tile, positions, longest),
    )


def _place_rows(
    config: InternVLXConfig,
    placeholders: torch.Tensor,
    order: torch.Tensor,
    is_text: torch.Tensor,
    is_tile: torch.Tensor,
    positions: torch.Tensor,
    longest: int,
) -> dict[str, torch.Tensor]:
    """Where rows go, and their positions in stage two.

    Args:
        order: (B, L), which of a sample's placeholders each is.
        is_text, is_tile: (B, L) bool, what becomes 1 and N₂² rows.
        positions: (B, L), in stage two, of what becomes text or a tile's first token.
        longest: L₂.
    """
    before, after = config.image_seq_length, config.expanded_image_seq_length
    batch, device = len(placeholders), placeholders.device
    nowhere = batch * longest
    ends = (is_text + after * is_tile).cumsum(1)
    left_of_row = torch.arange(1, batch + 1, device=device)[:, None] * longest - ends[:, -1:]
    starts = left_of_row + F.pad(ends[:, :-1], (1, 0))
    text_to = torch.where(is_text, starts, nowhere).flatten()
    tile_rows = placeholders.flatten().nonzero().squeeze(1)
    tile_starts = tile_rows[::before]
    children = torch.arange(after, device=device)
    tiles_to = torch.where(is_tile, starts, nowhere).flatten()[tile_starts][:, None] + children
    tiles_to = tiles_to.clamp(max=nowhere).flatten()
    place_in_tile = order % before
    last_child = _last_children(config, device)[place_in_tile] - after * (place_in_tile > 0)
    read_from = (starts + last_child * placeholders).clamp(0, nowhere - 1).flatten()
    positions = positions.flatten()
    # Padding stays at 0: each is a sample of its own where samples are told apart by positions.
    position_ids = positions.new_zeros(nowhere + 1).index_copy(0, text_to, positions)
    position_ids.index_copy_(0, tiles_to, (positions[tile_starts][:, None] + children).flatten())
    return {
        "tile_rows": tile_rows,
        "text_to": text_to,
        "tiles_to": tiles_to,
        "read_from": read_from,
        "position_ids": position_ids[:-1].unflatten(0, (batch, longest)),
    }


def _to_host(*numbers: torch.Tensor) -> list[int]:
    return torch.stack([number.long() for number in numbers]).tolist()


def _count_since(starts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(B, L) running counts, from the last of (B, L) bool `starts` on."""
    column = torch.arange(starts.shape[1], device=starts.device)
    return counts - counts.gather(1, torch.where(starts, column, 0).cummax(1).values)


def _last_children(config: InternVLXConfig, device: torch.device) -> torch.Tensor:
    """(N₁²,): which of a tile's N₂² tokens answers for each placeholder: its last child, or what it was merged into."""
    before, after = config.token_grid, config.expanded_token_grid
    line = torch.arange(before, device=device)
    line = (line + 1) * (after // before) - 1 if after >= before else line // (before // after)
    return (line[:, None] * after + line).flatten()


def expanded_sequence_lengths(expansion: Expansion, config: InternVLXConfig, kwargs: dict) -> dict:
    """Bounds of the samples packed into one row, as variable-length attention kernels take them, in stage two."""
    gain = config.expanded_image_seq_length - config.image_seq_length
    expanded = {}
    for side in ("q", "k"):
        bounds = kwargs.get(f"cu_seq_lens_{side}")
        if bounds is not None:
            before = expansion.tiles_before[0].to(bounds.device)[bounds.long()]
            expanded[f"cu_seq_lens_{side}"] = bounds + (gain * before).to(bounds.dtype)
            if kwargs.get(f"max_length_{side}") is not None:
                expanded[f"max_length_{side}"] = int(expanded[f"cu_seq_lens_{side}"].diff().max())
    return expanded
