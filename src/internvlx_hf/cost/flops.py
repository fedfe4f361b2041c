# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of a forward, module by module, from the configuration alone.

A FLOP is what torch's `FlopCounterMode` counts: two for each multiplication of a matrix product or a convolution, none for
norms, activations and softmax. Attention is counted in full, L queries times L keys, though causal kernels skip half of it.
The angles of rotary embeddings, which some versions of transformers form by a matrix product, are left out.

Symbols as in the paper: S patches a side of a tile, M window, N = S / M tokens a side, C and D width of the vision tower
and of the language model, k the expand layer.
"""

import json
from collections import Counter
from functools import lru_cache
from itertools import pairwise

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModel, PretrainedConfig

from ..modeling import InternVLXConfig
from ..modeling.configuration_internvlx import window_size
from ..modeling.lvtc_stages import attention_types

STAGE_ONE, STAGE_TWO = "language_model.stage_one", "language_model.stage_two"


def linear(rows: int, *widths: int) -> int:
    """Of `rows` rows through linear layers from one width to the next."""
    return sum(2 * rows * before * after for before, after in pairwise(widths))


def attention(queries: int, keys: int, width: int) -> int:
    """Of scores and weighted sums, `width` being that of all heads together."""
    return 2 * linear(queries, width, keys)


def tile_flops(config: InternVLXConfig) -> dict[str, int]:
    """FLOPs of one tile by module: the vision tower and every projector; n tiles take n times as many."""
    flops = {"vision_tower": vision_flops(config.vision_config)}
    flops["multi_modal_projector"] = projector_flops(
        config, config.projector_config.projector_type, config.downsample_ratio
    )
    lvtc = config.lvtc_config
    if lvtc is not None:
        for i in range(lvtc.num_lr_projectors - 1):
            lr = projector_flops(config, lvtc.lr_projector_type, config.downsample_ratio)
            flops[f"lvtc.lr_projectors.{i}"] = lr
        if lvtc.hr_projector_type is not None:
            flops["lvtc.hr_projector"] = projector_flops(config, lvtc.hr_projector_type, lvtc.downsample_ratio)
    return flops


def vision_flops(vision: PretrainedConfig) -> int:
    """FLOPs of the vision tower on one tile. A tower other than `internvl_vision` is run once, without memory."""
    if vision.model_type != "internvl_vision":
        return _measured_vision_flops(vision.model_type, vision.to_json_string(use_diff=False))
    (height, width), (patch_height, patch_width) = vision.image_size, vision.patch_size
    patches, c = (height // patch_height) * (width // patch_width), vision.hidden_size
    tokens = 1 + patches
    layer = linear(tokens, c, 3 * c) + attention(tokens, tokens, c) + linear(tokens, c, c)
    layer += linear(tokens, c, vision.intermediate_size, c)
    return linear(patches, vision.num_channels * patch_height * patch_width, c) + vision.num_hidden_layers * layer


@lru_cache
def _measured_vision_flops(model_type: str, json_config: str) -> int:
    config = CONFIG_MAPPING[model_type].from_dict(json.loads(json_config))
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    with torch.device("meta"), torch.no_grad():
        tower = AutoModel.from_config(config, attn_implementation="eager").eval()
        with FlopCounterMode(display=False) as counter:
            tower(pixel_values=torch.zeros(1, getattr(config, "num_channels", 3), size, size))
    return counter.get_total_flops()


def projector_flops(config: InternVLXConfig, projector_type: str, downsample_ratio: float) -> int:
    """FLOPs of a projector on the (1, 1 + S², C) features of one tile."""
    side = window_size(downsample_ratio, config.patch_grid, "downsample_ratio")
    patches = config.patch_grid**2
    return _PROJECTORS[projector_type](config, patches, patches // side**2)


def _pixel_shuffle(config: InternVLXConfig, patches: int, tokens: int) -> int:
    c, d = config.vision_config.hidden_size, config.text_config.hidden_size
    return linear(tokens, patches // tokens * c, d, d)


def _linear(config: InternVLXConfig, patches: int, tokens: int) -> int:
    c, d = config.vision_config.hidden_size, config.text_config.hidden_size
    return linear(patches, c, d, d)


def _ldpv2(config: InternVLXConfig, patches: int, tokens: int) -> int:
    depthwise = 2 * 3 * 3 * tokens * config.text_config.hidden_size
    return _linear(config, patches, tokens) + depthwise


def _token_packer(config: InternVLXConfig, patches: int, tokens: int) -> int:
    c, d = config.vision_config.hidden_size, config.text_config.hidden_size
    query = linear(tokens, c, c, c, c)  # two layers, then the attention's own
    key_and_value = 2 * linear(patches, c, c, c, c)
    seen = tokens * attention(1, patches // tokens, c)
    return query + key_and_value + seen + linear(tokens, c, c) + linear(tokens, c, d, d)


def _pvtc(config: InternVLXConfig, patches: int, tokens: int) -> int:
    projector = config.projector_config
    c, d = config.vision_config.hidden_size, config.text_config.hidden_size
    # keys and values are never formed: Wk and Wv meet the queries, then each head sees its window (see `PVTCAttention`)
    look = linear(tokens, d, d, d) + tokens * projector.num_heads * attention(1, patches // tokens, d)
    layer = look + linear(tokens, d, d, d) + 3 * linear(tokens, d, int(d * projector.mlp_ratio))
    flops = linear(patches, c, d)
    if projector.use_local:
        flops += linear(tokens, patches // tokens * c, d) + projector.num_layers * layer
        flops += linear(tokens, d, d) if projector.query_mlp == "internvl2" else 0
    if projector.use_global:
        flops += linear(1, c, d) + projector.num_layers * layer
    return flops


_PROJECTORS = {
    "pixel_shuffle": _pixel_shuffle,
    "linear": _linear,
    "ldpv2": _ldpv2,
    "token_packer": _token_packer,
    "pvtc": _pvtc,
}


def stages(config: InternVLXConfig) -> dict[str, range]:
    """The language model's layers by stage; without LVTC all are stage one."""
    n = config.text_config.num_hidden_layers
    k = n if config.lvtc_config is None else config.lvtc_config.expand_layer
    return {STAGE_ONE: range(k), STAGE_TWO: range(k, n)}


