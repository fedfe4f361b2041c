# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Memory of a model in bytes: its cache exactly, the peak of a prefill as an estimate.

The estimate counts the tensors that this package and transformers hold at the same time in each phase of a forward
without gradients: one prompt, logits of its last token, and an attention kernel that never holds the L x L scores
(sdpa, flash attention). The allocator's rounding, the kernels' workspaces and the CUDA context are not included.
"""

from collections.abc import Sequence

from .flops import cached_tokens, stages
from .sizes import Sizes

# tensors of the layer's width that are alive per expert of a token: its input, its output, that times its weight,
# reordered
EXPERT_ROWS = 4
# tensors of the MLP's width that are alive at once: activated gate, up and their product; Phi3 computes gate and up
# jointly
MLP_ROWS = {"phi3": 4}


def cache_bytes(sizes: Sizes, lengths: Sequence[int], element_size: int) -> int:
    """Bytes of keys and values in a dynamic cache that has seen `lengths` tokens in its stages."""
    return sum(_cache_bytes_by_stage(sizes, lengths, element_size).values())


def _cache_bytes_by_stage(sizes: Sizes, lengths: Sequence[int], element_size: int) -> dict[str, int]:
    text = sizes.text_config
    a_token = 2 * text.num_key_value_heads * text.head_dim * element_size
    return {
        stage: a_token * sum(cached_tokens(text, layer in text.sliding_layers, length) for layer in layers)
        for (stage, layers), length in zip(stages(sizes).items(), lengths, strict=True)
    }


def activation_bytes(sizes: Sizes, tiles: int, lengths: Sequence[int], element_size: int) -> int:
    """Estimated peak memory of a prefill in bytes, with the cache and without the weights.

    Args:
        tiles: tiles of all images in the prompt.
        lengths: tokens of the prompt in each stage.
        element_size: bytes per element.
    """
    cache = _cache_bytes_by_stage(sizes, lengths, element_size)
    kept, encoding = (tiles * each for each in sizes.tile_bytes[element_size])
    embeddings = lengths[0] * sizes.text_config.hidden_size * element_size
    phases, filled = [encoding], 0
    for (stage, layers), length in zip(stages(sizes).items(), lengths, strict=True):
        filled += cache[stage]
        if layers:
            phases.append(kept + embeddings + filled + length * _row_bytes(sizes, element_size))
    return max(phases)


def _row_bytes(sizes: Sizes, e: int) -> int:
    """Bytes per token at a layer's widest point: the MLP, the layer's input, residual and norm, and the stage's
    input.
    """
    text = sizes.text_config
    inputs = 4 if sizes.boundaries else 3
    width = MLP_ROWS.get(text.model_type, 3) * text.intermediate_size
    if (experts := text.experts) is not None:
        routed = experts.per_token * max(EXPERT_ROWS * text.hidden_size, text.hidden_size + 4 * experts.width)
        width = routed if len(experts.layers) == text.num_hidden_layers else max(width, routed)
    return e * (width + inputs * text.hidden_size + 2 * text.head_dim)  # and the rotary angles
