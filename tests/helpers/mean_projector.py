"""A sixth type of projector, as somebody would add it: this file in `modeling`, and its class in the list of `projectors`."""

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers import initialization as init

from .pixel_shuffle import patch_windows
from .projector import Projector, tile_counts
from .setting_checks import require


class MeanProjector(Projector):
    """The mean of each window through a linear layer and a scale."""

    projector_type = "mean"
    zero_parameters = ("linear.weight",)
    is_whole = True

    def __init__(self, config: PretrainedConfig, side: int):
        super().__init__()
        width = config.text_config.hidden_size
        self.side = side
        self.linear = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.scale = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        init.normal_(self.scale, 3.0, 0.2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(patch_windows(features, self.side).mean(2)) * self.scale

    @classmethod
    def check_config(cls, config: PretrainedConfig, side: int) -> None:
        require(side > 1, "The 'mean' projector of a single patch is 'linear'.")

    @classmethod
    def peak_bytes(cls, config: PretrainedConfig, side: int, element_size: int) -> int:
        patches, tokens = tile_counts(config, side)
        c, d = config.vision_config.hidden_size, config.text_config.hidden_size
        return element_size * (patches * c + tokens * (c + 2 * d))
