# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Windows of patches, pixel shuffle, and InternVL2's projector, which builds on it."""

import torch
from einops import rearrange
from torch import nn
from transformers import PretrainedConfig

from .projector import Projector, activation, tile_counts


def partition_windows(patches: torch.Tensor, side: int) -> torch.Tensor:
    """Partition a grid of patches into windows (paper, section 3.1).

    Args:
        patches: (B, H, W, C), rows and columns of patches.
        side: M, the window's side; must divide H and W.

    Returns:
        (B, H/M, W/M, M², C): windows in raster order, patches of a window in raster order.
    """
    return rearrange(patches, "b (h mh) (w mw) c -> b h w (mh mw) c", mh=side, mw=side)


def patch_windows(features: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 1 + S², C) tower features, CLS first -> (B, N², M², C) windows of patches.

    With the last two dimensions flattened, it is InternVL's pixel shuffle (`ps_version` v2).
    """
    grid = int((features.shape[1] - 1) ** 0.5)
    patches = features[:, 1:].unflatten(1, (grid, grid))
    return partition_windows(patches, side).flatten(1, 2)


class InternVL2MLP(nn.Module):
    """InternVL2's projector after the pixel shuffle: LayerNorm, linear, GELU, linear; (..., M²·C) -> (..., D).

    Parameters are named as in transformers' native InternVL.
    """

    def __init__(self, config: PretrainedConfig, side: int):
        super().__init__()
        in_features, out_features = config.vision_config.hidden_size * side**2, config.text_config.hidden_size
        self.layer_norm = nn.LayerNorm(in_features)
        self.linear_1 = nn.Linear(in_features, out_features)
        self.act = activation(config)
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(self.layer_norm(windows))))


class PixelShuffleProjector(InternVL2MLP, Projector):
    """InternVL2's projector: (B, 1 + S², C) features with CLS first -> (B, N², D) tokens; CLS is dropped."""

    projector_type = "pixel_shuffle"
    zero_parameters = ("linear_2.*",)

    def __init__(self, config: PretrainedConfig, side: int):
        super().__init__(config, side)
        self.side = side

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(patch_windows(features, self.side).flatten(-2))

    @classmethod
    def peak_bytes(cls, config: PretrainedConfig, side: int, element_size: int) -> int:
        patches, tokens = tile_counts(config, side)
        c, d = config.vision_config.hidden_size, config.text_config.hidden_size
        return element_size * (2 * patches * c + 2 * tokens * d)
