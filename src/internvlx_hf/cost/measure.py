# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a configuration's model costs, measured on the model itself, which is built and run on the meta device.

`python -m internvlx_hf.cost.measure` measures the presets again.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from math import isqrt

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..modeling.configuration_internvlx import InternVLXConfig
from ..modeling.lvtc_masks import attention_types
from ..modeling.modeling_internvlx import InternVLXForConditionalGeneration
from ..modeling.projector import project
from ..modeling.projectors import PROJECTORS
from ..modeling.tile_sizes import TileSize
from ..modeling.towers import check_tower
from .presets import PRESETS, preset
from .sizes import PRESET_SIZES, ExpertSizes, LVTCSizes, Sizes, TextSizes, TileCost, presets_as_json
from .variants import VARIANTS, vary

FLOAT32 = 4  # bytes per value of the processor's pixels
ELEMENT_SIZES = (1, 2, 4, 8)


def measure(config: InternVLXConfig) -> Sizes:
    return _measure(config.to_json_string(use_diff=False))


@lru_cache
def _measure(json_config: str) -> Sizes:
    config = InternVLXConfig.from_dict(json.loads(json_config))
    dtype = None if config.dtype is None else str(config.dtype).removeprefix("torch.")
    config.vision_config._attn_implementation = "eager"  # fused kernels are not counted on every device
    with torch.device("meta"):
        model = InternVLXForConditionalGeneration(config).eval()
    return Sizes(
        text_config=_text_sizes(model),
        lvtc_config=_lvtc_sizes(config),
        projector_type=config.projector_config.projector_type,
        downsample_ratio=config.downsample_ratio,
        image_seq_length=config.image_seq_length,
        expanded_image_seq_length=config.expanded_image_seq_length,
        tile_positions=config.tile_positions,
        position_limit=config.position_limit,
        dtype=dtype,
        parameters=model.num_parameters(),
        tile_flops=_count_tile_flops(model, config.sizes[0]),
        tile_bytes={size: _tile_bytes(config, size) for size in ELEMENT_SIZES},
        change_layers=None if config.tokens_per_tile is None else tuple(config.boundaries),
        offered=None if config.tokens_per_tile is None else _tile_costs(model),
    )


def _tile_costs(model: InternVLXForConditionalGeneration) -> dict[str, TileCost]:
    config = model.config
    boundaries = config.boundaries or [config.text_config.num_hidden_layers]
    return {
        str(size): TileCost(tuple(size.in_stages(boundaries)), size.positions, _count_tile_flops(model, size))
        for size in config.sizes
    }


def _text_sizes(model: InternVLXForConditionalGeneration) -> TextSizes:
    text = model.config.text_config
    kinds = attention_types(text)
    return TextSizes(
        model_type=text.model_type,
        hidden_size=text.hidden_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        intermediate_size=text.intermediate_size,
        vocab_size=text.vocab_size,
        sliding_window=getattr(text, "sliding_window", None),
        sliding_layers=tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention"),
        experts=_expert_sizes(model),
    )


def _expert_sizes(model: InternVLXForConditionalGeneration) -> ExpertSizes | None:
    text, layers = model.config.text_config, model.model.language_model.layers
    routed = tuple(i for i, layer in enumerate(layers) if hasattr(layer.mlp, "experts"))
    if not routed:
        return None
    return ExpertSizes(routed, text.num_experts, text.num_experts_per_tok, text.moe_intermediate_size)


def _lvtc_sizes(config: InternVLXConfig) -> LVTCSizes | None:
    if config.lvtc_config is None:
        return None
    return LVTCSizes(**{name: getattr(config.lvtc_config, name) for name in LVTCSizes.__dataclass_fields__})


@torch.no_grad()
def _count_tile_flops(model: InternVLXForConditionalGeneration, tile: TileSize) -> dict[str, int]:
    config = model.config
    size, channels = config.tile_size, getattr(config.vision_config, "num_channels", 3)
    pixels = torch.zeros(1, channels, size, size, device="meta")
    features = torch.zeros(1, 1 + config.patch_grid**2, config.vision_config.hidden_size, device="meta")
    flops = {"vision_tower": _count_flops(model.model.vision_tower, pixel_values=pixels)}
    side = config.patch_grid // isqrt(tile.before)
    sides = {name: None if name == "lvtc.hr_projector" else side for name in config.projectors}
    sides = {name: own for name, own in sides.items() if tile.has_lvtc or not name.startswith("lvtc.")}
    layers = [features[:, 1:]] * len(config.projector_config.token_packer_layers or ())
    modules = {name: model.model.get_submodule(name) for name in sides}
    if (router := model.model.tile_router) is not None:
        if tile == config.sizes[0]:  # else the request chooses
            flops["tile_router"] = _count_flops(router, features[:, 1:])
        else:
            modules["multi_modal_projector"] = router.projector
    return flops | {name: _count_flops(project, modules[name], features, layers, own) for name, own in sides.items()}


def _count_flops(run: Callable, *args, **kwargs) -> int:
    with FlopCounterMode(display=False) as counter:
        run(*args, **kwargs)
    return counter.get_total_flops()


def _tile_bytes(config: InternVLXConfig, e: int) -> tuple[int, int]:
    """Bytes per tile that are kept while the language model runs, and the peak while the tile is encoded."""
    vision = config.vision_config
    c, patches = vision.hidden_size, config.patch_grid**2
    inner = getattr(vision, "intermediate_size", 4 * c)
    pixels = config.tile_size**2 * getattr(vision, "num_channels", 3)
    given = FLOAT32 * pixels
    cast = e * pixels if e != FLOAT32 else 0
    tower = check_tower(config)
    rows = tower.extra_tokens + patches
    is_copied = rows > 1 + patches or config.projector_config.global_query != "cls"
    peaks = [given + cast + e * rows * (5 * c + 2 * inner)]
    layers = 1 + len(config.projector_config.token_packer_layers or ())
    kept = given + e * c * (rows * layers + is_copied * (1 + patches))
    for kind, side in config.projectors.values():
        peaks.append(kept + PROJECTORS[kind].peak_bytes(config, side, e))
        kept += e * patches // side**2 * config.text_config.hidden_size
    return kept, max(peaks)


def measure_presets() -> str:
    """The content of `preset_sizes.json`."""
    return presets_as_json(
        {name: {variant: measure(vary(preset(name), variant)) for variant in VARIANTS} for name in PRESETS}
    )


if __name__ == "__main__":
    PRESET_SIZES.write_text(measure_presets())
