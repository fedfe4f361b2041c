# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Blocks of s x s tokens of a tile, which a rule merges into one token each."""

import torch
from einops import rearrange


def blocks_of(tiles: torch.Tensor, side: int) -> torch.Tensor:
    """(tiles, N², D) -> (tiles, (N / s)², s², D): blocks and the tokens of a block in raster order."""
    grid = int(tiles.shape[1] ** 0.5) // side
    return rearrange(tiles, "t (h a w b) d -> t (h w) (a b) d", h=grid, w=grid, a=side, b=side)
