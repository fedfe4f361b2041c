# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The masks of LVTC's stages, made by transformers from each stage's [`Layout`], whose `rows` are read only here."""

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.utils.generic import is_flash_attention_requested

from .configuration_internvlx import InternVLXConfig
from .layout import Layout, Masks, Rows, is_static, read_layout
from .lvtc_layout import Plan, lay_out
from .outputs import CACHE

MASK_FUNCTIONS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


def attention_types(text_config: PretrainedConfig) -> list[str]:
    """Attention type of every layer, as transformers' own models choose it."""
    if getattr(text_config, "layer_types", None):
        return text_config.layer_types
    sliding = getattr(text_config, "sliding_window", None) is not None
    return ["sliding_attention" if sliding else "full_attention"] * text_config.num_hidden_layers


def make_masks(
    text_config: PretrainedConfig, plan: Plan, inputs_embeds: torch.Tensor, cache: Cache | None
) -> list[Masks]:
    """The masks of all stages."""
    stages = zip(plan.split(range(text_config.num_hidden_layers)), plan.layouts, strict=True)
    return [stage_masks(text_config, *stage, inputs_embeds, cache) for stage in stages]


def stage_masks(
    text_config: PretrainedConfig, layers: range, layout: Layout, inputs_embeds: torch.Tensor, cache: Cache | None
) -> Masks:
    """Masks of the layers of a stage, each sized for the cache of the first layer of its attention type."""
    types, mask = attention_types(text_config), layout.mask
    if isinstance(mask, dict):  # made ahead by `decoding_masks`
        return {kind: mask.get(f"{layers.start}_{kind}", mask.get(kind)) for kind in types}
    first = {types[i]: i for i in reversed(layers)}
    is_flash, is_padded = is_flash_attention_requested(text_config), layout.rows in (Rows.PADDED, Rows.PADDED_LEFT)
    if is_flash and is_padded:
        padding = {kind: _padding_mask(layer, layout, cache) for kind, layer in first.items()}
        if layout.rows is Rows.PADDED or is_static(cache):
            return padding  # type: ignore[return-value]
        return {kind: _padding_bounds(visible, layout.positions.shape[1]) for kind, visible in padding.items()}
    arguments = {
        "config": text_config,
        "inputs_embeds": inputs_embeds.new_empty(*layout.positions.shape, 0),
        # with a static cache, flash attention needs to know which columns are in use
        "attention_mask": mask if layout.rows is not Rows.WHOLE or (is_flash and is_static(cache)) else None,
        "position_ids": layout.numbers,
        # where padding is known, transformers need not wait for the device to find out
        "allow_is_causal_skip": not is_padded,
        CACHE: cache,
    }
    return {kind: MASK_FUNCTIONS[kind](layer_idx=layer, **arguments) for kind, layer in first.items()}


def _padding_mask(layer: int, layout: Layout, cache: Cache | None) -> torch.Tensor:
    """Flash attention's mask: which columns that a layer's cache returns are visible, (B, columns) bool."""
    columns = layout.mask.shape[1]
    if cache is not None:
        columns, _offset = cache.get_mask_sizes(layout.positions.shape[1], layer)
    return layout.mask[:, -columns:].to(layout.positions.device, torch.bool)


def _padding_bounds(visible: torch.Tensor, queries: int) -> dict:
    """Sample bounds that replace flash attention's mask of left padding: each row is two samples, padding and tokens.

    With a mask, every layer would wait twice for the device and copy keys and values without the padding.
    """
    bounds: dict[str, torch.Tensor | int | None] = {"attention_mask": None}
    for side, length in (("q", queries), ("k", visible.shape[1])):
        padding = (length - visible.sum(1)).clamp(min=0)
        ends = torch.stack([padding, length - padding], dim=1).flatten().cumsum(0)
        bounds |= {f"cu_seq_lens_{side}": F.pad(ends, (1, 0)).int(), f"max_length_{side}": length}
    return bounds


def decoding_masks(
    config: InternVLXConfig, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache
) -> Masks:
    """Masks of all stages for a step on text, made ahead of a compiled forward; later stages' keys begin with their
    layer.
    """
    layout = read_layout(config, inputs_embeds, attention_mask, None, cache, {})
    plan = lay_out(config, layout, None, cache)
    stages = zip([0, *plan.boundaries], make_masks(config.text_config, plan, inputs_embeds, cache), strict=True)
    return {f"{start}_{kind}" if start else kind: mask for start, masks in stages for kind, mask in masks.items()}
