# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The control: zeros in the place of the merged tokens, so that later layers know no more than that there was a
tile.
"""

import torch


def knock_out(tiles: torch.Tensor, side: int) -> torch.Tensor:
    """(tiles, N², D) -> zeros (tiles, (N / s)², D)."""
    return torch.zeros_like(tiles[:, :: side**2])
