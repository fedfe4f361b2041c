# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Where a prompt's rows are in each of LVTC's stages. It depends on the input only and is decided before the first layer.

The caller sees stage one's columns. [`lay_out`] describes the prompt in all stages, a [`Layout`] each, and, if it has tiles,
how a stage's rows become those of the next: a [`RowMap`]. Symbols as in `lvtc.py`.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache
from transformers.utils import is_tracing, logging
from transformers.utils.generic import is_flash_attention_requested

from .configuration_internvlx import InternVLXConfig
from .layout import Layout, Rows, is_empty, is_prefix, is_static, read_on_host, runs_without_mask
from .lvtc_cache import Memory, ensure_capacity, join_masks, recall_expansion
from .lvtc_rows import RowMap, map_rows, read_columns

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a forward does with its tiles.

    Args:
        boundaries: the layers before which a tile's number of tokens changes: k.
        layouts: the prompt in each stage, one more than boundaries.
        row_maps: one for each boundary; none without tiles.
        memory: what the cache stores about all expansions so far.
    """

    boundaries: list[int]
    layouts: list[Layout]
    row_maps: list[RowMap]
    memory: Memory | None

    def split(self, layers: range) -> list[range]:
        """The layers of each stage."""
        return [layers[a:b] for a, b in zip([0, *self.boundaries], [*self.boundaries, None], strict=True)]


def lay_out(
    config: InternVLXConfig,
    layout: Layout,
    tiles: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    cache: Cache | None,
    pads_left: bool = True,
) -> Plan:
    """Make a forward's [`Plan`].

    Args:
        layout: the prompt in stage one, as [`layout.read_layout`] returns it.
        tiles: (B, L) bool, where the tiles' placeholders are, and (tiles,) twice, tokens of every tile before and after the
            boundary: N₁² and N₂². None for a prompt without tiles.
        cache: the cache of earlier forwards.
        pads_left: side of the padding in stage two, see [`lvtc_rows.map_rows`].

    Raises:
        ValueError: if a tile's placeholders are not contiguous, a mask cannot be expanded or a static cache is too short.
    """
    memory = recall_expansion(cache, config.lvtc_config.expand_layer)
    if tiles is not None:
        return _expand(config, layout, *tiles, cache, memory, pads_left)
    layouts = [layout, layout]
    if cache is not None and memory is not None:
        layouts = _continue(config, layout, memory, cache)
    return Plan([config.lvtc_config.expand_layer], layouts, [], memory)


def _expand(
    config: InternVLXConfig,
    layout: Layout,
    placeholders: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    cache: Cache | None,
    earlier: Memory | None,
    pads_left: bool,
) -> Plan:
    """The plan of a prompt with tiles. `earlier` is the memory of earlier expansions on the cache."""
    k, length, device = config.lvtc_config.expand_layer, placeholders.shape[1], placeholders.device
    earlier, mask = earlier or Memory.of_text(len(placeholders), device), _require_2d(layout.mask)
    seen_mask = torch.ones_like(placeholders) if mask is None else mask.to(device, torch.bool)
    visible = seen_mask[:, -length:]
    columns = read_columns(placeholders, visible, before, after)
    lengths, is_text = columns.width.sum(1), ~placeholders & visible
    gained = F.pad((columns.width - visible.long()).cumsum(1), (1, 0))  # before each column
    # Tiles of other samples packed into the row do not count.
    starts = F.pad(layout.positions.diff(dim=1) != 1, (1, 0)) & (mask is None)
    of_others = gained.gather(1, torch.where(starts, torch.arange(length, device=device), 0).cummax(1).values)
    # valid for text and for the first token of each tile
    positions = layout.positions + earlier.growth.to(device) + gained[:, :-1] - of_others
    last_positions = torch.where(columns.width > 0, positions + columns.width - 1, 0)
    keeps = config.lvtc_config.expanded_positions == "kept"
    starts_of = {name: value for name, value in layout.bounds.items() if name.startswith("cu_seq_lens")}
    bounds = {name: value + gained[0].to(value)[value.long()] for name, value in starts_of.items()}
    facts = read_on_host(
        shortest=lengths.min(),
        longest=lengths.max(),
        longest_sample=bounds.get("cu_seq_lens_q", gained[0]).to(device).diff().max(),
        trailing_text=is_text.flip(1).long().cumprod(1).sum(1).min(),
        last_position=(layout.positions if keeps else last_positions).max(),
        tile_rows=placeholders.sum(),
        tile_rows_after=after.sum(),
        is_packed=starts.any(),
        is_interrupted=(placeholders & (columns.place > 0) & ~F.pad(placeholders[:, :-1], (1, 0))).any(),
        is_padded=(~seen_mask).any(),
        is_padded_left=is_prefix(~seen_mask),
        is_padded_right=is_prefix(visible),
    )
    if facts.is_interrupted:
        raise ValueError(
            f"The {config.image_seq_length} image placeholders of a tile must be contiguous, but there is text between them."
        )
    row_map = map_rows(columns, facts.longest, (facts.tile_rows, facts.tile_rows_after), pads_left)
    _warn_about_positions(facts.last_position, config)
    ensure_capacity(cache, config, length, facts.longest)
    added = row_map.is_token() if facts.shortest < facts.longest and not facts.is_packed else None
    memory = _remember(earlier, cache, k, seen_mask, length, added, gained[:, -1:], facts, pads_left)
    counted, kept = positions.flatten(), layout.positions.flatten()
    expanded = Layout(
        Rows.WHOLE,
        row_map.place(counted, counted[row_map.firsts] + row_map.places),
        memory.mask,
        bounds | {name: facts.longest_sample for name in layout.bounds if name.startswith("max_length")},
        row_map.place(kept, kept[row_map.parents]) if keeps else None,
    )
    layouts = _with_masks(config, replace(layout, mask=mask), expanded, memory, cache, facts, pads_left)
    return Plan([k], layouts, [row_map], memory)


def _remember(
    earlier: Memory,
    cache: Cache | None,
    expand_layer: int,
    seen_mask: torch.Tensor,
    length: int,
    added: torch.Tensor | None,
    gained: torch.Tensor,
    facts: SimpleNamespace,
    pads_left: bool,
) -> Memory:
    """The memory after this expansion.

    Args:
        seen_mask: (B, seen + L) bool, the caller's.
        length: L.
        added: (B, L₂) bool, what may be attended to of the columns that this forward adds to stage two; None for all.
        gained: (B, 1) tokens that each sample gains.
    """
    growth, seen, expanded_seen = gained + earlier.growth.to(gained.device), 0, 0
    if cache is not None:
        seen, expanded_seen = (int(cache.get_seq_length(layer)) for layer in (0, expand_layer))
    past = earlier.extend_mask(seen_mask[:, :seen] if facts.is_padded and seen else None, seen)
    is_left_padded = earlier.is_left_padded and not facts.is_padded and added is None
    return Memory(
        growth,
        join_masks(growth, (past, expanded_seen), (added, facts.longest)),
        length=seen + length,
        expanded_length=expanded_seen + facts.longest,
        trailing_text=facts.trailing_text if pads_left or added is None else 0,
        last_position=facts.last_position,
        is_left_padded=is_left_padded or (pads_left and not expanded_seen),
    )


def _with_masks(
    config: InternVLXConfig,
    layout: Layout,
    expanded: Layout,
    memory: Memory,
    cache: Cache | None,
    facts: SimpleNamespace,
    pads_left: bool,
) -> list[Layout]:
    """Both stages, with the masks that attention needs."""
    unhidden: bool | None = False
    mask = memory.mask
    if layout.mask is not None and is_flash_attention_requested(config.text_config) and is_static(cache):
        # flash attention needs a mask to know which columns of the cache are in use
        unhidden, mask = None, torch.ones_like(expanded.positions, dtype=torch.bool) if mask is None else mask
    # On a filled cache, SDPA's causal kernel would let the first query see only the first column.
    causal_is_enough = runs_without_mask(config.text_config) and is_empty(cache)
    hides = facts.is_padded and not (causal_is_enough and facts.is_padded_right)
    hides_later = memory.mask is not None and (pads_left or not causal_is_enough)
    return [
        _with_mask(layout, layout.mask, hides or unhidden, facts.is_padded_left, facts.is_packed),
        _with_mask(expanded, mask, hides_later or unhidden, memory.is_left_padded, facts.is_packed),
    ]


def _with_mask(layout: Layout, mask: Any, hides: bool | None, is_left: Any, is_packed: Any = False) -> Layout:
    """The layout with its mask, unless it is known to hide nothing. `hides` is None if that is not known."""
    if hides is None:
        rows = Rows.MASKED
    elif hides:
        rows = Rows.PADDED_LEFT if is_left else Rows.PADDED
    else:
        rows, mask = Rows.PACKED if is_packed else Rows.WHOLE, None
    return replace(layout, rows=rows, mask=mask)


def _continue(config: InternVLXConfig, layout: Layout, memory: Memory, cache: Cache) -> list[Layout]:
    """A text prompt in both stages, after tiles that the cache has seen."""
    mask, columns = layout.mask, cache.get_seq_length()
    if isinstance(columns, torch.Tensor):  # of a static cache, which returns all its columns
        columns = cache.get_max_length(0)
    else:
        columns += layout.positions.shape[1]
        _warn_about_positions(memory.last_position + columns - memory.length, config)
    expanded_mask = mask
    if not isinstance(mask, dict):
        expanded_mask = memory.extend_mask(_require_2d(mask), columns)
    expanded = replace(
        layout,
        positions=layout.positions + memory.growth.to(layout.positions.device),
        rotary_positions=layout.positions if config.lvtc_config.expanded_positions == "kept" else None,
    )
    hides = is_left = later = hides_later = is_left_later = None
    if mask is None:
        hides = later = False
    elif runs_without_mask(config.text_config) and not (
        isinstance(mask, dict) or is_static(cache) or is_tracing(mask)
    ):
        hidden = ~mask.bool()
        flags = read_on_host(any=hidden.any(), later=hidden[:, memory.length :].any(), left=is_prefix(hidden))
        hides, later, is_left = flags.any, flags.later, flags.left
    if later is not None:  # else nothing of the memory is read that would recompile a decoding step
        hides_later = later or memory.mask is not None
        is_left_later = memory.is_left_padded and not later
    return [
        _with_mask(layout, mask, hides, is_left),
        _with_mask(expanded, expanded_mask, hides_later, is_left_later),
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
            "`max_position_embeddings`), so answers may be poor. Use fewer tiles (`max_patches`, or `max_image_tokens` for all "
            "images of a prompt) or less text."
        )
