# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""One token of every block, drawn anew in each forward from torch's own generator."""

import torch

from .merge_blocks import blocks_of


def take_random(tiles: torch.Tensor, side: int) -> torch.Tensor:
    """(tiles, N², D) -> (tiles, (N / s)², D)."""
    blocks = blocks_of(tiles, side)  # [tiles, (N / s)², s², D]
    drawn = torch.randint(side**2, (*blocks.shape[:2], 1, 1), device=tiles.device)
    return blocks.take_along_dim(drawn, dim=2).squeeze(2)
