# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of the language model for a prompt and an answer. FLOPs of the tiles are measured (`measure`).

FLOPs are counted as by torch's `FlopCounterMode`: two for each multiplication of a matrix product or convolution, none
for norms, activations and softmax. Attention counts in full, L queries times L keys, although causal kernels skip half
of it. Angles of rotary embeddings, which some versions of transformers compute by a matrix product, are not counted.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from .sizes import Sizes, TextSizes

if TYPE_CHECKING:
    from ..modeling import InternVLXConfig

STAGES = STAGE_ONE, STAGE_TWO, STAGE_THREE = tuple(f"language_model.stage_{name}" for name in ("one", "two", "three"))


def linear(rows: int, *widths: int) -> int:
    """FLOPs of `rows` rows through linear layers from one width to the next."""
    return sum(2 * rows * before * after for before, after in pairwise(widths))


def attention(queries: int, keys: int, width: int) -> int:
    """FLOPs of scores and weighted sums; `width` is that of all heads together."""
    return 2 * linear(queries, width, keys)


def stages(model: "Sizes | InternVLXConfig") -> dict[str, range]:
    """The language model's layers by stage, two or three; where tiles keep their tokens, all are in stage one."""
    n = model.text_config.num_hidden_layers
    ends = [0, *(model.boundaries or [n]), n]
    return {stage: range(*layers) for stage, layers in zip(STAGES, pairwise(ends), strict=False)}


def prefill_flops(sizes: Sizes, lengths: Sequence[int]) -> dict[str, int]:
    """FLOPs of the language model for a prompt of `lengths` tokens in its stages, with the head on the last token."""
    flops = {}
    for (stage, layers), length in zip(stages(sizes).items(), lengths, strict=True):
        flops[stage] = _layer_flops(sizes.text_config, layers, length, len(layers) * length**2)
    return flops | {"lm_head": head_flops(sizes)}


def decode_flops(sizes: Sizes, lengths: Sequence[int], steps: int) -> int:
    """FLOPs of the language model and its head for `steps` more tokens, one at a time with a dynamic cache."""
    text, pairs = sizes.text_config, 0
    for layers, length in zip(stages(sizes).values(), lengths, strict=True):
        sliding = len(set(layers) & set(text.sliding_layers))
        for count, slides in ((sliding, True), (len(layers) - sliding, False)):
            if count:
                pairs += count * sum(cached_tokens(text, slides, seen) + 1 for seen in range(length, length + steps))
    return _layer_flops(text, range(text.num_hidden_layers), steps, pairs) + steps * head_flops(sizes)


def head_flops(sizes: Sizes) -> int:
    return linear(1, sizes.text_config.hidden_size, sizes.text_config.vocab_size)


def cached_tokens(text: TextSizes, slides: bool, seen: int) -> int:
    """Tokens that a layer keeps in a dynamic cache: all, or a sliding window minus the next token."""
    return min(seen, text.sliding_window - 1) if slides and text.sliding_window is not None else seen


def _layer_flops(text: TextSizes, layers: range, length: int, pairs: int) -> int:
    """FLOPs of `length` rows through each of the layers, with `pairs` pairs of query and key in attention."""
    d, rows = text.hidden_size, len(layers) * length
    width, kv_width = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    projections = linear(rows, d, width + 2 * kv_width) + linear(rows, width, d)
    return projections + _mlp_flops(text, layers, length) + attention(1, pairs, width)


def _mlp_flops(text: TextSizes, layers: range, length: int) -> int:
    d, experts = text.hidden_size, text.experts
    routed = 0 if experts is None else len(set(layers) & set(experts.layers)) * length
    flops = 3 * linear(len(layers) * length - routed, d, text.intermediate_size)
    if experts is None:
        return flops
    return flops + linear(routed, d, experts.count) + 3 * linear(routed * experts.per_token, d, experts.width)
