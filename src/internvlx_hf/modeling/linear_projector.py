# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The projector of LLaVA-1.5 (arXiv 2310.03744)."""

import torch
from transformers import PretrainedConfig

from .projector import MLP, Projector, tile_counts
from .setting_checks import require


class LinearProjector(MLP, Projector):
    """A two-layer MLP: every patch becomes a token, N = S."""

    projector_type = "linear"
    zero_parameters = ("linear_2.*",)

    def __init__(self, config: PretrainedConfig, side: int):
        super().__init__(config, config.vision_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features[:, 1:])

    @classmethod
    def check_config(cls, config: PretrainedConfig, side: int) -> None:
        require(
            side == 1,
            f"The 'linear' projector keeps every patch, which needs a downsample ratio of 1, got {1 / side}.",
        )

    @classmethod
    def peak_bytes(cls, config: PretrainedConfig, side: int, element_size: int) -> int:
        patches, tokens = tile_counts(config, side)
        return element_size * 2 * (patches + tokens) * config.text_config.hidden_size
