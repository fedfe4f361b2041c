# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Where a prompt's rows are in each of LVTC's stages. It depends on the input only and is decided before the first
layer.

The caller sees stage one's columns. [`lay_out`] describes the prompt in all stages, a [`Layout`] each, and, if it has
tiles, how a stage's rows become those of the next: a [`RowMap`]. Symbols as in `lvtc.py`.
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
from .lvtc_cache import Memories, Memory, ensure_capacity, join_masks, recall_expansion
from .lvtc_rows import Columns, RowMap, map_rows, read_columns
from .tile_sizes import TileSize

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Tiles:
    """A prompt's tiles.

    Args:
        placeholders: (B, L) bool, where their placeholders are.
        tokens: for each stage, (tiles,) tokens of every tile in it.
        keeps: (tiles,) bool, which tiles' rows keep their positions instead of being counted anew; None for no tile.
    """

    placeholders: torch.Tensor
    tokens: Sequence[torch.Tensor]
    keeps: torch.Tensor | None = None

    @classmethod
    def of(cls, placeholders: torch.Tensor, sizes: Sequence[TileSize], boundaries: Sequence[int]) -> "Tiles":
        """The tiles of a prompt, each with its size."""

        def each(values: Sequence[int]) -> torch.Tensor:
            if len(set(values)) == 1:  # without a copy to the device
                return placeholders.new_full((len(values),), values[0], dtype=torch.long)
            return torch.tensor(values, device=placeholders.device)

        tokens = [each(own) for own in zip(*(size.in_stages(boundaries) for size in sizes), strict=True)]
        keeps = [size.keeps_positions for size in sizes]
        return cls(placeholders, tokens, each(keeps).bool() if any(keeps) else None)


@dataclass(frozen=True)
class Plan:
    """What a forward does with its tiles.

    Args:
        boundaries: the layers before which a tile's number of tokens changes.
        layouts: the prompt in each stage, one more than boundaries.
        row_maps: from each stage to the next; none without tiles.
        reads: from stage one to the last; None without tiles.
        memories: what the cache stores about all expansions so far, for each boundary.
    """

    boundaries: list[int]
    layouts: list[Layout]
    row_maps: list[RowMap]
    reads: RowMap | None
    memories: Memories | None

    def split(self, layers: range) -> list[range]:
        """The layers of each stage."""
        return [layers[a:b] for a, b in zip([0, *self.boundaries], [*self.boundaries, None], strict=True)]


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
    memories = recall_expansion(cache, boundaries)
    if tiles is not None:
        return _expand(config, layout, tiles, cache, memories, pads_left)
    layouts = [layout] * (1 + len(boundaries))
    if cache is not None and memories is not None:
        layouts = _continue(config, layout, memories, cache)
    return Plan(boundaries, layouts, [], None, memories)


@dataclass(frozen=True)
class _Stage:
    """A later stage in stage one's columns.

    Args:
        columns: what they become.
        growth, shift: (B, 1), as [`Memory`]'s, of this prompt alone.
        positions, rotary: (B, L), those of text and of the first token of each tile.
        bounds: of packed samples.
        facts: scalars for the host.
    """

    columns: Columns
    growth: torch.Tensor
    shift: torch.Tensor
    positions: torch.Tensor
    rotary: torch.Tensor
    bounds: dict
    facts: dict[str, torch.Tensor]


