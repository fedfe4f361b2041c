# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The projector of LLaVA-1.5 (arXiv 2310.03744)."""

import torch
from transformers import PretrainedConfig

from .pixel_shuffle import patch_windows
from .projector import MLP, Projector, tile_counts


class LinearProjector(MLP, Projector):
    """A two-layer MLP of the patches of a window. With windows of one patch, LLaVA's, every patch becomes a token: N =
    S.
    """

    projector_type = "linear"
    zero_parameters = ("linear_2.*",)

    def __init__(self, config: PretrainedConfig, side: int):
        super().__init__(config, config.vision_config.hidden_size * side**2, config.text_config.hidden_size)
        self.side = side

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(patch_windows(features, self.side).flatten(-2))

    @classmethod
    def peak_bytes(cls, config: PretrainedConfig, side: int, element_size: int) -> int:
        patches, tokens = tile_counts(config, side)
        c, d = config.vision_config.hidden_size, config.text_config.hidden_size
        windows = patches * c if side > 1 else 0  # a view of the features where windows are single patches
        return element_size * (windows + 4 * tokens * d)
