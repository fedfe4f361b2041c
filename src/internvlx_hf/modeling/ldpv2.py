# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The downsampling projector of MobileVLM V2 (arXiv 2402.03766)."""

import torch
from einops import rearrange
from torch import nn
from transformers import PretrainedConfig

from .projector import MLP, Projector, tile_counts


class LDPv2Projector(Projector):
    """MLP, average pooling, and a depthwise convolution with a residual connection."""

    projector_type = "ldpv2"
    zero_parameters = ("mlp.linear_2.*",)

    def __init__(self, config: PretrainedConfig, side: int):
        super().__init__()
        width = config.text_config.hidden_size
        self.mlp = MLP(config, config.vision_config.hidden_size, width)
        self.pool = nn.AvgPool2d(side)
        self.position = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        grid = int((features.shape[1] - 1) ** 0.5)
        pooled = self.pool(rearrange(self.mlp(features[:, 1:]), "b (h w) d -> b d h w", h=grid))
        return rearrange(pooled + self.position(pooled), "b d h w -> b (h w) d")

    @classmethod
    def peak_bytes(cls, config: PretrainedConfig, side: int, element_size: int) -> int:
        patches, tokens = tile_counts(config, side)
        return element_size * 2 * (patches + tokens) * config.text_config.hidden_size
