# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Where a prompt's rows are in each of LVTC's stages. It depends on the input only and is decided before the first
layer.

The caller sees stage one's columns. [`lay_out`] describes the prompt in all stages, a [`Layout`] each, and, if it has
tiles, how a stage's rows become those of the next: a [`RowMap`]. Symbols as in `lvtc.py`; S later stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache
from transformers.utils import is_tracing, logging
from transformers.utils.generic import is_flash_attention_requested

from .configuration_internvlx import InternVLXConfig
from .layout import Layout, Rows, is_empty, is_prefix, is_static, read_on_host, runs_without_mask
from .lvtc_cache import Memory, ensure_capacity, recall_expansion
from .lvtc_rows import Columns, RowMap, map_rows, read_columns
from .tile_sizes import TileSize

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Tiles:
    """A prompt's tiles.

    Args:
        placeholders: (B, L) bool, where their placeholders are.
        tokens: for each stage, (tiles,) tokens of every tile in it.
        keeps: (tiles,) bool, which tiles' rows keep their positions instead of being counted anew.
    """

    placeholders: torch.Tensor
    tokens: Sequence[torch.Tensor]
    keeps: torch.Tensor

    @classmethod
    def of(cls, placeholders: torch.Tensor, sizes: Sequence[TileSize], boundaries: Sequence[int]) -> "Tiles":
        """The tiles of a prompt, each with its size."""

        def each(values: Sequence[int]) -> torch.Tensor:
            if len(set(values)) == 1:  # without a copy to the device
                return placeholders.new_full((len(values),), values[0], dtype=torch.long)
            return torch.tensor(values, device=placeholders.device)

        tokens = [each(own) for own in zip(*(size.in_stages(boundaries) for size in sizes), strict=True)]
        return cls(placeholders, tokens, each([size.keeps_positions for size in sizes]).bool())


@dataclass(frozen=True)
class Plan:
    """What a forward does with its tiles.

    Args:
        boundaries: the layers before which a tile's number of tokens changes.
        layouts: the prompt in each stage, one more than boundaries.
        row_maps: from each stage to the next; none without tiles.
        memory: what the cache stores about all expansions so far.
    """

    boundaries: list[int]
    layouts: list[Layout]
    row_maps: list[RowMap]
    memory: Memory | None

    def split(self, layers: range) -> list[range]:
        """The layers of each stage."""
        return [layers[start:end] for start, end in pairwise([0, *self.boundaries, len(layers)])]


def lay_out(
    config: InternVLXConfig, layout: Layout, tiles: Tiles | None, cache: Cache | None, pads_left: bool = True
) -> Plan:
    """Make a forward's [`Plan`].

    Args:
        layout: the prompt in stage one, as [`layout.read_layout`] returns it.
        tiles: None for a prompt without tiles, or whose tiles have the same tokens in all stages.
        cache: the cache of earlier forwards.
        pads_left: side of the padding in later stages, see [`lvtc_rows.map_rows`].

    Raises:
        ValueError: if a tile's placeholders are not contiguous, a mask cannot be expanded or a static cache is too
            short.
    """
    boundaries = config.boundaries
    memory = recall_expansion(cache, boundaries)
    if tiles is not None:
        return _expand(config, layout, tiles, cache, memory, pads_left)
    layouts = [layout] * (1 + len(boundaries))
    if cache is not None and memory is not None:
        layouts = _continue(config, layout, memory, cache)
    return Plan(boundaries, layouts, [], memory)


@dataclass(frozen=True)
class _Stages:
    """The later stages in stage one's columns.

    Args:
        columns: for each stage, what they become.
        shift: (S, B, 1), as [`Memory`]'s, of this prompt alone.
        positions, numbers: (S, B, L), of text and of the first token of each tile; see [`Layout`].
        rows: (S, B, L + 1), rows that the columns before each become.
        facts: for the host.
    """

    columns: list[Columns]
    shift: torch.Tensor
    positions: torch.Tensor
    numbers: torch.Tensor
    rows: torch.Tensor
    facts: dict[str, torch.Tensor]


def _count_on(
    layout: Layout, tiles: Tiles, visible: torch.Tensor, is_start: torch.Tensor, earlier: torch.Tensor
) -> _Stages:
    """Count the rows that stage one's columns become.

    Args:
        is_start: (B, L) bool, where samples begin, beside a row's first.
        earlier: (S, B, 1), the shift of earlier expansions.
    """
    columns = [read_columns(tiles.placeholders, visible, tiles.tokens[0], after) for after in tiles.tokens[1:]]
    width = torch.stack([own.width for own in columns])
    keeps = tiles.placeholders & tiles.keeps[columns[0].tile]
    column = torch.arange(visible.shape[1], device=visible.device)
    start = torch.where(is_start, column, 0).cummax(1).values.expand_as(width)
    rows, gained = (F.pad(own.cumsum(-1), (1, 0)) for own in (width, (width - visible.long()) * ~keeps))
    # Tiles of other samples packed into the row do not count.
    positions = layout.positions + earlier + gained[..., :-1] - gained.gather(-1, start)
    sample_bounds = layout.bounds.get("cu_seq_lens_q", column[:1]).to(column)
    facts = {
        "shortest": rows[..., -1].amin(1),
        "longest": rows[..., -1].amax(1),
        "longest_sample": rows[:, 0, sample_bounds].diff(dim=-1, append=rows[:, 0, -1:]).amax(1),
        "last_position": (positions + torch.where(keeps, 0, width - 1)).max(),
    }
    return _Stages(columns, gained[..., -1:], positions, rows[..., :-1] - rows.gather(-1, start), rows, facts)


