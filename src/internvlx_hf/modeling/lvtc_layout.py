# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Where a prompt's rows are in each of LVTC's stages. It depends on the input only and is decided before the first
layer.

The caller sees stage one's columns. [`lay_out`] describes the prompt in all stages, a [`Layout`] each, and, if it has
tiles, how stage one's rows become those of each later stage: a [`RowMap`]. Symbols as in `lvtc.py`; S later stages.
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

from .configuration_internvlx import InternVLXConfig
from .layout import Layout, Rows, is_empty, is_prefix, is_static, read_on_host, runs_without_mask
from .lvtc_cache import Memory, ensure_capacity, recall_expansion
from .lvtc_rows import RowMap, map_rows, read_columns
from .tile_sizes import TileSize

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Tiles:
    """A prompt's tiles.

    Args:
        placeholders: (B, L) bool, where their placeholders are.
        sizes: each tile's.
    """

    placeholders: torch.Tensor
    sizes: Sequence[TileSize]

    def each(self, values: Sequence) -> torch.Tensor:
        """(tiles,) a value for each tile."""
        return torch.tensor(values, device=self.placeholders.device)


@dataclass(frozen=True)
class Plan:
    """What a forward does with its tiles.

    Args:
        boundaries: the layers before which a tile's number of tokens changes.
        layouts: the prompt in each stage, one more than boundaries.
        row_maps: from stage one to each later stage; none without tiles.
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
        batch, device = len(tiles.placeholders), tiles.placeholders.device
        earlier = memory or Memory.of_text(len(boundaries), batch, device)
        return _expand(config, layout, tiles, cache, earlier, pads_left)
    layouts = [layout] * (1 + len(boundaries))
    if cache is not None and memory is not None:
        layouts = _continue(config, layout, memory, cache)
    return Plan(boundaries, layouts, [], memory)


def _expand(
    config: InternVLXConfig, layout: Layout, tiles: Tiles, cache: Cache | None, earlier: Memory, pads_left: bool
) -> Plan:
    """The plan of a prompt with tiles. `earlier` is the memory of expansions on the cache."""
    placeholders, mask = tiles.placeholders, _require_2d(layout.mask)
    (batch, length), device = placeholders.shape, placeholders.device
    seen = 0 if cache is None else int(cache.get_seq_length())
    seen_mask = placeholders.new_ones(batch, seen + length) if mask is None else mask.to(device, torch.bool)
    visible = seen_mask[:, -length:]
    tokens = list(zip(*(size.in_stages(config.boundaries) for size in tiles.sizes), strict=True))
    before, *later = map(tiles.each, tokens)
    columns = [read_columns(placeholders, visible, before, after) for after in later]
    is_start = F.pad(layout.positions.diff(dim=1) != 1, (1, 0)) & (mask is None)
    is_packed = is_start.any()
    keeps = tiles.each([size.keeps_positions for size in tiles.sizes])[columns[0].tile]
    width = torch.stack([own.width for own in columns])
    start = torch.where(is_start, torch.arange(length, device=device), 0).cummax(1).values[None]
    rows, numbers = _count(width, start)
    gained, ahead = _count((width - visible.long()) * ~keeps, start)
    shift, lengths = earlier.shift.to(device), rows[..., -1]
    positions = layout.positions + shift + ahead
    # On a filled cache, SDPA's causal kernel would let the first query see only the first column.
    is_causal = runs_without_mask(config.text_config) and is_empty(cache)
    stages = read_on_host(
        trailing_text=(~placeholders & visible).flip(1).long().cumprod(1).sum(1).min(),
        is_packed=is_packed,
        is_interrupted=((placeholders[:, 1:] > placeholders[:, :-1]) & (columns[0].place[:, 1:] > 0)).any(),
        padding=_padding(seen_mask, is_causal),
        is_ragged=(lengths != lengths[:, :1]).any(1) & ~is_packed,
        longest=lengths.amax(1),
        longest_sample=(numbers + width).amax((1, 2)),
        last_position=(positions + torch.where(keeps, 0, width - 1)).max(),
    )
    facts = stages[0]
    _check(facts, config)
    ensure_capacity(cache, config, [length, *(own.longest for own in stages)])
    padded = Rows.PADDED_LEFT if pads_left and not seen else Rows.PADDED
    kinds = [
        padded if own.is_ragged or (own.padding and seen) else before
        for own, before in zip(stages, earlier.rows, strict=True)
    ]
    trailing_text = facts.trailing_text if pads_left or not any(own.is_ragged for own in stages) else 0
    memory = Memory(shift + gained[..., -1:], [], kinds, seen + length, trailing_text, facts.last_position)
    numbers_before = layout.numbers if facts.is_packed else None
    first = replace(layout, rows=Rows(facts.padding), mask=seen_mask, numbers=numbers_before)
    plan = Plan(config.boundaries, [first], [], memory)
    for i, own in enumerate(stages):
        row_map = map_rows(columns[i], own.longest, (sum(tokens[0]), sum(tokens[1 + i])), pads_left)
        earlier_mask = earlier.extend_mask(i, seen_mask[:, :seen]).to(device)
        memory.masks.append(torch.cat([earlier_mask, row_map.is_token], dim=1))
        bounds = {
            name: rows[i, 0].to(bound)[bound.long()] if "cu_seq" in name else own.longest_sample
            for name, bound in layout.bounds.items()
        }
        plan.row_maps.append(row_map)
        kind = kinds[i] if pads_left or not is_causal else Rows.WHOLE
        positions_after = row_map.count_on(positions[i], keeps)
        numbers_after = row_map.count_on(numbers[i], torch.zeros_like(keeps)) if own.is_packed else None
        plan.layouts.append(Layout(kind, positions_after, memory.masks[i], bounds, numbers_after))
    return plan


def _count(rows: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(S, B, L) rows that columns become -> (S, B, L + 1) those of all columns before each, and (S, B, L) of those in
    its sample, which begins in column `start`, (1, B, L).
    """
    before = F.pad(rows.cumsum(-1), (1, 0))
    return before, before[..., :-1] - before.take_along_dim(start, -1)


