# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What the rows of a batch hold, with and without LVTC: a mask only where attention needs one, and the bounds of
packed samples.

SDPA and flash attention read None as "causal, nothing hidden" and run their fast kernels for it. Right padding needs
no mask: no token sees what comes after it. Symbols: B samples, L their padded length; "seen" columns are those of
earlier forwards on the same cache.
"""

from dataclasses import dataclass
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids
from transformers.utils import is_tracing
from transformers.utils.generic import is_flash_attention_requested

from .configuration_internvlx import InternVLXConfig
from .engines import runs_in_engine
from .varlen_attention import VARLEN_SDPA

# implementations, besides flash attention, that read None as a causal mask
MASKLESS = ("sdpa", VARLEN_SDPA)
BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# by attention type, "full_attention" or "sliding_attention"; None if the kernel needs no mask, a dict of sample bounds
# if these replace a mask of padding
Masks = dict[str, torch.Tensor | BlockMask | dict | None]


class Rows(IntEnum):
    """What the rows of a batch hold, and so what attention needs to keep their samples apart. A later kind needs no
    less.
    """

    WHOLE = 0  # no padding that a token could see: nothing, but for packed samples
    PADDED_LEFT = 1  # one sample each after its padding: a mask, or bounds
    PADDED = 2  # one sample each, with padding anywhere: a mask
    MASKED = 3  # one sample each, with a mask that nobody has looked at


@dataclass(frozen=True)
class Layout:
    """A prompt in the columns of one stage. Without LVTC, there is one stage.

    Args:
        rows: what they hold.
        positions: (B, L), 0 for padding in stage two; None where the language model counts them.
        mask: (B, seen + L) bool, what may be attended to; None if the rows need none; or finished masks, 4D or by
            attention type.
        bounds: `cu_seq_lens_q` and the like of packed samples, as flash attention takes them.
        numbers: (B, L), each row's place in its sample, where several may be packed into a row of the batch.
    """

    rows: Rows
    positions: Any
    mask: Any
    bounds: dict
    numbers: torch.Tensor | None = None


def runs_without_mask(text_config: PretrainedConfig) -> bool:
    """Whether the language model's attention has a causal kernel that needs no mask."""
    is_known = text_config._attn_implementation in MASKLESS or is_flash_attention_requested(text_config)
    return is_known and getattr(text_config, "is_causal", True)


def is_static(cache: Cache | None) -> bool:
    """Whether the cache returns all its columns, used or not, and keeps its length on the device."""
    return bool(getattr(cache, "is_compileable", False))


def is_empty(cache: Cache | None) -> bool:
    """Whether there are no earlier columns. A static cache counts as filled, since its length is on the device."""
    return cache is None or (not is_static(cache) and cache.get_seq_length() == 0)


def read_on_host(**numbers: torch.Tensor) -> list[SimpleNamespace]:
    """Read scalars, and (S,) tensors, from one device with a single synchronisation: S namespaces, or one."""
    table = torch.stack(torch.broadcast_tensors(*(number.long() for number in numbers.values())), dim=-1)
    rows = table.view(-1, len(numbers)).tolist()
    return [SimpleNamespace(**dict(zip(numbers, row, strict=True))) for row in rows]


def is_prefix(flags: torch.Tensor) -> torch.Tensor:
    """Scalar bool: whether each row of (B, L) bool `flags` is True up to some column and False after it."""
    return (flags[:, 1:] <= flags[:, :-1]).all()