def _expand(
    config: InternVLXConfig,
    layout: Layout,
    tiles: Tiles,
    cache: Cache | None,
    memory: Memory | None,
    pads_left: bool,
) -> Plan:
    """The plan of a prompt with tiles. `memory` is that of earlier expansions on the cache."""
    placeholders, mask = tiles.placeholders, _require_2d(layout.mask)
    (batch, length), device = placeholders.shape, placeholders.device
    earlier = memory or Memory.of_text(len(config.boundaries), batch, device)
    seen = 0 if cache is None else int(cache.get_seq_length())
    seen_mask = placeholders.new_ones(batch, seen + length) if mask is None else mask.to(device, torch.bool)
    visible = seen_mask[:, -length:]
    is_start = F.pad(layout.positions.diff(dim=1) != 1, (1, 0)) & (mask is None)
    stages = _count_on(layout, tiles, visible, is_start, earlier.shift.to(device))
    facts = read_on_host(
        trailing_text=(~placeholders & visible).flip(1).long().cumprod(1).sum(1).min(),
        tile_rows=torch.stack([tokens.sum() for tokens in tiles.tokens]),
        is_packed=is_start.any(),
        is_interrupted=(placeholders & (stages.columns[0].place > 0) & ~F.pad(placeholders[:, :-1], (1, 0))).any(),
        is_padded=(~seen_mask).any(),
        is_padded_left=is_prefix(~seen_mask),
        is_padded_right=is_prefix(visible),
        **stages.facts,
    )
    if facts.is_interrupted:
        tokens = " or ".join(dict.fromkeys(str(size.before) for size in config.sizes))
        raise ValueError(
            f"The {tokens} image placeholders of a tile must be contiguous, but there is text between them."
        )
    _warn_about_positions(facts.last_position, config)
    ensure_capacity(cache, config, length, facts.longest)
    maps = [
        map_rows(columns, longest, (facts.tile_rows[0], rows), pads_left)
        for columns, longest, rows in zip(stages.columns, facts.longest, facts.tile_rows[1:], strict=True)
    ]
    memory = _remember(earlier, stages, seen_mask, seen, maps, facts, pads_left)
    later = _later_layouts(layout, tiles, stages, maps, facts.longest_sample, facts.is_packed)
    first = replace(layout, numbers=layout.numbers if facts.is_packed else None)
    layouts = _with_masks(config, [first, *later], memory, cache, facts, pads_left)
    return Plan(config.boundaries, layouts, _chain(maps, tiles, pads_left), memory)


def _later_layouts(
    layout: Layout, tiles: Tiles, stages: _Stages, maps: list[RowMap], longest_samples: list[int], is_packed: bool
) -> list[Layout]:
    """The later stages' rows, before their masks are known."""
    layouts, own = [], layout.positions.flatten()
    for i, row_map in enumerate(maps):
        firsts, places, tile = row_map.firsts, row_map.places, stages.columns[i].tile.flatten()
        positions, numbers = stages.positions[i].flatten(), stages.numbers[i].flatten()
        later = torch.where(tiles.keeps[tile[firsts]], own[row_map.parents] - own[firsts], places)
        bounds = {
            name: stages.rows[i, 0].to(bound)[bound.long()] if name.startswith("cu_seq") else longest_samples[i]
            for name, bound in layout.bounds.items()
        }
        placed = row_map.place(positions, positions[firsts] + later)
        placed_numbers = row_map.place(numbers, numbers[firsts] + places) if is_packed else None
        layouts.append(Layout(Rows.WHOLE, placed, None, bounds, placed_numbers))
    return layouts


def _chain(maps: list[RowMap], tiles: Tiles, pads_left: bool) -> list[RowMap]:
    """Turn the maps from stage one to each later stage into those from each stage to the next."""
    chained = maps[:1]
    for i, (here, there) in enumerate(pairwise(maps), start=1):
        is_text = torch.zeros_like(tiles.placeholders).flatten()
        placeholders = here.place(is_text, torch.ones_like(here.firsts, dtype=torch.bool))
        columns = read_columns(placeholders, here.is_token(), *tiles.tokens[i : i + 2])
        chained.append(map_rows(columns, there.shape[1], (len(here.firsts), len(there.firsts)), pads_left))
    return chained


