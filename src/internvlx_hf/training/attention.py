# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Choosing the attention for packed rows, and checking the masks that it needs."""

import torch
from transformers import TrainingArguments
from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK, lazy_import_flash_attention
from transformers.utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_kernels_available,
    logging,
)

from ..modeling import InternVLXConfig
from ..modeling.lvtc_masks import attention_types
from ..modeling.varlen_attention import HALF, VARLEN_SDPA, has_varlen_kernel
from .arguments import DataArguments, ModelArguments
from .run_data import RunData, longest_batch

logger = logging.get_logger(__name__)

# attention implementations that separate packed samples with a mask of (L, L)
DENSE_MASKS = ("sdpa", "eager")


def packed_attention(device: torch.device, dtype: torch.dtype, dropout: float = 0.0) -> str:
    """The fastest attention on this device that needs no mask for packed rows.

    In order: installed flash attention; torch's variable-length kernel; flash attention through `kernels`; SDPA once
    per sample, which "varlen_sdpa" uses where the kernel does not run.

    Args:
        dtype: dtype in which attention computes.
        dropout: dropout of the attention weights (default: 0), which Flash Attention 3 does not support.
    """
    if device.type != "cuda" or dtype not in HALF:
        return VARLEN_SDPA
    if is_flash_attn_3_available() and not dropout:
        return "flash_attention_3"
    if is_flash_attn_2_available():
        return "flash_attention_2"
    kernel = FLASH_ATTN_KERNEL_FALLBACK["flash_attention_2"]
    if not has_varlen_kernel(device, dtype) and is_kernels_available() and _loads(kernel):
        return kernel
    return VARLEN_SDPA


def _loads(kernel: str) -> bool:
    """Whether `kernels` can load the kernel for this device and this torch, if necessary from the Hub."""
    try:
        lazy_import_flash_attention(kernel)
    except Exception as error:  # the Hub, the network and the kernel's code raise errors of many types
        logger.warning(f"{kernel} cannot be loaded, so attention runs on {VARLEN_SDPA!r}: {error}")
        return False
    return True


def dense_mask_bytes(config: InternVLXConfig, length: int, expanded_length: int, itemsize: int = 1) -> int:
    """Bytes of all masks that "sdpa" and "eager" hold during the forward of a packed row.

    Args:
        length, expanded_length: L and L₂, tokens of the row before and after LVTC's expansion.
        itemsize: bytes per entry: 1 for "sdpa" (bool), the size of the model's dtype for "eager".
    """
    types = attention_types(config.text_config)
    k = [*config.boundaries, len(types)][0]
    return itemsize * (len(set(types[:k])) * length**2 + len(set(types[k:])) * expanded_length**2)


def check_masks(config: InternVLXConfig, attention: str, lengths: tuple[int, int], itemsize: int, limit: int) -> None:
    """Warn of the masks that packed rows need with the requested attention.

    Args:
        lengths: tokens of the longest row before and after LVTC's expansion.
        itemsize: bytes per entry of the embeddings.
        limit: largest size of the masks in bytes.

    Raises:
        ValueError: if the masks are larger.
    """
    if attention not in DENSE_MASKS:
        return
    size = dense_mask_bytes(config, *lengths, itemsize=1 if attention == "sdpa" else itemsize)
    expanded = f", {lengths[1]} after LVTC's expansion," if config.boundaries else ""
    masks = (
        f"`attn_implementation={attention!r}` separates the samples of a packed row of {lengths[0]} tokens{expanded} "
        f"with dense masks of {size / 2**20:,.1f} MiB"
    )
    if size > limit:
        raise ValueError(
            f"{masks}, more than `max_mask_bytes`={limit}. Leave `attn_implementation` unset or name one that needs "
            f"no mask ({VARLEN_SDPA!r}, or 'flash_attention_2' where flash-attn is installed), lower `packing_tokens` "
            "or the batch size (a batch's rows become one), or raise `max_mask_bytes`."
        )
    logger.warning(f"{masks}. {VARLEN_SDPA!r} and flash attention need none.")


def choose_attention(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainingArguments,
    data: RunData,
    config: InternVLXConfig,
) -> str | None:
    """The attention of a run: the requested one, or for packed rows by default the fastest that needs no mask.

    Raises:
        ValueError: if its masks take more than `max_mask_bytes`.
    """
    requested = model_arguments.attn_implementation
    if not data_arguments.packing_tokens:
        return requested
    dtype = config.dtype or "float32" if model_arguments.dtype == "auto" else model_arguments.dtype
    weights = getattr(torch, str(dtype).removeprefix("torch."))
    if requested is None:
        mixed = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else weights
        return packed_attention(arguments.device, mixed, getattr(config.text_config, "attention_dropout", 0.0))
    # in mixed precision, trained parameters are in float32
    itemsize = 4 if arguments.bf16 or arguments.fp16 else weights.itemsize
    lengths = longest_batch(data, arguments.train_batch_size, config)
    check_masks(config, requested, lengths, itemsize, data_arguments.max_mask_bytes)
    return requested
