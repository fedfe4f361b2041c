# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a vision tower gives for a tile, and the features that projectors get of it: the global feature, then the patches."""

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig

from .configuration_internvlx import InternVLXConfig
from .setting_checks import pair, require

PROBED_TILES = 2  # with one, a tower that joins the tiles of a batch would go unnoticed


@dataclass(frozen=True)
class TowerOutput:
    """What a tower gives for `PROBED_TILES` tiles, as shapes.

    Args:
        class_name: the tower's class.
        last: of `last_hidden_state`.
        pooled: of `pooler_output`, None without one.
        has_layers: whether it gives hidden states of the same shape before and after every layer.
    """

    class_name: str
    last: tuple[int, ...]
    pooled: tuple[int, ...] | None
    has_layers: bool


@dataclass(frozen=True)
class Tower:
    """A tower that fits its configuration.

    Args:
        class_name: the tower's class.
        extra_tokens: features before the patches: CLS, then registers.
        pooled_width: width of its pooled output, None without one.
        global_queries: what `global_query` can be, the default first.
    """

    class_name: str
    extra_tokens: int
    pooled_width: int | None
    global_queries: tuple[str, ...]


def check_tower(config: InternVLXConfig) -> Tower:
    """Check the vision tower, and fill in `projector_config.global_query` where it is unset.

    The tower's class is run with one layer, without memory. The first feature before the patches is taken for CLS.

    Raises:
        ValueError: naming the tower's class, what it gives and what is needed.
    """
    vision, grid, size = config.vision_config, config.patch_grid, config.tile_size
    output = probe(vision)
    tiles = f"{PROBED_TILES} tiles of {size}x{size} pixels"
    rows = output.last[1] if len(output.last) == 3 else 0
    require(
        len(output.last) == 3 and output.last[::2] == (PROBED_TILES, vision.hidden_size) and rows >= grid**2,
        f"The vision tower {output.class_name} gives features of shape {output.last} for {tiles}, expected "
        f"({PROBED_TILES}, n, {vision.hidden_size}) with {grid}x{grid} patches, so n at least {grid**2}.",
    )
    extra = rows - grid**2
    if extra > 1:
        _check_grid(vision, rows, extra)
    layer, others = config.vision_feature_layer, config.projector_config.token_packer_layers
    require(
        (layer == -1 and not others) or output.has_layers,
        f"`vision_feature_layer`={layer} and `projector_config.token_packer_layers`={others} need the hidden states of every "
        f"layer, but the vision tower {output.class_name} does not give them as {output.last[1:]} each. Take -1 and None.",
    )
    pools = output.pooled == (PROBED_TILES, vision.hidden_size)
    has = {"cls": extra > 0, "pooled": pools, "mean": True}
    tower = Tower(
        class_name=output.class_name,
        extra_tokens=extra,
        pooled_width=None if output.pooled is None else output.pooled[-1],
        global_queries=tuple(name for name, there in has.items() if there),
    )
    projector = config.projector_config
    if projector.global_query is None:
        projector.global_query = tower.global_queries[0]
    require(
        projector.global_query in tower.global_queries,
        f"`projector_config.global_query`={projector.global_query!r} does not fit the vision tower {tower.class_name}: a "
        f"tile gives {rows} features for {grid}x{grid}={grid**2} patches, and "
        + ("no pooled output" if output.pooled is None else f"a pooled output of shape {output.pooled[1:]}")
        + f" beside the width {vision.hidden_size}. Take {' or '.join(map(repr, tower.global_queries))}.",
    )
    return tower


def _check_grid(vision: PretrainedConfig, rows: int, extra: int) -> None:
    """Tell registers from a grid of another size: with a row and a column of patches more, registers stay as many."""
    (size, _), (patch, _) = pair(vision.image_size), pair(vision.patch_size)
    larger = copy.deepcopy(vision)
    larger.image_size = size + patch if isinstance(vision.image_size, int) else [size + patch] * 2
    more_rows, grid = probe(larger).last[1], size // patch
    require(
        more_rows == extra + (grid + 1) ** 2,
        f"The vision tower {probe(vision).class_name} gives {rows} features for a tile of {size}x{size} pixels, but "
        f"{more_rows} for one of {size + patch}x{size + patch}, expected a grid of {grid}x{grid} patches, then "
        f"{grid + 1}x{grid + 1}, behind as many other tokens.",
    )


def probe(vision: PretrainedConfig) -> TowerOutput:
    """Run the tower's class on the meta device with one layer, or with all where it cannot have one; else on the CPU.

    Raises:
        ValueError: if there is no such class, or it cannot encode tiles of its own size.
    """
    return _probe(type(vision), vision.to_json_string(use_diff=False))  # type: ignore[arg-type]


@lru_cache
def _probe(config_class: type[PretrainedConfig], json_config: str) -> TowerOutput:
    full = config_class.from_dict(json.loads(json_config))
    single = copy.deepcopy(full)
    single.num_hidden_layers = 1
    error: Exception | None = None
    # a tower may read values, which the meta device has not
    for tower, device in ((single, "meta"), (full, "meta"), (single, "cpu")):
        try:
            return _run(tower, device)
        except Exception as caught:
            error = caught
    raise ValueError(
        f"The vision tower {full.model_type!r} cannot encode tiles of {full.image_size} pixels. "
        f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    ) from error


@torch.no_grad()
def _run(vision: PretrainedConfig, device: str) -> TowerOutput:
    height, width = pair(vision.image_size)
    with _without_zero_init(), torch.device(device):
        tower = AutoModel.from_config(vision, attn_implementation="eager").eval()
        pixels = torch.zeros(PROBED_TILES, getattr(vision, "num_channels", 3), height, width, dtype=tower.dtype)
        outputs = tower(pixel_values=pixels, output_hidden_states=True, return_dict=True)
    last, pooled = outputs.last_hidden_state.shape, getattr(outputs, "pooler_output", None)
    layers = getattr(outputs, "hidden_states", None) or ()
    return TowerOutput(
        class_name=type(tower).__name__,
        last=tuple(last),
        pooled=None if pooled is None else tuple(pooled.shape),
        has_layers=[layer.shape for layer in layers] == [last] * (vision.num_hidden_layers + 1),
    )


@contextmanager
def _without_zero_init() -> Iterator[None]:
    """Outside of DeepSpeed's ZeRO-3, which would partition the probe's parameters as the model's."""
    partition = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    if partition is None:
        yield
        return
    partition.shutdown_init_context()
    try:
        yield
    finally:
        partition.restore_init_context()


def projected_features(config: InternVLXConfig, outputs: Any) -> torch.Tensor:
    """The features that projectors get of a tower's outputs: (B, 1 + S², C), the global feature first, no registers.

    CLS and the patches are those of `vision_feature_layer`; the pooled output is what the tower itself makes of its last
    layer.
    """
    layer, query, count = config.vision_feature_layer, config.projector_config.global_query, config.patch_grid**2
    features = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
    if query == "cls" and features.shape[1] == 1 + count:
        return features
    patches = features[:, -count:]
    if query == "cls":
        whole = features[:, :1]
    elif query == "pooled":
        whole = outputs.pooler_output[:, None].to(patches.device)
    else:
        whole = patches.mean(1, keepdim=True)
    return torch.cat([whole, patches], dim=1)
