"""Controls that no configuration of the library has: what a module's gain is not due to."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))
from evidence.hidden_image import hide_image

from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.modeling.pixel_shuffle import PixelShuffleProjector
from internvlx_hf.modeling.pvtc import PVTCLayer

WIDE = 362  # hidden units of a pixel shuffle that has as many parameters as PVTC


class NoAttention(nn.Module):
    """In place of PVTC's attention: queries see no patches, and the residual MLP is all that is left."""

    def forward(self, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(query)


def skip_attention(model: InternVLXForConditionalGeneration) -> None:
    for layer in model.model.multi_modal_projector.modules():
        if isinstance(layer, PVTCLayer):
            layer.attention = NoAttention()


class WidePixelShuffle(PixelShuffleProjector):
    """A pixel shuffle whose MLP has another width inside."""

    def __init__(self, config, side: int, width: int):
        super().__init__(config, side)
        self.linear_1 = nn.Linear(self.linear_1.in_features, width)
        self.linear_2 = nn.Linear(width, self.linear_2.out_features)


def widen(model: InternVLXForConditionalGeneration) -> None:
    narrow = model.model.multi_modal_projector
    model.model.multi_modal_projector = WidePixelShuffle(model.config, narrow.side, WIDE)


def hide_early(model: InternVLXForConditionalGeneration) -> None:
    """Hides the image from the text before layer k, in training and afterwards."""
    from settings import EXPAND_LAYER

    hide_image(model, range(EXPAND_LAYER))


CONTROLS: dict[str, Callable[[InternVLXForConditionalGeneration], None]] = {
    "no attention": skip_attention,
    "wide": widen,
    "hidden": hide_early,
}
