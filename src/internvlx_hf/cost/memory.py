# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Bytes that a model takes: its weights and its cache exactly, the peak of a prefill as an estimate.

The estimate counts the tensors that the code of this package and of transformers holds at the same time in each phase of a
forward without gradients: one prompt, logits of its last token, attention by a kernel that never holds the L x L scores
(sdpa, flash attention). An allocator's own rounding, the kernels' workspaces and the CUDA context come on top.

Symbols as in `flops.py`; e is the size of a number in bytes.
"""

import json
from functools import lru_cache

import torch

from ..modeling import InternVLXConfig, InternVLXForConditionalGeneration
from ..modeling.configuration_internvlx import window_size
from ..modeling.lvtc_stages import attention_types
from ..modeling.pvtc import HEADS_AT_ONCE
from .flops import STAGE_ONE, STAGE_TWO, cached_tokens, head_dim, stages

FLOAT32 = 4  # of pixels as the processor gives them, and of norms
# rows of the MLP's width that are alive at once: activated gate, up and their product; Phi3 forms gate and up together
MLP_ROWS = {"phi3": 4}


def parameter_count(config: InternVLXConfig) -> int:
    """Parameters of the model, shared ones once: counted on the model itself, built without memory."""
    return _parameter_count(config.to_json_string(use_diff=False))


@lru_cache
def _parameter_count(json_config: str) -> int:
    config = InternVLXConfig.from_dict(json.loads(json_config))
    with torch.device("meta"):
        model = InternVLXForConditionalGeneration(config)
    return model.num_parameters()


def cache_bytes(config: InternVLXConfig, lengths: tuple[int, int], element_size: int) -> int:
    """Bytes of keys and values in a dynamic cache that has seen `lengths` tokens in stages one and two."""
    return sum(_cache_bytes_by_stage(config, lengths, element_size).values())


def _cache_bytes_by_stage(config: InternVLXConfig, lengths: tuple[int, int], element_size: int) -> dict[str, int]:
    text, kinds = config.text_config, attention_types(config.text_config)
    a_token = 2 * text.num_key_value_heads * head_dim(text) * element_size
    return {
        stage: a_token * sum(cached_tokens(text, kinds[layer], length) for layer in layers)
        for (stage, layers), length in zip(stages(config).items(), lengths, strict=True)
    }


def activation_bytes(config: InternVLXConfig, tiles: int, lengths: tuple[int, int], element_size: int) -> int:
    """Estimate of the most bytes beside the weights that a prefill holds at once, the cache included.

    Args:
        tiles: of all images of the prompt.
        lengths: tokens of the prompt in stages one and two.
        element_size: bytes of a number.
    """
    text, cache = config.text_config, _cache_bytes_by_stage(config, lengths, element_size)
    one, two = (length * _row_bytes(config, element_size) for length in lengths)
    encoded, encoding = _image_bytes(config, tiles, element_size) if tiles else (0, 0)
    embeddings = lengths[0] * text.hidden_size * element_size
    phases = [encoding, encoded + embeddings + cache[STAGE_ONE] + one]
    if stages(config)[STAGE_TWO]:
        phases.append(encoded + embeddings + sum(cache.values()) + two)
    return max(phases)


def _row_bytes(config: InternVLXConfig, e: int) -> int:
    """Bytes a token of a layer at its widest: the MLP, with the layer's input, residual and norm, and a stage's input."""
    text = config.text_config
    inputs = 3 if config.lvtc_config is None else 4
    width = MLP_ROWS.get(text.model_type, 3) * text.intermediate_size + inputs * text.hidden_size
    return e * (width + 2 * head_dim(text))  # the angles, too


def _image_bytes(config: InternVLXConfig, tiles: int, e: int) -> tuple[int, int]:
    """Bytes of what stays of the tiles while the language model runs, and the peak while they are encoded."""
    vision = config.vision_config
    channels, c = getattr(vision, "num_channels", 3), vision.hidden_size
    inner = getattr(vision, "intermediate_size", 4 * c)
    pixels = config.tile_size**2 * channels
    tokens = 1 + config.patch_grid**2
    given = FLOAT32 * pixels
    cast = e * pixels if e != FLOAT32 else 0
    peaks = [given + cast + e * tokens * (5 * c + 2 * inner)]
    made = given + e * tokens * c
    for kind, ratio in _projectors(config):
        rows = (config.patch_grid // window_size(ratio, config.patch_grid, "downsample_ratio")) ** 2
        peaks.append(made + _projector_bytes(config, kind, tokens - 1, rows, e))
        made += e * rows * config.text_config.hidden_size
    return tiles * made, tiles * max(peaks)


def _projectors(config: InternVLXConfig) -> list[tuple[str, float]]:
    """Type and ratio of all projectors, in the order in which they run."""
    lvtc, ratio = config.lvtc_config, config.downsample_ratio
    found = [(config.projector_config.projector_type, ratio)]
    if lvtc is not None:
        found += [(lvtc.lr_projector_type, ratio)] * (lvtc.num_lr_projectors - 1)
        if lvtc.hr_projector_type is not None:
            found.append((lvtc.hr_projector_type, lvtc.downsample_ratio))
    return found


def _projector_bytes(config: InternVLXConfig, kind: str, patches: int, tokens: int, e: int) -> int:
    """Peak of a projector on one tile, its output included."""
    c, d = config.vision_config.hidden_size, config.text_config.hidden_size
    if kind == "pvtc":
        return _pvtc_bytes(config, patches, tokens, e)
    if kind == "pixel_shuffle":
        return e * (2 * patches * c + 2 * tokens * d)
    if kind == "token_packer":
        return e * (6 * patches * c + 2 * tokens * (c + d))
    return e * (2 * patches * d + 2 * tokens * d)  # linear, ldpv2


def _pvtc_bytes(config: InternVLXConfig, patches: int, tokens: int, e: int) -> int:
    c, d = config.vision_config.hidden_size, config.text_config.hidden_size
    projector = config.projector_config
    in_float32 = FLOAT32 if e != FLOAT32 else 0  # a copy, where the numbers are not such
    windows, embedded = e * patches * c, e * patches * d
    heads = min(HEADS_AT_ONCE, projector.num_heads)
    norm = patches * d * (in_float32 + FLOAT32 + (e if e == FLOAT32 else 0))
    look = e * (patches * d + 2 * heads * tokens * d + 4 * tokens * d)
    mlp = e * tokens * (3 * int(d * projector.mlp_ratio) + 4 * d)
    embedding = max(patches * c * (in_float32 + 2 * FLOAT32), embedded)
    branches = e * tokens * d * (projector.use_local + projector.use_global)
    return windows + branches + embedded + max(norm, look, mlp, embedding - embedded)