def _padding(mask: torch.Tensor, is_causal: bool = False) -> torch.Tensor:
    """Scalar, the [`Rows`] with a mask (B, seen + L) bool. Right padding is none if attention is only causal."""
    is_padded = ~is_prefix(mask) if is_causal else (~mask).any()
    return is_padded * (Rows.PADDED - is_prefix(~mask).long())


def _continue(config: InternVLXConfig, layout: Layout, memory: Memory, cache: Cache) -> list[Layout]:
    """A text prompt in all stages, after tiles that the cache has seen."""
    mask, columns = layout.mask, cache.get_seq_length()
    if isinstance(columns, torch.Tensor):  # of a static cache, which returns all its columns
        columns = cache.get_max_length(0)
    else:
        columns += layout.positions.shape[1]
        _warn_about_positions(memory.last_position + columns - memory.length, config)
    first = later = layout.rows
    is_read = isinstance(mask, torch.Tensor) and not (is_static(cache) or is_tracing(mask))
    if is_read and runs_without_mask(config.text_config):
        visible = mask.bool()
        hidden = Rows.PADDED * (~visible[:, memory.length :]).any()
        (facts,) = read_on_host(first=_padding(visible), later=hidden)
        first, later = Rows(facts.first), Rows(facts.later)
    layouts, positions = [replace(layout, rows=first)], layout.positions + memory.shift.to(layout.positions.device)
    for i, earlier in enumerate(memory.rows):
        rows = max(earlier, later)
        if rows is not Rows.WHOLE and not isinstance(mask, dict):
            if mask is None:
                mask = positions.new_ones(positions.shape[1], columns)
            layout = replace(layout, mask=memory.extend_mask(i, _require_2d(mask)))
        layouts.append(replace(layout, rows=rows, positions=positions[i]))
    return layouts


def _require_2d(attention_mask: Any) -> Any:
    if attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2):
        return attention_mask
    got = f"one of shape {tuple(attention_mask.shape)}" if isinstance(attention_mask, torch.Tensor) else "several"
    raise ValueError(
        f"With images, LVTC needs a 2D `attention_mask` (samples, tokens) to make its masks from, got {got}."
    )


def _check(facts: SimpleNamespace, config: InternVLXConfig) -> None:
    if facts.is_interrupted:
        counts = " or ".join(dict.fromkeys(str(size.before) for size in config.sizes))
        raise ValueError(
            f"The {counts} image placeholders of a tile must be contiguous, but there is text between them."
        )
    _warn_about_positions(facts.last_position, config)


def _warn_about_positions(last_position: int, config: InternVLXConfig) -> None:
    if not is_tracing() and last_position >= (limit := config.position_limit):
        logger.warning_once(
            f"Positions after LVTC's expansion exceed {limit}, the limit of the language model (its "
            "`max_position_embeddings`), so answers may be poor. Use fewer tiles (`max_patches`, or "
            "`max_image_tokens` for all images of a prompt) or less text."
        )
