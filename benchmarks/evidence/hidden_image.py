"""Attention of text to an image, masked in some layers: what layers read of it, and what a training does without them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from internvlx_hf import InternVLXForConditionalGeneration


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
        is_image = kwargs["input_ids"] == config.image_token_id
        if is_image.any():  # not while an answer is generated
            places["tokens"] = is_image.sum(1)
            mask = kwargs.get("attention_mask")
            is_before = is_image.cumsum(1) == 0
            places["before"] = (is_before if mask is None else is_before & mask.bool()).sum(1)

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