def _remember(
    earlier: Memory,
    stages: _Stages,
    seen_mask: torch.Tensor,
    seen: int,
    maps: list[RowMap],
    facts: SimpleNamespace,
    pads_left: bool,
) -> Memory:
    """The memory after this expansion.

    Args:
        seen_mask: (B, seen + L) bool, the caller's.
        maps: from stage one to each later stage.
        facts: of the prompt.
    """
    device = seen_mask.device
    past = earlier.extend_masks(seen_mask[:, :seen], seen)
    masks = [torch.cat([mask.to(device), own.is_token()], dim=1) for mask, own in zip(past, maps, strict=True)]
    rows, trailing_text = [], facts.trailing_text
    for before, shortest, longest in zip(earlier.rows, facts.shortest, facts.longest, strict=True):
        is_ragged = shortest < longest and not facts.is_packed
        if is_ragged and not pads_left:
            trailing_text = 0
        if is_ragged or (facts.is_padded and seen):
            before = Rows.PADDED_LEFT if pads_left and not seen else Rows.PADDED
        rows.append(before)
    shift = earlier.shift.to(device) + stages.shift
    return Memory(shift, masks, rows, seen_mask.shape[1], trailing_text, facts.last_position)


def _with_masks(
    config: InternVLXConfig,
    layouts: list[Layout],
    memory: Memory,
    cache: Cache | None,
    facts: SimpleNamespace,
    pads_left: bool,
) -> list[Layout]:
    """All stages, with the masks that attention needs."""
    first, *later = layouts
    # On a filled cache, SDPA's causal kernel would let the first query see only the first column.
    causal_is_enough = runs_without_mask(config.text_config) and is_empty(cache)
    # flash attention needs a mask to know which columns of a static cache are in use
    needs_mask = first.mask is not None and is_flash_attention_requested(config.text_config) and is_static(cache)
    unhidden = Rows.MASKED if needs_mask else Rows.WHOLE
    rows = [own if pads_left or not causal_is_enough else Rows.WHOLE for own in memory.rows]
    padded = Rows.PADDED_LEFT if facts.is_padded_left else Rows.PADDED
    is_hidden = facts.is_padded and not (causal_is_enough and facts.is_padded_right)
    return [first.masked(padded if is_hidden else unhidden, first.mask)] + [
        stage.masked(unhidden if own is Rows.WHOLE else own, mask)
        for stage, own, mask in zip(later, rows, memory.masks, strict=True)
    ]


def _continue(config: InternVLXConfig, layout: Layout, memory: Memory, cache: Cache) -> list[Layout]:
    """A text prompt in all stages, after tiles that the cache has seen."""
    mask, columns = layout.mask, cache.get_seq_length()
    if isinstance(columns, torch.Tensor):  # of a static cache, which returns all its columns
        columns = cache.get_max_length(0)
    else:
        columns += layout.positions.shape[1]
        _warn_about_positions(memory.last_position + columns - memory.length, config)
    rows, later = Rows.MASKED, [Rows.MASKED] * len(memory.rows)
    if mask is None:
        rows, later = Rows.WHOLE, memory.rows
    elif runs_without_mask(config.text_config) and not (
        isinstance(mask, dict) or is_static(cache) or is_tracing(mask)
    ):
        hidden = ~mask.bool()
        flags = read_on_host(any=hidden.any(), later=hidden[:, memory.length :].any(), left=is_prefix(hidden))
        if flags.any:
            rows = Rows.PADDED_LEFT if flags.left else Rows.PADDED
        else:
            rows = Rows.WHOLE
        later = [Rows.PADDED] * len(memory.rows) if flags.later else memory.rows
    masks = [mask] * len(later) if isinstance(mask, dict) else memory.extend_masks(_require_2d(mask), columns)
    positions = layout.positions + memory.shift.to(layout.positions.device)
    return [layout.masked(rows, mask)] + [
        replace(layout, positions=own).masked(stage_rows, stage_mask)
        for own, stage_rows, stage_mask in zip(positions, later, masks, strict=True)
    ]


def _require_2d(attention_mask: Any) -> Any:
    if attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2):
        return attention_mask
    got = f"one of shape {tuple(attention_mask.shape)}" if isinstance(attention_mask, torch.Tensor) else "several"
    raise ValueError(
        f"With images, LVTC needs a 2D `attention_mask` (samples, tokens) to make its masks from, got {got}."
    )


def _warn_about_positions(last_position: int, config: InternVLXConfig) -> None:
    if not is_tracing() and last_position >= (limit := config.position_limit):
        logger.warning_once(
            f"Positions after LVTC's expansion exceed {limit}, the limit of the language model (its "
            "`max_position_embeddings`), so answers may be poor. Use fewer tiles (`max_patches`, or "
            "`max_image_tokens` for all images of a prompt) or less text."
        )
