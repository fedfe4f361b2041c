# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""TokenPacker (arXiv 2407.02392)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers import PretrainedConfig

from .pixel_shuffle import partition_windows
from .projector import MLP, Projector, require_heads, tile_counts

EPSILON = 1e-6  # of the norms, as in TokenPacker's own code


def num_heads(config: PretrainedConfig) -> int:
    """Attention heads: the configured number, or one per 128 channels, as in TokenPacker's own code."""
    return config.projector_config.num_heads or max(1, config.vision_config.hidden_size // 128)


def num_layers(config: PretrainedConfig) -> int:
    """Number of the tower's layers that form keys and values."""
    return len(config.projector_config.token_packer_layers or (config.vision_feature_layer,))


class TokenPackerProjector(Projector):
    """Bilinearly downsampled patches attend to the M² patches of their own window, as in TokenPacker's own code.

    Keys and values come from the same features as the query, or
    from the features of `token_packer_layers`, concatenated.
    """

    projector_type = "token_packer"
    zero_parameters = ("mlp.linear_2.*",)
    takes_layers = True

    def __init__(self, config: PretrainedConfig, side: int):
        super().__init__()
        width = config.vision_config.hidden_size
        self.side = side
        self.num_heads = num_heads(config)
        self.query_linear = nn.Linear(width, width, bias=False)
        self.query_norm = nn.LayerNorm(width, EPSILON)
        self.key_mlp = MLP(config, num_layers(config) * width, width)
        self.key_norm = nn.LayerNorm(width, EPSILON)
        self.value_mlp = MLP(config, num_layers(config) * width, width)
        self.value_norm = nn.LayerNorm(width, EPSILON)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.mlp = MLP(config, width, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor, layers: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        grid = int((features.shape[1] - 1) ** 0.5)
        patches = rearrange(features[:, 1:], "b (h w) c -> b c h w", h=grid)
        coarse = F.interpolate(patches, size=grid // self.side, mode="bilinear")
        tokens = coarse.shape[-2:].numel()
        coarse = rearrange(coarse, "b c h w -> (b h w) 1 c")
        fine = torch.cat([*layers], dim=-1).unflatten(1, (grid, grid)) if layers else patches.permute(0, 2, 3, 1)
        fine = partition_windows(fine, self.side).flatten(0, 2)  # [B·N², M², C], or layers·C
        query = self.query(self.query_norm(self.query_linear(coarse)))
        key = self.key(self.key_norm(self.key_mlp(fine)))
        value = self.value(self.value_norm(self.value_mlp(fine)))
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # [B·N², 1, C]
        return self.mlp(self.output(seen)).view(features.shape[0], tokens, -1)

    @classmethod
    def check_config(cls, config: PretrainedConfig, side: int) -> None:
        require_heads(num_heads(config), cls.projector_type, config.vision_config.hidden_size)

    @classmethod
    def peak_bytes(cls, config: PretrainedConfig, side: int, element_size: int) -> int:
        patches, tokens = tile_counts(config, side)
        c, d = config.vision_config.hidden_size, config.text_config.hidden_size
        joined = 2 * num_layers(config) * patches * c if config.projector_config.token_packer_layers else 0
        return element_size * (6 * patches * c + joined + 2 * tokens * (c + d))