def _count_on(
    layout: Layout, tiles: Tiles, columns: Columns, visible: torch.Tensor, starts: torch.Tensor, earlier: Memory
) -> _Stage:
    """Count the rows that stage one's columns become, beyond those of the memory `earlier`.

    Args:
        starts: (B, L), the column of the first token of each column's sample.
    """
    gained = columns.width - visible.long()
    keeps = None if tiles.keeps is None else tiles.placeholders & tiles.keeps[columns.tile]

    def count(gained: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sums = F.pad(gained.cumsum(1), (1, 0))  # before each column
        # Tiles of other samples packed into the row do not count.
        return sums, layout.positions + before.to(sums.device) + sums[:, :-1] - sums.gather(1, starts)

    sums, positions = count(gained, earlier.growth)
    shifts, rotary = (sums, positions) if keeps is None else count(gained * ~keeps, earlier.shift)
    last = torch.where(columns.width > 0, rotary + columns.width - 1, 0)
    last = last if keeps is None else torch.where(keeps, rotary, last)
    bounds = {
        name: value + sums[0].to(value)[value.long()] for name, value in layout.bounds.items() if "cu_seq" in name
    }
    lengths = columns.width.sum(1)
    facts = {
        "shortest": lengths.min(),
        "longest": lengths.max(),
        "longest_sample": bounds.get("cu_seq_lens_q", sums[0]).to(sums.device).diff().max(),
        "last_position": last.max(),
        "tile_rows": columns.after.sum(),
    }
    return _Stage(columns, sums[:, -1:], shifts[:, -1:], positions, rotary, bounds, facts)


def _expand(
    config: InternVLXConfig,
    layout: Layout,
    tiles: Tiles,
    cache: Cache | None,
    memories: Memories | None,
    pads_left: bool,
) -> Plan:
    """The plan of a prompt with tiles. `memories` are those of earlier expansions on the cache."""
    boundaries, placeholders = config.boundaries, tiles.placeholders
    length, device, mask = placeholders.shape[1], placeholders.device, _require_2d(layout.mask)
    earlier = memories or (Memory.of_text(len(placeholders), device),) * len(boundaries)
    seen_mask = torch.ones_like(placeholders) if mask is None else mask.to(device, torch.bool)
    visible = seen_mask[:, -length:]
    is_start = F.pad(layout.positions.diff(dim=1) != 1, (1, 0)) & (mask is None)
    starts = torch.where(is_start, torch.arange(length, device=device), 0).cummax(1).values
    stages, before = [], tiles.tokens[0]
    for memory, after in zip(earlier, tiles.tokens[1:], strict=True):
        columns = read_columns(placeholders, visible, before, after)
        stages.append(_count_on(layout, tiles, columns, visible, starts, memory))
    place = stages[0].columns.place
    facts = read_on_host(
        trailing_text=(~placeholders & visible).flip(1).long().cumprod(1).sum(1).min(),
        tile_rows=placeholders.sum(),
        is_packed=is_start.any(),
        is_interrupted=(placeholders & (place > 0) & ~F.pad(placeholders[:, :-1], (1, 0))).any(),
        is_padded=(~seen_mask).any(),
        is_padded_left=is_prefix(~seen_mask),
        is_padded_right=is_prefix(visible),
        **{f"{name}_{i}": value for i, stage in enumerate(stages) for name, value in stage.facts.items()},
    )
    if facts.is_interrupted:
        tokens = " or ".join(dict.fromkeys(str(size.before) for size in config.sizes))
        raise ValueError(
            f"The {tokens} image placeholders of a tile must be contiguous, but there is text between them."
        )
    layouts, maps, after_it = [replace(layout, mask=mask)], [], []
    for i, (stage, memory) in enumerate(zip(stages, earlier, strict=True)):
        own = SimpleNamespace(**{name: getattr(facts, f"{name}_{i}") for name in stage.facts})
        maps.append(map_rows(stage.columns, own.longest, (facts.tile_rows, own.tile_rows), pads_left))
        _warn_about_positions(own.last_position, config)
        ensure_capacity(cache, config, boundaries[i], length, own.longest)
        added = maps[-1].is_token() if own.shortest < own.longest and not facts.is_packed else None
        counted = (memory.growth.to(device) + stage.growth, memory.shift.to(device) + stage.shift)
        after_it.append(
            _remember(memory, cache, boundaries[i], seen_mask, length, added, counted, facts, own, pads_left)
        )
        layouts.append(_later_layout(layout, stage, maps[-1], tiles.keeps, after_it[-1].mask, own.longest_sample))
    layouts = _with_masks(config, layouts, after_it, cache, facts, pads_left)
    return Plan(boundaries, layouts, _chain(maps, tiles, pads_left), maps[-1], tuple(after_it))


def _later_layout(
    layout: Layout, stage: _Stage, row_map: RowMap, keeps: torch.Tensor | None, mask: Any, longest_sample: int
) -> Layout:
    """A later stage's rows."""
    positions, rotary, own = stage.positions.flatten(), stage.rotary.flatten(), layout.positions.flatten()
    firsts, places, rotary_positions = row_map.firsts, row_map.places, None
    if keeps is not None:
        kept = own[row_map.parents] + (rotary - own)[firsts]
        is_kept = keeps[stage.columns.tile.flatten()[firsts]]
        rotary_positions = row_map.place(rotary, torch.where(is_kept, kept, rotary[firsts] + places))
    return Layout(
        Rows.WHOLE,
        row_map.place(positions, positions[firsts] + places),
        mask,
        stage.bounds | {name: longest_sample for name in layout.bounds if name.startswith("max_length")},
        rotary_positions,
    )


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
    cache: Cache | None,
    boundary: int,
    seen_mask: torch.Tensor,
    length: int,
    added: torch.Tensor | None,
    counted: tuple[torch.Tensor, torch.Tensor],
    facts: SimpleNamespace,
    own: SimpleNamespace,
    pads_left: bool,
) -> Memory:
    """The memory of a boundary after this expansion.

    Args:
        seen_mask: (B, seen + L) bool, the caller's.
        length: L.
        added: (B, L₂) bool, what may be attended to of the columns that this forward adds to the stage; None for all.
        counted: `growth` and `shift` so far.
        facts, own: of the prompt, and of it in the stage.
    """
    seen, expanded_seen = 0, 0
    if cache is not None:
        seen, expanded_seen = (int(cache.get_seq_length(layer)) for layer in (0, boundary))
    past = earlier.extend_mask(seen_mask[:, :seen] if facts.is_padded and seen else None, seen)
    is_left_padded = earlier.is_left_padded and not facts.is_padded and added is None
    return Memory(
        *counted,
        join_masks(counted[0], (past, expanded_seen), (added, own.longest)),
        length=seen + length,
        expanded_length=expanded_seen + own.longest,
        trailing_text=facts.trailing_text if pads_left or added is None else 0,
        last_position=own.last_position,
        is_left_padded=is_left_padded or (pads_left and not expanded_seen),
    )


