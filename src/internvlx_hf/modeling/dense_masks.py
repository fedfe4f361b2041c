# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Memory of the dense masks with which "sdpa" and "eager" attention separate the samples of a packed row."""

from .configuration_internvlx import InternVLXConfig
from .lvtc_masks import attention_types

# attention implementations that separate packed samples with a mask of (L, L)
DENSE_MASKS = ("sdpa", "eager")


def dense_mask_bytes(config: InternVLXConfig, length: int, expanded_length: int, itemsize: int = 1) -> int:
    """Bytes of all masks that "sdpa" and "eager" hold during the forward of a packed row.

    Args:
        length, expanded_length: L and L₂, tokens of the row before and after LVTC's expansion.
        itemsize: bytes per entry: 1 for "sdpa" (bool), the size of the model's dtype for "eager".
    """
    types = attention_types(config.text_config)
    k = [*config.boundaries, len(types)][0]
    return itemsize * (len(set(types[:k])) * length**2 + len(set(types[k:])) * expanded_length**2)
