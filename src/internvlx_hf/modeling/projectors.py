# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The projectors that the paper's Figure 7 compares PVTC with, and the choice among all of them.

Each takes (B, 1 + S², C) features of the vision tower, CLS first, and gives (B, N², D) tokens in raster order.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers.activations import ACT2FN

from .configuration_internvlx import InternVLXConfig, window_size
from .pixel_shuffle import PixelShuffleProjector, partition_windows
from .pvtc import PVTCProjector


def _patch_grid(features: torch.Tensor) -> torch.Tensor:
    """(B, 1 + S², C), CLS first -> (B, C, S, S)."""
    grid = int((features.shape[1] - 1) ** 0.5)
    return rearrange(features[:, 1:], "b (h w) c -> b c h w", h=grid)


class MLP(nn.Module):
    """Linear, GELU, linear: (..., in_features) -> (..., out_features)."""

    def __init__(self, config: InternVLXConfig, in_features: int, out_features: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.act = ACT2FN[config.projector_config.hidden_act]
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(hidden_states)))


class LinearProjector(MLP):
    """LLaVA-1.5's two-layer MLP (arXiv 2310.03744): every patch becomes a token, N = S."""

    def __init__(self, config: InternVLXConfig, side: int):
        super().__init__(config, config.vision_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features[:, 1:])


class LDPv2Projector(nn.Module):
    """MobileVLM V2's downsampling projector (arXiv 2402.03766): MLP, average pooling, depthwise convolution + residual."""

    def __init__(self, config: InternVLXConfig, side: int):
        super().__init__()
        width = config.text_config.hidden_size
        self.mlp = MLP(config, config.vision_config.hidden_size, width)
        self.pool = nn.AvgPool2d(side)
        self.position = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        grid = int((features.shape[1] - 1) ** 0.5)
        pooled = self.pool(rearrange(self.mlp(features[:, 1:]), "b (h w) d -> b d h w", h=grid))
        return rearrange(pooled + self.position(pooled), "b d h w -> b (h w) d")


class TokenPackerProjector(nn.Module):
    """TokenPacker (arXiv 2407.02392): bilinearly downsampled patches query the M² patches of their own window.

    The original takes keys and values from four layers of the tower; here all come from `vision_feature_layer`, so that
    every projector of Figure 7 sees the same features.
    """

    def __init__(self, config: InternVLXConfig, side: int):
        super().__init__()
        width = config.vision_config.hidden_size
        self.side = side
        self.num_heads = config.projector_config.num_heads
        self.query_mlp = MLP(config, width, width)
        self.query_norm = nn.LayerNorm(width)
        self.key_mlp = MLP(config, width, width)
        self.key_norm = nn.LayerNorm(width)
        self.value_mlp = MLP(config, width, width)
        self.value_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.mlp = MLP(config, width, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        patches = _patch_grid(features)
        coarse = F.interpolate(patches, scale_factor=1 / self.side, mode="bilinear")
        tokens = coarse.shape[-2:].numel()
        coarse = rearrange(coarse, "b c h w -> (b h w) 1 c")
        fine = partition_windows(patches.permute(0, 2, 3, 1), self.side).flatten(0, 2)  # [B·N², M², C]
        query = self.query(self.query_norm(self.query_mlp(coarse)))
        key = self.key(self.key_norm(self.key_mlp(fine)))
        value = self.value(self.value_norm(self.value_mlp(fine)))
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # [B·N², 1, C]
        return self.mlp(self.output(seen)).view(len(features), tokens, -1)


PROJECTORS = {
    "pvtc": PVTCProjector,
    "pixel_shuffle": PixelShuffleProjector,
    "linear": LinearProjector,
    "token_packer": TokenPackerProjector,
    "ldpv2": LDPv2Projector,
}


def build_projector(config: InternVLXConfig, projector_type: str, downsample_ratio: float) -> nn.Module:
    """Projector of a type and ratio: (B, 1 + S², C) features, CLS first -> (B, N², D), N = S · downsample_ratio."""
    side = window_size(downsample_ratio, config.patch_grid, "downsample_ratio")
    return PROJECTORS[projector_type](config, side)