def _with_masks(
    config: InternVLXConfig,
    layouts: list[Layout],
    memories: list[Memory],
    cache: Cache | None,
    facts: SimpleNamespace,
    pads_left: bool,
) -> list[Layout]:
    """All stages, with the masks that attention needs."""
    unhidden: bool | None = False
    first, *later = layouts
    if first.mask is not None and is_flash_attention_requested(config.text_config) and is_static(cache):
        # flash attention needs a mask to know which columns of the cache are in use
        unhidden = None
    # On a filled cache, SDPA's causal kernel would let the first query see only the first column.
    causal_is_enough = runs_without_mask(config.text_config) and is_empty(cache)
    hides = facts.is_padded and not (causal_is_enough and facts.is_padded_right)
    masked = [_with_mask(first, first.mask, hides or unhidden, facts.is_padded_left, facts.is_packed)]
    for layout, memory in zip(later, memories, strict=True):
        mask = memory.mask
        if unhidden is None and mask is None:
            mask = torch.ones_like(layout.positions, dtype=torch.bool)
        hides_later = memory.mask is not None and (pads_left or not causal_is_enough)
        masked.append(_with_mask(layout, mask, hides_later or unhidden, memory.is_left_padded, facts.is_packed))
    return masked


def _with_mask(layout: Layout, mask: Any, hides: bool | None, is_left: Any, is_packed: Any = False) -> Layout:
    """The layout with its mask, unless it is known to hide nothing. `hides` is None if that is not known."""
    if hides is None:
        rows = Rows.MASKED
    elif hides:
        rows = Rows.PADDED_LEFT if is_left else Rows.PADDED
    else:
        rows, mask = Rows.PACKED if is_packed else Rows.WHOLE, None
    return replace(layout, rows=rows, mask=mask)


def _continue(config: InternVLXConfig, layout: Layout, memories: Memories, cache: Cache) -> list[Layout]:
    """A text prompt in all stages, after tiles that the cache has seen."""
    mask, columns, length = layout.mask, cache.get_seq_length(), memories[0].length
    if isinstance(columns, torch.Tensor):  # of a static cache, which returns all its columns
        columns = cache.get_max_length(0)
    else:
        columns += layout.positions.shape[1]
        _warn_about_positions(max(memory.last_position for memory in memories) + columns - length, config)
    hides = is_left = later = None
    if mask is None:
        hides = later = False
    elif runs_without_mask(config.text_config) and not (
        isinstance(mask, dict) or is_static(cache) or is_tracing(mask)
    ):
        hidden = ~mask.bool()
        flags = read_on_host(any=hidden.any(), later=hidden[:, length:].any(), left=is_prefix(hidden))
        hides, later, is_left = flags.any, flags.later, flags.left
    layouts = [_with_mask(layout, mask, hides, is_left)]
    lvtc = config.lvtc_config
    keeps = config.merge_layer is not None or (lvtc is not None and lvtc.expanded_positions == "kept")
    for memory in memories:
        stage_mask = mask if isinstance(mask, dict) else memory.extend_mask(_require_2d(mask), columns)
        stage = replace(
            layout,
            positions=layout.positions + memory.growth.to(layout.positions.device),
            rotary_positions=layout.positions + memory.shift.to(layout.positions.device) if keeps else None,
        )
        hides_later = is_left_later = None
        if later is not None:  # else nothing of the memory is read that would recompile a decoding step
            hides_later = later or memory.mask is not None
            is_left_later = memory.is_left_padded and not later
        layouts.append(_with_mask(stage, stage_mask, hides_later, is_left_later))
    return layouts


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
