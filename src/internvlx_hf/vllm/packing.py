# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""An image as one tensor with a row for each of its placeholders, since vLLM keeps no other. Nothing here needs vLLM.

A row has a token of the width D of the language model, the HR token of a tile that grows, then c columns of this width
for LR tokens, which fill the rows from the first one, and the index of the tile's size if a checkpoint offers several.
"""

import torch
import torch.nn.functional as F
from einops import rearrange

from ..modeling import InternVLXConfig
from ..modeling.tile_tokens import ImageTokens
from .tile_rows import StepTiles, long_rows


def pack_tiles(config: InternVLXConfig, tokens: ImageTokens) -> list[torch.Tensor]:
    """The rows of each tile."""
    rows = tokens.rows.split([size.before for size in tokens.of_tiles])
    return [_pack(config, tokens, tile, first) for tile, first in enumerate(rows)]


def _pack(config: InternVLXConfig, tokens: ImageTokens, tile: int, first: torch.Tensor) -> torch.Tensor:
    size, columns = tokens.of_tiles[tile], _columns(config)
    width = first.shape[1]
    parts = [first, first.new_zeros(len(first), columns * width)]
    if size.has_lvtc:
        lr = torch.cat([first, *(entry[tile] for entry in tokens.lr)])
        lr = F.pad(lr, (0, 0, 0, columns * size.after - len(lr)))
        hr = first.new_zeros(size.after, width) if tokens.hr is None else tokens.hr[tile]
        parts = [hr, rearrange(lr, "(c n) d -> n (c d)", c=columns)]
    if config.boundaries and len(config.sizes) > 1:
        parts.append(parts[0].new_full((len(parts[0]), 1), config.sizes.index(size)))
    return torch.cat(parts, dim=1)


def unpack_tiles(config: InternVLXConfig, rows: torch.Tensor, is_multimodal: torch.Tensor) -> StepTiles | None:
    """The tiles of a step whose tokens change between stages; None if there are none.

    Args:
        rows: of the step's images, in order.
        is_multimodal: (n,) bool, which rows of the step they are.

    Raises:
        RuntimeError: if it does not have whole tiles.
    """
    numbers = rows[:, -1].int().tolist() if len(config.sizes) > 1 else [0] * len(rows)
    starts, at, changes = [], 0, torch.zeros(len(rows), dtype=torch.bool)
    while at < len(rows):
        size = config.sizes[numbers[at]]
        if size.boundary is None:
            at += 1
            continue
        starts.append((at, size))
        changes[at : at + long_rows(size)] = True
        at += long_rows(size)
    if at > len(rows):
        raise RuntimeError(f"A step has {len(rows)} image tokens, expected whole tiles of {size}.")
    if not starts:
        return None
    columns, width = _columns(config), config.text_config.hidden_size
    num_lr = config.lvtc_config.num_lr_projectors if columns else 1
    firsts, lr, hr = [], [[] for _ in range(num_lr - 1)], []  # type: ignore[var-annotated]
    for at, size in starts:
        own = rows[at : at + long_rows(size)]
        entries = [own[:, :width]] + [own[:0, :width]] * (num_lr - 1)
        hr.append(own[:0, :width])
        if size.has_lvtc:
            hr[-1] = own[:, :width]
            tokens = rearrange(own[:, width : (1 + columns) * width], "n (c d) -> (c n) d", c=columns)
            entries = list(tokens[: num_lr * size.before].split(size.before))
        firsts.append(entries[0])
        for entry, tokens in zip(lr, entries[1:], strict=True):
            entry.append(tokens)
    has_hr = columns and config.lvtc_config.hr_projector_type is not None
    sizes = [size for _, size in starts]
    is_tile = is_multimodal.to(rows.device, copy=True)
    is_tile[is_tile.clone()] = changes.to(rows.device)
    found = ImageTokens(sizes, [size.before for size in sizes], torch.cat(firsts), lr, hr if has_hr else None)
    return StepTiles(is_tile, found)


def _columns(config: InternVLXConfig) -> int:
    """c, 0 without LVTC."""
    lvtc = config.lvtc_config
    growing = [size for size in config.sizes if size.has_lvtc]
    return max((-(-lvtc.num_lr_projectors * size.before // size.after) for size in growing), default=0)
