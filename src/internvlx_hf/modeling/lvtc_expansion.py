# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Where every row goes at LVTC's expansion, computed once per forward.

Symbols as in `lvtc.py`: B samples, L and L₂ their padded length in stages one and two, N₁² and N₂² tokens per tile, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .attention_inputs import is_prefix, read_on_host
from .configuration_internvlx import InternVLXConfig


@dataclass
class Expansion:
    """Where every row of stage one goes at layer k. It depends on the input only, not on hidden states.

    Rows are numbered over the flattened batch; row B·L₂ of stage two does not exist and takes the padding. Each sample's
    tokens are contiguous at one side of its row and its padding is dropped, so that L₂ is the longest sample's length.
    """

    tile_length: int  # N₁²
    tile_rows: torch.Tensor  # (tiles·N₁²,) rows of stage one that hold tiles
    text_to: torch.Tensor  # (B·L,) rows of stage two; B·L₂ for placeholders and padding
    tiles_to: torch.Tensor  # (tiles·N₂²,) rows of stage two
    read_from: torch.Tensor  # (B·L,) row of stage two from which each row of stage one is read at the end
    position_ids: torch.Tensor  # (B, L₂), counted anew
    kept_positions: torch.Tensor | None  # (B, L₂) positions from stage one; None if stage two uses `position_ids`
    mask: torch.Tensor | None  # (B, L₂) bool; None if rows are equally long or packed
    padding_side: str  # "left" or "right", in stage two
    growth: torch.Tensor  # (B, 1) tokens that each sample gains
    tiles_before: torch.Tensor  # (B, L + 1) tiles that start before a column of stage one, without masked-out ones
    trailing_text: int  # columns at the end that are text in every sample, padding excluded
    last_position: int  # the highest position in stage two
    is_padded: bool  # whether `attention_mask` hides anything
    is_left_padded: bool  # whether it hides columns at the left only
    is_right_padded: bool  # whether it hides columns at the right only
    is_packed: bool  # whether rows hold several samples
    longest_sample: int  # length in stage two of the longest sample of `bounds`; 0 without bounds

    def add_to_tiles(self, hidden_states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, D) in stage one plus (tiles, N₁², D) -> (B, L, D)."""
        rows = hidden_states.flatten(0, 1)
        added = rows.index_add(0, self.tile_rows.to(rows.device), tokens.flatten(0, 1).to(rows.device, rows.dtype))
        return added.view_as(hidden_states)

    def take_tiles(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, L, D) in stage one -> (tiles, N₁², D)."""
        rows = hidden_states.flatten(0, 1)[self.tile_rows.to(hidden_states.device)]
        return rows.unflatten(0, (-1, self.tile_length))

    def place(self, hidden_states: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
        """(B, L, D) in stage one and (tiles, N₂², D) -> (B, L₂, D) in stage two: text rows and tiles in their places."""
        rows, (batch, length) = hidden_states.flatten(0, 1), self.position_ids.shape
        text_to, tiles_to = self.text_to.to(rows.device), self.tiles_to.to(rows.device)
        expanded = rows.new_zeros(batch * length + 1, rows.shape[-1])
        expanded = expanded.index_copy(0, text_to, rows).index_copy(0, tiles_to, tiles.flatten(0, 1))
        return expanded[:-1].unflatten(0, (batch, length))

    def token_rows(self) -> torch.Tensor:
        """Numbers of the rows of stage two that hold text or a tile's token, not padding."""
        is_token = torch.zeros(self.position_ids.numel() + 1, dtype=torch.bool, device=self.text_to.device)
        is_token[self.text_to] = is_token[self.tiles_to] = True
        return is_token[:-1].nonzero().squeeze(1)

    def undo(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, L₂, D) -> (B, L, D): text rows are copied, a placeholder reads the last of its expanded tokens."""
        read_from = self.read_from.to(hidden_states.device)
        return hidden_states.flatten(0, 1)[read_from].unflatten(0, (len(hidden_states), -1))


def plan_expansion(
    config: InternVLXConfig,
    placeholders: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor,
    past_growth: torch.Tensor | int = 0,
    *,
    bounds: torch.Tensor | None = None,
    padding_side: str = "left",
) -> Expansion:
    """Compute an [`Expansion`].

    Args:
        placeholders: (B, L) bool, where the tiles are.
        attention_mask: (B, seen + L) bool, False for padding; None without padding.
        position_ids: (B, L) in stage one. Without `attention_mask`, a row may hold several samples; one starts wherever
            the position is not the previous one plus 1.
        past_growth: (B, 1), tokens that the samples gained in earlier forwards on the same cache.
        bounds: (samples + 1,) columns of stage one that bound the samples of a single row.
        padding_side: side of the padding in stage two. Right padding needs no mask in causal attention; left padding suits
            a cache, where decoded tokens follow each row's last token.

    Raises:
        ValueError: if the placeholders of a tile are not contiguous.
    """
    before, after = config.image_seq_length, config.expanded_image_seq_length
    gain, nothing = after - before, placeholders.new_zeros((), dtype=torch.long)
    visible = None if attention_mask is None else attention_mask[:, -placeholders.shape[1] :]
    order = placeholders.cumsum(1) - 1
    first = placeholders & (order % before == 0)  # placeholder of its tile
    is_text, is_tile = ~placeholders, first  # columns that become 1 and N₂² rows of stage two
    if visible is not None:
        is_text, is_tile = is_text & visible, is_tile & visible
    width = is_text + after * is_tile
    lengths = width.sum(1, keepdim=True)
    tiles_before = F.pad(is_tile.cumsum(1), (1, 0))
    sample_starts = F.pad(position_ids.diff(dim=1) != 1, (1, 0), value=True)
    # Tiles of other samples packed into the same row do not count.
    earlier = _count_since(sample_starts, tiles_before[:, :-1]) if visible is None else tiles_before[:, :-1]
    # valid for text and for the first token of each tile
    positions = position_ids + gain * earlier + past_growth
    keeps = config.lvtc_config.expanded_positions == "kept"
    last_positions = position_ids if keeps else torch.where(width > 0, positions + width - 1, 0)
    continues_tile = F.pad(placeholders[:, :-1], (1, 0))
    # everything that the host needs to know about the input, read from the device at once
    shortest, longest, trailing_text, last_position, *flags, longest_sample, tile_rows = read_on_host(
        lengths.min(),
        lengths.max(),
        is_text.flip(1).long().cumprod(1).sum(1).min(),
        last_positions.max(),
        nothing if visible is not None else sample_starts[:, 1:].any(),
        (placeholders & ~first & ~continues_tile).any(),
        nothing if attention_mask is None else (~attention_mask).any(),
        nothing if attention_mask is None else is_prefix(~attention_mask),
        nothing if visible is None else is_prefix(visible),
        nothing if bounds is None else _expanded_bounds(bounds.to(nothing.device), tiles_before, gain).diff().max(),
        placeholders.sum(),
    )
    is_packed, is_interrupted, is_padded, is_left_padded, is_right_padded = map(bool, flags)
    if is_interrupted:
        raise ValueError(
            f"The {before} image placeholders of a tile must be contiguous, but there is text between them."
        )
    mask, pads_left = None, padding_side == "left"
    if shortest < longest and not is_packed:
        column = torch.arange(longest, device=placeholders.device)
        mask = column >= longest - lengths if pads_left else column < lengths
    places = _place_rows(config, placeholders, tile_rows, order, is_text, is_tile, positions, longest, pads_left)
    return Expansion(
        tile_length=before,
        mask=mask,
        padding_side=padding_side,
        growth=gain * tiles_before[:, -1:] + past_growth,
        tiles_before=tiles_before,
        trailing_text=trailing_text if pads_left or mask is None else 0,
        last_position=last_position,
        is_padded=is_padded,
        is_left_padded=is_left_padded,
        is_right_padded=is_right_padded,
        is_packed=is_packed,
        longest_sample=longest_sample,
        kept_positions=_keep_positions(config, position_ids, places) if keeps else None,
        **places,
    )


def _place_rows(
    config: InternVLXConfig,
    placeholders: torch.Tensor,
    count: int,
    order: torch.Tensor,
    is_text: torch.Tensor,
    is_tile: torch.Tensor,
    positions: torch.Tensor,
    longest: int,
    pads_left: bool,
) -> dict[str, torch.Tensor]:
    """Compute where rows go, and their positions in stage two.

    Args:
        count: number of placeholders.
        order: (B, L), index of each placeholder in its sample.
        is_text, is_tile: (B, L) bool, columns that become 1 and N₂² rows.
        positions: (B, L) positions in stage two, valid for text and for the first token of each tile.
        longest: L₂.
    """
    before, after = config.image_seq_length, config.expanded_image_seq_length
    batch, device = len(placeholders), placeholders.device
    nowhere = batch * longest
    ends = (is_text + after * is_tile).cumsum(1)
    first_of_row = torch.arange(batch, device=device)[:, None] * longest
    if pads_left:
        first_of_row = first_of_row + longest - ends[:, -1:]
    starts = first_of_row + F.pad(ends[:, :-1], (1, 0))
    text_to = torch.where(is_text, starts, nowhere).flatten()
    # in ascending order; `nonzero` would wait for the device
    tile_rows = placeholders.flatten().int().argsort(descending=True, stable=True)[:count]
    tile_starts = tile_rows[::before]
    children = torch.arange(after, device=device)
    tiles_to = torch.where(is_tile, starts, nowhere).flatten()[tile_starts][:, None] + children
    tiles_to = tiles_to.clamp(max=nowhere).flatten()
    place_in_tile = order % before
    last_child = _last_children(config, device)[place_in_tile] - after * (place_in_tile > 0)
    read_from = (starts + last_child * placeholders).clamp(0, nowhere - 1).flatten()
    positions = positions.flatten()
    # Padding stays at position 0, so that attention that finds samples by their positions sees each as its own sample.
    position_ids = positions.new_zeros(nowhere + 1).index_copy(0, text_to, positions)
    position_ids.index_copy_(0, tiles_to, (positions[tile_starts][:, None] + children).flatten())
    return {
        "tile_rows": tile_rows,
        "text_to": text_to,
        "tiles_to": tiles_to,
        "read_from": read_from,
        "position_ids": position_ids[:-1].unflatten(0, (batch, longest)),
    }


def kept_tile_positions(config: InternVLXConfig, positions: torch.Tensor) -> torch.Tensor:
    """(tiles·N₁²,) positions of tiles in stage one -> (tiles·N₂²,): every token has that of the token it was expanded from,
    or of the first that it was merged from."""
    before, after = config.token_grid, config.expanded_token_grid
    line = torch.arange(after, device=positions.device) * before // after
    source = (line[:, None] * before + line).flatten()
    return positions.unflatten(0, (-1, before**2))[:, source].flatten()


def _keep_positions(
    config: InternVLXConfig, position_ids: torch.Tensor, places: dict[str, torch.Tensor]
) -> torch.Tensor:
    """(B, L) positions in stage one -> (B, L₂)."""
    positions, shape = position_ids.flatten(), places["position_ids"].shape
    kept = positions.new_zeros(shape.numel() + 1).index_copy(0, places["text_to"], positions)
    of_tiles = kept_tile_positions(config, positions[places["tile_rows"]])
    return kept.index_copy_(0, places["tiles_to"], of_tiles)[:-1].view(shape)


def _count_since(starts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(B, L) running counts, counted anew from each start in (B, L) bool `starts`."""
    column = torch.arange(starts.shape[1], device=starts.device)
    return counts - counts.gather(1, torch.where(starts, column, 0).cummax(1).values)


def _last_children(config: InternVLXConfig, device: torch.device) -> torch.Tensor:
    """(N₁²,) index of the tile's token in stage two that each placeholder reads: the last one it expanded to, or the one
    that it was merged into."""
    before, after = config.token_grid, config.expanded_token_grid
    line = torch.arange(before, device=device)
    line = (line + 1) * (after // before) - 1 if after >= before else line // (before // after)
    return (line[:, None] * after + line).flatten()


def _expanded_bounds(bounds: torch.Tensor, tiles_before: torch.Tensor, gain: int) -> torch.Tensor:
    before = tiles_before[0].to(bounds.device)[bounds.long()]
    return bounds + (gain * before).to(bounds.dtype)


def expanded_sequence_lengths(expansion: Expansion, config: InternVLXConfig, kwargs: dict) -> dict:
    """Bounds in stage two of the samples packed into one row, as variable-length attention kernels take them."""
    gain = config.expanded_image_seq_length - config.image_seq_length
    expanded: dict[str, torch.Tensor | int] = {}
    for side in ("q", "k"):
        bounds = kwargs.get(f"cu_seq_lens_{side}")
        if bounds is not None:
            expanded[f"cu_seq_lens_{side}"] = _expanded_bounds(bounds, expansion.tiles_before, gain)
            if kwargs.get(f"max_length_{side}") is not None:
                expanded[f"max_length_{side}"] = expansion.longest_sample
    return expanded
