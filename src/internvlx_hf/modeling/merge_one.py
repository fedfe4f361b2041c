# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""One of every block: its first token."""

import torch

from .merge_blocks import blocks_of


def take_first(tiles: torch.Tensor, side: int) -> torch.Tensor:
    """(tiles, N², D) -> (tiles, (N / s)², D)."""
    return blocks_of(tiles, side)[:, :, 0]
