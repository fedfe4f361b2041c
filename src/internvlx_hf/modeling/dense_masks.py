# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Memory of the dense masks with which "sdpa" and "eager" attention separate the samples of a packed row."""

import torch
from transformers.utils import is_tracing, logging

from .configuration_internvlx import InternVLXConfig
from .lvtc_masks import attention_types
from .varlen_attention import VARLEN_SDPA

logger = logging.get_logger(__name__)

# attention implementations that separate packed samples with a mask of (L, L)
DENSE_MASKS = ("sdpa", "eager")
# those that this process has already warned about
_warned: set[str] = set()


def dense_mask_bytes(config: InternVLXConfig, length: int, expanded_length: int, itemsize: int = 1) -> int:
    """Bytes of all masks that "sdpa" and "eager" hold during the forward of a packed row.

    Args:
        length, expanded_length: L and L₂, tokens of the row before and after LVTC's expansion.
        itemsize: bytes per entry: 1 for "sdpa" (bool), the size of the model's dtype for "eager".
    """
    types = attention_types(config.text_config)
    k = [*config.boundaries, len(types)][0]
    return itemsize * (len(set(types[:k])) * length**2 + len(set(types[k:])) * expanded_length**2)


def describe_dense_masks(config: InternVLXConfig, attention: str, length: int, expanded_length: int, size: int) -> str:
    """First half of a warning or an error about masks of `size` bytes."""
    expanded = "" if not config.boundaries else f", {expanded_length} after LVTC's expansion,"
    return (
        f"`attn_implementation={attention!r}` separates the samples of a packed row of {length} tokens{expanded} with "
        f"dense masks of {size / 2**20:,.1f} MiB"
    )


def warn_about_dense_masks(config: InternVLXConfig, inputs_embeds: torch.Tensor, tiles: int) -> None:
    """Warn once how much memory the masks of a packed row (1, L, D) take, if the attention needs them."""
    attention = config.text_config._attn_implementation
    if attention not in DENSE_MASKS or attention in _warned or is_tracing():
        return
    _warned.add(attention)
    length = inputs_embeds.shape[1]
    expanded_length = length + tiles * (config.expanded_image_seq_length - config.image_seq_length)
    itemsize = 1 if attention == "sdpa" else inputs_embeds.element_size()
    size = dense_mask_bytes(config, length, expanded_length, itemsize)
    masks = describe_dense_masks(config, attention, length, expanded_length, size)
    logger.warning(
        f"{masks}, which grow with the square of the length. Load the model with "
        f"`attn_implementation={VARLEN_SDPA!r}` or 'flash_attention_2', which need none."
    )
