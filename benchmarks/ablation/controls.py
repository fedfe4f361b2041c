"""Controls that no configuration of the library has: what a module's gain is not due to."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

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


def hide_image(model: InternVLXForConditionalGeneration, layers: Sequence[int]) -> list:
    """Mask the attention of text to visual tokens in some layers of the language model; returns the hooks' handles.

    The columns of a layer that its mask does not hide are, in both stages of LVTC, a few of text, those of the image, and text.
    A masked column takes no softmax mass.
    """
    model.set_attn_implementation({"text_config": "eager"})  # the only one whose masks are never left out
    places: dict[str, torch.Tensor] = {}
    config = model.config
    ratio = config.expanded_image_seq_length / config.image_seq_length

    def look(module, args, kwargs) -> None:
        ids = kwargs["input_ids"]
        is_image, is_padding = ids == config.image_token_id, ids == config.text_config.pad_token_id
        if is_image.any():  # not while an answer is generated
            places["tokens"] = is_image.sum(1)
            places["before"] = (~is_padding & (is_image.cumsum(1) == 0)).sum(1)

    def hide(index: int):
        def hook(layer, args, kwargs):
            is_expanded = config.lvtc_config is not None and index >= config.lvtc_config.expand_layer
            tokens = (places["tokens"] * ratio).round() if is_expanded else places["tokens"]
            return args, kwargs | {"attention_mask": without_image(kwargs["attention_mask"], places["before"], tokens)}

        return hook

    decoder = model.model.language_model.layers
    handles = [decoder[index].register_forward_pre_hook(hide(index), with_kwargs=True) for index in layers]
    return [model.register_forward_pre_hook(look, with_kwargs=True), *handles]


def without_image(mask: torch.Tensor, before: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A mask (B, 1, Q, K), finite minimum where hidden, that also hides the image from text.

    Its columns are the `tokens` (B,) that follow the first `before` (B,) visible ones.
    """
    hidden = torch.finfo(mask.dtype).min
    seen = mask[:, 0, -1] > hidden / 2  # [B, K]
    number = seen.cumsum(-1) - before[:, None]
    image = seen & (number > 0) & (number <= tokens[:, None])
    text = ~image[:, -mask.shape[2] :]
    return mask.masked_fill(image[:, None, None] & text[:, None, :, None], hidden)


@contextmanager
def knocked_out(model: InternVLXForConditionalGeneration, layer: int) -> Iterator[None]:
    """Within it, text does not see the image from `layer` on."""
    handles = hide_image(model, range(layer, len(model.model.language_model.layers)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
