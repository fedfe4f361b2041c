# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Attention over packed rows without a mask: `attn_implementation="varlen_sdpa"`.

Several samples packed into a row must not see each other. With "sdpa" and "eager", transformers separates them with a
dense mask of L² entries. This attention passes the samples' bounds to torch's variable-length kernel, or calls SDPA
once per sample. Rows that are not packed use "sdpa".
"""

import inspect

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

VARLEN_SDPA = "varlen_sdpa"
HALF = (torch.float16, torch.bfloat16)

# torch 2.10's lacks `scale` and `window_size`, 2.11's `enable_gqa`
_KERNEL_ARGUMENTS = set(inspect.signature(varlen_attn).parameters) if varlen_attn is not None else set()
# of bounds that are in use
_lengths = WeakTensorKeyDictionary()


def has_varlen_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's own variable-length kernel supports the device and dtype."""
    return (
        {"scale", "window_size"} <= _KERNEL_ARGUMENTS
        and device.type == "cuda"
        and not torch.version.hip
        and dtype in HALF
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def varlen_sdpa_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **kwargs,
) -> torch.Tensor | None:
    """For packed rows, the bounds of their samples in the flattened batch, (samples + 1,) int32; else SDPA's mask.

    transformers has already found the samples and put them into `mask_function`: a token that does not see the one
    before it is the first of a sample.
    """
    if attention_mask is not None or allow_is_causal_skip or not q_length == kv_length > 1:
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=allow_is_causal_skip,
            device=device,
            **kwargs,
        )
    row, column = torch.arange(batch_size, device=device)[:, None], torch.arange(1, q_length, device=device)
    goes_on = mask_function(row, torch.zeros_like(row), column, column - 1).expand(batch_size, -1)
    is_first = F.pad(~goes_on, (1, 0), value=True).flatten()
    return F.pad(is_first.nonzero()[:, 0], (0, 1), value=len(is_first)).int()


def varlen_sdpa_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sample: (B, heads, L, width) -> (B, L, heads, width).

    Args:
        attention_mask: the result of `varlen_sdpa_mask`.
        cu_seq_lens_q, max_length_q: bounds of the samples and length of the longest, from the collator or LVTC.
    """
    batch, _, length, width = query.shape
    is_packed = cu_seq_lens_q is not None and length == key.shape[2]
    bounds = cu_seq_lens_q if is_packed else attention_mask
    if bounds is None or bounds.ndim != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    device_type = query.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else query.dtype
    query, key, value = (rearrange(rows, "b h l d -> (b l) h d").to(dtype) for rows in (query, key, value))
    if has_varlen_kernel(query.device, dtype) and not dropout and width % 8 == 0 and width <= 256:
        longest = max_length_q if is_packed and isinstance(max_length_q, int) else len(query)
        window = ((sliding_window or 0) - 1, 0)
        options: dict = {"enable_gqa": True}
        if "enable_gqa" not in _KERNEL_ARGUMENTS:
            groups, options = query.shape[1] // key.shape[1], {}
            key, value = (rows.repeat_interleave(groups, 1) for rows in (key, value))
        bounds = bounds.to(query.device, torch.int32)
        output: torch.Tensor = varlen_attn(  # type: ignore[assignment]
            query, key, value, bounds, bounds, longest, longest, scale=scaling, window_size=window, **options
        )
    else:
        output = _sample_by_sample(module, (query, key, value), bounds, sliding_window, dropout, scaling)
    return output.unflatten(0, (batch, length)), None


@torch.compiler.disable  # lengths differ from row to row, and each would be compiled again
def _sample_by_sample(
    module: nn.Module,
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    bounds: torch.Tensor,
    sliding_window: int | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """(rows, heads, width) queries, keys and values -> (rows, heads, width). The first layer waits for the device."""
    if bounds not in _lengths:
        _lengths[bounds] = bounds.diff().tolist()
    outputs = []
    for sample in zip(*(part.split(_lengths[bounds]) for part in rows), strict=True):
        query, key, value = (rearrange(part, "l h d -> 1 h l d") for part in sample)
        mask, length = None, len(sample[0])
        if sliding_window is not None and length > sliding_window:
            mask = query.new_ones(1, 1, length, length, dtype=torch.bool).tril()
            mask = mask.triu(1 - sliding_window)
        outputs.append(sdpa_attention_forward(module, query, key, value, mask, dropout, scaling)[0][0])
    return torch.cat(outputs)


if VARLEN_SDPA not in AttentionInterface().valid_keys():  # a checkpoint's copy of this file must not replace it
    AttentionInterface.register(VARLEN_SDPA, varlen_sdpa_forward)
    AttentionMaskInterface.register(VARLEN_SDPA, varlen_sdpa_mask)