def read_layout(
    config: InternVLXConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
    layer_kwargs: dict,
    will_expand: bool = False,
) -> Layout:
    """The prompt as a caller describes it, in stage one. Right padding is dropped where causal attention suffices.

    Args:
        inputs_embeds: (B, L, D), for its shape and device.
        attention_mask: (B, seen + L), 1 for what may be attended to; or finished masks.
        position_ids: (B, L); they restart at each sample if several are packed into a row. With LVTC, they skip
            padding and restart in each packed sample unless given.
        layer_kwargs: may have `cu_seq_lens_q` and the like.
        will_expand: whether [`lay_out`] will expand the prompt. It simplifies masks itself.

    Raises:
        ValueError: if bounds of packed samples are given for several rows, with LVTC.
    """
    text_config, is_new = config.text_config, is_empty(cache)
    may_drop = is_new and not will_expand and runs_without_mask(text_config)
    if may_drop and _is_right_padded(inputs_embeds, attention_mask, position_ids):
        attention_mask = position_ids = None
    bounds = {name: layer_kwargs[name] for name in BOUNDS if layer_kwargs.get(name) is not None}
    may_be_packed = is_new and attention_mask is None  # a filled cache continues one sample in each row
    if may_be_packed and "cu_seq_lens_q" not in bounds and is_flash_attention_requested(text_config):
        bounds |= _find_bounds(inputs_embeds, position_ids)
    if config.boundaries and not runs_in_engine(config):
        position_ids = _count_positions(
            inputs_embeds, attention_mask, position_ids, cache, bounds.get("cu_seq_lens_q")
        )
    rows = Rows.WHOLE if attention_mask is None else Rows.MASKED
    return Layout(rows, position_ids, attention_mask, bounds, position_ids if may_be_packed else None)


def _is_right_padded(inputs_embeds: torch.Tensor, mask: Any, position_ids: torch.Tensor | None) -> bool:
    """Whether causal attention at positions 0…L−1 gives the same result as the mask and the positions.

    The check waits for the device once, instead of transformers' own check.
    """
    if not isinstance(mask, torch.Tensor) or mask.shape != inputs_embeds.shape[:2] or mask.is_meta or is_tracing(mask):
        return False
    visible = mask.bool()
    is_plain = is_prefix(visible)
    if position_ids is not None:
        column = torch.arange(mask.shape[1], device=mask.device)
        is_plain &= ((position_ids.to(mask.device) == column) | ~visible).all()
    return bool(is_plain)


def _find_bounds(inputs_embeds: torch.Tensor, position_ids: torch.Tensor | None) -> dict:
    """Bounds of the samples in a single row. Without them, every layer of flash attention reads the positions.

    Args:
        position_ids: (1, L); each sample begins at their minimum. None for a single sample.

    Returns:
        `cu_seq_lens_q`, `cu_seq_lens_k` (samples + 1,), `max_length_q`, `max_length_k`; empty for several rows.
    """
    (batch, length), device = inputs_embeds.shape[:2], inputs_embeds.device
    if batch > 1 or is_tracing(inputs_embeds) or inputs_embeds.is_meta:
        return {}
    positions = torch.arange(length) if position_ids is None else position_ids
    bounds, (longest, _) = prepare_fa_kwargs_from_position_ids(positions.to(device))
    return dict(zip(BOUNDS, (*bounds, *[int(longest)] * 2), strict=True))


def _count_positions(
    inputs_embeds: torch.Tensor,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
    starts: torch.Tensor | None,
) -> torch.Tensor:
    """(B, L) positions. `starts` are the bounds of packed samples."""
    (batch, length), device = inputs_embeds.shape[:2], inputs_embeds.device
    if starts is not None and batch > 1:
        raise ValueError(f"`cu_seq_lens_q` needs all samples packed into one row, got {batch} rows.")
    if position_ids is not None:
        positions = position_ids.to(device)
    elif starts is not None:
        column, starts = torch.arange(length, device=device), starts.to(device).long()
        positions = column - starts[torch.searchsorted(starts, column, right=True) - 1]
    elif getattr(attention_mask, "ndim", 0) == 2:
        positions = (attention_mask.to(device).cumsum(-1) - 1).clamp(min=0)[:, -length:]
    else:
        positions = torch.arange(length, device=device) + (0 if cache is None else cache.get_seq_length())
    return positions.expand(batch, -1)
