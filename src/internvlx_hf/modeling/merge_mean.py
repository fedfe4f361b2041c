# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The default rule: the mean of every block, as in Table 4's forward compression."""

import torch
from einops import reduce


def merge_mean(tiles: torch.Tensor, side: int) -> torch.Tensor:
    """(tiles, N², D) -> (tiles, (N / s)², D)."""
    grid = int(tiles.shape[1] ** 0.5) // side
    return reduce(tiles, "t (h sh w sw) d -> t (h w) d", "mean", h=grid, w=grid, sh=side, sw=side)
