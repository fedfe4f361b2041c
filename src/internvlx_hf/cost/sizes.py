# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The numbers of a model that determine a prompt's cost. For presets they load without torch and transformers."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

PRESET_SIZES = Path(__file__).with_name("preset_sizes.json")


@dataclass(frozen=True)
class ExpertSizes:
    """Sizes of a mixture of experts: in each of `layers`, a token goes to `per_token` of `count` MLPs of `width`."""

    layers: tuple[int, ...]
    count: int
    per_token: int
    width: int


@dataclass(frozen=True)
class TextSizes:
    """Sizes of the language model; `sliding_layers` attend only to the last `sliding_window` tokens.

    Args:
        intermediate_size: width of the MLP in layers without experts.
        experts: None if all layers have one MLP.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    sliding_window: int | None
    sliding_layers: tuple[int, ...]
    experts: ExpertSizes | None = None


@dataclass(frozen=True)
class LVTCSizes:
    expand_layer: int
    downsample_ratio: float
    hr_projector_type: str | None
    num_lr_projectors: int
    lr_projector_type: str


@dataclass(frozen=True)
class TileCost:
    """A tile of one size: its tokens in each stage, its positions in the stage where it takes more, and FLOPs by
    module.
    """

    in_stages: tuple[int, ...]
    positions: int
    flops: dict[str, int]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model. Fields with the name of an `InternVLXConfig` setting have its value.

    Args:
        image_seq_length, expanded_image_seq_length, tile_positions, position_limit: as `InternVLXConfig`'s properties.
        parameters: number of parameters, shared ones counted once.
        tile_flops: FLOPs per tile by module, the vision tower and every projector.
        change_layers, offered: of a model that offers several sizes of a tile, the layers before which its tokens
            change, and what a tile of each size costs, the default first; None of others.
        tile_bytes: by element size, bytes per tile that are kept while the language model runs, and the peak.
    """

    text_config: TextSizes
    lvtc_config: LVTCSizes | None
    projector_type: str
    downsample_ratio: float
    image_seq_length: int
    expanded_image_seq_length: int
    tile_positions: int
    position_limit: int
    dtype: str | None
    parameters: int
    tile_flops: dict[str, int]
    tile_bytes: dict[int, tuple[int, int]]
    change_layers: tuple[int, ...] | None = None
    offered: dict[str, TileCost] | None = None

    @property
    def boundaries(self) -> list[int]:
        """The layers before which a tile's tokens may change."""
        if self.change_layers is not None:
            return list(self.change_layers)
        return [] if self.lvtc_config is None else [self.lvtc_config.expand_layer]

    @property
    def tiles(self) -> dict[str, TileCost]:
        """What a tile of each size costs, the default first."""
        if self.offered is not None:
            return self.offered
        in_stages = self.image_seq_length, self.expanded_image_seq_length
        return {str(self.image_seq_length): TileCost(in_stages, self.tile_positions, self.tile_flops)}

    @property
    def active_parameters(self) -> int:
        """Parameters without the experts that a token does not go to."""
        text, experts = self.text_config, self.text_config.experts
        if experts is None:
            return self.parameters
        idle = len(experts.layers) * (experts.count - experts.per_token)
        return self.parameters - idle * 3 * text.hidden_size * experts.width


def preset_sizes(name: str, variant: str) -> Sizes:
    """Stored sizes of a preset or of a variant of it (`variants.VARIANTS`)."""
    variants = _measured_presets()[name]
    sizes = variants.get(variant, variants["own"])
    text, lvtc = sizes["text_config"], sizes["lvtc_config"]
    experts = text.get("experts")
    if experts is not None:
        experts = ExpertSizes(**experts | {"layers": tuple(experts["layers"])})
    tuples = {"sliding_layers": tuple(text["sliding_layers"]), "experts": experts}
    return Sizes(
        **sizes
        | {
            "text_config": TextSizes(**text | tuples),
            "lvtc_config": None if lvtc is None else LVTCSizes(**lvtc),
            "tile_bytes": {int(size): (kept, peak) for size, (kept, peak) in sizes["tile_bytes"].items()},
        }
    )


@cache
def _measured_presets() -> dict[str, dict[str, dict]]:
    return json.loads(PRESET_SIZES.read_text())


def presets_as_json(measured: dict[str, dict[str, Sizes]]) -> str:
    """The text of `preset_sizes.json`. Variants with the preset's own costs are left out."""
    lines = []
    for name, variants in measured.items():
        others = {key: sizes for key, sizes in variants.items() if key == "own" or sizes != variants["own"]}
        body = ",\n".join(f"  {json.dumps(key)}: {json.dumps(_as_dict(sizes))}" for key, sizes in others.items())
        lines.append(f" {json.dumps(name)}: {{\n{body}\n }}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _as_dict(sizes: Sizes) -> dict:
    values = asdict(sizes)
    for name in ("change_layers", "offered"):
        if values[name] is None:
            del values[name]
    if sizes.text_config.experts is None:
        del values["text_config"]["experts"]
    return values