def head_dim(text: PretrainedConfig) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def prefill_flops(config: InternVLXConfig, lengths: tuple[int, int]) -> dict[str, int]:
    """FLOPs of the language model on a prompt of `lengths` tokens in stages one and two, its head on the last one."""
    flops = {}
    for (stage, layers), length in zip(stages(config).items(), lengths, strict=True):
        flops[stage] = _layer_flops(config.text_config, len(layers) * length, len(layers) * length**2)
    return flops | {"lm_head": head_flops(config)}


def decode_flops(config: InternVLXConfig, lengths: tuple[int, int], steps: int) -> int:
    """FLOPs of the language model and its head on `steps` more tokens, one at a time on a dynamic cache."""
    text, pairs = config.text_config, 0
    for layers, length in zip(stages(config).values(), lengths, strict=True):
        kinds = Counter(attention_types(text)[layer] for layer in layers)
        for kind, count in kinds.items():
            pairs += count * sum(cached_tokens(text, kind, seen) + 1 for seen in range(length, length + steps))
    rows = steps * text.num_hidden_layers
    return _layer_flops(text, rows, pairs) + steps * head_flops(config)


def head_flops(config: InternVLXConfig) -> int:
    return linear(1, config.text_config.hidden_size, config.text_config.vocab_size)


def cached_tokens(text: PretrainedConfig, attention_type: str, seen: int) -> int:
    """Tokens whose keys and values a layer keeps in a dynamic cache: all, or a sliding window but for the next token."""
    return min(seen, text.sliding_window - 1) if attention_type == "sliding_attention" else seen


def _layer_flops(text: PretrainedConfig, rows: int, pairs: int) -> int:
    """Of `rows` rows through a layer each, in which `pairs` pairs of a query and a key meet."""
    d, dim = text.hidden_size, head_dim(text)
    width, kv_width = text.num_attention_heads * dim, text.num_key_value_heads * dim
    projections = linear(rows, d, width + 2 * kv_width) + linear(rows, width, d)
    return projections + 3 * linear(rows, d, text.intermediate_size) + attention(1, pairs, width)
