# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a vision tower returns for a tile, and the features that projectors get: the global feature, then the
patches.
"""

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

PROBED_TILES = 2  # a single one would hide a tower that joins the tiles of a batch


@dataclass(frozen=True)
class TowerOutput:
    """Shapes of a tower's output for `PROBED_TILES` tiles.

    Args:
        class_name: the tower's class.
        last: shape of `last_hidden_state`.
        pooled: shape of `pooler_output`, None without one.
        has_layers: whether the tower returns hidden states of the same shape before and after every layer.
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
        extra_tokens: number of features before the patches: CLS, then registers.
        pooled_width: width of the pooled output, None without one.
        global_queries: possible values of `global_query`, the default first.
    """

    class_name: str
    extra_tokens: int
    pooled_width: int | None
    global_queries: tuple[str, ...]


def check_tower(config: InternVLXConfig) -> Tower:
    """Check the vision tower, and fill in `projector_config.global_query` if it is unset.

    This runs the tower's class with one layer on the meta device. The first feature before the patches counts as CLS.

    Raises:
        ValueError: if the tower does not fit; the message gives its class, its output and what is needed.
    """
    vision, grid, size = config.vision_config, config.patch_grid, config.tile_size
    output = probe(vision)
    tiles = f"{PROBED_TILES} tiles of {size}x{size} pixels"
    rows = output.last[1] if len(output.last) == 3 else 0
    require(
        len(output.last) == 3 and output.last[::2] == (PROBED_TILES, vision.hidden_size) and rows >= grid**2,
        f"The vision tower {output.class_name} returns features of shape {output.last} for {tiles}, expected "
        f"({PROBED_TILES}, n, {vision.hidden_size}) with {grid}x{grid} patches, so n at least {grid**2}.",
    )
    extra = rows - grid**2
    if extra > 1:
        _check_grid(vision, rows, extra)
    layer, others = config.vision_feature_layer, config.projector_config.token_packer_layers
    require(
        (layer == -1 and not others) or output.has_layers,
        f"`vision_feature_layer`={layer} and `projector_config.token_packer_layers`={others} need the hidden states "
        f"of every layer, but the vision tower {output.class_name} does not return them as {output.last[1:]} each. "
        "Set -1 and None.",
    )
    is_pooled = output.pooled == (PROBED_TILES, vision.hidden_size)
    available = {"cls": extra > 0, "pooled": is_pooled, "mean": True}
    tower = Tower(
        class_name=output.class_name,
        extra_tokens=extra,
        pooled_width=None if output.pooled is None else output.pooled[-1],
        global_queries=tuple(name for name, is_available in available.items() if is_available),
    )
    projector = config.projector_config
    if projector.global_query is None:
        projector.global_query = tower.global_queries[0]
    require(
        projector.global_query in tower.global_queries,
        f"`projector_config.global_query`={projector.global_query!r} does not fit the vision tower "
        f"{tower.class_name}: a tile has {rows} features for {grid}x{grid}={grid**2} patches, "
        + ("no pooled output" if output.pooled is None else f"a pooled output of shape {output.pooled[1:]}")
        + f" and the width {vision.hidden_size}. Set {' or '.join(map(repr, tower.global_queries))}.",
    )
    return tower


def _check_grid(vision: PretrainedConfig, rows: int, extra: int) -> None:
    """Check that the extra features are registers: their number must not change when the grid gains a row and a
    column.
    """
    (size, _), (patch, _) = pair(vision.image_size), pair(vision.patch_size)
    larger = copy.deepcopy(vision)
    larger.image_size = size + patch if isinstance(vision.image_size, int) else [size + patch] * 2
    more_rows, grid = probe(larger).last[1], size // patch
    require(
        more_rows == extra + (grid + 1) ** 2,
        f"The vision tower {probe(vision).class_name} returns {rows} features for a tile of {size}x{size} pixels and "
        f"{more_rows} for one of {size + patch}x{size + patch}, expected {grid}x{grid} and {grid + 1}x{grid + 1} "
        "patches after the same number of other tokens.",
    )


def probe(vision: PretrainedConfig) -> TowerOutput:
    """Run the tower's class on the meta device with one layer, else with all layers, else with one on the CPU.

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
    # the meta device has no values, which some towers read
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
    """Suspend DeepSpeed's ZeRO-3, which would partition the probe's parameters like the model's."""
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
    """The features that projectors get from a tower's outputs: (B, 1 + S², C), the global feature first, no registers.

    CLS and the patches come from `vision_feature_layer`, the pooled output from the tower's last layer.
    """
    layer, query, count = config.vision_feature_layer, config.projector_config.global_query, config.patch_grid**2
    features = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
    if query == "cls" and features.shape[1] == 1 + count:
        return features
    patches = features[:, -count:]
    if query == "cls":
        global_feature = features[:, :1]
    elif query == "pooled":
        global_feature = outputs.pooler_output[:, None].to(patches.device)
    else:
        global_feature = patches.mean(1, keepdim=True)
    return torch.cat([global_feature, patches], dim=1)
