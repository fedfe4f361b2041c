# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Attention's inputs for a batch: a mask only where one is needed, and the bounds of packed samples once per forward.

SDPA and flash attention read None as "causal, nothing hidden" and run their fast kernels for it. Right padding needs no
mask: no token sees what comes after it. Symbols: B samples, L their padded length.
"""

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig
from transformers.cache_utils import Cache
from transformers.utils import is_tracing
from transformers.utils.generic import is_flash_attention_requested

from .varlen_attention import VARLEN_SDPA

# implementations, besides flash attention, that read None as a causal mask
MASKLESS = ("sdpa", VARLEN_SDPA)


def runs_without_mask(text_config: PretrainedConfig) -> bool:
    """Whether the language model's attention has a causal kernel that needs no mask."""
    is_known = text_config._attn_implementation in MASKLESS or is_flash_attention_requested(text_config)
    return is_known and getattr(text_config, "is_causal", True)


def is_static(cache: Cache | None) -> bool:
    """Whether the cache returns all its columns, used or not, and keeps its length on the device."""
    return bool(getattr(cache, "is_compileable", False))


def is_empty(cache: Cache | None) -> bool:
    return cache is None or (not is_static(cache) and cache.get_seq_length() == 0)


def read_on_host(*numbers: torch.Tensor) -> list[int]:
    """Read scalars from one device with a single synchronisation."""
    return torch.stack([number.long() for number in numbers]).tolist()


def is_prefix(flags: torch.Tensor) -> torch.Tensor:
    """Scalar bool: whether each row of (B, L) bool `flags` is True up to some column and False after it."""
    return (flags[:, 1:] <= flags[:, :-1]).all()


def drop_right_padding(
    text_config: PretrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Replace `attention_mask` and `position_ids` by None if causal attention at positions 0…L−1 gives the same result.

    The check waits for the device once, instead of transformers' own check.
    """
    shape = inputs_embeds.shape[:2]
    given = attention_mask, position_ids
    if attention_mask is None or not isinstance(attention_mask, torch.Tensor) or attention_mask.shape != shape:
        return given
    if not is_empty(cache) or not runs_without_mask(text_config):
        return given
    if is_tracing(attention_mask) or attention_mask.is_meta:
        return given
    visible = attention_mask.bool()
    is_plain = is_prefix(visible)
    if position_ids is not None:
        column = torch.arange(shape[1], device=visible.device)
        is_plain &= ((position_ids.to(visible.device) == column) | ~visible).all()
    return (None, None) if is_plain else given


def sample_bounds(
    text_config: PretrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
) -> dict:
    """Bounds of the samples in a single row, as flash attention takes them. Without them, every layer reads the positions.

    Args:
        position_ids: (1, L); each sample begins at their minimum. None for a single sample.

    Returns:
        `cu_seq_lens_q`, `cu_seq_lens_k` (samples + 1,), `max_length_q`, `max_length_k`; empty if the attention needs none.
    """
    (batch, length), device = inputs_embeds.shape[:2], inputs_embeds.device
    if batch > 1 or attention_mask is not None or not is_empty(cache):
        return {}
    if not is_flash_attention_requested(text_config) or is_tracing(inputs_embeds) or inputs_embeds.is_meta:
        return {}
    if position_ids is None:
        bounds, longest = torch.arange(2, device=device, dtype=torch.int32) * length, length
    else:
        column = torch.arange(length, device=device)
        positions = position_ids.to(device).flatten()
        starts = (positions == positions.min()) | (column == 0)
        lengths = column + 1 - torch.where(starts, column, 0).cummax(0).values
        samples, longest = read_on_host(starts.sum(), lengths.max())
        bounds = torch.where(starts, column, length).sort().values[:samples]
        bounds = F.pad(bounds, (0, 1), value=length).int()
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
